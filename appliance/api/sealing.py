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
from typing import Any, Final, Protocol

from appliance.api.contract import Contract
from appliance.api.service import Call, Caller, Reply
from appliance.errors import BadRequest, Conflict, Unavailable
from appliance.eseal.chains import Trust
from appliance.eseal.structures import ESeal, read_signature
from appliance.eseal.verification import UNKNOWN, Examiner, Report, Status, to_document
from appliance.policy import Account
from appliance.verifying import Verifier, sm3

TRUST_S: Final = 60.0
"""A trusted CA that is added or a new revocation list holds after so long; lists may have megabytes."""

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


class NoSealer:
    """Where nothing is sealed over HTTP."""

    async def unlock(
        self, account: Account, caller: Caller, seal_id: str, password: str, seconds: int | None
    ) -> dict[str, Any]:
        """Says so."""
        raise _not_here()

    async def lock(self, account: Account, caller: Caller, seal_id: str) -> None:
        """Says so."""
        raise _not_here()

    async def seal(
        self, account: Account, caller: Caller, seal_id: str, wanted: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Says so."""
        raise _not_here()

    async def status(self, account: Account, caller: Caller, seal_id: str) -> dict[str, Any]:
        """Says so."""
        raise _not_here()


def _not_here() -> Unavailable:
    return Unavailable("nothing is sealed over HTTP here", hint="use the wire protocol")


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
    """Verifies for the public: trust is read anew now and then, as its files may change."""

    def __init__(
        self,
        trust: Callable[[], Awaitable[Trust]],
        verifier: Verifier,
        standing: Callable[[ESeal], Status],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._trust = trust
        self._verifier = verifier
        self._standing = standing
        self._clock = clock
        self._now = now
        self._examiner: Examiner | None = None  # owned by the event loop; threads only use it
        self._read_at = 0.0

    async def __call__(self, signature: bytes, data_hash: bytes | None, data: bytes | None) -> Report:
        """The report. Where no CA is trusted, it says that this could not be told."""
        examiner = await self._current()
        return await asyncio.to_thread(self._examine, examiner, signature, data_hash, data)

    async def _current(self) -> Examiner:
        now = self._clock()
        if self._examiner is None or now - self._read_at > TRUST_S:
            try:
                trust = await self._trust()
            except Conflict:
                trust = Trust(())
            self._examiner = await asyncio.to_thread(Examiner, trust, self._verifier)
            self._read_at = now
        return self._examiner

    def _examine(
        self, examiner: Examiner, signature: bytes, data_hash: bytes | None, data: bytes | None
    ) -> Report:
        try:
            status = self._standing(read_signature(signature).seal)
        except BadRequest:
            status = UNKNOWN  # the report will say that it cannot be read
        return examiner.signature(signature, data_hash, self._now(), status, data)
