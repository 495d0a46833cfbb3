"""Operations of accounts: unlocking, sealing and verifying in small numbers; and what is open to the public.

For: what the wire protocol does at volume, for those who have a handful and speak HTTP.
Not for: a way of its own to a signature: sealing here goes through the same code, grants and limits as the wire's.

Rules:

* What an account may not see looks like what does not exist, as on the wire.
* The public verifies against the trust of this appliance and learns what a signature says about itself, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from appliance.api.contract import Contract
from appliance.api.service import Call, Caller, Reply
from appliance.errors import BadRequest
from appliance.eseal.structures import ESeal, read_signature
from appliance.eseal.verification import UNKNOWN, Examiner, Report, Status, to_document
from appliance.policy import Account
from appliance.verifying import sm3

Examine = Callable[[bytes, bytes | None, bytes | None], Awaitable[Report]]
"""A signature, the data hash, the data that was hashed: the report."""


class SmallSealer(Protocol):
    """Sealing for one request, by the code of the wire protocol."""

    async def unlock(
        self, account: Account, caller: Caller, seal_id: str, password: str, seconds: int | None
    ) -> dict[str, Any]:
        """Until when it is unlocked, under the names of the API."""

    async def lock(self, account: Account, caller: Caller, seal_id: str) -> None:
        """Not any more."""

    async def seal(
        self, account: Account, caller: Caller, seal_id: str, wanted: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """An ``error`` or a ``signature`` in base64 for each data hash."""

    async def status(self, account: Account, caller: Caller, seal_id: str) -> dict[str, Any]:
        """Whether it may be used now."""


class Sealing:
    """Each public method is the operation of that name."""

    def __init__(
        self,
        contract: Contract,
        sealer: SmallSealer,
        examine: Examine,
        state: Callable[[], Awaitable[str]],
    ) -> None:
        self._contract = contract
        self._sealer = sealer
        self._examine = examine
        self._state = state

    # The public -----------------------------------------------------------------------------------------

    async def read_health(self, call: Call) -> Reply:
        return Reply({"status": await self._state()})

    async def read_contract(self, call: Call) -> Reply:
        return Reply(self._contract.document)

    async def verify_signature(self, call: Call) -> Reply:
        body = call.body
        if "dataHash" in body and "document" in body:
            raise BadRequest("a data hash and a document", hint="give one of the two, or neither")
        return Reply(await self._report(body["signature"], body.get("dataHash"), body.get("document")))

    async def _report(self, signature: bytes, data_hash: str | None, data: bytes | None) -> dict[str, Any]:
        digest = bytes.fromhex(data_hash) if data_hash is not None else None
        if data is not None:
            digest = await asyncio.to_thread(sm3, data)
        report = await self._examine(signature, digest, data)
        return await asyncio.to_thread(to_document, report)

    # Accounts -------------------------------------------------------------------------------------------

    async def unlock_seal(self, call: Call) -> Reply:
        body = call.body
        found = await self._sealer.unlock(
            call.user, call.caller, call.values["sealId"], body["password"], body.get("seconds")
        )
        return Reply(found)

    async def lock_seal(self, call: Call) -> Reply:
        await self._sealer.lock(call.user, call.caller, call.values["sealId"])
        return Reply(status=204)

    async def seal_hashes(self, call: Call) -> Reply:
        found = await self._sealer.seal(call.user, call.caller, call.values["sealId"], call.body)
        return Reply({"items": found})

    async def read_status(self, call: Call) -> Reply:
        return Reply(await self._sealer.status(call.user, call.caller, call.values["sealId"]))

    async def verify_signatures(self, call: Call) -> Reply:
        reports = [
            await self._report(one["signature"], one.get("dataHash"), None) for one in call.body["items"]
        ]
        return Reply({"items": reports})


class Examining:
    """Verifies for the public, in threads, and adds what the registry knows of the seal's status."""

    def __init__(
        self,
        examiner: Callable[[], Examiner],
        standing: Callable[[ESeal], Status],
        now: Callable[[], datetime],
    ) -> None:
        self._examiner = examiner
        self._standing = standing
        self._now = now

    async def __call__(self, signature: bytes, data_hash: bytes | None, data: bytes | None) -> Report:
        """The report."""
        return await asyncio.to_thread(self._examine, self._examiner(), signature, data_hash, data)

    def _examine(
        self, examiner: Examiner, signature: bytes, data_hash: bytes | None, data: bytes | None
    ) -> Report:
        try:
            status = self._standing(read_signature(signature).seal)
        except BadRequest:
            status = UNKNOWN  # the report will say that it cannot be read
        return examiner.signature(signature, data_hash, self._now(), status, data)
