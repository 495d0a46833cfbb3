"""SEAL, VERIFY_SEAL, SEAL_STATUS and UNLOCK against the daemon: real tokens, both algorithms, every refusal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from appliance_fixture import (
    PASSWORD,
    PATIENCE_S,
    Appliance,
    Authority,
    Bench,
    UnixHttp,
    children_of,
    free_port,
    run,
    until,
    until_async,
)
from made_seals import PASSWORD as SEAL_PASSWORD
from made_seals import ROOT, Made, advance, certificate_for, grant, instant, make
from simulated_token import Simulated

from appliance import wire, wire_seals
from appliance.algorithms import Algorithm
from appliance.client import Client, SyncClient
from appliance.errors import (
    ApplianceError,
    BadRequest,
    Busy,
    Conflict,
    Denied,
    NotFound,
    ProtocolError,
    Unavailable,
    WindowExceeded,
)
from appliance.eseal.chains import Trust
from appliance.eseal.findings import Code, Verdict
from appliance.eseal.structures import Version, read_signature
from appliance.eseal.verification import ACTIVE, CheckName, Examiner
from appliance.lifecycle import Act, Operation
from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase
from appliance.verifying import Verifier
from appliance.wire import FrameType, ItemStatus, Priority
from appliance.wire_seals import SealCheck, SealState, SealStatusFlag, SealVerdict

INFO = "/Doc_0/Signs/Sign_0/Signature.xml"


def hashes(count: int, seed: str = "") -> list[bytes]:
    return [hashlib.new("sm3", f"{seed}{i}".encode()).digest() for i in range(count)]


@dataclass
class Place:
    """A daemon whose registry the test writes to, as an office would."""

    appliance: Appliance
    registry: Registry
    algorithm: Algorithm
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def seal(self, **options: Any) -> Made:
        """A seal of its own, with a key in the token."""
        number = next(self.numbers)
        name = f"key-{number}"
        self.appliance.ordered("POST", "/v1/keys", {"name": name, "algorithm": self.algorithm.label})
        return make(self.registry, self.registry.key(name), f"seal-{number}", number=number, **options)

    def account(self, made: Made, **changes: Any) -> str:
        """One with a grant on it."""
        name = f"app-{next(self.numbers)}"
        self.appliance.account(name)
        grant(self.registry, name, made.seal.id, **changes)
        return name

    def client(self, account: str) -> SyncClient:
        return SyncClient(self.appliance.address, account=account, password=PASSWORD)


def trusting(root: Path) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    (root / "root.der").write_bytes(ROOT.certificate)
    return {
        "trust_files": [str(root / "root.der")],
        "password": {"argon2_memory_kib": 1_024, "argon2_passes": 1, "failure_delay_s": 0.1},
    }


@pytest.fixture(scope="module", params=["sm2", "p256"])
def place(
    request: pytest.FixtureRequest,
    shared_bench: Bench,
    simulator: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    sm2 = request.param == "sm2"
    profile = Simulated(root / "token", simulator).make() if sm2 else None
    made = shared_bench.appliance(profile, seals=trusting(root)).start()
    registry = Registry(SqliteDatabase(made.registry_file))
    yield Place(made, registry, Algorithm.SM2_SM3 if sm2 else Algorithm.ECDSA_P256_SHA256)
    registry.close()


only_sm2 = pytest.mark.parametrize("place", ["sm2"], indirect=True)
"""For what does not depend on the algorithm."""


def examiner() -> Examiner:
    return Examiner(Trust([ROOT.certificate]), Verifier())


# Sealing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [Version.GBT_38540_2020, Version.GMT_0031_2025])
def test_a_batch_is_sealed_and_every_value_is_good(place: Place, version: Version) -> None:
    made = place.seal(version=version)
    account = place.account(made)
    each, infos = hashes(300), [f"/Doc_0/Signs/Sign_{i}/Signature.xml" for i in range(300)]
    with place.client(account) as client:
        assert client.unlock(made.seal.id, SEAL_PASSWORD, 600) > time.time()
        before = datetime.now(UTC).replace(microsecond=0)
        answer = client.seal(made.seal.id, each, infos, job_id=b"j" * 16, first_index=7)
        values = list(answer.values())
        assert (answer.failed, answer.count, answer.first_index, answer.job_id) == (0, 300, 7, b"j" * 16)
        now = datetime.now(UTC)
        for (status, value), data_hash, info in zip(values, each, infos, strict=True):
            assert status is ItemStatus.SIGNED
            report = examiner().signature(value, data_hash, now, ACTIVE) if info == infos[0] else None
            assert report is None or report.verdict is Verdict.GOOD, report
            read = read_signature(value)
            assert (read.data_hash, read.property_info, read.version) == (data_hash, info, version)
            assert read.seal.der == made.generation.eseal
            assert read.certificate == made.generation.certificate
            assert read.signed_at is not None and before <= read.signed_at <= now
            assert not read.notes, "plain DER"
        verified = client.verify_seals([(value, one) for (_, value), one in zip(values, each, strict=True)])
        assert {one.verdict for one in verified} == {SealVerdict.GOOD}
        # One property info for all: the same values but for what it says.
        for status, value in client.seal(made.seal.id, each[:40], INFO).values():
            assert status is ItemStatus.SIGNED
            assert read_signature(value).property_info == INFO


def test_openssl_agrees(place: Place, tmp_path: Path) -> None:
    import subprocess

    made = place.seal()
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        ((_, value),) = client.seal(made.seal.id, hashes(1), INFO).values()
    read = read_signature(value)
    (tmp_path / "tbs").write_bytes(read.tbs)
    (tmp_path / "sig").write_bytes(read.signature)
    (tmp_path / "spki").write_bytes(made.key.public.spki())
    sm2 = place.algorithm is Algorithm.SM2_SM3
    options = ["-sm3", "-sigopt", "distid:1234567812345678"] if sm2 else ["-sha256"]
    done = subprocess.run(
        ["openssl", "dgst", *options, "-keyform", "DER", "-verify", "spki", "-signature", "sig", "tbs"],
        cwd=tmp_path, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == b"Verified OK", done


def test_a_stream_of_any_length(place: Place) -> None:
    made = place.seal(picture_len=5_000)
    account = place.account(made)
    items = [(one, INFO) for one in hashes(2_000)]

    async def streams() -> None:
        async with await place.appliance.client(account) as client:
            await client.unlock(made.seal.id, SEAL_PASSWORD, 600)
            got = [
                one
                async for one in client.seal_stream(made.seal.id, iter(items), batch_items=64, first_index=3)
            ]
            assert [one.index for one in got] == list(range(3, 2_003))
            assert len({one.job_id for one in got}) == 1
            for one, (data_hash, _) in zip(got, items, strict=True):
                assert read_signature(one.value).data_hash == data_hash

    run(streams())
    with place.client(account) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 600)
        receipts = list(client.seal_stream(made.seal.id, items[:500], batch_items=100))
        assert [one.index for one in receipts] == list(range(500))


@only_sm2
def test_the_largest_request(place: Place) -> None:
    """65,536 items, written in a thread; and while that is done, others are answered."""
    made = place.seal(picture_len=20_000)
    account = place.account(made)
    block = b"".join(hashes(65_536))

    async def test() -> None:
        async with await place.appliance.client(account) as client:
            await client.unlock(made.seal.id, SEAL_PASSWORD, 600)
            large = asyncio.create_task(client.seal(made.seal.id, block, INFO))
            longest = 0.0
            while not large.done():
                longest = max(longest, await client.ping())
            answer = await large
            assert answer.failed == 0 and longest < 2.0
            (*_, (_, last)) = deque(answer.values(), 1)
            assert read_signature(last).data_hash == block[-32:]

    run(test())


@only_sm2
def test_uses_are_counted(place: Place) -> None:
    made = place.seal()
    account = place.account(made)
    with place.client(account) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        for count in (1, 20, 300):
            client.seal(made.seal.id, hashes(count), INFO)
    uses = lambda: place.registry.usage.uses("seal", "2026-01-01", "9999-12-31", account=account)  # noqa: E731
    until("uses are written", lambda: uses() == [(made.seal.id, 321)])
    assert place.registry.seals.seal(made.seal.id).last_used_at is not None
    assert place.appliance.metric("cloudseal_items_total", type="seal", outcome="signed") >= 321


# Refusals ---------------------------------------------------------------------------------------------------


def refused(client: SyncClient, seal_id: str, count: int = 1, **options: Any) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        client.seal(seal_id, hashes(count), INFO, **options)
    assert caught.value.hint, "it says what to do"
    return caught.value


def unlocks(client: SyncClient, seal_id: str, seconds: int) -> bool:
    """False where a wrong guess still delays the next."""
    try:
        return client.unlock(seal_id, SEAL_PASSWORD, seconds) > 0
    except Busy:
        return False


@only_sm2
def test_a_seal_without_a_grant_looks_like_none(place: Place) -> None:
    made = place.seal()
    place.appliance.account("stranger")
    with place.client("stranger") as client:
        real, none = refused(client, made.seal.id), refused(client, "seal-none")
        assert type(real) is type(none) is NotFound
        assert str(real).replace(made.seal.id, "?") == str(none).replace("seal-none", "?")
        with pytest.raises(NotFound):
            client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        unknown = client.seal_status([made.seal.id, "seal-none"])
        assert unknown[0] == unknown[1] and unknown[0].state is SealState.UNKNOWN


@only_sm2
def test_a_locked_seal_and_one_unlocked_by_another(place: Place) -> None:
    made = place.seal()
    one, other = place.account(made), place.account(made)
    with place.client(one) as first, place.client(other) as second:
        assert isinstance(refused(first, made.seal.id), Denied)
        with pytest.raises(Denied, match="does not fit"):
            first.unlock(made.seal.id, "wrong", 60)
        until("the wrong guess is served", lambda: unlocks(first, made.seal.id, 60))
        first.seal(made.seal.id, hashes(1), INFO)
        assert "has not unlocked" in refused(second, made.seal.id).detail
        first.lock(made.seal.id)
        assert "has not unlocked" in refused(first, made.seal.id).detail


@only_sm2
def test_an_unlock_ends_by_itself(place: Place) -> None:
    made = place.seal()
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 1)

        def locked() -> bool:
            try:
                client.seal(made.seal.id, hashes(1), INFO)
            except Denied:
                return True
            return False

        until("the unlock has ended", locked)


@only_sm2
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"operations": frozenset({Operation.STATUS})}, "does not cover 'seal'"),
        ({"valid_to": instant(datetime.now(UTC) - timedelta(seconds=1))}, "valid until"),
        ({"valid_from": instant(datetime.now(UTC) + timedelta(hours=1))}, "valid from"),
        ({"sources": ("10.0.0.0/8",)}, "does not hold for 127.0.0.1"),
        ({"approval_pattern": r"OA-[0-9]{1,8}"}, "approval reference"),
        ({"daily_limit": 5}, "over the limit of 5 a day"),
        ({"minute_limit": 5}, "over the limit of 5 a minute"),
    ],
)
def test_what_a_grant_does_not_cover_is_refused_by_rule(
    place: Place, changes: dict[str, Any], word: str
) -> None:
    made = place.seal()
    everything = place.account(made)
    account = place.account(made, **changes)
    with place.client(account) as client, place.client(everything) as able:
        able.unlock(made.seal.id, SEAL_PASSWORD, 60)
        if "limit" in word or "reference" in word:
            client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        error = refused(client, made.seal.id, 6)
        assert isinstance(error, Denied) and word in error.detail, error
        able.seal(made.seal.id, hashes(6), INFO)


@only_sm2
def test_an_approval_reference_and_limits(place: Place) -> None:
    made = place.seal()
    account = place.account(made, approval_pattern=r"OA-[0-9]{1,8}", daily_limit=10)
    with place.client(account) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        client.seal(made.seal.id, hashes(7), INFO, reference="OA-17")
        assert "approval reference" in refused(client, made.seal.id, reference="OA-").detail
        assert "3 are left for today" in refused(client, made.seal.id, 4, reference="OA-17").detail
        client.seal(made.seal.id, hashes(3), INFO, reference="OA-18")
        assert isinstance(refused(client, made.seal.id, 1, reference="OA-18"), Denied)
    account = place.account(made, minute_limit=10)
    with SyncClient(place.appliance.address, account=account, password=PASSWORD, retries=False) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        client.seal(made.seal.id, hashes(10), INFO)
        error = refused(client, made.seal.id)
        assert isinstance(error, Busy) and 0 < error.retry_after_ms <= 61_000


@only_sm2
def test_states_and_keys_that_do_not_allow_it(place: Place) -> None:
    suspended = place.seal()
    account = place.account(suspended)
    advance(place.registry, suspended.seal, Act.SUSPEND)
    with place.client(account) as client:
        error = refused(client, suspended.seal.id)
        assert isinstance(error, Conflict) and "suspended" in error.detail
        with pytest.raises(Conflict, match="suspended"):
            client.unlock(suspended.seal.id, SEAL_PASSWORD, 60)
    stopped = place.seal()
    with place.client(place.account(stopped)) as client:
        client.unlock(stopped.seal.id, SEAL_PASSWORD, 60)
        client.seal(stopped.seal.id, hashes(1), INFO)
        place.appliance.ordered("POST", f"/v1/keys/{stopped.key.name}/disable")
        assert "disabled" in refused(client, stopped.seal.id).detail, "from the next request on"
        place.appliance.ordered("POST", f"/v1/keys/{stopped.key.name}/enable")
        client.seal(stopped.seal.id, hashes(1), INFO)
    short = place.seal(valid_s=1.5)
    with place.client(place.account(short)) as client:
        until(
            "its validity has ended",
            lambda: time.time() > datetime.fromisoformat(short.seal.valid_to or "").timestamp(),
        )
        assert "was valid until" in refused(client, short.seal.id).detail


@only_sm2
def test_what_cannot_be_sealed(place: Place) -> None:
    made = place.seal()
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        error = refused(client, made.seal.id, time_stamp=True)
        assert isinstance(error, BadRequest) and "time-stamp" in error.detail
        with pytest.raises(BadRequest, match="32 bytes"):
            client.seal(made.seal.id, [bytes(31)], INFO)
        # Not ASCII, past our own client: the item is refused and the connection lives.
        sealed = wire_seals.SealRequest(
            bytes(16),
            0,
            0,
            0,
            wire_seals.SealFlag.ONE_PROPERTY,
            made.seal.id,
            "",
            bytes(32),
            b"\0\1",
            b"\xff",  # type: ignore[arg-type]
        )
        account = place.account(made)
        with place.appliance.wire(account) as wire_:
            unlock = wire_seals.UnlockRequest(made.seal.id, SEAL_PASSWORD, 60)
            wire_.send(wire_seals.encode_unlock(wire_.next_id(), unlock))
            wire_.receive()
            wire_.send(wire_seals.encode_seal(wire_.next_id(), sealed))
            assert "ASCII" in wire_.receive_error().detail
            wire_.send(wire_seals.encode_seal(wire_.next_id(), sealed._replace(properties=b"/")))
            assert wire_seals.decode_sealed(wire_.receive().payload).failed == 0


# Verifying and status ---------------------------------------------------------------------------------------


@only_sm2
def test_what_verification_finds(place: Place) -> None:
    made = place.seal()
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        (_, value), (_, second) = client.seal(made.seal.id, hashes(2), INFO).values()
        broken = bytearray(value)
        broken[-1] ^= 1
        found = client.verify_seals(
            [
                (value, hashes(2)[0]),
                (second, hashes(2)[0]),
                (bytes(broken), hashes(2)[0]),
                (b"", hashes(1)[0]),
                (value + b"\0", hashes(1)[0]),
            ]
        )
        assert [one.verdict for one in found] == [SealVerdict.GOOD] + [SealVerdict.INVALID] * 4
        assert found[1].failed == SealCheck.DATA_HASH
        assert found[2].failed == SealCheck.SIGNATURE
        assert found[3].failed == found[4].failed == SealCheck.FORMAT
        cancelled = place.seal()
        other = place.account(cancelled)
    with place.client(other) as client:
        client.unlock(cancelled.seal.id, SEAL_PASSWORD, 60)
        ((_, value),) = client.seal(cancelled.seal.id, hashes(1), INFO).values()
        sealed_by = datetime.now(UTC).replace(microsecond=0)  # times in seals have whole seconds
        until("the next second", lambda: datetime.now(UTC) >= sealed_by + timedelta(seconds=1))
        advance(
            place.registry, cancelled.seal, Act.CANCEL,
            changes={"ended_at": instant(datetime.now(UTC)), "end_reason": "lost"},
        )  # fmt: skip
        (late,) = client.verify_seals([(value, hashes(1)[0])])
        assert late.verdict is SealVerdict.GOOD_WHEN_SIGNED and late.ended == SealCheck.STATUS


@only_sm2
def test_many_values_take_several_requests(place: Place) -> None:
    made = place.seal(picture_len=40_000)
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        each = hashes(1_000)
        values = [value for _, value in client.seal(made.seal.id, each, INFO).values()]
        assert sum(map(len, values)) > 40_000_000
        found = client.verify_seals(list(zip(values, each, strict=True)), deadline_s=120)
        assert {one.verdict for one in found} == {SealVerdict.GOOD} and len(found) == 1_000


@only_sm2
def test_status_in_bulk(place: Place) -> None:
    made, dormant = place.seal(), place.seal()
    account = place.account(made)
    grant(place.registry, account, dormant.seal.id, operations=frozenset({Operation.STATUS}))
    hidden = place.seal()
    grant(place.registry, account, hidden.seal.id, operations=frozenset({Operation.SEAL}))
    advance(place.registry, dormant.seal, Act.SLEEP)
    with place.client(account) as client:
        expires_at = client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        names = [made.seal.id, dormant.seal.id, hidden.seal.id, "none"] * 600
        records = client.seal_status(names)
        assert [one.state for one in records[:4]] == [
            SealState.ACTIVE, SealState.DORMANT, SealState.UNKNOWN, SealState.UNKNOWN,
        ]  # fmt: skip
        assert len(records) == 2_400 and records[:4] * 600 == records
        assert SealStatusFlag.UNLOCKED in records[0].flags and not records[1].flags
        assert abs(records[0].unlocked_until - expires_at) <= 1
        assert records[0].valid_from < time.time() < records[0].valid_to
        assert records[0].password_due_at > time.time()
        assert client.seal_status([made.seal.code], by_code=True) == records[:1]


# Hostile and unlucky ----------------------------------------------------------------------------------------


@only_sm2
def test_frames_that_break_the_protocol_cost_their_sender_the_connection(place: Place) -> None:
    made = place.seal()
    account = place.account(made)
    types = (FrameType.SEAL, FrameType.VERIFY_SEAL, FrameType.SEAL_STATUS, FrameType.UNLOCK)
    rng = random.Random(17)
    for type_ in types:
        for payload in (b"", rng.randbytes(30), rng.randbytes(3_000), bytes(3_000), b"\xff" * 3_000):
            with place.appliance.wire(account) as wire_:
                wire_.send(wire.encode_frame(type_, wire_.next_id(), payload))
                assert wire_.receive_error().code == ProtocolError.wire_code
                assert wire_.at_end()
    for type_ in (FrameType.SEALED, FrameType.UNLOCKED):
        with place.appliance.wire(account) as wire_:
            wire_.send(wire.encode_frame(type_, wire_.next_id(), b""))
            assert "not expected" in wire_.receive_error().detail
    with place.client(account) as client:
        assert client.seal_status([made.seal.id])[0].state is SealState.ACTIVE


@only_sm2
def test_seal_signatures_of_a_stranger_are_only_bytes(place: Place) -> None:
    """Every byte of a value changed, cut and doubled: a verdict for each, and the daemon lives."""
    made = place.seal(picture_len=300)
    with place.client(place.account(made)) as client:
        client.unlock(made.seal.id, SEAL_PASSWORD, 60)
        (each,) = hashes(1)
        ((_, value),) = client.seal(made.seal.id, [each], INFO).values()
        rng = random.Random(18)
        strange = [value[: rng.randrange(len(value))] for _ in range(200)]
        strange += [value + rng.randbytes(rng.randrange(1, 50)) for _ in range(100)]
        for at in range(len(value)):
            changed = bytearray(value)
            changed[at] ^= 1 << rng.randrange(8)
            strange.append(bytes(changed))
        found = client.verify_seals([(value, each), *((one, each) for one in strange)])
        assert found[0].verdict is SealVerdict.GOOD
        assert SealVerdict.GOOD not in {one.verdict for one in found[1:]}


@only_sm2
def test_clients_that_leave_half_way_hold_nothing(place: Place) -> None:
    made = [place.seal() for _ in range(3)]
    accounts = [place.account(one) for one in made]
    for one, account in zip(made, accounts, strict=True):
        unlock = wire_seals.UnlockRequest(one.seal.id, SEAL_PASSWORD, 600)
        asked = wire_seals.SealRequest(
            bytes(16), 0, 0, Priority.AUTOMATIC, wire_seals.SealFlag.ONE_PROPERTY, one.seal.id, "",
            bytes(32 * 5_000), *wire_seals.properties([INFO]),
        )  # fmt: skip
        for frames in ((unlock,), (unlock, asked), (unlock, asked, asked)):
            with place.appliance.wire(account) as wire_:
                for frame in frames:
                    encode = wire_seals.encode_unlock if frame is unlock else wire_seals.encode_seal
                    wire_.send(encode(wire_.next_id(), frame))  # type: ignore[operator]
    place.appliance.wait_quiet()
    for one, account in zip(made, accounts, strict=True):
        with place.client(account) as client:
            client.unlock(one.seal.id, SEAL_PASSWORD, 600)
            assert not client.seal(one.seal.id, hashes(3), INFO).failed


@only_sm2
def test_a_window_holds_for_seals_too(place: Place) -> None:
    made = place.seal()
    account = place.account(made)
    asked = wire_seals.SealRequest(
        bytes(16), 0, 0, Priority.AUTOMATIC, wire_seals.SealFlag.ONE_PROPERTY, made.seal.id, "",
        bytes(32 * 65_536), *wire_seals.properties([INFO]),
    )  # fmt: skip
    with place.appliance.wire(account) as wire_:
        unlock = wire_seals.UnlockRequest(made.seal.id, SEAL_PASSWORD, 600)
        wire_.send(wire_seals.encode_unlock(wire_.next_id(), unlock))
        wire_.receive()
        wire_.send(b"".join(wire_seals.encode_seal(wire_.next_id(), asked) for _ in range(3)))
        while (frame := wire_.receive()).type is not FrameType.ERROR:
            assert frame.type is FrameType.SEALED
        assert wire.decode_error(frame.payload).code == WindowExceeded.wire_code


@only_sm2
def test_guessing_is_slowed_and_locks(place: Place) -> None:
    made = place.seal()
    other = place.account(made)
    with SyncClient(
        place.appliance.address, account=place.account(made), password=PASSWORD, retries=False
    ) as client:
        for _ in range(3):
            with pytest.raises((Denied, Busy)) as caught:
                client.unlock(made.seal.id, "a wrong password", 60)
        assert isinstance(caught.value, Busy) and caught.value.retry_after_ms > 0
    with place.client(other) as client:
        assert SealStatusFlag.UNLOCKED not in client.seal_status([made.seal.id])[0].flags


# Time stamps ------------------------------------------------------------------------------------------------


def test_each_signature_gets_its_time_stamp(bench: Bench, simulated: Simulated, tmp_path: Path) -> None:
    """From the appliance's own authority, asked over HTTP; and without it nothing is released."""
    port = free_port()
    certificate = tmp_path / "tsa.der"
    stamping = {
        "timestamp": {"url": f"http://127.0.0.1:{port}/tsa"},
        "authority": {"listen": f"127.0.0.1:{port}", "key": "tsa", "certificate_file": str(certificate)},
    }
    profile = simulated.make()
    first = bench.appliance(profile, seals=trusting(tmp_path)).start()
    first.ordered("POST", "/v1/keys", {"name": "tsa", "algorithm": "sm2-sm3"})
    registry = Registry(SqliteDatabase(first.registry_file))
    certificate.write_bytes(certificate_for(registry.key("tsa"), "time", is_time_stamping=True))
    place = Place(first, registry, Algorithm.SM2_SM3)
    made = place.seal()
    account = place.account(made)
    first.stop()
    seals = {**trusting(tmp_path), **stamping}
    for url_works in (True, False):
        if not url_works:
            seals["authority"] = {}
        appliance = bench.appliance(profile, registry=str(first.registry_file), seals=seals).start()
        with SyncClient(appliance.address, account=account, password=PASSWORD) as client:
            client.unlock(made.seal.id, SEAL_PASSWORD, 600)
            each = hashes(20)
            if not url_works:
                with pytest.raises(Unavailable, match="authority cannot be reached"):
                    client.seal(made.seal.id, each, INFO, time_stamp=True, deadline_s=2)
                assert not client.seal(made.seal.id, each, INFO).failed
                continue
            answer = client.seal(made.seal.id, each, [INFO] * 20, time_stamp=True)
            assert not answer.failed
            values = [value for _, value in answer.values()]
            for value, data_hash in zip(values, each, strict=True):
                report = examiner().signature(value, data_hash, datetime.now(UTC), ACTIVE)
                assert report.verdict is Verdict.GOOD and report.check(CheckName.TIMESTAMP).code is Code.OK
            with pytest.raises(ProtocolError, match="at most 256"):
                client.seal(made.seal.id, hashes(257), INFO, time_stamp=True)
        appliance.stop()
    registry.close()


# Transport, fronts, life ------------------------------------------------------------------------------------


def test_the_source_is_the_peers_address(
    bench: Bench, authority: Authority, simulated: Simulated, tmp_path: Path
) -> None:
    appliance = bench.appliance(simulated.make(), listen=authority.listen, seals=trusting(tmp_path)).start()
    registry = Registry(SqliteDatabase(appliance.registry_file))
    place = Place(appliance, registry, Algorithm.SM2_SM3)
    made = place.seal()
    inside = place.account(made, sources=("127.0.0.0/8",))
    outside = place.account(made, sources=("192.0.2.0/24",))

    async def test() -> None:
        address = f"127.0.0.1:{appliance.tcp_port}"
        for account in (inside, outside):
            async with await Client.connect(
                address, account=account, password=PASSWORD, tls=authority.context()
            ) as client:
                if account is outside:
                    with pytest.raises(Denied, match=r"does not hold for 127\.0\.0\.1"):
                        await client.unlock(made.seal.id, SEAL_PASSWORD, 60)
                    continue
                await client.unlock(made.seal.id, SEAL_PASSWORD, 60)
                assert not (await client.seal(made.seal.id, hashes(3), INFO)).failed

    run(test())
    registry.close()


def test_a_drain_gives_back_reservations_and_a_kill_does_not_exceed_them(
    bench: Bench, simulated: Simulated, tmp_path: Path
) -> None:
    appliance = bench.appliance(simulated.make(), seals=trusting(tmp_path)).start()
    registry = Registry(SqliteDatabase(appliance.registry_file))
    place = Place(appliance, registry, Algorithm.SM2_SM3)
    made = place.seal()
    account = place.account(made, daily_limit=160)
    total = 0

    def seal(count: int) -> int:
        with place.client(account) as client:
            client.unlock(made.seal.id, SEAL_PASSWORD, 60)
            try:
                return client.seal(made.seal.id, hashes(count), INFO).count
            except Denied:
                return 0

    for _ in range(3):
        total += seal(1)
        appliance.stop()
        appliance.start()
    assert total == 3
    uses = registry.usage.uses("seal", "2026-01-01", "9999-12-31", account=account)
    assert uses == [(made.seal.id, 3)], "written while draining"
    assert seal(157) == 157 and seal(1) == 0, "nothing was lost"
    other = place.account(made, daily_limit=160)
    account, total = other, 0
    for _ in range(4):
        total += seal(45)
        appliance.kill()
        appliance.start()
    while seal(1):
        total += 1
    assert 100 <= total <= 160
    registry.close()


def test_several_fronts_know_of_unlocks_and_share_limits(
    bench: Bench, simulated: Simulated, tmp_path: Path
) -> None:
    appliance = bench.appliance(simulated.make(), front_processes=2, seals=trusting(tmp_path)).start()
    until("both fronts serve", lambda: len(appliance.status().get("fronts", [])) == 1)
    registry = Registry(SqliteDatabase(appliance.registry_file))
    place = Place(appliance, registry, Algorithm.SM2_SM3)
    made = place.seal()
    account = place.account(made, daily_limit=100)
    busy = place.account(made, minute_limit=30)

    def on_each(name: str) -> list[SyncClient]:
        clients: dict[int, SyncClient] = {}
        spare: list[SyncClient] = []

        def both() -> bool:
            client = place.client(name)
            front = client.appliance_status()["front"]
            if front in clients:
                spare.append(client)
            clients.setdefault(front, client)
            return len(clients) == 2

        until("the kernel has given a connection to each front", both)
        for client in spare:
            client.close()
        return [clients[0], clients[1]]

    leader, follower = on_each(account)
    for asking in (follower, leader):
        asking.unlock(made.seal.id, SEAL_PASSWORD, 600)
        for client in (leader, follower):
            assert not client.seal(made.seal.id, hashes(5), INFO).failed
        asking.lock(made.seal.id)
        for client in (leader, follower):
            assert isinstance(refused(client, made.seal.id), Denied)
    with pytest.raises(Denied, match="does not fit"):
        follower.unlock(made.seal.id, "wrong", 60)
    until("the wrong guess is served", lambda: unlocks(follower, made.seal.id, 600))
    total = 20
    for client in (leader, follower) * 30:
        try:
            total += client.seal(made.seal.id, hashes(3), INFO).count
        except Denied:
            break
    assert 80 <= total <= 100, "both together"

    # A front that starts later knows what was unlocked before.
    (pid,) = [one for one, line in children_of(appliance.pid).items() if "--follow" in line]
    import os
    import signal

    os.kill(pid, signal.SIGKILL)
    until("another follows", lambda: any(
        "--follow" in line and one != pid for one, line in children_of(appliance.pid).items()
    ))  # fmt: skip
    until("it serves", lambda: len(appliance.status().get("fronts", [])) == 1)
    for client in (leader, follower):
        client.close()
    one, two = on_each(busy)
    one.unlock(made.seal.id, SEAL_PASSWORD, 600)
    assert sum(client.seal(made.seal.id, hashes(10), INFO).count for client in (one, two, one)) == 30
    with pytest.raises(Busy):
        two.seal(made.seal.id, hashes(1), INFO, deadline_s=1)
    one.close()
    two.close()
    first, second = on_each(account)
    for client in (first, second):
        with pytest.raises(Denied, match=r"left for today|over the limit"):
            client.seal(made.seal.id, hashes(99), INFO)
        client.close()
    uses = lambda: registry.usage.uses("account", "2026-01-01", "9999-12-31", seal_id=made.seal.id)  # noqa: E731
    until("uses of both fronts are written", lambda: dict(uses()).get(busy) == 30)
    registry.close()


class Guard:
    """A security officer at the officers' socket."""

    def __init__(self, appliance: Appliance) -> None:
        self._socket = appliance.officer_socket
        self._headers = {"Content-Type": "application/json"}
        officer = {"officer": "guard", "displayName": "G", "roles": ["security"], "password": PASSWORD}
        self._post("officers", officer)
        opened = self._post("sessions", {"officer": "guard", "password": PASSWORD})
        self._headers["Authorization"] = f"Bearer {opened['token']}"

    def does(self, act: str, seal_id: str) -> None:
        """An act that needs a reason."""
        self._post(f"seals/{seal_id}/{act}", {"reason": "a doubt"})

    def _post(self, path: str, body: object) -> Any:
        connection = UnixHttp(self._socket)
        try:
            connection.request("POST", f"/api/v1/{path}", json.dumps(body), self._headers)
            response = connection.getresponse()
            text = response.read()
            assert 200 <= response.status < 300, text
            return json.loads(text)
        finally:
            connection.close()


def test_a_suspension_holds_in_every_front_before_the_officer_hears_of_it(
    bench: Bench, simulated: Simulated, tmp_path: Path
) -> None:
    """While requests are under way in all of them; and the unlocks are still there when it is over."""
    appliance = bench.appliance(simulated.make(), front_processes=2, seals=trusting(tmp_path)).start()
    until("both fronts serve", lambda: len(appliance.status().get("fronts", [])) == 1)
    registry = Registry(SqliteDatabase(appliance.registry_file))
    place = Place(appliance, registry, Algorithm.SM2_SM3)
    made = place.seal()
    account = place.account(made)
    guard = Guard(appliance)

    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            by_front: dict[int, list[Client]] = {0: [], 1: []}
            deadline_at = time.monotonic() + PATIENCE_S
            while min(map(len, by_front.values())) < 2:  # the kernel gives connections to whichever is idle
                assert time.monotonic() < deadline_at, "one front gets no connections"
                client = await stack.enter_async_context(await appliance.client(account, retries=False))
                front = (await client.appliance_status())["front"]
                if len(by_front[front]) < 6:
                    by_front[front].append(client)
                else:
                    await client.close()
            clients = [client for some in by_front.values() for client in some]
            await clients[0].unlock(made.seal.id, SEAL_PASSWORD, 600)
            block = b"".join(hashes(20))
            suspended = asyncio.Event()
            late: list[int] = []

            async def keep_on(client: Client) -> None:
                while True:
                    asked_late = suspended.is_set()
                    try:
                        await client.seal(made.seal.id, block, INFO)
                    except Conflict as error:
                        assert "suspended" in error.detail
                        return
                    late.append(asked_late)

            for _ in range(3):
                suspended.clear()
                late.clear()
                busy = [asyncio.create_task(keep_on(client)) for client in clients]
                await until_async("all are at work", lambda: len(late) > 50)
                await asyncio.to_thread(guard.does, "suspend", made.seal.id)
                suspended.set()
                await asyncio.gather(*busy)
                assert not any(late), "sealed after the officer had been told that it is suspended"
                await asyncio.to_thread(guard.does, "resume", made.seal.id)

    run(test())
    registry.close()
