"""Business systems seal and verify in small numbers over HTTP, and the public verifies what they sealed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Iterator

import pytest
from api_rig import SEAL_PASSWORD, Person, Refused, Town, basic, settle
from appliance_fixture import PASSWORD, Bench, run, until

from appliance.client import SyncClient
from appliance.errors import Conflict, Denied, NotFound

DOCUMENTS = [f"document {number}".encode() for number in range(3)]
HASHES = [hashlib.new("sm3", one).hexdigest() for one in DOCUMENTS]


@pytest.fixture(scope="module")
def town(shared_bench: Bench) -> Iterator[Town]:
    return settle(shared_bench)


@pytest.fixture(scope="module")
def seal(town: Town) -> str:
    """In use, and granted to ``app`` with a limit of 70 a day."""
    seal_id = town.active()
    terms = {"operations": ["seal", "status"], "dailyLimit": 70, "approvalPattern": "A-[0-9]+"}
    town["guard"].put("seals", seal_id, "grants", "app", **terms)
    return seal_id


def refused(status: int, error: str, part: str = "") -> pytest.RaisesExc[Refused]:
    return pytest.raises(
        Refused, check=lambda it: it.status == status and it.error == error and part in str(it)
    )


def unlock_if_it_may(app: Person, seal: str) -> dict[str, str] | None:
    """A wrong password delays the next attempt, which is told ``busy``."""
    try:
        return dict(app.post("seals", seal, "unlock", password=SEAL_PASSWORD))
    except Refused as problem:
        assert problem.error == "busy", problem
        return None


def unlocked(town: Town, seal: str) -> Person:
    app = town.accounts["app"]
    app.post("seals", seal, "unlock", password=SEAL_PASSWORD, seconds=600)
    return app


def test_sealing_asks_for_grant_reference_unlocking_and_limit(town: Town, seal: str) -> None:
    app, other = town.accounts["app"], town.accounts["other"]
    wanted = {
        "dataHashes": HASHES,
        "propertyInfo": "/Doc_0/Signs/Sign_0/Signature.xml",
        "approvalReference": "A-1",
    }
    with refused(404, "not_found"):
        other.post("seals", seal, "signatures", **wanted)
    with refused(403, "denied", "unlock"):
        app.post("seals", seal, "signatures", **wanted)
    with refused(403, "denied"):
        app.post("seals", seal, "unlock", password="wrong-Password-1")
    with refused(404, "not_found"):
        other.post("seals", seal, "unlock", password=SEAL_PASSWORD)
    opened = until("the wrong password is forgiven", lambda: unlock_if_it_may(app, seal))
    assert opened["sealId"] == seal and opened["endTime"].endswith("+00:00")
    with refused(403, "denied", "reference"):
        app.post("seals", seal, "signatures", **{**wanted, "approvalReference": "B"})
    with refused(400, "bad_request", "propertyInfo"):
        app.post("seals", seal, "signatures", **{**wanted, "propertyInfo": "签章"})
    with refused(400, "bad_request", "at most 64"):
        app.post("seals", seal, "signatures", **{**wanted, "dataHashes": HASHES[:1] * 65})

    items = app.post("seals", seal, "signatures", **wanted)["items"]
    assert [one["error"] for one in items] == [None] * 3
    app.post("seals", seal, "signatures", **{**wanted, "dataHashes": HASHES[:1] * 64})
    with refused(403, "denied", "70 seal signatures a day"):
        app.post("seals", seal, "signatures", **{**wanted, "dataHashes": HASHES[:1] * 64})
    app.call("POST", "seals", seal, "lock")
    with refused(403, "denied", "unlock"):
        app.post("seals", seal, "signatures", **wanted)

    for signature, document, hash_ in zip(items, DOCUMENTS, HASHES, strict=True):
        for more in ({"dataHash": hash_}, {"document": base64.b64encode(document).decode()}):
            report = town.anybody.post("verify", signature=signature["signature"], **more)
            assert report["verdict"] == "good", report
    report = town.anybody.post("verify", signature=items[0]["signature"], dataHash=HASHES[1])
    assert report["verdict"] == "invalid"
    asked = [
        {"signature": one["signature"], "dataHash": hash_} for one, hash_ in zip(items, HASHES, strict=True)
    ]
    reports = app.post("signatures", "verify", items=asked)["items"]
    assert [one["verdict"] for one in reports] == ["good"] * 3


def test_a_suspension_holds_from_the_next_request_on(town: Town) -> None:
    seal_id = town.active(town.application(sealName="李四", sealHolder="李四"))
    town["guard"].put("seals", seal_id, "grants", "app", operations=["seal", "status"])
    app = unlocked(town, seal_id)
    (item,) = app.post("seals", seal_id, "signatures", dataHashes=HASHES[:1])["items"]
    status = app.get("seals", seal_id, "status")
    assert (status["sealState"], status["sealStatus"]) == ("active", 0)
    town["guard"].post("seals", seal_id, "suspend", reason="lost phone")
    with refused(409, "conflict", "suspended"):
        app.post("seals", seal_id, "signatures", dataHashes=HASHES[:1])
    assert app.get("seals", seal_id, "status")["sealStatus"] == 1
    report = town.anybody.post("verify", signature=item["signature"], dataHash=HASHES[0])
    assert report["verdict"] == "good_when_signed" and report["warnings"]
    town["guard"].post("seals", seal_id, "resume", reason="found")
    (item,) = app.post("seals", seal_id, "signatures", dataHashes=HASHES[:1])["items"]
    assert item["signature"]


def suspend(town: Town, seal_id: str) -> None:
    town["guard"].post("seals", seal_id, "suspend", reason="leaked")


def take_sealing_from_the_grant(town: Town, seal_id: str) -> None:
    town["guard"].put("seals", seal_id, "grants", "app", operations=["status"])


@pytest.mark.parametrize(
    ("holder", "stop", "why"),
    [("李小红", suspend, "suspended"), ("李小兰", take_sealing_from_the_grant, "does not cover 'seal'")],
)
def test_what_was_under_way_is_not_released_once_the_stop_is_answered(
    town: Town, holder: str, stop: Callable[[Town, str], None], why: str
) -> None:
    """A window full of batches is seconds of work: a key that leaks must not be used for so long."""
    seal_id = town.active(town.application(sealName=holder, sealHolder=holder))
    town["guard"].put("seals", seal_id, "grants", "app", operations=["seal"])
    with SyncClient(town.appliance.address, account="app", password=PASSWORD) as client:
        client.unlock(seal_id, SEAL_PASSWORD, 600)

    def released() -> float:
        """Answers with signatures that have left, counted by the daemon: our clock would tell when they came."""
        return town.appliance.metric("cloudseal_requests_total", type="seal", outcome="ok")

    def stop_and_count() -> float:
        stop(town, seal_id)
        return released()

    async def race() -> tuple[float, int]:
        refused = 0
        async with await town.appliance.client() as client:

            async def batch(first: int) -> None:
                nonlocal refused
                hashes = [hashlib.new("sm3", b"%d" % index).digest() for index in range(first, first + 4_000)]
                try:
                    await client.seal(seal_id, hashes, "/Signature.xml")
                except (Conflict, Denied) as error:
                    assert why in str(error)
                    refused += 1

            batches = [asyncio.create_task(batch(index * 4_000)) for index in range(25)]
            await asyncio.wait(batches, return_when=asyncio.FIRST_COMPLETED)
            at_the_stop = await asyncio.to_thread(stop_and_count)
            await asyncio.gather(*batches)
        return released() - at_the_stop, refused

    late, refused_batches = run(race())
    assert not late
    assert refused_batches, "the race was over before it began"


def test_an_account_with_every_key_signs_with_no_key_that_certifies(town: Town, seal: str) -> None:
    town.appliance.account("all", "*")
    with SyncClient(town.appliance.address, account="all", password=PASSWORD) as client:
        assert not {"ca", "maker"} & {one.name for one in client.status()}
        for name in ("ca", "maker", f"seal-{seal}-1"):
            with pytest.raises(NotFound):
                client.sign(name, bytes(32))
    town.appliance.ordered("POST", "/v1/accounts/all/grants", {"key": "maker"})
    with SyncClient(town.appliance.address, account="all", password=PASSWORD) as client:
        assert len(client.sign("maker", bytes(32))) == 64
    answer = town.appliance.officer("POST", "/v1/accounts/all/grants", {"key": f"seal-{seal}-1"})
    assert answer.status == 404


def test_uses_are_counted(town: Town, seal: str) -> None:
    def rows() -> list[dict[str, object]]:
        return list(town["auditor"].get("statistics", "uses", by="account")["rows"])

    assert until("uses are written", rows)[0]["account"] == "app"


def test_wrong_passwords_of_accounts(town: Town, seal: str) -> None:
    for name, password in (("app", "wrong"), ("nobody", PASSWORD)):
        with refused(401, "not_authenticated"):
            Person(town.port, basic(name, password)).get("seals", seal, "status")
