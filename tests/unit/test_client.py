"""The client against a server that does exactly what the test says, in virtual time.

Over 900 lines, and one module on purpose: every test stands on the scripted server at its top.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from appliance import wire, wire_seals
from appliance.client import Client, Receipt, SyncClient
from appliance.client import asynchronous as client_module
from appliance.errors import (
    ApplianceError,
    BadRequest,
    Busy,
    Conflict,
    DeadlineExceeded,
    Denied,
    Draining,
    NotAuthenticated,
    NotFound,
    ProtocolError,
    SignerFailed,
    Unavailable,
    WindowExceeded,
)
from appliance.wire import Form, Frame, FrameReader, FrameType, ItemStatus, SignRequest

Run = Callable[[Any], Any]
WELCOME = wire.Welcome(wire.VERSION, 4, 100, 1 << 20, "scripted")


class Peer(asyncio.Protocol):
    """One connection at the server's end: what came, and what the test makes of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.reader = FrameReader(1 << 25)
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.peers.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.reader.receive(data)
        while (frame := self.reader.next_frame()) is not None:
            self.frames.put_nowait(Frame(frame.type, frame.request_id, bytes(frame.payload)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def send(self, *frames: bytes) -> None:
        self.transport.write(b"".join(frames))

    def close(self) -> None:
        self.transport.close()

    async def welcome(self, welcome: wire.Welcome = WELCOME) -> wire.Hello:
        frame = await self.frames.get()
        assert frame.type is FrameType.HELLO
        self.send(wire.encode_welcome(frame.request_id, welcome))
        return wire.decode_hello(frame.payload)

    async def sign(self) -> tuple[int, SignRequest]:
        frame = await self.frames.get()
        assert frame.type is FrameType.SIGN
        return frame.request_id, wire.decode_sign(frame.payload)

    async def settle(self) -> None:
        """Until the client has nothing more to say for now."""
        for _ in range(20):
            await asyncio.sleep(0)

    def signed(self, request_id: int, request: SignRequest, statuses: bytes | None = None) -> None:
        count = request.items.count
        statuses = statuses or bytes(count)
        answer = wire.SignedAnswer(
            request.job_id,
            request.first_index,
            count,
            count - statuses.count(0),
            statuses,
            signatures_of(request),
        )
        self.send(wire.encode_signed(request_id, answer))


class Server:
    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def peer(self, welcome: wire.Welcome = WELCOME) -> Peer:
        peer = await self.peers.get()
        await peer.welcome(welcome)
        return peer


def signatures_of(request: SignRequest) -> bytes:
    """Each signature is its digest, twice: an answer in a wrong place is seen."""
    block = bytes(request.items.data)
    return b"".join(block[at : at + 32] * 2 for at in range(0, len(block), 32))


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def block(*numbers: int) -> wire.Items:
    return wire.digests(b"".join(map(digest, numbers)))


@pytest.fixture
def script(run: Run, tmp_path: Path) -> Callable[[Callable[[Server, str], Awaitable[Any]]], Any]:
    """Run a test's coroutine with a server that listens."""

    def runner(test: Callable[[Server, str], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            server = Server()
            path = str(tmp_path / "sock")
            listener = await asyncio.get_running_loop().create_unix_server(lambda: Peer(server), path)
            try:
                async with asyncio.timeout(3_600):
                    return await test(server, f"unix:{path}")
            finally:
                listener.close()
                await listener.wait_closed()

        return run(main())

    return runner


Script = Callable[[Callable[[Server, str], Awaitable[Any]]], Any]


async def connected(
    server: Server, address: str, welcome: wire.Welcome = WELCOME, **options: Any
) -> tuple[Client, Peer]:
    connecting = asyncio.ensure_future(Client.connect(address, account="a", password="p", **options))
    peer = await server.peer(welcome)
    return await connecting, peer


def start(call: Awaitable[Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(call)


def remove(address: str) -> None:
    Path(address.removeprefix("unix:")).unlink()


# Connecting -------------------------------------------------------------------------------------------------


def test_hello_and_welcome(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(address, account="approvals", password="secret"))
        peer = await server.peers.get()
        assert await peer.welcome() == wire.Hello(1, 1, "approvals", "secret")
        client = await connecting
        assert client.welcome == WELCOME
        await client.close()
        await peer.lost.wait()

    script(test)


def test_a_refused_proof_ends_connect_at_once(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(address, account="a"))
        peer = await server.peers.get()
        await peer.frames.get()
        peer.send(wire.encode_error(0, NotAuthenticated("no")))
        peer.close()
        with pytest.raises(NotAuthenticated):
            await connecting
        assert asyncio.get_running_loop().time() < 1_001

    script(test)


def test_nobody_listens(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(Unavailable, match="cannot connect"):
            await Client.connect(f"unix:{tmp_path}/none", account="a", deadline_s=5)
        assert asyncio.get_running_loop().time() == pytest.approx(1_005)

    run(test())


@pytest.mark.parametrize("retries", [True, False])
def test_the_last_reason_is_told_when_the_client_gives_up(script: Script, retries: bool) -> None:
    """And each one meanwhile, to whoever listens."""
    heard: list[str] = []

    async def test(server: Server, address: str) -> None:
        options: dict[str, Any] = {"retries": retries, "on_trouble": lambda error: heard.append(error.detail)}
        connecting = start(Client.connect(address, account="a", deadline_s=5, **options))
        (await server.peers.get()).close()
        if retries:
            remove(address)
            while len(heard) < 2:
                await asyncio.sleep(0.01)
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(address.removeprefix("unix:"))
        with pytest.raises(Unavailable) as error:
            await connecting
        if retries:
            assert asyncio.get_running_loop().time() == pytest.approx(1_005, abs=0.1)
            assert error.value.detail == f"cannot connect: connection refused at {address}"
            assert heard[0].startswith(f"{address} closed the connection")
            assert heard[1] == f"cannot connect: no such file or directory at {address}"
            assert heard[-1] == error.value.detail
        else:
            assert asyncio.get_running_loop().time() < 1_001
            assert error.value.detail.startswith(f"{address} closed the connection") and not heard
        assert "cloud-seald" in error.value.hint

    script(test)


def test_a_reason_of_yesterday_is_not_told(script: Script, tmp_path: Path) -> None:
    """The connection was refused, then opened, and now it is the server that says nothing."""

    async def test(server: Server, address: str) -> None:
        later = tmp_path / "later"
        connecting = start(Client.connect(f"unix:{later}", account="a", deadline_s=5))
        await asyncio.sleep(0.1)
        later.symlink_to(address.removeprefix("unix:"))
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await connecting

    script(test)


def test_a_call_that_waited_in_vain_says_what_the_connection_died_of(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        asked = start(client.sign_batch("k", block(1), deadline_s=2))
        await peer.sign()
        remove(address)
        peer.close()
        await peer.lost.wait()
        with pytest.raises(DeadlineExceeded, match=r"without an answer; cannot connect: no such file"):
            await asked
        with pytest.raises(Unavailable, match="cannot connect: no such file"):
            await client.sign_batch("k", block(2), deadline_s=2)
        await client.close()

    script(test)


def test_a_server_that_says_nothing(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        with pytest.raises(DeadlineExceeded):
            await Client.connect(address, account="a", deadline_s=2)

    script(test)


def test_a_cancelled_connect_leaves_nothing(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(address, account="a"))
        peer = await server.peers.get()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await peer.lost.wait()

    script(test)


def test_turned_away_for_now_and_let_in_later(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(address, account="a"))
        peer = await server.peers.get()
        peer.send(wire.encode_error(0, Unavailable("too many connections", retry_after_ms=1_000)))
        peer.close()
        await server.peer()
        await (await connecting).close()

    script(test)


@pytest.fixture
def over_tcp(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """An address with a port that leads to the scripted server: the handshake of TLS is behind us."""

    def lead(address: str) -> str:
        async def open_link(client: Client, generation: int) -> Any:
            def make() -> Any:
                return client_module._Link(client, generation)

            loop = asyncio.get_running_loop()
            return (await loop.create_unix_connection(make, address.removeprefix("unix:")))[1]

        monkeypatch.setattr(Client, "_open", open_link)
        return "appliance.example:9443"

    return lead


def test_a_server_that_hangs_up_after_each_handshake_does_not_accept_the_certificate(
    script: Script, over_tcp: Callable[[str], str]
) -> None:
    """TLS 1.3 refuses a client's certificate after the handshake, and the appliance does so without an alert."""

    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(over_tcp(address), account="a"))
        for _ in range(client_module.MAX_MUTE_ENDS):
            (await server.peers.get()).close()
        with pytest.raises(NotAuthenticated, match=r"appliance\.example:9443 .*certificate") as error:
            await connecting
        assert "listen.tls.client_ca_file" in error.value.hint
        assert asyncio.get_running_loop().time() < 1_001, "at once"
        assert server.peers.empty(), "it did not try again"

    script(test)


def test_a_server_that_is_killed_after_the_handshake_refuses_nobody(
    script: Script, over_tcp: Callable[[str], str]
) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, over_tcp(address))
        call = start(client.sign_batch("k", block(1)))
        for _ in range(3):
            await peer.sign()
            peer.close()
            for _ in range(client_module.MAX_MUTE_ENDS - 1):
                (await server.peers.get()).close()
            peer = await server.peer()
        peer.signed(*await peer.sign())
        await call
        await client.close()

    script(test)


def test_a_unix_socket_has_no_certificates(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        connecting = start(Client.connect(address, account="a"))
        for _ in range(client_module.MAX_MUTE_ENDS + 1):
            (await server.peers.get()).close()
        await server.peer()
        await (await connecting).close()

    script(test)


# Calls ------------------------------------------------------------------------------------------------------


def test_answers_out_of_order_find_their_calls(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i, i + 100))) for i in range(4)]
        requests = [await peer.sign() for _ in calls]
        assert len({request.job_id for _, request in requests}) == 4
        for request_id, request in reversed(requests):
            peer.signed(request_id, request)
        for i, call in enumerate(calls):
            assert bytes((await call).signatures) == digest(i) * 2 + digest(i + 100) * 2
        await client.close()

    script(test)


def test_the_window_is_kept_in_requests(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i))) for i in range(6)]
        requests = [await peer.sign() for _ in range(4)]
        await peer.settle()
        assert peer.frames.empty()
        peer.signed(*requests[2])
        requests.append(await peer.sign())
        await peer.settle()
        assert peer.frames.empty()
        peer.signed(*requests[0])
        requests.append(await peer.sign())
        order = [int.from_bytes(bytes(request.items.data), "big") for _, request in requests]
        assert order == list(range(6)), "first come, first served"
        for one in (1, 3, 4, 5):
            peer.signed(*requests[one])
        await asyncio.gather(*calls)
        await client.close()

    script(test)


def test_the_window_is_kept_in_items_and_a_large_batch_is_not_overtaken(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        first = start(client.sign_batch("k", block(*range(60))))
        one = await peer.sign()
        large = start(client.sign_batch("k", block(*range(80))))
        await peer.settle()
        small = [start(client.sign_batch("k", block(i))) for i in range(3)]
        await peer.settle()
        assert peer.frames.empty(), "small ones would fit, but the large one was first"
        peer.signed(*one)
        two = await peer.sign()
        assert two[1].items.count == 80
        for request in [two, *[await peer.sign() for _ in small]]:
            peer.signed(*request)
        await asyncio.gather(first, large, *small)
        await client.close()

    script(test)


def test_more_than_the_window_at_once_is_refused_here(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, _ = await connected(server, address)
        with pytest.raises(BadRequest, match="window of 100"):
            await client.sign_batch("k", block(*range(101)))
        await client.close()

    script(test)


def test_seal_signatures_leave_as_they_are(script: Script) -> None:
    """They have tens of kilobytes each, so that their frame is never put together here."""

    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        items = [(bytes((number,)) * 50_000, digest(number)) for number in range(3)]
        calls = [start(client.ping()), start(client.verify_seals(items)), start(client.ping())]
        frames = [await peer.frames.get() for _ in calls]
        (asked,) = [frame for frame in frames if frame.type is FrameType.VERIFY_SEAL]
        request = wire_seals.decode_verify_seal(asked.payload)
        assert bytes(request.values) == b"".join(value for value, _ in items)
        assert bytes(request.hashes) == b"".join(one for _, one in items)
        verified = [wire_seals.SealVerified(wire_seals.SealVerdict.GOOD, *[wire_seals.SealCheck(0)] * 3)] * 3
        for frame in frames:
            if frame.type is FrameType.PING:
                peer.send(wire.encode_frame(FrameType.PONG, frame.request_id, frame.payload))
            else:
                peer.send(wire_seals.encode_seals_verified(frame.request_id, verified))
        assert (await asyncio.gather(*calls))[1] == verified
        too_long = (bytes(WELCOME.max_payload_len), bytes(32))
        with pytest.raises(BadRequest, match="smaller"):
            await client.verify_seals([too_long])
        await client.close()

    script(test)


def test_a_request_that_is_too_long_hurts_nobody_else(script: Script) -> None:
    """The server answers an over-long frame by closing: it must not be sent."""

    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        good = start(client.sign_batch("k", block(1)))
        request = await peer.sign()
        with pytest.raises(BadRequest, match="smaller"):
            await client.sign_message("k", bytes((1 << 20) + 1))
        peer.signed(*request)
        await good
        await client.close()

    script(test)


@pytest.mark.parametrize("give_up", ["cancel", "deadline"])
def test_a_call_that_was_given_up_counts_until_the_server_has_answered(script: Script, give_up: str) -> None:
    """The server still counts it: a client that forgot it would be cut off for going beyond the window."""

    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i), deadline_s=1 if i == 0 else 30)) for i in range(4)]
        requests = [await peer.sign() for _ in calls]
        if give_up == "cancel":
            calls[0].cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await calls[0]
        late = start(client.sign_batch("k", block(9)))
        await peer.settle()
        assert peer.frames.empty(), "four are unanswered"
        peer.signed(*requests[0])
        requests.append(await peer.sign())
        for request in requests[1:]:
            peer.signed(*request)
        await asyncio.gather(late, *calls[1:])
        assert not client._pending and not client._pending_items
        await client.close()

    script(test)


def test_a_waiter_that_is_cancelled_as_it_is_woken_hands_its_turn_on(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        welcome = WELCOME._replace(window_requests=1)
        client, peer = await connected(server, address, welcome)
        first = start(client.sign_batch("k", block(1)))
        request = await peer.sign()
        second, third = (start(client.sign_batch("k", block(i))) for i in (2, 3))
        await peer.settle()
        link = client._link
        assert link is not None
        answer = wire.SignedAnswer(request[1].job_id, 0, 1, 0, b"\0", bytes(64))
        link.data_received(wire.encode_signed(request[0], answer))
        second.cancel()  # in the same turn: woken, and never to run
        await first
        request = await peer.sign()
        assert request[1].items == block(3)
        peer.signed(*request)
        await third
        await client.close()

    script(test)


def test_the_deadline_travels_and_holds(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        call = start(client.sign_batch("k", block(1), deadline_s=5))
        _, request = await peer.sign()
        assert 4_900 <= request.deadline_ms <= 5_000
        began_at = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await call
        assert 4.9 <= asyncio.get_running_loop().time() - began_at <= 5.1
        await client.close()

    script(test)


def test_a_deadline_of_nothing_is_not_the_default_one(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, _ = await connected(server, address)
        with pytest.raises(DeadlineExceeded):
            await client.ping(deadline_s=0)
        assert asyncio.get_running_loop().time() < 1_001
        await client.close()

    script(test)


def test_busy_is_retried_when_the_server_says(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        call = start(client.sign_batch("k", block(1), job_id=b"j" * 16, first_index=7))
        request_id, request = await peer.sign()
        asked_at = asyncio.get_running_loop().time()
        peer.send(wire.encode_error(request_id, Busy("full", retry_after_ms=2_000)))
        again_id, again = await peer.sign()
        assert 2.0 <= asyncio.get_running_loop().time() - asked_at <= 2.7
        assert again_id != request_id
        assert (again.job_id, again.first_index, again.items) == (b"j" * 16, 7, request.items)
        assert again.deadline_ms < request.deadline_ms
        peer.signed(again_id, again)
        await call
        await client.close()

    script(test)


@pytest.mark.parametrize(
    ("error", "retries", "deadline_s"),
    [
        (Busy("full", retry_after_ms=10), False, 30),
        (Busy("full", retry_after_ms=40_000), True, 30),
        (Unavailable("not configured"), True, 30),  # retry_after_ms 0: it will not help
        (NotFound("no such key"), True, 30),
        (Denied("no"), True, 30),
        (Conflict("disabled"), True, 30),
        (SignerFailed("no"), True, 30),
        (DeadlineExceeded("late"), True, 30),
    ],
)
def test_what_is_not_retried(script: Script, error: ApplianceError, retries: bool, deadline_s: float) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address, retries=retries)
        call = start(client.sign_batch("k", block(1), deadline_s=deadline_s))
        request_id, _ = await peer.sign()
        peer.send(wire.encode_error(request_id, error))
        with pytest.raises(type(error)) as caught:
            await call
        assert (caught.value.detail, caught.value.retry_after_ms) == (error.detail, error.retry_after_ms)
        assert peer.frames.empty()
        pinging = start(client.ping())
        frame = await peer.frames.get()
        peer.send(wire.encode_frame(FrameType.PONG, frame.request_id, frame.payload))
        await pinging
        await client.close()

    script(test)


def test_singles_of_one_turn_travel_as_one_batch(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign("k", digest(i))) for i in range(5)] + [
            start(client.sign("other", digest(9)))
        ]
        for _ in range(2):
            request_id, request = await peer.sign()
            assert request.items.count == (5 if request.key == "k" else 1)
            peer.signed(request_id, request)
        assert await asyncio.gather(*calls) == [digest(i) * 2 for i in (0, 1, 2, 3, 4, 9)]
        await client.close()

    script(test)


def test_one_bad_single_does_not_fail_its_neighbours(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign("k", digest(i))) for i in range(3)]
        request_id, request = await peer.sign()
        peer.signed(request_id, request, bytes((0, ItemStatus.REFUSED, 0)))
        good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert (good, fine) == (digest(0) * 2, digest(2) * 2)
        assert isinstance(bad, SignerFailed) and "refused" in bad.detail
        await client.close()

    script(test)


def test_an_answer_to_another_request_is_refused(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        for change in ({"job_id": bytes(16)}, {"first_index": 1}, {"items": block(1, 2)}):
            call = start(client.sign_batch("k", block(1)))
            request_id, request = await peer.sign()
            peer.signed(request_id, request._replace(**change))
            with pytest.raises(ProtocolError, match="another request"):
                await call
        await client.close()

    script(test)


def test_an_answer_of_another_type_is_refused(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        call = start(client.ping())
        frame = await peer.frames.get()
        peer.send(wire.encode_verified(frame.request_id, b"\1"))
        with pytest.raises(ProtocolError, match="expected PONG, got VERIFIED"):
            await call
        await client.close()

    script(test)


def test_an_answer_that_nobody_waits_for_is_dropped(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        peer.send(wire.encode_verified(77, b"\1"))
        call = start(client.verify("k", block(1), bytes(64)))
        frame = await peer.frames.get()
        peer.send(wire.encode_verified(frame.request_id, b"\0"))
        assert await call == b"\0"
        await client.close()

    script(test)


def test_status_that_is_no_json(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        for document in (b"{", b"[]", b"\xff"):
            call = start(client.appliance_status())
            frame = await peer.frames.get()
            peer.send(wire.encode_appliance_status(frame.request_id, document))
            with pytest.raises(ProtocolError):
                await call
        await client.close()

    script(test)


# Connections lost -------------------------------------------------------------------------------------------


def test_a_reconnect_sends_the_same_job_and_index(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i), first_index=i, job_id=b"j" * 16)) for i in range(3)]
        before = [await peer.sign() for _ in calls]
        peer.signed(*before[1])
        await calls[1]
        peer.close()
        peer = await server.peer()
        after = [await peer.sign() for _ in range(2)]
        assert after == [before[0], before[2]]
        for request in after:
            peer.signed(*request)
        await asyncio.gather(*calls)
        await client.close()

    script(test)


def test_a_call_given_up_while_disconnected_is_not_sent_again_and_frees_the_window(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address, WELCOME._replace(window_requests=1))
        given_up = start(client.sign_batch("k", block(1)))
        await peer.sign()
        peer.close()
        await peer.lost.wait()
        given_up.cancel()
        peer = await server.peer(WELCOME._replace(window_requests=1))
        call = start(client.sign_batch("k", block(2)))
        request = await peer.sign()
        assert request[1].items == block(2)
        peer.signed(*request)
        await call
        await client.close()

    script(test)


def test_pauses_between_connections_grow(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        times = []
        for _ in range(9):
            peer.close()
            times.append(asyncio.get_running_loop().time())
            peer = await server.peers.get()
        pauses = [b - a for a, b in itertools.pairwise(times)]
        assert pauses[0] <= client_module.FIRST_BACK_OFF_S
        assert (
            max(pauses) <= client_module.MAX_BACK_OFF_S
            and min(pauses[-2:]) >= client_module.MAX_BACK_OFF_S / 2
        )
        await client.close()

    script(test)


def test_calls_wait_for_the_next_connection(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        peer.close()
        await peer.lost.wait()
        call = start(client.sign_batch("k", block(1)))
        peer = await server.peer()
        peer.signed(*await peer.sign())
        await call
        await client.close()

    script(test)


def test_goaway(script: Script) -> None:
    """What was accepted is answered; what comes next waits for the next server."""

    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        accepted = start(client.sign_batch("k", block(1)))
        request = await peer.sign()
        peer.send(wire.encode_goaway())
        await peer.settle()
        later = start(client.sign_batch("k", block(2)))
        await peer.settle()
        assert peer.frames.empty()
        peer.signed(*request)
        await accepted
        peer.close()
        peer = await server.peer()
        peer.signed(*await peer.sign())
        await later
        await client.close()

    script(test)


def test_draining_is_retried(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        call = start(client.sign_batch("k", block(1)))
        request_id, _ = await peer.sign()
        peer.send(wire.encode_error(request_id, Draining("stopping", retry_after_ms=1_000)))
        peer.close()
        peer = await server.peer()
        peer.signed(*await peer.sign())
        await call
        await client.close()

    script(test)


# The end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [WindowExceeded("too much"), ProtocolError("broken"), NotAuthenticated("gone")]
)
def test_a_fatal_error_ends_all_calls_and_those_to_come(script: Script, error: ApplianceError) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i))) for i in range(6)]
        for _ in range(4):
            await peer.sign()
        peer.send(wire.encode_error(0, error))
        for call in calls:
            with pytest.raises(type(error)):
                await call
        for _ in range(2):  # at once, and when the connection has gone
            with pytest.raises(type(error)):
                await client.ping()
            await peer.lost.wait()
            await peer.settle()
        assert asyncio.get_running_loop().time() < 1_001, "nothing waited for a deadline"
        await client.close()
        assert server.peers.empty(), "it did not connect again"

    script(test)


def test_a_server_that_speaks_another_protocol(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        call = start(client.ping())
        await peer.frames.get()
        peer.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ProtocolError):
            await call
        await client.close()

    script(test)


def test_close_ends_every_call(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        calls = [start(client.sign_batch("k", block(i))) for i in range(6)]
        calls += [start(client.sign("k", digest(i))) for i in range(3)]
        for _ in range(4):
            await peer.sign()
        calls.append(start(client.sign("k", digest(1))))
        await client.close()
        for call in calls:
            with pytest.raises(Unavailable, match="closed"):
                await call
        for late in (client.ping(), client.sign("k", digest(1)), client.sign_batch("k", block(1))):
            with pytest.raises(Unavailable, match="closed"):
                await late
        assert asyncio.get_running_loop().time() < 1_001
        await client.close()

    script(test)


# Streams ----------------------------------------------------------------------------------------------------


async def answer_all(peer: Peer, turns: int, *, backwards: int = 1) -> int:
    """Answer ``turns`` batches, each few of them in the wrong order; the most that were out at a time."""
    most, held = 0, []
    for turn in range(turns):
        held.append(await peer.sign())
        await peer.settle()
        most = max(most, len(held) + peer.frames.qsize())
        if len(held) == backwards or turn == turns - 1:
            for request in reversed(held):
                peer.signed(*request)
            held.clear()
    return most


def test_a_stream_is_in_order_whatever_the_answers_are(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        answering = start(answer_all(peer, 10, backwards=3))
        got = [
            receipt
            async for receipt in client.sign_stream(
                "k", map(digest, range(95)), batch_items=10, depth=3, first_index=1_000, job_id=b"j" * 16
            )
        ]
        assert got == [Receipt(b"j" * 16, 1_000 + i, ItemStatus.SIGNED, digest(i) * 2) for i in range(95)]
        await answering
        await client.close()

    script(test)


def test_a_stream_keeps_no_more_than_its_depth(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        taken = 0

        def endless() -> Iterator[bytes]:
            nonlocal taken
            while True:
                yield digest(taken)
                taken += 1

        stream = client.sign_stream("k", endless(), batch_items=10, depth=3)
        answering = start(answer_all(peer, 20))
        for i in range(200):
            receipt = await anext(stream)
            assert receipt.signature == digest(i) * 2
            assert taken - i <= 10 * (3 + 2)
        assert await answering <= 3
        await stream.aclose()
        await client.close()

    script(test)


def test_a_failed_batch_ends_the_stream_and_leaves_nothing(script: Script) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        closed = False

        async def source() -> AsyncIterator[bytes]:
            nonlocal closed
            try:
                for i in range(1_000):
                    yield digest(i)
            finally:
                closed = True

        stream = client.sign_stream("k", source(), batch_items=10, depth=3)
        reading = start(anext(stream))
        request_id, _ = await peer.sign()
        peer.send(wire.encode_error(request_id, NotFound("no key")))
        with pytest.raises(NotFound):
            await reading
        assert closed
        await client.close()

    script(test)


@pytest.mark.parametrize(
    ("options", "items"),
    [
        ({"batch_items": 0}, [bytes(32)]),
        ({"batch_items": 65_537}, [bytes(32)]),
        ({"depth": 0}, [bytes(32)]),
        ({}, [bytes(31), bytes(33)]),  # together they are as long as two digests
    ],
)
def test_what_makes_no_stream(script: Script, options: dict[str, Any], items: list[bytes]) -> None:
    async def test(server: Server, address: str) -> None:
        client, peer = await connected(server, address)
        with pytest.raises(BadRequest):
            await anext(client.sign_stream("k", items, **options))
        assert peer.frames.empty()
        await client.close()

    script(test)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_digest_has_32_bytes(script: Script, length: int) -> None:
    async def test(server: Server, address: str) -> None:
        client, _ = await connected(server, address)
        with pytest.raises(BadRequest):
            await client.sign("k", bytes(length))
        await client.close()

    script(test)


# From threads -----------------------------------------------------------------------------------------------


class Thread:
    """A server in a loop and thread of its own, answering as it is told."""

    def __init__(self, path: Path, answer: bool = True) -> None:
        self.address = f"unix:{path}"
        self.server = Server()
        self.answer = answer
        self.signs = threading.Semaphore(0)
        self.ready = threading.Event()
        self.stop: Callable[[], None] = lambda: None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main(path)))

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    async def main(self, path: Path) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(stopped.set)
        listener = await loop.create_unix_server(lambda: Peer(self.server), str(path))
        serving = start(self.serve())
        self.ready.set()
        await stopped.wait()
        serving.cancel()
        listener.close()

    async def serve(self) -> None:
        peer = await self.server.peer()
        while True:
            request_id, request = await peer.sign()
            self.signs.release()
            if self.answer:
                peer.signed(request_id, request)


def test_many_threads_share_a_client(tmp_path: Path) -> None:
    with Thread(tmp_path / "s") as server, SyncClient(server.address, account="a") as client:
        got: dict[int, bytes] = {}

        def work(first: int) -> None:
            for i in range(first, first + 20):
                got[i] = client.sign("k", digest(i))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert got == {i: digest(i) * 2 for i in range(80)}


def test_a_stream_without_asyncio(tmp_path: Path) -> None:
    with Thread(tmp_path / "s") as server, SyncClient(server.address, account="a") as client:
        got = list(client.sign_stream("k", map(digest, range(55)), batch_items=10, depth=2))
        assert [(receipt.index, receipt.signature) for receipt in got] == [
            (i, digest(i) * 2) for i in range(55)
        ]
        for items, options in (([bytes(32)], {"batch_items": 0}), ([bytes(31), bytes(33)], {})):
            with pytest.raises(BadRequest):
                list(client.sign_stream("k", items, **options))  # type: ignore[arg-type]
        stream = client.sign_stream("k", map(digest, range(1_000)), form=Form.DIGESTS, batch_items=10)
        next(stream)
        stream.close()


def test_closing_ends_the_calls_of_other_threads(tmp_path: Path) -> None:
    with Thread(tmp_path / "s", answer=False) as server:
        client = SyncClient(server.address, account="a")
        errors: list[ApplianceError] = []

        def call(one: Callable[[], object]) -> None:
            try:
                one()
            except ApplianceError as error:
                errors.append(error)

        threads = [
            threading.Thread(target=call, args=(lambda: client.sign("k", digest(1)),)),
            threading.Thread(target=call, args=(lambda: client.sign_batch("k", block(1)),)),
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert server.signs.acquire(timeout=30)
        client.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert [type(error) for error in errors] == [Unavailable, Unavailable]
        with pytest.raises(Unavailable, match="closed"):
            client.ping()
        client.close()


def test_a_client_that_cannot_connect_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(Unavailable):
        SyncClient(f"unix:{tmp_path}/none", account="a", deadline_s=0.1)
    assert threading.active_count() == before
