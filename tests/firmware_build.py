"""Builds ``firmware-sim/`` for whichever tests want it: by meson and ninja, one at a time for all test processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "firmware-sim"


def tool(name: str) -> str:
    """meson or ninja, from the environment that the tests run in if it has them."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is needed to build firmware-sim: pip install {name}"
    return found


def build(directory: Path, *options: str) -> Path:
    """Configure once, build what is out of date; the directory."""
    environment = os.environ | {"NINJA": tool("ninja")}
    project = os.open(PROJECT, os.O_RDONLY)
    try:
        # ninja does not expect another one in its directory. Closing the descriptor releases the lock.
        fcntl.flock(project, fcntl.LOCK_EX)
        if not (directory / "build.ninja").exists():
            subprocess.run(
                [tool("meson"), "setup", directory, PROJECT, *options], env=environment, check=True
            )
        subprocess.run([tool("ninja"), "-C", directory, "-j2", "--quiet"], env=environment, check=True)
    finally:
        os.close(project)
    return directory
