"""How lone requests wait: for the worker that is awake, in small pieces, and for answers that are due."""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import replace
from typing import Self

import pytest
from express_rig import (
    DEADLINE_S,
    SETTINGS,
    Caller,
    Worker,
    digest,
    signed,
)

from appliance.dispatch import (
    AHEAD_S,
    CROWDED_PATIENCE_S,
    CROWDED_STAY_S,
    FIRST_GUESS_ITEM_S,
    PIECE_S,
    STAY_S,
    Dispatcher,
)

# Small pieces, while work stays with a worker -----------------------------------------------------------------


def pieces_of(worker: Worker) -> list[int]:
    return [len(digests) for _, _, digests in worker.slices()]


def test_who_signs_one_by_one_gets_short_slices_and_several_of_them(
    dispatcher: Dispatcher, caller: Caller
) -> None:
    worker, other = Worker(dispatcher, batches=False), Worker(dispatcher, batches=False)
    ahead = round(AHEAD_S / FIRST_GUESS_ITEM_S)
    try:
        for request_id in range(1, ahead + 1):
            assert caller.ask(request_id)
        assert pieces_of(worker) == [1] * ahead and not other.slices()
        assert caller.ask(ahead + 1), "no more at a time than it has done soon"
        assert not worker.slices() and not other.slices() and dispatcher.queued_items == 1
        dispatcher.lane.item_s = PIECE_S / 2.5
        assert caller.ask(ahead + 2), "as many as are signed in the time"
        assert pieces_of(worker) == [2]
    finally:
        worker.end.close()
        other.end.close()


def test_who_signs_many_at_once_gets_what_waits_as_one_slice(dispatcher: Dispatcher, caller: Caller) -> None:
    worker = Worker(dispatcher, batches=True)
    try:
        for request_id in range(1, 4):
            assert caller.ask(request_id)
        first, second = worker.slices()
        assert (len(first[2]), len(second[2])) == (1, 1), "one at hand, one ahead"
        assert worker.answered(signed(first[0], first[2]))
        assert caller.ask(4)
        assert worker.answered(signed(second[0], second[2]))
        assert sum(pieces_of(worker)) == 2
    finally:
        worker.end.close()


def test_never_more_slices_ahead_than_fit_into_a_socket(dispatcher: Dispatcher, caller: Caller) -> None:
    worker = Worker(dispatcher, batches=False)
    dispatcher.lane.item_s = 1e-7
    try:
        for request_id in range(1, 40):
            assert caller.ask(request_id)
        assert worker.outstanding == 16 == len(pieces_of(worker))
    finally:
        worker.end.close()


@pytest.mark.parametrize(("processor_count", "stay_s"), [(3, CROWDED_STAY_S), (4, STAY_S)])
def test_more_stays_where_there_is_no_processor_for_each(
    caller: Caller, processor_count: int, stay_s: float
) -> None:
    dispatcher = Dispatcher(
        SETTINGS, 1_000, time.monotonic, lambda key: None, processor_count=processor_count
    )
    one, other = Worker(dispatcher), Worker(dispatcher)
    caller.allow("a", dispatcher.lane)
    much = round(stay_s / FIRST_GUESS_ITEM_S)
    try:
        for request_id in range(1, much + 1):
            assert not other.slices(), "it is little"
            assert caller.ask(request_id)
            # However slow this machine is: it began just now, and has just answered.
            dispatcher.lane.busy_since = dispatcher.lane.moved_at = time.monotonic() + DEADLINE_S
        assert other.slices(), "it is too much for one"
        assert one.slices()
    finally:
        one.end.close()
        other.end.close()


def test_a_worker_that_does_not_catch_up_is_helped(caller: Caller) -> None:
    dispatcher = Dispatcher(SETTINGS, 1_000, time.monotonic, lambda key: None, processor_count=2)
    lane = dispatcher.lane
    one, other = Worker(dispatcher), Worker(dispatcher)
    caller.allow("a", lane)
    try:
        for request_id in range(1, round(STAY_S / FIRST_GUESS_ITEM_S) + 1):
            assert caller.ask(request_id)
            lane.busy_since = lane.moved_at = time.monotonic() + DEADLINE_S
        assert one.slices() and not other.slices()
        lane.busy_since = time.monotonic() - CROWDED_PATIENCE_S
        lane.pump()
        assert other.slices(), "it has been busy without a pause"
    finally:
        one.end.close()
        other.end.close()


# Looking out for what comes next ---------------------------------------------------------------------------------


class Lookout:
    """A lane whose loop has something to do when the test says so."""

    def __init__(self, spin_us: int = 10_000, processor_count: int = 2) -> None:
        settings = replace(SETTINGS, spin_us=spin_us)
        self.dispatcher = Dispatcher(
            settings, 1_000, time.monotonic, lambda key: None, processor_count=processor_count
        )
        self.lane = self.dispatcher.lane
        self.worker, self.caller = Worker(self.dispatcher), Caller()
        self.caller.allow("a", self.lane)
        self.poll = select.epoll()
        self.event = os.eventfd(0)
        self.poll.register(self.event, select.EPOLLIN)
        self.lane.poll_fd = self.poll.fileno()
        self.asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.caller.client.lost()
        for end in (self.worker.end, self.caller.end):
            end.close()
        os.close(self.event)
        self.poll.close()

    def ask(self) -> int:
        """One request; its slice's sequence, and how often the lane has looked out for the answer."""
        before = self.lane.spins
        self.asked += 1
        assert self.caller.ask(self.asked, block=digest(self.asked))
        return self.lane.spins - before

    def answer(self) -> int:
        """Its answer; how often the lane has looked out after it."""
        before = self.lane.spins
        for sequence, _, digests in self.worker.slices():
            assert self.worker.answered(signed(sequence, digests))
        return self.lane.spins - before

    def hurry(self) -> None:
        """Requests and answers that follow each other at once, until the lane expects them to."""
        os.eventfd_write(self.event, 1)  # so that nothing is waited for
        for _ in range(1_000):
            if self.ask() and not self.answer():
                return
            self.answer()
        raise AssertionError("it never expected anything soon")

    def is_looked_out_for(self) -> bool:
        """One request more, whose answer is. A machine that is busy elsewhere keeps the lane from it for a while."""
        for _ in range(1_000):
            self.hurry()
            if self.ask():
                return True
            self.answer()
        return False


def test_a_lane_looks_out_for_an_answer_that_is_due_soon() -> None:
    with Lookout() as lookout:
        assert not lookout.ask() and not lookout.answer(), "nothing has come soon yet"
        lookout.hurry()
        ended = lookout.lane.spins_ended
        assert lookout.is_looked_out_for(), "an answer is due"
        assert lookout.lane.spins_ended > ended, "the loop had something to do"
        assert not lookout.answer(), "and now none is"


def test_it_goes_on_when_the_time_is_over_and_nothing_has_come() -> None:
    with Lookout(spin_us=2_000) as lookout:
        lookout.hurry()
        os.eventfd_read(lookout.event)
        ended = lookout.lane.spins_ended
        lookout.ask()
        assert lookout.lane.spins_ended == ended
        lookout.answer()
        assert lookout.caller.answers(), "and nothing is lost by it"


def test_other_threads_run_while_it_looks_out() -> None:
    with Lookout() as lookout:
        for _ in range(1_000):  # a machine that is busy elsewhere ends a look before its time
            lookout.hurry()
            os.eventfd_read(lookout.event)
            go, ended = threading.Event(), lookout.lane.spins_ended

            def wake(go: threading.Event = go) -> None:
                go.wait()
                os.eventfd_write(lookout.event, 1)

            thread = threading.Thread(target=wake)
            thread.start()
            go.set()
            lookout.ask()
            thread.join()
            lookout.answer()
            os.eventfd_read(lookout.event)
            if lookout.lane.spins_ended > ended:
                return
        raise AssertionError("nobody could wake it")


@pytest.mark.parametrize("lookout", [{"spin_us": 0}, {"processor_count": 1}], ids=str)
def test_where_it_never_looks_out(lookout: dict[str, int]) -> None:
    with Lookout(**lookout) as lane:
        for _ in range(100):
            assert not lane.ask() and not lane.answer()


def test_a_loop_that_does_not_say_what_it_sleeps_on() -> None:
    with Lookout() as lookout:
        lookout.hurry()
        lookout.lane.poll_fd = -1
        assert not lookout.ask()


def test_it_does_not_look_out_while_the_dispatcher_has_something_to_do() -> None:
    with Lookout() as lookout:
        assert lookout.is_looked_out_for()
        lookout.asked += 1
        assert lookout.caller.ask(lookout.asked)
        lookout.lane.held = 1
        assert not lookout.answer()
