"""Operations that only look: statistics for assessment, and the messages to the public security.

For: counts as JSON, page by page, and as CSV, all of them at once.
Not for: the load of the appliance (``metrics``).

Rules:

* CSV is RFC 4180 in UTF-8 with a byte-order mark, as office programs take it, and a cell that such a program would run
  as a formula is made text.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from appliance.api import shapes
from appliance.api.service import Call, Reply
from appliance.errors import BadRequest
from appliance.registry import Registry

PAGE_LEN: Final = 1_000
MAX_EXPORT_ROWS: Final = 200_000
"""An export is made in memory; more rows than that are for the registry's own tools."""
DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 3_700
"""Ten years: records are kept for five after a seal's end."""

_SEAL_COLUMNS: Final = {
    "state": "sealState",
    "kind": "sealKind",
    "region": "sealZone",
    "organisation": "useUnitCode",
}
_USE_COLUMNS: Final = {"seal": "sealId", "account": "account", "day": "day"}


class Figures:
    """Each public method is the operation of that name."""

    def __init__(self, registry: Registry, now: Callable[[], datetime]) -> None:
        self._registry = registry
        self._now = now

    async def list_messages(self, call: Call) -> Reply:
        limit = call.values["limit"]
        now = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        found = await asyncio.to_thread(
            self._registry.messages.messages,
            call.values["undelivered"],
            call.values["after"] or "",
            limit + 1,
        )
        return Reply(shapes.page(found, limit, lambda one: shapes.message(one, now), lambda one: one.id))

    async def count_seals(self, call: Call) -> Reply:
        dimensions = call.values["by"].split(",")
        usage = self._registry.usage

        def rows() -> Iterator[Sequence[Any]]:
            after: tuple[str, ...] = ()
            while found := usage.seals_by(dimensions, after=after, limit=PAGE_LEN):
                for key, count in found:
                    yield *key, count
                after = found[-1][0]
                if len(found) < PAGE_LEN:
                    return

        return await self._answer(call, [*(_SEAL_COLUMNS[one] for one in dimensions), "seals"], rows)

    async def count_uses(self, call: Call) -> Reply:
        by = call.values["by"]
        first, last = (one.isoformat() for one in self._days(call))
        usage = self._registry.usage

        def rows() -> Iterator[Sequence[Any]]:
            after = ""
            while found := usage.uses(by, first, last, after=after, limit=PAGE_LEN):
                yield from found
                after = found[-1][0]
                if len(found) < PAGE_LEN:
                    return

        return await self._answer(call, [_USE_COLUMNS[by], "uses"], rows)

    async def count_filing_delays(self, call: Call) -> Reply:
        first, last = self._days(call)
        from_at, to_at = f"{first}T00:00:00.000+00:00", f"{last + timedelta(days=1)}T00:00:00.000+00:00"
        columns = ["messageKind", "sealZone", "messages", "delivered", "late", "meanMs", "maxMs"]

        def rows() -> Iterator[Sequence[Any]]:
            for one in self._registry.usage.filing_delays(from_at, to_at):
                yield [one.kind.value, *list(asdict(one).values())[1:]]

        return await self._answer(call, columns, rows)

    def _days(self, call: Call) -> tuple[date, date]:
        today = self._now().astimezone(UTC).date()
        last = date.fromisoformat(call.values["to"]) if call.values["to"] else today
        given = call.values["from"]
        first = (
            date.fromisoformat(given) if given else date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS))
        )
        if not 0 <= (last - first).days <= MAX_DAYS:
            raise BadRequest(
                f"from {first} to {last}",
                hint=f"expected from the earlier to the later, at most {MAX_DAYS} days",
            )
        if last == date.max:
            raise BadRequest(f"to {last}: there is no day after it", hint="give an earlier one")
        return first, last

    async def _answer(
        self, call: Call, columns: Sequence[str], rows: Callable[[], Iterator[Sequence[Any]]]
    ) -> Reply:
        found = await asyncio.to_thread(_bounded, rows)
        if call.values["format"] == "json":
            return Reply({"rows": [dict(zip(columns, row, strict=True)) for row in found]})
        headers = {"Content-Disposition": f'attachment; filename="{call.operation.handler}.csv"'}
        return Reply(raw=to_csv(columns, found), media_type="text/csv", headers=headers)


def _bounded(rows: Callable[[], Iterator[Sequence[Any]]]) -> list[Sequence[Any]]:
    found = []
    for row in rows():
        found.append(row)
        if len(found) > MAX_EXPORT_ROWS:
            raise BadRequest(
                f"more than {MAX_EXPORT_ROWS} rows", hint="count by something coarser, or over fewer days"
            )
    return found


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """RFC 4180 in UTF-8 with a byte-order mark."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(one) for one in row] for row in rows)
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
