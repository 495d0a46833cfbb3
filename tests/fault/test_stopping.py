"""SIGTERM drains, SIGKILL leaves nothing that the next start would trip over, a restart costs clients only time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import time

import pytest
from appliance_fixture import PASSWORD, Appliance, Bench, digests, is_alive, public_key, run, until, verifies

from appliance import wire
from appliance.client import SyncClient
from appliance.errors import Draining

REQUESTS = 40
ITEMS = 1_000


def ready(bench: Bench, **settings: object) -> Appliance:
    appliance = bench.appliance(**settings).start()
    appliance.account("app", "*")
    appliance.key("seal")
    return appliance


def test_what_was_accepted_is_answered_and_what_comes_is_refused(bench: Bench) -> None:
    appliance = ready(bench)
    with appliance.wire() as client, appliance.wire() as idle:
        client.send(b"".join(client.sign_frame("seal", ITEMS) for _ in range(REQUESTS)))
        first = client.receive()  # by now all were read: they came in one piece before it was answered
        until("all are accepted", lambda: appliance.token_status()["queued_items"] > 0)
        appliance.terminate()
        answered = {first.request_id: first}
        late_id = 0
        with contextlib.suppress(EOFError):
            while True:
                frame = client.receive()
                if frame.type is wire.FrameType.GOAWAY:
                    with pytest.raises(ConnectionRefusedError):
                        appliance.wire()
                    client.send(client.sign_frame("seal") + wire.encode_ping(9_999))
                    late_id = client._ids
                    continue
                assert frame.request_id not in answered
                answered[frame.request_id] = frame
        late = wire.decode_error(answered.pop(late_id).payload)
        assert late.code == Draining.wire_code and late.retry_after_ms > 0
        assert answered.pop(9_999).type is wire.FrameType.PONG
        assert len(answered) == REQUESTS
        for frame in answered.values():
            answer = wire.decode_signed(frame.payload)
            assert (answer.count, answer.failed) == (ITEMS, 0)
        assert idle.receive().type is wire.FrameType.GOAWAY
        assert idle.at_end()
    assert appliance.wait_exit() == 0
    appliance.check_nothing_left()


def test_verifications_are_answered_too(bench: Bench) -> None:
    appliance = ready(bench)
    with appliance.wire() as client:
        request = wire.VerifyRequest(
            0, wire.KeyKind.NAME, b"seal", bytes(64) * 60_000, wire.digests(digests(60_000))
        )
        client.send(wire.encode_verify(2, request))
        until("it is accepted", lambda: appliance.status()["verifying_items"])
        appliance.terminate()
        frames = [client.receive(), client.receive()]
        kinds = {frame.type for frame in frames}
        assert kinds == {wire.FrameType.GOAWAY, wire.FrameType.VERIFIED}
        assert client.at_end()
    assert appliance.wait_exit() == 0


def test_a_slow_reader_gets_all_its_answers(bench: Bench) -> None:
    """Its answers are made long before it takes them: the drain waits for it, up to drain_s."""
    appliance = ready(bench)
    with appliance.wire() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.send(client.sign_frame("seal", 20_000))
        until(
            "it is signed",
            lambda: appliance.metric("cloudseal_requests_total", type="sign", outcome="ok") == 1,
        )
        appliance.terminate()
        got = bytearray()
        deadline_at = time.monotonic() + 2.5  # longer than any grace that is not drain_s
        while (left_s := deadline_at - time.monotonic()) > 0:
            got += client.sock.recv(4_096)
            select.select([], [], [], min(0.05, left_s))  # this reader is slow
        client.sock.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.sock.recv(1 << 16):
                got += chunk
    assert len(got) >= wire.HEADER_LEN + 32 + 65 * 20_000
    assert appliance.wait_exit() == 0


def test_a_client_that_never_reads_cannot_stop_the_stop(bench: Bench) -> None:
    appliance = ready(bench, times={"drain_s": 1.0})
    with appliance.wire() as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.send(deaf.sign_frame("seal", 20_000))
        until(
            "it is signed",
            lambda: appliance.metric("cloudseal_requests_total", type="sign", outcome="ok") == 1,
        )
        appliance.stop(10)


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)]
)
def test_signals_that_stop(bench: Bench, numbers: tuple[int, ...]) -> None:
    appliance = ready(bench)
    with appliance.wire() as client:
        client.send(client.sign_frame("seal", 5_000))
        until("it is accepted", lambda: appliance.token_status()["queued_items"] > 0)
        for number in numbers:
            appliance.signal(number)
        kinds = {client.receive().type, client.receive().type}
        assert kinds == {wire.FrameType.GOAWAY, wire.FrameType.SIGNED}
    assert appliance.wait_exit() == 0
    appliance.check_nothing_left()


def test_sigterm_while_workers_start(bench: Bench) -> None:
    appliance = bench.appliance().launch()
    appliance.wait_listening()
    appliance.stop(10)


def test_sigterm_while_a_worker_hangs(bench: Bench) -> None:
    appliance = ready(bench, times={"drain_s": 2.0})
    pids = appliance.worker_pids()
    os.kill(pids[0], signal.SIGSTOP)
    appliance.stop(15)
    assert not any(map(is_alive, pids))


def test_sigterm_with_work_that_cannot_be_done(bench: Bench) -> None:
    """All workers hang when the stop comes: the drain ends at drain_s, the client is told."""
    appliance = ready(bench, times={"drain_s": 1.0})
    with appliance.wire() as client:
        client.sign("seal")
        for pid in appliance.worker_pids():
            os.kill(pid, signal.SIGSTOP)
        client.send(client.sign_frame("seal"))
        until("it is with a worker", lambda: appliance.token_status()["inflight_items"])
        appliance.terminate()
        assert client.receive().type is wire.FrameType.GOAWAY
        accepted_id = client.last_id
        client.send(client.sign_frame("seal"))  # it was allowed that key a moment ago
        refused, answer = client.receive(), client.receive()
        assert (refused.request_id, answer.request_id) == (client.last_id, accepted_id)
        assert wire.decode_error(refused.payload).detail == "the appliance is stopping"
        assert wire.decode_error(answer.payload).code == Draining.wire_code
        assert client.at_end()
    assert appliance.wait_exit(15) == 0
    appliance.check_nothing_left()


def test_sigterm_with_open_officer_and_health_connections(bench: Bench) -> None:
    appliance = ready(bench)
    with socket.socket(socket.AF_UNIX) as officer, socket.socket() as health:
        officer.connect(str(appliance.officer_socket))
        officer.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert officer.recv(100)
        health.connect(("127.0.0.1", appliance.health_port))
        health.sendall(b"GET /healthz HTTP/1.1\r\n")  # and nothing more
        appliance.stop(20)


def test_sigkill_leaves_nothing_in_the_way(bench: Bench) -> None:
    appliance = ready(bench)
    for _ in range(2):
        pids = appliance.worker_pids()
        assert len(pids) == 2
        appliance.kill()
        assert not any(map(is_alive, pids))
        assert appliance.socket.exists(), "or this test would prove nothing"
        appliance.start()
        with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
            client.sign("seal", digests(1))


@pytest.mark.parametrize("way", ["terminate", "kill"])
def test_a_restart_costs_a_stream_only_time(bench: Bench, way: str) -> None:
    appliance = ready(bench)

    async def story() -> None:
        loop = asyncio.get_running_loop()
        answers: list[wire.SignedAnswer] = []
        ended = asyncio.Event()

        def restart() -> None:
            if way == "kill":
                appliance.kill()
            else:
                appliance.stop()
            appliance.start()

        async def trouble() -> None:
            for _ in range(2):
                seen = len(answers)
                while len(answers) < seen + 5:
                    await asyncio.sleep(0.01)
                await loop.run_in_executor(None, restart)
            ended.set()

        def batches() -> object:
            while not ended.is_set():
                yield wire.digests(digests(100))

        troubling = asyncio.ensure_future(trouble())
        async with await appliance.client(deadline_s=60) as client:
            spki = (await client.status(["seal"]))[0].spki
            async for answer in client.sign_batches("seal", batches(), depth=4):  # type: ignore[arg-type]
                assert not answer.failed and answer.first_index == 100 * len(answers)
                answers.append(answer)
        await troubling
        assert verifies(public_key(spki), digests(1), bytes(answers[-1].signatures)[:64])
        everything = {bytes(one.signatures)[at : at + 64] for one in answers for at in range(0, 6_400, 64)}
        assert len(everything) == 100 * len(answers)

    run(story())
