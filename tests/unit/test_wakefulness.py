"""When the kernel is asked to keep processors awake, and when it is not asked any more."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec

import pytest

from appliance import wakefulness
from appliance.daemon import signer_settings
from appliance.fronts import Place
from appliance.settings import SignerSettings
from appliance.wakefulness import ANY_LATENCY_US, BUSY_PER_S, SPIN_US, Wakefulness

P = ParamSpec("P")

PATIENCE_S = 10.0


class Machine:
    """A device that remembers what was written to it, and slices that are given at a rate."""

    def __init__(self, folder: Path, driver: str | None = "haltpoll") -> None:
        self.device, self.driver = folder / "cpu_dma_latency", folder / "current_driver"
        self.device.touch()
        if driver is not None:
            self.driver.write_text(f"{driver}\n")
        self.per_s = 0.0
        self.changes: list[bool] = []

    @property
    def asked(self) -> list[int]:
        return [number for (number,) in struct.iter_unpack("=i", self.device.read_bytes())]

    def wakefulness(self, latency_us: int | None = 0, busy_per_s: float = BUSY_PER_S) -> Wakefulness:
        given, looked_at = 0.0, asyncio.get_running_loop().time()

        def slices_given() -> int:
            nonlocal given, looked_at
            before, looked_at = looked_at, asyncio.get_running_loop().time()
            given += (looked_at - before) * self.per_s
            return int(given)

        return Wakefulness(
            latency_us, slices_given, self.changes.append, self.device, self.driver, busy_per_s
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def descriptors(path: Path) -> list[int]:
    return [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == path]


def in_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def running(one: Wakefulness) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


@in_loop
async def test_it_asks_while_slices_come_close_together(machine: Machine) -> None:
    async with running(machine.wakefulness(latency_us=2)):
        machine.per_s = 4 * BUSY_PER_S
        await until(lambda: machine.changes == [True])
        assert machine.asked == [2]
        await asyncio.sleep(3 * wakefulness.TICK_S)
        assert machine.asked == [2], "once is enough"
        machine.per_s = 0
        await until(lambda: machine.changes == [True, False])
        assert machine.asked == [2, ANY_LATENCY_US]
        machine.per_s = 4 * BUSY_PER_S
        await until(lambda: machine.changes == [True, False, True])
    assert machine.asked == [2, ANY_LATENCY_US, 2, ANY_LATENCY_US], "who ends takes it back"


@in_loop
async def test_few_slices_are_not_worth_it(machine: Machine) -> None:
    machine.per_s = BUSY_PER_S / 4
    async with running(machine.wakefulness()):
        await asyncio.sleep(10 * wakefulness.TICK_S)
    assert (machine.asked, machine.changes) == ([], [])


@in_loop
async def test_a_pause_is_no_rest(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakefulness, "REST_S", PATIENCE_S)
    async with running(machine.wakefulness()):
        machine.per_s = 4 * BUSY_PER_S
        await until(lambda: bool(machine.changes))
        machine.per_s = 0
        await asyncio.sleep(4 * wakefulness.TICK_S)
        assert machine.asked == [0]


@in_loop
async def test_a_look_that_comes_late_counts_for_as_long(machine: Machine) -> None:
    """What a loop that was held for a second has given then is no second's worth in a tick."""
    machine.per_s = BUSY_PER_S / 2
    async with running(machine.wakefulness()):
        await asyncio.sleep(2 * wakefulness.TICK_S)
        for _ in range(3):
            before = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < before + 5 * wakefulness.TICK_S:
                pass
            await asyncio.sleep(wakefulness.TICK_S)
    assert machine.asked == []


@pytest.mark.parametrize("driver", [None, "none", ""])
@in_loop
async def test_without_a_driver_there_is_nobody_to_ask(
    tmp_path: Path, driver: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, driver)
    with caplog.at_level(logging.INFO):
        one = machine.wakefulness()
    assert not one.can_ask
    assert "no driver" in caplog.text
    await one.run()  # which ends at once
    assert machine.asked == []


@in_loop
async def test_without_the_device_there_is_nobody_to_ask(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.device.unlink()
    with caplog.at_level(logging.INFO):
        assert not machine.wakefulness().can_ask
    assert f"{machine.device}: No such file" in caplog.text


@in_loop
async def test_nobody_is_asked_where_the_settings_say_so(machine: Machine) -> None:
    assert not machine.wakefulness(latency_us=None).can_ask


@in_loop
async def test_a_device_that_fails_is_left_alone(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.device = Path("/dev/full")
    machine.per_s = 4 * BUSY_PER_S
    one = machine.wakefulness()
    async with running(one) as task:
        async with asyncio.timeout(PATIENCE_S):
            await task
    assert not one.can_ask
    assert machine.changes == [False]
    assert "not kept awake any more: No space left" in caplog.text


@in_loop
async def test_children_do_not_get_the_device(machine: Machine) -> None:
    """A worker that outlives its front would keep processors awake."""
    one = machine.wakefulness()
    numbers = descriptors(machine.device)
    assert one.can_ask
    assert [os.get_inheritable(number) for number in numbers] == [False]
    async with running(one):
        await asyncio.sleep(0)
    assert descriptors(machine.device) == []


@in_loop
async def test_each_of_several_fronts_goes_by_its_share(machine: Machine) -> None:
    machine.per_s = BUSY_PER_S
    async with running(machine.wakefulness(busy_per_s=BUSY_PER_S / 2)):
        await until(lambda: machine.changes == [True])


@pytest.mark.parametrize(
    ("latency_us", "spin_us", "can_ask", "expected"),
    [
        (0, None, True, 0),
        (0, None, False, SPIN_US),
        (0, 70, True, 70),
        (0, 70, False, 70),
        (0, 0, False, 0),
        (None, None, False, 0),
        (None, 70, False, 70),
    ],
)
def test_who_cannot_ask_looks_out(
    latency_us: int | None, spin_us: int | None, can_ask: bool, expected: int
) -> None:
    settings = SignerSettings(cpu_latency_us=latency_us, spin_us=spin_us, processors=(3, 1))
    found = signer_settings(settings, Place(1, 2), can_ask=can_ask)
    assert (found.spin_us, found.processors) == (expected, (1,))
