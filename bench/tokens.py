"""Tokens to measure on: SoftHSM2 with P-256, the simulated HSM with SM2. Each is made in a temporary folder.

A token comes as a ``Target`` (what a raw loop needs) and a profile (what the daemon needs), both for the same token;
the profile is the shipped one with the module, the label and the environment of this token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LABEL = "bench"
PIN, SO_PIN = "24681357", "13579246"
SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
)
CKM_ECDSA, CKM_SM2 = 0x1041, 0x80008000


@dataclass(frozen=True)
class Target:
    """A key on a token. ``environment`` is what the module needs (SOFTHSM2_CONF, FIRMWARE_SIM_CONF)."""

    module: str
    token_label: str
    pin_file: Path
    key_id: bytes
    mechanism: int
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, seconds: float) -> list[str]:
        """The options that ``raw_loop`` and ``binding.py`` share."""
        return [
            f"--module={self.module}",
            f"--token={self.token_label}",
            f"--pin-file={self.pin_file}",
            f"--key-id={self.key_id.hex()}",
            f"--mechanism={self.mechanism:#x}",
            f"--seconds={seconds}",
        ]


@dataclass(frozen=True)
class Token:
    """A token that exists, without a key as yet: ``target.key_id`` is free."""

    target: Target
    profile: dict[str, Any]
    algorithm: str


@contextlib.contextmanager
def softhsm() -> Iterator[Token]:
    """A SoftHSM2 token for ECDSA P-256."""
    module = next(path for path in SOFTHSM_MODULES if Path(path).exists())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        config = folder / "softhsm2.conf"
        config.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
        environment = {"SOFTHSM2_CONF": str(config)}
        target = _initialised(folder, module, CKM_ECDSA, environment)
        yield Token(target, _profile("softhsm2", target), "ecdsa-p256-sha256")


@contextlib.contextmanager
def firmware_sim(**settings: str | int) -> Iterator[Token]:
    """A token of the simulated HSM for SM2; ``settings`` go to its configuration file (``service_us=1000``)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        config = folder / "firmware-sim.conf"
        lines = {"tokens": folder / "tokens", **settings}
        config.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        environment = {"FIRMWARE_SIM_CONF": str(config)}
        target = _initialised(folder, str(_built_firmware_sim()), CKM_SM2, environment)
        yield Token(target, _profile("firmware-sim", target), "sm2-sm3")


def _initialised(folder: Path, module: str, mechanism: int, environment: Mapping[str, str]) -> Target:
    """Make the token; SoftHSM2's own tool does it for any module."""
    (folder / "pin").write_text(PIN + "\n")
    program = shutil.which("softhsm2-util")
    if program is None:
        raise RuntimeError("softhsm2-util not found (apt install softhsm2)")
    command = [program, "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", SO_PIN]
    subprocess.run(
        [*command, "--module", module], env={**os.environ, **environment}, check=True, capture_output=True
    )
    return Target(module, LABEL, folder / "pin", secrets.token_bytes(16), mechanism, environment)


def _profile(name: str, target: Target) -> dict[str, Any]:
    profile: dict[str, Any] = yaml.safe_load((ROOT / f"config/tokens/{name}.yaml").read_text())
    profile.update(module=target.module, token_label=target.token_label, environment=dict(target.environment))
    return profile


def _built_firmware_sim() -> Path:
    """The module, built where that has not been done; ninja does nothing twice."""
    build = ROOT / "firmware-sim" / "build"
    environment = {**os.environ, "NINJA": _tool("ninja")}
    if not (build / "build.ninja").exists():
        setup = [_tool("meson"), "setup", build, build.parent]
        subprocess.run(setup, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([_tool("ninja"), "-C", build, "--quiet"], env=environment, check=True)
    return build / "libfirmware_sim.so"


def _tool(name: str) -> str:
    """From the environment that runs us, if it has it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} not found (pip install {name})")
    return found
