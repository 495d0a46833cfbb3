"""The wire protocol's codec, without I/O. ``PROTOCOL.md`` beside this file is its specification.

For: frames to values and values to frames, on both sides of a connection.
Not for: sockets, clocks, who may do what (``session``, ``policy``); frames about seals (``wire_seals``).

Rules:

* Every decoder takes a whole payload and either returns a value or raises ``ProtocolError``; nothing else.
* A block of items stays one buffer: decoders return ``memoryview`` slices, encoders take whatever has a buffer.
* A length is checked against its limit before anything of that length is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from appliance.algorithms import DIGEST_LEN, MAX_CERTIFICATE_LEN, MAX_SPKI_LEN, SIGNATURE_LEN
from appliance.errors import ApplianceError, BadRequest, ProtocolError

VERSION: Final = 1
MAGIC: Final = b"CLDSEAL\0"

MAX_ITEMS: Final = 65_536
MAX_NAME_LEN: Final = 64
MAX_PASSWORD_LEN: Final = 1_024
MAX_PING_LEN: Final = 64
MAX_STATUS_NAMES: Final = 1_024
MAX_HELLO_PAYLOAD_LEN: Final = 4_096
MAX_ERROR_TEXT_LEN: Final = 1_024
MAX_KEY_RECORDS: Final = 65_535
JOB_ID_LEN: Final = 16
MIN_PAYLOAD_LIMIT: Final = MAX_ITEMS * (DIGEST_LEN + SIGNATURE_LEN) + MAX_CERTIFICATE_LEN + 4_096
"""What a server must take at least: MAX_ITEMS digests with their signatures, a key and a header."""

_HEADER: Final = struct.Struct("!IBBHQ")
_HELLO: Final = struct.Struct("!8sBBHBB")
_WELCOME: Final = struct.Struct("!BBHIII")
_SIGN: Final = struct.Struct("!16sQIIBBBB")
_SIGNED: Final = struct.Struct("!16sQII")
_VERIFY: Final = struct.Struct("!IIBBH")
_VERIFIED: Final = struct.Struct("!II")
_STATUS: Final = struct.Struct("!BBH")
_KEY_RECORD: Final = struct.Struct("!BBBH")
_ERROR: Final = struct.Struct("!HHHHI")
HEADER_LEN: Final = _HEADER.size
PINNED_RATIO: Final = 4
"""A payload is a view only where the buffer behind it is at most so many times as long: a permit counts payloads,
and a view pins a whole buffer. Copying what is shorter costs less than the frame's other work."""

Buffer = bytes | bytearray | memoryview
"""Whatever holds bytes; ``collections.abc.Buffer`` is Python 3.12's."""


class FrameType(IntEnum):
    """What a frame is. Below 64 the client sends it, above the server."""

    HELLO = 1
    SIGN = 2
    VERIFY = 3
    STATUS = 4
    PING = 5
    SEAL = 6
    VERIFY_SEAL = 7
    SEAL_STATUS = 8
    UNLOCK = 9
    WELCOME = 65
    SIGNED = 66
    VERIFIED = 67
    STATUS_ANSWER = 68
    PONG = 69
    ERROR = 70
    GOAWAY = 71
    SEALED = 72
    SEALS_VERIFIED = 73
    SEAL_STATUS_ANSWER = 74
    UNLOCKED = 75


class Form(IntEnum):
    """How the items of a request are written."""

    DIGESTS = 0
    MESSAGES = 1


class Priority(IntEnum):
    """How urgent a request is."""

    AUTOMATIC = 0
    INTERACTIVE = 1
    BULK = 2


class ItemStatus(IntEnum):
    """What became of one item of a SIGN."""

    SIGNED = 0
    REFUSED = 1
    FAILED = 2


class KeyKind(IntEnum):
    """How a VERIFY names its key."""

    NAME = 0
    SPKI = 1
    CERTIFICATE = 2


class StatusKind(IntEnum):
    """What a STATUS asks about."""

    KEYS = 0
    APPLIANCE = 1


class KeyState(IntEnum):
    """Whether a key can sign."""

    UNKNOWN = 0
    USABLE = 1
    DISABLED = 2
    UNAVAILABLE = 3


class Header(NamedTuple):
    """A frame's header; flags and reserved are checked and dropped."""

    payload_len: int
    type: FrameType
    request_id: int


class Frame(NamedTuple):
    """A whole frame. ``payload`` may be a view into a receive buffer: copy what you keep."""

    type: FrameType
    request_id: int
    payload: Buffer


class Hello(NamedTuple):
    """Who the client says it is."""

    min_version: int
    max_version: int
    account: str
    password: str


class Welcome(NamedTuple):
    """What the server grants."""

    version: int
    window_requests: int
    window_items: int
    max_payload_len: int
    server: str


class Items(NamedTuple):
    """A block of items: ``count`` × 32 bytes, or lengths (``count`` × u32, big endian) and data."""

    form: Form
    count: int  # type: ignore[assignment]  # nobody misses tuple.count
    lengths: Buffer
    data: Buffer


class SignRequest(NamedTuple):
    """A SIGN."""

    job_id: bytes
    first_index: int
    deadline_ms: int
    priority: Priority
    key: str
    items: Items


class SignedAnswer(NamedTuple):
    """A SIGNED: ``statuses`` has a byte, ``signatures`` 64 bytes an item."""

    job_id: bytes
    first_index: int
    count: int  # type: ignore[assignment]  # nobody misses tuple.count
    failed: int
    statuses: Buffer
    signatures: Buffer


class VerifyRequest(NamedTuple):
    """A VERIFY. ``key`` is a name in UTF-8 or DER, as ``key_kind`` says."""

    deadline_ms: int
    key_kind: KeyKind
    key: bytes
    signatures: Buffer
    items: Items


class KeyRecord(NamedTuple):
    """What a STATUS tells of one key. ``algorithm`` is 0 and ``spki`` empty where the key is unknown."""

    name: str
    state: KeyState
    algorithm: int
    spki: bytes


class StatusRequest(NamedTuple):
    """A STATUS."""

    kind: StatusKind
    names: list[str]


class ErrorAnswer(NamedTuple):
    """An ERROR."""

    code: int
    retry_after_ms: int
    detail: str
    hint: str


# Frames -----------------------------------------------------------------------------------------------------


def encode_frame(type_: FrameType, request_id: int, *parts: Buffer) -> bytes:
    """One frame of the parts given."""
    return b"".join((_HEADER.pack(sum(map(len, parts)), type_, 0, 0, request_id), *parts))


def encode_header(type_: FrameType, request_id: int, payload_len: int) -> bytes:
    """What a frame begins with, for whoever sends the payload in pieces."""
    return _HEADER.pack(payload_len, type_, 0, 0, request_id)


_TYPES: Final = {int(type_): type_ for type_ in FrameType}


class FrameReader:
    """Bytes in, frames out; both sides use it.

    ``admit`` is called once for each header, before any of the payload is kept. Where it returns False, the reader
    stops before that frame and ``blocked`` is set until ``unblock`` is called: this is how a permit is taken
    before a frame is read. ``receive`` still takes what was under way and keeps it, so whoever drives the reader
    must stop reading from the socket while it is blocked.

    A ``ProtocolError`` is final: the stream has lost its frame boundaries.
    """

    __slots__ = ("_admit", "_buffer", "_header", "_position", "blocked", "max_payload_len")

    def __init__(self, max_payload_len: int, admit: Callable[[Header], bool] | None = None) -> None:
        self.max_payload_len = max_payload_len
        self.blocked = False
        self._admit = admit
        self._header: Header | None = None  # parsed and admitted, its payload not yet complete
        self._buffer: bytes | bytearray = b""
        self._position = 0

    def receive(self, data: bytes) -> None:
        """Take what the socket gave."""
        if self._position == len(self._buffer):
            self._buffer = data  # the common case: no copy, frames are views into what was received
        elif isinstance(self._buffer, bytearray) and not self._position:
            self._buffer += data  # a large frame grows in place, as fast as it really arrives
        else:
            grown = bytearray(memoryview(self._buffer)[self._position :])
            grown += data
            self._buffer = grown
        self._position = 0

    @property
    def buffered(self) -> int:
        """How many bytes are held that are no whole frame yet."""
        return len(self._buffer) - self._position

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, not even a header."""
        return self._header is None and self._position == len(self._buffer)

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._header is not None or self.buffered > 0

    def unblock(self) -> None:
        """The permit is there: the frame that was held back may be read."""
        self.blocked = False

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None when more bytes (or a permit) are needed. ``ProtocolError`` is final."""
        if self.blocked:
            return None
        header = self._header
        if header is None:
            if len(self._buffer) - self._position < HEADER_LEN:
                return None
            header = self._parse_header()
            if self._admit is not None and not self._admit(header):
                self._header = header
                self.blocked = True
                return None
        end = self._position + header.payload_len
        if len(self._buffer) < end:
            self._header = header
            return None
        self._header = None
        payload: Buffer = memoryview(self._buffer)[self._position : end]
        if len(payload) * PINNED_RATIO < len(self._buffer):
            payload = bytes(payload)  # whoever keeps it must not keep all that came with it
        if end == len(self._buffer):
            self._buffer, self._position = b"", 0
        else:
            self._position = end
            if isinstance(self._buffer, bytearray):
                # The view must not pin a growing buffer (resizing one that is exported raises BufferError).
                self._buffer, self._position = bytes(memoryview(self._buffer)[end:]), 0
        return Frame(header.type, header.request_id, payload)

    def _parse_header(self) -> Header:
        payload_len, number, flags, reserved, request_id = _HEADER.unpack_from(self._buffer, self._position)
        type_ = _TYPES.get(number)
        if type_ is None:
            raise ProtocolError(f"unknown frame type {number}", hint="expected a type of protocol version 1")
        if flags or reserved:
            raise ProtocolError(f"flags and reserved bytes must be 0, got {flags} and {reserved}")
        if payload_len > self.max_payload_len:
            raise ProtocolError(
                f"a payload of {payload_len} bytes is over the limit of {self.max_payload_len}",
                hint="split the batch",
            )
        self._position += HEADER_LEN
        return Header(payload_len, type_, request_id)


def decode_text(data: Buffer, what: str) -> str:
    """Text, which is UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{what}: not UTF-8") from error


def decode_name(data: Buffer, what: str) -> str:
    """The inverse of ``encode_name``."""
    if not 1 <= len(data) <= MAX_NAME_LEN:
        raise ProtocolError(f"{what}: {len(data)} bytes, expected 1 to {MAX_NAME_LEN}")
    return decode_text(data, what)


def encode_text(text: str, what: str) -> bytes:
    """The inverse of ``decode_text``."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate: bytes from a terminal that were no UTF-8
        raise ProtocolError(f"{what}: not UTF-8") from error


def encode_name(name: str, what: str) -> bytes:
    """A name as the wire has it: 1 to 64 bytes of UTF-8."""
    encoded = encode_text(name, what)
    if not 1 <= len(encoded) <= MAX_NAME_LEN:
        raise ProtocolError(f"{what}: {len(encoded)} bytes, expected 1 to {MAX_NAME_LEN}")
    return encoded


# HELLO, WELCOME ---------------------------------------------------------------------------------------------


def encode_hello(hello: Hello) -> bytes:
    """A HELLO frame; it has request id 1, for it is the first request."""
    account = encode_name(hello.account, "account")
    password = encode_text(hello.password, "password")
    if len(password) > MAX_PASSWORD_LEN:
        raise ProtocolError(f"password: {len(password)} bytes, expected at most {MAX_PASSWORD_LEN}")
    head = _HELLO.pack(MAGIC, hello.min_version, hello.max_version, len(password), len(account), 0)
    return encode_frame(FrameType.HELLO, 1, head, account, password)


def decode_hello(payload: Buffer) -> Hello:
    """The inverse of ``encode_hello``, from the payload."""
    if len(payload) < _HELLO.size or bytes(payload[: len(MAGIC)]) != MAGIC:
        raise ProtocolError("HELLO: not the cloud-seal protocol", hint=f"expected the magic {MAGIC!r}")
    _, low, high, password_len, account_len, reserved = _HELLO.unpack_from(payload)
    if reserved:
        raise ProtocolError("HELLO: the reserved byte must be 0")
    if password_len > MAX_PASSWORD_LEN:
        raise ProtocolError(f"HELLO: password of {password_len} bytes, expected at most {MAX_PASSWORD_LEN}")
    if len(payload) != _HELLO.size + account_len + password_len:
        raise ProtocolError("HELLO: its lengths do not add up")
    if low > high or not low <= VERSION <= high:
        raise ProtocolError(f"HELLO: versions {low} to {high}", hint=f"this server speaks version {VERSION}")
    split = _HELLO.size + account_len
    account = decode_name(payload[_HELLO.size : split], "HELLO: account")
    return Hello(low, high, account, decode_text(payload[split:], "HELLO: password"))


def encode_welcome(request_id: int, welcome: Welcome) -> bytes:
    """A WELCOME frame."""
    head = _WELCOME.pack(
        welcome.version, 0, 0, welcome.window_requests, welcome.window_items, welcome.max_payload_len
    )
    return encode_frame(FrameType.WELCOME, request_id, head, _cut(welcome.server, MAX_NAME_LEN))


def decode_welcome(payload: Buffer) -> Welcome:
    """The inverse of ``encode_welcome``, from the payload."""
    if len(payload) > _WELCOME.size + MAX_NAME_LEN:
        raise ProtocolError(f"WELCOME: {len(payload)} bytes is too long")
    if len(payload) < _WELCOME.size:
        raise ProtocolError(f"WELCOME: {len(payload)} bytes, expected at least {_WELCOME.size}")
    version, zero, zeros, requests, items, limit = _WELCOME.unpack_from(payload)
    if zero or zeros or version != VERSION or not requests or not items or not limit:
        raise ProtocolError("WELCOME: a value out of range")
    return Welcome(version, requests, items, limit, decode_text(payload[_WELCOME.size :], "WELCOME: server"))


# Items ------------------------------------------------------------------------------------------------------


def digests(block: Buffer) -> Items:
    """Items from one contiguous block of 32-byte digests."""
    if len(block) % DIGEST_LEN:
        raise ProtocolError(f"digests: {len(block)} bytes is no multiple of {DIGEST_LEN}")
    return Items(Form.DIGESTS, len(block) // DIGEST_LEN, b"", block)


def messages(parts: Sequence[Buffer]) -> Items:
    """Items from messages that the server is to hash."""
    lengths = struct.pack(f"!{len(parts)}I", *map(len, parts))
    return Items(Form.MESSAGES, len(parts), lengths, b"".join(parts))


def check_count(count: int, what: str) -> None:
    """``ProtocolError`` for a batch of no items, or of too many."""
    if not 1 <= count <= MAX_ITEMS:
        raise ProtocolError(f"{what}: {count} items, expected 1 to {MAX_ITEMS}")


def _check_items(items: Items, what: str) -> None:
    """What a decoder would refuse is not sent: the peer would answer it by closing the connection."""
    check_count(items.count, what)
    if items.form is Form.DIGESTS:
        fits = not items.lengths and len(items.data) == items.count * DIGEST_LEN
    else:
        fits = len(items.lengths) == items.count * 4
        fits = fits and len(items.data) == sum(struct.unpack(f"!{items.count}I", items.lengths))
    if not fits:
        raise ProtocolError(f"{what}: the block of {items.count} items has another length")


def _decode_items(form_number: int, count: int, body: Buffer, what: str) -> Items:
    if form_number == Form.DIGESTS:
        if len(body) != count * DIGEST_LEN:
            raise ProtocolError(
                f"{what}: {len(body)} bytes of digests, expected {count} × {DIGEST_LEN} = {count * DIGEST_LEN}"
            )
        return Items(Form.DIGESTS, count, b"", body)
    if form_number != Form.MESSAGES:
        raise ProtocolError(f"{what}: unknown form {form_number}")
    split = count * 4
    if len(body) < split:
        raise ProtocolError(f"{what}: {len(body)} bytes do not hold {count} lengths")
    lengths = body[:split]
    total = sum(struct.unpack(f"!{count}I", lengths))
    if len(body) != split + total:
        raise ProtocolError(
            f"{what}: the messages have {len(body) - split} bytes, their lengths add up to {total}"
        )
    return Items(Form.MESSAGES, count, lengths, body[split:])


# SIGN, SIGNED -----------------------------------------------------------------------------------------------


def encode_sign(request_id: int, request: SignRequest) -> bytes:
    """A SIGN frame."""
    items = request.items
    _check_items(items, "SIGN")
    if len(request.job_id) != JOB_ID_LEN or not 0 <= request.first_index <= 2**64 - items.count:
        raise ProtocolError(f"SIGN: expected a job id of {JOB_ID_LEN} bytes and indices of 64 bits")
    key = encode_name(request.key, "SIGN: key")
    head = _SIGN.pack(
        request.job_id,
        request.first_index,
        request.deadline_ms,
        items.count,
        items.form,
        request.priority,
        len(key),
        0,
    )
    return encode_frame(FrameType.SIGN, request_id, head, key, items.lengths, items.data)


_PRIORITIES: Final = {int(priority): priority for priority in Priority}


def decode_sign(payload: Buffer) -> SignRequest:
    """The inverse of ``encode_sign``, from the payload. The items are views into it."""
    if len(payload) < _SIGN.size:
        raise ProtocolError(f"SIGN: {len(payload)} bytes, expected at least {_SIGN.size}")
    job_id, first_index, deadline_ms, count, form, priority, key_len, reserved = _SIGN.unpack_from(payload)
    if reserved or priority not in _PRIORITIES:
        raise ProtocolError("SIGN: priority out of range, or the reserved byte is not 0")
    check_count(count, "SIGN")
    if first_index + count > 2**64:
        raise ProtocolError("SIGN: the indices go beyond 64 bits")
    split = _SIGN.size + key_len
    key = decode_name(payload[_SIGN.size : split], "SIGN: key")
    items = _decode_items(form, count, payload[split:], "SIGN")
    return SignRequest(job_id, first_index, deadline_ms, _PRIORITIES[priority], key, items)


_ITEM_STATUSES: Final = bytes(ItemStatus)


def encode_signed(request_id: int, answer: SignedAnswer) -> bytes:
    """A SIGNED frame."""
    head = _SIGNED.pack(answer.job_id, answer.first_index, answer.count, answer.failed)
    return encode_frame(FrameType.SIGNED, request_id, head, answer.statuses, answer.signatures)


def decode_signed(payload: Buffer) -> SignedAnswer:
    """The inverse of ``encode_signed``, from the payload."""
    if len(payload) < _SIGNED.size:
        raise ProtocolError(f"SIGNED: {len(payload)} bytes, expected at least {_SIGNED.size}")
    job_id, first_index, count, failed = _SIGNED.unpack_from(payload)
    check_count(count, "SIGNED")
    if failed > count or len(payload) != _SIGNED.size + count * (1 + SIGNATURE_LEN):
        raise ProtocolError("SIGNED: its lengths do not add up")
    if first_index + count > 2**64:
        raise ProtocolError("SIGNED: the indices go beyond 64 bits")
    split = _SIGNED.size + count
    statuses = bytes(payload[_SIGNED.size : split])
    if statuses.count(ItemStatus.SIGNED) != count - failed or statuses.strip(_ITEM_STATUSES):
        raise ProtocolError("SIGNED: its statuses do not add up")
    return SignedAnswer(job_id, first_index, count, failed, statuses, payload[split:])


# VERIFY, VERIFIED -------------------------------------------------------------------------------------------

_KEY_LIMITS: Final = {
    KeyKind.NAME: MAX_NAME_LEN,
    KeyKind.SPKI: MAX_SPKI_LEN,
    KeyKind.CERTIFICATE: MAX_CERTIFICATE_LEN - 1,  # the field has two bytes
}


def encode_verify(request_id: int, request: VerifyRequest) -> bytes:
    """A VERIFY frame."""
    items = request.items
    _check_items(items, "VERIFY")
    if len(request.signatures) != items.count * SIGNATURE_LEN:
        raise ProtocolError(f"VERIFY: {items.count} items have {len(request.signatures)} bytes of signatures")
    if not 1 <= len(request.key) <= _KEY_LIMITS[request.key_kind]:
        raise ProtocolError(f"VERIFY: a key of {len(request.key)} bytes is over its limit")
    head = _VERIFY.pack(request.deadline_ms, items.count, items.form, request.key_kind, len(request.key))
    return encode_frame(
        FrameType.VERIFY, request_id, head, request.key, request.signatures, items.lengths, items.data
    )


def decode_verify(payload: Buffer) -> VerifyRequest:
    """The inverse of ``encode_verify``, from the payload."""
    if len(payload) < _VERIFY.size:
        raise ProtocolError(f"VERIFY: {len(payload)} bytes, expected at least {_VERIFY.size}")
    deadline_ms, count, form, kind_number, key_len = _VERIFY.unpack_from(payload)
    check_count(count, "VERIFY")
    try:
        kind = KeyKind(kind_number)
    except ValueError as error:
        raise ProtocolError(f"VERIFY: unknown key kind {kind_number}") from error
    if not 1 <= key_len <= _KEY_LIMITS[kind]:
        raise ProtocolError(f"VERIFY: a key of {key_len} bytes, expected 1 to {_KEY_LIMITS[kind]}")
    key_end = _VERIFY.size + key_len
    signatures_end = key_end + count * SIGNATURE_LEN
    if len(payload) < signatures_end:
        raise ProtocolError("VERIFY: its lengths do not add up")
    items = _decode_items(form, count, payload[signatures_end:], "VERIFY")
    key = bytes(payload[_VERIFY.size : key_end])
    return VerifyRequest(deadline_ms, kind, key, payload[key_end:signatures_end], items)


def encode_verified(request_id: int, statuses: bytes) -> bytes:
    """A VERIFIED frame from a byte an item: 1 valid, 0 not."""
    invalid = statuses.count(0)
    if invalid + statuses.count(1) != len(statuses):
        raise ProtocolError("VERIFIED: a status is neither 1 nor 0")
    head = _VERIFIED.pack(len(statuses), invalid)
    return encode_frame(FrameType.VERIFIED, request_id, head, statuses)


def decode_verified(payload: Buffer) -> bytes:
    """The inverse of ``encode_verified``, from the payload."""
    if len(payload) < _VERIFIED.size:
        raise ProtocolError(f"VERIFIED: {len(payload)} bytes, expected at least {_VERIFIED.size}")
    count, invalid = _VERIFIED.unpack_from(payload)
    check_count(count, "VERIFIED")
    statuses = bytes(payload[_VERIFIED.size :])
    if (
        len(statuses) != count
        or statuses.count(1) + statuses.count(0) != count
        or statuses.count(0) != invalid
    ):
        raise ProtocolError("VERIFIED: its counts do not add up")
    return statuses


# STATUS -----------------------------------------------------------------------------------------------------


def encode_status(request_id: int, kind: StatusKind, names: Sequence[str] = ()) -> bytes:
    """A STATUS frame."""
    if len(names) > MAX_STATUS_NAMES or (kind is StatusKind.APPLIANCE and names):
        raise ProtocolError(
            f"STATUS: {len(names)} names, expected at most {MAX_STATUS_NAMES}, none for APPLIANCE"
        )
    encoded = [encode_name(name, "STATUS: name") for name in names]
    parts = [part for name in encoded for part in (bytes((len(name),)), name)]
    return encode_frame(FrameType.STATUS, request_id, _STATUS.pack(kind, 0, len(names)), *parts)


def decode_status(payload: Buffer) -> StatusRequest:
    """The inverse of ``encode_status``, from the payload."""
    kind, count = _status_head(payload, "STATUS")
    if count > MAX_STATUS_NAMES or (kind is StatusKind.APPLIANCE and count):
        raise ProtocolError(f"STATUS: {count} names, expected at most {MAX_STATUS_NAMES}, none for APPLIANCE")
    names, position = [], _STATUS.size
    for _ in range(count):
        if position >= len(payload):
            raise ProtocolError("STATUS: fewer names than announced")
        end = position + 1 + payload[position]
        if end > len(payload):
            raise ProtocolError("STATUS: a name is cut short")
        names.append(decode_name(payload[position + 1 : end], "STATUS: name"))
        position = end
    if position != len(payload):
        raise ProtocolError("STATUS: trailing bytes")
    return StatusRequest(kind, names)


def _status_head(payload: Buffer, what: str) -> tuple[StatusKind, int]:
    if len(payload) < _STATUS.size:
        raise ProtocolError(f"{what}: {len(payload)} bytes, expected at least {_STATUS.size}")
    kind, reserved, count = _STATUS.unpack_from(payload)
    if reserved or kind not in (StatusKind.KEYS, StatusKind.APPLIANCE):
        raise ProtocolError(f"{what}: unknown kind {kind}, or the reserved byte is not 0")
    return StatusKind(kind), count


def encode_key_records(request_id: int, records: Iterable[KeyRecord]) -> bytes:
    """A STATUS_ANSWER frame about keys."""
    parts: list[bytes] = []
    count = 0
    for record in records:
        name = encode_name(record.name, "STATUS_ANSWER: name")
        parts.append(_KEY_RECORD.pack(record.state, record.algorithm, len(name), len(record.spki)))
        parts.extend((name, record.spki))
        count += 1
    if count > MAX_KEY_RECORDS:
        raise BadRequest(f"{count} keys are more than one answer holds", hint="ask for keys by name")
    return encode_frame(FrameType.STATUS_ANSWER, request_id, _STATUS.pack(StatusKind.KEYS, 0, count), *parts)


def encode_appliance_status(request_id: int, document: bytes) -> bytes:
    """A STATUS_ANSWER frame about the appliance; ``document`` is JSON."""
    return encode_frame(
        FrameType.STATUS_ANSWER, request_id, _STATUS.pack(StatusKind.APPLIANCE, 0, 0), document
    )


def decode_status_answer(payload: Buffer) -> list[KeyRecord] | bytes:
    """The records, or the JSON document, as asked."""
    kind, count = _status_head(payload, "STATUS_ANSWER")
    position = _STATUS.size
    if kind is StatusKind.APPLIANCE:
        if count:
            raise ProtocolError("STATUS_ANSWER: records where a document was announced")
        return bytes(payload[position:])
    records = []
    for _ in range(count):
        if position + _KEY_RECORD.size > len(payload):
            raise ProtocolError("STATUS_ANSWER: fewer records than announced")
        state, algorithm, name_len, spki_len = _KEY_RECORD.unpack_from(payload, position)
        name_at = position + _KEY_RECORD.size
        spki_at, end = name_at + name_len, name_at + name_len + spki_len
        if end > len(payload) or state > max(KeyState):
            raise ProtocolError("STATUS_ANSWER: a record is cut short or has an unknown state")
        name = decode_name(payload[name_at:spki_at], "STATUS_ANSWER: name")
        records.append(KeyRecord(name, KeyState(state), algorithm, bytes(payload[spki_at:end])))
        position = end
    if position != len(payload):
        raise ProtocolError("STATUS_ANSWER: trailing bytes")
    return records


# PING, ERROR, GOAWAY ----------------------------------------------------------------------------------------


def encode_ping(request_id: int, echo: bytes = b"") -> bytes:
    """A PING frame."""
    return encode_frame(FrameType.PING, request_id, check_echo(echo))


def check_echo(echo: Buffer) -> bytes:
    """The bytes of a PING or PONG: at most 64."""
    if len(echo) > MAX_PING_LEN:
        raise ProtocolError(f"PING: {len(echo)} bytes, expected at most {MAX_PING_LEN}")
    return bytes(echo)


def encode_error(request_id: int, error: ApplianceError) -> bytes:
    """An ERROR frame. Texts are cut: they are for people."""
    detail, hint = _cut(error.detail, MAX_ERROR_TEXT_LEN), _cut(error.hint, MAX_ERROR_TEXT_LEN)
    head = _ERROR.pack(error.wire_code, len(detail), len(hint), 0, min(error.retry_after_ms, 2**32 - 1))
    return encode_frame(FrameType.ERROR, request_id, head, detail, hint)


def _cut(text: str, max_len: int) -> bytes:
    """At most so many bytes of UTF-8, and no half character at the end."""
    return text.encode("utf-8", "replace")[:max_len].decode("utf-8", "ignore").encode()


def decode_error(payload: Buffer) -> ErrorAnswer:
    """The inverse of ``encode_error``, from the payload."""
    if len(payload) < _ERROR.size:
        raise ProtocolError(f"ERROR: {len(payload)} bytes, expected at least {_ERROR.size}")
    code, detail_len, hint_len, reserved, retry_after_ms = _ERROR.unpack_from(payload)
    if reserved or len(payload) != _ERROR.size + detail_len + hint_len:
        raise ProtocolError("ERROR: its lengths do not add up")
    split = _ERROR.size + detail_len
    detail = decode_text(payload[_ERROR.size : split], "ERROR: detail")
    return ErrorAnswer(code, retry_after_ms, detail, decode_text(payload[split:], "ERROR: hint"))


def encode_goaway() -> bytes:
    """A GOAWAY frame."""
    return encode_frame(FrameType.GOAWAY, 0)
