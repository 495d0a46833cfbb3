"""``cloud-seal demo``: what ``make run`` shows, and that it can be run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli.main import main

SIMULATOR = Path(__file__).parents[2] / "firmware-sim" / "build" / "libfirmware_sim.so"


def test_everything_is_shown_twice_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--directory", str(tmp_path), "--items", "300", "--json"]
    keys = ["demo-p256"]
    if SIMULATOR.exists():  # `make test` builds it
        words += ["--simulated-hsm", str(SIMULATOR)]
        keys.append("demo-sm2")
    public_keys = []
    for _ in range(2):
        capsys.readouterr()
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["daemon_exit_code"] == 0
        assert [result["key"] for result in document["results"]] == keys
        for result in document["results"]:
            assert (result["failed"], result["verified"]) == (0, 300)
            assert result["openssl_verified"] == result["openssl_sample"] == 25
        seal = document["seal"]
        assert (seal["sealed"], seal["verified"], seal["openssl_verified"]) == (300, 300, 25)
        assert seal["while_suspended"] == "conflict"
        assert seal["sealed_while_rotating"] > 300
        public_keys.append([(tmp_path / f"{key}.pem").read_text() for key in keys])
    assert public_keys[0] == public_keys[1]


def test_a_person_sees_the_commands_that_are_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--directory", str(tmp_path), "--items", "20"]) == 0
    captured = capsys.readouterr()
    for command in ("init", "key create", "stream", "seal apply", "proposal approve", "seal sign", "status"):
        assert f"$ cloud-seal {command} " in captured.err.replace("status\n", "status \n")
    assert "exit code 0" in captured.out


def test_a_daemon_that_does_not_start_is_told_with_its_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--directory", str(tmp_path), "--demo-token"]) == 0
    profile = tmp_path / "tokens" / "softhsm2.yaml"
    profile.write_text(profile.read_text() + "nonsense: 1\n")
    capsys.readouterr()
    assert main(["demo", "--directory", str(tmp_path), "--json"]) == 8
    error = json.loads(capsys.readouterr().err)
    assert "ended with 13" in error["detail"]
    assert "daemon.log" in error["hint"]
