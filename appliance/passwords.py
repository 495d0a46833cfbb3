"""Passwords: hashing them where it does not stop the loop, and slowing down whoever guesses.

For: everything that a password opens: accounts (``accounts``), officers (``office``), seals (``protection``).
Not for: what it opens, and what is told to whom.

Rules:

* Argon2id, a few at a time and in threads: it is memory-hard, and strangers can ask for it. More than can be
  answered in time are told ``busy``.
* Failures are counted under a name that their user chooses; each one doubles the delay up to a limit, and time
  heals. What is remembered is bounded.

Crash story: nothing here outlives the process. Whoever must remember failures for longer records them (``protection``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import argon2

from appliance.errors import BadRequest, Busy

MAX_REMEMBERED_FAILURES: Final = 10_000
"""Names with recent failures, in one book; the oldest is forgotten first, so that a flood cannot fill memory."""
MAX_WAITING_HASHES: Final = 256
"""More would wait longer than any client does."""


def encoded_len(password: str) -> int:
    """Bytes of a password; ``BadRequest`` for text that is none (half a surrogate pair, as JSON can write it)."""
    try:
        return len(password.encode())
    except UnicodeEncodeError:
        raise BadRequest("the password is not Unicode text", hint="send it as UTF-8") from None


class HashSettings(Protocol):
    """What a hash costs: the part that the settings of every user of this module have."""

    @property
    def argon2_memory_kib(self) -> int: ...  # noqa: D102  # as in settings
    @property
    def argon2_passes(self) -> int: ...  # noqa: D102
    @property
    def argon2_lanes(self) -> int: ...  # noqa: D102
    @property
    def max_concurrent_hashes(self) -> int: ...  # noqa: D102


class PasswordHasher:
    """Argon2id with one cost and one bound. Owned by the event loop; ``fits`` and ``hash_now`` are for threads."""

    def __init__(self, settings: HashSettings, executor: Executor) -> None:
        self._executor = executor
        self._argon2 = argon2.PasswordHasher(
            time_cost=settings.argon2_passes,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_lanes,
        )
        self._permits = asyncio.Semaphore(settings.max_concurrent_hashes)
        self.waiting = 0
        """Those who have a permit to hash or wait for one."""

    async def hash(self, password: str) -> str:
        """The Argon2id string to keep. An officer waits for a permit like everybody else, but is not turned away."""
        async with self._permits:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self.hash_now, password)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        """The right to hash once; ``Busy`` where too many wait for it."""
        if self.waiting >= MAX_WAITING_HASHES:
            raise Busy("too many clients prove themselves at once", retry_after_ms=1_000)
        self.waiting += 1
        try:
            async with self._permits:
                yield
        finally:
            self.waiting -= 1

    def hash_now(self, password: str) -> str:
        """As ``hash``, here and now."""
        return self._argon2.hash(password)

    def fits(self, stored: str, password: str) -> bool:
        """Whether it is the password that was hashed, whatever it cost then; compared in constant time."""
        try:
            return self._argon2.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


Name = TypeVar("Name", bound=Hashable)


@dataclass(slots=True)
class _Failures:
    count: int
    last_at: float
    next_turn_at: float


class FailureBook(Generic[Name]):
    """Who failed how often lately, and when their next turn is. Owned by the event loop.

    ``forget_after_s`` without a failure heals all; a turn that is later than that is kept to all the same.
    """

    def __init__(
        self, clock: Callable[[], float], delay_s: float, max_delay_s: float, forget_after_s: float
    ) -> None:
        self._clock = clock
        self._delay_s = delay_s
        self._max_delay_s = max_delay_s
        self._forget_after_s = forget_after_s
        self._failures: OrderedDict[Name, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def __contains__(self, who: Name) -> bool:
        return who in self._failures

    def count(self, who: Name) -> int:
        """Failures that are remembered."""
        failures = self._failures.get(who)
        return failures.count if failures is not None else 0

    def due_in(self, who: Name) -> float:
        """Seconds until their next turn, 0 where it has come. No turn is taken."""
        failures = self._current(who)
        return max(0.0, failures.next_turn_at - self._clock()) if failures is not None else 0.0

    def take_turn(self, who: Name) -> float:
        """How long this attempt has to wait; the turn is taken. ``Busy`` where too many wait before it.

        The bound matters: without it, a stranger who opens many connections takes all turns of the next hours.
        """
        failures = self._current(who)
        if failures is None:
            return 0.0
        now = self._clock()
        starts_at = max(now, failures.next_turn_at)
        if starts_at - now > self._max_delay_s:
            raise Busy(
                "attempts for this account wait already, after failures",
                hint="check the password, then try again",
                retry_after_ms=int((starts_at - now) * 1_000),
            )
        failures.next_turn_at = starts_at + self.delay_after(failures.count)
        return starts_at - now

    def note(self, who: Name, at_least: int = 1) -> None:
        """One more failure; ``at_least`` is what a record knows that outlived an earlier process."""
        now = self._clock()
        failures = self._current(who) or _Failures(0, now, now)
        failures.count = max(failures.count + 1, at_least)
        failures.last_at = now
        failures.next_turn_at = max(failures.next_turn_at, now + self.delay_after(failures.count))
        self._failures[who] = failures
        self._failures.move_to_end(who)
        if len(self._failures) > MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def forget(self, who: Name) -> None:
        """A success, or whatever else wipes the slate."""
        self._failures.pop(who, None)

    def delay_after(self, count: int) -> float:
        """Seconds after that many failures."""
        doublings = min(max(count, 1) - 1, 32)
        return min(self._delay_s * 2.0**doublings, self._max_delay_s)

    def _current(self, who: Name) -> _Failures | None:
        failures = self._failures.get(who)
        if failures is not None and self._clock() - failures.last_at > self._forget_after_s:
            del self._failures[who]
            return None
        return failures
