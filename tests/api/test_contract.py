"""The OpenAPI document: it is one, and what it says is what requests are checked by."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.contract import METHODS, Contract, parse_json
from appliance.errors import TABLE, BadRequest

CONTRACT = Contract.load()
OPERATIONS = list(CONTRACT.operations.values())
NOT_OVER_HTTP = {"protocol", "window_exceeded", "config"}
"""Errors of the wire protocol and of the start."""


def refusal(operation: str, body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        CONTRACT.read_body(CONTRACT.operations[operation], json.dumps(body).encode())
    return caught.value


# The document ---------------------------------------------------------------------------------------------------


def test_it_is_openapi_3_1_with_distinct_operations() -> None:
    assert CONTRACT.document["openapi"].startswith("3.1.")
    operations = [
        item[method]["operationId"]
        for item in CONTRACT.document["paths"].values()
        for method in METHODS
        if method in item
    ]
    assert len(operations) == len(set(operations)) == len(OPERATIONS)
    others = {name for item in CONTRACT.document["paths"].values() for name in item} - {
        *METHODS,
        "parameters",
    }
    assert not others, "the binding knows no such methods"


def test_every_reference_leads_somewhere() -> None:
    references = re.findall(r'"\$ref": "#([^"]+)"', json.dumps(CONTRACT.document))
    assert len(references) > 100
    for pointer in references:
        assert CONTRACT.resolve(pointer) is not None


def test_nothing_is_described_and_not_used() -> None:
    used = set(re.findall(r'"\$ref": "#(/components/[^"]+)"', json.dumps(CONTRACT.document)))
    for kind in ("schemas", "parameters", "responses"):
        for name in CONTRACT.document["components"][kind]:
            assert f"/components/{kind}/{name}" in used, name


def test_every_error_that_can_come_over_http_is_a_problem_and_an_answer() -> None:
    labels = set(CONTRACT.resolve("/components/schemas/Problem/properties/error")["enum"])
    assert labels == {row.label for row in TABLE.values()} - NOT_OVER_HTTP
    for operation in OPERATIONS:
        answers = set(CONTRACT.resolve(operation.pointer)["responses"])
        for row in TABLE.values():
            if row.label in NOT_OVER_HTTP or (
                not operation.credentials
                and not operation.administrator
                and row.label
                in ("not_authenticated", "denied", "conflict", "signer_failed", "deadline_exceeded")
            ):
                continue
            assert str(row.http_status) in answers, (operation.id, row.label)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.id)
def test_every_operation_says_what_it_is_and_bounds_what_it_takes(operation: Any) -> None:
    found = CONTRACT.resolve(operation.pointer)
    assert found["summary"].endswith((".", "?"))
    assert found["tags"]
    if operation.takes_body:
        _check_bounded(found["requestBody"]["content"]["application/json"]["schema"])
    in_path = set(re.findall(r"\{(\w+)\}", operation.path))
    assert in_path == {one.name for one in operation.parameters if one.place == "path"}


def _check_bounded(schema: Any, where: str = "body") -> None:
    """Every text, list and number in a request has an end, and every object is closed."""
    schema = CONTRACT.resolve_schema(schema)
    if "enum" in schema:
        return
    match schema["type"]:
        case "object":
            assert schema["additionalProperties"] is False, where
            for name, inner in schema["properties"].items():
                _check_bounded(inner, f"{where}.{name}")
        case "array":
            assert "maxItems" in schema, where
            _check_bounded(schema["items"], f"{where}[]")
        case "string":
            assert "maxLength" in schema or schema["pattern"].endswith(("$",)), where
            if "maxLength" not in schema:
                assert "+$" not in schema["pattern"] and "*$" not in schema["pattern"], where
        case "integer":
            assert {"minimum", "maximum"} <= set(schema), where
        case kind:
            assert kind == "boolean", where


def test_every_secret_is_marked_as_one() -> None:
    for name, schema in CONTRACT.document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            if "password" in field.lower():
                assert CONTRACT.resolve_schema(inner).get("format") == "password", f"{name}.{field}"


def test_the_table_of_names_is_that_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "appliance/api/README.md").read_text()
    table = text.split("## Names")[1]
    named = {
        name
        for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    known = set(re.findall(r'"(\w+)": \{', json.dumps(CONTRACT.document["components"]["schemas"])))
    assert len(named) > 15
    assert not named - known
    operations = set(re.findall(r"`([a-z]+[A-Z]\w+)`", text.split("## Names")[0]))
    assert operations and not operations - CONTRACT.operations.keys()


# Bodies ---------------------------------------------------------------------------------------------------------

GRANT = {"operations": ["seal"]}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "body: expected an object, got a list of 0"),
        ({}, "body: expected a field 'operations', got none"),
        ({**GRANT, "x": 1}, "body: unknown field 'x'"),
        ({"operations": "seal"}, "body: field 'operations': expected a list, got 'seal'"),
        ({"operations": []}, "body: field 'operations': expected at least 1 items, got a list of 0"),
        ({"operations": ["seal", "seal"]}, "body: field 'operations': expected each item once"),
        (
            {"operations": ["fly"]},
            "body: field 'operations.0': expected one of seal, verify, status; got 'fly'",
        ),
        ({**GRANT, "dailyLimit": -1}, "body: field 'dailyLimit': expected at least 0, got -1"),
        ({**GRANT, "dailyLimit": 1.5}, "body: field 'dailyLimit': expected a whole number, got 1.5"),
        ({**GRANT, "dailyLimit": True}, "body: field 'dailyLimit': expected a whole number, got true"),
        (
            {**GRANT, "validEndTime": "soon"},
            "body: field 'validEndTime': expected text of the form date-time",
        ),
        (
            {**GRANT, "validEndTime": "2026-11-22T04:30:00"},
            "body: field 'validEndTime': expected text of the form",
        ),
    ],
)
def test_a_wrong_body_is_told_field_expected_and_got(body: Any, detail: str) -> None:
    error = refusal("putGrant", body)
    assert error.detail.startswith(detail)
    assert error.hint


def test_no_secret_is_shown_in_an_error() -> None:
    for secret in ("s3cret" * 100, 4711471147114711, ["s3cret"], ""):
        error = refusal("openSession", {"officer": "li", "password": secret})
        assert "password" in error.detail
        assert "s3cret" not in str(error) and "4711" not in str(error)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"a\\u0000": 1}',
     b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_json_here(raw: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_json(raw)
    assert caught.value.detail


@pytest.mark.parametrize("part", [b"[],", b"{},", b'"",', b"0,"])
def test_a_body_of_millions_of_parts_is_refused_before_it_is_taken_apart(part: bytes) -> None:
    """Whoever sent one held up everybody's signing for seconds."""
    with pytest.raises(BadRequest, match="more than"):
        parse_json(b"[" + part * 1_000_000 + b"0]")


def test_long_text_is_looked_through_fast() -> None:
    began_at = time.process_time()
    assert parse_json(b'"' + b"A" * (16 << 20) + b'"')
    refusal("verifySignature", {"signature": "A" * (16 << 20)})
    assert time.process_time() - began_at < 1.0, "a loop over each character takes three seconds"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(ANYTHING)
def test_any_body_is_taken_or_refused_with_a_hint(value: Any) -> None:
    raw = json.dumps(value).encode()
    for operation in OPERATIONS:
        if operation.takes_body:
            try:
                CONTRACT.read_body(operation, raw)
            except BadRequest as error:
                assert error.detail
                assert len(str(error)) < 1_000


def test_defaults_are_filled_in_and_base64_is_read() -> None:
    body = CONTRACT.read_body(CONTRACT.operations["verifySignature"], b'{"signature": "AAEC"}')
    assert body == {"signature": b"\0\1\2"}
    body = CONTRACT.read_body(CONTRACT.operations["putGrant"], b'{"operations": ["seal"], "dailyLimit": 2.0}')
    assert body == {"operations": ["seal"], "dailyLimit": 2, "minuteLimit": 0, "sources": []}
    assert type(body["dailyLimit"]) is int


@pytest.mark.parametrize("text", ["AAEAA", "AA\nEC", "A===", "äöü!"])
def test_what_is_no_base64(text: str) -> None:
    assert "base64" in refusal("verifySignature", {"signature": text}).detail


# Parameters -----------------------------------------------------------------------------------------------------


def parameters(operation: str, *query: tuple[str, str], **path: str) -> dict[str, Any]:
    return CONTRACT.read_parameters(CONTRACT.operations[operation], path, query)


def test_parameters_have_their_types_and_defaults() -> None:
    found = parameters("listSeals", ("limit", "5"), ("sealState", "active"))
    assert found["limit"] == 5
    assert found["sealState"] == "active"
    assert found["after"] is None
    assert parameters("listMessages")["undelivered"] is True
    assert parameters("listMessages", ("undelivered", "false"))["undelivered"] is False


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ([("limit", "501")], "parameter 'limit': expected at most 500, got 501"),
        ([("limit", "0")], "parameter 'limit': expected at least 1, got 0"),
        ([("limit", "x")], "parameter 'limit': expected a whole number, got 'x'"),
        ([("limit", "٣")], "parameter 'limit': expected a whole number"),
        ([("sealState", "gone")], "parameter 'sealState': expected one of applied,"),
        ([("color", "red")], "query parameter 'color': unknown"),
        ([("limit", "1"), ("limit", "2")], "query parameter 'limit': expected once"),
        ([("text", "a\0b")], "parameter 'text': the character NUL"),
    ],
)
def test_a_wrong_parameter_is_named(query: list[tuple[str, str]], part: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parameters("listSeals", *query)
    assert caught.value.detail.startswith(part)
    assert caught.value.hint


def test_a_parameter_of_the_path_is_checked() -> None:
    assert parameters("showSeal", sealId="ab12")["sealId"] == "ab12"
    with pytest.raises(BadRequest, match="sealId"):
        parameters("showSeal", sealId="../etc")


# Answers --------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_not_promised_is_found() -> None:
    operation = CONTRACT.operations["readHealth"]
    CONTRACT.check_answer(operation, 200, "application/json", b'{"status": "ready"}')
    for status, media_type, body in (
        (200, "application/json", b'{"status": "fine"}'),
        (200, "text/plain", b"ok"),
        (500, "application/json", b"{}"),
        (404, "application/json", b"{}"),
    ):
        with pytest.raises(BadRequest):
            CONTRACT.check_answer(operation, status, media_type, body)
