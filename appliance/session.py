"""One connection's conversation: HELLO, requests, window, answers.

For: the state table, the window, and turning pipeline results and errors into frames.
Not for: sockets and permits (``server``), the work itself (``pipeline``).

Rules:

* What may arrive in which state is a table; anything else is a protocol error.
* A protocol error is told with request id 0, and the connection is closed; any other error answers its request.
* Answers leave in whatever order they are ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from enum import IntEnum, auto
from typing import Any, Final, Protocol, TypeAlias

from appliance import __version__, _express, _frames, wire
from appliance.accounts import Authenticator, Transport
from appliance.dispatch import Work
from appliance.errors import ApplianceError, ProtocolError, WindowExceeded
from appliance.metrics import Metrics
from appliance.pipeline import Pipeline
from appliance.seal_session import SealConversation
from appliance.sealer import Sealer
from appliance.sealing import LOOPBACK, address_of
from appliance.settings import WindowSettings
from appliance.wire import Frame, FrameType, SignRequest


class State(IntEnum):
    """Where the conversation stands.

    An ``IntEnum``, for the table is asked with every frame and an ``Enum`` hashes in Python.
    """

    NEW = auto()
    AUTHENTICATING = auto()
    READY = auto()
    CLOSED = auto()


class Peer(Protocol):
    """The connection, as the session sees it."""

    def write(self, data: bytes) -> None:
        """Send it, sooner or later."""

    def close(self) -> None:
        """After what was written has gone."""

    def release(self, permit_len: int) -> None:
        """A frame's permit is free again."""


Tag: TypeAlias = tuple[int, bytes, int]
"""What a work is to be answered with: its request id, its job id and first index as they came, its permit's length."""
JOB_AND_INDEX_LEN: Final = 24


class Session:
    """Owned by the event loop; ended by ``lost``."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        pipeline: Pipeline,
        authenticator: Authenticator,
        window: WindowSettings,
        metrics: Metrics,
        clock: Callable[[], float],
        sealer: Sealer | None = None,
    ) -> None:
        self.state = State.NEW
        self.account = ""
        self._peer = peer
        self._transport = transport
        self._pipeline = pipeline
        self._authenticator = authenticator
        self._window = window
        self._metrics = metrics
        self._clock = clock
        self._works: dict[Work, Tag] = {}
        self.client = _express.Client(self, max_requests=window.requests, max_items=window.items)
        """The window, and the requests that are in a lane: only once ``state`` is READY it may take any."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._seals: SealConversation | None = None
        if sealer is not None:
            source = address_of(transport.peer) if transport.is_tls else LOOPBACK
            self._seals = SealConversation(sealer, _Turns(self), source, metrics, clock)

    @property
    def has_unanswered(self) -> bool:
        """Whether a request still waits."""
        return self.client.requests > 0

    def frame(self, frame: Frame) -> None:
        """Take a frame; raises ``ProtocolError`` where the conversation is broken."""
        handler = _TABLE.get((self.state, frame.type))
        if handler is None:
            raise ProtocolError(f"{frame.type.name} is not expected in state {self.state.name.lower()}")
        if not frame.request_id:
            raise ProtocolError("a request's id is 1 or more")
        handler(self, frame)

    def fail(self, error: ApplianceError) -> None:
        """Tell a connection-level error and close."""
        if self.state is not State.CLOSED:
            self._peer.write(wire.encode_error(0, error))
            self._peer.close()
            self.state = State.CLOSED

    def goaway(self) -> None:
        """The server is stopping."""
        if self.state is State.READY:
            self._peer.write(wire.encode_goaway())

    def lost(self) -> None:
        """The connection has gone: nobody waits for what it asked."""
        self.state = State.CLOSED
        self.client.lost()
        works = list(self._works)
        self._works.clear()
        if self._seals is not None:
            works.extend(self._seals.lost())
            self._seals = None
        if works:
            self._pipeline.cancel(works)
        for task in self._tasks:
            task.cancel()

    # HELLO ----------------------------------------------------------------------------------------------

    def _hello(self, frame: Frame) -> None:
        hello = wire.decode_hello(frame.payload)
        self.state = State.AUTHENTICATING
        self._spawn(self._authenticate(hello, frame))

    async def _authenticate(self, hello: wire.Hello, frame: Frame) -> None:
        try:
            account = await self._authenticator.authenticate(hello, self._transport)
        except ApplianceError as error:
            self.fail(error)
            return
        if self.state is not State.AUTHENTICATING:
            return
        self.account = account.name
        self.state = State.READY
        window = self._window
        welcome = wire.Welcome(
            wire.VERSION, window.requests, window.items, window.max_payload_len, f"cloud-seal {__version__}"
        )
        self._peer.write(wire.encode_welcome(frame.request_id, welcome))
        self._peer.release(len(frame.payload))

    # Requests -------------------------------------------------------------------------------------------

    def _open(self, request_id: int, items: int) -> None:
        """Count a request against the window."""
        client = self.client
        outcome = client.open(request_id, items)
        if outcome == _express.ID_IN_USE:
            raise ProtocolError(f"request id {request_id} is in use")
        if outcome == _express.FULL:
            raise WindowExceeded(
                f"{client.requests + 1} requests with {client.items + items} items are unanswered, the window is "
                f"{self._window.requests} requests and {self._window.items} items",
                hint="wait for answers before sending more",
            )

    def _close(self, request_id: int, items: int, permit_len: int) -> None:
        self.client.close(request_id, items)
        self._peer.release(permit_len)

    def _sign(self, frame: Frame) -> None:
        request = wire.decode_sign(frame.payload)
        count = request.items.count
        self._open(frame.request_id, count)
        tag = (frame.request_id, bytes(frame.payload[:JOB_AND_INDEX_LEN]), len(frame.payload))
        self._start(tag, request)

    def _start(self, tag: Tag, request: SignRequest) -> None:
        now = self._clock()
        try:
            work = self._pipeline.sign(self.account, request, now, self._signed, self.client)
        except ApplianceError as error:
            self._answer_error("sign", tag[0], request.items.count, tag[2], now, error)
            return
        self._works[work] = tag

    def adopt(self, work: Work, request_id: int, job: bytes) -> Callable[[Work], None]:
        """A request of ours leaves its lane, and is a work from now on; it is counted, and holds no permit."""
        self._works[work] = (request_id, job, 0)
        return self._signed

    def late(self, request_id: int, count: int, accepted_at: float, error: ApplianceError) -> None:
        """The deadline of a request in a lane has passed."""
        self._answer_error("sign", request_id, count, 0, accepted_at, error)

    def _signed(self, work: Work) -> None:
        """The pipeline has ended one of our works."""
        tag = self._works.pop(work, None)
        if tag is None:
            return
        request_id, job, permit_len = tag
        if work.error is not None:
            self._answer_error("sign", request_id, work.count, permit_len, work.accepted_at, work.error)
            return
        frame, failed = _frames.pack_signed(request_id, job, work.statuses, work.signatures)
        self._peer.write(frame)
        self._close(request_id, work.count, permit_len)
        self._metrics.request_done("sign", "ok", self._clock() - work.accepted_at)
        self._metrics.items_done("sign", work.count - failed, failed)

    def _verify(self, frame: Frame) -> None:
        request = wire.decode_verify(frame.payload)
        self._open(frame.request_id, request.items.count)
        self._spawn(self._verify_and_answer(frame, request))

    async def _verify_and_answer(self, frame: Frame, request: wire.VerifyRequest) -> None:
        now = self._clock()
        count, permit_len = request.items.count, len(frame.payload)
        try:
            statuses = await self._pipeline.verify(self.account, request, now)
        except ApplianceError as error:
            self._answer_error("verify", frame.request_id, count, permit_len, now, error)
            return
        self._peer.write(wire.encode_verified(frame.request_id, statuses))
        self._close(frame.request_id, count, permit_len)
        self._metrics.request_done("verify", "ok", self._clock() - now)
        valid = statuses.count(1)
        self._metrics.items_done("verify", valid, count - valid)

    def _status(self, frame: Frame) -> None:
        request = wire.decode_status(frame.payload)
        self._open(frame.request_id, 0)
        now = self._clock()
        try:
            if request.kind is wire.StatusKind.KEYS:
                records = self._pipeline.key_status(self.account, request)
                answer = wire.encode_key_records(frame.request_id, records)
            else:
                answer = wire.encode_appliance_status(frame.request_id, self._pipeline.appliance_document())
        except ApplianceError as error:
            self._answer_error("status", frame.request_id, 0, len(frame.payload), now, error)
            return
        self._peer.write(answer)
        self._close(frame.request_id, 0, len(frame.payload))
        self._metrics.request_done("status", "ok", self._clock() - now)

    def _about_seals(self, frame: Frame) -> None:
        if self._seals is None:
            raise ProtocolError(f"{frame.type.name}: no seals are kept here")
        _SEAL_TABLE[frame.type](self._seals, self.account, frame)

    def _ping(self, frame: Frame) -> None:
        echo = wire.check_echo(frame.payload)
        self._open(frame.request_id, 0)
        self._peer.write(wire.encode_frame(FrameType.PONG, frame.request_id, echo))
        self._close(frame.request_id, 0, len(frame.payload))
        self._metrics.request_done("ping", "ok", 0.0)

    def _answer_error(
        self, type_: str, request_id: int, items: int, permit_len: int, began_at: float, error: ApplianceError
    ) -> None:
        if isinstance(error, ProtocolError):
            raise error
        self._peer.write(wire.encode_error(request_id, error))
        self._close(request_id, items, permit_len)
        self._metrics.request_done(type_, error.label, self._clock() - began_at)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop keeps only a weak reference; `lost` cancels what is left
        task.add_done_callback(self._tasks.discard)


_TABLE: Final = {
    (State.NEW, FrameType.HELLO): Session._hello,
    (State.READY, FrameType.SIGN): Session._sign,
    (State.READY, FrameType.VERIFY): Session._verify,
    (State.READY, FrameType.STATUS): Session._status,
    (State.READY, FrameType.PING): Session._ping,
    (State.READY, FrameType.SEAL): Session._about_seals,
    (State.READY, FrameType.VERIFY_SEAL): Session._about_seals,
    (State.READY, FrameType.SEAL_STATUS): Session._about_seals,
    (State.READY, FrameType.UNLOCK): Session._about_seals,
}
"""What may arrive when. HELLO is answered before anything else may come."""
_SEAL_TABLE: Final = {
    FrameType.SEAL: SealConversation.seal,
    FrameType.VERIFY_SEAL: SealConversation.verify,
    FrameType.SEAL_STATUS: SealConversation.status,
    FrameType.UNLOCK: SealConversation.unlock,
}


class _Turns:
    """A session, as the part of it that is about seals sees it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.open = session._open
        self.fail = session._answer_error
        self.spawn = session._spawn

    def answer(
        self, type_: str, request_id: int, items: int, permit_len: int, began_at: float, frame: bytes
    ) -> None:
        """Send an answer and count it as done."""
        session = self._session
        session._peer.write(frame)
        session._close(request_id, items, permit_len)
        session._metrics.request_done(type_, "ok", session._clock() - began_at)
