"""The outbox: what the public security is told, until it has said that it knows.

A message is written with the act that it reports, and leaves the outbox only by its receipt. A crash between the
delivery and its note sends it again, under the same id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from appliance.errors import Conflict, NotFound
from appliance.lifecycle import Message, MessageKind
from appliance.registry.database import Part, Row, Transaction, atomic, page


@dataclass(frozen=True, slots=True)
class FilingDelay:
    """How fast what was written in some time reached the receiver. ``mean_ms`` and ``max_ms`` are of the delivered."""

    kind: MessageKind
    region: str
    messages: int
    delivered: int
    late: int
    mean_ms: int
    max_ms: int


class Messages(Part):
    """The registry's outbox."""

    def message(self, id_: str) -> Message:
        """The one of that id, else ``NotFound``."""
        rows = self._database.rows(f"{_SELECT} WHERE id = ?", id_)
        if not rows:
            raise NotFound(f"no message {id_!r}", hint="cloud-seal outbox list")
        return _message(rows[0])

    def due(self, now: str, limit: int = 100) -> list[Message]:
        """Undelivered ones whose next attempt is due, in that order."""
        rows = self._database.rows(
            f"{_SELECT} WHERE delivered_at IS NULL AND next_attempt_at <= ?"
            f" ORDER BY next_attempt_at, id LIMIT {page(limit)}",
            now,
        )
        return [_message(row) for row in rows]

    @atomic
    def delivered(self, transaction: Transaction, id_: str, receipt: str, at: str) -> None:
        """The receiver has it, and called it so; ``Conflict`` where it is known already."""
        rows = transaction.rows("SELECT created_at FROM message WHERE id = ? AND delivered_at IS NULL", id_)
        if not rows:
            raise Conflict(f"message {id_!r} is not waiting to be delivered")
        delay = datetime.fromisoformat(at) - datetime.fromisoformat(rows[0][0])
        done = transaction.execute(
            "UPDATE message SET delivered_at = ?, receipt = ?, attempts = attempts + 1, last_error = NULL, delay_ms = ?"
            " WHERE id = ? AND delivered_at IS NULL",
            at,
            receipt,
            delay // timedelta(milliseconds=1),
            id_,
        )
        if done != 1:
            raise Conflict(f"message {id_!r} was delivered meanwhile")

    @atomic
    def failed(self, transaction: Transaction, id_: str, error: str, next_attempt_at: str) -> None:
        """It did not arrive; try again then. ``Conflict`` where it has arrived."""
        done = transaction.execute(
            "UPDATE message SET attempts = attempts + 1, last_error = ?, next_attempt_at = ?"
            " WHERE id = ? AND delivered_at IS NULL",
            error,
            next_attempt_at,
            id_,
        )
        if done != 1:
            raise Conflict(f"message {id_!r} is not waiting to be delivered")

    def messages(
        self, undelivered_only: bool = False, after: str = "", limit: int = 100, seal_id: str | None = None
    ) -> list[Message]:
        """By id, those after the one given."""
        query, values = f"{_SELECT} WHERE id > ?", [after]
        if undelivered_only:
            query += " AND delivered_at IS NULL"
        if seal_id is not None:
            query, values = f"{query} AND seal_id = ?", [*values, seal_id]
        return [
            _message(row) for row in self._database.rows(f"{query} ORDER BY id LIMIT {page(limit)}", *values)
        ]

    def overdue_count(self, now: str) -> int:
        """How many should have arrived by now and have not."""
        rows = self._database.rows(
            "SELECT count(*) FROM message WHERE delivered_at IS NULL AND due_at < ?", now
        )
        return int(rows[0][0])

    def filing_delays(self, from_at: str, to_at: str) -> list[FilingDelay]:
        """Of what was written from then to before then, by kind and region."""
        rows = self._database.rows(
            "SELECT kind, region, count(*), count(delivered_at),"
            " sum(CASE WHEN delivered_at > due_at THEN 1 ELSE 0 END),"
            " coalesce(sum(delay_ms), 0), coalesce(max(delay_ms), 0)"
            " FROM message WHERE created_at >= ? AND created_at < ? GROUP BY kind, region ORDER BY kind, region",
            from_at,
            to_at,
        )
        return [
            FilingDelay(
                MessageKind(kind),
                region,
                count,
                delivered,
                int(late),
                int(total) // delivered if delivered else 0,
                int(most),
            )
            for kind, region, count, delivered, late, total, most in rows
        ]


_SELECT: Final = (
    "SELECT id, kind, seal_id, body, created_at, due_at, attempts, next_attempt_at, last_error, delivered_at, receipt"
    " FROM message"
)


def _message(row: Row) -> Message:
    id_, kind, seal_id, body, *rest = row
    return Message(id_, MessageKind(kind), seal_id, json.loads(body), *rest)
