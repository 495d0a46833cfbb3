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
* Hashing and counting failures is shared with whatever else a password opens (``passwords``).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from appliance.errors import BadRequest, NotAuthenticated
from appliance.passwords import FailureBook, PasswordHasher, encoded_len
from appliance.policy import Account
from appliance.settings import AuthSettings
from appliance.wire import MAX_PASSWORD_LEN, Hello

MIN_PASSWORD_LEN: Final = 8


@dataclass(frozen=True, slots=True)
class Transport:
    """What the connection itself proves. ``peer`` names where it comes from, for counting failures."""

    peer: str
    uid: int | None = None
    certificate_sha256: str | None = None
    is_tls: bool = False


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
        self._executor = executor
        self._on_failure = on_failure
        self._hasher = PasswordHasher(settings, executor)
        # What an unknown account's password is checked against, so that it costs the same.
        self._decoy = self._hasher.hash_now("no account has this password")
        self._failures: FailureBook[tuple[str, str]] = FailureBook(
            clock, settings.failure_delay_s, settings.max_failure_delay_s, settings.forget_failures_after_s
        )

    async def hash_password(self, password: str) -> str:
        """The Argon2id string to keep; ``BadRequest`` for a password that is too short or too long."""
        length = encoded_len(password)
        if not MIN_PASSWORD_LEN <= length <= MAX_PASSWORD_LEN:
            raise BadRequest(
                f"a password has {MIN_PASSWORD_LEN} to {MAX_PASSWORD_LEN} bytes, got {length}",
                hint="choose another",
            )
        return await self._hasher.hash(password)

    async def authenticate(self, hello: Hello, transport: Transport) -> Account:
        """The account, or ``NotAuthenticated``; after a failure the next attempt waits for its turn."""
        who = (hello.account, transport.peer)
        fits: bool | None = None
        while fits is None:
            await asyncio.sleep(self._failures.take_turn(who))
            account = self._accounts.get(hello.account)
            fits = _fits_transport(account, transport)
            stored = account.password_hash if account is not None else self._decoy
            if stored is None and not fits:
                # An account without a password is refused in no less time than one that has one.
                stored = self._decoy
            if stored is not None:
                password_fits = await self._password_fits(who, stored, hello.password)
                fits = None if password_fits is None else password_fits and fits
        if account is not None and not account.disabled and fits:
            self._failures.forget(who)
            return account
        self._on_failure()
        self._failures.note(who)
        raise NotAuthenticated(
            "no such account, or the proof does not fit", hint="check account, password, uid and certificate"
        )

    async def _password_fits(self, who: tuple[str, str], stored: str, password: str) -> bool | None:
        """Whether it fits; None where others of the same kind failed meanwhile, and this one waits for another turn.

        Without that, all who come at once before the first failure is known would have a guess for nothing.
        """
        known = self._failures.count(who)
        async with self._hasher.permit():
            if self._failures.count(who) > known:
                return None
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._hasher.fits, stored, password)


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
