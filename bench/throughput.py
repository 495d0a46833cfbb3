"""Signatures per second: the raw loop, others, and the daemon in every shape of request, side by side.

The scenarios of a token take turns, so that whatever else the machine does hits all of them alike; what is reported is
the median round. A ratio is to the raw C loop that the scenario competes with, in the same run; for batches, which come
near to it, to a run of its own just before, for a virtual machine changes its speed within a minute by more than that.

A caller shares the cores with what it calls. Single requests are therefore asked for by callers in C (``load.c``), as
p11-kit's server is (the raw loop through its client module), and by the Python client in rows of their own. p11-kit's
"8 callers" are eight threads of one process, which its client module lets share one connection; eight processes have a
connection each, and a process of the server's each. Under load the daemon has the kernel keep processors awake
(``appliance.wakefulness``); what p11-kit's server does when they are is shown too.

What is left out, and why: p11-kit's server answers ``CKR_MECHANISM_INVALID`` to SM2's numbers, for it carries only
mechanisms that it knows; python-pkcs11 takes mechanisms from a closed list, in which they are missing too.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import end_to_end
import peers
import tokens
from end_to_end import Appliance
from report import Measurement, machine_line
from report import table as markdown


@dataclass(frozen=True)
class Scenario:
    """One row of the table. ``against`` names the row that its ratio is to, where one makes sense."""

    name: str
    run: Callable[[float], Measurement]
    against: str = ""
    is_near: bool = False
    """Whether the row that it is compared with runs just before it, each time."""


RAW_1 = "raw C loop, 1 process"
RAW_2 = "raw C loop, 2 processes"
RAW_BATCH = "raw batch interface, 2 processes"
SHORT = {RAW_1: "1 process", RAW_2: "2 processes", RAW_BATCH: "2 in batches"}
BATCHES = (64, 256, 1_024, 4_096)
RAW_BATCH_ITEMS = 1_024


def called(daemon: Appliance, program: Path, name: str = "cloud-seal") -> Iterator[Scenario]:
    """The same by callers in C (``load.c``), as p11-kit's server and the raw loop are called."""

    def call(**shape: int) -> Callable[[float], Measurement]:
        return lambda seconds: end_to_end.called(daemon, program, seconds, **shape)

    yield Scenario(f"{name}, called from C, 1 connection, 1 request", call(), RAW_1)
    yield Scenario(f"{name}, called from C, 8 connections, 1 request each", call(callers=8), RAW_1)
    yield Scenario(f"{name}, called from C, 1 connection, 64 requests", call(in_flight=64), RAW_1)


def singles(daemon: Appliance, name: str = "cloud-seal") -> Iterator[Scenario]:
    """Requests of one item: callers that wait for each answer, and one that does not."""

    def single(**shape: int) -> Callable[[float], Measurement]:
        return lambda seconds: end_to_end.singles(daemon, seconds, **shape)

    yield Scenario(f"{name}, 1 connection, 1 request", single(), RAW_1)
    yield Scenario(f"{name}, 8 connections, 1 request each", single(connections=8), RAW_1)
    yield Scenario(f"{name}, 64 connections, 1 request each", single(connections=64), RAW_2)
    yield Scenario(f"{name}, 1 connection, 64 requests", single(in_flight=64), RAW_1)


def batches(daemon: Appliance, against: str, name: str = "cloud-seal") -> Iterator[Scenario]:
    """Requests of many items, eight of them under way."""

    def batch(items: int) -> Callable[[float], Measurement]:
        return lambda seconds: end_to_end.batches(daemon, seconds, items=items)

    for items in BATCHES:
        yield Scenario(f"{name}, batches of {items:,}", batch(items), against, is_near=True)


def verifications(daemon: Appliance) -> Scenario:
    """VERIFY, in software: no token is asked, so no raw loop compares."""
    return Scenario(
        "cloud-seal, VERIFY, batches of 1,024",
        lambda seconds: end_to_end.verifications(daemon, seconds, items=1_024),
    )


@contextmanager
def p256_on_softhsm(program: Path, load: Path) -> Iterator[list[Scenario]]:
    """ECDSA P-256 on SoftHSM2, two workers."""
    with ExitStack() as stack:
        token = stack.enter_context(tokens.softhsm())
        daemon = stack.enter_context(end_to_end.running(token))
        target = replace(token.target, key_id=daemon.key_id)

        def raw(**callers: int) -> Callable[[float], Measurement]:
            return lambda seconds: peers.raw_loop(program, target, seconds, **callers)

        def kit(*, awake: bool = False, **callers: int) -> Callable[[float], Measurement]:
            def run(seconds: float) -> Measurement:
                with peers.awake() if awake else nullcontext():
                    return peers.p11_kit(program, target, seconds, **callers)

            return run

        yield [
            Scenario(RAW_1, raw(), RAW_1),
            Scenario(RAW_2, raw(processes=2), RAW_2),
            Scenario("raw C loop, 8 threads", raw(threads=8), RAW_2),
            Scenario("python-pkcs11, 1 process", lambda seconds: peers.binding(target, seconds), RAW_1),
            Scenario("p11-kit server, 1 caller", kit(), RAW_1),
            Scenario("p11-kit server, 1 caller, processors awake", kit(awake=True), RAW_1),
            Scenario("p11-kit server, 8 callers", kit(threads=8), RAW_2),
            Scenario("p11-kit server, 8 callers, processors awake", kit(awake=True, threads=8), RAW_2),
            Scenario("p11-kit server, 8 callers, a connection each", kit(processes=8), RAW_2),
            *called(daemon, load),
            *singles(daemon),
            *batches(daemon, RAW_2),
            verifications(daemon),
        ]


@contextmanager
def sm2_on_firmware_sim(program: Path, load: Path) -> Iterator[list[Scenario]]:
    """SM2 on the simulated HSM: a daemon with plain calls and one with the batch interface, two workers each."""
    with ExitStack() as stack:
        token = stack.enter_context(tokens.firmware_sim())
        plain = stack.enter_context(end_to_end.running(token, profile={"batch": "plain"}))
        vendor = stack.enter_context(end_to_end.running(token, profile={"batch": "auto"}))
        target = replace(token.target, key_id=plain.key_id)
        slow = replace(target, environment={**target.environment, "FIRMWARE_SIM_ENGINE": "openssl"})

        def raw(**callers: int) -> Callable[[float], Measurement]:
            return lambda seconds: peers.raw_loop(program, target, seconds, **callers)

        yield [
            Scenario(RAW_1, raw(), RAW_1),
            Scenario(RAW_2, raw(processes=2), RAW_2),
            Scenario("raw C loop, 2 threads", raw(threads=2), RAW_1),
            Scenario(
                "raw C loop, 1 process, engine: openssl",
                lambda seconds: peers.raw_loop(program, slow, seconds),
                RAW_1,
            ),
            Scenario(RAW_BATCH, raw(processes=2, batch=RAW_BATCH_ITEMS), RAW_BATCH),
            *called(plain, load, "cloud-seal, plain"),
            *singles(plain, "cloud-seal, plain"),
            *batches(plain, RAW_2, "cloud-seal, plain"),
            *singles(vendor),
            *batches(vendor, RAW_BATCH),
            verifications(vendor),
        ]


TOKENS = {"ECDSA P-256 on SoftHSM2": p256_on_softhsm, "SM2 on firmware-sim": sm2_on_firmware_sim}


def measure(rounds: int, seconds: float) -> dict[str, dict[str, Measurement]]:
    """Token -> scenario -> its median round."""
    results: dict[str, dict[str, Measurement]] = {}
    with tempfile.TemporaryDirectory() as folder:
        program, load = peers.build_raw_loop(Path(folder)), peers.build_load(Path(folder))
        for token, open_token in TOKENS.items():
            print(f"{token}", flush=True)
            with open_token(program, load) as rows:
                named = {row.name: row for row in rows}
                taken: dict[str, list[Measurement]] = {name: [] for name in named}
                ratios: dict[str, list[float]] = {name: [] for name in named}
                for _ in range(rounds):
                    for row in rows:
                        if row.is_near:
                            taken[row.against].append(named[row.against].run(seconds))
                        taken[row.name].append(row.run(seconds))
                        if row.is_near:
                            ratios[row.name].append(
                                taken[row.name][-1]["rate"] / taken[row.against][-1]["rate"]
                            )
                results[token] = {name: _median(found) for name, found in taken.items()}
                for row in rows:
                    mine = results[token][row.name]
                    if row.against:
                        mine["against"] = row.against
                        ratio = mine["rate"] / results[token][row.against]["rate"]
                        mine["ratio"] = round(statistics.median(ratios[row.name] or [ratio]), 3)
                    print(f"  {row.name:45s} {mine['rate']:10,.0f}/s  {mine.get('ratio', '')}", flush=True)
    return results


def _median(found: list[Measurement]) -> Measurement:
    middle = statistics.median_low([one["rate"] for one in found])
    chosen = next(one for one in found if one["rate"] == middle)
    return {**chosen, "rates": [one["rate"] for one in found]}


HEAD = ("scenario", "per second", "of the raw loop", "p50 µs", "p99 µs", "client µs", "front µs", "token µs")


def table(document: dict[str, Any]) -> str:
    """The results in Markdown. The last three columns are processor time per item."""
    summary = (
        f"Measured on {machine_line(document['machine'])}; median of {document['rounds']} rounds of "
        f"{document['seconds']:g} s; client, daemon and token share the cores. The last three columns are "
        "processor time per item: of the client, of the front, and of the signer workers or the raw loop."
    )
    parts = [summary]
    for token, rows in document["results"].items():
        lines = []
        for name, row in rows.items():
            ratio = f"{row['ratio']:.0%} of {SHORT[row['against']]}" if "ratio" in row else ""
            costs = [
                "" if cost is None else f"{cost:.2f}"
                for cost in (
                    row.get("client_us"),
                    row.get("front_us"),
                    row.get("workers_us", row.get("cpu_us")),
                )
            ]
            lines.append(
                (name, f"{row['rate']:,.0f}", ratio, f"{row['p50_us']:,.0f}", f"{row['p99_us']:,.0f}", *costs)
            )
        parts += [f"### {token}", markdown(HEAD, lines)]
    return "\n\n".join(parts) + "\n"


def picture(document: dict[str, Any], path: Path) -> None:
    """The same as bars, one token under the other, so that it stays legible in a column of text.

    VERIFY is left to the table: its bar would make the others short.
    """
    import matplotlib as mpl  # only here: it takes a second to import

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cloud-seal"  # ids that do not change from run to run
    from matplotlib import pyplot as plt

    results = document["results"]
    heights = [len(rows) for rows in results.values()]
    figure, axes = plt.subplots(
        len(results),
        1,
        figsize=(9, 1.2 + sum(heights) * 0.27 + len(results) * 0.6),
        squeeze=False,
        height_ratios=heights,
    )
    for axis, (token, rows) in zip(axes[:, 0], results.items(), strict=True):
        names = [name for name in reversed(rows) if "ratio" in rows[name]]
        colours = ["#b33939" if "cloud-seal" in name else "#8a8a8a" for name in names]
        rates = [rows[name]["rate"] for name in names]
        bars = axis.barh(names, rates, color=colours)
        axis.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
        axis.set_title(f"{token}, items per second", fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12, y=0.01)
        axis.spines[["top", "right"]].set_visible(False)
    host = document["machine"]
    figure.text(0.01, 0.005, f"{host['cores']} cores of {host['processor']}", fontsize=8)
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
