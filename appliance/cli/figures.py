"""Commands that only look: statistics for assessment, and the messages to the public security.

For: ``cloud-seal statistics …`` (tables, JSON, CSV) and ``cloud-seal outbox …``.
Not for: the load of the appliance (``status``, metrics).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from appliance.cli.session import Run, add_list_options, adder, file_answer, list_answer, session
from appliance.cli.show import Answer, Screen, Table

MESSAGE_COLUMNS: Final = {
    "message": "messageId",
    "kind": "messageKind",
    "seal": "sealId",
    "due": "dueTime",
    "overdue": "overdue",
    "attempts": "attempts",
    "next": "nextAttemptTime",
    "arrived": "deliverTime",
    "receipt": "receipt",
    "last error": "lastError",
}


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``statistics`` and ``outbox`` to the parser."""
    add = adder(
        groups.add_parser("statistics", help="how many seals there are, and how they are used"), parents
    )
    seals = add("seals", _statistics("seals"), "count seals")
    seals.add_argument(
        "--by", default="state", help="state, kind, region, organisation; several with commas; default: state"
    )
    uses = add("uses", _statistics("uses"), "count uses of seals")
    uses.add_argument("--by", choices=("seal", "account", "day"), default="day", help="default: %(default)s")
    filing = add("filing", _statistics("filing-delays"), "show how long filing took, after making")
    for command in (uses, filing):
        command.add_argument(
            "--from", dest="from_day", metavar="DAY", help="YYYY-MM-DD; default: 30 days ago"
        )
        command.add_argument("--to", dest="to_day", metavar="DAY", help="YYYY-MM-DD; default: today")
    for command in (seals, uses, filing):
        command.add_argument("--csv", metavar="FILE", type=Path, help="write them as CSV")
    add = adder(groups.add_parser("outbox", help="messages to the public security"), parents)
    outbox = add("list", _outbox_list, "list messages with the times they are due")
    outbox.add_argument("--delivered", action="store_true", help="also those that have arrived")
    add_list_options(outbox)


def _statistics(name: str) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        query: dict[str, str | int | None] = {
            "by": getattr(args, "by", None),
            "from": getattr(args, "from_day", None),
            "to": getattr(args, "to_day", None),
        }
        with session(args) as api:
            if args.csv is not None:
                raw = api.read("statistics", name, query={**query, "format": "csv"})
                return file_answer(raw, args.csv, "statistics")
            found = api.call("GET", "statistics", name, query=query)
        rows = found["rows"]
        columns = tuple(rows[0]) if rows else ()
        table = Table(columns, [[str(row[one]) for one in columns] for row in rows])
        return Answer(found, [table] if rows else ["none"])

    return run


def _outbox_list(args: argparse.Namespace, screen: Screen) -> Answer:
    query = {"undelivered": "false" if args.delivered else "true", "limit": args.limit}
    with session(args) as api:
        return list_answer("messages", *api.listed("outbox", query=query, every=args.all), MESSAGE_COLUMNS)
