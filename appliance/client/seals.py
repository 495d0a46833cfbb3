"""What a client does with seals: the part of ``Client`` that is about SEAL, VERIFY_SEAL, SEAL_STATUS and UNLOCK.

Rules:

* A batch's values are put together when they are asked for: what they have in common is kept once until then.
* What does not fit into one request is sent as several; a stream keeps no more than ``depth`` batches out.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
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
from typing import Any, Final, NamedTuple, TypeVar

from appliance import wire, wire_seals
from appliance.algorithms import DIGEST_LEN
from appliance.client.streams import in_order, iterate
from appliance.errors import BadRequest, ProtocolError
from appliance.wire import JOB_ID_LEN, Frame, FrameType, ItemStatus, Priority
from appliance.wire_seals import (
    SealedAnswer,
    SealFlag,
    SealNameKind,
    SealRequest,
    SealStatusRecord,
    SealVerified,
    UnlockRequest,
)

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_SEAL_BATCH: Final = 256
DEFAULT_SEAL_DEPTH: Final = 16
VERIFY_DEPTH: Final = 4
"""Requests out at a time where seal signatures are verified: each has megabytes."""
_ROOM_LEN: Final = 4_096
"""Left for heads, where values fill a request."""

SealItem = tuple[bytes, str]
"""The plain SM3 of the data, and its property info."""


class SealReceipt(NamedTuple):
    """One item of a stream, answered. ``value`` is a DER ``SES_Signature``, empty unless ``status`` is SIGNED."""

    job_id: bytes
    index: int  # type: ignore[assignment]  # nobody misses tuple.index
    status: ItemStatus
    value: bytes


class SealCalls(ABC):
    """A part of ``Client``, which has the rest."""

    _deadline_s: float
    _loop: asyncio.AbstractEventLoop
    _welcome: wire.Welcome | None

    @abstractmethod
    async def _call(
        self,
        encode: Callable[[int], bytes | list[bytes]],
        expected: FrameType,
        items: int,
        deadline_at: float,
    ) -> Frame:
        """Ask, and wait for the answer or the deadline."""

    def _deadline_at(self, deadline_s: float | None) -> float:
        return self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)

    def _left_ms(self, deadline_at: float) -> int:
        return min(max(1, int((deadline_at - self._loop.time()) * 1_000)), 2**32 - 1)

    async def seal(
        self,
        seal: str,
        hashes: bytes | Sequence[bytes],
        property_infos: str | Sequence[str],
        *,
        reference: str = "",
        time_stamp: bool = False,
        job_id: bytes | None = None,
        first_index: int = 0,
        priority: Priority = Priority.AUTOMATIC,
        deadline_s: float | None = None,
    ) -> SealedAnswer:
        """Seal up to 65,536 hashes (plain SM3) in one request; ``values()`` of the answer has each item's value.

        ``property_infos`` is one for all, or one each. ``reference`` is that of the approval, where the grant demands
        one. Look at ``failed`` of the answer.
        """
        block = hashes if isinstance(hashes, bytes) else b"".join(_checked(one) for one in hashes)
        infos = [property_infos] if isinstance(property_infos, str) else property_infos
        flags = SealFlag.ONE_PROPERTY if isinstance(property_infos, str) else SealFlag(0)
        if time_stamp:
            flags |= SealFlag.TIME_STAMP
        job = job_id if job_id is not None else os.urandom(JOB_ID_LEN)
        lengths, data = wire_seals.properties(infos)
        count = len(block) // DIGEST_LEN
        deadline_at = self._deadline_at(deadline_s)

        def encode(request_id: int) -> bytes:
            left_ms = self._left_ms(deadline_at)
            request = SealRequest(
                job, first_index, left_ms, priority, flags, seal, reference, block, lengths, data
            )
            return wire_seals.encode_seal(request_id, request)

        frame = await self._call(encode, FrameType.SEALED, count, deadline_at)
        answer = wire_seals.decode_sealed(frame.payload)
        if (answer.job_id, answer.first_index, answer.count) != (job, first_index, count):
            raise ProtocolError("SEALED: the answer belongs to another request")
        return answer

    async def seal_batches(
        self,
        seal: str,
        items: Iterable[SealItem] | AsyncIterable[SealItem],
        *,
        reference: str = "",
        job_id: bytes | None = None,
        first_index: int = 0,
        batch_items: int = DEFAULT_SEAL_BATCH,
        depth: int = DEFAULT_SEAL_DEPTH,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[SealedAnswer, None]:
        """Seal items as they come, in batches; answers in order of index. ``deadline_s`` holds for each batch."""
        if depth < 1 or not 1 <= batch_items <= wire.MAX_ITEMS:
            raise BadRequest(f"a stream has at least 1 batch out, of 1 to {wire.MAX_ITEMS} items")
        job = job_id if job_id is not None else os.urandom(JOB_ID_LEN)
        index = first_index

        def one(batch: list[SealItem]) -> Coroutine[Any, Any, SealedAnswer]:
            nonlocal index
            first, index = index, index + len(batch)
            return self.seal(
                seal,
                [data_hash for data_hash, _ in batch],
                [info for _, info in batch],
                reference=reference,
                job_id=job,
                first_index=first,
                deadline_s=deadline_s,
            )

        async with aclosing(in_order(_batches(items, batch_items), one, depth)) as answers:
            async for answer in answers:
                yield answer

    async def seal_stream(
        self, seal: str, items: Iterable[SealItem] | AsyncIterable[SealItem], **options: Any
    ) -> AsyncGenerator[SealReceipt, None]:
        """Seal a stream of any length in constant memory; receipts in order of index, each exactly once.

        Options are those of ``seal_batches``.
        """
        async with aclosing(self.seal_batches(seal, items, **options)) as answers:
            async for answer in answers:
                for receipt in seal_receipts(answer):
                    yield receipt

    async def verify_seals(
        self, items: Sequence[tuple[bytes, bytes]], *, deadline_s: float | None = None
    ) -> list[SealVerified]:
        """Verify seal signatures (DER ``SES_Signature``), each with the plain SM3 of the data it is put under."""
        for _, data_hash in items:
            _checked(data_hash)
        deadline_at = self._deadline_at(deadline_s)

        async def one(batch: Sequence[tuple[bytes, bytes]]) -> list[SealVerified]:
            values, hashes = zip(*batch, strict=True)

            def encode(request_id: int) -> list[bytes]:
                left_ms = self._left_ms(deadline_at)
                return wire_seals.verify_seal_pieces(request_id, left_ms, hashes, values)

            frame = await self._call(encode, FrameType.SEALS_VERIFIED, len(batch), deadline_at)
            verified = wire_seals.decode_seals_verified(frame.payload)
            if len(verified) != len(batch):
                raise ProtocolError("SEALS_VERIFIED: the answer belongs to another request")
            return verified

        limit = (self._welcome.max_payload_len if self._welcome else wire.MIN_PAYLOAD_LIMIT) - _ROOM_LEN
        result: list[SealVerified] = []
        async with aclosing(in_order(iterate(_that_fit(items, limit)), one, VERIFY_DEPTH)) as answers:
            async for answer in answers:
                result.extend(answer)
        return result

    async def seal_status(
        self, names: Sequence[str], *, by_code: bool = False, deadline_s: float | None = None
    ) -> list[SealStatusRecord]:
        """What can be said of these seals, by their ids here or by their codes; in the order asked."""
        kind = SealNameKind.CODE if by_code else SealNameKind.ID
        deadline_at = self._deadline_at(deadline_s)
        records: list[SealStatusRecord] = []
        for at in range(0, len(names), wire_seals.MAX_SEAL_NAMES):
            some = names[at : at + wire_seals.MAX_SEAL_NAMES]

            def encode(request_id: int, some: Sequence[str] = some) -> bytes:
                return wire_seals.encode_seal_status(request_id, kind, some)

            frame = await self._call(encode, FrameType.SEAL_STATUS_ANSWER, 0, deadline_at)
            answer = wire_seals.decode_seal_states(frame.payload)
            if len(answer) != len(some):
                raise ProtocolError("SEAL_STATUS_ANSWER: the answer belongs to another request")
            records.extend(answer)
        return records

    async def unlock(self, seal: str, password: str, seconds: int, *, deadline_s: float | None = None) -> int:
        """Unlock a seal for this account by its protection password; until when, in seconds since 1970 UTC."""
        if seconds < 1:
            raise BadRequest(f"cannot unlock for {seconds} s", hint="lock() locks")
        return await self._unlock(UnlockRequest(seal, password, seconds), deadline_s)

    async def lock(self, seal: str, *, deadline_s: float | None = None) -> None:
        """Lock it again for this account, before its time is over."""
        await self._unlock(UnlockRequest(seal, "", 0), deadline_s)

    async def _unlock(self, request: UnlockRequest, deadline_s: float | None) -> int:
        def encode(request_id: int) -> bytes:
            return wire_seals.encode_unlock(request_id, request)

        frame = await self._call(encode, FrameType.UNLOCKED, 0, self._deadline_at(deadline_s))
        return wire_seals.decode_unlocked(frame.payload)


def seal_receipts(answer: SealedAnswer) -> Iterator[SealReceipt]:
    """The items of an answer, one by one."""
    for index, (status, value) in enumerate(answer.values(), answer.first_index):
        yield SealReceipt(answer.job_id, index, status, value)


def _checked(data_hash: bytes) -> bytes:
    """31 and 33 bytes make 64: two hashes that nobody meant."""
    if len(data_hash) != DIGEST_LEN:
        raise BadRequest(f"a data hash is SM3: {DIGEST_LEN} bytes, got {len(data_hash)}")
    return data_hash


def _that_fit(items: Sequence[tuple[bytes, bytes]], limit: int) -> Iterable[Sequence[tuple[bytes, bytes]]]:
    """Runs of items that fit into one request each."""
    first, length = 0, 0
    for at, (value, _) in enumerate(items):
        own = len(value) + DIGEST_LEN + 4
        if at > first and (length + own > limit or at - first == wire_seals.MAX_VERIFIED_SEALS):
            yield items[first:at]
            first, length = at, 0
        length += own
    if items:
        yield items[first:]


async def _batches(source: Iterable[T] | AsyncIterable[T], batch_items: int) -> AsyncGenerator[list[T], None]:
    batch: list[T] = []
    async with aclosing(iterate(source)) as items:
        async for item in items:
            batch.append(item)
            if len(batch) == batch_items:
                yield batch
                batch = []
    if batch:
        yield batch
