"""What the daemon is measured against: raw loop, binding, p11-kit's server, and workers by themselves.

Each function runs one measurement on a token that exists and returns a dict: ``rate`` (signatures per
second), ``signatures``, ``seconds``, ``p50_us``, ``p99_us``, ``threads``, ``processes``. A failure raises,
with what the program said; no rate is ever reported for a run in which a signature failed. Latencies of
workers are those of a whole batch with another one waiting before it.

``python bench/peers.py [SECONDS]`` makes a SoftHSM2 token in a temporary folder, runs them all, prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance_pkcs11 import link
from appliance_pkcs11.link import Kind
from tokens import Target, Token, softhsm

from appliance.wakefulness import DEVICE

HERE = Path(__file__).resolve().parent
SERVER_START_S = 10
"""p11-kit's server is up in milliseconds; ten seconds is long enough for a machine under load."""

MAX_REST_S = 3
"""Many times what the appliance takes (``wakefulness.REST_S``)."""

MAX_BLOCKING_BATCH = 4096
"""A larger request could fill the socket while the worker waits for its answer to be taken: a deadlock."""

Measurement = dict[str, Any]


def build_raw_loop(folder: Path) -> Path:
    """Compile ``raw_loop.c`` into ``folder``."""
    program = folder / "raw_loop"
    compiler = os.environ.get("CC", "cc")
    headers = HERE.parent / "pkcs11" / "native"
    source = HERE / "raw_loop.c"
    command = [
        compiler,
        "-O2",
        "-Wall",
        "-Wextra",
        f"-I{headers}",
        "-o",
        program,
        source,
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    return program


def build_load(folder: Path) -> Path:
    """Compile ``load.c`` into ``folder``."""
    program = folder / "load"
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-o", program, HERE / "load.c"]
    subprocess.run([*command, "-lpthread", "-lm"], check=True)
    return program


def load(program: Path, seconds: float, *options: str) -> Measurement:
    """``load.c`` with these options: a caller in C."""
    return _run([str(program), f"--seconds={seconds}", *options], {})


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Processors do not sleep, as the appliance has it under load. Where the kernel cannot be asked they do."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            device = stack.enter_context(DEVICE.open("wb", buffering=0))
            device.write(struct.pack("=i", 0))
        yield


def wait_for_rest() -> None:
    """Until the appliance does not keep processors awake any more; where others do, that is how the machine is."""
    with contextlib.suppress(OSError), DEVICE.open("rb", buffering=0) as device:
        deadline_at = time.monotonic() + MAX_REST_S
        while device.read(4) == bytes(4) and time.monotonic() < deadline_at:
            time.sleep(0.01)


def raw_loop(
    program: Path,
    target: Target,
    seconds: float,
    *,
    threads: int = 1,
    processes: int = 1,
    batch: int = 0,
    pause_us: int = 0,
) -> Measurement:
    """The raw C loop on the module; with ``batch``, on its batch interface with so many items a call.

    With ``pause_us`` it rests between two calls, and the percentiles are those of a call that comes alone.
    """
    callers = [f"--threads={threads}", f"--processes={processes}", f"--batch={batch}", f"--pause={pause_us}"]
    return _run([str(program), *target.arguments(seconds), *callers], target.environment)


def binding(target: Target, seconds: float) -> Measurement:
    """python-pkcs11 by itself, one process, one thread (it promises the module no more)."""
    return _run([sys.executable, str(HERE / "binding.py"), *target.arguments(seconds)], target.environment)


def p11_kit(
    program: Path, target: Target, seconds: float, *, threads: int = 1, processes: int = 1
) -> Measurement:
    """The raw loop as a client of ``p11-kit server`` over a Unix socket."""
    client = p11_kit_client()
    with p11_kit_server(target) as address:
        remote = replace(target, module=client, environment={"P11_KIT_SERVER_ADDRESS": address})
        return raw_loop(program, remote, seconds, threads=threads, processes=processes)


def p11_kit_client() -> str:
    """The path of p11-kit's client module; ``FileNotFoundError`` says which package has it."""
    for folder in (*Path("/usr/lib").glob("*/pkcs11"), Path("/usr/lib/pkcs11")):
        if (folder / "p11-kit-client.so").exists():
            return str(folder / "p11-kit-client.so")
    raise FileNotFoundError("p11-kit-client.so not found (apt install p11-kit-modules)")


@contextlib.contextmanager
def p11_kit_server(target: Target) -> Iterator[str]:
    """``p11-kit server`` in front of the target's token; the address its clients need."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/p11"
        command = ["p11-kit", "server", "--foreground", "--name", path, "--provider", target.module]
        server = subprocess.Popen(
            [*command, f"pkcs11:token={target.token_label.replace(' ', '%20')}"],
            env={**os.environ, **target.environment},
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for_socket(path, server)
            yield f"unix:path={path}"
        finally:
            server.terminate()
            server.wait()


def signer_worker(
    profile: dict[str, Any], target: Target, seconds: float, *, batch: int, workers: int
) -> Measurement:
    """Signer workers by themselves: a blocking front keeps two batches in flight at each."""
    if batch > MAX_BLOCKING_BATCH:
        raise ValueError(f"a blocking front takes batches of at most {MAX_BLOCKING_BATCH}, got {batch}")
    pin = target.pin_file.read_bytes().strip()
    fronts = [_LoneWorker(profile, pin, target.key_id, batch) for _ in range(workers)]  # one after the other
    try:
        return _drive(fronts, batch, seconds)
    finally:
        for front in fronts:
            front.close()


class _LoneWorker:
    def __init__(self, profile: dict[str, Any], pin: bytes, key_id: bytes, batch: int) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            arguments = link.spawn_arguments(theirs.fileno())
            self.process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()])
        self.sock.sendall(link.pack_json(Kind.START, 1, {"profile": profile, "worker": 0}))
        self.sock.sendall(link.pack_frame(Kind.PIN, 2, pin))
        self._answer(Kind.READY)
        challenge = secrets.token_hex(link.CHALLENGE_LEN)
        self.sock.sendall(link.pack_json(Kind.LOAD_KEY, 3, {"id": key_id.hex(), "challenge": challenge}))
        slot = link.unpack_json(self._answer(Kind.KEY_LOADED))["slot"]
        self._request = link.pack_sign_digests(4, slot, secrets.token_bytes(32 * batch))
        self.sent_at: list[int] = []

    def submit(self) -> None:
        self.sent_at.append(time.perf_counter_ns())
        self.sock.sendall(self._request)

    def collect(self) -> int:
        """Take one answer; nanoseconds since its batch was sent."""
        signed = link.unpack_signed(memoryview(self._answer(Kind.SIGNED)))
        if signed.done != signed.item_count or any(signed.statuses):
            raise RuntimeError("a signature failed")
        return time.perf_counter_ns() - self.sent_at.pop(0)

    def _answer(self, expected: Kind) -> bytes:
        header = link.unpack_header(self._receive(link.HEADER_LEN))
        payload = self._receive(header.payload_len)
        if header.kind != expected:
            raise RuntimeError(payload.decode(errors="replace"))
        return payload

    def _receive(self, length: int) -> bytes:
        blocks = []
        while length:
            block = self.sock.recv(length, socket.MSG_WAITALL)
            if not block:
                raise RuntimeError("the worker is gone")
            blocks.append(block)
            length -= len(block)
        return b"".join(blocks)

    def close(self) -> None:
        self.sock.close()
        self.process.wait()


def _drive(fronts: list[_LoneWorker], batch: int, seconds: float) -> Measurement:
    latencies_ns: list[int] = []
    started_at = time.perf_counter_ns()
    until = started_at + int(seconds * 1e9)
    for front in fronts * 2:
        front.submit()
    while time.perf_counter_ns() < until:
        for front in fronts:
            latencies_ns.append(front.collect())
            front.submit()
    latencies_ns.extend(front.collect() for front in fronts * 2)
    elapsed_s = (time.perf_counter_ns() - started_at) / 1e9
    latencies_ns.sort()
    count = len(latencies_ns)
    return {
        "rate": round(count * batch / elapsed_s, 1),
        "signatures": count * batch,
        "seconds": round(elapsed_s, 3),
        "p50_us": round(latencies_ns[count // 2] / 1000, 1),
        "p99_us": round(latencies_ns[count * 99 // 100] / 1000, 1),
        "threads": 1,
        "processes": len(fronts),
        "batch": batch,
    }


def _run(command: list[str], environment: Mapping[str, str]) -> Measurement:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip() or done.returncode}")
    measurement: Measurement = json.loads(done.stdout)
    return measurement


def _wait_for_socket(path: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SERVER_START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
            return
        time.sleep(0.01)
    raise RuntimeError("p11-kit server did not start")


def create_key(token: Token) -> None:
    """Have a worker make the key that ``token.target`` names; a daemon would make its own."""
    sock, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(link.spawn_arguments(theirs.fileno()), pass_fds=[theirs.fileno()])
    create = {"id": token.target.key_id.hex(), "label": "bench", "algorithm": token.algorithm}
    with sock:
        sock.sendall(link.pack_json(Kind.START, 1, {"profile": token.profile, "worker": 0}))
        sock.sendall(link.pack_frame(Kind.PIN, 2, token.target.pin_file.read_bytes().strip()))
        sock.sendall(link.pack_json(Kind.CREATE_KEY, 3, create) + link.pack_json(Kind.STOP, 4, {}))
        while sock.recv(65536):
            pass
    if process.wait():
        raise RuntimeError("the bench key was not made")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with softhsm() as token, tempfile.TemporaryDirectory() as folder:
        create_key(token)
        target, profile = token.target, token.profile
        program = build_raw_loop(Path(folder))
        results = {
            "raw loop, 1 process": raw_loop(program, target, seconds),
            "raw loop, 2 processes": raw_loop(program, target, seconds, processes=2),
            "raw loop, 8 threads": raw_loop(program, target, seconds, threads=8),
            "python-pkcs11": binding(target, seconds),
            "worker, batches of 256": signer_worker(profile, target, seconds, batch=256, workers=1),
            "worker, batches of 1": signer_worker(profile, target, seconds, batch=1, workers=1),
            "2 workers, batches of 256": signer_worker(profile, target, seconds, batch=256, workers=2),
            "p11-kit server, 1 caller": p11_kit(program, target, seconds),
            "p11-kit server, 8 threads": p11_kit(program, target, seconds, threads=8),
            "p11-kit server, 8 processes": p11_kit(program, target, seconds, processes=8),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
