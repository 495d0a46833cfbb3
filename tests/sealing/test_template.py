"""The native templates against the structures written out part by part, and against other people's hashes."""

from __future__ import annotations

import hashlib
import random
import struct
import threading
from array import array
from typing import Any

import pytest
from asn1crypto import core
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import _sealing
from appliance.algorithms import signature_to_der

P256, SM2 = 1, 2
TIME = b"20261122043000Z"
Z = bytes(range(32))
SIGNED, FAILED = 0, 2


def tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def tbs_of(body: bytes, time: bytes, data_hash: bytes, info: bytes) -> bytes:
    """TBS_Sign, as GB/T 38540-2020 lists its fields."""
    return tlv(0x30, body + tlv(0x18, time) + tlv(0x03, b"\0" + data_hash) + tlv(0x16, info))


def value_of(tbs: bytes, suffix: bytes, signature: bytes, token: bytes = b"") -> bytes:
    """SES_Signature."""
    value = tbs + suffix + tlv(0x03, b"\0" + signature_to_der(signature))
    return tlv(0x30, value + (tlv(0xA0, tlv(0x03, b"\0" + token)) if token else b""))


def digest_of(algorithm: int, tbs: bytes) -> bytes:
    if algorithm == SM2:
        return hashlib.new("sm3", Z + tbs).digest()
    return hashlib.sha256(tbs).digest()


def make(algorithm: int, body: bytes, suffix: bytes) -> _sealing.Template:
    return _sealing.Template(algorithm, Z if algorithm == SM2 else b"", body, suffix)


def lengths_of(infos: list[bytes]) -> bytes:
    return struct.pack(f"!{len(infos)}H", *map(len, infos))


def join(shared: tuple[bytes, bytes], count: int, block: bytes) -> list[tuple[int, bytes]]:
    """(status, complete value) of each item: what a client does."""
    at, values = count * _sealing.RECORD_LEN, []
    for status, *lengths in struct.iter_unpack("!BBHH", block[:at]):
        parts = []
        for length in lengths:
            parts.append(block[at : at + length])
            at += length
        head, middle, tail = parts
        values.append((status, head + shared[0] + middle + shared[1] + tail if head else b""))
    assert at == len(block)
    return values


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from((1, 2, 3, 15, 16, 17, 40, 257)))
    one_for_all = draw(st.booleans())
    lengths = draw(st.lists(st.integers(0, 1024), min_size=1, max_size=4))
    infos = [
        bytes(rng.randrange(128) for _ in range(rng.choice(lengths)))
        for _ in range(1 if one_for_all else count)
    ]
    return {
        "algorithm": draw(st.sampled_from((P256, SM2))),
        "body": rng.randbytes(draw(st.sampled_from((64, 65, 127, 128, 300, 65_500, 65_536, 70_000)))),
        "suffix": rng.randbytes(draw(st.integers(0, 2_000))),
        "hashes": rng.randbytes(32 * count),
        "infos": infos,
        "count": count,
        "signatures": b"".join(
            bytes(draw(st.sampled_from((0, 0, 1, 31)))).ljust(32, b"\x7f")[:16].ljust(32, b"\x01")
            + rng.randbytes(32)
            for _ in range(count)
        ),
        "statuses": bytes(rng.choice((SIGNED, SIGNED, SIGNED, FAILED)) for _ in range(count)),
        "tokens": [rng.randbytes(rng.choice((0, 1, 200, 4_000))) for _ in range(count)]
        if count < 20
        else None,
    }


@settings(max_examples=150, deadline=None)
@given(batches())
def test_digests_and_values_are_those_of_the_structures(batch: dict[str, Any]) -> None:
    template = make(batch["algorithm"], batch["body"], batch["suffix"])
    infos, count, hashes = batch["infos"], batch["count"], batch["hashes"]
    arguments = (TIME, hashes, lengths_of(infos), b"".join(infos))
    each = infos * count if len(infos) == 1 else infos
    tbs = [tbs_of(batch["body"], TIME, hashes[32 * i : 32 * i + 32], info) for i, info in enumerate(each)]
    for _ in range(2):  # with the lengths met for the first time, and known
        digests = template.digests(*arguments)
        assert digests == b"".join(digest_of(batch["algorithm"], one) for one in tbs)

    tokens = batch["tokens"]
    stamps = () if tokens is None else (array("I", map(len, tokens)), b"".join(tokens))
    block = template.values(*arguments, batch["statuses"], batch["signatures"], *stamps)
    of_all = tlv(0x16, infos[0]) if len(infos) == 1 else b""
    shared = batch["body"] + tlv(0x18, TIME), of_all + batch["suffix"]
    for i, (status, value) in enumerate(join(shared, count, block)):
        assert status == batch["statuses"][i]
        signature = batch["signatures"][64 * i : 64 * i + 64]
        token = b"" if tokens is None else tokens[i]
        assert value == (b"" if status else value_of(tbs[i], batch["suffix"], signature, token))


def test_numbers_are_written_as_short_as_der_wants_them() -> None:
    template = make(P256, bytes(100), b"")
    numbers = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 2**255 - 1, 2**255, 2**256 - 1, 2**247, 2**248 - 1]
    signatures = [a.to_bytes(32, "big") + b.to_bytes(32, "big") for a in numbers for b in numbers]
    count = len(signatures)
    block = template.values(TIME, bytes(32 * count), b"\0\0", b"", bytes(count), b"".join(signatures))
    for (_, value), raw in zip(join((bytes(100), b""), count, block), signatures, strict=True):
        assert value.endswith(signature_to_der(raw))
        assert core.Sequence.load(value[len(value) - len(signature_to_der(raw)) :], strict=True)


def test_bytes_that_are_the_same_are_hashed_once_for_each_length() -> None:
    template = make(SM2, bytes(40_000), b"")
    infos = [b"a" * length for length in (5, 6, 5, 7, 1024)]
    arguments = (TIME, bytes(32 * 5), lengths_of(infos), b"".join(infos))
    assert template.cold(*arguments, 100) == 4
    assert template.cold(*arguments, 2) == 2, "it counts no further than it is asked to"
    template.digests(*arguments)
    assert template.cold(*arguments, 100) == 0
    assert template.cold(TIME, bytes(64), lengths_of([b"123456789"]), b"123456789", 100) == 1


def test_what_a_template_holds_is_bounded() -> None:
    for algorithm, most in ((SM2, 200_000), (P256, 1_000_000)):
        template = make(algorithm, bytes(40_000), b"")
        before = template.size
        assert 40_000 <= before < 45_000
        infos = [b"a" * length for length in range(1025)]
        template.digests(TIME, bytes(32 * 1025), lengths_of(infos), b"".join(infos))
        assert before < template.size < most
        held = template.size
        template.digests(TIME, bytes(32 * 1025), lengths_of(infos), b"".join(infos))
        assert template.size == held


@pytest.mark.parametrize("algorithm", [P256, SM2])
def test_threads_share_a_template(algorithm: int) -> None:
    template = make(algorithm, random.Random(1).randbytes(30_000), b"")
    infos = [b"p" * (i % 50) for i in range(300)]
    arguments = (TIME, bytes(32 * 300), lengths_of(infos), b"".join(infos))
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(template.digests(*arguments))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    body = random.Random(1).randbytes(30_000)
    expected = b"".join(digest_of(algorithm, tbs_of(body, TIME, bytes(32), info)) for info in infos)
    assert got == [expected] * 8


GOOD = (TIME, bytes(64), b"\0\1\0\2", b"abc")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((TIME + b"0", *GOOD[1:]), "time"),
        ((TIME, bytes(63), *GOOD[2:]), "data hashes"),
        ((TIME, b"", *GOOD[2:]), "data hashes"),
        ((TIME, bytes(32 * (_sealing.MAX_ITEMS + 1)), b"\0\0", b""), "data hashes"),
        ((TIME, bytes(64), b"\0\1\0", b"abc"), "lengths"),
        ((TIME, bytes(64), b"", b""), "lengths"),
        ((TIME, bytes(96), b"\0\1\0\2", b"abc"), "lengths"),
        ((TIME, bytes(64), b"\0\1\0\2", b"ab"), "add up"),
        ((TIME, bytes(64), b"\0\1\0\2", b"abcd"), "add up"),
        ((TIME, bytes(32), b"\x04\x01", bytes(1025)), "at most 1024"),
        ((TIME, bytes(32), b"\0\2", "印".encode()[:2]), "ASCII"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: tuple[bytes, ...], word: str) -> None:
    template = make(SM2, bytes(100), b"")
    with pytest.raises(ValueError, match=word):
        template.digests(*arguments)
    with pytest.raises(ValueError, match=word):
        template.cold(*arguments, 1)
    with pytest.raises(ValueError, match=word):
        template.values(*arguments, bytes(2), bytes(128))


@pytest.mark.parametrize(
    "arguments",
    [
        (bytes(1), bytes(128)),
        (bytes(3), bytes(128)),
        (bytes(2), bytes(127)),
        (bytes(2), bytes(128), array("I", [1]), b"x"),
        (bytes(2), bytes(128), array("I", [1, 1]), b"x"),
        (bytes(2), bytes(128), array("I", [60_001, 0]), bytes(60_001)),
    ],
)
def test_statuses_signatures_and_stamps_that_do_not_fit_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        make(SM2, bytes(100), b"").values(*GOOD, *arguments)


@pytest.mark.parametrize(
    ("algorithm", "z", "body", "suffix"),
    [
        (3, Z, bytes(64), b""),
        (SM2, b"", bytes(64), b""),
        (P256, Z, bytes(64), b""),
        (SM2, Z, bytes(63), b""),
        (SM2, Z, bytes(_sealing.MAX_BODY_LEN + 1), b""),
        (SM2, Z, bytes(64), bytes(_sealing.MAX_SUFFIX_LEN + 1)),
    ],
)
def test_a_template_has_limits(algorithm: int, z: bytes, body: bytes, suffix: bytes) -> None:
    with pytest.raises(ValueError):
        _sealing.Template(algorithm, z, body, suffix)


def test_the_largest_of_everything_is_written() -> None:
    body, suffix = bytes(_sealing.MAX_BODY_LEN), bytes(_sealing.MAX_SUFFIX_LEN)
    template = make(SM2, body, suffix)
    info, token = b"i" * 1024, bytes(_sealing.MAX_STAMP_LEN)
    arguments = (TIME, bytes(32), lengths_of([info]), info)
    assert template.digests(*arguments) == digest_of(SM2, tbs_of(body, TIME, bytes(32), info))
    block = template.values(*arguments, b"\0", b"\xff" * 64, array("I", [len(token)]), token)
    shared = body + tlv(0x18, TIME), tlv(0x16, info) + suffix
    [(_, value)] = join(shared, 1, block)
    assert value == value_of(tbs_of(body, TIME, bytes(32), info), suffix, b"\xff" * 64, token)
