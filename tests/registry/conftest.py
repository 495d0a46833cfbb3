"""A registry of each kind, empty, for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from appliance.registry import Registry, open_registry
from appliance.registry.postgres import PostgresDatabase
from appliance.settings import Settings, Url

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


class Place:
    """Where a registry is. ``open`` opens it as one more daemon would, on connections of its own."""

    def __init__(self, at: Path | Url) -> None:
        self.at = at
        self._opened: list[Registry] = []

    @property
    def is_postgres(self) -> bool:
        return isinstance(self.at, Url)

    def open(self, *, hold: bool = False) -> Registry:
        self._opened.append(open_registry(Settings(registry=self.at), hold=hold))
        return self._opened[-1]

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        place = Place(tmp_path / "registry.sqlite")
        yield place
        place.close()
        return
    server: PostgresServer = request.getfixturevalue("server")
    schema = f"test_{next(_numbers)}"
    place = Place(server.url(schema))
    yield place
    place.close()
    with server.connect() as keeper:
        keeper.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.open()


def schema_of(registry: Registry) -> str:
    assert isinstance(registry._database, PostgresDatabase)
    return registry._database._schema


Race = Callable[[int, Callable[[Registry, int], object]], list[object]]
