"""Several front processes where one core is not enough: one leads, the others follow.

For: starting followers with the leader's listening sockets, telling them what changed, asking them what they see.
Not for: anything on the way of a request. Each front has its own sessions, queues and signer workers; the kernel hands
each new connection to one of them.

Rules:

* The leader alone writes the registry and has the officers' interface. An act is answered only after every follower
  has read it: a key that an officer stopped is stopped everywhere, before the officer is told so. A follower that does
  not say so in time is killed; its successor reads the registry as it starts.
* Followers start once no token of the leader is starting or has its PIN refused: a wrong PIN is tried once, not once
  for each front.
* Numbers are the sum over all fronts; what each bounds (connections, queues, memory, failed logins) it bounds for
  itself.

Crash story: a follower that dies is replaced, and its clients reconnect. A leader that dies closes the control links,
and each follower drains and ends; systemd starts the whole anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance.errors import ConfigError, Unavailable
from appliance.server import Listeners

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 2.0
"""A follower's event loop is never held that long; one that does not answer is no use to its clients either."""
MAX_LINE_LEN: Final = 4 * 1024 * 1024
"""A status or metrics page of one front; some kB."""
START_TIMEOUT_S: Final = 30.0
"""For a follower's first answer: it has its programs to load, its registry to read, on a machine that may be busy."""
RESTART_DELAY_S: Final = 0.5
START_TICK_S: Final = 0.05

Document = dict[str, Any]
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Answer = Callable[[Document], Awaitable[Document]]


@dataclass(frozen=True, slots=True)
class Place:
    """Which front this is."""

    index: int = 0
    count: int = 1

    def share(self, workers: int) -> int:
        """How many of a token's workers are this front's: an even share, and at least one."""
        return max(1, workers // self.count + (self.index < workers % self.count))


class _Follower:
    """The leader's view of one follower. One question at a time."""

    def __init__(self, process: asyncio.subprocess.Process, streams: _Streams) -> None:
        self.process = process
        self._reader, self._writer = streams
        self._turn = asyncio.Lock()
        self.has_answered = False

    async def ask(self, question: Document) -> Document:
        """Its answer, or ``Unavailable`` after killing it."""
        try:
            async with self._turn:
                async with asyncio.timeout(ANSWER_TIMEOUT_S if self.has_answered else START_TIMEOUT_S):
                    self._writer.write(_line(question))
                    answer = _parse(await self._reader.readline())
                self.has_answered = True
                return answer
        except (
            OSError,
            TimeoutError,
            ValueError,
            RuntimeError,
        ) as error:  # the last is uvloop's closed transport
            log.error("a front process does not answer (%r): killed", error)
            if self.process.returncode is None:
                self.process.kill()
            raise Unavailable(
                "a front process did not answer and is replaced", retry_after_ms=1_000
            ) from error

    async def greet(self) -> None:
        """Wait until it serves."""
        with suppress(Unavailable):
            await self.ask({"ask": "status"})

    def close(self) -> None:
        self._writer.close()


class Fronts:
    """The leader's followers; none where there is one front."""

    def __init__(self, count: int, config: Path, may_start: Callable[[], bool]) -> None:
        self._count = count
        self._config = config
        self._may_start = may_start
        self._followers: dict[int, _Follower] = {}
        self._stopping = False

    async def run(self, listeners: Listeners) -> None:
        """Keep the followers running on these sockets until ``begin_stop``."""
        async with asyncio.TaskGroup() as group:
            for index in range(1, self._count):
                group.create_task(self._supervise(index, listeners), name=f"front {index}")

    async def _supervise(self, index: int, listeners: Listeners) -> None:
        while not self._stopping:
            if not self._may_start():
                await asyncio.sleep(START_TICK_S)
                continue
            follower = await self._start(index, listeners)
            self._followers[index] = follower
            greeting = asyncio.ensure_future(follower.greet())
            code = await follower.process.wait()
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)
            del self._followers[index]
            follower.close()
            if not self._stopping:
                log.error("front %d ended with code %d; starting another", index, code)
                await asyncio.sleep(RESTART_DELAY_S)

    async def _start(self, index: int, listeners: Listeners) -> _Follower:
        ours, theirs = socket.socketpair()
        listening = [sock.fileno() for sock in (listeners.unix, listeners.tcp) if sock is not None]
        numbers = [theirs.fileno(), *(sock.fileno() if sock else -1 for sock in listeners.both), index]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "appliance.daemon",
                f"--config={self._config}",
                f"--follow={','.join(map(str, numbers))}",
                pass_fds=(theirs.fileno(), *listening),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the leader, which stops the others
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Follower(process, await _open(ours))

    async def tell(self, kind: str, name: str) -> None:
        """A key or an account has changed: returns when every follower goes by it, or is gone."""
        # Those that are starting, too: they may have read the registry before it changed.
        question = {"ask": "refresh", "kind": kind, "name": name}
        await self._ask_all(question, list(self._followers.values()))

    async def ask(self, what: str) -> list[Document]:
        """What every follower that serves says to ``status``, ``metrics`` or ``retry``."""
        serving = [one for one in self._followers.values() if one.has_answered]
        return await self._ask_all({"ask": what}, serving)

    async def _ask_all(self, question: Document, followers: list[_Follower]) -> list[Document]:
        answers = await asyncio.gather(*(one.ask(question) for one in followers), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Unavailable):
                raise answer
        # Those that did not answer are dead by now: nobody acts on what they had not heard.
        return [answer for answer in answers if isinstance(answer, dict)]

    def begin_stop(self) -> None:
        """No more starts; every follower drains."""
        self._stopping = True
        for follower in self._followers.values():
            if follower.process.returncode is None:
                follower.process.terminate()

    async def wait_stopped(self, within_s: float) -> None:
        """Until all have ended; those that have not by then are killed."""
        try:
            async with asyncio.timeout(within_s):
                while self._followers:
                    await asyncio.sleep(START_TICK_S)
        except TimeoutError:
            for follower in list(self._followers.values()):
                follower.process.kill()


@dataclass(frozen=True, slots=True)
class Following:
    """What a follower is given on its command line."""

    control: socket.socket
    listeners: Listeners
    index: int

    @classmethod
    def parse(cls, text: str) -> Following:
        """The inverse of what ``Fronts`` writes."""
        try:
            control, unix, tcp, index = (int(part) for part in text.split(","))
            sockets = [socket.socket(fileno=number) if number >= 0 else None for number in (unix, tcp)]
            return cls(socket.socket(fileno=control), Listeners(*sockets), index)
        except (ValueError, OSError) as error:
            raise ConfigError(
                "--follow is for cloud-seald itself", hint="start cloud-seald without it"
            ) from error

    async def answer_leader(self, answer: Answer) -> None:
        """Answer the leader's questions until it closes the link."""
        reader, writer = await _open(self.control)
        try:
            while line := await reader.readline():
                writer.write(_line(await answer(_parse(line))))
        except OSError:
            pass  # the leader is gone: whoever runs this drains
        finally:
            writer.close()


async def _open(sock: socket.socket) -> _Streams:
    sock.setblocking(False)
    return await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_LEN)


def _line(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Document:
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("expected an object")
    return document
