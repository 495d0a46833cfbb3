"""``make bench``: everything side by side in one run, as a table, JSON and a picture.

Every scenario is measured ``--rounds`` times, the scenarios taking turns, so that whatever else the machine does hits
all of them alike; what is reported is the median round. Ratios are to the raw C loop of the same round count in the
same run. Writes ``bench/results.json``, ``bench/results.md`` and ``bench/results.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import end_to_end
import peers

HERE = Path(__file__).resolve().parent
Measurement = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """One row of the table. ``against`` names the row that its ratio is to."""

    name: str
    run: Callable[[float], Measurement]
    against: str


RAW_1 = "raw C loop, 1 process"
RAW_2 = "raw C loop, 2 processes"


def scenarios(program: Path, target: peers.Target, daemon: end_to_end.Appliance) -> Iterator[Scenario]:
    """Everything that is measured of one token."""

    def raw(**callers: int) -> Callable[[float], Measurement]:
        return lambda seconds: peers.raw_loop(program, target, seconds, **callers)

    def kit(**callers: int) -> Callable[[float], Measurement]:
        return lambda seconds: peers.p11_kit(program, target, seconds, **callers)

    def single(**shape: int) -> Callable[[float], Measurement]:
        return lambda seconds: end_to_end.singles(daemon, seconds, **shape)

    def batch(items: int) -> Callable[[float], Measurement]:
        return lambda seconds: end_to_end.batches(daemon, seconds, items=items)

    yield Scenario(RAW_1, raw(), RAW_1)
    yield Scenario(RAW_2, raw(processes=2), RAW_2)
    yield Scenario("raw C loop, 8 threads", raw(threads=8), RAW_2)
    yield Scenario("python-pkcs11, 1 process", lambda seconds: peers.binding(target, seconds), RAW_1)
    yield Scenario("p11-kit server, 1 caller", kit(), RAW_1)
    yield Scenario("p11-kit server, 8 callers", kit(threads=8), RAW_2)
    yield Scenario("cloud-seal, 1 connection, 1 request", single(), RAW_1)
    yield Scenario("cloud-seal, 8 connections, 1 request each", single(connections=8), RAW_1)
    yield Scenario("cloud-seal, 64 connections, 1 request each", single(connections=64), RAW_2)
    yield Scenario("cloud-seal, 1 connection, 64 requests", single(in_flight=64), RAW_1)
    yield Scenario("cloud-seal, batches of 64", batch(64), RAW_2)
    yield Scenario("cloud-seal, batches of 256", batch(256), RAW_2)
    yield Scenario("cloud-seal, batches of 1,024", batch(1_024), RAW_2)
    yield Scenario("cloud-seal, batches of 4,096", batch(4_096), RAW_2)
    yield Scenario(
        "cloud-seal, VERIFY, batches of 1,024",
        lambda seconds: end_to_end.verifications(daemon, seconds, items=1_024),
        RAW_2,
    )


@contextmanager
def softhsm(program: Path) -> Iterator[list[Scenario]]:
    """ECDSA P-256 on SoftHSM2, two workers."""
    with ExitStack() as stack:
        target, profile = stack.enter_context(peers.softhsm_target())
        pin = target.pin_file.read_text().strip()
        daemon = stack.enter_context(end_to_end.running({**profile, "workers": 2}, pin, "ecdsa-p256-sha256"))
        yield list(scenarios(program, replace(target, key_id=daemon.key_id), daemon))


TOKENS = {"ECDSA P-256 on SoftHSM2": softhsm}


def measure(rounds: int, seconds: float) -> dict[str, dict[str, Measurement]]:
    """Token -> scenario -> its median round."""
    results: dict[str, dict[str, Measurement]] = {}
    with tempfile.TemporaryDirectory() as folder:
        program = peers.build_raw_loop(Path(folder))
        for token, open_token in TOKENS.items():
            print(f"{token}", flush=True)
            with open_token(program) as rows:
                taken: dict[str, list[Measurement]] = {row.name: [] for row in rows}
                for _ in range(rounds):
                    for row in rows:
                        taken[row.name].append(row.run(seconds))
                results[token] = {name: _median(found) for name, found in taken.items()}
                for row in rows:
                    mine = results[token][row.name]
                    mine["against"] = row.against
                    mine["ratio"] = round(mine["rate"] / results[token][row.against]["rate"], 3)
                    print(f"  {row.name:45s} {mine['rate']:10,.0f}/s  {mine['ratio']:6.2f}", flush=True)
    return results


def _median(found: list[Measurement]) -> Measurement:
    middle = statistics.median_low([one["rate"] for one in found])
    chosen = next(one for one in found if one["rate"] == middle)
    return {**chosen, "rates": [one["rate"] for one in found]}


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.machine())
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": _system(),
        "python": platform.python_version(),
    }


def _system() -> str:
    release = Path("/etc/os-release")
    if release.exists():
        for line in release.read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip('"')
    return platform.system()


def table(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    host = document["machine"]
    lines = [
        (
            f"Measured on {host['cores']} cores of {host['processor']}, {host['system']}, Python {host['python']}; "
            f"median of {document['rounds']} rounds of {document['seconds']:g} s, client and daemon on the same cores."
        ),
        "",
    ]
    for token, rows in document["results"].items():
        lines += [
            f"### {token}",
            "",
            "| scenario | per second | of the raw loop | p50 µs | p99 µs | front µs/item | worker µs/item |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, row in rows.items():
            ratio = f"{row['ratio']:.0%} of {'1' if row['against'] == RAW_1 else '2'}"
            front, workers = row.get("front_us", ""), row.get("workers_us", "")
            lines.append(
                f"| {name} | {row['rate']:,.0f} | {ratio} | {row['p50_us']:,.0f} | {row['p99_us']:,.0f} "
                f"| {front} | {workers} |"
            )
        lines.append("")
    return "\n".join(lines)


def picture(document: dict[str, Any], path: Path) -> None:
    """The same as bars."""
    import matplotlib as mpl  # only here: it takes a second to import

    mpl.use("svg")
    from matplotlib import pyplot as plt

    results = document["results"]
    figure, axes = plt.subplots(1, len(results), figsize=(7.5 * len(results), 5.5), squeeze=False)
    for axis, (token, rows) in zip(axes[0], results.items(), strict=True):
        names = list(rows)[::-1]
        colours = ["#b33939" if "cloud-seal" in name else "#8a8a8a" for name in names]
        rates = [rows[name]["rate"] for name in names]
        bars = axis.barh(names, rates, color=colours)
        axis.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8)
        axis.set_title(f"{token}, per second")
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.text(
        0.01, 0.01, f"{document['machine']['cores']} cores of {document['machine']['processor']}", fontsize=8
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    document = {
        "machine": machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": measure(options.rounds, options.seconds),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.output / "results.md").write_text(table(document))
    picture(document, options.output / "results.svg")


if __name__ == "__main__":
    main()
