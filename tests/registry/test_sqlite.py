"""The registry on real files: row counts, conflicts, migrations, two processes, and what a crash leaves."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import (
    ApplianceError,
    BadRequest,
    ConfigError,
    Conflict,
    NotFound,
    StateUnknown,
    Unavailable,
)
from appliance.policy import Account
from appliance.registry import Registry
from appliance.registry import sqlite as sqlite_module
from appliance.registry.sqlite import MIGRATIONS, SqliteDatabase

P256 = PublicKey(
    Algorithm.ECDSA_P256_SHA256,
    bytes.fromhex(  # the generator, SEC 2
        "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296"
        "4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5"
    ),
)
SM2 = PublicKey(
    Algorithm.SM2_SM3,
    bytes.fromhex(  # the generator, GB/T 32918.5
        "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
        "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
    ),
)
ACCOUNT = Account("a", "hash", 1_000, "ab" * 32, False, frozenset())


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


def make_key(
    registry: Registry, name: str = "k", public: PublicKey = P256, key_id: bytes | None = None
) -> None:
    registry.begin_key(name, key_id or name.encode(), "token", public.algorithm)
    registry.finish_key(name, public)


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


# Keys -------------------------------------------------------------------------------------------------------


def test_the_life_of_a_key(registry: Registry, path: Path) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    assert registry.all_keys() == [] and registry.unfinished_keys() == [
        ("k", b"id", "token", Algorithm.SM2_SM3)
    ]
    made = registry.finish_key("k", SM2)
    assert (made.name, made.key_id, made.token, made.public, made.disabled) == (
        "k",
        b"id",
        "token",
        SM2,
        False,
    )
    assert registry.unfinished_keys() == [] and registry.all_keys() == [made] == [registry.key("k")]
    assert registry.set_key_disabled("k", True).disabled
    assert registry.set_key_disabled("k", True).disabled, "switching twice is no error"
    assert registry.all_keys()[0].disabled
    assert not registry.set_key_disabled("k", False).disabled
    registry.close()
    again = open_at(path)
    assert again.all_keys() == [made]
    again.close()


def test_a_name_or_an_id_is_taken_from_the_first_moment(registry: Registry) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    for name, key_id in (("k", b"other"), ("other", b"id")):
        with pytest.raises(Conflict):
            registry.begin_key(name, key_id, "token", Algorithm.SM2_SM3)
    registry.finish_key("k", SM2)
    with pytest.raises(Conflict):
        registry.begin_key("k", b"other", "token", Algorithm.SM2_SM3)
    assert len(registry.all_keys()) == 1


def test_a_key_is_finished_once(registry: Registry) -> None:
    make_key(registry)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    with pytest.raises(Conflict):
        registry.finish_key("never begun", P256)
    registry.set_key_disabled("k", True)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    assert registry.key("k").disabled, "finishing does not enable"


def test_a_key_is_finished_with_its_own_algorithm(registry: Registry, path: Path) -> None:
    """A point on another curve would make the whole registry unreadable at the next start."""
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    registry.finish_key("k", SM2)
    assert open_at(path).all_keys() == registry.all_keys()


def test_only_what_is_being_made_is_abandoned(registry: Registry) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    registry.abandon_key("k")
    registry.abandon_key("k")
    make_key(registry)
    registry.abandon_key("k")
    assert registry.key("k")


@pytest.mark.parametrize("state", ["missing", "creating"])
def test_a_key_that_is_not_there(registry: Registry, state: str) -> None:
    registry.create_account(ACCOUNT)
    if state == "creating":
        registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    for act in (
        lambda: registry.key("k"),
        lambda: registry.set_key_disabled("k", False),
        lambda: registry.grant("a", "k"),
    ):
        with pytest.raises(NotFound):
            act()
    assert registry.all_keys() == []


def test_a_crash_between_the_two_halves(path: Path) -> None:
    """The process is gone without a word; what it had begun is found."""
    first = open_at(path)
    first.begin_key("k", b"id", "token", Algorithm.ECDSA_P256_SHA256)
    second = open_at(path)  # the first one was never closed
    assert second.unfinished_keys() == [("k", b"id", "token", Algorithm.ECDSA_P256_SHA256)]
    second.finish_key("k", P256)
    assert first.all_keys() == second.all_keys()
    first.close()
    second.close()


# Accounts and grants ----------------------------------------------------------------------------------------


def test_accounts(registry: Registry, path: Path) -> None:
    others = [
        Account("b", None, 0, None, False, frozenset()),
        Account("c", None, None, "cd" * 32, True, frozenset()),
    ]
    for account in (*others, ACCOUNT):
        registry.create_account(account)
    assert registry.all_accounts() == [ACCOUNT, *others]
    with pytest.raises(Conflict):
        registry.create_account(Account("a", None, 5, None, False, frozenset()))
    registry.set_account_password("a", "other")
    registry.set_account_disabled("b", True)
    registry.set_account_disabled("c", False)
    a, b, c = registry.all_accounts()
    assert (a.password_hash, b.disabled, c.disabled) == ("other", True, False)


@pytest.mark.parametrize(
    "act",
    [
        lambda registry: registry.set_account_password("nobody", "x"),
        lambda registry: registry.set_account_disabled("nobody", True),
        lambda registry: registry.grant("nobody", "*"),
        lambda registry: registry.grant("nobody", "k"),
        lambda registry: registry.revoke("nobody", "k"),
        lambda registry: registry.revoke("a", "k"),
        lambda registry: registry.grant("a", "no such key"),
    ],
)
def test_an_account_or_grant_that_is_not_there(registry: Registry, act: Callable[[Registry], None]) -> None:
    registry.create_account(ACCOUNT)
    make_key(registry)
    with pytest.raises(NotFound):
        act(registry)
    assert registry.all_accounts() == [ACCOUNT]


def test_grants(registry: Registry) -> None:
    registry.create_account(ACCOUNT)
    make_key(registry)
    for _ in range(2):
        registry.grant("a", "k")
    registry.grant("a", "*")
    assert registry.all_accounts()[0].grants == {"k", "*"}
    registry.revoke("a", "k")
    with pytest.raises(NotFound):
        registry.revoke("a", "k")
    assert registry.all_accounts()[0].grants == {"*"}


def test_names_are_values_and_no_sql(registry: Registry) -> None:
    name = "'; DROP TABLE key; --"
    make_key(registry, name)
    assert registry.key(name).name == name


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
