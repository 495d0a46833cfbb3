"""How a command finds the appliance, and who it says it is.

For: the configuration file's place, the wire address with account and password, the officers' interface.
Not for: what is then said (``signing``, ``stream``, ``officer``).

Rules:

* The configuration is ``--config``, else ``$CLOUD_SEAL_CONFIG``, else ``./config/appliance.yaml``, else
  ``/etc/cloud-seal/appliance.yaml``. It is read only where an option does not say enough.
* Passwords come from a prompt or a file that nobody else can read; never from the command line or environment.
* TLS is 1.3, and the server's certificate is always checked.
* A connection that has to be tried again is told to whoever watches, once and with the reason: the client is patient,
  and a person who sees nothing for half a minute is not.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import http.client
import json
import os
import pwd
import socket
import ssl
import stat
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import uvloop

from appliance.cli.show import Screen
from appliance.client import Client
from appliance.errors import (
    TABLE,
    ApplianceError,
    BadRequest,
    ConfigError,
    Denied,
    ProtocolError,
    Unavailable,
)
from appliance.settings import Settings, load_settings, split_address

T = TypeVar("T")

CONFIG_PLACES: Final = (Path("config/appliance.yaml"), Path("/etc/cloud-seal/appliance.yaml"))
MAX_ANSWER_LEN: Final = 64 << 20
"""An officers' answer lists keys or accounts; a longer one is not ours."""
OFFICER_TIMEOUT_S: Final = 60.0
"""Making a key pair on a slow token takes seconds; a minute of silence means that nobody is there."""
READINESS_TIMEOUT_S: Final = 5.0
"""It is beside us, and what it says is shown beside something else: not worth a long wait."""
MAX_DEADLINE_S: Final = 86_400.0
MAX_PASSWORD_FILE_LEN: Final = 4_096


def add_wire_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that speaks the wire protocol."""
    group = parser.add_argument_group("connection")
    group.add_argument("--address", metavar="ADDR", help="unix:/path/to.sock or host:port (TLS)")
    group.add_argument("--account", metavar="NAME", help="default: $CLOUD_SEAL_ACCOUNT, else your login name")
    proof = group.add_mutually_exclusive_group()
    proof.add_argument(
        "--password-file", metavar="FILE", type=Path, help="the account's password, first line"
    )
    proof.add_argument("--ask-password", action="store_true", help="ask for the account's password")
    group.add_argument("--ca-file", metavar="PEM", type=Path, help="CAs that may vouch for the server (TLS)")
    group.add_argument(
        "--client-certificate", metavar="PEM", type=Path, help="the account's certificate (TLS)"
    )
    group.add_argument(
        "--deadline", metavar="S", type=float, default=30.0, help="for each request; default: %(default)g s"
    )
    group.add_argument("--client-key", metavar="PEM", type=Path, help="its private key (TLS)")


def add_officer_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that speaks to the officers' interface."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--officer-socket", metavar="PATH", type=Path, help="default: web.officer_socket of the configuration"
    )


def find_config(named: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The configuration file's place, else ``ConfigError``."""
    if named is not None:
        return named
    if from_environment := environment.get("CLOUD_SEAL_CONFIG"):
        return Path(from_environment)
    for place in CONFIG_PLACES:
        if place.exists():
            return place
    raise ConfigError(
        f"no configuration: neither {' nor '.join(map(str, CONFIG_PLACES))} is there",
        hint="name it with --config or $CLOUD_SEAL_CONFIG, or make one: cloud-seal init",
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """The configuration that the arguments lead to."""
    return load_settings(find_config(getattr(args, "config", None)))


# The wire ---------------------------------------------------------------------------------------------------


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's asynchronous part on the loop that the daemon uses too."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(coroutine)
        except ExceptionGroup as group:
            # Tasks of one command fail for one reason; the first one tells it. Defects of ours are not hidden.
            ours, others = group.split(ApplianceError)
            if ours is None or others is not None:
                raise
            raise _first_of(ours) from None


def _first_of(group: ExceptionGroup[ApplianceError]) -> ApplianceError:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


async def connect(args: argparse.Namespace, *, deadline_s: float | None = None) -> Client:
    """A connection as the account that the arguments name; close it. ``deadline_s`` is else ``--deadline``."""
    address = args.address or _configured_address(args)
    tls = None if address.startswith("unix:") else _tls_context(args)
    password = ""
    if args.password_file is not None:
        password = read_password(args.password_file)
    elif args.ask_password:
        password = getpass.getpass("Password: ", stream=sys.stderr)
    if not 0 < args.deadline <= MAX_DEADLINE_S:
        raise BadRequest(
            f"--deadline {args.deadline:g}: expected more than 0, at most {MAX_DEADLINE_S:g} seconds"
        )
    _check_socket(address)
    told = False

    def tell(trouble: ApplianceError) -> None:
        nonlocal told
        if not told:
            told = True
            # A screen of the moment: a progress bar may have taken standard error over meanwhile.
            Screen(as_json=getattr(args, "json", False)).note(
                f"{trouble.detail}; trying again until the deadline ({trouble.hint})"
            )

    return await Client.connect(
        address,
        account=_account(args),
        password=password,
        tls=tls,
        deadline_s=deadline_s or args.deadline,
        on_trouble=tell,
    )


def _check_socket(address: str) -> None:
    """The client would wait for it to come, which is right for a service and tiresome for a person."""
    if address.startswith("unix:") and not Path(address.removeprefix("unix:")).exists():
        raise Unavailable(
            f"{address}: there is no such socket", hint="is cloud-seald running, with this configuration?"
        )


def _configured_address(args: argparse.Namespace) -> str:
    listen = settings_of(args).listen
    if listen.unix_socket is None:
        raise ConfigError(
            "the configuration has no listen.unix_socket", hint="name the TLS address: --address host:port"
        )
    return f"unix:{listen.unix_socket}"


def _account(args: argparse.Namespace) -> str:
    return args.account or os.environ.get("CLOUD_SEAL_ACCOUNT") or login_name()


def login_name() -> str:
    """The name of the user who runs this process."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"  # a container's user may have no name


def _tls_context(args: argparse.Namespace) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=args.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if args.client_certificate is not None:
            context.load_cert_chain(args.client_certificate, args.client_key)
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(
            f"TLS: {error}", hint="check --ca-file, --client-certificate and --client-key"
        ) from error
    return context


def new_password(path: Path | None, what: str = "New password") -> str:
    """A new password out of a file, or asked for twice."""
    if path is not None:
        return read_password(path)
    password = ask_password(what)
    if getpass.getpass("Once more: ", stream=sys.stderr) != password:
        raise BadRequest("the two passwords differ", hint="nothing was changed; try again")
    return password


def ask_password(what: str, option: str = "--password-file") -> str:
    """A password from the terminal; ``option`` is the one that names a file instead."""
    if not sys.stdin.isatty():
        raise BadRequest("no terminal to ask for a password on", hint=f"name a file that holds it: {option}")
    return getpass.getpass(f"{what}: ", stream=sys.stderr)


def read_password(path: Path) -> str:
    """The first line of a file that its owner keeps to themselves."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_PASSWORD_FILE_LEN + 1)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}", hint="check --password-file") from error
    # A group may read it: that is how systemd and container secrets are handed over. The world may not.
    if stat.S_ISREG(mode) and mode & 0o007:
        raise BadRequest(f"{path} can be read by everybody", hint=f"chmod 600 {path}")
    if len(raw) > MAX_PASSWORD_FILE_LEN:
        raise BadRequest(f"{path} is longer than {MAX_PASSWORD_FILE_LEN} bytes: that is no password file")
    try:
        return raw.split(b"\n", 1)[0].rstrip(b"\r").decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path}: not UTF-8 text") from error


# The officers' interface ------------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=OFFICER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """As for TCP."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


_BY_LABEL: Final = {row.label: row.error for row in TABLE.values()}


class Officer:
    """Calls to the officers' interface: JSON over HTTP over a Unix socket. Who we are, the kernel tells."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Officer:
        """The interface that the arguments lead to."""
        return cls(officer_socket_of(args))

    def call(self, method: str, *names: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the interface answers to ``/v1/<names…>``; its errors are raised as what they are."""
        target = "/".join(("/v1", *(quote(name, safe="") for name in names)))
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        connection = UnixConnection(self._path)
        return read_answer(*exchange(connection, str(self._path), method, target, payload, headers)[:2])


def officer_socket_of(args: argparse.Namespace) -> Path:
    """The officers' socket that the arguments lead to."""
    path: Path | None = args.officer_socket
    if path is None:
        path = settings_of(args).web.officer_socket
    if path is None:
        raise ConfigError(
            "the officers' interface is switched off", hint="set web.officer_socket in the configuration"
        )
    return path


def exchange(
    connection: http.client.HTTPConnection,
    place: str,
    method: str,
    target: str,
    payload: bytes | None,
    headers: Mapping[str, str],
) -> tuple[int, bytes, str]:
    """One request and its answer: status, body, media type. The connection is closed; ``place`` is for errors."""
    asked = False
    try:
        connection.connect()
        asked = True
        connection.request(method, target, payload, dict(headers))
        response = connection.getresponse()
        raw = response.read(MAX_ANSWER_LEN + 1)
        if len(raw) <= MAX_ANSWER_LEN and response.length:
            raise http.client.IncompleteRead(raw, response.length)
        return response.status, raw, response.headers.get_content_type()
    except PermissionError as error:
        raise Denied(
            f"{place}: not yours to use", hint="run this as the daemon's user, or see web.officer_uids"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        detail = f"{place}: no answer ({str(error) or type(error).__name__})"
        if asked and method != "GET":
            # The only case in which we cannot tell; every act can be looked at, and most can be repeated.
            raise Unavailable(
                f"{detail}; whether it was done is not known", hint="look before trying again: … list"
            ) from error
        raise Unavailable(
            detail, hint="is cloud-seald running, with this configuration?", retry_after_ms=1_000
        ) from error
    finally:
        connection.close()


def readiness(address: str) -> dict[str, Any]:
    """What ``/readyz`` tells of the appliance on this machine: the leading front, and the others under ``fronts``.

    ``address`` is ``web.health``.
    """
    host, port = split_address(address)
    connection = http.client.HTTPConnection(host, port, timeout=READINESS_TIMEOUT_S)
    _, raw, _ = exchange(connection, f"http://{address}/readyz", "GET", "/readyz", None, {})
    try:
        document = json.loads(raw)
        fronts = [document, *document.get("fronts", [])]
        sound = all(isinstance(one["front"], int) for one in fronts)
    except (ValueError, TypeError, LookupError, AttributeError):
        sound = False
    if not sound:  # somebody else's port
        raise ProtocolError(f"http://{address}/readyz: expected the appliance's status, got something else")
    return dict(document)


def read_answer(status: int, raw: bytes) -> Any:
    """The document; the errors of the daemon are raised as what they are."""
    try:
        if len(raw) > MAX_ANSWER_LEN:
            raise ValueError("too long")
        document = json.loads(raw) if raw else {}
    except ValueError as error:
        raise ProtocolError(f"the officers' interface answered {status} with no JSON: {error}") from error
    if 200 <= status < 300:
        return document
    if not isinstance(document, dict):
        document = {}
    kind: type[ApplianceError] = _BY_LABEL.get(str(document.get("error")), Unavailable)
    retry_after_ms = document.get("retry_after_ms")
    raise kind(
        str(document.get("detail") or f"the officers' interface answered {status}"),
        hint=str(document.get("hint") or ""),
        retry_after_ms=retry_after_ms if isinstance(retry_after_ms, int) else 0,
    )
