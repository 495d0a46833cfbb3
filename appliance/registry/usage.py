"""What seals were used for, how much of it was allowed, and the statistics that assessment asks for.

Uses are counted by seal, account and day, and besides by account and day alone, in the same transaction: a year of a
whole region is then a few thousand rows, not millions. Seals are counted in their indexes: a million of them takes some
tens of milliseconds, beside everything else, and no counter can drift from what it counts, nor hold up acts that would
have to change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance.errors import BadRequest
from appliance.lifecycle import Kind, State
from appliance.registry.database import Part, Transaction, Violation, atomic, page
from appliance.registry.messages import FilingDelay, Messages

DIMENSIONS: Final = ("organisation", "region", "kind", "state")
"""By which seals are counted."""
DAY_LEN: Final = len("2026-01-01")
"""How much of an instant is its day."""


@dataclass(frozen=True, slots=True)
class Use:
    """How often a seal was used by an account on a day (``YYYY-MM-DD``), and when last."""

    seal_id: str
    account: str
    day: str
    count: int
    last_used_at: str


class Usage(Part):
    """The registry's counts."""

    @atomic
    def add(self, transaction: Transaction, rows: Sequence[Use | tuple[str, str, str, int, str]]) -> None:
        """Add to what is counted, and note when each seal was last used."""
        uses = [row if isinstance(row, Use) else Use(*row) for row in rows]
        by_seal: dict[tuple[str, str, str], int] = {}
        by_day: dict[tuple[str, str], int] = {}
        last: dict[str, str] = {}
        for use in uses:
            seal_key, day_key = (use.seal_id, use.day, use.account), (use.day, use.account)
            by_seal[seal_key] = by_seal.get(seal_key, 0) + use.count
            by_day[day_key] = by_day.get(day_key, 0) + use.count
            last[use.seal_id] = max(last.get(use.seal_id, ""), use.last_used_at)
        # Sorted, as everywhere: two that add at once take the rows in the same order, and neither waits for ever.
        transaction.execute_many(
            # `idle_from` is indexed, so it changes once a day only: it says when a seal may be idle, not that it is.
            # Where it is empty, the seal is not active any more, and nothing is to happen to it.
            "UPDATE seal SET last_used_at = ?, idle_from = CASE WHEN idle_from < ? THEN ? ELSE idle_from END"
            " WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)",
            [(at, at[:DAY_LEN], at, seal_id, at) for seal_id, at in sorted(last.items())],
        )
        try:
            transaction.execute_many(
                "INSERT INTO use_of_seal (seal_id, day, account, uses) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (seal_id, day, account) DO UPDATE SET uses = use_of_seal.uses + excluded.uses",
                [(*key, count) for key, count in sorted(by_seal.items())],
            )
        except Violation as error:
            raise BadRequest(
                "a use of a seal that there is not", hint="seals are never deleted while in use"
            ) from error
        transaction.execute_many(
            "INSERT INTO use_of_day (day, account, uses) VALUES (?, ?, ?)"
            " ON CONFLICT (day, account) DO UPDATE SET uses = use_of_day.uses + excluded.uses",
            [(*key, count) for key, count in sorted(by_day.items())],
        )

    @atomic
    def reserve(
        self, transaction: Transaction, seal_id: str, account: str, day: str, want: int, limit: int
    ) -> int:
        """How many of ``want`` seal signatures the day's limit still allows (0: no limit); they are taken at once.

        Durable before the first is made: a crash loses some of the day's allowance and never grants it twice.
        """
        rows = transaction.rows(  # an update of nothing: it takes the row's lock, so what is read holds
            "INSERT INTO reservation (seal_id, account, day, reserved) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (seal_id, account, day) DO UPDATE SET reserved = reservation.reserved RETURNING reserved",
            seal_id,
            account,
            day,
        )
        granted = want if not limit else max(0, min(want, limit - int(rows[0][0])))
        if granted:
            transaction.execute(
                "UPDATE reservation SET reserved = reserved + ? WHERE seal_id = ? AND account = ? AND day = ?",
                granted,
                seal_id,
                account,
                day,
            )
        return granted

    @atomic
    def give_back(self, transaction: Transaction, seal_id: str, account: str, day: str, count: int) -> None:
        """What was reserved and is known not to have been signed."""
        transaction.execute(
            "UPDATE reservation SET reserved = reserved - ?"
            " WHERE seal_id = ? AND account = ? AND day = ? AND reserved >= ?",
            count,
            seal_id,
            account,
            day,
            count,
        )

    @atomic
    def drop_reservations(self, transaction: Transaction, before_day: str) -> int:
        """Reservations of days that are over; how many."""
        return transaction.execute("DELETE FROM reservation WHERE day < ?", before_day)

    # Statistics -----------------------------------------------------------------------------------------

    def seals_by(
        self,
        dimensions: Sequence[str],
        *,
        organisation: str | None = None,
        region: str | None = None,
        kind: Kind | None = None,
        state: State | None = None,
        after: Sequence[str] = (),
        limit: int = 1_000,
    ) -> list[tuple[tuple[str, ...], int]]:
        """How many seals there are for each combination, in the combinations' order, those after the one given."""
        if (
            not dimensions
            or len(set(dimensions)) != len(dimensions)
            or not set(dimensions) <= set(DIMENSIONS)
        ):
            raise BadRequest(
                f"dimensions {list(dimensions)}", hint=f"some of {', '.join(DIMENSIONS)}, each once"
            )
        if after and len(after) != len(dimensions):
            raise BadRequest(
                "an end of the last page with other dimensions", hint="give as many values as dimensions"
            )
        columns = ", ".join(dimensions)
        conditions, values = [], list[str]()
        for column, wanted in (
            ("organisation", organisation),
            ("region", region),
            ("kind", kind.value if kind else None),
            ("state", state.value if state else None),
        ):
            if wanted is not None:
                conditions.append(f"{column} = ?")
                values.append(wanted)
        if after:
            conditions.append(f"({columns}) > ({', '.join('?' * len(after))})")
            values.extend(after)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._database.rows(
            f"SELECT {columns}, count(*) FROM seal{where} GROUP BY {columns} ORDER BY {columns}"
            f" LIMIT {page(limit)}",
            *values,
        )
        return [(row[:-1], int(row[-1])) for row in rows]

    def uses(
        self,
        by: str,
        from_day: str,
        to_day: str,
        *,
        seal_id: str | None = None,
        account: str | None = None,
        after: str = "",
        limit: int = 1_000,
    ) -> list[tuple[str, int]]:
        """Seal signatures from the one day to the other, both included, by ``seal``, ``account`` or ``day``."""
        column = {"seal": "seal_id", "account": "account", "day": "day"}.get(by)
        if column is None:
            raise BadRequest(f"uses by {by!r}", hint="by seal, account or day")
        table = "use_of_seal" if by == "seal" or seal_id is not None else "use_of_day"
        conditions, values = [f"{column} > ?", "day >= ?", "day <= ?"], [after, from_day, to_day]
        for name, wanted in (("seal_id", seal_id), ("account", account)):
            if wanted is not None:
                conditions.append(f"{name} = ?")
                values.append(wanted)
        rows = self._database.rows(
            f"SELECT {column}, sum(uses) FROM {table} WHERE {' AND '.join(conditions)}"
            f" GROUP BY {column} ORDER BY {column} LIMIT {page(limit)}",
            *values,
        )
        return [(key, int(total)) for key, total in rows]

    def filing_delays(self, from_at: str, to_at: str) -> list[FilingDelay]:
        """See ``Messages.filing_delays``."""
        return Messages(self._database).filing_delays(from_at, to_at)
