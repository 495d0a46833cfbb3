"""Seals and their records: organisations, applications, imprints, makings, events, documents.

For: acts as single transactions that hold only where the seal is still as the act saw it; look-ups; what time asks for.
Not for: who may do an act, or what it needs (``office``).

Rules:

* ``advance`` is the only way from one state to another. Each step names the version and the state it saw; a row count
  other than 1 undoes them all.
* A step for which ``TRANSITIONS`` has no row is refused here too.
* One living seal holds a place (organisation, kind, purpose, number, holder), and one the statutory place of an
  organisation: unique indexes see to it, whoever races. A seal that is to replace another gets its place when that
  one ends.
* With a seal's end it is settled until when its records are kept; the tables refuse to delete them before, or ever to
  alter them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from typing import Any, Final

from appliance.errors import Conflict, NotFound
from appliance.lifecycle import (
    RETAIN_FOR,
    TRANSITIONS,
    Act,
    Document,
    DocumentKind,
    Event,
    Generation,
    Imprint,
    Kind,
    Message,
    Organisation,
    ProposalState,
    ProtectionPassword,
    Reason,
    Seal,
    State,
    transition,
)
from appliance.registry.database import (
    Part,
    Row,
    Rule,
    Transaction,
    Value,
    Violation,
    atomic,
    containing,
    page,
)
from appliance.registry.record import (
    EVENT_COLUMNS,
    add_event,
    add_messages,
    end_proposal,
    read_event,
    to_json,
)

ENDS: Final = frozenset(State) - {source for source, _ in TRANSITIONS}
"""States from which no row leads."""
EXPIRING: Final = frozenset(source for source, act in TRANSITIONS if act is Act.EXPIRE)
"""States that the end of validity ends."""
UNCOLLECTED: Final = frozenset(source for source, act in TRANSITIONS if act is Act.ABANDON)
"""States in which a seal waits to be collected."""
CODE_DIGITS: Final = 8
"""Of a seal's code, after the six of its region."""

_COLUMNS: Final = ", ".join(field.name for field in fields(Seal))
_SELECT: Final = f"SELECT {_COLUMNS} FROM seal"
_CHANGEABLE: Final = frozenset(
    {
        "code",
        "name",
        "custodian",
        "generation",
        "key_name",
        "valid_from",
        "valid_to",
        "made_at",
        "filed_at",
        "confirmed_at",
        "activated_at",
        "ended_at",
        "end_reason",
        "replaced_by",
    }
)
"""What a step may change besides state and version. Whose seal it is, and what it was applied for as, stays."""


@dataclass(frozen=True, slots=True)
class SealFilter:
    """Which seals: all that fit everything given. ``text`` is part of the name, or the whole code."""

    organisation: str | None = None
    kind: Kind | None = None
    state: State | None = None
    region: str | None = None
    custodian: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """What the next making of a seal will be made with: its key, and the certificate once the CA has issued it."""

    seal_id: str
    key_name: str
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class Step:
    """An act on a seal that was seen at ``version`` in ``source``, with everything that belongs to it.

    ``password`` is the seal's first protection password. ``holds_place`` true takes the place that another step of the
    same act gives up; an end gives it up by itself. ``proposal_done`` is the id of the approved proposal that this
    carries out, and its outcome. ``unless_used_after`` holds only where the seal was last used at that instant or
    before it, for acts that idleness asks for: use does not change the version.
    """

    seal_id: str
    version: int
    source: State
    target: State
    changes: Mapping[str, Any]
    event: Event
    generation: Generation | None = None
    messages: tuple[Message, ...] = ()
    documents: tuple[Document, ...] = ()
    password: ProtectionPassword | None = None
    holds_place: bool | None = None
    proposal_done: tuple[str, str] | None = None
    unless_used_after: str | None = None


class SealRecords(Part):
    """The registry's seals."""

    # Organisations --------------------------------------------------------------------------------------

    @atomic
    def add_organisation(self, transaction: Transaction, organisation: Organisation) -> None:
        """The same again is no error; another name or region under the code is a ``Conflict``."""
        transaction.execute(
            "INSERT INTO organisation (code, name, region) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            organisation.code,
            organisation.name,
            organisation.region,
        )
        known = _organisation(transaction.rows(_ONE_ORGANISATION, organisation.code), organisation.code)
        if known != organisation:
            raise Conflict(
                f"organisation {organisation.code} is {known.name!r} in region {known.region}",
                hint="check the code; where its name or region has changed, change the organisation",
            )

    @atomic
    def change_organisation(self, transaction: Transaction, organisation: Organisation) -> None:
        """Another name or region; seals made under the old one stay as they are. ``NotFound`` without it."""
        done = transaction.execute(
            "UPDATE organisation SET name = ?, region = ? WHERE code = ?",
            organisation.name,
            organisation.region,
            organisation.code,
        )
        if done != 1:
            raise _no_organisation(organisation.code)

    def organisation(self, code: str) -> Organisation:
        """The one of that code, else ``NotFound``."""
        return _organisation(self._database.rows(_ONE_ORGANISATION, code), code)

    def organisations(self, after: str = "", limit: int = 100, text: str | None = None) -> list[Organisation]:
        """By code, those after the one given; ``text`` is part of the name, or the whole code."""
        query, values = "SELECT code, name, region FROM organisation WHERE code > ?", [after]
        if text is not None:
            query += " AND (code = ? OR name LIKE ? ESCAPE '!')"
            values += [text, containing(text)]
        rows = self._database.rows(f"{query} ORDER BY code LIMIT {page(limit)}", *values)
        return [Organisation(*row) for row in rows]

    # Seals ----------------------------------------------------------------------------------------------

    def apply(self, seal: Seal, imprint: Imprint, application: Mapping[str, Any], event: Event) -> Seal:
        """Record an application. ``Conflict`` where a living seal has its place, or is being replaced already."""
        try:
            return self._apply(seal, imprint, application, event)
        except Violation as error:
            raise self._why_not(seal, error) from error

    @atomic
    def _apply(
        self,
        transaction: Transaction,
        seal: Seal,
        imprint: Imprint,
        application: Mapping[str, Any],
        event: Event,
    ) -> Seal:
        transition(None, Act.APPLY)
        assert (seal.state, seal.version, seal.generation) == (State.APPLIED, 1, 0), (
            "a seal begins as an application"
        )
        if seal.replaces is not None:
            _organisation_of(transaction, seal)
        values: list[Value] = [_plain(getattr(seal, field.name)) for field in fields(Seal)]
        marks = ", ".join("?" * len(values))
        transaction.execute(
            f"INSERT INTO seal ({_COLUMNS}, holds_place) VALUES ({marks}, ?)",
            *values,
            seal.replaces is None,
        )
        transaction.execute(
            "INSERT INTO imprint (seal_id, format, data, width_mm, height_mm, sm3) VALUES (?, ?, ?, ?, ?, ?)",
            seal.id,
            imprint.format,
            imprint.data,
            imprint.width_mm,
            imprint.height_mm,
            imprint.sm3,
        )
        transaction.execute(
            "INSERT INTO application (seal_id, body) VALUES (?, ?)", seal.id, to_json(application)
        )
        add_event(transaction, event)
        return _one(transaction, seal.id)

    def _why_not(self, seal: Seal, error: Violation) -> Conflict | NotFound:
        """What stands in the way of an application, in words; its transaction is over."""
        if error.rule is Rule.REFERENCE:
            return _no_organisation(seal.organisation)
        if error.rule is not Rule.UNIQUE:
            return error
        if seal.replaces is not None:
            return Conflict(
                f"seal {seal.replaces} is being replaced already",
                hint="go on with that application, or refuse it",
            )
        holder = self._database.rows(
            "SELECT id, state FROM seal WHERE organisation = ? AND kind = ? AND holds_place = TRUE"
            " AND (kind = 'statutory' OR (purpose = ? AND number = ? AND holder = ?))",
            seal.organisation,
            seal.kind.value,
            seal.purpose,
            seal.number,
            seal.holder,
        )
        if not holder:
            return Conflict(f"there is a seal {seal.id!r} or code {seal.code!r} already")
        id_, state = holder[0]
        return Conflict(
            f"seal {id_} ({state}) has this place: one living seal for each organisation, kind, purpose, number and"
            " holder, and one statutory seal for each organisation (004 §1)",
            hint="apply for its replacement, give another number, or have it cancelled first",
        )

    def seal(self, id_: str) -> Seal:
        """The one of that id, else ``NotFound``."""
        return _seal(self._database.rows(f"{_SELECT} WHERE id = ?", id_), id_)

    def seal_by_code(self, code: str) -> Seal:
        """The one made under that code, else ``NotFound``."""
        return _seal(self._database.rows(f"{_SELECT} WHERE code = ? AND code <> ''", code), code)

    def seals(self, which: SealFilter, after: str = "", limit: int = 100) -> list[Seal]:
        """By id, those after the one given."""
        query, values = f"{_SELECT} WHERE id > ?", list[Value]([after])
        for column in ("organisation", "kind", "state", "region", "custodian"):
            wanted = getattr(which, column)
            if wanted is not None:
                query += f" AND {column} = ?"
                values.append(_plain(wanted))
        if which.text is not None:
            query += " AND (code = ? OR name LIKE ? ESCAPE '!')"
            values += [which.text, containing(which.text)]
        rows = self._database.rows(f"{query} ORDER BY id LIMIT {page(limit)}", *values)
        return [_read(row) for row in rows]

    def application(self, seal_id: str) -> Mapping[str, Any]:
        """What was applied for, as it came."""
        rows = self._database.rows("SELECT body FROM application WHERE seal_id = ?", seal_id)
        if not rows:
            raise _no_seal(seal_id)
        body: dict[str, Any] = json.loads(rows[0][0])
        return body

    def imprint(self, seal_id: str) -> Imprint:
        """The picture on file."""
        rows = self._database.rows(
            "SELECT format, data, width_mm, height_mm, sm3 FROM imprint WHERE seal_id = ?", seal_id
        )
        if not rows:
            raise _no_seal(seal_id)
        return Imprint(*rows[0])

    def generation(self, seal_id: str, number: int) -> Generation:
        """What that making left, else ``NotFound``."""
        rows = self._database.rows(
            "SELECT seal_id, number, key_name, certificate, eseal, valid_from, valid_to, made_at FROM generation"
            " WHERE seal_id = ? AND number = ?",
            seal_id,
            number,
        )
        if not rows:
            raise NotFound(f"seal {seal_id!r} has no making number {number}", hint="cloud-seal seal show")
        return Generation(*rows[0])

    def pending(self, seal_id: str) -> Pending | None:
        """What its next making will be made with, where that has begun."""
        rows = self._database.rows(
            "SELECT seal_id, key_name, certificate FROM pending WHERE seal_id = ?", seal_id
        )
        return Pending(*rows[0]) if rows else None

    def events(self, seal_id: str) -> list[Event]:
        """Its whole record, in the order in which it was written."""
        rows = self._database.rows(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE seal_id = ? ORDER BY id",
            seal_id,
        )
        return [read_event(row) for row in rows]

    def documents(self, seal_id: str) -> list[Document]:
        """Its making and cancellation certificates, in the order in which they were issued."""
        rows = self._database.rows(
            "SELECT seal_id, kind, issued_at, body, signature, signer FROM document WHERE seal_id = ? ORDER BY id",
            seal_id,
        )
        return [Document(row[0], DocumentKind(row[1]), *row[2:]) for row in rows]

    # Acts -----------------------------------------------------------------------------------------------

    @atomic
    def advance(self, transaction: Transaction, step: Step, *more: Step) -> Seal:
        """All steps or none; the first one's seal. ``Conflict`` where one is not as its step saw it."""
        steps = (step, *more)
        for one in steps:
            _take(transaction, one)
        for one in steps:  # now that the others have given up theirs
            if one.holds_place:
                _take_place(transaction, one)
        return _one(transaction, step.seal_id)

    @atomic
    def note(
        self, transaction: Transaction, event: Event, proposal_done: tuple[str, str] | None = None
    ) -> None:
        """An event that changes no state; ``Conflict`` where the seal has left the state it names.

        ``proposal_done`` is as in a ``Step``: with a proposal that is done already, nothing is noted once more.
        """
        add_event(transaction, event)
        if proposal_done is not None:
            id_, outcome = proposal_done
            end_proposal(transaction, id_, ProposalState.DONE, outcome)
        if _one(transaction, event.seal_id).state is not event.target:
            raise Conflict(f"seal {event.seal_id} is no longer {event.target.value}", hint="look at it again")

    @atomic
    def set_pending(
        self,
        transaction: Transaction,
        seal_id: str,
        version: int,
        key_name: str,
        certificate: bytes | None,
        event: Event | None = None,
    ) -> Seal:
        """The key of the next making, then its certificate: before the first making, or for a renewal."""
        done = transaction.execute(
            "UPDATE seal SET version = version + 1, key_name = CASE WHEN state = 'reviewed' THEN ? ELSE key_name END"
            " WHERE id = ? AND version = ? AND state IN ('reviewed', 'active')",
            key_name,
            seal_id,
            version,
        )
        if done != 1:
            raise _changed(_one(transaction, seal_id), version, "reviewed or active")
        try:
            transaction.execute(
                "INSERT INTO pending (seal_id, key_name, certificate) VALUES (?, ?, ?) ON CONFLICT (seal_id)"
                " DO UPDATE SET key_name = excluded.key_name, certificate = excluded.certificate",
                seal_id,
                key_name,
                certificate,
            )
        except Violation as error:
            raise Conflict(
                f"key {key_name!r} is another seal's", hint="each seal has a key of its own"
            ) from error
        if event is not None:
            add_event(transaction, event)
        return _one(transaction, seal_id)

    @atomic
    def next_code(self, transaction: Transaction, region: str) -> str:
        """The region's six digits and eight of a sequence; never given twice, with gaps where a making failed."""
        try:
            rows = transaction.rows(
                "INSERT INTO code_sequence (region, given) VALUES (?, 1) ON CONFLICT (region)"
                " DO UPDATE SET given = code_sequence.given + 1 RETURNING given",
                region,
            )
        except Violation as error:
            raise Conflict(
                f"region {region} has no codes left", hint="a code has eight digits after the region"
            ) from error
        return f"{region}{rows[0][0]:0{CODE_DIGITS}}"

    # What time asks for -----------------------------------------------------------------------------------

    def due_to_expire(self, now: str, limit: int = 100) -> list[Seal]:
        """Whose validity has ended, the longest ago first."""
        return self._due("expires_at", now, limit)

    def due_to_sleep(self, before: str, limit: int = 100) -> list[Seal]:
        """Active ones that have been neither used nor woken since, the longest idle first."""
        return self._due(
            "idle_from", before, limit, " AND (last_used_at IS NULL OR last_used_at < ?)", before
        )

    def due_to_abandon(self, before: str, limit: int = 100) -> list[Seal]:
        """Made before then and not collected, the oldest first."""
        return self._due("uncollected_from", before, limit)

    def _due(self, column: str, instant: str, limit: int, condition: str = "", *values: Value) -> list[Seal]:
        query = f"{_SELECT} WHERE {column} < ?{condition} ORDER BY {column} LIMIT {page(limit)}"
        return [_read(row) for row in self._database.rows(query, instant, *values)]

    @atomic
    def purge(self, transaction: Transaction, now: str, limit: int = 100) -> int:
        """Delete the records of seals that are kept no longer; how many seals those were.

        The tables look at their own clock: one of ours that runs ahead deletes nothing.
        """
        gone = transaction.rows(
            f"SELECT id FROM seal WHERE retain_until <= ? ORDER BY retain_until LIMIT {page(limit)}",
            now,
        )
        for table, column in _RECORDS:
            transaction.execute_many(f"DELETE FROM {table} WHERE {column} = ?", gone)
        return len(gone)


_RECORDS: Final = (
    ("use_of_seal", "seal_id"),
    ("reservation", "seal_id"),
    ("seal_grant", "seal_id"),
    ("protection", "seal_id"),
    ("pending", "seal_id"),
    ("message", "seal_id"),
    ("proposal", "target"),
    ("document", "seal_id"),
    ("event", "seal_id"),
    ("generation", "seal_id"),
    ("imprint", "seal_id"),
    ("application", "seal_id"),
    ("seal", "id"),
)
"""Every table with something of a seal's, and by which column; the seal itself last."""


def _take(transaction: Transaction, step: Step) -> None:
    """One step, but for the place it takes."""
    _check(step)
    changes: dict[str, Any] = dict(step.changes)
    if step.target in ENDS:
        end = datetime.fromisoformat(step.event.at)
        changes["holds_place"] = False
        changes["retain_until"] = (end + RETAIN_FOR).isoformat(timespec="milliseconds")
    elif step.holds_place is False:
        changes["holds_place"] = False
    copied = _due(step, changes)
    assignments = "".join(f", {column} = ?" for column in changes) + copied
    condition = "id = ? AND version = ? AND state = ?"
    values: list[Value] = [step.seal_id, step.version, step.source.value]
    if step.unless_used_after is not None:
        condition += " AND (last_used_at IS NULL OR last_used_at <= ?)"
        values.append(step.unless_used_after)
    try:
        done = transaction.execute(
            f"UPDATE seal SET state = ?, version = version + 1{assignments} WHERE {condition}",
            step.target.value,
            *(_plain(value) for value in changes.values()),
            *values,
        )
    except Violation as error:
        if error.rule is Rule.UNIQUE:
            raise Conflict(f"seal code {step.changes.get('code')!r} is another seal's") from error
        raise
    if done != 1:
        raise _changed(_one(transaction, step.seal_id), step.version, step.source.value)
    if step.generation is not None:
        _add_generation(transaction, step.generation)
    for document in step.documents:
        transaction.execute(
            "INSERT INTO document (seal_id, kind, issued_at, body, signature, signer) VALUES (?, ?, ?, ?, ?, ?)",
            document.seal_id,
            document.kind.value,
            document.issued_at,
            document.body,
            document.signature,
            document.signer,
        )
    if step.password is not None:
        _add_password(transaction, step.password)
    add_messages(transaction, step.messages)
    add_event(transaction, step.event)
    if step.proposal_done is not None:
        id_, outcome = step.proposal_done
        end_proposal(transaction, id_, ProposalState.DONE, outcome)


def _due(step: Step, changes: dict[str, Any]) -> str:
    """From when on time asks something of the seal: columns of their own, empty where it asks nothing.

    So each is found by its own index alone, whatever else is known of the seal.
    """
    if step.target is not State.ACTIVE:
        changes["idle_from"] = None
    elif step.source is not State.ACTIVE:
        changes["idle_from"] = step.event.at  # woken today, it does not fall asleep again tomorrow
    assignments = ""
    for column, source, states in (
        ("expires_at", "valid_to", EXPIRING),
        ("uncollected_from", "made_at", UNCOLLECTED),
    ):
        if step.target not in states:
            changes[column] = None
        elif source in changes:
            changes[column] = changes[source]
        else:
            assignments += f", {column} = {source}"
    return assignments


def _check(step: Step) -> None:
    """What a step must be in itself; the rest is in the ``WHERE``."""
    unknown = step.changes.keys() - _CHANGEABLE
    assert not unknown, f"a step does not change {unknown}"
    assert step.event.seal_id == step.seal_id, "an event belongs to its step's seal"
    assert (step.event.source, step.event.target) == (step.source, step.target), (
        "an event says what its step does"
    )
    row = transition(step.source, Act(step.event.act))
    if row.target is not step.target:
        raise Conflict(
            f"{step.event.act}: a seal that is {step.source.value} becomes {row.target.value} by it,"
            f" not {step.target.value}"
        )


def _take_place(transaction: Transaction, step: Step) -> None:
    try:
        transaction.execute("UPDATE seal SET holds_place = TRUE WHERE id = ?", step.seal_id)
    except Violation as error:
        raise Conflict(
            f"seal {step.seal_id} cannot take the place of another living seal",
            hint="have that one cancelled, in the same act or before",
        ) from error


def _add_generation(transaction: Transaction, one: Generation) -> None:
    try:
        transaction.execute(
            "INSERT INTO generation (seal_id, number, key_name, certificate, eseal, valid_from, valid_to, made_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            one.seal_id,
            one.number,
            one.key_name,
            one.certificate,
            one.eseal,
            one.valid_from,
            one.valid_to,
            one.made_at,
        )
    except Violation as error:
        raise Conflict(f"seal {one.seal_id} has a making number {one.number} already") from error
    transaction.execute("DELETE FROM pending WHERE seal_id = ?", one.seal_id)


def _add_password(transaction: Transaction, one: ProtectionPassword) -> None:
    try:
        transaction.execute(
            "INSERT INTO protection (seal_id, password_hash, set_by, set_at, failures, locked, generation)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            one.seal_id,
            one.password_hash,
            one.set_by,
            one.set_at,
            one.failures,
            one.locked,
            one.generation,
        )
    except Violation as error:
        raise Conflict(
            f"seal {one.seal_id} has a protection password already", hint="rotate it, or have it reset"
        ) from error


_ONE_ORGANISATION: Final = "SELECT code, name, region FROM organisation WHERE code = ?"


def _organisation(rows: list[Row], code: str) -> Organisation:
    if not rows:
        raise _no_organisation(code)
    return Organisation(*rows[0])


def _organisation_of(transaction: Transaction, seal: Seal) -> None:
    """A replacement is for a living seal of the same organisation."""
    found = transaction.rows("SELECT organisation, state FROM seal WHERE id = ?", seal.replaces or "")
    if not found or found[0][0] != seal.organisation:
        raise NotFound(
            f"organisation {seal.organisation} has no seal {seal.replaces!r} that could be replaced",
            hint="cloud-seal seal list --organisation CODE",
        )
    if State(found[0][1]) in ENDS:
        raise Conflict(f"seal {seal.replaces} is {found[0][1]}", hint="apply for a seal that replaces none")


def _no_organisation(code: str) -> NotFound:
    return NotFound(f"no organisation {code!r}", hint="add the organisation first")


def _no_seal(id_: str) -> NotFound:
    return NotFound(f"no seal {id_!r}", hint="check the id: cloud-seal seal list")


def _changed(seal: Seal, version: int, wanted: str) -> Conflict:
    """The row count was 0."""
    if seal.version == version:
        return Conflict(
            f"seal {seal.id} is {seal.state.value}, not {wanted}, or has been used since",
            hint="look at it again",
        )
    return Conflict(
        f"seal {seal.id} has changed meanwhile: it is {seal.state.value} at version {seal.version}, not {version}",
        hint="look at it again, then decide again",
    )


def _one(transaction: Transaction, id_: str) -> Seal:
    return _seal(transaction.rows(f"{_SELECT} WHERE id = ?", id_), id_)


def _seal(rows: list[Row], id_: str) -> Seal:
    if not rows:
        raise _no_seal(id_)
    return _read(rows[0])


_ENUMS: Final[tuple[tuple[int, type[Enum]], ...]] = tuple(
    (index, kind)
    for index, field in enumerate(fields(Seal))
    for name, kind in (("kind", Kind), ("state", State), ("end_reason", Reason))
    if field.name == name
)


def _read(row: Row) -> Seal:
    values = list(row)
    for index, kind in _ENUMS:
        if values[index] is not None:
            values[index] = kind(values[index])
    return Seal(*values)


def _plain(value: Any) -> Value:
    plain: Value = value.value if isinstance(value, Enum) else value
    return plain
