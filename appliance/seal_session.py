"""The part of a connection's conversation that is about seals.

For: SEAL, VERIFY_SEAL, SEAL_STATUS and UNLOCK frames to ``sealer`` and its results to frames.
Not for: the window, the state table, identity (``session``, which owns one of these).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from appliance import wire_seals
from appliance.errors import ApplianceError
from appliance.metrics import Metrics
from appliance.sealer import Sealer, SealWork
from appliance.sealing import Address
from appliance.wire import Frame, ItemStatus
from appliance.wire_seals import SealedAnswer, SealVerdict


class Turns(Protocol):
    """What a session does for every request."""

    def open(self, request_id: int, items: int) -> None:
        """Count it against the window."""

    def answer(
        self, type_: str, request_id: int, items: int, permit_len: int, began_at: float, frame: bytes
    ) -> None:
        """Send its answer and count it as done."""

    def fail(
        self, type_: str, request_id: int, items: int, permit_len: int, began_at: float, error: ApplianceError
    ) -> None:
        """The same with an error."""

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it until the connection has gone."""


class _Tag(NamedTuple):
    """What a work is to be answered with."""

    request_id: int
    permit_len: int


class SealConversation:
    """Owned by its session; ended by ``lost``."""

    def __init__(
        self,
        sealer: Sealer,
        turns: Turns,
        source: Address,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._sealer = sealer
        self._turns = turns
        self._source = source
        self._metrics = metrics
        self._clock = clock
        self._works: dict[SealWork, _Tag] = {}

    def lost(self) -> list[SealWork]:
        """The connection has gone; what nobody waits for any more."""
        works, self._works = list(self._works), {}
        return works

    def seal(self, account: str, frame: Frame) -> None:
        """A SEAL."""
        request = wire_seals.decode_seal(frame.payload)
        self._turns.open(frame.request_id, request.items)
        tag = _Tag(frame.request_id, len(frame.payload))
        now = self._clock()
        try:
            work = self._sealer.seal(account, self._source, request, now, self._sealed)
        except ApplianceError as error:
            self._turns.fail("seal", tag.request_id, request.items, tag.permit_len, now, error)
            return
        self._works[work] = tag

    def _sealed(self, work: SealWork) -> None:
        """The sealer has ended one of our works."""
        tag = self._works.pop(work, None)
        if tag is None:
            return
        began_at = work.accepted_at
        if work.error is not None:
            self._turns.fail("seal", tag.request_id, work.count, tag.permit_len, began_at, work.error)
            return
        failed = work.count - bytes(work.statuses).count(ItemStatus.SIGNED)
        answer = SealedAnswer(
            work.request.job_id,
            work.request.first_index,
            work.count,
            failed,
            work.common_body,
            work.common_suffix,
            b"",
            b"",
        )
        frame = wire_seals.encode_sealed(tag.request_id, answer, work.block)
        self._turns.answer("seal", tag.request_id, work.count, tag.permit_len, began_at, frame)
        self._metrics.items_done("seal", work.count - failed, failed)

    def verify(self, account: str, frame: Frame) -> None:
        """A VERIFY_SEAL."""
        request = wire_seals.decode_verify_seal(frame.payload)

        async def work(now: float) -> bytes:
            verified = await self._sealer.verify(account, request, now)
            good = sum(one.verdict is SealVerdict.GOOD for one in verified)
            self._metrics.items_done("verify_seal", good, len(verified) - good)
            return wire_seals.encode_seals_verified(frame.request_id, verified)

        self._later("verify_seal", frame, request.items, work)

    def status(self, account: str, frame: Frame) -> None:
        """A SEAL_STATUS."""
        request = wire_seals.decode_seal_status(frame.payload)

        async def work(now: float) -> bytes:
            records = await self._sealer.status(account, self._source, request)
            return wire_seals.encode_seal_states(frame.request_id, request.kind, records)

        self._later("seal_status", frame, 0, work)

    def unlock(self, account: str, frame: Frame) -> None:
        """An UNLOCK."""
        request = wire_seals.decode_unlock(frame.payload)

        async def work(now: float) -> bytes:
            expires_at = await self._sealer.unlock(account, self._source, request)
            return wire_seals.encode_unlocked(frame.request_id, expires_at)

        self._later("unlock", frame, 0, work)

    def _later(self, type_: str, frame: Frame, items: int, work: Callable[[float], Awaitable[bytes]]) -> None:
        self._turns.open(frame.request_id, items)

        async def run() -> None:
            now, permit_len = self._clock(), len(frame.payload)
            try:
                answer = await work(now)
            except ApplianceError as error:
                self._turns.fail(type_, frame.request_id, items, permit_len, now, error)
            else:
                self._turns.answer(type_, frame.request_id, items, permit_len, now, answer)

        self._turns.spawn(run())
