"""What all fronts have in common about sealing: unlocks, limits and counts.

For: the leader's side, which has the registry and the passwords, and the followers', which ask it.
Not for: the lines between fronts (``fronts``); what is asked over them comes in as functions.

Rules:

* A follower never writes the registry and never sees a password's hash: it hands what a client sent to the leader, over
  an inherited socket, and keeps nothing of it.
* An unlock, and a lock, is known to every front before it is answered.
* Daily limits are reserved in blocks, by each front for itself and through the leader; minutes are counted by the
  leader for all.

Crash story: a follower that dies loses what is left of its blocks for the day, never more. A leader that dies takes its
followers, the unlocks and the last minute with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, TypeVar

from appliance.errors import Conflict, StateUnknown
from appliance.protection import Protection, Unlock
from appliance.registry import Registry
from appliance.sealing import MinuteWindows, Owner, UseRow

log = logging.getLogger(__name__)

MAX_UNLOCKS_AT_ONCE: Final = 10_000
"""In one line between fronts, which has a limit of 4 MiB."""

Document = dict[str, Any]
Ask = Callable[[Document], Awaitable[Document]]
T = TypeVar("T")


class LeaderShare:
    """The leading front's side: ``sealing.LimitStore``, ``sealer.Unlocks``, and the answers to followers."""

    def __init__(
        self,
        registry: Registry,
        protection: Protection,
        minutes: MinuteWindows,
        tell_all: Callable[[Document], Awaitable[None]],
        now: Callable[[], float],
        give_up: Callable[[StateUnknown], None],
    ) -> None:
        self._registry = registry
        self._protection = protection
        self._minutes = minutes
        self._tell_all = tell_all
        self._now = now
        self._give_up = give_up
        self.is_unlocked = protection.is_unlocked

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(function)
        except StateUnknown as error:
            self._give_up(error)
            raise

    # Limits and counts ----------------------------------------------------------------------------------

    async def reserve(self, owner: Owner, day: str, want: int, limit: int) -> int:
        """See ``LimitStore``."""
        account, seal_id = owner
        return await self._call(lambda: self._registry.usage.reserve(seal_id, account, day, want, limit))

    async def give_back(self, owner: Owner, day: str, count: int) -> None:
        """See ``LimitStore``."""
        account, seal_id = owner
        await self._call(lambda: self._registry.usage.give_back(seal_id, account, day, count))

    async def take_minute(self, owner: Owner, count: int, limit: int) -> int:
        """See ``LimitStore``."""
        return self._minutes.take(owner, count, limit)

    async def add_uses(self, rows: list[UseRow]) -> None:
        """Write what was used."""
        await self._call(lambda: self._registry.usage.add(rows))

    # Unlocks --------------------------------------------------------------------------------------------

    def unlocked_until(self, account: str, seal_id: str) -> int:
        """See ``Unlocks``."""
        left_s = self._protection.seconds_left(account, seal_id)
        return int(self._now() + left_s) if left_s else 0

    async def unlock(self, account: str, seal_id: str, password: str, seconds: int) -> int:
        """See ``Unlocks``."""
        unlock = await self._protection.unlock(account, seal_id, password, seconds)
        await self._tell_all({"ask": "unlocked", "unlock": asdict(unlock)})
        return int(datetime.fromisoformat(unlock.expires_at).timestamp())

    async def lock(self, account: str, seal_id: str) -> None:
        """See ``Unlocks``."""
        self._protection.lock(account, seal_id)
        await self._tell_all({"ask": "locked", "account": account, "seal": seal_id})

    async def answer(self, question: Document) -> Document:
        """What a following front asks."""
        match question:
            case {"ask": "reserve", "owner": [str(account), str(seal_id)], "day": str(day)}:
                want, limit = int(question["want"]), int(question["limit"])
                return {"granted": await self.reserve((account, seal_id), day, want, limit)}
            case {"ask": "give back", "owner": [str(account), str(seal_id)], "day": str(day)}:
                await self.give_back((account, seal_id), day, int(question["count"]))
                return {}
            case {"ask": "minute", "owner": [str(account), str(seal_id)]}:
                count, limit = int(question["count"]), int(question["limit"])
                return {"wait_ms": await self.take_minute((account, seal_id), count, limit)}
            case {"ask": "uses", "rows": list(rows)}:
                await self.add_uses([(row[0], row[1], row[2], int(row[3]), row[4]) for row in rows])
                return {}
            case {"ask": "unlocks", "after": [str(seal_id), str(account)]}:
                unlocks = self._protection.unlocks((seal_id, account), MAX_UNLOCKS_AT_ONCE)
                return {"unlocks": [asdict(one) for one in unlocks]}
            case {"ask": "unlock", "account": str(account), "seal": str(seal_id)}:
                until = await self.unlock(account, seal_id, question["password"], int(question["seconds"]))
                return {"until": until}
            case {"ask": "lock", "account": str(account), "seal": str(seal_id)}:
                await self.lock(account, seal_id)
                return {}
        raise ValueError(f"a following front asks {question.get('ask')!r}")


class FollowerShare:
    """A following front's side: the same by asking the leader."""

    def __init__(self, protection: Protection, ask: Ask, now: Callable[[], float]) -> None:
        self._protection = protection
        self._ask = ask
        self._now = now
        self.is_unlocked = protection.is_unlocked

    async def reserve(self, owner: Owner, day: str, want: int, limit: int) -> int:
        """See ``LimitStore``."""
        question = {"ask": "reserve", "owner": owner, "day": day, "want": want, "limit": limit}
        return int((await self._ask(question))["granted"])

    async def give_back(self, owner: Owner, day: str, count: int) -> None:
        """See ``LimitStore``."""
        await self._ask({"ask": "give back", "owner": owner, "day": day, "count": count})

    async def take_minute(self, owner: Owner, count: int, limit: int) -> int:
        """See ``LimitStore``."""
        answer = await self._ask({"ask": "minute", "owner": owner, "count": count, "limit": limit})
        return int(answer["wait_ms"])

    async def add_uses(self, rows: list[UseRow]) -> None:
        """Have them written."""
        await self._ask({"ask": "uses", "rows": rows})

    def unlocked_until(self, account: str, seal_id: str) -> int:
        """See ``Unlocks``."""
        left_s = self._protection.seconds_left(account, seal_id)
        return int(self._now() + left_s) if left_s else 0

    async def unlock(self, account: str, seal_id: str, password: str, seconds: int) -> int:
        """See ``Unlocks``. The leader tells every front, this one too, before it answers."""
        question = {
            "ask": "unlock",
            "account": account,
            "seal": seal_id,
            "password": password,
            "seconds": seconds,
        }
        return int((await self._ask(question))["until"])

    async def lock(self, account: str, seal_id: str) -> None:
        """See ``Unlocks``."""
        await self._ask({"ask": "lock", "account": account, "seal": seal_id})

    async def catch_up(self) -> None:
        """As this front starts: what was unlocked before. What is unlocked from here on, it is told."""
        after = ["", ""]
        while True:
            unlocks = (await self._ask({"ask": "unlocks", "after": after}))["unlocks"]
            for facts in unlocks:
                self._adopt(facts)
            if len(unlocks) < MAX_UNLOCKS_AT_ONCE:
                return
            after = [unlocks[-1]["seal_id"], unlocks[-1]["account"]]

    def _adopt(self, facts: Document) -> None:
        try:
            self._protection.adopt(Unlock(**facts))
        except Conflict:  # its password was reset meanwhile, and this front has heard of that already
            log.info("an unlock of seal %s is void", facts["seal_id"])

    def hear(self, question: Document) -> bool:
        """What the leader tells of unlocks; False where it is about something else."""
        match question:
            case {"ask": "unlocked", "unlock": dict() as facts}:
                self._adopt(facts)
            case {"ask": "locked", "account": str(account), "seal": str(seal_id)}:
                self._protection.lock(account, seal_id)
            case _:
                return False
        return True
