"""Operations on organisations and seals: applying, looking, and the acts of one officer.

For: a request that was checked, one call of the office's or the registry's, and the document that answers it.
Not for: rules; the office has them.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

from appliance import documents
from appliance.algorithms import Algorithm
from appliance.api import shapes
from appliance.api.service import Call, Reply
from appliance.errors import Conflict, NotFound
from appliance.lifecycle import Document, DocumentKind, Kind, Organisation, Seal, State
from appliance.office import Office
from appliance.protection import Protection
from appliance.registry import Registry, SealFilter


class Lives:
    """Each public method is the operation of that name."""

    def __init__(self, office: Office, registry: Registry, protection: Protection, font_file: str) -> None:
        self._office = office
        self._seals = registry.seals
        self._protection = protection
        self._font_file = font_file

    # Organisations --------------------------------------------------------------------------------------

    async def list_organisations(self, call: Call) -> Reply:
        limit = call.values["limit"]
        found = await asyncio.to_thread(
            self._seals.organisations, call.values["after"] or "", limit + 1, call.values["text"]
        )
        return Reply(shapes.page(found, limit, shapes.organisation, lambda one: one.code))

    async def add_organisation(self, call: Call) -> Reply:
        wanted = Organisation(call.body["useUnitCode"], call.body["useUnitName"], call.body["sealZone"])
        added = await self._office.add_organisation(call.actor, wanted)
        return Reply(shapes.organisation(added), 201)

    async def show_organisation(self, call: Call) -> Reply:
        found = await asyncio.to_thread(self._seals.organisation, call.values["useUnitCode"])
        return Reply(shapes.organisation(found))

    async def change_organisation(self, call: Call) -> Reply:
        wanted = Organisation(call.values["useUnitCode"], call.body["useUnitName"], call.body["sealZone"])
        return Reply(shapes.organisation(await self._office.change_organisation(call.actor, wanted)))

    # Looking --------------------------------------------------------------------------------------------

    async def list_seals(self, call: Call) -> Reply:
        given, limit, code = call.values, call.values["limit"], call.values["sealCode"]
        which = SealFilter(
            organisation=given["useUnitCode"],
            kind=Kind(given["sealKind"]) if given["sealKind"] is not None else None,
            state=State(given["sealState"]) if given["sealState"] is not None else None,
            region=given["sealZone"],
            custodian=given["custodian"],
            text=code if code is not None else given["text"],
        )
        found = await asyncio.to_thread(self._seals.seals, which, given["after"] or "", limit + 1)
        if code is not None:  # the registry's text is part of a name too
            found = [one for one in found if one.code == code]
        return Reply(shapes.page(found, limit, shapes.seal, lambda one: one.id))

    async def show_seal(self, call: Call) -> Reply:
        return Reply(shapes.seal(await self._seal(call)))

    async def show_application(self, call: Call) -> Reply:
        return Reply(dict(await asyncio.to_thread(self._seals.application, call.values["sealId"])))

    async def list_events(self, call: Call) -> Reply:
        await self._seal(call)
        found = await asyncio.to_thread(self._seals.events, call.values["sealId"])
        return Reply({"items": [shapes.event(one) for one in found]})

    async def list_documents(self, call: Call) -> Reply:
        await self._seal(call)
        found = await asyncio.to_thread(self._seals.documents, call.values["sealId"])
        return Reply({"items": [shapes.document_head(one) for one in found]})

    async def read_document(self, call: Call) -> Reply:
        found = await self._document(call)
        answer = {
            **shapes.document_head(found),
            "document": json.loads(found.body),
            "body": base64.b64encode(found.body).decode(),
            "signature": base64.b64encode(found.signature).decode(),
            "signCert": base64.b64encode(found.signer).decode(),
        }
        return Reply(answer)

    async def print_document(self, call: Call) -> Reply:
        found = await self._document(call)
        imprint = await asyncio.to_thread(self._seals.imprint, call.values["sealId"])
        pdf = await asyncio.to_thread(documents.to_pdf, found, imprint, self._font_file)
        return _file(pdf, "application/pdf", f"{call.values['sealId']}-{found.kind.value}.pdf")

    async def read_imprint(self, call: Call) -> Reply:
        found = await asyncio.to_thread(self._seals.imprint, call.values["sealId"])
        return _file(found.data, "image/png", f"{call.values['sealId']}.png")

    async def read_eseal(self, call: Call) -> Reply:
        seal = await self._seal(call)
        if seal.generation == 0:
            raise Conflict("the seal is not made yet", hint="propose to make it, and have it approved")
        found = await asyncio.to_thread(self._seals.generation, seal.id, seal.generation)
        return _file(found.eseal, "application/octet-stream", f"{seal.code}.esl")

    async def _seal(self, call: Call) -> Seal:
        return await asyncio.to_thread(self._seals.seal, call.values["sealId"])

    async def _document(self, call: Call) -> Document:
        await self._seal(call)
        kind = DocumentKind(call.values["documentKind"])
        found = await asyncio.to_thread(self._seals.documents, call.values["sealId"])
        of_kind = [one for one in found if one.kind is kind]
        if not of_kind:
            raise NotFound(
                f"there is no {kind.value} certificate about this seal", hint="it is issued with the act"
            )
        return of_kind[-1]

    # Acts -----------------------------------------------------------------------------------------------

    async def apply_for_seal(self, call: Call) -> Reply:
        return Reply(shapes.seal(await self._office.apply(call.actor, shapes.application(call.body))), 201)

    async def review_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.review, call.body["note"])

    async def refuse_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.refuse, call.body["reason"])

    async def make_seal_key(self, call: Call) -> Reply:
        label = call.body.get("algorithm")
        algorithm = Algorithm.from_label(label) if label is not None else None
        key = await self._office.make_key(
            call.actor, call.values["sealId"], algorithm, call.body.get("token")
        )
        spki = base64.b64encode(key.public.spki()).decode()
        return Reply({"keyName": key.name, "algorithm": key.public.algorithm.label, "spki": spki}, 201)

    async def request_certificate(self, call: Call) -> Reply:
        request = await self._office.certificate_request(
            call.actor, call.values["sealId"], call.body["subject"]
        )
        return Reply({"request": request})

    async def accept_certificate(self, call: Call) -> Reply:
        return await self._acted(call, self._office.accept_certificate, call.body["certificate"])

    async def file_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.file, call.body["receipt"])

    async def confirm_imprint(self, call: Call) -> Reply:
        return await self._acted(call, self._office.confirm, bytes.fromhex(call.body["imprintSm3"]))

    async def activate_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.activate, call.body["newPassword"])

    async def suspend_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.suspend, call.body["reason"])

    async def resume_seal(self, call: Call) -> Reply:
        return await self._acted(call, self._office.resume, call.body["reason"])

    async def _acted(self, call: Call, act: Callable[..., Any], argument: object) -> Reply:
        return Reply(shapes.seal(await act(call.actor, call.values["sealId"], argument)))

    # Protection passwords -------------------------------------------------------------------------------

    async def show_password(self, call: Call) -> Reply:
        seal = await self._seal(call)
        return Reply(shapes.password_state(seal.id, await self._protection.state_of(seal.id)))

    async def rotate_password(self, call: Call) -> Reply:
        old, new = call.body["oldPassword"], call.body["newPassword"]
        await self._office.rotate_password(call.actor, call.values["sealId"], old, new)
        return await self.show_password(call)


def _file(raw: bytes, media_type: str, name: str) -> Reply:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Reply(raw=raw, media_type=media_type, headers=headers)
