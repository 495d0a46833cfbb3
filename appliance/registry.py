"""The registry: keys, accounts and grants, in SQLite.

For: what must outlive the process.
Not for: deciding (``policy``), secrets other than password hashes, anything on the hot path (``holdings`` keeps what
a request needs in memory and is told of every change).

Rules:

* One connection, one lock: calls are short and come from a worker thread, never from the event loop.
* Safety is in the SQL ``WHERE`` and the row count, not in an earlier look.
* Migrations only go forward; ``PRAGMA user_version`` counts them.

Crash story: WAL with ``synchronous=FULL``; a call that has returned is on disk. A key is first recorded as
``creating``, then made in the token, then recorded as ``usable``; ``HSM first, record never`` would leave a key that
nobody knows of. Start-up asks the token about each key found ``creating`` (``daemon``).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import ConfigError, Conflict, NotFound, StateUnknown, Unavailable
from appliance.policy import EVERY_KEY, Account, HeldKey

BUSY_TIMEOUT_S: Final = 5.0
"""How long to wait for another process that has the file open: a backup, an operator's ``sqlite3``."""

WAL_TRIES: Final = 100
"""Spread over the same time: a process that starts beside us is done with its first steps in milliseconds."""

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
)


class Registry:
    """Open it, use it from one thread at a time, close it."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            self._to_wal()
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            try:
                self._migrate()
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"registry {path}: {error}", hint="check the path, its owner and that it is a registry"
            ) from error

    def _to_wal(self) -> None:
        """The first switch to WAL asks for the file alone, and SQLite refuses that at once, busy timeout or not."""
        for left in reversed(range(WAL_TRIES)):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not left or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                time.sleep(BUSY_TIMEOUT_S / WAL_TRIES)

    def _version(self) -> int:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"the registry has version {version}, this program knows {len(MIGRATIONS)}",
                hint="a newer cloud-seal wrote it; install that one",
            )
        return version

    def _migrate(self) -> None:
        while self._version() < len(MIGRATIONS):
            self._db.execute("BEGIN IMMEDIATE")
            version = self._version()  # once more: another process may have migrated before we had the lock
            if version == len(MIGRATIONS):
                self._db.execute("ROLLBACK")
                return
            # One transaction: a crash here leaves the old version whole, and the next start does it again.
            # (`executescript` would commit what is open, so the statements go one by one.)
            for statement in _statements(MIGRATIONS[version]):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {version + 1}")
            self._db.execute("COMMIT")

    def close(self) -> None:
        """No call may follow."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                raise Unavailable(
                    f"the registry cannot be written now: {error}",
                    hint="another program holds it open for writing",
                    retry_after_ms=1_000,
                ) from error
            try:
                yield self._db
            except BaseException:
                if self._db.in_transaction:  # some errors make SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise
            try:
                self._db.execute("COMMIT")  # durable from here on
            except sqlite3.Error as error:
                # The disk is full or broken, and what it holds now is known only to who reads it anew.
                raise StateUnknown(f"the registry's commit failed: {error}") from error

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Keys -----------------------------------------------------------------------------------------------

    def begin_key(self, name: str, key_id: bytes, token: str, algorithm: Algorithm) -> None:
        """Reserve the name before the token makes the key; ``Conflict`` if it is taken."""
        with self._transaction() as db:
            try:
                db.execute(
                    "INSERT INTO key (name, key_id, token, algorithm, state, created_at)"
                    " VALUES (?, ?, ?, ?, 'creating', ?)",
                    (name, key_id, token, algorithm.label, _now()),
                )
            except sqlite3.IntegrityError as error:
                raise Conflict(f"there is a key {name!r} already", hint="choose another name") from error

    def finish_key(self, name: str, public: PublicKey) -> HeldKey:
        """The token has made it: from here on it is usable."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE key SET state = 'usable', point = ?"
                " WHERE name = ? AND state = 'creating' AND algorithm = ?",
                (public.point, name, public.algorithm.label),
            ).rowcount
            if done != 1:
                raise Conflict(f"no {public.algorithm.label} key {name!r} is being created")
        return self.key(name)

    def abandon_key(self, name: str) -> None:
        """The token has not made it: the name is free again."""
        with self._transaction() as db:
            db.execute("DELETE FROM key WHERE name = ? AND state = 'creating'", (name,))

    def unfinished_keys(self) -> list[tuple[str, bytes, str, Algorithm]]:
        """Keys whose making was cut short: name, id, token, algorithm."""
        rows = self._rows("SELECT name, key_id, token, algorithm FROM key WHERE state = 'creating'")
        return [(name, key_id, token, Algorithm.from_label(label)) for name, key_id, token, label in rows]

    def all_keys(self) -> list[HeldKey]:
        """All that are usable or disabled, by name."""
        return [_key(row) for row in self._rows(f"{_SELECT_KEY} WHERE state <> 'creating' ORDER BY name")]

    def key(self, name: str) -> HeldKey:
        """The one of that name, else ``NotFound``."""
        rows = self._rows(f"{_SELECT_KEY} WHERE state <> 'creating' AND name = ?", name)
        if not rows:
            raise NotFound(f"no key {name!r}", hint="cloud-seal key list")
        return _key(rows[0])

    def set_key_disabled(self, name: str, disabled: bool) -> HeldKey:
        """Switch it off or on; switching twice is no error."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE key SET state = ? WHERE name = ? AND state <> 'creating'",
                ("disabled" if disabled else "usable", name),
            ).rowcount
            if done != 1:
                raise NotFound(f"no key {name!r}", hint="cloud-seal key list")
        return self.key(name)

    # Accounts -------------------------------------------------------------------------------------------

    def create_account(self, account: Account) -> None:
        """``Conflict`` if the name is taken. Grants are given afterwards."""
        with self._transaction() as db:
            try:
                db.execute(
                    "INSERT INTO account (name, password_hash, uid, certificate_sha256, disabled, created_at)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        account.name,
                        account.password_hash,
                        account.uid,
                        account.certificate_sha256,
                        account.disabled,
                        _now(),
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise Conflict(f"there is an account {account.name!r} already") from error

    def all_accounts(self) -> list[Account]:
        """All of them with their grants, by name."""
        grants: dict[str, set[str]] = {}
        for account, key_name in self._rows("SELECT account, key_name FROM key_grant"):
            grants.setdefault(account, set()).add(key_name)
        rows = self._rows(f"{_SELECT_ACCOUNT} ORDER BY name")
        return [_account(row, grants.get(row[0], set())) for row in rows]

    def account(self, name: str) -> Account:
        """The one of that name with its grants, else ``NotFound``."""
        rows = self._rows(f"{_SELECT_ACCOUNT} WHERE name = ?", name)
        if not rows:
            raise NotFound(f"no account {name!r}", hint="cloud-seal account list")
        grants = self._rows("SELECT key_name FROM key_grant WHERE account = ?", name)
        return _account(rows[0], {key_name for (key_name,) in grants})

    def set_account_password(self, name: str, password_hash: str) -> None:
        """Replace the hash."""
        self._update_account("UPDATE account SET password_hash = ? WHERE name = ?", password_hash, name)

    def set_account_disabled(self, name: str, disabled: bool) -> None:
        """Switch it off or on."""
        self._update_account("UPDATE account SET disabled = ? WHERE name = ?", disabled, name)

    def _update_account(self, statement: str, value: object, name: str) -> None:
        with self._transaction() as db:
            if db.execute(statement, (value, name)).rowcount != 1:
                raise NotFound(f"no account {name!r}", hint="cloud-seal account list")

    def grant(self, account: str, key_name: str) -> None:
        """Let the account use that key (``*``: every key); granting twice is no error."""
        if key_name != EVERY_KEY:
            self.key(key_name)
        with self._transaction() as db:
            try:
                db.execute(
                    "INSERT INTO key_grant (account, key_name, created_at) VALUES (?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (account, key_name, _now()),
                )
            except sqlite3.IntegrityError as error:
                raise NotFound(f"no account {account!r}", hint="cloud-seal account list") from error

    def revoke(self, account: str, key_name: str) -> None:
        """Take a grant back, else ``NotFound``."""
        with self._transaction() as db:
            done = db.execute(
                "DELETE FROM key_grant WHERE account = ? AND key_name = ?", (account, key_name)
            ).rowcount
            if done != 1:
                raise NotFound(f"account {account!r} has no grant on {key_name!r}")


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


_SELECT_KEY: Final = "SELECT name, key_id, token, algorithm, point, state, created_at FROM key"


_SELECT_ACCOUNT: Final = "SELECT name, password_hash, uid, certificate_sha256, disabled FROM account"


def _account(row: tuple[Any, ...], grants: set[str]) -> Account:
    name, password_hash, uid, fingerprint, disabled = row
    return Account(name, password_hash, uid, fingerprint, bool(disabled), frozenset(grants))


def _key(row: tuple[Any, ...]) -> HeldKey:
    name, key_id, token, label, point, state, created_at = row
    public = PublicKey(Algorithm.from_label(label), point)
    return HeldKey(name, key_id, token, public, state == "disabled", created_at)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
