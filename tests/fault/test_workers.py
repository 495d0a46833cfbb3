"""Signer workers that die, hang, or never come up: clients notice nothing but time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from appliance_fixture import (
    PASSWORD,
    PIN,
    SO_PIN,
    Appliance,
    Bench,
    digests,
    is_alive,
    run,
    until,
    until_async,
    verifies,
)

from appliance import wire
from appliance.client import Client, SyncClient
from appliance.errors import Conflict, SignerFailed, Unavailable


def ready(bench: Bench, **settings: object) -> Appliance:
    appliance = bench.appliance(**settings).start()
    appliance.account("app", "*")
    return appliance


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a worker of ours, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


async def stream_while(appliance: Appliance, trouble: AsyncIterator[None], least_items: int) -> None:
    """Stream through trouble: no error, nothing twice, nothing out of order, every signature valid."""
    key = appliance.key("seal")
    block = digests(256)
    ended = asyncio.Event()

    async def make_trouble() -> None:
        async for _ in trouble:
            pass
        ended.set()

    def batches() -> object:
        sent = 0
        while not ended.is_set() or sent < least_items:
            sent += 256
            yield wire.digests(block)

    troubling = asyncio.ensure_future(make_trouble())
    index = 0
    answers = []
    async with await appliance.client(deadline_s=90) as client:
        async for answer in client.sign_batches("seal", batches(), depth=16):  # type: ignore[arg-type]
            assert answer.failed == 0
            assert answer.first_index == index
            index += answer.count
            answers.append(bytes(answer.signatures))
    await troubling
    signatures = [
        (answer[64 * at : 64 * at + 64], block[32 * at : 32 * at + 32])
        for answer in answers
        for at in range(256)
    ]
    assert len({signature for signature, _ in signatures}) == len(signatures) == index
    # Pieces of a batch that was split are put together again in their places: look at whole batches.
    step = max(1, len(answers) // 12)
    for number in range(0, len(answers), step):
        for signature, digest in signatures[256 * number : 256 * number + 256]:
            assert verifies(key, digest, signature)


async def wait_new_workers(appliance: Appliance, old: set[int]) -> set[int]:
    """Until both workers are up again."""
    wanted = appliance.profile["workers"]
    loop = asyncio.get_running_loop()

    async def up() -> set[int]:
        token = await loop.run_in_executor(None, appliance.token_status)
        return {worker["pid"] for worker in token["workers"]}

    deadline_at = loop.time() + 30
    while len(pids := await up()) < wanted or pids & old:
        assert loop.time() < deadline_at, "the workers do not come back"
        await asyncio.sleep(0.02)
    return pids


def test_one_worker_killed_again_and_again(bench: Bench) -> None:
    appliance = ready(bench)

    async def trouble() -> AsyncIterator[None]:
        pids: set[int] = set(appliance.worker_pids())
        for _ in range(4):
            await asyncio.sleep(0.1)  # let it work for a while
            victim = pids.pop()
            assert kill(victim)
            yield
            pids = await wait_new_workers(appliance, {victim})

    run(stream_while(appliance, trouble(), 3_000))
    assert appliance.metric("cloudseal_worker_restarts_total", token="softhsm2") == 4


def test_all_workers_killed_at_once_again_and_again(bench: Bench) -> None:
    appliance = ready(bench)

    async def trouble() -> AsyncIterator[None]:
        pids: set[int] = set(appliance.worker_pids())
        for _ in range(3):
            await asyncio.sleep(0.1)
            for pid in pids:
                assert kill(pid)
            yield
            pids = await wait_new_workers(appliance, pids)

    run(stream_while(appliance, trouble(), 3_000))
    assert appliance.metric("cloudseal_retried_parts_total", token="softhsm2") > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_workers_that_die_or_hang_under_lone_requests(bench: Bench, number: signal.Signals) -> None:
    """They pass the front in a lane: what a worker took along is signed by another, once, and nobody hears of it."""
    appliance = ready(bench, signers={"slice_deadline_s": 0.5})
    key = appliance.key("seal")
    ended = asyncio.Event()
    asked: list[bytes] = []

    async def ask(client: Client) -> None:
        while not ended.is_set():
            digest = os.urandom(32)
            asked.append(digest)
            signature = await client.sign("seal", digest)
            if len(asked) % 16 == 0:
                assert verifies(key, digest, signature)

    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for _ in range(8):
                client = await stack.enter_async_context(
                    await appliance.client(retries=False, batch_singles=False, deadline_s=60)
                )
                for _ in range(4):
                    group.create_task(ask(client))
            pids: set[int] = set(appliance.worker_pids())
            for victims in (1, 2, 1):
                await asyncio.sleep(0.2)
                gone = set(list(pids)[:victims])
                assert all(kill(pid, number) for pid in gone)
                pids = await wait_new_workers(appliance, gone)
            ended.set()

    run(story())
    assert appliance.metric("cloudseal_retried_parts_total", token="softhsm2") > 0
    assert appliance.metric("cloudseal_requests_total", type="sign", outcome="ok") == len(asked)
    assert appliance.metric("cloudseal_items_total", type="sign", outcome="signed") == len(asked)
    status = appliance.token_status()
    assert (status["queued_items"], status["inflight_items"]) == (0, 0)


def test_workers_killed_while_they_start(bench: Bench) -> None:
    """Killed before they are ready: the token counts as down for a moment, and a client with retries waits."""
    appliance = ready(bench)

    async def trouble() -> AsyncIterator[None]:
        for _ in range(5):
            pids = await until_async("a worker process", appliance.worker_pids)
            for pid in pids:
                kill(pid)
            await until_async("they are dead", lambda: not any(map(is_alive, pids)))  # noqa: B023
            yield

    run(stream_while(appliance, trouble(), 3_000))


def test_hanging_worker_is_killed_at_its_deadline(bench: Bench) -> None:
    appliance = ready(bench, signers={"slice_deadline_s": 1.0})

    async def trouble() -> AsyncIterator[None]:
        pids: set[int] = set(appliance.worker_pids())
        for number in range(2):
            await asyncio.sleep(0.1)
            victims = set(sorted(pids)[: 1 + number])  # one, then both
            for pid in victims:
                assert kill(pid, signal.SIGSTOP)
            yield
            pids = await wait_new_workers(appliance, victims)
            assert not any(map(is_alive, victims))

    run(stream_while(appliance, trouble(), 3_000))
    assert appliance.metric("cloudseal_worker_hangs_total", token="softhsm2") == 3


def test_worker_that_hangs_while_it_loads_a_key_is_killed(bench: Bench) -> None:
    """No slice is out yet: what hangs is the look for the key. It must not take the clients' deadlines."""
    appliance = ready(bench, signers={"slice_deadline_s": 1.0})
    key = appliance.key("seal")
    stopped = appliance.worker_pids()
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=20) as client:
        assert verifies(key, digests(1), client.sign("seal", digests(1)))
    assert not any(map(is_alive, stopped))


@pytest.mark.gauntlet  # making a key may take 30 s, and takes that long to be given up
def test_worker_that_hangs_when_keys_are_made_is_killed(bench: Bench) -> None:
    appliance = ready(bench, signers={"slice_deadline_s": 1.0})
    stopped = appliance.worker_pids()
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    answer = appliance.officer("POST", "/v1/keys", {"name": "a", "algorithm": "ecdsa-p256-sha256"})
    assert answer.status == 503
    until("the hanging one is replaced", lambda: not all(map(is_alive, stopped)))
    for pid in stopped:
        kill(pid, signal.SIGCONT)
    appliance.wait_state("up")
    until("the name is free again, or the key is there", lambda: a_key_or_none(appliance, "a"))


def a_key_or_none(appliance: Appliance, name: str) -> bool:
    answer = appliance.officer("POST", "/v1/keys", {"name": name, "algorithm": "ecdsa-p256-sha256"})
    if answer.status == 409:
        return appliance.officer("GET", f"/v1/keys/{name}").status == 200
    return answer.status == 201


def test_wrong_pin_is_tried_once_and_mended_by_sighup(bench: Bench) -> None:
    token = bench.token()
    appliance = bench.appliance(token.profile(workers=4))
    # A module between ours and SoftHSM2 would count log-ins; its log does it, too: one line for each refusal.
    appliance.set_pin("13131313")
    appliance.start("pin_refused")
    assert appliance.http("/readyz").status == 503
    attempts = appliance.log.count("CKR_PIN_INCORRECT")
    spy = pin_failures(appliance)
    until("all supervisors had their turn", lambda: spy_settled(appliance))
    assert pin_failures(appliance) == spy == 1, (attempts, appliance.log)

    appliance.signal(signal.SIGHUP)  # nothing was mended: one more attempt, not four
    until("it was tried again", lambda: pin_failures(appliance) > 1)
    until("all supervisors had their turn", lambda: spy_settled(appliance))
    assert pin_failures(appliance) == 2

    appliance.set_pin(PIN)
    appliance.signal(signal.SIGHUP)
    appliance.wait_state("up")
    appliance.account("app", "*")
    key = appliance.key("seal")
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        assert verifies(key, digests(1), client.sign("seal", digests(1)))


def pin_failures(appliance: Appliance) -> int:
    """How many log-ins the token refused: each worker says so on stderr, once, before it ends."""
    return appliance.log.count("seal-signer: login: C_Login")


def spy_settled(appliance: Appliance) -> bool:
    """Nothing starts any more."""
    return not appliance.worker_pids() and appliance.token_status()["state"] == "pin_refused"


def test_pin_rotated_while_workers_run(bench: Bench) -> None:
    """One worker dies and its successor is refused: those that are logged in go on; when the last is gone, clients
    learn it at once."""
    appliance = ready(bench)
    appliance.key("seal")
    appliance.set_pin("13131313")
    first, second = appliance.worker_pids()
    kill(first)
    until("the successor was refused", lambda: pin_failures(appliance) == 1)
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=5) as client:
        client.sign("seal", digests(1))
        kill(second)
        until("the token is given up", lambda: not appliance.token_status()["workers"])
    with (
        SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client,
        pytest.raises(Unavailable, match="pin_refused"),
    ):
        client.sign("seal", digests(1), deadline_s=5)
    until("nothing starts any more", lambda: not appliance.worker_pids())
    assert pin_failures(appliance) == 1
    appliance.set_pin(PIN)
    appliance.signal(signal.SIGHUP)
    appliance.wait_state("up")


def test_token_missing_at_start_then_made(bench: Bench) -> None:
    token = bench.token(initialised=False)
    appliance = bench.appliance(token.profile()).start("down")
    assert appliance.http("/readyz").status == 503
    assert appliance.http("/healthz").status == 200
    assert "no token has label" in appliance.token_status()["reason"]
    token.initialise()
    appliance.wait_state("up", 10)
    assert appliance.http("/readyz").status == 200


def test_the_log_does_not_repeat_itself_while_the_token_is_down(bench: Bench) -> None:
    token = bench.token(initialised=False)
    appliance = bench.appliance(token.profile(), signers={"max_restart_delay_s": 0.05}).launch()
    until("it was tried a few times", lambda: attempts(appliance) >= 6)
    assert appliance.log.count("did not start") <= 2, appliance.log


def attempts(appliance: Appliance) -> int:
    return appliance.log.count("seal-signer: token:")


def test_key_that_vanished_from_the_token_fails_and_comes_back(bench: Bench) -> None:
    token = bench.token()
    appliance = bench.appliance(token.profile()).start()
    appliance.account("app", "*")
    key = appliance.key("seal")
    appliance.stop()
    tokens = Path(token.root / "tokens")
    aside = token.root / "aside"
    tokens.rename(aside)
    token_again = tokens
    token_again.mkdir()
    token.run(
        "softhsm2-util", "--init-token", "--free", "--label", token.label, "--pin", PIN, "--so-pin", SO_PIN
    )
    appliance.start()
    with SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client:
        with pytest.raises(SignerFailed):
            client.sign("seal", digests(1), deadline_s=10)
        assert client.status(["seal"])[0].state is wire.KeyState.UNAVAILABLE
    # The operator restores the right token; no restart of the daemon.
    tokens.rename(token.root / "wrong")
    aside.rename(tokens)
    for pid in appliance.worker_pids():
        kill(pid)
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:

        def signs() -> bool:
            try:
                return verifies(key, digests(1), client.sign("seal", digests(1)))
            except SignerFailed:
                return False

        until("the key signs again", signs)


def test_disabling_a_key_beats_work_that_waits_for_it(bench: Bench) -> None:
    """All workers are gone when the key is switched off: what waits is told, not left to its deadline."""
    appliance = ready(bench)
    appliance.key("seal")

    async def story() -> None:
        async with await appliance.client(retries=False) as client:
            for pid in appliance.worker_pids():
                kill(pid)
            call = asyncio.ensure_future(client.sign("seal", digests(1), deadline_s=25))
            await asyncio.sleep(0)
            await asyncio.get_running_loop().run_in_executor(
                None, appliance.ordered, "POST", "/v1/keys/seal/disable"
            )
            with contextlib.suppress(Conflict):  # or signed, where it came before
                await call

    run(story())
