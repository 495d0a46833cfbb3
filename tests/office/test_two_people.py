"""Critical acts: two different people, once, in time; what fails is told and on record; what was cut short is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from appliance_fixture import run
from office_rig import MakeRig, Rig

from appliance.algorithms import Algorithm
from appliance.errors import ApplianceError, BadRequest, Conflict, Denied, NotFound, Unavailable
from appliance.lifecycle import (
    APPROVERS,
    PROPOSERS,
    CriticalAct,
    Operation,
    ProposalState,
    Role,
    Seal,
    State,
)

CANCEL = {"reason": "withdrawn", "words": "no longer used"}


def test_who_proposed_never_approves_nor_rejects(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            proposal = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            for act in (
                one.office.approve(one["guard"], proposal.id),
                one.office.reject(one["guard"], proposal.id, "no"),
            ):
                with pytest.raises(Denied, match="cannot decide"):
                    await act
            assert (await one.seal(seal)).state is State.ACTIVE
            done = await one.office.approve(one["guard-2"], proposal.id)
            assert (done.state, done.decided_by) == (ProposalState.DONE, "guard-2")

    run(test())


@pytest.mark.parametrize("which", ["rig", "postgres_rig"])
def test_of_two_who_approve_at_once_one_does_it(which: str, request: pytest.FixtureRequest) -> None:
    rig: MakeRig = request.getfixturevalue(which)

    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            proposal = await one.office.propose(one["clerk"], CriticalAct.CANCEL, seal.id, CANCEL)
            elsewhere = one.again()  # another process on the same registry, as it were
            answers = await asyncio.gather(
                one.office.approve(one["guard"], proposal.id),
                elsewhere.approve(one["guard-2"], proposal.id),
                one.office.approve(one["guard-2"], proposal.id),
                return_exceptions=True,
            )
            await elsewhere.close()
            done = [one for one in answers if not isinstance(one, BaseException)]
            assert len(done) == 1 and all(
                isinstance(other, Conflict) for other in answers if other is not done[0]
            ), answers
            assert (await one.acts(seal)).count("cancel") == 1

    run(test())


@pytest.mark.parametrize("act", list(CriticalAct))
def test_roles(rig: MakeRig, act: CriticalAct) -> None:
    """Everybody without the role is refused before anything is looked at."""

    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            for officer in one.people.values():
                if not officer.roles & PROPOSERS[act]:
                    with pytest.raises(Denied, match="may not"):
                        await one.office.propose(officer, act, seal.id, {})
            proposal = await one.office.propose(one["clerk"], CriticalAct.CANCEL, seal.id, CANCEL)
            for officer in one.people.values():
                if not officer.roles & APPROVERS[CriticalAct.CANCEL]:
                    with pytest.raises(Denied, match="may not"):
                        await one.office.approve(officer, proposal.id)

    run(test())


@pytest.mark.parametrize("changed", ["disabled", "other roles"])
def test_who_proposed_and_may_not_any_more(rig: MakeRig, changed: str) -> None:
    """Two people want it at the moment it is approved, not one and somebody who was turned away since."""

    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            proposal = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            if changed == "disabled":
                await one.office.set_officer_disabled(0, "guard", True)
            else:
                await one.office.set_officer_roles(0, "guard", [Role.MAKER])
            with pytest.raises(Conflict, match="guard"):
                await one.office.approve(one["guard-2"], proposal.id)
            assert (await one.seal(seal)).state is State.ACTIVE
            rejected = await one.office.reject(one["guard-2"], proposal.id, "guard has left")
            assert rejected.state is ProposalState.REJECTED

    run(test())


def test_what_takes_two_cannot_be_done_alone(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            with pytest.raises(Denied, match="two people"):
                await one.office.grant(one["guard"], seal.id, {"account": "approval"})
            with pytest.raises(Denied, match="two people"):
                await one.office.revoke(one["guard"], seal.id, "approval")

    run(test())


def test_proposals_expire(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig(proposal_ttl_s=3_600.0) as one:
            seal = await one.active()
            proposal = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            one.today.pass_(hours=1)
            with pytest.raises(Conflict, match="expired"):
                await one.office.approve(one["guard-2"], proposal.id)
            assert (await one.office.sweep()).proposals_expired == 1
            assert (await one.office.proposal(one["auditor"], proposal.id)).state is ProposalState.EXPIRED

    run(test())


def test_rejected(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            proposal = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            rejected = await one.office.reject(one["guard-2"], proposal.id, "still needed")
            assert (rejected.state, rejected.outcome) == (ProposalState.REJECTED, "still needed")
            with pytest.raises(Conflict):
                await one.office.approve(one["guard-2"], proposal.id)

    run(test())


def test_a_seal_that_changed_since_the_proposal(rig: MakeRig) -> None:
    """The state is looked at again when it is done; the failure is told, and on record."""

    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            first = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            second = await one.office.propose(one["guard-2"], CriticalAct.CANCEL, seal.id, CANCEL)
            await one.office.approve(one["guard-2"], first.id)
            with pytest.raises(Conflict, match="cancelled"):
                await one.office.approve(one["guard"], second.id)
            failed = await one.office.proposal(one["auditor"], second.id)
            assert failed.state is ProposalState.FAILED and "cancelled" in str(failed.outcome)

    run(test())


def test_another_certificate_than_the_approved_one_is_not_made(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.certified()
            proposal = await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})
            await one.certify(await one.seal(seal))
            with pytest.raises(Conflict, match="another certificate"):
                await one.office.approve(one["guard"], proposal.id)
            assert (await one.seal(seal)).state is State.REVIEWED

    run(test())


# What was cut short -------------------------------------------------------------------------------------------


class Cut(BaseException):
    """The process ends here."""


def cut_before(one: Rig, owner: Any, name: str) -> Callable[[], None]:
    """From now on the process ends where that method of the registry's is called; the return value mends it."""
    real = getattr(owner, name)

    def ends(*arguments: object, **named: object) -> None:
        raise Cut

    setattr(owner, name, ends)
    return lambda: setattr(owner, name, real)


def cut_after(one: Rig, owner: Any, name: str) -> Callable[[], None]:
    """The same, once the method has done its work."""
    real = getattr(owner, name)

    def ends(*arguments: object, **named: object) -> None:
        real(*arguments, **named)
        raise Cut

    setattr(owner, name, ends)
    return lambda: setattr(owner, name, real)


CutWhere = Callable[[Rig, Any, str], Callable[[], None]]


async def check_done_once(
    one: Rig,
    seal: Seal,
    act: CriticalAct,
    cut: CutWhere,
    owner: Any,
    method: str,
    word: str,
    **arguments: Any,
) -> None:
    proposer, approver = ("maker", "guard") if act is CriticalAct.MAKE else ("guard", "guard-2")
    proposal = await one.office.propose(one[proposer], act, seal.id, arguments)
    mend = cut(one, owner, method)
    with pytest.raises(Cut):
        await one.office.approve(one[approver], proposal.id)
    mend()
    restarted = one.again()
    await restarted.resume_approved()
    await restarted.resume_approved()
    done = await restarted.proposal(one["auditor"], proposal.id)
    assert done.state is ProposalState.DONE, done
    assert (await one.acts(seal)).count(word) == 1
    await restarted.close()


@pytest.mark.parametrize("cut", [cut_before, cut_after])
@pytest.mark.parametrize("method", ["advance", "next_code", "imprint"])
def test_a_making_that_was_cut_short_is_done_once(rig: MakeRig, cut: CutWhere, method: str) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.certified()
            await check_done_once(one, seal, CriticalAct.MAKE, cut, one.registry.seals, method, "make")
            made = await one.seal(seal)
            assert made.state is State.MADE and made.code
            documents = await asyncio.to_thread(one.registry.seals.documents, seal.id)
            messages = await asyncio.to_thread(one.registry.messages.messages, False, "", 10, seal.id)
            assert len(documents) == len(messages) == 1

    run(test())


@pytest.mark.parametrize("cut", [cut_before, cut_after])
@pytest.mark.parametrize(
    ("act", "part", "method", "arguments"),
    [
        (CriticalAct.CANCEL, "seals", "advance", CANCEL),
        (CriticalAct.GRANT, "grants", "put", {"account": "approval"}),
        (CriticalAct.RESET_PASSWORD, "custody", "reset", {"password": "Third-password-19", "reason": "lost"}),
    ],
)
def test_another_act_that_was_cut_short_is_done_once(
    rig: MakeRig, cut: CutWhere, act: CriticalAct, part: str, method: str, arguments: dict[str, Any]
) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            owner = getattr(one.registry, part)
            await check_done_once(one, seal, act, cut, owner, method, act.value, **arguments)

    run(test())


def test_where_something_is_away_it_stays_approved_until_it_is_back_or_expires(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig(proposal_ttl_s=3_600.0) as one:
            seal = await one.active()
            proposals = [
                await one.office.propose(
                    one["guard"], CriticalAct.CANCEL, (await one.active(application)).id, CANCEL
                )
                for application in (one.contract_seal(), one.contract_seal())
            ]
            one.pipeline.draining = True
            for proposal in proposals:
                waiting = await one.office.approve(one["guard-2"], proposal.id)
                assert waiting.state is ProposalState.APPROVED and "not done yet" in str(waiting.outcome)
            assert await one.office.resume_approved() == 0
            one.pipeline.draining = False
            keep = proposals[1].target
            one.today.pass_(hours=2)
            one.told.clear()
            assert await one.office.resume_approved() == 0
            for proposal in proposals:
                failed = await one.office.proposal(one["auditor"], proposal.id)
                assert failed.state is ProposalState.FAILED and "expired" in str(failed.outcome)
            assert (await one.seal(keep)).state is State.ACTIVE
            again = await one.office.propose(one["guard"], CriticalAct.CANCEL, seal.id, CANCEL)
            one.pipeline.draining = True
            await one.office.approve(one["guard-2"], again.id)
            one.pipeline.draining = False
            assert (await one.office.sweep()).proposals_done == 1
            assert (await one.seal(seal)).state is State.CANCELLED

    run(test())


# Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "arguments", "word"),
    [
        (CriticalAct.CANCEL, {}, "reason"),
        (CriticalAct.CANCEL, {"reason": "changed", "words": "x"}, "by itself"),
        (CriticalAct.CANCEL, {"reason": "lost"}, "words"),
        (CriticalAct.CANCEL, {"reason": "lost", "words": "x" * 501}, "words"),
        (CriticalAct.CANCEL, {"reason": "lost", "words": "x", "more": 1}, "unknown"),
        (CriticalAct.GRANT, {}, "account"),
        (CriticalAct.GRANT, {"account": "approval", "operations": []}, "operations"),
        (CriticalAct.GRANT, {"account": "approval", "operations": ["destroy"]}, "operations"),
        (CriticalAct.GRANT, {"account": "approval", "daily_limit": -1}, "daily_limit"),
        (CriticalAct.GRANT, {"account": "approval", "daily_limit": 10**9 + 1}, "daily_limit"),
        (CriticalAct.GRANT, {"account": "approval", "minute_limit": True}, "minute_limit"),
        (CriticalAct.GRANT, {"account": "approval", "valid_from": "soon"}, "valid_from"),
        (CriticalAct.GRANT, {"account": "approval", "valid_to": "2026-01-01T00:00:00"}, "valid_to"),
        (CriticalAct.GRANT, {"account": "approval", "sources": ["here"]}, "sources"),
        (CriticalAct.GRANT, {"account": "approval", "sources": [7]}, "sources"),
        (CriticalAct.GRANT, {"account": "approval", "approval_pattern": "("}, "approval_pattern"),
        (CriticalAct.GRANT, {"account": "approval", "approval_pattern": "x" * 257}, "approval_pattern"),
        (CriticalAct.RESET_PASSWORD, {"password": "short", "reason": "lost"}, "password"),
        (CriticalAct.RESET_PASSWORD, {"password": "Third-password-19"}, "reason"),
        (CriticalAct.DESTROY_KEY, {}, "key"),
    ],
)
def test_arguments_that_cannot_be(
    rig: MakeRig, act: CriticalAct, arguments: dict[str, Any], word: str
) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            with pytest.raises(BadRequest, match=word):
                await one.office.propose(one["guard"], act, seal.id, arguments)

    run(test())


# Grants and keys ------------------------------------------------------------------------------------------------


def test_a_grant_on_an_official_seal_and_back(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            one.told.clear()
            await one.both(
                "keeper", "guard", CriticalAct.GRANT, seal,
                account="approval", operations=["seal"], daily_limit=100, sources=["10.0.0.0/8"],
                approval_pattern=r"OA-\d+", valid_to="2099-01-01T08:00:00+08:00",
            )  # fmt: skip
            assert one.told == [("seal", seal.id)]
            grant = await asyncio.to_thread(one.registry.grants.grant, "approval", seal.id)
            assert grant is not None and grant.operations == {Operation.SEAL}
            assert (grant.daily_limit, grant.sources) == (100, ("10.0.0.0/8",))
            assert grant.valid_to == "2099-01-01T00:00:00.000+00:00"
            await one.both("keeper", "guard", CriticalAct.REVOKE, seal, account="approval")
            assert await asyncio.to_thread(one.registry.grants.grant, "approval", seal.id) is None
            assert (await one.acts(seal))[-2:] == ["grant", "revoke"]
            with pytest.raises(NotFound):
                await one.office.propose(one["guard"], CriticalAct.REVOKE, seal.id, {"account": "approval"})
            with pytest.raises(NotFound):
                await one.office.propose(one["guard"], CriticalAct.GRANT, seal.id, {"account": "nobody"})

    run(test())


def test_the_custodian_of_another_seal_proposes_nothing_about_this_ones_grants(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            for act in (CriticalAct.GRANT, CriticalAct.REVOKE):
                with pytest.raises(Denied, match="custodian is 'keeper'"):
                    await one.office.propose(one["keeper-2"], act, seal.id, {"account": "approval"})

    run(test())


def test_a_grant_on_a_personal_seal_takes_one_security_officer(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(one.personal_seal())
            with pytest.raises(Denied, match="security"):
                await one.office.grant(one["keeper"], seal.id, {"account": "approval"})
            await one.office.grant(one["guard"], seal.id, {"account": "approval"})
            assert await asyncio.to_thread(one.registry.grants.grant, "approval", seal.id) is not None
            await one.office.revoke(one["guard"], seal.id, "approval")
            assert await asyncio.to_thread(one.registry.grants.grant, "approval", seal.id) is None

    run(test())


@pytest.mark.gauntlet  # it lists a token full of keys three times
def test_a_key_is_destroyed_when_its_seal_has_ended(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            assert seal.key_name is not None
            arguments = {"key": seal.key_name}
            with pytest.raises(Conflict, match="needs its key"):
                await one.office.propose(one["guard"], CriticalAct.DESTROY_KEY, seal.id, arguments)
            await one.both("guard", "guard-2", CriticalAct.CANCEL, seal, **CANCEL)
            with pytest.raises(NotFound):
                await one.office.propose(one["guard"], CriticalAct.DESTROY_KEY, seal.id, {"key": "maker"})
            key = await one.holdings.find_seal_key(seal.key_name)
            (pool,) = one.pools.values()
            ids = {entry["id"] for entry in await pool.list_keys()}
            assert key.key_id.hex() in ids
            await one.both("guard", "guard-2", CriticalAct.DESTROY_KEY, seal, **arguments)
            assert {entry["id"] for entry in await pool.list_keys()} == ids - {key.key_id.hex()}
            with pytest.raises(NotFound):
                await one.holdings.find_seal_key(seal.key_name)
            with pytest.raises(Conflict):  # the name is taken for ever
                await one.holdings.create_key(seal.key_name, pool.name, Algorithm.ECDSA_P256_SHA256, pool)
            assert (await one.acts(seal))[-1] == "destroy-key"
            assert ("key", seal.key_name) in one.told

    run(test())


def test_a_key_of_an_earlier_generation_and_one_that_was_never_used(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(days=20)
            await one.certify(seal, days=365)
            await one.both("maker", "guard", CriticalAct.RENEW, seal)
            renewed = await one.seal(seal)
            await one.both("guard", "guard-2", CriticalAct.DESTROY_KEY, seal, key=seal.key_name)
            with pytest.raises(Conflict, match="needs its key"):
                await one.office.propose(
                    one["guard"], CriticalAct.DESTROY_KEY, seal.id, {"key": renewed.key_name}
                )
            unused = await one.office.make_key(one["maker"], seal.id)
            await one.both("guard", "guard-2", CriticalAct.DESTROY_KEY, seal, key=unused.name)
            assert (await one.seal(seal)).state is State.ACTIVE
            refused = await one.certified(one.contract_seal())
            await one.office.refuse(one["reviewer"], refused.id, "not needed any more")
            await one.both("guard", "guard-2", CriticalAct.DESTROY_KEY, refused, key=refused.key_name)

    run(test())


@pytest.mark.gauntlet  # it lists a token full of keys twice
@pytest.mark.parametrize("cut", [cut_before, cut_after])
def test_a_key_that_was_made_and_not_noted_is_found_again(rig: MakeRig, cut: CutWhere) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.reviewed()
            mend = cut(one, one.registry.seals, "set_pending")
            with pytest.raises(Cut):
                await one.office.make_key(one["maker"], seal.id)
            mend()
            (pool,) = one.pools.values()
            before = len(await pool.list_keys())
            key = await one.office.make_key(one["maker"], seal.id)
            assert len(await pool.list_keys()) == before, "no second key"
            assert (await one.seal(seal)).key_name == key.name
            assert (await one.acts(seal)).count("make-key") == 1

    run(test())


@pytest.mark.parametrize("method", ["destroy_key"])
def test_a_key_that_was_destroyed_and_not_recorded(rig: MakeRig, method: str) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            await one.both("guard", "guard-2", CriticalAct.CANCEL, seal, **CANCEL)
            await check_done_once(
                one, seal, CriticalAct.DESTROY_KEY, cut_before, one.registry, method, "destroy-key", key=seal.key_name
            )  # fmt: skip

    run(test())


async def both_fail(act: Awaitable[object]) -> type[ApplianceError]:
    with pytest.raises(ApplianceError) as caught:
        await act
    return type(caught.value)


def test_a_token_that_is_away(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.reviewed()
            (pool,) = one.pools.values()
            workers, pool._workers = pool._workers, []
            assert await both_fail(one.office.make_key(one["maker"], seal.id)) is Unavailable
            pool._workers = workers
            await one.office.make_key(one["maker"], seal.id)
            again = await one.office.make_key(one["maker"], seal.id)
            assert again.name == f"seal-{seal.id}-1"
            assert (await one.acts(seal)).count("make-key") == 1

    run(test())
