"""A token of the simulated HSM (``firmware-sim/``) for tests with the real daemon: SM2, a trace, a timing model."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from appliance_fixture import PIN, ROOT, SO_PIN
from firmware_build import PROJECT, build


@pytest.fixture(scope="session")
def simulator() -> Path:
    """The module, built where that has not been done."""
    return build(PROJECT / "build") / "libfirmware_sim.so"


@dataclass
class Simulated:
    """A token of the simulated HSM with a trace and a timing model."""

    root: Path
    module: Path

    @property
    def trace(self) -> Path:
        """Where a test that names it as a setting finds a line for each signature made."""
        return self.root / "trace"

    def make(self, **settings: str | int) -> dict[str, Any]:
        """Initialise it; the shipped profile, for this token. ``settings`` go to its configuration file."""
        (self.root / "tokens").mkdir(parents=True)
        config = self.root / "firmware-sim.conf"
        lines = {"tokens": self.root / "tokens", "kdf_log2n": 4, **settings}
        config.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
        environment = {"FIRMWARE_SIM_CONF": str(config)}
        command = ["softhsm2-util", "--module", self.module, "--init-token", "--free", "--label", "simulated"]
        subprocess.run(
            [*command, "--pin", PIN, "--so-pin", SO_PIN],
            env={**os.environ, **environment}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        profile = yaml.safe_load((ROOT / "config/tokens/firmware-sim.yaml").read_text())
        profile.update(module=str(self.module), token_label="simulated", environment=environment)
        return dict(profile)

    def signed(self) -> list[tuple[str, bytes]]:
        """What was signed, in order: the key's ID in hex and the input."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        fields = [dict(pair.split("=") for pair in line.split()[1:]) for line in lines]
        return [(one["key"], bytes.fromhex(one["input"])) for one in fields]


@pytest.fixture
def simulated(simulator: Path, tmp_path: Path) -> Simulated:
    """One that has not been made yet."""
    return Simulated(tmp_path / "simulated", simulator)
