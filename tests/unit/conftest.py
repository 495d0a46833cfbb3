"""What several unit tests need: an event loop whose time is the test's own."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest


class _Selector(selectors.DefaultSelector):
    """Never waits: where nothing is ready, time jumps to the next timer instead."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("everything waits, and for nothing: a deadlock")
        if not events and timeout:
            self.loop.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Timers fire at once, in order; a second of waiting takes no time. For one process and no threads."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 1_000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine in virtual time; tasks that it leaves behind, and errors nobody saw, fail the test."""

    def runner(coroutine: Coroutine[Any, Any, Any]) -> Any:
        loop = VirtualTimeLoop()
        unseen: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: unseen.append(context))
        try:
            result = loop.run_until_complete(coroutine)
            for _ in range(5):  # transports that were closed say so in the next turns
                loop.run_until_complete(asyncio.sleep(0))
            left = asyncio.all_tasks(loop)
            assert not left, f"tasks left behind: {left}"
            loop.run_until_complete(loop.shutdown_asyncgens())
            assert not unseen, f"errors that nobody saw: {unseen}"
            return result
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    return runner
