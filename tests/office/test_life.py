"""The whole life of a seal, act by act, and what each leaves on record."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from appliance_fixture import run
from office_rig import OTHER_USCC, SEAL_PASSWORD, USCC, MakeRig, Rig, imprint

from appliance import documents
from appliance.errors import BadRequest, Conflict, Denied
from appliance.eseal.structures import read_seal
from appliance.eseal.verification import NOT_ASKED, Verdict, verify_seal
from appliance.lifecycle import (
    CriticalAct,
    DocumentKind,
    Kind,
    MessageKind,
    ProposalState,
    Reason,
    Seal,
    State,
)
from appliance.verifying import sm3


async def messages(rig: Rig, seal: Seal) -> set[MessageKind]:
    found = await asyncio.to_thread(rig.registry.messages.messages, False, "", 100, seal.id)
    assert len({one.kind for one in found}) == len(found), "one of each"
    return {one.kind for one in found}


async def check_from_application_to_activation(rig: Rig) -> None:
    seal = await rig.active()
    assert seal.state is State.ACTIVE and seal.generation == 1
    assert seal.code == "33010000000001"
    assert await rig.acts(seal) == [
        "apply", "review", "make-key", "accept-certificate", "make", "file", "confirm", "activate",
    ]  # fmt: skip
    made = await asyncio.to_thread(rig.registry.seals.generation, seal.id, 1)
    eseal = read_seal(made.eseal)
    assert (eseal.code, eseal.name, eseal.signers) == (seal.code, seal.name, (made.certificate,))
    trust = await rig.office.maker.trust()
    report = verify_seal(made.eseal, trust=trust, verifier=rig.verifier, now=rig.today(), status=NOT_ASKED)
    assert report.verdict is Verdict.GOOD
    (document,) = await asyncio.to_thread(rig.registry.seals.documents, seal.id)
    fields = documents.verify(document, rig.verifier)
    assert document.kind is DocumentKind.MAKING
    assert (fields["sealCode"], fields["proposer"], fields["approver"]) == (seal.code, "maker", "guard")
    (message,) = await asyncio.to_thread(rig.registry.messages.messages, False, "", 100, seal.id)
    assert message.kind is MessageKind.MADE and message.delivered_at is not None
    assert message.body["sealCode"] == seal.code and message.body["useUnitCode"] == USCC
    assert message.body["taskCode"] == "207" and message.body["taskSignature"]
    unlocked = await rig.protection.unlock("approval", seal.id, SEAL_PASSWORD)
    assert unlocked.seal_id == seal.id
    assert ("seal", seal.id) in rig.told


def test_a_seal_from_application_to_activation(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            await check_from_application_to_activation(one)

    run(test())


def test_the_same_with_sm2(sm2_rig: MakeRig) -> None:
    async def test() -> None:
        async with sm2_rig() as one:
            await check_from_application_to_activation(one)

    run(test())


def test_the_same_with_postgresql(postgres_rig: MakeRig) -> None:
    async def test() -> None:
        async with postgres_rig() as one:
            await check_from_application_to_activation(one)

    run(test())


def test_a_seal_lists_digests_where_the_configuration_says_so(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig(certificate_list="digests", version=5) as one:
            seal = await one.made()
            made = await asyncio.to_thread(one.registry.seals.generation, seal.id, 1)
            assert not any(isinstance(signer, bytes) for signer in read_seal(made.eseal).signers)

    run(test())


def test_suspended_and_resumed(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            one.told.clear()
            suspended = await one.office.suspend(one["guard"], seal.id, "the unit asked for it")
            assert suspended.state is State.SUSPENDED
            assert one.told == [("seal", seal.id)]
            with pytest.raises(Conflict, match="suspended"):
                await one.office.suspend(one["guard"], seal.id, "again")
            with pytest.raises(Denied, match="security"):
                await one.office.resume(one["keeper"], seal.id, "it is mine")
            assert (await one.office.resume(one["guard"], seal.id, "found")).state is State.ACTIVE

    run(test())


def test_cancelled_by_two(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            await one.both("clerk", "guard", CriticalAct.CANCEL, seal, reason="lost", words="left in a taxi")
            ended = await one.seal(seal)
            assert (ended.state, ended.end_reason) == (State.CANCELLED, Reason.LOST)
            _, document = await asyncio.to_thread(one.registry.seals.documents, seal.id)
            fields = documents.verify(document, one.verifier)
            assert document.kind is DocumentKind.CANCELLATION
            assert (fields["invalidType"], fields["cancelDescribe"]) == (2, "left in a taxi")
            assert await messages(one, seal) == {MessageKind.MADE, MessageKind.CANCELLED}
            assert (await one.applied()).state is State.APPLIED, "its place is free"

    run(test())


def test_a_change_cancels_the_old_one_as_the_new_one_is_activated(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            old = await one.active()
            new = await one.filed(one.application(replaces=old.id))
            assert (await one.seal(old)).state is State.ACTIVE
            picture = await asyncio.to_thread(one.registry.seals.imprint, new.id)
            await one.office.confirm(one["clerk"], new.id, picture.sm3)
            new = await one.office.activate(one["keeper"], new.id, SEAL_PASSWORD)
            old = await one.seal(old)
            assert (old.state, old.end_reason, old.replaced_by) == (
                State.CANCELLED, Reason.CHANGED, new.id,
            )  # fmt: skip
            assert new.state is State.ACTIVE
            assert {("seal", old.id), ("seal", new.id)} <= set(one.told)
            assert await messages(one, old) == {MessageKind.MADE, MessageKind.CANCELLED}

    run(test())


def test_renewed_within_thirty_days_and_not_before(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(days=60)
            with pytest.raises(Conflict, match="30 days"):
                await one.office.propose(one["maker"], CriticalAct.RENEW, seal.id, {})
            one.today.pass_(days=31)
            with pytest.raises(Conflict, match="no certificate"):
                await one.office.propose(one["maker"], CriticalAct.RENEW, seal.id, {})
            await one.certify(await one.seal(seal), days=365)
            await one.both("maker", "maker-2", CriticalAct.RENEW, seal)
            renewed = await one.seal(seal)
            assert (renewed.state, renewed.code, renewed.generation) == (State.ACTIVE, seal.code, 2)
            assert renewed.key_name != seal.key_name
            assert renewed.valid_to is not None and seal.valid_to is not None
            assert renewed.valid_to > seal.valid_to
            assert await messages(one, seal) == {MessageKind.MADE, MessageKind.RENEWED}
            first, second = [
                await asyncio.to_thread(one.registry.seals.generation, seal.id, number) for number in (1, 2)
            ]
            assert first.eseal != second.eseal and read_seal(second.eseal).code == seal.code

    run(test())


def test_renewed_with_the_same_key(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(days=20)
            assert seal.key_name is not None
            key = await one.holdings.find_seal_key(seal.key_name)
            certificate = await one.issue(key.public, days=365)
            await one.office.accept_certificate(one["maker"], seal.id, certificate)
            await one.both("maker", "guard", CriticalAct.RENEW, seal)
            assert (await one.seal(seal)).key_name == seal.key_name

    run(test())


def test_dormant_after_a_year_and_woken_by_two(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(days=1_000)
            one.today.pass_(days=364)
            assert (await one.office.sweep()).asleep == 0
            one.today.pass_(days=2)
            assert (await one.office.sweep()).asleep == 1
            assert (await one.seal(seal)).state is State.DORMANT
            with pytest.raises(Denied, match="may not"):
                await one.office.propose(one["clerk"], CriticalAct.WAKE, seal.id, {"reason": "please"})
            await one.both("reviewer", "guard", CriticalAct.WAKE, seal, reason="needed again")
            assert (await one.seal(seal)).state is State.ACTIVE
            assert (await one.office.sweep()).asleep == 0, "its year begins anew"

    run(test())


def test_expired_by_itself(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active(days=30)
            one.today.pass_(days=29)
            assert (await one.office.sweep()).expired == 0
            one.today.pass_(days=1)
            assert (await one.office.sweep()).expired == 1
            assert (await one.office.sweep()).expired == 0
            assert (await one.seal(seal)).state is State.EXPIRED
            assert (await one.acts(seal))[-1] == "expire"
            assert (await one.applied()).state is State.APPLIED, "its place is free"

    run(test())


def test_not_collected_in_three_months(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.made()
            one.today.pass_(days=92)
            assert (await one.office.sweep()).abandoned == 0, "three months at the most"
            one.today.pass_(seconds=1)
            assert (await one.office.sweep()).abandoned == 1
            ended = await one.seal(seal)
            assert (ended.state, ended.end_reason) == (State.CANCELLED, Reason.NOT_COLLECTED)
            assert await messages(one, seal) == {MessageKind.MADE, MessageKind.CANCELLED}

    run(test())


def test_refused_with_a_reason(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.reviewed()
            with pytest.raises(BadRequest, match="reason"):
                await one.office.refuse(one["reviewer"], seal.id, "  ")
            assert (await one.office.refuse(one["reviewer"], seal.id, "blurred")).state is State.REFUSED
            assert (await one.applied()).state is State.APPLIED

    run(test())


# Applications -----------------------------------------------------------------------------------------------


def test_one_statutory_seal_and_numbered_special_ones(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            await one.applied()
            with pytest.raises(Conflict):
                await one.applied()
            numbers = [(await one.applied(one.contract_seal())).number for _ in range(3)]
            assert numbers == [1, 2, 3]
            with pytest.raises(Conflict):
                await one.applied(one.contract_seal(number=2))
            assert (await one.applied(one.contract_seal(number=7))).number == 7
            assert (await one.applied(one.contract_seal())).number == 4
            assert (await one.applied(one.application(organisation=OTHER_USCC))).number == 0

    run(test())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": "another name"}, "statutory name"),
        ({"name": ""}, "name"),
        ({"holder": "somebody"}, "holder"),
        ({"purpose": "contract"}, "purpose"),
        ({"number": 1}, "numbered"),
        ({"kind": Kind.SPECIAL}, "purpose"),
        ({"kind": Kind.PERSONAL}, "holder"),
        ({"custodian": "clerk"}, "custodian"),
        ({"custodian": "nobody"}, "custodian"),
        ({"imprint_data": b"no picture"}, "imprint|PNG"),
        ({"filed_imprint_sm3": b"short"}, "SM3"),
        ({"papers": ("x",) * 51}, "papers"),
        ({"note": "x" * 501}, "note"),
    ],
)
def test_an_application_that_cannot_be(rig: MakeRig, changes: dict[str, object], word: str) -> None:
    async def test() -> None:
        async with rig() as one:
            with pytest.raises(BadRequest, match=word):
                await one.applied(one.application(**changes))

    run(test())


def test_an_imprint_that_is_not_the_one_on_file(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            with pytest.raises(Conflict):
                await one.applied(one.application(filed_imprint_sm3=bytes(32)))

    run(test())


def test_activation_takes_the_custodian_and_a_confirmed_imprint(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.filed()
            with pytest.raises(Conflict, match="confirmed"):
                await one.office.activate(one["keeper"], seal.id, SEAL_PASSWORD)
            with pytest.raises(Conflict, match="looked at"):
                await one.office.confirm(one["clerk"], seal.id, bytes(32))
            picture = await asyncio.to_thread(one.registry.seals.imprint, seal.id)
            await one.office.confirm(one["clerk"], seal.id, picture.sm3)
            with pytest.raises(Denied, match="custodian"):
                await one.office.activate(one["keeper-2"], seal.id, SEAL_PASSWORD)
            with pytest.raises(BadRequest):
                await one.office.activate(one["keeper"], seal.id, "short")
            one.today.pass_(days=366)
            with pytest.raises(Conflict, match="validity"):
                await one.office.activate(one["keeper"], seal.id, SEAL_PASSWORD)
            one.today.now -= timedelta(days=366)
            active = await one.office.activate(one["keeper"], seal.id, SEAL_PASSWORD)
            assert active.state is State.ACTIVE

    run(test())


def test_the_custodian_rotates_and_two_officers_reset(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            await one.protection.unlock("approval", seal.id, SEAL_PASSWORD)
            with pytest.raises(Denied, match="custodian"):
                await one.office.rotate_password(one["keeper-2"], seal.id, SEAL_PASSWORD, "Other-password-18")
            await one.office.rotate_password(one["keeper"], seal.id, SEAL_PASSWORD, "Other-password-18")
            assert one.protection.is_unlocked("approval", seal.id)
            proposal = await one.office.propose(
                one["guard"],
                CriticalAct.RESET_PASSWORD,
                seal.id,
                {"password": "Third-password-19", "reason": "the custodian has left"},
            )
            assert "password" not in str(proposal.arguments), "neither it nor its hash is shown"
            done = await one.office.approve(one["guard-2"], proposal.id)
            assert done.state is ProposalState.DONE
            assert not one.protection.is_unlocked("approval", seal.id)
            await one.protection.unlock("approval", seal.id, "Third-password-19")
            assert await messages(one, seal) == {MessageKind.MADE, MessageKind.PASSWORD_RESET}
            assert (await one.acts(seal))[-1] == "reset-password"

    run(test())


# Making -----------------------------------------------------------------------------------------------------


def test_certificates_that_are_not_taken(rig: MakeRig, tmp_path: Path) -> None:
    """Of another key, from a stranger, not valid yet or any more, not for signing, none at all."""

    async def test() -> None:
        async with rig() as one:
            seal = await one.reviewed()
            with pytest.raises(Conflict, match="no key"):
                await one.office.certificate_request(one["maker"], seal.id, "CN=x")
            key = await one.office.make_key(one["maker"], seal.id)
            with pytest.raises(Conflict, match="no certificate"):
                await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})
            public = key.public
            other = await one.issue(one.ca.public)
            usage = await one.issue(public, is_ca=True)
            good = await one.issue(public, days=10)
            one.today.pass_(days=11)
            expired = good
            fresh = await one.issue(public)
            for certificate, word in (
                (other, "no key of this seal"),
                (usage, "not for this use|is for"),
                (expired, "valid"),
            ):
                with pytest.raises(Conflict, match=word):
                    await one.office.accept_certificate(one["maker"], seal.id, certificate)
            for nonsense in ("nonsense!", b"nonsense", "", "x" * 20_000, "-----BEGIN CERTIFICATE-----"):
                with pytest.raises(BadRequest):
                    await one.office.accept_certificate(one["maker"], seal.id, nonsense)
            ca = tmp_path / "ca.pem"
            trusted = ca.read_text()
            ca.write_text((tmp_path / "maker.pem").read_text())
            with pytest.raises(Conflict, match="trusted"):
                await one.office.accept_certificate(one["maker"], seal.id, fresh)
            ca.write_text(trusted)
            await one.office.accept_certificate(one["maker"], seal.id, fresh)
            proposal = await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})
            one.today.pass_(days=1)
            (tmp_path / "maker.pem").write_text(trusted)
            with pytest.raises(Conflict, match="maker"):
                await one.office.approve(one["guard"], proposal.id)
            assert (await one.seal(seal)).state is State.REVIEWED and not (await one.seal(seal)).code

    run(test())


def test_an_imprint_that_was_altered_in_the_registry_is_not_certified(rig: MakeRig, tmp_path: Path) -> None:
    """Its triggers refuse that; whoever has the file can drop them."""

    async def test() -> None:
        async with rig() as one:
            seal = await one.certified()
            with sqlite3.connect(tmp_path / "registry.sqlite") as file:
                file.execute("DROP TRIGGER imprint_unaltered")
                forged = imprint(colour=(20, 20, 200))
                file.execute("UPDATE imprint SET data = ?, sm3 = ?", (forged, sm3(forged)))
            proposal = await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})
            with pytest.raises(Conflict, match="reviewed"):
                await one.office.approve(one["guard"], proposal.id)

    run(test())


def test_an_appliance_that_makes_no_seals(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig(maker_key=None, maker_certificate_file=None) as one:
            seal = await one.certified()
            with pytest.raises(Conflict, match="makes no seals"):
                await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})

    run(test())


def test_sweeping_goes_by_batches(rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.office.sweeper.BATCH", 2)
    monkeypatch.setattr("appliance.office.sweeper.MAX_A_SWEEP", 4)

    async def test() -> None:
        async with rig() as one:
            for _ in range(5):
                await one.active(one.contract_seal(), days=10)
            one.today.pass_(days=11)
            assert (await one.office.sweep()).expired == 4
            assert (await one.office.sweep()).expired == 1
            assert (await one.office.sweep()).expired == 0

    run(test())


def test_a_token_that_is_away_holds_up_only_what_needs_it(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            made = await one.made(one.contract_seal())
            seal = await one.active(days=10)
            proposal = await one.office.propose(
                one["guard"], CriticalAct.CANCEL, seal.id, {"reason": "lost", "words": "lost"}
            )
            one.today.pass_(days=93)
            one.pipeline.draining = True
            swept = await one.office.sweep()
            assert (swept.expired, swept.abandoned, swept.proposals_expired) == (1, 0, 1)
            one.pipeline.draining = False
            assert (await one.office.sweep()).abandoned == 1
            assert (await one.seal(made)).state is State.CANCELLED
            assert (await one.office.proposal(one["guard"], proposal.id)).state is ProposalState.EXPIRED

    run(test())


def test_what_was_reserved_of_a_day_is_dropped_once_it_is_over(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            seal = await one.active()
            day = one.today.now.date().isoformat()
            reserve = one.registry.usage.reserve
            assert await asyncio.to_thread(reserve, seal.id, "approval", day, 8, 10) == 8
            one.today.pass_(days=2)
            await one.office.sweep()
            assert await asyncio.to_thread(reserve, seal.id, "approval", day, 8, 10) == 2, (
                "perhaps it is not over"
            )
            one.today.pass_(days=1)
            await one.office.sweep()
            assert await asyncio.to_thread(reserve, seal.id, "approval", day, 8, 10) == 8

    run(test())
