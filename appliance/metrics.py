"""What Prometheus sees: a stable interface, like the wire protocol.

For: counters, gauges and histograms in base units with closed label sets; ``tests/unit/metrics.golden`` lists them.
Not for: anything that names an account, a key or a document.

Queue time and execution time are two metrics: the first says that workers are missing, the second that the token is
slow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance import __version__
from appliance.errors import TABLE

if TYPE_CHECKING:
    from appliance._express import Lane

disable_created_metrics()  # type: ignore[no-untyped-call]
# Without it every series has a second one, its start time, which tells nothing that we need.
SECONDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
NOT_SUMMED: Final = (b"cloudseal_build", b"cloudseal_token_up")
REQUEST_TYPES: Final = (
    "sign",
    "verify",
    "status",
    "ping",
    "seal",
    "verify_seal",
    "seal_status",
    "unlock",
)
ITEM_OUTCOMES: Final = {
    "sign": ("signed", "failed"),
    "verify": ("valid", "invalid"),
    "seal": ("signed", "failed"),
    "verify_seal": ("good", "other"),
}
"""Of each type: how an item ends well, and how otherwise."""


class Histogram(Collector):
    """A histogram that belongs to one event loop: ``observe`` is a bisection, with no lock and no object made.

    prometheus-client's own takes a mutex for each of its values; at three observations a slice that was a tenth of
    the front's time.
    """

    def __init__(
        self,
        name: str,
        text: str,
        label: str,
        values: Iterable[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = bounds
        self._counts = {value: [0] * (len(bounds) + 1) for value in values}
        self._sums = dict.fromkeys(self._counts, 0.0)
        registry.register(self)

    def observe(self, value: str, amount: float) -> None:
        """Count one; ``value`` is the label's."""
        self._counts[value][bisect_left(self._bounds, amount)] += 1
        self._sums[value] += amount

    def add(self, value: str, counts: Sequence[int], total: float) -> None:
        """Count what was counted elsewhere with the same bounds."""
        mine = self._counts[value]
        mine[:] = map(int.__add__, mine, counts)
        self._sums[value] += total

    def collect(self) -> Iterable[Metric]:
        """What a scrape reads: cumulative counts, as the exposition format has them."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        bounds = [str(float(bound)) for bound in self._bounds] + ["+Inf"]
        for value, counts in self._counts.items():
            family.add_metric([value], list(zip(bounds, accumulate(counts), strict=True)), self._sums[value])
        yield family


class Counts(Collector):
    """Counters that belong to one event loop, for what is counted with every request: plain numbers, no mutex."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        series: Iterable[tuple[str, ...]],
        registry: CollectorRegistry,
    ) -> None:
        self.values: dict[tuple[str, ...], int] = dict.fromkeys(series, 0)
        self._name = name
        self._text = text
        self._labels = labels
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What a scrape reads."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for series, value in self.values.items():
            family.add_metric(series, value)
        yield family


class SliceFacts(Protocol):
    """What is measured of a slice."""

    count: int
    sent_at: float
    queued_at: float


class Metrics:
    """One for the process; every series exists from the start, at zero."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        build = Gauge(
            "cloudseal_build", "Always 1; the version is the label.", ["version"], registry=registry
        )
        build.labels(__version__).set(1)
        outcomes = ("ok", *(row.label for row in TABLE.values()))
        self._requests = Counts(
            "cloudseal_requests",
            "Requests answered, by how.",
            ("type", "outcome"),
            [(type_, outcome) for type_ in REQUEST_TYPES for outcome in outcomes],
            registry,
        )
        self._request_seconds = Histogram(
            "cloudseal_request_seconds",
            "From a frame's arrival to its answer.",
            "type",
            REQUEST_TYPES,
            SECONDS,
            registry,
        )
        self._items = Counts(
            "cloudseal_items",
            "Items answered one by one.",
            ("type", "outcome"),
            [(type_, outcome) for type_, outcomes in ITEM_OUTCOMES.items() for outcome in outcomes],
            registry,
        )
        self.connections = Gauge("cloudseal_connections", "Connections open.", registry=registry)
        self.connections_refused = Counter(
            "cloudseal_connections_refused", "Connections turned away at the limit.", registry=registry
        )
        self.protocol_errors = Counter(
            "cloudseal_protocol_errors",
            "Connections closed because the protocol was broken.",
            registry=registry,
        )
        self.authentication_failures = Counter(
            "cloudseal_authentication_failures", "Proofs of identity that did not fit.", registry=registry
        )
        self.filing_overdue = Gauge(
            "cloudseal_filing_overdue_messages",
            "Messages to the public security that were due and have not arrived.",
            registry=registry,
        )
        self.processors_awake = Gauge(
            "cloudseal_processors_awake",
            "Fronts whose requests come close together, and that have the kernel keep processors awake.",
            registry=registry,
        )
        tokens = list(tokens)
        self._queue = Histogram(
            "cloudseal_queue_seconds",
            "What the oldest item of a slice waited for a worker.",
            "token",
            tokens,
            SECONDS,
            registry,
        )
        self._execution = Histogram(
            "cloudseal_execution_seconds",
            "What a slice took inside its worker.",
            "token",
            tokens,
            SECONDS,
            registry,
        )
        self._slice_items = Histogram(
            "cloudseal_slice_items", "Items of a slice.", "token", tokens, ITEMS, registry
        )
        workers = Gauge("cloudseal_workers_up", "Signer workers that can sign.", ["token"], registry=registry)
        restarts = Counter(
            "cloudseal_worker_restarts", "Signer workers replaced.", ["token"], registry=registry
        )
        hangs = Counter(
            "cloudseal_worker_hangs", "Signer workers killed at their deadline.", ["token"], registry=registry
        )
        self._lanes: dict[str, Lane] = {}
        self._workers = {token: workers.labels(token) for token in tokens}
        self._restarts = {token: restarts.labels(token) for token in tokens}
        self._hangs = {token: hangs.labels(token) for token in tokens}

    def request_done(self, type_: str, outcome: str, seconds: float) -> None:
        """A request was answered."""
        self._requests.values[type_, outcome] += 1
        self._request_seconds.observe(type_, seconds)

    def items_done(self, type_: str, good: int, bad: int) -> None:
        """Items of a request were answered."""
        first, second = ITEM_OUTCOMES[type_]
        if good:
            self._items.values[type_, first] += good
        if bad:
            self._items.values[type_, second] += bad

    def slice_done(self, token: str, piece: SliceFacts, execution_s: float) -> None:
        """A worker has answered a slice."""
        self._queue.observe(token, piece.sent_at - piece.queued_at)
        self._execution.observe(token, execution_s)
        self._slice_items.observe(token, piece.count)

    def workers_up(self, token: str, count: int) -> None:
        """So many can sign now."""
        self._workers[token].set(count)

    def worker_restarted(self, token: str) -> None:
        """One was replaced."""
        self._restarts[token].inc()

    def worker_hung(self, token: str) -> None:
        """One was killed at its deadline."""
        self._hangs[token].inc()

    def watch(self, read: Callable[[], Iterable[tuple[str, str, dict[str, float]]]]) -> None:
        """What is read when asked for: (name, help, token -> value); a name that ends in ``_total`` is a counter."""
        self.registry.register(_Reader(read))

    def watch_seals(self, book: SealBookFacts) -> None:
        """What the book of seals is like, read when asked for."""
        self.registry.register(_Book(book))

    def follow(self, token: str, lane: Lane) -> None:
        """What passes that lane is counted in it, and added up when it is asked for."""
        self._lanes[token] = lane

    def _add_up(self) -> None:
        for token, lane in self._lanes.items():
            requests, queue, execution, slice_items, signed, failed = lane.take_counts()
            self._requests.values["sign", "ok"] += sum(requests[0])
            self._request_seconds.add("sign", *requests)
            self.items_done("sign", signed, failed)
            self._queue.add(token, *queue)
            self._execution.add(token, *execution)
            self._slice_items.add(token, *slice_items)

    def page(self) -> bytes:
        """The text that a scrape gets."""
        self._add_up()
        return generate_latest(self.registry)


class _Reader(Collector):
    def __init__(self, read: Callable[[], Iterable[tuple[str, str, dict[str, float]]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, text, values in self._read():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name.removesuffix("_total"), text, labels=["token"])
            for token, value in values.items():
                family.add_metric([token], value)
            yield family


class SealBookFacts(Protocol):
    """What is measured of the book of seals."""

    held_len: int
    misses: int

    def __len__(self) -> int: ...


class _Book(Collector):
    def __init__(self, book: SealBookFacts) -> None:
        self._book = book

    def collect(self) -> Iterable[Metric]:
        book = self._book
        yield GaugeMetricFamily("cloudseal_seal_book_seals", "Seals ready to be used.", len(book))
        yield GaugeMetricFamily("cloudseal_seal_book_bytes", "Bytes that they take.", book.held_len)
        yield CounterMetricFamily(
            "cloudseal_seal_book_misses", "Seals and grants that had to be read.", book.misses
        )


def merge_pages(pages: Sequence[bytes]) -> bytes:
    """One page from those of all fronts: every series exists in each, and the values add up.

    Except for what says yes or no: the version, and whether a token is up.
    """
    totals: dict[bytes, float] = {}
    for page in pages:
        for line in page.splitlines():
            if not line.startswith(b"#"):
                series, _, value = line.rpartition(b" ")
                if series.startswith(NOT_SUMMED):
                    totals[series] = max(totals.get(series, 0.0), float(value))
                else:
                    totals[series] = totals.get(series, 0.0) + float(value)
    lines = [
        line if line.startswith(b"#") else b"%s %s" % (series, str(totals[series]).encode())
        for line in pages[0].splitlines()
        for series in (line.rpartition(b" ")[0],)
    ]
    return b"\n".join(lines) + b"\n"
