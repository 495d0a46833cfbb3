"""Sealing over HTTP: one request at a time, through the sealer that answers the wire protocol too.

For: accounts with a handful of hashes: the same grants, limits, locks and templates as on the wire.
Not for: volume.

Rules:

* A seal that the account may not know of looks like one that does not exist.
* The answer is whole: where the request itself fails, nothing was released; an item that fails says so by itself.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from appliance.api import shapes
from appliance.api.service import Caller
from appliance.errors import BadRequest, NotFound, ProtocolError
from appliance.pipeline import Pipeline
from appliance.policy import Account
from appliance.registry import Registry
from appliance.sealer import Sealer, SealWork
from appliance.sealing import LOOPBACK, Address, address_of
from appliance.wire import ItemStatus, Priority
from appliance.wire_seals import (
    SEALED_RECORD_LEN,
    SealedAnswer,
    SealFlag,
    SealNameKind,
    SealRequest,
    SealState,
    SealStatusRequest,
    UnlockRequest,
    properties,
)

_STATUSES: Final = {
    ItemStatus.REFUSED: "refused: the token does not sign this",
    ItemStatus.FAILED: "failed: nothing was released; ask again",
}


class Small:
    """``sealing.SmallSealer``; owned by the event loop."""

    def __init__(
        self,
        sealer: Sealer,
        pipeline: Pipeline,
        registry: Registry,
        unlock_s: int,
        job_id: Callable[[int], bytes],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._sealer = sealer
        self._pipeline = pipeline
        self._seals = registry.seals
        self._unlock_s = unlock_s
        self._job_id = job_id
        self._clock = clock
        self._now = now

    async def unlock(
        self, account: Account, caller: Caller, seal_id: str, password: str, seconds: int | None
    ) -> dict[str, Any]:
        """Until when it is unlocked."""
        request = UnlockRequest(seal_id, password, self._unlock_s if seconds is None else seconds)
        until = await self._sealer.unlock(account.name, _source(caller), request)
        end = datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds")
        return {"sealId": seal_id, "endTime": end}

    async def lock(self, account: Account, caller: Caller, seal_id: str) -> None:
        """Not any more."""
        await self._sealer.unlock(account.name, _source(caller), UnlockRequest(seal_id, "", 0))

    async def seal(
        self, account: Account, caller: Caller, seal_id: str, wanted: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """A signature, or why not, for each hash."""
        try:
            lengths, infos = properties([wanted["propertyInfo"]])
        except ProtocolError as error:
            raise BadRequest(f"field 'propertyInfo': {error.detail}", hint="ASCII, as in a path") from error
        flags = SealFlag.ONE_PROPERTY | (SealFlag.TIME_STAMP if wanted["timestamp"] else SealFlag(0))
        request = SealRequest(
            self._job_id(16),
            0,
            0,
            Priority.INTERACTIVE,
            flags,
            seal_id,
            wanted["approvalReference"],
            b"".join(map(bytes.fromhex, wanted["dataHashes"])),
            lengths,
            infos,
        )
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def note(_: SealWork) -> None:
            if not ended.done():  # whoever asked may have gone
                ended.set_result(None)

        work = self._sealer.seal(account.name, _source(caller), request, self._clock(), note)
        self._pipeline.pump()
        await ended
        if work.error is not None:
            raise work.error
        return [_item(status, value) for status, value in _values(work)]

    async def status(self, account: Account, caller: Caller, seal_id: str) -> dict[str, Any]:
        """Whether it may be used now."""
        asked = SealStatusRequest(SealNameKind.ID, [seal_id])
        (record,) = await self._sealer.status(account.name, _source(caller), asked)
        if record.state is SealState.UNKNOWN:
            raise NotFound(
                f"no seal {seal_id!r}, or account {account.name!r} has no grant for it",
                hint="a security officer grants it: cloud-seal grant give",
            )
        seal = await asyncio.to_thread(self._seals.seal, seal_id)
        return shapes.seal_status(seal, self._now().astimezone(UTC).isoformat(timespec="milliseconds"))


def _source(caller: Caller) -> Address:
    """As grants know it: the Unix socket counts as loopback."""
    return LOOPBACK if caller.uid is not None else address_of(caller.address)


def _values(work: SealWork) -> list[tuple[ItemStatus, bytes]]:
    block = memoryview(work.block)
    records_len = work.count * SEALED_RECORD_LEN
    request = work.request
    answer = SealedAnswer(
        request.job_id,
        request.first_index,
        work.count,
        0,
        work.common_body,
        work.common_suffix,
        bytes(block[:records_len]),
        block[records_len:],
    )
    return list(answer.values())


def _item(status: ItemStatus, value: bytes) -> dict[str, Any]:
    if status is ItemStatus.SIGNED:
        return {"error": None, "signature": base64.b64encode(value).decode()}
    return {"error": _STATUSES[status], "signature": None}
