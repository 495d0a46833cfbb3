"""``make bench``: every figure, table and picture of this folder, in one run.

    throughput   signatures per second beside the raw loop and others    results.json  results.md  results.svg
    verifying    the verification engines by themselves                  (prints them)
    stages       where a signature's time goes                           stages.json  README.md  flame-*.svg
    latency      how long single requests wait                           latency.json  README.md  latency.svg
    sealing      what a seal signature costs beyond the signature        sealing.json  README.md

``python bench/run.py PART…`` runs some of the parts; ``--rounds 1 --seconds 0.5`` is a quick look. The figures of a
machine that does other work at the same time are worth little: the last line says what its load was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import latency
import report
import sealing
import stages
import throughput

HERE = Path(__file__).resolve().parent


def run_throughput(options: argparse.Namespace) -> None:
    document = {
        "machine": report.machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": throughput.measure(options.rounds, options.seconds),
    }
    report.write_json(options.output / "results.json", document)
    (options.output / "results.md").write_text(throughput.table(document))
    throughput.picture(document, options.output / "results.svg")


def run_verifying(options: argparse.Namespace) -> None:
    """A program of its own: it needs neither daemon nor token."""
    program = HERE / "verifying.py"
    if program.exists():
        subprocess.run([sys.executable, program], check=True)


def run_stages(options: argparse.Namespace) -> None:
    document = stages.measure(options.seconds, options.output)
    report.write_json(options.output / "stages.json", document)
    report.insert(readme(options.output), "stages", stages.table(document))


def run_latency(options: argparse.Namespace) -> None:
    document = latency.measure(2 * options.seconds)
    report.write_json(options.output / "latency.json", document)
    report.insert(readme(options.output), "latency", latency.table(document))
    latency.picture(document, options.output / "latency.svg")


def run_sealing(options: argparse.Namespace) -> None:
    document = sealing.measure(options.rounds, options.seconds)
    report.write_json(options.output / "sealing.json", document)
    report.insert(readme(options.output), "sealing", sealing.table(document))


def readme(output: Path) -> Path:
    """The page that tables go into; elsewhere than here, a copy."""
    page = output / "README.md"
    if not page.exists():
        shutil.copy(HERE / "README.md", page)
    return page


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "throughput": run_throughput,
    "verifying": run_verifying,
    "stages": run_stages,
    "latency": run_latency,
    "sealing": run_sealing,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        PARTS[part](options)
    print(f"load averages at the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
