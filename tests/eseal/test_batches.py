"""Many signatures together: the same reports as one by one, whatever the mixture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.eseal.batches import Item, findings_of_many, verify_many
from appliance.eseal.structures import ESeal
from appliance.eseal.verification import ACTIVE, Examiner, Standing, Status, Verdict
from appliance.verifying import Verifier, sm3

from .conftest import DOCUMENT, MANIFEST, load, trust

SIGNATURES = sorted(name for name, entry in MANIFEST.items() if entry["kind"] == "signature")
HASH = sm3(DOCUMENT)


@pytest.mark.parametrize("days", [1, 40, 1200])
@pytest.mark.parametrize("cancelled_in", [None, -200, 0])
def test_the_same_as_one_by_one(verifier: Verifier, days: int, cancelled_in: int | None) -> None:
    examiner = Examiner(trust(crls=("root",)), verifier)
    made = load("good_v4").now - timedelta(days=1)
    now, status = made + timedelta(days=days), ACTIVE
    if cancelled_in is not None:
        status = Status(Standing.CANCELLED, made + timedelta(days=cancelled_in))
    items = [
        (load(name).data, data_hash) for name in SIGNATURES for data_hash in (HASH, HASH, None, bytes(32))
    ]
    items *= 3
    random.Random(days).shuffle(items)
    asked: list[ESeal] = []

    def status_of(seal: ESeal) -> Status:
        asked.append(seal)
        return status

    together = verify_many(examiner, items, now, status_of)
    assert together == [examiner.signature(data, data_hash, now, status) for data, data_hash in items]
    assert len(asked) == len({seal.der for seal in asked})


class Counted(Sequence[Item]):
    """Items that are made up each time they are asked for, as the appliance cuts them out of a request."""

    def __init__(self, items: list[Item]) -> None:
        self.items, self.asked = items, [0] * len(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        self.asked[index] += 1
        data, data_hash = self.items[index]
        return bytes(memoryview(data)), data_hash


def test_items_are_taken_in_passing(verifier: Verifier) -> None:
    """Each once, or twice where it is examined in full; of a kind all share a report, and none keeps its own bytes."""
    good, now = load("good_v4").data, load("good_v4").now
    items = Counted([(good, HASH)] * 50 + [(good, bytes(32)), (good[:-1], HASH)])
    examiner = Examiner(trust(), verifier)
    reports = list(findings_of_many(examiner, items, now, lambda _: ACTIVE))
    assert items.asked == [1] * 50 + [2, 2]
    assert all(report is reports[0] for report in reports[:50])
    assert [report.verdict for report in reports[49:]] == [Verdict.GOOD, Verdict.INVALID, Verdict.INVALID]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_in_one_of_many(verifier: Verifier, data: st.DataObject) -> None:
    """Most of all: the plain form takes nothing that reading in full refuses."""
    good, now = load("good_v4").data, load("good_v4").now
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 12), st.integers(-1500, -1), st.integers(0, len(good) - 1)))
        changed[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del changed[data.draw(st.integers(0, len(changed) - 1))]
    examiner = Examiner(trust(), verifier)
    items = [(good, HASH), (good, HASH), (bytes(changed), HASH), (good, HASH)]
    together = verify_many(examiner, items, now, lambda _: ACTIVE)
    assert together == [examiner.signature(each, HASH, now, ACTIVE) for each, _ in items]
    assert together[0].verdict is Verdict.GOOD


@pytest.mark.parametrize(
    "head", [b"", b"\x30", b"\x30\x82", b"\x30\x83", b"\x30\x82\x00\x00", b"\x30\x83\x00\xff\xff"]
)
@pytest.mark.parametrize("length", [0, 1, 3, 255, 256, 65_535, 65_536, 70_000])
def test_lengths_that_cannot_be_after_a_good_one(verifier: Verifier, head: bytes, length: int) -> None:
    """What follows a good one is compared with its form first, whatever its length says."""
    good, now = load("good_v4").data, load("good_v4").now
    examiner = Examiner(trust(), verifier)
    items = [(good, HASH), (head + bytes(length), HASH)]
    together = verify_many(examiner, items, now, lambda _: ACTIVE)
    assert [report.verdict for report in together] == [Verdict.GOOD, Verdict.INVALID]
