"""What strangers may ask for."""

from __future__ import annotations

import pytest

from appliance.api.limits import MAX_ADDRESSES, Allowance
from appliance.errors import Busy


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def take(allowance: Allowance, address: str) -> None:
    allowance.count(address)


def test_a_minutes_worth_at_once_and_then_evenly() -> None:
    clock = Clock()
    allowance = Allowance(6, 10, clock)
    for _ in range(6):
        take(allowance, "192.0.2.1")
    with pytest.raises(Busy) as caught:
        take(allowance, "192.0.2.1")
    assert caught.value.retry_after_ms == 10_000
    assert caught.value.hint
    take(allowance, "192.0.2.2")
    clock.now += 9.9
    with pytest.raises(Busy):
        take(allowance, "192.0.2.1")
    clock.now += 0.2
    take(allowance, "192.0.2.1")
    with pytest.raises(Busy):
        take(allowance, "192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unknown", "other", False),
    ],
)
def test_who_is_one_address(one: str, other: str, same: bool) -> None:
    allowance = Allowance(1, 10, Clock())
    take(allowance, one)
    if same:
        with pytest.raises(Busy):
            take(allowance, other)
    else:
        take(allowance, other)


def test_so_many_at_a_time_for_all() -> None:
    allowance = Allowance(100, 2, Clock())
    with allowance.place(), allowance.place(), pytest.raises(Busy), allowance.place():
        pass
    with allowance.place():
        pass


def test_what_is_remembered_is_bounded() -> None:
    allowance = Allowance(1, 10, Clock())
    for number in range(MAX_ADDRESSES + 100):
        take(allowance, f"host-{number}")
    assert len(allowance._buckets) == MAX_ADDRESSES
