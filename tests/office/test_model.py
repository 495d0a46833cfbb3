"""The life of seals against a model in plain Python: every act in every state, by everybody, alone and racing.

The office is a real one, on a real token, on each registry. The model knows the table (``lifecycle.TRANSITIONS``) and
what each act asks besides; after every step the registry must say what the model says. ``Driver`` does an act and
compares; the state machine chooses acts at random, and ``test_every_act_in_every_state`` leaves none out.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from appliance_fixture import SoftToken
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from office_rig import NAME, OFFICERS, REGION, SEAL_PASSWORD, Rig, working
from postgres_server import PostgresServer

from appliance.algorithms import Algorithm
from appliance.errors import ApplianceError, Conflict, Denied
from appliance.lifecycle import (
    APPROVERS,
    COLLECT_WITHIN,
    DORMANT_AFTER,
    PROPOSERS,
    RENEWAL_WINDOW,
    TRANSITIONS,
    Act,
    CriticalAct,
    DocumentKind,
    Kind,
    MessageKind,
    Organisation,
    Proposal,
    ProposalState,
    State,
)
from appliance.office import Office
from appliance.office.desk import instant

TTL = timedelta(days=3)
"""Of proposals."""
BY_TWO = {
    Act.MAKE: CriticalAct.MAKE,
    Act.RENEW: CriticalAct.RENEW,
    Act.WAKE: CriticalAct.WAKE,
    Act.CANCEL: CriticalAct.CANCEL,
}
BY_TIME = (Act.EXPIRE, Act.SLEEP, Act.ABANDON)
ALONE = (Act.REVIEW, Act.REFUSE, Act.FILE, Act.CONFIRM, Act.ACTIVATE, Act.SUSPEND, Act.RESUME)
ENDED = (State.REFUSED, State.CANCELLED)
ARGUMENTS: dict[CriticalAct, dict[str, Any]] = {
    CriticalAct.WAKE: {"reason": "used again"},
    CriticalAct.CANCEL: {"reason": "withdrawn", "words": "no longer used"},
}
Refusal = type[ApplianceError] | None


@dataclass
class Known:
    """What the model knows of a seal."""

    id: str
    kind: Kind
    number: int
    replaces: Known | None
    holds_place: bool
    state: State = State.APPLIED
    events: list[str] = field(default_factory=lambda: ["apply"])
    is_confirmed: bool = False
    has_key: bool = False
    certified_to: datetime | None = None
    """The end of the certificate for the next making, where there is one."""
    certificate: int = 0
    """Counts certificates for the next making: another one than was proposed is not made with."""
    generation: int = 0
    valid_to: datetime | None = None
    made_at: datetime | None = None
    idle_from: datetime | None = None
    replaced_by: Known | None = None
    documents: Counter[DocumentKind] = field(default_factory=Counter)
    messages: Counter[MessageKind] = field(default_factory=Counter)

    @property
    def place(self) -> tuple[Kind, int]:
        """Within its organisation; each test has one of its own."""
        return self.kind, self.number


@dataclass
class Wanted:
    """What the model knows of a proposal."""

    id: str
    act: CriticalAct
    seal: Known
    by: str
    expires_at: datetime
    certificate: int
    state: ProposalState = ProposalState.OPEN


class World:
    """An office at work in a thread of its own; tests call it from theirs."""

    def __init__(self, root: Path, token: SoftToken, server: PostgresServer | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        url = server.url("model") if server is not None else None
        self._working = working(
            root,
            token.profile(),
            algorithm=Algorithm.ECDSA_P256_SHA256,
            registry_url=url,
            proposal_ttl_s=TTL.total_seconds(),
        )
        self.rig: Rig = self.call(self._working.__aenter__())
        self.elsewhere: Office = self.rig.again()
        """Another office on the same registry: what one appliance's knows, the other's does not."""
        self.began = self.rig.today.now
        self.organisations = itertools.count(1)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def close(self) -> None:
        self.call(self.elsewhere.close())
        self.call(self._working.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(
    request: pytest.FixtureRequest, soft_token: SoftToken, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    server = PostgresServer() if request.param == "postgresql" else None
    world = World(tmp_path_factory.mktemp("model"), soft_token, server)
    yield world
    world.close()
    if server is not None:
        server.close()


class Driver:
    """Does acts to the seals of one organisation, and holds what comes of each against the model."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rig = world.rig
        self.rig.today.now = world.began
        self.code = f"91330100{next(world.organisations):010}"
        self.call(self.rig.office.add_organisation(self.rig["clerk"], Organisation(self.code, NAME, REGION)))
        self.seals: list[Known] = []
        self.wanted: list[Wanted] = []
        self.tried: Counter[tuple[State, Act]] = Counter()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.world.call(work)

    @property
    def now(self) -> datetime:
        return self.rig.today.now

    def close(self) -> None:
        """Time asks nothing more of these seals, so that it does not hold up others' tests."""
        self.rig.registry._database.run(
            lambda transaction: transaction.execute(
                "UPDATE seal SET idle_from = NULL, expires_at = NULL, uncollected_from = NULL WHERE organisation = ?",
                self.code,
            )
        )

    def expect(self, work: Coroutine[Any, Any, Any], refusal: Refusal) -> Any:
        """The result, where none is expected to be refused."""
        if refusal is None:
            return self.call(work)
        with pytest.raises(refusal):
            self.call(work)
        return None

    # What the model says ------------------------------------------------------------------------------------

    def alone(self, seal: Known, act: Act, officer: str) -> Refusal:
        """Whether one officer may do it now."""
        row = TRANSITIONS.get((seal.state, act))
        if row is None:
            return Conflict
        if row.two_people or not row.roles & OFFICERS[officer]:
            return Denied
        is_over = seal.valid_to is not None and seal.valid_to <= self.now
        if act is Act.ACTIVATE:
            if officer != "keeper":
                return Denied
            if not seal.is_confirmed or is_over or self.taken(seal):
                return Conflict
        if act is Act.RESUME and is_over:
            return Conflict
        return None

    def taken(self, seal: Known) -> bool:
        """Whether its place is another living seal's, which does not end with this one's activation."""
        return any(
            other.holds_place and other.place == seal.place
            for other in self.seals
            if other is not seal and (other is not seal.replaces or other.state is State.CANCELLED)
        )

    def work(self, seal: Known, act: CriticalAct, certificate: int | None = None) -> Refusal:
        """Whether what two want can be done now; ``certificate`` is the one it was proposed with."""
        if act is CriticalAct.DESTROY_KEY or (seal.state, Act(act.value)) not in TRANSITIONS:
            return Conflict
        if act is CriticalAct.CANCEL:
            return None
        if act is CriticalAct.WAKE:
            return Conflict if seal.valid_to is not None and seal.valid_to <= self.now else None
        if seal.certified_to is None or (certificate is not None and certificate != seal.certificate):
            return Conflict
        if act is CriticalAct.RENEW:
            assert seal.valid_to is not None
            if (
                not seal.valid_to - RENEWAL_WINDOW <= self.now < seal.valid_to
                or seal.certified_to <= seal.valid_to
            ):
                return Conflict
        if certificate is not None and seal.certified_to < self.now:
            return Conflict  # the certificate is looked at again when the seal is made
        return None

    def end(self, seal: Known, act: Act) -> None:
        """It was cancelled."""
        self.enter(seal, act)
        seal.holds_place = False
        seal.documents[DocumentKind.CANCELLATION] += 1
        seal.messages[MessageKind.CANCELLED] += 1

    def enter(self, seal: Known, act: Act) -> None:
        seal.state = TRANSITIONS[seal.state, act].target
        seal.events.append(act.value)

    # Acts -----------------------------------------------------------------------------------------------------

    def apply(self, kind: Kind, officer: str = "clerk", replaces: Known | None = None) -> Known | None:
        refusal: Refusal = None
        number = 0
        if kind is Kind.SPECIAL:
            numbers = {one.number for one in self.seals if one.kind is kind and one.state not in ENDED}
            number = next(number for number in itertools.count(1) if number not in numbers)
            number = replaces.number if replaces is not None else number
        if TRANSITIONS[None, Act.APPLY].roles.isdisjoint(OFFICERS[officer]):
            refusal = Denied
        elif replaces is not None:
            self.tried[replaces.state, Act.REPLACE] += 1
            others = [one for one in self.seals if one.replaces is replaces and one.state not in ENDED]
            if (replaces.state, Act.REPLACE) not in TRANSITIONS or replaces.kind is not kind or others:
                refusal = Conflict
        elif any(one.holds_place and one.place == (kind, number) for one in self.seals):
            refusal = Conflict
        builds = {
            Kind.STATUTORY: self.rig.application,
            Kind.SPECIAL: self.rig.contract_seal,
            Kind.PERSONAL: self.rig.personal_seal,
        }
        application = builds[kind](
            organisation=self.code, replaces=replaces.id if replaces is not None else None
        )
        made = self.expect(self.rig.office.apply(self.rig[officer], application), refusal)
        if made is None:
            return None
        assert made.number == number
        seal = Known(made.id, kind, number, replaces, holds_place=replaces is None)
        self.seals.append(seal)
        return seal

    def act(self, seal: Known, act: Act, officer: str) -> bool:
        """By one officer alone; whether it was done."""
        self.tried[seal.state, act] += 1
        refusal = self.alone(seal, act, officer)
        self.expect(self._alone(seal, act, officer), refusal)
        if refusal is not None:
            return False
        if act is Act.CONFIRM:
            seal.is_confirmed = True
        if act in (Act.ACTIVATE, Act.RESUME):
            seal.idle_from = self.now
        if act is Act.REFUSE:
            seal.holds_place = False
        self.enter(seal, act)
        old = seal.replaces
        if act is Act.ACTIVATE:
            seal.holds_place = True
            if old is not None and old.state is not State.CANCELLED:
                old.replaced_by = seal
                self.end(old, Act.REPLACE)
        return True

    def _alone(self, seal: Known, act: Act, officer: str) -> Coroutine[Any, Any, Any]:
        office, person = self.rig.office, self.rig[officer]
        match act:
            case Act.REVIEW:
                return office.review(person, seal.id)
            case Act.REFUSE:
                return office.refuse(person, seal.id, "incomplete")
            case Act.FILE:
                return office.file(person, seal.id, "by hand")
            case Act.CONFIRM:
                return office.confirm(person, seal.id, self.rig.registry.seals.imprint(seal.id).sm3)
            case Act.ACTIVATE:
                return office.activate(person, seal.id, SEAL_PASSWORD)
            case Act.SUSPEND:
                return office.suspend(person, seal.id, "an audit")
            case Act.RESUME:
                return office.resume(person, seal.id, "the audit is over")
        raise AssertionError(act)

    def certify(self, seal: Known, days: int = 365) -> None:
        """Its key, and a certificate for it, for the next making."""
        act = Act.RENEW if seal.state is State.ACTIVE else Act.MAKE
        if (seal.state, act) not in TRANSITIONS:
            self.expect(self.rig.office.make_key(self.rig["maker"], seal.id), Conflict)
            return
        self.call(self.rig.certify(self.rig.registry.seals.seal(seal.id), days))
        if not seal.has_key:
            seal.events.append("make-key")
        seal.has_key = True
        seal.events.append("accept-certificate")
        seal.certified_to = self.now - timedelta(minutes=1) + timedelta(days=days)
        seal.certificate += 1

    def propose(self, seal: Known, act: CriticalAct, officer: str) -> Wanted | None:
        self.tried[seal.state, Act(act.value)] += 1
        refusal = Denied if PROPOSERS[act].isdisjoint(OFFICERS[officer]) else self.work(seal, act)
        made: Proposal | None = self.expect(
            self.rig.office.propose(self.rig[officer], act, seal.id, ARGUMENTS.get(act, {})), refusal
        )
        if made is None:
            return None
        wanted = Wanted(made.id, act, seal, officer, self.now + TTL, seal.certificate)
        assert made.expires_at == instant(wanted.expires_at)
        self.wanted.append(wanted)
        return wanted

    def decides(self, wanted: Wanted, officer: str) -> Refusal:
        """Whether this officer may decide it now."""
        if APPROVERS[wanted.act].isdisjoint(OFFICERS[officer]) or officer == wanted.by:
            return Denied
        return None if wanted.state is ProposalState.OPEN and self.now < wanted.expires_at else Conflict

    def approve(self, wanted: Wanted, *officers: str) -> None:
        """One officer, or several at once, each at an office of its own: one of them has it done, once."""
        may = {officer: self.decides(wanted, officer) for officer in officers}
        offices = itertools.cycle((self.rig.office, self.world.elsewhere))

        async def at_once() -> list[Any]:
            return await asyncio.gather(
                *(
                    office.approve(self.rig[officer], wanted.id)
                    for officer, office in zip(officers, offices, strict=False)
                ),
                return_exceptions=True,
            )

        answers = dict(zip(officers, self.call(at_once()), strict=True))
        decided: Proposal = self.rig.registry.people.proposal(wanted.id)
        winners = [officer for officer, refusal in may.items() if refusal is None]
        for officer, answer in answers.items():
            if officer not in winners:
                refusal = may[officer]
                assert refusal is not None and isinstance(answer, refusal), (officer, answer)
        if not winners:
            return
        assert decided.decided_by in winners and decided.decided_by != wanted.by
        refused = self.work(wanted.seal, wanted.act, wanted.certificate)
        for officer in winners:
            first = officer == decided.decided_by
            if first and refused is None:
                assert isinstance(answers[officer], Proposal), answers[officer]
            else:
                assert isinstance(answers[officer], refused if first and refused else Conflict), answers[
                    officer
                ]
        wanted.state = ProposalState.FAILED if refused else ProposalState.DONE
        if refused is None:
            self._done(wanted.seal, wanted.act)

    def _done(self, seal: Known, act: CriticalAct) -> None:
        if act is CriticalAct.CANCEL:
            self.end(seal, Act.CANCEL)
            return
        self.enter(seal, Act(act.value))
        if act is CriticalAct.WAKE:
            seal.idle_from = self.now
            return
        if act is CriticalAct.MAKE:
            seal.made_at = self.now
        seal.valid_to, seal.certified_to, seal.has_key = seal.certified_to, None, False
        seal.generation += 1
        seal.documents[DocumentKind.MAKING] += 1
        seal.messages[MessageKind.MADE if act is CriticalAct.MAKE else MessageKind.RENEWED] += 1

    def reject(self, wanted: Wanted, officer: str) -> None:
        refusal = self.decides(wanted, officer)
        self.expect(self.rig.office.reject(self.rig[officer], wanted.id, "no"), refusal)
        if refusal is None:
            wanted.state = ProposalState.REJECTED

    def both(self, seal: Known, act: CriticalAct) -> None:
        """Two people with the right roles."""
        one, another = {
            CriticalAct.MAKE: ("maker", "maker-2"),
            CriticalAct.RENEW: ("maker", "guard"),
            CriticalAct.WAKE: ("reviewer", "guard"),
            CriticalAct.CANCEL: ("clerk", "guard"),
        }[act]
        wanted = self.propose(seal, act, one)
        assert wanted is not None
        self.approve(wanted, another)

    def use(self, seal: Known) -> None:
        self.rig.registry.usage.add([(seal.id, "approval", instant(self.now)[:10], 1, instant(self.now))])
        if seal.state is State.ACTIVE:
            seal.idle_from = self.now

    def wait(self, **much: float) -> None:
        """Time passes, and does what it does."""
        self.rig.today.pass_(**much)
        self.call(self.rig.office.sweep())
        for seal in self.seals:
            is_over = seal.valid_to is not None and seal.valid_to < self.now
            is_idle = seal.idle_from is not None and seal.idle_from < self.now - DORMANT_AFTER
            is_left = seal.made_at is not None and seal.made_at < self.now - COLLECT_WITHIN
            for act, is_due in zip(BY_TIME, (is_over, is_idle, is_left), strict=True):
                if not is_due:
                    continue
                self.tried[seal.state, act] += 1
                if (seal.state, act) not in TRANSITIONS:
                    continue
                if act is Act.ABANDON:
                    self.end(seal, act)
                else:
                    self.enter(seal, act)
                    seal.holds_place = seal.holds_place and act is not Act.EXPIRE
        for wanted in self.wanted:
            if wanted.state is ProposalState.OPEN and wanted.expires_at <= self.now:
                wanted.state = ProposalState.EXPIRED

    # What must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The registry says what the model says."""
        for seal in self.seals:
            self._check(seal)
        places = [seal.place for seal in self.seals if seal.holds_place]
        assert len(places) == len(set(places)), "one living seal has a place"
        for wanted in self.wanted:
            kept = self.rig.registry.people.proposal(wanted.id)
            assert kept.state is wanted.state, wanted
            assert kept.decided_by != kept.proposed_by

    def _check(self, seal: Known) -> None:
        registry = self.rig.registry
        kept = registry.seals.seal(seal.id)
        assert kept.state is seal.state and kept.generation == seal.generation
        assert kept.valid_to == (instant(seal.valid_to) if seal.valid_to else None)
        assert kept.replaced_by == (seal.replaced_by.id if seal.replaced_by else None)
        ((holds_place,),) = registry._database.rows("SELECT holds_place FROM seal WHERE id = ?", seal.id)
        assert bool(holds_place) == seal.holds_place
        events = registry.seals.events(seal.id)
        assert [event.act for event in events] == seal.events
        for before, event in itertools.pairwise(events):
            assert event.source is before.target, "the record has no gap"
        for event in events:
            if event.act in {act.value for act in BY_TWO}:
                assert event.approver is not None and event.approver != event.officer, (
                    "two people, and not one"
                )
        assert Counter(one.kind for one in registry.seals.documents(seal.id)) == seal.documents
        told = Counter(one.kind for one in registry.messages.messages(seal_id=seal.id))
        assert told == seal.messages

    # Ways through life ----------------------------------------------------------------------------------------

    def go_on(self, seal: Known) -> None:
        """What comes next in the life of a seal that all goes well with."""
        match seal.state:
            case State.APPLIED:
                self.act(seal, Act.REVIEW, "reviewer")
            case State.REVIEWED if seal.certified_to is None:
                self.certify(seal, 800)
            case State.REVIEWED if self.work(seal, CriticalAct.MAKE, seal.certificate) is None:
                self.both(seal, CriticalAct.MAKE)
            case State.MADE:
                self.act(seal, Act.FILE, "filer")
            case State.FILED if not seal.is_confirmed:
                self.act(seal, Act.CONFIRM, "clerk")
            case State.FILED:
                self.act(seal, Act.ACTIVATE, "keeper")
            case State.SUSPENDED:
                self.act(seal, Act.RESUME, "guard")
            case State.DORMANT if self.work(seal, CriticalAct.WAKE) is None:
                self.both(seal, CriticalAct.WAKE)

    def bring_to(self, state: State, kind: Kind = Kind.SPECIAL, days: int = 3_000) -> Known:
        """A new seal, brought there by the acts that lead there."""
        seal = self.apply(kind)
        assert seal is not None
        if state is State.REFUSED:
            self.act(seal, Act.REFUSE, "reviewer")
        if state in (State.APPLIED, State.REFUSED):
            return seal
        self.act(seal, Act.REVIEW, "reviewer")
        self.certify(seal, days)
        on_the_way = (State.REVIEWED, State.MADE, State.FILED, State.ACTIVE)
        stop = state if state in on_the_way else State.ACTIVE
        while seal.state is not stop:
            self.go_on(seal)
        match state:
            case State.SUSPENDED:
                self.act(seal, Act.SUSPEND, "guard")
            case State.CANCELLED:
                self.both(seal, CriticalAct.CANCEL)
            case State.DORMANT:
                self.wait(days=366)
            case State.EXPIRED:
                assert seal.valid_to is not None
                self.wait(seconds=(seal.valid_to - self.now).total_seconds() + 1)
        assert seal.state is state
        return seal


# Every act in every state -------------------------------------------------------------------------------------

OFFICER_FOR = {
    Act.REVIEW: "reviewer",
    Act.REFUSE: "reviewer",
    Act.FILE: "filer",
    Act.CONFIRM: "clerk",
    Act.ACTIVATE: "keeper",
    Act.SUSPEND: "guard",
    Act.RESUME: "guard",
}
PROPOSER_FOR = {
    CriticalAct.MAKE: "maker",
    CriticalAct.RENEW: "maker",
    CriticalAct.WAKE: "reviewer",
    CriticalAct.CANCEL: "guard",
}


@pytest.mark.parametrize("state", State)
def test_every_act_in_every_state(world: World, state: State) -> None:
    """By those who may: what the table has is done, what it does not have is refused and changes nothing."""
    for act in set(Act) - {Act.APPLY}:  # of a seal that is there already there is no way to ask for it
        driver = Driver(world)
        seal = driver.bring_to(state)
        before = len(seal.events)
        try_it(driver, seal, act)
        driver.check()
        row = TRANSITIONS.get((state, act))
        assert seal.events[before:].count(act.value) == (row is not None), (act, seal)
        if row is not None:
            assert seal.state is row.target
        elif act not in BY_TIME:  # time may have done something else
            assert seal.state is state and len(seal.events) == before
        assert driver.tried[state, act] or act in BY_TIME
        driver.close()


def try_it(driver: Driver, seal: Known, act: Act) -> None:
    """Have it come about, however it does."""
    if act in OFFICER_FOR:
        if act is Act.ACTIVATE and seal.state is State.FILED:
            driver.act(seal, Act.CONFIRM, "clerk")
        driver.act(seal, act, OFFICER_FOR[act])
    elif act in BY_TWO:
        critical = BY_TWO[act]
        if act is Act.RENEW and seal.state is State.ACTIVE:
            assert seal.valid_to is not None
            driver.use(seal)
            nearly = (seal.valid_to - driver.now - RENEWAL_WINDOW).total_seconds()
            while nearly > 0:  # used now and then, or it falls asleep
                driver.wait(seconds=min(nearly, 300 * 86_400))
                driver.use(seal)
                nearly = (seal.valid_to - driver.now - RENEWAL_WINDOW).total_seconds()
            driver.certify(seal)
        wanted = driver.propose(seal, critical, PROPOSER_FOR[critical])
        if wanted is not None:
            driver.approve(wanted, PROPOSER_FOR[critical])
            driver.check()
            driver.approve(wanted, "maker-2", "guard", "guard-2", PROPOSER_FOR[critical])
    elif act is Act.REPLACE:
        new = driver.apply(seal.kind, replaces=seal)
        if new is not None:
            while new.state is not State.ACTIVE:
                driver.go_on(new)
    elif act is Act.EXPIRE and seal.valid_to is not None:
        driver.wait(seconds=max((seal.valid_to - driver.now).total_seconds() + 1, 0))
    else:
        driver.wait(days={Act.SLEEP: 366, Act.ABANDON: 93, Act.EXPIRE: 400}[act])


# At random ------------------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Seals of one organisation, and officers who do whatever comes to their minds."""

    world: ClassVar[World]
    first: ClassVar[State]

    seals = st.integers(0, 7)
    officers = st.sampled_from(sorted(OFFICERS))
    kinds = st.sampled_from([Kind.STATUTORY, Kind.SPECIAL, Kind.PERSONAL])

    @initialize(kind=kinds, days=st.sampled_from([365, 800]))
    def begin(self, kind: Kind, days: int) -> None:
        """Somewhere in a seal's life: from its beginning on, most of what comes to mind is refused."""
        self.driver = Driver(self.world)
        self.driver.bring_to(self.first, kind, 800 if self.first is State.DORMANT else days)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()

    def seal(self, number: int) -> Known:
        return self.driver.seals[number % len(self.driver.seals)]

    def has_seals(self) -> bool:
        return bool(self.driver.seals)

    def has_wanted(self) -> bool:
        return bool(self.driver.wanted)

    @rule(kind=kinds, officer=st.sampled_from(["clerk", "guard"]))
    def apply(self, kind: Kind, officer: str) -> None:
        if len(self.driver.seals) < 4:
            self.driver.apply(kind, officer)

    @precondition(has_seals)
    @rule(number=seals)
    def apply_to_replace(self, number: int) -> None:
        if len(self.driver.seals) < 5:
            self.driver.apply(self.seal(number).kind, replaces=self.seal(number))

    @precondition(has_seals)
    @rule(number=seals, steps=st.integers(1, 7))
    def go_on(self, number: int, steps: int) -> None:
        for _ in range(steps):
            self.driver.go_on(self.seal(number))

    @precondition(has_seals)
    @rule(number=seals, act=st.sampled_from(ALONE), officer=officers)
    def act_alone(self, number: int, act: Act, officer: str) -> None:
        self.driver.act(self.seal(number), act, officer)

    @precondition(has_seals)
    @rule(number=seals, act=st.sampled_from(ALONE))
    def act_with_the_role(self, number: int, act: Act) -> None:
        self.driver.act(self.seal(number), act, OFFICER_FOR[act])

    @precondition(has_seals)
    @rule(number=seals, days=st.sampled_from([20, 365, 800]))
    def certify(self, number: int, days: int) -> None:
        self.driver.certify(self.seal(number), days)

    @precondition(has_seals)
    @rule(number=seals, act=st.sampled_from(sorted(PROPOSER_FOR, key=str)), officer=officers)
    def propose(self, number: int, act: CriticalAct, officer: str) -> None:
        self.driver.propose(self.seal(number), act, officer)

    @precondition(has_seals)
    @rule(number=seals, act=st.sampled_from(sorted(PROPOSER_FOR, key=str)))
    def propose_with_the_role(self, number: int, act: CriticalAct) -> None:
        self.driver.propose(self.seal(number), act, PROPOSER_FOR[act])

    @precondition(has_wanted)
    @rule(number=seals, who=st.lists(officers, min_size=1, max_size=4, unique=True))
    def approve(self, number: int, who: list[str]) -> None:
        self.driver.approve(self.driver.wanted[-1 - number % len(self.driver.wanted)], *who)

    @precondition(has_wanted)
    @rule(number=seals)
    def approve_by_all_who_may(self, number: int) -> None:
        wanted = self.driver.wanted[-1 - number % len(self.driver.wanted)]
        self.driver.approve(wanted, "maker-2", "guard", "guard-2", "reviewer")

    @precondition(has_wanted)
    @rule(number=seals, officer=officers)
    def reject(self, number: int, officer: str) -> None:
        self.driver.reject(self.driver.wanted[-1 - number % len(self.driver.wanted)], officer)

    @precondition(has_seals)
    @rule(number=seals)
    def use(self, number: int) -> None:
        self.driver.use(self.seal(number))

    @rule(days=st.sampled_from([1, 4, 31, 93, 340, 366]))
    def wait(self, days: int) -> None:
        if self.driver.now - self.driver.world.began < timedelta(
            days=2_500
        ):  # the CA's certificate ends at 3,650
            self.driver.wait(days=days)

    @invariant()
    def the_registry_says_what_the_model_says(self) -> None:
        if hasattr(self, "driver"):
            self.driver.check()


def live(world: World, first: State, examples: int, steps: int) -> None:
    machine: Callable[[], Lives] = type("LivesHere", (Lives,), {"world": world, "first": first})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("first", State)
def test_lives(world: World, first: State) -> None:
    live(world, first, examples=4, steps=20)


@pytest.mark.gauntlet
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("first", State)
def test_many_lives(world: World, first: State) -> None:
    live(world, first, examples=30, steps=50)
