"""PROTOCOL.md is the contract and wire.py its codec: every table is compared with the code, in both directions."""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from appliance import _sealing, algorithms, errors, lifecycle, wire, wire_seals
from appliance.client.asynchronous import MAX_ANSWER_LEN
from appliance.dispatch import INTERACTIVE_MAX_ITEMS
from appliance.eseal import findings, verification
from appliance.settings import WindowSettings

SPECIFICATION = Path(__file__).parents[2] / "appliance" / "PROTOCOL.md"
Table = list[list[str]]


def read_tables() -> dict[str, Table]:
    """Every table of the specification: its header cells, joined -> its rows."""
    tables: dict[str, Table] = {}
    rows: Table | None = None
    for line in SPECIFICATION.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if rows is None:
            rows = tables.setdefault(" | ".join(cells), [])
            assert not rows, f"two tables have the header {cells}"
        elif set(line) - set("|- "):
            rows.append(cells)
    return tables


TABLES = read_tables()

LAYOUTS = {
    "header": wire._HEADER,
    "hello": wire._HELLO,
    "welcome": wire._WELCOME,
    "sign": wire._SIGN,
    "signed": wire._SIGNED,
    "verify": wire._VERIFY,
    "verified": wire._VERIFIED,
    "status": wire._STATUS,
    "error": wire._ERROR,
    "seal": wire_seals._SEAL,
    "sealed": wire_seals._SEALED,
    "sealed record": wire_seals._SEALED_RECORD,
    "verify seal": wire_seals._VERIFY_SEAL,
    "seals verified": wire_seals._SEALS_VERIFIED,
    "verdict record": wire_seals._VERDICT_RECORD,
    "seal status": wire_seals._SEAL_STATUS,
    "status record": wire_seals._STATUS_RECORD,
    "unlock": wire_seals._UNLOCK,
    "unlocked": wire_seals._UNLOCKED,
}
NUMBERS: dict[str, type[IntEnum | IntFlag]] = {
    "type | number | from | payload": wire.FrameType,
    "form | number | body": wire.Form,
    "priority | number | meaning": wire.Priority,
    "item status | number | meaning": wire.ItemStatus,
    "key kind | number | key": wire.KeyKind,
    "status kind | number | answer": wire.StatusKind,
    "key state | number | meaning": wire.KeyState,
    "seal flag | bit | meaning": wire_seals.SealFlag,
    "seal verdict | number | meaning": wire_seals.SealVerdict,
    "seal check | bit | what": wire_seals.SealCheck,
    "seal name kind | number | name": wire_seals.SealNameKind,
    "seal state | number | meaning": wire_seals.SealState,
    "seal status flag | bit | meaning": wire_seals.SealStatusFlag,
}


def layout_header(name: str) -> str:
    return f"offset | size | {name} field | meaning"


def test_every_table_is_compared() -> None:
    """A table that nobody compares is a table that drifts."""
    known = {layout_header(name) for name in LAYOUTS} | set(NUMBERS)
    known |= {
        "algorithm | number",
        "error code | label | was anything done | retry",
        "limit | value | reason",
    }
    assert set(TABLES) == known


def field_sizes(layout: struct.Struct) -> list[int]:
    return [struct.calcsize("!" + code) for code in re.findall(r"\d*[sBHIQ]", layout.format)]


def joined(sizes: list[int], wanted: list[int]) -> list[int]:
    """The struct's sizes, with neighbours joined where the table has one field (three reserved bytes are two codes)."""
    left, result = list(sizes), []
    for size in wanted:
        total = left.pop(0)
        while total < size and left:
            total += left.pop(0)
        result.append(total)
    return result + left


@pytest.mark.parametrize("name", LAYOUTS)
def test_offsets_and_sizes_are_those_of_the_struct(name: str) -> None:
    rows = TABLES[layout_header(name)]
    offsets, sizes = [int(row[0]) for row in rows], [int(row[1]) for row in rows]
    assert LAYOUTS[name].format.startswith("!"), "big endian, without padding"
    assert offsets == [sum(sizes[:i]) for i in range(len(sizes))], "no gap and no overlap"
    assert joined(field_sizes(LAYOUTS[name]), sizes) == sizes
    assert LAYOUTS[name].size == sum(sizes)


SEALED = wire_seals.SealedAnswer(
    b"j" * 16, 11, 2, 1, b"body", b"suffix", b"\0\1\0\2\0\3\2\0\0\0\0\0", b"123456"
)
VERDICT = wire_seals.SealVerified(
    wire_seals.SealVerdict.INCOMPLETE,
    wire_seals.SealCheck.DATA_HASH,
    wire_seals.SealCheck.STATUS,
    wire_seals.SealCheck(0),
)
PROBES: dict[str, tuple[bytes, dict[str, int]]] = {
    "header": (
        wire.encode_frame(wire.FrameType.PING, 77, b"abc"),
        {"payload_len": 3, "type": 5, "request_id": 77},
    ),
    "hello": (
        wire.encode_hello(wire.Hello(1, 9, "name", "secret"))[16:],
        {
            "magic": int.from_bytes(b"CLDSEAL\0", "big"),
            "min_version": 1,
            "max_version": 9,
            "password_len": 6,
            "account_len": 4,
        },
    ),
    "welcome": (
        wire.encode_welcome(1, wire.Welcome(1, 2, 3, 4, "s"))[16:],
        {"version": 1, "window_requests": 2, "window_items": 3, "max_payload_len": 4},
    ),
    "sign": (
        wire.encode_sign(
            1, wire.SignRequest(b"j" * 16, 11, 12, wire.Priority.BULK, "key", wire.messages([b"a", b"b"]))
        )[16:],
        {
            "job_id": int.from_bytes(b"j" * 16, "big"),
            "first_index": 11,
            "deadline_ms": 12,
            "count": 2,
            "form": 1,
            "priority": 2,
            "key_len": 3,
        },
    ),
    "signed": (
        wire.encode_signed(1, wire.SignedAnswer(b"j" * 16, 11, 2, 1, b"\0\1", bytes(128)))[16:],
        {"job_id": int.from_bytes(b"j" * 16, "big"), "first_index": 11, "count": 2, "failed": 1},
    ),
    "verify": (
        wire.encode_verify(
            1, wire.VerifyRequest(5, wire.KeyKind.SPKI, b"k" * 91, bytes(64), wire.messages([b"m"]))
        )[16:],
        {"deadline_ms": 5, "count": 1, "form": 1, "key_kind": 1, "key_len": 91},
    ),
    "verified": (wire.encode_verified(1, b"\1\0\0")[16:], {"count": 3, "invalid": 2}),
    "status": (
        wire.encode_status(1, wire.StatusKind.KEYS, ["a", "b"])[16:],
        {"kind": 0, "count": 2},
    ),
    "error": (
        wire.encode_error(1, errors.Busy("what", hint="do", retry_after_ms=99))[16:],
        {"code": 9, "detail_len": 4, "hint_len": 2, "retry_after_ms": 99},
    ),
    "seal": (
        wire_seals.encode_seal(
            1,
            wire_seals.SealRequest(
                b"j" * 16,
                11,
                12,
                wire.Priority.BULK,
                wire_seals.SealFlag.ONE_PROPERTY,
                "seal",
                "reference",
                bytes(64),
                *wire_seals.properties(["/a"]),
            ),
        )[16:],
        {
            "job_id": int.from_bytes(b"j" * 16, "big"),
            "first_index": 11,
            "deadline_ms": 12,
            "count": 2,
            "priority": 2,
            "flags": 1,
            "seal_len": 4,
            "reference_len": 9,
        },
    ),
    "sealed": (
        wire_seals.encode_sealed(1, SEALED)[16:],
        {
            "job_id": int.from_bytes(b"j" * 16, "big"),
            "first_index": 11,
            "count": 2,
            "failed": 1,
            "body_len": 4,
            "suffix_len": 6,
        },
    ),
    "sealed record": (
        wire_seals.encode_sealed(1, SEALED)[16 + 40 + 10 :],
        {"status": 0, "head_len": 1, "middle_len": 2, "tail_len": 3},
    ),
    "verify seal": (
        wire_seals.encode_verify_seal(1, wire_seals.VerifySealRequest(5, bytes(32), b"\0\0\0\1", b"v"))[16:],
        {"deadline_ms": 5, "count": 1},
    ),
    "seals verified": (
        wire_seals.encode_seals_verified(1, [VERDICT, VERDICT])[16:],
        {"count": 2, "good": 0},
    ),
    "verdict record": (
        wire_seals.encode_seals_verified(1, [VERDICT])[16 + 8 :],
        {"verdict": 3, "failed": 256, "undecided": 1024, "ended": 0},
    ),
    "seal status": (
        wire_seals.encode_seal_status(1, wire_seals.SealNameKind.CODE, ["a", "b", "c"])[16:],
        {"kind": 1, "count": 3},
    ),
    "status record": (
        wire_seals.encode_seal_states(
            1,
            wire_seals.SealNameKind.ID,
            [
                wire_seals.SealStatusRecord(
                    wire_seals.SealState.DORMANT, wire_seals.SealStatusFlag.PASSWORD_DUE, 1, 2, 3, 4
                )
            ],
        )[16 + 4 :],
        {
            "state": 8,
            "flags": 2,
            "valid_from": 1,
            "valid_to": 2,
            "unlocked_until": 3,
            "password_due_at": 4,
        },
    ),
    "unlock": (
        wire_seals.encode_unlock(1, wire_seals.UnlockRequest("seal", "secret", 600))[16:],
        {"seconds": 600, "seal_len": 4, "password_len": 6},
    ),
    "unlocked": (wire_seals.encode_unlocked(1, 77)[16:], {"expires_at": 77}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_field_stands_where_the_table_says(name: str) -> None:
    """By value, not by size: two fields of one size that change places are seen."""
    encoded, values = PROBES[name]
    reserved = {"reserved", "flags"} - set(values)
    for offset, size, field, _ in TABLES[layout_header(name)]:
        got = int.from_bytes(encoded[int(offset) : int(offset) + int(size)], "big")
        assert got == (0 if field in reserved else values[field]), field
    assert {row[2] for row in TABLES[layout_header(name)]} - reserved == set(values)


@pytest.mark.parametrize("header", NUMBERS)
def test_names_and_numbers_are_those_of_the_enum(header: str) -> None:
    assert {row[0]: int(row[1]) for row in TABLES[header]} == {one.name: one.value for one in NUMBERS[header]}


def test_the_sender_of_a_type_shows_in_its_number() -> None:
    for name, number, sender, _ in TABLES["type | number | from | payload"]:
        assert sender == ("client" if int(number) < 64 else "server"), name


def test_algorithm_numbers() -> None:
    table = {name: int(number) for name, number in TABLES["algorithm | number"]}
    assert table == {one.name: one.value for one in algorithms.Algorithm}


def test_error_codes_and_labels() -> None:
    rows = TABLES["error code | label | was anything done | retry"]
    assert {int(row[0]): row[1] for row in rows} == {
        row.wire_code: row.label for row in errors.TABLE.values()
    }


def test_what_closes_the_connection_is_a_protocol_or_proof_error() -> None:
    rows = TABLES["error code | label | was anything done | retry"]
    closing = {row[1] for row in rows if "the connection is closed" in row[2]}
    breaks = {
        row.label
        for row in errors.TABLE.values()
        if issubclass(row.error, errors.ProtocolError | errors.NotAuthenticated)
    }
    assert closing == breaks


def test_retry_after_belongs_to_what_the_client_retries() -> None:
    """The client retries ``Unavailable``: the table must promise that nothing was done, and a time to wait."""
    for row in TABLES["error code | label | was anything done | retry"]:
        retried = issubclass(errors.TABLE[int(row[0])].error, errors.Unavailable)
        assert retried == ("retry_after_ms" in row[3]), row
        assert not retried or row[2] == "no"


def test_limits() -> None:
    table = {name: int(value) for name, value, _ in TABLES["limit | value | reason"]}
    ours = {
        name: value
        for name, value in (vars(wire) | vars(wire_seals)).items()
        if name.startswith("MAX_") and isinstance(value, int) and not hasattr(algorithms, name)
    }
    assert table == ours, "a limit that a peer can meet stands in the table"


def test_limits_of_seals_are_those_of_the_code_behind_them() -> None:
    assert _sealing.MAX_PROPERTY_LEN == wire_seals.MAX_PROPERTY_LEN
    assert _sealing.MAX_ITEMS == wire.MAX_ITEMS
    assert _sealing.RECORD_LEN == wire_seals.SEALED_RECORD_LEN
    one_property = 4 + wire_seals.MAX_PROPERTY_LEN
    shared = _sealing.MAX_BODY_LEN + 17 + one_property + _sealing.MAX_SUFFIX_LEN
    assert shared <= wire_seals.MAX_SHARED_LEN
    pieces = wire.MAX_ITEMS * (_sealing.RECORD_LEN + 10 + 35 + 4 + 75) + wire_seals.MAX_PROPERTIES_LEN
    stamps = wire_seals.MAX_STAMPED_ITEMS * (_sealing.MAX_STAMP_LEN + 20)
    longest = wire_seals._SEALED.size + shared + pieces
    assert max(longest, shared + stamps) < 20 * 2**20, "as the reason of MAX_PROPERTIES_LEN has it"
    assert longest < MAX_ANSWER_LEN, "what a client takes"


def test_seal_states_are_those_of_a_seals_life() -> None:
    names = [one.name for one in lifecycle.State]
    assert names == [one.name for one in wire_seals.SealState if one is not wire_seals.SealState.UNKNOWN]


def test_checks_and_verdicts_are_those_of_the_report() -> None:
    assert [one.name for one in wire_seals.SealCheck] == [one.name for one in verification.CheckName]
    assert {one.name for one in wire_seals.SealVerdict} == {one.name for one in findings.Verdict}


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_numbers_in_the_prose() -> None:
    """What the sentences say besides the tables."""
    text = SPECIFICATION.read_text(encoding="utf-8")

    def found(pattern: str) -> list[int]:
        numbers = [number(one) for one in re.findall(pattern, text)]
        assert numbers, pattern
        return numbers

    assert set(found(r"1 to ([\d,]+) items")) == {wire.MAX_ITEMS}
    assert found(r"SubjectPublicKeyInfo, at most ([\d,]+) bytes") == [algorithms.MAX_SPKI_LEN]
    assert found(r"certificate, at most ([\d,]+) bytes") == [wire._KEY_LIMITS[wire.KeyKind.CERTIFICATE]]
    assert found(r"names follow: 0 to ([\d,]+);") == [wire.MAX_STATUS_NAMES]
    assert found(r"names follow: 1 to ([\d,]+) ") == [wire_seals.MAX_SEAL_NAMES]
    assert found(r"1 to ([\d,]+) seal signatures") == [wire_seals.MAX_VERIFIED_SEALS]
    assert found(r"ASCII, 0 to ([\d,]+) bytes") == [wire_seals.MAX_PROPERTY_LEN]
    assert found(r"reference_len \| 0 to ([\d,]+)") == [wire_seals.MAX_REFERENCE_LEN]
    assert found(r"at most ([\d,]+) items") == [wire_seals.MAX_STAMPED_ITEMS]
    assert set(found(r"seal_len \| 1 to ([\d,]+)")) == {wire.MAX_NAME_LEN}
    assert found(r"\(([\d,]+) before WELCOME\)") == [wire.MAX_HELLO_PAYLOAD_LEN]
    assert "`CLDSEAL` and a zero byte" in text and wire.MAGIC == b"CLDSEAL\0"
    assert set(found(r"password_len \| 0 to ([\d,]+)")) == {wire.MAX_PASSWORD_LEN}
    assert found(r"account_len \| 1 to ([\d,]+)") == [wire.MAX_NAME_LEN]
    assert found(r"key_len \| 1 to ([\d,]+)") == [wire.MAX_NAME_LEN]
    assert found(r"PING \| 5 \| client \| 0 to ([\d,]+) bytes") == [wire.MAX_PING_LEN]
    assert found(r"interactive up to ([\d,]+) items") == [INTERACTIVE_MAX_ITEMS]
    assert re.search(r"a (\d+)-byte header", text)[1] == str(wire.HEADER_LEN)  # type: ignore[index]


def test_key_records_are_laid_out_as_written() -> None:
    record = wire.KeyRecord("name", wire.KeyState.DISABLED, 2, b"spki!")
    assert wire.encode_key_records(1, [record])[16:] == b"\0\0\0\1" + b"\2\2\4\0\5" + b"name" + b"spki!"


def test_a_payload_limit_holds_the_largest_request() -> None:
    """What a server must take: 65,536 digests with signatures, under a certificate. No configuration goes below."""
    largest = wire._VERIFY.size + wire._KEY_LIMITS[wire.KeyKind.CERTIFICATE] + wire.MAX_ITEMS * (32 + 64)
    assert largest <= wire.MIN_PAYLOAD_LIMIT
    field = WindowSettings.__dataclass_fields__["max_payload_len"]
    assert field.metadata["low"] >= wire.MIN_PAYLOAD_LIMIT
