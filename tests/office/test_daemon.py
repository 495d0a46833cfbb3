"""The office in the daemon: what a start finds and does, its metric, its time-stamp authority, several fronts."""

from __future__ import annotations

import hashlib
import http.client
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from appliance_fixture import Appliance, Bench, free_port, until
from office_rig import USCC

from appliance import certificates
from appliance.eseal.chains import Trust
from appliance.eseal.findings import Outcome
from appliance.eseal.timestamps import build_request, check_token, read_response, read_token
from appliance.lifecycle import (
    Act,
    CriticalAct,
    Event,
    Generation,
    Imprint,
    Kind,
    Message,
    MessageKind,
    Officer,
    Organisation,
    Proposal,
    ProposalState,
    Role,
    Seal,
    State,
)
from appliance.office.desk import instant
from appliance.registry import Registry, Step, open_registry
from appliance.settings import load_settings
from appliance.verifying import Verifier

NOW = datetime.now(UTC)


def ago(**much: float) -> str:
    return instant(NOW - timedelta(**much))


def take(registry: Registry, seal: Seal, act: Act, target: State, **more: Any) -> Seal:
    changes = more.pop("changes", {})
    event = Event(seal.id, ago(days=500), act.value, seal.state, target, "somebody", None, {})
    return registry.seals.advance(Step(seal.id, seal.version, seal.state, target, changes, event, **more))


def an_active_seal(registry: Registry, number: int, valid_to: str) -> Seal:
    """Made, filed and taken into use long ago, by whomever."""
    id_ = f"seal{number}"
    seal = Seal(
        id_, "", USCC, Kind.SPECIAL, "合同", number, "某某公司合同专用章", "330100", "", "keeper", "clerk",
        State.APPLIED, 1, 0, None, None, None, ago(days=500), None, None, None, None, None, None, None, None, None,
    )  # fmt: skip
    event = Event(id_, ago(days=500), "apply", None, State.APPLIED, "clerk", None, {})
    registry.seals.apply(seal, Imprint("PNG", b"x", 40, 40, bytes(32)), {}, event)
    seal = take(registry, registry.seals.seal(id_), Act.REVIEW, State.REVIEWED)
    made = Generation(id_, 1, f"seal-{id_}-1", b"c", b"e", ago(days=500), valid_to, ago(days=500))
    message = Message(
        f"m{number}",
        MessageKind.MADE,
        id_,
        {},
        ago(days=500),
        ago(days=499),
        0,
        ago(days=500),
        None,
        None,
        None,
    )
    changes = {
        "code": f"3301000000000{number}",
        "generation": 1,
        "valid_to": valid_to,
        "made_at": ago(days=500),
    }
    seal = take(registry, seal, Act.MAKE, State.MADE, changes=changes, generation=made, messages=(message,))
    seal = take(registry, seal, Act.FILE, State.FILED)
    return take(registry, seal, Act.ACTIVATE, State.ACTIVE)


def test_a_start_does_what_time_and_a_crash_left(bench: Bench) -> None:
    appliance = bench.appliance(seals={"filing": {"poll_s": 0.05}})
    settings = load_settings(appliance.config_file)
    registry = open_registry(settings)
    registry.seals.add_organisation(Organisation(USCC, "某某公司", "330100"))
    for name in ("reviewer", "guard"):
        registry.people.add_officer(Officer(name, name, frozenset(Role), "", False, ago(days=500)))
    later = instant(NOW + timedelta(days=100))
    expired = an_active_seal(registry, 1, ago(days=1))
    idle = an_active_seal(registry, 2, later)
    asleep = take(registry, an_active_seal(registry, 3, later), Act.SLEEP, State.DORMANT)
    proposal = Proposal(
        "p1", CriticalAct.WAKE, asleep.id, {"reason": "needed"}, "reviewer", ago(hours=1),
        instant(NOW + timedelta(hours=1)), ProposalState.OPEN, None, None, None,
    )  # fmt: skip
    registry.people.add_proposal(proposal)
    registry.people.add_proposal(replace(proposal, id="p2", expires_at=ago(minutes=1)))
    registry.people.decide("p1", ProposalState.APPROVED, "guard", ago(minutes=30))
    registry.close()

    appliance.start()
    until("overdue messages are counted", lambda: appliance.metric("cloudseal_filing_overdue_messages") == 3)
    appliance.stop()

    registry = open_registry(settings)
    try:
        states = [registry.seals.seal(seal.id).state for seal in (expired, idle, asleep)]
        assert states == [State.EXPIRED, State.DORMANT, State.ACTIVE]
        assert registry.people.proposal("p1").state is ProposalState.DONE
        assert registry.people.proposal("p2").state is ProposalState.EXPIRED
    finally:
        registry.close()


def certificate_for(appliance: Appliance, root: Path, key: str) -> tuple[bytes, bytes]:
    """A CA on a key of the appliance's, and a certificate of its for time stamping."""
    appliance.key("ca")
    appliance.key(key)
    ca = appliance.ordered("POST", "/v1/keys/ca/self-signed", {"subject": "CN=root"})["certificate"]
    request = appliance.ordered("POST", f"/v1/keys/{key}/request", {"subject": "CN=time"})["request"]
    issued = appliance.ordered(
        "POST", "/v1/keys/ca/issue", {"request": request, "issuer_certificate": ca, "time_stamping": True}
    )["certificate"]
    (root / "tsa.pem").write_text(issued)
    return certificates.to_der(ca.encode()), certificates.to_der(issued.encode())


def test_a_time_stamp_authority_for_demonstrations(bench: Bench) -> None:
    port = free_port()
    root = bench.root
    authority = {"listen": f"127.0.0.1:{port}", "key": "tsa", "certificate_file": str(root / "tsa.pem")}
    appliance = bench.appliance(seals={"authority": authority}).start()
    ca, _ = certificate_for(appliance, root, "tsa")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    value = hashlib.sha256(b"a signature value").digest()
    connection.request(
        "POST", "/tsa", body=build_request(value, 7), headers={"Content-Type": "application/timestamp-query"}
    )
    token = read_token(read_response(connection.getresponse().read()))
    connection.close()
    now = datetime.now(UTC)
    finding = check_token(token, value, Trust([ca]), Verifier(max_table_bytes=0), now)
    assert finding.outcome is Outcome.PASSED, finding
    assert token.nonce == 7 and abs(now - token.at) < timedelta(seconds=60)


def test_a_configuration_that_cannot_be(bench: Bench) -> None:
    appliance = bench.appliance(seals={"filing": {"url": "http://police.example/filing"}})
    appliance.launch()
    assert appliance.wait_exit() == 13
    assert "seals.filing.url" in appliance.log and "https" in appliance.log
    appliance.config_file.write_text(
        json.dumps(
            {**appliance.settings, "seals": {"filing": {"ca_file": "nowhere", "url": "https://a.example/"}}}
        )
    )
    appliance.launch()
    assert appliance.wait_exit() == 13
    assert "seals.filing" in appliance.log
