"""A batch job that ends like a power cut at its n-th durable step. Run by ``test_stream.py`` as a process of its own.

    interrupted_job.py OUTPUT FORMAT ITEMS N

Exit codes: 0 the job is complete, 77 it was cut short.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

import stand_in  # beside this file

from appliance.cli import stream
from appliance.cli.signing import Hasher

out, form, items, end_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
steps = itertools.count(1)


def at(step: str) -> None:
    if next(steps) == end_at:
        print(step)
        sys.stdout.flush()
        os._exit(77)  # no clean-up runs, nothing is flushed: as if killed


async def work() -> None:
    source = stream.SyntheticSource(items, Hasher(stand_in.KEY))
    wanted = stream.Job("ab" * 16, "k", "spki", source.identity, form)
    clock = (
        itertools.count()
    )  # each look at the clock is a second later: every batch is followed by a checkpoint
    with stream.Output.open(out, wanted, at) as output:
        if not output.job.complete:
            await stream.sign_job(
                stand_in.StandIn(refused=frozenset({7})),
                source,
                output,
                stream.Tally(output.job.next_index),
                lambda done: None,
                batch_items=4,
                clock=lambda: float(next(clock)),
            )


asyncio.run(work())
