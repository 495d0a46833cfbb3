"""Protection passwords (保护密码): what unlocks a seal, for whom and how long, and what guessing costs.

For: setting, rotating and resetting a seal's password; unlocking a seal for an account; ``is_unlocked``, which every
request asks.
Not for: who may do it (``office`` and the session ask that before they call), keeping the hashes (``registry``).

Rules:

* An unlock is for one account and one seal, ends by itself, and is in memory only: a restart locks every seal.
* Rotation leaves unlocks alone, so that no running job notices. A reset voids them: it counts the generation up, and
  an unlock of an earlier generation is none.
* A password older than its age unlocks nothing more and can only be rotated. What it unlocked before stays unlocked
  to its end: a job is never cut short by the calendar.
* Attempts at one seal are made one at a time. A wrong one is on record before it is answered, and doubles the delay
  for that seal and for whoever tried; who comes too early is told ``busy``, and when. After so many the password
  locks, also for its custodian, until two officers reset it. A right one clears the seal's count, never the
  account's: who knows one seal's password earns no guesses at another's.
* A locked password leaves unlocks alone: otherwise whoever may guess could stop who knows.
* Passwords are compared in Unicode's composed form (NFC), since keyboards differ. They are in no log and no error.

Crash story: an attempt that a crash or a lost client cuts short after the hash is counted, or else nobody learned
what came of it: it is unlocked only after the count, by the same task, and memory is gone with the process. The count
on record outlives restarts; so does the delay, counted from the start.
"""

from __future__ import annotations

import asyncio
import logging
import math
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar

from appliance.errors import BadRequest, Busy, Conflict, Denied
from appliance.lifecycle import Event, ProtectionPassword, Seal
from appliance.passwords import FailureBook, PasswordHasher, encoded_len
from appliance.settings import PasswordSettings
from appliance.wire import MAX_PASSWORD_LEN

log = logging.getLogger(__name__)

MAX_WAITING_AT_A_SEAL: Final = 64
"""Attempts at one seal that wait for each other; a hash takes 0.1 s, and more would wait longer than any client."""
MAX_UNLOCKS: Final = 1_000_000
"""Seals times accounts that a process keeps unlocked, some 200 MB; far more than any site has."""
MIN_REPEATED_LEN: Final = 4
"""A shorter name or code is part of too many good passwords to be forbidden in them."""


class CustodyRecords(Protocol):
    """What must outlive the process: ``registry.custody``. Called in threads."""

    def password(self, seal_id: str) -> ProtectionPassword | None:
        """As it is on record; None before the seal's activation."""

    def rotate(
        self, seal_id: str, old_hash: str, new_hash: str, by: str, at: str, event: Event | None = None
    ) -> object:
        """The new hash in the place of the old one, no failures; ``Conflict`` where the old one is not there."""

    def note_failure(self, seal_id: str, lock_after: int) -> ProtectionPassword:
        """One more; locked from ``lock_after`` on. What is on record then."""

    def clear_failures(self, seal_id: str) -> object:
        """None, where the password is not locked."""

    def passwords_older_than(self, at: str, limit: int) -> list[ProtectionPassword]:
        """Those of living seals that were set before, oldest first."""


@dataclass(frozen=True, slots=True)
class Unlock:
    """A seal is unlocked for an account. ``until`` is on the machine's monotonic clock, the same in every front."""

    account: str
    seal_id: str
    generation: int
    until: float
    expires_at: str
    days_left: int
    """Until the password must be rotated."""
    is_due: bool
    """Whether it is time to warn of that."""


@dataclass(frozen=True, slots=True)
class PasswordState:
    """What an officer may know of a seal's password."""

    set_by: str
    set_at: str
    expires_at: str
    days_left: int
    """Whole days until it unlocks nothing more; 0 on the last day and after."""
    is_due: bool
    """It expires soon enough to be warned of, or has expired."""
    is_expired: bool
    is_locked: bool
    failures: int
    generation: int
    unlocked_for: tuple[str, ...]
    """Accounts, as far as this process knows."""


@dataclass(slots=True)
class _Turns:
    """Those who try at one seal."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


T = TypeVar("T")

_NEVER: Final = -math.inf

Who = tuple[str, str]
"""``seal``, ``account`` or ``officer``, and its name: what failures are counted under."""


class Protection:
    """Owned by the event loop of the front that leads; the others ``adopt`` what it tells them.

    ``clock`` is monotonic and common to all fronts of the machine, ``now`` the calendar's. ``announce`` is called with
    ``password`` and a seal's id after a reset, and has come back before the reset is answered.
    """

    def __init__(
        self,
        custody: CustodyRecords,
        settings: PasswordSettings,
        executor: Executor,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        announce: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._custody = custody
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._now = now
        self._announce = announce
        self._hasher = PasswordHasher(settings, executor)
        self._failures: FailureBook[Who] = FailureBook(
            clock, settings.failure_delay_s, settings.max_failure_delay_s, settings.forget_failures_after_s
        )
        self._started_at = clock()
        self._turns: dict[str, _Turns] = {}
        self._unlocks: dict[str, dict[str, float]] = {}  # seal -> account -> until
        self._unlock_count = 0
        self._generations: dict[str, int] = {}  # of the seals that were reset since the start: a rare act

    # Unlocking ------------------------------------------------------------------------------------------

    def is_unlocked(self, account: str, seal_id: str) -> bool:
        """Two look-ups and a clock: this is asked for every request that seals."""
        accounts = self._unlocks.get(seal_id)
        return accounts is not None and accounts.get(account, _NEVER) > self._clock()

    def seconds_left(self, account: str, seal_id: str) -> float:
        """Until it locks by itself; 0 where it is not unlocked."""
        accounts = self._unlocks.get(seal_id)
        return 0.0 if accounts is None else max(0.0, accounts.get(account, _NEVER) - self._clock())

    def unlocks(self, after: tuple[str, str], limit: int) -> list[Unlock]:
        """What is unlocked now, by seal and account, for a front that starts: only what ``adopt`` asks of it."""
        known = sorted(
            (seal_id, account, until)
            for seal_id, accounts in self._unlocks.items()
            for account, until in accounts.items()
            if (seal_id, account) > after
        )
        return [
            Unlock(account, seal_id, self._generations.get(seal_id, 0), until, "", 0, False)
            for seal_id, account, until in known[:limit]
        ]

    async def unlock(self, account: str, seal_id: str, password: str, seconds: float | None = None) -> Unlock:
        """Unlock it for that account, for so many seconds or for the configured time.

        The caller has seen that the account has a grant for the seal: what is told here is told to nobody else.
        ``Denied`` where the password does not fit, is locked or too old; ``Busy`` says when to come again.
        """
        settings = self._settings
        seconds = settings.unlock_s if seconds is None else seconds
        if not 1 <= seconds <= settings.max_unlock_s:  # also where it is no number
            raise BadRequest(
                f"cannot unlock for {seconds:g} s", hint=f"name 1 to {settings.max_unlock_s} s, or nothing"
            )
        async with self._one_at_a_time(seal_id):
            record = await self._guess(
                seal_id, ("account", account), _normal(password), too_old_is_good=False
            )
            expires_at = _moment(record.set_at) + timedelta(days=settings.max_age_days)
            unlock = Unlock(
                account,
                seal_id,
                record.generation,
                self._clock() + seconds,
                _instant(self._now() + timedelta(seconds=seconds)),
                self._days_left(expires_at),
                self._is_due(expires_at),
            )
            self.adopt(unlock)
        return unlock

    def adopt(self, unlock: Unlock) -> None:
        """Know of an unlock, here or from the front that leads. ``Conflict`` where the password was reset since."""
        if unlock.generation < self._generations.get(unlock.seal_id, 0):
            raise Conflict(
                "the seal's protection password was reset meanwhile", hint="unlock with the new one"
            )
        if self._unlock_count >= MAX_UNLOCKS:
            self._drop_expired()
        if self._unlock_count >= MAX_UNLOCKS:
            raise Busy("too many seals are unlocked", hint="lock what is not in use", retry_after_ms=60_000)
        accounts = self._unlocks.setdefault(unlock.seal_id, {})
        self._unlock_count += unlock.account not in accounts
        accounts[unlock.account] = unlock.until

    def lock(self, account: str, seal_id: str) -> None:
        """The account needs it no more. Nothing happens where it was not unlocked."""
        accounts = self._unlocks.get(seal_id, {})
        if accounts.pop(account, None) is not None:
            self._unlock_count -= 1
            if not accounts:
                del self._unlocks[seal_id]

    def lock_account(self, account: str) -> None:
        """The account is gone or stopped: one that gets its name later starts with nothing unlocked."""
        for seal_id in [one for one, accounts in self._unlocks.items() if account in accounts]:
            self.lock(account, seal_id)

    def void(self, seal_id: str, generation: int = 0) -> None:
        """Nobody has it unlocked, and unlocks of an earlier generation that still come in are none."""
        self._unlock_count -= len(self._unlocks.pop(seal_id, ()))
        if generation > self._generations.get(seal_id, 0):
            self._generations[seal_id] = generation

    def _drop_expired(self) -> None:
        now = self._clock()
        for seal_id, accounts in list(self._unlocks.items()):
            for account in [one for one, until in accounts.items() if until <= now]:
                self.lock(account, seal_id)

    # Setting --------------------------------------------------------------------------------------------

    async def set_first(self, seal: Seal, password: str, by: str) -> ProtectionPassword:
        """What the activation is to record: nothing is recorded here. ``BadRequest`` tells the rule it breaks."""
        hashed = await self._hasher.hash(self._good(password, seal))
        return ProtectionPassword(seal.id, hashed, by, _instant(self._now()), 0, False, 1)

    async def rotate(self, seal: Seal, old: str, new: str, by: str) -> None:
        """A new password for who knows the old one, and a line in the seal's record; unlocks stay.

        To try an old one is a guess like any other.
        """
        good = self._good(new, seal)
        if good == _normal(old):
            raise BadRequest("the new protection password is the old one", hint="choose another")
        async with self._one_at_a_time(seal.id):
            record = await self._guess(seal.id, ("officer", by), _normal(old), too_old_is_good=True)
            hashed = await self._hasher.hash(good)
            at = _instant(self._now())
            event = Event(seal.id, at, "rotate-password", seal.state, seal.state, by, None, {})
            await self._call(
                lambda: self._custody.rotate(seal.id, record.password_hash, hashed, by, at, event)
            )
        log.info("protection password of seal %s rotated by %s", seal.id, by)

    async def prepare_reset(self, seal: Seal, new: str, by: str) -> ProtectionPassword:
        """What a reset is to record, in one step with its report to the public security; then call ``finish_reset``.

        It is not compared with the old one: that would be a guess that nobody counts, for whoever may propose a reset.
        """
        good = self._good(new, seal)
        record = await self._record(seal.id)
        hashed = await self._hasher.hash(good)
        return ProtectionPassword(seal.id, hashed, by, _instant(self._now()), 0, False, record.generation + 1)

    async def finish_reset(self, recorded: ProtectionPassword) -> None:
        """After the reset is on record: nobody has the seal unlocked any more, in no front."""
        # A crash before this line ends every front, and with it every unlock.
        self.void(recorded.seal_id, recorded.generation)
        self._failures.forget(("seal", recorded.seal_id))
        await self._announce("password", recorded.seal_id)
        log.info("protection password of seal %s reset by %s", recorded.seal_id, recorded.set_by)

    # Looking --------------------------------------------------------------------------------------------

    async def state_of(self, seal_id: str) -> PasswordState:
        """Its age, its failures and who has the seal unlocked; ``Conflict`` where it has no password yet."""
        record = await self._record(seal_id)
        expires_at = _moment(record.set_at) + timedelta(days=self._settings.max_age_days)
        return PasswordState(
            record.set_by,
            record.set_at,
            _instant(expires_at),
            self._days_left(expires_at),
            self._is_due(expires_at),
            self._now() >= expires_at,
            record.locked,
            record.failures,
            record.generation,
            tuple(sorted(one for one in self._unlocks.get(seal_id, ()) if self.is_unlocked(one, seal_id))),
        )

    async def due_for_rotation(self, limit: int) -> list[ProtectionPassword]:
        """Passwords to warn of: those that expire within the configured days, or have expired; oldest first."""
        age = timedelta(days=self._settings.max_age_days - self._settings.warn_days)
        before = _instant(self._now() - age)
        return await self._call(lambda: self._custody.passwords_older_than(before, limit))

    # Guessing -------------------------------------------------------------------------------------------

    async def _guess(
        self, seal_id: str, who: Who, password: str, *, too_old_is_good: bool
    ) -> ProtectionPassword:
        """What is on record, where the password is the right one. The seal's lock is held."""
        if len(password.encode()) > MAX_PASSWORD_LEN:
            raise BadRequest(
                f"a protection password has at most {MAX_PASSWORD_LEN} bytes", hint="this is some other text"
            )
        self._admit(seal_id, who)
        record = await self._record(seal_id)
        self._check_usable(record, too_old_is_good)
        async with self._hasher.permit():
            # Others of the same account may have failed at other seals while this one waited for its permit.
            self._admit(seal_id, who)
            try:
                fits, record = await self._call(lambda: self._try(record, password))
            except BaseException:
                # Whoever left before the answer, and whatever could not be counted, waits as after a failure.
                self._note(seal_id, who, record.failures)
                raise
        if fits:
            if record.failures:
                await self._call(lambda: self._custody.clear_failures(seal_id))
            self._failures.forget(("seal", seal_id))
            return record
        self._note(seal_id, who, record.failures)
        log.warning(
            "protection password of seal %s: wrong one from %s %s, number %d", seal_id, *who, record.failures
        )
        if record.locked:
            raise _locked()
        raise Denied(
            "the protection password does not fit",
            hint=f"it locks after {self._settings.max_failures - record.failures} more",
            retry_after_ms=self._due_in_ms(seal_id, who),
        )

    def _try(self, record: ProtectionPassword, password: str) -> tuple[bool, ProtectionPassword]:
        """In a thread, which runs to its end also where nobody waits for it any more: tried is counted."""
        if self._hasher.fits(record.password_hash, password):
            return True, record
        return False, self._custody.note_failure(record.seal_id, self._settings.max_failures)

    def _admit(self, seal_id: str, who: Who) -> None:
        due_in_ms = self._due_in_ms(seal_id, who)
        if due_in_ms:
            raise _too_early(due_in_ms)

    def _due_in_ms(self, seal_id: str, who: Who) -> int:
        return math.ceil(1_000 * max(self._failures.due_in(("seal", seal_id)), self._failures.due_in(who)))

    def _check_usable(self, record: ProtectionPassword, too_old_is_good: bool) -> None:
        if record.locked:
            raise _locked()
        age = timedelta(days=self._settings.max_age_days)
        if not too_old_is_good and self._now() >= _moment(record.set_at) + age:
            raise Denied(
                f"the protection password is older than {self._settings.max_age_days} days",
                hint="the seal's custodian rotates it, then it unlocks again",
            )
        if record.failures and ("seal", record.seal_id) not in self._failures:
            # Failures before this process began: their delay counts from its start, or a restart would be a way out.
            delay_s = self._failures.delay_after(record.failures)
            due_in_s = self._started_at + delay_s - self._clock()
            if due_in_s > 0:
                raise _too_early(math.ceil(1_000 * due_in_s))

    def _note(self, seal_id: str, who: Who, failures: int) -> None:
        self._failures.note(("seal", seal_id), at_least=failures)
        self._failures.note(who)

    @asynccontextmanager
    async def _one_at_a_time(self, seal_id: str) -> AsyncIterator[None]:
        """Without it, all who come before the first failure is known would have a guess for nothing."""
        turns = self._turns.setdefault(seal_id, _Turns())
        if turns.waiting >= MAX_WAITING_AT_A_SEAL:
            raise Busy("too many attempts at this seal at once", retry_after_ms=1_000)
        turns.waiting += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.waiting -= 1
            if not turns.waiting:
                del self._turns[seal_id]

    # Parts ----------------------------------------------------------------------------------------------

    async def _record(self, seal_id: str) -> ProtectionPassword:
        record = await self._call(lambda: self._custody.password(seal_id))
        if record is None:
            raise Conflict(
                "the seal has no protection password yet",
                hint="its custodian sets one by activating the seal",
            )
        return record

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _good(self, password: str, seal: Seal) -> str:
        """The password in normal form, where it keeps the rules; ``BadRequest`` tells the first that it breaks."""
        settings = self._settings
        password = _normal(password)
        if len(password) < settings.min_len or len(password.encode()) > MAX_PASSWORD_LEN:
            raise BadRequest(
                f"the protection password has {len(password)} characters",
                hint=f"{settings.min_len} or more, and at most {MAX_PASSWORD_LEN} bytes",
            )
        if not password.isprintable() or password != password.strip():
            raise BadRequest(
                "the protection password has characters that cannot be seen",
                hint="no line breaks or control characters, no blank at its ends",
            )
        if len({_class_of(one) for one in password}) < settings.min_classes:
            raise BadRequest(
                "the protection password is of too few kinds of characters",
                hint=f"take {settings.min_classes} of: small letters, capitals, digits, anything else",
            )
        if len(set(password)) < settings.min_len // 2:  # Aa1Aa1Aa1Aa1 keeps all the other rules
            raise BadRequest("the protection password repeats itself", hint="take more different characters")
        folded = password.casefold()
        for what, text in (
            ("code", seal.code),
            ("name", seal.name),
            ("organisation's code", seal.organisation),
            ("holder", seal.holder),
            ("custodian", seal.custodian),
        ):
            text = _normal(text).casefold()
            if text and (folded == text or (len(text) >= MIN_REPEATED_LEN and text in folded)):
                raise BadRequest(
                    f"the protection password contains the seal's {what}",
                    hint="take nothing that stands on it",
                )
        return password

    def _days_left(self, expires_at: datetime) -> int:
        return max(0, (expires_at - self._now()) // timedelta(days=1))

    def _is_due(self, expires_at: datetime) -> bool:
        return expires_at - self._now() <= timedelta(days=self._settings.warn_days)


def _normal(password: str) -> str:
    encoded_len(password)
    return unicodedata.normalize("NFC", password)


def _class_of(character: str) -> int:
    if "a" <= character <= "z":
        return 0
    if "A" <= character <= "Z":
        return 1
    return 2 if "0" <= character <= "9" else 3


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _too_early(due_in_ms: int) -> Busy:
    return Busy(
        "a wrong protection password delays the next attempt",
        hint="check the password, then try again after the time given",
        retry_after_ms=due_in_ms,
    )


def _locked() -> Denied:
    return Denied(
        "the protection password is locked after too many wrong ones",
        hint="two security officers reset it; what is unlocked stays so until its time is over",
    )
