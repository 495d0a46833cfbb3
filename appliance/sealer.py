"""Sealing and verifying at volume: what stands between a decoded request about seals and its answer.

For: authorise -> digests from the template -> sign as SIGN does -> complete values; verification; status; unlocking.
Not for: frames and sockets (``session``), what is known of seals and grants (``sealing``), passwords (``protection``).

Rules:

* The order: account active, grant (operation, validity, source, reference), seal active and within its validity,
  unlocked by this account, limits; then the signature. Limits come last, so that nothing refused counts.
* All signatures of a request bear the time at which it was authorised, in UTC.
* Where everything is known and nothing must be asked of anybody, a request is with the dispatcher before ``seal``
  returns. The loop is never held for longer than hashing a seal once or writing ``INLINE_ITEMS`` values.
* Where any seal, grant or key of a seal changed while a request was under way, it is looked at again before it is
  released: once a suspension is answered nothing leaves that the seal signed, however much was waiting.
* What was allowed and not signed counts against no limit; what was signed for a client that has left does.
* A bad item does not fail its neighbours. Nothing is released that is not whole: where a time stamp was asked for and
  could not be had, the item failed.

Crash story: that of ``sealing`` for limits and counts; unlocks end with the process. A signature that was made and not
answered is nowhere; the client asks again under the same job id and index.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Final, Protocol, overload

from appliance.algorithms import DIGEST_LEN, SIGNATURE_LEN, signature_to_der
from appliance.dispatch import Work
from appliance.errors import (
    ApplianceError,
    BadRequest,
    Busy,
    Conflict,
    DeadlineExceeded,
    Denied,
    SignerFailed,
    Unavailable,
)
from appliance.eseal import der
from appliance.eseal.batches import Item, findings_of_many
from appliance.eseal.findings import Outcome
from appliance.eseal.structures import ESeal
from appliance.eseal.verification import Examiner, Report, Status
from appliance.lifecycle import Operation
from appliance.pipeline import Pipeline
from appliance.policy import HeldKey
from appliance.sealing import Address, Limits, LoadedSeal, Permission, SealBook, UseCounter
from appliance.signers import SignerPool
from appliance.wire import Buffer, Form, Items, ItemStatus
from appliance.wire_seals import (
    SealCheck,
    SealFlag,
    SealNameKind,
    SealRequest,
    SealStatusFlag,
    SealStatusRecord,
    SealStatusRequest,
    SealVerdict,
    SealVerified,
    UnlockRequest,
    VerifySealRequest,
    numbers,
)

log = logging.getLogger(__name__)

INLINE_ITEMS: Final = 256
"""Items whose digests or values are made on the event loop: some 30 µs; a hop to a thread and back costs more."""
MAX_INLINE_LENGTHS: Final = 1
"""Lengths of property infos met for the first time: the whole seal is hashed for each, some 100 µs."""
MAX_MESSAGES_LEN: Final = 64 << 20
"""For tokens that hash themselves: each item is the whole seal again, and all of them stand in memory."""
MAX_STAMPING: Final = 8
"""Questions to the time-stamp authority at a time, of all requests together."""
MAX_VERIFYING_LEN: Final = 256 << 20
"""Bytes of seal signatures that may wait to be verified; beyond it the answer is ``busy``."""
MAX_RECENT_KEYS: Final = 65_536
"""Keys of seals for which work may be with a dispatcher: more than requests that can wait."""
MAX_STATUS_REQUESTS: Final = 64
"""SEAL_STATUS requests that look things up or wait for it."""

Stamp = Callable[[bytes], Awaitable[bytes]]
"""A time-stamp token (DER) over a signature value, from the configured authority."""


class Unlocks(Protocol):
    """Who has unlocked what: the leader's own, or what a following front was told."""

    def is_unlocked(self, account: str, seal_id: str) -> bool:
        """Asked with every request."""

    def unlocked_until(self, account: str, seal_id: str) -> int:
        """Seconds since 1970 UTC; 0 where it is not unlocked."""

    async def unlock(self, account: str, seal_id: str, password: str, seconds: int) -> int:
        """Until when (seconds since 1970 UTC), in all fronts; or ``Denied``, ``Busy``, ``BadRequest``."""

    async def lock(self, account: str, seal_id: str) -> None:
        """In all fronts, before it returns."""


class StatusReader(Protocol):
    """Reads what SEAL_STATUS and verification ask of the registry. Called in threads."""

    def records(
        self, account: str, source: Address, kind: SealNameKind, names: list[str], now: datetime
    ) -> Sequence[tuple[str, SealStatusRecord]]:
        """For each name the seal's id and what the account may know of it; no id where it may know nothing."""

    def standing(self, seal: ESeal) -> Status:
        """The status of a seal that somebody shows us."""


class SealWork(Work):
    """A SEAL on its way. ``block`` is records and pieces of its answer, once it has ended without an error."""

    __slots__ = (
        "account",
        "block",
        "changes",
        "loaded",
        "on_sealed",
        "permission",
        "request",
        "source",
        "stamped",
        "time",
    )

    def __init__(
        self,
        account: str,
        source: Address,
        request: SealRequest,
        accepted_at: float,
        deadline_at: float,
        on_end: Callable[[Work], None],
        on_sealed: Callable[[SealWork], None],
    ) -> None:
        items = Items(Form.DIGESTS, request.items, b"", request.hashes)
        super().__init__("", items, request.priority, accepted_at, deadline_at, on_end)
        self.account = account
        self.source = source
        self.request = request
        self.on_sealed = on_sealed
        self.loaded: LoadedSeal | None = None
        self.permission: Permission | None = None
        self.time = b""
        self.changes = 0
        self.block: Buffer = b""
        self.stamped: tuple[Buffer, bytes] | None = None

    @property
    def common_body(self) -> bytes:
        """What all values have in common before the middle."""
        assert self.loaded is not None
        return self.loaded.body + der.tlv(der.GENERALIZED_TIME, self.time)

    @property
    def common_suffix(self) -> bytes:
        """What all values have in common after it."""
        assert self.loaded is not None
        if len(self.request.property_lengths) != 2:
            return self.loaded.suffix
        return der.tlv(der.IA5_STRING, bytes(self.request.properties)) + self.loaded.suffix

    def arguments(self) -> tuple[bytes, Buffer, Buffer, Buffer]:
        """As a template takes a batch."""
        request = self.request
        return self.time, request.hashes, request.property_lengths, request.properties


class Sealer:
    """One for the process, owned by the event loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        book: SealBook,
        limits: Limits,
        uses: UseCounter,
        unlocks: Unlocks,
        statuses: StatusReader,
        now: Callable[[], float],
        *,
        examiner: Callable[[], Examiner],
        stamp: Stamp | None = None,
    ) -> None:
        self.book = book
        self.limits = limits
        self.uses = uses
        self.unlocks = unlocks
        self._pipeline = pipeline
        self._statuses = statuses
        self._now = now
        self._examiner = examiner
        self._stamp = stamp
        self._stamping = asyncio.Semaphore(MAX_STAMPING)
        self._verifying_len = 0
        self._status_requests = 0
        self._keys: OrderedDict[str, HeldKey] = (
            OrderedDict()
        )  # of seals used lately, for workers that load them

    def key(self, name: str) -> HeldKey | None:
        """The key that a worker has work for, and has not loaded yet."""
        return self._keys.get(name)

    # Sealing --------------------------------------------------------------------------------------------

    def seal(
        self,
        account: str,
        source: Address,
        request: SealRequest,
        now: float,
        on_sealed: Callable[[SealWork], None],
    ) -> SealWork:
        """Accept it (``on_sealed`` is called once, later) or raise; the caller pumps, as for ``Pipeline.sign``."""
        pipeline = self._pipeline
        pipeline.check_draining()
        pipeline.active_account(account)
        if request.flags & SealFlag.TIME_STAMP and self._stamp is None:
            raise BadRequest(
                "no time-stamp authority is configured", hint="seals.timestamp.url, or seal without"
            )
        deadline_at = pipeline.deadline_at(request.deadline_ms, now)
        work = SealWork(account, source, request, now, deadline_at, self._signed, on_sealed)
        known = self.book.find(account, request.seal)
        if known is not None:
            self._authorise(work, self.book.changes, *known)
            if self._is_quick(work) and self.limits.take_now(known[1].grant, work.count):
                self._digest(work)
                self._submit(work)
                return work
        pipeline.spawn(self._prepare(work))
        return work

    def _check_allowed(self, work: SealWork, loaded: LoadedSeal, permission: Permission) -> None:
        """Grant and seal, as they are now."""
        now = self._now()
        permission.check(Operation.SEAL, now, work.source)
        permission.check_reference(work.request.reference)
        _check_usable(loaded, now)

    def _authorise(self, work: SealWork, changes: int, loaded: LoadedSeal, permission: Permission) -> None:
        """All but the limits. ``changes`` is the book's count as what is known was looked up."""
        self._check_allowed(work, loaded, permission)
        seal_id = loaded.seal.id
        if not self.unlocks.is_unlocked(work.account, seal_id):
            raise Denied(
                f"account {work.account!r} has not unlocked seal {seal_id!r}, or its time is over",
                hint="unlock it with its protection password: UNLOCK, cloud-seal seal unlock",
            )
        work.loaded, work.permission = loaded, permission
        work.changes = changes
        work.time = datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%d%H%M%SZ").encode()

    def _is_quick(self, work: SealWork) -> bool:
        assert work.loaded is not None and work.loaded.template is not None
        if work.count > INLINE_ITEMS:
            return False
        try:
            return work.loaded.template.cold(*work.arguments(), MAX_INLINE_LENGTHS + 1) <= MAX_INLINE_LENGTHS
        except ValueError as error:
            raise BadRequest(str(error), hint="shorten the property infos, or split the batch") from error

    async def _prepare(self, work: SealWork) -> None:
        """What takes a look into the registry, or longer than the loop should be held."""
        taken = False
        try:
            async with asyncio.timeout_at(self._loop_time(work.deadline_at)):
                if work.loaded is None:
                    changes = self.book.changes
                    known = await self.book.load(work.account, work.request.seal)
                    self._authorise(work, changes, *known)
                assert work.permission is not None
                grant = work.permission.grant
                if not self.limits.take_now(grant, work.count):
                    await self.limits.take(grant, work.count)
                taken = True
                await self._pipeline.in_thread(lambda: self._digest(work))
            if work.ended:  # the client has left
                self.limits.give_back(grant, work.count)
                return
            taken = False  # from here on `_submit` and `_signed` give it back
            self._submit(work)
            self._pipeline.pump()
        except TimeoutError:
            if taken:
                self._give_back(work, work.count)
            work.error = DeadlineExceeded("the deadline passed before the request was with a token")
            self._finish(work)
        except ApplianceError as error:
            if taken:
                self._give_back(work, work.count)
            work.error = error
            self._finish(work)

    def _loop_time(self, at: float) -> float:
        """An instant of our clock as the loop counts."""
        return asyncio.get_running_loop().time() + at - self._pipeline.now

    def _digest(self, work: SealWork) -> None:
        """What the token is to sign. Perhaps in a thread."""
        loaded = work.loaded
        assert loaded is not None and loaded.template is not None
        _, pool = self._key_and_pool(loaded)
        try:
            if pool.hashes_itself(self._key(loaded).public.algorithm):
                work.items = _messages(work)
            else:
                work.items = Items(Form.DIGESTS, work.count, b"", loaded.template.digests(*work.arguments()))
        except ValueError as error:
            raise BadRequest(str(error), hint="shorten the property infos, or split the batch") from error

    def _key(self, loaded: LoadedSeal) -> HeldKey:
        assert loaded.key is not None
        return loaded.key

    def _key_and_pool(self, loaded: LoadedSeal) -> tuple[HeldKey, SignerPool]:
        key = self._key(loaded)
        return key, self._pipeline.pool(key)

    def _submit(self, work: SealWork) -> None:
        assert work.loaded is not None
        key, pool = self._key_and_pool(work.loaded)
        work.key = key.name
        self._keys[key.name] = key
        self._keys.move_to_end(key.name)
        if len(self._keys) > MAX_RECENT_KEYS:
            self._keys.popitem(last=False)
        try:
            pool.submit(work)
        except ApplianceError:
            self._give_back(work, work.count)
            raise

    def _give_back(self, work: SealWork, count: int) -> None:
        assert work.permission is not None
        if count:
            self.limits.give_back(work.permission.grant, count)

    def _signed(self, ended: Work) -> None:
        """The dispatcher has ended it."""
        assert isinstance(ended, SealWork)
        work = ended
        if work.error is not None:
            self._give_back(work, work.count)
            self._finish(work)
        elif work.request.flags & SealFlag.TIME_STAMP or work.count > INLINE_ITEMS * 4:
            self._pipeline.spawn(self._write_later(work))
        else:
            self._write(work)
            self._release(work)

    async def _write_later(self, work: SealWork) -> None:
        try:
            if work.request.flags & SealFlag.TIME_STAMP:
                async with asyncio.timeout_at(self._loop_time(work.deadline_at)):
                    await self._stamp_all(work)
            await self._pipeline.in_thread(lambda: self._write(work))
        except TimeoutError:
            work.error = DeadlineExceeded("the deadline passed before all time stamps were there")
        except ApplianceError as error:
            work.error = error
        else:
            self._release(work)
            return
        self._give_back(work, work.count)
        self._finish(work)

    def _release(self, work: SealWork) -> None:
        """It is made: tell the session, if what allowed it still stands."""
        if work.changes == self.book.changes:
            self._finish(work)
        else:
            self._pipeline.spawn(self._look_again(work))

    async def _look_again(self, work: SealWork) -> None:
        try:
            while work.changes != self.book.changes:
                changes = self.book.changes
                known = self.book.find(work.account, work.request.seal)
                self._check_allowed(work, *(known or await self.book.load(work.account, work.request.seal)))
                work.changes = changes  # what was read may be from before a further change
        except ApplianceError as error:
            work.error = error
            self._give_back(work, work.count)
        self._finish(work)

    def _write(self, work: SealWork) -> None:
        """The pieces of the answer. Perhaps in a thread."""
        assert work.loaded is not None and work.loaded.template is not None
        template = work.loaded.template
        more = () if work.stamped is None else work.stamped
        work.block = template.values(*work.arguments(), work.statuses, work.signatures, *more)

    def _finish(self, work: SealWork) -> None:
        """Count what was made, and tell the session."""
        if work.error is None:
            made = bytes(work.statuses).count(ItemStatus.SIGNED)
            self._give_back(work, work.count - made)
            if made:
                self.uses.add(work.request.seal, work.account, made)
        work.ended = True
        work.on_sealed(work)

    # Time stamps ----------------------------------------------------------------------------------------

    async def _stamp_all(self, work: SealWork) -> None:
        statuses, signatures = bytearray(work.statuses), bytes(work.signatures)
        errors: list[ApplianceError] = []

        async def one(at: int) -> bytes:
            if statuses[at] != ItemStatus.SIGNED:
                return b""
            value = signature_to_der(signatures[at * SIGNATURE_LEN : (at + 1) * SIGNATURE_LEN])
            assert self._stamp is not None
            try:
                async with self._stamping:
                    return await self._stamp(value)
            except (SignerFailed, Unavailable) as error:
                errors.append(error)
                statuses[at] = ItemStatus.FAILED  # the signature is not released without its time stamp
                return b""

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(at)) for at in range(work.count)]
        tokens = [task.result() for task in tasks]
        if errors:
            log.warning("%d of %d time stamps were not had: %s", len(errors), work.count, errors[-1])
            if not any(tokens):
                raise errors[-1]  # it says more than so many items that failed
        work.statuses = statuses
        work.stamped = array("I", map(len, tokens)), b"".join(tokens)  # type: ignore[assignment]  # a buffer too

    # Verifying ------------------------------------------------------------------------------------------

    async def verify(self, account: str, request: VerifySealRequest, now: float) -> list[SealVerified]:
        """Each seal signature's verdict."""
        pipeline = self._pipeline
        pipeline.check_draining()
        pipeline.active_account(account)
        if self._verifying_len + len(request.values) > MAX_VERIFYING_LEN:
            raise Busy("too many seal signatures wait to be verified", retry_after_ms=200)
        self._verifying_len += len(request.values)
        try:
            deadline_at = pipeline.deadline_at(request.deadline_ms, now)
            async with asyncio.timeout_at(self._loop_time(deadline_at)):
                return await pipeline.in_thread(lambda: self._verify(request))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before all seal signatures were verified") from None
        finally:
            self._verifying_len -= len(request.values)

    def _verify(self, request: VerifySealRequest) -> list[SealVerified]:
        """In a thread. Hashing and signatures run beside the loop; taking DER apart shares the interpreter with it."""
        now = datetime.fromtimestamp(self._now(), UTC)
        last: Report | None = None  # of a kind all items share one report
        verified: list[SealVerified] = []
        for report in findings_of_many(self._examiner(), _Block(request), now, self._statuses.standing):
            verified.append(verified[-1] if report is last else _verified(report))
            last = report
        return verified

    # Status and unlocking -------------------------------------------------------------------------------

    async def status(
        self, account: str, source: Address, request: SealStatusRequest
    ) -> list[SealStatusRecord]:
        """A record for each name, in the order asked."""
        self._pipeline.active_account(account)
        if self._status_requests >= MAX_STATUS_REQUESTS:
            raise Busy("too many questions about seals wait", retry_after_ms=200)
        self._status_requests += 1
        try:
            now = datetime.fromtimestamp(self._now(), UTC)
            facts = await asyncio.to_thread(
                self._statuses.records, account, source, request.kind, request.names, now
            )
        finally:
            self._status_requests -= 1
        records = []
        for seal_id, record in facts:
            until = self.unlocks.unlocked_until(account, seal_id) if seal_id else 0
            flags = record.flags | SealStatusFlag.UNLOCKED if until else record.flags
            records.append(record._replace(flags=flags, unlocked_until=until))
        return records

    async def unlock(self, account: str, source: Address, request: UnlockRequest) -> int:
        """Until when it is unlocked, in seconds since 1970 UTC; 0: it is locked."""
        self._pipeline.check_draining()
        self._pipeline.active_account(account)
        loaded, permission = self.book.find(account, request.seal) or await self.book.load(
            account, request.seal
        )
        permission.check(Operation.SEAL, self._now(), source)
        if not request.seconds:
            await self.unlocks.lock(account, request.seal)
            return 0
        loaded.check_usable(self._now())
        return await self.unlocks.unlock(account, request.seal, request.password, request.seconds)

    @property
    def live_requests(self) -> int:
        """Verifications, status requests under way; sealing counts with the pipeline."""
        return self._status_requests + (1 if self._verifying_len else 0)


class _Block(Sequence[Item]):
    """The seal signatures of a request, each cut out when it is asked for: together they have megabytes.

    New memory for all of them costs more than verifying them, where the same piece of memory can be used again.
    """

    def __init__(self, request: VerifySealRequest) -> None:
        self._values, self._hashes = memoryview(request.values), request.hashes
        self._ends = list(accumulate(numbers("I", request.lengths), initial=0))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        data_hash = bytes(self._hashes[DIGEST_LEN * index : DIGEST_LEN * (index + 1)])
        return bytes(self._values[self._ends[index] : self._ends[index + 1]]), data_hash


def _check_usable(loaded: LoadedSeal, now: float) -> None:
    """The seal and its key, else ``Conflict``."""
    loaded.check_usable(now)
    assert loaded.key is not None
    if loaded.key.disabled:
        raise Conflict(f"the key of seal {loaded.seal.id!r} is disabled", hint="cloud-seal key enable")


def _messages(work: SealWork) -> Items:
    """``TBS_Sign`` of each item, for a token that hashes itself."""
    assert work.loaded is not None
    request, body = work.request, work.common_body
    lengths = numbers("H", request.property_lengths)
    if work.count * (len(body) + 64) + sum(lengths) > MAX_MESSAGES_LEN:
        raise BadRequest(
            "the seal's token hashes itself, and these are too many for it at once", hint="split the batch"
        )
    parts, at = [], 0
    for index in range(work.count):
        length = lengths[0] if len(lengths) == 1 else lengths[index]
        data_hash = bytes(request.hashes[DIGEST_LEN * index : DIGEST_LEN * (index + 1)])
        info = bytes(request.properties[at : at + length])
        parts.append(der.sequence(body, der.bits(data_hash), der.tlv(der.IA5_STRING, info)))
        at += 0 if len(lengths) == 1 else length
    return Items(Form.MESSAGES, work.count, struct.pack(f"!{len(parts)}I", *map(len, parts)), b"".join(parts))


_OUTCOMES: Final = (Outcome.FAILED, Outcome.UNKNOWN, Outcome.ENDED)


def _verified(report: Report) -> SealVerified:
    sets = [
        SealCheck(sum(SealCheck[check.name.name] for check in report.checks if check.outcome is outcome))
        for outcome in _OUTCOMES
    ]
    return SealVerified(SealVerdict[report.verdict.name], *sets)
