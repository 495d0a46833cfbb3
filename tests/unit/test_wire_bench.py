"""The codec alone. A normal run looks that it still works; ``pytest --benchmark-only`` with more rounds measures."""

from __future__ import annotations

from typing import Any

import pytest

from appliance import wire
from appliance.wire import FrameReader, Priority, SignedAnswer, SignRequest

SIZES = (1, 256, 4_096)


@pytest.fixture
def quick(benchmark: Any) -> Any:
    return lambda function, *arguments: benchmark.pedantic(
        function, arguments, iterations=10, rounds=5, warmup_rounds=1
    )


def request_of(count: int) -> SignRequest:
    return SignRequest(bytes(16), 0, 30_000, Priority.AUTOMATIC, "seal-2024", wire.digests(bytes(32 * count)))


def answer_of(count: int) -> SignedAnswer:
    return SignedAnswer(bytes(16), 0, count, 0, bytes(count), bytes(64 * count))


@pytest.mark.parametrize("count", SIZES)
def test_encode_sign(quick: Any, count: int) -> None:
    assert quick(wire.encode_sign, 1, request_of(count))


@pytest.mark.parametrize("count", SIZES)
def test_decode_sign(quick: Any, count: int) -> None:
    payload = memoryview(wire.encode_sign(1, request_of(count)))[wire.HEADER_LEN :]
    assert quick(wire.decode_sign, payload).items.count == count


@pytest.mark.parametrize("count", SIZES)
def test_encode_signed(quick: Any, count: int) -> None:
    assert quick(wire.encode_signed, 1, answer_of(count))


@pytest.mark.parametrize("count", SIZES)
def test_decode_signed(quick: Any, count: int) -> None:
    payload = memoryview(wire.encode_signed(1, answer_of(count)))[wire.HEADER_LEN :]
    assert quick(wire.decode_signed, payload).count == count


def test_decode_sign_of_messages(quick: Any) -> None:
    request = request_of(1)._replace(items=wire.messages([b"message"] * 4_096))
    payload = memoryview(wire.encode_sign(1, request))[wire.HEADER_LEN :]
    assert quick(wire.decode_sign, payload).items.count == 4_096


def test_read_64_single_requests_from_one_chunk(quick: Any) -> None:
    chunk = wire.encode_sign(1, request_of(1)) * 64

    def read() -> int:
        reader, count = FrameReader(1 << 24), 0
        reader.receive(chunk)
        while reader.next_frame() is not None:
            count += 1
        return count

    assert quick(read) == 64
