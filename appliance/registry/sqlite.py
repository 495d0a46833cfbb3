"""The registry in one SQLite file: the default, for an appliance by itself.

For: connections, migrations, the lock file, and what SQLite calls its errors.
Not for: what the tables mean (the parts of the registry).

Rules:

* One connection writes, under a lock; a few others read, so that a long statistic holds up nobody.
* ``BEGIN IMMEDIATE``: a transaction has the file's write lock from its first statement, so what it looked at holds.
* Migrations only go forward; ``PRAGMA user_version`` counts them.

Crash story: WAL with ``synchronous=FULL``; a transaction that has returned is on disk. A commit that fails leaves a
file that only who reads it anew knows: ``StateUnknown``.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from appliance.errors import ConfigError, StateUnknown, Unavailable
from appliance.registry.database import (
    BUSY_TIMEOUT_S,
    READERS,
    Database,
    Row,
    Rule,
    Transaction,
    Value,
    Violation,
    check_values,
)
from appliance.registry.sqlite_tables import MIGRATIONS

_Result = TypeVar("_Result")

WAL_TRIES: Final = 100
"""Spread over the same time: a process that starts beside us is done with its first steps in milliseconds."""
CACHE_KIB: Final = 65_536
"""Pages kept in memory by each connection: the upper levels of the indexes of a million seals."""

_RULES: Final = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Rule.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Rule.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Rule.REFERENCE,
    sqlite3.SQLITE_CONSTRAINT_TRIGGER: Rule.KEPT,
}


class SqliteDatabase(Database):
    """A file. ``hold`` keeps other daemons away from it for as long as it is open, else ``ConfigError``."""

    product: ClassVar[str] = "SQLite"

    def __init__(self, path: Path, *, hold: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._readers: queue.LifoQueue[sqlite3.Connection | None] = queue.LifoQueue()
        for _ in range(READERS):
            self._readers.put(None)  # opened when it is first wanted
        self._held: int | None = None
        self._is_closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hold:
                self._held = _hold(path)
            self._writer = self._connect()
            path.chmod(0o600)
            try:
                self._to_wal()
                self._writer.execute("PRAGMA synchronous = FULL")
                self._migrate()
            except BaseException:
                self._writer.close()
                raise
        except (sqlite3.Error, OSError) as error:
            self._let_go()
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"registry {path}: {reason}", hint="check the path, its owner and that it is a registry"
            ) from error
        except BaseException:
            self._let_go()
            raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except BaseException:
            db.close()
            raise
        return db

    def _to_wal(self) -> None:
        """The first switch to WAL asks for the file alone, and SQLite refuses that at once, busy timeout or not.

        So the wait is ours: at start, before anything is served.
        """
        for left in reversed(range(WAL_TRIES)):
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not left or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                time.sleep(BUSY_TIMEOUT_S / WAL_TRIES)

    def _version(self) -> int:
        version = int(self._writer.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"the registry has version {version}, this program knows {len(MIGRATIONS)}",
                hint="a newer cloud-seal wrote it; install that one",
            )
        return version

    def _migrate(self) -> None:
        while self._version() < len(MIGRATIONS):
            self._writer.execute("BEGIN IMMEDIATE")
            version = self._version()  # once more: another process may have migrated before we had the lock
            if version == len(MIGRATIONS):
                self._writer.execute("ROLLBACK")
                return
            # One transaction: a crash here leaves the old version whole, and the next start does it again.
            # (`executescript` would commit what is open, so the statements go one by one.)
            for statement in _statements(MIGRATIONS[version]):
                self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version = {version + 1}")
            self._writer.execute("COMMIT")

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def close(self) -> None:
        """The file's lock goes last. Closing twice is no error."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for _ in range(READERS):
                reader = self._readers.get()  # once whoever reads has done so
                if reader is not None:
                    reader.close()
            self._writer.close()
            self._let_go()

    def run(self, work: Callable[[Transaction], _Result]) -> _Result:
        """One at a time, in this process and on this machine."""
        with self._lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise _unavailable("written", error) from error
            try:
                result = work(_SqliteTransaction(self._writer))
            except BaseException as error:
                if self._writer.in_transaction:  # some errors make SQLite roll back by itself
                    self._writer.execute("ROLLBACK")
                if (
                    isinstance(error, sqlite3.OperationalError)
                    and error.sqlite_errorcode != sqlite3.SQLITE_ERROR
                ):
                    raise _unavailable("written", error) from error  # the disk is full, say; nothing was done
                raise
            try:
                self._writer.execute("COMMIT")  # durable from here on
            except sqlite3.Error as error:
                # The disk is full or broken, and what it holds now is known only to who reads it anew.
                raise StateUnknown(f"the registry's commit failed: {error}") from error
            return result

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        reader = self._readers.get()
        try:
            if reader is None:
                reader = self._connect()
                reader.execute("PRAGMA query_only = ON")
            yield reader
        finally:
            self._readers.put(reader)

    def rows(self, query: str, *values: Value) -> list[Row]:
        """What is committed as the query begins."""
        check_values(values)
        try:
            with self._reader() as reader:
                return reader.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise  # the statement is wrong
            raise _unavailable("read", error) from error


class _SqliteTransaction(Transaction):
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @contextmanager
    def _rules(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            rule = _RULES.get(error.sqlite_errorcode, Rule.CHECK)
            raise Violation(rule, str(error)) from error

    def execute(self, statement: str, *values: Value) -> int:
        check_values(values)
        with self._rules():
            return self._db.execute(statement, values).rowcount

    def execute_many(self, statement: str, rows: Sequence[Sequence[Value]]) -> int:
        for values in rows:
            check_values(values)
        with self._rules():
            return self._db.executemany(statement, rows).rowcount

    def rows(self, statement: str, *values: Value) -> list[Row]:
        check_values(values)
        with self._rules():
            return self._db.execute(statement, values).fetchall()


def _hold(path: Path) -> int:
    """The lock file, locked, until it is closed or the process ends; ``ConfigError`` where another has it.

    Two daemons on one registry would each keep in memory what the other has changed: a disabled account would sign on.
    """
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with suppress(OSError):
            os.close(lock)
        raise ConfigError(
            f"registry {path} is in use", hint="is another cloud-seald running? Each needs its own"
        ) from None
    return lock


def _unavailable(done: str, error: sqlite3.Error) -> Unavailable:
    return Unavailable(
        f"the registry cannot be {done} now: {error}",
        hint="another program may hold it open for writing; else look at the disk",
        retry_after_ms=1_000,
    )


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for piece in script.split(";"):
        statement += piece
        if sqlite3.complete_statement(statement + ";"):
            if statement.strip():
                yield statement
            statement = ""
        else:
            statement += ";"
    if statement.strip():
        yield statement
