"""A registry with a seal in it that can be used, and what loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase

Run = Callable[[Coroutine[Any, Any, Any]], None]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(SqliteDatabase(tmp_path / "registry.sqlite"))
    yield made
    made.close()


@pytest.fixture
def run() -> Run:
    """Run a test's coroutine; a task that is left over is an error."""

    def runner(coroutine: Coroutine[Any, Any, Any]) -> None:
        async def whole() -> None:
            await coroutine
            left = {
                one for one in asyncio.all_tasks() if one is not asyncio.current_task() and not one.done()
            }
            assert not left, f"tasks left over: {left}"

        asyncio.run(whole())

    return runner
