"""Faults inside the module, by a shim around SoftHSM2: while a key is made, while it signs, when it logs in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from appliance_fixture import (
    PASSWORD,
    PIN,
    Answer,
    Appliance,
    Bench,
    SoftToken,
    digests,
    public_key,
    until,
    verifies,
)

from appliance import wire
from appliance.client import SyncClient
from appliance.errors import ApplianceError


@pytest.fixture(scope="session")
def shim_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler, "no C compiler (apt install gcc)"
    module = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).parent / "shim.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", module, source, "-ldl"], check=True
    )
    return module


@dataclass
class Shimmed:
    """A daemon whose module is the shim."""

    appliance: Appliance
    token: SoftToken
    directory: Path

    def stop_at(self, moment: str) -> None:
        (self.directory / f"stop-{moment}").touch()

    def go_on(self) -> None:
        for name in ("stop-before", "stop-after"):
            (self.directory / name).unlink(missing_ok=True)

    def reached(self, moment: str) -> bool:
        return (self.directory / f"reached-{moment}").exists()

    @property
    def logins(self) -> int:
        file = self.directory / "logins"
        return file.stat().st_size if file.exists() else 0


@pytest.fixture
def shimmed(bench: Bench, shim_module: Path, tmp_path: Path) -> Shimmed:
    token = bench.token()
    environment = {
        "SOFTHSM2_CONF": str(token.config), "SHIM_MODULE": token.module, "SHIM_DIR": str(tmp_path)
    }  # fmt: skip
    profile = token.profile(module=str(shim_module), environment=environment)
    return Shimmed(bench.appliance(profile), token, tmp_path)


class Call(threading.Thread):
    """An officer's call that makes a key, in the background; it may end with the daemon."""

    def __init__(self, appliance: Appliance) -> None:
        super().__init__()
        self.appliance = appliance
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        body = {"name": "seal", "algorithm": "ecdsa-p256-sha256"}
        with contextlib.suppress(OSError, EOFError, Exception):
            self.answer = self.appliance.officer("POST", "/v1/keys", body)


def signs(appliance: Appliance) -> bool:
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        key = public_key(client.status(["seal"])[0].spki)
        return verifies(key, digests(1), client.sign("seal", digests(1)))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_daemon_killed_while_the_token_makes_a_key(shimmed: Shimmed, moment: str) -> None:
    """Between the registry's row and the pair, and between the pair and the registry's second word."""
    appliance = shimmed.appliance.start()
    appliance.account("app", "*")
    shimmed.stop_at(moment)
    call = Call(appliance)
    until("the token is at that moment", lambda: shimmed.reached(moment))
    appliance.kill()
    call.join()
    assert call.answer is None
    in_token = shimmed.token.private_key_labels()
    assert in_token == ([] if moment == "before" else ["seal"])

    shimmed.go_on()
    appliance.start()
    if moment == "after":
        until("the key is found", lambda: appliance.officer("GET", "/v1/keys/seal").status == 200)
    else:
        body = {"name": "seal", "algorithm": "ecdsa-p256-sha256"}
        until("the name is free", lambda: appliance.officer("POST", "/v1/keys", body).status == 201)
    assert signs(appliance)
    assert shimmed.token.private_key_labels() == ["seal"], "half a key is left"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_while_the_token_makes_a_key(shimmed: Shimmed, moment: str) -> None:
    """The daemon lives: it asks the token, once it is back, what became of the key."""
    appliance = shimmed.appliance.start()
    appliance.account("app", "*")
    shimmed.stop_at(moment)
    call = Call(appliance)
    until("the token is at that moment", lambda: shimmed.reached(moment))
    for pid in appliance.worker_pids():
        os.kill(pid, signal.SIGKILL)
    call.join()
    assert call.answer is not None and call.answer.status == 503, call.answer
    shimmed.go_on()
    if moment == "after":
        until("the key is found", lambda: appliance.officer("GET", "/v1/keys/seal").status == 200)
    else:
        body = {"name": "seal", "algorithm": "ecdsa-p256-sha256"}
        until("the name is free", lambda: appliance.officer("POST", "/v1/keys", body).status == 201)
    assert signs(appliance)
    assert shimmed.token.private_key_labels() == ["seal"], "half a key is left"


def test_sigterm_while_the_token_makes_a_key(shimmed: Shimmed) -> None:
    appliance = shimmed.appliance.start()
    shimmed.stop_at("after")
    call = Call(appliance)
    until("the token is at that moment", lambda: shimmed.reached("after"))
    appliance.stop(20)
    call.join()
    shimmed.go_on()
    appliance.start()
    until("the key is found", lambda: appliance.officer("GET", "/v1/keys/seal").status == 200)
    assert shimmed.token.private_key_labels() == ["seal"]


def test_one_wrong_pin_reaches_the_token_once(shimmed: Shimmed) -> None:
    """Counted where it matters, in the module: three wrong ones lock many tokens for good."""
    appliance = shimmed.appliance
    appliance.profile_file.write_text(json.dumps({**appliance.profile, "workers": 4}))
    appliance.set_pin("13131313")
    appliance.start("pin_refused")
    until("nothing starts any more", lambda: not appliance.worker_pids())
    assert shimmed.logins == 1
    appliance.signal(signal.SIGHUP)
    until("it is tried once more", lambda: shimmed.logins == 2 and not appliance.worker_pids())
    appliance.wait_state("pin_refused")
    appliance.set_pin(PIN)
    appliance.signal(signal.SIGHUP)
    until("all four are up", lambda: len(appliance.token_status()["workers"]) == 4)
    assert shimmed.logins == 6


def test_an_item_that_kills_workers_fails_alone(shimmed: Shimmed) -> None:
    appliance = shimmed.appliance.start()
    appliance.account("app", "*")
    key = appliance.key("seal")
    block = bytearray(digests(200))
    block[32 * 77 : 32 * 77 + 4] = b"KILL"
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=100) as client:
        answer = client.sign_batch("seal", wire.digests(bytes(block)))
        statuses = bytes(answer.statuses)
        assert answer.failed == 1 and statuses[77] == wire.ItemStatus.FAILED
        assert statuses.count(wire.ItemStatus.SIGNED) == 199
        signatures = bytes(answer.signatures)
        assert signatures[64 * 77 : 64 * 78] == bytes(64)
        for at in (0, 76, 78, 199):
            digest = bytes(block[32 * at : 32 * at + 32])
            assert verifies(key, digest, signatures[64 * at : 64 * at + 64])
        assert verifies(key, digests(1), client.sign("seal", digests(1)))


def test_an_item_that_the_token_is_lost_on_fails_alone(shimmed: Shimmed) -> None:
    appliance = shimmed.appliance.start()
    appliance.account("app", "*")
    appliance.key("seal")
    block = bytearray(digests(64))
    block[32 * 10 : 32 * 10 + 4] = b"LOST"
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=100) as client:
        answer = client.sign_batch("seal", wire.digests(bytes(block)))
        assert answer.failed == 1 and answer.statuses[10] == wire.ItemStatus.FAILED


def test_others_are_served_while_an_item_kills_workers(shimmed: Shimmed) -> None:
    appliance = shimmed.appliance.start()
    appliance.account("app", "*")
    key = appliance.key("seal")
    with (
        SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=100) as killer,
        SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=100) as other,
    ):
        block = bytearray(digests(16))
        block[:4] = b"KILL"
        done = threading.Event()

        def kill() -> None:
            with contextlib.suppress(ApplianceError):
                killer.sign_batch("seal", wire.digests(bytes(block)))
            done.set()

        thread = threading.Thread(target=kill)
        thread.start()
        served = 0
        while not done.is_set() or not served:
            assert verifies(key, digests(1), other.sign("seal", digests(1)))
            served += 1
        thread.join()
