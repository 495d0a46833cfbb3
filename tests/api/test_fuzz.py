"""schemathesis makes requests out of the OpenAPI document, right ones and wrong ones, and the real daemon answers them.

No answer is a server error, each is one that the document promises, and what the document forbids is refused. Officers
of several roles ask, for seals that exist and for some that do not, so that acts are reached and not only refusals.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
import urllib3
from api_rig import OTHER_USCC, USCC, Person, Town, contract, imprint, settle
from appliance_fixture import PASSWORD, Bench
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
ROLES = ("clerk", "reviewer", "maker", "guard", "keeper", "auditor", "everybody")
MODES = {"right": GenerationMode.POSITIVE, "wrong": GenerationMode.NEGATIVE}
QUICK, LONG = 4, 150
"""Requests for each operation and mode: some ten seconds in all, or some ten minutes."""


class _UnixConnection(urllib3.connection.HTTPConnection):
    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__("localhost", **options)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class _UnixPool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", maxsize=1)
        self._path = path

    def _new_conn(self) -> _UnixConnection:
        return _UnixConnection(self._path)


class OfficersSocket(requests.adapters.HTTPAdapter):
    """HTTP for ``requests`` over the officers' socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _UnixPool(path)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> _UnixPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


class Crowd:
    """Who asks, and for what."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.schema = schemathesis.openapi.from_dict(dict(contract().document))
        self.http = requests.Session()
        self.http.mount("http://administrator", OfficersSocket(town.appliance.officer_socket))
        personal = [town.application(sealName=name, sealHolder=name) for name in ("甲", "乙", "丙")]
        self.seals = [
            town.active(personal[0]),
            town.certified(town.applied(**personal[1])),
            town.applied(**personal[2]),
        ]
        proposed = town["maker"].post("proposals", act="make", sealId=self.seals[1])
        self.proposals = [proposed["proposalId"]]
        town["guard"].put("seals", self.seals[0], "grants", "app", operations=["seal", "verify", "status"])

    def close(self) -> None:
        self.http.close()

    def asks_as(self, operation: Any, role: str) -> tuple[str, dict[str, str]]:
        """Where it is sent, and by whom."""
        if operation.administrator:
            return "http://administrator/api/v1", {}
        base = f"http://127.0.0.1:{self.town.port}/api/v1"
        if "account" in operation.credentials:
            return base, {"Authorization": str(self.town.accounts["app"].authorization)}
        if operation.credentials:
            return base, {"Authorization": self.token(operation, role)}
        return base, {}

    def token(self, operation: Any, role: str) -> str:
        if operation.id not in ("closeSession", "changeOwnPassword"):
            return str(self.town[role].authorization)
        opened = self.town.anybody.post("sessions", officer=role, password=PASSWORD)
        return f"Bearer {opened['token']}"

    def make_real(self, case: Any, seal: str, proposal: str) -> None:
        """Names of things that exist, in a request that is right anyway."""
        known = {
            "sealId": seal, "proposalId": proposal, "account": "app", "useUnitCode": USCC, "custodian": "keeper",
            "replaces": seal, "officer": "extra",
            "imprint": {"data": base64.b64encode(imprint(400)).decode(), "widthMm": 20, "heightMm": 20},
        }  # fmt: skip
        for place in (case.path_parameters, case.query, case.body):
            if isinstance(place, dict):
                place.update({name: value for name, value in known.items() if name in place})


@pytest.fixture(scope="module")
def crowd(shared_bench: Bench) -> Iterator[Crowd]:
    town = settle(shared_bench, auth={"failure_delay_s": 0.0})
    body = {"officer": "extra", "displayName": "Extra", "roles": ["auditor"], "password": PASSWORD}
    town.administer("POST", "/officers", body)
    found = Crowd(town)
    yield found
    found.close()


def exercise(crowd: Crowd, operation_id: str, mode: GenerationMode, examples: int) -> None:
    operation = contract().operations[operation_id]
    cases = crowd.schema[operation.path][operation.method].as_strategy(generation_mode=mode)

    @given(
        case=cases,
        role=st.sampled_from(ROLES),
        seal=st.sampled_from([None, *crowd.seals]),
        proposal=st.sampled_from(crowd.proposals),
    )
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any, role: str, seal: str | None, proposal: str) -> None:
        if mode is GenerationMode.POSITIVE and seal is not None:
            crowd.make_real(case, seal, proposal)
        base, headers = crowd.asks_as(operation, role)
        response = case.call(base_url=base, session=crowd.http, headers=headers)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            problem = json.loads(response.content)
            assert problem["detail"] and problem["hint"], problem

    ask()


def operations(mode: str) -> list[str]:
    """Where nothing can be given, nothing wrong can be."""
    return [
        one.id
        for one in contract().operations.values()
        if mode == "right" or one.takes_body or one.parameters
    ]


@pytest.mark.parametrize(("mode", "operation"), [(mode, one) for mode in MODES for one in operations(mode)])
def test_no_request_makes_a_server_error(crowd: Crowd, mode: str, operation: str) -> None:
    exercise(crowd, operation, MODES[mode], QUICK)


@pytest.mark.gauntlet
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("mode", "operation"), [(mode, one) for mode in MODES for one in operations(mode)])
def test_no_request_makes_a_server_error_for_long(crowd: Crowd, mode: str, operation: str) -> None:
    exercise(crowd, operation, MODES[mode], LONG)


def test_the_crowd_is_still_let_in(crowd: Crowd) -> None:
    """Nothing that was asked has broken what was there before."""
    auditor: Person = crowd.town["auditor"]
    assert len(auditor.get("seals", limit=500)["items"]) >= 3
    assert {one["useUnitCode"] for one in auditor.get("organisations")["items"]} - {OTHER_USCC}
