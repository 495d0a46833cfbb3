"""What a command shows: tables for people, lines for pipes, JSON for programs, and progress for whoever waits.

For: the one place where a command's answer becomes text.
Not for: deciding anything; commands return an ``Answer`` and know no terminal.

Rules:

* Standard output carries the answer and nothing else; whatever accompanies it goes to standard error.
* With ``--json`` the answer is one JSON document, and an error is one JSON line on standard error.
* Without a terminal a table is its header and its rows, tab-separated: made for ``cut`` and ``awk``.
* Names and messages come from elsewhere: control characters never reach a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table as RichTable
from rich.text import Text

from appliance.errors import ApplianceError

PLAIN_STEPS: Final = 10
"""Without a terminal progress is a line for each tenth: a log wants to know it goes on, not how smoothly."""
PLAIN_INTERVAL_S: Final = 30.0
"""… or a line so often, where nobody knows the total."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under columns; a column whose name ends in ``>`` is a number and leans right.

    Without columns the rows are names and values under a title.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""


def fields(title: str, rows: Sequence[Sequence[str]]) -> Table:
    """Names and values."""
    return Table((), rows, title)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out: ``document`` for programs, ``parts`` (lines and tables) for people."""

    document: Mapping[str, Any] | None
    parts: Sequence[str | Table] = ()
    exit_code: int = 0


def printable(text: str) -> str:
    """The text without anything that could move a cursor or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class Screen:
    """Standard output and standard error of one command."""

    def __init__(self, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr

    def answer(self, answer: Answer) -> None:
        """Show what the command found out."""
        if self.as_json:
            indent = 2 if self._out.isatty() else None
            print(json.dumps(answer.document, ensure_ascii=False, indent=indent), file=self._out)
        else:
            self.show(answer)

    def show(self, answer: Answer) -> None:
        """The same for people only: a step on the way to another answer."""
        if self.as_json:
            return
        for part in answer.parts:
            if isinstance(part, str):
                # A text of several lines (a PEM block) is ours; each line is checked by itself.
                print("\n".join(map(printable, part.split("\n"))), file=self._out)
            elif self._out.isatty():
                self._draw(part)
            else:
                header = [[column.rstrip(">") for column in part.columns]] if part.columns else []
                for row in (*header, *part.rows):
                    print("\t".join(map(printable, row)), file=self._out)
        self._out.flush()  # standard error is not buffered: keep the two in step where they share a place

    def _draw(self, table: Table) -> None:
        title = Text(table.title, style="bold") if table.title else None
        drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.show_header = bool(table.columns)
        for column in table.columns or ("", ""):
            drawn.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left")
        for row in table.rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))  # Text: brackets in a name are no mark-up
        Console(file=self._out).print(drawn)

    def note(self, text: str) -> None:
        """A line for whoever watches; programs do not get it."""
        if not self.as_json:
            print(printable(text), file=self._err, flush=True)

    def heading(self, text: str) -> None:
        """A line that begins something new."""
        if not self.as_json:
            Console(file=self._err, highlight=False).print(Text(f"\n{printable(text)}", style="bold"))

    def error(self, error: ApplianceError) -> None:
        """What happened, and what to do next."""
        if self.as_json:
            document = {
                "error": getattr(error, "label", "error"),
                "detail": error.detail,
                "hint": error.hint,
                "retry_after_ms": error.retry_after_ms,
            }
            print(json.dumps(document, ensure_ascii=False), file=self._err)
            return
        print(f"error: {printable(error.detail)}", file=self._err)
        if error.hint:
            print(f"  try: {printable(error.hint)}", file=self._err)
        if error.retry_after_ms:
            print(f"  retry after {error.retry_after_ms / 1000:g} s", file=self._err)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Shows how far something is; call what it yields with the number of items done so far."""
        if self.as_json:
            yield lambda done: None
        elif self._err.isatty():
            with RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._err),
            ) as bar:
                task = bar.add_task(what, total=total)
                yield lambda done: bar.update(task, completed=done)
        else:
            yield _PlainProgress(what, total, self.note, monotonic)


class _Rate(ProgressColumn):
    """Items a second, over the last while."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class _PlainProgress:
    """A line now and then, where there is no terminal to draw on."""

    def __init__(
        self, what: str, total: int | None, note: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._what = what
        self._total = total
        self._note = note
        self._clock = clock
        self._started_at = self._told_at = clock()
        self._first: int | None = None  # where a resumed job began: its rate is that of this run
        self._step = 0

    def __call__(self, done: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first = done
        if self._total:
            step = done * PLAIN_STEPS // self._total
            if step == self._step:
                return
            self._step = step
        elif now - self._told_at < PLAIN_INTERVAL_S:
            return
        self._told_at = now
        elapsed_s = now - self._started_at
        rate = (done - self._first) / elapsed_s if elapsed_s > 0 else 0.0
        total = f" of {self._total:,}" if self._total else ""
        left = f", {(self._total - done) / rate:.0f} s left" if self._total and rate else ""
        self._note(f"{self._what}: {done:,}{total}, {rate:,.0f}/s{left}")
