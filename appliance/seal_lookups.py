"""What sealing asks of the registry: seals and grants for the book, states in bulk, standings for verification.

For: reading, in threads, and turning rows into what ``sealing`` and ``sealer`` work with.
Not for: keeping anything, deciding who may seal.

Rules:

* A seal that the account may not ask about looks exactly like one that does not exist.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from appliance.errors import ApplianceError, Denied, NotFound
from appliance.eseal.structures import ESeal, read_seal
from appliance.eseal.verification import ACTIVE, Standing, Status
from appliance.eseal.verification import UNKNOWN as UNKNOWN_STATUS
from appliance.lifecycle import Operation, Seal, SealGrant, State
from appliance.registry import Registry
from appliance.sealing import Address, LoadedSeal, Permission, epoch, load_seal
from appliance.settings import PasswordSettings
from appliance.wire_seals import SealNameKind, SealState, SealStatusFlag, SealStatusRecord

_STANDINGS = {
    State.MADE: Standing.NOT_IN_USE,
    State.FILED: Standing.NOT_IN_USE,
    State.SUSPENDED: Standing.SUSPENDED,
    State.DORMANT: Standing.SUSPENDED,
    State.CANCELLED: Standing.CANCELLED,
}
"""All others are in force; that a seal has expired, its own validity says."""


class SealFacts(NamedTuple):
    """What SEAL_STATUS may tell, without what is only in memory. ``seal_id`` is empty where nothing may be known."""

    seal_id: str
    record: SealStatusRecord


_NOTHING = SealFacts("", SealStatusRecord(SealState.UNKNOWN))


class SealLookups:
    """Called in threads; ``sealing.SealReader`` and ``sealer.StatusReader``."""

    def __init__(self, registry: Registry, passwords: PasswordSettings) -> None:
        self._registry = registry
        self._max_age = timedelta(days=passwords.max_age_days)
        self._warn = timedelta(days=passwords.warn_days)

    def seal(self, seal_id: str) -> LoadedSeal:
        """The seal with its template, else ``NotFound``."""
        seal = self._registry.seals.seal(seal_id)
        if not seal.generation or seal.key_name is None:
            return load_seal(seal, None, 0, None)
        generation = self._registry.seals.generation(seal_id, seal.generation)
        version = read_seal(generation.eseal).version
        try:
            key = self._registry.key(generation.key_name)
        except NotFound:  # destroyed: the seal's life has ended
            return load_seal(seal, None, 0, None)
        return load_seal(seal, generation, int(version), key)

    def grant(self, account: str, seal_id: str) -> SealGrant | None:
        """What the account may do with it."""
        return self._registry.grants.grant(account, seal_id)

    def records(
        self, account: str, source: Address, kind: SealNameKind, names: list[str], now: datetime
    ) -> list[SealFacts]:
        """For each name what the account may know of the seal."""
        return [self._record(account, source, kind, name, now) for name in names]

    def _record(
        self, account: str, source: Address, kind: SealNameKind, name: str, now: datetime
    ) -> SealFacts:
        seals = self._registry.seals
        try:
            seal = seals.seal(name) if kind is SealNameKind.ID else seals.seal_by_code(name)
        except NotFound:
            return _NOTHING
        grant = self.grant(account, seal.id)
        if grant is None:
            return _NOTHING
        try:
            Permission.of(grant).check(Operation.STATUS, now.timestamp(), source)
        except Denied:
            return _NOTHING
        state = seal.state
        valid_to = int(epoch(seal.valid_to) or 0)
        if state is State.ACTIVE and now.timestamp() >= valid_to:
            state = State.EXPIRED  # by the clock; the registry is told by the next sweep
        flags, due_at = self._password(seal, now)
        record = SealStatusRecord(
            SealState[state.name], flags, int(epoch(seal.valid_from) or 0), valid_to, 0, due_at
        )
        return SealFacts(seal.id, record)

    def _password(self, seal: Seal, now: datetime) -> tuple[SealStatusFlag, int]:
        password = self._registry.custody.password(seal.id)
        if password is None:
            return SealStatusFlag(0), 0
        due_at = datetime.fromisoformat(password.set_at) + self._max_age
        flags = SealStatusFlag.PASSWORD_LOCKED if password.locked else SealStatusFlag(0)
        if now >= due_at:
            flags |= SealStatusFlag.PASSWORD_OVERDUE
        elif now >= due_at - self._warn:
            flags |= SealStatusFlag.PASSWORD_DUE
        return flags, int(due_at.timestamp())

    def standing(self, seal: ESeal) -> Status:
        """The status of a seal that somebody shows us; of a seal that is not kept here nothing is known."""
        try:
            ours = self._registry.seals.seal_by_code(seal.code)
        except NotFound:
            return UNKNOWN_STATUS
        except ApplianceError as error:  # a code as no seal of ours has it, or the registry is away
            return Status(Standing.UNKNOWN, None, error.detail)
        standing = _STANDINGS.get(ours.state)
        if standing is None:
            return ACTIVE
        since = ours.ended_at
        if standing is Standing.SUSPENDED:
            events = self._registry.seals.events(ours.id)
            since = next((one.at for one in reversed(events) if one.target is ours.state), None)
        detail = (
            ours.state.value if ours.end_reason is None else f"{ours.state.value}: {ours.end_reason.value}"
        )
        return Status(standing, None if since is None else datetime.fromisoformat(since), detail)
