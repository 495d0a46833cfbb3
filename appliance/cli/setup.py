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
    firmware-sim/ 0700   that of the simulated HSM, if asked for

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
import termios
import time
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
from appliance.registry import open_registry
from appliance.settings import Settings, load_settings, split_address

MAX_SOCKET_PATH_LEN: Final = 107
"""What fits into ``sockaddr_un``, with the zero byte that ends it."""
DEMO_LABEL: Final = "cloud-seal-demo"
SOFTHSM2_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
PIN_BYTES: Final = 15
"""120 bits, 20 characters: the token's files may be copied, and pkcs11-tool takes no longer PIN."""
TOKEN_TOOL_TIMEOUT_S: Final = 60.0
PROMPT: Final = b"PIN"
"""What every question for a PIN has in it; whatever else has it does not switch the echo off."""
ECHO_POLL_S: Final = 0.002


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
    command.add_argument(
        "--simulated-hsm",
        metavar="MODULE",
        type=Path,
        help="with --demo-token: also a token of firmware-sim, for SM2",
    )
    command.add_argument("--health", metavar="HOST:PORT", help="where health and metrics listen, on loopback")
    command.add_argument(
        "--demo-token",
        action="store_true",
        help="also make a SoftHSM2 token with random PINs, and an account for you on every key. Not for production",
    )


def _init(args: argparse.Namespace, screen: Screen) -> Answer:
    if args.simulated_hsm is not None and not args.demo_token:
        raise BadRequest(
            "--simulated-hsm goes with --demo-token", hint="it protects no key: never in production"
        )
    steps = initialise(
        args.directory, demo_token=args.demo_token, simulator=args.simulated_hsm, health=args.health
    )
    config = args.directory / "appliance.yaml"
    # Relative where it was named so: this is what a person types next.
    rows = [[step["what"], step["path"], step["done"]] for step in steps]
    document = {"config": str(config), "steps": steps}
    start = f"cloud-seald --config {config}"
    following = (
        f"Next: {start}"
        if args.demo_token
        else f"Next: name your token under tokens: in {config}, then {start}"
    )
    return Answer(document, [Table(("what", "where", ""), rows), following])


def initialise(
    directory: Path, *, demo_token: bool = False, simulator: Path | None = None, health: str | None = None
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
        entries = _make_softhsm2(made)
        if simulator is not None:
            entries += _make_simulator(made, simulator)
        template = with_line(template, "tokens: []\n", f"tokens:\n{entries}")
    else:
        for profile_file in sorted(shipped("tokens").iterdir(), key=lambda one: one.name):
            if profile_file.name.endswith(".yaml"):
                made.file(f"tokens/{profile_file.name}", profile_file.read_text(), 0o644, "token profile")
    if health is not None:
        split_address(health)
        template = with_line(template, "  health: 127.0.0.1:9440\n", f"  health: {health}\n")
    made.file("appliance.yaml", template, 0o644, "configuration")
    settings = load_settings(config)  # what we wrote, or what somebody changed since, must be readable
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

    def note(self, what: str, path: Path | str, done: str) -> None:
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


def with_line(template: str, old: str, new: str) -> str:
    """A configuration with one line changed, its comments kept."""
    if template.count(old) != 1:
        raise RuntimeError(f"the configuration has no line {old!r}, or several")
    return template.replace(old, new)


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
    registry = open_registry(settings)
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


# Demonstration tokens ---------------------------------------------------------------------------------------


def _make_softhsm2(made: _Maker) -> str:
    """A SoftHSM2 token of this directory's own: P-256. Its entry in the configuration."""
    module = next((path for path in SOFTHSM2_MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        raise Unavailable("SoftHSM2 is not installed", hint="apt-get install softhsm2")
    so_pin, pin = _make_pins(made, "softhsm2")
    objects, conf = _make_store(
        made, "softhsm2", "directories.tokendir = {objects}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment = {"SOFTHSM2_CONF": str(conf)}
    # A token is a directory; one that was cut short in the making has no token.object, and is no token.
    if any(objects.glob("*/token.object")):
        made.note("demonstration token", objects, "kept")
    else:
        command = ("softhsm2-util", "--init-token", "--free", "--label", DEMO_LABEL)
        _answer(command, environment, (so_pin, so_pin, pin, pin))
        made.note("demonstration token", objects, "made")
    return _write_profile(made, "softhsm2", module, environment)


def _make_simulator(made: _Maker, module: Path) -> str:
    """A token of the simulated HSM: SM2 and P-256. Its entry in the configuration."""
    module = module.resolve()
    if not module.exists():
        raise BadRequest(f"{module}: no such module", hint="make run builds it")
    if shutil.which("pkcs11-tool") is None:
        raise Unavailable("pkcs11-tool is not installed", hint="apt-get install opensc")
    so_pin, pin = _make_pins(made, "firmware-sim")
    objects, conf = _make_store(made, "firmware-sim", "tokens = {objects}\n")
    environment = {"FIRMWARE_SIM_CONF": str(conf)}
    tool = ("pkcs11-tool", "--module", str(module))
    # Two steps, so two questions: a run may have been cut short between them.
    listed = _answer((*tool, "--list-token-slots"), environment, ())
    done = "kept"
    if DEMO_LABEL not in listed:
        _answer(
            (*tool, "--init-token", "--slot-index", "0", "--label", DEMO_LABEL), environment, (so_pin, so_pin)
        )
        done = "made"
    if done == "made" or "PIN initialized" not in listed:
        by_officer = ("--login", "--login-type", "so", "--init-pin")
        _answer((*tool, "--token-label", DEMO_LABEL, *by_officer), environment, (so_pin, pin, pin))
        done = "made"
    made.note("demonstration token", objects, done)
    return _write_profile(made, "firmware-sim", str(module), environment)


def _make_pins(made: _Maker, name: str) -> tuple[str, str]:
    """The security officer's and the user's PIN."""
    so_pin, pin = (f"secrets/{name}.{kind}" for kind in ("so-pin", "pin"))
    for file in (so_pin, pin):
        made.file(file, f"{secrets.token_urlsafe(PIN_BYTES)}\n", 0o600, "PIN")
    return (made.root / so_pin).read_text().strip(), (made.root / pin).read_text().strip()


def _make_store(made: _Maker, name: str, settings: str) -> tuple[Path, Path]:
    """Where a token's objects lie, and its module's settings file; both absolute, for workers run elsewhere."""
    store = made.directory(name, 0o700).resolve()
    objects = store / "tokens"
    objects.mkdir(mode=0o700, exist_ok=True)
    made.file(f"{name}/{name}.conf", settings.format(objects=objects), 0o600, "the module's settings")
    return objects, store / f"{name}.conf"


def _write_profile(made: _Maker, name: str, module: str, environment: dict[str, str]) -> str:
    profile = yaml.safe_load(shipped("tokens").joinpath(f"{name}.yaml").read_text())
    profile |= {"module": module, "token_label": DEMO_LABEL, "environment": environment}
    head = f"# Made by `cloud-seal init --demo-token` from the shipped profile {name}.yaml.\n"
    made.file(f"tokens/{name}.yaml", head + yaml.safe_dump(profile, sort_keys=False), 0o644, "token profile")
    return f"  - profile: tokens/{name}.yaml\n    pin_file: secrets/{name}.pin\n"


def _answer(command: Sequence[str], environment: dict[str, str], answers: Sequence[str]) -> str:
    """Run a program that asks for PINs; what it said."""
    status, said = _answer_prompts(command, environment, answers)
    if status != 0:
        lines = said.strip().splitlines()
        raise Unavailable(f"{command[0]} ended with {status}", hint="; ".join(lines[-2:]))
    return said


def _answer_prompts(
    command: Sequence[str],
    environment: dict[str, str],
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
            while asked < min(said.count(PROMPT), len(answers)) and _hides_input(master, timeout_s):
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


def _hides_input(master: int, timeout_s: float) -> bool:
    """Wait until the program has switched the echo off: it drops what was typed before, and we never show a PIN."""
    ends_at = time.monotonic() + timeout_s
    while termios.tcgetattr(master)[3] & termios.ECHO:
        if time.monotonic() > ends_at:
            return False
        time.sleep(ECHO_POLL_S)
    return True


def _read_terminal(master: int, timeout_s: float) -> bytes:
    """What the program said next; nothing once it has ended, or says nothing for so long."""
    if not select.select([master], [], [], timeout_s)[0]:
        return b""
    try:
        return os.read(master, 4_096)
    except OSError:  # EIO: the other side has closed its terminal, which is how one ends
        return b""
