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
* What only the leader can do (unlock a seal, reserve from a daily limit, count uses) a follower asks of it over a line
  of its own, inherited like the leader's.
* Numbers are the sum over all fronts; what each bounds (connections, queues, memory, failed logins) it bounds for
  itself.

Crash story: a follower that dies is replaced, and its clients reconnect. A leader that dies closes the control links,
and each follower drains and ends; systemd starts the whole anew.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance.errors import ApplianceError, ConfigError, Unavailable, from_wire
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
MAX_ASKED: Final = 256
"""Questions of one follower to the leader at a time; more wait in the follower."""

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

    def processors(self, listed: tuple[int, ...]) -> tuple[int, ...]:
        """Which of them this front's workers are bound to: every n-th, or all where there are fewer than fronts."""
        return listed[self.index :: self.count] or listed

    @property
    def processor_count(self) -> int:
        """How many of the machine's processors are this front's and its workers', if all fronts get the same."""
        return max(1, (os.cpu_count() or 1) // self.count)


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


async def _serve(streams: _Streams, answer: Answer) -> None:
    """Answer a follower's questions, several at a time, until it closes the line."""
    reader, writer = streams
    tasks: set[asyncio.Task[None]] = set()

    async def one(question: Document) -> None:
        answered: Document
        try:
            answered = await answer(question)
        except ApplianceError as error:
            answered = {"error": [error.wire_code, error.detail, error.hint, error.retry_after_ms]}
        writer.write(_line({"id": question["id"], **answered}))

    try:
        while line := await reader.readline():
            task = asyncio.get_running_loop().create_task(one(_parse(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (OSError, ValueError) as error:
        log.error("a front process asks what cannot be read: %r", error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


class Leader:
    """A follower's line to the leader. Several questions at a time; answers come in any order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._streams: _Streams | None = None
        self._turns = asyncio.Semaphore(MAX_ASKED)
        self._waiting: dict[int, asyncio.Future[Document]] = {}
        self._ids = itertools.count(1)
        self._gone = False

    async def open(self) -> None:
        """Before ``run`` and ``ask``."""
        self._streams = await _open(self._sock)

    async def run(self) -> None:
        """Take answers until the leader is gone."""
        assert self._streams is not None
        reader, writer = self._streams
        try:
            while line := await reader.readline():
                answer = _parse(line)
                waiting = self._waiting.pop(answer.pop("id"), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except OSError:
            pass  # the leader is gone: this front drains
        finally:
            self._gone = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_leader_gone())
            writer.close()

    async def ask(self, question: Document) -> Document:
        """The leader's answer, or the error that it answered; ``Unavailable`` where it is gone."""
        async with self._turns:
            if self._gone or self._streams is None:
                raise _leader_gone()
            id_ = next(self._ids)
            future: asyncio.Future[Document] = asyncio.get_running_loop().create_future()
            self._waiting[id_] = future
            try:
                self._streams[1].write(_line({"id": id_, **question}))
                answer = await future
            finally:
                self._waiting.pop(id_, None)
        if "error" in answer:
            code, detail, hint, retry_after_ms = answer["error"]
            raise from_wire(code, detail, hint=hint, retry_after_ms=retry_after_ms)
        return answer


def _leader_gone() -> Unavailable:
    return Unavailable("the leading front process is gone", hint="try again", retry_after_ms=1_000)


class Fronts:
    """The leader's followers; none where there is one front."""

    def __init__(
        self,
        count: int,
        config: Path,
        may_start: Callable[[], bool],
        answer_follower: Answer,
    ) -> None:
        self._count = count
        self._config = config
        self._may_start = may_start
        self._answer_follower = answer_follower
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
            follower, upward = await self._start(index, listeners)
            self._followers[index] = follower
            greeting = asyncio.ensure_future(follower.greet())
            serving = asyncio.ensure_future(_serve(upward, self._answer_follower))
            code = await follower.process.wait()
            greeting.cancel()
            serving.cancel()
            await asyncio.gather(greeting, serving, return_exceptions=True)
            del self._followers[index]
            follower.close()
            if not self._stopping:
                log.error("front %d ended with code %d; starting another", index, code)
                await asyncio.sleep(RESTART_DELAY_S)

    async def _start(self, index: int, listeners: Listeners) -> tuple[_Follower, _Streams]:
        ours, theirs = socket.socketpair()
        ours_up, theirs_up = socket.socketpair()
        listening = [sock.fileno() for sock in (listeners.unix, listeners.tcp) if sock is not None]
        numbers = [
            theirs.fileno(),
            theirs_up.fileno(),
            *(sock.fileno() if sock else -1 for sock in listeners.both),
            index,
        ]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "appliance.daemon",
                f"--config={self._config}",
                f"--follow={','.join(map(str, numbers))}",
                pass_fds=(theirs.fileno(), theirs_up.fileno(), *listening),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the leader, which stops the others
            )
        except BaseException:
            ours.close()
            ours_up.close()
            raise
        finally:
            theirs.close()
            theirs_up.close()
        return _Follower(process, await _open(ours)), await _open(ours_up)

    async def tell(self, kind: str, name: str) -> None:
        """A key or an account has changed: returns when every follower goes by it, or is gone."""
        await self.tell_all({"ask": "refresh", "kind": kind, "name": name})

    async def tell_all(self, question: Document) -> None:
        """Returns when every follower has answered it, or is gone."""
        # Those that are starting, too: they may have read the registry before it changed.
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
    upward: socket.socket
    listeners: Listeners
    index: int

    @classmethod
    def parse(cls, text: str) -> Following:
        """The inverse of what ``Fronts`` writes."""
        try:
            control, upward, unix, tcp, index = (int(part) for part in text.split(","))
            sockets = [socket.socket(fileno=number) if number >= 0 else None for number in (unix, tcp)]
            links = (socket.socket(fileno=control), socket.socket(fileno=upward))
            return cls(*links, Listeners(*sockets), index)
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
