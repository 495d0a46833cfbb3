"""What is tested in C: the timing model's bookings, threads under ThreadSanitizer, fuzzing, the raw loop."""

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import PROJECT, build
from .p11 import USER_PIN, Module


def test_timing_bookings(build_directory: Path) -> None:
    subprocess.run([build_directory / "timing_test"], check=True)


def test_eight_threads(sim: Module, build_directory: Path) -> None:
    subprocess.run(
        [build_directory / "stress", build_directory / "libfirmware_sim.so", "0", USER_PIN, "20"], check=True
    )


@pytest.mark.gauntlet
@pytest.mark.timeout(900)
def test_eight_threads_under_thread_sanitizer(sim: Module) -> None:
    directory = build(
        PROJECT / "build-tsan", "-Db_sanitize=thread", "-Dbuildtype=debugoptimized", "-Db_lundef=false"
    )
    done = subprocess.run(
        [directory / "stress", directory / "libfirmware_sim.so", "0", USER_PIN, "30"],
        env=os.environ | {"TSAN_OPTIONS": "exitcode=66 halt_on_error=1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["init", "message", "batch"])
def test_the_raw_loop_runs(sim: Module, build_directory: Path, way: str) -> None:
    """That it runs; how fast is for the bench to say."""
    command = [
        build_directory / "bench_raw",
        build_directory / "libfirmware_sim.so",
        "0",
        USER_PIN,
        "2",
        "0.05",
        way,
    ]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) > 0
