"""The life of a seal over HTTP, with real daemon and token: every act by the person whose it is."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterator

import pytest
from api_rig import (
    ALGORITHM,
    NAME,
    OTHER_USCC,
    REGION,
    SEAL_PASSWORD,
    USCC,
    Person,
    Refused,
    Town,
    contract,
    imprint,
    settle,
    sm3_hex,
)
from appliance_fixture import PASSWORD, Bench

from appliance.eseal.structures import read_seal


@pytest.fixture(scope="module")
def town(shared_bench: Bench) -> Iterator[Town]:
    return settle(shared_bench)


def refused(status: int, error: str, part: str = "") -> pytest.RaisesExc[Refused]:
    """The problem that is expected, with its hint."""
    return pytest.raises(
        Refused, check=lambda it: it.status == status and it.error == error and part in str(it)
    )


# The whole life -------------------------------------------------------------------------------------------------


def test_an_official_seal_from_application_to_cancellation(town: Town) -> None:
    clerk, maker, guard, keeper = town["clerk"], town["maker"], town["guard"], town["keeper"]
    applied = clerk.post(
        "seals", **town.official(papers=["licence 1"], note="urgent", filedImprintSm3=sm3_hex(imprint()))
    )
    seal_id = applied["sealId"]
    assert (applied["sealState"], applied["sealCode"], applied["sealNumber"]) == ("applied", "", 1)
    assert clerk.get("seals", seal_id, "application")["papers"] == ["licence 1"]
    assert town["reviewer"].post("seals", seal_id, "review", note="in order")["sealState"] == "reviewed"

    key = maker.post("seals", seal_id, "key", algorithm=ALGORITHM)
    assert key["algorithm"] == ALGORITHM
    town.certify(seal_id)
    made = town.both(seal_id, "make", "maker", "guard")
    assert (made["state"], made["proposedBy"], made["decidedBy"]) == ("done", "maker", "guard")

    seal = clerk.get("seals", seal_id)
    assert seal["sealState"] == "made" and seal["sealCode"].startswith(REGION)
    eseal = read_seal(clerk.ask("GET", "seals", seal_id, "eseal")[1])
    assert (eseal.code, eseal.name) == (seal["sealCode"], f"{NAME}合同专用章")
    found = clerk.get("seals", sealCode=seal["sealCode"])["items"]
    assert [one["sealId"] for one in found] == [seal_id]

    media_type, picture = clerk.ask("GET", "seals", seal_id, "imprint")
    assert (media_type, picture) == ("image/png", imprint())
    clerk.post("seals", seal_id, "confirm", imprintSm3=sm3_hex(picture))
    assert town["filer"].post("seals", seal_id, "file", receipt="GA-1")["sealState"] == "filed"
    active = keeper.post("seals", seal_id, "activate", newPassword=SEAL_PASSWORD)
    assert (active["sealState"], active["sealStatus"]) == ("active", 0)

    document = clerk.get("seals", seal_id, "documents", "making")
    assert base64.b64decode(document["body"]) and document["document"]
    assert [one["documentKind"] for one in clerk.get("seals", seal_id, "documents")["items"]] == ["making"]
    media_type, pdf = clerk.ask("GET", "seals", seal_id, "documents", "making", "pdf")
    assert media_type == "application/pdf" and pdf.startswith(b"%PDF-")

    assert guard.post("seals", seal_id, "suspend", reason="lost phone")["sealStatus"] == 1
    assert guard.post("seals", seal_id, "resume", reason="found")["sealState"] == "active"
    state = keeper.put(
        "seals", seal_id, "password", oldPassword=SEAL_PASSWORD, newPassword="Another-password-18"
    )
    assert state["setBy"] == "keeper" and not state["locked"]

    ended = town.both(
        seal_id, "cancel", "clerk", "guard", cancelReason="lost", cancelDescribe="the device was stolen"
    )
    assert ended["state"] == "done"
    seal = clerk.get("seals", seal_id)
    assert (seal["sealState"], seal["cancelReason"], seal["invalidType"]) == ("cancelled", "lost", 2)
    assert clerk.get("seals", seal_id, "documents", "cancellation")["document"]

    acts = [one["act"] for one in town["auditor"].get("seals", seal_id, "events")["items"]]
    wanted = ["apply", "review", "make", "confirm", "file", "activate", "suspend", "resume", "cancel"]
    assert [one for one in acts if one in wanted] == wanted
    messages = town["auditor"].get("outbox", undelivered="false")["items"]
    kinds = [one["messageKind"] for one in messages if one["sealId"] == seal_id]
    assert sorted(kinds) == ["cancelled", "made"]


def test_an_application_may_be_refused_and_the_reason_stays(town: Town) -> None:
    seal_id = town.applied(sealName="李四", sealHolder="李四")
    with refused(400, "bad_request", "field 'reason'"):
        town["reviewer"].post("seals", seal_id, "refuse", reason="")
    assert town["reviewer"].post("seals", seal_id, "refuse", reason="no licence")["sealState"] == "refused"
    event = town["clerk"].get("seals", seal_id, "events")["items"][-1]
    assert event["detail"]["reason"] == "no licence"
    with refused(409, "conflict", "ended"):
        town["reviewer"].post("seals", seal_id, "review")


# Who may do what ------------------------------------------------------------------------------------------------


def test_each_act_asks_for_its_role_and_says_which(town: Town) -> None:
    seal_id = town.applied(sealName="赵六", sealHolder="赵六")
    with refused(403, "denied", "it takes the role reviewer"):
        town["clerk"].post("seals", seal_id, "review")
    with refused(403, "denied", "it takes the role clerk"):
        town["maker"].post("seals", **town.application())
    with refused(403, "denied"):
        town["auditor"].post("organisations", useUnitCode=OTHER_USCC, useUnitName="乙", sealZone=REGION)
    with refused(409, "conflict", "possible now"):
        town["guard"].post("seals", seal_id, "suspend", reason="x")


def test_who_proposes_does_not_approve(town: Town) -> None:
    seal_id = town.certified(town.applied(sealName="孙七", sealHolder="孙七"))
    everybody = town["everybody"]
    proposed = everybody.post("proposals", act="make", sealId=seal_id)
    with refused(403, "denied", "second officer"):
        everybody.call("POST", "proposals", proposed["proposalId"], "approve")
    with refused(403, "denied", "role"):
        town["clerk"].call("POST", "proposals", proposed["proposalId"], "approve")
    rejected = town["guard"].post("proposals", proposed["proposalId"], "reject", reason="not yet")
    assert (rejected["state"], rejected["decidedBy"]) == ("rejected", "guard")
    with refused(409, "conflict"):
        town["guard-2"].call("POST", "proposals", proposed["proposalId"], "approve")


def test_what_a_proposal_takes_is_told(town: Town) -> None:
    seal_id = town.applied(sealName="周八", sealHolder="周八")
    with refused(400, "bad_request", "it takes: cancelReason, cancelDescribe"):
        town["guard"].post("proposals", act="cancel", sealId=seal_id, arguments={"keyName": "k"})
    with refused(400, "bad_request", "cancelReason"):
        town["guard"].post("proposals", act="cancel", sealId=seal_id, arguments={"cancelReason": "bored"})


def test_no_secret_comes_back(town: Town) -> None:
    seal_id = town.active(town.application(sealName="吴九", sealHolder="吴九"))
    proposed = town["guard"].post(
        "proposals",
        act="reset-password",
        sealId=seal_id,
        arguments={"newPassword": "New-password-19", "reason": "forgotten"},
    )
    assert proposed["arguments"] == {"reason": "forgotten"}
    done = town["guard-2"].call("POST", "proposals", proposed["proposalId"], "approve")
    assert done["state"] == "done"
    log = town.appliance.log
    assert "New-password-19" not in log and SEAL_PASSWORD not in log and "Bearer" not in log


# Sessions and officers ------------------------------------------------------------------------------------------


def test_a_session_ends_with_log_out_and_with_a_new_password(town: Town) -> None:
    town.administer(
        "POST",
        "/officers",
        {"officer": "temp", "displayName": "T", "roles": ["auditor"], "password": PASSWORD},
    )

    def log_in(password: str = PASSWORD) -> Person:
        opened = town.anybody.post("sessions", officer="temp", password=password)
        return Person(town.port, f"Bearer {opened['token']}")

    with refused(401, "not_authenticated"):
        log_in("wrong password")
    one, other = log_in(), log_in()
    assert one.get("session")["roles"] == ["auditor"]
    one.call("DELETE", "session")
    with refused(401, "not_authenticated"):
        one.get("session")
    other.call(
        "POST", "session", "password", body={"oldPassword": PASSWORD, "newPassword": "even better battery"}
    )
    with refused(401, "not_authenticated"):
        other.get("session")
    third = log_in("even better battery")
    town.administer("PUT", "/officers/temp/roles", {"roles": ["clerk"]})
    assert third.get("session")["roles"] == ["clerk"]  # from the next request on
    assert town.administer("POST", "/officers/temp/disable")["disabled"] is True
    with refused(401, "not_authenticated"):
        third.get("session")
    with refused(401, "not_authenticated"):
        log_in("even better battery")
    town.administer("POST", "/officers/temp/enable")
    town.administer("PUT", "/officers/temp/password", {"newPassword": PASSWORD})
    log_in()


def test_officers_are_made_on_the_socket_only(town: Town) -> None:
    with refused(403, "denied", "socket"):
        town["guard"].get("officers")
    names = {one["officer"] for one in town.administer("GET", "/officers")["items"]}
    assert {"clerk", "guard"} <= names
    with refused(409, "conflict"):
        town.administer(
            "POST",
            "/officers",
            {"officer": "clerk", "displayName": "x", "roles": ["clerk"], "password": PASSWORD},
        )


# Grants ---------------------------------------------------------------------------------------------------------


def test_a_grant_on_an_official_seal_takes_two_and_on_another_one(town: Town) -> None:
    official, personal = (
        town.active(town.official()),
        town.active(town.application(sealName="郑十", sealHolder="郑十")),
    )
    terms = {"operations": ["seal"], "dailyLimit": 5, "approvalPattern": "[0-9]+", "sources": ["127.0.0.0/8"]}
    with refused(403, "denied", "two people"):
        town["guard"].put("seals", official, "grants", "app", **terms)
    done = town.both(official, "grant", "guard", "guard-2", account="app", terms=terms)
    assert done["state"] == "done" and done["arguments"]["dailyLimit"] == 5
    granted = town["guard"].put("seals", personal, "grants", "app", **terms)
    assert (granted["dailyLimit"], granted["approvalPattern"], granted["sources"]) == (
        5,
        "[0-9]+",
        ["127.0.0.0/8"],
    )
    grants = town["auditor"].get("grants", account="app")["items"]
    assert {one["sealId"] for one in grants} >= {official, personal}
    assert [one["account"] for one in town["auditor"].get("grants", sealId=personal)["items"]] == ["app"]
    town["guard"].call("DELETE", "seals", personal, "grants", "app")
    assert town["auditor"].get("grants", sealId=personal)["items"] == []
    with refused(404, "not_found"):
        town["guard"].call("DELETE", "seals", personal, "grants", "app")
    with refused(400, "bad_request", "exactly one"):
        town["auditor"].get("grants")
    with refused(400, "bad_request"):
        town["guard"].put("seals", personal, "grants", "app", operations=["seal"], approvalPattern="(")


# Looking --------------------------------------------------------------------------------------------------------


def test_lists_come_page_by_page(town: Town) -> None:
    clerk = town["clerk"]
    for number in range(3):
        town.applied(sealName=f"某{number}", sealHolder=f"某{number}")
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = clerk.get("seals", text="某", sealState="applied", limit=2, **after)
        assert len(page["items"]) <= 2
        found += [one["sealId"] for one in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert len(found) == len(set(found)) >= 3
    assert clerk.get("seals", sealKind="department")["items"] == []
    assert clerk.get("seals", sealCode="33010099999999")["items"] == []
    assert clerk.get("organisations", text=NAME[:2])["items"][0]["useUnitCode"] == USCC


@pytest.mark.parametrize(
    "path",
    [
        "seals/x",
        *(f"seals/x/{one}" for one in ("events", "eseal", "imprint", "application", "documents")),
        "seals/x/documents/making",
        "seals/x/documents/making/pdf",
        "proposals/x",
        f"organisations/{OTHER_USCC}",
    ],
)
def test_what_is_not_there(town: Town, path: str) -> None:
    with refused(404, "not_found"):
        town["auditor"].ask("GET", *path.split("/"))


def test_statistics_as_json_and_csv(town: Town) -> None:
    auditor = town["auditor"]
    rows = auditor.get("statistics", "seals", by="organisation,state")["rows"]
    assert {"useUnitCode", "sealState", "seals"} == set(rows[0])
    assert sum(row["seals"] for row in rows) == len(auditor.get("seals", limit=500)["items"])
    media_type, raw = auditor.ask("GET", "statistics", "seals", query={"by": "kind", "format": "csv"})
    assert media_type == "text/csv" and raw.startswith(b"\xef\xbb\xbf")
    table = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"))))
    assert table[0] == ["sealKind", "seals"] and len(table) > 1
    assert auditor.get("statistics", "uses", by="seal")["rows"] == []
    delays = auditor.get("statistics", "filing-delays")["rows"]
    assert {row["messageKind"] for row in delays} >= {"made"}
    for query in ({"from": "2026-02-30"}, {"from": "2026-11-02", "to": "2026-11-01"}, {"to": "9999-12-31"},
                  {"from": "0001-01-01"}):  # fmt: skip
        with refused(400, "bad_request"):
            auditor.get("statistics", "uses", **query)


# The public -----------------------------------------------------------------------------------------------------


def test_the_public_sees_health_and_contract_and_verifies(town: Town) -> None:
    anybody = town.anybody
    assert anybody.get("health") == {"status": "ready"}
    assert anybody.get("openapi.json") == contract().document
    report = anybody.post("verify", signature=base64.b64encode(b"nonsense").decode())
    assert report["verdict"] == "invalid"
    assert report["checks"][0]["outcome"] == "failed"
    with refused(400, "bad_request", "one of the two"):
        anybody.post("verify", signature="AAEC", dataHash="0" * 64, document="AAEC")


@pytest.mark.parametrize("operation", contract().operations)
def test_nobody_gets_in_without_credentials(town: Town, operation: str) -> None:
    found = contract().operations[operation]
    names = [re.sub(r"\{\w+\}", "x", part) for part in found.path.split("/")[1:]]
    if found.id == "openSession" or (not found.credentials and not found.administrator):
        return
    expected = (403, "denied") if found.administrator else (401, "not_authenticated")
    with refused(*expected):
        town.anybody.ask(found.method, *names)
