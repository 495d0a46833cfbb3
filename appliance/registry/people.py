"""Officers, and what one of them proposes for another to approve.

That two people want what takes two is a condition of one ``UPDATE``, and a ``CHECK`` of the table besides: whoever
races, a proposal is decided once, and not by who made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from appliance.errors import Conflict, Denied, NotFound
from appliance.lifecycle import CriticalAct, Officer, OfficerEvent, Proposal, ProposalState, Role
from appliance.registry.database import Part, Row, Transaction, Value, Violation, atomic, page
from appliance.registry.record import end_proposal, to_json


class People(Part):
    """The registry's officers and proposals."""

    @atomic
    def add_officer(
        self, transaction: Transaction, officer: Officer, event: OfficerEvent | None = None
    ) -> None:
        """``Conflict`` if the name is taken, by whomever, ever."""
        try:
            transaction.execute(
                "INSERT INTO officer (name, display_name, roles, password_hash, disabled, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                officer.name,
                officer.display_name,
                _roles(officer.roles),
                officer.password_hash,
                officer.disabled,
                officer.created_at,
            )
        except Violation as error:
            raise Conflict(
                f"there is an officer {officer.name!r} already", hint="choose another name"
            ) from error
        _add_event(transaction, event)

    def officer(self, name: str) -> Officer:
        """The one of that name, else ``NotFound``."""
        rows = self._database.rows(f"{_OFFICERS} WHERE name = ?", name)
        if not rows:
            raise _no_officer(name)
        return _officer(rows[0])

    def officers(self) -> list[Officer]:
        """All of them, by name."""
        return [_officer(row) for row in self._database.rows(f"{_OFFICERS} ORDER BY name")]

    @atomic
    def set_officer_password(
        self, transaction: Transaction, name: str, password_hash: str, event: OfficerEvent | None = None
    ) -> None:
        """Replace the hash."""
        _change(
            transaction, "UPDATE officer SET password_hash = ? WHERE name = ?", password_hash, name, event
        )

    @atomic
    def set_officer_disabled(
        self, transaction: Transaction, name: str, disabled: bool, event: OfficerEvent | None = None
    ) -> None:
        """Turn the officer away, or let them in again."""
        _change(transaction, "UPDATE officer SET disabled = ? WHERE name = ?", disabled, name, event)

    @atomic
    def set_officer_roles(
        self, transaction: Transaction, name: str, roles: Iterable[Role], event: OfficerEvent | None = None
    ) -> None:
        """What they are trusted with from now on."""
        _change(transaction, "UPDATE officer SET roles = ? WHERE name = ?", _roles(roles), name, event)

    def officer_events(self, name: str) -> list[OfficerEvent]:
        """The officer's record, in the order in which it was written."""
        rows = self._database.rows(
            "SELECT officer, at, act, done_by, detail FROM officer_event WHERE officer = ? ORDER BY id", name
        )
        return [OfficerEvent(name, at, act, by, json.loads(detail)) for _, at, act, by, detail in rows]

    # Proposals ------------------------------------------------------------------------------------------

    @atomic
    def add_proposal(self, transaction: Transaction, proposal: Proposal) -> None:
        """It is open; ``Conflict`` if there is one of that id."""
        assert proposal.state is ProposalState.OPEN and proposal.decided_by is None, (
            "a proposal begins undecided"
        )
        try:
            transaction.execute(
                "INSERT INTO proposal (id, act, target, arguments, proposed_by, proposed_at, expires_at, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'open')",
                proposal.id,
                proposal.act.value,
                proposal.target,
                to_json(proposal.arguments),
                proposal.proposed_by,
                proposal.proposed_at,
                proposal.expires_at,
            )
        except Violation as error:
            raise Conflict(f"there is a proposal {proposal.id!r} already") from error

    def proposal(self, id_: str) -> Proposal:
        """The one of that id, else ``NotFound``."""
        return _one(self._database.rows(_ONE_PROPOSAL, id_), id_)

    def proposals(
        self, state: ProposalState | None = None, after: str = "", limit: int = 100, target: str | None = None
    ) -> list[Proposal]:
        """By id, those after the one given."""
        query, values = f"{_PROPOSALS} WHERE id > ?", [after]
        if state is not None:
            query, values = f"{query} AND state = ?", [*values, state.value]
        if target is not None:
            query, values = f"{query} AND target = ?", [*values, target]
        return [
            _proposal(row) for row in self._database.rows(f"{query} ORDER BY id LIMIT {page(limit)}", *values)
        ]

    @atomic
    def decide(
        self,
        transaction: Transaction,
        id_: str,
        state: ProposalState,
        by: str,
        now: str,
        outcome: str | None = None,
    ) -> Proposal:
        """Approve or reject it, once, before it expires, and not as who proposed it (``Denied``)."""
        assert state in (ProposalState.APPROVED, ProposalState.REJECTED), (
            "a person decides one way or the other"
        )
        done = transaction.execute(
            "UPDATE proposal SET state = ?, decided_by = ?, decided_at = ?, outcome = ?"
            " WHERE id = ? AND state = 'open' AND proposed_by <> ? AND expires_at > ?",
            state.value,
            by,
            now,
            outcome,
            id_,
            by,
            now,
        )
        proposal = _one(transaction.rows(_ONE_PROPOSAL, id_), id_)
        if done == 1:
            return proposal
        if proposal.proposed_by == by:
            raise Denied(
                f"officer {by!r} proposed this, and another person must decide it",
                hint="critical acts take two different people; ask a second officer",
            )
        if proposal.state is ProposalState.OPEN:
            raise Conflict(f"proposal {id_} expired at {proposal.expires_at}", hint="propose it anew")
        who = f" by {proposal.decided_by}" if proposal.decided_by else ""
        raise Conflict(f"proposal {id_} is {proposal.state.value}{who}", hint="a proposal is decided once")

    @atomic
    def finish_proposal(self, transaction: Transaction, id_: str, state: ProposalState, outcome: str) -> None:
        """What two people wanted is done, or cannot be; ``Conflict`` where it is not approved, or finished already."""
        assert state in (ProposalState.DONE, ProposalState.FAILED), "what is approved is done or fails"
        end_proposal(transaction, id_, state, outcome)

    def approved_proposals(self) -> list[Proposal]:
        """Wanted by two and not done: what a crash left, to be done again. In the order of approval."""
        rows = self._database.rows(f"{_PROPOSALS} WHERE state = 'approved' ORDER BY decided_at, id")
        return [_proposal(row) for row in rows]

    @atomic
    def expire_proposals(self, transaction: Transaction, now: str) -> int:
        """Close what nobody decided in time; how many those were."""
        return transaction.execute(
            "UPDATE proposal SET state = 'expired' WHERE state = 'open' AND expires_at <= ?", now
        )


_OFFICERS: Final = "SELECT name, display_name, roles, password_hash, disabled, created_at FROM officer"
_PROPOSALS: Final = (
    "SELECT id, act, target, arguments, proposed_by, proposed_at, expires_at, state, decided_by, decided_at, outcome"
    " FROM proposal"
)
_ONE_PROPOSAL: Final = f"{_PROPOSALS} WHERE id = ?"


def _change(
    transaction: Transaction, statement: str, value: Value, name: str, event: OfficerEvent | None
) -> None:
    if transaction.execute(statement, value, name) != 1:
        raise _no_officer(name)
    _add_event(transaction, event)


def _add_event(transaction: Transaction, event: OfficerEvent | None) -> None:
    """With the change that it tells of, or neither."""
    if event is not None:
        transaction.execute(
            "INSERT INTO officer_event (officer, at, act, done_by, detail) VALUES (?, ?, ?, ?, ?)",
            event.officer,
            event.at,
            event.act,
            event.by,
            to_json(event.detail),
        )


def _no_officer(name: str) -> NotFound:
    return NotFound(f"no officer {name!r}", hint="cloud-seal officer list")


def _roles(roles: Iterable[Role]) -> str:
    return " ".join(sorted(role.value for role in roles))


def _officer(row: Row) -> Officer:
    name, display_name, roles, password_hash, disabled, created_at = row
    held = frozenset(Role(role) for role in roles.split())
    return Officer(name, display_name, held, password_hash, bool(disabled), created_at)


def _one(rows: list[Row], id_: str) -> Proposal:
    if not rows:
        raise NotFound(f"no proposal {id_!r}", hint="cloud-seal proposal list")
    return _proposal(rows[0])


def _proposal(row: Row) -> Proposal:
    id_, act, target, arguments, proposed_by, proposed_at, expires_at, state, *decision = row
    return Proposal(
        id_,
        CriticalAct(act),
        target,
        json.loads(arguments),
        proposed_by,
        proposed_at,
        expires_at,
        ProposalState(state),
        *decision,
    )
