"""One contract, every database: acts hold only where the seal is as they saw it, whoever races."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from registry.conftest import Place, as_keeper, race
from registry.keys import ACCOUNT
from registry.seals import (
    IMPRINT,
    ORGANISATION,
    T0,
    T1,
    apply,
    bring_to,
    event,
    grant,
    making,
    message,
    proposal,
    seal,
    step,
)

from appliance.errors import BadRequest, Conflict, NotFound
from appliance.lifecycle import (
    RETAIN_FOR,
    TRANSITIONS,
    Act,
    Document,
    DocumentKind,
    Event,
    Kind,
    Organisation,
    ProposalState,
    Reason,
    State,
)
from appliance.registry import Registry, SealFilter, Step
from appliance.registry.database import MAX_ROWS
from appliance.registry.seals import ENDS

OTHER = Organisation("91330100MA27ABCD3W", "宁波某某贸易有限公司", "330200")
LATER = "2026-01-03T00:00:00.000+00:00"


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


def test_what_ends_a_proposal_is_noted_once(registry: Registry) -> None:
    apply(registry, seal())
    registry.people.add_proposal(proposal())
    registry.people.decide("p1", ProposalState.APPROVED, "qian", T0)
    line = Event("s1", T1, "destroy-key", State.APPLIED, State.APPLIED, "li", "qian", {})
    registry.seals.note(line, ("p1", "destroyed"))
    assert registry.people.proposal("p1").state is ProposalState.DONE
    with pytest.raises(Conflict):
        registry.seals.note(line, ("p1", "destroyed"))
    assert registry.seals.events("s1").count(line) == 1


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
