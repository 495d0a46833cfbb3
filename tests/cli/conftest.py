"""A daemon of the tests' own, with a SoftHSM2 token, shared by the session."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.demo import running_daemon
from appliance.cli.main import main
from appliance.cli.setup import initialise
from appliance.cli.show import Screen
from appliance.settings import Settings, load_settings


@dataclass(frozen=True)
class Appliance:
    """A running appliance."""

    config: Path
    settings: Settings


@dataclass(frozen=True)
class Result:
    """What one command did."""

    exit_code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    directory = tmp_path_factory.mktemp("a")  # short: a socket's path has 107 bytes
    initialise(directory, demo_token=True, health="127.0.0.1:0")
    config = directory / "appliance.yaml"
    settings = load_settings(config)
    with running_daemon(config, settings, Screen(as_json=True)) as daemon:
        found = Appliance(config, settings)
        assert (
            main(
                ["--json", "--config", str(config), "key", "create", "k", "--algorithm", "ecdsa-p256-sha256"]
            )
            == 0
        )
        yield found
    assert daemon.returncode == 0, (directory / "daemon.log").read_text()


@pytest.fixture
def cli(appliance: Appliance, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command against the daemon, in this process, with ``--json``."""

    def run(*words: object, as_json: bool = True) -> Result:
        capsys.readouterr()
        arguments = [str(word) for word in words] + ["--config", str(appliance.config)]
        exit_code = main([*arguments, "--json"] if as_json else arguments)
        captured = capsys.readouterr()
        return Result(exit_code, captured.out, captured.err)

    return run
