"""``cloud-seal init``: what it makes, keeps and refuses."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from appliance.cli import setup
from appliance.cli.files import write_durably
from appliance.cli.main import main
from appliance.errors import BadRequest, ConfigError, Unavailable
from appliance.preflight import check
from appliance.registry import open_registry
from appliance.settings import load_settings


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def snapshot(directory: Path) -> dict[str, bytes]:
    # The registry is left out: SQLite may tidy it up when it is opened.
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "registry" not in path.name
    }


def test_it_makes_what_a_daemon_accepts(tmp_path: Path) -> None:
    steps = setup.initialise(tmp_path / "d")
    assert {step["done"] for step in steps} == {"made"}
    settings = load_settings(tmp_path / "d" / "appliance.yaml")
    assert settings.tokens == ()
    assert check(settings) == []
    assert (tmp_path / "d" / "appliance.yaml").read_text() == setup.shipped("appliance.yaml").read_text()
    shipped = {one.name for one in setup.shipped("tokens").iterdir() if one.name.endswith(".yaml")}
    assert {path.name for path in (tmp_path / "d" / "tokens").iterdir()} == shipped
    assert "softhsm2.yaml" in shipped


def test_a_demo_token_can_be_started_with(tmp_path: Path) -> None:
    setup.initialise(tmp_path, demo_token=True)
    settings = load_settings(tmp_path / "appliance.yaml")
    (profile,) = check(settings)
    assert profile.token_label == setup.DEMO_LABEL
    listed = subprocess.run(
        ["softhsm2-util", "--show-slots"],
        env={**os.environ, **(profile.environment or {})},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listed.count(setup.DEMO_LABEL) == 1
    assert "User PIN init.:   yes" in listed
    registry = open_registry(settings)
    (account,) = registry.all_accounts()
    registry.close()
    assert (account.uid, account.grants) == (os.getuid(), frozenset({"*"}))


def test_secrets_are_their_owners(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        setup.initialise(tmp_path / "d", demo_token=True)
    finally:
        os.umask(before)
    directory = tmp_path / "d"
    for name in ("secrets", "data", "softhsm2", "softhsm2/tokens"):
        assert mode_of(directory / name) == 0o700, name
    pins = list((directory / "secrets").iterdir())
    assert len(pins) == 2
    assert len({pin.read_text() for pin in pins}) == 2
    for pin in pins:
        assert mode_of(pin) == 0o600
        assert len(pin.read_text().strip()) == 20
    assert mode_of(directory / "data" / "registry.sqlite") == 0o600


def test_running_it_again_changes_nothing(tmp_path: Path) -> None:
    setup.initialise(tmp_path, demo_token=True)
    before = snapshot(tmp_path)
    steps = setup.initialise(tmp_path, demo_token=True)
    assert {step["done"] for step in steps} == {"kept"}
    assert snapshot(tmp_path) == before


def test_what_somebody_changed_is_kept(tmp_path: Path) -> None:
    setup.initialise(tmp_path, demo_token=True)
    config = tmp_path / "appliance.yaml"
    config.write_text(config.read_text().replace("log_level: info", "log_level: debug"))
    setup.initialise(tmp_path, demo_token=True)
    assert load_settings(config).log_level == "debug"


@pytest.mark.parametrize("lost", ["appliance.yaml", "tokens/softhsm2.yaml", "run"])
def test_what_is_missing_is_made_again(tmp_path: Path, lost: str) -> None:
    setup.initialise(tmp_path, demo_token=True)
    path = tmp_path / lost
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    steps = setup.initialise(tmp_path, demo_token=True)
    assert [step["path"] for step in steps if step["done"] == "made"] == [str(path)]
    check(load_settings(tmp_path / "appliance.yaml"))


def test_a_token_cut_short_in_the_making_is_made(tmp_path: Path) -> None:
    setup.initialise(tmp_path, demo_token=True)
    for path in (tmp_path / "softhsm2" / "tokens").glob("*/token.object"):
        path.unlink()
    steps = setup.initialise(tmp_path, demo_token=True)
    assert [step["what"] for step in steps if step["done"] == "made"] == ["demonstration token"]


def test_an_open_directory_for_secrets_is_refused(tmp_path: Path) -> None:
    setup.initialise(tmp_path)
    (tmp_path / "secrets").chmod(0o755)
    with pytest.raises(ConfigError, match="others can enter it"):
        setup.initialise(tmp_path)


def test_a_path_too_long_for_a_socket_is_told_before_a_daemon_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        setup.initialise(tmp_path / ("d" * 100))


def test_a_configuration_that_cannot_be_read_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "appliance.yaml").write_text("nonsense: 1\n")
    with pytest.raises(ConfigError, match="this key is unknown"):
        setup.initialise(tmp_path)
    assert (tmp_path / "appliance.yaml").read_text() == "nonsense: 1\n"


def test_health_goes_where_it_is_told(tmp_path: Path) -> None:
    setup.initialise(tmp_path, health="127.0.0.1:9999")
    assert load_settings(tmp_path / "appliance.yaml").web.health == "127.0.0.1:9999"


def test_without_softhsm2_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "SOFTHSM2_MODULES", ())
    with pytest.raises(Unavailable) as error:
        setup.initialise(tmp_path, demo_token=True)
    assert error.value.hint == "apt-get install softhsm2"


@pytest.mark.parametrize(
    "question", ["read answer", "echo 'Your name: '; read answer", "echo 'PIN: '; read shown"]
)
def test_a_program_that_asks_something_else_or_shows_the_answer_is_ended(question: str) -> None:
    command = ("sh", "-c", question)
    status, _ = setup._answer_prompts(command, {}, ["1234"], timeout_s=0.2)
    assert status != 0


def test_the_pin_is_in_no_argument_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    started = subprocess.Popen

    def watch(command: tuple[str, ...], **options: object) -> object:
        seen.append(repr((command, options.get("env"))))
        return started(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", watch)
    setup.initialise(tmp_path, demo_token=True)
    assert seen
    for pin in (tmp_path / "secrets").iterdir():
        assert all(pin.read_text().strip() not in one for one in seen)


def test_the_command_answers_in_json_and_says_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--directory", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"] == str(tmp_path / "appliance.yaml")
    assert main(["init", "--directory", str(tmp_path)]) == 0
    assert f"then cloud-seald --config {tmp_path}/appliance.yaml" in capsys.readouterr().out


def test_the_profile_of_the_demo_is_the_shipped_one_but_for_its_place(tmp_path: Path) -> None:
    setup.initialise(tmp_path, demo_token=True)
    mine = yaml.safe_load((tmp_path / "tokens" / "softhsm2.yaml").read_text())
    theirs = yaml.safe_load(setup.shipped("tokens").joinpath("softhsm2.yaml").read_text())
    assert {name for name in theirs if mine[name] != theirs[name]} <= {"module", "token_label", "environment"}


def test_devices_and_links_are_written_through_and_not_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    write_durably(link, b"one")
    assert link.is_symlink() and real.read_bytes() == b"one"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_durably(pipe, b"two")
    assert os.read(reader, 10) == b"two" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(BadRequest, match="No space left"):
        write_durably(Path("/dev/full"), b"three")
    assert Path("/dev/full").is_char_device()
