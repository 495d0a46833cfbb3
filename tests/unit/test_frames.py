"""The short way reads what the general way reads, and nothing else; it writes the same bytes."""

from __future__ import annotations

import pytest
from appliance_pkcs11 import link
from hypothesis import given
from hypothesis import strategies as st

from appliance import _frames, wire
from appliance.errors import ProtocolError
from appliance.wire import FrameType, Priority, SignRequest

LIMIT = wire.MIN_PAYLOAD_LIMIT
counts = st.one_of(st.integers(1, 3), st.integers(_frames.MAX_SMALL - 1, _frames.MAX_SMALL + 1))
digest_blocks = counts.flatmap(lambda count: st.binary(min_size=32 * count, max_size=32 * count))
names = st.text("ab印", min_size=1, max_size=8)
sign_frames = st.builds(
    lambda request_id, job_id, index, deadline_ms, priority, key, block: wire.encode_sign(
        request_id, SignRequest(job_id, index, deadline_ms, priority, key, wire.digests(block))
    ),
    st.integers(1, 2**64 - 1),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 64),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Priority),
    names,
    digest_blocks,
)
signed_payloads = counts.flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.integers(0, count),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.binary(min_size=65 * count, max_size=65 * count),
    )
)


def generally(data: bytes) -> list[tuple[object, ...]] | None:
    """What the general way makes of it, in the short way's words; None where that is an error or not all."""
    reader = wire.FrameReader(LIMIT)
    reader.receive(data)
    found: list[tuple[object, ...]] = []
    try:
        while (frame := reader.next_frame()) is not None:
            if frame.type is not FrameType.SIGN or not frame.request_id:
                return None
            request = wire.decode_sign(frame.payload)
            items = request.items
            if items.form is not wire.Form.DIGESTS or items.count > _frames.MAX_SMALL:
                return None
            found.append(
                (
                    frame.request_id,
                    bytes(frame.payload[:24]),
                    request.first_index,
                    request.deadline_ms,
                    items.count,
                    request.priority,
                    request.key,
                    bytes(items.data),
                    len(frame.payload),
                )
            )
    except ProtocolError:
        return None
    return None if reader.mid_frame else found


@given(st.lists(sign_frames, min_size=1, max_size=3))
def test_whole_frames(frames: list[bytes]) -> None:
    data = b"".join(frames)
    assert _frames.read_signs(data, LIMIT) == generally(data)


@given(sign_frames, st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_byte_that_is_wrong(frame: bytes, position: int, difference: int) -> None:
    broken = bytearray(frame)
    broken[position % min(len(frame), 70)] ^= difference
    assert _frames.read_signs(bytes(broken), LIMIT) == generally(bytes(broken))


@given(sign_frames, st.data())
def test_a_frame_that_is_not_whole_or_has_something_behind_it(frame: bytes, data: st.DataObject) -> None:
    assert _frames.read_signs(frame[: data.draw(st.integers(0, len(frame) - 1))], LIMIT) is None
    assert _frames.read_signs(frame + frame[: data.draw(st.integers(1, len(frame) - 1))], LIMIT) is None
    assert _frames.read_signs(frame + wire.encode_ping(1), LIMIT) is None


@given(sign_frames)
def test_every_length_field_at_its_edges(frame: bytes) -> None:
    for at, size in ((0, 4), (16 + 28, 4), (16 + 34, 1)):
        for number in (0, 1, 255, 256**size - 1, 256**size // 2):
            broken = bytearray(frame)
            broken[at : at + size] = (number % 256**size).to_bytes(size, "big")
            assert _frames.read_signs(bytes(broken), LIMIT) == generally(bytes(broken))


def test_a_payload_over_the_limit_is_left_to_the_general_way() -> None:
    frame = wire.encode_sign(1, SignRequest(bytes(16), 0, 0, Priority.BULK, "seal", wire.digests(bytes(32))))
    assert _frames.read_signs(frame, len(frame) - 16) is not None
    assert _frames.read_signs(frame, len(frame) - 17) is None


def test_indices_beyond_64_bits() -> None:
    items = wire.digests(bytes(64))
    frame = bytearray(wire.encode_sign(1, SignRequest(bytes(16), 2**64 - 2, 0, Priority.BULK, "k", items)))
    assert _frames.read_signs(bytes(frame), LIMIT) == generally(bytes(frame)) != None  # noqa: E711
    frame[16 + 23] += 1
    assert _frames.read_signs(bytes(frame), LIMIT) is None


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
