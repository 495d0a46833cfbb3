"""The native code without Python: under sanitizers, and compiled for another processor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "appliance" / "native"
NAMES = ("sm2_sign", "sm2_sign_lanes", "sm2_tables", "sm2_verify", "sm2_verify_lanes", "sm3", "sm3_lanes")
SOURCES = [Path(__file__).with_name("native_round.c"), *(NATIVE / f"{name}.c" for name in NAMES)]
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-pthread"]


def build(compiler: str, program: Path, *options: str) -> None:
    found = shutil.which(compiler)
    if found is None:
        pytest.skip(f"needs {compiler}")
    subprocess.run([found, *FLAGS, *options, "-o", program, *SOURCES], check=True)


@pytest.mark.gauntlet  # it compiles everything anew
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    program = tmp_path / "sanitized"
    build("cc", program, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert b": 0 wrong" in subprocess.run([program], capture_output=True, check=True).stdout


@pytest.mark.gauntlet
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_warn_of_nothing_and_agree(tmp_path: Path, compiler: str) -> None:
    program = tmp_path / "round"
    build(compiler, program, "-O3", "-Wpedantic")
    assert b": 0 wrong" in subprocess.run([program], capture_output=True, check=True).stdout


@pytest.mark.gauntlet
def test_aarch64(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("needs qemu-aarch64")
    program = tmp_path / "round"
    build("aarch64-linux-gnu-gcc", program, "-O2", "-static")
    output = subprocess.run([emulator, program], capture_output=True, check=True).stdout
    assert output == b"scalar: 0 wrong\n"
