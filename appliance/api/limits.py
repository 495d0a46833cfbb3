"""How much strangers may ask for: so many requests a minute for each address, and so many at a time for all.

For: the operations that take no credentials.
Not for: officers and accounts, whom their passwords slow down, and whose grants limit them.

Rules:

* An address has a bucket that fills up evenly; a full one holds a minute's worth. IPv6 counts by /64, which is what
  one customer has.
* The table of addresses is bounded; the one not seen for longest is forgotten, and begins anew with a full bucket.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from appliance.errors import Busy

MAX_ADDRESSES: Final = 10_000
"""A flood from more addresses than that is for a firewall; here it must not fill memory."""


class Allowance:
    """Requests of strangers; the event loop alone touches it."""

    def __init__(self, per_minute: int, at_once: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._free = at_once
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (left, as of)

    @contextmanager
    def place(self) -> Iterator[None]:
        """For one request, until it is answered; ``Busy`` where all are taken."""
        if self._free <= 0:
            raise Busy(
                "too many requests without credentials at once", hint="try again", retry_after_ms=1_000
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    def count(self, address: str) -> None:
        """One request from there; ``Busy`` where those are too many."""
        address = _network(address)
        now = self._clock()
        left, as_of = self._buckets.pop(address, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - as_of) * self._per_minute / 60)
        if left < 1:
            self._buckets[address] = (left, now)
            wait_ms = math.ceil((1 - left) * 60_000 / self._per_minute)
            raise Busy(
                f"more than {self._per_minute} requests a minute without credentials from one address",
                hint="slow down, or use an account over the wire protocol",
                retry_after_ms=wait_ms,
            )
        self._buckets[address] = (left - 1, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)
