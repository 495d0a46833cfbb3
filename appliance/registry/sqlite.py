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

MIGRATIONS: Final = (
    """
    CREATE TABLE key (
        name TEXT PRIMARY KEY,
        key_id BLOB NOT NULL UNIQUE,
        token TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        point BLOB,
        state TEXT NOT NULL CHECK (state IN ('creating', 'usable', 'disabled')),
        created_at TEXT NOT NULL,
        CHECK (state = 'creating' OR length(point) = 64)
    ) STRICT;
    CREATE TABLE account (
        name TEXT PRIMARY KEY,
        password_hash TEXT,
        uid INTEGER,
        certificate_sha256 TEXT,
        disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE key_grant (
        account TEXT NOT NULL REFERENCES account (name),
        key_name TEXT NOT NULL,
        created_at TEXT NOT NULL,
        PRIMARY KEY (account, key_name)
    ) STRICT;
    """,
    """
    CREATE TABLE key_2 (
        name TEXT PRIMARY KEY,
        key_id BLOB NOT NULL UNIQUE,
        token TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        point BLOB,
        state TEXT NOT NULL CHECK (state IN ('creating', 'usable', 'disabled', 'destroyed')),
        purpose TEXT NOT NULL CHECK (purpose IN ('signing', 'seal')),
        created_at TEXT NOT NULL,
        CHECK (state = 'creating' OR length(point) = 64)
    ) STRICT;
    INSERT INTO key_2 (name, key_id, token, algorithm, point, state, purpose, created_at)
        SELECT name, key_id, token, algorithm, point, state, 'signing', created_at FROM key;
    DROP TABLE key;
    ALTER TABLE key_2 RENAME TO key;
    CREATE INDEX key_signing ON key (name) WHERE purpose = 'signing';
    CREATE INDEX key_creating ON key (name) WHERE state = 'creating';

    CREATE TABLE organisation (
        code TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        region TEXT NOT NULL
    ) STRICT;
    CREATE TABLE seal (
        id TEXT PRIMARY KEY,
        code TEXT NOT NULL,
        organisation TEXT NOT NULL REFERENCES organisation (code),
        kind TEXT NOT NULL,
        purpose TEXT NOT NULL,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        region TEXT NOT NULL,
        holder TEXT NOT NULL,
        custodian TEXT NOT NULL,
        applicant TEXT NOT NULL,
        state TEXT NOT NULL,
        version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        key_name TEXT,
        valid_from TEXT,
        valid_to TEXT,
        applied_at TEXT NOT NULL,
        made_at TEXT,
        filed_at TEXT,
        confirmed_at TEXT,
        activated_at TEXT,
        last_used_at TEXT,
        ended_at TEXT,
        end_reason TEXT,
        replaces TEXT,
        replaced_by TEXT,
        holds_place INTEGER NOT NULL CHECK (holds_place IN (0, 1)),
        idle_from TEXT,
        retain_until TEXT
    ) STRICT;
    CREATE UNIQUE INDEX seal_code ON seal (code) WHERE code <> '';
    CREATE UNIQUE INDEX seal_place ON seal (organisation, kind, purpose, number, holder) WHERE holds_place = TRUE;
    CREATE UNIQUE INDEX seal_statutory ON seal (organisation) WHERE holds_place = TRUE AND kind = 'statutory';
    CREATE UNIQUE INDEX seal_replaces ON seal (replaces) WHERE state NOT IN ('refused', 'cancelled');
    CREATE INDEX seal_organisation ON seal (organisation, id);
    CREATE INDEX seal_custodian ON seal (custodian, id);
    CREATE INDEX seal_state ON seal (state, id);
    CREATE INDEX seal_region ON seal (region, id);
    CREATE INDEX seal_idle ON seal (idle_from) WHERE state = 'active';
    CREATE INDEX seal_expiry ON seal (valid_to) WHERE state IN ('active', 'suspended', 'dormant');
    CREATE INDEX seal_uncollected ON seal (made_at) WHERE state IN ('made', 'filed');
    CREATE INDEX seal_retained ON seal (retain_until) WHERE retain_until IS NOT NULL;
    CREATE INDEX seal_counted ON seal (region, kind, state);
    CREATE INDEX seal_counted_by_organisation ON seal (organisation, region, kind, state);
    CREATE TABLE imprint (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        format TEXT NOT NULL,
        data BLOB NOT NULL,
        width_mm INTEGER NOT NULL,
        height_mm INTEGER NOT NULL,
        sm3 BLOB NOT NULL CHECK (length(sm3) = 32)
    ) STRICT;
    CREATE TABLE application (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        body TEXT NOT NULL
    ) STRICT;
    CREATE TABLE pending (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        key_name TEXT NOT NULL UNIQUE,
        certificate BLOB
    ) STRICT;
    CREATE TABLE generation (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        number INTEGER NOT NULL,
        key_name TEXT NOT NULL,
        certificate BLOB NOT NULL,
        eseal BLOB NOT NULL,
        valid_from TEXT NOT NULL,
        valid_to TEXT NOT NULL,
        made_at TEXT NOT NULL,
        PRIMARY KEY (seal_id, number)
    ) STRICT;
    CREATE INDEX generation_key ON generation (key_name);
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        at TEXT NOT NULL,
        act TEXT NOT NULL,
        source TEXT,
        target TEXT NOT NULL,
        officer TEXT NOT NULL,
        approver TEXT,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_seal ON event (seal_id, id);
    CREATE TABLE document (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        kind TEXT NOT NULL,
        issued_at TEXT NOT NULL,
        body BLOB NOT NULL,
        signature BLOB NOT NULL,
        signer BLOB NOT NULL
    ) STRICT;
    CREATE INDEX document_seal ON document (seal_id, id);
    CREATE TABLE code_sequence (
        region TEXT PRIMARY KEY,
        given INTEGER NOT NULL CHECK (given BETWEEN 1 AND 99999999)
    ) STRICT;

    CREATE TABLE officer (
        name TEXT PRIMARY KEY,
        display_name TEXT NOT NULL,
        roles TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        disabled INTEGER NOT NULL CHECK (disabled IN (0, 1)),
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE proposal (
        id TEXT PRIMARY KEY,
        act TEXT NOT NULL,
        target TEXT NOT NULL,
        arguments TEXT NOT NULL,
        proposed_by TEXT NOT NULL,
        proposed_at TEXT NOT NULL,
        expires_at TEXT NOT NULL,
        state TEXT NOT NULL,
        decided_by TEXT,
        decided_at TEXT,
        outcome TEXT,
        CHECK (decided_by <> proposed_by OR state = 'rejected')
    ) STRICT;
    CREATE INDEX proposal_state ON proposal (state, id);
    CREATE INDEX proposal_expiry ON proposal (expires_at) WHERE state = 'open';
    CREATE INDEX proposal_target ON proposal (target);

    CREATE TABLE protection (
        seal_id TEXT PRIMARY KEY REFERENCES seal (id),
        password_hash TEXT NOT NULL,
        set_by TEXT NOT NULL,
        set_at TEXT NOT NULL,
        failures INTEGER NOT NULL,
        locked INTEGER NOT NULL CHECK (locked IN (0, 1)),
        generation INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX protection_age ON protection (set_at);
    CREATE TABLE seal_grant (
        account TEXT NOT NULL REFERENCES account (name),
        seal_id TEXT NOT NULL REFERENCES seal (id),
        operations TEXT NOT NULL,
        daily_limit INTEGER NOT NULL CHECK (daily_limit >= 0),
        minute_limit INTEGER NOT NULL CHECK (minute_limit >= 0),
        valid_from TEXT,
        valid_to TEXT,
        sources TEXT NOT NULL,
        approval_pattern TEXT,
        created_at TEXT NOT NULL,
        PRIMARY KEY (account, seal_id)
    ) STRICT;
    CREATE INDEX seal_grant_seal ON seal_grant (seal_id, account);

    CREATE TABLE message (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        seal_id TEXT NOT NULL REFERENCES seal (id),
        region TEXT NOT NULL,
        body TEXT NOT NULL,
        created_at TEXT NOT NULL,
        due_at TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        next_attempt_at TEXT NOT NULL,
        last_error TEXT,
        delivered_at TEXT,
        receipt TEXT,
        delay_ms INTEGER,
        CHECK ((delivered_at IS NULL) = (delay_ms IS NULL))
    ) STRICT;
    CREATE INDEX message_next ON message (next_attempt_at, id) WHERE delivered_at IS NULL;
    CREATE INDEX message_due ON message (due_at) WHERE delivered_at IS NULL;
    CREATE INDEX message_seal ON message (seal_id);
    CREATE INDEX message_counted ON message (created_at, kind, region);

    CREATE TABLE use_of_seal (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        day TEXT NOT NULL,
        account TEXT NOT NULL,
        uses INTEGER NOT NULL,
        PRIMARY KEY (seal_id, day, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE use_of_day (
        day TEXT NOT NULL,
        account TEXT NOT NULL,
        uses INTEGER NOT NULL,
        PRIMARY KEY (day, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE reservation (
        seal_id TEXT NOT NULL REFERENCES seal (id),
        account TEXT NOT NULL,
        day TEXT NOT NULL,
        reserved INTEGER NOT NULL CHECK (reserved >= 0),
        PRIMARY KEY (seal_id, account, day)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX reservation_day ON reservation (day);

    CREATE TRIGGER seal_kept BEFORE DELETE ON seal
        WHEN OLD.retain_until IS NULL OR OLD.retain_until > strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;
    CREATE TRIGGER seal_ended BEFORE UPDATE OF state, ended_at, end_reason, generation, code ON seal
        WHEN OLD.state IN ('refused', 'cancelled')
        BEGIN SELECT RAISE(ABORT, 'the life of this seal has ended'); END;
    CREATE TRIGGER seal_retained_longer BEFORE UPDATE OF retain_until ON seal
        WHEN OLD.retain_until IS NOT NULL AND (NEW.retain_until IS NULL OR NEW.retain_until < OLD.retain_until)
        BEGIN SELECT RAISE(ABORT, 'what is kept is not kept shorter'); END;
    CREATE TRIGGER seal_identity BEFORE UPDATE OF id, organisation, kind, applied_at, applicant ON seal
        BEGIN SELECT RAISE(ABORT, 'whose seal it is, and what it was applied for as, does not change'); END;
    """
    + "".join(
        f"""
    CREATE TRIGGER {table}_unaltered BEFORE UPDATE ON {table}
        BEGIN SELECT RAISE(ABORT, 'records of seals are never altered'); END;
    CREATE TRIGGER {table}_kept BEFORE DELETE ON {table}
        WHEN NOT EXISTS (
            SELECT 1 FROM seal WHERE id = OLD.seal_id
                AND retain_until <= strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        )
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;
    """
        for table in ("application", "imprint", "generation", "event", "document")
    )
    + """
    CREATE TRIGGER message_kept BEFORE DELETE ON message
        WHEN NOT EXISTS (
            SELECT 1 FROM seal WHERE id = OLD.seal_id
                AND retain_until <= strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')
        )
        BEGIN SELECT RAISE(ABORT, 'the records of a seal are kept for five years after its end'); END;
    """,
)


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
        """The first switch to WAL asks for the file alone, and SQLite refuses that at once, busy timeout or not."""
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
