"""What the registry asks of a database, and the little that is the same in each.

For: the contract ``Database``, its errors, and ``atomic``, which makes a method one transaction.
Not for: statements (the parts of the registry write them, once for all databases), anything that only one database has
(``sqlite``, ``postgres``: connections, tables, locks).

Rules:

* Statements are what SQLite and PostgreSQL both read: ``?`` for values, ``ON CONFLICT``, ``RETURNING``, ``TRUE``.
* Text, whole numbers of 64 bits, bytes, truth values and NULL; instants are text, so that both order them alike.
* A transaction's work may run more than once: it changes nothing but the database.

Crash story: what ``Database.run`` returned from is on disk. Where a commit's outcome is not known, ``StateUnknown``
ends the process.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar

from appliance.errors import BadRequest, Conflict

MAX_ROWS: Final = 10_000
"""The longest page of an answer: some megabytes of seals, read in some tens of milliseconds."""
TRIES: Final = 10
"""A transaction that another one's got in the way of is done again so often; each time one of them gets through."""
BUSY_TIMEOUT_S: Final = 5.0
"""How long to wait for somebody else's lock: a backup, an operator's client, another connection of ours."""
READERS: Final = 4
"""Connections that read beside each other: a long statistic must not hold up the look-ups of requests."""

Row = tuple[Any, ...]
Value = str | int | bytes | bool | None
_Result = TypeVar("_Result")
_Given = ParamSpec("_Given")


class Rule(Enum):
    """Which kind of rule of the tables a statement ran into."""

    UNIQUE = "unique"
    """It is there already."""
    REFERENCE = "reference"
    """What it refers to is not there, or what refers to it still is."""
    KEPT = "kept"
    """A record that is kept must not be altered, or not be deleted yet."""
    CHECK = "check"
    """A value that no column takes."""


class Violation(Conflict):
    """The tables' own rules refused a statement. Nothing was done, and the transaction is over."""

    def __init__(self, rule: Rule, text: str) -> None:
        super().__init__(
            f"the registry refuses this: {text}", hint="look at the record's state, and try again"
        )
        self.rule = rule


class Transaction(ABC):
    """What the work of a transaction may do. After a ``Violation`` nothing but leaving."""

    @abstractmethod
    def execute(self, statement: str, *values: Value) -> int:
        """How many rows it changed."""

    @abstractmethod
    def execute_many(self, statement: str, rows: Sequence[Sequence[Value]]) -> int:
        """The same for each row of values; how many rows all of them changed."""

    @abstractmethod
    def rows(self, statement: str, *values: Value) -> list[Row]:
        """What it reads, or returns of what it changed."""


class Database(ABC):
    """Open it, use it from any number of threads, close it."""

    product: ClassVar[str]

    @abstractmethod
    def run(self, work: Callable[[Transaction], _Result]) -> _Result:
        """The work's result, once all it did is durable; or its error, and nothing was done.

        ``Unavailable`` where the database cannot be written now: nothing was done. ``StateUnknown`` where a commit's
        outcome is not known.
        """

    @abstractmethod
    def rows(self, query: str, *values: Value) -> list[Row]:
        """What is committed; ``Unavailable`` where it cannot be read now."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. No call may follow."""


class Part:
    """A part of the registry: some tables, and the acts upon them."""

    def __init__(self, database: Database) -> None:
        self._database = database


_Part = TypeVar("_Part", bound=Part)


def atomic(
    method: Callable[Concatenate[_Part, Transaction, _Given], _Result],
) -> Callable[Concatenate[_Part, _Given], _Result]:
    """The method's body as the work of one transaction, which it gets as its first argument."""

    def run(self: _Part, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return self._database.run(lambda transaction: method(self, transaction, *args, **kwargs))

    functools.update_wrapper(run, method)
    return run


def check_values(values: Sequence[Value]) -> None:
    """``BadRequest`` for what some database does not take, so that all refuse the same."""
    for value in values:
        if isinstance(value, str):
            if "\0" in value or not _is_unicode(value):
                raise BadRequest("text with a NUL or half a character in it", hint="send plain Unicode text")
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise BadRequest(
                f"a number of {value.bit_length()} bits", hint="whole numbers have at most 63 bits"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def page(limit: int) -> int:
    """A limit that a caller gave, as what is read; ``BadRequest`` outside 1 to ``MAX_ROWS``."""
    if not 1 <= limit <= MAX_ROWS:
        raise BadRequest(f"a page of {limit} entries", hint=f"ask for 1 to {MAX_ROWS:,} at a time")
    return limit


def containing(text: str) -> str:
    """The pattern for ``LIKE … ESCAPE '!'`` that finds the text anywhere."""
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return f"%{text}%"
