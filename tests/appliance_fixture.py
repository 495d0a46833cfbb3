"""The real daemon on a real SoftHSM2 token, with everything a test needs to use it, hurt it and look at it.

For: ``tests/integration``, ``tests/fault`` and others. ``Appliance`` is one ``cloud-seald`` process with its files;
``Wire`` a client of blocking calls that can also misbehave; ``until`` waits for a state with a deadline.

Rules:

* Every daemon ends with SIGTERM and exit code 0, unless its test says otherwise; it leaves no process, no socket file
  and no traceback in its log, or the test that used it last fails.
* Nothing sleeps for a fixed time: what is waited for has a name and a deadline.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest
import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance import wire
from appliance.client import Client

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
PIN = "24681357"
SO_PIN = "1357924680"
PASSWORD = "correct horse battery"
PATIENCE_S = 30.0
"""How long a condition may take on a machine that is busy with other things."""
_BUG = re.compile(
    r'File ".*/(appliance|appliance_pkcs11|asyncio|uvloop|aiohttp)/|never retrieved|Exception in callback'
)
"""What tells of a bug in the log. The tracebacks that python-pkcs11's destructors print where a token has gone, all of
them in its own files, do not."""
MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)


def until(what: str, condition: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first true value of ``condition``; the test fails where it does not come."""
    deadline_at = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_at:
            pytest.fail(f"waited {patience_s:g} s in vain: {what}")
        time.sleep(0.01)


async def until_async(what: str, condition: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The same inside a loop."""
    deadline_at = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_at:
            pytest.fail(f"waited {patience_s:g} s in vain: {what}")
        await asyncio.sleep(0.01)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; a task that is left over is an error."""

    async def whole() -> T:
        result = await coroutine
        left = {
            task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.done()
        }
        assert not left, f"tasks left over: {left}"
        return result

    return asyncio.run(whole())


# Tokens -----------------------------------------------------------------------------------------------------


def softhsm_module() -> str:
    """The path of SoftHSM2's module."""
    for module in MODULES:
        if Path(module).exists():
            return module
    pytest.fail("SoftHSM2 is not installed (apt install softhsm2)")


@dataclass
class SoftToken:
    """A SoftHSM2 token in a directory of its own."""

    root: Path
    label: str = "cloud-seal test"
    module: str = field(default_factory=softhsm_module)

    def __post_init__(self) -> None:
        (self.root / "tokens").mkdir(parents=True)
        self.config.write_text(f"directories.tokendir = {self.root / 'tokens'}\nlog.level = ERROR\n")

    @property
    def config(self) -> Path:
        """What SOFTHSM2_CONF names."""
        return self.root / "softhsm2.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For programs that use the token."""
        return {**os.environ, "SOFTHSM2_CONF": str(self.config)}

    def initialise(self) -> Self:
        """Make the token."""
        self.run(
            "softhsm2-util", "--init-token", "--free", "--label", self.label, "--pin", PIN, "--so-pin", SO_PIN
        )
        return self

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the token."""
        return subprocess.run(
            arguments, env=self.environment, check=check, capture_output=True, text=True, timeout=60
        )

    def profile(self, **changes: Any) -> dict[str, Any]:
        """The shipped profile, for this token."""
        profile = yaml.safe_load((ROOT / "config/tokens/softhsm2.yaml").read_text())
        profile.update(
            module=self.module, token_label=self.label, environment={"SOFTHSM2_CONF": str(self.config)}
        )
        profile.update(changes)
        return dict(profile)

    def private_key_labels(self) -> list[str]:
        """What another PKCS#11 client sees in it."""
        out = self.run(
            "pkcs11-tool", "--module", self.module, "--token-label", self.label, "--login", "--pin", PIN,
            "--list-objects", "--type", "privkey",
        ).stdout  # fmt: skip
        return re.findall(r"label:\s+(\S+)", out)


# Processes --------------------------------------------------------------------------------------------------


def children_of(pid: int) -> dict[int, str]:
    """The live children of a process, each with its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
            fields = stat.rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, IndexError):
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether it runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rss_len(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _own_ports() -> Iterator[int]:
    """Ports that the kernel gives to nobody who asks for any, a different share of them for each test process."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    # pytest-xdist names its processes gw0, gw1, …; sixteen of them have ports apart.
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16
    own = range(max(1_024, first_ephemeral - 16_384) + process, first_ephemeral, 16)
    # Another run on this machine probably begins elsewhere. Where the kernel gives them all away, it is asked for any.
    begin = secrets.randbelow(len(own) or 1)
    return itertools.cycle([*own[begin:], *own[:begin]] or [0])


_PORTS = _own_ports()


def free_port() -> int:
    """A port on which nobody listens, and which nobody else is given until whoever asked listens on it."""
    for port in itertools.islice(_PORTS, 1_000):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return int(sock.getsockname()[1])
    pytest.fail("no port is free")


# HTTP -------------------------------------------------------------------------------------------------------


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


@dataclass
class Answer:
    """What an HTTP call gave."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def media_type(self) -> str:
        """What the body is said to be."""
        return self.headers.get("Content-Type", "").partition(";")[0]


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str] | None = None,
) -> Answer:
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


# The wire, by hand ------------------------------------------------------------------------------------------


class Wire:
    """A client of blocking calls: it sends exactly what it is told and reads frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE_S)
        self._ids = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def next_id(self) -> int:
        """A fresh request id; 1 is HELLO's."""
        self._ids += 1
        return self._ids

    @property
    def last_id(self) -> int:
        """The id given last."""
        return self._ids

    def send(self, data: bytes) -> None:
        """All of it."""
        self.sock.sendall(data)

    def hello(self, account: str, password: str = PASSWORD) -> wire.Welcome:
        """Prove who we are."""
        self.send(wire.encode_hello(wire.Hello(wire.VERSION, wire.VERSION, account, password)))
        frame = self.receive()
        assert frame.type is wire.FrameType.WELCOME, wire.decode_error(frame.payload)
        return wire.decode_welcome(frame.payload)

    def _exactly(self, count: int) -> bytes:
        block = bytearray()
        while len(block) < count:
            got = self.sock.recv(min(count - len(block), 1 << 20))
            if not got:
                raise EOFError(f"the server closed after {len(block)} of {count} bytes")
            block += got
        return bytes(block)

    def receive(self) -> wire.Frame:
        """The next frame; ``EOFError`` at the end."""
        head = self._exactly(wire.HEADER_LEN)
        length, type_, request_id = int.from_bytes(head[:4], "big"), head[4], int.from_bytes(head[8:], "big")
        return wire.Frame(wire.FrameType(type_), request_id, self._exactly(length))

    def receive_error(self) -> wire.ErrorAnswer:
        """The next frame, which is an ERROR."""
        frame = self.receive()
        assert frame.type is wire.FrameType.ERROR, frame
        return wire.decode_error(frame.payload)

    def at_end(self) -> bool:
        """Whether the server has closed; anything else is a fault of the test."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def sign_frame(self, key: str, count: int = 1, *, first_index: int = 0, deadline_ms: int = 0) -> bytes:
        """A SIGN over fixed digests."""
        request = wire.SignRequest(
            b"j" * 16, first_index, deadline_ms, wire.Priority.AUTOMATIC, key, wire.digests(digests(count))
        )
        return wire.encode_sign(self.next_id(), request)

    def sign(self, key: str, count: int = 1) -> wire.SignedAnswer:
        """Sign and wait."""
        self.send(self.sign_frame(key, count))
        frame = self.receive()
        assert frame.type is wire.FrameType.SIGNED, wire.decode_error(frame.payload)
        return wire.decode_signed(frame.payload)


def digests(count: int, seed: str = "") -> bytes:
    """That many different digests, the same ones each time, in one block."""
    return b"".join(hashlib.sha256(f"{seed}{i}".encode()).digest() for i in range(count))


# Signatures under somebody else's code ----------------------------------------------------------------------


def public_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    """A key as pyca/cryptography has it."""
    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def verifies(key: ec.EllipticCurvePublicKey, digest: bytes, signature: bytes) -> bool:
    """Whether pyca/cryptography accepts r || s over a digest."""
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, digest, ec.ECDSA(Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True


# The daemon -------------------------------------------------------------------------------------------------


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


class Appliance:
    """A ``cloud-seald`` with a directory, a token, a log, and what a test does with it."""

    def __init__(self, root: Path, profile: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.socket = root / "run/wire.sock"
        self.officer_socket = root / "run/officer.sock"
        self.pin_file = root / "pin"
        self.log_file = root / "log"
        self.config_file = root / "appliance.yaml"
        self.profile_file = root / "profile.yaml"
        self.registry_file = root / "registry.sqlite"
        self.health_port = free_port()
        self.set_pin(PIN)
        self.profile = profile
        self.profile_file.write_text(json.dumps(profile))
        self.settings = _merged(
            {
                "registry": str(self.registry_file),
                "tokens": [{"profile": str(self.profile_file), "pin_file": str(self.pin_file)}],
                "listen": {"unix_socket": str(self.socket)},
                # Strong enough hashes are the product's matter; here they only cost time.
                "auth": {"argon2_memory_kib": 1024, "argon2_passes": 1, "failure_delay_s": 0.02},
                "web": {
                    "health": f"127.0.0.1:{self.health_port}",
                    "officer_socket": str(self.officer_socket),
                },
                "log_level": "info",
            },
            settings or {},
        )
        self.config_file.write_text(json.dumps(self.settings))
        self.process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._workers_seen: set[int] = set()

    def set_pin(self, pin: str) -> None:
        """Write the PIN file as an operator should."""
        self.pin_file.touch(0o600)
        self.pin_file.write_text(pin + "\n")

    # Life

    def command(self, *more: str) -> list[str]:
        """How it is started."""
        program = Path(sys.executable).parent / "cloud-seald"
        root = ["--allow-root"] if os.geteuid() == 0 else []
        return [str(program), "--config", str(self.config_file), *root, *more]

    def launch(self, **popen: Any) -> Self:
        """Start the process and wait for nothing."""
        assert self.process is None
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stderr=log, **popen)
        return self

    def start(self, state: str = "up", **popen: Any) -> Self:
        """Start it and wait until the token is in that state."""
        self.launch(**popen)
        self.wait_listening()
        self.wait_state(state)
        return self

    def wait_listening(self) -> None:
        """Until the wire port takes connections."""

        def listening() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log}"
            with socket.socket(socket.AF_UNIX) as sock:
                return sock.connect_ex(str(self.socket)) == 0

        until("cloud-seald listens", listening)

    def wait_state(self, state: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Until the token is in that state, and with ``up`` until all its workers are."""

        def there() -> dict[str, Any] | None:
            token = self.token_status()
            all_up = state != "up" or len(token["workers"]) == token["workers_wanted"]
            return token if token["state"] == state and all_up else None

        return until(f"token state {state}", there, patience_s)

    def wait_exit(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code; it must end by itself."""
        assert self.process is not None
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the daemon did not end within {patience_s:g} s:\n{self.log}")
        self.process = None
        return code

    def terminate(self) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        assert self.process is not None
        self._workers_seen |= set(self.worker_pids())
        self.process.kill()
        self.process.wait()
        self.process = None
        self._killed = True
        self.check_workers_gone()

    def stop(self, patience_s: float = PATIENCE_S) -> None:
        """SIGTERM, exit 0, nothing left behind."""
        if self.process is None:
            return
        self._workers_seen |= set(self.worker_pids())
        self.terminate()
        code = self.wait_exit(patience_s)
        assert code == 0, f"exit code {code}:\n{self.log}"
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """No socket file, no worker, no traceback."""
        assert not self.socket.exists(), "the wire socket is left"
        assert not self.officer_socket.exists(), "the officers' socket is left"
        self.check_workers_gone()
        self.check_log()

    def check_workers_gone(self) -> None:
        """The kernel kills workers whose parent died, in its own time."""
        until("all workers are gone", lambda: not any(map(is_alive, self._workers_seen)), 10)

    def check_log(self) -> None:
        """The log tells of no bug and of no secret."""
        log = self.log
        assert PIN not in log and PASSWORD not in log, "a secret stands in the log"
        # Workers whose front was killed may say so at length: nobody is left to read it.
        bugs = [bug[0] for bug in _BUG.finditer(log) if not (self._killed and bug[1] == "appliance_pkcs11")]
        assert not bugs, log

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def pid(self) -> int:
        """Of the front."""
        assert self.process is not None
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """Of the signer workers that run."""
        if self.process is None:
            return []
        found = [pid for pid, line in children_of(self.pid).items() if "appliance_pkcs11.worker" in line]
        self._workers_seen |= set(found)
        return found

    # Officers and health

    def officer(self, method: str, path: str, body: object = None, *, raw: bytes | None = None) -> Answer:
        """One call of the officers' interface."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return _exchange(UnixHttp(self.officer_socket), method, path, data)

    def officer_json(self, method: str, path: str, body: object = None) -> Answer:
        """The same for the HTTP API, which asks that JSON be declared."""
        data, headers = None, {}
        if body is not None:
            data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return _exchange(UnixHttp(self.officer_socket), method, path, data, headers)

    def change_settings(self, **changes: Any) -> None:
        """Before a start: what depends on where the appliance lies."""
        self.settings = _merged(self.settings, changes)
        self.config_file.write_text(json.dumps(self.settings))

    def ordered(self, method: str, path: str, body: object = None) -> Any:
        """The same, which must go well; the document."""
        answer = self.officer(method, path, body)
        assert 200 <= answer.status < 300, answer.body
        return answer.json

    def http(self, path: str) -> Answer:
        """One call of the health interface."""
        return _exchange(
            http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=60), "GET", path, None
        )

    def status(self) -> dict[str, Any]:
        """The appliance's status, as officers see it."""
        return dict(self.ordered("GET", "/v1/status"))

    def token_status(self) -> dict[str, Any]:
        """That of its first token."""
        return dict(self.status()["tokens"][0])

    def metric(self, name: str, **labels: str) -> float:
        """One sample's value."""
        for line in self.http("/metrics").body.decode().splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name and dict(re.findall(r'(\w+)="(.*?)"', match[2] or "")) == labels:
                return float(match[3])
        pytest.fail(f"no metric {name} {labels}")

    def wait_quiet(self) -> None:
        """Until nothing is queued, in flight or connected; what tests leave behind would show here."""

        def quiet() -> bool:
            token = self.token_status()
            return not token["queued_items"] and not token["inflight_items"]

        until("nothing is queued or in flight", quiet)
        until("no connection is left", lambda: self.metric("cloudseal_connections") == 0)

    # Keys and accounts

    def key(self, name: str = "seal") -> ec.EllipticCurvePublicKey:
        """Make a key; its public half."""
        import base64

        document = self.ordered("POST", "/v1/keys", {"name": name, "algorithm": "ecdsa-p256-sha256"})
        return public_key(base64.b64decode(document["spki"]))

    def account(
        self, name: str = "app", *grants: str, password: str | None = PASSWORD, **proofs: Any
    ) -> None:
        """Make an account with these grants."""
        fields = {"name": name, **({"password": password} if password else {}), **proofs}
        self.ordered("POST", "/v1/accounts", fields)
        for key in grants:
            self.ordered("POST", f"/v1/accounts/{name}/grants", {"key": key})

    # Clients

    @property
    def address(self) -> str:
        """For ``Client``."""
        return f"unix:{self.socket}"

    async def client(self, account: str = "app", password: str = PASSWORD, **options: Any) -> Client:
        """A connected client on the Unix socket."""
        return await Client.connect(self.address, account=account, password=password, **options)

    def wire(self, account: str | None = "app", password: str = PASSWORD) -> Wire:
        """A blocking connection, welcomed unless ``account`` is None."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.socket))
        except OSError:
            sock.close()
            raise
        connection = Wire(sock)
        if account is not None:
            try:
                connection.hello(account, password)
            except BaseException:
                sock.close()
                raise
        return connection

    @property
    def tcp_port(self) -> int:
        """The TLS port that the system chose, as the log tells it."""
        found = re.findall(r"port (\d+), TLS", self.log)
        return int(found[-1])


# p11-kit: a token behind a server that can go away -----------------------------------------------------------


class RemoteToken:
    """SoftHSM2 behind ``p11-kit server``: the backend of a network HSM, as it were."""

    def __init__(self, token: SoftToken, root: Path) -> None:
        self.token = token
        self.socket = root / "p11.sock"
        self._process: subprocess.Popen[bytes] | None = None
        candidates = [Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so")]
        self.client_module = next((str(path) for paths in candidates for path in paths), "")

    @property
    def available(self) -> bool:
        """Whether Debian's packages p11-kit and p11-kit-modules are there."""
        return bool(self.client_module and shutil.which("p11-kit"))

    def profile(self, **changes: Any) -> dict[str, Any]:
        """The token as the daemon reaches it."""
        return self.token.profile(
            module=self.client_module,
            environment={"P11_KIT_SERVER_ADDRESS": f"unix:path={self.socket}"},
            **changes,
        )

    def up(self) -> None:
        """Start the server."""
        assert self._process is None
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["p11-kit", "server", "-f", "-n", str(self.socket), "--provider", self.token.module, "pkcs11:"],
            env=self.token.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until("p11-kit server listens", self.socket.exists)

    def down(self) -> None:
        """Kill it, and the process it forked for each caller."""
        if self._process is not None:
            # Its own session and so its own process group, which nobody else is in.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


# TLS --------------------------------------------------------------------------------------------------------


@dataclass
class Authority:
    """A CA with a server certificate and client certificates, all made by ``openssl``."""

    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip
        self.issue("server", "subjectAltName=IP:127.0.0.1,DNS:localhost")

    def _openssl(self, *arguments: str) -> bytes:
        done = subprocess.run(["openssl", *arguments], cwd=self.root, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def issue(self, name: str, extension: str = "") -> Path:
        """A key and a certificate, ``name.key`` and ``name.pem``; the latter's path."""
        extensions = self.root / f"{name}.ext"
        extensions.write_text(f"basicConstraints=CA:FALSE\n{extension}\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
        return self.root / f"{name}.pem"

    def fingerprint(self, name: str) -> str:
        """SHA-256 over the DER certificate, as ``openssl x509 -fingerprint`` writes it."""
        text = self._openssl("x509", "-in", f"{name}.pem", "-noout", "-fingerprint", "-sha256")
        return text.decode().partition("=")[2].strip()

    @property
    def listen(self) -> dict[str, Any]:
        """The settings of a TLS listener on a port that the system chooses."""
        return {
            "tcp": "127.0.0.1:0",
            "tls": {
                "certificate_file": str(self.root / "server.pem"),
                "key_file": str(self.root / "server.key"),
                "client_ca_file": str(self.root / "ca.pem"),
            },
        }

    def context(self, client: str | None = None) -> ssl.SSLContext:
        """What a client of the appliance uses."""
        context = ssl.create_default_context(cafile=self.root / "ca.pem")
        if client is not None:
            context.load_cert_chain(self.root / f"{client}.pem", self.root / f"{client}.key")
        return context


# Fixtures ---------------------------------------------------------------------------------------------------


class Bench:
    """Makes daemons and ends them: each with exit 0 and nothing left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Appliance] = []
        self.remotes: list[RemoteToken] = []

    def token(self, *, initialised: bool = True) -> SoftToken:
        """A new SoftHSM2 token."""
        token = SoftToken(self.root / f"token-{secrets.token_hex(3)}")
        return token.initialise() if initialised else token

    def appliance(self, profile: dict[str, Any] | None = None, **settings: Any) -> Appliance:
        """A daemon that has not been started, with a token of its own unless a profile is given."""
        profile = profile if profile is not None else self.token().profile()
        made = Appliance(self.root / f"d{len(self.made)}", profile, settings)
        self.made.append(made)
        return made

    def remote(self) -> RemoteToken:
        """A token behind p11-kit; it skips the test where that is not installed."""
        remote = RemoteToken(self.token(), self.root)
        if not remote.available:
            pytest.skip("needs the Debian packages p11-kit and p11-kit-modules")
        self.remotes.append(remote)
        return remote

    def close(self) -> None:
        """End everything; the first complaint is raised when all is ended."""
        complaints: list[BaseException] = []
        for appliance in self.made:
            try:
                if appliance.process is not None:
                    if appliance.process.poll() is None and appliance.status()["state"] == "ready":
                        appliance.wait_quiet()
                    appliance.stop()
                else:
                    appliance.check_workers_gone()
                    appliance.check_log()
            except BaseException as complaint:  # noqa: BLE001  # it is raised below, once all is ended
                complaints.append(complaint)
                if appliance.process is not None:
                    appliance.kill()
        for remote in self.remotes:
            remote.down()
        if complaints:
            raise complaints[0]


@contextmanager
def _bench(factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(factory.mktemp("seal"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Daemons for one test."""
    with _bench(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Daemons for the tests of one module, which leave them as they found them."""
    with _bench(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA of this run."""
    return Authority(tmp_path_factory.mktemp("ca") / "ca")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With a failure comes the log of every daemon that the test used."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for one in value.made if isinstance(value, Bench) else [value]:
                if isinstance(one, Appliance):
                    report.sections.append((f"cloud-seald in {one.root.name}", one.log[-8_000:]))
    return report
