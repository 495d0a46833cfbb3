"""A daemon that keeps seals, with the people who work with it, spoken to over HTTP only.

For: ``tests/api`` and the tests of the commands. ``Town`` is one ``cloud-seald`` with a CA, a maker, officers of every
role, an organisation and accounts.

Rules:

* Every answer is checked against the OpenAPI document, and every refusal must have a hint.
* Nobody acts but by the API; what the office does underneath is ``tests/office``'s matter.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

from appliance_fixture import PASSWORD, Appliance, Bench
from PIL import Image, ImageDraw

from appliance.api.contract import Contract, Operation

ALGORITHM = "ecdsa-p256-sha256"
SEAL_PASSWORD = "Seal-password-17"
USCC = "91330100MA27XYW12Q"
OTHER_USCC = "91330100MA27XYW13N"
NAME = "杭州某某有限公司"
REGION = "330100"
CA_SUBJECT = "C=CN, O=某某 CA, CN=root"

OFFICERS: Mapping[str, list[str]] = {
    "clerk": ["clerk"],
    "reviewer": ["reviewer"],
    "maker": ["maker"],
    "maker-2": ["maker"],
    "filer": ["filer"],
    "guard": ["security"],
    "guard-2": ["security"],
    "auditor": ["auditor"],
    "keeper": ["custodian"],
    "everybody": ["clerk", "reviewer", "maker", "filer", "security", "custodian"],
}


@cache
def contract() -> Contract:
    """The document, read once."""
    return Contract.load()


@cache
def operations_by_route() -> list[tuple[str, re.Pattern[str], Operation]]:
    """How a test finds out which operation it has asked for."""
    found = [
        (one.method, re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(one.path))), one)
        for one in contract().operations.values()
    ]
    return sorted(found, key=lambda one: "{" in one[2].path)


@cache
def imprint(side_px: int = 500) -> bytes:
    """A round red seal on a transparent background, PNG."""
    image = Image.new("RGBA", (side_px, side_px), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, side_px - 6, side_px - 6), outline=(200, 20, 20, 255), width=side_px // 14)
    draw.rectangle((side_px // 3, side_px // 2, 2 * side_px // 3, side_px // 2 + 40), fill=(200, 20, 20, 255))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


class Refused(Exception):
    """A problem: its status and document."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {document['error']}: {document['detail']} ({document['hint']})")
        self.status = status
        self.error = document["error"]
        self.detail = document["detail"]
        self.hint = document["hint"]


@dataclass
class Person:
    """Somebody with credentials, or nobody in particular."""

    port: int
    authorization: str | None = None

    def ask(
        self,
        method: str,
        *names: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
    ) -> tuple[str, bytes]:
        """Media type and body of the answer, which must be as the document says; ``Refused`` where it is a problem."""
        path = "/" + "/".join(quote(name, safe="") for name in names)
        target = f"/api/v1{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            raw, media_type = response.read(), response.headers.get_content_type()
        finally:
            connection.close()
        check_answer(method, path, response.status, media_type, raw)
        if response.status >= 400:
            raise Refused(response.status, json.loads(raw))
        return media_type, raw

    def call(self, method: str, *names: str, **more: Any) -> Any:
        """The document of an answer in JSON."""
        media_type, raw = self.ask(method, *names, **more)
        assert not raw or media_type == "application/json"
        return json.loads(raw) if raw else None

    def get(self, *names: str, **query: Any) -> Any:
        return self.call("GET", *names, query=query)

    def post(self, *names: str, **body: Any) -> Any:
        return self.call("POST", *names, body=body)

    def put(self, *names: str, **body: Any) -> Any:
        return self.call("PUT", *names, body=body)


def check_answer(method: str, path: str, status: int, media_type: str, raw: bytes) -> None:
    """As the document says, if it names the operation; and a refusal has a hint in any case."""
    if status >= 400:
        problem = json.loads(raw)
        assert problem["detail"] and problem["hint"], problem
    for wanted, pattern, operation in operations_by_route():
        if wanted == method and pattern.fullmatch(path):
            contract().check_answer(operation, status, media_type, raw)
            return


@dataclass
class Town:
    """The daemon and its people. ``people`` are officers with sessions, ``accounts`` business systems."""

    appliance: Appliance
    port: int
    people: dict[str, Person] = field(default_factory=dict)
    accounts: dict[str, Person] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Person:
        return self.people[name]

    @property
    def anybody(self) -> Person:
        return Person(self.port)

    # The administrator's, on the socket

    def administer(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.appliance.officer_json(method, f"/api/v1{path}", body)
        check_answer(method, path, answer.status, answer.media_type, answer.body)
        if answer.status >= 400:
            raise Refused(answer.status, answer.json)
        return answer.json if answer.body else None

    # A life, as far as a test is not about it

    def application(self, **changes: Any) -> dict[str, Any]:
        """A personal seal, unless changed: there may be any number of them."""
        data = base64.b64encode(imprint(400)).decode()
        return {
            "useUnitCode": USCC, "sealKind": "personal", "sealName": "王小明", "sealHolder": "王小明",
            "custodian": "keeper", "imprint": {"data": data, "widthMm": 20, "heightMm": 20}, **changes,
        }  # fmt: skip

    def official(self, **changes: Any) -> dict[str, Any]:
        """A special-purpose seal, which is an official one."""
        data = base64.b64encode(imprint()).decode()
        return self.application(
            sealKind="special", sealPurpose="合同", sealName=f"{NAME}合同专用章", sealHolder="",
            imprint={"data": data, "widthMm": 42, "heightMm": 42}, **changes,
        )  # fmt: skip

    def applied(self, **changes: Any) -> str:
        return str(self["clerk"].post("seals", **self.application(**changes))["sealId"])

    def certified(self, seal_id: str) -> str:
        """Reviewed, with its key and a certificate of the CA."""
        self["reviewer"].post("seals", seal_id, "review")
        self["maker"].post("seals", seal_id, "key", algorithm=ALGORITHM)
        self.certify(seal_id)
        return seal_id

    def certify(self, seal_id: str) -> None:
        subject = f"C=CN, O={NAME}, CN=seal {seal_id[:8]}"
        request = self["maker"].post("seals", seal_id, "certificate-request", subject=subject)["request"]
        self["maker"].post("seals", seal_id, "certificate", certificate=self.issue(request))

    def issue(self, request: str) -> str:
        """By the demonstration CA."""
        body = {"request": request, "issuer_certificate": self.ca_file.read_text()}
        return str(self.appliance.ordered("POST", "/v1/keys/ca/issue", body)["certificate"])

    def both(self, seal_id: str, act: str, one: str, other: str, **arguments: Any) -> dict[str, Any]:
        """Proposed by one, approved by another."""
        proposed = self[one].post("proposals", act=act, sealId=seal_id, arguments=arguments)
        return dict(self[other].call("POST", "proposals", proposed["proposalId"], "approve"))

    def active(self, application: dict[str, Any] | None = None) -> str:
        """A seal in use."""
        seal_id = self["clerk"].post("seals", **(application or self.application()))["sealId"]
        self.certified(seal_id)
        assert self.both(seal_id, "make", "maker", "guard")["state"] == "done"
        self["filer"].post("seals", seal_id, "file", receipt="by hand")
        picture = self["clerk"].ask("GET", "seals", seal_id, "imprint")[1]
        self["clerk"].post("seals", seal_id, "confirm", imprintSm3=sm3_hex(picture))
        self["keeper"].post("seals", seal_id, "activate", newPassword=SEAL_PASSWORD)
        return str(seal_id)

    @property
    def ca_file(self) -> Any:
        return self.appliance.root / "ca.pem"


def sm3_hex(data: bytes) -> str:
    return hashlib.new("sm3", data).hexdigest()


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def settle(bench: Bench, **settings: Any) -> Town:
    """A town with everybody in it."""
    api = {"listen": "127.0.0.1:0", "public_per_minute": 1_000_000, "public_at_once": 64}
    appliance = bench.appliance(web={"api": api}, **settings)
    ca_file, maker_file = appliance.root / "ca.pem", appliance.root / "maker.pem"
    appliance.start()
    appliance.key("ca")
    appliance.key("maker")
    root = appliance.ordered("POST", "/v1/keys/ca/self-signed", {"subject": CA_SUBJECT})["certificate"]
    ca_file.write_text(root)
    subject = {"subject": "C=CN, O=某某, CN=maker"}
    wanted = {**appliance.ordered("POST", "/v1/keys/maker/request", subject), "issuer_certificate": root}
    maker_file.write_text(appliance.ordered("POST", "/v1/keys/ca/issue", wanted)["certificate"])
    # Only now there is somebody to trust.
    appliance.stop()
    maker = {"maker_key": "maker", "maker_certificate_file": str(maker_file)}
    cheap = {"argon2_memory_kib": 1024, "argon2_passes": 1, "failure_delay_s": 0.1}
    appliance.change_settings(seals={**maker, "trust_files": [str(ca_file)], "password": cheap})
    appliance.start()
    port = int(re.findall(r"the API listens on .* port (\d+)", appliance.log)[-1])
    town = Town(appliance, port)
    for name, roles in OFFICERS.items():
        body = {"officer": name, "displayName": name.title(), "roles": roles, "password": PASSWORD}
        town.administer("POST", "/officers", body)
        opened = town.anybody.post("sessions", officer=name, password=PASSWORD)
        town.people[name] = Person(port, f"Bearer {opened['token']}")
    for name in ("app", "other"):
        appliance.account(name)
        town.accounts[name] = Person(port, basic(name, PASSWORD))
    town["clerk"].post("organisations", useUnitCode=USCC, useUnitName=NAME, sealZone=REGION)
    return town
