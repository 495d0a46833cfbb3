"""Frames about seals: what is encoded is decoded, at the limits and not beyond. Hostile bytes: ``test_wire``."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import wire_seals as seals
from appliance.errors import ProtocolError
from appliance.wire import HEADER_LEN, MAX_ITEMS, ItemStatus, Priority

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)
U64 = st.integers(0, 2**64 - 1)


def payload_of(frame: bytes) -> memoryview:
    return memoryview(frame)[HEADER_LEN:]


def plain(value: Any) -> Any:
    return type(value)(*(bytes(one) if isinstance(one, memoryview) else one for one in value))


def request(count: int, infos: list[str], **changes: Any) -> seals.SealRequest:
    flags = seals.SealFlag.ONE_PROPERTY if len(infos) == 1 else seals.SealFlag(0)
    made = seals.SealRequest(
        bytes(16), 0, 0, Priority.AUTOMATIC, flags, "s", "", bytes(32 * count), *seals.properties(infos)
    )
    return made._replace(**changes)


@given(
    st.lists(st.text(st.characters(codec="ascii"), max_size=40), min_size=1, max_size=6), NAMES, st.booleans()
)
def test_seal(infos: list[str], seal: str, stamped: bool) -> None:
    made = request(len(infos) if len(infos) > 1 else 3, infos, seal=seal, reference=seal)
    if stamped:
        made = made._replace(flags=made.flags | seals.SealFlag.TIME_STAMP)
    assert plain(seals.decode_seal(payload_of(seals.encode_seal(9, made)))) == made


@st.composite
def answers(draw: st.DrawFn) -> tuple[seals.SealedAnswer, list[tuple[ItemStatus, bytes]]]:
    body, suffix = draw(st.binary(max_size=40)), draw(st.binary(max_size=20))
    records, pieces, values, failed = b"", b"", [], 0
    for status in draw(st.lists(st.sampled_from(ItemStatus), min_size=1, max_size=6)):
        if status is ItemStatus.SIGNED:
            head, middle, tail = (draw(st.binary(min_size=1, max_size=300)) for _ in range(3))
            head = head[:200]
            values.append((status, head + body + middle + suffix + tail))
        else:
            head, middle, tail, failed = b"", b"", b"", failed + 1
            values.append((status, b""))
        records += struct.pack("!BBHH", status, len(head), len(middle), len(tail))
        pieces += head + middle + tail
    job_id = draw(st.binary(min_size=16, max_size=16))
    first = draw(st.integers(0, 2**60))
    return seals.SealedAnswer(job_id, first, len(values), failed, body, suffix, records, pieces), values


@given(answers())
def test_sealed(made: tuple[seals.SealedAnswer, list[tuple[ItemStatus, bytes]]]) -> None:
    answer, values = made
    decoded = seals.decode_sealed(payload_of(seals.encode_sealed(9, answer)))
    assert plain(decoded) == answer
    assert list(decoded.values()) == values
    block = bytes(answer.records) + bytes(answer.pieces)
    assert seals.encode_sealed(9, answer._replace(records=b"", pieces=b""), block) == seals.encode_sealed(
        9, answer
    )


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_verify_seal(values: list[bytes]) -> None:
    lengths = struct.pack(f"!{len(values)}I", *map(len, values))
    made = seals.VerifySealRequest(7, bytes(32 * len(values)), lengths, b"".join(values))
    assert plain(seals.decode_verify_seal(payload_of(seals.encode_verify_seal(9, made)))) == made
    pieces = seals.verify_seal_pieces(9, 7, [bytes(32)] * len(values), values)
    assert b"".join(pieces) == seals.encode_verify_seal(9, made)
    assert all(piece is value for piece, value in zip(pieces[1:], values, strict=True)), "none is copied"


CHECKS = st.integers(0, sum(seals.SealCheck)).map(seals.SealCheck)


@given(
    st.lists(
        st.builds(seals.SealVerified, st.sampled_from(seals.SealVerdict), CHECKS, CHECKS, CHECKS),
        min_size=1,
        max_size=5,
    )
)
def test_seals_verified(items: list[seals.SealVerified]) -> None:
    decoded = seals.decode_seals_verified(payload_of(seals.encode_seals_verified(9, items)))
    assert decoded == items
    assert len({id(one) for one in decoded}) == len(set(items)), "records that are alike are read once"


def test_checks_and_flags_of_a_newer_server_are_left_out() -> None:
    verified = payload_of(
        seals.encode_seals_verified(
            9, [seals.SealVerified(seals.SealVerdict.GOOD, *[seals.SealCheck(0)] * 3)]
        )
    )
    newer = bytes(verified[:10]) + b"\x80\x01" + b"\x40\x00" + b"\x00\x00"
    assert seals.decode_seals_verified(newer)[0][1:] == (
        seals.SealCheck.FORMAT,
        seals.SealCheck(0),
        seals.SealCheck(0),
    )
    states = payload_of(
        seals.encode_seal_states(9, seals.SealNameKind.ID, [seals.SealStatusRecord(seals.SealState.ACTIVE)])
    )
    newer = bytes(states[:5]) + b"\x81" + bytes(states[6:])
    assert seals.decode_seal_states(newer)[0].flags == seals.SealStatusFlag.UNLOCKED


@given(st.sampled_from(seals.SealNameKind), st.lists(NAMES, min_size=1, max_size=5))
def test_seal_status(kind: seals.SealNameKind, names: list[str]) -> None:
    decoded = seals.decode_seal_status(payload_of(seals.encode_seal_status(9, kind, names)))
    assert decoded == (kind, names)


RECORDS = st.builds(
    seals.SealStatusRecord,
    st.sampled_from(seals.SealState),
    st.integers(0, sum(seals.SealStatusFlag)).map(seals.SealStatusFlag),
    U64,
    U64,
    U64,
    U64,
)


@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_seal_states(records: list[seals.SealStatusRecord]) -> None:
    frame = seals.encode_seal_states(9, seals.SealNameKind.CODE, records)
    assert seals.decode_seal_states(payload_of(frame)) == records


@given(NAMES, st.text(st.characters(codec="utf-8"), max_size=40), st.integers(0, 2**32 - 1))
def test_unlock(seal: str, password: str, seconds: int) -> None:
    made = seals.UnlockRequest(seal, password, seconds)
    assert seals.decode_unlock(payload_of(seals.encode_unlock(9, made))) == made


@given(U64)
def test_unlocked(expires_at: int) -> None:
    assert seals.decode_unlocked(payload_of(seals.encode_unlocked(9, expires_at))) == expires_at


# Limits -----------------------------------------------------------------------------------------------------

INFO = "i" * seals.MAX_PROPERTY_LEN
MOST = seals.MAX_PROPERTIES_LEN // seals.MAX_PROPERTY_LEN


@pytest.mark.parametrize(
    "made",
    [
        request(MAX_ITEMS, [INFO]),
        request(MOST, [INFO] * MOST),
        request(1, ["/"], reference="r" * seals.MAX_REFERENCE_LEN),
        request(
            seals.MAX_STAMPED_ITEMS, ["/"], flags=seals.SealFlag.ONE_PROPERTY | seals.SealFlag.TIME_STAMP
        ),
        request(1, ["/"], first_index=2**64 - 1),
    ],
    ids=lambda made: str(made.items),
)
def test_the_most_that_a_seal_may_ask_goes_through(made: seals.SealRequest) -> None:
    assert plain(seals.decode_seal(payload_of(seals.encode_seal(1, made)))) == made


@pytest.mark.parametrize(
    "made",
    [
        request(MAX_ITEMS + 1, ["/"]),
        request(0, ["/"]),
        request(MOST + 1, [INFO] * (MOST + 1)),
        request(1, ["/"], property_lengths=b"\4\1", properties=bytes(1025)),
        request(1, ["/"], properties=b"//"),
        request(3, ["/"], property_lengths=b"\0\0\0\1", properties=b"/"),
        request(3, ["/", "/"]),
        request(1, ["/"], reference="r" * (seals.MAX_REFERENCE_LEN + 1)),
        request(1, ["/"], seal=""),
        request(1, ["/"], seal="s" * 65),
        request(1, ["/"], hashes=bytes(33)),
        request(1, ["/"], job_id=bytes(15)),
        request(2, ["/"], first_index=2**64 - 1),
        request(
            seals.MAX_STAMPED_ITEMS + 1, ["/"], flags=seals.SealFlag.ONE_PROPERTY | seals.SealFlag.TIME_STAMP
        ),
    ],
)
def test_more_is_neither_sent_nor_taken(made: seals.SealRequest) -> None:
    with pytest.raises(ProtocolError):
        seals.encode_seal(1, made)


def test_a_property_info_is_ascii() -> None:
    with pytest.raises(ProtocolError, match="IA5String"):
        seals.properties(["/文"])
    with pytest.raises(ProtocolError, match="at most 1024"):
        seals.properties(["/" * 1025])


@pytest.mark.parametrize("count", [1, seals.MAX_SEAL_NAMES])
def test_so_many_names(count: int) -> None:
    frame = seals.encode_seal_status(1, seals.SealNameKind.ID, ["n" * 64] * count)
    assert len(seals.decode_seal_status(payload_of(frame)).names) == count


@pytest.mark.parametrize("count", [0, seals.MAX_SEAL_NAMES + 1])
def test_not_so_many_names(count: int) -> None:
    with pytest.raises(ProtocolError, match="seals, expected 1 to"):
        seals.encode_seal_status(1, seals.SealNameKind.ID, ["n"] * count)
    with pytest.raises(ProtocolError, match="seals, expected 1 to"):
        seals.decode_seal_status(struct.pack("!BBH", 0, 0, count) + b"\1n" * count)


@pytest.mark.parametrize("count", [0, seals.MAX_VERIFIED_SEALS + 1])
def test_not_so_many_values(count: int) -> None:
    made = seals.VerifySealRequest(0, bytes(32 * count), bytes(4 * count), b"")
    with pytest.raises(ProtocolError, match="expected 1 to 4096"):
        seals.encode_verify_seal(1, made)
    with pytest.raises(ProtocolError, match="expected 1 to 4096"):
        seals.decode_verify_seal(struct.pack("!II", 0, count) + bytes(36 * count))


def test_so_many_values() -> None:
    count = seals.MAX_VERIFIED_SEALS
    made = seals.VerifySealRequest(0, bytes(32 * count), bytes(4 * count), b"")
    assert seals.decode_verify_seal(payload_of(seals.encode_verify_seal(1, made))).items == count


def test_an_unlock_has_limits() -> None:
    for made in (
        seals.UnlockRequest("s", "p" * 1025, 1),
        seals.UnlockRequest("s", "p", 2**32),
        seals.UnlockRequest("", "p", 1),
    ):
        with pytest.raises(ProtocolError):
            seals.encode_unlock(1, made)
    longest = seals.UnlockRequest("s" * 64, "p" * 1024, 2**32 - 1)
    assert seals.decode_unlock(payload_of(seals.encode_unlock(1, longest))) == longest


def test_what_is_shared_has_a_limit() -> None:
    answer = seals.SealedAnswer(bytes(16), 0, 1, 1, bytes(seals.MAX_SHARED_LEN), b"", b"\2" + bytes(5), b"")
    assert seals.decode_sealed(payload_of(seals.encode_sealed(1, answer))).failed == 1
    with pytest.raises(ProtocolError, match="in common"):
        seals.decode_sealed(payload_of(seals.encode_sealed(1, answer._replace(suffix=b"x"))))


@pytest.mark.parametrize(
    "changes",
    [
        {"failed": 1},
        {"records": b"\1\0\0\0\0\0"},
        {"records": b"\3\0\0\0\0\0", "failed": 1, "pieces": b""},
        {"records": b"\0\2\0\0\0\0"},
        {"records": b"\0\0\1\0\0\0"},
        {"records": b"\0\0\0\0\0\2"},
        {"pieces": b"12"},
        {"count": 2},
        {"count": 0, "records": b"", "pieces": b""},
        {"first_index": 2**64 - 1, "count": 2, "records": b"\0\1\0\0\0\0" * 2, "pieces": b"12"},
    ],
)
def test_an_answer_that_lies_is_refused(changes: dict[str, Any]) -> None:
    good = seals.SealedAnswer(bytes(16), 0, 1, 0, b"b", b"s", b"\0\1\0\0\0\0", b"1")
    assert list(seals.decode_sealed(payload_of(seals.encode_sealed(1, good))).values())
    with pytest.raises(ProtocolError):
        seals.decode_sealed(payload_of(seals.encode_sealed(1, good._replace(**changes))))
