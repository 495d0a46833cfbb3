"""Several front processes on the same sockets: what one officer orders holds in all of them, and each may die."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, children_of, digests, is_alive, until

from appliance.cli.main import main
from appliance.client import SyncClient
from appliance.errors import Conflict, NotFound
from appliance.fronts import Place

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


def test_status_shows_all_fronts_whichever_answers(
    appliance: Appliance, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    until("every front can sign", lambda: appliance.status()["state"] == "ready")
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text(PASSWORD)
    command = ["status", "--config", str(appliance.config_file), "--account", "app"]
    command += ["--password-file", str(password)]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fronts"]["configured"] == FRONTS
    assert [one["front"] for one in document["fronts"]["known"]] == list(range(FRONTS))
    assert all(one["tokens"] for one in document["fronts"]["known"])
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"fronts\t{FRONTS}" in lines
    for index in range(FRONTS):
        assert any(line.startswith(f"{index}\t{appliance.profile['name']}\tup") for line in lines), lines
    # From elsewhere only the front that answered can be told of, and it is said that it is one of several.
    assert main([*command, "--address", appliance.address]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("fronts\t")]
    assert re.fullmatch(r"fronts\tshown is [01], which answered; on the appliance's machine all are", line)
    # And where health is off or not ours.
    appliance.change_settings(web={"health": None})
    assert main(command) == 0
    assert re.search(r"^fronts\t2; shown is [01], which answered$", capsys.readouterr().out, re.MULTILINE)


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


# Processors --------------------------------------------------------------------------------------------------


def test_workers_are_bound_to_the_processors_that_are_listed(bench: Bench) -> None:
    """Each to one in turn; the front stays where the system puts it."""
    processors = sorted(os.sched_getaffinity(0))[-2:]
    appliance = bench.appliance(signers={"processors": processors}).start()
    appliance.key()
    appliance.account("app", "seal")
    bound = [os.sched_getaffinity(pid) for pid in appliance.worker_pids()]
    assert sorted(bound, key=min) == [{processors[at % len(processors)]} for at in range(len(bound))]
    assert os.sched_getaffinity(appliance.pid) == os.sched_getaffinity(0)
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        client.sign("seal", digests(1))


@pytest.mark.parametrize(
    ("listed", "of_each"),
    [((), [(), ()]), ((5,), [(5,), (5,)]), ((1, 0), [(1,), (0,)]), ((1, 0, 3, 2, 5), [(1, 3, 5), (0, 2)])],
)
def test_fronts_share_what_is_listed(listed: tuple[int, ...], of_each: list[tuple[int, ...]]) -> None:
    assert [Place(index, 2).processors(listed) for index in range(2)] == of_each


def test_fronts_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, count, expected in ((None, 1, 1), (2, 1, 2), (2, 2, 1), (2, 3, 1), (64, 3, 21)):
        monkeypatch.setattr("os.cpu_count", lambda there=there: there)
        assert Place(0, count).processor_count == expected
