"""A worker's answers that cannot be: it is replaced, and what it owes goes to another."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from appliance_pkcs11 import link

from appliance import wire
from appliance.dispatch import Dispatcher, Part, Slice, Work
from appliance.settings import SignerSettings
from appliance.signers import SignerPool, SignerWorker, _poll_fd
from appliance.wire import Form, Priority


class FakePool:
    """What a worker tells its pool."""

    name = "token"
    now = 0.0

    def __init__(self) -> None:
        self.dispatcher = Dispatcher(SignerSettings(), 1_000, time.monotonic, lambda key: None)
        self.occasion = SimpleNamespace(begin=lambda: None, end=lambda: None)
        self.answered: list[Slice] = []
        self.owed: list[Slice] | None = None

    def slice_answered(self, worker: SignerWorker, piece: Slice, *result: object) -> None:
        self.answered.append(piece)

    def worker_gone(self, worker: SignerWorker, slices: list[Slice]) -> None:
        self.owed = slices


class FakeTransport:
    """A link that ends when it is aborted."""

    def __init__(self, worker: SignerWorker, sock: socket.socket) -> None:
        self.worker = worker
        self.sock = sock

    def get_extra_info(self, name: str) -> socket.socket:
        return self.sock

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.worker.connection_lost(None)


def signed(sequence: int, count: int) -> bytes:
    frame = bytearray(link.signed_frame_len(count))
    link.pack_signed_head_into(frame, sequence, count, count, 0, 0, 1_000)
    return bytes(frame)


def slice_of(count: int) -> Slice:
    items = wire.digests(bytes(32 * count))
    work = Work("a", items, Priority.AUTOMATIC, 0.0, 9.0, lambda work: None)
    return Slice("a", Form.DIGESTS, [Part(work, 0, count)], count, False, 0.0)


@pytest.mark.parametrize("count", [2, 40])  # the short way and the general one
@pytest.mark.parametrize("wrong", ["another count", "nobody's", "twice"])
def test_an_answer_that_cannot_be(count: int, wrong: str) -> None:
    async def story() -> None:
        pool = FakePool()
        worker = SignerWorker(cast(SignerPool, pool), 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            worker.connection_made(cast(Any, FakeTransport(worker, ours)))
            good, hurt = slice_of(count), slice_of(count)
            worker.slices.update({1: good, 2: hurt})
            worker.data_received(
                {
                    "another count": signed(1, count) + signed(2, count - 1),
                    "nobody's": signed(1, count) + signed(3, count),
                    "twice": signed(1, count) + signed(1, count),
                }[wrong]
            )
            assert pool.answered in ([good], []), "never twice"
            assert pool.owed == [one for one in (good, hurt) if one not in pool.answered]
            assert hurt in pool.owed
        with pytest.raises(Exception, match="ended while starting"):
            await worker.ready

    asyncio.run(story())


# What the loop sleeps on -------------------------------------------------------------------------------------------


def test_a_lane_knows_what_its_loop_sleeps_on() -> None:
    """By a name that uvloop keeps to itself: where that changes, the front sleeps at once, and this fails."""

    async def ask() -> int:
        return os.dup(_poll_fd())  # the loop takes its own along

    poll_fd = uvloop.run(ask())
    assert str(Path(f"/proc/self/fd/{poll_fd}").readlink()) == "anon_inode:[eventpoll]"
    os.close(poll_fd)


def test_a_loop_that_does_not_tell() -> None:
    async def ask() -> int:
        return _poll_fd()

    assert asyncio.run(ask()) == -1
