"""One contract, every database: acts hold only where the seal is as they saw it, whoever races."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from registry.conftest import Place
from registry.keys import ACCOUNT
from registry.seals import IMPRINT, ORGANISATION, T0, T1, apply, bring_to, event, making, seal, step

from appliance.errors import ApplianceError, BadRequest, Conflict, Denied, NotFound
from appliance.lifecycle import (
    RETAIN_FOR,
    TRANSITIONS,
    Act,
    CriticalAct,
    Document,
    DocumentKind,
    Event,
    Kind,
    Message,
    MessageKind,
    Officer,
    OfficerEvent,
    Operation,
    Organisation,
    Proposal,
    ProposalState,
    ProtectionPassword,
    Reason,
    Role,
    SealGrant,
    State,
)
from appliance.registry import Registry, SealFilter, Step
from appliance.registry.database import MAX_ROWS
from appliance.registry.seals import ENDS

OTHER = Organisation("91330100MA27ABCD3W", "宁波某某贸易有限公司", "330200")
LATER = "2026-01-03T00:00:00.000+00:00"


def proposal(id_: str = "p1", **changes: Any) -> Proposal:
    made = Proposal(
        id_, CriticalAct.MAKE, "s1", {"why": "新"}, "li", T0, T1, ProposalState.OPEN, None, None, None
    )
    return replace(made, **changes)


def message(id_: str = "m1", **changes: Any) -> Message:
    made = Message(id_, MessageKind.MADE, "s1", {"code": "1"}, T0, T1, 0, T0, None, None, None)
    return replace(made, **changes)


def race(
    place: Place, count: int, act: Callable[[Registry, int], Any]
) -> tuple[list[Any], list[ApplianceError]]:
    """All at once, each on a registry of its own; what those who got through have, and what the others were told."""
    registries = [place.open() for _ in range(count)]
    barrier = threading.Barrier(count)
    done: list[Any] = []
    refused: list[ApplianceError] = []

    def run(registry: Registry, number: int) -> None:
        barrier.wait()
        try:
            done.append(act(registry, number))
        except ApplianceError as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(registries, range(count), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == count, "no thread died"
    return done, refused


def as_keeper(place: Place, statement: str) -> None:
    """What somebody does who has the database itself."""
    if isinstance(place.at, Path):
        db = sqlite3.connect(place.at, isolation_level=None)
        try:
            db.execute(statement)
        finally:
            db.close()
        return
    registry = place.open()
    with registry._database._connect() as connection:  # type: ignore[attr-defined]
        connection.execute(statement)


# Organisations ----------------------------------------------------------------------------------------------


def test_organisations(registry: Registry) -> None:
    for _ in range(2):
        registry.seals.add_organisation(ORGANISATION)
    for other in (replace(ORGANISATION, name="another"), replace(ORGANISATION, region="330200")):
        with pytest.raises(Conflict, match=ORGANISATION.name):
            registry.seals.add_organisation(other)
        with pytest.raises(NotFound):
            registry.seals.change_organisation(replace(other, code=OTHER.code))
    registry.seals.change_organisation(replace(ORGANISATION, name="another"))
    assert registry.seals.organisation(ORGANISATION.code).name == "another"
    with pytest.raises(NotFound):
        registry.seals.organisation(OTHER.code)


def test_organisations_by_page_and_text(registry: Registry) -> None:
    made = [
        Organisation(f"91330100MA27XYZ{i:03}", f"{'甲' if i % 2 else '乙'}_{i}%", "330100") for i in range(7)
    ]
    for one in reversed(made):
        registry.seals.add_organisation(one)
    assert registry.seals.organisations() == made
    assert registry.seals.organisations(after=made[2].code, limit=2) == made[3:5]
    assert registry.seals.organisations(text="甲") == made[1::2]
    assert registry.seals.organisations(text="_3%") == [made[3]], "what LIKE gives a meaning to is text here"
    assert registry.seals.organisations(text=made[4].code) == [made[4]]
    assert registry.seals.organisations(text="!") == []
    for limit in (0, -1, MAX_ROWS + 1):
        with pytest.raises(BadRequest):
            registry.seals.organisations(limit=limit)
    assert registry.seals.organisations(limit=MAX_ROWS) == made


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_database_takes(registry: Registry, text: str) -> None:
    with pytest.raises(BadRequest):
        registry.seals.add_organisation(replace(ORGANISATION, name=text))
    with pytest.raises(BadRequest):
        registry.seals.organisations(text=text)


# Applications -----------------------------------------------------------------------------------------------


def test_an_application_as_it_came(registry: Registry) -> None:
    one = seal()
    assert apply(registry, one) == one == registry.seals.seal("s1")
    assert registry.seals.imprint("s1") == IMPRINT
    assert registry.seals.application("s1") == {"by": "letter"}
    assert registry.seals.events("s1") == [event("s1", Act.APPLY, None, State.APPLIED)]
    assert registry.seals.documents("s1") == [] and registry.seals.pending("s1") is None
    for look in (
        lambda: registry.seals.seal("none"),
        lambda: registry.seals.seal_by_code(""),
        lambda: registry.seals.imprint("none"),
        lambda: registry.seals.application("none"),
        lambda: registry.seals.generation("s1", 1),
    ):
        with pytest.raises(NotFound):
            look()
    with pytest.raises(Conflict):
        apply(registry, replace(one, number=2))
    with pytest.raises(NotFound, match="organisation"):
        apply(registry, seal("s2", organisation=OTHER.code))
    assert [found.id for found in registry.seals.seals(SealFilter())] == ["s1"]


def test_one_living_seal_has_a_place(registry: Registry) -> None:
    first = apply(registry, seal("s1"))
    with pytest.raises(Conflict, match="s1"):
        apply(registry, seal("s2"))
    for number, other in enumerate(
        ({"number": 2}, {"purpose": "finance"}, {"kind": Kind.DEPARTMENT}, {"holder": "zhao"})
    ):
        apply(registry, seal(f"other-{number}", **other))
    registry.seals.advance(step(first, Act.REFUSE))
    apply(registry, seal("s2"))
    with pytest.raises(Conflict, match="s2"):
        apply(registry, seal("s3"))


def test_an_organisation_has_one_statutory_seal(registry: Registry) -> None:
    first = apply(registry, seal("s1", kind=Kind.STATUTORY, purpose=""))
    for number in (1, 2):
        with pytest.raises(Conflict, match="statutory"):
            apply(registry, seal("s2", kind=Kind.STATUTORY, purpose="other", number=number))
    registry.seals.add_organisation(OTHER)
    apply(registry, seal("s2", kind=Kind.STATUTORY, organisation=OTHER.code))
    bring_to(registry, first, State.CANCELLED)
    apply(registry, seal("s3", kind=Kind.STATUTORY, purpose=""))


def test_two_apply_for_the_statutory_place(place: Place) -> None:
    place.open().seals.add_organisation(ORGANISATION)
    done, refused = race(
        place,
        4,
        lambda registry, i: apply(registry, seal(f"s{i}", kind=Kind.STATUTORY, number=i, purpose="")),
    )
    assert len(done) == 1 and {type(error) for error in refused} == {Conflict}
    assert place.open().seals.seals(SealFilter()) == done


def test_a_seal_is_replaced_by_one(registry: Registry) -> None:
    old = bring_to(registry, apply(registry, seal("old")), State.ACTIVE)
    with pytest.raises(NotFound):
        apply(registry, seal("new", replaces="none"))
    registry.seals.add_organisation(OTHER)
    with pytest.raises(NotFound):
        apply(registry, seal("new", replaces="old", organisation=OTHER.code))
    new = apply(registry, seal("new", replaces="old"))
    with pytest.raises(Conflict, match="being replaced"):
        apply(registry, seal("newer", replaces="old"))
    new = bring_to(registry, new, State.FILED)
    with pytest.raises(Conflict, match="place"):
        registry.seals.advance(step(new, Act.ACTIVATE, holds_place=True))
    assert registry.seals.seal("new") == new, "all or nothing"
    end = {"ended_at": T1, "end_reason": Reason.CHANGED, "replaced_by": "new"}
    active = registry.seals.advance(
        step(new, Act.ACTIVATE, T1, holds_place=True), step(old, Act.REPLACE, T1, changes=end)
    )
    assert active.state is State.ACTIVE and active.id == "new"
    ended = registry.seals.seal("old")
    assert (ended.state, ended.end_reason, ended.replaced_by) == (State.CANCELLED, Reason.CHANGED, "new")
    with pytest.raises(Conflict):
        apply(registry, seal("another"))
    with pytest.raises(Conflict, match="cancelled"):
        apply(registry, seal("another", replaces="old"))


def test_a_refused_replacement_may_be_applied_for_again(registry: Registry) -> None:
    bring_to(registry, apply(registry, seal("old")), State.ACTIVE)
    registry.seals.advance(step(apply(registry, seal("new", replaces="old")), Act.REFUSE))
    apply(registry, seal("newer", replaces="old"))


# Acts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_a_seal_in_every_state(registry: Registry, state: State) -> None:
    one = bring_to(registry, apply(registry, seal()), state)
    assert registry.seals.seal(one.id) == one
    assert [line.target for line in registry.seals.events(one.id)][-1] is state
    if one.code:
        assert registry.seals.seal_by_code(one.code) == one


@pytest.mark.parametrize("state", State)
def test_what_the_table_does_not_have_is_refused_here_too(registry: Registry, state: State) -> None:
    one = bring_to(registry, apply(registry, seal()), state)
    before = registry.seals.events(one.id)
    for act in Act:
        row = TRANSITIONS.get((state, act))
        for target in State:
            if row is None or row.target is not target:
                forged = Event(one.id, T0, act.value, state, target, "zhang", None, {})
                with pytest.raises(Conflict):
                    registry.seals.advance(Step(one.id, one.version, state, target, {}, forged))
    assert registry.seals.seal(one.id) == one and registry.seals.events(one.id) == before


def test_a_step_is_for_the_seal_as_it_was_seen(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
    suspended = registry.seals.advance(step(one, Act.SUSPEND))
    assert suspended.version == one.version + 1
    with pytest.raises(Conflict, match="meanwhile"):
        registry.seals.advance(step(one, Act.SUSPEND))
    with pytest.raises(Conflict):
        registry.seals.advance(step(replace(one, version=suspended.version), Act.SUSPEND))
    with pytest.raises(NotFound):
        registry.seals.advance(step(replace(one, id="none"), Act.SUSPEND))
    assert registry.seals.seal("s1") == suspended
    assert len(registry.seals.events("s1")) == 6


def test_all_steps_or_none(registry: Registry) -> None:
    first = bring_to(registry, apply(registry, seal("s1")), State.ACTIVE)
    second = bring_to(registry, apply(registry, seal("s2", number=2)), State.ACTIVE)
    stale = replace(second, version=second.version - 1)
    good, bad = step(first, Act.SUSPEND), step(stale, Act.SUSPEND)
    for steps in ((good, bad), (bad, good)):
        with pytest.raises(Conflict):
            registry.seals.advance(*steps)
    assert (registry.seals.seal("s1"), registry.seals.seal("s2")) == (first, second)
    assert registry.seals.advance(step(second, Act.SUSPEND), step(first, Act.SUSPEND)).id == "s2"


def test_of_many_who_advance_one_seal_one_does(place: Place) -> None:
    one = bring_to(place.open(), apply(place.open(), seal()), State.ACTIVE)
    done, refused = race(
        place, 6, lambda registry, i: registry.seals.advance(step(one, Act.SUSPEND if i % 2 else Act.SLEEP))
    )
    assert len(done) == 1 and {type(error) for error in refused} == {Conflict}
    (last,) = place.open().seals.events("s1")[5:]
    assert last.target is done[0].state


def test_those_who_take_two_seals_the_other_way_round(place: Place) -> None:
    """In PostgreSQL each waits for the other: one is undone, does it again, and finds that it was too late."""
    registry = place.open()
    for _ in range(5):
        pair = [registry.seals.seals(SealFilter(), limit=2)][0] or [
            bring_to(registry, apply(registry, seal(id_, number=number)), State.ACTIVE)
            for number, id_ in enumerate(("s1", "s2"))
        ]
        act = Act.SUSPEND if pair[0].state is State.ACTIVE else Act.RESUME
        steps = [step(one, act) for one in pair]
        done, refused = race(
            place, 2, lambda registry, i, s=steps: registry.seals.advance(*(s if i else s[::-1]))
        )
        assert len(done) == 1 and len(refused) == 1 and isinstance(refused[0], Conflict)
        assert {one.version for one in registry.seals.seals(SealFilter())} == {pair[0].version + 1}


def test_a_making_with_all_that_belongs_to_it(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal()), State.REVIEWED)
    registry.people.add_proposal(proposal())
    registry.people.decide("p1", ProposalState.APPROVED, "qian", T0)
    noted = event("s1", Act.REVIEW, State.REVIEWED, State.REVIEWED)
    one = registry.seals.set_pending("s1", one.version, "key-s1", None, noted)
    one = registry.seals.set_pending("s1", one.version, "key-s1", b"certificate")
    assert one.key_name == "key-s1"
    pending = registry.seals.pending("s1")
    assert pending is not None and pending.certificate == b"certificate"
    document = Document("s1", DocumentKind.MAKING, T0, b"{}", b"signature", b"signer")
    act = replace(
        making(one, "33010000000001"),
        messages=(message(),),
        documents=(document,),
        proposal_done=("p1", "made"),
    )
    made = registry.seals.advance(act)
    assert (made.code, made.generation, made.key_name) == ("33010000000001", 1, "key-s1")
    assert registry.seals.generation("s1", 1) == act.generation
    assert registry.seals.documents("s1") == [document]
    assert registry.seals.pending("s1") is None
    assert registry.messages.messages() == [message()]
    done = registry.people.proposal("p1")
    assert (done.state, done.outcome) == (ProposalState.DONE, "made")
    with pytest.raises(Conflict, match="p1"):
        registry.seals.advance(step(made, Act.FILE, proposal_done=("p1", "again")))
    assert registry.seals.seal("s1") == made


def test_a_code_is_one_seals(registry: Registry) -> None:
    first = bring_to(registry, apply(registry, seal("s1")), State.MADE)
    second = bring_to(registry, apply(registry, seal("s2", number=2)), State.REVIEWED)
    with pytest.raises(Conflict, match="code"):
        registry.seals.advance(making(second, first.code))
    with pytest.raises(Conflict, match="making number"):
        registry.seals.advance(step(first, Act.FILE, generation=registry.seals.generation("s1", 1)))
    assert registry.seals.seal("s1") == first


def test_a_renewal_is_prepared_beside_the_key_in_use(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal("s1")), State.ACTIVE)
    renewed = registry.seals.set_pending("s1", one.version, "key-2", None)
    assert renewed.key_name == one.key_name
    with pytest.raises(Conflict, match="meanwhile"):
        registry.seals.set_pending("s1", one.version, "key-2", b"certificate")
    other = bring_to(registry, apply(registry, seal("s2", number=2)), State.REVIEWED)
    with pytest.raises(Conflict, match="key-2"):
        registry.seals.set_pending("s2", other.version, "key-2", None)
    suspended = registry.seals.advance(step(renewed, Act.SUSPEND))
    with pytest.raises(Conflict, match="suspended"):
        registry.seals.set_pending("s1", suspended.version, "key-3", None)
    with pytest.raises(NotFound):
        registry.seals.set_pending("none", 1, "key-4", None)


def test_notes(registry: Registry) -> None:
    one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
    line = Event("s1", T1, "rotate", State.ACTIVE, State.ACTIVE, "wang", None, {"why": "\0 每年"})
    registry.seals.note(line)
    assert registry.seals.events("s1")[-1] == line and registry.seals.seal("s1") == one
    with pytest.raises(Conflict):
        registry.seals.note(replace(line, target=State.SUSPENDED))
    with pytest.raises((Conflict, NotFound)):
        registry.seals.note(replace(line, seal_id="none"))
    assert len(registry.seals.events("s1")) == 6


def test_codes_are_given_once(place: Place) -> None:
    done, refused = race(
        place, 6, lambda registry, i: [registry.seals.next_code("330100") for _ in range(20)]
    )
    codes = [code for some in done for code in some]
    assert not refused and len(set(codes)) == 120
    assert {len(code) for code in codes} == {14} and max(codes) == "33010000000120"
    assert place.open().seals.next_code("330200") == "33020000000001"


def test_a_region_runs_out_of_codes(place: Place) -> None:
    registry = place.open()
    registry.seals.next_code("330100")
    as_keeper(place, "UPDATE code_sequence SET given = 99999998")
    assert registry.seals.next_code("330100") == "33010099999999"
    with pytest.raises(Conflict, match="330100"):
        registry.seals.next_code("330100")


# Finding ----------------------------------------------------------------------------------------------------


def test_seals_by_filter_and_page(registry: Registry) -> None:
    registry.seals.add_organisation(OTHER)
    made = []
    for i in range(8):
        one = seal(
            f"s{i}",
            number=i,
            organisation=(ORGANISATION, OTHER)[i % 2].code,
            region=("330100", "330200", "330300")[i % 3],
            custodian=("wang", "zhao")[i // 4],
            kind=(Kind.SPECIAL, Kind.DEPARTMENT)[i // 2 % 2],
            name=f"第{i}号",
        )
        made.append(bring_to(registry, apply(registry, one), (State.APPLIED, State.ACTIVE)[i % 2]))
    for which, expected in (
        (SealFilter(), made),
        (SealFilter(organisation=OTHER.code), made[1::2]),
        (SealFilter(state=State.ACTIVE), made[1::2]),
        (SealFilter(region="330100"), made[::3]),
        (SealFilter(custodian="zhao"), made[4:]),
        (SealFilter(kind=Kind.DEPARTMENT), [made[2], made[3], made[6], made[7]]),
        (SealFilter(custodian="wang", state=State.ACTIVE, region="330200"), [made[1]]),
        (SealFilter(text="第3号"), [made[3]]),
        (SealFilter(text=made[5].code), [made[5]]),
        (SealFilter(text="%"), []),
    ):
        assert registry.seals.seals(which) == expected, which
        assert (
            registry.seals.seals(which, after="s2", limit=2) == [one for one in expected if one.id > "s2"][:2]
        )


@pytest.mark.parametrize(
    ("state", "due"),
    [
        (State.ACTIVE, lambda seals, at: seals.due_to_expire(at)),
        (State.ACTIVE, lambda seals, at: seals.due_to_sleep(at)),
        (State.MADE, lambda seals, at: seals.due_to_abandon(at)),
    ],
    ids=["expire", "sleep", "abandon"],
)
def test_what_time_asks_for(registry: Registry, state: State, due: Callable[[Any, str], list[Any]]) -> None:
    one = bring_to(registry, apply(registry, seal()), State.REVIEWED)
    one = registry.seals.advance(making(one, "33010000000001", T1, valid_to=T1))
    if state is State.ACTIVE:
        one = registry.seals.advance(step(one, Act.FILE, T1))
        one = registry.seals.advance(step(one, Act.ACTIVATE, T1))
    assert due(registry.seals, T1) == [], "at that very instant it is not yet due"
    assert due(registry.seals, LATER) == [one]
    ended = registry.seals.advance(step(one, Act.CANCEL, T1))
    assert due(registry.seals, LATER) == [] and ended.state is State.CANCELLED


def test_a_seal_that_is_used_or_woken_is_not_idle(registry: Registry) -> None:
    registry.create_account(ACCOUNT)
    one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
    registry.usage.add([("s1", "a", T1[:10], 1, "2026-01-02T08:00:00.000+00:00")])
    assert registry.seals.due_to_sleep("2026-01-02T07:59:59.999+00:00") == []
    assert registry.seals.due_to_sleep("2026-01-02T08:00:00.000+00:00") == []
    (idle,) = registry.seals.due_to_sleep("2026-01-02T08:00:00.001+00:00")
    assert idle.version == one.version, "use is no change"
    with pytest.raises(Conflict, match="used since"):
        registry.seals.advance(step(idle, Act.SLEEP, unless_used_after=T1))
    asleep = registry.seals.advance(step(idle, Act.SLEEP, unless_used_after="2026-01-02T08:00:00.000+00:00"))
    woken = registry.seals.advance(step(asleep, Act.WAKE, LATER))
    assert woken.last_used_at == "2026-01-02T08:00:00.000+00:00"
    assert registry.seals.due_to_sleep(LATER) == [], "woken is not asleep again at the next look"


# Records ----------------------------------------------------------------------------------------------------

RECORDS = ("application", "imprint", "generation", "event", "document")


def ended_at(registry: Registry, at: str, id_: str = "s1") -> str:
    """A seal with a record in every table, cancelled then; until when it is kept."""
    one = bring_to(registry, apply(registry, seal(id_, number=int(id_[1:]))), State.ACTIVE)
    registry.create_account(replace(ACCOUNT, name=f"a-{id_}"))
    registry.grants.put(grant(f"a-{id_}", id_))
    registry.usage.add([(id_, f"a-{id_}", T0[:10], 3, T0)])
    registry.usage.reserve(id_, f"a-{id_}", T0[:10], 1, 5)
    registry.people.add_proposal(proposal(f"p-{id_}", target=id_))
    one = registry.seals.set_pending(id_, one.version, f"key-2-{id_}", None)
    registry.seals.advance(
        step(
            one,
            Act.CANCEL,
            at,
            messages=(message(f"m-{id_}", seal_id=id_),),
            documents=(Document(id_, DocumentKind.CANCELLATION, at, b"{}", b"s", b"c"),),
        )
    )
    return (datetime.fromisoformat(at) + RETAIN_FOR).isoformat(timespec="milliseconds")


@pytest.mark.parametrize("ended", [None, "2026-06-01T00:00:00.000+00:00"], ids=["living", "ended lately"])
def test_records_are_not_altered_and_not_deleted(place: Place, ended: str | None) -> None:
    registry = place.open()
    if ended is None:
        one = bring_to(registry, apply(registry, seal()), State.ACTIVE)
        document = Document("s1", DocumentKind.MAKING, T0, b"{}", b"s", b"c")
        registry.seals.advance(step(one, Act.SUSPEND, documents=(document,), messages=(message(),)))
    else:
        ended_at(registry, ended)
    statements = [f"DELETE FROM {table}" for table in (*RECORDS, "message", "seal")]
    statements += [f"UPDATE {table} SET seal_id = seal_id" for table in RECORDS]
    statements += ["UPDATE seal SET organisation = organisation", "UPDATE seal SET id = 's9'"]
    if ended is not None:
        statements += [
            "UPDATE seal SET state = 'active'",
            "UPDATE seal SET retain_until = NULL",
            "UPDATE seal SET retain_until = '2026-01-01'",
        ]
    if place.is_postgres:
        statements += [f"TRUNCATE {table} CASCADE" for table in (*RECORDS, "message", "seal")]
    for statement in statements:
        with pytest.raises((sqlite3.IntegrityError, psycopg.errors.RestrictViolation)):
            as_keeper(place, statement)
    assert registry.seals.purge("9999-01-01T00:00:00.000+00:00") == 0 if ended is None else True
    assert len(registry.seals.documents("s1")) == 1 and registry.seals.events("s1")


def test_records_may_go_five_years_after_the_end(place: Place) -> None:
    registry = place.open()
    until = ended_at(registry, "2015-03-01T12:00:00.000+00:00")
    later = ended_at(registry, "2015-03-01T12:00:00.001+00:00", "s2")
    assert until == "2020-03-04T12:00:00.000+00:00", "no leap year makes it shorter"
    just_before = datetime.fromisoformat(until) - timedelta(milliseconds=1)
    assert registry.seals.purge(just_before.isoformat(timespec="milliseconds")) == 0
    assert registry.seals.seal("s1")
    assert registry.seals.purge(until) == 1
    with pytest.raises(NotFound):
        registry.seals.seal("s1")
    tables = (*RECORDS, "pending", "protection", "seal_grant", "message", "use_of_seal", "reservation")
    for table in tables:
        assert registry._database.rows(f"SELECT DISTINCT seal_id FROM {table}") == [("s2",)], table
    assert [one.id for one in registry.people.proposals()] == ["p-s2"]
    assert registry.usage.uses("day", T0[:10], T0[:10]) == [(T0[:10], 6)], "sums name no seal, and stay"
    assert registry.seals.purge(later, limit=1) == 1 and registry.seals.purge(later) == 0


def test_a_clock_of_ours_that_runs_ahead_purges_nothing(registry: Registry) -> None:
    ended_at(registry, "2026-06-01T00:00:00.000+00:00")
    with pytest.raises(Conflict, match="five years"):
        registry.seals.purge("2999-01-01T00:00:00.000+00:00")
    assert registry.seals.events("s1") and registry.messages.messages()


def test_only_an_end_is_an_end(registry: Registry) -> None:
    assert {State.REFUSED, State.CANCELLED} == ENDS
    one = bring_to(registry, apply(registry, seal()), State.EXPIRED)
    assert registry.seals.purge("2999-01-01T00:00:00.000+00:00") == 0, (
        "an expired seal may still be cancelled"
    )
    assert registry.seals.seal("s1") == one


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


# The databases beside each other ----------------------------------------------------------------------------


def test_both_have_the_same_tables(tmp_path: Path, server: Any) -> None:
    file, schema = Place(tmp_path / "registry.sqlite"), Place(server.url("twin"))
    one, other = file.open(), schema.open()
    tables = [name for (name,) in one._database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
    ours = {
        (table, name, bool(notnull) or bool(key))
        for table in tables
        if not table.startswith("sqlite_")
        for _, name, _, notnull, _, key in one._database.rows(f"PRAGMA table_info({table})")
    }
    theirs = {
        (table, name, nullable == "NO")
        for table, name, nullable in other._database.rows(
            "SELECT table_name, column_name, is_nullable FROM information_schema.columns WHERE table_schema = ?",
            "twin",
        )
        if table not in ("holder", "schema_version")
    }
    assert ours == theirs
    indexes = {name for (name,) in one._database.rows("SELECT name FROM sqlite_master WHERE type = 'index'")}
    known = {
        name
        for (name,) in other._database.rows("SELECT indexname FROM pg_indexes WHERE schemaname = ?", "twin")
    }
    assert {name for name in indexes if not name.startswith("sqlite_autoindex")} <= known
    file.close()
    schema.close()
