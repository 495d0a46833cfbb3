"""Which signer worker signs what, and when.

For: turning accepted work into slices and slices into signatures: coalescing, spreading, fairness, retries, bounds.
Not for: processes and sockets (``signers``), who may sign (``policy``).

Theory of operation. Accepted work is cut into *parts*, which wait in a queue for each key. A *slice* is what a
worker gets at a time: parts of one key, of one class, up to what the token signs in ``slice_target_ms``. Where enough
waits, a worker has one slice more outstanding than it has sessions, so that it never waits for us. Whatever arrives
while all workers are busy waits, and so the next slice is larger: batches grow under load and a lone request goes
straight through. Where little waits, it waits for a worker that is awake: waking another, on a processor that sleeps
and has forgotten everything, takes longer and costs all of them; and more lone requests may wait where that other would
take its processor from the front or a caller. While requests come close together no processor sleeps (``wakefulness``),
or where that cannot be, neither does the worker that is awake, nor the front while an answer is due
(``signers.spin_us``).

Rules:

* One event loop owns everything here; nothing is locked and nothing awaits.
* Interactive work goes first, yet every ``bulk_share``-th slice is bulk work where both wait. Keys of one class take
  turns.
* What waits is bounded (``max_queued_items``); beyond it ``submit`` raises ``Busy`` and says when to come back.
* Signatures come back as one block and are copied at most once; no object exists for an item.
* Small requests that need no decision go past all this in a *lane* (``_express``), which follows the same rules and
  counts with the same numbers. It takes nothing while anything is queued here, and hands over what goes wrong.

Crash story: a worker that is gone takes its slices with it. Their parts come back split, as *suspects*: each gets an
idle worker for itself, with no other slice beside or behind it, so that whoever dies with it dies of it. An item that
kills workers is left alone in the end and fails by itself; what merely stood beside it is blamed once. A part's
results are taken once: a slice is forgotten when its worker answers or is gone, whichever is first. A signature made
and not received is never released; nothing is released twice.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from itertools import accumulate
from typing import Final, Protocol, TypeAlias

from appliance import _express
from appliance.algorithms import DIGEST_LEN, SIGNATURE_LEN
from appliance.errors import ApplianceError, Busy, DeadlineExceeded
from appliance.settings import SignerSettings
from appliance.wire import Buffer, Form, Items, ItemStatus, Priority

INTERACTIVE_MAX_ITEMS: Final = 16
"""Up to here a request that names no priority counts as interactive: a clerk's handful of seals."""
SPLIT: Final = 8
"""A part whose worker died comes back in so many pieces: few steps to single out one item in 4,096."""
MIN_AHEAD_ITEMS: Final = 3
"""A slice is given ahead of a free session only when so many items wait: below, waiting for company costs less than
another slice does."""
STAY_S: Final = 0.5e-3
"""While what waits and what is being signed are no more work than this, busy workers get it ahead and idle ones sleep.
About what it takes to send to a worker that sleeps, wake it, sign with cold caches and be woken by its answer."""
STAY_PATIENCE_S: Final = 5e-3
"""A busy worker that has answered nothing for so long is not waited for: it may hang."""
CROWDED_STAY_S: Final = 2e-3
"""Of lone requests so much stays where there are not processors enough for all workers, the front and a caller: a
worker that is woken then takes one from them, and what waits is served sooner by the one that is awake."""
CROWDED_PATIENCE_S: Final = 5e-3
"""A worker that has been busy for so long without a pause is not going to catch up: then ``STAY_S`` holds again."""
PIECE_S: Final = 60e-6
"""While work stays with a worker, a lone one's slice of lone requests is no more work than this: its answers leave as
they are made, and not when the last of a thousand microseconds' work is."""
AHEAD_S: Final = 300e-6
"""And so much work it has at a time: more than it takes to send it the next, and soon done when more must be spread."""
LANE_SLICE_S: Final = 1e-3
"""A slice of lone requests is no more work than this: whoever is in it waits for all of it. At 0.4 ms
SoftHSM2 signed a fifth less with 64 requests under way."""
FIRST_GUESS_ITEM_S: Final = 100e-6
"""Time an item takes before we have measured any: SoftHSM2 on P-256, about."""
PLENTY: Final = 1_024
"""Processors, where nobody says how many there are: nothing is crowded."""
MIN_ITEM_S: Final = 1e-7
"""No token is faster; a worker whose clock says so must not make slices endless."""
EWMA_WEIGHT: Final = 0.2
_DIGESTS: Final = Form.DIGESTS  # asked for each slice, and an Enum looks its members up in Python
_TOO_LATE: Final = "the deadline passed before all items were signed"
_BULK: Final = Priority.BULK
_AUTOMATIC: Final = Priority.AUTOMATIC


class Work:
    """One accepted request to sign: where its results gather until all are there.

    Owned by the dispatcher from ``submit`` until ``on_end`` has been called, which happens exactly once: with
    ``error`` None and ``statuses`` (a byte an item) and ``signatures`` (64 bytes an item), or with an error.
    """

    __slots__ = (
        "accepted_at",
        "bulk",
        "count",
        "deadline_at",
        "ended",
        "error",
        "items",
        "key",
        "missing",
        "offsets",
        "on_end",
        "signatures",
        "statuses",
    )

    def __init__(
        self,
        key: str,
        items: Items,
        priority: Priority,
        accepted_at: float,
        deadline_at: float,
        on_end: Callable[[Work], None],
    ) -> None:
        self.key = key
        self.items = items
        self.count = items.count
        self.bulk = priority is _BULK or (priority is _AUTOMATIC and items.count > INTERACTIVE_MAX_ITEMS)
        self.accepted_at = accepted_at
        self.deadline_at = deadline_at
        self.on_end = on_end
        self.missing = items.count
        self.ended = False
        self.error: ApplianceError | None = None
        self.statuses: Buffer = b""
        self.signatures: Buffer = b""
        self.offsets: list[int] | None = None  # where each message starts, for tokens that hash themselves

    def end(self, error: ApplianceError | None = None) -> None:
        """Tell the owner, once."""
        if not self.ended:
            self.ended = True
            self.error = error
            self.on_end(self)

    def take(self, first: int, statuses: Buffer, signatures: Buffer) -> None:
        """Results of ``len(statuses)`` items from ``first`` on."""
        if self.ended:
            return
        count = len(statuses)
        if count == self.count:  # the usual case: the whole request was one part, nothing is copied
            self.statuses, self.signatures = statuses, signatures
        else:
            if not self.statuses:
                self.statuses = bytearray(self.count)
                self.signatures = bytearray(self.count * SIGNATURE_LEN)
            assert isinstance(self.statuses, bytearray) and isinstance(self.signatures, bytearray)
            self.statuses[first : first + count] = statuses
            self.signatures[first * SIGNATURE_LEN : (first + count) * SIGNATURE_LEN] = signatures
        self.missing -= count
        if not self.missing:
            self.end()

    def body(self, first: int, count: int) -> tuple[Buffer, Buffer]:
        """Lengths and data of some of its items; digests have no lengths."""
        if self.items.form is _DIGESTS:
            if count == self.count:
                return b"", self.items.data
            return b"", memoryview(self.items.data)[first * DIGEST_LEN : (first + count) * DIGEST_LEN]
        if self.offsets is None:
            lengths = struct.unpack(f"!{self.count}I", self.items.lengths)
            self.offsets = list(accumulate(lengths, initial=0))
        data = memoryview(self.items.data)[self.offsets[first] : self.offsets[first + count]]
        return memoryview(self.items.lengths)[first * 4 : (first + count) * 4], data


class Owner(Protocol):
    """Who asked for what is in a lane: a session."""

    def adopt(self, work: Work, request_id: int, job: bytes) -> Callable[[Work], None]:
        """It is a work like others from now on; what is to be told of its end."""

    def late(self, request_id: int, count: int, accepted_at: float, error: ApplianceError) -> None:
        """Its deadline has passed."""


Entry: TypeAlias = tuple[Owner | None, str, int, bytes, bytes, int, float, float]
"""Of a lane: owner, key, request id, job id and first index as they came, digests, priority, accepted at, deadline at.
Without an owner nobody waits for it any more."""


def _nobody_waits(work: Work) -> None:
    """It had ended before."""


class Part:
    """A run of items of one work that is queued or with a worker as one.

    ``attempts`` counts the workers that failed on it, ``failed_at`` is when one last did.
    """

    __slots__ = ("attempts", "count", "failed_at", "first", "work")

    def __init__(self, work: Work, first: int, count: int, attempts: int = 0, failed_at: float = 0.0) -> None:
        self.work = work
        self.first = first
        self.count = count
        self.attempts = attempts
        self.failed_at = failed_at


class Slice:
    """What a worker has been given: ``sent_at`` is when, ``queued_at`` when its oldest item was accepted."""

    __slots__ = ("bulk", "count", "form", "key", "parts", "queued_at", "sent_at")

    def __init__(
        self, key: str, form: Form, parts: list[Part], count: int, bulk: bool, sent_at: float
    ) -> None:
        self.key = key
        self.form = form
        self.parts = parts
        self.count = count
        self.bulk = bulk
        self.sent_at = sent_at
        self.queued_at = parts[0].work.accepted_at

    def body(self) -> list[Buffer]:
        """The buffers to send, in order: lengths first, then data."""
        if len(self.parts) == 1:
            part = self.parts[0]
            lengths, data = part.work.body(part.first, part.count)
            return [lengths, data] if lengths else [data]
        bodies = [part.work.body(part.first, part.count) for part in self.parts]
        if self.form is _DIGESTS:
            return [b"".join([data for _, data in bodies])]
        return [lengths for lengths, _ in bodies] + [data for _, data in bodies]


class Worker(Protocol):
    """What the dispatcher knows of a signer worker."""

    sessions: int
    outstanding: int
    """Slices that it has been given and not answered; the dispatcher counts."""

    def has_key(self, key: str) -> bool:
        """Whether it can sign with that key now."""

    def send(self, piece: Slice) -> None:
        """Give it a slice. It must not raise: a broken link shows as a worker that is gone."""


class _Queue:
    """What waits for one key in one class."""

    __slots__ = ("items", "key", "parts")

    def __init__(self, key: str) -> None:
        self.key = key
        self.parts: deque[Part] = deque()
        self.items = 0


class _Class:
    """The queues of one class; keys take turns."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: OrderedDict[str, _Queue] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def append(self, part: Part) -> None:
        queue = self.queue(part.work.key)
        queue.parts.append(part)
        queue.items += part.count

    def queue(self, key: str) -> _Queue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(key)
        return queue

    def names(self) -> Iterable[str]:
        return self._queues.keys()

    def turn(self, worker: Worker) -> _Queue | None:
        """The queue whose turn it is, among those that the worker can serve."""
        for key, queue in self._queues.items():
            if worker.has_key(key):
                self._queues.move_to_end(key)
                return queue
        return None

    def drop_if_empty(self, queue: _Queue) -> None:
        if not queue.parts:
            self._queues.pop(queue.key, None)


_NOBODY: Final[AbstractSet[Worker]] = frozenset()


class Dispatcher:
    """The queue before one token and the slices with its workers. Owned by the event loop."""

    def __init__(
        self,
        settings: SignerSettings,
        max_queued_items: int,
        clock: Callable[[], float],
        want_key: Callable[[str], None],
        bounds: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
        processor_count: int = PLENTY,
    ) -> None:
        """Processors are counted that the front and these workers have.

        ``bounds`` are those of the histograms of seconds and of items that the lane counts in.
        """
        self._settings = settings
        self._max_queued_items = max_queued_items
        self._clock = clock
        self._want_key = want_key
        self.lane = _express.Lane(
            slice_target_s=min(settings.slice_target_ms / 1_000, LANE_SLICE_S),
            max_slice_items=settings.max_slice_items,
            stay_s=STAY_S,
            stay_patience_s=STAY_PATIENCE_S,
            crowded_stay_s=CROWDED_STAY_S,
            crowded_patience_s=CROWDED_PATIENCE_S,
            piece_s=PIECE_S,
            ahead_s=AHEAD_S,
            min_ahead_items=MIN_AHEAD_ITEMS,
            max_queued_items=max_queued_items,
            item_s=FIRST_GUESS_ITEM_S,
            spin_s=(settings.spin_us or 0) / 1e6,
            processors=processor_count,
            seconds=bounds[0],
            items=bounds[1],
        )
        self._workers: list[Worker] = self.lane.workers
        self._up_since: dict[Worker, float] = {}
        self._interactive = _Class()
        self._bulk = _Class()
        self._suspects: deque[Part] = deque()  # what came back from workers that died or gave up
        self._confined: set[Worker] = set()  # given a suspect, and nothing more until it is answered
        self._fresh: list[Part] = []  # submitted since the last `pump`, and in no queue yet
        self._live: dict[Work, None] = {}
        self._turn = 0
        self.retried_parts = 0

    # Work in, work out ----------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Accept it, or raise ``Busy``. ``pump`` is called by whoever has submitted all that arrived together."""
        if self.queued_items + work.count > self._max_queued_items:
            raise Busy(
                f"{self.queued_items} items wait already, the limit is {self._max_queued_items}",
                hint="send less at a time, or add workers",
                retry_after_ms=self.retry_after_ms(),
            )
        self._live[work] = None
        self.lane.queued_items += work.count
        self.lane.held = True  # until the next `pump`: who came first goes first
        self._fresh.append(Part(work, 0, work.count))

    def retry_after_ms(self) -> int:
        """How long until half of what waits is done, as far as we can tell."""
        sessions = sum(worker.sessions for worker in self._workers) or 1
        return max(10, min(5_000, int(self.queued_items * self.lane.item_s / sessions * 500)))

    def adopt(self, entries: Iterable[Entry]) -> list[Part]:
        """Requests that the lane hands over: parts of works of their own, of which each ends once, as any."""
        parts = []
        for owner, key, request_id, job, digests, priority, accepted_at, deadline_at in entries:
            items = Items(_DIGESTS, len(digests) // DIGEST_LEN, b"", digests)
            work = Work(key, items, Priority(priority), accepted_at, deadline_at, _nobody_waits)
            if owner is None:
                work.ended = True
            else:
                work.on_end = owner.adopt(work, request_id, job)
                self._live[work] = None
            parts.append(Part(work, 0, work.count))
        return parts

    def adopt_waiting(self) -> None:
        """What waits in the lane waits here from now on; it counts as queued already."""
        if self.lane.waiting_items:
            self._fresh += self.adopt(self.lane.take_waiting())

    def fail_all(self, error: ApplianceError) -> None:
        """The token is down: everything accepted gets that answer; what workers still hold is ignored."""
        self.adopt_waiting()
        for work in list(self._live):
            self.end(work, error)
        self._drop_ended()

    def fail_key(self, key: str, error: ApplianceError) -> None:
        """No worker can use that key: whatever waits for it gets that answer."""
        self.adopt_waiting()
        for work in [work for work in self._live if work.key == key]:
            self.end(work, error)
        self._drop_ended()

    def expire(self) -> None:
        """Answer whatever has passed its deadline; called a few times a second."""
        now = self._clock()
        late = [work for work in self._live if work.deadline_at <= now]
        for work in late:
            self.end(work, DeadlineExceeded(_TOO_LATE))
        if late:
            self._drop_ended()
        for owner, request_id, count, accepted_at in self.lane.expire(now):
            owner.late(request_id, count, accepted_at, DeadlineExceeded(_TOO_LATE))

    def cancel(self, works: Iterable[Work]) -> None:
        """Nobody waits for these any more."""
        for work in works:
            self._live.pop(work, None)
            work.ended = True
        self._drop_ended()

    @property
    def queued_items(self) -> int:
        """Items that wait, in the lane too."""
        return self.lane.queued_items

    @property
    def inflight_items(self) -> int:
        """Items with workers."""
        return self.lane.inflight_items

    @property
    def slices_given(self) -> int:
        """To workers, since the start."""
        return self.lane.slices_given

    @property
    def item_s(self) -> float:
        """What an item takes inside a worker, lately."""
        return self.lane.item_s

    @property
    def live_requests(self) -> int:
        """Requests accepted and not answered."""
        return len(self._live) + self.lane.live

    @property
    def has_queued(self) -> bool:
        """Whether anything waits here, and so the lane takes nothing."""
        return bool(self._fresh or self._interactive or self._bulk or self._suspects or self._confined)

    def end(self, work: Work, error: ApplianceError) -> None:
        """Answer one work with an error."""
        self._live.pop(work, None)
        work.end(error)

    def _drop_ended(self) -> None:
        self._queue_fresh()
        for class_ in (self._interactive, self._bulk):
            for key in list(class_.names()):
                queue = class_.queue(key)
                queue.parts = deque(part for part in queue.parts if not part.work.ended)
                items = sum(part.count for part in queue.parts)
                self.lane.queued_items -= queue.items - items
                queue.items = items
                class_.drop_if_empty(queue)
        self.lane.queued_items -= sum(part.count for part in self._suspects if part.work.ended)
        self._suspects = deque(part for part in self._suspects if not part.work.ended)

    # Workers --------------------------------------------------------------------------------------------

    def worker_up(self, worker: Worker) -> None:
        """It can be given slices from now on."""
        self._workers.append(worker)
        self._up_since[worker] = self._clock()
        self.pump()

    def worker_ends(self, worker: Worker) -> None:
        """Its token has failed, and it ends after the answer at hand: what it were given now would only come back."""
        if worker in self._workers:
            self._workers.remove(worker)

    def worker_gone(self, worker: Worker, slices: Iterable[Slice]) -> None:
        """It has died with these slices unanswered: their parts wait again, before all others."""
        if worker in self._workers:
            self._workers.remove(worker)
        self._confined.discard(worker)
        self.adopt_waiting()  # perhaps for a key that nobody else has
        for piece in reversed(list(slices)):
            self.lane.inflight_items -= piece.count
            for part in reversed(piece.parts):
                self._retry(part, worker)
        self._up_since.pop(worker, None)
        self.pump()

    def slice_answered(
        self,
        worker: Worker,
        piece: Slice,
        statuses: Buffer,
        signatures: Buffer,
        done: int,
        execution_s: float,
    ) -> None:
        """A worker has answered: the first ``done`` items are decided, the others must go elsewhere."""
        self.lane.inflight_items -= piece.count
        worker.outstanding -= 1
        lane = self.lane
        lane.moved_at = self._clock()
        if done:
            lane.item_s = max(MIN_ITEM_S, lane.item_s + EWMA_WEIGHT * (execution_s / done - lane.item_s))
        if len(piece.parts) == 1 and done == piece.count:
            part = piece.parts[0]
            self._take(part, statuses, signatures)
            return
        statuses, signatures = memoryview(statuses), memoryview(signatures)
        retries = []
        at = 0
        for part in piece.parts:
            got = min(part.count, max(0, done - at))
            if got:
                head = Part(part.work, part.first, got)
                self._take(
                    head, statuses[at : at + got], signatures[at * SIGNATURE_LEN : (at + got) * SIGNATURE_LEN]
                )
            if got < part.count:
                left = Part(part.work, part.first + got, part.count - got, part.attempts, part.failed_at)
                retries.append(left)
            at += part.count
        for part in reversed(retries):
            self._retry(part, worker)

    def slice_refused(self, worker: Worker, piece: Slice, error: ApplianceError) -> None:
        """A worker says that this slice cannot be asked of this token at all."""
        self.lane.inflight_items -= piece.count
        worker.outstanding -= 1
        for part in piece.parts:
            self.end(part.work, error)
        self._drop_ended()  # they may have had more parts, which nobody waits for now

    def _take(self, part: Part, statuses: Buffer, signatures: Buffer) -> None:
        work = part.work
        work.take(part.first, statuses, signatures)
        if work.ended:
            self._live.pop(work, None)

    def _retry(self, part: Part, worker: Worker) -> None:
        """Put it back, split; an item that was alone and failed too often fails for good.

        A failure counts against the part only on a worker that came up after the last one: when a token goes away,
        all its workers fail one after the other, and no item is to blame.
        """
        if part.work.ended:
            return
        self.retried_parts += 1
        attempts = part.attempts
        if not attempts or self._up_since.get(worker, part.failed_at) >= part.failed_at:
            attempts += 1
        failed_at = self._clock()
        if part.count == 1 and attempts >= self._settings.max_attempts:
            self._take(part, bytes((ItemStatus.FAILED,)), bytes(SIGNATURE_LEN))
            return
        self.adopt_waiting()  # suspects go before all others, and a lane knows none
        step = -(-part.count // SPLIT)
        for offset in reversed(range(0, part.count, step)):
            count = min(step, part.count - offset)
            self._suspects.appendleft(Part(part.work, part.first + offset, count, attempts, failed_at))
        self.lane.queued_items += part.count

    # Slices ---------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Give waiting work to workers that have room."""
        if self.lane.waiting_items:
            self.lane.pump()  # it is older than whatever waits here, and a clerk's
        if self._fresh:
            self._queue_fresh()
        self._pump()
        self.lane.held = self.has_queued

    def _pump(self) -> None:
        closed = self._place_suspects() if self._suspects or self._confined else _NOBODY
        while self._interactive or self._bulk:
            worker = self._least_loaded(closed)
            if worker is None:
                return
            piece = self._next_slice(worker)
            if piece is None:
                self._pump_keys_not_everywhere(closed)
                return
            self._send(worker, piece)

    def _queue_fresh(self) -> None:
        for part in self._fresh:
            (self._bulk if part.work.bulk else self._interactive).append(part)
        self._fresh.clear()

    def _place_suspects(self) -> AbstractSet[Worker]:
        """Give suspects to idle workers, one each; the workers that get nothing else for now.

        Where none is idle, the least loaded one is left to become so: suspects do not starve behind other work.
        """
        self._confined = {worker for worker in self._confined if worker.outstanding}
        resting: Worker | None = None
        waiting: deque[Part] = deque()
        while self._suspects and resting is None:
            part = self._suspects.popleft()
            key = part.work.key
            able = [worker for worker in self._workers if worker.has_key(key)]
            if self._workers and not able:
                self._want_key(key)
            free = [worker for worker in able if worker not in self._confined]
            worker = min(free, key=lambda one: one.outstanding / one.sessions, default=None)
            if worker is None or worker.outstanding:
                waiting.append(part)
                resting = worker
                continue
            self._confined.add(worker)
            self.lane.queued_items -= part.count
            self._send(
                worker, Slice(key, part.work.items.form, [part], part.count, part.work.bulk, self._clock())
            )
        self._suspects.extendleft(reversed(waiting))
        return self._confined if resting is None else self._confined | {resting}

    def _send(self, worker: Worker, piece: Slice) -> None:
        if not self.lane.inflight_items:
            self.lane.moved_at = self.lane.busy_since = piece.sent_at
        self.lane.inflight_items += piece.count
        self.lane.slices_given += 1
        worker.outstanding += 1
        worker.send(piece)

    def _least_loaded(self, closed: AbstractSet[Worker]) -> Worker | None:
        """The worker with the fewest slices for its sessions, if it has room for one more."""
        if self.lane.stays(self._clock()):
            awake = [worker for worker in self._workers if worker.outstanding and worker not in closed]
            for worker in awake:
                if worker.outstanding <= worker.sessions:
                    return worker
            if awake:
                return None
        best: Worker | None = None
        least = 0.0
        ahead = 1 if self.queued_items >= MIN_AHEAD_ITEMS else 0
        for worker in self._workers:
            if worker.outstanding < worker.sessions + ahead and worker not in closed:
                load = worker.outstanding / worker.sessions
                if best is None or load < least:
                    best, least = worker, load
        return best

    def _pump_keys_not_everywhere(self, closed: AbstractSet[Worker]) -> None:
        """The worker whose turn it was has loaded none of the keys that wait: others may have, or none."""
        for worker in self._workers:
            if worker in closed:
                continue
            while worker.outstanding <= worker.sessions and (piece := self._next_slice(worker)) is not None:
                self._send(worker, piece)
        for class_ in (self._interactive, self._bulk):
            for key in list(class_.names()):
                if not any(worker.has_key(key) for worker in self._workers):
                    self._want_key(key)

    def _next_slice(self, worker: Worker) -> Slice | None:
        classes = [self._interactive, self._bulk]
        if self._interactive and self._bulk:
            self._turn += 1
            if self._turn % self._settings.bulk_share == 0:
                classes.reverse()
        for class_ in classes:
            queue = class_.turn(worker)
            if queue is not None:
                piece = self._fill(queue, class_ is self._bulk)
                class_.drop_if_empty(queue)
                return piece
        return None

    def _fill(self, queue: _Queue, bulk: bool) -> Slice:
        """Take whole parts off the queue while they fit, or a piece of one that is too large.

        A request that fits into a slice is not cut, so that its answer is not put together again.
        """
        target = int(self._settings.slice_target_ms / 1_000 / self.lane.item_s)
        idle = 0
        for worker in self._workers:
            idle += max(0, worker.sessions - worker.outstanding)
        # Spread what is there over those that have nothing to do.
        if idle > 1 and not self.lane.stays(self._clock()):
            target = min(target, -(-queue.items // idle))
        room = max(1, min(target, self._settings.max_slice_items))
        parts: list[Part] = []
        count = 0
        while queue.parts:
            part = queue.parts[0]
            if parts and (count + part.count > room or part.work.items.form is not parts[0].work.items.form):
                break
            if part.count <= room:
                queue.parts.popleft()
                parts.append(part)
                count += part.count
            else:
                # Even pieces, near the size that is wanted: a stub at the end would cost as much as a whole one.
                pieces = max(round(part.count / room), -(-part.count // self._settings.max_slice_items))
                count = -(-part.count // max(pieces, 1))
                parts.append(Part(part.work, part.first, count))
                part.first += count
                part.count -= count
                if not part.count:
                    queue.parts.popleft()
                break
        queue.items -= count
        self.lane.queued_items -= count
        return Slice(queue.key, parts[0].work.items.form, parts, count, bulk, self._clock())
