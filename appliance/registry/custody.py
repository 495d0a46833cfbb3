"""Protection passwords of seals: their hashes, the failures, the locks.

A rotation names the hash it replaces: of two at once, one holds. A reset counts a generation, so that what was unlocked
under the old password is void everywhere.
"""

from __future__ import annotations

from typing import Final

from appliance.errors import Conflict, NotFound
from appliance.lifecycle import Event, Message, ProposalState, ProtectionPassword
from appliance.registry.database import Part, Row, Transaction, atomic, page
from appliance.registry.record import add_event, add_messages, end_proposal


class Custody(Part):
    """The registry's protection passwords. A seal's first one comes with its activation (``SealRecords.advance``)."""

    def password(self, seal_id: str) -> ProtectionPassword | None:
        """As it stands; ``None`` before the seal's activation."""
        rows = self._database.rows(f"{_SELECT} WHERE seal_id = ?", seal_id)
        return _password(rows[0]) if rows else None

    @atomic
    def rotate(
        self,
        transaction: Transaction,
        seal_id: str,
        old_hash: str,
        new_hash: str,
        by: str,
        at: str,
        event: Event | None = None,
    ) -> ProtectionPassword:
        """A new one for the old one, which must still hold and must not be locked; what is unlocked stays so."""
        rows = transaction.rows(
            "UPDATE protection SET password_hash = ?, set_by = ?, set_at = ?, failures = 0"
            f" WHERE seal_id = ? AND password_hash = ? AND locked = FALSE RETURNING {_COLUMNS}",
            new_hash,
            by,
            at,
            seal_id,
            old_hash,
        )
        if not rows:
            raise Conflict(
                f"the protection password of seal {seal_id} was changed or locked meanwhile",
                hint="try again with the password that holds now; a locked one has to be reset",
            )
        if event is not None:
            add_event(transaction, event)
        return _password(rows[0])

    @atomic
    def reset(
        self,
        transaction: Transaction,
        seal_id: str,
        new_hash: str,
        by: str,
        at: str,
        event: Event | None = None,
        messages: tuple[Message, ...] = (),
        proposal_done: tuple[str, str] | None = None,
    ) -> ProtectionPassword:
        """A new one without the old one: unlocks are void, failures and lock are gone."""
        rows = transaction.rows(
            "UPDATE protection SET password_hash = ?, set_by = ?, set_at = ?, failures = 0, locked = FALSE,"
            f" generation = generation + 1 WHERE seal_id = ? RETURNING {_COLUMNS}",
            new_hash,
            by,
            at,
            seal_id,
        )
        if not rows:
            raise _no_password(seal_id)
        if event is not None:
            add_event(transaction, event)
        add_messages(transaction, messages)
        if proposal_done is not None:
            id_, outcome = proposal_done
            end_proposal(transaction, id_, ProposalState.DONE, outcome)
        return _password(rows[0])

    @atomic
    def note_failure(self, transaction: Transaction, seal_id: str, lock_after: int) -> ProtectionPassword:
        """Count one; from ``lock_after`` on the password is locked."""
        rows = transaction.rows(
            "UPDATE protection SET failures = failures + 1, locked = (locked = TRUE OR failures + 1 >= ?)"
            f" WHERE seal_id = ? RETURNING {_COLUMNS}",
            lock_after,
            seal_id,
        )
        if not rows:
            raise _no_password(seal_id)
        return _password(rows[0])

    @atomic
    def clear_failures(self, transaction: Transaction, seal_id: str) -> None:
        """The right one was given; a lock stays."""
        transaction.execute(
            "UPDATE protection SET failures = 0 WHERE seal_id = ? AND failures > 0 AND locked = FALSE",
            seal_id,
        )

    def passwords_older_than(self, at: str, limit: int = 100) -> list[ProtectionPassword]:
        """Set before then and still in use, the oldest first."""
        rows = self._database.rows(
            f"{_SELECT} WHERE set_at < ? AND EXISTS (SELECT 1 FROM seal WHERE id = seal_id"
            f" AND state IN ('active', 'suspended', 'dormant')) ORDER BY set_at LIMIT {page(limit)}",
            at,
        )
        return [_password(row) for row in rows]


_COLUMNS: Final = "seal_id, password_hash, set_by, set_at, failures, locked, generation"
_SELECT: Final = f"SELECT {_COLUMNS} FROM protection"


def _no_password(seal_id: str) -> NotFound:
    return NotFound(
        f"seal {seal_id!r} has no protection password",
        hint="its custodian sets the first one at its activation",
    )


def _password(row: Row) -> ProtectionPassword:
    seal_id, password_hash, set_by, set_at, failures, locked, generation = row
    return ProtectionPassword(seal_id, password_hash, set_by, set_at, failures, bool(locked), generation)
