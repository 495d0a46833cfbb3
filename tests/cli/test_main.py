"""The parser, the exit codes and what errors look like."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import __version__
from appliance.cli import main as program
from appliance.cli.show import Answer, Screen, Table, fields, printable
from appliance.errors import TABLE, Busy, NotFound


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, child in group.choices.items():
            yield from commands(child, (*words, name))


COMMANDS = dict(commands(program.build_parser()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_runs_something_and_explains_itself(words: tuple[str, ...]) -> None:
    parser = COMMANDS[words]
    assert callable(parser.get_default("run"))
    assert parser.description
    text = parser.format_help()
    assert "--json" in text
    assert "--config" in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_takes_a_secret_on_the_command_line(words: tuple[str, ...]) -> None:
    for action in COMMANDS[words]._actions:
        names = " ".join((*action.option_strings, action.dest))
        if "password" in names or "pin" in names.split("_"):
            is_flag = action.nargs == 0
            assert is_flag or "file" in names, names


def test_the_commands_are_these() -> None:
    assert {" ".join(words) for words in COMMANDS} == {
        "init",
        *(f"key {one}" for one in ("create", "list", "show", "disable", "enable", "request")),
        "ca root",
        "ca issue",
        *(f"account {one}" for one in ("create", "list", "password", "disable", "enable", "grant", "revoke")),
        *(f"officer {one}" for one in ("create", "roles", "list", "password", "disable", "enable", "whoami")),
        "officer change-password",
        *(f"organisation {one}" for one in ("add", "change", "list", "show")),
        *(
            f"proposal {one}"
            for one in ("list", "show", "approve", "reject", "make", "renew", "wake", "cancel")
        ),
        *(f"proposal {one}" for one in ("destroy-key", "reset-password")),
        *(f"grant {one}" for one in ("list", "give", "take")),
        *(f"seal {one}" for one in ("apply", "list", "show", "events", "document", "imprint", "eseal")),
        *(f"seal {one}" for one in ("review", "refuse", "key", "request", "certificate", "file", "confirm")),
        *(f"seal {one}" for one in ("activate", "suspend", "resume", "password", "rotate", "unlock", "lock")),
        *(f"seal {one}" for one in ("sign", "verify")),
        *(f"statistics {one}" for one in ("seals", "uses", "filing")),
        "outbox list",
        "sign",
        "verify",
        "status",
        "stream",
        "bench",
        "demo",
    }


def test_exit_codes_are_those_of_the_error_table() -> None:
    codes = program.exit_codes()
    assert {row.exit_code for row in TABLE.values()} == set(codes) - {0, 1, 74, 130, 141}
    for row in TABLE.values():
        assert f"{row.label}: " in codes[row.exit_code]
    text = program.build_parser().format_help()
    for code, meaning in codes.items():
        assert f"{code:>3}  {meaning}" in text


def test_an_answer_that_cannot_be_written_is_not_a_no(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [Path(sys.executable).parent / "cloud-seal", "init", "--directory", tmp_path / "new"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == program.EXIT_NO_OUTPUT
    assert "could not be written: No space left on device" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", [NotFound("no key 'x'", hint="cloud-seal key list"), Busy("full", retry_after_ms=1500)]
)
@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_says_what_happened_and_what_to_do(
    error: NotFound, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace, screen: Screen) -> Answer:
        raise error

    monkeypatch.setattr("appliance.cli.setup._init", fail)
    assert program.main(["init", "--json"] if as_json else ["init"]) == error.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    if as_json:
        assert json.loads(captured.err) == {
            "error": error.label,
            "detail": error.detail,
            "hint": error.hint,
            "retry_after_ms": error.retry_after_ms,
        }
    else:
        assert error.detail in captured.err
        assert error.hint in captured.err
        assert ("retry after 1.5 s" in captured.err) == bool(error.retry_after_ms)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["key"], ["sign"], ["sign", "f"], ["stream", "--key", "k"]]
)
def test_wrong_usage_is_an_error_like_others(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "--help" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"cloud-seal {__version__}\n"


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: argparse.Namespace, screen: Screen) -> Answer:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.cli.setup._init", interrupt)
    assert program.main(["init"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_options_may_stand_before_and_after_the_command() -> None:
    parser = program.build_parser()
    for words in (["--json", "--config", "c", "key", "list"], ["key", "list", "--json", "--config", "c"]):
        args = parser.parse_args(words)
        assert args.json is True
        assert args.config == Path("c")


# Output -----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ANSWER = Answer(
    {"a": "电子印章"}, [Table(("name", "n>"), [["x", "1"]]), "line", fields("thing", [["k", "v"]])]
)


def test_a_pipe_gets_tab_separated_lines() -> None:
    out = io.StringIO()
    Screen(as_json=False, out=out).answer(ANSWER)
    assert out.getvalue() == "name\tn\nx\t1\nline\nk\tv\n"


def test_a_program_gets_one_document() -> None:
    out = io.StringIO()
    Screen(as_json=True, out=out).answer(ANSWER)
    assert out.getvalue() == '{"a": "电子印章"}\n'


def test_a_person_gets_a_table() -> None:
    out = Terminal()
    Screen(as_json=False, out=out).answer(ANSWER)
    assert "name" in out.getvalue()
    assert "thing" in out.getvalue()
    assert "\t" not in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_came_from_elsewhere_moves_the_cursor(terminal: bool) -> None:
    hostile = "a\x1b[2Jb\rc\td\ne\x9b1m[bold]"
    out = Terminal() if terminal else io.StringIO()
    Screen(as_json=False, out=out).answer(
        Answer(None, [Table(("x",), [[hostile]]), fields("f", [["k", hostile]])])
    )
    for char in ("\x1b[2J", "\r", "\x9b"):
        assert char not in out.getvalue()
    assert "[bold]" in out.getvalue()
    assert printable(hostile).count("\N{REPLACEMENT CHARACTER}") == 5


def test_progress_without_a_terminal_is_ten_lines() -> None:
    err = io.StringIO()
    with Screen(as_json=False, err=err).progress("signing", 1000) as tell:
        for done in range(0, 1001, 7):
            tell(done)
        tell(1000)
    lines = err.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("signing: 1,000 of 1,000, ")


def test_a_program_gets_no_progress() -> None:
    err = io.StringIO()
    with Screen(as_json=True, err=err).progress("signing", 10) as tell:
        tell(10)
    assert err.getvalue() == ""
