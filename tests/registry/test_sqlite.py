"""The registry on real files: row counts, conflicts, migrations, two processes, and what a crash leaves."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from registry.keys import ACCOUNT, P256, make_key

from appliance.errors import (
    ApplianceError,
    BadRequest,
    ConfigError,
    Conflict,
    StateUnknown,
    Unavailable,
)
from appliance.policy import Account
from appliance.registry import Registry
from appliance.registry import sqlite as sqlite_module
from appliance.registry.sqlite import MIGRATIONS, SqliteDatabase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    opened = open_at(path)
    yield opened
    opened.close()


def open_at(path: Path) -> Registry:
    return Registry(SqliteDatabase(path))


def writer(registry: Registry) -> sqlite3.Connection:
    assert isinstance(registry._database, SqliteDatabase)
    return registry._database._writer


# Files ------------------------------------------------------------------------------------------------------


def test_only_its_owner_may_read_it(registry: Registry, path: Path) -> None:
    make_key(registry)
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"registry.sqlite", "registry.sqlite-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_returned_is_on_disk(registry: Registry) -> None:
    (mode,) = writer(registry).execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = writer(registry).execute("PRAGMA synchronous").fetchone()
    (foreign_keys,) = writer(registry).execute("PRAGMA foreign_keys").fetchone()
    assert (mode, synchronous, foreign_keys) == ("wal", 2, 1)


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says", b"SQLite format 3\0" + b"\xff" * 4_096]
)
def test_a_file_that_is_no_registry(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        open_at(path)
    assert path.read_bytes() == content, "and it is left alone"


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        open_at(tmp_path / "file" / "registry.sqlite")


# Migrations -------------------------------------------------------------------------------------------------


def schema(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
    db.close()
    return rows


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_past_version_becomes_this_one(tmp_path: Path, version: int) -> None:
    fresh, old = tmp_path / "fresh.sqlite", tmp_path / "old.sqlite"
    open_at(fresh).close()
    db = sqlite3.connect(old)
    for script in MIGRATIONS[:version]:
        db.executescript(script)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    open_at(old).close()
    assert schema(old) == schema(fresh)
    open_at(old).close()  # and once more, for nothing


def test_what_the_first_version_had_is_still_there(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript(MIGRATIONS[0])
    db.executemany(
        "INSERT INTO key VALUES (?, ?, 'token', 'ecdsa-p256-sha256', ?, ?, '2025-01-01')",
        [
            ("begun", b"1", None, "creating"),
            ("off", b"2", P256.point, "disabled"),
            ("on", b"3", P256.point, "usable"),
        ],
    )
    db.execute("INSERT INTO account VALUES ('a', 'hash', 1000, ?, 0, '2025-01-01')", ("ab" * 32,))
    db.executemany("INSERT INTO key_grant VALUES ('a', ?, '2025-01-01')", [("on",), ("*",)])
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    registry = open_at(path)
    assert [
        (key.name, key.key_id, key.public, key.disabled, key.for_seal) for key in registry.all_keys()
    ] == [
        ("off", b"2", P256, True, False),
        ("on", b"3", P256, False, False),
    ]
    assert registry.unfinished_keys() == [("begun", b"1", "token", P256.algorithm)]
    assert registry.all_accounts() == [replace(ACCOUNT, grants=frozenset({"on", "*"}))]
    registry.close()


def test_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    open_at(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match="newer"):
        open_at(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "the file is not left open"


def test_a_migration_that_was_cut_short_is_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_at(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE extra (x) STRICT; CREATE TABLE nonsense (")
    monkeypatch.setattr(sqlite_module, "MIGRATIONS", broken)
    with pytest.raises(ConfigError):
        open_at(path)
    monkeypatch.setattr(sqlite_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE extra (x INTEGER) STRICT"))
    opened = open_at(path)
    assert "extra" in {row[1] for row in schema(path)}
    opened.close()


def test_two_that_start_at_once_migrate_once(path: Path) -> None:
    for round_ in range(10):
        at, barrier, errors = path.with_name(f"{round_}.sqlite"), threading.Barrier(2), []
        Path(at).parent.mkdir(exist_ok=True)

        def open_it(
            at: Path = at, barrier: threading.Barrier = barrier, errors: list[object] = errors
        ) -> None:
            barrier.wait()
            try:
                open_at(at).close()
            except ApplianceError as error:
                errors.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


def test_a_file_that_another_process_opens_at_the_same_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch to WAL needs the file alone; while another holds it, it is tried again."""
    path.parent.mkdir()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def let_go(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            other.execute("ROLLBACK")
            other.close()

    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.0)
    monkeypatch.setattr(sqlite_module.time, "sleep", let_go)
    open_at(path).close()
    assert len(waits) == 3


def test_the_version_is_looked_at_inside_the_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process migrates after we have looked, and before we begin."""
    open_at(path).close()
    scripts = (*MIGRATIONS, "CREATE TABLE extra (x INTEGER) STRICT")
    monkeypatch.setattr(sqlite_module, "MIGRATIONS", scripts)

    class Late(SqliteDatabase):
        def _migrate(self) -> None:
            if not others:
                others.append(None)
                original = self._version

                def version() -> int:
                    seen = original()
                    if len(others) == 1:
                        others.append(None)
                        open_at(path).close()
                    return seen

                self._version = version  # type: ignore[method-assign]
            super()._migrate()

    others: list[None] = []
    Late(path).close()
    assert len(others) == 2


# Others at the same file ------------------------------------------------------------------------------------


def test_a_lock_that_another_holds_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.0)
    registry = open_at(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable) as caught:
        make_key(registry)
    assert caught.value.retry_after_ms
    assert registry.all_keys() == [], "reading goes on"
    other.execute("ROLLBACK")
    make_key(registry)
    other.close()
    registry.close()


def test_an_act_that_fails_leaves_no_transaction_open(registry: Registry) -> None:
    make_key(registry)
    with pytest.raises(Conflict):
        make_key(registry)
    with pytest.raises(BadRequest):
        registry.create_account(Account("big", None, 1 << 80, None, False, frozenset()))
    assert not writer(registry).in_transaction
    make_key(registry, "other")


def test_threads_share_it(registry: Registry) -> None:
    def work(first: int) -> None:
        for i in range(first, first + 10):
            make_key(registry, f"k{i:02}")

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [key.name for key in registry.all_keys()] == [f"k{i:02}" for i in range(40)]


class FullDisk:
    """A connection whose commits fail; everything else is the real one."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("disk I/O error")
        return self._real.execute(statement, *values)


def test_a_commit_that_fails_leaves_a_state_that_nobody_knows(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry._database, "_writer", FullDisk(writer(registry)))
    with pytest.raises(StateUnknown, match="disk I/O error"):
        registry.create_account(ACCOUNT)
    assert not issubclass(StateUnknown, Exception), "an honest `except Exception` must not swallow it"
