"""``Client``: the connection to the appliance that mends itself, for asyncio.

Rules:

* Every call has a deadline, computed once; connecting, waiting for the window, retrying and reconnecting all happen
  within it.
* What the server says may be retried is retried until the deadline (``retries=False`` turns that off). A request
  whose connection was lost is sent again under the same job id and index, so that nothing is lost or doubled.
* An error that ends the trying says what was wrong the last time; ``on_trouble`` hears it each time.
* What trying again cannot mend ends every call at once. With TLS 1.3 a server refuses a client's certificate after
  the handshake, and many close without an alert, as the appliance does; so the same end several times in a row,
  before a byte has come, is taken for that refusal. Once is not enough: a server that is killed ends alike.
* Streams take constant memory: no more batches are out than ``depth``.
* ``sign`` calls made in the same turn of the loop under one key travel as one batch.

Ownership: everything belongs to the event loop that ``connect`` ran on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import random
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar, cast

from appliance import wire
from appliance.algorithms import DIGEST_LEN, SIGNATURE_LEN, PublicKey
from appliance.client.connecting import (
    HINT,
    cannot_connect,
    certificate_alert,
    certificate_refused,
    reason_of,
)
from appliance.client.seals import SealCalls
from appliance.client.streams import in_order, iterate
from appliance.errors import (
    ApplianceError,
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    ProtocolError,
    RequestError,
    SignerFailed,
    Unavailable,
    from_wire,
)
from appliance.settings import split_address
from appliance.wire import (
    Form,
    Frame,
    FrameType,
    Items,
    ItemStatus,
    KeyKind,
    KeyRecord,
    Priority,
    SignedAnswer,
    SignRequest,
    StatusKind,
    VerifyRequest,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ANSWER_LEN: Final = 32 * 1024 * 1024
"""No answer is longer: the largest is a SIGNED of 65,536 items, some 4 MiB."""
TICK_S: Final = 0.02
"""How often deadlines are looked at."""
FIRST_BACK_OFF_S: Final = 0.05
MAX_BACK_OFF_S: Final = 2.0
VANISHED_AFTER_S: Final = 20
"""A peer that acknowledges nothing for so long has gone; shorter would cut off a line that only stutters."""
CLOSE_GRACE_S: Final = 1.0
MAX_MUTE_ENDS: Final = 3
"""TLS connections in a row that ended before a byte came: a server that restarts does not shake hands so often."""
DEFAULT_DEADLINE_S: Final = 30.0
DEFAULT_BATCH_ITEMS: Final = 256
DEFAULT_DEPTH: Final = 16
"""Batches out at a time in a stream: enough to keep every worker busy over a slow line."""


class Receipt(NamedTuple):
    """One item of a stream, answered. ``signature`` is r ‖ s, 64 bytes, zeros unless ``status`` is SIGNED."""

    job_id: bytes
    index: int  # type: ignore[assignment]  # nobody misses tuple.index
    status: ItemStatus
    signature: bytes


class _Pending:
    """A request without its answer.

    It counts against the window until the server has answered or is gone, also where nobody waits for the answer any
    more (``future`` is done): the server counts it too.
    """

    __slots__ = ("deadline_at", "frame", "future", "items")

    def __init__(
        self, frame: bytes | list[bytes], items: int, deadline_at: float, future: asyncio.Future[Frame]
    ) -> None:
        self.frame = frame
        self.items = items
        self.deadline_at = deadline_at
        self.future = future


class _Waiter:
    """A call that waits for its turn and for room in the window."""

    __slots__ = ("woken",)

    def __init__(self, woken: asyncio.Future[None]) -> None:
        self.woken = woken


class _Link(asyncio.Protocol):
    """One connection; it reports to its client and knows nothing else."""

    def __init__(self, client: Client, generation: int) -> None:
        self.client = client
        self.generation = generation
        self.transport: asyncio.Transport | None = None
        self._reader = wire.FrameReader(MAX_ANSWER_LEN)
        self._out: list[bytes] = []
        self._in_pieces = False
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.heard = False  # whether a byte came
        self.cause: Exception | None = None  # of its end, where the transport knows one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.cause = exc
        self.ended.set()
        self.client._lost(self)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._reader.receive(data)
        try:
            while (frame := self._reader.next_frame()) is not None:
                self.client._received(self, frame)
        except ProtocolError as error:
            self.client._broken(error)

    def write(self, frame: bytes | list[bytes]) -> None:
        """With whatever else this turn of the loop writes. A frame of many bytes comes in pieces."""
        if not self._out:
            self._loop.call_soon(self._flush)
        if isinstance(frame, list):
            self._in_pieces = True
            self._out += frame
        else:
            self._out.append(frame)

    def _flush(self) -> None:
        if self.transport is not None and self._out:
            if self._in_pieces:
                self.transport.writelines(self._out)
            else:
                self.transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out = []  # a transport may keep the list that it was given
        self._in_pieces = False

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def wait_ended(self) -> None:
        """After ``close``: until the socket is closed, for so long as a peer may take to answer TLS's farewell."""
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self.ended.wait()
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()


class Client(SealCalls):
    """A connection to the appliance that mends itself. Make it with ``connect``; close it, or use ``async with``."""

    def __init__(
        self,
        address: str,
        *,
        account: str,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retries: bool = True,
        batch_singles: bool = True,
        on_trouble: Callable[[ApplianceError], None] | None = None,
    ) -> None:
        self._address = address
        self._hello = wire.Hello(wire.VERSION, wire.VERSION, account, password)
        self._tls = tls
        self._deadline_s = deadline_s
        self._retries = retries
        self._batch_singles = batch_singles
        self._on_trouble = on_trouble
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._last_link: _Link | None = None  # it may still be closing when `_link` has gone
        self._welcome: wire.Welcome | None = None
        self._welcomed = asyncio.Event()
        self._waiting: deque[_Waiter] = deque()  # for the window; only the first may go on
        self._pending: dict[int, _Pending] = {}
        self._pending_items = 0
        self._unsent: deque[int] = deque()  # those of `_pending` that this connection has not been sent
        self._unsent_items = 0
        self._ids = itertools.count(2)  # 1 is HELLO's
        self._job_prefix = os.urandom(8)
        self._jobs = itertools.count()
        self._gathered: dict[tuple[str, float], list[tuple[bytes, asyncio.Future[bytes]]]] = {}
        self._reconnect = asyncio.Event()
        # Why there is no connection; a ``RequestError`` is for good. Set by whoever sees the connection fail or end,
        # cleared by the next one that opens.
        self._failure: ApplianceError | None = None
        self._mute_ends = 0  # see MAX_MUTE_ENDS
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.reconnects = 0

    # Life -----------------------------------------------------------------------------------------------

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        account: str,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retries: bool = True,
        batch_singles: bool = True,
        on_trouble: Callable[[ApplianceError], None] | None = None,
    ) -> Self:
        """Connect and prove who we are.

        ``address`` is ``unix:/path/of.sock`` or ``host:port``; the latter always speaks TLS 1.3, verified against the
        system's CAs unless ``tls`` says otherwise. ``deadline_s`` holds for this call and, by default, for each later
        one. ``on_trouble`` is told each time why there is no connection when another try is to follow. Raises
        ``NotAuthenticated`` (also where the server does not accept the certificate in ``tls``), ``Unavailable`` or
        ``DeadlineExceeded``.
        """
        client = cls(
            address,
            account=account,
            password=password,
            tls=tls,
            deadline_s=deadline_s,
            retries=retries,
            batch_singles=batch_singles,
            on_trouble=on_trouble,
        )
        if not address.startswith("unix:"):
            try:
                split_address(address)
            except ConfigError as error:
                raise BadRequest(error.detail, hint="or unix:/path/of.sock") from error
        client._spawn(client._tick())
        client._spawn(client._stay_connected())
        try:
            async with asyncio.timeout(deadline_s):
                await client._welcomed.wait()
        except TimeoutError:
            await client.close()
            raise client._failure or DeadlineExceeded(
                f"{address} did not answer in {deadline_s:g} s"
            ) from None
        except asyncio.CancelledError:
            await client.close()
            raise
        if client._failure is not None:
            await client.close()
            raise client._failure
        return client

    async def close(self) -> None:
        """Unanswered calls end with ``Unavailable``."""
        self._closed = True
        self._fail_all(Unavailable("the client was closed"))
        self._wake_all()  # whoever waits for the window sees that it is closed
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if (link := self._last_link) is not None:
            link.close()
            await link.wait_ended()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def welcome(self) -> wire.Welcome | None:
        """What the server granted, once connected."""
        return self._welcome

    # Signing --------------------------------------------------------------------------------------------

    async def sign(self, key: str, digest: bytes, *, deadline_s: float | None = None) -> bytes:
        """Sign one 32-byte digest: SHA-256(M), or e = SM3(Z ‖ M). Returns r ‖ s, 64 bytes."""
        if len(digest) != DIGEST_LEN:
            raise BadRequest(f"a digest has {DIGEST_LEN} bytes, got {len(digest)}")
        if self._batch_singles:
            return await self._gather(key, digest, self._deadline_s if deadline_s is None else deadline_s)
        answer = await self.sign_batch(key, Items(Form.DIGESTS, 1, b"", digest), deadline_s=deadline_s)
        return _only_signature(answer)

    async def sign_message(self, key: str, message: bytes, *, deadline_s: float | None = None) -> bytes:
        """Sign one message, hashed by the server as the key's algorithm says. Returns r ‖ s, 64 bytes."""
        return _only_signature(await self.sign_batch(key, wire.messages([message]), deadline_s=deadline_s))

    async def sign_batch(
        self,
        key: str,
        items: Items,
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        priority: Priority = Priority.AUTOMATIC,
        deadline_s: float | None = None,
    ) -> SignedAnswer:
        """Sign up to 65,536 items in one request; look at ``failed`` and ``statuses`` of the answer."""
        deadline_at = self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
        job = job_id if job_id is not None else self._job_prefix + struct.pack("!Q", next(self._jobs))
        if len(job) != 16:
            raise BadRequest(f"a job id has 16 bytes, got {len(job)}")

        def encode(request_id: int) -> bytes:
            left_ms = max(1, int((deadline_at - self._loop.time()) * 1_000))
            return wire.encode_sign(
                request_id, SignRequest(job, first_index, min(left_ms, 2**32 - 1), priority, key, items)
            )

        frame = await self._call(encode, FrameType.SIGNED, items.count, deadline_at)
        answer = wire.decode_signed(frame.payload)
        if (answer.job_id, answer.first_index, answer.count) != (job, first_index, items.count):
            raise ProtocolError("SIGNED: the answer belongs to another request")
        return answer

    async def sign_batches(
        self,
        key: str,
        batches: Iterable[Items] | AsyncIterable[Items],
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        depth: int = DEFAULT_DEPTH,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[SignedAnswer, None]:
        """Sign batches as they come; answers in order of index. ``deadline_s`` holds for each batch."""
        if depth < 1:
            raise BadRequest(f"a stream has at least 1 batch out, got a depth of {depth}")
        job = job_id if job_id is not None else os.urandom(16)
        index = first_index

        def one(items: Items) -> Coroutine[Any, Any, SignedAnswer]:
            nonlocal index
            first, index = index, index + items.count
            return self.sign_batch(key, items, job_id=job, first_index=first, deadline_s=deadline_s)

        async with aclosing(in_order(iterate(batches), one, depth)) as answers:
            async for answer in answers:
                yield answer

    async def sign_stream(
        self,
        key: str,
        items: Iterable[bytes] | AsyncIterable[bytes],
        *,
        form: Form = Form.DIGESTS,
        job_id: bytes | None = None,
        first_index: int = 0,
        batch_items: int = DEFAULT_BATCH_ITEMS,
        depth: int = DEFAULT_DEPTH,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Receipt, None]:
        """Sign a stream of any length in constant memory; receipts in order of index, each exactly once."""
        answers = self.sign_batches(
            key,
            _in_batches(items, form, batch_items),
            job_id=job_id,
            first_index=first_index,
            depth=depth,
            deadline_s=deadline_s,
        )
        async with aclosing(answers):
            async for answer in answers:
                for receipt in receipts(answer):
                    yield receipt

    async def _gather(self, key: str, digest: bytes, deadline_s: float) -> bytes:
        future: asyncio.Future[bytes] = self._loop.create_future()
        gathered = self._gathered.get((key, deadline_s))
        if gathered is None:
            gathered = self._gathered[key, deadline_s] = []
            self._loop.call_soon(self._send_gathered, key, deadline_s)
        gathered.append((digest, future))
        return await future

    def _send_gathered(self, key: str, deadline_s: float) -> None:
        calls = self._gathered.pop((key, deadline_s))
        for at in range(0, len(calls), DEFAULT_BATCH_ITEMS):
            some = calls[at : at + DEFAULT_BATCH_ITEMS]
            task = self._spawn(self._sign_gathered(key, some, deadline_s))
            # `close` cancels the task, perhaps before its first step; the callers wait for their futures only.
            task.add_done_callback(partial(_end_calls, some))

    async def _sign_gathered(
        self, key: str, calls: list[tuple[bytes, asyncio.Future[bytes]]], deadline_s: float
    ) -> None:
        items = Items(Form.DIGESTS, len(calls), b"", b"".join(digest for digest, _ in calls))
        try:
            answer = await self.sign_batch(key, items, deadline_s=deadline_s)
        except ApplianceError as error:
            _fail_calls(calls, error)
            return
        for receipt, (_, future) in zip(receipts(answer), calls, strict=True):
            if future.done():
                continue
            if receipt.status is ItemStatus.SIGNED:
                future.set_result(receipt.signature)
            else:
                future.set_exception(_item_error(receipt.status))

    # Verifying and status -------------------------------------------------------------------------------

    async def verify(
        self,
        key: str | PublicKey | bytes,
        items: Items,
        signatures: bytes,
        *,
        deadline_s: float | None = None,
    ) -> bytes:
        """A byte an item: 1 the signature (r ‖ s) is valid, 0 it is not.

        ``key`` is the name of a key that the appliance holds, a public key, or a DER certificate.
        """
        if len(signatures) != items.count * SIGNATURE_LEN:
            raise BadRequest(f"{items.count} items need {items.count * SIGNATURE_LEN} bytes of signatures")
        if isinstance(key, str):
            kind, encoded = KeyKind.NAME, wire.encode_name(key, "key")
        elif isinstance(key, PublicKey):
            kind, encoded = KeyKind.SPKI, key.spki()
        else:
            kind, encoded = KeyKind.CERTIFICATE, key
        deadline_at = self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)

        def encode(request_id: int) -> bytes:
            left_ms = max(1, int((deadline_at - self._loop.time()) * 1_000))
            request = VerifyRequest(min(left_ms, 2**32 - 1), kind, encoded, signatures, items)
            return wire.encode_verify(request_id, request)

        frame = await self._call(encode, FrameType.VERIFIED, items.count, deadline_at)
        statuses = wire.decode_verified(frame.payload)
        if len(statuses) != items.count:
            raise ProtocolError("VERIFIED: the answer belongs to another request")
        return statuses

    async def status(self, names: Sequence[str] = (), *, deadline_s: float | None = None) -> list[KeyRecord]:
        """What can be said of these keys; of all that the account may use where none is named."""
        answer = await self._status(StatusKind.KEYS, names, deadline_s)
        if isinstance(answer, bytes):
            raise ProtocolError("STATUS_ANSWER: another kind than was asked")
        return answer

    async def appliance_status(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """Tokens, workers and queues of the appliance."""
        answer = await self._status(StatusKind.APPLIANCE, (), deadline_s)
        if not isinstance(answer, bytes):
            raise ProtocolError("STATUS_ANSWER: another kind than was asked")
        try:
            document = json.loads(answer)
        except ValueError as error:
            raise ProtocolError("STATUS_ANSWER: not JSON") from error
        if not isinstance(document, dict):
            raise ProtocolError("STATUS_ANSWER: expected a JSON object")
        return document

    async def _status(
        self, kind: StatusKind, names: Sequence[str], deadline_s: float | None
    ) -> list[KeyRecord] | bytes:
        deadline_at = self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
        frame = await self._call(
            lambda request_id: wire.encode_status(request_id, kind, names),
            FrameType.STATUS_ANSWER,
            0,
            deadline_at,
        )
        return wire.decode_status_answer(frame.payload)

    async def ping(self, *, deadline_s: float | None = None) -> float:
        """Seconds there and back."""
        began_at = time.perf_counter()  # the loop's own clock may count in milliseconds
        deadline_at = self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
        await self._call(lambda request_id: wire.encode_ping(request_id), FrameType.PONG, 0, deadline_at)
        return time.perf_counter() - began_at

    # Calls ----------------------------------------------------------------------------------------------

    async def _call(
        self,
        encode: Callable[[int], bytes | list[bytes]],
        expected: FrameType,
        items: int,
        deadline_at: float,
    ) -> Frame:
        """Send a request and wait for its answer, again and again where that is allowed, until the deadline."""
        while True:
            await self._wait_for_window(items, deadline_at)
            request_id = next(self._ids)
            future: asyncio.Future[Frame] = self._loop.create_future()
            pending = _Pending(encode(request_id), items, deadline_at, future)
            self._check_length(pending.frame)
            self._pending[request_id] = pending
            self._pending_items += items
            assert self._link is not None
            self._link.write(pending.frame)
            frame = await future
            if frame.type is expected:
                return frame
            if frame.type is not FrameType.ERROR:
                raise ProtocolError(f"expected {expected.name}, got {frame.type.name}")
            answer = wire.decode_error(frame.payload)
            error = from_wire(
                answer.code, answer.detail, hint=answer.hint, retry_after_ms=answer.retry_after_ms
            )
            wait_s = answer.retry_after_ms / 1_000 * random.uniform(1.0, 1.3)  # noqa: S311  # spreads retries
            may_retry = self._retries and isinstance(error, Unavailable) and answer.retry_after_ms
            if not may_retry or self._loop.time() + wait_s >= deadline_at:
                raise error
            await asyncio.sleep(wait_s)

    async def _wait_for_window(self, items: int, deadline_at: float) -> None:
        """Until connected and the window has room; first come, first served."""
        self._check_usable(items)
        if not self._waiting and self._has_room(items):
            return
        waiter = _Waiter(self._loop.create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(deadline_at):
                while self._waiting[0] is not waiter or not self._has_room(items):
                    waiter.woken = self._loop.create_future()
                    await waiter.woken
                    self._check_usable(items)
        except TimeoutError:
            raise self._failure or DeadlineExceeded(
                f"the deadline passed before the request could be sent to {self._address}"
            ) from None
        finally:
            self._waiting.remove(waiter)
            self._wake_next()  # also where this one was cancelled after it was woken

    def _check_usable(self, items: int) -> None:
        if self._closed:
            raise Unavailable("the client was closed")
        if self._failure is not None and isinstance(self._failure, RequestError):
            raise self._failure
        if self._welcome is not None and items > self._welcome.window_items:
            raise BadRequest(f"{items} items are more than the window of {self._welcome.window_items}")

    def _check_length(self, frame: bytes | list[bytes]) -> None:
        """The server would answer a frame that is too long by closing the connection, for all calls."""
        assert self._welcome is not None
        limit = self._welcome.max_payload_len
        length = (sum(map(len, frame)) if isinstance(frame, list) else len(frame)) - wire.HEADER_LEN
        if length > limit:
            raise BadRequest(
                f"a request of {length} bytes, the server takes {limit}",
                hint="send smaller batches",
            )

    def _has_room(self, items: int) -> bool:
        welcome = self._welcome
        return (
            welcome is not None
            and not self._closed
            and self._welcomed.is_set()
            and self._link is not None
            and len(self._pending) < welcome.window_requests
            and self._pending_items + items <= welcome.window_items
        )

    def _wake_next(self) -> None:
        if self._waiting and not self._waiting[0].woken.done():
            self._waiting[0].woken.set_result(None)

    def _wake_all(self) -> None:
        for waiter in self._waiting:
            if not waiter.woken.done():
                waiter.woken.set_result(None)

    # The connection -------------------------------------------------------------------------------------

    def _received(self, link: _Link, frame: Frame) -> None:
        pending = self._pending.pop(frame.request_id, None)
        if pending is not None:
            self._pending_items -= pending.items
            if self._unsent:
                self._send_again()
            self._wake_next()
            if not pending.future.done():
                pending.future.set_result(frame)
        elif frame.type is FrameType.WELCOME:
            self._welcome = wire.decode_welcome(frame.payload)
            self._failure = None
            self._welcomed.set()
            for request_id, waiting in list(self._pending.items()):
                if waiting.future.done():  # nobody waits for it, and this connection has never heard of it
                    del self._pending[request_id]
                    self._pending_items -= waiting.items
            # Lost with the last connection, perhaps after they were done: the same names make that safe.
            self._unsent = deque(self._pending)
            self._unsent_items = self._pending_items
            self._send_again()
            self._wake_all()
        elif frame.type is FrameType.ERROR and not frame.request_id:
            answer = wire.decode_error(frame.payload)
            self._failure = from_wire(
                answer.code, answer.detail, hint=answer.hint, retry_after_ms=answer.retry_after_ms
            )
            if isinstance(self._failure, RequestError):
                self._broken(self._failure)
        elif frame.type is FrameType.GOAWAY:
            self._welcomed.clear()  # what was accepted is still answered; new requests wait for the next server

    def _send_again(self) -> None:
        """What an earlier connection left unanswered, within the window of this one: it may be smaller."""
        welcome, link = self._welcome, self._link
        while self._unsent and welcome is not None and link is not None:
            pending = self._pending[self._unsent[0]]
            if pending.items > welcome.window_items and not pending.future.done():
                pending.future.set_exception(
                    BadRequest(
                        f"{pending.items} items are more than the window of {welcome.window_items} now"
                    )
                )
            out = len(self._pending) - len(self._unsent)
            out_items = self._pending_items - self._unsent_items
            fits = out < welcome.window_requests and out_items + pending.items <= welcome.window_items
            if not fits and not pending.future.done():
                return
            request_id = self._unsent.popleft()
            self._unsent_items -= pending.items
            if pending.future.done():  # given up meanwhile; this connection has never heard of it
                del self._pending[request_id]
                self._pending_items -= pending.items
            else:
                link.write(pending.frame)

    def _broken(self, error: ApplianceError) -> None:
        """This will not get better by trying again."""
        self._failure = error
        self._fail_all(error)
        self._welcomed.set()
        self._wake_all()
        if self._link is not None:
            self._link.close()

    def _fail_all(self, error: ApplianceError) -> None:
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)

    def _lost(self, link: _Link) -> None:
        if link is self._link:
            self._link = None
            if not isinstance(self._failure, RequestError):
                self._welcomed.clear()
            self._reconnect.set()

    async def _stay_connected(self) -> None:
        """Connect, and again with growing pauses whenever the connection is lost."""
        back_off_s = FIRST_BACK_OFF_S
        for generation in itertools.count():
            if isinstance(self._failure, RequestError):
                return
            try:
                self._link = self._last_link = link = await self._open(generation)
                self._failure = None
                if link.ended.is_set():  # before it was ours, so `_lost` has not heard of it
                    self._reconnect.set()
                link.write(wire.encode_hello(self._hello))
                began_at = self._loop.time()
                await self._reconnect.wait()
                self._reconnect.clear()
                self._learn_from_end(link)
                if self._loop.time() - began_at > MAX_BACK_OFF_S:
                    back_off_s = FIRST_BACK_OFF_S
            except (OSError, ssl.SSLError) as error:
                if (reason := certificate_alert(error)) is not None:
                    self._broken(certificate_refused(self._address, reason))
                    return
                self._mute_ends = 0
                if isinstance(error, ssl.SSLCertVerificationError):
                    self._broken(
                        BadRequest(f"{self._address}: {error}", hint="trust its CA, or fix the name")
                    )
                    return
                self._failure = cannot_connect(self._address, error)
            if self._failure is not None and not isinstance(self._failure, RequestError):
                if not self._retries and self._welcome is None:
                    self._broken(self._failure)
                    return
                if self._on_trouble is not None:
                    self._on_trouble(self._failure)
            self.reconnects += 1
            await asyncio.sleep(back_off_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads a herd
            back_off_s = min(back_off_s * 2, MAX_BACK_OFF_S)

    def _learn_from_end(self, link: _Link) -> None:
        """Why it ended, unless the server said so; and one that refuses our certificate will do so again."""
        if self._failure is None:
            reason = "" if link.cause is None else f" ({reason_of(link.cause)})"
            self._failure = Unavailable(f"{self._address} closed the connection{reason}", hint=HINT)
        if link.heard or self._address.startswith("unix:"):
            self._mute_ends = 0
            return
        self._mute_ends += 1
        refusal = certificate_alert(link.cause)
        if refusal is None and self._mute_ends >= MAX_MUTE_ENDS:
            refusal = f"the connection was closed after the TLS handshake, {self._mute_ends} times, before an answer"
        if refusal is not None:
            self._broken(certificate_refused(self._address, refusal))

    async def _open(self, generation: int) -> _Link:
        def make() -> _Link:
            return _Link(self, generation)

        if self._address.startswith("unix:"):
            _, link = await self._loop.create_unix_connection(make, self._address.removeprefix("unix:"))
            return link
        host, port = split_address(self._address)
        context = self._tls if self._tls is not None else ssl.create_default_context()
        transport, link = await self._loop.create_connection(
            make, host, port, ssl=context, server_hostname=host
        )
        sock = transport.get_extra_info("socket")
        # A server that has vanished without a word is noticed, and another connection tried.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_AFTER_S // 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_AFTER_S // 4)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_AFTER_S * 1_000)
        return link

    async def _tick(self) -> None:
        """End calls whose deadline has passed: one look at all of them costs less than a timer for each."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._loop.time()
            for pending in self._pending.values():
                if pending.deadline_at <= now and not pending.future.done():
                    # No answer is no proof that nothing was done, whatever the connection died of.
                    reason = "" if self._failure is None else f"; {self._failure.detail}"
                    pending.future.set_exception(
                        DeadlineExceeded(
                            f"the deadline passed without an answer{reason}",
                            hint="ask again by the same job id",
                        )
                    )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def receipts(answer: SignedAnswer) -> Iterator[Receipt]:
    """The items of an answer, one by one."""
    signatures = bytes(answer.signatures)
    for at, status in enumerate(bytes(answer.statuses)):
        yield Receipt(
            answer.job_id,
            answer.first_index + at,
            ItemStatus(status),
            signatures[at * SIGNATURE_LEN : (at + 1) * SIGNATURE_LEN],
        )


def _fail_calls(calls: list[tuple[bytes, asyncio.Future[bytes]]], error: ApplianceError) -> None:
    """End those that have not ended."""
    for _, future in calls:
        if not future.done():
            future.set_exception(error)


def _end_calls(calls: list[tuple[bytes, asyncio.Future[bytes]]], _: object) -> None:
    _fail_calls(calls, Unavailable("the client was closed"))


def _only_signature(answer: SignedAnswer) -> bytes:
    if answer.failed:
        raise _item_error(ItemStatus(answer.statuses[0]))
    return bytes(answer.signatures)


def _item_error(status: ItemStatus) -> SignerFailed:
    what = "refused the item" if status is ItemStatus.REFUSED else "failed on the item again and again"
    return SignerFailed(f"the token {what}", hint="see the daemon's log")


async def _in_batches(
    items: Iterable[bytes] | AsyncIterable[bytes], form: Form, batch_items: int
) -> AsyncGenerator[Items, None]:
    check_batch_items(batch_items)
    batch: list[bytes] = []
    async with aclosing(iterate(items)) as source:
        async for item in source:
            batch.append(item)
            if len(batch) == batch_items:
                yield join_items(batch, form)
                batch = []
    if batch:
        yield join_items(batch, form)


def check_batch_items(batch_items: int) -> None:
    """``BadRequest`` for a batch that no request can carry."""
    if not 1 <= batch_items <= wire.MAX_ITEMS:
        raise BadRequest(f"a batch has 1 to {wire.MAX_ITEMS} items, got {batch_items}")


def join_items(batch: list[bytes], form: Form) -> Items:
    """One block of what are digests or messages."""
    if form is Form.DIGESTS:  # 31 and 33 bytes make 64: two digests that nobody meant
        for item in batch:
            if len(item) != DIGEST_LEN:
                raise BadRequest(f"a digest has {DIGEST_LEN} bytes, got {len(item)}")
    return wire.messages(batch) if form is Form.MESSAGES else wire.digests(b"".join(batch))
