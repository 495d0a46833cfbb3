"""Where every act on a seal ends: one transaction, then every front is told.

For: reading a seal, writing what became of it, and the rules that all acts share.
Not for: what an act is (``acts``, ``making``, ``ending``, ``proposals``, ``sweeper``).

Rules:

* ``lifecycle.TRANSITIONS`` decides; no act looks at a state by itself.
* An act is one transaction of the registry's: the seal's new state, its event, messages, documents and what became of
  a proposal, or nothing. It is guarded by the seal's version there. No lock is held here: the registry is the one
  place where two acts on a seal meet, whichever task, front or appliance they come from, and the loser is told
  ``conflict`` and has changed nothing.
* Every front is told before the act is answered, also when whoever asked has gone meanwhile.

Crash story: before the commit nothing was; after it, all fronts end with the leader and read anew. There is nothing to
repair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, ParamSpec, TypeVar

from appliance.errors import ApplianceError, BadRequest, Conflict, Denied, StateUnknown
from appliance.lifecycle import Act, Event, Officer, Seal, Transition, check_role, transition
from appliance.registry import Registry, Step

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_TEXT_LEN: Final = 500
"""Characters of a reason or a note: a person wrote it, and it is printed on a certificate."""
ID_LEN: Final = 16
"""Random bytes of an id, in hex. A seal's is not its code, which it only gets when it is made."""

Announce = Callable[[str, str], Awaitable[None]]


def instant(moment: datetime) -> str:
    """As the registry keeps it: ISO 8601 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def moment_of(text: str) -> datetime:
    """The inverse."""
    return datetime.fromisoformat(text)


def printable(text: str, what: str, low: int, high: int) -> str:
    """The text stripped, else ``BadRequest``: what people write stands on certificates and in logs."""
    text = text.strip()
    if not low <= len(text) <= high or not text.isprintable():
        raise BadRequest(f"{what}: {len(text)} characters", hint=f"expected {low} to {high} printable ones")
    return text


class Desk:
    """Where every act on a seal ends; shared by all parts of the office. Owned by the event loop."""

    def __init__(
        self,
        registry: Registry,
        announce: Announce,
        now: Callable[[], datetime],
        new_id: Callable[[int], bytes],
        give_up: Callable[[StateUnknown], None] = lambda error: None,
    ) -> None:
        self.registry = registry
        self.now = now
        self._announce = announce
        self._new_id = new_id
        self._give_up = give_up
        self.on_message: Callable[[], None] | None = None
        """Called after each act: it may have left a message to be sent."""
        self._finishing: set[asyncio.Task[Any]] = set()  # the loop keeps only weak references

    async def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """A call of the registry's, in a thread.

        Where it ends in ``StateUnknown`` the process ends, and not only the task: perhaps nobody waits for it any more.
        """
        try:
            return await asyncio.to_thread(function, *arguments, **named)
        except StateUnknown as error:
            self._give_up(error)
            raise

    async def seal(self, seal_id: str) -> Seal:
        """As it is now, else ``NotFound``."""
        return await self.call(self.registry.seals.seal, seal_id)

    def new_id(self) -> str:
        """Of a seal, a proposal or a message: random, in hex."""
        return self._new_id(ID_LEN).hex()

    def instant(self) -> str:
        """Now."""
        return instant(self.now())

    def step(
        self,
        seal: Seal,
        row: Transition,
        officer: str,
        *,
        approver: str | None = None,
        changes: Mapping[str, Any] | None = None,
        detail: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Step:
        """The step of the registry's that does what the row says, with its event."""
        event = Event(
            seal.id,
            self.instant(),
            row.act.value,
            seal.state,
            row.target,
            officer,
            approver,
            dict(detail or {}),
        )
        return Step(seal.id, seal.version, seal.state, row.target, dict(changes or {}), event, **more)

    def event(
        self,
        seal: Seal,
        act: str,
        officer: str,
        *,
        approver: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Event:
        """For what is done to a seal and leaves it in its state."""
        return Event(
            seal.id, self.instant(), act, seal.state, seal.state, officer, approver, dict(detail or {})
        )

    async def advance(self, step: Step, *more: Step) -> Seal:
        """All of them in one transaction, then every front is told; the seal of the first one.

        ``Conflict`` where one of the seals has changed meanwhile, and then nothing has happened.
        """
        ids = [one.seal_id for one in (step, *more)]
        return await self.finish(self.told(ids, self.registry.seals.advance, step, *more))

    async def told(
        self,
        seal_ids: Sequence[str],
        function: Callable[P, T],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> T:
        """What the registry did, once every front knows of it. Call it through ``finish``."""
        result = await self.call(function, *arguments, **named)
        # Durable from here on. A crash now ends every front, and each reads what is there as it starts.
        for seal_id in seal_ids:
            await self._announce("seal", seal_id)
        if self.on_message is not None:
            self.on_message()
        return result

    async def finish(self, work: Awaitable[T]) -> T:
        """Have it done to its end, also when whoever asked has gone: what is written must also be told."""

        async def whole() -> T:
            return await work

        task = asyncio.ensure_future(whole())
        self._finishing.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._finishing.discard(task)
        error = None if task.cancelled() else task.exception()  # perhaps nobody waits for it any more
        if error is not None and not isinstance(error, ApplianceError):
            log.error("an act ended in %r", error)

    async def settle(self) -> None:
        """Before the registry is closed: what is under way ends."""
        while self._finishing:
            await asyncio.wait(self._finishing)


def permitted(seal: Seal | None, act: Act, officer: Officer) -> Transition:
    """The row by which this officer may do it alone; ``Denied`` or ``Conflict`` tells why not."""
    row = transition(seal.state if seal is not None else None, act)
    if row.two_people:
        raise Denied(f"{act.value} takes two people", hint="propose it, and have another officer approve it")
    check_role(row, officer.roles, officer.name)
    return row


def by_itself(seal: Seal, act: Act) -> Transition:
    """The row by which it comes about without a person, else ``Conflict``."""
    row = transition(seal.state, act)
    if not row.by_system:
        raise Conflict(f"{act.value} takes a person", hint="have an officer with the role for it do it")
    return row


def check_within_validity(seal: Seal, now: datetime) -> None:
    """``Conflict`` where the seal's time is over, though nobody has noted it yet."""
    if seal.valid_to is not None and moment_of(seal.valid_to) <= now:
        raise Conflict(f"the seal's validity ended at {seal.valid_to}", hint="apply for one that replaces it")
