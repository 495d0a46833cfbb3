"""The whole suite once more, on a build with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from firmware_build import PROJECT, build


def runtime(name: str) -> str | None:
    """The compiler's sanitizer runtime, which must be loaded before Python's own libraries."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if Path(found).is_absolute() else None


@pytest.mark.gauntlet
@pytest.mark.timeout(1800)
@pytest.mark.skipif("FIRMWARE_SIM_BUILD" in os.environ, reason="this is the run with sanitizers")
def test_the_suite_under_address_and_undefined_behaviour_sanitizers() -> None:
    address, undefined = runtime("libasan.so"), runtime("libubsan.so")
    if not (address and undefined):
        pytest.skip("the compiler has no sanitizer runtimes here")
    directory = build(
        PROJECT / "build-asan",
        "-Db_sanitize=address,undefined",
        "-Dbuildtype=debugoptimized",
        "-Db_lundef=false",
        "-Dc_args=-fno-sanitize-recover=undefined -fno-omit-frame-pointer",
    )
    environment = os.environ | {
        "FIRMWARE_SIM_BUILD": str(directory),
        "LD_PRELOAD": f"{address} {undefined}",
        # Python itself leaks by design; everything else is fatal.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gauntlet", "-p", "no:cacheprovider"]
    deselected = [
        "--deselect",
        "tests/firmware_sim/test_conformance.py",
    ]  # Python 3.12 would need the same preloading
    done = subprocess.run(
        [*command, *deselected, str(Path(__file__).parent)],
        cwd=PROJECT.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
