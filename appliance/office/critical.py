"""The critical acts besides making: wake, cancel, grant, revoke, reset a password, destroy a key.

For: looking at what was proposed, and doing it once two officers want it; grants of seals that are no official ones,
which one security officer changes alone.
Not for: proposing and approving (``proposals``).

Rules:

* Waking a dormant seal is its fresh application (003 §12): its year begins anew.
* A person cancels with the reasons of 003 §18; ``changed`` and ``not collected`` come about by themselves.
* A custodian proposes grants on the seals that he or she keeps, and on no other's.
* A password that is to be reset is hashed when it is proposed. The hash is kept with the proposal and shown to nobody,
  and the reset is told to the public security in the transaction that does it (004 §3.4).
* A key is destroyed only where no seal can ever be used with it again: the seal's life has ended, or it is a key of an
  earlier generation. The record of the key stays.

Crash story: see ``proposals``; each ``do`` here can be cut short anywhere and done again. A key is destroyed in the
token first and on record after; destroying it again finds it gone and is content.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from appliance.errors import BadRequest, Conflict, Denied, NotFound
from appliance.lifecycle import (
    OFFICIAL_KINDS,
    Act,
    CriticalAct,
    Event,
    MessageKind,
    Officer,
    Operation,
    Proposal,
    ProtectionPassword,
    Reason,
    Role,
    Seal,
    SealGrant,
    State,
    transition,
)
from appliance.office import filing
from appliance.office.acts import check_custodian
from appliance.office.desk import MAX_TEXT_LEN, Desk, check_within_validity, instant, moment_of, printable
from appliance.office.ending import Ending
from appliance.office.keys import SealKeys
from appliance.office.proposals import CriticalWork, no_more, text_argument
from appliance.policy import Account
from appliance.references import read_pattern
from appliance.wire import MAX_NAME_LEN, MAX_PASSWORD_LEN

BY_PEOPLE: Final = frozenset(
    {Reason.WITHDRAWN, Reason.LOST, Reason.KEY_COMPROMISED, Reason.ORGANISATION_ENDED}
)
HAS_PASSWORD: Final = frozenset({State.ACTIVE, State.SUSPENDED, State.DORMANT})
ENDED: Final = frozenset({State.REFUSED, State.CANCELLED, State.EXPIRED})
GRANTABLE: Final = frozenset({State.MADE, State.FILED, State.ACTIVE, State.SUSPENDED, State.DORMANT})
MAX_LIMIT: Final = 10**9
"""Seal signatures a day: more than the appliance makes in one."""
MAX_SOURCES: Final = 64


class Passwords(Protocol):
    """``protection.Protection``, as far as resets need it."""

    async def prepare_reset(self, seal: Seal, new: str, by: str) -> ProtectionPassword:
        """What a reset is to record."""

    async def finish_reset(self, recorded: ProtectionPassword) -> None:
        """After it is on record: nobody has the seal unlocked any more."""


class Critical:
    """Owned by the event loop."""

    def __init__(
        self,
        desk: Desk,
        ending: Ending,
        protection: Passwords,
        accounts: Mapping[str, Account],
        keys: SealKeys,
        system_id: str,
    ) -> None:
        self._desk = desk
        self._seals = desk.registry.seals
        self._grants = desk.registry.grants
        self._ending = ending
        self._protection = protection
        self._accounts = accounts
        self._keys = keys
        self._system_id = system_id
        self.works = {
            CriticalAct.WAKE: CriticalWork(self._check_waking, self._wake),
            CriticalAct.CANCEL: CriticalWork(self._check_cancelling, self._cancel),
            CriticalAct.GRANT: CriticalWork(self._check_granting, self._grant),
            CriticalAct.REVOKE: CriticalWork(self._check_revoking, self._revoke),
            CriticalAct.RESET_PASSWORD: CriticalWork(self._check_resetting, self._reset),
            CriticalAct.DESTROY_KEY: CriticalWork(self._check_destroying, self._destroy),
        }

    # Waking ---------------------------------------------------------------------------------------------

    async def _check_waking(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        transition(seal.state, Act.WAKE)
        check_within_validity(seal, self._desk.now())
        no_more(arguments, "reason")
        return {"reason": _reason(arguments)}

    async def _wake(self, seal: Seal, proposal: Proposal) -> None:
        row = transition(seal.state, Act.WAKE)
        check_within_validity(seal, self._desk.now())
        step = self._desk.step(
            seal,
            row,
            proposal.proposed_by,
            approver=proposal.decided_by,
            changes={"activated_at": self._desk.instant()},  # the first one is in the record
            detail=proposal.arguments,
            proposal_done=(proposal.id, "woken"),
        )
        await self._desk.advance(step)

    # Cancelling -----------------------------------------------------------------------------------------

    async def _check_cancelling(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        transition(seal.state, Act.CANCEL)
        no_more(arguments, "reason", "words")
        reasons = ", ".join(sorted(reason.value for reason in BY_PEOPLE))
        try:
            reason = Reason(arguments.get("reason"))
        except ValueError:
            raise BadRequest("argument 'reason': no such reason", hint=f"one of {reasons}") from None
        if reason not in BY_PEOPLE:
            raise BadRequest(f"reason {reason.value} comes about by itself", hint=f"one of {reasons}")
        words = printable(text_argument(arguments, "words", MAX_TEXT_LEN), "words", 1, MAX_TEXT_LEN)
        return {"reason": reason.value, "words": words}

    async def _cancel(self, seal: Seal, proposal: Proposal) -> None:
        row = transition(seal.state, Act.CANCEL)
        step = await self._ending.step(
            seal,
            row,
            Reason(proposal.arguments["reason"]),
            str(proposal.arguments["words"]),
            proposal.proposed_by,
            approver=proposal.decided_by,
            proposal_done=(proposal.id, "cancelled"),
        )
        await self._desk.advance(step)

    # Grants ---------------------------------------------------------------------------------------------

    async def grant_alone(self, officer: Officer, seal_id: str, arguments: Mapping[str, Any]) -> SealGrant:
        """For a seal that is no official one: a security officer is enough."""
        seal = await self._alone(officer, seal_id, CriticalAct.GRANT)
        kept = await self._check_granting(officer, seal, arguments)
        grant = _grant_of(seal.id, kept)
        event = self._desk.event(seal, "grant", officer.name, detail=kept)
        await self._desk.finish(self._desk.told([seal.id], self._grants.put, grant, event))
        return grant

    async def revoke_alone(self, officer: Officer, seal_id: str, account: str) -> None:
        """The same."""
        seal = await self._alone(officer, seal_id, CriticalAct.REVOKE)
        kept = await self._check_revoking(officer, seal, {"account": account})
        event = self._desk.event(seal, "revoke", officer.name, detail=kept)
        await self._desk.finish(self._desk.told([seal.id], self._grants.remove, account, seal.id, event))

    async def _alone(self, officer: Officer, seal_id: str, act: CriticalAct) -> Seal:
        seal = await self._desk.seal(seal_id)
        if seal.kind in OFFICIAL_KINDS:
            raise Denied(
                f"{act.value}: on an official seal it takes two people",
                hint="propose it, and have another officer approve it",
            )
        if Role.SECURITY not in officer.roles:
            raise Denied(f"{act.value}: officer {officer.name!r} may not", hint="it takes the role security")
        return seal

    async def _check_granting(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        _check_keeps(officer, seal)
        if seal.state not in GRANTABLE:
            raise Conflict(
                f"a seal that is {seal.state.value} is granted to nobody",
                hint="it is made first, and not ended",
            )
        no_more(
            arguments, "account", "operations", "daily_limit", "minute_limit", "valid_from", "valid_to", "sources",
            "approval_pattern",
        )  # fmt: skip
        account = text_argument(arguments, "account", MAX_NAME_LEN)
        if account not in self._accounts:
            raise NotFound(f"no account {account!r}", hint="cloud-seal account list")
        valid_from, valid_to = _moment(arguments, "valid_from"), _moment(arguments, "valid_to")
        if valid_from is not None and valid_to is not None and valid_from >= valid_to:
            raise BadRequest(
                "the grant's validity ends before it begins", hint="give valid_to after valid_from"
            )
        return {
            "account": account,
            "operations": _operations(arguments),
            "daily_limit": _limit(arguments, "daily_limit"),
            "minute_limit": _limit(arguments, "minute_limit"),
            "valid_from": valid_from,
            "valid_to": valid_to,
            "sources": _sources(arguments),
            "approval_pattern": _pattern(arguments),
            "created_at": self._desk.instant(),
        }

    async def _grant(self, seal: Seal, proposal: Proposal) -> None:
        if seal.state not in GRANTABLE:
            raise Conflict(
                f"a seal that is {seal.state.value} is granted to nobody",
                hint="propose it once the seal is in use",
            )
        grant = _grant_of(seal.id, proposal.arguments)
        event = self._event(seal, "grant", proposal)
        done = (proposal.id, f"granted to {grant.account}")
        await self._desk.finish(self._desk.told([seal.id], self._grants.put, grant, event, done))

    async def _check_revoking(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        _check_keeps(officer, seal)
        no_more(arguments, "account")
        account = text_argument(arguments, "account", MAX_NAME_LEN)
        if await self._desk.call(self._grants.grant, account, seal.id) is None:
            raise NotFound(
                f"account {account!r} has no grant on this seal", hint="cloud-seal grant list --seal SEAL"
            )
        return {"account": account}

    async def _revoke(self, seal: Seal, proposal: Proposal) -> None:
        account = str(proposal.arguments["account"])
        event = self._event(seal, "revoke", proposal)
        done = (proposal.id, f"revoked from {account}")
        await self._desk.finish(
            self._desk.told([seal.id], self._grants.remove, account, seal.id, event, done)
        )

    def _event(
        self, seal: Seal, act: str, proposal: Proposal, detail: Mapping[str, Any] | None = None
    ) -> Event:
        return self._desk.event(
            seal,
            act,
            proposal.proposed_by,
            approver=proposal.decided_by,
            detail=proposal.arguments if detail is None else detail,
        )

    # Resetting a password -------------------------------------------------------------------------------

    async def _check_resetting(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        _check_has_password(seal)
        no_more(arguments, "password", "reason")
        password = text_argument(arguments, "password", MAX_PASSWORD_LEN)
        reason = _reason(arguments)
        prepared = await self._protection.prepare_reset(seal, password, officer.name)
        return {"password_hash": prepared.password_hash, "reason": reason}

    async def _reset(self, seal: Seal, proposal: Proposal) -> None:
        _check_has_password(seal)
        now, reason = self._desk.instant(), str(proposal.arguments["reason"])
        body = filing.password_reset_body(seal, self._system_id, reason, now)
        message = filing.message(
            self._desk.new_id(), MessageKind.PASSWORD_RESET, seal, body, self._desk.now()
        )
        await self._desk.finish(
            self._reset_and_tell(
                seal.id,
                str(proposal.arguments["password_hash"]),
                proposal.proposed_by,
                now,
                self._event(seal, CriticalAct.RESET_PASSWORD.value, proposal, {"reason": reason}),
                (message,),
                (proposal.id, "the protection password is reset"),
            )
        )

    async def _reset_and_tell(self, seal_id: str, *more: Any) -> None:
        recorded = await self._desk.told([seal_id], self._desk.registry.custody.reset, seal_id, *more)
        # A crash here ends every front, and with them every unlock: nobody has the seal unlocked either way.
        await self._protection.finish_reset(recorded)

    # Destroying a key -----------------------------------------------------------------------------------

    async def _check_destroying(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        no_more(arguments, "key")
        key = text_argument(arguments, "key", MAX_NAME_LEN)
        await self._check_destroyable(seal, key)
        return {"key": key}

    async def _check_destroyable(self, seal: Seal, key: str) -> None:
        used = {seal.key_name} if seal.key_name is not None else set()
        pending = await self._desk.call(self._seals.pending, seal.id)
        if pending is not None:
            used.add(pending.key_name)
        for number in range(1, seal.generation + 1):
            used.add((await self._desk.call(self._seals.generation, seal.id, number)).key_name)
        if key not in used:
            raise NotFound(
                f"seal {seal.id} has no key {key!r}", hint=f"it has {', '.join(sorted(used)) or 'none'}"
            )
        if seal.state not in ENDED and key == seal.key_name:
            raise Conflict(
                f"a seal that is {seal.state.value} needs its key",
                hint="cancel the seal first, or let it expire",
            )

    async def _destroy(self, seal: Seal, proposal: Proposal) -> None:
        key = str(proposal.arguments["key"])
        await self._check_destroyable(seal, key)
        await self._keys.destroy(key)
        # It is gone from here on; a crash before the next lines has the token asked once more, which finds none.
        event = self._event(seal, CriticalAct.DESTROY_KEY.value, proposal)
        done = (proposal.id, f"key {key} is destroyed")
        await self._desk.finish(self._desk.told([seal.id], self._seals.note, event, done))


# Arguments ----------------------------------------------------------------------------------------------------


def _reason(arguments: Mapping[str, Any]) -> str:
    return printable(text_argument(arguments, "reason", MAX_TEXT_LEN), "a reason", 1, MAX_TEXT_LEN)


def _check_keeps(officer: Officer, seal: Seal) -> None:
    if Role.SECURITY not in officer.roles:
        check_custodian(seal, officer)


def _check_has_password(seal: Seal) -> None:
    if seal.state not in HAS_PASSWORD:
        raise Conflict(
            f"a seal that is {seal.state.value} has no protection password to reset",
            hint="its custodian sets one by activating it",
        )


def _operations(arguments: Mapping[str, Any]) -> list[str]:
    given = arguments.get("operations", [operation.value for operation in Operation])
    known = {operation.value for operation in Operation}
    if not isinstance(given, list | tuple) or not given or not all(one in known for one in given):
        raise BadRequest("argument 'operations'", hint=f"a list of one or more of {', '.join(sorted(known))}")
    return sorted(set(given))


def _limit(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_LIMIT:
        raise BadRequest(
            f"argument {name!r}: expected a whole number from 0 (no limit) to {MAX_LIMIT}",
            hint="leave it out for no limit",
        )
    return value


def _moment(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is None:
        return None
    try:
        moment = moment_of(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadRequest(
            f"argument {name!r}: expected an instant with its zone", hint="e.g. 2026-11-22T12:30:00+08:00"
        )
    return _utc(moment, name)


def _utc(moment: datetime, name: str) -> str:
    try:
        return instant(moment)
    except OverflowError as error:
        raise BadRequest(
            f"argument {name!r}: out of the calendar", hint="ISO 8601, e.g. 2026-11-22T04:30:00+00:00"
        ) from error


def _sources(arguments: Mapping[str, Any]) -> list[str]:
    given = arguments.get("sources", [])
    if not isinstance(given, list | tuple) or len(given) > MAX_SOURCES:
        raise BadRequest(
            f"argument 'sources': expected a list of at most {MAX_SOURCES} networks",
            hint="e.g. 10.0.0.0/8; none: from anywhere",
        )
    try:
        return [str(ipaddress.ip_network(_word(one))) for one in given]
    except ValueError as error:
        raise BadRequest(
            f"argument 'sources': {error}", hint="networks in CIDR form, e.g. 10.1.0.0/16"
        ) from error


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _pattern(arguments: Mapping[str, Any]) -> str | None:
    value = arguments.get("approval_pattern")
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRequest(
            "argument 'approval_pattern': expected text, or nothing",
            hint="a regular expression for the whole approval reference",
        )
    try:
        read_pattern(value)  # as sealing will read it
    except BadRequest as error:
        raise BadRequest(f"argument 'approval_pattern': {error.detail}", hint=error.hint) from error
    return value


def _grant_of(seal_id: str, kept: Mapping[str, Any]) -> SealGrant:
    return SealGrant(
        kept["account"],
        seal_id,
        frozenset(Operation(one) for one in kept["operations"]),
        kept["daily_limit"],
        kept["minute_limit"],
        kept["valid_from"],
        kept["valid_to"],
        tuple(kept["sources"]),
        kept["approval_pattern"],
        kept["created_at"],
    )
