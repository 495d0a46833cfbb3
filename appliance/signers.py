"""Signer workers: processes that own a PKCS#11 module each, started, watched and replaced.

For: one ``SignerPool`` a token: it spawns workers, speaks the link (``appliance_pkcs11.link``) with them, gives
them the dispatcher's slices, and replaces whatever dies, hangs or loses its token.
Not for: choosing what is signed when (``dispatch``).

Rules:

* The front never loads a PKCS#11 module, and the PIN is read for each start, sent over the link and forgotten.
* A worker is replaced by a new process: that is how a module is reloaded. A refused PIN is never sent again by
  itself, for a retried PIN locks the token; SIGHUP, or a restart, tries again.
* A worker that has not answered a slice, or a look for a key, within ``slice_deadline_s`` hangs and is killed; one
  that is asked to make or list keys gets ``REQUEST_TIMEOUT_S``.
* A key is used on a worker only after a signature over our random challenge has verified against the public half.

Crash story: a worker that dies takes nothing along; the dispatcher gives its slices to another or to its successor.
Only when a *start* fails and no other worker is up, the token is down: then everything accepted is answered
``unavailable``, and starts go on, at most ``max_restart_delay_s`` apart, until one succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from appliance_pkcs11 import link
from appliance_pkcs11.profile import TokenProfile

from appliance import _express, _frames
from appliance.algorithms import DIGEST_LEN, SIGNATURE_LEN, Algorithm, PublicKey
from appliance.dispatch import PLENTY, Dispatcher, Slice, Work
from appliance.errors import ApplianceError, Conflict, SignerFailed, Unavailable
from appliance.metrics import ITEMS, SECONDS, Metrics
from appliance.policy import HeldKey
from appliance.settings import SignerSettings
from appliance.verifying import Verifier
from appliance.wire import Buffer, Form

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
"""How often deadlines are looked at: a fraction of any deadline worth setting."""
REQUEST_TIMEOUT_S: Final = 30.0
"""For making or listing keys; key generation in a slow token takes seconds."""
EXIT_GRACE_S: Final = 1.0
"""A worker told to stop, or gone from its link, gets so long before SIGKILL."""
MAX_PRELOADED_KEYS: Final = 256
"""Keys used last are loaded by a new worker before it is asked for them; others when they are."""
FIRST_RESTART_DELAY_S: Final = 0.1
TOKEN_DOWN_RETRY_MS: Final = 500
EXPRESS_BIT: Final = 63
"""The bit of a sequence that says that a slice is a lane's; ours count from 1."""


class Occasion(Protocol):
    """What is told that a worker's answers are handled: the clients' answers leave together at its end."""

    def begin(self) -> None:
        """The first is handled now."""

    def end(self) -> None:
        """All that came together have been handled."""


_DIGESTS: Final = Form.DIGESTS
_FORMS: Final = {form: link.Form(form) for form in Form}
"""The wire's form of items -> the link's."""


class SignerWorker(_express.Link, asyncio.Protocol):
    """One worker process and our end of its link. Everything here belongs to the event loop.

    ``Link`` has what a lane sees of it: ``sessions``, ``outstanding``, ``slots``, and the lane's own slices.
    """

    def __init__(self, pool: SignerPool, index: int) -> None:
        self.pool = pool
        self.index = index
        self.information: dict[str, Any] = {}
        self.gone = asyncio.Event()
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.slices: dict[int, Slice] = {}
        self.last_failure = ""
        self._loads: dict[int, tuple[HeldKey, bytes]] = {}
        self._heard_at = 0.0  # when it last answered, or was given something to do while it had nothing
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._sequence = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    # What the dispatcher sees ---------------------------------------------------------------------------

    def has_key(self, key: str) -> bool:
        """Whether the key is loaded and has passed its self-test."""
        return key in self.slots

    def send(self, piece: Slice) -> None:
        """Give it a slice; a link that is gone answers through ``connection_lost``."""
        self._sequence = sequence = self._sequence + 1
        self.slices[sequence] = piece
        body = piece.body()
        slot = self.slots[piece.key]
        if piece.form is _DIGESTS and len(body) == 1:
            self._write(_frames.pack_slice(sequence, slot, piece.count, body[0]))
        else:
            form = _FORMS[piece.form]
            head = link.pack_sign_head(sequence, slot, form, piece.count, sum(map(len, body)))
            self._write(b"".join((head, *body)))

    # Requests -------------------------------------------------------------------------------------------

    def load_key(self, key: HeldKey) -> None:
        """Have it find the key and prove that it can sign with it; the answer is taken in ``_key_loaded``."""
        if key.name in self.slots or any(held.name == key.name for held, _ in self._loads.values()):
            return
        challenge = secrets.token_bytes(DIGEST_LEN)
        sequence = self._next()
        if not (self._loads or self.slices or self._requests):
            self._heard_at = self.pool.now
        self._loads[sequence] = (key, challenge)
        document = {
            "id": key.key_id.hex(),
            "algorithm": key.public.algorithm.label,
            "challenge": challenge.hex(),
        }
        self._write(link.pack_json(link.Kind.LOAD_KEY, sequence, document))

    def unload_key(self, name: str) -> None:
        """Have it forget a key that is going to be destroyed; nobody waits for the answer."""
        slot = self.slots.pop(name, None)
        if slot is not None:
            self._write(link.pack_json(link.Kind.FORGET_KEY, self._next(), {"slot": slot}))

    async def request(self, kind: link.Kind, document: dict[str, Any]) -> Any:
        """Ask and wait for the JSON answer; ``Unavailable`` where it does not come."""
        sequence = self._next()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[sequence] = future
        self._write(link.pack_json(kind, sequence, document))
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await future
        except TimeoutError:
            self.pool.hung(self)
            raise Unavailable("the signer worker did not answer in time") from None
        finally:
            self._requests.pop(sequence, None)

    def stop(self) -> None:
        """Ask it to end."""
        self._write(link.pack_json(link.Kind.STOP, self._next(), {}))

    def start(self, profile: TokenProfile, pin: bytes, spin_us: int) -> None:
        """The first two frames: how to speak to the module, and the PIN."""
        document = {"profile": profile.to_mapping(), "worker": self.index, "spin_us": spin_us}
        self._write(link.pack_json(link.Kind.START, self._next(), document))
        self._write(link.pack_frame(link.Kind.PIN, self._next(), pin))

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # The link -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is ours until ``connection_lost``."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.attach(self.pool.dispatcher.lane, transport, transport.get_extra_info("socket").fileno())

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker has gone: whatever it owed goes back."""
        self._transport = None
        self.detach()
        self.adopt_slices()
        self.gone.set()
        failure = Unavailable("the signer worker is gone", retry_after_ms=TOKEN_DOWN_RETRY_MS)
        if not self.ready.done():
            self.ready.set_exception(
                Unavailable(self.last_failure or "the signer worker ended while starting")
            )
        for future in self._requests.values():
            if not future.done():
                future.set_exception(failure)
        self.slots.clear()
        slices, self.slices = list(self.slices.values()), {}
        self.pool.worker_gone(self, slices)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into frames. One that came whole is a view into what was received, and not copied."""
        if not self._buffer:
            taken = self.answered(data)
            if taken:
                self._heard_at = self.pool.now
                if self.pool.dispatcher.has_queued:
                    self.pool.dispatcher.pump()
                if taken == len(data):
                    return
                data = data[taken:]
            answers = _frames.read_answers(data)
            if answers is not None and all(answer[0] in self.slices for answer in answers):
                self._answered(answers)
                return
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data  # a large frame grows in place, as fast as it arrives
            buffer = self._buffer
        at, end = 0, len(buffer)
        self.pool.occasion.begin()
        try:
            with memoryview(buffer) as view:
                while end - at >= link.HEADER_LEN:
                    body_at = at + link.HEADER_LEN
                    header = link.unpack_header(view[at:body_at])
                    at_next = body_at + header.payload_len
                    if end < at_next:
                        break
                    # A view into the growing buffer would keep it from growing.
                    payload = view[body_at:at_next] if buffer is data else bytes(view[body_at:at_next])
                    at = at_next
                    self._frame(header.kind, header.sequence, payload)
        except (ValueError, KeyError, TypeError) as error:
            self._broken(f"a frame that makes no sense: {error!r}")
            return
        finally:
            self.pool.occasion.end()
        if buffer is data:
            self._buffer += data[at:]
        elif at:
            del self._buffer[:at]

    def _answered(self, answers: list[tuple[int, int, int, int, int, bytes, bytes]]) -> None:
        """The short way for what is nothing but answers to small slices."""
        pool = self.pool
        self._heard_at = pool.now
        pool.occasion.begin()
        try:
            for sequence, count, done, rv, execution_ns, statuses, signatures in answers:
                piece = self.slices.get(sequence)
                if piece is None or count != piece.count:  # what is owed goes to another worker
                    self._broken(f"an answer to slice {sequence} that nobody asked for")
                    return
                del self.slices[sequence]
                pool.slice_answered(self, piece, rv, done, execution_ns, statuses, signatures)
        finally:
            pool.occasion.end()

    def _broken(self, what: str) -> None:
        log.error("signer %s/%d sent %s; it is replaced", self.pool.name, self.index, what)
        if self._transport is not None:
            self._transport.abort()

    def _frame(self, kind: int, sequence: int, payload: bytes | memoryview) -> None:
        self._heard_at = self.pool.now
        if kind == link.Kind.SIGNED:
            answer = link.unpack_signed(memoryview(payload))
            self._adopt_slice(sequence)
            piece = self.slices[sequence]
            if answer.item_count != piece.count:  # what is owed goes to another worker
                raise ValueError("another count than was asked")
            del self.slices[sequence]
            self.pool.slice_answered(
                self, piece, answer.rv, answer.done, answer.execution_ns, answer.statuses, answer.signatures
            )
            return
        document = link.unpack_json(payload)
        if kind == link.Kind.KEY_LOADED:
            self._key_loaded(*self._loads.pop(sequence), document)
        elif kind == link.Kind.READY and not self.ready.done():
            self.sessions = int(document["sessions"])
            self.batches = document["method"] == "vendor"
            self.information = document
            self.ready.set_result(document)
        elif kind == link.Kind.FAILED:
            self.last_failure = f"{document['error']}: {document['detail']}"
            self.pool.note_failure(self, document)
        elif kind == link.Kind.REFUSED:
            self._refused(sequence, document)
        elif sequence in self._requests and not self._requests[sequence].done():
            self._requests[sequence].set_result(document)

    def _refused(self, sequence: int, document: dict[str, Any]) -> None:
        detail, hint = str(document["detail"]), str(document.get("hint", ""))
        self._adopt_slice(sequence)
        if sequence in self._loads:
            key, _ = self._loads.pop(sequence)
            self.pool.key_refused(key, detail, hint)
        elif sequence in self.slices:
            piece = self.slices.pop(sequence)
            self.pool.slice_refused(self, piece, SignerFailed(detail, hint=hint))
        elif sequence in self._requests and not self._requests[sequence].done():
            self._requests[sequence].set_exception(Conflict(detail, hint=hint))

    def _key_loaded(self, key: HeldKey, challenge: bytes, document: dict[str, Any]) -> None:
        """The self-test: the signature over our challenge must fit the public half on record."""
        point, signature = bytes.fromhex(document["point"]), bytes.fromhex(document["signature"])
        if point != key.public.point:
            self.pool.key_refused(
                key, "the token's public key is not the one on record", "restore the right token"
            )
        elif not self.pool.self_test_passes(key, challenge, signature):
            self.pool.key_refused(key, "its self-test signature does not verify", "check the token profile")
        else:
            self.slots[key.name] = int(document["slot"])
            self.pool.key_ready(key)

    def adopt_slices(self) -> None:
        """Take over what the lane has given this worker: all of it is answered, or given back, as any slice."""
        for sequence in self.sequences:
            self._adopt_slice(sequence)

    def _adopt_slice(self, sequence: int) -> None:
        """Where it is the lane's: what became of it is not what a lane knows."""
        taken = self.take_piece(sequence) if sequence >> EXPRESS_BIT else None
        if taken is not None:
            sent_at, entries = taken
            parts = self.pool.dispatcher.adopt(entries)
            count = sum(part.count for part in parts)
            self.slices[sequence] = Slice(parts[0].work.key, _DIGESTS, parts, count, False, sent_at)

    def hangs(self, now: float, deadline_s: float) -> bool:
        """Whether a slice or a look for a key has been out for longer than any may take."""
        if self.oldest_sent_at is not None and now - self.oldest_sent_at > deadline_s:
            return True
        if self._loads and not self._requests and now - self._heard_at > deadline_s:
            return True
        return any(now - piece.sent_at > deadline_s for piece in self.slices.values())


class SignerPool:
    """All workers of one token, the dispatcher before them, and what is known of the token's health."""

    def __init__(
        self,
        profile: TokenProfile,
        read_pin: Callable[[], bytes],
        settings: SignerSettings,
        max_queued_items: int,
        verifier: Verifier,
        metrics: Metrics,
        clock: Callable[[], float],
        find_key: Callable[[str], HeldKey | None],
        occasion: Occasion,
        processor_count: int = PLENTY,
    ) -> None:
        """``processor_count``: how many there are for the front and these workers."""
        self.occasion = occasion
        self.name = profile.name
        self.profile = profile
        self._state = "starting"
        self.down_reason = ""
        self.restarts = 0
        self.refused_keys: dict[str, str] = {}
        self._has_hashing = any(rules.hashes == "token" for rules in profile.algorithms.values())
        self._read_pin = read_pin
        self._settings = settings
        self._verifier = verifier
        self._metrics = metrics
        self._clock = clock
        self._find_key = find_key
        self._workers: list[SignerWorker] = []
        self._processes: dict[SignerWorker, asyncio.subprocess.Process] = {}
        self._start_turn = asyncio.Lock()
        self._retry_now = asyncio.Event()
        self._stopping = False
        self._recent_keys: OrderedDict[str, None] = OrderedDict()
        self.dispatcher = Dispatcher(
            settings, max_queued_items, clock, self._want_key, (SECONDS, ITEMS), processor_count
        )
        metrics.follow(self.name, self.dispatcher.lane)

    # What the pipeline sees -----------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The clock's time."""
        return self._clock()

    @property
    def state(self) -> str:
        """``starting``, ``up``, ``down``, ``pin_refused`` or ``stopped``."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            _express.withdraw()  # whoever was allowed a key of this token asks again, and is told

    @property
    def is_up(self) -> bool:
        """Whether at least one worker can sign."""
        return bool(self._workers)

    def hashes_itself(self, algorithm: Algorithm) -> bool:
        """Whether the token takes messages rather than digests."""
        # Asked for each request, and no is the usual answer.
        return self._has_hashing and self.profile.algorithms[algorithm.label].hashes == "token"

    def submit(self, work: Work) -> None:
        """Accept work, or raise ``Unavailable`` or ``Busy``."""
        # A refused PIN ends starts, not the workers that are logged in already.
        if self.state in ("down", "stopped") or (self.state == "pin_refused" and not self._workers):
            raise self._unavailable()
        refusal = self.refused_keys.get(work.key)
        if refusal is not None:
            raise SignerFailed(f"key {work.key!r} cannot be used: {refusal}", hint="cloud-seal status")
        self.dispatcher.submit(work)

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"token {self.name!r} is {self.state}: {self.down_reason}",
            hint="it is tried again by itself" if self.state == "down" else "set the right PIN, then reload",
            retry_after_ms=TOKEN_DOWN_RETRY_MS,
        )

    def status(self) -> dict[str, Any]:
        """For STATUS and people."""
        return {
            "token": self.name,
            "state": self.state,
            "reason": self.down_reason,
            "workers_wanted": self.profile.workers,
            "workers": [
                {
                    "index": worker.index,
                    "pid": self._processes[worker].pid if worker in self._processes else None,
                    "outstanding_slices": worker.outstanding,
                    "keys": len(worker.slots),
                    "batch_method": worker.information.get("method", ""),
                }
                for worker in self._workers
            ],
            "restarts": self.restarts,
            "queued_items": self.dispatcher.queued_items,
            "inflight_items": self.dispatcher.inflight_items,
            "refused_keys": dict(self.refused_keys),
        }

    # Keys -----------------------------------------------------------------------------------------------

    async def create_key(self, key_id: bytes, name: str, algorithm: Algorithm) -> PublicKey:
        """Have the token make a key pair; its public half."""
        document = {"id": key_id.hex(), "label": name, "algorithm": algorithm.label}
        answer = await self._any_worker().request(link.Kind.CREATE_KEY, document)
        return PublicKey(algorithm, bytes.fromhex(answer["point"]))

    async def list_keys(self) -> list[dict[str, Any]]:
        """What the token holds."""
        answer = await self._any_worker().request(link.Kind.LIST_KEYS, {})
        return list(answer["keys"])

    async def destroy_key(self, key_id: bytes, name: str) -> None:
        """Have the token destroy both halves; a key that it has no more is no error."""
        self._recent_keys.pop(name, None)
        for worker in self._workers:
            worker.unload_key(name)
        self.dispatcher.adopt_waiting()  # for this key there may be something that nobody can sign any more
        self.dispatcher.pump()
        self.dispatcher.lane.forget(name)
        try:
            await self._any_worker().request(link.Kind.DESTROY_KEY, {"id": key_id.hex()})
        except Conflict:
            if any(entry["id"] == key_id.hex() for entry in await self.list_keys()):
                raise  # it is there, and the token does not let go of it

    def check_available(self) -> None:
        """``Unavailable`` where there is no worker to ask."""
        self._any_worker()

    def _any_worker(self) -> SignerWorker:
        if not self._workers:
            raise (
                self._unavailable()
                if self.state != "starting"
                else Unavailable(f"token {self.name!r} is starting", retry_after_ms=TOKEN_DOWN_RETRY_MS)
            )
        return min(self._workers, key=lambda worker: worker.outstanding)

    def forget_key(self, name: str) -> None:
        """It was switched off or on: what was known of it is out of date."""
        self.refused_keys.pop(name, None)

    def _want_key(self, name: str) -> None:
        """The dispatcher has work for a key that no worker has loaded."""
        key = self._find_key(name)
        if key is None:  # switched off after the work was accepted, and no worker has it loaded any more
            self.dispatcher.fail_key(name, Conflict(f"key {name!r} is disabled"))
            return
        self._recent_keys[name] = None
        self._recent_keys.move_to_end(name)
        if len(self._recent_keys) > MAX_PRELOADED_KEYS:
            self._recent_keys.popitem(last=False)
        for worker in self._workers:
            worker.load_key(key)

    def self_test_passes(self, key: HeldKey, challenge: bytes, signature: bytes) -> bool:
        """Whether the token's signature over our challenge verifies against the key on record."""
        if len(signature) != SIGNATURE_LEN:
            return False
        digest = challenge
        if self.hashes_itself(key.public.algorithm):
            digest = self._verifier.digest(key.public, DIGEST_LEN.to_bytes(4, "big"), challenge)
        return self._verifier.verify(key.public, digest, signature) == b"\1"

    def key_ready(self, key: HeldKey) -> None:
        """A worker has it."""
        self.refused_keys.pop(key.name, None)
        self.dispatcher.pump()

    def key_refused(self, key: HeldKey, detail: str, hint: str) -> None:
        """A worker cannot use it: what waits for it fails now rather than at its deadline."""
        log.error("key %r is refused on token %s: %s", key.name, self.name, detail)
        self.refused_keys[key.name] = detail
        _express.withdraw()
        if not any(worker.has_key(key.name) for worker in self._workers):
            self.dispatcher.fail_key(
                key.name, SignerFailed(f"key {key.name!r} cannot be used: {detail}", hint=hint)
            )

    # Slices ---------------------------------------------------------------------------------------------

    def slice_answered(
        self,
        worker: SignerWorker,
        piece: Slice,
        rv: int,
        done: int,
        execution_ns: int,
        statuses: Buffer,
        signatures: Buffer,
    ) -> None:
        """A worker has answered; ``rv`` is what its token stopped with, 0 where it did not."""
        if rv:
            self.dispatcher.worker_ends(worker)
        execution_s = execution_ns / 1e9
        self._metrics.slice_done(self.name, piece, execution_s)
        self.dispatcher.slice_answered(worker, piece, statuses, signatures, done, execution_s)
        self.dispatcher.pump()

    def slice_refused(self, worker: SignerWorker, piece: Slice, error: ApplianceError) -> None:
        """A worker says that this slice cannot be asked of this token at all."""
        self.dispatcher.slice_refused(worker, piece, error)
        self.dispatcher.pump()

    # Supervision ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers running until cancelled or ``stop`` is called."""
        self.dispatcher.lane.poll_fd = _poll_fd()
        async with asyncio.TaskGroup() as group:
            supervisors = [
                group.create_task(self._supervise(index), name=f"{self.name}/{index}")
                for index in range(self.profile.workers)
            ]
            tick = group.create_task(self._tick(), name=f"{self.name}/tick")
            await asyncio.wait(supervisors)
            tick.cancel()

    def stop(self) -> None:
        """No more starts; the workers are asked to end. Call it when nothing is in flight."""
        self._stopping = True
        self.state = "stopped"
        self._retry_now.set()
        for worker in list(self._workers):
            worker.stop()
        for worker in list(self._processes):
            if worker not in self._workers:
                self._kill(worker)  # it is starting, or ending: nobody waits for it

    def retry(self) -> None:
        """SIGHUP: try a refused PIN and refused keys again, for the operator has mended something."""
        self.refused_keys.clear()
        if self.state == "pin_refused":
            self.state = "up" if self._workers else "starting"
        self._retry_now.set()
        self._retry_now.clear()  # whoever waits has been woken

    async def _tick(self) -> None:
        while not self._stopping:
            await asyncio.sleep(TICK_S)
            self.dispatcher.expire()
            self.dispatcher.pump()  # whatever waits for a busy worker that hangs
            now = self._clock()
            for worker in self._workers:
                if worker.hangs(now, self._settings.slice_deadline_s):
                    self.hung(worker)
        await asyncio.sleep(EXIT_GRACE_S)
        for worker in list(self._workers):
            log.error("signer %s/%d does not end: killed", self.name, worker.index)
            self._kill(worker)

    def hung(self, worker: SignerWorker) -> None:
        """It did not answer in time: its successor will."""
        log.error("signer %s/%d hangs: killed", self.name, worker.index)
        self._metrics.worker_hung(self.name)
        self._kill(worker)

    def _kill(self, worker: SignerWorker) -> None:
        process = self._processes.get(worker)
        if process is not None and process.returncode is None:
            process.kill()

    async def _supervise(self, index: int) -> None:
        delay = 0.0
        while await self._may_start(delay):
            worker = SignerWorker(self, index)
            started = await self._start(worker)
            if started:
                delay = 0.0
                await worker.gone.wait()
                self.restarts += not self._stopping
            else:
                delay = min(max(FIRST_RESTART_DELAY_S, delay * 2), self._settings.max_restart_delay_s)
            await self._reap(worker)
            if started and not self._stopping:
                self._metrics.worker_restarted(self.name)
                log.warning(
                    "signer %s/%d is gone (%s); starting another",
                    self.name,
                    index,
                    worker.last_failure or "it said nothing",
                )

    async def _may_start(self, delay: float) -> bool:
        """Wait for the next try, with a refused PIN until somebody asks for one; False when all is over."""
        if not self._stopping and (delay or self.state == "pin_refused"):
            try:
                async with asyncio.timeout(None if self.state == "pin_refused" else delay):
                    await self._retry_now.wait()
            except TimeoutError:
                pass
        return not self._stopping

    async def _start(self, worker: SignerWorker) -> bool:
        """Spawn and wait for READY; False where that failed, and then the token may be down."""
        try:
            async with (
                self._start_turn
            ):  # staggered: some modules fail when many processes initialise at once
                if not self._may_spawn():
                    # While this one waited for its turn another was refused: the same PIN is not sent again.
                    return False
                await self._spawn(worker)
                async with asyncio.timeout(self.profile.start_timeout_s):
                    await worker.ready
                await asyncio.sleep(
                    self._settings.start_stagger_ms / 1_000 if self.profile.workers > 1 else 0
                )
        except (OSError, TimeoutError, ApplianceError) as error:
            self._kill(worker)
            reason = worker.last_failure or str(error) or "it did not become ready in time"
            self._start_failed(worker, reason)
            return False
        if worker.gone.is_set():
            return True
        self._workers.append(worker)
        if self._stopping:
            worker.stop()
            return True
        self.state, self.down_reason = "up", ""
        for name in list(self._recent_keys):
            key = self._find_key(name)
            if key is not None:
                worker.load_key(key)
        self._metrics.workers_up(self.name, len(self._workers))
        self.dispatcher.worker_up(worker)
        return True

    def _may_spawn(self) -> bool:
        return not self._stopping and self.state != "pin_refused"

    async def _spawn(self, worker: SignerWorker) -> None:
        pin = self._read_pin()
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *link.spawn_arguments(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # a terminal's Ctrl-C is for the front, which drains first
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes[worker] = process
        if self._stopping:
            process.kill()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: worker, sock=ours)
        if processors := self._settings.processors:  # before it has a thread: they inherit it
            os.sched_setaffinity(process.pid, {processors[worker.index % len(processors)]})
        worker.start(self.profile, pin, self._settings.spin_us or 0)

    def note_failure(self, worker: SignerWorker, document: dict[str, Any]) -> None:
        """A worker says why it ends."""
        if document.get("pin_error"):
            self.state = "pin_refused"
        if not worker.ready.done():
            worker.ready.set_exception(Unavailable(worker.last_failure))

    def _start_failed(self, worker: SignerWorker, reason: str) -> None:
        if self._stopping:
            return
        if reason != self.down_reason:  # once, however often it is tried
            log.error("signer %s/%d did not start: %s", self.name, worker.index, reason)
        self.down_reason = reason
        if not self._workers and not self._stopping:
            if self.state != "pin_refused":
                self.state = "down"
            self.fail_all(self._unavailable())

    def worker_gone(self, worker: SignerWorker, slices: list[Slice]) -> None:
        """Its link has closed."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._metrics.workers_up(self.name, len(self._workers))
        self.dispatcher.worker_gone(worker, slices)
        if self.state == "pin_refused" and not self._workers:
            self.fail_all(self._unavailable())  # nobody will come after it

    def fail_all(self, error: ApplianceError) -> None:
        """The token is down: everything accepted gets that answer."""
        for worker in self._workers:
            worker.adopt_slices()
        self.dispatcher.fail_all(error)

    async def _reap(self, worker: SignerWorker) -> None:
        """Wait for the process to end; one that hangs in its module is killed."""
        process = self._processes.get(worker)
        if process is None:
            return
        try:
            async with asyncio.timeout(EXIT_GRACE_S):
                await process.wait()
        except TimeoutError:
            self._kill(worker)
            await process.wait()
        finally:
            self._processes.pop(worker, None)


def _poll_fd() -> int:
    """What the running loop sleeps on, an epoll descriptor, which uvloop tells by a private name; -1 without one."""
    tell = getattr(asyncio.get_running_loop(), "_get_backend_id", None)
    return -1 if tell is None else int(tell())


def _environment() -> dict[str, str]:
    """What a worker inherits; what its module needs besides comes with the profile."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
