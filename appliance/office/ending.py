"""How a seal ends: the step that cancels it, with its certificate and the message to the public security.

For: cancelling by two people, by the seal that replaces it, and by time (not collected).
Not for: expiry, which ends a seal's use and takes no certificate.

Rules:

* A cancelled seal has a cancellation certificate (电子印章注销证书), signed by the maker's key: where its token is
  away, nothing is cancelled. Suspending takes no token, and is what stops a seal at once.
* Its place (statutory name, purpose and number) is free in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.documents import cancellation_certificate
from appliance.eseal.structures import read_seal
from appliance.lifecycle import DocumentKind, MessageKind, Reason, Seal, Transition
from appliance.office import filing
from appliance.office.desk import Desk
from appliance.office.maker import Maker
from appliance.registry import Step


class Ending:
    """Builds the step; whoever calls takes it."""

    def __init__(self, desk: Desk, maker: Maker, system_id: str) -> None:
        self._desk = desk
        self._maker = maker
        self._system_id = system_id

    async def step(
        self,
        seal: Seal,
        row: Transition,
        reason: Reason,
        words: str,
        officer: str,
        *,
        approver: str | None = None,
        changes: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Step:
        """The one that cancels it."""
        now = self._desk.instant()
        seals = self._desk.registry.seals
        made = await self._desk.call(seals.generation, seal.id, seal.generation)
        organisation = await self._desk.call(seals.organisation, seal.organisation)
        imprint = await self._desk.call(seals.imprint, seal.id)
        eseal = read_seal(made.eseal)
        identity = await self._maker.identity()
        issue = self._maker.issue(identity, now, officer, approver)
        certificate = cancellation_certificate(seal, organisation, made, imprint, issue, reason, words, now)
        document = await self._maker.document(identity, DocumentKind.CANCELLATION, seal.id, now, certificate)
        body = filing.cancelled_body(seal, self._system_id, reason, words, eseal.signature, now)
        message = filing.message(self._desk.new_id(), MessageKind.CANCELLED, seal, body, self._desk.now())
        return self._desk.step(
            seal,
            row,
            officer,
            approver=approver,
            changes={"ended_at": now, "end_reason": reason, **(changes or {})},
            detail={"reason": reason.value, "words": words},
            messages=(message,),
            documents=(document,),
            holds_place=False,
            **more,
        )
