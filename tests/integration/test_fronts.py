"""Several front processes on the same sockets: what one officer orders holds in all of them, and each may die."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, children_of, digests, is_alive, until

from appliance.client import SyncClient
from appliance.errors import Conflict, NotFound

FRONTS = 2


@pytest.fixture
def appliance(bench: Bench) -> Appliance:
    made = bench.appliance(front_processes=FRONTS).start()
    until("both fronts serve", lambda: len(made.status().get("fronts", [])) == FRONTS - 1)
    made.key()
    made.account("app", "seal")
    return made


@contextlib.contextmanager
def a_client_on_each(appliance: Appliance) -> Iterator[dict[int, SyncClient]]:
    """Front -> a client that the kernel gave to it."""
    with contextlib.ExitStack() as stack:
        clients: dict[int, SyncClient] = {}

        def both() -> bool:
            client = stack.enter_context(SyncClient(appliance.address, account="app", password=PASSWORD))
            clients.setdefault(client.appliance_status()["front"], client)
            return len(clients) == FRONTS

        until("the kernel has given a connection to each front", both)
        yield clients


def followers(appliance: Appliance) -> list[int]:
    return [pid for pid, command in children_of(appliance.pid).items() if "--follow" in command]


def test_what_an_officer_orders_holds_in_every_front(appliance: Appliance) -> None:
    with a_client_on_each(appliance) as clients:
        for client in clients.values():
            client.sign("seal", digests(1))
        appliance.ordered("POST", "/v1/keys/seal/disable")
        for client in clients.values():
            with pytest.raises(Conflict, match="disabled"):
                client.sign("seal", digests(1))
        appliance.ordered("POST", "/v1/keys/seal/enable")
        appliance.ordered("DELETE", "/v1/accounts/app/grants/seal")
        for client in clients.values():
            with pytest.raises(NotFound):
                client.sign("seal", digests(1))


def test_numbers_are_those_of_all_fronts(appliance: Appliance) -> None:
    with a_client_on_each(appliance) as clients:
        for client in clients.values():
            client.sign("seal", digests(1))
        assert appliance.metric("cloudseal_requests_total", type="sign", outcome="ok") == FRONTS
        assert appliance.metric("cloudseal_connections") >= FRONTS
        assert appliance.metric("cloudseal_token_up", token=appliance.profile["name"]) == 1
        assert {one["front"] for one in appliance.status()["fronts"]} == set(range(1, FRONTS))


def test_a_follower_that_dies_is_replaced(appliance: Appliance) -> None:
    (follower,) = followers(appliance)
    with a_client_on_each(appliance) as clients:
        os.kill(follower, signal.SIGKILL)
        for client in clients.values():
            client.sign("seal", digests(1))
    until("another follows", lambda: followers(appliance) not in ([], [follower]))


def test_a_follower_that_does_not_hear_an_order_is_killed_before_the_order_is_answered(
    appliance: Appliance,
) -> None:
    (follower,) = followers(appliance)
    os.kill(follower, signal.SIGSTOP)
    appliance.ordered("POST", "/v1/keys/seal/disable")
    until("it is gone", lambda: not is_alive(follower))
    until("another follows", lambda: followers(appliance) not in ([], [follower]))
    with a_client_on_each(appliance) as clients:
        for client in clients.values():
            with pytest.raises(Conflict, match="disabled"):
                client.sign("seal", digests(1))


def test_without_a_leader_nobody_goes_on(appliance: Appliance) -> None:
    (follower,) = followers(appliance)
    processes = [follower, *children_of(follower), *children_of(appliance.pid)]
    appliance.kill()
    until("all have ended", lambda: not any(is_alive(pid) for pid in processes))
