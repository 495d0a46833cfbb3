"""The link's codec: what is packed is unpacked, and whatever else arrives is a LinkError."""

from __future__ import annotations

import contextlib
import re

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Form, Kind, LinkError
from hypothesis import given
from hypothesis import strategies as st

SEQUENCES = st.integers(0, 2**64 - 1)
SLOTS = st.integers(0, 2**32 - 1)


def split(frame):
    header = link.unpack_header(frame[: link.HEADER_LEN])
    payload = memoryview(frame)[link.HEADER_LEN :]
    assert len(payload) == header.payload_len
    return header, payload


@given(SEQUENCES, SLOTS, st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=50))
def test_digests_round_trip(sequence, slot, digests):
    header, payload = split(link.pack_sign_digests(sequence, slot, b"".join(digests)))
    assert header == (len(payload), Kind.SIGN, sequence)
    request = link.unpack_sign(payload)
    assert (request.slot, request.form, request.item_count) == (slot, Form.DIGESTS, len(digests))
    assert request.lengths is None
    assert bytes(request.data) == b"".join(digests)


@given(SEQUENCES, SLOTS, st.lists(st.binary(max_size=100), min_size=1, max_size=50))
def test_messages_round_trip(sequence, slot, messages):
    _, payload = split(link.pack_sign_messages(sequence, slot, messages))
    request = link.unpack_sign(payload)
    assert (request.slot, request.form, request.item_count) == (slot, Form.MESSAGES, len(messages))
    assert request.lengths is not None
    lengths = [int.from_bytes(request.lengths[i : i + 4], "big") for i in range(0, len(request.lengths), 4)]
    assert lengths == [len(message) for message in messages]
    assert bytes(request.data) == b"".join(messages)


@given(SEQUENCES, st.data())
def test_signed_round_trips(sequence, data):
    count = data.draw(st.integers(1, 50))
    done = data.draw(st.integers(0, count))
    rv, item_rv, nanoseconds = (data.draw(st.integers(0, 2**64 - 1)) for _ in range(3))
    blocks = data.draw(st.binary(min_size=65 * count, max_size=65 * count))
    frame = bytearray(link.signed_frame_len(count))
    frame[-len(blocks) :] = blocks
    link.pack_signed_head_into(frame, sequence, count, done, rv, item_rv, nanoseconds)
    header, payload = split(frame)
    assert (header.kind, header.sequence) == (Kind.SIGNED, sequence)
    signed = link.unpack_signed(payload)
    assert signed[:5] == (count, done, rv, item_rv, nanoseconds)
    assert bytes(signed.statuses) + bytes(signed.signatures) == blocks


@given(SEQUENCES, st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans(), st.none())))
def test_json_round_trips(sequence, fields):
    header, payload = split(link.pack_json(Kind.START, sequence, fields))
    assert (header.kind, header.sequence) == (Kind.START, sequence)
    assert link.unpack_json(payload) == fields


@given(st.binary(max_size=300))
def test_whatever_arrives_is_read_or_is_a_link_error(block):
    for unpack in (link.unpack_header, link.unpack_json):
        with contextlib.suppress(LinkError):
            unpack(block)
    for unpack_view in (link.unpack_sign, link.unpack_signed):
        with contextlib.suppress(LinkError):
            unpack_view(memoryview(block))


@given(st.integers(0, 5), st.integers(0, 2), st.integers(0, 70_000), st.binary(max_size=200))
def test_no_count_and_no_length_is_believed(slot, form, count, blocks):
    payload = link.SIGN_HEAD.pack(slot, form, b"\0\0\0", count) + blocks
    try:
        request = link.unpack_sign(memoryview(payload))
    except LinkError:
        return
    assert request.item_count == count
    assert len(request.lengths or b"") + len(request.data) == len(blocks)


@given(st.data())
def test_a_truncated_or_longer_frame_is_a_link_error(data):
    frame = link.pack_sign_messages(1, 2, data.draw(st.lists(st.binary(max_size=20), min_size=1, max_size=5)))
    payload = frame[link.HEADER_LEN :]
    cut = data.draw(st.integers(0, len(payload) - 1))
    for wrong in (payload[:cut], payload + b"\0"):
        with pytest.raises(LinkError):
            link.unpack_sign(memoryview(wrong))


def test_limits():
    with pytest.raises(LinkError, match="at most"):
        link.pack_header(Kind.SIGN, 0, link.MAX_PAYLOAD_LEN + 1)
    with pytest.raises(LinkError, match="1 to"):
        link.pack_sign_digests(0, 0, b"")
    with pytest.raises(LinkError, match="1 to"):
        link.pack_sign_digests(0, 0, bytes(32 * (link.MAX_ITEMS + 1)))
    with pytest.raises(LinkError, match="32 bytes each"):
        link.pack_sign_digests(0, 0, bytes(33))
    assert link.HEADER_LEN == 16


def test_the_tables_of_the_docstring_are_the_code():
    assert link.__doc__
    rows = dict(re.findall(r"^(\d+) +([A-Z_]+) ", link.__doc__, re.MULTILINE))
    assert {int(number): name for number, name in rows.items()} == {kind.value: kind.name for kind in Kind}
