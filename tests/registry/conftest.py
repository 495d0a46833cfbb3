"""A registry of each kind, empty, for each test."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

from appliance.errors import ApplianceError
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


def race(
    place: Place, count: int, act: Callable[[Registry, int], Any]
) -> tuple[list[Any], list[ApplianceError]]:
    """All at once, each on a registry of its own; what those who got through have, and what the others were told."""
    registries = [place.open() for _ in range(count)]
    barrier = threading.Barrier(count)
    done: list[Any] = []
    refused: list[ApplianceError] = []

    def run(registry: Registry, number: int) -> None:
        barrier.wait()
        try:
            done.append(act(registry, number))
        except ApplianceError as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(registries, range(count), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == count, "no thread died"
    return done, refused


def as_keeper(place: Place, statement: str) -> None:
    """What somebody does who has the database itself."""
    if isinstance(place.at, Path):
        db = sqlite3.connect(place.at, isolation_level=None)
        try:
            db.execute(statement)
        finally:
            db.close()
        return
    registry = place.open()
    with registry._database._connect() as connection:  # type: ignore[attr-defined]
        connection.execute(statement)
