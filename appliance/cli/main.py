"""The program ``cloud-seal``: parser, dispatch, exit codes.

For: turning arguments into one command, and what it raises into words and an exit code.
Not for: any command's own work.

Rules:

* Exit codes are those of ``errors.TABLE``, and the few below; ``cloud-seal --help`` lists them.
* Errors go to standard error: what happened, then what to do next. A traceback is a defect of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from appliance import __version__
from appliance.errors import TABLE, ApplianceError, BadRequest

EXIT_DONE: Final = 0
EXIT_NEGATIVE: Final = 1
EXIT_NO_OUTPUT: Final = 74
"""EX_IOERR of sysexits. Not 1: a full disk must not look like an invalid signature."""
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell has it."""
EXIT_BROKEN_PIPE: Final = 141
"""128 + SIGPIPE: whoever read our output has gone."""


def exit_codes() -> dict[int, str]:
    """Every exit code and what it means."""
    meanings: dict[int, list[str]] = {}
    for row in TABLE.values():
        sentence = (row.error.__doc__ or "").partition("\n")[0].rstrip(".")
        meanings.setdefault(row.exit_code, []).append(f"{row.label}: {sentence}")
    return {
        EXIT_DONE: "done",
        EXIT_NEGATIVE: "the answer is no: a signature is invalid, or items failed",
        **{code: "; ".join(texts) for code, texts in sorted(meanings.items())},
        EXIT_NO_OUTPUT: "it was done, and the answer could not be written",
        EXIT_INTERRUPTED: "interrupted",
        EXIT_BROKEN_PIPE: "whoever read the output has gone",
    }


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like every other error."""

    def error(self, message: str) -> NoReturn:
        raise BadRequest(message, hint=f"{self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    # The modules of the commands import the client, and with it half a second's worth of libraries: not for --version.
    from appliance.cli import demo, figures, officer, people, seals, setup, signing, stream

    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: a default here would undo what was given before the command's name.
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer in JSON")
    common.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help="default: $CLOUD_SEAL_CONFIG, ./config/appliance.yaml, /etc/cloud-seal/appliance.yaml",
    )
    lines = [f"  {code:>3}  {meaning}" for code, meaning in exit_codes().items()]
    parser = _Parser(
        prog="cloud-seal",
        parents=[common],
        description="Everything a person types to an electronic seal signing appliance.",
        epilog="\n".join(("exit codes:", *lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cloud-seal {__version__}")
    groups = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for module in (setup, officer, people, seals, figures, signing, stream, demo):
        module.add_commands(groups, [common])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    from appliance.cli.show import Screen

    arguments = sys.argv[1:] if argv is None else list(argv)
    screen = Screen(as_json="--json" in arguments)
    try:
        args = build_parser().parse_args(arguments)
        answer = args.run(args, screen)
        screen.answer(answer)
        sys.stdout.flush()
    except ApplianceError as error:
        screen.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        screen.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # everything else that fails has become an ``ApplianceError`` where it failed
        _abandon_stdout()
        print(f"cloud-seal: the answer could not be written: {error.strerror}", file=sys.stderr)
        return EXIT_NO_OUTPUT
    return int(answer.exit_code)


def _abandon_stdout() -> None:
    """Python would complain once more while it shuts down: nobody can read it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
