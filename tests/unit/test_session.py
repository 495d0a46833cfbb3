"""Sessions, connections and permits: what may come when, what is held meanwhile, and that all of it is given back.

Over 900 lines, and one module on purpose: every test stands on the rig at its top, and permits are only seen to come
back where the whole conversation is played.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance import wire
from appliance.accounts import Transport
from appliance.algorithms import SIGNATURE_LEN
from appliance.dispatch import Work
from appliance.errors import (
    ApplianceError,
    Busy,
    NotAuthenticated,
    NotFound,
    ProtocolError,
    SignerFailed,
    WindowExceeded,
)
from appliance.metrics import Metrics
from appliance.policy import Account
from appliance.server import Connection, Outbox, Permits, WireServer
from appliance.session import State
from appliance.settings import ListenSettings, Settings, TimeSettings, WindowSettings
from appliance.wire import Frame, FrameReader, FrameType, Priority

Run = Callable[[Any], Any]
WINDOW = WindowSettings(requests=4, items=100, max_payload_len=10_000, max_buffered_len=20_000)
SETTINGS = Settings(
    window=WINDOW, times=TimeSettings(hello_s=10, frame_s=30), listen=ListenSettings(max_connections=8)
)
ACCOUNT = Account("a", None, 0, None, False, frozenset("k"))


class FakePipeline:
    """Takes everything and answers when the test says."""

    def __init__(self) -> None:
        self.draining = False
        self.works: list[Work] = []
        self.cancelled: list[Work] = []
        self.verifications: list[asyncio.Future[bytes]] = []
        self.refusal: ApplianceError | None = None
        self.pumped = 0

    def sign(
        self,
        account: str,
        request: wire.SignRequest,
        now: float,
        on_end: Callable[[Work], None],
        client: object,
    ) -> Work:
        if self.refusal is not None:
            raise self.refusal
        work = Work(request.key, request.items, request.priority, now, now + 30, on_end)
        self.works.append(work)
        return work

    def cancel(self, works: list[Work]) -> None:
        self.cancelled += works
        for work in works:
            work.ended = True

    async def verify(self, account: str, request: wire.VerifyRequest, now: float) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.verifications.append(future)
        return await future

    def key_status(self, account: str, request: wire.StatusRequest) -> list[wire.KeyRecord]:
        if self.refusal is not None:
            raise self.refusal
        return [wire.KeyRecord(name, wire.KeyState.UNKNOWN, 0, b"") for name in request.names]

    def appliance_document(self) -> bytes:
        return b"{}"

    def pump(self) -> None:
        self.pumped += 1


class FakeAuthenticator:
    def __init__(self) -> None:
        self.asked: list[tuple[wire.Hello, Transport, asyncio.Future[Account]]] = []

    async def authenticate(self, hello: wire.Hello, transport: Transport) -> Account:
        future: asyncio.Future[Account] = asyncio.get_running_loop().create_future()
        self.asked.append((hello, transport, future))
        return await future


class FakeTransport(asyncio.Transport):
    """A socket that the test reads by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX)
        self.written = b""
        self.reading = True
        self.closing = False
        self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.ours if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


class Rig:
    """A server without listeners, and clients that are plain bytes."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.now = 5_000.0
        self.pipeline = FakePipeline()
        self.authenticator = FakeAuthenticator()
        self.metrics = Metrics([])
        self.server = WireServer(
            settings,
            self.pipeline,  # type: ignore[arg-type]
            self.authenticator,  # type: ignore[arg-type]
            self.metrics,
            lambda: self.now,
            Outbox(),
        )
        self.total_len = settings.window.max_buffered_len
        self.clients: list[Peer] = []

    def client(self) -> Peer:
        peer = Peer(self)
        self.clients.append(peer)
        return peer

    async def ready(self) -> Peer:
        peer = self.client()
        await peer.prove()
        return peer

    @property
    def free_len(self) -> int:
        return self.server.permits._free

    def end(self) -> None:
        for client in self.clients:
            client.lose()
        assert self.free_len == self.total_len, "every permit is back"
        assert not self.server.permits.waiting
        assert not self.server._connections


class Peer:
    """A client: bytes in, frames out."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.transport = FakeTransport()
        self.connection = Connection(rig.server, is_tls=False)
        self.connection.connection_made(self.transport)
        self.reader = FrameReader(1 << 25)
        self.ids = itertools.count(2)
        self.is_lost = False

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    async def frames(self) -> list[Frame]:
        await turns()
        self.reader.receive(self.transport.written)
        self.transport.written = b""
        frames = []
        while (frame := self.reader.next_frame()) is not None:
            frames.append(frame)
        return frames

    async def frame(self) -> Frame:
        (frame,) = await self.frames()
        return frame

    async def error(self) -> tuple[int, wire.ErrorAnswer]:
        frame = await self.frame()
        assert frame.type is FrameType.ERROR
        return frame.request_id, wire.decode_error(frame.payload)

    async def prove(self) -> None:
        asked = len(self.rig.authenticator.asked)
        self.send(HELLO)
        await turns()
        self.rig.authenticator.asked[asked][2].set_result(ACCOUNT)
        assert (await self.frame()).type is FrameType.WELCOME

    def lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.connection.connection_lost(None)
            self.transport.ours.close()
            self.transport.theirs.close()

    @property
    def state(self) -> State:
        assert self.connection.session is not None
        return self.connection.session.state


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def sign(request_id: int, count: int = 1) -> bytes:
    items = wire.digests(bytes(32 * count))
    return wire.encode_sign(request_id, wire.SignRequest(bytes(16), 0, 0, Priority.AUTOMATIC, "k", items))


def verify(request_id: int, count: int = 1) -> bytes:
    items = wire.digests(bytes(32 * count))
    request = wire.VerifyRequest(0, wire.KeyKind.NAME, b"k", bytes(SIGNATURE_LEN * count), items)
    return wire.encode_verify(request_id, request)


def payload_len(frame: bytes) -> int:
    return len(frame) - wire.HEADER_LEN


def end(work: Work, error: ApplianceError | None = None) -> None:
    if error is None:
        work.statuses, work.signatures = bytes(work.count), bytes(SIGNATURE_LEN * work.count)
    work.end(error)


HELLO = wire.encode_hello(wire.Hello(1, 1, "a", "password"))
STATUS = wire.encode_status(7, wire.StatusKind.KEYS, ["k"])
PING = wire.encode_ping(8, b"echo")
FROM_CLIENT = {
    FrameType.HELLO: HELLO,
    FrameType.SIGN: sign(5),
    FrameType.VERIFY: verify(6),
    FrameType.STATUS: STATUS,
    FrameType.PING: PING,
}
FROM_SERVER = {type_: wire.encode_frame(type_, 9, b"") for type_ in FrameType if type_ not in FROM_CLIENT}
EVERY = FROM_CLIENT | FROM_SERVER


@pytest.fixture
def rig_run(run: Run) -> Iterator[Callable[[Callable[[Rig], Any]], None]]:
    """Run a test with a rig, and look that nothing is held once every client has gone."""

    def runner(test: Callable[[Rig], Any], settings: Settings = SETTINGS) -> None:
        async def main() -> None:
            rig = Rig(settings)
            try:
                await test(rig)
            except BaseException:
                for client in rig.clients:
                    client.lose()
                raise
            rig.end()
            await turns()

        run(main())

    yield runner


RigRun = Callable[..., None]


# The state table --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", EVERY)
@pytest.mark.parametrize("state", [State.NEW, State.AUTHENTICATING, State.READY])
def test_each_frame_in_each_state(rig_run: RigRun, state: State, type_: FrameType) -> None:
    expected = {
        State.NEW: {FrameType.HELLO},
        State.AUTHENTICATING: set(),
        State.READY: {FrameType.SIGN, FrameType.VERIFY, FrameType.STATUS, FrameType.PING},
    }

    async def test(rig: Rig) -> None:
        peer = rig.client()
        if state is State.READY:
            await peer.prove()
        elif state is State.AUTHENTICATING:
            peer.send(HELLO)
            await turns()
        assert peer.state is state
        peer.send(EVERY[type_])
        if type_ in expected[state]:
            assert peer.state is not State.CLOSED and not peer.transport.closing
            return
        request_id, answer = await peer.error()
        assert (request_id, answer.code) == (0, ProtocolError.wire_code)
        assert type_.name in answer.detail and peer.state is State.CLOSED and peer.transport.closing

    rig_run(test)


@pytest.mark.parametrize("type_", FROM_CLIENT)
def test_request_id_0_is_no_request(rig_run: RigRun, type_: FrameType) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        if type_ is not FrameType.HELLO:
            await peer.prove()
        frame = FROM_CLIENT[type_]
        peer.send(frame[:8] + bytes(8) + frame[16:])
        assert (await peer.error())[0] == 0
        assert peer.transport.closing

    rig_run(test)


def test_nothing_is_taken_after_the_end(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(HELLO + sign(5))
        await peer.error()
        peer.send(sign(6))
        assert not await peer.frames() and not rig.pipeline.works

    rig_run(test)


def test_bytes_that_are_no_frame(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await peer.error())[1].code == ProtocolError.wire_code
        assert peer.transport.closing
        assert b"cloudseal_protocol_errors_total 1.0" in rig.metrics.page()

    rig_run(test)


# HELLO ------------------------------------------------------------------------------------------------------


def test_hello_carries_what_the_kernel_knows(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(HELLO)
        await turns()
        hello, transport, _ = rig.authenticator.asked[0]
        assert hello == wire.Hello(1, 1, "a", "password")
        assert transport == Transport(peer=f"uid {os.getuid()}", uid=os.getuid())

    rig_run(test)


def test_a_refused_proof_closes(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(HELLO)
        await turns()
        rig.authenticator.asked[0][2].set_exception(NotAuthenticated("no"))
        request_id, answer = await peer.error()
        assert (request_id, answer.code) == (0, NotAuthenticated.wire_code)
        assert peer.transport.closing and peer.state is State.CLOSED

    rig_run(test)


def test_lost_while_authenticating(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(HELLO)
        await turns()
        assert rig.free_len == rig.total_len - payload_len(HELLO)
        peer.lose()
        assert rig.free_len == rig.total_len
        await turns()
        assert rig.authenticator.asked[0][2].cancelled(), "nobody waits for the proof"

    rig_run(test)


def test_a_stranger_may_not_announce_a_long_frame(rig_run: RigRun) -> None:
    """Before WELCOME the limit is 4,096 bytes, and not only for the first frame: who a client is is not known yet."""

    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(HELLO)
        await turns()
        header = wire.encode_frame(FrameType.SIGN, 5, bytes(9_000))[: wire.HEADER_LEN]
        peer.send(header)
        _, answer = await peer.error()
        assert "4096" in answer.detail and peer.transport.closing
        assert rig.total_len - rig.free_len <= wire.MAX_HELLO_PAYLOAD_LEN

    rig_run(test)


def test_after_welcome_the_limit_is_what_was_granted(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(sign(5, 100))
        peer.send(sign(6)[:20])
        assert len(rig.pipeline.works) == 1
        other = await rig.ready()
        other.send(wire.encode_frame(FrameType.SIGN, 5, bytes(10_001)))
        assert "10000" in (await other.error())[1].detail

    rig_run(test)


def test_requests_sent_with_hello_are_refused(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.send(HELLO + PING)
        assert (await peer.error())[0] == 0
        await turns()
        assert all(future.cancelled() or not future.done() for _, _, future in rig.authenticator.asked)

    rig_run(test)


def test_too_many_connections(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        for _ in range(8):
            rig.client()
        peer = rig.client()
        request_id, answer = await peer.error()
        assert request_id == 0 and answer.retry_after_ms and peer.transport.closing
        peer.send(HELLO)
        assert not await peer.frames()
        rig.clients[0].lose()
        await rig.ready()

    rig_run(test)


# Requests and the window ------------------------------------------------------------------------------------


def test_answers_carry_the_request_they_belong_to(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        items = wire.digests(bytes(96))
        request = wire.SignRequest(b"j" * 16, 77, 0, Priority.AUTOMATIC, "k", items)
        peer.send(wire.encode_sign(5, request))
        (work,) = rig.pipeline.works
        work.statuses, work.signatures = b"\0\2\0", b"s" * 192
        work.end()
        frame = await peer.frame()
        answer = wire.decode_signed(frame.payload)
        assert (frame.request_id, answer.job_id, answer.first_index) == (5, b"j" * 16, 77)
        assert (answer.count, answer.failed, bytes(answer.signatures)) == (3, 1, b"s" * 192)

    rig_run(test)


def test_an_error_answers_its_request_and_no_other(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        rig.pipeline.refusal = NotFound("no key")
        peer.send(sign(5))
        request_id, answer = await peer.error()
        assert (request_id, answer.code) == (5, NotFound.wire_code)
        peer.send(STATUS)
        assert (await peer.error())[0] == 7
        rig.pipeline.refusal = None
        peer.send(sign(5) + verify(6))
        await turns()
        end(rig.pipeline.works[0], SignerFailed("no"))
        rig.pipeline.verifications[0].set_exception(Busy("full", retry_after_ms=5))
        codes = {frame.request_id: wire.decode_error(frame.payload).code for frame in await peer.frames()}
        assert codes == {5: SignerFailed.wire_code, 6: Busy.wire_code}
        assert peer.state is State.READY
        assert rig.free_len == rig.total_len, "a request that was answered holds nothing"

    rig_run(test)


def test_status_and_ping_answer_at_once(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(STATUS + PING + wire.encode_status(9, wire.StatusKind.APPLIANCE))
        keys, pong, appliance = await peer.frames()
        assert wire.decode_status_answer(keys.payload) == [wire.KeyRecord("k", wire.KeyState.UNKNOWN, 0, b"")]
        assert (pong.type, pong.request_id, bytes(pong.payload)) == (FrameType.PONG, 8, b"echo")
        assert wire.decode_status_answer(appliance.payload) == b"{}"
        assert rig.free_len == rig.total_len

    rig_run(test)


@pytest.mark.parametrize(
    ("frames", "is_within"),
    [
        ([sign(i) for i in range(2, 6)], True),
        ([sign(i) for i in range(2, 7)], False),
        ([sign(2), verify(3), sign(4), verify(5), PING], False),
        ([sign(2, 60), verify(3, 40)], True),
        ([sign(2, 60), verify(3, 41)], False),
        ([sign(2, 100)], True),
        ([sign(2, 101)], False),
        ([sign(2, 100), PING, STATUS], True),
    ],
)
def test_the_window(rig_run: RigRun, frames: list[bytes], is_within: bool) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        for frame in frames:
            peer.send(frame)
        await turns()
        if is_within:
            assert peer.state is State.READY
        else:
            request_id, answer = await peer.error()
            assert (request_id, answer.code) == (0, WindowExceeded.wire_code)
            assert peer.transport.closing

    rig_run(test)


def test_the_window_opens_with_each_answer(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        for i in range(2, 6):
            peer.send(sign(i, 25))
        for i in range(6, 40):
            end(rig.pipeline.works[i - 6])
            peer.send(sign(i, 25))
        assert peer.state is State.READY
        assert len(await peer.frames()) == 34

    rig_run(test)


@pytest.mark.parametrize("frame", [sign(5), verify(5), wire.encode_ping(5)])
def test_an_id_that_is_in_use(rig_run: RigRun, frame: bytes) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(sign(5))
        peer.send(frame)
        request_id, answer = await peer.error()
        assert request_id == 0 and "in use" in answer.detail and peer.transport.closing

    rig_run(test)


def test_an_id_may_be_used_again_once_answered(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        for i in range(3):
            peer.send(sign(5))
            end(rig.pipeline.works[i])
            assert (await peer.frame()).request_id == 5

    rig_run(test)


def test_all_frames_of_a_turn_are_accepted_before_the_workers_are_fed(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        before = rig.pipeline.pumped
        peer.send(sign(2) + sign(3) + sign(4))
        assert rig.pipeline.pumped == before + 1 and len(rig.pipeline.works) == 3

    rig_run(test)


# Ends -------------------------------------------------------------------------------------------------------


def test_what_a_lost_client_asked_for_is_cancelled(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(sign(2) + sign(3) + verify(4))
        await turns()
        end(rig.pipeline.works[0])
        peer.lose()
        await turns()
        assert rig.pipeline.cancelled == [rig.pipeline.works[1]]
        assert rig.pipeline.verifications[0].cancelled()
        end(rig.pipeline.works[1])  # a late end finds nobody, and gives nothing back twice
        assert rig.free_len == rig.total_len

    rig_run(test)


def test_goaway_is_told_to_those_who_are_in(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer, stranger = await rig.ready(), rig.client()
        peer.send(sign(5))
        rig.server.stop_listening()
        assert (await peer.frame()).type is FrameType.GOAWAY
        assert not await stranger.frames()
        end(rig.pipeline.works[0])
        assert (await peer.frame()).type is FrameType.SIGNED, "what was accepted is answered"

    rig_run(test)


def test_answers_after_a_connection_error_are_not_sent(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(sign(5))
        peer.send(HELLO)
        await peer.error()
        end(rig.pipeline.works[0])
        assert not await peer.frames()

    rig_run(test)


# Time -------------------------------------------------------------------------------------------------------


def test_a_client_that_says_nothing(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = rig.client()
        peer.connection.check_time(rig.now + 10)
        assert peer.state is State.NEW
        peer.connection.check_time(rig.now + 10.1)
        assert "HELLO" in (await peer.error())[1].detail and peer.transport.closing

    rig_run(test)


def test_a_frame_that_trickles_in(rig_run: RigRun) -> None:
    """The time counts from the frame's first byte: a byte now and then does not buy more of it."""

    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        frame = sign(5)
        for at in range(6):
            peer.send(frame[at : at + 1])
            rig.now += 6
            peer.connection.check_time(rig.now)
        assert "whole" in (await peer.error())[1].detail and peer.transport.closing

    rig_run(test)


def test_each_frame_has_its_own_time(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.send(sign(2)[:20])
        for i in range(2, 12):
            rig.now += 20
            peer.connection.check_time(rig.now)
            peer.send(sign(i)[20:] + sign(i + 1)[:20])
            end(rig.pipeline.works[-1])
        assert peer.state is State.READY
        peer.send(sign(12)[20:])
        rig.now += 1_000
        peer.connection.check_time(rig.now)
        assert peer.state is State.READY, "between frames there is no hurry"

    rig_run(test)


def test_waiting_for_a_permit_is_not_the_clients_slowness(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peers = [await rig.ready() for _ in range(3)]
        header = wire.encode_frame(FrameType.SIGN, 5, bytes(9_000))[: wire.HEADER_LEN]
        for peer in peers:
            peer.send(header)
        assert not peers[2].transport.reading
        rig.now += 100
        peers[2].connection.check_time(rig.now)
        assert peers[2].state is State.READY
        peers[0].lose()
        peers[2].connection.check_time(rig.now)
        assert peers[2].state is State.READY and peers[2].transport.reading
        await turns()
        rig.now += 31
        peers[2].connection.check_time(rig.now)
        assert peers[2].state is State.CLOSED, "from here on it is"

    rig_run(test)


@pytest.mark.parametrize("reads", [True, False])
def test_a_closed_connection_that_does_not_go(rig_run: RigRun, reads: bool) -> None:
    """A client that reads nothing holds up the close, and with it what it had us keep: not for ever."""

    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        if not reads:
            peer.connection.pause_writing()
        peer.send(sign(5) + HELLO)
        assert peer.state is State.CLOSED and not peer.transport.aborted
        peer.connection.check_time(rig.now)
        assert not peer.transport.aborted
        rig.now += 31
        peer.connection.check_time(rig.now)
        assert peer.transport.aborted

    rig_run(test)


# Permits ----------------------------------------------------------------------------------------------------


def test_a_permit_is_held_from_the_header_to_the_answer(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        frame = sign(5, 50)
        peer.send(frame[: wire.HEADER_LEN])
        assert rig.free_len == rig.total_len - payload_len(frame)
        peer.send(frame[wire.HEADER_LEN :])
        assert rig.free_len == rig.total_len - payload_len(frame)
        end(rig.pipeline.works[0])
        assert rig.free_len == rig.total_len

    rig_run(test)


def test_without_a_permit_nothing_is_read(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        first, second, third = [await rig.ready() for _ in range(3)]
        for peer, request_id in ((first, 2), (first, 3), (second, 2)):
            peer.send(sign(request_id, 50 if peer is first and request_id == 2 else 1))
        header = wire.encode_frame(FrameType.VERIFY, 9, bytes(10_000))[: wire.HEADER_LEN]
        second.send(header)
        assert second.transport.reading
        third.send(header)
        assert not third.transport.reading and rig.server.permits.waiting == 1
        first.send(PING)
        assert not first.transport.reading, "first come, first served: a short one does not overtake"
        assert not await first.frames()
        second.lose()
        await turns()
        assert third.transport.reading and first.transport.reading
        assert (await first.frame()).type is FrameType.PONG

    rig_run(test)


def test_a_client_that_does_not_read_is_not_read(rig_run: RigRun) -> None:
    async def test(rig: Rig) -> None:
        peer = await rig.ready()
        peer.connection.pause_writing()
        assert not peer.transport.reading
        peer.connection.resume_writing()
        assert peer.transport.reading

    rig_run(test)


class Waiter:
    """A connection as ``Permits`` sees it."""

    def __init__(self, wants: bool = True) -> None:
        self.wants = wants
        self.got: list[int] = []

    def permitted(self, length: int) -> bool:
        if self.wants:
            self.got.append(length)
        return self.wants


@given(st.data())
def test_permits_are_counted_and_first_come_is_first_served(data: st.DataObject) -> None:
    permits = Permits(100)
    held: list[int] = []
    queue: list[tuple[int, Waiter]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(("take", "give", "forget", "lose"))):
            case "take":
                length, waiter = data.draw(st.integers(0, 100)), Waiter()
                fits = not queue and length <= 100 - sum(held)
                assert permits.take(length, waiter) is fits  # type: ignore[arg-type]
                if fits:
                    held.append(length)
                else:
                    queue.append((length, waiter))
            case "give" if held:
                permits.give(held.pop(data.draw(st.integers(0, len(held) - 1))))
            case "forget" if queue:
                _, waiter = queue.pop(data.draw(st.integers(0, len(queue) - 1)))
                permits.forget(waiter)  # type: ignore[arg-type]
            case "lose" if queue:
                queue[data.draw(st.integers(0, len(queue) - 1))][1].wants = False
            case _:
                continue
        while queue and queue[0][0] <= 100 - sum(held):
            length, waiter = queue.pop(0)
            assert waiter.got == ([length] if waiter.wants else [])
            if waiter.wants:
                held.append(length)
        assert permits._free == 100 - sum(held) >= 0
        assert permits.waiting == len(queue)
        assert not any(waiter.got for _, waiter in queue)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "sign",
                "verify",
                "ping",
                "half",
                "rest",
                "hello",
                "junk",
                "answer",
                "fail",
                "decide",
                "lose",
                "pause",
                "resume",
            )
        ),
        st.integers(0, 2),
        st.integers(1, 100),
    ),
    max_size=40,
)


@hypothesis_settings(deadline=None, max_examples=60)
@given(ACTIONS)
def test_every_permit_comes_back(actions: list[tuple[str, int, int]]) -> None:
    """Whatever clients do and in whatever order they go: with all of them gone, nothing is held."""

    async def main() -> None:
        small = replace(SETTINGS, window=replace(WINDOW, max_buffered_len=12_000))
        rig = Rig(small)
        halves: dict[Peer, bytes] = {}
        for _ in range(3):
            peer = rig.client()
            peer.send(HELLO)
            await turns()
            rig.authenticator.asked[-1][2].set_result(ACCOUNT)
            await turns()
        for action, which, count in actions:
            peer = rig.clients[which]
            if peer.is_lost and action not in ("answer", "fail", "decide"):
                continue
            whole = not halves.get(peer)
            live = [work for work in rig.pipeline.works if not work.ended]
            deciding = [future for future in rig.pipeline.verifications if not future.done()]
            match action:
                case "sign" if whole:
                    peer.send(sign(next(peer.ids), count))
                case "verify" if whole:
                    peer.send(verify(next(peer.ids), count))
                case "ping" if whole:
                    peer.send(wire.encode_ping(next(peer.ids), bytes(count % 65)))
                case "half" if whole:
                    frame = sign(next(peer.ids), count)
                    at = min(len(frame) - 1, count * 3)
                    halves[peer] = frame[at:]
                    peer.send(frame[:at])
                case "rest" if not whole:
                    peer.send(halves.pop(peer))
                case "hello" | "junk" if whole:
                    peer.send(HELLO if action == "hello" else b"\xff" * 20)
                case "answer" if live:
                    end(live[count % len(live)])
                case "fail" if live:
                    end(live[count % len(live)], SignerFailed("no"))
                case "decide" if deciding:
                    deciding[count % len(deciding)].set_result(b"\1")
                case "lose":
                    peer.lose()
                case "pause":
                    peer.connection.pause_writing()
                case "resume":
                    peer.connection.resume_writing()
            await turns()
            held = [one.connection._held_len for one in rig.clients if not one.is_lost]
            assert min(held, default=0) >= 0
            assert rig.free_len == rig.total_len - sum(held) >= 0
        rig.end()
        await turns()

    asyncio.run(main())
