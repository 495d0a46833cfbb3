"""What time does by itself: seals expire, fall asleep, are not collected; proposals expire; what was approved is done.

For: looking, at the start and every ``seals.sweep_s``, and doing it by the table's rows for the system.
Not for: stopping a seal at the second of its end. Its validity does that, in every request; this only writes it down.

Rules:

* In batches, so many a sweep: a registry of a million seals does not hold up the rest. What is left comes next time.
* Each seal by itself and by its version: one that somebody changed meanwhile is left alone and looked at again. Where a
  token is away, what needs it waits, and the other things are done all the same.
* Doing it twice is doing it once.

Crash story: each seal is a transaction; the next start goes on where this one ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from appliance.errors import ApplianceError, Unavailable
from appliance.lifecycle import COLLECT_WITHIN, DORMANT_AFTER, SYSTEM, Act, Reason, Seal
from appliance.office.desk import Desk, by_itself, instant
from appliance.office.ending import Ending
from appliance.office.proposals import Proposals

log = logging.getLogger(__name__)

BATCH: Final = 200
"""Seals read at once."""
KEEP_RESERVATIONS: Final = timedelta(days=2)
"""A day is over by then, wherever its front's clock stands."""
MAX_A_SWEEP: Final = 10_000
"""Of each sort: at a minute a sweep that is more than a city's seals in a day."""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many of each."""

    expired: int
    asleep: int
    abandoned: int
    proposals_expired: int
    proposals_done: int


class Sweeper:
    """Owned by the event loop."""

    def __init__(self, desk: Desk, ending: Ending, proposals: Proposals, sweep_s: float) -> None:
        self._desk = desk
        self._seals = desk.registry.seals
        self._ending = ending
        self._proposals = proposals
        self._sweep_s = sweep_s

    async def run(self) -> None:
        """At once, and then again and again until cancelled."""
        while True:
            try:
                swept = await self.sweep()
                if swept != Swept(0, 0, 0, 0, 0):
                    log.info("%s", swept)
            except ApplianceError as error:
                log.warning("sweeping: %s", error)
            await asyncio.sleep(self._sweep_s)

    async def sweep(self) -> Swept:
        """Once."""
        now = self._desk.now()
        asleep_before, abandoned_before = instant(now - DORMANT_AFTER), instant(now - COLLECT_WITHIN)
        # What was reserved of daily limits: of days that are over on every clock.
        old_day = (now - KEEP_RESERVATIONS).date().isoformat()
        await self._desk.call(self._desk.registry.usage.drop_reservations, old_day)
        # Expired first: a seal that is both is not put to sleep on its last day.
        return Swept(
            expired=await self._all(
                lambda: self._desk.call(self._seals.due_to_expire, instant(now), BATCH), self._expire
            ),
            asleep=await self._all(
                lambda: self._desk.call(self._seals.due_to_sleep, asleep_before, BATCH), self._sleep
            ),
            abandoned=await self._all(
                lambda: self._desk.call(self._seals.due_to_abandon, abandoned_before, BATCH), self._abandon
            ),
            proposals_expired=await self._proposals.expire(),
            proposals_done=await self._proposals.resume_approved(),
        )

    async def _all(
        self, due: Callable[[], Awaitable[list[Seal]]], do: Callable[[Seal], Awaitable[None]]
    ) -> int:
        """Batch after batch while something is due and gets done."""
        done = 0
        while done < MAX_A_SWEEP:
            batch = await due()
            before = done
            for seal in batch:
                try:
                    await do(seal)
                    done += 1
                except Unavailable as error:
                    log.warning("sweeping: %s; the rest of these is tried again", error)
                    return done
                except ApplianceError as error:  # it was changed meanwhile, for the most part
                    log.warning("sweeping: seal %s is left as it is: %s", seal.id, error)
            if len(batch) < BATCH or done == before:
                break  # all that is left could not be done now
        return done

    async def _expire(self, seal: Seal) -> None:
        row = by_itself(seal, Act.EXPIRE)
        changes = {"ended_at": self._desk.instant()}
        detail = {"valid_to": seal.valid_to}
        await self._desk.advance(
            self._desk.step(seal, row, SYSTEM, changes=changes, detail=detail, holds_place=False)
        )

    async def _sleep(self, seal: Seal) -> None:
        row = by_itself(seal, Act.SLEEP)
        detail = {"last_used_at": seal.last_used_at, "activated_at": seal.activated_at}
        before = instant(self._desk.now() - DORMANT_AFTER)
        # Use does not change the version: one that came in between keeps the seal awake.
        await self._desk.advance(self._desk.step(seal, row, SYSTEM, detail=detail, unless_used_after=before))

    async def _abandon(self, seal: Seal) -> None:
        row = by_itself(seal, Act.ABANDON)
        words = "not collected within three months of its making"
        await self._desk.advance(await self._ending.step(seal, row, Reason.NOT_COLLECTED, words, SYSTEM))
