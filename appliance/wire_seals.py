"""The frames about seals: sealing and verifying by the batch, status in bulk, unlocking. See ``PROTOCOL.md``.

For: payloads to values and values to frames, on both sides, by the rules of ``wire``.
Not for: what a seal signature is made of (``eseal``), who may seal (``sealing``).

Rules:

* What all items of a batch have in common travels once. A value is ``head ‖ body ‖ middle ‖ suffix ‖ tail``: the body
  holds the seal with its picture, the suffix the certificate; only the three short pieces are an item's own.
* Lengths of two bytes, pieces one after the other: no decoder makes an object for an item.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from appliance.algorithms import DIGEST_LEN
from appliance.errors import ProtocolError
from appliance.wire import (
    JOB_ID_LEN,
    MAX_PASSWORD_LEN,
    Buffer,
    FrameType,
    ItemStatus,
    Priority,
    check_count,
    decode_name,
    decode_text,
    encode_frame,
    encode_header,
    encode_name,
    encode_text,
)

MAX_PROPERTY_LEN: Final = 1_024
MAX_PROPERTIES_LEN: Final = 8_388_608
MAX_REFERENCE_LEN: Final = 128
MAX_STAMPED_ITEMS: Final = 256
MAX_SHARED_LEN: Final = 2_097_152
MAX_VERIFIED_SEALS: Final = 4_096
MAX_SEAL_NAMES: Final = 1_024

_SEAL: Final = struct.Struct("!16sQIIBBBB")
_SEALED: Final = struct.Struct("!16sQIIII")
_VERIFY_SEAL: Final = struct.Struct("!II")
_SEALS_VERIFIED: Final = struct.Struct("!II")
_SEAL_STATUS: Final = struct.Struct("!BBH")
_UNLOCK: Final = struct.Struct("!IBBH")
_UNLOCKED: Final = struct.Struct("!Q")
_SEALED_RECORD: Final = struct.Struct("!BBHH")
_VERDICT_RECORD: Final = struct.Struct("!BBHHH")
_STATUS_RECORD: Final = struct.Struct("!BBHQQQQ")
SEALED_RECORD_LEN: Final = _SEALED_RECORD.size
_MAX_SECONDS: Final = 2**32 - 1


class SealFlag(IntFlag):
    """What a SEAL asks for besides."""

    ONE_PROPERTY = 1
    TIME_STAMP = 2


class SealVerdict(IntEnum):
    """What became of the verification of one seal signature."""

    INVALID = 0
    GOOD = 1
    GOOD_WHEN_SIGNED = 2
    INCOMPLETE = 3


class SealCheck(IntFlag):
    """The checks that a verdict is made of."""

    FORMAT = 1
    SEAL_SIGNATURE = 2
    MAKER_CERTIFICATE = 4
    SEAL_TIMESTAMP = 8
    SIGNATURE = 16
    SIGNER_LISTED = 32
    SIGNER_CERTIFICATE = 64
    TIMES = 128
    DATA_HASH = 256
    TIMESTAMP = 512
    STATUS = 1_024


class SealNameKind(IntEnum):
    """How a SEAL_STATUS names seals."""

    ID = 0
    CODE = 1


class SealState(IntEnum):
    """Where a seal stands in its life, as far as the account may know."""

    UNKNOWN = 0
    APPLIED = 1
    REFUSED = 2
    REVIEWED = 3
    MADE = 4
    FILED = 5
    ACTIVE = 6
    SUSPENDED = 7
    DORMANT = 8
    EXPIRED = 9
    CANCELLED = 10


class SealStatusFlag(IntFlag):
    """What else can be said of a seal."""

    UNLOCKED = 1
    PASSWORD_DUE = 2
    PASSWORD_OVERDUE = 4
    PASSWORD_LOCKED = 8


class SealRequest(NamedTuple):
    """A SEAL. ``hashes`` has 32 bytes an item; ``property_lengths`` 2 bytes, big endian: one for all, or one each."""

    job_id: bytes
    first_index: int
    deadline_ms: int
    priority: Priority
    flags: SealFlag
    seal: str
    reference: str
    hashes: Buffer
    property_lengths: Buffer
    properties: Buffer

    @property
    def items(self) -> int:
        """How many seal signatures are asked for."""
        return len(self.hashes) // DIGEST_LEN


class SealedAnswer(NamedTuple):
    """A SEALED: ``records`` has 6 bytes an item, ``pieces`` the three pieces of each, one after the other."""

    job_id: bytes
    first_index: int
    count: int  # type: ignore[assignment]  # nobody misses tuple.count
    failed: int
    body: Buffer
    suffix: Buffer
    records: Buffer
    pieces: Buffer

    def values(self) -> Iterator[tuple[ItemStatus, bytes]]:
        """Each item's status and complete DER ``SES_Signature``; empty where it failed."""
        at = 0
        body, suffix, pieces = bytes(self.body), bytes(self.suffix), memoryview(self.pieces)
        for status, head_len, middle_len, tail_len in _SEALED_RECORD.iter_unpack(self.records):
            middle_at, tail_at = at + head_len, at + head_len + middle_len
            end = tail_at + tail_len
            if status:
                yield ItemStatus(status), b""
            else:
                parts = (pieces[at:middle_at], body, pieces[middle_at:tail_at], suffix, pieces[tail_at:end])
                yield ItemStatus.SIGNED, b"".join(parts)
            at = end


class VerifySealRequest(NamedTuple):
    """A VERIFY_SEAL: 32 bytes of data hash, 4 bytes of length and a DER ``SES_Signature`` an item."""

    deadline_ms: int
    hashes: Buffer
    lengths: Buffer
    values: Buffer

    @property
    def items(self) -> int:
        """How many seal signatures are to be verified."""
        return len(self.hashes) // DIGEST_LEN


class SealVerified(NamedTuple):
    """One item of a SEALS_VERIFIED. What is in none of the sets has passed, or there was nothing to check."""

    verdict: SealVerdict
    failed: SealCheck
    undecided: SealCheck
    ended: SealCheck


class SealStatusRequest(NamedTuple):
    """A SEAL_STATUS."""

    kind: SealNameKind
    names: list[str]


class SealStatusRecord(NamedTuple):
    """What a SEAL_STATUS_ANSWER tells of one seal. Instants are seconds since 1970 UTC; 0: there is none."""

    state: SealState
    flags: SealStatusFlag = SealStatusFlag(0)
    valid_from: int = 0
    valid_to: int = 0
    unlocked_until: int = 0
    password_due_at: int = 0


class UnlockRequest(NamedTuple):
    """An UNLOCK; ``seconds`` 0 locks."""

    seal: str
    password: str
    seconds: int


def _at_least(payload: Buffer, layout: struct.Struct, what: str) -> None:
    if len(payload) < layout.size:
        raise ProtocolError(f"{what}: {len(payload)} bytes, expected at least {layout.size}")


def numbers(code: str, block: Buffer) -> array[int]:
    """Big-endian numbers of one size."""
    values = array(code, bytes(block))
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _check_indices(first_index: int, count: int, what: str) -> None:
    if first_index + count > 2**64:
        raise ProtocolError(f"{what}: the indices go beyond 64 bits")


# SEAL, SEALED -----------------------------------------------------------------------------------------------


def properties(infos: Sequence[str], what: str = "SEAL") -> tuple[bytes, bytes]:
    """Lengths and bytes of property infos, one for all or one each, as a ``SealRequest`` has them."""
    try:
        encoded = [info.encode("ascii") for info in infos]
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{what}: a property info is an IA5String: ASCII only") from error
    longest = max(map(len, encoded), default=0)
    if longest > MAX_PROPERTY_LEN:
        raise ProtocolError(f"{what}: a property info has at most {MAX_PROPERTY_LEN} bytes, got {longest}")
    return struct.pack(f"!{len(encoded)}H", *map(len, encoded)), b"".join(encoded)


def _check_properties(count: int, flags: int, lengths: Buffer, data: Buffer) -> None:
    expected = 1 if flags & SealFlag.ONE_PROPERTY else count
    if len(lengths) != 2 * expected:
        raise ProtocolError(
            f"SEAL: {len(lengths)} bytes of lengths of property infos, expected {2 * expected}"
        )
    if len(data) > MAX_PROPERTIES_LEN:
        raise ProtocolError(
            f"SEAL: property infos have {len(data)} bytes, at most {MAX_PROPERTIES_LEN} are taken",
            hint="split the batch",
        )
    each = numbers("H", lengths)
    if max(each) > MAX_PROPERTY_LEN:
        raise ProtocolError(f"SEAL: a property info has at most {MAX_PROPERTY_LEN} bytes, got {max(each)}")
    if sum(each) != len(data):
        raise ProtocolError(
            f"SEAL: property infos have {len(data)} bytes, their lengths add up to {sum(each)}"
        )


def _check_seal(count: int, flags: int, reference_len: int) -> None:
    check_count(count, "SEAL")
    if flags not in _SEAL_FLAGS:
        raise ProtocolError(f"SEAL: unknown flags {flags:#04x}")
    if flags & SealFlag.TIME_STAMP and count > MAX_STAMPED_ITEMS:
        raise ProtocolError(
            f"SEAL: {count} items with time stamps, at most {MAX_STAMPED_ITEMS}", hint="split the batch"
        )
    if reference_len > MAX_REFERENCE_LEN:
        raise ProtocolError(f"SEAL: a reference has at most {MAX_REFERENCE_LEN} bytes, got {reference_len}")


_SEAL_FLAGS: Final = {number: SealFlag(number) for number in range(sum(SealFlag) + 1)}
_PRIORITIES: Final = {int(priority): priority for priority in Priority}


def encode_seal(request_id: int, request: SealRequest) -> bytes:
    """A SEAL frame."""
    seal = encode_name(request.seal, "SEAL: seal")
    reference = encode_text(request.reference, "SEAL: reference")
    count = request.items
    _check_seal(count, request.flags, len(reference))
    if len(request.hashes) % DIGEST_LEN:
        raise ProtocolError(f"SEAL: {len(request.hashes)} bytes is no multiple of {DIGEST_LEN}")
    _check_properties(count, request.flags, request.property_lengths, request.properties)
    if len(request.job_id) != JOB_ID_LEN or not 0 <= request.first_index <= 2**64 - count:
        raise ProtocolError(f"SEAL: expected a job id of {JOB_ID_LEN} bytes and indices of 64 bits")
    head = _SEAL.pack(
        request.job_id,
        request.first_index,
        request.deadline_ms,
        count,
        request.priority,
        request.flags,
        len(seal),
        len(reference),
    )
    return encode_frame(
        FrameType.SEAL,
        request_id,
        head,
        seal,
        reference,
        request.hashes,
        request.property_lengths,
        request.properties,
    )


def decode_seal(payload: Buffer) -> SealRequest:
    """The inverse of ``encode_seal``, from the payload. The blocks are views into it."""
    _at_least(payload, _SEAL, "SEAL")
    job_id, first_index, deadline_ms, count, priority, flags, seal_len, reference_len = _SEAL.unpack_from(
        payload
    )
    _check_seal(count, flags, reference_len)
    _check_indices(first_index, count, "SEAL")
    if priority not in _PRIORITIES:
        raise ProtocolError(f"SEAL: unknown priority {priority}")
    reference_at = _SEAL.size + seal_len
    hashes_at = reference_at + reference_len
    lengths_at = hashes_at + count * DIGEST_LEN
    properties_at = lengths_at + 2 * (1 if flags & SealFlag.ONE_PROPERTY else count)
    if len(payload) < properties_at:
        raise ProtocolError(f"SEAL: {len(payload)} bytes do not hold {count} items")
    lengths, data = payload[lengths_at:properties_at], payload[properties_at:]
    _check_properties(count, flags, lengths, data)
    return SealRequest(
        job_id,
        first_index,
        deadline_ms,
        _PRIORITIES[priority],
        _SEAL_FLAGS[flags],
        decode_name(payload[_SEAL.size : reference_at], "SEAL: seal"),
        decode_text(payload[reference_at:hashes_at], "SEAL: reference"),
        payload[hashes_at:lengths_at],
        lengths,
        data,
    )


def encode_sealed(request_id: int, answer: SealedAnswer, block: Buffer = b"") -> bytes:
    """A SEALED frame. ``block`` is records and pieces in one, as a template writes them, instead of the answer's."""
    head = _SEALED.pack(
        answer.job_id, answer.first_index, answer.count, answer.failed, len(answer.body), len(answer.suffix)
    )
    items = (block,) if block else (answer.records, answer.pieces)
    return encode_frame(FrameType.SEALED, request_id, head, answer.body, answer.suffix, *items)


def decode_sealed(payload: Buffer) -> SealedAnswer:
    """The inverse of ``encode_sealed``, from the payload. The blocks are views into it."""
    _at_least(payload, _SEALED, "SEALED")
    job_id, first_index, count, failed, body_len, suffix_len = _SEALED.unpack_from(payload)
    check_count(count, "SEALED")
    _check_indices(first_index, count, "SEALED")
    if body_len + suffix_len > MAX_SHARED_LEN:
        raise ProtocolError(
            f"SEALED: {body_len + suffix_len} bytes in common, expected at most {MAX_SHARED_LEN}"
        )
    suffix_at = _SEALED.size + body_len
    records_at = suffix_at + suffix_len
    pieces_at = records_at + count * SEALED_RECORD_LEN
    if len(payload) < pieces_at:
        raise ProtocolError("SEALED: its lengths do not add up")
    records = bytes(payload[records_at:pieces_at])
    statuses = records[::SEALED_RECORD_LEN]
    if statuses.count(ItemStatus.SIGNED) != count - failed or statuses.strip(_ITEM_STATUSES):
        raise ProtocolError("SEALED: its statuses do not add up")
    # Records have bytes 1 (head) and 2 to 5 (middle, tail): all but the statuses are lengths.
    shorts = numbers("H", records)
    total = sum(records[1::SEALED_RECORD_LEN]) + sum(shorts[1::3]) + sum(shorts[2::3])
    if total != len(payload) - pieces_at:
        raise ProtocolError("SEALED: its lengths do not add up")
    return SealedAnswer(
        job_id,
        first_index,
        count,
        failed,
        payload[_SEALED.size : suffix_at],
        payload[suffix_at:records_at],
        records,
        payload[pieces_at:],
    )


_ITEM_STATUSES: Final = bytes(ItemStatus)


# VERIFY_SEAL, SEALS_VERIFIED --------------------------------------------------------------------------------


def _check_verified(count: int, what: str) -> None:
    if not 1 <= count <= MAX_VERIFIED_SEALS:
        raise ProtocolError(
            f"{what}: {count} items, expected 1 to {MAX_VERIFIED_SEALS}", hint="split the batch"
        )


def encode_verify_seal(request_id: int, request: VerifySealRequest) -> bytes:
    """A VERIFY_SEAL frame."""
    count = request.items
    _check_verified(count, "VERIFY_SEAL")
    if len(request.hashes) % DIGEST_LEN or len(request.lengths) != 4 * count:
        raise ProtocolError("VERIFY_SEAL: as many data hashes as lengths, 32 and 4 bytes each")
    if sum(numbers("I", request.lengths)) != len(request.values):
        raise ProtocolError("VERIFY_SEAL: its lengths do not add up")
    head = _VERIFY_SEAL.pack(request.deadline_ms, count)
    return encode_frame(
        FrameType.VERIFY_SEAL, request_id, head, request.hashes, request.lengths, request.values
    )


def verify_seal_pieces(
    request_id: int, deadline_ms: int, hashes: Sequence[bytes], values: Sequence[bytes]
) -> list[bytes]:
    """The same frame in pieces, to be sent one after the other: values have tens of kilobytes, and none is copied.

    ``hashes`` have 32 bytes each; there are as many as ``values``.
    """
    count = len(values)
    _check_verified(count, "VERIFY_SEAL")
    lengths = list(map(len, values))
    head = b"".join((_VERIFY_SEAL.pack(deadline_ms, count), *hashes, struct.pack(f"!{count}I", *lengths)))
    return [encode_header(FrameType.VERIFY_SEAL, request_id, len(head) + sum(lengths)) + head, *values]


def decode_verify_seal(payload: Buffer) -> VerifySealRequest:
    """The inverse of ``encode_verify_seal``, from the payload. The blocks are views into it."""
    _at_least(payload, _VERIFY_SEAL, "VERIFY_SEAL")
    deadline_ms, count = _VERIFY_SEAL.unpack_from(payload)
    _check_verified(count, "VERIFY_SEAL")
    lengths_at = _VERIFY_SEAL.size + count * DIGEST_LEN
    values_at = lengths_at + count * 4
    if len(payload) < values_at:
        raise ProtocolError(f"VERIFY_SEAL: {len(payload)} bytes do not hold {count} items")
    lengths = payload[lengths_at:values_at]
    if sum(numbers("I", lengths)) != len(payload) - values_at:
        raise ProtocolError("VERIFY_SEAL: its lengths do not add up")
    return VerifySealRequest(
        deadline_ms, payload[_VERIFY_SEAL.size : lengths_at], lengths, payload[values_at:]
    )


def encode_seals_verified(request_id: int, items: Sequence[SealVerified]) -> bytes:
    """A SEALS_VERIFIED frame."""
    good = sum(item.verdict is SealVerdict.GOOD for item in items)
    known = {  # mostly they are one and the same object
        id(item): _VERDICT_RECORD.pack(item.verdict, 0, item.failed, item.undecided, item.ended)
        for item in {id(item): item for item in items}.values()
    }
    records = [known[id(item)] for item in items]
    return encode_frame(
        FrameType.SEALS_VERIFIED, request_id, _SEALS_VERIFIED.pack(len(items), good), *records
    )


def decode_seals_verified(payload: Buffer) -> list[SealVerified]:
    """The inverse of ``encode_seals_verified``, from the payload. Checks of a newer server are left out."""
    _at_least(payload, _SEALS_VERIFIED, "SEALS_VERIFIED")
    count, good = _SEALS_VERIFIED.unpack_from(payload)
    _check_verified(count, "SEALS_VERIFIED")
    if len(payload) != _SEALS_VERIFIED.size + count * _VERDICT_RECORD.size:
        raise ProtocolError("SEALS_VERIFIED: its lengths do not add up")
    items = []
    known: dict[
        tuple[int, ...], SealVerified
    ] = {}  # an Enum is looked up in Python, and most records are alike
    for record in _VERDICT_RECORD.iter_unpack(payload[_SEALS_VERIFIED.size :]):
        item = known.get(record)
        if item is None:
            item = known[record] = _seal_verified(*record)
        items.append(item)
    if sum(item.verdict is SealVerdict.GOOD for item in items) != good:
        raise ProtocolError("SEALS_VERIFIED: its counts do not add up")
    return items


_ALL_CHECKS: Final = sum(SealCheck)


def _seal_verified(verdict: int, reserved: int, *sets: int) -> SealVerified:
    if reserved or verdict > max(SealVerdict):
        raise ProtocolError(f"SEALS_VERIFIED: unknown verdict {verdict}, or the reserved byte is not 0")
    return SealVerified(SealVerdict(verdict), *(SealCheck(one & _ALL_CHECKS) for one in sets))


# SEAL_STATUS, SEAL_STATUS_ANSWER ----------------------------------------------------------------------------


def _check_names(count: int, what: str) -> None:
    if not 1 <= count <= MAX_SEAL_NAMES:
        raise ProtocolError(
            f"{what}: {count} seals, expected 1 to {MAX_SEAL_NAMES}", hint="split the question"
        )


def encode_seal_status(request_id: int, kind: SealNameKind, names: Sequence[str]) -> bytes:
    """A SEAL_STATUS frame."""
    _check_names(len(names), "SEAL_STATUS")
    encoded = [encode_name(name, "SEAL_STATUS: name") for name in names]
    parts = [part for name in encoded for part in (bytes((len(name),)), name)]
    return encode_frame(FrameType.SEAL_STATUS, request_id, _SEAL_STATUS.pack(kind, 0, len(names)), *parts)


def _status_head(payload: Buffer, what: str) -> tuple[SealNameKind, int]:
    _at_least(payload, _SEAL_STATUS, what)
    kind, reserved, count = _SEAL_STATUS.unpack_from(payload)
    if reserved or kind > max(SealNameKind):
        raise ProtocolError(f"{what}: unknown kind {kind}, or the reserved byte is not 0")
    _check_names(count, what)
    return SealNameKind(kind), count


def decode_seal_status(payload: Buffer) -> SealStatusRequest:
    """The inverse of ``encode_seal_status``, from the payload."""
    kind, count = _status_head(payload, "SEAL_STATUS")
    names, position = [], _SEAL_STATUS.size
    for _ in range(count):
        if position >= len(payload):
            raise ProtocolError("SEAL_STATUS: fewer names than announced")
        end = position + 1 + payload[position]
        names.append(decode_name(payload[position + 1 : end], "SEAL_STATUS: name"))
        position = end
    if position != len(payload):
        raise ProtocolError("SEAL_STATUS: a name is cut short, or there are trailing bytes")
    return SealStatusRequest(kind, names)


def encode_seal_states(request_id: int, kind: SealNameKind, records: Sequence[SealStatusRecord]) -> bytes:
    """A SEAL_STATUS_ANSWER frame: a record for each name, in the order asked."""
    parts = [
        _STATUS_RECORD.pack(
            one.state,
            one.flags,
            0,
            one.valid_from,
            one.valid_to,
            one.unlocked_until,
            one.password_due_at,
        )
        for one in records
    ]
    head = _SEAL_STATUS.pack(kind, 0, len(records))
    return encode_frame(FrameType.SEAL_STATUS_ANSWER, request_id, head, *parts)


def decode_seal_states(payload: Buffer) -> list[SealStatusRecord]:
    """The inverse of ``encode_seal_states``, from the payload. Flags of a newer server are left out."""
    _, count = _status_head(payload, "SEAL_STATUS_ANSWER")
    if len(payload) != _SEAL_STATUS.size + count * _STATUS_RECORD.size:
        raise ProtocolError("SEAL_STATUS_ANSWER: its lengths do not add up")
    records = []
    for state, flags, reserved, *instants in _STATUS_RECORD.iter_unpack(payload[_SEAL_STATUS.size :]):
        if reserved or state > max(SealState):
            raise ProtocolError(f"SEAL_STATUS_ANSWER: unknown state {state}, or reserved bytes are not 0")
        known = SealStatusFlag(flags & _ALL_STATUS_FLAGS)
        records.append(SealStatusRecord(SealState(state), known, *instants))
    return records


_ALL_STATUS_FLAGS: Final = sum(SealStatusFlag)


# UNLOCK, UNLOCKED -------------------------------------------------------------------------------------------


def encode_unlock(request_id: int, request: UnlockRequest) -> bytes:
    """An UNLOCK frame."""
    seal = encode_name(request.seal, "UNLOCK: seal")
    password = encode_text(request.password, "UNLOCK: password")
    if len(password) > MAX_PASSWORD_LEN:
        raise ProtocolError(f"UNLOCK: password of {len(password)} bytes, expected at most {MAX_PASSWORD_LEN}")
    if not 0 <= request.seconds <= _MAX_SECONDS:
        raise ProtocolError(f"UNLOCK: {request.seconds} seconds, expected 0 to {_MAX_SECONDS}")
    head = _UNLOCK.pack(request.seconds, len(seal), 0, len(password))
    return encode_frame(FrameType.UNLOCK, request_id, head, seal, password)


def decode_unlock(payload: Buffer) -> UnlockRequest:
    """The inverse of ``encode_unlock``, from the payload."""
    _at_least(payload, _UNLOCK, "UNLOCK")
    seconds, seal_len, reserved, password_len = _UNLOCK.unpack_from(payload)
    if reserved:
        raise ProtocolError("UNLOCK: the reserved byte must be 0")
    if password_len > MAX_PASSWORD_LEN:
        raise ProtocolError(f"UNLOCK: password of {password_len} bytes, expected at most {MAX_PASSWORD_LEN}")
    split = _UNLOCK.size + seal_len
    if len(payload) != split + password_len:
        raise ProtocolError("UNLOCK: its lengths do not add up")
    seal = decode_name(payload[_UNLOCK.size : split], "UNLOCK: seal")
    return UnlockRequest(seal, decode_text(payload[split:], "UNLOCK: password"), seconds)


def encode_unlocked(request_id: int, expires_at: int) -> bytes:
    """An UNLOCKED frame."""
    return encode_frame(FrameType.UNLOCKED, request_id, _UNLOCKED.pack(expires_at))


def decode_unlocked(payload: Buffer) -> int:
    """When the unlock ends, in seconds since 1970 UTC; 0: the seal is locked."""
    if len(payload) != _UNLOCKED.size:
        raise ProtocolError(f"UNLOCKED: {len(payload)} bytes, expected {_UNLOCKED.size}")
    return int(_UNLOCKED.unpack(payload)[0])
