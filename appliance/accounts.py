"""Proof of identity: passwords, uids and certificates against what an account has on file.

For: answering HELLO, and hashing new passwords.
Not for: what an account may do (``policy``).

Rules:

* Whatever proof an account has on file for the transport must fit; an account with none on file for it gets in
  nowhere.
* An unknown account costs the same work as a known one, and gets the same answer.
* A failure delays the next answer for that account and for that peer; the delay doubles up to a limit. Nothing is
  locked for good here: a lock would let a stranger stop an approval system. For the same reason nobody waits for
  longer than that limit: attempts beyond are told ``busy`` and take no turn, so that a crowd cannot queue up ahead
  of the account's owner.
* Hashing runs in threads, a few at a time: it is memory-hard, and strangers can ask for it.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import argon2

from appliance.errors import BadRequest, Busy, NotAuthenticated
from appliance.policy import Account
from appliance.settings import AuthSettings
from appliance.wire import MAX_PASSWORD_LEN, Hello

MIN_PASSWORD_LEN: Final = 8
MAX_REMEMBERED_FAILURES: Final = 10_000
"""Accounts and peers with recent failures; the oldest is forgotten first, so that a flood cannot fill memory."""
MAX_WAITING_HASHES: Final = 256
"""More would wait longer than any client does."""


@dataclass(frozen=True, slots=True)
class Transport:
    """What the connection itself proves. ``peer`` names where it comes from, for counting failures."""

    peer: str
    uid: int | None = None
    certificate_sha256: str | None = None
    is_tls: bool = False


@dataclass(slots=True)
class _Failures:
    count: int
    last_at: float
    next_turn_at: float


class Authenticator:
    """Checks a HELLO against the accounts in memory; one for the process."""

    def __init__(
        self,
        accounts: Mapping[str, Account],
        settings: AuthSettings,
        executor: Executor,
        clock: Callable[[], float],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._accounts = accounts
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._on_failure = on_failure
        self._hasher = argon2.PasswordHasher(
            time_cost=settings.argon2_passes,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_lanes,
        )
        self._permits = asyncio.Semaphore(settings.max_concurrent_hashes)
        self._waiting = 0
        # What an unknown account's password is checked against, so that it costs the same.
        self._decoy = self._hasher.hash("no account has this password")
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    async def hash_password(self, password: str) -> str:
        """The Argon2id string to keep; ``BadRequest`` for a password that is too short or too long."""
        length = len(password.encode())
        if not MIN_PASSWORD_LEN <= length <= MAX_PASSWORD_LEN:
            raise BadRequest(f"a password has {MIN_PASSWORD_LEN} to {MAX_PASSWORD_LEN} bytes, got {length}")
        async with self._permits:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._hasher.hash, password)

    async def authenticate(self, hello: Hello, transport: Transport) -> Account:
        """The account, or ``NotAuthenticated``; after a failure the next attempt waits for its turn."""
        who = (hello.account, transport.peer)
        fits: bool | None = None
        while fits is None:
            await asyncio.sleep(self._turn(who))
            account = self._accounts.get(hello.account)
            fits = _fits_transport(account, transport)
            stored = account.password_hash if account is not None else self._decoy
            if stored is None and not fits:
                stored = (
                    self._decoy
                )  # an account without a password is refused in no less time than one that has one
            if stored is not None:
                password_fits = await self._password_fits(who, stored, hello.password)
                fits = None if password_fits is None else password_fits and fits
        if account is not None and not account.disabled and fits:
            self._failures.pop(who, None)
            return account
        self._on_failure()
        self._note(who)
        raise NotAuthenticated(
            "no such account, or the proof does not fit", hint="check account, password, uid and certificate"
        )

    async def _password_fits(self, who: tuple[str, str], stored: str, password: str) -> bool | None:
        """Whether it fits; None where others of the same kind failed meanwhile, and this one waits for another turn.

        Without that, all who come at once before the first failure is known would have a guess for nothing.
        """
        known = self._failure_count(who)
        if self._waiting >= MAX_WAITING_HASHES:
            raise Busy("too many clients prove themselves at once", retry_after_ms=1_000)
        self._waiting += 1
        try:
            async with self._permits:
                if self._failure_count(who) > known:
                    return None
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, self._verify, stored, password)
        finally:
            self._waiting -= 1

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    def _turn(self, who: tuple[str, str]) -> float:
        """How long this attempt has to wait; the turn is taken. ``Busy`` where too many wait before it.

        The bound matters: without it, a stranger who opens many connections takes all turns of the next hours.
        """
        now = self._clock()
        failures = self._failures.get(who)
        if failures is not None and now - failures.last_at > self._settings.forget_failures_after_s:
            del self._failures[who]
            failures = None
        if failures is None:
            return 0.0
        starts_at = max(now, failures.next_turn_at)
        if starts_at - now > self._settings.max_failure_delay_s:
            raise Busy(
                "attempts for this account wait already, after failures",
                hint="check the password, then try again",
                retry_after_ms=int((starts_at - now) * 1_000),
            )
        failures.next_turn_at = starts_at + self._delay(failures.count)
        return starts_at - now

    def _failure_count(self, who: tuple[str, str]) -> int:
        failures = self._failures.get(who)
        return failures.count if failures is not None else 0

    def _note(self, who: tuple[str, str]) -> None:
        now = self._clock()
        failures = self._failures.pop(who, None)
        if failures is None or now - failures.last_at > self._settings.forget_failures_after_s:
            failures = _Failures(0, now, now)
        failures.count += 1
        failures.last_at = now
        failures.next_turn_at = max(failures.next_turn_at, now + self._delay(failures.count))
        self._failures[who] = failures
        if len(self._failures) > MAX_REMEMBERED_FAILURES:
            self._failures.popitem(last=False)

    def _delay(self, count: int) -> float:
        doublings = min(count - 1, 32)
        return min(self._settings.failure_delay_s * 2.0**doublings, self._settings.max_failure_delay_s)


def _fits_transport(account: Account | None, transport: Transport) -> bool:
    """All that the account has on file, other than the password, for this transport; and at least one proof."""
    if account is None:
        return False
    if transport.is_tls:
        pinned = account.certificate_sha256
        if pinned is not None:
            return hmac.compare_digest(pinned, transport.certificate_sha256 or "")
    elif account.uid is not None:
        return account.uid == transport.uid
    return account.password_hash is not None
