"""A registry of each kind, empty, for each test; and seals in any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase

OpenRegistry = Callable[[], Registry]


@pytest.fixture(params=["sqlite"])
def open_it(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenRegistry]:
    """Opens the same registry each time it is called: one more daemon, on one more connection."""
    opened: list[Registry] = []

    def open_it() -> Registry:
        opened.append(Registry(SqliteDatabase(tmp_path / "registry.sqlite")))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture
def registry(open_it: OpenRegistry) -> Registry:
    return open_it()
