"""The lane: what it takes is what the general way reads, it answers each request once, and its numbers add up."""

from __future__ import annotations

import errno
import gc
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any, Self

import pytest
from express_rig import (
    DEADLINE_S,
    MAX_DEADLINE_S,
    SETTINGS,
    SLOT,
    Caller,
    Worker,
    digest,
    sign,
    signature_of,
    signed,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance import _express, wire
from appliance.dispatch import (
    INTERACTIVE_MAX_ITEMS,
    Dispatcher,
    Work,
)
from appliance.errors import ApplianceError, ProtocolError
from appliance.metrics import ITEMS, SECONDS, Metrics
from appliance.wire import Form, FrameType, Priority, SignRequest

counts = st.one_of(st.integers(1, 3), st.integers(_express.MAX_ITEMS - 1, _express.MAX_ITEMS + 1))
digest_blocks = counts.flatmap(lambda count: st.binary(min_size=32 * count, max_size=32 * count))
names = st.sampled_from(("a", "印", "ab印", "n" * 64))
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


# What is taken -----------------------------------------------------------------------------------------------


def is_for_a_lane(frame: bytes) -> bool:
    """What the general way makes of it, as far as a lane asks."""
    reader = wire.FrameReader(wire.MIN_PAYLOAD_LIMIT)
    reader.receive(frame)
    try:
        found = reader.next_frame()
        if found is None or found.type is not FrameType.SIGN or not found.request_id or reader.buffered:
            return False
        request = wire.decode_sign(found.payload)
    except ProtocolError:
        return False
    return (
        request.key in ALL_NAMES
        and request.items.form is Form.DIGESTS
        and request.items.count <= _express.MAX_ITEMS
        and request.priority is not Priority.BULK
    )


ALL_NAMES = ("a", "印", "ab印", "n" * 64)


class Bench:
    """A lane of every name, one caller and one worker, anew for each example."""

    def __enter__(self) -> Self:
        self.dispatcher = Dispatcher(SETTINGS, 1_000, time.monotonic, lambda key: None, (SECONDS, ITEMS))
        self.worker = Worker(self.dispatcher, ALL_NAMES)
        self.caller = Caller()
        for name in ALL_NAMES:
            self.caller.allow(name, self.dispatcher.lane)
        return self

    def __exit__(self, *_: object) -> None:
        self.caller.client.lost()
        self.worker.end.close()
        self.caller.end.close()

    def take(self, data: bytes) -> int:
        return self.caller.client.take(data)


def test_the_numbers_are_those_of_wire_and_link() -> None:
    assert _express.MAX_ITEMS == INTERACTIVE_MAX_ITEMS


@given(sign_frames)
def test_a_request_on_its_way_there_and_back(frame: bytes) -> None:
    with Bench() as bench:
        taken = bench.take(frame)
        assert taken == (len(frame) if is_for_a_lane(frame) else 0)
        if not taken:
            assert not bench.worker.end.received() and not bench.dispatcher.live_requests
            return
        payload = frame[wire.HEADER_LEN :]
        request = wire.decode_sign(payload)
        request_id = int.from_bytes(frame[8:16], "big")
        ((sequence, slot, digests),) = bench.worker.slices()
        assert slot == SLOT + ALL_NAMES.index(request.key) and sequence >> 63
        assert b"".join(digests) == bytes(request.items.data)
        statuses = bytes(index % 3 for index in range(request.items.count))
        answer = signed(sequence, digests, statuses=statuses)
        assert bench.worker.answered(answer) == len(answer)
        expected = wire.SignedAnswer(
            request.job_id,
            request.first_index,
            len(digests),
            len(digests) - statuses.count(0),
            statuses,
            b"".join(map(signature_of, digests)),
        )
        assert bench.caller.end.received() == wire.encode_signed(request_id, expected)
        assert (bench.caller.client.requests, bench.caller.client.items) == (0, 0)


@given(sign_frames, st.integers(0, 1 << 16), st.integers(1, 255))
def test_a_byte_that_is_wrong(frame: bytes, position: int, difference: int) -> None:
    broken = bytearray(frame)
    broken[position % min(len(frame), 120)] ^= difference
    with Bench() as bench:
        assert bench.take(bytes(broken)) == (len(broken) if is_for_a_lane(bytes(broken)) else 0)


@given(sign_frames)
def test_every_length_field_at_its_edges(frame: bytes) -> None:
    for at, size in ((0, 4), (16 + 28, 4), (16 + 34, 1)):
        for number in (0, 1, 255, 256**size - 1, 256**size // 2):
            broken = bytearray(frame)
            broken[at : at + size] = (number % 256**size).to_bytes(size, "big")
            with Bench() as bench:
                assert bench.take(bytes(broken)) == (len(broken) if is_for_a_lane(bytes(broken)) else 0)


@given(st.lists(sign_frames, min_size=1, max_size=4, unique_by=lambda frame: frame[8:16]), st.data())
def test_whole_frames_from_the_front(frames: list[bytes], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from((b"", wire.encode_ping(1), frames[0][: len(frames[0]) - 1], b"\0")))
    with Bench() as bench:
        taken = 0
        for frame in frames:
            if not is_for_a_lane(frame):
                break
            taken += len(frame)
        assert bench.take(b"".join(frames) + end) == taken


def test_indices_beyond_64_bits(caller: Caller, worker: Worker) -> None:
    assert caller.ask(1, block=bytes(64), first_index=2**64 - 2)
    broken = bytearray(sign(2, block=bytes(64), first_index=2**64 - 2))
    broken[16 + 23] += 1
    assert not caller.client.take(bytes(broken))


def test_what_is_no_bytes_is_a_mistake(caller: Caller, worker: Worker) -> None:
    for function in (caller.client.take, worker.answered):
        with pytest.raises(TypeError, match="takes bytes"):
            function(bytearray(sign(1)))  # type: ignore[arg-type]


# Who may -----------------------------------------------------------------------------------------------------


def test_a_key_that_was_not_allowed(caller: Caller, worker: Worker) -> None:
    worker.slots["b"] = 3
    assert not caller.ask(1, "b") and not caller.ask(2, "A") and not caller.ask(3, "aa")
    assert caller.ask(4, "a")


def test_what_was_allowed_ends_with_the_next_change(
    caller: Caller, worker: Worker, dispatcher: Dispatcher
) -> None:
    assert caller.ask(1)
    _express.withdraw()
    assert not caller.ask(2)
    caller.allow("a", dispatcher.lane)
    assert caller.ask(2)


def test_more_keys_than_are_remembered(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    keys = [f"k{number}" for number in range(20)]
    for key in keys:
        worker.slots[key] = 1
        caller.allow(key, dispatcher.lane)
        caller.allow(key, dispatcher.lane)  # again is no second place
    assert [key for key in keys if caller.ask(1 + keys.index(key), key)] == keys[-8:]


def test_names_that_cannot_be_in_a_frame_are_not_remembered(caller: Caller, dispatcher: Dispatcher) -> None:
    caller.allow("", dispatcher.lane)
    caller.allow("n" * 65, dispatcher.lane)
    caller.client.lost()
    caller.allow("b", dispatcher.lane)
    assert caller.client.take(sign(1, "b")) == 0


def test_a_worker_must_have_the_key(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    del worker.slots["a"]
    assert not caller.ask(1)
    worker.slots["a"] = 1
    dispatcher.lane.workers.remove(worker)
    assert not caller.ask(1)
    dispatcher.lane.workers.append(object())  # a worker of another kind is no link
    assert not caller.ask(1)


def test_who_came_first_goes_first(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    """While anything is queued by the dispatcher, all that follows is queued there too."""
    dispatcher.lane.held = True
    assert not caller.ask(1)
    dispatcher.pump()
    assert caller.ask(1)


def test_no_more_is_queued_than_may_be(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    dispatcher.lane.queued_items = 1_000 - 2
    assert not caller.ask(1, block=bytes(96))
    assert caller.ask(1, block=bytes(64))


def test_a_lane_has_so_many_places() -> None:
    dispatcher = Dispatcher(SETTINGS, 1 << 20, time.monotonic, lambda key: None)
    worker, caller = Worker(dispatcher), Caller(1 << 20, 1 << 20)
    caller.allow("a", dispatcher.lane)
    taken = sum(caller.ask(number) for number in range(1, _express.MAX_ENTRIES + 10))
    assert taken == _express.MAX_ENTRIES == dispatcher.live_requests == caller.client.requests
    caller.client.lost()
    assert dispatcher.queued_items == 0
    worker.end.close()
    caller.end.close()


# The window --------------------------------------------------------------------------------------------------


def test_a_request_beyond_the_window_is_left_to_the_general_way(
    worker: Worker, dispatcher: Dispatcher
) -> None:
    caller = Caller(requests=2, items=5)
    caller.allow("a", dispatcher.lane)
    assert caller.ask(1, block=bytes(32 * 4))
    assert not caller.ask(1), "the id is in use"
    assert not caller.ask(2, block=bytes(64)), "too many items"
    assert caller.ask(2)
    assert not caller.ask(3), "too many requests"
    assert (caller.client.requests, caller.client.items) == (2, 5)
    caller.client.lost()
    caller.end.close()


class Nobody:
    def adopt(self, work: Work, request_id: int, job: bytes) -> Callable[[Work], None]:
        raise AssertionError

    def late(self, request_id: int, count: int, accepted_at: float, error: ApplianceError) -> None:
        raise AssertionError


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 40) | st.sampled_from((2**63, 2**64 - 1)), st.integers(0, 9))
    ),
    st.integers(1, 30),
    st.integers(1, 60),
)
def test_the_window_is_a_set_of_ids(steps: list[tuple[bool, int, int]], requests: int, items: int) -> None:
    client = _express.Client(Nobody(), max_requests=requests, max_items=items)
    held: dict[int, int] = {}
    for opens, request_id, count in steps:
        if not opens:
            client.close(request_id, held.pop(request_id, 0))
        elif request_id in held:
            assert client.open(request_id, count) == _express.ID_IN_USE
        elif len(held) == requests or sum(held.values()) + count > items:
            assert client.open(request_id, count) == _express.FULL
        else:
            assert client.open(request_id, count) == _express.OPEN
            held[request_id] = count
        assert (client.requests, client.items) == (len(held), sum(held.values()))


# Slices and answers ------------------------------------------------------------------------------------------


def test_what_waits_for_a_key_goes_together(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    dispatcher.lane.item_s = 1e-3  # a worker that is busy for long is not waited for
    for number in range(1, 11):
        assert caller.ask(number, block=digest(number))
    # One went straight to the worker, one ahead of its turn once three waited, the others wait.
    sent = worker.slices()
    done = [one for _, _, digests in sent for one in digests]
    while sent:
        sequence, _, digests = sent.pop(0)
        worker.answered(signed(sequence, digests))
        more = worker.slices()
        sent += more
        done += [one for _, _, digests in more for one in digests]
    assert done == [digest(number) for number in range(1, 11)]
    assert sorted(caller.answers()) == list(range(1, 11))
    assert dispatcher.live_requests == dispatcher.queued_items == dispatcher.inflight_items == 0
    counts, _ = dispatcher.lane.take_counts()[3]
    assert sum(counts) < 10, "not one by one"


def test_keys_take_turns(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    worker.slots["b"] = 9
    caller.allow("b", dispatcher.lane)
    dispatcher.lane.item_s = 4e-3  # one item makes a slice
    for number in range(1, 9):
        assert caller.ask(number, "a")
    assert caller.ask(9, "b")
    slots = []
    sent = worker.slices()
    while sent:
        sequence, slot, digests = sent.pop(0)
        slots.append(slot)
        worker.answered(signed(sequence, digests, execution_ns=4_000_000))
        sent += worker.slices()
    assert slots.index(9) <= 3, "not behind all of the other's"


def test_answers_to_several_leave_in_one_call(caller: Caller, worker: Worker) -> None:
    assert caller.ask(1, block=digest(1)) and caller.ask(2, block=digest(2))
    answers = b"".join(signed(sequence, digests) for sequence, _, digests in worker.slices())
    assert worker.answered(answers) == len(answers)
    assert len(caller.end.received()) == 2 * (16 + 32 + 65)


def test_an_answer_that_is_not_plain_success_is_not_taken(
    caller: Caller, worker: Worker, dispatcher: Dispatcher
) -> None:
    assert caller.ask(1, block=digest(1) + digest(2), priority=Priority.INTERACTIVE)
    ((sequence, _, digests),) = worker.slices()
    good = signed(sequence, digests)
    for broken in (
        signed(sequence, digests, done=1),
        signed(sequence, digests, rv=5),
        signed(sequence, digests[:1]),
        signed(sequence ^ 1, digests),
        signed(sequence & 0xFF, digests),
        good[:-1],
        good[:4] + b"\x42" + good[5:],
    ):
        assert worker.answered(broken) == 0
    assert worker.sequences == [sequence] and worker.oldest_sent_at is not None
    taken = worker.take_piece(sequence)
    assert taken is not None and worker.sequences == [] and worker.oldest_sent_at is None
    ((owner, key, request_id, job, block, priority, accepted_at, deadline_at),) = taken[1]
    assert (owner, key, request_id, job) == (caller, "a", 1, bytes(24))
    assert (block, priority) == (digest(1) + digest(2), Priority.INTERACTIVE)
    assert deadline_at - accepted_at == pytest.approx(DEADLINE_S)
    assert worker.take_piece(sequence) is None and worker.answered(good) == 0
    assert dispatcher.lane.live == 0 and dispatcher.inflight_items == 2
    assert caller.client.requests == 1, "it is still to be answered"


def test_what_waits_is_handed_over(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    worker.outstanding = 10  # it has no room
    assert caller.ask(1) and caller.ask(2, deadline_ms=5) and caller.ask(3, deadline_ms=10**9)
    assert dispatcher.queued_items == dispatcher.lane.waiting_items == 3
    dispatcher.adopt_waiting()
    assert dispatcher.lane.waiting_items == 0 and dispatcher.queued_items == 3 == dispatcher.live_requests
    assert [request_id for _, request_id in caller.adopted] == [1, 2, 3]
    waits = [round(work.deadline_at - work.accepted_at, 6) for work, _ in caller.adopted]
    assert waits == [DEADLINE_S, 0.005, MAX_DEADLINE_S]
    dispatcher.lane.forget("a")
    dispatcher.lane.forget("never heard of")


def test_what_is_late_is_told(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    assert caller.ask(1, deadline_ms=1)
    worker.outstanding = 10
    assert caller.ask(2, deadline_ms=1) and caller.ask(3)
    late_at = time.monotonic() + 1
    for owner, request_id, count, accepted_at in dispatcher.lane.expire(late_at):
        owner.late(request_id, count, accepted_at, ProtocolError("late"))
    assert sorted(caller.late_ones) == [(1, 1), (2, 1)] and not dispatcher.lane.expire(late_at)
    assert dispatcher.queued_items == 1 == dispatcher.live_requests == caller.client.requests
    ((sequence, _, digests),) = worker.slices()
    worker.outstanding = 1
    worker.answered(signed(sequence, digests))
    assert caller.answers() == [], "it was answered already"
    ((sequence, _, digests),) = worker.slices()
    worker.answered(signed(sequence, digests))
    assert caller.answers() == [3]


def test_a_client_that_has_gone(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    other = Caller()
    other.allow("a", dispatcher.lane)
    assert caller.ask(1, block=digest(1))
    worker.outstanding = 10
    assert caller.ask(2) and other.ask(2, block=digest(3)) and caller.ask(3)
    caller.client.lost()
    caller.client.lost()
    assert dispatcher.live_requests == dispatcher.queued_items == 1
    worker.outstanding = 1
    ((sequence, _, digests),) = worker.slices()
    assert worker.answered(signed(sequence, digests))
    assert not caller.end.received() and not caller.end.transport.written
    ((sequence, _, digests),) = worker.slices()
    assert digests == [digest(3)]
    taken = worker.take_piece(sequence)
    assert taken is not None and taken[1][0][0] is other
    other.end.close()


def test_a_piece_for_nobody_is_handed_over_without_an_owner(
    caller: Caller, worker: Worker, dispatcher: Dispatcher
) -> None:
    assert caller.ask(1)
    caller.client.lost()
    ((sequence, _, _),) = worker.slices()
    taken = worker.take_piece(sequence)
    assert taken is not None
    (part,) = dispatcher.adopt(taken[1])
    assert part.work.ended and dispatcher.live_requests == 0


def test_counting(caller: Caller, worker: Worker, dispatcher: Dispatcher) -> None:
    metrics = Metrics(["token"])
    metrics.follow("token", dispatcher.lane)
    assert caller.ask(1, block=digest(1) + digest(2) + digest(3))
    ((sequence, _, digests),) = worker.slices()
    worker.answered(signed(sequence, digests, statuses=b"\0\1\0", execution_ns=300_000))
    for _ in range(2):  # asked again, nothing is counted again
        page = metrics.page().decode()
        assert 'cloudseal_requests_total{outcome="ok",type="sign"} 1.0' in page
        assert 'cloudseal_items_total{outcome="signed",type="sign"} 2.0' in page
        assert 'cloudseal_items_total{outcome="failed",type="sign"} 1.0' in page
        assert 'cloudseal_request_seconds_count{type="sign"} 1.0' in page
        assert 'cloudseal_execution_seconds_bucket{le="0.00025",token="token"} 0.0' in page
        assert 'cloudseal_execution_seconds_bucket{le="0.0005",token="token"} 1.0' in page
        assert 'cloudseal_execution_seconds_sum{token="token"} 0.0003' in page
        assert 'cloudseal_slice_items_bucket{le="2.0",token="token"} 0.0' in page
        assert 'cloudseal_slice_items_bucket{le="4.0",token="token"} 1.0' in page
        assert 'cloudseal_queue_seconds_count{token="token"} 1.0' in page


def test_bounds_are_numbers_and_not_too_many() -> None:
    for bounds, error in (((0.1,) * 33, ValueError), (("x",), TypeError)):
        with pytest.raises(error):
            Dispatcher(SETTINGS, 1_000, time.monotonic, lambda key: None, (bounds, ()))  # type: ignore[arg-type]


# Writing -----------------------------------------------------------------------------------------------------


def answer_one(caller: Caller, worker: Worker, request_id: int) -> None:
    assert caller.ask(request_id)
    ((sequence, _, digests),) = worker.slices()
    assert worker.answered(signed(sequence, digests))


ANSWER_LEN = 16 + 32 + 65


def test_behind_what_a_transport_has_half_sent(caller: Caller, worker: Worker) -> None:
    caller.end.transport.waiting = 5
    answer_one(caller, worker, 1)
    assert len(caller.end.transport.written) == ANSWER_LEN and not caller.end.received()
    caller.end.transport.waiting = 0
    answer_one(caller, worker, 2)
    assert len(caller.end.transport.written) == ANSWER_LEN == len(caller.end.received())


def test_where_bytes_are_not_the_sockets(worker: Worker, dispatcher: Dispatcher) -> None:
    caller = Caller(fd=False)  # TLS
    caller.allow("a", dispatcher.lane)
    answer_one(caller, worker, 1)
    assert len(caller.end.transport.written) == ANSWER_LEN and not caller.end.received()
    caller.end.close()


def test_a_transport_that_is_closing_gets_nothing(caller: Caller, worker: Worker) -> None:
    caller.end.transport.closing = True
    answer_one(caller, worker, 1)
    assert not caller.end.transport.written and not caller.end.received()
    assert caller.client.requests == 0


def test_a_socket_that_takes_no_more(caller: Caller, worker: Worker) -> None:
    """What it takes not is the transport's; nothing is sent twice or out of the middle of a frame."""
    caller.end.ours.setblocking(False)
    filled = 0
    try:
        while True:
            filled += caller.end.ours.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    answer_one(caller, worker, 1)
    got = b""
    while data := caller.end.received():
        got += data
    sent = got[filled:] + caller.end.transport.written
    assert len(sent) == ANSWER_LEN and sent[8:16] == (1).to_bytes(8, "big")


def test_half_an_answer_leaves_the_rest_to_the_transport(worker: Worker, dispatcher: Dispatcher) -> None:
    """A TCP socket may take a part; from then on everything goes through the transport, in its order."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    caller = Caller()
    caller.client.attach(caller.end.transport, ours.fileno())
    caller.allow("a", dispatcher.lane)
    asked = 0
    while not caller.end.transport.written:
        ids = range(asked + 1, asked + 51)
        for request_id in ids:
            assert caller.ask(request_id, block=bytes(32 * 16))
        asked = ids[-1]
        while slices := worker.slices():
            worker.answered(b"".join(signed(sequence, digests) for sequence, _, digests in slices))
    kept = caller.end.transport.written
    theirs.settimeout(0.5)
    got = b""
    try:
        while data := theirs.recv(1 << 20):
            got += data
    except TimeoutError:
        pass
    whole = got + kept
    answer_len = 16 + 32 + 16 * 65
    assert len(whole) == asked * answer_len
    assert [
        int.from_bytes(whole[at + 8 : at + 16], "big") for at in range(0, len(whole), answer_len)
    ] == list(range(1, asked + 1))
    for sock in (listener, ours, theirs):
        sock.close()
    caller.client.lost()
    caller.end.close()


def test_a_socket_whose_other_end_has_gone(caller: Caller, worker: Worker) -> None:
    assert caller.ask(1)
    ((sequence, _, digests),) = worker.slices()
    caller.end.theirs.close()
    assert worker.answered(signed(sequence, digests))
    assert not caller.end.transport.written and caller.client.requests == 0


def test_a_transport_that_raises_is_not_the_lanes_end(
    caller: Caller, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[BaseException | None] = []
    monkeypatch.setattr("sys.unraisablehook", lambda hook: said.append(hook.exc_value))

    def fail() -> bool:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(caller.end.transport, "is_closing", fail)
    answer_one(caller, worker, 1)
    assert len(said) == 1 and isinstance(said[0], OSError)
    assert caller.client.requests == 0


def test_a_link_is_attached_once(worker: Worker, dispatcher: Dispatcher) -> None:
    with pytest.raises(RuntimeError, match="attached already"):
        worker.attach(dispatcher.lane, worker.end.transport, 0)
    worker.detach()
    worker.detach()


def test_nothing_is_left_of_what_nobody_holds() -> None:
    dispatcher = Dispatcher(SETTINGS, 1_000, time.monotonic, lambda key: None)
    worker, caller = Worker(dispatcher), Caller()
    caller.allow("a", dispatcher.lane)
    worker.outstanding = 10
    assert caller.ask(1) and caller.ask(2)
    worker.outstanding = 0
    dispatcher.lane.pump()
    ends = (worker.end, caller.end)
    left = (weakref.ref(worker), weakref.ref(caller))
    del worker, caller, dispatcher
    gc.collect()
    assert [one() for one in left] == [None, None]
    for end in ends:
        end.close()


# Everything, in any order ------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Each request ends once: answered, told as late, handed over, or its client has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher = Dispatcher(SETTINGS, 60, time.monotonic, lambda key: None, (SECONDS, ITEMS))
        self.lane = self.dispatcher.lane
        self.workers = [
            Worker(self.dispatcher, ("a", "b")),
            Worker(self.dispatcher, ("a",), sessions=2),
            Worker(self.dispatcher, ("a", "b"), batches=False),
        ]
        self.callers = [Caller(requests=12, items=80) for _ in range(3)]
        self.open: dict[tuple[int, int], list[bytes]] = {}  # (caller, request id) -> digests
        self.out: list[tuple[Worker, int, list[bytes]]] = []
        self.handed_over = 0  # items that the dispatcher counts now
        self.next_id = 0
        for caller in self.callers:
            for key in ("a", "b"):
                caller.allow(key, self.lane)

    def teardown(self) -> None:
        for one in (*self.workers, *self.callers):
            one.end.close()

    def collect(self) -> None:
        """What has been sent, to workers and to callers."""
        for worker in self.workers:
            self.out += [(worker, sequence, digests) for sequence, _, digests in worker.slices()]
        for number, caller in enumerate(self.callers):
            for _, request_id, payload in caller.end.frames():
                digests = self.open.pop((number, request_id))
                assert bytes(wire.decode_signed(payload).signatures) == b"".join(map(signature_of, digests))

    @rule(
        number=st.integers(0, 2),
        key=st.sampled_from("ab"),
        sizes=st.lists(st.integers(1, 16), min_size=1, max_size=5),
    )
    def ask(self, number: int, key: str, sizes: list[int]) -> None:
        caller = self.callers[number]
        frames, asked = [], []
        for size in sizes:
            self.next_id += 1
            digests = [digest(self.next_id * 16 + at) for at in range(size)]
            asked.append((self.next_id, digests))
            frames.append(sign(self.next_id, key, b"".join(digests)))
        taken = caller.client.take(b"".join(frames))
        for frame, (request_id, digests) in zip(frames, asked, strict=True):
            if taken <= 0:
                break
            taken -= len(frame)
            self.open[number, request_id] = digests
        assert taken <= 0
        self.collect()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker, sequence, digests = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        frame = signed(sequence, digests)
        assert worker.answered(frame) == len(frame)
        self.collect()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def take_over(self, data: st.DataObject) -> None:
        """As when a worker dies, or its token stops."""
        worker, sequence, digests = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        taken = worker.take_piece(sequence)
        assert taken is not None and b"".join(entry[4] for entry in taken[1]) == b"".join(digests)
        worker.outstanding -= 1
        self.lane.inflight_items -= len(digests)
        self.forget(taken[1])
        self.lane.pump()
        self.collect()

    @rule()
    def take_waiting(self) -> None:
        entries = self.lane.take_waiting()
        self.lane.queued_items -= sum(len(entry[4]) // 32 for entry in entries)
        self.forget(entries)

    def forget(self, entries: list[Any]) -> None:
        for owner, _, request_id, *_ in entries:
            if owner is not None:
                number = self.callers.index(owner)
                owner.client.close(request_id, len(self.open.pop((number, request_id))))

    @rule(late_s=st.sampled_from((0.0, 1_000.0)))
    def expire(self, late_s: float) -> None:
        for owner, request_id, count, accepted_at in self.lane.expire(time.monotonic() + late_s):
            assert late_s and isinstance(owner, Caller)
            assert len(self.open.pop((self.callers.index(owner), request_id))) == count
            owner.late(request_id, count, accepted_at, ProtocolError("late"))

    @rule(number=st.integers(0, 2))
    def lose(self, number: int) -> None:
        self.callers[number].client.lost()
        self.callers[number].end.close()
        self.callers[number] = Caller(requests=12, items=80)
        for key in ("a", "b"):
            self.callers[number].allow(key, self.lane)
        self.open = {known: digests for known, digests in self.open.items() if known[0] != number}

    @invariant()
    def the_numbers_add_up(self) -> None:
        assert self.lane.live == len(self.open) == self.dispatcher.live_requests
        assert self.lane.inflight_items == sum(len(digests) for _, _, digests in self.out)
        assert self.lane.queued_items == self.lane.waiting_items <= 60
        for number, caller in enumerate(self.callers):
            mine = [digests for known, digests in self.open.items() if known[0] == number]
            assert (caller.client.requests, caller.client.items) == (len(mine), sum(map(len, mine)))
        for worker in self.workers:
            mine_out = [sequence for owner, sequence, _ in self.out if owner is worker]
            assert worker.outstanding == len(mine_out) <= (worker.sessions + 1 if worker.batches else 16)
            assert sorted(worker.sequences) == sorted(mine_out)
        if self.lane.waiting_items:
            assert self.out, "nothing waits while all are idle"


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
