"""The life of a seal: its kinds, its states, and which act leads from which state to which, as one table.

For: the values that describe seals, officers, grants, proposals and messages; pure rules over them.
Not for: doing any act (``office``), keeping anything (``registry``).

Rules:

* ``TRANSITIONS`` is all there is: an act that has no row for the state a seal is in is refused, with the acts that
  have one.
* A row says who may do the act, and whether a second person must approve it.
* What time does by itself (expiry, dormancy, an uncollected seal) are acts of ``SYSTEM``, in the same table.
* A state from which no row leads is an end; its records stay, and nothing brings the seal back.

Sources: the numbers of clauses are those of the regulations as ``rules.md`` of the design cites them: 003 is a
province's rules for electronic seals, 004 a city's rules for seal making.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from appliance.errors import BadRequest, Conflict, Denied

RENEWAL_WINDOW: Final = timedelta(days=30)
"""A seal is renewed at the earliest so long before its end (003 §12)."""
DORMANT_AFTER: Final = timedelta(days=365)
"""A seal unused for so long is put to sleep; waking it needs a fresh application (003 §12)."""
COLLECT_WITHIN: Final = timedelta(days=92)
"""A seal not collected within three months of its making is cancelled (004 §3.2.8); they have at most 92 days."""
FILE_WITHIN: Final = timedelta(hours=24)
"""Making, change and cancellation are filed with the public security within a day (004 §3.2.2)."""
RETAIN_FOR: Final = timedelta(days=5 * 366)
"""Records of a seal are kept for five years after its end (004 §3.2.4), counted so that no leap year shortens them."""

SYSTEM: Final = "system"
"""Who did it where time did it."""


class Kind(Enum):
    """What a seal is the seal of (003 §4, 004 §1)."""

    STATUTORY = "statutory"
    """An organisation's statutory name (法定名称章): one at a time."""
    DEPARTMENT = "department"
    """A department or branch, under the statutory name (内设机构章)."""
    SPECIAL = "special"
    """A special purpose (业务专用章): contract, finance, invoice …; several of one purpose are numbered."""
    OFFICE = "office"
    """An office-holder's, tied to the organisation (电子职务章)."""
    PERSONAL = "personal"
    """A person's own (个人名章)."""


class State(Enum):
    """Where a seal stands in its life."""

    APPLIED = "applied"
    REFUSED = "refused"
    REVIEWED = "reviewed"
    MADE = "made"
    FILED = "filed"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DORMANT = "dormant"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Act(Enum):
    """What is done to a seal."""

    APPLY = "apply"
    REVIEW = "review"
    REFUSE = "refuse"
    MAKE = "make"
    FILE = "file"
    CONFIRM = "confirm"
    ACTIVATE = "activate"
    SUSPEND = "suspend"
    RESUME = "resume"
    RENEW = "renew"
    WAKE = "wake"
    CANCEL = "cancel"
    EXPIRE = "expire"
    SLEEP = "sleep"
    ABANDON = "abandon"
    REPLACE = "replace"
    """Cancelled because the seal that was made in its place is active (换领). Two people wanted that one made, and its
    application names this one: it takes no further proposal."""


class Role(Enum):
    """What an officer is trusted with. One person may have several; two-person acts need two persons all the same."""

    CLERK = "clerk"
    """Applies, confirms imprints, collects seals (经办人)."""
    REVIEWER = "reviewer"
    """Reviews applications (审核)."""
    MAKER = "maker"
    """Makes and renews seals (制作)."""
    FILER = "filer"
    """Files with the public security (备案)."""
    SECURITY = "security"
    """Suspends, cancels, resets passwords, approves what is critical (安全管理员)."""
    AUDITOR = "auditor"
    """Reads everything, changes nothing (审计员)."""
    CUSTODIAN = "custodian"
    """Keeps seals: sets and rotates their protection passwords (印章保管人)."""


class Reason(Enum):
    """Why a seal was cancelled (003 §17–18, 004 §3.2.8)."""

    WITHDRAWN = "withdrawn"
    LOST = "lost"
    KEY_COMPROMISED = "key_compromised"
    ORGANISATION_ENDED = "organisation_ended"
    CHANGED = "changed"
    NOT_COLLECTED = "not_collected"


INVALID_TYPES: Final = {
    Reason.WITHDRAWN: 1,
    Reason.LOST: 2,
    Reason.KEY_COMPROMISED: 0,
    Reason.ORGANISATION_ENDED: 1,
    Reason.CHANGED: 1,
    Reason.NOT_COLLECTED: 1,
}
"""The national platform's ``invalidType``: 0 revoked (吊销), 1 withdrawn (撤销), 2 reported lost (挂失)."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of the table. Any one of ``roles`` is enough; it is empty where no person does it.

    ``by_system``: it comes about by itself too, by time, by a receipt, or as a consequence of another seal's act.
    """

    act: Act
    source: State | None
    target: State
    roles: frozenset[Role]
    two_people: bool = False
    by_system: bool = False


def _row(
    act: Act,
    sources: tuple[State | None, ...],
    target: State | None,
    *roles: Role,
    two: bool = False,
    system: bool = False,
) -> list[Transition]:
    rows = []
    for source in sources:
        end = target if target is not None else source
        assert end is not None
        rows.append(Transition(act, source, end, frozenset(roles), two, system or not roles))
    return rows


_LIVING: Final = (State.MADE, State.FILED, State.ACTIVE, State.SUSPENDED, State.DORMANT, State.EXPIRED)

_ROWS: Final = (
    *_row(Act.APPLY, (None,), State.APPLIED, Role.CLERK),
    *_row(Act.REVIEW, (State.APPLIED,), State.REVIEWED, Role.REVIEWER),
    *_row(Act.REFUSE, (State.APPLIED, State.REVIEWED), State.REFUSED, Role.REVIEWER),
    *_row(Act.MAKE, (State.REVIEWED,), State.MADE, Role.MAKER, two=True),
    *_row(Act.FILE, (State.MADE,), State.FILED, Role.FILER, system=True),
    *_row(Act.CONFIRM, (State.MADE, State.FILED), None, Role.CLERK),
    *_row(Act.ACTIVATE, (State.FILED,), State.ACTIVE, Role.CUSTODIAN),
    *_row(Act.SUSPEND, (State.ACTIVE,), State.SUSPENDED, Role.SECURITY),
    *_row(Act.RESUME, (State.SUSPENDED,), State.ACTIVE, Role.SECURITY),
    *_row(Act.RENEW, (State.ACTIVE,), State.ACTIVE, Role.MAKER, two=True),
    *_row(Act.WAKE, (State.DORMANT,), State.ACTIVE, Role.REVIEWER, two=True),
    *_row(Act.CANCEL, _LIVING, State.CANCELLED, Role.SECURITY, two=True),
    *_row(Act.EXPIRE, (State.ACTIVE, State.SUSPENDED, State.DORMANT), State.EXPIRED),
    *_row(Act.SLEEP, (State.ACTIVE,), State.DORMANT),
    *_row(Act.ABANDON, (State.MADE, State.FILED), State.CANCELLED),
    *_row(Act.REPLACE, _LIVING, State.CANCELLED),
)

TRANSITIONS: Final[Mapping[tuple[State | None, Act], Transition]] = {
    (row.source, row.act): row for row in _ROWS
}
"""(state, act) -> row. ``None`` is the state of a seal that does not exist yet."""
assert len(TRANSITIONS) == len(_ROWS), "two rows for one state and act"


def transition(state: State | None, act: Act) -> Transition:
    """The row, else ``Conflict`` with what can be done in that state."""
    row = TRANSITIONS.get((state, act))
    if row is not None:
        return row
    possible = sorted(known.act.value for known in _ROWS if known.source is state and known.roles)
    raise Conflict(
        f"{act.value}: a seal that is {state.value if state else 'not there'} does not allow it",
        hint=f"possible now: {', '.join(possible)}"
        if possible
        else "this seal's life has ended; apply for a new one",
    )


def check_role(row: Transition, roles: frozenset[Role], officer: str) -> None:
    """``Denied`` where none of the officer's roles is enough for the act."""
    if not row.roles & roles:
        names = " or ".join(sorted(role.value for role in row.roles)) or "nobody: time does it by itself"
        raise Denied(f"{row.act.value}: officer {officer!r} may not", hint=f"it takes the role {names}")


class CriticalAct(Enum):
    """What two different people must want: one proposes, another approves."""

    MAKE = "make"
    RENEW = "renew"
    WAKE = "wake"
    CANCEL = "cancel"
    GRANT = "grant"
    REVOKE = "revoke"
    RESET_PASSWORD = "reset-password"  # noqa: S105  # the name of an act
    DESTROY_KEY = "destroy-key"


PROPOSERS: Final[Mapping[CriticalAct, frozenset[Role]]] = {
    CriticalAct.MAKE: frozenset({Role.MAKER}),
    CriticalAct.RENEW: frozenset({Role.MAKER}),
    CriticalAct.WAKE: frozenset({Role.REVIEWER}),
    CriticalAct.CANCEL: frozenset({Role.SECURITY, Role.CLERK}),
    CriticalAct.GRANT: frozenset({Role.SECURITY, Role.CUSTODIAN}),
    CriticalAct.REVOKE: frozenset({Role.SECURITY, Role.CUSTODIAN}),
    CriticalAct.RESET_PASSWORD: frozenset({Role.SECURITY}),
    CriticalAct.DESTROY_KEY: frozenset({Role.SECURITY}),
}
"""Who may propose."""

APPROVERS: Final[Mapping[CriticalAct, frozenset[Role]]] = {
    CriticalAct.MAKE: frozenset({Role.MAKER, Role.SECURITY}),
    CriticalAct.RENEW: frozenset({Role.MAKER, Role.SECURITY}),
    CriticalAct.WAKE: frozenset({Role.REVIEWER, Role.SECURITY}),
    CriticalAct.CANCEL: frozenset({Role.SECURITY}),
    CriticalAct.GRANT: frozenset({Role.SECURITY}),
    CriticalAct.REVOKE: frozenset({Role.SECURITY}),
    CriticalAct.RESET_PASSWORD: frozenset({Role.SECURITY}),
    CriticalAct.DESTROY_KEY: frozenset({Role.SECURITY}),
}
"""Who may approve; never the person who proposed."""

OFFICIAL_KINDS: Final = frozenset({Kind.STATUTORY, Kind.DEPARTMENT, Kind.SPECIAL})
"""Official seals (公章): a change of their grants takes two people; for others a security officer is enough."""


# Values -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Organisation:
    """Who uses seals. ``code`` is the unified social credit code (GB 32100, 18 characters)."""

    code: str
    name: str
    region: str


@dataclass(frozen=True, slots=True)
class Imprint:
    """The picture of a seal. ``sm3`` is its hash, 32 bytes; sizes in mm."""

    format: str
    data: bytes
    width_mm: int
    height_mm: int
    sm3: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal as the registry has it, without its pictures and documents.

    Instants are ISO 8601 in UTC with milliseconds (``2026-11-22T04:30:00.000+00:00``), ``None`` where it has not
    happened. ``version`` counts changes; ``generation`` counts makings (1 the first, more by renewal).
    """

    id: str
    code: str
    organisation: str
    kind: Kind
    purpose: str
    number: int
    name: str
    region: str
    holder: str
    custodian: str
    applicant: str
    state: State
    version: int
    generation: int
    key_name: str | None
    valid_from: str | None
    valid_to: str | None
    applied_at: str
    made_at: str | None
    filed_at: str | None
    confirmed_at: str | None
    activated_at: str | None
    last_used_at: str | None
    ended_at: str | None
    end_reason: Reason | None
    replaces: str | None
    replaced_by: str | None


@dataclass(frozen=True, slots=True)
class Generation:
    """What a making left: the certified seal (DER ``SESeal``), its certificate and the key it is for."""

    seal_id: str
    number: int
    key_name: str
    certificate: bytes
    eseal: bytes
    valid_from: str
    valid_to: str
    made_at: str


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a seal's record: written with the act, never altered, never deleted before its time."""

    seal_id: str
    at: str
    act: str
    source: State | None
    target: State
    officer: str
    approver: str | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Officer:
    """A person with credentials of their own. ``password_hash`` is an Argon2id string."""

    name: str
    display_name: str
    roles: frozenset[Role]
    password_hash: str
    disabled: bool
    created_at: str


@dataclass(frozen=True, slots=True)
class OfficerEvent:
    """A line of an officer's record: made, given other roles, turned away … It is never altered and never deleted.

    ``by`` is another officer's name, or the administrator of the machine as ``uid:0``.
    """

    officer: str
    at: str
    act: str
    by: str
    detail: Mapping[str, Any]


class DocumentKind(Enum):
    """What the office certifies."""

    MAKING = "making"
    """The making certificate (电子印章制作证书, 004 §3.2.9)."""
    CANCELLATION = "cancellation"
    """The cancellation certificate (电子印章注销证书)."""


@dataclass(frozen=True, slots=True)
class Document:
    """A certificate about a seal: ``body`` is canonical JSON, ``signature`` DER over it by the key of ``signer``."""

    seal_id: str
    kind: DocumentKind
    issued_at: str
    body: bytes
    signature: bytes
    signer: bytes


class Operation(Enum):
    """What a grant allows."""

    SEAL = "seal"
    VERIFY = "verify"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class SealGrant:
    """What an account may do with a seal, and how much of it.

    Limits count seal signatures; 0 is no limit. ``sources`` are networks in CIDR form (empty: from anywhere; the
    Unix socket counts as ``127.0.0.1/32``). ``approval_pattern`` is a regular expression that the whole approval
    reference must match; ``None`` asks for none.
    """

    account: str
    seal_id: str
    operations: frozenset[Operation]
    daily_limit: int
    minute_limit: int
    valid_from: str | None
    valid_to: str | None
    sources: tuple[str, ...]
    approval_pattern: str | None
    created_at: str


class ProposalState(Enum):
    """What became of a proposal. ``APPROVED`` means wanted by two and not done yet; a start does it again."""

    OPEN = "open"
    APPROVED = "approved"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A critical act that one person wants. ``target`` is a seal's id; for keys, the seal's whose key it is."""

    id: str
    act: CriticalAct
    target: str
    arguments: Mapping[str, Any]
    proposed_by: str
    proposed_at: str
    expires_at: str
    state: ProposalState
    decided_by: str | None
    decided_at: str | None
    outcome: str | None


class MessageKind(Enum):
    """What is told to the public security."""

    MADE = "made"
    RENEWED = "renewed"
    CANCELLED = "cancelled"
    PASSWORD_RESET = "password-reset"  # noqa: S105  # the name of a message


@dataclass(frozen=True, slots=True)
class Message:
    """A message that must arrive by ``due_at``. ``receipt`` is what the receiver called it."""

    id: str
    kind: MessageKind
    seal_id: str
    body: Mapping[str, Any]
    created_at: str
    due_at: str
    attempts: int
    next_attempt_at: str
    last_error: str | None
    delivered_at: str | None
    receipt: str | None


@dataclass(frozen=True, slots=True)
class ProtectionPassword:
    """What unlocks a seal. ``generation`` counts resets (not rotations): an unlock of an earlier one is void."""

    seal_id: str
    password_hash: str
    set_by: str
    set_at: str
    failures: int
    locked: bool
    generation: int


# Rules ------------------------------------------------------------------------------------------------------

_USCC: Final = re.compile(r"[0-9A-HJ-NPQRTUWXY]{2}[0-9]{6}[0-9A-HJ-NPQRTUWXY]{10}")
_REGION: Final = re.compile(r"[1-9][0-9]{5}")


def check_organisation(organisation: Organisation) -> None:
    """``BadRequest`` where the code is no unified social credit code, or the region none of GB/T 2260's form."""
    if _USCC.fullmatch(organisation.code) is None:
        raise BadRequest(
            f"organisation code {organisation.code[:32]!r} is no unified social credit code",
            hint="18 characters as in GB 32100, e.g. 91330100MA27XYW12Q",
        )
    if _REGION.fullmatch(organisation.region) is None:
        raise BadRequest(
            f"region {organisation.region[:16]!r}: expected six digits",
            hint="a code of GB/T 2260, e.g. 330100",
        )
    if not 1 <= len(organisation.name) <= 100 or not organisation.name.isprintable():
        raise BadRequest(
            "an organisation's name has 1 to 100 printable characters",
            hint="its statutory name, as registered",
        )
