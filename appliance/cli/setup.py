"""``cloud-seal init``: makes an appliance's directory.

For: configuration, token profiles, directories for secrets and data, a demonstration token, a first account.
Not for: production tokens: those are initialised by whoever holds their security officer's PIN.

Layout, all below one directory::

    appliance.yaml       the configuration, every key at its default
    tokens/              token profiles
    secrets/    0700     PINs, one file each, 0600
    data/       0700     the registry
    run/                 sockets
    softhsm2/   0700     the demonstration token, if asked for

Rules:

* What is there is kept, and told so: running it again changes nothing and repairs what is missing.
* A file appears whole or not at all: it is written beside its place, made durable, and moved there.
* PINs are random, and reach ``softhsm2-util`` through a terminal of its own: never argv, never the environment.

Crash story: each step looks for its own result, so a run that was cut short is finished by the next one. The PIN
files are durable before the token is made: a token whose PIN nobody knows cannot come to be.
"""

from __future__ import annotations

import argparse
import os
import pty
import secrets
import select
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml

from appliance.cli.files import write_durably
from appliance.cli.show import Answer, Screen, Table
from appliance.cli.target import login_name
from appliance.errors import BadRequest, ConfigError, Conflict, Unavailable
from appliance.policy import EVERY_KEY, Account
from appliance.registry import Registry
from appliance.settings import Settings, load_mapping, load_settings, split_address

MAX_SOCKET_PATH_LEN: Final = 107
"""What fits into ``sockaddr_un``, with the zero byte that ends it."""
DEMO_LABEL: Final = "cloud-seal-demo"
DEMO_PROFILE: Final = "softhsm2.yaml"
SOFTHSM2_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
PIN_BYTES: Final = 16
"""128 bits: the token slows no guesses, and its files may be copied."""
TOKEN_TOOL_TIMEOUT_S: Final = 60.0


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``init`` to the parser."""
    command = groups.add_parser(
        "init",
        parents=parents,
        help="make an appliance's directory: configuration, secrets, data",
        description="Make an appliance's directory. What is there already is kept.",
    )
    command.set_defaults(run=_init)
    command.add_argument(
        "--directory", metavar="DIR", type=Path, default=Path("config"), help="default: config"
    )
    command.add_argument("--health", metavar="HOST:PORT", help="where health and metrics listen, on loopback")
    command.add_argument(
        "--demo-token",
        action="store_true",
        help="also make a SoftHSM2 token with random PINs, and an account for you on every key. Not for production",
    )


def _init(args: argparse.Namespace, screen: Screen) -> Answer:
    steps = initialise(args.directory, demo_token=args.demo_token, health=args.health)
    config = args.directory / "appliance.yaml"
    # Relative where it was named so: this is what a person types next.
    rows = [[step["what"], step["path"], step["done"]] for step in steps]
    document = {"config": str(config), "steps": steps}
    return Answer(document, [Table(("what", "where", ""), rows), f"Next: cloud-seald --config {config}"])


def initialise(
    directory: Path, *, demo_token: bool = False, health: str | None = None
) -> list[dict[str, str]]:
    """Make what is missing below ``directory``; what, where, and whether it was ``made`` or ``kept``."""
    made = _Maker(directory)
    made.directory("", 0o755)
    made.directory("tokens", 0o755)
    made.directory("secrets", 0o700)
    made.directory("data", 0o700)
    made.directory("run", 0o755)
    config = directory / "appliance.yaml"
    template = shipped("appliance.yaml").read_text()
    if demo_token:
        profile = _make_demo_token(made)
        entry = f"tokens:\n  - profile: tokens/{profile}\n    pin_file: secrets/softhsm2.pin\n"
        template = _replaced(template, "tokens: []\n", entry)
    else:
        for profile_file in sorted(shipped("tokens").iterdir(), key=lambda one: one.name):
            if profile_file.name.endswith(".yaml"):
                made.file(f"tokens/{profile_file.name}", profile_file.read_text(), 0o644, "token profile")
    if health is not None:
        split_address(health)
        template = _replaced(template, "  health: 127.0.0.1:9440\n", f"  health: {health}\n")
    made.file("appliance.yaml", template, 0o644, "configuration")
    settings = load_settings(
        config
    )  # strict: what we wrote, or what somebody changed since, must be readable
    _check_socket_paths(settings)
    if demo_token:
        _make_account(made, settings)
    return made.steps


def shipped(name: str) -> Any:
    """A file or folder of the shipped configuration: an ``importlib.resources`` traversable."""
    return resources.files("appliance").joinpath("config", name)


class _Maker:
    """Makes files and directories below one directory and remembers what it did."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps: list[dict[str, str]] = []

    def note(self, what: str, path: Path, done: str) -> None:
        self.steps.append({"what": what, "path": str(path), "done": done})

    def directory(self, name: str, mode: int) -> Path:
        path = self.root / name
        try:
            done = "kept" if path.is_dir() else "made"
            if done == "made":
                path.mkdir(parents=True, mode=mode)
                path.chmod(mode)  # whatever the umask says
            elif mode & 0o077 == 0 and path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} holds secrets and others can enter it", hint=f"chmod 700 {path}")
        except OSError as error:
            raise BadRequest(f"{path}: {error.strerror}") from error
        self.note("directory", path, done)
        return path

    def file(self, name: str, text: str, mode: int, what: str) -> bool:
        """Whether it was made now."""
        path = self.root / name
        if path.exists():
            self.note(what, path, "kept")
            return False
        write_durably(path, text.encode(), mode)
        self.note(what, path, "made")
        return True


def _replaced(template: str, old: str, new: str) -> str:
    """The shipped configuration with one line changed, its comments kept."""
    if template.count(f"\n{old}") != 1:
        raise RuntimeError(f"the shipped configuration has no line {old!r}")
    return template.replace(f"\n{old}", f"\n{new}")


def _check_socket_paths(settings: Settings) -> None:
    for path in (settings.listen.unix_socket, settings.web.officer_socket):
        if path is not None and len(os.fsencode(path)) > MAX_SOCKET_PATH_LEN:
            raise ConfigError(
                f"{path}: a socket's path has at most {MAX_SOCKET_PATH_LEN} bytes",
                hint="choose a directory with a shorter path",
            )


def _make_account(made: _Maker, settings: Settings) -> None:
    """An account for whoever runs this, with a grant on every key; proof is the uid on the Unix socket."""
    name = login_name()
    registry = Registry(settings.registry)
    try:
        registry.create_account(Account(name, None, os.getuid(), None, False, frozenset()))
        done = "made"
    except Conflict:
        done = "kept"
    else:
        # A crash between the two leaves an account that may use nothing; `account grant` mends it.
        registry.grant(name, EVERY_KEY)
    finally:
        registry.close()
    made.note(f"account {name}", settings.registry, done)


# The demonstration token ------------------------------------------------------------------------------------


def _make_demo_token(made: _Maker) -> str:
    """A SoftHSM2 token of this directory's own; the name of its profile."""
    module = next((path for path in SOFTHSM2_MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        raise Unavailable("SoftHSM2 is not installed", hint="apt-get install softhsm2")
    pin = _make_pin(made, "secrets/softhsm2.pin")
    so_pin = _make_pin(made, "secrets/softhsm2.so-pin")
    store = made.directory("softhsm2", 0o700)
    objects = store.resolve() / "tokens"
    objects.mkdir(mode=0o700, exist_ok=True)
    conf = store.resolve() / "softhsm2.conf"
    made.file(
        "softhsm2/softhsm2.conf",
        f"directories.tokendir = {objects}\nobjectstore.backend = file\nlog.level = ERROR\n",
        0o600,
        "SoftHSM2's settings",
    )
    # A token is a directory; one that was cut short in the making has no token.object, and is no token.
    if any(objects.glob("*/token.object")):
        made.note("demonstration token", objects, "kept")
    else:
        _initialise_softhsm2(conf, so_pin, pin)
        made.note("demonstration token", objects, "made")
    profile = yaml.safe_load(shipped("tokens").joinpath(DEMO_PROFILE).read_text())
    profile.pop("token_serial", None)
    profile |= {
        "module": module,
        "token_label": DEMO_LABEL,
        "environment": {"SOFTHSM2_CONF": str(conf)},
    }
    text = "# Made by `cloud-seal init --demo-token` from the shipped profile of SoftHSM2.\n"
    made.file(
        f"tokens/{DEMO_PROFILE}", text + yaml.safe_dump(profile, sort_keys=False), 0o644, "token profile"
    )
    load_mapping(made.root / "tokens" / DEMO_PROFILE)
    return DEMO_PROFILE


def _make_pin(made: _Maker, name: str) -> str:
    made.file(name, f"{secrets.token_hex(PIN_BYTES)}\n", 0o600, "PIN")
    return (made.root / name).read_text().strip()


def _initialise_softhsm2(conf: Path, so_pin: str, pin: str) -> None:
    command = ("softhsm2-util", "--init-token", "--free", "--label", DEMO_LABEL)
    answers = (so_pin, so_pin, pin, pin)
    status, said = _answer_prompts(command, {"SOFTHSM2_CONF": str(conf)}, b"PIN: ", answers)
    if status != 0:
        raise Unavailable(
            f"softhsm2-util ended with {status}", hint=said.strip().splitlines()[-1] if said else ""
        )


def _answer_prompts(
    command: Sequence[str],
    environment: dict[str, str],
    prompt: bytes,
    answers: Sequence[str],
    timeout_s: float = TOKEN_TOOL_TIMEOUT_S,
) -> tuple[int, str]:
    """Run a program that asks on its terminal; its exit status and what it said."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | environment | {"LC_ALL": "C"},
            start_new_session=True,
        )
        os.close(slave)
        slave = -1
        said, asked = b"", 0
        while chunk := _read_terminal(master, timeout_s):
            said += chunk
            while asked < min(said.count(prompt), len(answers)):
                os.write(master, f"{answers[asked]}\n".encode())
                asked += 1
        if asked < len(answers):
            process.kill()  # it asks something we do not know, or asks no more
        status = process.wait()
    finally:
        os.close(master)
        if slave != -1:
            os.close(slave)
    return status, said.decode(errors="replace")


def _read_terminal(master: int, timeout_s: float) -> bytes:
    """What the program said next; nothing once it has ended, or says nothing for so long."""
    if not select.select([master], [], [], timeout_s)[0]:
        return b""
    try:
        return os.read(master, 4_096)
    except OSError:  # EIO: the other side has closed its terminal, which is how one ends
        return b""
