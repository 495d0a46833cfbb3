"""Where a signature's time goes: processor time of each stage per item, instructions of the front, flame graphs.

Three measurements of the same daemon (SM2 on firmware-sim, plain calls, two workers), for each shape of request.
Nobody looks out for what comes next (``signers.spin_us: 0``): that is processor time too, but no work.

* Processor time of client, front and workers from ``/proc``, divided by the items done. It counts what the kernel does
  on their behalf, and hardly depends on what else the machine does.
* Where in each process that time is spent: py-spy samples the stacks, native frames included. Samples of a process
  that waits are dropped; each other sample belongs to the stage of its innermost frame that has one. What the table
  shows is the share of samples times the processor time. A process that could run and does not, because another has
  the core, is sampled where it stands: often in the write that woke the other.
* Instructions of the front by callgrind, kernel not included: the front alone runs under valgrind and is counted while
  it serves N items and then 2 N; the difference over N is free of whatever happens once. The front is some fifty times
  slower there and the token is not, so that single requests never meet and each pays for a slice of its own. valgrind
  counts a ``rep movsb`` as one instruction a byte: copies appear dearer than they are.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import end_to_end
import flame
import peers
import report
import tokens
import uvloop
from end_to_end import KEY, Appliance
from flame import Stacks
from report import Measurement

from appliance import wire

SAMPLES_PER_S = 499  # not in step with anything that ticks
VALGRIND_PATIENCE_S = 300
"""Start-up takes some 20 s under valgrind, and more where the machine is busy."""


@dataclass(frozen=True)
class Shape:
    """How items are asked for."""

    name: str
    connections: int
    in_flight: int
    items: int
    counted_requests: int  # N of the instruction count, in requests

    def drive(self, appliance: Appliance, seconds: float) -> Measurement:
        """A closed loop."""
        if self.items > 1:
            return end_to_end.batches(appliance, seconds, items=self.items, in_flight=self.in_flight)
        return end_to_end.singles(appliance, seconds, connections=self.connections, in_flight=self.in_flight)


SHAPES = (
    Shape("batches of 256", 1, 8, 256, 48),
    Shape("singles, 64 in flight", 1, 64, 1, 512),
    Shape("singles, 8 callers", 8, 1, 1, 512),
)

Rules = Sequence[tuple[str, str]]
"""Part of a frame's name -> stage; the innermost frame that any rule knows decides, by the first rule that fits."""

CLIENT: Rules = (
    ("UVStream", "client: socket"),
    ("encode_", "client: encode, call"),
    ("decode_", "client: decode, deliver"),
    ("_Link.data_received", "client: decode, deliver"),
    ("_Link._flush", "client: encode, call"),
    ("(appliance/client/", "client: encode, call"),
    ("(end_to_end.py)", "client: the bench itself"),
    ("uv__read", "client: socket"),
    ("uv_run", "client: event loop"),
)
FRONT: Rules = (
    ("UVStream", "front: sockets"),
    ("express_write", "front: sockets"),
    ("_express", "front: lane"),
    ("(appliance/metrics.py)", "front: metrics"),
    ("(appliance/policy.py)", "front: authorise"),
    ("(appliance/pipeline.py)", "front: authorise"),
    ("(appliance_pkcs11/link.py)", "front: link"),
    ("(appliance/signers.py)", "front: link"),
    ("(appliance/dispatch.py)", "front: queue, slices, results"),
    ("encode_", "front: answer"),
    ("Session._signed", "front: answer"),
    ("Session._close", "front: answer"),
    ("Connection._flush", "front: answer"),
    ("Connection.write", "front: answer"),
    ("Connection.release", "front: answer"),
    ("Permits.give", "front: answer"),
    ("(appliance/wire.py)", "front: parse"),
    ("(appliance/session.py)", "front: parse"),
    ("(appliance/server.py)", "front: parse"),
    ("uv__read", "front: sockets"),
    ("uv_run", "front: event loop"),
)
WORKER: Rules = (
    ("(libfirmware_sim.so)", "token"),
    ("(libcrypto", "token"),
    ("sign (", "worker: batch loop"),
    ("Key_sign", "worker: batch loop"),
    ("Link.", "worker: link"),
    ("(appliance_pkcs11/", "worker: frames"),
)
STAGES = (
    "client: encode, call",
    "client: socket",
    "client: decode, deliver",
    "client: event loop",
    "client: the bench itself",
    "front: sockets",
    "front: event loop",
    "front: lane",
    "front: parse",
    "front: authorise",
    "front: queue, slices, results",
    "front: link",
    "front: answer",
    "front: metrics",
    "worker: link",
    "worker: frames",
    "worker: batch loop",
    "token",
    "other",
)
WAITING = ("epoll_pwait", "epoll_wait", "PyThread_acquire_lock_timed", "Link.receive_header", "select_epoll")


def measure(seconds: float, pictures: Path) -> dict[str, Any]:
    """All three; the flame graphs are left in ``pictures``."""
    document: dict[str, Any] = {"machine": report.machine(), "seconds": seconds, "shapes": {}}
    with tempfile.TemporaryDirectory() as folder, _daemon() as (token, daemon):
        program = peers.build_raw_loop(Path(folder))
        target = replace(token.target, key_id=daemon.key_id)
        document["raw_loop_us"] = peers.raw_loop(program, target, seconds)["cpu_us"]
        for shape in SHAPES:
            print(f"stages: {shape.name}", flush=True)
            found = shape.drive(daemon, seconds)
            stacks = _sampled(daemon, shape, seconds)
            document["shapes"][shape.name] = {**found, "stages": _stages(found, stacks)}
            if stacks and shape is SHAPES[0]:
                _draw(stacks, document, pictures)
    for name, count in _instructions().items():
        document["shapes"][name]["front_instructions"] = count
    return document


@contextmanager
def _daemon(
    wrapper: Sequence[str] = (), start_s: float = end_to_end.START_S, **profile: Any
) -> Iterator[tuple[tokens.Token, Appliance]]:
    signers = {"spin_us": 0, **({"slice_deadline_s": VALGRIND_PATIENCE_S} if wrapper else {})}
    with (
        tokens.firmware_sim() as token,
        end_to_end.running(
            token,
            profile={"batch": "plain", **profile},
            settings={"signers": signers},
            wrapper=wrapper,
            start_s=start_s,
        ) as daemon,
    ):
        yield token, daemon


# Samples ----------------------------------------------------------------------------------------------------


def _sampled(daemon: Appliance, shape: Shape, seconds: float) -> dict[str, Stacks]:
    """Process -> stacks, waiting ones left out; empty where py-spy is not installed or may not look."""
    program = _py_spy()
    if program is None:
        print("stages: py-spy is not installed (pip install py-spy): no stages, no flame graphs", flush=True)
        return {}
    pids = {"client": os.getpid(), "front": daemon.process.pid, "worker": daemon.worker_pids[0]}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pid in pids.items():  # one after the other: each sample stops the process that it looks at
            output = Path(folder) / name
            options = ["--pid", str(pid), "--duration", str(max(1, round(seconds))), "--output", str(output)]
            options += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--native", "--nolineno"]
            sampler = subprocess.Popen(
                [program, "record", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            shape.drive(daemon, max(1, round(seconds)) + 0.5)
            if sampler.wait():
                print("stages: py-spy may not look at our processes (kernel.yama.ptrace_scope)", flush=True)
                return {}
            stacks = flame.read_folded(output.read_text())
            found[name] = Counter({stack: n for stack, n in stacks.items() if not _waits(stack)})
    return found


def _py_spy() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _waits(stack: tuple[str, ...]) -> bool:
    return any(frame.startswith(WAITING) for frame in stack[-8:])


def _stages(found: Measurement, sampled: dict[str, Stacks]) -> dict[str, float]:
    """Stage -> processor µs per item."""
    costs: Counter[str] = Counter()
    for process, rules in (("client", CLIENT), ("front", FRONT), ("worker", WORKER)):
        stacks = sampled.get(process)
        if stacks:
            total_us = found["workers_us" if process == "worker" else f"{process}_us"]
            for stack, samples in stacks.items():
                costs[_stage(stack, rules)] += total_us * samples / stacks.total()
    return {stage: round(costs[stage], 3) for stage in STAGES if costs[stage]}


def _stage(stack: tuple[str, ...], rules: Rules) -> str:
    for frame in reversed(stack):
        for part, stage in rules:
            if part in frame:
                return stage
    return "other"


def _draw(stacks: dict[str, Stacks], document: dict[str, Any], pictures: Path) -> None:
    for process in ("front", "worker"):
        title = f"cloud-seal, SM2 on firmware-sim, {SHAPES[0].name}: the {process}"
        below = f"{stacks[process].total()} samples, {report.machine_line(document['machine'])}"
        (pictures / f"flame-{process}.svg").write_text(flame.draw(stacks[process], title, below))


# Instructions -----------------------------------------------------------------------------------------------


def _instructions() -> dict[str, float]:
    """Shape -> instructions of the front per item; empty where valgrind is not installed."""
    if shutil.which("valgrind") is None:
        print("stages: valgrind is not installed (apt install valgrind): no instruction counts", flush=True)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts"
        wrapper = [
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={output}",
        ]
        with _daemon(wrapper, VALGRIND_PATIENCE_S, start_timeout_s=VALGRIND_PATIENCE_S) as (_, daemon):
            return {
                shape.name: round(_counted(daemon, shape, output), 1)
                for shape in SHAPES
                if print(f"stages: counting the instructions of {shape.name}", flush=True) is None
            }


def _counted(daemon: Appliance, shape: Shape, output: Path) -> float:
    """Instructions per item, as the difference between N and 2 N."""
    pid = str(daemon.process.pid)

    def control(option: str, *value: str) -> None:
        command = ["callgrind_control", option, *value, pid]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def run() -> list[int]:
        counts = []
        async with end_to_end.clients(daemon, shape.connections) as callers:
            block = wire.digests(os.urandom(32 * shape.items))

            async def ask(requests: int) -> None:
                left = iter(range(requests))
                every = [client for client in callers for _ in range(shape.in_flight)]
                await asyncio.gather(*(_ask_all(client.sign_batch, block, left) for client in every))

            await ask(shape.counted_requests)  # warm
            control("-i", "on")
            for times in (1, 2):
                control("-z")
                await ask(times * shape.counted_requests)
                control("-d")
                counts.append(_total(max(output.parent.iterdir(), key=lambda dump: dump.stat().st_mtime_ns)))
            control("-i", "off")
        return counts

    once, twice = uvloop.run(run())
    return (twice - once) / (shape.counted_requests * shape.items)


async def _ask_all(sign: Callable[..., Any], block: wire.Items, left: Iterator[int]) -> None:
    for _ in left:
        if (await sign(KEY, block, deadline_s=VALGRIND_PATIENCE_S)).failed:
            raise RuntimeError("a signature failed")


def _total(dump: Path) -> int:
    return next(int(line.split()[1]) for line in dump.read_text().splitlines() if line.startswith("totals:"))


# Report -----------------------------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    """Stages down, shapes across: processor µs per item."""
    shapes = document["shapes"]
    rows = []
    for stage in STAGES:
        costs = [shape["stages"].get(stage) for shape in shapes.values()]
        if any(costs):
            rows.append((stage, *("" if cost is None else f"{cost:.2f}" for cost in costs)))
    for name, key in (
        ("**client**", "client_us"),
        ("**front**", "front_us"),
        ("of which in the kernel", "front_system_us"),
        ("**workers, with the token**", "workers_us"),
    ):
        rows.append((name, *(f"{shape[key]:.2f}" for shape in shapes.values())))
    rows.append(
        ("front, instructions", *(f"{shape.get('front_instructions', 0):,.0f}" for shape in shapes.values()))
    )
    rows.append(("items per second", *(f"{shape['rate']:,.0f}" for shape in shapes.values())))
    text = (
        f"Processor µs per item. SM2 on firmware-sim with plain calls, two workers, on "
        f"{report.machine_line(document['machine'])}. The token's own calls in a raw loop: "
        f"{document['raw_loop_us']:.2f} µs."
    )
    return text + "\n\n" + report.table(("stage", *shapes), rows)
