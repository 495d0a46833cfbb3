"""Metrics are an interface: names, types, labels and help texts are compared with a file that a person reads.

To change it on purpose: ``CLOUD_SEAL_WRITE_GOLDEN=1 pytest tests/unit/test_metrics.py``, and look at the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.daemon import Daemon
from appliance.errors import TABLE
from appliance.metrics import ITEMS, REQUEST_TYPES, SECONDS, Metrics

GOLDEN = Path(__file__).with_name("metrics.golden")


@dataclass
class Facts:
    count: int = 300
    sent_at: float = 10.5
    queued_at: float = 10.0


class Book:
    held_len = 0
    misses = 0

    def __len__(self) -> int:
        return 0


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics(["token"])
    dispatcher = SimpleNamespace(queued_items=3, inflight_items=0, retried_parts=0)
    daemon = SimpleNamespace(pools={"token": SimpleNamespace(dispatcher=dispatcher, is_up=False)})
    made.watch(lambda: Daemon._read_gauges(daemon))  # type: ignore[arg-type]  # all that it looks at
    made.watch_seals(Book())
    return made


def samples(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def interface(metrics: Metrics) -> Iterable[str]:
    """One line a family, one an outcome or bucket bound of each label."""
    for family in sorted(text_string_to_metric_families(metrics.page().decode()), key=lambda one: one.name):
        yield f"{family.name} {family.type}: {family.documentation}"
        values: dict[str, list[str]] = {}
        for sample in family.samples:
            for key, value in sample.labels.items():
                if key != "version" and value not in values.setdefault(key, []):
                    values[key].append(value)
        for key, seen in sorted(values.items()):
            yield f"  {key}: {' '.join(seen)}"


def test_the_interface_is_the_golden_file(metrics: Metrics) -> None:
    text = "\n".join(interface(metrics)) + "\n"
    if os.environ.get("CLOUD_SEAL_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_series_exists_from_the_start_at_zero(metrics: Metrics) -> None:
    found = samples(metrics)
    for type_ in REQUEST_TYPES:
        for outcome in ("ok", *(row.label for row in TABLE.values())):
            assert found.pop(f"cloudseal_requests_total{{outcome={outcome},type={type_}}}") == 0
    assert found.pop("cloudseal_queued_items{token=token}") == 3
    assert sum(value for name, value in found.items()) == 1, "but for the build, nothing has happened"


def test_base_units_and_names(metrics: Metrics) -> None:
    for family in text_string_to_metric_families(metrics.page().decode()):
        assert family.name.startswith("cloudseal_")
        assert not family.name.endswith(("_ms", "_us", "_count", "_total"))
        assert family.documentation.endswith(".")


def test_a_request_is_counted_and_timed(metrics: Metrics) -> None:
    metrics.request_done("sign", "busy", 0.003)
    metrics.request_done("sign", "ok", 100)
    found = samples(metrics)
    assert found["cloudseal_requests_total{outcome=busy,type=sign}"] == 1
    assert found["cloudseal_request_seconds_count{type=sign}"] == 2
    assert found["cloudseal_request_seconds_sum{type=sign}"] == pytest.approx(100.003)
    assert found["cloudseal_request_seconds_bucket{le=0.0025,type=sign}"] == 0
    assert found["cloudseal_request_seconds_bucket{le=0.005,type=sign}"] == 1
    assert found["cloudseal_request_seconds_bucket{le=10.0,type=sign}"] == 1
    assert found["cloudseal_request_seconds_bucket{le=+Inf,type=sign}"] == 2


@pytest.mark.parametrize("bounds", [SECONDS, ITEMS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_a_value_at_a_bound_is_in_its_bucket(metrics: Metrics) -> None:
    """``le`` is less or equal."""
    metrics.request_done("ping", "ok", SECONDS[0])
    assert samples(metrics)[f"cloudseal_request_seconds_bucket{{le={SECONDS[0]},type=ping}}"] == 1


def test_items(metrics: Metrics) -> None:
    metrics.items_done("sign", 5, 2)
    metrics.items_done("verify", 0, 3)
    found = samples(metrics)
    got = {name: value for name, value in found.items() if name.startswith("cloudseal_items_total") and value}
    assert got == {
        "cloudseal_items_total{outcome=signed,type=sign}": 5,
        "cloudseal_items_total{outcome=failed,type=sign}": 2,
        "cloudseal_items_total{outcome=invalid,type=verify}": 3,
    }


def test_queue_time_apart_from_execution_time(metrics: Metrics) -> None:
    metrics.slice_done("token", Facts(), 0.25)
    found = samples(metrics)
    assert found["cloudseal_queue_seconds_sum{token=token}"] == 0.5
    assert found["cloudseal_execution_seconds_sum{token=token}"] == 0.25
    assert found["cloudseal_slice_items_sum{token=token}"] == 300


def test_labels_are_closed(metrics: Metrics) -> None:
    """A label that comes from outside would be a series for each stranger."""
    for observe in (
        lambda: metrics.request_done("sign", "made up", 0.1),
        lambda: metrics.request_done("made up", "ok", 0.1),
        lambda: metrics.slice_done("made up", Facts(), 0.1),
        lambda: metrics.workers_up("made up", 1),
    ):
        with pytest.raises(KeyError):
            observe()


def test_workers(metrics: Metrics) -> None:
    metrics.workers_up("token", 4)
    metrics.worker_restarted("token")
    metrics.worker_hung("token")
    found = samples(metrics)
    assert found["cloudseal_workers_up{token=token}"] == 4
    assert found["cloudseal_worker_restarts_total{token=token}"] == 1
    assert found["cloudseal_worker_hangs_total{token=token}"] == 1
