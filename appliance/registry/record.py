"""What acts of several parts write within their own transaction: events, messages, the ends of proposals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.errors import Conflict, NotFound
from appliance.lifecycle import Event, Message, ProposalState, State
from appliance.registry.database import Row, Transaction


def to_json(value: Mapping[str, Any]) -> str:
    """Text that both databases take: JSON escapes the NUL that they do not."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def add_event(transaction: Transaction, event: Event) -> None:
    """Append a line to the seal's record."""
    transaction.execute(
        "INSERT INTO event (seal_id, at, act, source, target, officer, approver, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        event.seal_id,
        event.at,
        event.act,
        event.source.value if event.source else None,
        event.target.value,
        event.officer,
        event.approver,
        to_json(event.detail),
    )


EVENT_COLUMNS = "seal_id, at, act, source, target, officer, approver, detail"


def read_event(row: Row) -> Event:
    """A row of ``EVENT_COLUMNS``."""
    seal_id, at, act, source, target, officer, approver, detail = row
    before = State(source) if source else None
    return Event(seal_id, at, act, before, State(target), officer, approver, json.loads(detail))


def add_messages(transaction: Transaction, messages: Iterable[Message]) -> None:
    """Put them into the outbox."""
    for one in messages:
        found = transaction.rows("SELECT region FROM seal WHERE id = ?", one.seal_id)
        if not found:
            raise NotFound(f"no seal {one.seal_id!r}", hint="cloud-seal seal list")
        transaction.execute(
            "INSERT INTO message (id, kind, seal_id, region, body, created_at, due_at, attempts, next_attempt_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            one.id,
            one.kind.value,
            one.seal_id,
            found[0][0],
            to_json(one.body),
            one.created_at,
            one.due_at,
            one.attempts,
            one.next_attempt_at,
        )


def end_proposal(transaction: Transaction, id_: str, state: ProposalState, outcome: str) -> None:
    """What two people wanted is done, or has failed; ``Conflict`` where it is not what two people want now."""
    done = transaction.execute(
        "UPDATE proposal SET state = ?, outcome = ? WHERE id = ? AND state = 'approved'",
        state.value,
        outcome,
        id_,
    )
    if done != 1:
        raise Conflict(
            f"proposal {id_!r} is not waiting to be done",
            hint="it is done once, after a second person's approval",
        )
