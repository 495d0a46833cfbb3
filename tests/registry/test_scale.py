"""Very many seals: look-ups go by an index, a start does not read them, statistics do not read their rows.

The times are printed, not asserted: they are the machine's. What is asserted are the plans that both databases make.
Where tests run in several processes (``make test``) nothing is printed; ``pytest tests/registry/test_scale.py`` prints.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer
from registry.conftest import Place
from registry.keys import ACCOUNT, P256, make_key
from registry.seals import ORGANISATION, apply, making, seal, step

from appliance.holdings import Holdings
from appliance.lifecycle import Act, Kind, Seal, State
from appliance.registry import Registry, SealFilter
from appliance.registry.seals import EXPIRING, UNCOLLECTED

FEW, MANY = 50_000, 1_000_000
OF_ONE_ORGANISATION = 5
"""What each new company is given."""
REGIONS = 100
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
COLUMNS = (
    *(field.name for field in fields(Seal)),
    "holds_place",
    "idle_from",
    "expires_at",
    "uncollected_from",
    "retain_until",
)


def organisation(number: int) -> str:
    return f"91330100MA{number:08}"


def seal_rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Mostly active ones, some in every other state."""
    kinds = (Kind.STATUTORY, Kind.SPECIAL, Kind.SPECIAL, Kind.SPECIAL, Kind.OFFICE)
    purposes = ("", "contract", "finance", "invoice", "legal")
    rare = tuple(State)
    for i in range(count):
        state = State.ACTIVE if i % 20 else rare[i // 20 % len(rare)]
        at = f"2026-{i % 12 + 1:02}-{i % 28 + 1:02}T00:00:00.000+00:00"
        is_made = state not in (State.APPLIED, State.REFUSED, State.REVIEWED)
        region = f"33{i // OF_ONE_ORGANISATION % REGIONS:04}"
        yield (
            f"s{i:08}",
            f"{region}{i:08}" if is_made else "",
            organisation(i // OF_ONE_ORGANISATION),
            kinds[i % 5].value,
            purposes[i % 5],
            1,
            f"杭州第{i // OF_ONE_ORGANISATION}号有限公司{purposes[i % 5]}专用章",
            region,
            "",
            f"custodian-{i // 50}",
            "clerk",
            state.value,
            5,
            1 if is_made else 0,
            f"key-{i:08}" if is_made else None,
            at if is_made else None,
            at.replace("2026", "2028") if is_made else None,
            at,
            at if is_made else None,
            at if is_made else None,
            None,
            at if is_made else None,
            None,
            at if state is State.CANCELLED else None,
            None,
            None,
            None,
            state is not State.CANCELLED and state is not State.REFUSED,
            at if state is State.ACTIVE else None,
            at.replace("2026", "2028") if state in EXPIRING else None,
            at if state in UNCOLLECTED else None,
            at.replace("2026", "2031") if state is State.CANCELLED else None,
        )


def tables(count: int) -> Iterator[tuple[str, tuple[str, ...], Iterable[tuple[Any, ...]]]]:
    """Table, columns, rows."""
    at, every = "2026-01-01T00:00:00.000+00:00", range(count)
    organisations = range((count + OF_ONE_ORGANISATION - 1) // OF_ONE_ORGANISATION)
    yield (
        "organisation",
        ("code", "name", "region"),
        ((organisation(i), f"杭州第{i}号有限公司", f"33{i % REGIONS:04}") for i in organisations),
    )
    yield "seal", COLUMNS, seal_rows(count)
    yield (
        "key",
        ("name", "key_id", "token", "algorithm", "point", "state", "purpose", "created_at"),
        (
            (f"key-{i:08}", i.to_bytes(16), "token", P256.algorithm.label, P256.point, "usable", "seal", at)
            for i in every
        ),
    )
    yield (
        "event",
        ("seal_id", "at", "act", "source", "target", "officer", "approver", "detail"),
        (
            (f"s{i:08}", at, act, None, "active", "zhang", None, "{}")
            for i in every
            for act in ("apply", "make")
        ),
    )
    yield (
        "protection",
        ("seal_id", "password_hash", "set_by", "set_at", "failures", "locked", "generation"),
        ((f"s{i:08}", "$argon2id$" + "x" * 80, "wang", at, 0, False, 1) for i in every),
    )
    yield (
        "message",
        (
            *(
                "id",
                "kind",
                "seal_id",
                "region",
                "body",
                "created_at",
                "due_at",
                "attempts",
                "next_attempt_at",
            ),
            *("delivered_at", "receipt", "delay_ms"),
        ),
        (
            (
                f"m{i:08}",
                "made",
                f"s{i:08}",
                f"33{i % REGIONS:04}",
                "{}",
                at,
                at,
                1,
                at,
                *((at, "r", 5) if i % 100 else (None,) * 3),
            )
            for i in every
        ),
    )
    yield (
        "use_of_seal",
        ("seal_id", "day", "account", "uses"),
        ((f"s{i:08}", day, f"account-{i % 40}", 3) for i in range(0, count, 2) for day in DAYS),
    )
    yield (
        "use_of_day",
        ("day", "account", "uses"),
        ((day, f"account-{i}", 1_000_000) for day in DAYS for i in range(40)),
    )


def fill(place: Place, count: int) -> None:
    """Past the registry, as a backup that is read in."""
    place.open().close()
    if isinstance(place.at, Path):
        db = sqlite3.connect(place.at)
        db.execute("PRAGMA synchronous = OFF")
        for table, columns, rows in tables(count):
            marks = ", ".join("?" * len(columns))
            db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
        db.commit()
        db.close()
        return
    registry = place.open()
    with registry._database._connect() as db:  # type: ignore[attr-defined]
        assert isinstance(db, psycopg.Connection)
        db.execute("SET statement_timeout = 0")
        for table, columns, rows in tables(count):
            with db.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
    with registry._database._connect() as db:  # type: ignore[attr-defined]
        db.execute("SET statement_timeout = 0")
        db.execute("VACUUM ANALYZE")  # a server does so by itself after a while


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, count), id=f"{kind}-{count:,}", marks=marks)
        for count, marks in ((FEW, ()), (MANY, (pytest.mark.gauntlet, pytest.mark.timeout(3_600))))
        for kind in ("sqlite", "postgresql")
    ],
)
def full(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Place, int]]:
    kind, count = request.param
    if kind == "sqlite":
        directory = tmp_path_factory.mktemp("scale")
        place = Place(directory / "registry.sqlite")
        fill(place, count)
        yield place, count
        place.close()
        for file in directory.iterdir():
            file.unlink()
        return
    server: PostgresServer = request.getfixturevalue("server")
    place = Place(server.url("scale"))
    fill(place, count)
    yield place, count
    place.close()
    with server.connect() as keeper:
        keeper.execute("DROP SCHEMA scale CASCADE")


class Recorded:
    """What is asked of a registry's database, and how many rows came back."""

    def __init__(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[tuple[str, tuple[Any, ...]]] = []
        self.rows = 0
        self._ask = registry._database.rows
        monkeypatch.setattr(registry._database, "rows", self._record)

    def _record(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        found = self._ask(query, *values)
        self.queries.append((query, values))
        self.rows += len(found)
        return found

    def plans(self, place: Place) -> list[str]:
        """How the database goes about each."""
        words = "EXPLAIN" if place.is_postgres else "EXPLAIN QUERY PLAN"
        return [
            "\n".join(str(row) for row in self._ask(f"{words} {query}", *values))
            for query, values in self.queries
        ]


def reads_a_whole_table(plan: str) -> bool:
    """Whether it goes through all rows of one of the large tables, and not through an index alone."""
    large = "seal|key|event|organisation|use_of_seal|protection|generation|message"
    return (
        re.search(rf"Seq Scan on ({large})\b", plan) is not None
        or re.search(rf"SCAN ({large})\b(?! USING (COVERING )?INDEX)", plan) is not None
    )


def lookups(registry: Registry, count: int) -> dict[str, Callable[[int], Any]]:
    """Name -> the look-up for a seal's number."""
    region = f"33{count // 2 % REGIONS:04}"
    return {
        "seal by id": lambda i: registry.seals.seal(f"s{i:08}"),
        "seal by code": lambda i: registry.seals.seal_by_code(
            f"33{i // OF_ONE_ORGANISATION % REGIONS:04}{i:08}"
        ),
        "an organisation's seals": lambda i: registry.seals.seals(
            SealFilter(organisation=organisation(i // OF_ONE_ORGANISATION))
        ),
        "organisation": lambda i: registry.seals.organisation(organisation(i // OF_ONE_ORGANISATION)),
        "its key": lambda i: registry.key(f"key-{i:08}"),
        "its events": lambda i: registry.seals.events(f"s{i:08}"),
        "its protection password": lambda i: registry.custody.password(f"s{i:08}"),
        "its grant": lambda i: registry.grants.grant("a", f"s{i:08}"),
        "a page of 100": lambda i: registry.seals.seals(SealFilter(), after=f"s{i:08}"),
        "a page by rare state": lambda i: registry.seals.seals(
            SealFilter(state=State.SUSPENDED), after=f"s{i:08}"
        ),
        "a page by region": lambda i: registry.seals.seals(SealFilter(region=region), after=f"s{i:08}"),
        "a page by custodian": lambda i: registry.seals.seals(SealFilter(custodian=f"custodian-{i // 50}")),
        "due to expire": lambda i: registry.seals.due_to_expire("2028-01-02T00:00:00.000+00:00"),
        "due to sleep": lambda i: registry.seals.due_to_sleep("2026-01-02T00:00:00.000+00:00"),
        "due to be abandoned": lambda i: registry.seals.due_to_abandon("2026-02-01T00:00:00.000+00:00"),
        "messages due": lambda i: registry.messages.due("2026-02-01T00:00:00.000+00:00"),
        "one seal's uses by day": lambda i: registry.usage.uses("day", DAYS[0], DAYS[-1], seal_id=f"s{i:08}"),
        "an organisation's count": lambda i: registry.usage.seals_by(
            ["state"], organisation=organisation(i // OF_ONE_ORGANISATION)
        ),
    }


STATISTICS: dict[str, Callable[[Registry], Any]] = {
    "seals by state": lambda registry: registry.usage.seals_by(["state"]),
    "seals by region, kind and state": lambda registry: registry.usage.seals_by(
        ["region", "kind", "state"], limit=10_000
    ),
    "seals by organisation, 1,000": lambda registry: registry.usage.seals_by(["organisation", "state"]),
    "uses by day": lambda registry: registry.usage.uses("day", DAYS[0], DAYS[-1]),
    "uses by account": lambda registry: registry.usage.uses("account", DAYS[0], DAYS[-1]),
    "uses by seal, 1,000": lambda registry: registry.usage.uses("seal", DAYS[0], DAYS[-1]),
    "filing delays": lambda registry: registry.usage.filing_delays("2026", "2027"),
}


def test_lookups_go_by_an_index(full: tuple[Place, int], monkeypatch: pytest.MonkeyPatch) -> None:
    place, count = full
    registry = place.open()
    recorded = Recorded(registry, monkeypatch)
    for name, look in lookups(registry, count).items():
        recorded.queries.clear()
        look(count // 2 + 1)
        plans = recorded.plans(place)
        assert plans and not any(reads_a_whole_table(plan) for plan in plans), (name, plans)
        assert place.is_postgres or all("SEARCH" in plan for plan in plans), (name, plans)


def test_statistics_read_no_whole_rows(full: tuple[Place, int], monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = full
    registry = place.open()
    recorded = Recorded(registry, monkeypatch)
    for name, count in STATISTICS.items():
        recorded.queries.clear()
        count(registry)
        for plan in recorded.plans(place):
            assert not reads_a_whole_table(plan), (name, plan)


def test_a_start_does_not_read_them(full: tuple[Place, int], monkeypatch: pytest.MonkeyPatch) -> None:
    place, _ = full
    place.open().set_key_disabled("key-00000007", True)
    registry = place.open()
    recorded = Recorded(registry, monkeypatch)
    holdings = Holdings(registry)
    registry.unfinished_keys()
    registry.people.approved_proposals()
    assert holdings.keys == {}
    assert recorded.rows == 0, "there is nothing but seals in it"
    plans = recorded.plans(place)
    assert not any(reads_a_whole_table(plan) for plan in plans), plans


def test_what_it_takes(full: tuple[Place, int], capsys: pytest.CaptureFixture[str]) -> None:
    """Prints; asserts only that what was asked for was found."""
    place, count = full
    registry = place.open()
    lines = []

    def measure(name: str, act: Callable[[int], Any], times: int) -> None:
        taken = []
        for i in range(times):
            number = (i * 7_919 + 1) % count
            number += number % 20 == 0  # those may have no code
            began = time.perf_counter()
            found = act(number)
            taken.append(time.perf_counter() - began)
            assert found is not None or name == "its grant"
        taken.sort()
        lines.append(f"{name:32} {taken[len(taken) // 2] * 1e3:9.3f} {taken[-len(taken) // 100] * 1e3:9.3f}")

    for name, look in lookups(registry, count).items():
        measure(name, look, 200)
    for name, statistic in STATISTICS.items():
        measure(name, lambda i, statistic=statistic: statistic(registry), 3)
    registry.create_account(ACCOUNT)
    numbers = itertools.count(1)

    def use_a_thousand(i: int) -> object:
        at = f"2026-04-01T00:00:{next(numbers):02}.000+00:00"
        used = [(f"s{(i + j * 31) % count:08}", "a", "2026-04-01", 1, at) for j in range(1_000)]
        registry.usage.add(used)
        return used

    def live(i: int) -> Seal:
        number = next(numbers)
        one = apply(registry, seal(f"t{number}", number=number))
        one = registry.seals.advance(step(one, Act.REVIEW))
        return registry.seals.advance(making(one, registry.seals.next_code(ORGANISATION.region)))

    def open_and_hold(i: int) -> Holdings:
        return Holdings(place.open())

    measure("1,000 seals used, counted", use_a_thousand, 5)
    measure("applied, reviewed, made", live, 20)
    measure("a start", open_and_hold, 5)
    make_key(registry)
    with capsys.disabled():
        print(
            f"\n{place.at if place.is_postgres else 'SQLite'}: {count:,} seals, ms: median, 99th of a hundred"
        )
        print("\n".join(lines))
