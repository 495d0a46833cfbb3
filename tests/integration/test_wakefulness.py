"""The kernel's own word on whether processors are kept awake, where it has one."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, until

from appliance.client import SyncClient
from appliance.wakefulness import ANY_LATENCY_US, DEVICE, DRIVER

CALLERS = 4
CAN_ASK = DRIVER.is_file() and DRIVER.read_text().strip() != "none" and os.access(DEVICE, os.R_OK | os.W_OK)


@pytest.fixture
def appliance(bench: Bench) -> Appliance:
    made = bench.appliance().start()
    made.key()
    made.account("app", "seal")
    return made


class Callers:
    """Each signs one after the other until the block ends."""

    def __init__(self, appliance: Appliance) -> None:
        self._address = appliance.address
        self._ended = threading.Event()
        self._signed = [0] * CALLERS
        self._threads = [threading.Thread(target=self._sign, args=(at,)) for at in range(CALLERS)]

    def _sign(self, at: int) -> None:
        with SyncClient(self._address, account="app", password=PASSWORD) as client:
            while not self._ended.is_set():
                client.sign("seal", os.urandom(32))
                self._signed[at] += 1

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert all(self._signed)


def latency_us() -> int:
    """What the whole machine has to keep to."""
    with DEVICE.open("rb") as device:
        return int(struct.unpack("=i", device.read(4))[0])


def awake(appliance: Appliance) -> bool:
    return bool(appliance.metric("cloudseal_processors_awake"))


def test_processors_are_awake_while_requests_come_close_together(appliance: Appliance) -> None:
    assert not awake(appliance)
    with Callers(appliance):
        if CAN_ASK:
            until("the kernel is asked", lambda: awake(appliance))
            assert latency_us() == 0
    until("the kernel is not asked any more", lambda: not awake(appliance))
    if CAN_ASK:  # another test's daemon may be at work
        until("processors may sleep", lambda: latency_us() == ANY_LATENCY_US)


def test_a_daemon_that_dies_leaves_processors_that_sleep(appliance: Appliance) -> None:
    if CAN_ASK:
        with Callers(appliance):
            until("the kernel is asked", lambda: awake(appliance))
    appliance.kill()
    if CAN_ASK:
        until("processors may sleep", lambda: latency_us() == ANY_LATENCY_US)
