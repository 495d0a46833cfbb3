"""Build the simulator once per run, and give each test a token directory of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from firmware_build import PROJECT, build

from .p11 import Module, Session

# A KDF of 2^4 instead of 2^14: these tests try hundreds of PINs, and none of them is about the KDF's cost.
TEST_SETTINGS = {"FIRMWARE_SIM_KDF_LOG2N": "4"}


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
