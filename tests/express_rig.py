"""A lane with what stands around it: a dispatcher, a worker's end, a caller's end, and frames between them.

For: ``tests/express``. Nothing here runs a process: ends are sockets that the test reads and writes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from appliance_pkcs11 import link

from appliance import _express, wire
from appliance.dispatch import (
    Dispatcher,
    Work,
)
from appliance.errors import ApplianceError
from appliance.metrics import ITEMS, SECONDS
from appliance.settings import SignerSettings
from appliance.wire import Priority, SignRequest

SETTINGS = SignerSettings(slice_target_ms=5.0, max_slice_items=64, max_attempts=4, bulk_share=4)
DEADLINE_S, MAX_DEADLINE_S = 30.0, 60.0
SLOT = 7


class Transport:
    """A socket's other owner: it says whether it has something half sent, and keeps what it is given."""

    def __init__(self) -> None:
        self.written = b""
        self.waiting = 0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes) -> None:
        self.written += data


class End:
    """One end is the lane's, by transport and file descriptor; the other is read by the test."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.transport = Transport()
        self._left = b""

    def received(self) -> bytes:
        try:
            return self.theirs.recv(1 << 20)
        except BlockingIOError:
            return b""

    def frames(self) -> list[tuple[int, int, bytes]]:
        """(type or kind, request id or sequence, payload) of what has come: both headers are alike."""
        data = self._left + self.received()
        found, at = [], 0
        while len(data) - at >= link.HEADER_LEN:
            header = link.unpack_header(data[at : at + link.HEADER_LEN])
            body_at = at + link.HEADER_LEN
            at = body_at + header.payload_len
            found.append((header.kind, header.sequence, data[body_at:at]))
        self._left = data[at:]
        return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Caller:
    """A session, as far as a lane knows it."""

    def __init__(self, requests: int = 1_000, items: int = 100_000, *, fd: bool = True) -> None:
        self.end = End()
        self.late_ones: list[tuple[int, int]] = []
        self.adopted: list[tuple[Work, int]] = []
        self.client = _express.Client(self, max_requests=requests, max_items=items)
        self.client.attach(self.end.transport, self.end.ours.fileno() if fd else -1)

    def adopt(self, work: Work, request_id: int, job: bytes) -> Callable[[Work], None]:
        self.adopted.append((work, request_id))
        return lambda _: None

    def late(self, request_id: int, count: int, accepted_at: float, error: ApplianceError) -> None:
        self.late_ones.append((request_id, count))
        self.client.close(request_id, count)

    def allow(self, key: str, lane: _express.Lane) -> None:
        self.client.allow(key, lane, DEADLINE_S, MAX_DEADLINE_S)

    def ask(self, request_id: int, key: str = "a", block: bytes = bytes(32), **fields: Any) -> bool:
        """Whether the lane has taken it."""
        frame = sign(request_id, key, block, **fields)
        taken = self.client.take(frame)
        assert taken in (0, len(frame))
        return bool(taken)

    def answers(self) -> list[int]:
        """The request ids of the answers that have come."""
        return [request_id for _, request_id, _ in self.end.frames()]


class Worker(_express.Link):
    """The front's end of a worker; the test is the worker."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        keys: tuple[str, ...] = ("a",),
        sessions: int = 1,
        *,
        batches: bool = True,
    ) -> None:
        self.end = End()
        self.sessions = sessions
        self.batches = batches
        for number, key in enumerate(keys):
            self.slots[key] = SLOT + number
        self.attach(dispatcher.lane, self.end.transport, self.end.ours.fileno())
        dispatcher.lane.workers.append(self)

    def slices(self) -> list[tuple[int, int, list[bytes]]]:
        """(sequence, slot, digests) of the slices that have come."""
        found = []
        for kind, sequence, payload in self.end.frames():
            assert kind == link.Kind.SIGN
            slot, form, count, _, data = link.unpack_sign(memoryview(payload))
            assert form is link.Form.DIGESTS
            found.append((sequence, slot, [bytes(data[32 * at : 32 * at + 32]) for at in range(count)]))
        return found


def sign(request_id: int, key: str = "a", block: bytes = bytes(32), **fields: Any) -> bytes:
    request = SignRequest(bytes(16), 0, 0, Priority.AUTOMATIC, key, wire.digests(block))
    return wire.encode_sign(request_id, request._replace(**fields))


def signature_of(digest: bytes) -> bytes:
    """It names the item, so that a result in a wrong place is seen."""
    return (b"signed: " + digest).ljust(64, b"\0")


def signed(
    sequence: int,
    digests: list[bytes],
    *,
    done: int | None = None,
    rv: int = 0,
    statuses: bytes = b"",
    execution_ns: int = 50_000,
) -> bytes:
    """A worker's answer."""
    count = len(digests)
    head = bytearray(link.signed_frame_len(count))
    link.pack_signed_head_into(head, sequence, count, count if done is None else done, rv, 0, execution_ns)
    blocks = (statuses or bytes(count)) + b"".join(map(signature_of, digests))
    head[-len(blocks) :] = blocks
    return bytes(head)


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(SETTINGS, 1_000, time.monotonic, lambda key: None, (SECONDS, ITEMS))


@pytest.fixture
def worker(dispatcher: Dispatcher) -> Iterator[Worker]:
    made = Worker(dispatcher)
    yield made
    made.end.close()


@pytest.fixture
def caller(dispatcher: Dispatcher) -> Iterator[Caller]:
    made = Caller()
    made.allow("a", dispatcher.lane)
    yield made
    made.client.lost()
    made.end.close()


def digest(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(28)
