"""How long single requests wait: at half load, before a slow network token, and beside a giant job.

Requests are sent at instants drawn beforehand (an open loop, Poisson), whatever has been answered by then; a latency
counts from that instant, so that a stall is felt by every request that falls into it and not by one.

* At a share of saturation: singles before SoftHSM2, before firmware-sim, and before a card, by a caller in C on one
  connection (``load.c``); its own lateness counts. The first two tokens sign on the processors that caller and
  appliance run on; the card, as real ones do, signs on engines of its own (the simulator's timing model, 8 engines of
  1 ms). Saturation is told in three ways: what one connection reaches with 64 requests under way, and what 64 and 8
  callers reach that each wait for their answer. The first is the highest, for answers then come many at a time.
  The system places everybody, or workers, front and caller are bound to processors as on a machine of its own, where no
  caller computes on a worker's processor (``signers.processors``, ``end_to_end.bound``).
  Appliance and echo take turns, and the median run of each is told. What a latency is compared with is
  the raw call's median in the same run plus one round trip of the same caller. The round trip that decides is *echo,
  as they come*: a peer in C that only echoes, asked at the same instants, for then both sides have slept and waked the
  same way; its own 99th percentile says what this machine does to whoever is woken. Others are shown beside it: the
  same echo asked without a pause, a uvloop server that only echoes, a PING that the front answers. A call that comes
  alone takes longer than the raw loop's, which follows the last one at once; that median is shown and decides nothing.
  Under load the appliance has the kernel keep processors awake (``appliance.wakefulness``); that echo is measured
  without it, on the machine as it is, and beside it once more with processors awake.
* A slow network token: the simulator's timing model, 64 engines of 20 ms a signature behind a round trip of 1 ms a
  call. The worker has 64 sessions. Load is told as a share of what 64 sessions can do.
* Fairness: a clerk asks for a seal every 20 ms, alone and while one request of 65,536 items is being signed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import end_to_end
import peers
import report
import tokens
import uvloop
from end_to_end import ACCOUNT, KEY, Appliance
from report import percentile

from appliance import wire
from appliance.wire import MAX_ITEMS, FrameType, Priority

ROUND_TRIP_US, SERVICE_US, ENGINES = 1_000, 20_000, 64
CALLS = 2  # C_SignInit and C_Sign: a round trip each
SLOW_CALL_S = (SERVICE_US + CALLS * ROUND_TRIP_US) / 1e6
CARD = {"round_trip_us": 0, "service_us": 1_000, "engines": 8}
CARD_PROFILE = {"workers": 1, "sessions": 8, "locking": "os", "batch": "plain"}
SHARES = (0.1, 0.25)
TURNS = 3
STRICTEST = "64 requests under way on one connection"
SATURATIONS = {
    STRICTEST: {"in_flight": 64},
    "64 callers that wait": {"callers": 64},
    "8 callers that wait": {"callers": 8},
}
DECIDES = "echo, as they come"
SLOW_LOADS = (0.05, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
CLERK_EVERY_S = 0.02
DEADLINE_S = 60.0


def measure(seconds: float) -> dict[str, Any]:
    document: dict[str, Any] = {"machine": report.machine(), "seconds": seconds}
    document["half_load"] = {
        "ECDSA P-256 on SoftHSM2": _half_load(tokens.softhsm(), seconds),
        "ECDSA P-256 on SoftHSM2, bound": _half_load(tokens.softhsm(), seconds, bound=True),
        "SM2 on firmware-sim": _half_load(tokens.firmware_sim(), seconds),
        "SM2 on firmware-sim, bound": _half_load(tokens.firmware_sim(), seconds, bound=True),
        "SM2 on a card, 8 engines of 1 ms": _half_load(
            tokens.firmware_sim(**CARD), seconds, profile=CARD_PROFILE
        ),
    }
    document["slow_token"] = _slow_token(seconds)
    document["fairness"] = _fairness(seconds)
    return document


# The open loop ----------------------------------------------------------------------------------------------


def _poisson(rate: float, seconds: float, seed: str) -> list[float]:
    """Instants from 0 on, the same ones for the same arguments."""
    source = random.Random(seed)
    instants, at = [], source.expovariate(rate)
    while at < seconds:
        instants.append(at)
        at += source.expovariate(rate)
    return instants


class _Caller:
    """One connection by hand: the client library runs on a loop whose timers tick in milliseconds, too coarse here."""

    def __init__(self, daemon: Appliance) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(DEADLINE_S)
        self._sock.connect(daemon.address.removeprefix("unix:"))
        self._reader = wire.FrameReader(1 << 20)
        self._sock.sendall(wire.encode_hello(wire.Hello(wire.VERSION, wire.VERSION, ACCOUNT, "")))
        self._window = wire.decode_welcome(self._frames(FrameType.WELCOME)[0].payload).window_requests
        self._items = wire.digests(os.urandom(32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def _frames(self, expected: FrameType) -> list[wire.Frame]:
        """At least one."""
        frames: list[wire.Frame] = []
        while not frames:
            self._reader.receive(self._sock.recv(1 << 18))
            while (frame := self._reader.next_frame()) is not None:
                if frame.type is not expected:
                    raise RuntimeError(f"expected {expected.name}, got {frame.type.name}")
                frames.append(frame)
        return frames

    def ping_s(self, rounds: int = 1_000) -> float:
        """Median of a PING's round trip."""
        taken = []
        for number in range(rounds):
            began_at = time.perf_counter()
            self._sock.sendall(wire.encode_ping(number + 1))
            self._frames(FrameType.PONG)
            taken.append(time.perf_counter() - began_at)
        return percentile(sorted(taken), 0.5)

    def ask_at(self, instants: Sequence[float]) -> list[float]:
        """The latency in seconds of a single request sent at each instant; waiting for the window counts."""
        latencies = [0.0] * len(instants)
        sent = answered = 0
        began_at = time.perf_counter() + 0.01
        while answered < len(instants):
            wait_s = DEADLINE_S
            if sent < len(instants) and sent - answered < self._window:
                wait_s = began_at + instants[sent] - time.perf_counter()
                if wait_s <= 0:
                    self._sock.sendall(wire.encode_sign(sent + 1, self._request(sent)))
                    sent += 1
                    continue
            if select.select([self._sock], [], [], wait_s)[0]:
                for frame in self._frames(FrameType.SIGNED):
                    number = frame.request_id - 1
                    latencies[number] = time.perf_counter() - began_at - instants[number]
                    answered += 1
        return latencies

    def _request(self, number: int) -> wire.SignRequest:
        deadline_ms = int(DEADLINE_S * 1_000)
        return wire.SignRequest(bytes(16), number, deadline_ms, Priority.INTERACTIVE, KEY, self._items)


def _summary(latencies: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "p50_us": round(percentile(ordered, 0.50) * 1e6, 1),
        "p99_us": round(percentile(ordered, 0.99) * 1e6, 1),
        "max_us": round(ordered[-1] * 1e6, 1),
    }


def _round_trips(load: Path, rate: float, seconds: float) -> dict[str, float]:
    """Kind of round trip -> its median in µs, by the caller that asks for signatures; those that decide nothing."""
    with _uvloop_echo() as path:
        open_loop, asyncio_server = f"--rate={rate}", f"--socket={path}"
        found = {
            "echo, without a pause": peers.load(load, seconds, "--echo-here"),
            "uvloop's echo, as they come": peers.load(load, seconds, "--echo", asyncio_server, open_loop),
            "uvloop's echo, without a pause": peers.load(load, seconds, "--echo", asyncio_server),
        }
    return {kind: one["p50_us"] for kind, one in found.items()}


@contextlib.contextmanager
def _uvloop_echo() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/echo"
        command = [sys.executable, Path(__file__).with_name("echo.py"), path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()  # it listens
            yield path


# Three questions --------------------------------------------------------------------------------------------


def _half_load(
    opened: Any, seconds: float, *, bound: bool = False, profile: dict[str, Any] | None = None
) -> dict[str, Any]:
    settings = {"signers": end_to_end.BOUND} if bound else {}
    with (
        opened as token,
        tempfile.TemporaryDirectory() as folder,
        end_to_end.running(token, profile=profile, settings=settings) as daemon,
        end_to_end.bound(daemon) if bound else contextlib.nullcontext(),
    ):
        program, load = peers.build_raw_loop(Path(folder)), peers.build_load(Path(folder))
        target = replace(token.target, key_id=daemon.key_id)
        with _Caller(daemon) as caller:
            ping_s = caller.ping_s()
        halves = {
            name: _half(daemon, load, seconds, end_to_end.called(daemon, load, seconds, **shape)["rate"] / 2)
            for name, shape in SATURATIONS.items()
        }
        rate = halves[STRICTEST]["rate"]
        return {
            "raw_p50_us": peers.raw_loop(program, target, seconds)["p50_us"],
            "raw_alone_p50_us": peers.raw_loop(program, target, seconds, pause_us=int(1e6 / rate))["p50_us"],
            "round_trips": {**_round_trips(load, rate, seconds), "PING": round(ping_s * 1e6, 1)},
            "halves": halves,
            "loads": {
                str(share): end_to_end.called(daemon, load, seconds, rate=round(2 * rate * share, 1))
                for share in SHARES
            },
        }


def _half(daemon: Appliance, load: Path, seconds: float, rate: float) -> dict[str, Any]:
    """The appliance at that rate, the echo that decides, and the same where processors are awake."""
    asked = ("--echo-here", f"--rate={rate:.1f}")
    found, echo, echo_awake = [], [], []
    for _ in range(TURNS):
        found.append(end_to_end.called(daemon, load, seconds, rate=round(rate, 1)))
        peers.wait_for_rest()
        echo.append(peers.load(load, seconds, *asked))
        with peers.awake():
            echo_awake.append(peers.load(load, seconds, *asked))
    return {
        "rate": round(rate, 1),
        "found": _median(found),
        "echo": _median(echo),
        "echo_awake": _median(echo_awake),
    }


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return sorted(runs, key=lambda run: run["p50_us"])[len(runs) // 2]


def _slow_token(seconds: float) -> dict[str, Any]:
    """Load (a share of what 64 sessions can do) -> latency."""
    saturation = ENGINES / SLOW_CALL_S
    loads = {}
    profile = {"workers": 1, "sessions": ENGINES, "locking": "os", "batch": "plain"}
    timing = {"round_trip_us": ROUND_TRIP_US, "service_us": SERVICE_US, "engines": ENGINES}
    with tokens.firmware_sim(**timing) as token, end_to_end.running(token, profile=profile) as daemon:
        for load in SLOW_LOADS:
            with _Caller(daemon) as caller:
                caller.ask_at(_poisson(load * saturation, 0.2, "warm"))
                latencies = caller.ask_at(_poisson(load * saturation, seconds, "slow token"))
            loads[str(load)] = _summary(latencies)
    return {"service_us": SLOW_CALL_S * 1e6, "saturation": round(saturation), "loads": loads}


def _fairness(seconds: float) -> dict[str, Any]:
    """A clerk alone, and the same clerk while a giant job runs."""
    with tokens.softhsm() as token, end_to_end.running(token) as daemon:
        alone = uvloop.run(_clerk_and_job(daemon, job=False, seconds=seconds))
        beside = uvloop.run(_clerk_and_job(daemon, job=True, seconds=seconds))
    return {"alone": alone, "beside": beside}


async def _clerk_and_job(daemon: Appliance, *, job: bool, seconds: float) -> dict[str, Any]:
    """Latencies over time. With a job the clerk asks from before its start until its end, and a little longer."""
    points: list[tuple[float, float]] = []
    span: list[float] = []
    async with end_to_end.clients(daemon, 2) as (clerk, batcher):
        began_at = time.perf_counter()
        ended = asyncio.Event()

        async def ask(digest: bytes) -> None:
            asked_at = time.perf_counter()
            await clerk.sign(KEY, digest, deadline_s=DEADLINE_S)
            points.append((round(asked_at - began_at, 4), round((time.perf_counter() - asked_at) * 1e6, 1)))

        async def ask_on() -> None:
            async with asyncio.TaskGroup() as group:
                while not ended.is_set():
                    group.create_task(ask(os.urandom(32)))
                    await asyncio.sleep(CLERK_EVERY_S)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask_on())
            await asyncio.sleep(seconds / 4)
            if job:
                span.append(round(time.perf_counter() - began_at, 4))
                block = wire.digests(os.urandom(32 * MAX_ITEMS))
                answer = await batcher.sign_batch(KEY, block, deadline_s=DEADLINE_S)
                if answer.failed:
                    raise RuntimeError("a signature failed")
                span.append(round(time.perf_counter() - began_at, 4))
            await asyncio.sleep(seconds / 4 if job else seconds)
            ended.set()
    inside = [us for at, us in points if not job or span[0] <= at <= span[1]]
    return {"span": span, "points": sorted(points), **_summary([us / 1e6 for us in inside])}


# Report -----------------------------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    half, yardsticks = [], []
    for name, found in document["half_load"].items():
        top = 2 * found["halves"][STRICTEST]["rate"]
        rows = [(f"{float(share):.0%} of {top:,.0f}/s", one) for share, one in found["loads"].items()]
        rows += [(f"half of what {kind} reach", one["found"]) for kind, one in found["halves"].items()]
        for load, one in rows:
            half.append(
                (
                    f"{name}, {load}",
                    f"{one['rate']:,.0f}",
                    *(f"{one[key]:,.0f}" for key in ("p50_us", "p99_us")),
                    *(f"{one[key]:,.1f}" for key in ("client_us", "front_us", "workers_us")),
                )
            )
        raw_us, alone_us = found["raw_p50_us"], found["raw_alone_p50_us"]
        for kind, one in found["halves"].items():
            for echo, call_us, mark in (
                (one["echo"], raw_us, f"**{DECIDES}**"),
                (one["echo_awake"], raw_us, "the same echo, processors awake"),
                (one["echo"], alone_us, "the same echo, and the raw call alone"),
            ):
                yard_us = call_us + echo["p50_us"]
                times = [
                    f"{number / yard_us:.1f}"
                    for number in (one["found"]["p50_us"], one["found"]["p99_us"], echo["p99_us"])
                ]
                what = f"{name}, half of what {kind} reach: {mark}"
                yardsticks.append((what, f"{echo['p50_us']:,.0f}", f"{yard_us:,.0f}", *times))
        strictest = found["halves"][STRICTEST]["found"]
        for kind, trip_us in found["round_trips"].items():
            times = [f"{strictest[key] / (raw_us + trip_us):.1f}" for key in ("p50_us", "p99_us")]
            yardsticks.append((f"{name}: {kind}", f"{trip_us:,.0f}", f"{raw_us + trip_us:,.0f}", *times, ""))
        yardsticks.append((f"{name}: the raw call alone, no round trip", "", f"{alone_us:,.0f}", "", "", ""))
    slow = [
        (f"{float(load):.0%}", f"{found['p50_us'] / 1e3:.1f}", f"{found['p99_us'] / 1e3:.1f}")
        for load, found in document["slow_token"]["loads"].items()
    ]
    fair = [
        (
            name,
            f"{found['requests']:,}",
            *(f"{found[key] / 1e3:.1f}" for key in ("p50_us", "p99_us", "max_us")),
        )
        for name, found in (
            ("alone", document["fairness"]["alone"]),
            ("beside 65,536 items", document["fairness"]["beside"]),
        )
    ]
    about_half = (
        "Single requests at a share of saturation, an open loop by a caller in C. The last three columns are processor "
        "time a request."
    )
    about_yardsticks = (
        "At half of saturation, in multiples of the raw call's median plus one round trip. The round trip that decides "
        "is the bold one; wanted are p50 below 2 and p99 below 5."
    )
    about_slow = (
        f"A slow network token: {ENGINES} engines of {SERVICE_US // 1000} ms behind a round trip of "
        f"{ROUND_TRIP_US // 1000} ms a call, {SLOW_CALL_S * 1e3:.0f} ms a signature."
    )
    parts = (
        f"On {report.machine_line(document['machine'])}.",
        about_half,
        report.table(("load", "per second", "p50 µs", "p99 µs", "client µs", "front µs", "token µs"), half),
        about_yardsticks,
        report.table(
            (
                "round trip",
                "alone, µs",
                "with the raw call, µs",
                "p50, times",
                "p99, times",
                "the echo's own p99, times",
            ),
            yardsticks,
        ),
        about_slow,
        report.table(("load", "p50 ms", "p99 ms"), slow),
        "A clerk's single seals, alone and beside a giant job.",
        report.table(("", "requests", "p50 ms", "p99 ms", "longest ms"), fair),
    )
    return "\n\n".join(parts)


def picture(document: dict[str, Any], path: Path) -> None:
    """Load curve of the slow token, and the clerk's latencies over time."""
    import matplotlib as mpl  # only here: it takes a second to import

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cloud-seal"
    from matplotlib import pyplot as plt

    figure, (slow, fair) = plt.subplots(1, 2, figsize=(11, 4))
    found = document["slow_token"]
    loads = [float(load) * 100 for load in found["loads"]]
    for key, label, colour in (("p99_us", "p99", "#b33939"), ("p50_us", "p50", "#33658a")):
        slow.plot(loads, [one[key] / 1e3 for one in found["loads"].values()], "o-", label=label, color=colour)
    slow.axhline(
        found["service_us"] / 1e3, linestyle=":", color="#555555", label="one signature in the token"
    )
    slow.set(xlabel=f"load, % of {found['saturation']:,}/s", ylabel="ms", ylim=(0, None))
    slow.set_title("A slow network token, 64 sessions", fontsize=10, loc="left")
    slow.legend(frameon=False, fontsize=8)
    for name, label, colour in (("alone", "alone", "#33658a"), ("beside", "with the job", "#b33939")):
        points = document["fairness"][name]["points"]
        fair.plot(
            [at for at, _ in points], [us / 1e3 for _, us in points], ".", ms=4, color=colour, label=label
        )
    fair.axvspan(*document["fairness"]["beside"]["span"], color="#eeeeee", label="65,536 items being signed")
    fair.set(xlabel="seconds", ylabel="latency of a single seal, ms", ylim=(0, None))
    fair.set_title("A clerk beside a giant job", fontsize=10, loc="left")
    fair.legend(frameon=False, fontsize=8)
    for axis in (slow, fair):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
