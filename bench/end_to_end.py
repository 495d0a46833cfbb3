"""The daemon end to end: a real ``cloud-seald`` before a token, driven through the client library.

Each function runs one measurement and returns a dict like those of ``peers.py``. The client and the daemon share the
machine's cores, as do the raw loops' processes: nothing here is measured against an idle second machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
import uvloop
import yaml
from report import Measurement, percentile
from tokens import Token

from appliance import wire
from appliance.client import Client

START_S = 30
LOAD_WARM_S = 0.1
BOUND = {"processors": list(reversed(range(os.cpu_count() or 1)))}
"""Workers from the last processor on, the first one's last."""
KEY = "bench"
ACCOUNT = "bench"


@dataclass(frozen=True)
class Appliance:
    """A daemon that runs, with one key and one account."""

    folder: Path
    process: subprocess.Popen[bytes]
    key_id: bytes
    algorithm: str

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"unix:{self.folder / 'run' / 'cloud-seal.sock'}"

    @property
    def worker_pids(self) -> list[int]:
        """Of its signer workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def cpu_s(self) -> dict[str, float]:
        """Processor time used so far: by the front, by the kernel on its behalf, by its workers together."""
        user_s, system_s = _cpu_s(self.process.pid)
        workers_s = sum(sum(_cpu_s(child)) for child in self.worker_pids)
        return {"front": user_s + system_s, "front_system": system_s, "workers": workers_s}


@contextlib.contextmanager
def running(
    token: Token,
    *,
    profile: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    wrapper: Sequence[str] = (),
    start_s: float = START_S,
) -> Iterator[Appliance]:
    """Start the daemon before the token, make a key and an account; stop it by SIGTERM.

    ``profile`` and ``settings`` change the token profile and the configuration. ``wrapper`` is a program that runs the
    daemon (valgrind), whose start then takes up to ``start_s``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pin").write_bytes(token.target.pin_file.read_bytes())
        (folder / "pin").chmod(0o600)
        (folder / "token.yaml").write_text(yaml.safe_dump({**token.profile, **(profile or {})}))
        document = {
            "tokens": [{"profile": "token.yaml", "pin_file": "pin"}],
            "web": {"health": None},
            "log_level": "warning",
            **(settings or {}),
        }
        (folder / "appliance.yaml").write_text(yaml.safe_dump(document))
        program = Path(sys.executable).parent / "cloud-seald"
        process = subprocess.Popen(
            [*wrapper, sys.executable, program, "--config", folder / "appliance.yaml", "--allow-root"]
        )
        try:
            officer = folder / "run" / "officer.sock"
            _until(lambda: _is_ready(officer), start_s)
            key = _call(officer, "POST", "/v1/keys", {"name": KEY, "algorithm": token.algorithm})[1]
            _call(officer, "POST", "/v1/accounts", {"name": ACCOUNT, "uid": os.getuid()})
            _call(officer, "POST", f"/v1/accounts/{ACCOUNT}/grants", {"key": KEY})
            yield Appliance(folder, process, bytes.fromhex(key["id"]), token.algorithm)
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def bound(appliance: Appliance) -> Iterator[None]:
    """Front and callers on the first processor, as ``CPUAffinity=`` would have it; for ``signers: BOUND``.

    A caller stands for the network, whose interrupts the front's processor serves on a machine of its own.
    """
    before = os.sched_getaffinity(0)
    for task in Path(f"/proc/{appliance.process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {0})
    os.sched_setaffinity(0, {0})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def singles(appliance: Appliance, seconds: float, *, connections: int = 1, in_flight: int = 1) -> Measurement:
    """Requests of one item each: so many connections with so many requests under way on each."""

    async def run() -> Measurement:
        async with clients(appliance, connections) as callers:
            digest = os.urandom(32)

            def ask(client: Client) -> Coroutine[Any, Any, Any]:
                return client.sign(KEY, digest)

            return await drive(
                appliance, [client for client in callers for _ in range(in_flight)], ask, 1, seconds
            )

    return uvloop.run(run())


def called(
    appliance: Appliance,
    program: Path,
    seconds: float,
    *,
    callers: int = 1,
    in_flight: int = 1,
    rate: float = 0.0,
    seed: int = 1,
) -> Measurement:
    """Requests of one item each by ``load.c``: a closed loop, or with ``rate`` an open one on one connection."""
    options = [f"--socket={appliance.address.removeprefix('unix:')}", f"--account={ACCOUNT}", f"--key={KEY}"]
    options += [f"--callers={callers}", f"--in-flight={in_flight}", f"--rate={rate}", f"--seed={seed}"]
    cpu_before = appliance.cpu_s()
    found = peers.load(program, seconds, *options, f"--warm={LOAD_WARM_S}")
    cpu_after = appliance.cpu_s()
    done = found["signatures"] * (1 + LOAD_WARM_S / seconds)  # what it warmed up with cost time as well
    costs = {f"{name}_us": round((cpu_after[name] - cpu_before[name]) / done * 1e6, 2) for name in cpu_after}
    return {**found, **costs}


def batches(appliance: Appliance, seconds: float, *, items: int, in_flight: int = 8) -> Measurement:
    """Requests of so many items each on one connection."""

    async def run() -> Measurement:
        async with clients(appliance, 1) as callers:
            block = wire.digests(os.urandom(32 * items))

            async def ask(client: Client) -> None:
                answer = await client.sign_batch(KEY, block)
                if answer.failed:
                    raise RuntimeError("a signature failed")

            return await drive(appliance, callers * in_flight, ask, items, seconds)

    return uvloop.run(run())


def verifications(appliance: Appliance, seconds: float, *, items: int, in_flight: int = 8) -> Measurement:
    """VERIFY requests of so many items each on one connection, under the appliance's own key."""

    async def run() -> Measurement:
        async with clients(appliance, 1) as callers:
            block = wire.digests(os.urandom(32 * items))
            signatures = bytes((await callers[0].sign_batch(KEY, block)).signatures)

            async def ask(client: Client) -> None:
                if await client.verify(KEY, block, signatures) != b"\1" * items:
                    raise RuntimeError("a verification failed")

            return await drive(appliance, callers * in_flight, ask, items, seconds)

    return uvloop.run(run())


async def drive(
    appliance: Appliance,
    clients: list[Client],
    ask: Callable[[Client], Coroutine[Any, Any, Any]],
    items: int,
    seconds: float,
) -> Measurement:
    """A closed loop: each caller asks again as soon as it has its answer."""
    await asyncio.gather(*(ask(client) for client in clients))  # keys are loaded, connections warm
    latencies: list[float] = []
    cpu_before, own_before = appliance.cpu_s(), time.process_time()
    started_at = time.perf_counter()
    until = started_at + seconds

    async def caller(client: Client) -> None:
        while (asked_at := time.perf_counter()) < until:
            await ask(client)
            latencies.append(time.perf_counter() - asked_at)

    await asyncio.gather(*(caller(client) for client in clients))
    elapsed_s = time.perf_counter() - started_at
    cpu_after, own_after = appliance.cpu_s(), time.process_time()
    latencies.sort()
    done = len(latencies) * items
    return {
        "rate": round(done / elapsed_s, 1),
        "signatures": done,
        "seconds": round(elapsed_s, 3),
        "p50_us": round(percentile(latencies, 0.50) * 1e6, 1),
        "p99_us": round(percentile(latencies, 0.99) * 1e6, 1),
        **{f"{name}_us": round((cpu_after[name] - cpu_before[name]) / done * 1e6, 2) for name in cpu_after},
        "client_us": round((own_after - own_before) / done * 1e6, 2),
    }


@contextlib.asynccontextmanager
async def clients(appliance: Appliance, count: int) -> AsyncIterator[list[Client]]:
    """So many connections; each call is a request of its own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                await Client.connect(appliance.address, account=ACCOUNT, batch_singles=False)
            )
            for _ in range(count)
        ]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _call(path: Path, method: str, resource: str, document: Any = None) -> tuple[int, Any]:
    connection = _UnixConnection(path)
    try:
        connection.request(method, resource, json.dumps(document) if document is not None else None)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _is_ready(officer: Path) -> bool:
    """Ready, and with all its workers: half of them would be half the rate."""
    status = _call(officer, "GET", "/v1/status")[1]
    return status["state"] == "ready" and all(
        len(token["workers"]) == token["workers_wanted"] for token in status["tokens"]
    )


def _until(condition: Callable[[], bool], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.02)
    raise RuntimeError("the daemon did not become ready")


def _cpu_s(pid: int) -> tuple[float, float]:
    """User and system time; the kernel counts precisely and tells it in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return int(fields[11]) * tick_s, int(fields[12]) * tick_s
