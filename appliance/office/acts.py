"""What one officer does to a seal alone: apply, review, refuse, file, confirm, activate, suspend, resume.

For: the acts of ``lifecycle.TRANSITIONS`` that take one person, and organisations, whose seals they are.
Not for: what takes two people (``proposals``), making (``making``), what time does (``sweeper``).

Rules:

* What a person says is looked at before anything is written; whether the seal's state allows it is the table's to say.
* A seal that replaces another gets its place in the transaction that activates it, and the other one ends there.
* A custodian activates the seals of which the application names him or her, and sets their protection password.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from appliance.errors import BadRequest, Conflict, Denied, NotFound
from appliance.imprints import check_imprint, check_on_file
from appliance.lifecycle import (
    Act,
    Event,
    Kind,
    MessageKind,
    Officer,
    Organisation,
    ProtectionPassword,
    Reason,
    Role,
    Seal,
    State,
    check_organisation,
)
from appliance.office.desk import MAX_TEXT_LEN, Desk, by_itself, check_within_validity, permitted, printable
from appliance.office.ending import Ending
from appliance.registry import SealFilter, Step

MAX_NAME_LEN: Final = 100
MAX_RECEIPT_LEN: Final = 128
MAX_PAPERS: Final = 50
"""Papers that were handed in with an application, one line each."""
MAX_NUMBER: Final = 9_999
MAX_MESSAGES: Final = 100
"""Messages about one seal that wait at once: it has a handful in its life."""
NEEDS_HOLDER: Final = frozenset({Kind.OFFICE, Kind.PERSONAL})
NEEDS_PURPOSE: Final = frozenset({Kind.DEPARTMENT, Kind.SPECIAL, Kind.OFFICE})
"""A department's name, what a special seal is for (contract, finance, invoice …), which office its holder has."""
UNDER_STATUTORY_NAME: Final = frozenset({Kind.STATUTORY, Kind.DEPARTMENT, Kind.SPECIAL})
"""Their names begin with the organisation's (004 §3.1)."""
MANAGES_ORGANISATIONS: Final = frozenset({Role.CLERK, Role.REVIEWER})
SHA_LEN: Final = 32


@dataclass(frozen=True, slots=True)
class Application:
    """What a clerk asks for.

    ``number`` tells seals of one purpose apart; ``None`` takes the next free one. ``papers`` are what was handed in
    (004 §3.1). ``filed_imprint_sm3`` is the hash of the imprint that the public security has on file, where it gave
    one. ``replaces`` is the id of the seal that this one takes the place of (换领).
    """

    organisation: str
    kind: Kind
    name: str
    custodian: str
    imprint_format: str
    imprint_data: bytes = field(repr=False)
    width_mm: int
    height_mm: int
    purpose: str = ""
    number: int | None = None
    holder: str = ""
    replaces: str | None = None
    filed_imprint_sm3: bytes | None = None
    papers: tuple[str, ...] = ()
    note: str = ""


class SetsPasswords(Protocol):
    """``protection.Protection``, as far as activation needs it."""

    async def set_first(self, seal: Seal, password: str, by: str) -> ProtectionPassword:
        """What goes into the step that activates the seal."""


class Acts:
    """What one officer does alone."""

    def __init__(self, desk: Desk, ending: Ending, protection: SetsPasswords) -> None:
        self._desk = desk
        self._seals = desk.registry.seals
        self._ending = ending
        self._protection = protection

    # Organisations --------------------------------------------------------------------------------------

    async def add_organisation(self, officer: Officer, organisation: Organisation) -> Organisation:
        """The same again is no error."""
        _check_manages_organisations(officer)
        check_organisation(organisation)
        await self._desk.call(self._seals.add_organisation, organisation)
        return organisation

    async def change_organisation(self, officer: Officer, organisation: Organisation) -> Organisation:
        """Its name or region. Seals that exist keep theirs: a new name takes new seals (003 §17)."""
        _check_manages_organisations(officer)
        check_organisation(organisation)
        await self._desk.call(self._seals.change_organisation, organisation)
        return organisation

    # Applying and reviewing -----------------------------------------------------------------------------

    async def apply(self, officer: Officer, application: Application) -> Seal:
        """A new seal in state ``applied``; ``BadRequest`` and ``Conflict`` say at once why not (003 §7)."""
        row = permitted(None, Act.APPLY, officer)
        organisation = await self._desk.call(self._seals.organisation, application.organisation)
        text = _checked(application, organisation)
        await self._check_custodian(application.custodian)
        imprint = await asyncio.to_thread(
            check_imprint,
            application.imprint_format,
            application.imprint_data,
            application.width_mm,
            application.height_mm,
            application.kind,
        )
        filed = application.filed_imprint_sm3
        if filed is not None:
            check_on_file(imprint, filed)
        if application.replaces is not None:
            await self._check_replaced(application)
        number = await self._number(application, text["purpose"])
        seal_id, now = self._desk.new_id(), self._desk.instant()
        seal = Seal(
            id=seal_id, code="", organisation=organisation.code, kind=application.kind, purpose=text["purpose"],
            number=number, name=text["name"], region=organisation.region, holder=text["holder"],
            custodian=application.custodian, applicant=officer.name, state=row.target, version=1, generation=0,
            key_name=None, valid_from=None, valid_to=None, applied_at=now, made_at=None, filed_at=None,
            confirmed_at=None, activated_at=None, last_used_at=None, ended_at=None, end_reason=None,
            replaces=application.replaces, replaced_by=None,
        )  # fmt: skip
        papers = [printable(one, "a paper", 1, MAX_TEXT_LEN) for one in application.papers]
        record: dict[str, Any] = {
            "papers": papers,
            "note": text["note"],
            "filed_imprint_sm3": filed.hex() if filed is not None else None,
        }
        detail = {"imprint_sm3": imprint.sm3.hex(), "replaces": application.replaces}
        event = Event(seal_id, now, row.act.value, None, row.target, officer.name, None, detail)
        return await self._desk.call(self._seals.apply, seal, imprint, record, event)

    async def _check_custodian(self, name: str) -> None:
        try:
            custodian = await self._desk.call(self._desk.registry.people.officer, name)
        except NotFound:
            custodian = None
        if custodian is None or custodian.disabled or Role.CUSTODIAN not in custodian.roles:
            raise BadRequest(
                f"custodian {name!r}: no officer who keeps seals", hint="name one with the role custodian"
            )

    async def _check_replaced(self, application: Application) -> None:
        assert application.replaces is not None
        old = await self._desk.seal(application.replaces)
        by_itself(old, Act.REPLACE)
        if (old.organisation, old.kind) != (application.organisation, application.kind):
            raise Conflict(
                "a seal replaces one of the same organisation and kind", hint="cancel the other one by itself"
            )
        if old.replaced_by is not None:
            raise Conflict(
                f"seal {old.id} is replaced already, by {old.replaced_by}",
                hint="name that one, if it is to be replaced",
            )

    async def _number(self, application: Application, purpose: str) -> int:
        """As asked for, or the next free one; two that ask at once meet at the registry's unique index."""
        if application.number is not None:
            return application.number
        if application.kind is not Kind.SPECIAL:
            return 0
        if application.replaces is not None:
            return (await self._desk.seal(application.replaces)).number
        taken: set[int] = set()
        after = ""
        wanted = SealFilter(organisation=application.organisation, kind=Kind.SPECIAL)
        while True:
            page = await self._desk.call(self._seals.seals, wanted, after, 500)
            ended = (State.CANCELLED, State.REFUSED)
            taken |= {one.number for one in page if one.purpose == purpose and one.state not in ended}
            if not page:
                return next(number for number in range(1, MAX_NUMBER + 2) if number not in taken)
            after = page[-1].id

    async def review(self, officer: Officer, seal_id: str, note: str = "") -> Seal:
        """The application is in order."""
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, Act.REVIEW, officer)
        imprint = await self._desk.call(self._seals.imprint, seal_id)
        detail = {"note": printable(note, "a note", 0, MAX_TEXT_LEN), "imprint_sm3": imprint.sm3.hex()}
        return await self._desk.advance(self._desk.step(seal, row, officer.name, detail=detail))

    async def refuse(self, officer: Officer, seal_id: str, reason: str) -> Seal:
        """With a reason, which is told (003 §7)."""
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, Act.REFUSE, officer)
        detail = {"reason": printable(reason, "a reason", 1, MAX_TEXT_LEN)}
        changes = {"ended_at": self._desk.instant()}
        step = self._desk.step(seal, row, officer.name, detail=detail, changes=changes, holds_place=False)
        return await self._desk.advance(step)

    # After the making -----------------------------------------------------------------------------------

    async def file(self, officer: Officer, seal_id: str, receipt: str) -> Seal:
        """The public security's receipt, recorded by hand."""
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, Act.FILE, officer)
        receipt = printable(receipt, "a receipt", 1, MAX_RECEIPT_LEN)
        now = self._desk.instant()
        step = self._desk.step(
            seal, row, officer.name, changes={"filed_at": now}, detail={"receipt": receipt, "by_hand": True}
        )
        filed = await self._desk.advance(step)
        # A crash here leaves the message in the outbox: it is sent once more, and its seal is filed already.
        messages = self._desk.registry.messages
        for message in await self._desk.call(messages.messages, True, "", MAX_MESSAGES, seal_id):
            if message.kind is MessageKind.MADE:
                with suppress(Conflict):  # it was delivered at this moment
                    await self._desk.call(messages.delivered, message.id, receipt, now)
        return filed

    async def confirm(self, officer: Officer, seal_id: str, imprint_sm3: bytes) -> Seal:
        """The applicant has looked at the imprint (003 §10): the hash of what was seen says which."""
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, Act.CONFIRM, officer)
        imprint = await self._desk.call(self._seals.imprint, seal_id)
        if imprint_sm3 != imprint.sm3:
            raise Conflict(
                "the imprint that was looked at is not the seal's (003 §10)",
                hint="look at the seal's own imprint, and give its SM3 hash",
            )
        changes = {"confirmed_at": self._desk.instant()}
        detail = {"imprint_sm3": imprint.sm3.hex()}
        return await self._desk.advance(
            self._desk.step(seal, row, officer.name, changes=changes, detail=detail)
        )

    async def activate(self, officer: Officer, seal_id: str, password: str) -> Seal:
        """The custodian takes the seal over and sets its protection password; what it replaces is cancelled."""
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, Act.ACTIVATE, officer)
        check_custodian(seal, officer)
        if seal.confirmed_at is None:
            raise Conflict(
                "the applicant has not confirmed the imprint (003 §10)", hint="have a clerk confirm it first"
            )
        check_within_validity(seal, self._desk.now())
        first = await self._protection.set_first(seal, password, officer.name)
        step = self._desk.step(
            seal,
            row,
            officer.name,
            changes={"activated_at": self._desk.instant()},
            password=first,
            holds_place=True,
        )
        return await self._desk.advance(step, *await self._replacement(seal, officer))

    async def _replacement(self, seal: Seal, officer: Officer) -> list[Step]:
        """The step that ends the seal which this one replaces, where it has not ended since the application."""
        if seal.replaces is None:
            return []
        old = await self._desk.seal(seal.replaces)
        if old.state is State.CANCELLED:
            return []
        row = by_itself(old, Act.REPLACE)
        words = f"replaced by seal {seal.code}"
        changes = {"replaced_by": seal.id}
        return [await self._ending.step(old, row, Reason.CHANGED, words, officer.name, changes=changes)]

    # In use ---------------------------------------------------------------------------------------------

    async def suspend(self, officer: Officer, seal_id: str, reason: str) -> Seal:
        """At once and alone: it holds from the next request on, on every front, when this returns."""
        return await self._switch(officer, seal_id, Act.SUSPEND, reason)

    async def resume(self, officer: Officer, seal_id: str, reason: str) -> Seal:
        """The reason for the suspension is gone."""
        return await self._switch(officer, seal_id, Act.RESUME, reason)

    async def _switch(self, officer: Officer, seal_id: str, act: Act, reason: str) -> Seal:
        seal = await self._desk.seal(seal_id)
        row = permitted(seal, act, officer)
        detail = {"reason": printable(reason, "a reason", 1, MAX_TEXT_LEN)}
        if act is Act.RESUME:
            check_within_validity(seal, self._desk.now())
        return await self._desk.advance(self._desk.step(seal, row, officer.name, detail=detail))


def check_custodian(seal: Seal, officer: Officer) -> None:
    """``Denied`` to everybody but the seal's own custodian."""
    if officer.name != seal.custodian or Role.CUSTODIAN not in officer.roles:
        raise Denied(
            f"the seal's custodian is {seal.custodian!r}, not {officer.name!r}",
            hint="the application names who keeps a seal",
        )


def _check_manages_organisations(officer: Officer) -> None:
    if not officer.roles & MANAGES_ORGANISATIONS:
        raise Denied(
            f"organisations: officer {officer.name!r} may not", hint="it takes the role clerk or reviewer"
        )


def _checked(application: Application, organisation: Organisation) -> dict[str, str]:
    """What was written, stripped; ``BadRequest`` where the kind of seal asks for something else."""
    kind = application.kind
    text = {
        "name": printable(application.name, "a seal's name", 1, MAX_NAME_LEN),
        "purpose": printable(application.purpose, "a purpose", int(kind in NEEDS_PURPOSE), MAX_NAME_LEN),
        "holder": printable(application.holder, "a holder's name", int(kind in NEEDS_HOLDER), MAX_NAME_LEN),
        "note": printable(application.note, "a note", 0, MAX_TEXT_LEN),
    }
    if kind in UNDER_STATUTORY_NAME and not text["name"].startswith(organisation.name):
        raise BadRequest(
            f"a {kind.value} seal's name begins with the organisation's statutory name (004 §3.1)",
            hint=f"{organisation.name}…",
        )
    if kind not in NEEDS_HOLDER and text["holder"]:
        raise BadRequest(f"a {kind.value} seal has no holder", hint="leave it out")
    if kind in (Kind.STATUTORY, Kind.PERSONAL) and text["purpose"]:
        raise BadRequest(f"a {kind.value} seal has no purpose of its own", hint="leave it out")
    lowest, highest = (1, MAX_NUMBER) if kind is Kind.SPECIAL else (0, 0)
    if application.number is not None and not lowest <= application.number <= highest:
        raise BadRequest(
            f"number {application.number}: special seals of one purpose are numbered from 1, others not at all",
            hint="leave it out: the next free one is taken (004 §3.1)",
        )
    if application.filed_imprint_sm3 is not None and len(application.filed_imprint_sm3) != SHA_LEN:
        raise BadRequest("filed_imprint_sm3 is no SM3 hash", hint="32 bytes, 64 hexadecimal digits")
    if len(application.papers) > MAX_PAPERS:
        raise BadRequest(f"{len(application.papers)} papers", hint=f"expected at most {MAX_PAPERS}")
    return text
