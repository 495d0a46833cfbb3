"""PostgreSQL itself: a server that goes away and comes back, answers that are lost, locks, rights, TLS."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from appliance_fixture import free_port
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from postgres_server import PostgresServer
from registry.conftest import Place
from registry.keys import ACCOUNT, make_key
from registry.seals import ORGANISATION

from appliance.errors import ApplianceError, ConfigError, Conflict, StateUnknown, Unavailable
from appliance.preflight import check
from appliance.registry import Registry, open_registry
from appliance.registry import postgres as postgres_module
from appliance.registry.database import Transaction
from appliance.registry.postgres import MIGRATIONS, PostgresDatabase, read_url
from appliance.settings import Settings, Url, load_settings

SCHEMA = "appliance_test"


@pytest.fixture
def place(server: PostgresServer) -> Iterator[Place]:
    place = Place(server.url(SCHEMA))
    yield place
    place.close()
    with server.connect() as keeper:
        keeper.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.open()


def database(registry: Registry) -> PostgresDatabase:
    assert isinstance(registry._database, PostgresDatabase)
    return registry._database


def end_sessions(server: PostgresServer, which: str = "TRUE") -> int:
    """What the server's keepers do to sessions; how many there were. They are gone when this returns."""
    with server.connect() as keeper:
        ended = keeper.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE application_name = 'cloud-seal' AND {which}"
        ).fetchall()
    return len(ended)


HOLDS = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"


# A server that goes away ------------------------------------------------------------------------------------


def test_a_server_that_goes_away_and_comes_back(server: PostgresServer, place: Place) -> None:
    registry = place.open(hold=True)
    make_key(registry, "before")
    server.stop()
    try:
        for _ in range(2):
            with pytest.raises(Unavailable) as reading:
                registry.all_keys()
            with pytest.raises(Unavailable) as writing:
                registry.create_account(ACCOUNT)
            for caught in (reading, writing):
                assert caught.value.retry_after_ms and str(server.directory) in caught.value.detail
        with pytest.raises(Unavailable):
            place.open()
    finally:
        server.start()
    assert [key.name for key in registry.all_keys()] == ["before"], "the very next call goes through"
    registry.create_account(ACCOUNT)
    assert registry.all_accounts() == [ACCOUNT]
    with pytest.raises(ConfigError, match="in use"):
        place.open(hold=True)


def test_sessions_that_the_server_ended_meanwhile(server: PostgresServer, registry: Registry) -> None:
    """Nothing of ours was under way: nobody notices."""
    for act in (registry.all_keys, lambda: registry.create_account(ACCOUNT)):
        registry.all_accounts()
        assert end_sessions(server) == 1
        act()
    assert registry.all_accounts() == [ACCOUNT]


def test_a_session_that_ends_within_a_transaction(server: PostgresServer, registry: Registry) -> None:
    """Nothing was done, so it is done again, once."""
    tries: list[int] = []

    def work(transaction: Transaction) -> int:
        transaction.execute("INSERT INTO organisation (code, name, region) VALUES ('a', 'a', 'a')")
        tries.append(1)
        if len(tries) < 3:
            end_sessions(server)
        return transaction.execute("INSERT INTO organisation (code, name, region) VALUES ('b', 'b', 'b')")

    assert registry._database.run(work) == 1 and len(tries) == 3
    assert [one.code for one in registry.seals.organisations()] == ["a", "b"]


def test_a_session_that_ends_within_a_query(server: PostgresServer, registry: Registry) -> None:
    with pytest.raises(Unavailable, match="terminat"):
        registry._database.rows("SELECT pg_terminate_backend(pg_backend_pid())")
    assert registry.all_keys() == []


class Relay:
    """Between the registry and the server, at a socket of its own. ``cut`` says which half of a COMMIT is lost."""

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        self._server = server.directory / ".s.PGSQL.5432"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self.cut: str | None = None
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._relay, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._server))
            lose_answer = False
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data or (b"COMMIT" in data and self.cut == "request"):
                        return
                    lose_answer = b"COMMIT" in data and self.cut == "answer"
                    server.sendall(data)
                if server in ready:
                    data = server.recv(1 << 16)
                    if not data or lose_answer:
                        return
                    client.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def relay(server: PostgresServer, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    relay = Relay(server, tmp_path_factory.getbasetemp())
    yield relay
    relay.close()
    (tmp_path_factory.getbasetemp() / ".s.PGSQL.5432").unlink()


@pytest.mark.parametrize(("cut", "is_done"), [("request", False), ("answer", True)])
def test_a_commit_without_an_answer(
    relay: Relay, place: Place, tmp_path_factory: pytest.TempPathFactory, cut: str, is_done: bool
) -> None:
    """Not done, or done and the answer lost: from here the two look the same, so nobody goes on as if they knew."""
    registry = open_registry(
        Settings(
            registry=Url(
                f"postgresql://postgres@/postgres?host={tmp_path_factory.getbasetemp()}&schema={SCHEMA}"
            )
        )
    )
    try:
        registry.seals.add_organisation(ORGANISATION)
        relay.cut = cut
        with pytest.raises(StateUnknown, match="commit"):
            registry.create_account(ACCOUNT)
        relay.cut = None
    finally:
        registry.close()
    assert place.open().all_accounts() == ([ACCOUNT] if is_done else [])


# Transactions -----------------------------------------------------------------------------------------------


def test_a_deadlock_is_nobodys_error(registry: Registry) -> None:
    def insert(transaction: Transaction) -> None:
        transaction.execute_many(
            "INSERT INTO organisation (code, name, region) VALUES (?, '', '')", [("a",), ("b",)]
        )

    registry._database.run(insert)
    barrier = threading.Barrier(2)
    tries: list[str] = []

    def run(first: str, second: str) -> None:
        def work(transaction: Transaction) -> None:
            transaction.execute("UPDATE organisation SET name = name || ? WHERE code = ?", first, first)
            tries.append(first)
            if len(tries) <= 2:
                barrier.wait()  # each has one and wants the other's
            transaction.execute("UPDATE organisation SET name = name || ? WHERE code = ?", first, second)

        registry._database.run(work)

    threads = [threading.Thread(target=run, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) >= 3, "one of them was undone, and did it again"
    assert {"".join(sorted(one.name)) for one in registry.seals.organisations()} == {"ab"}


def test_others_that_are_in_the_way_for_ever(registry: Registry) -> None:
    def work(transaction: Transaction) -> None:
        raise psycopg.errors.SerializationFailure("could not serialize access")

    with pytest.raises(Unavailable, match="serialize"):
        registry._database.run(work)


def test_a_lock_that_somebody_holds_for_long(
    server: PostgresServer, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "BUSY_TIMEOUT_S", 0.05)
    registry = place.open()
    registry.create_account(ACCOUNT)
    with server.connect(SCHEMA) as keeper, keeper.transaction():
        keeper.execute("LOCK TABLE account IN EXCLUSIVE MODE")
        with pytest.raises(Unavailable, match="lock timeout"):
            registry.set_account_disabled("a", True)
        assert registry.all_accounts() == [ACCOUNT], "reading goes on"
    registry.set_account_disabled("a", True)


def test_all_connections_are_at_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(postgres_module, "CONNECTIONS", 1)
    registry = place.open()

    def work(transaction: Transaction) -> None:
        with pytest.raises(Unavailable, match="too much to do"):
            registry.all_keys()

    registry._database.run(work)
    assert registry.all_keys() == []


def test_a_transaction_that_goes_on_after_a_failure_is_not_taken_for_done(registry: Registry) -> None:
    """The server answers COMMIT with ROLLBACK then, and no error."""

    def work(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO organisation (code, name, region) VALUES ('a', '', '')")
        with contextlib.suppress(Conflict):
            transaction.execute("INSERT INTO organisation (code, name, region) VALUES ('a', '', '')")

    with pytest.raises(AssertionError, match="went on"):
        registry._database.run(work)
    assert registry.seals.organisations() == []


def test_what_is_committed_is_on_disk(server: PostgresServer, place: Place) -> None:
    with server.connect() as keeper:
        keeper.execute("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        rows = place.open()._database.rows("SHOW synchronous_commit")
        with server.connect() as keeper:
            keeper.execute("ALTER ROLE postgres SET synchronous_commit = local")
        kept = place.open()._database.rows("SHOW synchronous_commit")
    finally:
        with server.connect() as keeper:
            keeper.execute("ALTER ROLE postgres RESET synchronous_commit")
    assert (rows, kept) == ([("on",)], [("local",)]), "what its keepers chose otherwise stays"


# The daemon's lock ------------------------------------------------------------------------------------------


def test_one_daemon_for_each_schema(server: PostgresServer, place: Place) -> None:
    first = place.open(hold=True)
    for _ in range(2):
        with pytest.raises(ConfigError, match="in use"):
            place.open(hold=True)
    place.open().create_account(ACCOUNT)  # a front that follows, or an operator's command
    other = Place(server.url(f"{SCHEMA}_other"))
    other.open(hold=True)
    other.close()
    first.close()
    place.open(hold=True)
    with server.connect() as keeper:
        keeper.execute(f"DROP SCHEMA {SCHEMA}_other CASCADE")


def test_a_lock_that_broke_is_taken_again(server: PostgresServer, place: Place) -> None:
    registry = place.open(hold=True)
    assert end_sessions(server, HOLDS) == 1
    registry.create_account(ACCOUNT)
    with pytest.raises(ConfigError, match="in use"):
        place.open(hold=True)
    end_sessions(server)
    registry.set_account_disabled("a", True)
    assert registry.account("a").disabled


def test_a_daemon_whose_lock_another_has_ends(server: PostgresServer, place: Place) -> None:
    """What it has in memory may be what the other has changed."""
    registry = place.open(hold=True)
    end_sessions(server, HOLDS)
    other = place.open(hold=True)
    with pytest.raises(StateUnknown, match="taken"):
        registry.create_account(ACCOUNT)
    other.close()
    with pytest.raises(StateUnknown, match="out of date"):
        registry.create_account(ACCOUNT)
    assert place.open().all_accounts() == []


# Opening ----------------------------------------------------------------------------------------------------


def tables(server: PostgresServer) -> list[Any]:
    with server.connect(SCHEMA) as keeper:
        return keeper.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
            f" WHERE table_schema = '{SCHEMA}' UNION ALL"
            f" SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = '{SCHEMA}'"
            " UNION ALL SELECT event_object_table, trigger_name, event_manipulation, action_statement, ''"
            f" FROM information_schema.triggers WHERE trigger_schema = '{SCHEMA}' ORDER BY 1, 2, 3"
        ).fetchall()


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_past_version_becomes_this_one(server: PostgresServer, place: Place, version: int) -> None:
    place.open().close()
    fresh = tables(server)
    with server.connect(SCHEMA) as keeper:
        keeper.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        keeper.execute(f"CREATE SCHEMA {SCHEMA}")
        if version:
            keeper.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            keeper.execute(f"INSERT INTO schema_version VALUES ({version})")
        for script in MIGRATIONS[:version]:
            keeper.execute(script)
    registry = place.open()
    assert tables(server) == fresh
    make_key(registry)
    place.open().close()  # and once more, for nothing


def test_a_newer_version_is_refused_and_left_alone(server: PostgresServer, place: Place) -> None:
    place.open().close()
    with server.connect(SCHEMA) as keeper:
        keeper.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigError, match="has version 99"):
        place.open()


def test_a_migration_that_was_cut_short_is_done_again(
    server: PostgresServer, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.open().close()
    before = tables(server)
    broken = (*MIGRATIONS, "CREATE TABLE extra (x INTEGER); CREATE TABLE nonsense (")
    monkeypatch.setattr(postgres_module, "MIGRATIONS", broken)
    with pytest.raises(ConfigError, match="syntax error"):
        place.open()
    assert tables(server) == before
    monkeypatch.setattr(postgres_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE extra (x INTEGER)"))
    assert place.open()._database.rows("SELECT version FROM schema_version") == [(len(MIGRATIONS) + 1,)]


def test_two_that_start_at_once_migrate_once(server: PostgresServer, place: Place) -> None:
    for _ in range(3):
        barrier, errors = threading.Barrier(3), list[ApplianceError]()

        def open_it(barrier: threading.Barrier = barrier, errors: list[ApplianceError] = errors) -> None:
            barrier.wait()
            try:
                place.open()
            except ApplianceError as error:
                errors.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        place.close()
        with server.connect() as keeper:
            keeper.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def test_a_user_with_a_schema_of_its_own_and_no_more(server: PostgresServer, place: Place) -> None:
    with server.connect() as keeper:
        keeper.execute("CREATE ROLE plain LOGIN")
        try:
            with pytest.raises(ConfigError, match="permission denied"):
                open_registry(Settings(registry=server.url(SCHEMA, user="plain")))
            keeper.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION plain")
            registry = open_registry(Settings(registry=server.url(SCHEMA, user="plain")), hold=True)
            make_key(registry)
            registry.close()
        finally:
            keeper.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
            keeper.execute("DROP ROLE plain")


def test_an_old_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "MIN_VERSION", 99)
    with pytest.raises(ConfigError, match="99 or newer"):
        place.open()


def test_a_password_from_a_file(server: PostgresServer, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "password"
    with server.connect() as keeper:
        keeper.execute("CREATE ROLE with_password LOGIN PASSWORD 'first 密'")
        keeper.execute("GRANT CREATE ON DATABASE postgres TO with_password")
        keeper.execute("CREATE DATABASE with_password OWNER with_password")
    settings = Settings(
        registry=server.url(SCHEMA, user="with_password", database="with_password"),
        registry_password_file=file,
    )
    try:
        with pytest.raises(Unavailable, match=str(file)):
            open_registry(settings)
        file.write_text("wrong\n")
        with pytest.raises(Unavailable, match="authentication failed"):
            open_registry(settings)
        file.write_text("first 密\n")
        registry = open_registry(settings)
        with server.connect() as keeper:
            keeper.execute("ALTER ROLE with_password PASSWORD 'second'")
        file.write_text("second")
        end_sessions(server)
        assert registry.all_keys() == [], "the file is read for each connection"
        registry.close()
    finally:
        with server.connect() as keeper:
            keeper.execute("DROP DATABASE with_password")
            keeper.execute("DROP OWNED BY with_password")
            keeper.execute("DROP ROLE with_password")


@pytest.mark.parametrize(
    ("url", "parameters", "schema"),
    [
        ("postgresql://", {"sslmode": "prefer"}, "cloud_seal"),
        (
            "postgres://me@/db?host=/run/pg",
            {"user": "me", "dbname": "db", "host": "/run/pg", "sslmode": "prefer"},
            "cloud_seal",
        ),
        (
            "postgresql://127.0.0.1:5433/db?schema=a_1",
            {"host": "127.0.0.1", "port": "5433", "dbname": "db", "sslmode": "prefer"},
            "a_1",
        ),
        (
            "postgresql://db.example/db?sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem",
            {
                "host": "db.example",
                "dbname": "db",
                "sslmode": "verify-full",
                "sslrootcert": "/ca.pem",
                "sslcert": "/c.pem",
                "sslkey": "/k.pem",
            },
            "cloud_seal",
        ),
        (
            "postgresql://a.example,b.example/db",
            {"host": "a.example,b.example", "port": ",", "dbname": "db", "sslmode": "verify-full"},
            "cloud_seal",
        ),
    ],
)
def test_urls(url: str, parameters: dict[str, str], schema: str) -> None:
    assert read_url(Url(url)) == (parameters, schema)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://me:secret%ZZ@/db", "registry_password_file"),
        ("postgresql://me:secret@/db", "registry_password_file"),
        ("postgresql:///db?password=secret", "registry_password_file"),
        ("postgresql://db.example/db?sslmode=require", "verify-full"),
        ("postgresql://127.0.0.1,db.example/db?sslmode=disable", "verify-full"),
        ("postgresql:///db?hostaddr=192.0.2.1&sslmode=prefer", "verify-full"),
        ("postgresql:///db?schema=Public", "schema"),
        ("postgresql:///db?schema=a;b", "schema"),
        ("postgresql:///db?options=-cfsync%3Doff", "options"),
        ("postgresql:///db?nonsense=1", "nonsense"),
        ("postgresql:///db?nonsense", "nonsense"),
        ("postgresql://[/db", "URL"),
        ("mysql:///db", "mysql"),
    ],
)
def test_urls_that_are_refused(url: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_url(Url(url))
    assert text in str(caught.value) and "secret" not in str(caught.value)


def test_a_url_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "appliance.yaml"
    file.write_text("registry: postgresql:///seals\nregistry_password_file: pg.password\n")
    settings = load_settings(file)
    assert settings.registry == Url("postgresql:///seals") and isinstance(settings.registry, Url)
    assert settings.registry_password_file == tmp_path / "pg.password"
    file.write_text("registry: here.sqlite\n")
    assert load_settings(file).registry == tmp_path / "here.sqlite"


def test_a_check_without_a_server(tmp_path: Path) -> None:
    password = tmp_path / "password"
    settings = Settings(registry=Url("postgresql://db.example/seals"), registry_password_file=password)
    with pytest.raises(ConfigError, match="registry_password_file"):
        check(settings)
    password.touch(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        check(settings)
    password.chmod(0o600)
    check(settings)
    with pytest.raises(ConfigError, match="mysql"):
        check(Settings(registry=Url("mysql://db.example/seals")))
    with pytest.raises(ConfigError, match="has no password"):
        check(Settings(registry=tmp_path / "registry.sqlite", registry_password_file=password))


# TLS --------------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """One that signs itself, for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate_file, key_file


def test_a_server_proves_its_name(tmp_path: Path) -> None:
    server = PostgresServer()
    try:
        server.stop()
        right, key = certificate(server.directory, "localhost")
        wrong, _ = certificate(tmp_path, "localhost")
        other = server.directory.stat()
        for file in (right, key):
            file.chmod(0o600)
            os.chown(file, other.st_uid, other.st_gid)
        port = free_port()
        server.options = (
            "-c ssl=on",
            f"-c ssl_cert_file={right}",
            f"-c ssl_key_file={key}",
            "-c listen_addresses=127.0.0.1",
            f"-c port={port}",
        )
        server.start()
        address = f"postgresql://postgres@localhost:{port}/postgres?sslmode=verify-full&sslrootcert="
        registry = open_registry(Settings(registry=Url(f"{address}{right}")))
        assert registry._database.rows("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [
            (True,)
        ]
        registry.close()
        for root in (wrong, tmp_path / "none.pem"):
            with pytest.raises(Unavailable, match="certificate"):
                open_registry(Settings(registry=Url(f"{address}{root}")))
    finally:
        server.close()
