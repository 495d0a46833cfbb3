"""Build the simulator once per run, and give each test a token directory of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .p11 import Module, Session

PROJECT = Path(__file__).parents[2] / "firmware-sim"
# A KDF of 2^4 instead of 2^14: these tests try hundreds of PINs, and none of them is about the KDF's cost.
TEST_SETTINGS = {"FIRMWARE_SIM_KDF_LOG2N": "4"}


def tool(name: str) -> str:
    """meson or ninja, from the environment the tests run in if it has them."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is needed to build firmware-sim: pip install {name}"
    return found


def build(directory: Path, *options: str) -> Path:
    """Configure once, build what is out of date."""
    environment = os.environ | {"NINJA": tool("ninja")}
    if not (directory / "build.ninja").exists():
        subprocess.run(
            [tool("meson"), "setup", str(directory), str(PROJECT), *options], env=environment, check=True
        )
    subprocess.run([tool("ninja"), "-C", str(directory), "-j2", "--quiet"], env=environment, check=True)
    return directory


@pytest.fixture(scope="session")
def build_directory() -> Path:
    """FIRMWARE_SIM_BUILD names another build, for example one with sanitizers."""
    chosen = os.environ.get("FIRMWARE_SIM_BUILD")
    return Path(chosen) if chosen else build(PROJECT / "build")


@pytest.fixture(scope="session")
def module_path(build_directory: Path) -> Path:
    return build_directory / "libfirmware_sim.so"


@pytest.fixture(scope="session")
def loaded(module_path: Path) -> Module:
    return Module(module_path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh token directory, told to the module and to every child process through the environment."""
    for name in [
        name for name in os.environ if name.startswith("FIRMWARE_SIM_") and name != "FIRMWARE_SIM_BUILD"
    ]:
        monkeypatch.delenv(name)
    tokens = tmp_path / "tokens"
    monkeypatch.setenv("FIRMWARE_SIM_TOKENS", str(tokens))
    for name, value in TEST_SETTINGS.items():
        monkeypatch.setenv(name, value)
    return tokens


@pytest.fixture
def sim(loaded: Module, settings: Path) -> Iterator[Module]:
    """The module, initialised, with one token in slot 0."""
    with loaded.running():
        loaded.make_token()
        yield loaded


@pytest.fixture
def user(sim: Module) -> Session:
    """A read-write session with the user logged in."""
    return sim.open().login()
