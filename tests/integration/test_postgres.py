"""``cloud-seald`` with its registry in PostgreSQL: a database that goes away stops officers' acts, and no signature."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, digests, until
from postgres_server import PostgresServer

from appliance.client import SyncClient
from appliance.registry import open_registry
from appliance.settings import Settings


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def appliance(bench: Bench, server: PostgresServer) -> Appliance:
    made = bench.appliance(registry=str(server.url()), front_processes=2).start()
    until("both fronts serve", lambda: len(made.status().get("fronts", [])) == 1)
    made.key()
    made.account("app", "seal")
    return made


def test_a_database_that_goes_away_and_comes_back(
    bench: Bench, server: PostgresServer, appliance: Appliance
) -> None:
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        client.sign("seal", digests(1))
        server.stop()
        try:
            client.sign("seal", digests(1))
            refused = appliance.officer("POST", "/v1/keys/seal/disable")
            assert refused.status == 503 and refused.json["error"] == "unavailable", refused.body
            assert str(server.directory) in refused.json["detail"]
        finally:
            server.start()
        appliance.ordered("POST", "/v1/keys/seal/disable")
        appliance.ordered("POST", "/v1/keys/seal/enable")
        client.sign("seal", digests(1))
    second = bench.appliance(appliance.profile, registry=str(server.url())).launch()
    assert second.wait_exit() == 13
    assert "is in use" in second.log
    second.log_file.write_text("")
    appliance.stop()
    appliance.start()
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        client.sign("seal", digests(1))


def test_a_daemon_whose_registry_another_took_ends(server: PostgresServer, appliance: Appliance) -> None:
    with server.connect() as keeper:
        keeper.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        )
        # The daemon looks after its lock at its next act; whoever is quicker has it.
        other = open_registry(Settings(registry=server.url()), hold=True)
    try:
        began = time.monotonic()
        with pytest.raises(OSError):
            appliance.officer("POST", "/v1/keys/seal/disable")
        assert appliance.wait_exit() == 70
        assert "another daemon has taken the registry" in appliance.log
        assert time.monotonic() - began < 30
    finally:
        other.close()
    appliance.log_file.write_text("")
