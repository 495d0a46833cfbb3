"""The link between the front and a signer worker: frames over a stream socketpair.

For: the byte layout that both ends share, as pure functions over bytes.
Not for: sockets, JSON meanings beyond the tables below, or the public wire protocol
(``appliance/PROTOCOL.md``).

Rules:

* No I/O here. Integers are big endian. ``reserved`` and ``flags`` are zero; anything else is an error.
* An answer carries the sequence number of its request. With more than one session answers come in any order.
* Both ends are ours and of one version: the link has no negotiation. A frame whose header is wrong ends the
  worker (there is no way to find the next frame); a well-framed request that is wrong is answered with
  ``REFUSED``.
* The front reads answers while it writes requests: a worker whose answers are not taken takes no requests,
  and two ends that only write wait for each other for ever. Two SIGN frames in flight for each session keep a
  token busy; more only wait in the socket.
* Every function that reads checks all lengths and raises ``LinkError``, nothing else.

Header, 16 bytes::

    payload_len u32 | kind u8 | flags u8 = 0 | reserved u16 = 0 | sequence u64

Front to worker:

====  ============  ====================================================================================
kind  name          payload
====  ============  ====================================================================================
1     START         JSON ``{profile, worker, spin_us?}``: a ``TokenProfile.to_mapping()``, the worker's
                    index, and for how long it looks for its next slice before it sleeps (0)
2     PIN           the PIN's bytes; follows START; empty for a token with a protected path of its own
3     LOAD_KEY      JSON ``{id, challenge, algorithm?}``: CKA_ID and 32 random bytes, both hex
4     SIGN          slot u32 | form u8 | 3 zero bytes | count u32, then for form 0 (digests) count × 32
                    bytes, for form 1 (messages) count × u32 lengths and the messages back to back
5     CREATE_KEY    JSON ``{id, label, algorithm}``
6     LIST_KEYS     JSON ``{}``
7     DESTROY_KEY   JSON ``{id}``: both halves of the pair; forget it in every worker first
8     FORGET_KEY    JSON ``{slot}``: the slot number is not used again
9     STOP          JSON ``{}``: answer what came before, then exit 0
====  ============  ====================================================================================

Worker to front:

====  ============  ====================================================================================
kind  name          payload
====  ============  ====================================================================================
64    READY         JSON ``{token_label, token_serial, manufacturer, model, firmware, module, methods,
                    method, sessions, flags}``; ``methods`` best first, ``method`` what a key is tried
                    with first
65    FAILED        JSON ``{stage, error, detail, hint, pin_error, fatal}``; the process exits after it.
                    ``fatal``: starting again with the same profile and PIN cannot succeed
66    KEY_LOADED    JSON ``{slot, id, label, algorithm, point, method, form, signature, attributes}``:
                    the public point x || y and a signature r || s over the challenge (form ``digests``)
                    or over its hash (form ``messages``), all hex, for the front to check
67    SIGNED        count u32 | done u32 | rv u64 | item_rv u64 | execution_ns u64, then count status
                    bytes, then count × 64 bytes r || s (zero where not signed)
68    KEY_CREATED   JSON ``{id, label, algorithm, point}``
69    KEYS          JSON ``{keys: [{id, label, algorithm, point, usable, reason}]}``
70    DESTROYED     JSON ``{id}``
71    REFUSED       JSON ``{error, detail, hint}``: this request failed, the worker is well
72    FORGOTTEN     JSON ``{slot}``
====  ============  ====================================================================================

Status bytes of ``SIGNED``: 0 signed, 1 refused by the token for this item, 2 not done. ``done`` items, from
the front, were tried; ``rv`` is the token-level code that stopped the batch there, or 0, and is followed by
``FAILED``; ``item_rv`` is the last code that refused a single item, or 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, Final, NamedTuple

HEADER: Final = Struct("!IBBHQ")
HEADER_LEN: Final = HEADER.size
MAX_PAYLOAD_LEN: Final = 32 * 1024 * 1024
"""The front's own limit on one request's messages; it bounds what either end must hold in one piece."""
MAX_ITEMS: Final = 65_536
"""As many as one request of the wire protocol."""
DIGEST_LEN: Final = 32
SIGNATURE_LEN: Final = 64
CHALLENGE_LEN: Final = 32
POINT_LEN: Final = 64

SIGN_HEAD: Final = Struct("!IB3sI")
SIGNED_HEAD: Final = Struct("!IIQQQ")


class LinkError(ValueError):
    """The other end of the link sent what the layout does not allow."""


class Kind(IntEnum):
    """What a frame is."""

    START = 1
    PIN = 2
    LOAD_KEY = 3
    SIGN = 4
    CREATE_KEY = 5
    LIST_KEYS = 6
    DESTROY_KEY = 7
    FORGET_KEY = 8
    STOP = 9
    READY = 64
    FAILED = 65
    KEY_LOADED = 66
    SIGNED = 67
    KEY_CREATED = 68
    KEYS = 69
    DESTROYED = 70
    REFUSED = 71
    FORGOTTEN = 72


class Form(IntEnum):
    """What the items of a SIGN frame are."""

    DIGESTS = 0
    MESSAGES = 1


class ItemStatus(IntEnum):
    """What became of one item."""

    SIGNED = 0
    REFUSED = 1
    NOT_DONE = 2


class Exit(IntEnum):
    """A worker's exit code."""

    STOPPED = 0
    """STOP, or end of file on the link."""
    TOKEN_FAILED = 3
    """The token or module failed while serving; a new process may do better."""
    PIN_REFUSED = 4
    """The token refused the PIN: never start again with the same one."""
    NOT_STARTED = 5
    """The module or token could not be opened."""
    LINK_BROKEN = 6
    """A frame header that cannot be: one of the two ends is faulty."""


class Header(NamedTuple):
    """A frame's header. ``kind`` may be a number that is no ``Kind``."""

    payload_len: int
    kind: int
    sequence: int


class SignRequest(NamedTuple):
    """A SIGN payload; ``lengths`` is None for digests. Both blocks are views of the payload."""

    slot: int
    form: Form
    item_count: int
    lengths: memoryview | None
    data: memoryview


class Signed(NamedTuple):
    """A SIGNED payload. Both blocks are views of the payload."""

    item_count: int
    done: int
    rv: int
    item_rv: int
    execution_ns: int
    statuses: memoryview
    signatures: memoryview


def spawn_arguments(fd: int) -> list[str]:
    """The command line of a worker whose end of the socketpair is inherited as ``fd``.

    ``-P``: the working directory is not searched for modules.
    """
    return [sys.executable, "-P", "-m", "appliance_pkcs11.worker", str(fd)]


def pack_header(kind: int, sequence: int, payload_len: int) -> bytes:
    """The 16 bytes before a payload."""
    if not 0 <= payload_len <= MAX_PAYLOAD_LEN:
        raise LinkError(f"a payload has at most {MAX_PAYLOAD_LEN} bytes, got {payload_len}")
    return HEADER.pack(payload_len, kind, 0, 0, sequence)


def unpack_header(block: bytes | bytearray | memoryview) -> Header:
    """Read exactly ``HEADER_LEN`` bytes."""
    if len(block) != HEADER_LEN:
        raise LinkError(f"a header has {HEADER_LEN} bytes, got {len(block)}")
    payload_len, kind, flags, reserved, sequence = HEADER.unpack(block)
    if flags or reserved:
        raise LinkError(f"flags and reserved must be 0, got {flags} and {reserved}")
    if payload_len > MAX_PAYLOAD_LEN:
        raise LinkError(f"a payload has at most {MAX_PAYLOAD_LEN} bytes, got {payload_len}")
    return Header(payload_len, kind, sequence)


def pack_frame(kind: Kind, sequence: int, payload: bytes | bytearray | memoryview) -> bytes:
    """A whole frame with a ready payload (PIN, and whatever is small)."""
    return pack_header(kind, sequence, len(payload)) + payload


def pack_json(kind: Kind, sequence: int, fields: dict[str, Any]) -> bytes:
    """A whole frame with a JSON payload."""
    return pack_frame(kind, sequence, json.dumps(fields, separators=(",", ":")).encode())


def unpack_json(payload: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A JSON payload: one object."""
    try:
        fields = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise LinkError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise LinkError(f"a JSON payload is an object, got {type(fields).__name__}")
    return fields


def take_hex(fields: dict[str, Any], name: str, min_len: int, max_len: int) -> bytes:
    """A field of ``min_len`` to ``max_len`` bytes in hex."""
    value = fields.get(name)
    try:
        block = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        block = None
    if block is None or not min_len <= len(block) <= max_len:
        raise LinkError(f"{name}: expected {min_len} to {max_len} bytes in hex")
    return block


def take_text(fields: dict[str, Any], name: str, max_len: int) -> str:
    """A field of printable text, at most ``max_len`` bytes of UTF-8."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > max_len:
        raise LinkError(f"{name}: expected at most {max_len} bytes of printable text")
    return value


def take_number(fields: dict[str, Any], name: str, maximum: int) -> int:
    """A field that is a whole number from 0 to ``maximum``."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise LinkError(f"{name}: expected a whole number from 0 to {maximum}")
    return value


def pack_sign_head(sequence: int, slot: int, form: Form, count: int, blocks_len: int) -> bytes:
    """Header and fixed part of a SIGN frame, 28 bytes; ``blocks_len`` bytes of items go behind it."""
    if not 1 <= count <= MAX_ITEMS:
        raise LinkError(f"a batch has 1 to {MAX_ITEMS} items, got {count}")
    return pack_header(Kind.SIGN, sequence, SIGN_HEAD.size + blocks_len) + SIGN_HEAD.pack(
        slot, form, b"\0\0\0", count
    )


def pack_sign_digests(sequence: int, slot: int, digests: bytes | bytearray | memoryview) -> bytes:
    """A whole SIGN frame over a contiguous block of 32-byte digests."""
    count, rest = divmod(len(digests), DIGEST_LEN)
    if rest:
        raise LinkError(f"digests have {DIGEST_LEN} bytes each, got a block of {len(digests)}")
    return pack_sign_head(sequence, slot, Form.DIGESTS, count, len(digests)) + digests


def pack_sign_messages(sequence: int, slot: int, messages: Sequence[bytes]) -> bytes:
    """A whole SIGN frame over messages that the token hashes."""
    lengths = Struct(f"!{len(messages)}I").pack(*map(len, messages))
    data = b"".join(messages)
    head = pack_sign_head(sequence, slot, Form.MESSAGES, len(messages), len(lengths) + len(data))
    return b"".join((head, lengths, data))


def unpack_sign(payload: memoryview) -> SignRequest:
    """Read a SIGN payload; every length is checked against the payload."""
    if len(payload) < SIGN_HEAD.size:
        raise LinkError(f"a SIGN payload has at least {SIGN_HEAD.size} bytes, got {len(payload)}")
    slot, form, zeros, count = SIGN_HEAD.unpack_from(payload)
    blocks = payload[SIGN_HEAD.size :]
    if zeros != b"\0\0\0":
        raise LinkError("the padding of a SIGN payload must be 0")
    if not 1 <= count <= MAX_ITEMS:
        raise LinkError(f"a batch has 1 to {MAX_ITEMS} items, got {count}")
    if form == Form.DIGESTS:
        if len(blocks) != count * DIGEST_LEN:
            raise LinkError(f"{count} digests have {count * DIGEST_LEN} bytes, got {len(blocks)}")
        return SignRequest(slot, Form.DIGESTS, count, None, blocks)
    if form != Form.MESSAGES:
        raise LinkError(f"a form is 0 (digests) or 1 (messages), got {form}")
    lengths, data = blocks[: 4 * count], blocks[4 * count :]
    if len(lengths) != 4 * count or sum(Struct(f"!{count}I").unpack(lengths)) != len(data):
        raise LinkError(f"the lengths of {count} messages do not add up to the {len(data)} bytes that follow")
    return SignRequest(slot, Form.MESSAGES, count, lengths, data)


def signed_frame_len(count: int) -> int:
    """Bytes of a whole SIGNED frame, header included."""
    return HEADER_LEN + SIGNED_HEAD.size + count * (1 + SIGNATURE_LEN)


def pack_signed_head_into(
    buffer: bytearray, sequence: int, count: int, done: int, rv: int, item_rv: int, execution_ns: int
) -> None:
    """Write header and fixed part of a SIGNED frame at the start of ``buffer``; its blocks stand behind."""
    HEADER.pack_into(buffer, 0, signed_frame_len(count) - HEADER_LEN, Kind.SIGNED, 0, 0, sequence)
    SIGNED_HEAD.pack_into(buffer, HEADER_LEN, count, done, rv, item_rv, execution_ns)


def unpack_signed(payload: memoryview) -> Signed:
    """Read a SIGNED payload; every length is checked against the payload."""
    if len(payload) < SIGNED_HEAD.size:
        raise LinkError(f"a SIGNED payload has at least {SIGNED_HEAD.size} bytes, got {len(payload)}")
    count, done, rv, item_rv, execution_ns = SIGNED_HEAD.unpack_from(payload)
    if not 1 <= count <= MAX_ITEMS or done > count:
        raise LinkError(f"{done} of {count} items done cannot be")
    blocks = payload[SIGNED_HEAD.size :]
    if len(blocks) != count * (1 + SIGNATURE_LEN):
        raise LinkError(f"{count} items have {count * (1 + SIGNATURE_LEN)} bytes, got {len(blocks)}")
    return Signed(count, done, rv, item_rv, execution_ns, blocks[:count], blocks[count:])
