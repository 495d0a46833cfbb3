"""Protection passwords with real threads, and with a process that is killed: no answer that is not on record."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from registry import seals

from appliance.errors import Busy, Denied
from appliance.lifecycle import Act, State
from appliance.protection import Protection
from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase
from appliance.settings import PasswordSettings

SETTINGS = PasswordSettings(argon2_memory_kib=64, argon2_passes=1, max_failures=100)
RIGHT = "Correct-horse-7"


async def nobody(kind: str, name: str) -> None:
    """There are no other fronts."""


async def activate(registry: Registry, protection: Protection) -> None:
    one = seals.bring_to(registry, seals.apply(registry, seals.seal()), State.FILED)
    first = await protection.set_first(one, RIGHT, "wang")
    registry.seals.advance(seals.step(one, Act.ACTIVATE, password=first))


def test_a_crowd_in_real_threads_gets_one_guess(tmp_path: Path) -> None:
    registry = Registry(SqliteDatabase(tmp_path / "registry.sqlite"))

    async def test() -> None:
        with ThreadPoolExecutor(4) as threads:
            now = datetime.now(UTC)
            protection = Protection(registry.custody, SETTINGS, threads, time.monotonic, lambda: now, nobody)
            await activate(registry, protection)
            crowd = [protection.unlock(f"a{i}", "s1", f"Wrong-donkey-{i}") for i in range(40)]
            told = await asyncio.gather(*crowd, return_exceptions=True)
            assert sorted(type(one).__name__ for one in told) == ["Busy"] * 39 + ["Denied"]
            record = registry.custody.password("s1")
            assert record is not None and record.failures == 1
            assert not any(protection.is_unlocked(f"a{i}", "s1") for i in range(40))

    try:
        asyncio.run(test())
    finally:
        registry.close()


GUESSER = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from appliance.errors import Denied
from appliance.protection import Protection
from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase
from appliance.settings import PasswordSettings

settings = PasswordSettings(argon2_memory_kib=64, argon2_passes=1, max_failures=100)
registry = Registry(SqliteDatabase(Path(sys.argv[1])))

async def guess():
    now, at = datetime.now(UTC), [0.0]
    with ThreadPoolExecutor(2) as threads:
        protection = Protection(registry.custody, settings, threads, lambda: at[0], lambda: now, None)
        for i in range(100):
            at[0] += 1_000  # whoever guesses has all the time in the world
            try:
                await protection.unlock("a", "s1", f"Wrong-donkey-{i}")
            except Denied:
                print("wrong", flush=True)

asyncio.run(guess())
"""


@pytest.mark.parametrize("answers", [1, 2, 7])
def test_a_killed_process_has_counted_what_it_answered(tmp_path: Path, answers: int) -> None:
    path = tmp_path / "registry.sqlite"
    registry = Registry(SqliteDatabase(path))
    with ThreadPoolExecutor(1) as threads:

        async def prepare() -> None:
            now = datetime.now(UTC)
            await activate(
                registry,
                Protection(registry.custody, SETTINGS, threads, time.monotonic, lambda: now, nobody),
            )

        asyncio.run(prepare())
    registry.close()
    guesser = subprocess.Popen(
        [sys.executable, "-I", "-c", GUESSER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert guesser.stdout is not None
    with guesser.stdout:
        for _ in range(answers):
            assert guesser.stdout.readline() == "wrong\n"
        guesser.kill()
        answered = answers + guesser.stdout.read().count("wrong\n")
    guesser.wait(10)
    registry = Registry(SqliteDatabase(path))
    record = registry.custody.password("s1")
    registry.close()
    assert record is not None and answered <= record.failures <= answered + 1


def test_is_unlocked_costs_next_to_nothing(tmp_path: Path) -> None:
    registry = Registry(SqliteDatabase(tmp_path / "registry.sqlite"))

    async def test() -> None:
        with ThreadPoolExecutor(1) as threads:
            now = datetime.now(UTC)
            protection = Protection(registry.custody, SETTINGS, threads, time.monotonic, lambda: now, nobody)
            await activate(registry, protection)
            await protection.unlock("a", "s1", RIGHT)
            with pytest.raises((Denied, Busy)):
                await protection.unlock("b", "s1", RIGHT + "x")
            began_at = time.thread_time()  # whatever else this machine does
            assert all(protection.is_unlocked("a", "s1") for _ in range(100_000))
            assert time.thread_time() - began_at < 1, "some 0.2 µs each here; 10 µs would be a defect"

    try:
        asyncio.run(test())
    finally:
        registry.close()
