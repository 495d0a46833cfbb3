"""Small frames are read and written natively as the general way does it, and nothing else is read."""

from __future__ import annotations

import pytest
from appliance_pkcs11 import link
from hypothesis import given
from hypothesis import strategies as st

from appliance import _frames, wire

counts = st.one_of(st.integers(1, 3), st.integers(_frames.MAX_SMALL - 1, _frames.MAX_SMALL + 1))
digest_blocks = counts.flatmap(lambda count: st.binary(min_size=32 * count, max_size=32 * count))
signed_payloads = counts.flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.integers(0, count),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(min_size=65 * count, max_size=65 * count),
    )
)


@given(
    st.integers(0, 2**64 - 1),
    st.binary(min_size=24, max_size=24),
    st.lists(st.sampled_from((0, 1, 2)), min_size=1, max_size=20),
)
def test_a_signed_frame_is_the_one_that_the_codec_makes(
    request_id: int, job: bytes, states: list[int]
) -> None:
    statuses, signatures = bytes(states), bytes(range(64)) * len(states)
    failed = len(states) - states.count(0)
    answer = wire.SignedAnswer(
        job[:16], int.from_bytes(job[16:], "big"), len(states), failed, statuses, signatures
    )
    frame, counted = _frames.pack_signed(request_id, job, memoryview(statuses), bytearray(signatures))
    assert (frame, counted) == (wire.encode_signed(request_id, answer), failed)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), digest_blocks)
def test_a_slice_is_the_one_that_the_link_makes(sequence: int, slot: int, block: bytes) -> None:
    expected = link.pack_sign_digests(sequence, slot, block)
    assert _frames.pack_slice(sequence, slot, len(block) // 32, memoryview(block)) == expected


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), signed_payloads), min_size=1, max_size=3))
def test_answers_of_the_link(answers: list[tuple[int, tuple[int, int, int, int, bytes]]]) -> None:
    data, expected = b"", []
    for sequence, (count, done, rv, execution_ns, blocks) in answers:
        frame = bytearray(link.signed_frame_len(count))
        link.pack_signed_head_into(frame, sequence, count, done, rv, 7, execution_ns)
        frame[-len(blocks) :] = blocks
        data += frame
        expected.append((sequence, count, done, rv, execution_ns, blocks[:count], blocks[count:]))
    small = all(one[1] <= _frames.MAX_SMALL for one in expected)
    assert _frames.read_answers(data) == (expected if small else None)
    for cut in (1, 16, len(data) - 1):
        assert _frames.read_answers(data[:-cut]) is None or len(answers) > 1
    assert _frames.read_answers(data + b"\0") is None


@pytest.mark.parametrize("at", [4, 5, 6, 7, 16 + 3, 16 + 7])
def test_an_answer_of_the_link_that_cannot_be(at: int) -> None:
    frame = bytearray(link.signed_frame_len(2))
    link.pack_signed_head_into(frame, 1, 2, 2, 0, 0, 5)
    assert _frames.read_answers(bytes(frame)) is not None
    frame[at] ^= 0x41
    assert _frames.read_answers(bytes(frame)) is None


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="other lengths"):
        _frames.pack_signed(1, bytes(24), b"\0", bytes(63))
    with pytest.raises(ValueError, match="other lengths"):
        _frames.pack_signed(1, bytes(23), b"\0", bytes(64))
    with pytest.raises(ValueError, match="other lengths"):
        _frames.pack_slice(1, 0, 2, bytes(32))
