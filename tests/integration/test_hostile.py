"""Clients that mean harm, or are broken: each is told and cut off, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from appliance_fixture import (
    PASSWORD,
    Appliance,
    Bench,
    Wire,
    children_of,
    digests,
    rss_len,
    run,
    until,
    until_async,
    verifies,
)
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from appliance import wire
from appliance.client import SyncClient
from appliance.errors import Busy, DeadlineExceeded, Unavailable

WINDOW = {"requests": 64, "items": 70_000, "max_buffered_len": 33_554_432, "max_payload_len": 6_500_000}
TIMES = {"hello_s": 1.0, "frame_s": 1.5}
MAX_CONNECTIONS = 1_100


@pytest.fixture(scope="module")
def appliance(shared_bench: Bench) -> Appliance:
    made = shared_bench.appliance(
        window=WINDOW, times=TIMES, listen={"max_connections": MAX_CONNECTIONS}
    ).start(preexec_fn=_usual_limit)
    made.seal = made.key("seal")  # type: ignore[attr-defined]
    made.account("app", "seal")
    return made


def _usual_limit() -> None:
    """What systemd and most shells give a process: a thousand open files, of which more may be asked for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1_024, hard), hard))


@pytest.fixture(scope="module")
def seal(appliance: Appliance) -> EllipticCurvePublicKey:
    return appliance.seal  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(autouse=True)
def nothing_stays(appliance: Appliance) -> Iterator[None]:
    """After each test: no connection, nothing queued, and somebody well-behaved is served."""
    yield
    with SyncClient(appliance.address, account="app", password=PASSWORD) as client:
        client.sign("seal", digests(1))
    appliance.wait_quiet()


def frame(type_: int, payload: bytes = b"", request_id: int = 2, **header: int) -> bytes:
    """A frame with whatever header is asked for."""
    return (
        header.get("payload_len", len(payload)).to_bytes(4, "big")
        + bytes((type_, header.get("flags", 0)))
        + header.get("reserved", 0).to_bytes(2, "big")
        + request_id.to_bytes(8, "big")
        + payload
    )


HELLO = wire.encode_hello(wire.Hello(1, 1, "app", PASSWORD))
SIGN = wire.encode_sign(
    5, wire.SignRequest(b"j" * 16, 0, 0, wire.Priority.AUTOMATIC, "seal", wire.digests(digests(2)))
)


# Told and cut off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),  # a TLS ClientHello
        b"\xff" * 64,
        bytes(64),
        frame(1, b"CLDSEAL\0" + bytes(4_200)),
        frame(1, payload_len=0xFFFFFFFF),
        frame(1, payload_len=4_097),
        frame(1, b"not the magic bytes"),
        HELLO[:16] + b"CLDSEAL\0\x02\x09" + HELLO[26:],  # versions 2 to 9
        SIGN,  # before HELLO
        frame(5, request_id=1),
        HELLO + HELLO,
        HELLO + SIGN,  # before WELCOME
    ],
    ids=lambda data: data[:12].hex(),
)
def test_before_welcome(appliance: Appliance, data: bytes) -> None:
    errors = appliance.metric("cloudseal_protocol_errors_total")
    with appliance.wire(None) as client:
        client.send(data)
        assert client.receive_error().code == 2
        assert client.at_end()
    assert appliance.metric("cloudseal_protocol_errors_total") == errors + 1


@pytest.mark.parametrize(
    "data",
    [
        frame(0),
        frame(6),
        frame(64),
        frame(66, bytes(32)),  # a server's type
        frame(255),
        frame(5, flags=1),
        frame(5, reserved=1),
        frame(5, request_id=0),
        frame(5, bytes(65)),
        frame(2, payload_len=6_500_001),
        frame(2, payload_len=0xFFFFFFFF),
        frame(2, bytes(36)),
        frame(2, SIGN[16:-1]),
        frame(2, SIGN[16:] + b"\0"),
        frame(3, b""),
        frame(3, bytes(12)),
        frame(4, b"\0\0\0\1"),
        frame(4, b"\2\0\0\0"),
        HELLO,  # a second one
    ],
    ids=lambda data: data[:20].hex(),
)
def test_after_welcome(appliance: Appliance, data: bytes) -> None:
    with appliance.wire() as client:
        client.send(data)
        assert client.receive_error().code == 2
        assert client.at_end()


def test_request_id_in_use(appliance: Appliance) -> None:
    with appliance.wire() as client:
        client.send(SIGN + SIGN)
        frames = []
        with contextlib.suppress(EOFError):
            while True:
                frames.append(client.receive())
        assert frames[-1].type is wire.FrameType.ERROR and not frames[-1].request_id
        assert "in use" in wire.decode_error(frames[-1].payload).detail


@contextlib.contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Processes that do nothing while this is entered."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("beyond", ["requests", "items"])
def test_client_that_ignores_the_window(appliance: Appliance, beyond: str) -> None:
    # Workers that answer would make room in the window meanwhile.
    with appliance.wire() as client, stopped(children_of(appliance.pid)):
        if beyond == "requests":
            client.send(b"".join(client.sign_frame("seal", 1) for _ in range(WINDOW["requests"] + 1)))
        else:
            client.send(client.sign_frame("seal", 65_536) + client.sign_frame("seal", 5_000))
        got = client.receive()
        assert (got.type, got.request_id) == (wire.FrameType.ERROR, 0)
        assert wire.decode_error(got.payload).code == 3
        assert client.at_end()


# Slow clients -----------------------------------------------------------------------------------------------


def test_no_hello(appliance: Appliance) -> None:
    with appliance.wire(None) as client:
        client.send(HELLO[:10])
        assert "HELLO" in client.receive_error().detail
        assert client.at_end()


def test_half_a_frame(appliance: Appliance) -> None:
    with appliance.wire() as client:
        client.send(SIGN[:50])
        assert "not whole" in client.receive_error().detail
        assert client.at_end()


def test_a_byte_now_and_then_does_not_renew_a_frames_time(appliance: Appliance) -> None:
    began_at = time.monotonic()
    with appliance.wire() as client:
        client.sock.settimeout(0.1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(len(SIGN)):
                client.send(SIGN[at : at + 1])
                try:
                    assert client.sock.recv(1), "cut off without a word"
                except TimeoutError:
                    continue
                break
    assert time.monotonic() - began_at < 6


def test_idle_connection_stays(appliance: Appliance) -> None:
    """Longer than any of the times above: who has nothing to say is not cut off."""
    with appliance.wire() as client:
        client.sign("seal")
        slow = appliance.wire(
            None
        )  # its end tells that hello_s, and so the look at all connections, has passed
        assert slow.receive_error().code == 2
        slow.sock.close()
        half = appliance.wire()
        half.send(SIGN[:20])
        assert half.receive_error().code == 2
        half.sock.close()
        client.sign("seal")


def test_client_that_never_reads(appliance: Appliance, seal: EllipticCurvePublicKey) -> None:
    """Its answers are kept up to a bound, others are served, and in the end it is cut off."""
    before_len = rss_len(appliance.pid)
    with appliance.wire() as deaf, appliance.wire() as other:
        deaf.sock.settimeout(0.2)
        request = deaf.sign_frame("seal", 1_000)
        pings = b"".join(wire.encode_ping(1_000 + at, b"x" * 64) for at in range(2_000))
        sent = 0
        cut_off = False
        deadline_at = time.monotonic() + 20
        deaf.send(request)
        while not cut_off and time.monotonic() < deadline_at:
            try:
                sent += deaf.sock.send(pings[sent % len(pings) :])
            except TimeoutError:
                answer = other.sign("seal")
                assert verifies(seal, digests(1), bytes(answer.signatures))
            except (BrokenPipeError, ConnectionResetError):
                cut_off = True
        assert cut_off
    assert rss_len(appliance.pid) - before_len < 64 << 20


def test_stuck_readers_do_not_keep_the_permits(appliance: Appliance) -> None:
    """Five clients fill their answers and begin frames as large as all permits together; then others want some."""
    crowd = []
    large = frame(2, payload_len=6_500_000, request_id=9)
    for _ in range(5):
        deaf = appliance.wire()
        crowd.append(deaf)
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.send(deaf.sign_frame("seal", 20_000) + deaf.sign_frame("seal", 20_000) + large + bytes(100_000))
    with SyncClient(appliance.address, account="app", password=PASSWORD, deadline_s=60) as client:
        answer = client.verify("seal", wire.digests(digests(60_000)), bytes(64 * 60_000))
        assert answer == bytes(60_000)
    for deaf in crowd:
        deaf.sock.close()


# Many clients -----------------------------------------------------------------------------------------------


def test_a_thousand_connections_and_the_limit(appliance: Appliance) -> None:
    resource_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource_limit[0] < 2_000:
        pytest.skip("this process may not open as many sockets")
    refused = appliance.metric("cloudseal_connections_refused_total")
    crowd: list[Wire] = []
    try:
        for _ in range(10):  # a hundred at a time: no more than 256 may wait for their passwords to be hashed
            some = [appliance.wire(None) for _ in range(100)]
            crowd += some
            for connection in some:
                connection.send(HELLO)
            for connection in some:
                assert connection.receive().type is wire.FrameType.WELCOME
        for at, connection in enumerate(crowd):
            connection.send(wire.encode_ping(2, str(at).encode()))
        for at, connection in enumerate(crowd):
            assert bytes(connection.receive().payload) == str(at).encode()
        for connection in crowd[::50]:
            connection.sign("seal")
        assert appliance.metric("cloudseal_connections") == 1_000
        while len(crowd) < MAX_CONNECTIONS:
            crowd.append(appliance.wire())
        with appliance.wire(None) as one_more:
            answer = one_more.receive_error()
            assert (answer.code, answer.retry_after_ms > 0) == (Unavailable.wire_code, True)
            assert one_more.at_end()
        assert appliance.metric("cloudseal_connections_refused_total") == refused + 1
        assert appliance.http("/healthz").status == 200
        crowd.pop().sock.close()
        until("there is room again", lambda: appliance.metric("cloudseal_connections") < MAX_CONNECTIONS)
        crowd.append(appliance.wire())
    finally:
        for connection in crowd:
            connection.sock.close()


def test_permits_run_out_and_everybody_is_served(bench: Bench) -> None:
    """16 clients with 6 MB each at a time share 32 MiB of permits."""
    # With the usual time for a frame: on a busy machine 96 MB in all take longer than the time that others wait out.
    appliance = bench.appliance(window=WINDOW).start()
    appliance.key("seal")
    appliance.account("app", "seal")
    block = digests(60_000)

    async def one() -> None:
        async with await appliance.client(deadline_s=100) as client:
            signatures = bytes(64 * 60_000)
            assert await client.verify("seal", wire.digests(block), signatures) == b"\0" * 60_000

    async def everybody() -> None:
        before_len = rss_len(appliance.pid)
        await asyncio.gather(*(one() for _ in range(16)))
        assert rss_len(appliance.pid) - before_len < 200 << 20

    run(everybody())


def test_clients_that_leave_while_they_wait_for_permits(appliance: Appliance) -> None:
    large = frame(2, payload_len=6_500_000, request_id=9)
    for _ in range(3):
        crowd = [appliance.wire() for _ in range(12)]
        for client in crowd:
            client.send(large + bytes(1_000))
        for client in crowd:
            client.sock.close()
    until("all are gone", lambda: appliance.metric("cloudseal_connections") == 0)
    with SyncClient(appliance.address, account="app", password=PASSWORD) as well:
        assert not any(well.verify("seal", wire.digests(digests(60_000)), bytes(64 * 60_000)))


# Overload ---------------------------------------------------------------------------------------------------


def test_overload_and_deadlines(bench: Bench) -> None:
    appliance = bench.appliance(window={"max_queued_items": 65_536}).start()
    key = appliance.key("seal")
    appliance.account("app", "seal")
    block = wire.digests(digests(17_000))

    async def story() -> None:
        async with (
            await appliance.client(retries=False) as hasty,
            await appliance.client() as patient,
        ):
            calls = [hasty.sign_batch("seal", block, deadline_s=90) for _ in range(5)]
            whole = asyncio.gather(*calls, return_exceptions=True)
            await until_async("the first ones wait", lambda: appliance.token_status()["queued_items"])
            # With retries, `busy` is only a wait.
            wait = asyncio.ensure_future(patient.sign_batch("seal", block, deadline_s=120))
            # A deadline that cannot be met is told when it passes, by the server, not by the client's own clock.
            with pytest.raises(DeadlineExceeded, match="before all items were signed"):
                await hurried(appliance)
            outcomes = await whole
            busy = [one for one in outcomes if isinstance(one, Busy)]
            assert busy and all(one.retry_after_ms > 0 for one in busy)
            assert all(one in busy or not one.failed for one in outcomes)  # type: ignore[union-attr]
            answer = await wait
            assert not answer.failed
            assert verifies(key, digests(1), bytes(answer.signatures)[:64])

    run(story())
    appliance.wait_quiet()
    assert appliance.metric("cloudseal_queued_items", token="softhsm2") == 0
    assert appliance.metric("cloudseal_inflight_items", token="softhsm2") == 0
    assert appliance.metric("cloudseal_requests_total", type="sign", outcome="busy") > 0
    assert appliance.metric("cloudseal_requests_total", type="sign", outcome="deadline_exceeded") == 1


async def hurried(appliance: Appliance) -> None:
    """A request whose deadline_ms is short, over a connection that waits longer for the answer."""
    loop = asyncio.get_running_loop()

    def ask() -> wire.ErrorAnswer:
        with appliance.wire() as client:
            client.send(client.sign_frame("seal", 2_000, deadline_ms=50))
            return client.receive_error()

    answer = await loop.run_in_executor(None, ask)
    assert answer.code == DeadlineExceeded.wire_code, answer
    raise DeadlineExceeded(answer.detail)


# Fuzz -------------------------------------------------------------------------------------------------------


def _fuzz(appliance: Appliance, seed: int, conversations: int) -> None:
    """Valid conversations with some bytes changed, cut, doubled or moved; the answers must be frames, or an end."""
    chance = random.Random(seed)
    good = [
        HELLO,
        SIGN,
        wire.encode_sign(
            6,
            wire.SignRequest(b"k" * 16, 7, 9, wire.Priority.BULK, "seal", wire.messages([b"a", b"", b"bc"])),
        ),
        wire.encode_verify(
            7, wire.VerifyRequest(0, wire.KeyKind.NAME, b"seal", bytes(64), wire.digests(digests(1)))
        ),
        wire.encode_status(8, wire.StatusKind.KEYS, ["seal", "other"]),
        wire.encode_status(9, wire.StatusKind.APPLIANCE),
        wire.encode_ping(10, b"echo"),
    ]
    for _ in range(conversations):
        parts = [HELLO, *(chance.choice(good[1:]) for _ in range(chance.randrange(1, 6)))]
        at = chance.randrange(len(parts)) if chance.random() < 0.3 else chance.randrange(1, len(parts))
        mutated = bytearray(parts[at])
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(mutated))
            match chance.randrange(5):
                case 0:
                    mutated[place] = chance.randrange(256)
                case 1:
                    mutated[place] ^= 1 << chance.randrange(8)
                case 2 if len(mutated) > 2:
                    del mutated[place]
                case 3:
                    mutated[place:place] = chance.randbytes(chance.randrange(1, 5))
                case _:
                    mutated[place : place + 4] = chance.choice(
                        [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"]
                    )
        parts[at] = bytes(mutated)
        with appliance.wire(None) as client:
            client.sock.settimeout(5)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # Waiting for WELCOME is part of the protocol; a fuzzer that never did would test nothing behind it.
                client.send(parts[0])
                if at and client.receive().type is wire.FrameType.WELCOME:
                    rest = b"".join(parts[1:])
                    for start in range(0, len(rest), step := chance.choice([7, 64, 1 << 16])):
                        client.send(rest[start : start + step])
                client.sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(EOFError):
                    while True:
                        client.receive()  # raises where what comes is no frame of ours


def test_fuzzed_conversations_disturb_nobody(appliance: Appliance, seal: EllipticCurvePublicKey) -> None:
    before_len = rss_len(appliance.pid)
    done = threading.Event()
    complaints: list[BaseException] = []

    def undisturbed() -> None:
        try:
            with SyncClient(appliance.address, account="app", password=PASSWORD, retries=False) as client:
                while not done.is_set():
                    assert verifies(seal, digests(1), client.sign("seal", digests(1), deadline_s=10))
        except BaseException as complaint:  # noqa: BLE001  # it is raised in the test's own thread
            complaints.append(complaint)

    witness = threading.Thread(target=undisturbed)
    witness.start()
    try:
        _fuzz(appliance, seed=20_240_607, conversations=400)
    finally:
        done.set()
        witness.join()
    assert not complaints, complaints
    assert rss_len(appliance.pid) - before_len < 32 << 20


@pytest.mark.gauntlet
@pytest.mark.parametrize("seed", range(20))
def test_fuzz_for_long(appliance: Appliance, seed: int) -> None:
    _fuzz(appliance, seed, conversations=3_000)


# The officers' interface ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/accounts", b""),
        ("POST", "/v1/accounts", b"[]"),
        ("POST", "/v1/accounts", b"{" * 10_000),
        ("POST", "/v1/accounts", b"[" * 60_000),
        ("POST", "/v1/accounts", b"\xff\xfe"),
        ("POST", "/v1/accounts", b'{"name": "x", "password": "\\ud800 lone surrogate"}'),
        ("POST", "/v1/accounts", b'{"name": "\\ud800", "password": "long enough"}'),
        ("POST", "/v1/accounts", b'{"name": "x", "uid": -1}'),
        ("POST", "/v1/accounts", b'{"name": "x", "uid": 99999999999999999999999999}'),
        ("POST", "/v1/accounts", b'{"name": "x", "uid": true}'),
        ("POST", "/v1/accounts", b'{"name": "a b", "password": "long enough"}'),
        ("POST", "/v1/accounts", b'{"name": "*", "password": "long enough"}'),
        ("POST", "/v1/accounts", b'{"name": "x", "password": "short"}'),
        ("POST", "/v1/accounts", b'{"name": "x"}'),
        ("POST", "/v1/accounts", b'{"name": "x", "certificate_sha256": "zz"}'),
        ("POST", "/v1/accounts", b'{"name": "x", "password": "long enough", "more": 1}'),
        ("POST", "/v1/keys", b'{"name": "x", "algorithm": "rsa"}'),
        ("POST", "/v1/keys", b'{"name": "x", "algorithm": "sm2-sm3"}'),
        ("POST", "/v1/keys", b'{"name": "\\u0000", "algorithm": "ecdsa-p256-sha256"}'),
        ("POST", "/v1/accounts/app/grants", b'{"key": "\\ud800"}'),
        ("POST", "/v1/keys", b'{"name": 1, "algorithm": "ecdsa-p256-sha256"}'),
    ],
    ids=lambda value: value[:60] if isinstance(value, bytes) else value,
)
def test_officers_bad_requests(appliance: Appliance, method: str, path: str, body: bytes) -> None:
    answer = appliance.officer(method, path, raw=body)
    assert 400 <= answer.status < 500, answer.body
    assert set(answer.json) == {"error", "detail", "hint", "retry_after_ms"}


@pytest.mark.parametrize("path", ["/", "/v1/nothing", "/v1/keys/nothing", "/v1/keys/../../etc/passwd"])
def test_officers_unknown_paths(appliance: Appliance, path: str) -> None:
    answer = appliance.officer("GET", path)
    assert answer.status == 404 and answer.json["error"] == "not_found"


def test_officers_large_body(appliance: Appliance) -> None:
    answer = appliance.officer("POST", "/v1/accounts", raw=b'{"name": "' + b"x" * 100_000 + b'"}')
    assert answer.status in (400, 413), answer.status


def test_socket_modes(appliance: Appliance) -> None:
    assert appliance.officer_socket.stat().st_mode & 0o777 == 0o600
    assert appliance.socket.stat().st_mode & 0o777 == 0o660
    assert appliance.registry_file.stat().st_mode & 0o777 == 0o600
