"""The registry in PostgreSQL: for an appliance whose database others keep, back up and replicate.

For: connections and their loss, migrations, the daemon's lock, and what PostgreSQL calls its errors.
Not for: what the tables mean (the parts of the registry); running a server.

Rules:

* A few connections, opened when they are wanted. One that is found broken is replaced, so that a server that was away
  is used again as soon as it is back.
* READ COMMITTED: what a statement's ``WHERE`` names is looked at again once the row's lock is there. Deadlocks and
  serialisation failures are done again, up to ``TRIES`` times.
* A daemon holds an advisory lock, one for each schema, on a connection of its own. Where that broke, nothing is written
  until the lock is held again; and where another daemon held it meanwhile, what this one knows is out of date: it ends.
* What is not on this machine is spoken to over TLS that proves the server's name. The password comes from a file, read
  for each connection, never from the URL.

Crash story: a COMMIT that the server did not answer may have happened: ``StateUnknown``. Everything that fails before
it did not happen. The server's own ``fsync`` and ``full_page_writes`` are its keepers' business; ``synchronous_commit``
is switched on where it was off.
"""

from __future__ import annotations

import functools
import logging
import re
import select
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from appliance.errors import BadRequest, ConfigError, StateUnknown, Unavailable
from appliance.registry.database import (
    BUSY_TIMEOUT_S,
    READERS,
    TRIES,
    Database,
    Row,
    Rule,
    Transaction,
    Value,
    Violation,
    check_values,
)
from appliance.registry.postgres_tables import MIGRATIONS
from appliance.settings import Url, is_loopback

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Connection = psycopg.Connection[Row]

CONNECTIONS: Final = READERS + 1
"""As in SQLite: some that read while one writes. A server's default allows a hundred, for everybody."""
CONNECT_TIMEOUT_S: Final = 5
"""A server that does not answer by then is away, and requests are told so."""
STATEMENT_TIMEOUT_S: Final = 60
"""No statement of ours takes so long with a million seals; what does is stuck."""
IDLE_TIMEOUT_S: Final = 60
"""The server ends a transaction whose client says nothing for so long: it holds locks."""
PAUSE_S: Final = 0.002
"""Before a transaction is done again, and longer each time: ten tries take a tenth of a second."""
MIN_VERSION: Final = 14
"""The oldest that its makers still keep."""
LOCK_CLASS: Final = 0x5EA1
"""The first half of our advisory locks' numbers; the second is the schema's."""

_PARAMETERS: Final = frozenset(
    {"host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"}
)
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresDatabase(Database):
    """A schema on a server. ``hold`` keeps other daemons away from it while it is open, else ``ConfigError``."""

    product: ClassVar[str] = "PostgreSQL"

    def __init__(self, url: Url, password_file: Path | None = None, *, hold: bool = False) -> None:
        self._parameters, self._schema = read_url(url)
        self._password_file = password_file
        self.place = _shown(self._parameters, self._schema)
        self._lock = threading.Lock()  # of the three below
        self._idle: list[Connection] = []
        self._is_closed = False
        self._holder: Connection | None = None
        self._holding = threading.Lock()  # one thread at a time looks after the advisory lock
        self._epoch: int | None = None
        self._permits = threading.BoundedSemaphore(CONNECTIONS)
        try:
            if hold:
                self._hold()
            self._migrate()
            if hold:
                self._begin_epoch()
        except BaseException:
            self.close()
            raise

    # Connections ----------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        """A new one, else ``Unavailable``."""
        password = _read_password(self._password_file) if self._password_file is not None else None
        try:
            connection: Connection = psycopg.connect(
                **self._parameters,
                password=password,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="cloud-seal",
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
                autocommit=True,
                cursor_factory=psycopg.RawCursor,
            )
        except psycopg.OperationalError as error:
            raise self._unavailable("reached", error) from error
        try:
            connection.execute(
                "SELECT set_config('search_path', $1, FALSE), set_config('statement_timeout', $2, FALSE),"
                " set_config('lock_timeout', $3, FALSE), set_config('idle_in_transaction_session_timeout', $4, FALSE),"
                " set_config('default_transaction_isolation', 'read committed', FALSE),"
                " set_config('client_min_messages', 'warning', FALSE),"
                " CASE WHEN current_setting('synchronous_commit') = 'off'"
                " THEN set_config('synchronous_commit', 'on', FALSE) END",
                (
                    self._schema,
                    f"{STATEMENT_TIMEOUT_S}s",
                    f"{BUSY_TIMEOUT_S:g}s",
                    f"{IDLE_TIMEOUT_S}s",
                ),
            )
        except psycopg.Error as error:
            connection.close()
            raise self._unavailable("reached", error) from error
        return connection

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One that was sound a moment ago; it is given back unless something was left open on it."""
        if not self._permits.acquire(timeout=BUSY_TIMEOUT_S):
            raise Unavailable(
                "the registry has too much to do", hint="try again in a moment", retry_after_ms=1_000
            )
        try:
            connection = self._take_idle() or self._connect()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._permits.release()

    def _take_idle(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if _is_sound(connection):
                return connection
            connection.close()

    def _give_back(self, connection: Connection) -> None:
        if connection.closed or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.close()
            return
        with self._lock:
            if not self._is_closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """The advisory lock goes with its connection."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            holder, self._holder = self._holder, None
        for connection in (*idle, *([holder] if holder is not None else [])):
            connection.close()

    def _unavailable(self, done: str, error: psycopg.Error) -> Unavailable:
        text = " ".join(str(error).split())
        return Unavailable(
            f"the registry at {self.place} cannot be {done} now: {text}",
            hint="see the database server, and registry: in the configuration",
            retry_after_ms=1_000,
        )

    # The daemon's lock -----------------------------------------------------------------------------------

    def _hold(self) -> None:
        connection = self._connect()
        try:
            ((is_ours,),) = connection.execute(
                "SELECT pg_try_advisory_lock($1, $2)", (LOCK_CLASS, _number(self._schema))
            ).fetchall()
        except psycopg.Error as error:
            connection.close()
            raise self._unavailable("locked", error) from error
        if not is_ours:
            connection.close()
            raise ConfigError(
                f"registry {self.place} is in use", hint="is another cloud-seald running? Each needs its own"
            )
        with self._lock:
            self._holder = connection

    def _begin_epoch(self) -> None:
        """Leave a mark that another holder of the lock would change."""
        rows = self._once(
            lambda transaction: transaction.rows("UPDATE holder SET epoch = epoch + 1 RETURNING epoch")
        )
        self._epoch = int(rows[0][0])

    def _keep_hold(self) -> None:
        """Before each transaction of a daemon: the lock is still there, or there again and nobody had it between."""
        if self._epoch is None:
            return
        with self._holding:
            holder = self._holder
            if holder is not None and _is_sound(holder):
                return
            if holder is not None:
                holder.close()
                with self._lock:
                    self._holder = None
                log.warning("the connection that held the registry's lock broke")
            try:
                self._hold()
            except ConfigError as error:
                raise StateUnknown(f"another daemon has taken the registry: {error.detail}") from error
            # Not by `rows`, which may have an old connection to a server that is none any more.
            assert self._holder is not None
            ((epoch,),) = self._holder.execute("SELECT epoch FROM holder").fetchall()
            if epoch != self._epoch:
                raise StateUnknown(
                    "another daemon has had the registry meanwhile; what this one knows is out of date"
                )

    # Migrations -------------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        """In one transaction, alone: two that start at once migrate once, and a crash leaves the old version whole."""
        with self._connection() as connection:
            try:
                if connection.info.server_version < MIN_VERSION * 10_000:
                    raise ConfigError(
                        f"registry {self.place}: the server is PostgreSQL {connection.info.server_version // 10_000}",
                        hint=f"expected {MIN_VERSION} or newer",
                    )
                with connection.transaction():
                    connection.execute(
                        "SELECT pg_advisory_xact_lock($1, $2)", (LOCK_CLASS + 1, _number(self._schema))
                    )
                    self._migrate_alone(connection)
            except psycopg.Error as error:
                raise ConfigError(
                    f"registry {self.place}: {' '.join(str(error).split())}",
                    hint="its user needs a schema of its own, or the right to create one in that database",
                ) from error

    def _migrate_alone(self, connection: Connection) -> None:
        known = connection.execute("SELECT to_regnamespace($1) IS NOT NULL", (self._schema,)).fetchall()
        if not known[0][0]:
            _run_script(connection, f"CREATE SCHEMA {self._schema}")
        _run_script(connection, "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        rows = connection.execute("SELECT version FROM schema_version").fetchall()
        version = rows[0][0] if rows else 0
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"the registry has version {version}, this program knows {len(MIGRATIONS)}",
                hint="a newer cloud-seal wrote it; install that one",
            )
        for script in MIGRATIONS[version:]:
            _run_script(connection, script)
        if not rows:
            connection.execute("INSERT INTO schema_version (version) VALUES ($1)", (len(MIGRATIONS),))
        elif version < len(MIGRATIONS):
            connection.execute("UPDATE schema_version SET version = $1", (len(MIGRATIONS),))

    # Work -------------------------------------------------------------------------------------------------

    def run(self, work: Callable[[Transaction], _Result]) -> _Result:
        """Again where others' transactions, or a connection that had gone stale, got in the way."""
        self._keep_hold()
        for left in reversed(range(TRIES)):
            try:
                return self._once(work)
            except _Again as again:
                if not left:
                    raise Unavailable(
                        f"the registry has too much to do: {again}",
                        hint="try again in a moment",
                        retry_after_ms=100,
                    ) from again
            # In a thread of the registry's, never on the loop. The other one goes first: at once, each could take what
            # the other wants yet again.
            time.sleep(PAUSE_S * (TRIES - left))
            self._keep_hold()  # it may have been the server that went away
        raise AssertionError("unreachable")

    def _once(self, work: Callable[[Transaction], _Result]) -> _Result:
        with self._connection() as connection:
            try:
                connection.execute("BEGIN")
                result = work(_PostgresTransaction(connection))
            except BaseException as error:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                if isinstance(error, psycopg.Error):
                    raise self._explain("written", error, connection) from error
                raise
            try:
                done = connection.execute("COMMIT").statusmessage  # durable from here on
            except psycopg.Error as error:
                if _is_rolled_back(error):
                    raise self._explain("written", error, connection) from error
                raise StateUnknown(f"the registry's commit failed: {error}") from error
            if done != "COMMIT":
                raise AssertionError("a transaction went on after a statement of its had failed")
            return result

    def rows(self, query: str, *values: Value) -> list[Row]:
        """What is committed as the query begins."""
        check_values(values)
        for left in (1, 0):
            with self._connection() as connection:
                try:
                    return connection.execute(_numbered(query), values).fetchall()
                except psycopg.Error as error:
                    explained = self._explain("read", error, connection)
                    if not isinstance(explained, _Again):
                        raise explained from error
                    if not left:
                        raise self._unavailable("read", error) from error
        raise AssertionError("unreachable")

    def _explain(self, done: str, error: psycopg.Error, connection: Connection) -> Exception:
        """What nothing was done because of: ours, or one that says to do it again, or a mistake of the program's."""
        if isinstance(error, errors.SerializationFailure | errors.DeadlockDetected):
            return _Again(str(error))
        if connection.closed:
            return _Again(f"the connection broke: {error}")
        if isinstance(error, errors.DataError):
            return BadRequest(
                f"a value that the registry does not take: {error}", hint="check the values sent"
            )
        if isinstance(error, psycopg.OperationalError | errors.ReadOnlySqlTransaction):
            return self._unavailable(
                done, error
            )  # the disk is full, a lock or an answer took too long, a standby
        return error


class _Again(Exception):
    """Nothing was done, and at once it may work."""


class _PostgresTransaction(Transaction):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *values: Value) -> int:
        check_values(values)
        with _rules():
            return self._connection.execute(_numbered(statement), values).rowcount

    def execute_many(self, statement: str, rows: Sequence[Sequence[Value]]) -> int:
        for values in rows:
            check_values(values)
        with _rules(), self._connection.cursor() as cursor:
            cursor.executemany(_numbered(statement), rows)
            return max(cursor.rowcount, 0)  # -1 where there were no rows

    def rows(self, statement: str, *values: Value) -> list[Row]:
        check_values(values)
        with _rules():
            return self._connection.execute(_numbered(statement), values).fetchall()


_RULES: Final = {
    errors.UniqueViolation: Rule.UNIQUE,
    errors.ForeignKeyViolation: Rule.REFERENCE,
    errors.RestrictViolation: Rule.KEPT,
}


@contextmanager
def _rules() -> Iterator[None]:
    try:
        yield
    except psycopg.IntegrityError as error:
        text = error.diag.message_primary or str(error)
        raise Violation(_RULES.get(type(error), Rule.CHECK), text) from error


def _is_rolled_back(error: psycopg.Error) -> bool:
    """Whether a COMMIT that failed is known to have done nothing. Without the server's own word it is not."""
    state = error.sqlstate or ""
    return state[:2] in ("23", "40") and state != "40003"  # 40003: statement completion unknown


def _is_sound(connection: Connection) -> bool:
    """Whether the server has not closed it: then there would be something to read."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


@functools.cache
def _numbered(statement: str) -> str:
    """``?`` as ``$1``, ``$2`` …; no statement of ours has a question mark that is none."""
    pieces = statement.split("?")
    return pieces[0] + "".join(f"${number}{piece}" for number, piece in enumerate(pieces[1:], 1))


def _run_script(connection: Connection, script: str) -> None:
    connection.execute(script)


def _number(schema: str) -> int:
    """The second half of an advisory lock's number: 31 bits of a schema's name."""
    return zlib.crc32(schema.encode()) >> 1


def _shown(parameters: dict[str, Any], schema: str) -> str:
    """Where it is, for messages."""
    host = parameters.get("host", "the local socket")
    return f"{host}/{parameters.get('dbname', '')} (schema {schema})"


def _read_password(path: Path) -> str:
    try:
        return path.read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(
            f"registry_password_file {path}: {error}",
            hint="check the file and its owner",
            retry_after_ms=1_000,
        ) from error


def read_url(url: Url) -> tuple[dict[str, Any], str]:
    """What to connect with, and the schema; ``ConfigError`` for what is not safe or not known."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, strict_parsing=bool(parts.query))
        if parts.password is not None or "password" in dict(query):  # before any message can repeat it
            raise ConfigError("registry: a password in the URL", hint="name its file: registry_password_file")
        schema = dict(query).get("schema", "cloud_seal")
        ours = urlencode([pair for pair in query if pair[0] != "schema"])
        rest = url.partition("?")[0] + (f"?{ours}" if ours else "")
        parameters = {key: str(value) for key, value in conninfo_to_dict(rest).items() if value is not None}
    except (ValueError, psycopg.ProgrammingError) as error:
        raise _bad_url(" ".join(str(error).split())) from error
    if parts.scheme not in ("postgresql", "postgres"):
        raise _bad_url(f"{parts.scheme}:// is no database that this program knows")
    if unknown := parameters.keys() - _PARAMETERS:
        raise _bad_url(
            f"{', '.join(sorted(unknown))}: expected only {', '.join(sorted(_PARAMETERS))}, schema"
        )
    if _SCHEMA.fullmatch(schema) is None:
        raise _bad_url(f"schema {schema!r}: expected lower-case letters, digits and underscores")
    hosts = (parameters.get("hostaddr") or parameters.get("host", "")).split(",")
    is_here = all(not host or host.startswith("/") or is_loopback(host) for host in hosts)
    mode = parameters.setdefault("sslmode", "prefer" if is_here else "verify-full")
    if not is_here and mode != "verify-full":
        raise _bad_url(
            f"sslmode={mode}: a server elsewhere must prove its name; expected sslmode=verify-full, and its CA's"
            " certificates as sslrootcert"
        )
    return parameters, schema


def _bad_url(text: str) -> ConfigError:
    return ConfigError(
        f"registry: {text}",
        hint="e.g. postgresql://cloud_seal@db.example/seals?sslrootcert=/etc/cloud-seal/db-ca.pem",
    )
