"""The contract goes on: officers and proposals, passwords, grants, the outbox, use; whoever races."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import psycopg
import pytest
from registry.conftest import Place, as_keeper, race
from registry.keys import ACCOUNT
from registry.seals import (
    ORGANISATION,
    T0,
    T1,
    apply,
    bring_to,
    grant,
    message,
    proposal,
    seal,
    step,
)

from appliance.errors import BadRequest, Conflict, Denied, NotFound
from appliance.lifecycle import (
    Act,
    Event,
    Kind,
    MessageKind,
    Officer,
    OfficerEvent,
    Organisation,
    ProposalState,
    ProtectionPassword,
    Role,
    State,
)
from appliance.registry import Registry

OTHER = Organisation("91330100MA27ABCD3W", "宁波某某贸易有限公司", "330200")
LATER = "2026-01-03T00:00:00.000+00:00"


# Officers and proposals -------------------------------------------------------------------------------------


def test_officers(registry: Registry) -> None:
    li = Officer("li", "李", frozenset({Role.CLERK, Role.SECURITY}), "hash", False, T0)
    registry.people.add_officer(replace(li, name="an", roles=frozenset()))
    registry.people.add_officer(li)
    with pytest.raises(Conflict):
        registry.people.add_officer(li)
    assert registry.people.officer("li") == li and [one.name for one in registry.people.officers()] == [
        "an",
        "li",
    ]
    registry.people.set_officer_password("li", "other")
    registry.people.set_officer_disabled("li", True)
    registry.people.set_officer_roles("li", {Role.AUDITOR})
    assert registry.people.officer("li") == replace(
        li, password_hash="other", disabled=True, roles=frozenset({Role.AUDITOR})
    )
    people = registry.people
    for act in (
        lambda: people.officer("none"),
        lambda: people.set_officer_password("none", "x"),
        lambda: people.set_officer_disabled("none", True),
        lambda: people.set_officer_roles("none", ()),
    ):
        with pytest.raises(NotFound):
            act()


def test_what_was_done_to_officers_is_kept_for_ever(place: Place) -> None:
    people = place.open().people
    events = [OfficerEvent("li", T0, f"act {i}", "uid:0", {"roles": "clerk"}) for i in range(4)]
    people.add_officer(Officer("li", "李", frozenset({Role.CLERK}), "hash", False, T0), events[0])
    people.set_officer_password("li", "other", events[1])
    people.set_officer_disabled("li", True, events[2])
    people.set_officer_roles("li", {Role.AUDITOR}, events[3])
    assert people.officer_events("li") == events and people.officer_events("none") == []
    with pytest.raises(NotFound):
        people.set_officer_disabled("none", True, replace(events[0], officer="none"))
    statements = ["DELETE FROM officer_event", "UPDATE officer_event SET act = act"]
    if place.is_postgres:
        statements.append("TRUNCATE officer_event")
    for statement in statements:
        with pytest.raises((sqlite3.IntegrityError, psycopg.errors.RestrictViolation)):
            as_keeper(place, statement)
    assert people.officer_events("li") == events


def test_a_proposal_takes_a_second_person(registry: Registry) -> None:
    registry.people.add_proposal(proposal())
    with pytest.raises(Conflict):
        registry.people.add_proposal(proposal())
    for state in (ProposalState.APPROVED, ProposalState.REJECTED):
        with pytest.raises(Denied, match="another person"):
            registry.people.decide("p1", state, "li", T0)
    assert registry.people.proposal("p1") == proposal()
    approved = registry.people.decide("p1", ProposalState.APPROVED, "qian", T0, "yes")
    assert approved == replace(
        proposal(), state=ProposalState.APPROVED, decided_by="qian", decided_at=T0, outcome="yes"
    )
    assert registry.people.approved_proposals() == [approved]
    for by, state in (("qian", ProposalState.APPROVED), ("sun", ProposalState.REJECTED)):
        with pytest.raises(Conflict, match="qian"):
            registry.people.decide("p1", state, by, T0)
    registry.people.finish_proposal("p1", ProposalState.FAILED, "no token")
    with pytest.raises(Conflict):
        registry.people.finish_proposal("p1", ProposalState.DONE, "after all")
    assert registry.people.proposal("p1").outcome == "no token" and registry.people.approved_proposals() == []
    with pytest.raises(NotFound):
        registry.people.decide("none", ProposalState.APPROVED, "qian", T0)


def test_a_proposal_expires(registry: Registry) -> None:
    just_before = "2026-01-01T23:59:59.999+00:00"
    for id_ in ("p1", "p2", "p3"):
        registry.people.add_proposal(proposal(id_, expires_at=T1))
    registry.people.decide("p1", ProposalState.APPROVED, "qian", just_before)
    with pytest.raises(Conflict, match="expired"):
        registry.people.decide("p2", ProposalState.APPROVED, "qian", T1)
    assert registry.people.expire_proposals(just_before) == 0
    assert registry.people.expire_proposals(T1) == 2, "what is approved does not expire"
    with pytest.raises(Conflict, match="expired"):
        registry.people.decide("p2", ProposalState.REJECTED, "qian", just_before)
    assert [one.id for one in registry.people.proposals(ProposalState.EXPIRED)] == ["p2", "p3"]
    assert [one.id for one in registry.people.proposals(after="p1", limit=1)] == ["p2"]
    assert [one.id for one in registry.people.proposals(target="s1")] == ["p1", "p2", "p3"]
    assert registry.people.proposals(target="s2") == []


def test_of_many_who_decide_one_does(place: Place) -> None:
    for round_ in range(5):
        id_ = f"p{round_}"
        place.open().people.add_proposal(proposal(id_))
        done, refused = race(
            place,
            4,
            lambda registry, i, id_=id_: registry.people.decide(
                id_, (ProposalState.APPROVED, ProposalState.REJECTED)[i % 2], f"officer-{i}", T0
            ),
        )
        assert len(done) == 1 and {type(error) for error in refused} == {Conflict}
        assert place.open().people.proposal(id_) == done[0]


def test_the_table_itself_wants_two_people(place: Place) -> None:
    place.open().people.add_proposal(proposal())
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.CheckViolation)):
        as_keeper(place, "UPDATE proposal SET state = 'approved', decided_by = proposed_by")


def test_of_many_who_carry_out_a_proposal_one_does(place: Place) -> None:
    registry = place.open()
    one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
    registry.people.add_proposal(proposal())
    registry.people.decide("p1", ProposalState.APPROVED, "qian", T0)
    done, refused = race(
        place,
        4,
        lambda registry, i: registry.seals.advance(step(one, Act.CANCEL, proposal_done=("p1", f"by {i}"))),
    )
    assert len(done) == 1 and {type(error) for error in refused} == {Conflict}
    assert registry.people.proposal("p1").state is ProposalState.DONE


# Protection passwords ---------------------------------------------------------------------------------------


def test_protection_passwords(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
    first = ProtectionPassword("s1", "hash", "wang", T0, 0, False, 1)
    assert registry.custody.password("s1") == first and registry.custody.password("none") is None
    with pytest.raises(Conflict, match="has a protection password"):
        registry.seals.advance(step(one, Act.SUSPEND, password=first))
    with pytest.raises(Conflict):
        registry.custody.rotate("s1", "not that", "new", "wang", T1)
    line = Event("s1", T1, "rotate", State.ACTIVE, State.ACTIVE, "wang", None, {})
    assert registry.custody.rotate("s1", "hash", "new", "wang", T1, line) == replace(
        first, password_hash="new", set_at=T1
    )
    assert registry.seals.events("s1")[-1] == line
    counted = [registry.custody.note_failure("s1", 3) for _ in range(4)]
    assert [(state.failures, state.locked) for state in counted] == [
        (1, False),
        (2, False),
        (3, True),
        (4, True),
    ]
    registry.custody.clear_failures("s1")
    with pytest.raises(Conflict, match="locked"):
        registry.custody.rotate("s1", "new", "newer", "wang", T1)
    assert registry.custody.password("s1") == counted[-1], "a lock is not cleared by the right password"
    registry.people.add_proposal(proposal())
    registry.people.decide("p1", ProposalState.APPROVED, "qian", T0)
    reset = registry.custody.reset("s1", "reset", "li", LATER, line, (message(),), ("p1", "reset"))
    assert reset == ProtectionPassword("s1", "reset", "li", LATER, 0, False, 2)
    assert registry.messages.messages() == [message()]
    assert registry.people.proposal("p1").state is ProposalState.DONE
    with pytest.raises(Conflict):
        registry.custody.reset("s1", "again", "li", LATER, line, (message("m2"),), ("p1", "again"))
    assert registry.custody.password("s1") == reset and len(registry.messages.messages()) == 1
    registry.custody.note_failure("s1", 3)
    registry.custody.clear_failures("s1")
    assert registry.custody.password("s1") == reset
    for act in (
        lambda: registry.custody.note_failure("none", 3),
        lambda: registry.custody.reset("none", "x", "li", T0),
    ):
        with pytest.raises(NotFound):
            act()


def test_old_passwords_of_living_seals(registry: Registry) -> None:
    for i in range(3):
        one = bring_to(registry, apply(registry, seal(f"s{i}", number=i)), State.ACTIVE)
    assert registry.custody.passwords_older_than(T0) == []
    registry.seals.advance(step(one, Act.CANCEL))
    assert [old.seal_id for old in registry.custody.passwords_older_than(T1)] == ["s0", "s1"]
    registry.custody.rotate("s0", "hash", "new", "wang", T1)
    assert [old.seal_id for old in registry.custody.passwords_older_than(LATER)] == ["s1", "s0"]
    assert len(registry.custody.passwords_older_than(LATER, limit=1)) == 1


def test_of_two_rotations_one_holds_and_no_failure_is_lost(place: Place) -> None:
    bring_to(place.open(), apply(place.open(), seal()), State.ACTIVE)
    done, refused = race(
        place, 4, lambda registry, i: registry.custody.rotate("s1", "hash", f"new-{i}", "wang", T1)
    )
    assert len(done) == 1 and {type(error) for error in refused} == {Conflict}
    _, refused = race(
        place, 6, lambda registry, i: [registry.custody.note_failure("s1", 30) for _ in range(5)]
    )
    assert not refused
    last = place.open().custody.password("s1")
    assert last is not None and (last.failures, last.locked) == (30, True)


# Grants -----------------------------------------------------------------------------------------------------


def test_grants(registry: Registry) -> None:
    for i in (1, 2):
        apply(registry, seal(f"s{i}", number=i))
    for name in ("a", "b"):
        registry.create_account(replace(ACCOUNT, name=name))
    registry.grants.put(grant())
    assert registry.grants.grant("a", "s1") == grant() and registry.grants.grant("b", "s1") is None
    smaller = grant(operations=frozenset(), sources=(), approval_pattern=None, daily_limit=0, valid_to=T1)
    line = Event("s1", T0, "grant", State.APPLIED, State.APPLIED, "qian", "li", {})
    registry.grants.put(smaller, line)
    registry.grants.put(grant("a", "s2"))
    registry.grants.put(grant("b"))
    assert registry.grants.of_account("a") == [smaller, grant("a", "s2")]
    assert registry.grants.of_account("a", after="s1", limit=1) == [grant("a", "s2")]
    assert registry.grants.of_seal("s1") == [smaller, grant("b")]
    assert registry.seals.events("s1")[-1] == line
    with pytest.raises(Conflict, match="p1"):
        registry.grants.remove("a", "s1", line, ("p1", "not approved"))
    registry.grants.remove("a", "s1", line)
    with pytest.raises(NotFound):
        registry.grants.remove("a", "s1", line)
    assert registry.seals.events("s1")[1:] == [line, line]
    for wrong in (grant("none"), grant("a", "none")):
        with pytest.raises(NotFound):
            registry.grants.put(wrong)


# Outbox -----------------------------------------------------------------------------------------------------


def test_the_outbox(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal()), State.MADE)
    first, second = message("m1"), message("m2", next_attempt_at=T1)
    one = registry.seals.advance(step(one, Act.CONFIRM, messages=(first, second)))
    assert registry.messages.messages() == [first, second] and registry.messages.message("m2") == second
    assert registry.messages.due(T0) == [first] and registry.messages.due(T1) == [first, second]
    assert registry.messages.due(T1, limit=1) == [first]
    assert registry.messages.overdue_count(T1) == 0 and registry.messages.overdue_count(LATER) == 2
    registry.messages.failed("m1", "refused", LATER)
    failed = replace(first, attempts=1, last_error="refused", next_attempt_at=LATER)
    assert registry.messages.due(T1) == [second] and registry.messages.due(LATER) == [second, failed]
    registry.messages.delivered("m1", "receipt", T1)
    done = replace(failed, attempts=2, last_error=None, delivered_at=T1, receipt="receipt")
    assert registry.messages.message("m1") == done
    assert registry.messages.messages(undelivered_only=True) == [second]
    assert (
        registry.messages.messages(after="m1") == [second] and registry.messages.messages(seal_id="s2") == []
    )
    for act in (
        lambda: registry.messages.delivered("m1", "again", LATER),
        lambda: registry.messages.failed("m1", "late", LATER),
        lambda: registry.messages.delivered("none", "r", LATER),
    ):
        with pytest.raises(Conflict):
            act()
    with pytest.raises(NotFound):
        registry.messages.message("none")
    with pytest.raises(Conflict):
        registry.seals.advance(step(one, Act.CONFIRM, messages=(message("m2"),)))
    assert registry.messages.message("m1") == done and registry.messages.overdue_count(LATER) == 1


def test_filing_delays(registry: Registry) -> None:
    for i, region in enumerate(("330100", "330100", "330200")):
        one = bring_to(registry, apply(registry, seal(f"s{i}", number=i, region=region)), State.MADE)
        kind = (MessageKind.MADE, MessageKind.MADE, MessageKind.CANCELLED)[i]
        registry.seals.advance(
            step(one, Act.CONFIRM, messages=(message(f"m{i}", seal_id=f"s{i}", kind=kind),))
        )
    one = registry.seals.seal("s0")
    registry.seals.advance(step(one, Act.CONFIRM, messages=(message("m3", seal_id="s0", created_at=T1),)))
    registry.messages.delivered("m0", "r", "2026-01-01T00:00:01.500+00:00")
    registry.messages.delivered("m1", "r", "2026-01-02T00:00:00.001+00:00")
    delays = registry.usage.filing_delays(T0, T1)
    assert [(d.kind, d.region, d.messages, d.delivered, d.late, d.mean_ms, d.max_ms) for d in delays] == [
        (MessageKind.CANCELLED, "330200", 1, 0, 0, 0, 0),
        (MessageKind.MADE, "330100", 2, 2, 1, (86_400_001 + 1_500) // 2, 86_400_001),
    ]
    assert registry.usage.filing_delays(LATER, LATER) == []


# Use and statistics -----------------------------------------------------------------------------------------


def test_uses_add_up(place: Place) -> None:
    registry = place.open()
    for i in (1, 2):
        apply(registry, seal(f"s{i}", number=i))
    first, second = "2026-01-02T08:00:00.000+00:00", "2026-01-02T09:00:00.000+00:00"
    registry.usage.add([])
    registry.usage.add([("s1", "a", "2026-01-02", 5, second), ("s1", "a", "2026-01-02", 5, first)])
    registry.usage.add([("s1", "b", "2026-01-03", 1, first), ("s2", "a", "2026-01-02", 2, first)])
    assert registry.seals.seal("s1").last_used_at == second, "the later one, in whatever order they come"
    assert registry.seals.seal("s1").version == 1
    uses = registry.usage.uses
    assert uses("seal", "2026-01-02", "2026-01-03") == [("s1", 11), ("s2", 2)]
    assert uses("seal", "2026-01-02", "2026-01-02", account="a", after="s1") == [("s2", 2)]
    assert uses("account", "2026-01-02", "2026-01-03") == [("a", 12), ("b", 1)]
    assert uses("account", "2026-01-02", "2026-01-03", seal_id="s1") == [("a", 10), ("b", 1)]
    assert uses("day", "2026-01-01", "2026-01-31") == [("2026-01-02", 12), ("2026-01-03", 1)]
    assert uses("day", "2026-01-01", "2026-01-31", account="b") == [("2026-01-03", 1)]
    assert uses("day", "2026-01-01", "2026-01-31", seal_id="s2", limit=1) == [("2026-01-02", 2)]
    assert uses("day", "2026-01-03", "2026-01-02") == []
    with pytest.raises(BadRequest):
        uses("hour", "2026-01-01", "2026-01-31")
    with pytest.raises(BadRequest):
        registry.usage.add([("none", "a", "2026-01-02", 1, first)])
    both = [("s1", "a", "2026-02-01", 1, first), ("s2", "a", "2026-02-01", 1, first)]

    def add(registry: Registry, number: int) -> None:
        for _ in range(5):
            registry.usage.add(both[:: 1 - number % 2 * 2])

    _, refused = race(place, 4, add)
    assert not refused and uses("seal", "2026-02-01", "2026-02-01") == [("s1", 20), ("s2", 20)]


def test_a_days_limit_is_never_granted_twice(place: Place) -> None:
    registry = place.open()
    apply(registry, seal())
    reserve = registry.usage.reserve
    assert reserve("s1", "a", "2026-01-02", 60, 100) == 60
    assert reserve("s1", "a", "2026-01-02", 60, 100) == 40
    assert reserve("s1", "a", "2026-01-02", 1, 100) == 0
    assert reserve("s1", "a", "2026-01-03", 1, 100) == 1 and reserve("s1", "b", "2026-01-02", 1, 100) == 1
    assert reserve("s1", "a", "2026-01-02", 7, 0) == 7, "no limit"
    assert reserve("s1", "a", "2026-01-02", 7, 100) == 0, "a limit that was lowered under what is used"
    registry.usage.give_back("s1", "a", "2026-01-02", 10)
    assert reserve("s1", "a", "2026-01-02", 7, 100) == 3
    done, refused = race(
        place,
        6,
        lambda registry, i: sum(registry.usage.reserve("s1", "c", "2026-01-02", 7, 100) for _ in range(5)),
    )
    assert not refused and sum(done) == 100
    assert registry.usage.drop_reservations("2026-01-03") == 3
    assert reserve("s1", "c", "2026-01-02", 7, 100) == 7


def test_seals_are_counted(registry: Registry) -> None:
    registry.seals.add_organisation(OTHER)
    for i in range(6):
        one = seal(
            f"s{i}",
            number=i,
            organisation=(ORGANISATION, OTHER)[i % 2].code,
            region=("330100", "330200", "330300")[i % 3],
            kind=(Kind.SPECIAL, Kind.DEPARTMENT)[i // 3],
        )
        bring_to(registry, apply(registry, one), (State.APPLIED, State.ACTIVE)[i // 4])
    count = registry.usage.seals_by
    assert count(["state"]) == [(("active",), 2), (("applied",), 4)]
    assert count(["kind", "state"]) == [
        (("department", "active"), 2),
        (("department", "applied"), 1),
        (("special", "applied"), 3),
    ]
    assert count(["organisation"]) == [((OTHER.code,), 3), ((ORGANISATION.code,), 3)]
    assert count(["region"], organisation=OTHER.code, kind=Kind.SPECIAL) == [(("330200",), 1)]
    assert count(["region"], state=State.ACTIVE, region="330200") == [(("330200",), 1)]
    assert count(["kind", "state"], after=("department", "active"), limit=1) == [
        (("department", "applied"), 1)
    ]
    for wrong in ([], ["holder"], ["state", "state"]):
        with pytest.raises(BadRequest):
            count(wrong)
    with pytest.raises(BadRequest):
        count(["state"], after=("a", "b"))
