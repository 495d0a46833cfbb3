"""Many signatures together: the same reports as one by one, whatever the mixture."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.eseal.batches import verify_many
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
