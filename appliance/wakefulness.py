"""Processors that stay awake while requests come close together.

For: asking the kernel for it (PM QoS, ``/dev/cpu_dma_latency``), and taking that back.
Not for: looking out for what comes next, which workers and the front do where the kernel cannot be asked
(``signers.spin_us``).

A processor with nothing to do sleeps, and on a virtual machine it takes longer to wake than a signature takes; a lone
request wakes four. A processor that must wake within ``cpu_latency_us`` sleeps as lightly as that allows, at 0 not at
all, and whoever wakes somebody on it need not even interrupt it.

Rules:

* Only while slices are given to workers at ``BUSY_PER_S`` and more, for it costs power: lone requests and small batches
  that come close together, and larger ones where the token is very fast.
* It holds for the whole machine, and adds nothing to what anybody may do there.
* Of several fronts each asks for itself, at its share of that rate; while one does, it holds.

Security note: the daemon's user may write that one device. What can be done with it is to have processors use power.

Crash story: the kernel takes a request back as the file is closed, and a process that dies closes it. One that is
stopped (SIGSTOP) leaves it as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

DEVICE: Final = Path("/dev/cpu_dma_latency")
DRIVER: Final = Path("/sys/devices/system/cpu/cpuidle/current_driver")
"""Who puts processors to sleep; without a driver the kernel asks nobody how deeply."""
BUSY_PER_S: Final = 1_000
"""Slices; where fewer come, a processor that stays awake for them does nothing for most of its time."""
TICK_S: Final = 0.05
SPIN_US: Final = 500
"""``signers.spin_us`` where it says nothing and the kernel cannot be asked."""
REST_S: Final = 0.5
"""Asked for until so long after it was last worth it: a pause between two bursts is not a rest."""
ANY_LATENCY_US: Final = 2_000_000_000
"""What the kernel's own default says: as long as it takes."""


class Wakefulness:
    """One front's request to the kernel. Without a device that can be asked it does nothing."""

    def __init__(
        self,
        latency_us: int | None,
        slices_given: Callable[[], int],
        on_change: Callable[[bool], None],
        device: Path = DEVICE,
        driver: Path = DRIVER,
        busy_per_s: float = BUSY_PER_S,
    ) -> None:
        """``None``: do not ask. ``slices_given`` counts from any start; ``on_change`` is told what is asked for."""
        self._busy_per_s = busy_per_s
        self._latency_us = latency_us
        self._slices_given = slices_given
        self._on_change = on_change
        self._fd = -1 if latency_us is None else _open(device, driver)
        self._is_asking = False

    @property
    def can_ask(self) -> bool:
        """Whether there is a device that can be asked, and that does something."""
        return self._fd >= 0

    async def run(self) -> None:
        """Until cancelled, and then it is taken back."""
        if not self.can_ask:
            return
        clock = asyncio.get_running_loop().time
        given, looked_at = self._slices_given(), clock()
        busy_at = looked_at - REST_S
        try:
            while self.can_ask:
                await asyncio.sleep(TICK_S)
                given_before, looked_before = given, looked_at
                given, looked_at = self._slices_given(), clock()
                if given - given_before >= self._busy_per_s * (looked_at - looked_before):
                    busy_at = looked_at
                self._ask(looked_at - busy_at < REST_S)
        finally:
            self._ask(False)
            self._close()

    def _ask(self, is_wanted: bool) -> None:
        if is_wanted == self._is_asking:
            return
        assert self._latency_us is not None
        try:
            os.write(self._fd, struct.pack("=i", self._latency_us if is_wanted else ANY_LATENCY_US))
        except OSError as error:
            log.warning("processors are not kept awake any more: %s", error.strerror)
            self._close()
            is_wanted = False
        self._is_asking = is_wanted
        self._on_change(is_wanted)

    def _close(self) -> None:
        if self.can_ask:
            os.close(self._fd)
            self._fd = -1


def _open(device: Path, driver: Path) -> int:
    """The device's descriptor; -1 where it would do nothing, and the log says why."""
    name = ""
    with suppress(OSError):
        name = driver.read_text().strip()
    if name in ("", "none"):
        log.info(
            "processors are not kept awake, see signers.spin_us: the kernel has no driver that puts them to sleep (%s)",
            driver,
        )
        return -1
    try:
        return os.open(device, os.O_WRONLY)
    except OSError as error:
        log.info("processors are not kept awake, see signers.spin_us: %s: %s", device, error.strerror)
        return -1
