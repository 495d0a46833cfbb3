"""The codec: what is encoded is decoded, and bytes from a stranger parse or raise ProtocolError, nothing else."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance import wire, wire_seals
from appliance.algorithms import MAX_SPKI_LEN
from appliance.errors import ApplianceError, BadRequest, Busy, ProtocolError, WindowExceeded
from appliance.wire import (
    HEADER_LEN,
    MAX_ITEMS,
    Form,
    Frame,
    FrameReader,
    FrameType,
    Hello,
    Items,
    KeyKind,
    KeyRecord,
    KeyState,
    Priority,
    SignedAnswer,
    SignRequest,
    StatusKind,
    StatusRequest,
    VerifyRequest,
    Welcome,
)

U8, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 32))
REQUEST_IDS = st.integers(1, 2**64 - 1)
LIMIT = 1 << 25


def text(max_len: int, min_len: int = 0) -> st.SearchStrategy[str]:
    """UTF-8 text of that many bytes; the limits of the protocol count bytes, not characters."""
    characters = st.characters(codec="utf-8")
    return st.text(characters, min_size=min_len, max_size=max_len).filter(
        lambda value: min_len <= len(value.encode()) <= max_len
    )


NAMES = text(64, 1)


@st.composite
def items(draw: st.DrawFn) -> Items:
    if draw(st.booleans()):
        return wire.digests(draw(st.binary(min_size=32, max_size=32)) * draw(st.integers(1, 5)))
    return wire.messages(draw(st.lists(st.binary(max_size=50), min_size=1, max_size=5)))


@st.composite
def sign_requests(draw: st.DrawFn) -> SignRequest:
    block = draw(items())
    first_index = draw(st.integers(0, 2**64 - block.count))
    job_id = draw(st.binary(min_size=16, max_size=16))
    return SignRequest(job_id, first_index, draw(U32), draw(st.sampled_from(Priority)), draw(NAMES), block)


@st.composite
def verify_requests(draw: st.DrawFn) -> VerifyRequest:
    block = draw(items())
    kind = draw(st.sampled_from(KeyKind))
    key = draw(st.binary(min_size=1, max_size=64))
    return VerifyRequest(draw(U32), kind, key, draw(st.binary(min_size=64, max_size=64)) * block.count, block)


@st.composite
def signed_answers(draw: st.DrawFn) -> SignedAnswer:
    statuses = bytes(draw(st.lists(st.sampled_from((0, 1, 2)), min_size=1, max_size=5)))
    count = len(statuses)
    return SignedAnswer(
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.integers(0, 2**64 - count)),
        count,
        count - statuses.count(0),
        statuses,
        draw(st.binary(min_size=64, max_size=64)) * count,
    )


HELLOS = st.builds(Hello, st.integers(0, 1), st.integers(1, 255), NAMES, text(1_024))
WINDOWS = st.integers(1, 2**32 - 1)
WELCOMES = st.builds(Welcome, st.just(1), WINDOWS, WINDOWS, WINDOWS, text(64))
RECORDS = st.lists(
    st.builds(KeyRecord, NAMES, st.sampled_from(KeyState), U8, st.binary(max_size=100)), max_size=5
)


def payload_of(frame: bytes, type_: FrameType, request_id: int) -> memoryview:
    """The payload of exactly one frame; its header says what was meant."""
    length, number, flags, reserved, got_id = struct.unpack("!IBBHQ", frame[:HEADER_LEN])
    assert (number, flags, reserved, got_id) == (type_, 0, 0, request_id)
    assert length == len(frame) - HEADER_LEN
    return memoryview(frame)[HEADER_LEN:]


def plain(value: Any) -> Any:
    """Views as bytes, so that values compare."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(plain(one) for one in value))
    return value


# Round trips ------------------------------------------------------------------------------------------------


@given(HELLOS)
def test_hello(hello: Hello) -> None:
    assert wire.decode_hello(payload_of(wire.encode_hello(hello), FrameType.HELLO, 1)) == hello


@given(REQUEST_IDS, WELCOMES)
def test_welcome(request_id: int, welcome: Welcome) -> None:
    frame = wire.encode_welcome(request_id, welcome)
    assert wire.decode_welcome(payload_of(frame, FrameType.WELCOME, request_id)) == welcome


@given(st.text(st.characters(codec="utf-8"), max_size=100))
@example("x" + "章" * 30)
def test_a_long_server_name_is_cut_between_characters(server: str) -> None:
    frame = wire.encode_welcome(1, Welcome(1, 1, 1, 1, server))
    got = wire.decode_welcome(payload_of(frame, FrameType.WELCOME, 1)).server
    assert server.startswith(got) and (got == server or len(got.encode()) > 64 - 4)


@given(REQUEST_IDS, sign_requests())
def test_sign(request_id: int, request: SignRequest) -> None:
    frame = wire.encode_sign(request_id, request)
    assert plain(wire.decode_sign(payload_of(frame, FrameType.SIGN, request_id))) == request


@given(REQUEST_IDS, signed_answers())
def test_signed(request_id: int, answer: SignedAnswer) -> None:
    frame = wire.encode_signed(request_id, answer)
    assert plain(wire.decode_signed(payload_of(frame, FrameType.SIGNED, request_id))) == answer


@given(REQUEST_IDS, verify_requests())
def test_verify(request_id: int, request: VerifyRequest) -> None:
    frame = wire.encode_verify(request_id, request)
    assert plain(wire.decode_verify(payload_of(frame, FrameType.VERIFY, request_id))) == request


@given(REQUEST_IDS, st.lists(st.sampled_from((0, 1)), min_size=1, max_size=20).map(bytes))
def test_verified(request_id: int, statuses: bytes) -> None:
    frame = wire.encode_verified(request_id, statuses)
    assert wire.decode_verified(payload_of(frame, FrameType.VERIFIED, request_id)) == statuses


@given(REQUEST_IDS, st.lists(NAMES, max_size=5))
def test_status(request_id: int, names: list[str]) -> None:
    frame = wire.encode_status(request_id, StatusKind.KEYS, names)
    decoded = wire.decode_status(payload_of(frame, FrameType.STATUS, request_id))
    assert decoded == StatusRequest(StatusKind.KEYS, names)


def test_status_of_the_appliance() -> None:
    frame = wire.encode_status(9, StatusKind.APPLIANCE)
    decoded = wire.decode_status(payload_of(frame, FrameType.STATUS, 9))
    assert decoded == StatusRequest(StatusKind.APPLIANCE, [])


@given(REQUEST_IDS, RECORDS)
def test_key_records(request_id: int, records: list[KeyRecord]) -> None:
    frame = wire.encode_key_records(request_id, records)
    assert wire.decode_status_answer(payload_of(frame, FrameType.STATUS_ANSWER, request_id)) == records


@given(st.binary(max_size=100))
def test_appliance_status(document: bytes) -> None:
    frame = wire.encode_appliance_status(3, document)
    assert wire.decode_status_answer(payload_of(frame, FrameType.STATUS_ANSWER, 3)) == document


@given(st.binary(max_size=64))
def test_ping(echo: bytes) -> None:
    assert wire.check_echo(payload_of(wire.encode_ping(5, echo), FrameType.PING, 5)) == echo


@given(st.integers(0, 2**64 - 1), text(300), text(300), U32)
def test_error(request_id: int, detail: str, hint: str, retry_after_ms: int) -> None:
    frame = wire.encode_error(request_id, Busy(detail, hint=hint, retry_after_ms=retry_after_ms))
    answer = wire.decode_error(payload_of(frame, FrameType.ERROR, request_id))
    assert answer == wire.ErrorAnswer(Busy.wire_code, retry_after_ms, detail, hint)


@given(st.text(max_size=2_000), st.text(max_size=2_000), st.integers(0, 2**40))
def test_any_text_makes_a_whole_error_frame(detail: str, hint: str, retry_after_ms: int) -> None:
    """Lone surrogates (from file names) and long texts too: what tells a failure must not fail itself."""
    frame = wire.encode_error(1, Busy(detail, hint=hint, retry_after_ms=retry_after_ms))
    answer = wire.decode_error(payload_of(frame, FrameType.ERROR, 1))
    assert len(answer.detail.encode()) <= 1_024 and len(answer.hint.encode()) <= 1_024
    assert answer.retry_after_ms == min(retry_after_ms, 2**32 - 1)


def test_goaway() -> None:
    assert len(payload_of(wire.encode_goaway(), FrameType.GOAWAY, 0)) == 0


# Encoders refuse what decoders refuse -----------------------------------------------------------------------

DIGEST = wire.digests(bytes(32))
SIGN = SignRequest(bytes(16), 0, 0, Priority.AUTOMATIC, "key", DIGEST)
VERIFY = VerifyRequest(0, KeyKind.NAME, b"key", bytes(64), DIGEST)


@pytest.mark.parametrize(
    "encode",
    [
        lambda: wire.encode_sign(1, SIGN._replace(job_id=bytes(15))),
        lambda: wire.encode_sign(1, SIGN._replace(job_id=bytes(17))),
        lambda: wire.encode_sign(1, SIGN._replace(first_index=2**64)),
        lambda: wire.encode_sign(1, SIGN._replace(first_index=-1)),
        lambda: wire.encode_sign(1, SIGN._replace(first_index=2**64 - 1, items=wire.digests(bytes(64)))),
        lambda: wire.encode_sign(1, SIGN._replace(key="")),
        lambda: wire.encode_sign(1, SIGN._replace(key="章" * 22)),
        lambda: wire.encode_sign(1, SIGN._replace(key="\udcff")),
        lambda: wire.encode_sign(1, SIGN._replace(items=wire.digests(b""))),
        lambda: wire.encode_sign(1, SIGN._replace(items=wire.digests(bytes(32 * (MAX_ITEMS + 1))))),
        lambda: wire.encode_sign(1, SIGN._replace(items=Items(Form.DIGESTS, 2, b"", bytes(32)))),
        lambda: wire.encode_sign(1, SIGN._replace(items=Items(Form.MESSAGES, 1, b"\0\0\0\2", b"a"))),
        lambda: wire.encode_sign(1, SIGN._replace(items=Items(Form.MESSAGES, 2, b"\0\0\0\1", b"a"))),
        lambda: wire.encode_verify(1, VERIFY._replace(signatures=bytes(63))),
        lambda: wire.encode_verify(1, VERIFY._replace(key=b"")),
        lambda: wire.encode_verify(1, VERIFY._replace(key=bytes(65))),
        lambda: wire.encode_verify(1, VERIFY._replace(items=wire.messages([]))),
        lambda: wire.encode_verify(1, VERIFY._replace(items=Items(Form.DIGESTS, 1, b"", bytes(31)))),
        lambda: wire.encode_verify(1, VERIFY._replace(key_kind=KeyKind.SPKI, key=bytes(MAX_SPKI_LEN + 1))),
        lambda: wire.encode_verify(1, VERIFY._replace(key_kind=KeyKind.CERTIFICATE, key=bytes(65_536))),
        lambda: wire.encode_status(1, StatusKind.KEYS, ["x"] * 1_025),
        lambda: wire.encode_status(1, StatusKind.APPLIANCE, ["x"]),
        lambda: wire.encode_status(1, StatusKind.KEYS, [""]),
        lambda: wire.encode_hello(Hello(1, 1, "", "")),
        lambda: wire.encode_hello(Hello(1, 1, "x" * 65, "")),
        lambda: wire.encode_hello(Hello(1, 1, "x", "p" * 1_025)),
        lambda: wire.encode_hello(Hello(1, 1, "x", "\udcff")),
        lambda: wire.encode_ping(1, bytes(65)),
        lambda: wire.digests(bytes(33)),
        lambda: wire.encode_verified(1, b"\2"),
    ],
)
def test_what_would_break_the_peer_is_not_sent(encode: Callable[[], bytes]) -> None:
    """A frame that the peer must answer by closing takes every other request of the connection with it."""
    with pytest.raises(ProtocolError):
        encode()


def test_more_keys_than_an_answer_holds_is_an_answer_and_no_crash() -> None:
    """The count has two bytes. It is the request's fault, not the connection's: the session answers it."""
    record = KeyRecord("k", KeyState.USABLE, 1, b"")
    assert wire.encode_key_records(1, [record] * 65_535)
    with pytest.raises(BadRequest) as caught:
        wire.encode_key_records(1, (record for _ in range(65_536)))
    assert not isinstance(caught.value, ProtocolError) and caught.value.hint


# Limits at the limit ----------------------------------------------------------------------------------------


def test_65536_items_go_through_and_one_more_does_not() -> None:
    block = bytes(32 * MAX_ITEMS)
    frame = wire.encode_sign(1, SIGN._replace(items=wire.digests(block), first_index=2**64 - MAX_ITEMS))
    decoded = wire.decode_sign(memoryview(frame)[HEADER_LEN:])
    assert decoded.items.count == MAX_ITEMS and decoded.items.data == block
    payload = bytearray(frame[HEADER_LEN:]) + bytes(32)
    struct.pack_into("!I", payload, 28, MAX_ITEMS + 1)
    with pytest.raises(ProtocolError, match="65537 items"):
        wire.decode_sign(payload)


def test_65536_empty_messages() -> None:
    frame = wire.encode_sign(1, SIGN._replace(items=wire.messages([b""] * MAX_ITEMS)))
    assert wire.decode_sign(memoryview(frame)[HEADER_LEN:]).items.count == MAX_ITEMS


def test_lengths_that_overflow_32_bits_when_added_do_not_wrap() -> None:
    lengths = b"\xff" * 8
    payload = struct.pack("!16sQIIBBBB", bytes(16), 0, 0, 2, 1, 0, 1, 0) + b"k" + lengths + bytes(100)
    with pytest.raises(ProtocolError, match=str(2 * (2**32 - 1))):
        wire.decode_sign(payload)


@pytest.mark.parametrize("name", ["x", "x" * 64, "章" * 21 + "x"])
def test_names_up_to_64_bytes(name: str) -> None:
    frame = wire.encode_sign(1, SIGN._replace(key=name))
    assert wire.decode_sign(memoryview(frame)[HEADER_LEN:]).key == name


def test_the_largest_hello_fits_what_a_stranger_may_send() -> None:
    frame = wire.encode_hello(Hello(1, 1, "x" * 64, "p" * 1_024))
    assert len(frame) - HEADER_LEN <= wire.MAX_HELLO_PAYLOAD_LEN


def test_1024_names_and_none_more() -> None:
    names = ["x" * 64] * 1_024
    payload = wire.encode_status(1, StatusKind.KEYS, names)[HEADER_LEN:]
    assert wire.decode_status(payload).names == names
    longer = bytearray(payload) + b"\1x"
    struct.pack_into("!H", longer, 2, 1_025)
    with pytest.raises(ProtocolError, match="1025 names"):
        wire.decode_status(longer)


# "Parses or raises ProtocolError, nothing else" -------------------------------------------------------------

DECODERS: dict[FrameType, Callable[[wire.Buffer], Any]] = {
    FrameType.HELLO: wire.decode_hello,
    FrameType.WELCOME: wire.decode_welcome,
    FrameType.SIGN: wire.decode_sign,
    FrameType.SIGNED: wire.decode_signed,
    FrameType.VERIFY: wire.decode_verify,
    FrameType.VERIFIED: wire.decode_verified,
    FrameType.STATUS: wire.decode_status,
    FrameType.STATUS_ANSWER: wire.decode_status_answer,
    FrameType.PING: wire.check_echo,
    FrameType.PONG: wire.check_echo,
    FrameType.ERROR: wire.decode_error,
    FrameType.SEAL: wire_seals.decode_seal,
    FrameType.SEALED: wire_seals.decode_sealed,
    FrameType.VERIFY_SEAL: wire_seals.decode_verify_seal,
    FrameType.SEALS_VERIFIED: wire_seals.decode_seals_verified,
    FrameType.SEAL_STATUS: wire_seals.decode_seal_status,
    FrameType.SEAL_STATUS_ANSWER: wire_seals.decode_seal_states,
    FrameType.UNLOCK: wire_seals.decode_unlock,
    FrameType.UNLOCKED: wire_seals.decode_unlocked,
}
SEAL = wire_seals.SealRequest(
    bytes(range(16)),
    7,
    1_000,
    Priority.BULK,
    wire_seals.SealFlag(0),
    "seal-1",
    "OA-2026-17",
    bytes(96),
    *wire_seals.properties(["/a", "/Doc_0/Signs/Sign_0/Signature.xml", ""]),
)
VERIFIED = wire_seals.SealVerified(
    wire_seals.SealVerdict.INVALID,
    wire_seals.SealCheck.DATA_HASH,
    wire_seals.SealCheck.STATUS,
    wire_seals.SealCheck(0),
)
GOOD = wire_seals.SealVerified(wire_seals.SealVerdict.GOOD, *[wire_seals.SealCheck(0)] * 3)
STATE = wire_seals.SealStatusRecord(
    wire_seals.SealState.ACTIVE, wire_seals.SealStatusFlag.UNLOCKED, 1, 2, 3, 4
)
EXAMPLES: dict[FrameType, list[bytes]] = {
    FrameType.HELLO: [wire.encode_hello(Hello(1, 1, "approvals", "correct horse"))],
    FrameType.WELCOME: [wire.encode_welcome(1, Welcome(1, 256, 131_072, 1 << 24, "cloud-seal 0.1"))],
    FrameType.SIGN: [
        wire.encode_sign(1, SIGN._replace(items=wire.digests(bytes(96)))),
        wire.encode_sign(1, SIGN._replace(items=wire.messages([b"", b"a", b"bc"]))),
    ],
    FrameType.SIGNED: [wire.encode_signed(1, SignedAnswer(bytes(16), 5, 3, 2, b"\0\1\2", bytes(192)))],
    FrameType.VERIFY: [
        wire.encode_verify(1, VERIFY),
        wire.encode_verify(1, VERIFY._replace(items=wire.messages([b"abc"]), key_kind=KeyKind.SPKI)),
    ],
    FrameType.VERIFIED: [wire.encode_verified(1, b"\1\0\1")],
    FrameType.STATUS: [wire.encode_status(1, StatusKind.KEYS, ["a", "bc"])],
    FrameType.STATUS_ANSWER: [wire.encode_key_records(1, [KeyRecord("k", KeyState.USABLE, 1, b"spki")] * 2)],
    FrameType.PING: [wire.encode_ping(1, b"echo")],
    FrameType.PONG: [wire.encode_frame(FrameType.PONG, 1, b"echo")],
    FrameType.ERROR: [wire.encode_error(1, Busy("full", hint="wait", retry_after_ms=5))],
    FrameType.SEAL: [
        wire_seals.encode_seal(1, SEAL),
        wire_seals.encode_seal(
            1,
            SEAL._replace(
                flags=wire_seals.SealFlag.ONE_PROPERTY, property_lengths=b"\0\4", properties=b"/Doc"
            ),
        ),
    ],
    FrameType.SEALED: [
        wire_seals.encode_sealed(
            1,
            wire_seals.SealedAnswer(
                bytes(16), 5, 2, 1, b"body", b"suffix", b"\0\1\0\2\0\3\2\0\0\0\0\0", b"123456"
            ),
        )
    ],
    FrameType.VERIFY_SEAL: [
        wire_seals.encode_verify_seal(
            1, wire_seals.VerifySealRequest(9, bytes(64), b"\0\0\0\1\0\0\0\2", b"abc")
        )
    ],
    FrameType.SEALS_VERIFIED: [wire_seals.encode_seals_verified(1, [VERIFIED, GOOD])],
    FrameType.SEAL_STATUS: [wire_seals.encode_seal_status(1, wire_seals.SealNameKind.CODE, ["a", "bc"])],
    FrameType.SEAL_STATUS_ANSWER: [wire_seals.encode_seal_states(1, wire_seals.SealNameKind.ID, [STATE] * 2)],
    FrameType.UNLOCK: [wire_seals.encode_unlock(1, wire_seals.UnlockRequest("seal-1", "secret", 600))],
    FrameType.UNLOCKED: [wire_seals.encode_unlocked(1, 1_800_000_000)],
}
CASES = [(type_, example[HEADER_LEN:]) for type_, examples in EXAMPLES.items() for example in examples]
IDS = [f"{type_.name}-{len(payload)}" for type_, payload in CASES]


def parses_or_refuses(type_: FrameType, payload: bytes) -> None:
    try:
        DECODERS[type_](payload)
    except ProtocolError as error:
        assert error.detail
    # And the view that the server has of the same bytes means the same.
    views = (memoryview(payload), memoryview(b"##" + payload)[2:], bytearray(payload))
    outcomes = []
    for view in views:
        try:
            outcomes.append(plain(DECODERS[type_](view)))
        except ProtocolError as error:
            outcomes.append(error.detail)
    assert outcomes[0] == outcomes[1] and type(outcomes[0]) is type(outcomes[2])


def test_every_type_with_a_payload_has_its_decoder_here() -> None:
    assert set(DECODERS) == set(EXAMPLES) == set(FrameType) - {FrameType.GOAWAY}


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=300))
def test_random_bytes(type_: FrameType, payload: bytes) -> None:
    parses_or_refuses(type_, payload)


@given(st.sampled_from(CASES), st.data())
def test_mutated_frames(case: tuple[FrameType, bytes], data: st.DataObject) -> None:
    type_, payload = case
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        match data.draw(st.sampled_from(("set", "delete", "insert"))):
            case "set" if at < len(mutated):
                mutated[at] = data.draw(st.sampled_from((0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF)))
            case "delete":
                del mutated[at : at + data.draw(st.integers(1, 8))]
            case _:
                mutated[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    parses_or_refuses(type_, bytes(mutated))


@pytest.mark.parametrize(("type_", "payload"), CASES, ids=IDS)
def test_truncated_at_every_byte(type_: FrameType, payload: bytes) -> None:
    text_at_the_end = {FrameType.WELCOME, FrameType.PING, FrameType.PONG}
    for end in range(len(payload)):
        parses_or_refuses(type_, payload[:end])
        if type_ not in text_at_the_end:
            with pytest.raises(ProtocolError):
                DECODERS[type_](payload[:end])


@pytest.mark.parametrize(("type_", "payload"), CASES, ids=IDS)
def test_trailing_bytes(type_: FrameType, payload: bytes) -> None:
    if type_ in (FrameType.PING, FrameType.PONG, FrameType.WELCOME):
        payload += bytes(64 - len(payload) % 64)  # these end in free bytes, up to a limit
    with pytest.raises(ProtocolError):
        DECODERS[type_](payload + bytes(64))


def fields(type_: FrameType) -> list[tuple[int, int]]:
    """Offset and size of every field in the fixed part."""
    layout = {
        FrameType.HELLO: wire._HELLO,
        FrameType.SIGN: wire._SIGN,
        FrameType.SIGNED: wire._SIGNED,
        FrameType.VERIFY: wire._VERIFY,
        FrameType.VERIFIED: wire._VERIFIED,
        FrameType.STATUS: wire._STATUS,
        FrameType.STATUS_ANSWER: wire._STATUS,
        FrameType.ERROR: wire._ERROR,
        FrameType.SEAL: wire_seals._SEAL,
        FrameType.SEALED: wire_seals._SEALED,
        FrameType.VERIFY_SEAL: wire_seals._VERIFY_SEAL,
        FrameType.SEALS_VERIFIED: wire_seals._SEALS_VERIFIED,
        FrameType.SEAL_STATUS: wire_seals._SEAL_STATUS,
        FrameType.SEAL_STATUS_ANSWER: wire_seals._SEAL_STATUS,
        FrameType.UNLOCK: wire_seals._UNLOCK,
        FrameType.UNLOCKED: wire_seals._UNLOCKED,
    }[type_]
    sizes = {"B": 1, "H": 2, "I": 4, "Q": 8, "8s": 8, "16s": 16}
    result, at = [], 0
    rest = layout.format.removeprefix("!")
    while rest:
        code = next(code for code in ("16s", "8s", "B", "H", "I", "Q") if rest.startswith(code))
        result.append((at, sizes[code]))
        at, rest = at + sizes[code], rest.removeprefix(code)
    return result


FREE = {  # fields that promise nothing: any value is a value
    FrameType.HELLO: {8, 9},  # versions: tried below
    FrameType.SIGN: {0, 16, 24, 33},  # job, index, deadline, priority
    FrameType.SIGNED: {0, 16},
    FrameType.VERIFY: {0, 9},  # deadline; any kind may have a key of that length
    FrameType.ERROR: {0, 8},
    FrameType.SEAL: {
        0,
        16,
        24,
        32,
        34,
        35,
    },  # as in SIGN; texts may end elsewhere, and the hashes begin there
    FrameType.SEALED: {0, 16, 32, 36},  # body and suffix are free bytes: tried below
    FrameType.VERIFY_SEAL: {0},
    FrameType.SEAL_STATUS: {0},
    FrameType.SEAL_STATUS_ANSWER: {0},
    FrameType.UNLOCK: {0},
    FrameType.UNLOCKED: {0},
}


@pytest.mark.parametrize(
    ("type_", "payload"),
    [case for case in CASES if case[0] not in (FrameType.WELCOME, FrameType.PING, FrameType.PONG)],
)
def test_every_length_that_lies_is_found(type_: FrameType, payload: bytes) -> None:
    for offset, size in fields(type_):
        if offset in FREE.get(type_, ()):
            continue
        truth = int.from_bytes(payload[offset : offset + size], "big")
        for lie in {truth + 1, truth - 1, truth + 32, 0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)} - {
            truth,
            -1,
        }:
            lying = payload[:offset] + lie.to_bytes(size, "big") + payload[offset + size :]
            with pytest.raises(ProtocolError):
                DECODERS[type_](lying)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 2), (2, 1), (2, 255), (255, 0)])
def test_versions_without_ours(low: int, high: int) -> None:
    payload = wire.encode_hello(Hello(low, high, "a", ""))[HEADER_LEN:]
    with pytest.raises(ProtocolError, match=f"versions {low} to {high}"):
        wire.decode_hello(payload)


@pytest.mark.parametrize(
    "answer",
    [
        SignedAnswer(bytes(16), 0, 2, 0, b"\0\1", bytes(128)),  # a failure that is not counted
        SignedAnswer(bytes(16), 0, 2, 1, b"\0\0", bytes(128)),  # a failure that is none
        SignedAnswer(bytes(16), 0, 2, 1, b"\0\3", bytes(128)),  # a status that nobody knows
        SignedAnswer(bytes(16), 2**64 - 1, 2, 0, b"\0\0", bytes(128)),  # beyond the last index
    ],
)
def test_an_answer_whose_counts_lie_is_refused(answer: SignedAnswer) -> None:
    """The client looks at ``failed`` alone: were it wrong, 64 zero bytes would pass for a signature."""
    payload = wire._SIGNED.pack(*answer[:4]) + bytes(answer.statuses) + bytes(answer.signatures)
    with pytest.raises(ProtocolError):
        wire.decode_signed(payload)


# FrameReader ------------------------------------------------------------------------------------------------


def read(reader: FrameReader) -> list[Frame]:
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    return frames


def copied(frames: list[Frame]) -> list[tuple[FrameType, int, bytes]]:
    return [(frame.type, frame.request_id, bytes(frame.payload)) for frame in frames]


STREAMS = st.lists(
    st.tuples(st.sampled_from(FrameType), st.integers(0, 2**64 - 1), st.binary(max_size=200)), max_size=8
)


def stream_of(frames: list[tuple[FrameType, int, bytes]]) -> bytes:
    return b"".join(wire.encode_frame(*frame) for frame in frames)


@given(STREAMS)
def test_a_stream_at_once(frames: list[tuple[FrameType, int, bytes]]) -> None:
    reader = FrameReader(LIMIT)
    reader.receive(stream_of(frames))
    assert copied(read(reader)) == frames
    assert reader.buffered == 0 and not reader.mid_frame


@given(STREAMS)
def test_a_stream_byte_by_byte(frames: list[tuple[FrameType, int, bytes]]) -> None:
    reader = FrameReader(LIMIT)
    got = []
    for byte in stream_of(frames):
        reader.receive(bytes((byte,)))
        got += read(reader)
    assert copied(got) == frames
    assert reader.buffered == 0 and not reader.mid_frame


@given(STREAMS, st.lists(st.integers(1, 90), min_size=1), st.booleans())
def test_a_stream_in_chunks(frames: list[tuple[FrameType, int, bytes]], sizes: list[int], lazy: bool) -> None:
    """Also when frames are only taken now and then, and all of them are kept: views stay what they were."""
    stream, reader, got, at, turn = stream_of(frames), FrameReader(LIMIT), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        reader.receive(stream[at : at + size])
        at, turn = at + size, turn + 1
        if not lazy or turn % 3 == 0:
            got += read(reader)
    got += read(reader)
    assert copied(got) == frames


def test_a_frame_and_a_bit_more() -> None:
    reader = FrameReader(LIMIT)
    reader.receive(wire.encode_ping(1, b"a") + wire.encode_ping(2, b"b")[:-1])
    assert copied(read(reader)) == [(FrameType.PING, 1, b"a")]
    assert reader.mid_frame and reader.buffered == 0
    reader.receive(b"b")
    assert copied(read(reader)) == [(FrameType.PING, 2, b"b")]
    assert not reader.mid_frame


def test_kept_views_do_not_hinder_a_growing_buffer() -> None:
    """Resizing a bytearray that has been lent out raises BufferError."""
    reader = FrameReader(LIMIT)
    kept = []
    stream = wire.encode_frame(FrameType.SIGN, 1, b"x" * 1_000) * 3
    for at in range(0, len(stream), 300):
        reader.receive(stream[at : at + 300])
        kept += read(reader)
    assert [bytes(frame.payload) for frame in kept] == [b"x" * 1_000] * 3


@pytest.mark.parametrize("number", sorted(set(range(256)) - set(FrameType)))
def test_unknown_types(number: int) -> None:
    reader = FrameReader(LIMIT)
    reader.receive(struct.pack("!IBBHQ", 0, number, 0, 0, 1))
    with pytest.raises(ProtocolError, match=f"type {number}"):
        reader.next_frame()


@pytest.mark.parametrize(("flags", "reserved"), [(1, 0), (128, 0), (0, 1), (0, 0x8000), (255, 65_535)])
def test_flags_and_reserved_bytes(flags: int, reserved: int) -> None:
    reader = FrameReader(LIMIT)
    reader.receive(struct.pack("!IBBHQ", 0, FrameType.PING, flags, reserved, 1))
    with pytest.raises(ProtocolError, match="must be 0"):
        reader.next_frame()


def test_a_length_is_checked_before_anything_of_it_is_there() -> None:
    reader = FrameReader(100)
    reader.receive(struct.pack("!IBBHQ", 101, FrameType.PING, 0, 0, 1))
    with pytest.raises(ProtocolError, match="101 bytes is over the limit of 100"):
        reader.next_frame()
    reader = FrameReader(100)
    reader.receive(wire.encode_frame(FrameType.SIGN, 1, bytes(100)))
    assert len(read(reader)) == 1


def test_the_limit_can_be_raised_between_frames() -> None:
    reader = FrameReader(10)
    reader.receive(
        wire.encode_frame(FrameType.SIGN, 1, bytes(10)) + wire.encode_frame(FrameType.SIGN, 2, bytes(11))
    )
    assert reader.next_frame() is not None
    reader.max_payload_len = 11
    assert reader.next_frame() is not None


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1))
def test_a_reader_parses_or_refuses(stream: bytes, sizes: list[int]) -> None:
    reader, at, turn = FrameReader(64), 0, 0
    try:
        while at < len(stream):
            size = sizes[turn % len(sizes)]
            reader.receive(stream[at : at + size])
            at, turn = at + size, turn + 1
            read(reader)
            assert reader.buffered <= HEADER_LEN + 64, "no more is kept than one frame may have"
    except ProtocolError:
        pass


def test_a_long_frame_costs_what_arrived_and_not_what_it_announces() -> None:
    reader = FrameReader(1 << 30)
    reader.receive(struct.pack("!IBBHQ", 1 << 30, FrameType.SIGN, 0, 0, 1))
    assert reader.next_frame() is None
    held = 0
    for _ in range(64):
        reader.receive(bytes(1_000))
        held += 1_000
        assert reader.next_frame() is None
        assert sys.getsizeof(reader._buffer) <= 2 * held + 200


def test_a_short_frame_does_not_hold_the_chunk_it_came_in() -> None:
    """A kept view pins its whole buffer: 100 bytes with a permit for 100 bytes must not keep 256 KiB."""
    reader = FrameReader(LIMIT)
    small = wire.encode_frame(FrameType.SIGN, 1, bytes(100))
    reader.receive(small + wire.encode_ping(2) * 10_000)
    frame = reader.next_frame()
    assert frame is not None
    held = frame.payload.obj if isinstance(frame.payload, memoryview) else frame.payload
    assert len(held) <= 8 * 100
    large = wire.encode_frame(FrameType.SIGN, 1, bytes(100_000))
    reader = FrameReader(LIMIT)
    reader.receive(large + small)
    frame = reader.next_frame()
    assert frame is not None and isinstance(frame.payload, memoryview), "a large one is not copied"


# Permits ----------------------------------------------------------------------------------------------------


class Gate:
    """Admits while it is open, and remembers what it was asked."""

    def __init__(self) -> None:
        self.open = True
        self.asked: list[wire.Header] = []

    def __call__(self, header: wire.Header) -> bool:
        self.asked.append(header)
        return self.open


def test_a_permit_is_asked_for_once_with_the_header_and_before_the_payload() -> None:
    gate = Gate()
    reader = FrameReader(LIMIT, gate)
    frame = wire.encode_frame(FrameType.SIGN, 7, b"abc")
    reader.receive(frame[:HEADER_LEN])
    assert reader.next_frame() is None
    assert gate.asked == [wire.Header(3, FrameType.SIGN, 7)]
    for byte in frame[HEADER_LEN:]:
        assert reader.next_frame() is None
        reader.receive(bytes((byte,)))
    assert copied(read(reader)) == [(FrameType.SIGN, 7, b"abc")]
    assert len(gate.asked) == 1


def test_what_breaks_the_protocol_takes_no_permit() -> None:
    gate = Gate()
    reader = FrameReader(10, gate)
    reader.receive(struct.pack("!IBBHQ", 11, FrameType.PING, 0, 0, 1))
    with pytest.raises(ProtocolError):
        reader.next_frame()
    assert not gate.asked


def test_a_blocked_reader_hands_out_nothing_and_loses_nothing() -> None:
    gate = Gate()
    reader = FrameReader(LIMIT, gate)
    stream = stream_of([(FrameType.PING, 1, b"a"), (FrameType.PING, 2, b"bb"), (FrameType.PING, 3, b"")])
    reader.receive(stream[:20])
    assert copied(read(reader)) == [(FrameType.PING, 1, b"a")]
    gate.open = False
    reader.receive(stream[20:40])
    assert reader.next_frame() is None and reader.blocked
    reader.receive(stream[40:])
    assert reader.next_frame() is None, "still blocked, whatever arrives"
    assert len(gate.asked) == 2, "and the question is not asked again"
    assert reader.mid_frame
    gate.open = True
    reader.unblock()
    assert copied(read(reader)) == [(FrameType.PING, 2, b"bb"), (FrameType.PING, 3, b"")]
    assert [header.request_id for header in gate.asked] == [1, 2, 3]


@given(STREAMS, st.lists(st.integers(1, 60), min_size=1), st.lists(st.booleans(), min_size=1))
def test_permits_change_when_frames_come_and_not_what_comes(
    frames: list[tuple[FrameType, int, bytes]], sizes: list[int], answers: list[bool]
) -> None:
    asked: list[wire.Header] = []

    def admit(header: wire.Header) -> bool:
        asked.append(header)
        return answers[len(asked) % len(answers)]

    stream, reader, got, at, turn = stream_of(frames), FrameReader(LIMIT, admit), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        reader.receive(stream[at : at + size])
        at, turn = at + size, turn + 1
        got += read(reader)
        if reader.blocked and turn % 2:
            reader.unblock()
    while True:
        got += read(reader)
        if not reader.blocked:
            break
        reader.unblock()
    assert copied(got) == frames
    assert [(header.type, header.payload_len) for header in asked] == [
        (one[0], len(one[2])) for one in frames
    ]


def test_window_exceeded_is_told_as_itself() -> None:
    answer = wire.decode_error(wire.encode_error(0, WindowExceeded("too much"))[HEADER_LEN:])
    assert answer.code == WindowExceeded.wire_code != ProtocolError.wire_code
    assert issubclass(WindowExceeded, ApplianceError)
