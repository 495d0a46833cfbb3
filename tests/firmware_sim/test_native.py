"""What is tested in C: the timing model's bookings, threads under ThreadSanitizer, fuzzing, the raw loop."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from firmware_build import PROJECT, build

from .p11 import USER_PIN, Module


def test_timing_bookings(build_directory: Path) -> None:
    subprocess.run([build_directory / "timing_test"], check=True)


def test_the_kernel_with_a_known_nonce(build_directory: Path) -> None:
    program = build_directory / "kernel_test"
    if not program.exists():
        pytest.skip("this build has no fast engine")
    subprocess.run([program], check=True)


def test_the_timing_model_changes_no_signature(
    loaded: Module, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it can be switched on; how long it waits is for timing_test to say, on a clock of its own."""
    for name in ("SERVICE_US", "ENGINES", "ROUND_TRIP_US"):
        monkeypatch.setenv(f"FIRMWARE_SIM_{name}", "3")
    with loaded.running():
        loaded.make_token()
        session = loaded.open().login()
        public, private = session.sm2_pair()
        made = [session.sign("CKM_SM2", private, bytes(32))]
        made += loaded.sign_batch(session, "CKM_SM2", private, [bytes(32)] * 9)
        assert all(session.verify("CKM_SM2", public, bytes(32), one) for one in made)


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


def test_fuzzing(settings: Path, build_directory: Path) -> None:
    """A bounded run of the self-contained fuzzer; the run with sanitizers repeats it where it means most."""
    settings.parent.mkdir(exist_ok=True)
    subprocess.run([build_directory / "fuzz", "1", "20000"], check=True)


@pytest.mark.gauntlet
@pytest.mark.timeout(900)
def test_fuzzing_guided_by_coverage(settings: Path, tmp_path: Path) -> None:
    """libFuzzer, where clang has it."""
    clang = shutil.which("clang")
    if not clang:
        pytest.skip("clang is not installed")
    kernel = PROJECT.parent / "appliance" / "native"
    sources = [PROJECT / "test" / "fuzz.c", *(PROJECT / "src").glob("*.c")]
    options = ["-g", "-O1", "-D_GNU_SOURCE", "-DLIBFUZZER", "-fsanitize=fuzzer,address,undefined"]
    if (kernel / "sm2_sign.c").exists():
        sources += [kernel / name for name in ("sm2_sign.c", "sm2_sign_lanes.c", "sm2_tables.c")]
        options.append("-DHAVE_FAST_ENGINE")
    else:
        sources.remove(PROJECT / "src" / "engine_fast.c")
    target = tmp_path / "fuzz"
    built = subprocess.run(
        [clang, *options, *sources, "-lcrypto", "-lpthread", "-o", target],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and "clang_rt.fuzzer" in built.stderr:
        pytest.skip("clang has no fuzzer runtime here")
    assert built.returncode == 0, built.stderr
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        [target, "-max_total_time=60", "-max_len=512", "-print_final_stats=1", corpus],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]
