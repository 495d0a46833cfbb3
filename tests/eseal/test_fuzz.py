"""Whatever the bytes: read, or ``BadRequest``, and nothing else; and no change of a good signature leaves it good."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadRequest
from appliance.eseal.chains import read_certificate, read_crl
from appliance.eseal.structures import read_seal, read_signature
from appliance.eseal.timestamps import read_request, read_response, read_token
from appliance.eseal.verification import ACTIVE, CheckName, Examiner, Verdict
from appliance.verifying import Verifier, sm3

from .conftest import DOCUMENT, MANIFEST, VECTORS, load, trust

Read = Callable[[bytes], object]
HASH = sm3(DOCUMENT)
READERS: tuple[Read, ...] = (
    read_seal, read_signature, read_certificate, read_crl, read_token, read_request, read_response
)  # fmt: skip
STAMPED = read_signature(load("good_v5_stamped").data)
assert STAMPED.timestamp is not None
GOOD: tuple[tuple[Read, bytes], ...] = (
    (read_signature, load("good_v1").data),
    (read_signature, load("good_extensions").data),
    (read_signature, load("good_digest_list").data),
    (read_seal, load("good_seal_alone").data),
    (read_certificate, STAMPED.certificate),
    (read_crl, (VECTORS / "root.crl").read_bytes()),
    (read_token, STAMPED.timestamp),
)


def tolerate(read: Read, data: bytes) -> bool:
    """Whether it was read."""
    try:
        read(data)
    except BadRequest as error:
        assert error.detail
        return False
    return True


def headers(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """(where a length is, in how many bytes) of every element, those inside strings too where they parse."""
    at, end = start, len(data) if end is None else end
    while at + 2 <= end:
        size = data[at + 1] & 0x7F if data[at + 1] & 0x80 else 0
        length = int.from_bytes(data[at + 2 : at + 2 + size], "big") if size else data[at + 1]
        content = at + 2 + size
        if size > 4 or content + length > end:
            return
        yield at + 1, 1 + size
        if data[at] & 0x20:
            yield from headers(data, content, content + length)
        at = content + length


@pytest.mark.parametrize("read", READERS)
def test_random_bytes(read: Read) -> None:
    @settings(max_examples=100, deadline=None)
    @given(
        st.one_of(st.binary(max_size=64), st.binary(max_size=200).map(lambda inner: b"\x30\x81\xc8" + inner))
    )
    def run(data: bytes) -> None:
        tolerate(read, data)

    run()


@pytest.mark.parametrize(("read", "good"), GOOD)
def test_every_truncation(read: Read, good: bytes) -> None:
    assert tolerate(read, good)
    for length in range(0, len(good), max(1, len(good) // 400)):
        assert not tolerate(read, good[:length]), length
    assert not tolerate(read, good[:-1])
    assert not tolerate(read, good + b"\0")


@pytest.mark.parametrize(("read", "good"), GOOD)
def test_every_length_lies(read: Read, good: bytes) -> None:
    strict = read in (read_seal, read_signature)
    for at, size in headers(good):
        for value in {0, 1, 0x7F, 0x80, 0x81, 0x84, 0x85, 0xFF, good[at] ^ 1, (good[at] + 1) & 0xFF} - {
            good[at]
        }:
            read_it = tolerate(read, good[:at] + bytes((value,)) + good[at + 1 :])
            assert not (read_it and strict and size == 1), (at, value)
        longer = bytes((0x84,)) + (good[at] if size == 1 else 0).to_bytes(4, "big")
        tolerate(read, good[:at] + longer + good[at + 1 :])


def mutate(data: st.DataObject, good: bytes) -> bytes:
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(("set", "drop", "insert", "copy"))):
            case "set":
                changed[at] = data.draw(st.integers(0, 255))
            case "drop":
                del changed[at : at + data.draw(st.integers(1, 4))]
            case "insert":
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case _:
                other = data.draw(st.integers(0, len(changed) - 1))
                changed[at : at + 8] = changed[other : other + 8]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize(("read", "good"), GOOD)
def test_mutations(read: Read, good: bytes) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        tolerate(read, mutate(data, good))

    run()


@pytest.mark.gauntlet
@pytest.mark.parametrize(("read", "good"), GOOD)
def test_mutations_for_long(read: Read, good: bytes) -> None:
    @settings(max_examples=20_000, deadline=None)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        tolerate(read, mutate(data, good))

    run()


def changes_leave_nothing_good(verifier: Verifier, name: str, step: int, flips: tuple[int, ...]) -> None:
    vector = load(name)
    good, now, examiner = vector.data, vector.now, Examiner(trust(), verifier)
    assert examiner.signature(good, HASH, now, ACTIVE).verdict is Verdict.GOOD
    for at in range(0, len(good), step):
        for flip in flips:
            changed = good[:at] + bytes((good[at] ^ flip,)) + good[at + 1 :]
            report = examiner.signature(changed, HASH, now, ACTIVE)
            assert report.verdict is Verdict.INVALID, (at, flip)


def test_no_changed_byte_leaves_it_good(verifier: Verifier) -> None:
    changes_leave_nothing_good(verifier, "good_v4", 1, (1,))


@pytest.mark.gauntlet
@pytest.mark.parametrize("name", ["good_v1", "good_v4", "good_p256", "good_extensions", "good_digest_list"])
def test_no_changed_byte_leaves_it_good_in_full(verifier: Verifier, name: str) -> None:
    changes_leave_nothing_good(verifier, name, 1, (0x01, 0x20, 0x80, 0xFF))


@pytest.mark.parametrize("name", sorted(MANIFEST)[::4])
def test_reports_of_mutations_have_every_check(verifier: Verifier, name: str) -> None:
    vector = load(name)
    examiner = vector.examiner(verifier)

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        report = examiner.signature(mutate(data, vector.data), HASH, vector.now, vector.status, DOCUMENT)
        assert [check.name for check in report.checks] == list(CheckName)
        assert isinstance(report.facts, dict)

    run()
