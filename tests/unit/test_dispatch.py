"""The dispatcher with workers and a clock of the test's own: nothing waits, every step is one call."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance import wire
from appliance.algorithms import SIGNATURE_LEN
from appliance.dispatch import (
    FIRST_GUESS_ITEM_S,
    INTERACTIVE_MAX_ITEMS,
    MIN_AHEAD_ITEMS,
    STAY_PATIENCE_S,
    STAY_S,
    Dispatcher,
    Slice,
    Work,
)
from appliance.errors import ApplianceError, Busy, DeadlineExceeded, SignerFailed, Unavailable
from appliance.settings import SignerSettings
from appliance.wire import Form, ItemStatus, Priority

SETTINGS = SignerSettings(slice_target_ms=5.0, max_slice_items=4_096, max_attempts=4, bulk_share=4)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def digest_of(number: int) -> bytes:
    return struct.pack("!Q", number) + bytes(24)


def signature_of(digest: bytes) -> bytes:
    """What the fake token makes of an item: it names the item, so that a result in a wrong place is seen."""
    return (b"signed: " + digest).ljust(SIGNATURE_LEN, b"\0")


def items_of(piece: Slice) -> list[bytes]:
    """A slice's items, read back from what would go over the link."""
    body = b"".join(bytes(part) for part in piece.body())
    if piece.form is Form.DIGESTS:
        assert len(body) == 32 * piece.count
        return [body[at : at + 32] for at in range(0, len(body), 32)]
    lengths = struct.unpack_from(f"!{piece.count}I", body)
    at, messages = 4 * piece.count, []
    for length in lengths:
        messages.append(body[at : at + length])
        at += length
    assert at == len(body)
    return messages


class FakeWorker:
    def __init__(self, rig: Rig, sessions: int = 1, keys: tuple[str, ...] | None = None) -> None:
        self.rig = rig
        self.sessions = sessions
        self.outstanding = 0
        self.keys = keys
        self.slices: list[Slice] = []

    def has_key(self, key: str) -> bool:
        return self.keys is None or key in self.keys

    def send(self, piece: Slice) -> None:
        assert self in self.rig.workers, "a worker that is gone is given nothing"
        assert self.has_key(piece.key)
        assert piece.count == sum(part.count for part in piece.parts) > 0
        assert {part.work.key for part in piece.parts} == {piece.key}
        self.slices.append(piece)
        assert len(self.slices) <= self.sessions + 1
        self.rig.sent.append(piece)


class Rig:
    """A dispatcher, its workers, and everything that came out of it."""

    def __init__(
        self,
        workers: int = 0,
        *,
        sessions: int = 1,
        settings: SignerSettings = SETTINGS,
        limit: int = 65_536,
    ) -> None:
        self.clock = FakeClock()
        self.wanted: list[str] = []
        self.ended: list[Work] = []
        self.sent: list[Slice] = []
        self.workers: list[FakeWorker] = []
        self.dispatcher = Dispatcher(settings, limit, self.clock, self.wanted.append)
        self._numbers = 0
        for _ in range(workers):
            self.worker(sessions)

    def worker(self, sessions: int = 1, keys: tuple[str, ...] | None = None) -> FakeWorker:
        worker = FakeWorker(self, sessions, keys)
        self.workers.append(worker)
        self.dispatcher.worker_up(worker)
        return worker

    def work(
        self,
        count: int = 1,
        key: str = "k",
        priority: Priority = Priority.AUTOMATIC,
        deadline_s: float = 30.0,
        form: Form = Form.DIGESTS,
    ) -> Work:
        numbers = range(self._numbers, self._numbers + count)
        self._numbers += count
        block = [digest_of(number) for number in numbers]
        if form is Form.DIGESTS:
            items = wire.digests(b"".join(block))
        else:
            items = wire.messages([one[: 8 + i % 20] for i, one in enumerate(block)])
        return Work(key, items, priority, self.clock.now, self.clock.now + deadline_s, self.ended.append)

    def submit(
        self, count: int = 1, key: str = "k", priority: Priority = Priority.AUTOMATIC, **more: object
    ) -> Work:
        work = self.work(count, key, priority, **more)  # type: ignore[arg-type]
        self.dispatcher.submit(work)
        return work

    def answer(
        self,
        worker: FakeWorker,
        *,
        at: int = 0,
        done: int | None = None,
        item_s: float = FIRST_GUESS_ITEM_S,
        refuse: frozenset[bytes] = frozenset(),
    ) -> Slice:
        piece = worker.slices.pop(at)
        done = piece.count if done is None else done
        items = items_of(piece)[:done]
        statuses = bytes(ItemStatus.REFUSED if item in refuse else ItemStatus.SIGNED for item in items)
        signatures = b"".join(
            bytes(SIGNATURE_LEN) if item in refuse else signature_of(item) for item in items
        )
        filler = piece.count - done
        self.dispatcher.slice_answered(
            worker,
            piece,
            statuses + bytes(filler),
            signatures + bytes(filler * SIGNATURE_LEN),
            done,
            item_s * done,
        )
        self.dispatcher.pump()
        return piece

    def kill(self, worker: FakeWorker) -> None:
        self.workers.remove(worker)
        slices, worker.slices = worker.slices, []
        self.dispatcher.worker_gone(worker, slices)

    def run(self, item_s: float = FIRST_GUESS_ITEM_S) -> None:
        """Answer all that is out until nothing is."""
        self.dispatcher.pump()
        while any(worker.slices for worker in self.workers):
            for worker in self.workers:
                if worker.slices:
                    self.answer(worker, item_s=item_s)

    def check_idle(self) -> None:
        dispatcher = self.dispatcher
        assert (dispatcher.queued_items, dispatcher.inflight_items, dispatcher.live_requests) == (0, 0, 0)
        assert not dispatcher._interactive and not dispatcher._bulk and not dispatcher._suspects
        assert all(not worker.outstanding for worker in self.workers)


def item_bytes(work: Work) -> list[bytes]:
    data = bytes(work.items.data)
    if work.items.form is Form.DIGESTS:
        return [data[at : at + 32] for at in range(0, len(data), 32)]
    lengths, at, out = struct.unpack(f"!{work.count}I", work.items.lengths), 0, []
    for length in lengths:
        out.append(data[at : at + length])
        at += length
    return out


def check_signed(work: Work, failed: frozenset[int] = frozenset()) -> None:
    """It ended well, and each signature is its own item's."""
    assert work.ended and work.error is None and work.missing == 0
    assert len(work.statuses) == work.count and len(work.signatures) == work.count * SIGNATURE_LEN
    signatures = bytes(work.signatures)
    for i, item in enumerate(item_bytes(work)):
        expected = bytes(SIGNATURE_LEN) if i in failed else signature_of(item)
        got = signatures[i * SIGNATURE_LEN : (i + 1) * SIGNATURE_LEN]
        assert got == expected, f"item {i}"
        assert (work.statuses[i] == ItemStatus.SIGNED) == (i not in failed)


# Into slices ------------------------------------------------------------------------------------------------


def test_a_lone_request_goes_straight_through() -> None:
    rig = Rig(1)
    work = rig.submit()
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.sent] == [1]
    rig.answer(rig.workers[0])
    check_signed(work)
    assert rig.ended == [work]
    rig.check_idle()


def test_what_arrives_while_all_are_busy_travels_together() -> None:
    rig = Rig(1)
    works = []
    for _ in range(2):
        works.append(rig.submit())
        rig.dispatcher.pump()
    works += [rig.submit() for _ in range(40)]
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.sent] == [1, 1], "one slice ahead"
    rig.answer(rig.workers[0])
    assert [piece.count for piece in rig.sent] == [1, 1, 40]
    rig.run()
    for work in works:
        check_signed(work)
    rig.check_idle()


def test_a_slice_is_given_ahead_only_where_enough_waits() -> None:
    rig = Rig(1, sessions=3)
    rig.submit()
    rig.dispatcher.pump()
    rig.clock.now += 2 * STAY_PATIENCE_S
    for _ in range(2 + MIN_AHEAD_ITEMS - 1):
        rig.submit()
        rig.dispatcher.pump()
    assert len(rig.workers[0].slices) == 3
    rig.submit()
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.workers[0].slices] == [1, 1, 1, MIN_AHEAD_ITEMS]
    rig.run()
    rig.check_idle()


def test_little_work_stays_with_the_worker_that_is_awake() -> None:
    rig = Rig(2)
    little = int(STAY_S / FIRST_GUESS_ITEM_S)
    for _ in range(little - 1):
        rig.submit()
        rig.dispatcher.pump()
    assert [piece.count for piece in rig.workers[0].slices] == [1, 1]
    assert not rig.workers[1].slices
    rig.submit()
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.workers[1].slices] == [little - 2], "it is not little any more"
    rig.run()
    rig.check_idle()


def test_a_worker_that_does_not_answer_is_not_waited_for() -> None:
    rig = Rig(2)
    for _ in range(3):
        rig.submit()
        rig.dispatcher.pump()
    assert not rig.workers[1].slices
    rig.clock.now += 2 * STAY_PATIENCE_S
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.workers[1].slices] == [1]


def test_before_a_slow_token_nothing_waits_for_a_worker_that_is_awake() -> None:
    rig = Rig(2)
    rig.submit()
    rig.dispatcher.pump()
    rig.answer(rig.workers[0], item_s=0.02)
    for _ in range(2):
        rig.submit()
        rig.dispatcher.pump()
    assert [len(worker.slices) for worker in rig.workers] == [1, 1]


def test_a_batch_is_spread_over_idle_workers() -> None:
    rig = Rig(4)
    work = rig.submit(40)
    rig.dispatcher.pump()
    assert [sum(piece.count for piece in worker.slices) for worker in rig.workers] == [10, 10, 10, 10]
    rig.run()
    check_signed(work)
    rig.check_idle()


def test_a_batch_is_spread_over_idle_sessions() -> None:
    rig = Rig(1, sessions=4)
    rig.submit(40)
    rig.dispatcher.pump()
    assert [piece.count for piece in rig.workers[0].slices] == [10, 10, 10, 10]


def test_a_slice_is_what_the_token_signs_in_the_target_time() -> None:
    rig = Rig(1)
    rig.submit(20_000)
    rig.dispatcher.pump()
    for _ in range(40):  # the token turns out to take 10 µs an item: 500 of them in 5 ms
        rig.answer(rig.workers[0], item_s=10e-6)
    assert rig.sent[0].count == int(SETTINGS.slice_target_ms / 1_000 / FIRST_GUESS_ITEM_S)
    assert 490 <= rig.sent[-1].count <= 500
    rig.run(item_s=10e-6)
    rig.check_idle()


@pytest.mark.parametrize("item_s", [0.0, 5e-324, 1e-12, 100.0])
def test_any_measured_time_leaves_slices_of_a_sane_size(item_s: float) -> None:
    """A worker's clock may be coarse, or the token asleep: neither stops the dispatcher."""
    rig = Rig(1)
    for _ in range(4_000):
        rig.submit(1)
        rig.run(item_s=item_s)
    rig.submit(10_000)
    rig.dispatcher.pump()
    assert 1 <= rig.sent[-1].count <= SETTINGS.max_slice_items
    rig.run()
    rig.check_idle()


def test_no_slice_is_longer_than_allowed() -> None:
    rig = Rig(1, settings=SignerSettings(max_slice_items=7, slice_target_ms=10_000))
    work = rig.submit(100)
    rig.run()
    assert max(piece.count for piece in rig.sent) == 7
    check_signed(work)


def test_forms_do_not_mix_in_a_slice() -> None:
    rig = Rig()
    works = [rig.submit(3, form=form) for form in (Form.DIGESTS, Form.MESSAGES, Form.MESSAGES, Form.DIGESTS)]
    rig.worker()
    rig.run()
    assert [(piece.form, piece.count) for piece in rig.sent] == [
        (Form.DIGESTS, 3),
        (Form.MESSAGES, 6),
        (Form.DIGESTS, 3),
    ]
    for work in works:
        check_signed(work)


def test_messages_are_cut_where_they_end() -> None:
    rig = Rig(3, settings=SignerSettings(max_slice_items=5))
    work = rig.submit(47, form=Form.MESSAGES)
    rig.run()
    assert len(rig.sent) > 9
    check_signed(work)


def test_queue_time_counts_from_the_oldest_item() -> None:
    rig = Rig()
    rig.submit()
    rig.clock.now += 5
    rig.submit()
    rig.clock.now += 2
    rig.worker()
    assert (rig.sent[0].queued_at, rig.sent[0].sent_at) == (1_000.0, 1_007.0)


# Turns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "count", "bulk"),
    [
        (Priority.AUTOMATIC, INTERACTIVE_MAX_ITEMS, False),
        (Priority.AUTOMATIC, INTERACTIVE_MAX_ITEMS + 1, True),
        (Priority.INTERACTIVE, 65_536, False),
        (Priority.BULK, 1, True),
    ],
)
def test_which_work_is_bulk(priority: Priority, count: int, bulk: bool) -> None:
    assert Rig().work(count, priority=priority).bulk is bulk


def test_interactive_first_and_bulk_never_less_than_its_share() -> None:
    rig = Rig(settings=SignerSettings(max_slice_items=10, bulk_share=4))
    rig.submit(400, priority=Priority.BULK)
    rig.submit(400, priority=Priority.INTERACTIVE)
    rig.worker()
    rig.run()
    both = [piece.bulk for piece in rig.sent][:40]
    for at in range(0, 40, 4):
        assert Counter(both[at : at + 4]) == {False: 3, True: 1}
    rig.check_idle()


def test_keys_of_a_class_take_turns() -> None:
    rig = Rig(settings=SignerSettings(max_slice_items=10))
    for key in "abc":
        rig.submit(100, key, Priority.BULK)
    rig.worker()
    rig.run()
    keys = [piece.key for piece in rig.sent]
    assert len(keys) == 30
    for at in range(0, 30, 3):
        assert set(keys[at : at + 3]) == set("abc")


def test_a_worker_without_the_key_is_passed_over_and_the_key_is_wanted() -> None:
    rig = Rig()
    rig.worker(keys=("other",))
    work = rig.submit(5, "k")
    rig.dispatcher.pump()
    assert not rig.sent and rig.wanted == ["k"]
    rig.worker(keys=("k",))
    rig.run()
    check_signed(work)


def test_a_key_that_one_worker_has_is_not_held_up_by_one_that_nobody_has() -> None:
    rig = Rig()
    waiting = rig.submit(5, "nobody's")
    rig.worker(keys=())
    rig.worker(keys=("k",))
    works = [rig.submit(5, "k") for _ in range(20)]
    rig.run()
    for work in works:
        check_signed(work)
    assert not waiting.ended and rig.dispatcher.queued_items == 5
    assert set(rig.wanted) == {"nobody's"}


# Bounds -----------------------------------------------------------------------------------------------------


def test_busy_at_the_limit_and_not_before() -> None:
    rig = Rig(limit=100)
    works = [rig.submit(60), rig.submit(40)]
    with pytest.raises(Busy) as caught:
        rig.submit()
    assert 10 <= caught.value.retry_after_ms <= 5_000 and caught.value.hint
    assert rig.dispatcher.queued_items == 100 and rig.dispatcher.live_requests == 2
    rig.worker()
    rig.submit()
    rig.run()
    for work in works:
        check_signed(work)


def test_retry_after_grows_with_the_queue_and_shrinks_with_workers() -> None:
    rig = Rig(limit=1_000_000)
    rig.submit(20_000)
    alone = rig.dispatcher.retry_after_ms()
    assert alone == pytest.approx(20_000 * FIRST_GUESS_ITEM_S * 1_000 / 2, abs=1)
    for _ in range(4):
        rig.worker()
    assert rig.dispatcher.retry_after_ms() < alone / 3


# Lost and partly answered -----------------------------------------------------------------------------------


def test_what_a_dead_worker_had_goes_to_another() -> None:
    rig = Rig(2)
    works = [rig.submit(100), rig.submit(3)]
    rig.dispatcher.pump()
    rig.kill(rig.workers[0])
    rig.run()
    for work in works:
        check_signed(work)
    assert len(rig.ended) == 2 and rig.dispatcher.retried_parts
    rig.check_idle()


def test_a_late_answer_of_a_dead_worker_is_nobodys() -> None:
    """Its slices were handed over; the dispatcher holds no reference to them any more."""
    rig = Rig(1)
    work = rig.submit(10)
    rig.dispatcher.pump()
    rig.kill(rig.workers[0])
    assert rig.dispatcher.inflight_items == 0 and rig.dispatcher.queued_items == 10
    rig.worker()
    rig.run()
    check_signed(work)
    assert rig.ended == [work]


@pytest.mark.parametrize("done", [0, 1, 5, 9])
def test_a_partial_answer_keeps_what_is_decided(done: int) -> None:
    rig = Rig()
    works = [rig.submit(4), rig.submit(6)]
    rig.worker()
    rig.answer(rig.workers[0], done=done)
    rig.run()
    for work in works:
        check_signed(work)
    signed = Counter(item for piece in rig.sent[1:] for item in items_of(piece))
    assert sum(signed.values()) == 10 - done, "what was decided is not asked again"
    rig.check_idle()


def test_the_token_refuses_an_item_and_its_neighbours_are_fine() -> None:
    rig = Rig()
    work = rig.submit(5)
    rig.worker()
    rig.answer(rig.workers[0], refuse=frozenset({item_bytes(work)[2]}))
    check_signed(work, failed=frozenset({2}))
    assert work.statuses[2] == ItemStatus.REFUSED


def drive_with_poison(rig: Rig, poison: bytes, deaths_at_most: int = 60) -> int:
    """Workers die of the poison as soon as they come to it: sessions slices at a time, in order."""
    deaths = 0
    rig.dispatcher.pump()
    while any(worker.slices for worker in rig.workers):
        for worker in list(rig.workers):
            if any(poison in items_of(piece) for piece in worker.slices[: worker.sessions]):
                sessions = worker.sessions
                rig.kill(worker)
                rig.worker(sessions)
                deaths += 1
                assert deaths <= deaths_at_most
            elif worker.slices:
                rig.answer(worker)
    return deaths


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sessions", [1, 4])
@pytest.mark.parametrize("at", [0, 700, 4_095])
def test_an_item_that_kills_workers_fails_alone(workers: int, sessions: int, at: int) -> None:
    rig = Rig()
    work = rig.submit(4_096)
    neighbours = [rig.submit(count) for count in (1, 1, 16, 300, 1)]
    poison = item_bytes(work)[at]
    for _ in range(workers):
        rig.worker(sessions)
    deaths = drive_with_poison(rig, poison)
    check_signed(work, failed=frozenset({at}))
    assert work.statuses[at] == ItemStatus.FAILED
    for neighbour in neighbours:
        check_signed(neighbour)
    assert deaths <= 8, "few steps to single out one item of 4,096"
    rig.check_idle()


@pytest.mark.parametrize("sessions", [1, 3])
def test_single_requests_beside_the_one_that_kills_workers(sessions: int) -> None:
    """A worker holds slices that it has not begun: they must not be blamed with the one that killed it."""
    rig = Rig(1, sessions=sessions)
    works = []
    for _ in range(30):
        works.append(rig.submit(1))
        rig.dispatcher.pump()
    drive_with_poison(rig, item_bytes(works[0])[0])
    check_signed(works[0], failed=frozenset({0}))
    for work in works[1:]:
        check_signed(work)
    rig.check_idle()


def test_suspects_do_not_stop_other_work() -> None:
    rig = Rig(2)
    suspect = rig.submit(64, "a")
    rig.dispatcher.pump()
    rig.kill(rig.workers[0])
    others = [rig.submit(5, "b") for _ in range(10)]
    rig.run()
    check_signed(suspect)
    for work in others:
        check_signed(work)
    rig.check_idle()


def test_a_suspect_has_a_worker_for_itself() -> None:
    rig = Rig()
    works = [rig.submit(2) for _ in range(3)]
    victim = rig.worker()
    rig.kill(victim)
    rig.worker()
    while rig.workers[0].slices:
        for piece in rig.workers[0].slices:
            suspects = [part for part in piece.parts if part.attempts]
            assert not suspects or (len(piece.parts) == 1 and len(rig.workers[0].slices) == 1)
        rig.answer(rig.workers[0])
    for work in works:
        check_signed(work)
    rig.check_idle()


def test_suspects_do_not_starve_behind_work_that_never_ends() -> None:
    rig = Rig(settings=SignerSettings(max_slice_items=5))
    suspect = rig.submit(8, priority=Priority.BULK)
    rig.kill(rig.worker(2))
    for _ in range(2):
        rig.worker(2)
    for _ in range(30):
        rig.submit(20, "b", Priority.INTERACTIVE)
        rig.dispatcher.pump()
        for worker in rig.workers:
            if worker.slices:
                rig.answer(worker)
    check_signed(suspect)
    rig.run()
    rig.check_idle()


def test_a_suspect_whose_key_nobody_has_is_wanted_and_holds_up_nothing() -> None:
    rig = Rig()
    suspect = rig.submit(3, "a")
    rig.kill(rig.worker())
    rig.worker(keys=("b",))
    work = rig.submit(3, "b")
    rig.run()
    check_signed(work)
    assert not suspect.ended and set(rig.wanted) == {"a"} and rig.dispatcher.queued_items == 3
    rig.worker(keys=("a",))
    rig.run()
    check_signed(suspect)
    rig.check_idle()


def test_an_item_is_tried_max_attempts_times() -> None:
    rig = Rig(1, settings=SignerSettings(max_attempts=2))
    work = rig.submit(1)
    rig.dispatcher.pump()
    rig.kill(rig.workers[0])
    assert not work.ended
    rig.worker()
    rig.kill(rig.workers[0])
    check_signed(work, failed=frozenset({0}))
    assert len(rig.sent) == 2
    rig.check_idle()


# Ends -------------------------------------------------------------------------------------------------------


def test_a_deadline_ends_what_waits_and_what_is_out() -> None:
    rig = Rig(1)
    out = rig.submit(1, deadline_s=1)
    rig.dispatcher.pump()
    waits, later = rig.submit(500, "other", deadline_s=1), rig.submit(2, deadline_s=9)
    rig.workers[0].keys = ("k",)
    rig.clock.now += 0.999
    rig.dispatcher.expire()
    assert not rig.ended
    rig.clock.now += 0.001
    rig.dispatcher.expire()
    assert rig.ended == [out, waits]
    assert isinstance(out.error, DeadlineExceeded) and isinstance(waits.error, DeadlineExceeded)
    assert rig.dispatcher.queued_items == 2
    rig.run()
    check_signed(later)
    assert len(rig.ended) == 3, "the late signatures of the first were released to nobody"
    assert not out.signatures
    rig.check_idle()


def test_cancelled_work_is_not_signed_and_not_answered() -> None:
    rig = Rig(1)
    out, waits, stays = rig.submit(1), rig.submit(50, "b"), rig.submit(1, "c")
    rig.dispatcher.cancel([waits])
    rig.dispatcher.pump()
    rig.dispatcher.cancel([out])
    rig.run()
    assert rig.ended == [stays]
    assert all(piece.key != "b" for piece in rig.sent)
    rig.check_idle()


def test_cancelled_work_of_another_token_is_no_concern() -> None:
    rig, other = Rig(1), Rig(1)
    work = other.submit(5)
    rig.dispatcher.cancel([work])
    rig.check_idle()


def test_fail_all_answers_everything_once() -> None:
    rig = Rig(1)
    works = [rig.submit(count, key) for count, key in ((1, "a"), (400, "b"), (2, "c"))]
    rig.dispatcher.pump()
    error = Unavailable("down")
    rig.dispatcher.fail_all(error)
    assert [work.error for work in works] == [error] * 3 and rig.ended == works
    assert rig.dispatcher.queued_items == 0
    rig.run()
    assert rig.ended == works
    rig.check_idle()


def test_fail_key_answers_that_key() -> None:
    rig = Rig()
    works = [rig.submit(3, key) for key in "aba"]
    error = SignerFailed("no")
    rig.dispatcher.fail_key("a", error)
    assert [work.error for work in works] == [error, None, error]
    rig.worker()
    rig.run()
    check_signed(works[1])
    rig.check_idle()


def test_a_refused_slice_ends_its_works_and_whatever_else_they_have_waiting() -> None:
    rig = Rig()
    works = [rig.submit(60), rig.submit(20, "b", Priority.BULK)]
    worker = rig.worker()
    piece = worker.slices.pop(0)
    error = SignerFailed("no")
    rig.dispatcher.slice_refused(worker, piece, error)
    rig.dispatcher.pump()
    assert works[0].error is error
    rig.run()
    check_signed(works[1])
    assert len(rig.ended) == 2
    rig.check_idle()


def test_works_of_ended_requests_do_not_take_a_workers_time() -> None:
    rig = Rig()
    work = rig.submit(10_000)
    worker = rig.worker()
    rig.dispatcher.slice_refused(worker, worker.slices.pop(0), SignerFailed("no"))
    before = len(rig.sent)
    rig.dispatcher.pump()
    assert work.ended and len(rig.sent) == before
    while worker.slices:
        rig.answer(worker)
    assert len(rig.sent) == before
    rig.check_idle()


# Any order of events ----------------------------------------------------------------------------------------


class Conservation(RuleBasedStateMachine):
    """Every accepted item is answered exactly once with its own result, whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 600
        self.rig = Rig(
            settings=SignerSettings(max_slice_items=40, max_attempts=3, bulk_share=2), limit=self.limit
        )
        self.accepted: list[Work] = []
        self.cancelled: set[Work] = set()

    @initialize(sessions=st.lists(st.integers(1, 3), max_size=2))
    def start(self, sessions: list[int]) -> None:
        for one in sessions:
            self.rig.worker(one)

    @rule(
        count=st.integers(1, 200),
        key=st.sampled_from("abc"),
        priority=st.sampled_from(Priority),
        form=st.sampled_from(Form),
        deadline_s=st.sampled_from((1.0, 30.0)),
    )
    def submit(self, count: int, key: str, priority: Priority, form: Form, deadline_s: float) -> None:
        work = self.rig.work(count, key, priority, deadline_s, form)
        queued = self.rig.dispatcher.queued_items
        try:
            self.rig.dispatcher.submit(work)
        except Busy:
            assert queued + count > self.limit
        else:
            assert queued + count <= self.limit
            self.accepted.append(work)

    @rule()
    def pump(self) -> None:
        self.rig.dispatcher.pump()

    @rule(sessions=st.integers(1, 3), keys=st.sampled_from((None, ("a",), ("b", "c"), ())))
    @precondition(lambda self: len(self.rig.workers) < 3)
    def worker_up(self, sessions: int, keys: tuple[str, ...] | None) -> None:
        self.rig.worker(sessions, keys)

    def busy(self, data: st.DataObject) -> FakeWorker:
        return data.draw(st.sampled_from([worker for worker in self.rig.workers if worker.slices]))

    def some_are_busy(self) -> bool:
        return any(worker.slices for worker in self.rig.workers)

    @rule(data=st.data())
    @precondition(some_are_busy)
    def answer(self, data: st.DataObject) -> None:
        worker = self.busy(data)
        self.rig.answer(worker, at=data.draw(st.integers(0, len(worker.slices) - 1)))

    @rule(data=st.data(), share=st.floats(0, 1))
    @precondition(some_are_busy)
    def answer_in_part(self, data: st.DataObject, share: float) -> None:
        worker = self.busy(data)
        self.rig.answer(worker, done=int(worker.slices[0].count * share))

    @rule(data=st.data())
    @precondition(lambda self: self.rig.workers)
    def worker_dies(self, data: st.DataObject) -> None:
        self.rig.kill(data.draw(st.sampled_from(self.rig.workers)))

    @rule(seconds=st.floats(0.1, 2))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.now += seconds
        self.rig.dispatcher.expire()
        assert all(work.ended or work.deadline_at > self.rig.clock.now for work in self.accepted)

    @rule(data=st.data())
    @precondition(lambda self: any(not work.ended for work in self.accepted))
    def cancel(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from([work for work in self.accepted if not work.ended]))
        self.cancelled.add(work)
        self.rig.dispatcher.cancel([work])

    @rule(key=st.sampled_from("abc"))
    def fail_key(self, key: str) -> None:
        self.rig.dispatcher.fail_key(key, SignerFailed("no"))
        assert all(work.ended for work in self.accepted if work.key == key)

    @rule()
    def fail_all(self) -> None:
        self.rig.dispatcher.fail_all(Unavailable("down"))
        assert all(work.ended for work in self.accepted)

    @invariant()
    def numbers_are_exact(self) -> None:
        dispatcher = self.rig.dispatcher
        waiting = [
            part
            for class_ in (dispatcher._interactive, dispatcher._bulk)
            for queue in class_._queues.values()
            for part in queue.parts
        ]
        waiting += [*dispatcher._suspects, *dispatcher._fresh]
        assert dispatcher.queued_items == sum(part.count for part in waiting)
        assert all(
            queue.items == sum(part.count for part in queue.parts) and queue.parts
            for class_ in (dispatcher._interactive, dispatcher._bulk)
            for queue in class_._queues.values()
        )
        out = [piece for worker in self.rig.workers for piece in worker.slices]
        assert dispatcher.inflight_items == sum(piece.count for piece in out)
        assert all(worker.outstanding == len(worker.slices) for worker in self.rig.workers)
        assert dispatcher.live_requests == sum(not work.ended for work in self.accepted)
        assert dispatcher.queued_items <= self.limit + 3 * 4 * 40, (
            "the limit, and what dead workers gave back"
        )
        # An item of a live work is missing, and then it is in one place, or it is decided: never both.
        places: Counter[tuple[int, int]] = Counter()
        for part in [*waiting, *(part for piece in out for part in piece.parts)]:
            if not part.work.ended:
                places.update((id(part.work), part.first + i) for i in range(part.count))
        assert all(times == 1 for times in places.values())
        for work in self.accepted:
            if not work.ended:
                assert work.missing == sum(key == id(work) for key, _ in places)

    @invariant()
    def ends_are_told_once(self) -> None:
        assert max(Counter(map(id, self.rig.ended)).values(), default=1) == 1
        told = {id(work) for work in self.rig.ended}
        assert told == {id(work) for work in self.accepted if work.ended and work not in self.cancelled}

    def teardown(self) -> None:
        for worker in list(self.rig.workers):
            self.rig.kill(worker)
        self.rig.worker()
        self.rig.run()
        self.numbers_are_exact()
        self.ends_are_told_once()
        self.rig.check_idle()
        for work in self.accepted:
            assert work.ended
            if work.error is None and work not in self.cancelled:
                gone = frozenset(i for i, status in enumerate(work.statuses) if status == ItemStatus.FAILED)
                check_signed(work, failed=gone)
            elif work.error is not None:
                assert isinstance(work.error, ApplianceError)


TestConservation = Conservation.TestCase
TestConservation.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
