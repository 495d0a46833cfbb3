"""Many seal signatures under few seals, verified together.

For: the same reports as ``Examiner.signature`` gives one by one, at a few microseconds each.
Not for: another judgement. A report of the fast way is one that the slow way made for the first of its kind.

Rules:

* Signatures of one *kind* have their seal, signer's certificate and algorithm in common. The first of a kind is
  examined in full. Its report holds for all others whose value is good, whose hash is the given one and who were
  signed inside the stretch of time within which nothing it depends on changes.
* Whatever does not have the plainest form, or fails anything here, is examined in full: the fast way never refuses.
* What all items of a kind begin with, the seal, is hashed once; each key takes one call of the native verifier.
* An item is taken from the sequence when its turn comes and not kept: it has tens of kilobytes, most of them those of
  its neighbour, and whoever holds them in one block need not hold them again one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from appliance.algorithms import PublicKey
from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.der import Reader, plain_time
from appliance.eseal.findings import Code, Finding
from appliance.eseal.structures import MAX_SIGNATURE_LEN, ESeal, read_seal
from appliance.eseal.timestamps import CLOCK_SKEW
from appliance.eseal.verification import (
    CheckName,
    Examiner,
    Report,
    Status,
)
from appliance.verifying import VALID

MAX_TOGETHER: Final = 4_096
"""Items taken through one pass: bounds what is held beside the items themselves."""

_MARK_LEN: Final = 64
"""Of the end of a seal, where its signature is: that differs between any two."""
_TICK: Final = timedelta(seconds=1)
"""Times in seals have whole seconds in the form that is taken here."""

Item = tuple[bytes, bytes | None]
"""A seal signature, DER, and the SM3 of the data it is over."""


class _Parts(NamedTuple):
    """Where the parts of a signature of the plainest form lie."""

    tbs_start: int
    seal_start: int
    seal_end: int
    tbs_end: int
    value_start: int
    """After the signer's certificate and the algorithm."""


@dataclass(slots=True)
class _Kind:
    """Signatures with the same seal, certificate and algorithm.

    ``report`` is that of the first one examined in full, and holds between ``since`` and ``until``. ``signer`` are
    the elements of certificate and algorithm; ``groups`` are by the length of what is signed.
    """

    key: PublicKey
    report: Report
    since: datetime
    until: datetime
    signer: bytes
    groups: dict[int, _Group] = field(default_factory=dict)


@dataclass(slots=True)
class _Group:
    """Those of a kind whose signed bytes begin alike, which they do when they are of one length.

    ``prefix`` is what they begin with: the header of TBS_Sign, the version, the seal.
    """

    kind: _Kind
    prefix: bytes
    tbs_len: int
    indexes: list[int] = field(default_factory=list)
    tails: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)

    def start_in(self, data: bytes) -> int:
        """Where TBS_Sign begins in a signature that belongs here, 0 in any other."""
        size = 2 if data[1:2] == b"\x82" else 3
        start = 2 + size
        length = len(data) - start
        # As DER has it: as many bytes as the length takes, and no less than two, for the prefix alone is longer.
        if not 1 << 8 * (size - 1) <= length < 1 << 8 * size:
            return 0
        if data[:start] != bytes((der.SEQUENCE, 0x80 | size)) + length.to_bytes(size, "big"):
            return 0
        if data.startswith(self.prefix, start) and data.startswith(self.kind.signer, start + self.tbs_len):
            return start
        return 0


def verify_many(
    examiner: Examiner,
    items: Sequence[Item],
    now: datetime,
    status_of: Callable[[ESeal], Status],
) -> list[Report]:
    """A report for each item, in order. ``status_of`` is asked once for each seal in every few thousand items."""
    return [
        report if report.source is item[0] else report._replace(source=item[0])
        for report, item in zip(findings_of_many(examiner, items, now, status_of), items, strict=True)
    ]


def findings_of_many(
    examiner: Examiner,
    items: Sequence[Item],
    now: datetime,
    status_of: Callable[[ESeal], Status],
) -> Iterator[Report]:
    """The same, for whoever needs no ``source``: all that share what was found share one report, the first one's.

    Items are taken by their index, each once or twice; a sequence may make them up as they are asked for.
    """
    for start in range(0, len(items), MAX_TOGETHER):
        indexes = range(start, min(start + MAX_TOGETHER, len(items)))
        yield from _Pass(examiner, items, indexes, now, status_of).run()


class _Pass:
    """One pass over some thousand items; lives as long as the call."""

    def __init__(
        self,
        examiner: Examiner,
        items: Sequence[Item],
        indexes: range,
        now: datetime,
        status_of: Callable[[ESeal], Status],
    ) -> None:
        self._examiner, self._items, self._indexes, self._now = examiner, items, indexes, now
        self._ask = status_of
        self._seals: dict[bytes, ESeal] = {}
        self._statuses: dict[bytes, Status] = {}
        self._kinds: dict[tuple[bytes, bytes], _Kind] = {}
        self._last: _Group | None = None  # an item mostly belongs where the one before it did
        self._times: dict[bytes, datetime | None] = {}
        self._reports: dict[int, Report] = {}

    def run(self) -> Iterator[Report]:
        """The reports, in order."""
        for index in self._indexes:
            self._sort(index, self._items[index])
        for kind in self._kinds.values():
            self._verify(kind)
        for index in self._indexes:
            yield self._reports.get(index) or self._in_full(self._items[index])

    def _in_full(self, item: Item) -> Report:
        data, data_hash = item
        return self._examiner.signature(data, data_hash, self._now, self._status_of)

    def _status_of(self, seal: ESeal) -> Status:
        status = self._statuses.get(seal.der)
        if status is None:
            status = self._statuses[seal.der] = self._ask(seal)
        return status

    def _sort(self, index: int, item: Item) -> None:
        """Put an item with its kind, or leave it: what is left is examined in full."""
        data, data_hash = item
        group = self._last
        start = group.start_in(data) if group is not None else 0
        if group is None or not start:
            group = self._last = self._group(index, item)
            start = group.start_in(data) if group is not None else 0
        if group is None or not start:
            return
        kind, tbs_end = group.kind, start + group.tbs_len
        tail = data[start + len(group.prefix) : tbs_end]
        if not _is_plain(tail) or tail[20:52] != data_hash:
            return
        signed_at, raw = self._time(tail[2:17]), _plain_value(data[tbs_end + len(kind.signer) :])
        if signed_at is not None and raw is not None and kind.since <= signed_at <= kind.until:
            group.indexes.append(index)
            group.tails.append(tail)
            group.values.append(raw)

    def _group(self, index: int, item: Item) -> _Group | None:
        """The group that an item belongs to. The first of a kind is examined for it."""
        data = item[0]
        parts = _split(data)
        if parts is None:
            return None
        tbs_start, seal_start, seal_end, tbs_end, value_start = parts
        seal = self._seal(data[seal_start:seal_end])
        tail, signer = data[seal_end:tbs_end], data[tbs_end:value_start]
        if seal is None or data[seal_start - 3 : seal_start] != bytes((2, 1, seal.header_version & 0x7F)):
            return None
        if not _is_plain(tail) or _plain_value(data[value_start:]) is None:
            return None
        name = seal.der[-_MARK_LEN:], signer
        kind = self._kinds.get(name)
        if kind is None:
            signed_at = self._time(tail[2:17])
            if signed_at is None:
                return None
            self._reports[index] = report = self._in_full(item)
            kind = self._kind(report, seal, signer, signed_at)
            if kind is None:
                return None
            self._kinds[name] = kind
        tbs_len = tbs_end - tbs_start
        group = kind.groups.get(tbs_len)
        if group is None:
            group = kind.groups[tbs_len] = _Group(kind, data[tbs_start:seal_end], tbs_len)
        return group

    def _seal(self, whole: bytes) -> ESeal | None:
        """The seal: known by its last bytes, then compared in whole."""
        mark = whole[-_MARK_LEN:]
        seal = self._seals.get(mark)
        if seal is None:
            try:
                seal = self._seals[mark] = read_seal(whole)
            except BadRequest:
                return None
        return seal if seal.der == whole else None

    def _time(self, digits: bytes) -> datetime | None:
        """Many items have the same second."""
        if digits not in self._times:
            self._times[digits] = plain_time(digits)
        return self._times[digits]

    def _kind(self, report: Report, seal: ESeal, signer: bytes, signed_at: datetime) -> _Kind | None:
        """A kind from the first of it; ``None`` where its report says something about this one alone."""
        chain = self._examiner.chain(Reader(signer, "cert", "").content("", der.OCTET_STRING))
        key = None if isinstance(chain, Finding) else chain.certificate.public
        if (
            isinstance(chain, Finding)
            or key is None
            or report.check(CheckName.SIGNATURE).code is not Code.OK
            or report.check(CheckName.DATA_HASH).code is not Code.OK
        ):
            return None
        certificate = chain.certificate
        since = max(seal.valid_from, seal.created_at - CLOCK_SKEW, certificate.valid_from)
        until = min(seal.valid_to, self._now + CLOCK_SKEW, certificate.valid_to)
        breaks = [self._status_of(seal).since]
        for path in chain.paths:
            since, until = max(since, path.window[0]), min(until, path.window[1])
            breaks += [revoked_at for _, revoked_at in path.revoked]
        for moment in breaks:
            if moment is not None and moment <= signed_at:
                since = max(since, moment)
            elif moment is not None:
                until = min(until, moment - _TICK)
        if not since <= signed_at <= until:
            return None
        return _Kind(key, report, since, until, signer)

    def _verify(self, kind: _Kind) -> None:
        """The signatures of a kind: all good ones get its report."""
        verifier = self._examiner.verifier
        groups = list(kind.groups.values())
        if not groups:
            return
        digests = b"".join(
            verifier.digest(kind.key, _lengths(group.tails), b"".join(group.tails), prefix=group.prefix)
            for group in groups
        )
        statuses = verifier.verify(kind.key, digests, b"".join(b"".join(group.values) for group in groups))
        indexes = (index for group in groups for index in group.indexes)
        for index, status in zip(indexes, statuses, strict=True):
            if status == VALID:
                self._reports[index] = kind.report


# The plainest form ----------------------------------------------------------------------------------------------


def _split(data: bytes) -> _Parts | None:
    """Where the parts lie, ``None`` for any other form. What is inside the parts is not looked at here."""
    try:
        outer, end = _span(data, 0, der.SEQUENCE)
        tbs, tbs_end = _span(data, outer, der.SEQUENCE)
        seal = tbs + 3
        _, seal_end = _span(data, seal, der.SEQUENCE)
        _, certificate_end = _span(data, tbs_end, der.OCTET_STRING)
        _, value = _span(data, certificate_end, der.OID)
    except (ValueError, IndexError):
        return None
    if end != len(data) or not seal_end <= tbs_end or not value <= end or end > MAX_SIGNATURE_LEN:
        return None
    return _Parts(outer, seal, seal_end, tbs_end, value)


def _span(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Start and end of an element's content; ``ValueError`` or ``IndexError`` where there is none in DER."""
    if data[at] != tag:
        raise ValueError(tag)
    length = data[at + 1]
    if length < 0x80:
        return at + 2, at + 2 + length
    count = length - 0x80
    length = int.from_bytes(data[at + 2 : at + 2 + count], "big")
    if not 1 <= count <= 3 or length < 0x80 or length >> 8 * (count - 1) == 0:
        raise ValueError(length)
    return at + 2 + count, at + 2 + count + length


def _is_plain(tail: bytes) -> bool:
    """The rest of TBS_Sign after the seal: time, 32 bytes of hash, property info of up to 127 bytes, no more."""
    return (
        len(tail) >= 54
        and tail[:2] == b"\x18\x0f"
        and tail[17:20] == b"\x03\x21\x00"
        and tail[52] == der.IA5_STRING
        and tail[53] == len(tail) - 54 < 0x80
        and tail[54:].isascii()
    )


def _plain_value(value: bytes) -> bytes | None:
    """``r || s`` from the BIT STRING that a signature ends with; ``None`` where it is not in DER."""
    # BIT STRING, length, no unused bits, SEQUENCE, length, INTEGER, length: seven bytes before r
    if len(value) < 12 or value[0] != der.BIT_STRING or value[1] != len(value) - 2 or value[2:4] != b"\0\x30":
        return None
    r_end = 7 + value[6]
    if value[4] != len(value) - 5 or r_end + 2 >= len(value) or value[r_end + 1] != len(value) - r_end - 2:
        return None
    if value[5] != der.INTEGER or value[r_end] != der.INTEGER:
        return None
    r, s = _unsigned(value[7:r_end]), _unsigned(value[r_end + 2 :])
    return None if r is None or s is None else r + s


def _unsigned(content: bytes) -> bytes | None:
    """32 bytes from an INTEGER's content, if it is positive, not too long and in the fewest bytes."""
    if not content or content[0] >= 0x80:
        return None
    if content[0]:
        return content.rjust(32, b"\0") if len(content) <= 32 else None
    return content[1:].rjust(32, b"\0") if 1 < len(content) <= 33 and content[1] >= 0x80 else None


def _lengths(messages: Sequence[bytes]) -> bytes:
    """As ``Verifier.digest`` takes them."""
    return struct.pack(f"!{len(messages)}I", *map(len, messages))
