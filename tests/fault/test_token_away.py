"""The token's backend goes away and comes back: SoftHSM2 behind ``p11-kit server``, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, RemoteToken, digests, run, until, verifies

from appliance import wire
from appliance.client import Client, SyncClient
from appliance.errors import Unavailable

COME_BACK_S = 2.0
"""The first good signature comes within that time of the backend's return."""


@pytest.fixture
def remote(bench: Bench) -> RemoteToken:
    made = bench.remote()
    made.up()
    return made


@pytest.fixture
def appliance(bench: Bench, remote: RemoteToken) -> Appliance:
    made = bench.appliance(remote.profile()).start()
    made.account("app", "*")
    return made


def unavailable(appliance: Appliance, client: SyncClient) -> Unavailable | None:
    try:
        client.sign("seal", digests(1), deadline_s=20)
    except Unavailable as error:
        return error
    return None


def test_gone_and_back(appliance: Appliance, remote: RemoteToken) -> None:
    key = appliance.key("seal")
    pid = appliance.pid
    with SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client:
        assert verifies(key, digests(1), client.sign("seal", digests(1)))
        for _ in range(2):
            remote.down()
            asked_at = time.monotonic()
            error = until("clear answers", lambda: unavailable(appliance, client))
            assert time.monotonic() - asked_at < 5, "by answer, not by deadline"
            assert error.retry_after_ms > 0 and "softhsm2" in error.detail
            appliance.wait_state("down")
            assert appliance.http("/readyz").status == 503
            assert appliance.http("/healthz").status == 200
            assert appliance.metric("cloudseal_token_up", token="softhsm2") == 0
            # While it is known to be down, the answer is immediate; verification and status go on.
            asked_at = time.monotonic()
            assert unavailable(appliance, client)
            assert time.monotonic() - asked_at < 5, "and 20 s were allowed"
            assert client.status(["seal"])[0].state is wire.KeyState.UNAVAILABLE
            assert client.verify("seal", wire.digests(digests(1)), bytes(64)) == b"\0"
            made = appliance.officer("POST", "/v1/keys", {"name": "x", "algorithm": "ecdsa-p256-sha256"})
            assert made.status == 503 and made.json["retry_after_ms"] > 0

            back_at = time.monotonic()
            remote.up()
            until("the first signature", lambda: unavailable(appliance, client) is None)
            assert time.monotonic() - back_at < COME_BACK_S
            assert verifies(key, digests(1), client.sign("seal", digests(1)))
            assert appliance.officer("GET", "/v1/keys/x").status == 404
            appliance.wait_state("up")
    assert appliance.pid == pid and appliance.process is not None and appliance.process.poll() is None


def test_a_stream_waits_and_goes_on(appliance: Appliance, remote: RemoteToken) -> None:
    key = appliance.key("seal")

    async def story() -> None:
        answers: list[wire.SignedAnswer] = []
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def outage() -> None:
            for _ in range(2):
                seen = len(answers)
                while len(answers) < seen + 5:
                    await asyncio.sleep(0.01)
                remote.down()
                await loop.run_in_executor(None, appliance.wait_state, "down")
                await loop.run_in_executor(None, remote.up)
                await loop.run_in_executor(None, appliance.wait_state, "up")
            ended.set()

        def batches() -> object:
            while not ended.is_set():
                yield wire.digests(digests(100))

        trouble = asyncio.ensure_future(outage())
        async with await Client.connect(
            appliance.address, account="app", password=PASSWORD, deadline_s=60
        ) as client:
            async for answer in client.sign_batches("seal", batches(), depth=4):  # type: ignore[arg-type]
                assert not answer.failed and answer.first_index == 100 * len(answers)
                answers.append(answer)
        await trouble
        signatures = {
            bytes(answer.signatures)[at : at + 64] for answer in answers for at in range(0, 6_400, 64)
        }
        assert len(signatures) == 100 * len(answers)
        for answer in answers[:: max(1, len(answers) // 10)]:
            assert verifies(key, digests(1), bytes(answer.signatures)[:64])

    run(story())


def test_sigterm_while_the_token_is_down(appliance: Appliance, remote: RemoteToken) -> None:
    appliance.key("seal")
    remote.down()
    with SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client:
        until("clear answers", lambda: unavailable(appliance, client))
    appliance.wait_state("down")
    appliance.stop(10)


def test_down_at_start(bench: Bench) -> None:
    remote = bench.remote()
    remote.up()
    remote.down()
    appliance = bench.appliance(remote.profile()).start("down")
    remote.up()
    appliance.wait_state("up", 10)
    appliance.key("seal")


def test_the_token_is_down_for_some_connections_only(bench: Bench) -> None:
    """The backend hangs rather than dies: workers are killed at their deadline, starts at theirs."""
    remote = bench.remote()
    remote.up()
    appliance = bench.appliance(remote.profile(start_timeout_s=1), signers={"slice_deadline_s": 1.0}).start()
    appliance.account("app", "*")
    key = appliance.key("seal")
    with SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client:
        client.sign("seal", digests(1))
        assert remote._process is not None
        os.killpg(remote._process.pid, signal.SIGSTOP)  # a process group of its own, which the fixture made
        try:
            until("clear answers", lambda: unavailable(appliance, client))
            appliance.wait_state("down")
        finally:
            os.killpg(remote._process.pid, signal.SIGCONT)
        until("it signs again", lambda: unavailable(appliance, client) is None, 10)
        assert verifies(key, digests(1), client.sign("seal", digests(1)))
