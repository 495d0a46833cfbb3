"""Officers: who they are, how they prove it, and who makes them.

For: log-in with a password, officers' own passwords; making officers and changing what they may do, which the
administrator of the machine does.
Not for: sessions and how a request carries them (``api``); what an officer may do to a seal (``lifecycle``).

Rules:

* An officer who is unknown costs the same work as one who is known, and gets the same answer. A failure delays the next
  answer for that name and that peer, as for accounts (``passwords``).
* The administrator is whoever the kernel says is root, the daemon's own user or one of ``web.officer_uids``. He makes
  officers and has no part in any act on a seal: whoever wants to act needs credentials of an officer.
* What is done to officers is on record like what is done to seals, under the officer's name.

Crash story: the registry first, nothing in memory: a change holds from the next request on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

from appliance.errors import BadRequest, Conflict, NotAuthenticated, NotFound
from appliance.holdings import check_name
from appliance.lifecycle import Officer, OfficerEvent, Role
from appliance.office.desk import Desk, printable
from appliance.passwords import FailureBook, PasswordHasher
from appliance.settings import AuthSettings
from appliance.wire import MAX_NAME_LEN, MAX_PASSWORD_LEN

MIN_PASSWORD_LEN: Final = 10
"""An officer's password opens more than an account's."""
MAX_DISPLAY_NAME_LEN: Final = 100


class People:
    """Owned by the event loop."""

    def __init__(
        self,
        desk: Desk,
        settings: AuthSettings,
        executor: Executor,
        clock: Callable[[], float],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._desk = desk
        self._people = desk.registry.people
        self._executor = executor
        self._on_failure = on_failure
        self._hasher = PasswordHasher(settings, executor)
        # What an unknown officer's password is checked against, so that it costs the same.
        self._decoy = self._hasher.hash_now("no officer has this password")
        self._failures: FailureBook[tuple[str, str]] = FailureBook(
            clock, settings.failure_delay_s, settings.max_failure_delay_s, settings.forget_failures_after_s
        )

    # Log-in ---------------------------------------------------------------------------------------------

    async def login(self, name: str, password: str, peer: str) -> Officer:
        """The officer, or ``NotAuthenticated``. ``peer`` names where it comes from, for counting failures."""
        who = (name[: MAX_NAME_LEN + 1], peer)
        while True:
            await asyncio.sleep(self._failures.take_turn(who))
            known = self._failures.count(who)
            officer = await self._find(name)
            stored = officer.password_hash if officer is not None else self._decoy
            async with self._hasher.permit():
                if self._failures.count(who) > known:
                    continue  # others of the same name failed meanwhile: this one waits for another turn
                fits = await self._fits(stored, password)
            if officer is not None and not officer.disabled and fits:
                self._failures.forget(who)
                return officer
            self._on_failure()
            self._failures.note(who)
            raise NotAuthenticated(
                "no such officer, or the password does not fit", hint="check name and password"
            )

    async def current(self, name: str) -> Officer:
        """As the officer is now, for a session that began earlier; ``NotAuthenticated`` where it has ended."""
        officer = await self._find(name)
        if officer is None or officer.disabled:
            raise NotAuthenticated(f"officer {name!r} may not log in any more", hint="ask the administrator")
        return officer

    async def _find(self, name: str) -> Officer | None:
        try:
            return await self._desk.call(self._people.officer, name)
        except NotFound:
            return None

    async def _fits(self, stored: str, password: str) -> bool:
        if len(password.encode()) > MAX_PASSWORD_LEN:
            password = ""  # none is so long; the work is done all the same
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._hasher.fits, stored, password
        )

    async def change_password(self, officer: Officer, old: str, new: str, peer: str) -> None:
        """One's own; the old one is proved as for a log-in."""
        await self.login(officer.name, old, peer)
        hashed = await self._hashed(new)
        event = self._event(officer.name, "change-password", officer.name)
        await self._desk.call(self._people.set_officer_password, officer.name, hashed, event)

    # The administrator's --------------------------------------------------------------------------------

    async def create(
        self, uid: int, name: str, display_name: str, roles: Collection[Role], password: str
    ) -> Officer:
        """``Conflict`` where the name is taken. ``uid`` is who asks, as the kernel tells it, for the record."""
        check_name(name, "officer")
        officer = Officer(
            name,
            printable(display_name, "a display name", 1, MAX_DISPLAY_NAME_LEN),
            _checked(roles),
            await self._hashed(password),
            False,
            self._desk.instant(),
        )
        event = self._event(name, "create-officer", _administrator(uid), roles=_words(officer.roles))
        await self._desk.call(self._people.add_officer, officer, event)
        return officer

    async def set_roles(self, uid: int, name: str, roles: Collection[Role]) -> Officer:
        """In force from the officer's next request on."""
        officer = await self._desk.call(self._people.officer, name)
        changed = replace(officer, roles=_checked(roles))
        event = self._event(
            name, "set-roles", _administrator(uid), roles=_words(changed.roles), before=_words(officer.roles)
        )
        await self._desk.call(self._people.set_officer_roles, name, changed.roles, event)
        return changed

    async def set_disabled(self, uid: int, name: str, disabled: bool) -> Officer:
        """In force from the officer's next request on, in sessions that are open too."""
        officer = await self._desk.call(self._people.officer, name)
        act = "disable-officer" if disabled else "enable-officer"
        event = self._event(name, act, _administrator(uid))
        await self._desk.call(self._people.set_officer_disabled, name, disabled, event)
        return replace(officer, disabled=disabled)

    async def set_password(self, uid: int, name: str, password: str) -> Officer:
        """For who has forgotten it."""
        hashed = await self._hashed(password)
        officer = await self._desk.call(self._people.officer, name)
        event = self._event(name, "set-officer-password", _administrator(uid))
        await self._desk.call(self._people.set_officer_password, name, hashed, event)
        return replace(officer, password_hash=hashed)

    async def officers(self) -> list[Officer]:
        """All of them, by name."""
        return await self._desk.call(self._people.officers)

    async def events(self, name: str) -> list[OfficerEvent]:
        """An officer's record: who made, changed or disabled him or her, and when."""
        await self._desk.call(self._people.officer, name)
        return await self._desk.call(self._people.officer_events, name)

    async def _hashed(self, password: str) -> str:
        length = len(password.encode())
        if not MIN_PASSWORD_LEN <= length <= MAX_PASSWORD_LEN:
            raise BadRequest(
                f"an officer's password has {MIN_PASSWORD_LEN} to {MAX_PASSWORD_LEN} bytes, got {length}",
                hint="choose a longer one that no other system knows",
            )
        return await self._hasher.hash(password)

    def _event(self, name: str, act: str, by: str, **detail: str) -> OfficerEvent:
        return OfficerEvent(name, self._desk.instant(), act, by, detail)


def _checked(roles: Collection[Role]) -> frozenset[Role]:
    if not roles:
        raise BadRequest("an officer needs a role", hint=f"one or several of {_words(Role)}")
    if Role.AUDITOR in roles and len(set(roles)) > 1:
        raise Conflict("an auditor changes nothing", hint="give the role auditor alone")
    return frozenset(roles)


def _words(roles: Collection[Role] | type[Role]) -> str:
    return ", ".join(sorted(role.value for role in roles))


def _administrator(uid: int) -> str:
    return f"uid:{uid}"
