"""Critical acts: one officer proposes, another approves, and then it is done.

For: who may want what, the life of a proposal, doing it once.
Not for: what the acts are; each is a ``CriticalWork`` that its own module brings.

Rules:

* Who proposed never approves, whatever his roles. The registry decides: of two who approve at once one is first, and
  only that one's approval has the act done.
* Both want it at the moment it is approved: what an officer proposed who was disabled since, or has no role for it any
  more, is approved by nobody.
* Arguments are looked at when they are proposed, and kept as they were understood. Whether the seal's state allows the
  act is looked at then, and again when it is done.
* What was approved is done at once. Where that fails for good (``RequestError`` and the like) the proposal has failed,
  with the reason on record. Where something is merely away (a token, the time-stamp authority) it stays approved and
  is tried again by itself until it expires.

Crash story: approved and not done is a state of its own in the registry (``ProposalState.APPROVED``); a start, and each
sweep, does it again. Each act says in its own transaction that its proposal is done, so that it is done once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from appliance.errors import ApplianceError, BadRequest, Conflict, Denied, Unavailable
from appliance.lifecycle import (
    APPROVERS,
    PROPOSERS,
    CriticalAct,
    Officer,
    Proposal,
    ProposalState,
    Role,
    Seal,
)
from appliance.office.desk import MAX_TEXT_LEN, Desk, instant, moment_of, printable

log = logging.getLogger(__name__)

HIDDEN: frozenset[str] = frozenset({"password_hash"})
"""Arguments that the registry keeps and nobody is shown."""


@dataclass(frozen=True, slots=True)
class CriticalWork:
    """What an act is.

    ``check`` looks at arguments as they were given, for an officer and a seal as it is now, and returns them as they
    are to be kept; ``do`` does it, with the proposal's end in the same transaction.
    """

    check: Callable[[Officer, Seal, Mapping[str, Any]], Awaitable[dict[str, Any]]]
    do: Callable[[Seal, Proposal], Awaitable[None]]


class Proposals:
    """Owned by the event loop."""

    def __init__(self, desk: Desk, works: Mapping[CriticalAct, CriticalWork], ttl_s: float) -> None:
        missing = set(CriticalAct) - works.keys()
        assert not missing, missing
        self._desk = desk
        self._people = desk.registry.people
        self._works = works
        self._ttl = timedelta(seconds=ttl_s)
        self._executing: set[str] = set()  # ids; what this process is doing is not begun again by a sweep

    async def propose(
        self, officer: Officer, act: CriticalAct, target: str, arguments: Mapping[str, Any]
    ) -> Proposal:
        """Wanted by one; ``target`` is the seal's id."""
        _check_role(PROPOSERS[act], officer, f"propose {act.value}")
        seal = await self._desk.seal(target)
        kept = await self._works[act].check(officer, seal, arguments)
        now = self._desk.now()
        proposal = Proposal(
            self._desk.new_id(),
            act,
            target,
            kept,
            officer.name,
            instant(now),
            instant(now + self._ttl),
            ProposalState.OPEN,
            None,
            None,
            None,
        )
        await self._desk.call(self._people.add_proposal, proposal)
        return shown(proposal)

    async def approve(self, officer: Officer, proposal_id: str) -> Proposal:
        """Wanted by two: done when this returns, or still ``approved`` where something is away; the outcome says so."""
        proposal = await self._desk.call(self._people.proposal, proposal_id)
        _check_role(APPROVERS[proposal.act], officer, f"approve {proposal.act.value}")
        if officer.name == proposal.proposed_by:
            raise _same_person()
        if proposal_id in self._executing:
            raise Conflict(
                "another officer approves this proposal at this moment", hint="look at what became of it"
            )
        self._executing.add(proposal_id)
        return await self._desk.finish(self._approve(officer, proposal))

    async def _approve(self, officer: Officer, proposal: Proposal) -> Proposal:
        proposal_id = proposal.id
        try:
            await self._check_proposer(proposal)
            decided = await self._desk.call(
                self._people.decide, proposal_id, ProposalState.APPROVED, officer.name, self._desk.instant()
            )
            # Durable from here on: a crash leaves it approved, and the next start does it.
            return await self._execute(decided)
        finally:
            self._executing.discard(proposal_id)

    async def _check_proposer(self, proposal: Proposal) -> None:
        proposer = await self._desk.call(self._people.officer, proposal.proposed_by)
        if proposer.disabled or not proposer.roles & PROPOSERS[proposal.act]:
            raise Conflict(
                f"officer {proposer.name!r}, who proposed this, may not any more",
                hint="reject it; who still wants it proposes it anew",
            )

    async def reject(self, officer: Officer, proposal_id: str, reason: str) -> Proposal:
        """Another officer does not want it."""
        proposal = await self._desk.call(self._people.proposal, proposal_id)
        _check_role(APPROVERS[proposal.act], officer, f"reject {proposal.act.value}")
        if officer.name == proposal.proposed_by:
            raise _same_person()
        decided = await self._desk.call(
            self._people.decide,
            proposal_id,
            ProposalState.REJECTED,
            officer.name,
            self._desk.instant(),
            printable(reason, "a reason", 1, MAX_TEXT_LEN),
        )
        return shown(decided)

    async def _execute(self, proposal: Proposal) -> Proposal:
        """Do what two want, and return the proposal as it is then; for good failures the error is raised as well."""
        try:
            seal = await self._desk.seal(proposal.target)
            await self._works[proposal.act].do(seal, proposal)
        except Unavailable as error:
            log.warning("%s of %s: not done yet: %s", proposal.act.value, proposal.target, error)
            return replace(shown(proposal), outcome=f"not done yet, tried again by itself: {error.detail}")
        except ApplianceError as error:
            log.warning("%s of %s failed: %s", proposal.act.value, proposal.target, error)
            await self._desk.call(self._people.finish_proposal, proposal.id, ProposalState.FAILED, str(error))
            raise
        return shown(await self._desk.call(self._people.proposal, proposal.id))

    async def resume_approved(self) -> int:
        """Do again what was approved and not done; how many are done now. At start, and with each sweep."""
        done = 0
        for proposal in await self._desk.call(self._people.approved_proposals):
            if proposal.id in self._executing:
                continue
            self._executing.add(proposal.id)
            try:
                done += await self._desk.finish(self._resume(proposal))
            finally:
                self._executing.discard(proposal.id)
        return done

    async def _resume(self, proposal: Proposal) -> bool:
        if moment_of(proposal.expires_at) <= self._desk.now():
            await self._desk.call(
                self._people.finish_proposal,
                proposal.id,
                ProposalState.FAILED,
                "it could not be done before it expired",
            )
            return False
        try:
            return (await self._execute(proposal)).state is ProposalState.DONE
        except ApplianceError:
            return False  # it is on record, and in the log

    # Looking --------------------------------------------------------------------------------------------

    async def proposal(self, officer: Officer, proposal_id: str) -> Proposal:
        """One of them."""
        return shown(await self._desk.call(self._people.proposal, proposal_id))

    async def proposals(
        self,
        officer: Officer,
        state: ProposalState | None = None,
        after: str = "",
        limit: int = 100,
        target: str | None = None,
    ) -> list[Proposal]:
        """A page of them, by id, those after the one given."""
        page = await self._desk.call(self._people.proposals, state, after, limit, target)
        return [shown(one) for one in page]

    async def expire(self) -> int:
        """Proposals that nobody approved in time are off; how many."""
        return await self._desk.call(self._people.expire_proposals, self._desk.instant())


def shown(proposal: Proposal) -> Proposal:
    """As people may see it."""
    return replace(
        proposal, arguments={name: value for name, value in proposal.arguments.items() if name not in HIDDEN}
    )


def _same_person() -> Denied:
    return Denied("who proposed it cannot decide it too", hint="it takes a second officer")


def _check_role(roles: frozenset[Role], officer: Officer, what: str) -> None:
    if not officer.roles & roles:
        names = " or ".join(sorted(role.value for role in roles))
        raise Denied(f"{what}: officer {officer.name!r} may not", hint=f"it takes the role {names}")


def no_more(arguments: Mapping[str, Any], *known: str) -> None:
    """``BadRequest`` where an argument is not known to the act."""
    for name in arguments:
        if name not in known:
            raise BadRequest(
                f"unknown argument {name!r}",
                hint=f"expected {', '.join(known)}" if known else "none is expected",
            )


def text_argument(arguments: Mapping[str, Any], name: str, max_len: int) -> str:
    """An argument that is text, else ``BadRequest``."""
    value = arguments.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= max_len:
        raise BadRequest(
            f"argument {name!r}: expected a text of 1 to {max_len} characters", hint="add or shorten it"
        )
    return value
