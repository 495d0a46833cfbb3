"""A real SoftHSM2 token, and a front made of blocking calls that speaks the link to one worker."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Header, Kind
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

PIN = b"24681357"
SO_PIN = b"1357924680"
ANSWER_TIMEOUT_S = 60
MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)


@dataclass(frozen=True)
class SoftToken:
    """An initialised SoftHSM2 token in a directory of its own."""

    module: str
    config: Path
    label: str
    pin: bytes = PIN

    def profile(self, **changes: Any) -> dict[str, Any]:
        """A profile mapping for the token; ``algorithm`` holds changes to the P-256 block."""
        algorithm = changes.pop("algorithm", {})
        return {
            "name": "softhsm2",
            "module": self.module,
            "token_label": self.label,
            "environment": {"SOFTHSM2_CONF": str(self.config)},
            "algorithms": {
                "ecdsa-p256-sha256": {
                    "key_type": "CKK_EC",
                    "ec_params": "06082a8648ce3d030107",
                    "key_pair_mechanism": "CKM_EC_KEY_PAIR_GEN",
                    "sign_mechanism": "CKM_ECDSA",
                    "hashes": "host",
                    "signature_form": "raw",
                    **algorithm,
                }
            },
            **changes,
        }


class Front:
    """The front's end of one worker: sends a frame, waits for a frame, never retries."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self.process = subprocess.Popen(
                link.spawn_arguments(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self.sequence = 0

    def send(self, kind: Kind, fields: dict[str, Any]) -> int:
        self.sequence += 1
        self.sock.sendall(link.pack_json(kind, self.sequence, fields))
        return self.sequence

    def receive_exactly(self, count: int) -> bytearray:
        block = bytearray(count)
        view = memoryview(block)
        while view:
            received = self.sock.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return block

    def receive(self) -> tuple[Header, bytearray]:
        header = link.unpack_header(self.receive_exactly(link.HEADER_LEN))
        return header, self.receive_exactly(header.payload_len)

    def receive_json(self, *expected: Kind) -> dict[str, Any]:
        header, payload = self.receive()
        fields = link.unpack_json(payload)
        assert header.kind in expected, fields
        return fields

    def ask(self, kind: Kind, fields: dict[str, Any], expected: Kind) -> dict[str, Any]:
        self.send(kind, fields)
        return self.receive_json(expected)

    def start(self, profile: dict[str, Any], pin: bytes = PIN) -> None:
        self.send(Kind.START, {"profile": profile, "worker": 0})
        self.sock.sendall(link.pack_frame(Kind.PIN, 0, pin))

    def ready(self, profile: dict[str, Any], pin: bytes = PIN) -> dict[str, Any]:
        self.start(profile, pin)
        return self.receive_json(Kind.READY)

    def create(self, key_id: bytes, label: str = "seal") -> dict[str, Any]:
        fields = {"id": key_id.hex(), "label": label, "algorithm": "ecdsa-p256-sha256"}
        return self.ask(Kind.CREATE_KEY, fields, Kind.KEY_CREATED)

    def load(self, key_id: bytes, expected: Kind = Kind.KEY_LOADED) -> dict[str, Any]:
        """Load a key and, as the front does, check the self-test signature against the point it told."""
        challenge = secrets.token_bytes(link.CHALLENGE_LEN)
        loaded = self.ask(Kind.LOAD_KEY, {"id": key_id.hex(), "challenge": challenge.hex()}, expected)
        if expected is Kind.KEY_LOADED:
            check = verifies if loaded["form"] == "digests" else verifies_message
            assert check(bytes.fromhex(loaded["point"]), challenge, bytes.fromhex(loaded["signature"]))
        return loaded

    def sign(self, slot: int, digests: bytes) -> link.Signed:
        self.sock.sendall(link.pack_sign_digests(7, slot, digests))
        return self.signed()

    def signed(self) -> link.Signed:
        header, payload = self.receive()
        assert header.kind == Kind.SIGNED, payload
        return link.unpack_signed(memoryview(payload))

    def exit_code(self) -> int:
        return self.process.wait(ANSWER_TIMEOUT_S)

    def close(self) -> None:
        self.sock.close()
        try:
            self.process.wait(ANSWER_TIMEOUT_S)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()


@cache  # the same key for each of very many signatures
def public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)


def _verifies(point: bytes, data: bytes, signature: bytes, algorithm: Any) -> bool:
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        public_key(point).verify(der, data, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def verifies(point: bytes, digest: bytes, signature: bytes) -> bool:
    return _verifies(point, digest, signature, Prehashed(hashes.SHA256()))


def verifies_message(point: bytes, message: bytes, signature: bytes) -> bool:
    return _verifies(point, message, signature, hashes.SHA256())


@pytest.fixture(scope="session")
def softhsm_module() -> str:
    for module in MODULES:
        if Path(module).exists():
            return module
    pytest.fail("SoftHSM2 is not installed (apt install softhsm2)")


@pytest.fixture(scope="session")
def new_token(tmp_path_factory: pytest.TempPathFactory, softhsm_module: str) -> Callable[[str], SoftToken]:
    """Makes a SoftHSM2 token in a directory of its own."""

    def make(label: str) -> SoftToken:
        root = tmp_path_factory.mktemp("softhsm")
        (root / "tokens").mkdir()
        config = root / "softhsm2.conf"
        config.write_text(f"directories.tokendir = {root / 'tokens'}\nlog.level = ERROR\n")
        program = shutil.which("softhsm2-util")
        assert program, "softhsm2-util is not installed"
        subprocess.run(
            [
                program,
                "--init-token",
                "--free",
                "--label",
                label,
                "--pin",
                PIN.decode(),
                "--so-pin",
                SO_PIN.decode(),
            ],
            env={**os.environ, "SOFTHSM2_CONF": str(config)},
            check=True,
            capture_output=True,
        )
        return SoftToken(softhsm_module, config, label)

    return make


@pytest.fixture(scope="session")
def token(new_token: Callable[[str], SoftToken]) -> SoftToken:
    """One token for every test that leaves nothing behind that others could trip over."""
    return new_token("cloud-seal test")


@pytest.fixture
def spawn() -> Iterator[Callable[..., Front]]:
    """Starts workers; each is closed, waited for and, if it does not end, killed with its test failed."""
    fronts: list[Front] = []

    def start(**environment: str) -> Front:
        front = Front({**os.environ, **environment})
        fronts.append(front)
        return front

    yield start
    for front in fronts:
        front.close()


@pytest.fixture
def worker(spawn: Callable[..., Front], token: SoftToken) -> Front:
    """A worker that is ready on the shared token, one session."""
    front = spawn()
    front.ready(token.profile())
    return front


@pytest.fixture
def key_id() -> bytes:
    """An ID no other test uses."""
    return secrets.token_bytes(16)


@pytest.fixture(scope="session")
def check() -> Callable[[bytes, bytes, bytes], bool]:
    """Verifies a signature over a digest with pyca/cryptography: (point, digest, signature)."""
    return verifies


@pytest.fixture(scope="session")
def check_message() -> Callable[[bytes, bytes, bytes], bool]:
    """Verifies a signature over a message: (point, message, signature)."""
    return verifies_message


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of ``shim.c``, compiled: a module that forwards to SoftHSM2 and fails on demand."""
    here = Path(__file__).resolve().parent
    module = tmp_path_factory.mktemp("shim") / "shim.so"
    headers = here.parents[1] / "pkcs11" / "native"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", "-fPIC", "-O1", f"-I{headers}", here / "shim.c", "-o", module]
    subprocess.run([*command, "-ldl", "-lcrypto"], check=True)
    return str(module)


@pytest.fixture
def shimmed(shim: str, token: SoftToken) -> Callable[..., dict[str, Any]]:
    """A profile whose module is the shim, with the shim's settings in its environment."""

    def make(settings: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        profile = token.profile(**changes)
        environment = {**profile["environment"], "SHIM_TARGET": token.module, **(settings or {})}
        return {**profile, "module": shim, "environment": environment}

    return make


@pytest.fixture
def in_library() -> Callable[[SoftToken, str], str]:
    """Runs statements with a python-pkcs11 ``session`` in a process of its own; returns what they print."""

    def run(token: SoftToken, statements: str) -> str:
        script = (
            "import sys, pkcs11\n"
            "from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, exceptions\n"
            "from pkcs11.util.ec import encode_named_curve_parameters\n"
            "token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])\n"
            "with token.open(rw=True, user_pin=sys.argv[3]) as session:\n"
        ) + "".join(f"    {line}\n" for line in statements.strip().splitlines())
        done = subprocess.run(
            [sys.executable, "-c", script, token.module, token.label, token.pin.decode()],
            env={**os.environ, "SOFTHSM2_CONF": str(token.config)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
