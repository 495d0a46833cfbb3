"""Seals for tests, what belongs to them, and their way through life by steps alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from appliance.lifecycle import (
    Act,
    CriticalAct,
    Event,
    Generation,
    Imprint,
    Kind,
    Message,
    MessageKind,
    Operation,
    Organisation,
    Proposal,
    ProposalState,
    ProtectionPassword,
    Seal,
    SealGrant,
    State,
    transition,
)
from appliance.registry import Registry, Step

ORGANISATION = Organisation("91330100MA27XYZ12Q", "杭州某某科技有限公司", "330100")
IMPRINT = Imprint("png", b"\x89PNG picture", 42, 42, bytes(range(32)))
T0 = "2026-01-01T00:00:00.000+00:00"
T1 = "2026-01-02T00:00:00.000+00:00"
NEXT_YEAR = "2027-01-01T00:00:00.000+00:00"


def seal(id_: str = "s1", **changes: Any) -> Seal:
    made = Seal(
        id=id_,
        code="",
        organisation=ORGANISATION.code,
        kind=Kind.SPECIAL,
        purpose="contract",
        number=1,
        name="杭州某某科技有限公司合同专用章",
        region=ORGANISATION.region,
        holder="",
        custodian="wang",
        applicant="li",
        state=State.APPLIED,
        version=1,
        generation=0,
        key_name=None,
        valid_from=None,
        valid_to=None,
        applied_at=T0,
        made_at=None,
        filed_at=None,
        confirmed_at=None,
        activated_at=None,
        last_used_at=None,
        ended_at=None,
        end_reason=None,
        replaces=None,
        replaced_by=None,
    )
    return replace(made, **changes)


def event(seal_id: str, act: Act, source: State | None, target: State, at: str = T0, **detail: Any) -> Event:
    return Event(seal_id, at, act.value, source, target, "zhang", None, detail)


def apply(registry: Registry, one: Seal) -> Seal:
    registry.seals.add_organisation(ORGANISATION)
    return registry.seals.apply(one, IMPRINT, {"by": "letter"}, event(one.id, Act.APPLY, None, State.APPLIED))


def step(one: Seal, act: Act, at: str = T0, **more: Any) -> Step:
    row = transition(one.state, act)
    changes = more.pop("changes", {})
    return Step(
        one.id,
        one.version,
        one.state,
        row.target,
        changes,
        event(one.id, act, one.state, row.target, at),
        **more,
    )


def making(one: Seal, code: str, at: str = T0, valid_to: str = NEXT_YEAR) -> Step:
    made = Generation(one.id, 1, f"key-{one.id}", b"certificate", b"eseal", T0, valid_to, at)
    changes = {
        "code": code,
        "generation": 1,
        "key_name": made.key_name,
        "valid_from": T0,
        "valid_to": valid_to,
        "made_at": at,
    }
    return step(one, Act.MAKE, at, changes=changes, generation=made)


def bring_to(registry: Registry, one: Seal, state: State, at: str = T0) -> Seal:
    """Along the shortest way."""
    for act in _WAYS[state]:
        if act is Act.MAKE:
            one = registry.seals.advance(making(one, registry.seals.next_code(one.region), at))
        elif act is Act.ACTIVATE:
            first = ProtectionPassword(one.id, "hash", one.custodian, at, 0, False, 1)
            one = registry.seals.advance(step(one, act, at, changes={"activated_at": at}, password=first))
        else:
            one = registry.seals.advance(step(one, act, at))
    assert one.state is state
    return one


_ACTIVE = (Act.REVIEW, Act.MAKE, Act.FILE, Act.ACTIVATE)
_WAYS = {
    State.APPLIED: (),
    State.REFUSED: (Act.REFUSE,),
    State.REVIEWED: (Act.REVIEW,),
    State.MADE: _ACTIVE[:2],
    State.FILED: _ACTIVE[:3],
    State.ACTIVE: _ACTIVE,
    State.SUSPENDED: (*_ACTIVE, Act.SUSPEND),
    State.DORMANT: (*_ACTIVE, Act.SLEEP),
    State.EXPIRED: (*_ACTIVE, Act.EXPIRE),
    State.CANCELLED: (*_ACTIVE, Act.CANCEL),
}


def proposal(id_: str = "p1", **changes: Any) -> Proposal:
    made = Proposal(
        id_, CriticalAct.MAKE, "s1", {"why": "新"}, "li", T0, T1, ProposalState.OPEN, None, None, None
    )
    return replace(made, **changes)


def message(id_: str = "m1", **changes: Any) -> Message:
    made = Message(id_, MessageKind.MADE, "s1", {"code": "1"}, T0, T1, 0, T0, None, None, None)
    return replace(made, **changes)


def grant(account: str = "a", seal_id: str = "s1", **changes: Any) -> SealGrant:
    made = SealGrant(
        account,
        seal_id,
        frozenset({Operation.SEAL, Operation.STATUS}),
        100,
        10,
        T0,
        None,
        ("10.0.0.0/8", "127.0.0.1/32"),
        "A-[0-9]+",
        T0,
    )
    return replace(made, **changes)
