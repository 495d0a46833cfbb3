"""DER (X.690), as much of it as seals, certificates and time stamps need: a reader that says where it stumbled.

For: walking a structure element by element, keeping the original bytes; writing the few types that we write.
Not for: a schema (the callers are the schema), BER with indefinite lengths, tags above 30.

Rules:

* A ``Reader`` never copies what it has not been asked for, and never looks past the end of the element it is in.
* Whatever is wrong raises ``BadRequest`` with the place (``SES_Signature.toSign.eseal``) and the byte; nothing else
  is ever raised, whatever the bytes are.
* What deviates from DER without leaving a doubt about its meaning is accepted where the reader is ``tolerant`` and
  noted: such bytes lie under signatures that are good. Seals are read strictly, certificates tolerantly.
* Writers write DER.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from appliance.errors import BadRequest

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OID: Final = 0x06
ENUMERATED: Final = 0x0A
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
T61_STRING: Final = 0x14
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
BMP_STRING: Final = 0x1E
SEQUENCE: Final = 0x30
SET: Final = 0x31

MAX_DEPTH: Final = 16
"""The deepest structure we read, a seal in a signature, has seven levels; a time-stamp token has twelve."""
MAX_OID_LEN: Final = 64
"""The longest OIDs in use have some twenty bytes; the limit bounds the size of their arcs."""
_MAX_LENGTH_BYTES: Final = 4
"""Lengths up to 4 GiB can be said; what is said must then also be there."""

_DEFINITE_LONG: Final = 0x80


def explicit(number: int) -> int:
    """The tag of ``[number] EXPLICIT``, or IMPLICIT over something constructed."""
    return 0xA0 | number


def implicit(number: int) -> int:
    """The tag of ``[number] IMPLICIT`` over something primitive."""
    return 0x80 | number


class Reader:
    """Walks the elements of one structure, in order.

    ``place`` names the structure in errors, ``source`` the standard it is from. ``notes`` collects deviations; it is
    shared with the readers of what lies inside.
    """

    __slots__ = ("_depth", "_end", "_place", "_position", "_source", "_tolerant", "data", "notes")

    def __init__(self, data: bytes, place: str, source: str, *, tolerant: bool = False) -> None:
        self.data = data
        self.notes: list[str] = []
        self._position, self._end = 0, len(data)
        self._place, self._source = place, source
        self._tolerant = tolerant
        self._depth = 0

    # Where the reader stands --------------------------------------------------------------------------------

    def fail(self, name: str, what: str) -> BadRequest:
        """The error for the element ``name`` here: for the caller to raise."""
        return BadRequest(f"{self._at(name)}: {what}", hint=f"{self._source}; at byte {self._position}")

    def note(self, name: str, what: str) -> None:
        """Remember a deviation that leaves no doubt about the meaning."""
        self.notes.append(f"{self._at(name)}: {what}")

    def _at(self, name: str) -> str:
        return f"{self._place}.{name}" if name else self._place

    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._position >= self._end

    def peek(self) -> int:
        """The tag that comes next, -1 at the end."""
        return self.data[self._position] if self._position < self._end else -1

    def finish(self) -> None:
        """Refuse what follows the last element."""
        if self._position != self._end:
            raise self.fail("", f"{self._end - self._position} bytes too many at the end")

    # Elements -----------------------------------------------------------------------------------------------

    def _next(self, name: str, tag: int | None) -> tuple[int, int, int]:
        """(start of the element, start and end of its content); the reader moves past it."""
        data, start, end = self.data, self._position, self._end
        if start >= end:
            raise self.fail(name, "is missing")
        if tag is not None and data[start] != tag:
            raise self.fail(name, f"expected {_tag_name(tag)}, got {_tag_name(data[start])}")
        if data[start] & 0x1F == 0x1F:
            raise self.fail(name, "a tag above 30 is not used here")
        if start + 2 > end:
            raise self.fail(name, "ends before its length")
        length, content = data[start + 1], start + 2
        if length >= _DEFINITE_LONG:
            count = length - _DEFINITE_LONG
            if not 1 <= count <= _MAX_LENGTH_BYTES:
                raise self.fail(name, "the length must be definite and below 4 GiB")
            if content + count > end:
                raise self.fail(name, "ends before its length")
            length = int.from_bytes(data[content : content + count], "big")
            if length < _DEFINITE_LONG or length >> 8 * (count - 1) == 0:
                if not self._tolerant:
                    raise self.fail(name, "the length is not written in the fewest bytes")
                self.note(name, "length not in the fewest bytes")
            content += count
        if content + length > end:
            raise self.fail(name, f"says {length} bytes, {end - content} are left")
        self._position = content + length
        return start, content, content + length

    def raw(self, name: str, tag: int | None = None) -> bytes:
        """The whole element as it stands, header included."""
        start, _, end = self._next(name, tag)
        return self.data[start:end]

    def content(self, name: str, tag: int, max_len: int | None = None) -> bytes:
        """The content of the element."""
        _, start, end = self._next(name, tag)
        if max_len is not None and end - start > max_len:
            raise self.fail(name, f"at most {max_len} bytes, got {end - start}")
        return self.data[start:end]

    def inside(self, name: str, tag: int = SEQUENCE) -> Reader:
        """A reader of what lies in the element."""
        if self._depth >= MAX_DEPTH:
            raise self.fail(name, f"nested deeper than {MAX_DEPTH} levels")
        _, start, end = self._next(name, tag)
        inner = Reader.__new__(Reader)
        inner.data, inner.notes = self.data, self.notes
        inner._position, inner._end = start, end
        inner._place, inner._source = self._at(name), self._source
        inner._tolerant, inner._depth = self._tolerant, self._depth + 1
        return inner

    def enter(self, name: str, tag: int = SEQUENCE) -> tuple[bytes, Reader]:
        """The whole element as it stands, and a reader of what lies in it."""
        start = self._position
        inner = self.inside(name, tag)
        return self.data[start : self._position], inner

    # Types --------------------------------------------------------------------------------------------------

    def integer(self, name: str, low: int, high: int, tag: int = INTEGER) -> int:
        """An INTEGER (or ENUMERATED) between ``low`` and ``high``."""
        value = self.content(name, tag, MAX_OID_LEN)
        if not value:
            raise self.fail(name, "an INTEGER has at least one byte")
        if len(value) > 1 and value[0] in (0x00, 0xFF) and (value[0] ^ value[1]) < 0x80:
            if not self._tolerant:
                raise self.fail(name, "the INTEGER is not written in the fewest bytes")
            self.note(name, "INTEGER not in the fewest bytes")
        number = int.from_bytes(value, "big", signed=True)
        if not low <= number <= high:
            raise self.fail(name, f"expected {low} to {high}, got {number}")
        return number

    def boolean(self, name: str) -> bool:
        """A BOOLEAN, which DER writes as 00 or FF."""
        value = self.content(name, BOOLEAN)
        if value not in (b"\x00", b"\xff"):
            if len(value) != 1 or not self._tolerant:
                raise self.fail(name, "a BOOLEAN is 00 or FF")
            self.note(name, "BOOLEAN neither 00 nor FF")
        return value != b"\x00"

    def default_false(self, name: str) -> bool:
        """``BOOLEAN DEFAULT FALSE``. Written out as FALSE it is no DER, but several vendors do: it is noted."""
        if self.peek() != BOOLEAN:
            return False
        value = self.boolean(name)
        if not value:
            self.note(name, "FALSE is the default and is written out")
        return value

    def oid(self, name: str) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        value = self.content(name, OID, MAX_OID_LEN)
        text = decode_oid(value)
        if text is None:
            raise self.fail(name, "not an OBJECT IDENTIFIER")
        return text

    def bits(self, name: str, max_len: int | None = None, tag: int = BIT_STRING) -> bytes:
        """A BIT STRING of whole bytes."""
        value = self.content(name, tag, None if max_len is None else max_len + 1)
        if not value or value[0] != 0:
            raise self.fail(name, "a BIT STRING here has whole bytes, no unused bits")
        return value[1:]

    def octets(self, name: str, max_len: int, min_len: int = 0) -> bytes:
        """An OCTET STRING of ``min_len`` to ``max_len`` bytes."""
        value = self.content(name, OCTET_STRING, max_len)
        if len(value) < min_len:
            raise self.fail(name, f"at least {min_len} bytes, got {len(value)}")
        return value

    def text(self, name: str, tag: int, max_len: int) -> str:
        """A string: UTF-8 in a UTF8String, ASCII in the others."""
        value = self.content(name, tag, max_len)
        try:
            return value.decode("utf-8" if tag == UTF8_STRING else "ascii")
        except UnicodeDecodeError as error:
            raise self.fail(name, f"not a {_tag_name(tag)}: {error.reason}") from error

    def time(self, name: str, *tags: int) -> datetime:
        """An instant in UTC. A GeneralizedTime may have a fraction, or an offset, which is noted."""
        tag = self.peek()
        if tag not in tags:
            raise self.fail(name, f"expected {' or '.join(map(_tag_name, tags))}, got {_tag_name(tag)}")
        value = self.content(name, tag, 32)
        moment = plain_time(value) if tag == GENERALIZED_TIME else None
        if moment is None:
            moment = _parse_time(tag, value)
            if moment is None:
                raise self.fail(name, f"{value!r} is no {_tag_name(tag)} that says its zone")
            if not value.endswith(b"Z"):
                self.note(name, "time with an offset")
        return moment


_TAG_NAMES: Final = {
    -1: "nothing",
    BOOLEAN: "BOOLEAN",
    INTEGER: "INTEGER",
    BIT_STRING: "BIT STRING",
    OCTET_STRING: "OCTET STRING",
    NULL: "NULL",
    OID: "OBJECT IDENTIFIER",
    ENUMERATED: "ENUMERATED",
    UTF8_STRING: "UTF8String",
    PRINTABLE_STRING: "PrintableString",
    IA5_STRING: "IA5String",
    UTC_TIME: "UTCTime",
    GENERALIZED_TIME: "GeneralizedTime",
    SEQUENCE: "SEQUENCE",
    SET: "SET",
}


def _tag_name(tag: int) -> str:
    if tag in _TAG_NAMES:
        return _TAG_NAMES[tag]
    return f"[{tag & 0x1F}]" if tag & 0xC0 == 0x80 else f"tag {tag:#04x}"


@lru_cache(maxsize=256)  # a few OIDs come all the time; strangers can push out no more than that
def decode_oid(content: bytes) -> str | None:
    """The dotted form, ``None`` where the bytes are none."""
    if not content or content[-1] & 0x80:
        return None
    arcs: list[int] = []
    value, fresh = 0, True
    for byte in content:
        if fresh and byte == 0x80:
            return None
        value, fresh = value << 7 | byte & 0x7F, not byte & 0x80
        if fresh:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def plain_time(value: bytes) -> datetime | None:
    """``YYYYMMDDHHMMSSZ``, which is what nearly all of them are."""
    if len(value) != 15 or value[14] != 0x5A or not value[:14].isdigit():
        return None
    return _instant(value.decode())


def _instant(digits: str, microsecond: int = 0, east_minutes: int = 0) -> datetime | None:
    """From ``YYYYMMDDHHMMSS``."""
    try:
        moment = datetime(
            int(digits[:4]), int(digits[4:6]), int(digits[6:8]),
            int(digits[8:10]), int(digits[10:12]), int(digits[12:14]), microsecond, tzinfo=UTC,
        )  # fmt: skip
        return moment - timedelta(minutes=east_minutes) if east_minutes else moment
    except (ValueError, OverflowError):
        return None


def _parse_time(tag: int, value: bytes) -> datetime | None:
    """Either type with seconds, a zone, and for GeneralizedTime a fraction."""
    text = value.decode("latin-1")
    digits = 14 if tag == GENERALIZED_TIME else 12
    main, rest = text[:digits], text[digits:]
    if len(main) != digits or not (main.isascii() and main.isdigit()):
        return None
    fraction, rest = _fraction(rest) if tag == GENERALIZED_TIME else (0, rest)
    offset = _offset(rest)
    if offset is None or fraction is None:
        return None
    if tag == UTC_TIME:  # RFC 5280 4.1.2.5.1: 50 to 99 are the last century's
        main = ("19" if main >= "50" else "20") + main
    return _instant(main, fraction, offset)


def _fraction(rest: str) -> tuple[int | None, str]:
    """Microseconds and what follows; finer parts are dropped."""
    if not rest.startswith("."):
        return 0, rest
    end = 1
    while end < len(rest) and rest[end] in "0123456789":
        end += 1
    return (int(rest[1:end][:6].ljust(6, "0")) if end > 1 else None), rest[end:]


def _offset(rest: str) -> int | None:
    """Minutes east of UTC from ``Z`` or ``+0800``."""
    if rest == "Z":
        return 0
    digits = rest[1:]
    if len(rest) != 5 or rest[0] not in "+-" or not (digits.isascii() and digits.isdigit()):
        return None
    minutes = 60 * int(digits[:2]) + int(digits[2:])
    return -minutes if rest[0] == "-" else minutes


# Writing --------------------------------------------------------------------------------------------------------


def tlv(tag: int, *contents: bytes) -> bytes:
    """An element: tag, length in the fewest bytes, the contents one after the other."""
    length = sum(map(len, contents))
    if length < _DEFINITE_LONG:
        header = bytes((tag, length))
    else:
        size = (length.bit_length() + 7) // 8
        header = bytes((tag, _DEFINITE_LONG | size)) + length.to_bytes(size, "big")
    return b"".join((header, *contents))


def sequence(*contents: bytes) -> bytes:
    """A SEQUENCE of elements that are written already."""
    return tlv(SEQUENCE, *contents)


def integer(value: int) -> bytes:
    """An INTEGER."""
    return tlv(INTEGER, value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, "big", signed=True))


def boolean(value: bool) -> bytes:
    """A BOOLEAN."""
    return tlv(BOOLEAN, b"\xff" if value else b"\x00")


def octets(value: bytes) -> bytes:
    """An OCTET STRING."""
    return tlv(OCTET_STRING, value)


def bits(value: bytes, tag: int = BIT_STRING) -> bytes:
    """A BIT STRING of whole bytes."""
    return tlv(tag, b"\x00", value)


def text(tag: int, value: str) -> bytes:
    """A string; ``BadRequest`` where its type cannot hold it."""
    try:
        return tlv(tag, value.encode("utf-8" if tag == UTF8_STRING else "ascii"))
    except UnicodeEncodeError as error:
        raise BadRequest(f"{value[:64]!r} does not go into a {_tag_name(tag)}", hint=str(error)) from error


def generalized_time(moment: datetime) -> bytes:
    """``YYYYMMDDHHMMSSZ``: whole seconds, what is finer is dropped. ``moment`` knows its zone."""
    if moment.tzinfo is None:
        raise BadRequest(f"{moment.isoformat()} does not say its zone")
    return tlv(GENERALIZED_TIME, moment.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").zfill(15).encode())


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER from its dotted form."""
    arcs = dotted.split(".")
    if len(dotted) > 256 or len(arcs) < 2 or not all(arc.isascii() and arc.isdigit() for arc in arcs):
        raise BadRequest(f"{dotted[:64]!r} is no object identifier", hint="expected e.g. 1.2.156.10197.1.501")
    first, second, *rest = map(int, arcs)
    if first > 2 or (first < 2 and second > 39):
        raise BadRequest(
            f"{dotted[:64]!r} is no object identifier", hint="its first two arcs are out of range"
        )
    content = b"".join(_base128(arc) for arc in (40 * first + second, *rest))
    if len(content) > MAX_OID_LEN:
        raise BadRequest(f"an object identifier has at most {MAX_OID_LEN} bytes, got {len(content)}")
    return tlv(OID, content)


def _base128(value: int) -> bytes:
    septets = [value & 0x7F]
    while value := value >> 7:
        septets.append(0x80 | value & 0x7F)
    return bytes(reversed(septets))
