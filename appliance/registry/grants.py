"""Which account may do what with which seal."""

from __future__ import annotations

import json
from typing import Final

from appliance.errors import NotFound
from appliance.lifecycle import Event, Operation, ProposalState, SealGrant
from appliance.registry.database import Part, Row, Transaction, Violation, atomic, page
from appliance.registry.record import add_event, end_proposal


class Grants(Part):
    """The registry's grants on seals."""

    @atomic
    def put(
        self,
        transaction: Transaction,
        grant: SealGrant,
        event: Event | None = None,
        proposal_done: tuple[str, str] | None = None,
    ) -> None:
        """What the account may do with the seal from now on, in place of what it might before."""
        columns = _COLUMNS.split(", ")
        try:
            transaction.execute(
                f"INSERT INTO seal_grant ({_COLUMNS}) VALUES ({', '.join('?' * len(columns))})"
                " ON CONFLICT (account, seal_id) DO UPDATE SET "
                + ", ".join(f"{column} = excluded.{column}" for column in columns[2:]),
                grant.account,
                grant.seal_id,
                " ".join(sorted(one.value for one in grant.operations)),
                grant.daily_limit,
                grant.minute_limit,
                grant.valid_from,
                grant.valid_to,
                json.dumps(grant.sources),
                grant.approval_pattern,
                grant.created_at,
            )
        except Violation as error:
            raise NotFound(
                f"no account {grant.account!r} or no seal {grant.seal_id!r}", hint="check both names"
            ) from error
        _write(transaction, event, proposal_done)

    @atomic
    def remove(
        self,
        transaction: Transaction,
        account: str,
        seal_id: str,
        event: Event | None = None,
        proposal_done: tuple[str, str] | None = None,
    ) -> None:
        """Take it back, else ``NotFound``."""
        done = transaction.execute(
            "DELETE FROM seal_grant WHERE account = ? AND seal_id = ?", account, seal_id
        )
        if done != 1:
            raise NotFound(
                f"account {account!r} has no grant on seal {seal_id!r}", hint="cloud-seal grant list"
            )
        _write(transaction, event, proposal_done)

    def grant(self, account: str, seal_id: str) -> SealGrant | None:
        """What it may do with that seal, if anything."""
        rows = self._database.rows(f"{_SELECT} WHERE account = ? AND seal_id = ?", account, seal_id)
        return _grant(rows[0]) if rows else None

    def of_account(self, account: str, after: str = "", limit: int = 100) -> list[SealGrant]:
        """By seal's id, those after the one given."""
        rows = self._database.rows(
            f"{_SELECT} WHERE account = ? AND seal_id > ? ORDER BY seal_id LIMIT {page(limit)}",
            account,
            after,
        )
        return [_grant(row) for row in rows]

    def of_seal(self, seal_id: str) -> list[SealGrant]:
        """By account's name; as many as there are accounts at the most."""
        rows = self._database.rows(f"{_SELECT} WHERE seal_id = ? ORDER BY account", seal_id)
        return [_grant(row) for row in rows]


_COLUMNS: Final = (
    "account, seal_id, operations, daily_limit, minute_limit, valid_from, valid_to, sources, approval_pattern,"
    " created_at"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM seal_grant"


def _write(transaction: Transaction, event: Event | None, proposal_done: tuple[str, str] | None) -> None:
    if event is not None:
        add_event(transaction, event)
    if proposal_done is not None:
        id_, outcome = proposal_done
        end_proposal(transaction, id_, ProposalState.DONE, outcome)


def _grant(row: Row) -> SealGrant:
    account, seal_id, operations, daily, minute, valid_from, valid_to, sources, pattern, created_at = row
    return SealGrant(
        account,
        seal_id,
        frozenset(Operation(one) for one in operations.split()),
        daily,
        minute,
        valid_from,
        valid_to,
        tuple(json.loads(sources)),
        pattern,
        created_at,
    )
