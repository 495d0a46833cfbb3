"""What sealing needs to know, in memory: seals as templates, grants and their limits, and what was used.

For: look-ups on the hot path without I/O; deciding whether an account may seal so much with a seal now.
Not for: signing and answering (``sealer``), durability (``registry``), protection passwords (``protection``).

Rules:

* A seal without a grant looks exactly like one that does not exist, and a look for it loads nothing into the book.
* What the book holds is bounded by bytes; the seal that was used least recently goes first.
* ``forget`` holds for every request that comes after it, also where a load was under way: what was read before is given
  to those who asked before, and kept by nobody.
* What time ends (a seal's validity, a grant's) ends by the clock, with the request that comes after, not with a sweep.
* Every refusal names its rule and says what to do.

Crash story: a daily limit is taken from the registry in blocks before the signatures are made, and what is left of a
block is given back when the process drains. A crash loses what is left of the blocks (at most a sixteenth of a limit,
or one request) from that day's allowance, and never grants it twice. Limits by the minute are in memory: a
restart forgets the last minute. What was used is written each second and while draining: a crash loses the last second
from statistics, which no limit rests on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TypeVar

from appliance import _sealing
from appliance.algorithms import Algorithm
from appliance.errors import BadRequest, Busy, Conflict, Denied, NotFound, Unavailable
from appliance.eseal import der
from appliance.lifecycle import Generation, Operation, Seal, SealGrant, State
from appliance.policy import HeldKey
from appliance.references import Pattern, matches, read_pattern
from appliance.verifying import sm2_z

MAX_GRANTS_OF_A_SEAL: Final = 1_024
"""Accounts whose grants on one seal are kept; the others are read when they come."""
MAX_LOADS: Final = 16
"""Seals and grants that are read at a time; the registry's threads are wanted by others too."""
MAX_WAITING_LOADS: Final = 1_024
"""Requests that wait for one; more would wait longer than any client does."""
BLOCK_SHARE: Final = 16
"""A block is a sixteenth of a daily limit: so much at most is lost to a crash."""
MAX_BLOCK: Final = 4_096
"""Signatures: some reservations a second at the speed of a fast token."""
WINDOW_S: Final = 60
_GRANT_LEN: Final = 1_024
"""Bytes that a grant is counted as: networks and a pattern, about."""
_SEAL_LEN: Final = 4_096
"""The same for a seal besides its template."""
MIDNIGHT: Final = "at midnight, UTC"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")
T = TypeVar("T")


def epoch(instant: str | None) -> float | None:
    """An ISO 8601 instant in seconds since 1970 UTC."""
    return None if instant is None else datetime.fromisoformat(instant).timestamp()


def address_of(text: str) -> Address:
    """The address that a peer comes from; an IPv4 address that an IPv6 socket tells is one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


# Grants -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Permission:
    """A grant, ready to be asked: instants as seconds since 1970, networks and pattern read."""

    grant: SealGrant
    valid_from: float
    valid_to: float
    networks: tuple[Network, ...]
    pattern: Pattern | None

    @classmethod
    def of(cls, grant: SealGrant) -> Permission:
        """``BadRequest`` where the grant cannot be read: it was written by another version, or by hand."""
        try:
            networks = tuple(ipaddress.ip_network(source, strict=False) for source in grant.sources)
        except ValueError as error:
            raise BadRequest(
                f"a source of the grant is no network: {error}", hint="in CIDR form, e.g. 10.1.0.0/16"
            ) from error
        return cls(
            grant,
            epoch(grant.valid_from) or -math.inf,
            epoch(grant.valid_to) or math.inf,
            networks,
            None if grant.approval_pattern is None else read_pattern(grant.approval_pattern),
        )

    def check(self, operation: Operation, now: float, source: Address) -> None:
        """Operation, validity and source, else ``Denied``."""
        grant = self.grant
        if operation not in grant.operations:
            allowed = ", ".join(sorted(one.value for one in grant.operations)) or "nothing"
            raise self._denied(f"it does not cover {operation.value!r}", f"it covers: {allowed}")
        if now < self.valid_from:
            raise self._denied(f"it is valid from {grant.valid_from} on", "come back then")
        if now >= self.valid_to:
            raise self._denied(f"it was valid until {grant.valid_to}", "ask a security officer to renew it")
        if self.networks and not any(source in network for network in self.networks):
            raise self._denied(
                f"it does not hold for {source}", "connect from an address it names, or have this one added"
            )

    def check_reference(self, reference: str) -> None:
        """The approval reference, else ``Denied``."""
        if self.pattern is not None and not matches(self.pattern, reference):
            what = (
                "it demands an approval reference" if not reference else "the approval reference does not fit"
            )
            raise self._denied(what, f"the whole reference must match {self.grant.approval_pattern}")

    def _denied(self, detail: str, hint: str) -> Denied:
        return Denied(
            f"the grant of account {self.grant.account!r} on seal {self.grant.seal_id!r}: {detail}", hint=hint
        )


def no_grant(account: str, seal_id: str) -> NotFound:
    """The same for a seal that is not there and for one that the account may not know of."""
    return NotFound(
        f"no seal {seal_id!r} for account {account!r}",
        hint="check the id, or have it granted: cloud-seal grant",
    )


# Seals ------------------------------------------------------------------------------------------------------

_STATE_HINTS: Final = {
    State.APPLIED: "it waits for review",
    State.REFUSED: "the application was refused; apply again",
    State.REVIEWED: "it waits to be made",
    State.MADE: "it waits to be filed with the public security",
    State.FILED: "its custodian activates it",
    State.SUSPENDED: "a security officer resumes it, once the reason is gone",
    State.DORMANT: "it was unused for a year; waking it takes a new application",
    State.EXPIRED: "apply for a new seal",
    State.CANCELLED: "apply for a new seal",
}


@dataclass(frozen=True, slots=True)
class LoadedSeal:
    """A seal as a request needs it. Without a template it was never made.

    ``body`` and ``suffix`` are what all its signatures have in common: version and ``SESeal``; the certificate with the
    algorithm.
    """

    seal: Seal
    valid_from: float
    valid_to: float
    key: HeldKey | None
    template: _sealing.Template | None
    body: bytes
    suffix: bytes

    @property
    def size(self) -> int:
        """Bytes that it holds, about; it grows with the lengths of property infos."""
        template = 0 if self.template is None else self.template.size
        return _SEAL_LEN + template + len(self.body) + len(self.suffix)

    def check_usable(self, now: float) -> None:
        """Active and within its validity, else ``Conflict``."""
        seal = self.seal
        if seal.state is not State.ACTIVE or self.template is None:
            raise Conflict(f"seal {seal.id!r} is {seal.state.value}", hint=_STATE_HINTS.get(seal.state, ""))
        if now < self.valid_from:
            raise Conflict(f"seal {seal.id!r} is valid from {seal.valid_from} on", hint="come back then")
        if now >= self.valid_to:
            raise Conflict(
                f"seal {seal.id!r} was valid until {seal.valid_to}",
                hint="apply for a new seal, it has expired",
            )


def load_seal(seal: Seal, generation: Generation | None, version: int, key: HeldKey | None) -> LoadedSeal:
    """Make a seal's template. ``generation`` and ``key`` are None where it was never made."""
    valid_from, valid_to = epoch(seal.valid_from) or -math.inf, epoch(seal.valid_to) or math.inf
    if generation is None or key is None:
        return LoadedSeal(seal, valid_from, valid_to, None, None, b"", b"")
    algorithm = key.public.algorithm
    body = der.integer(version) + generation.eseal
    suffix = der.octets(generation.certificate) + der.oid(algorithm.signature_oid)
    z = sm2_z(key.public) if algorithm is Algorithm.SM2_SM3 else b""
    try:
        template = _sealing.Template(algorithm.value, z, body, suffix)
    except ValueError as error:
        raise BadRequest(
            f"seal {seal.id!r} cannot be used: {error}", hint="have it made anew, with a smaller imprint"
        ) from error
    return LoadedSeal(seal, valid_from, valid_to, key, template, body, suffix)


class SealReader(Protocol):
    """Reads what the book misses. Called in threads."""

    def seal(self, seal_id: str) -> LoadedSeal:
        """The seal, else ``NotFound``."""

    def grant(self, account: str, seal_id: str) -> SealGrant | None:
        """What the account may do with it."""


class SealBook:
    """Seals and grants that were used lately. Owned by the event loop."""

    def __init__(self, reader: SealReader, max_len: int) -> None:
        self._reader = reader
        self._max_len = max_len
        self._seals: OrderedDict[str, LoadedSeal] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._permissions: dict[str, OrderedDict[str, Permission]] = {}
        # seal -> account (None: the seal itself) -> what is being read; taken away by `forget`.
        self._loading: dict[str, dict[str | None, asyncio.Task[Any]]] = {}
        self._turns = asyncio.Semaphore(MAX_LOADS)
        self._waiting = 0
        self.held_len = 0
        self.misses = 0
        self.changes = 0
        """Counts what was forgotten: what was allowed before it went up may not be any more."""

    def __len__(self) -> int:
        return len(self._seals)

    def find(self, account: str, seal_id: str) -> tuple[LoadedSeal, Permission] | None:
        """What is known, or None: then ``load`` it."""
        known = self._permissions.get(seal_id)
        permission = None if known is None else known.get(account)
        if permission is None:
            return None
        seal = self._seals[seal_id]
        self._seals.move_to_end(seal_id)
        size = seal.size + _GRANT_LEN * len(known or ())
        if size != self._sizes[seal_id]:
            self._resize(seal_id, size)
            self._evict()
        return seal, permission

    async def load(self, account: str, seal_id: str) -> tuple[LoadedSeal, Permission]:
        """Read it; ``NotFound`` where there is none, or no grant. Whoever asks for the same meanwhile waits along."""

        async def read() -> tuple[LoadedSeal, Permission]:
            grant = await self._in_thread(lambda: self._reader.grant(account, seal_id))
            if grant is None:
                raise no_grant(account, seal_id)
            permission = Permission.of(grant)
            return self._seals.get(seal_id) or await self._load_seal(seal_id), permission

        try:
            return await self._once(
                seal_id, account, read, lambda both: self._keep(seal_id, account, both[1])
            )
        except NotFound:
            raise no_grant(account, seal_id) from None

    async def _load_seal(self, seal_id: str) -> LoadedSeal:
        async def read() -> LoadedSeal:
            return await self._in_thread(lambda: self._reader.seal(seal_id))

        return await self._once(seal_id, None, read, lambda seal: self._keep_seal(seal_id, seal))

    def forget(self, seal_id: str) -> None:
        """It was changed, or a grant on it: the next request reads it again."""
        self.changes += 1
        self._loading.pop(seal_id, None)
        self._drop(seal_id)

    def forget_key(self, name: str) -> None:
        """A key was switched off or on, or destroyed: whatever seal uses it is read again."""
        self.changes += 1
        self._loading.clear()  # nobody knows yet which of them will want it
        for seal_id in [
            one for one, seal in self._seals.items() if seal.key is not None and seal.key.name == name
        ]:
            self._drop(seal_id)

    async def _once(
        self, seal_id: str, account: str | None, read: Callable[[], Awaitable[T]], keep: Callable[[T], None]
    ) -> T:
        """Read it, once for all who ask while it is read."""
        of_seal = self._loading.get(seal_id)
        task = None if of_seal is None else of_seal.get(account)
        if task is None:
            if self._waiting >= MAX_WAITING_LOADS:
                raise Busy("too many seals are being looked up", retry_after_ms=200)
            task = asyncio.get_running_loop().create_task(self._read(seal_id, account, read, keep))
            task.add_done_callback(_look)
            self._loading.setdefault(seal_id, {})[account] = task
        result: T = await asyncio.shield(task)  # whoever leaves takes nothing from the others
        return result

    async def _read(
        self, seal_id: str, account: str | None, read: Callable[[], Awaitable[T]], keep: Callable[[T], None]
    ) -> T:
        self.misses += 1
        self._waiting += 1
        mine = asyncio.current_task()
        try:
            value = await read()
            if self._loading.get(seal_id, {}).get(account) is mine:
                keep(value)  # else it was forgotten meanwhile, and this may be the seal as it was
            return value
        finally:
            self._waiting -= 1
            of_seal = self._loading.get(seal_id, {})
            if of_seal.get(account) is mine:
                del of_seal[account]
                if not of_seal:
                    del self._loading[seal_id]

    async def _in_thread(self, function: Callable[[], T]) -> T:
        async with self._turns:
            return await asyncio.to_thread(function)

    def _keep(self, seal_id: str, account: str, permission: Permission) -> None:
        if seal_id in self._seals:  # it may have been too large, or the least recently used, already
            permissions = self._permissions.setdefault(seal_id, OrderedDict())
            permissions[account] = permission
            if len(permissions) > MAX_GRANTS_OF_A_SEAL:
                permissions.popitem(last=False)

    def _keep_seal(self, seal_id: str, seal: LoadedSeal) -> None:
        self._drop(seal_id)
        self._seals[seal_id] = seal
        self._sizes[seal_id] = 0
        self._resize(seal_id, seal.size)
        self._evict()

    def _resize(self, seal_id: str, size: int) -> None:
        self.held_len += size - self._sizes[seal_id]
        self._sizes[seal_id] = size

    def _evict(self) -> None:
        while self.held_len > self._max_len:
            self._drop(next(iter(self._seals)))

    def _drop(self, seal_id: str) -> None:
        if self._seals.pop(seal_id, None) is not None:
            self.held_len -= self._sizes.pop(seal_id)
            self._permissions.pop(seal_id, None)


def _look(task: asyncio.Task[Any]) -> None:
    """Where everybody who waited has left, nobody else looks at what came of it."""
    if not task.cancelled():
        task.exception()


# Limits -----------------------------------------------------------------------------------------------------

Owner = tuple[str, str]
"""Account and seal: whose limit it is."""


class MinuteWindows:
    """How many seal signatures each account made with each seal in the last minute. Owned by the event loop.

    Counted by the second: no window of a minute has more than the limit, and the memory of one is 61 numbers at most.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[Owner, deque[list[int]]] = {}
        self._swept_at = 0.0

    def take(self, owner: Owner, count: int, limit: int) -> int:
        """0, and it is taken; else in how many milliseconds there may be room for it."""
        now = int(self._clock())
        self._sweep(now)
        window = self._windows.setdefault(owner, deque())
        while window and window[0][0] < now - WINDOW_S:
            window.popleft()
        free = limit - sum(taken for _, taken in window)
        if count <= free:
            if window and window[-1][0] == now:
                window[-1][1] += count
            else:
                window.append([now, count])
            return 0
        leaves_at = now
        for second, taken in window:  # the oldest go first
            leaves_at = second + WINDOW_S + 1
            free += taken
            if count <= free:
                break
        return max(1, leaves_at - now) * 1_000

    def _sweep(self, now: int) -> None:
        """Forget who has done nothing for a minute, once in a minute."""
        if now - self._swept_at > WINDOW_S:
            self._swept_at = now
            old = [
                owner
                for owner, window in self._windows.items()
                if not window or window[-1][0] < now - WINDOW_S
            ]
            for owner in old:
                del self._windows[owner]


class LimitStore(Protocol):
    """What all fronts have in common: the leader's own, or a line to it."""

    async def reserve(self, owner: Owner, day: str, want: int, limit: int) -> int:
        """How many of ``want`` the day's limit still allows; durable when it returns."""

    async def give_back(self, owner: Owner, day: str, count: int) -> None:
        """What was reserved and not used."""

    async def take_minute(self, owner: Owner, count: int, limit: int) -> int:
        """As ``MinuteWindows.take``, for all fronts together."""


@dataclass(slots=True)
class _Allowance:
    """What is left of the blocks that were reserved on a day; ``exhausted`` where the registry has no more."""

    day: str
    limit: int
    left: int = 0
    exhausted: bool = False


class Limits:
    """What grants allow by the day and the minute. Owned by the event loop."""

    def __init__(self, store: LimitStore, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._allowances: dict[Owner, _Allowance] = {}
        self._locks: dict[Owner, list[Any]] = {}  # lock, and how many hold it or wait
        self._day = ""

    def take_now(self, grant: SealGrant, count: int) -> bool:
        """Whether it was taken without asking anybody; else ``take``."""
        if grant.minute_limit:
            return False
        if not grant.daily_limit:
            return True
        allowance = self._allowances.get((grant.account, grant.seal_id))
        if allowance is None or not self._fits(allowance, grant) or allowance.left < count:
            return False
        allowance.left -= count
        return True

    async def take(self, grant: SealGrant, count: int) -> None:
        """Take so many, else ``Denied`` (it will not do today, or never) or ``Busy`` (later in this minute)."""
        for limit, unit in ((grant.minute_limit, "minute"), (grant.daily_limit, "day")):
            if limit and count > limit:
                raise Denied(
                    f"{count} seal signatures are over the limit of {limit} a {unit}", hint="split the batch"
                )
        if grant.daily_limit:
            await self._take_day(grant, count)
        if grant.minute_limit:
            owner = (grant.account, grant.seal_id)
            wait_ms = await self._store.take_minute(owner, count, grant.minute_limit)
            if wait_ms:
                self.give_back(grant, count)
                raise Busy(
                    f"the grant on seal {grant.seal_id!r} allows {grant.minute_limit} seal signatures a minute",
                    hint="wait, or ask a security officer for more",
                    retry_after_ms=wait_ms,
                )

    def give_back(self, grant: SealGrant, count: int) -> None:
        """They were taken and not made; the day's limit has them again."""
        allowance = self._allowances.get((grant.account, grant.seal_id))
        if grant.daily_limit and allowance is not None and self._fits(allowance, grant):
            allowance.left += count

    async def release(self) -> None:
        """While draining: what is left of all blocks goes back to the registry."""
        allowances, self._allowances = self._allowances, {}
        for owner, allowance in allowances.items():
            if allowance.left and allowance.day == self._today():
                await self._store.give_back(owner, allowance.day, allowance.left)

    async def _take_day(self, grant: SealGrant, count: int) -> None:
        owner = (grant.account, grant.seal_id)
        turn = self._locks.setdefault(owner, [asyncio.Lock(), 0])
        turn[1] += 1
        try:
            async with turn[0]:  # one block at a time for each: who waits may find enough in it
                await self._take_day_in_turn(owner, grant, count)
        finally:
            turn[1] -= 1
            if not turn[1]:
                del self._locks[owner]

    async def _take_day_in_turn(self, owner: Owner, grant: SealGrant, count: int) -> None:
        day = self._today()
        allowance = self._allowances.get(owner)
        if allowance is None or not self._fits(allowance, grant):
            if allowance is not None and allowance.day == day and allowance.left:
                left, allowance.left = allowance.left, 0  # of another limit: what is left counts anew
                await self._store.give_back(owner, day, left)
            allowance = self._allowances[owner] = _Allowance(day, grant.daily_limit)
        if allowance.left < count and not allowance.exhausted:
            missing = count - allowance.left
            want = max(missing, min(MAX_BLOCK, grant.daily_limit // BLOCK_SHARE))
            # A crash after the registry's commit loses this block for the day; it grants nothing twice.
            granted = await self._store.reserve(owner, day, want, grant.daily_limit)
            allowance.left += granted
            allowance.exhausted = granted < want
        if allowance.left < count:
            raise Denied(
                f"the grant on seal {grant.seal_id!r} allows {grant.daily_limit} seal signatures a day, "
                f"{allowance.left} are left for today",
                hint=f"the day ends {MIDNIGHT}; or ask a security officer for more",
            )
        allowance.left -= count

    def _fits(self, allowance: _Allowance, grant: SealGrant) -> bool:
        """Of today, and of the limit as it is now."""
        return allowance.limit == grant.daily_limit and allowance.day == self._today()

    def _today(self) -> str:
        day = day_of(self._now())
        if day != self._day:
            self._day = day
            for owner in [one for one, allowance in self._allowances.items() if allowance.day != day]:
                del self._allowances[owner]
        return day


def day_of(now: float) -> str:
    """The day of an instant, ``YYYY-MM-DD`` in UTC: limits and statistics have days of the same length everywhere."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")


# Uses -------------------------------------------------------------------------------------------------------

UseRow = tuple[str, str, str, int, str]
"""Seal, account, day, count, and when last."""


class UseCounter:
    """What was used and is not written yet. Owned by the event loop."""

    def __init__(self, write: Callable[[list[UseRow]], Awaitable[None]], now: Callable[[], float]) -> None:
        self._write = write
        self._now = now
        self._counts: dict[tuple[str, str, str], int] = {}
        self._last: dict[tuple[str, str, str], float] = {}

    def add(self, seal_id: str, account: str, count: int) -> None:
        """So many seal signatures were made."""
        now = self._now()
        use = (seal_id, account, day_of(now))
        self._counts[use] = self._counts.get(use, 0) + count
        self._last[use] = now

    async def flush(self) -> None:
        """Write what there is. Where the registry cannot be written now it is kept, and written later."""
        if not self._counts:
            return
        counts, last, self._counts, self._last = self._counts, self._last, {}, {}
        rows = [
            (*use, count, datetime.fromtimestamp(last[use], UTC).isoformat(timespec="milliseconds"))
            for use, count in counts.items()
        ]
        try:
            await self._write(rows)
        except Unavailable:
            for use, count in counts.items():
                self._counts[use] = self._counts.get(use, 0) + count
                self._last[use] = max(self._last.get(use, 0.0), last[use])
            raise
