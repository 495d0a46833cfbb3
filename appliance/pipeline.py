"""The sealing pipeline: what stands between a decoded request and its answer.

For: authorise -> (hash) -> sign in the token -> answer; verification in software; status.
Not for: frames and sockets (``session``, ``server``), choosing workers (``dispatch``).

Rules:

* Every request is authorised against what holds now, not against what held at HELLO.
* Verification and long hashing run in threads with the GIL released, a bounded amount at a time; the event loop is
  never held for more than ``INLINE_HASH_LEN`` bytes of hashing.
* Nothing of a signature is released before the pipeline says so: here the journal will stand. What passes in a lane is
  released where its piece ends (``express_lane.c``), and the journal will stand there too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any, Final, TypeVar

from appliance import __version__, _express
from appliance.algorithms import PublicKey
from appliance.certificates import Request
from appliance.dispatch import Work
from appliance.errors import (
    ApplianceError,
    BadRequest,
    Busy,
    Conflict,
    DeadlineExceeded,
    Draining,
    SignerFailed,
    Unavailable,
)
from appliance.holdings import Holdings
from appliance.policy import Account, HeldKey, check_active, key_state, signing_key, visible_key
from appliance.settings import TimeSettings
from appliance.signers import SignerPool
from appliance.verifying import Verifier
from appliance.wire import (
    Buffer,
    Form,
    Items,
    ItemStatus,
    KeyKind,
    KeyRecord,
    Priority,
    SignRequest,
    StatusRequest,
    VerifyRequest,
)

T = TypeVar("T")

INLINE_HASH_LEN: Final = 16_384
"""Hashing that much takes some 40 µs with SM3: less than a hop to a thread and back."""

_public_key_from_spki = lru_cache(1_024)(PublicKey.from_spki)
_public_key_from_certificate = lru_cache(256)(PublicKey.from_certificate)


class Pipeline:
    """One for the process, owned by the event loop."""

    def __init__(
        self,
        holdings: Holdings,
        pools: Mapping[str, SignerPool],
        verifier: Verifier,
        executor: Executor,
        times: TimeSettings,
        max_queued_items: int,
        clock: Callable[[], float],
        front: int = 0,
    ) -> None:
        self._front = front
        self._holdings = holdings
        self._pools = pools
        self._verifier = verifier
        self._executor = executor
        self._times = times
        self._max_queued_items = max_queued_items
        self._clock = clock
        self._verifying_items = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        _express.withdraw()

    def deadline_at(self, deadline_ms: int, now: float) -> float:
        """When the caller stops waiting; 0 asks for the default, and nobody waits for ever."""
        asked = deadline_ms / 1_000 if deadline_ms else self._times.default_deadline_s
        return now + min(asked, self._times.max_deadline_s)

    def _check_draining(self) -> None:
        if self.draining:
            raise Draining(
                "the appliance is stopping", hint="go to another, or try again", retry_after_ms=1_000
            )

    # What sealing shares (``sealer``) -------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The clock's time."""
        return self._clock()

    def check_draining(self) -> None:
        """``Draining`` where nothing new is taken."""
        self._check_draining()

    def active_account(self, name: str) -> Account:
        """The account, else ``Denied``."""
        return check_active(self._holdings.accounts.get(name), name)

    def pool(self, key: HeldKey) -> SignerPool:
        """The key's token, else ``Unavailable``."""
        return self._pool(key)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run it beside the loop, among verifications and hashing."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Let it run to its end; a drain waits for it."""
        self._spawn(coroutine)

    # Signing --------------------------------------------------------------------------------------------

    def sign(
        self,
        account_name: str,
        request: SignRequest,
        now: float,
        on_end: Callable[[Work], None],
        client: _express.Client | None = None,
    ) -> Work:
        """Accept it (``on_end`` is called once, later) or raise; call ``pump`` once all that arrived is accepted.

        The next ones under that key may go past us where they come from the same ``client``, until something changes.
        """
        self._check_draining()
        account = check_active(self._holdings.accounts.get(account_name), account_name)
        key = signing_key(account, self._holdings.keys.get(request.key), request.key)
        pool = self._pool(key)
        items = request.items
        work = Work(
            key.name, items, request.priority, now, self.deadline_at(request.deadline_ms, now), on_end
        )
        if pool.hashes_itself(key.public.algorithm):
            if items.form is Form.DIGESTS:
                raise BadRequest(f"the token of key {key.name!r} hashes itself", hint="send messages")
        elif items.form is Form.MESSAGES:
            if len(items.data) > INLINE_HASH_LEN:
                self._spawn(self._hash_then_submit(work, key, pool))
                return work
            work.items = self._hashed(key, items)
        pool.submit(work)
        if client is not None and items.form is Form.DIGESTS:
            times = self._times
            client.allow(key.name, pool.dispatcher.lane, times.default_deadline_s, times.max_deadline_s)
        return work

    async def sign_message(self, key: HeldKey, message: bytes) -> bytes:
        """Sign one message for an officer (a certificate request, a certificate): r ‖ s."""
        self._check_draining()
        if key.disabled:
            raise Conflict(
                f"key {key.name!r} is disabled", hint="cloud-seal key enable, once the reason is gone"
            )
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Work] = loop.create_future()

        def on_end(work: Work) -> None:
            if not ended.done():
                ended.set_result(work)

        pool = self._pool(key)
        items = Items(Form.MESSAGES, 1, len(message).to_bytes(4, "big"), message)
        if not pool.hashes_itself(key.public.algorithm):
            items = self._hashed(key, items)
        now = self._clock()
        pool.submit(Work(key.name, items, Priority.INTERACTIVE, now, self.deadline_at(0, now), on_end))
        pool.dispatcher.pump()
        work = await ended
        if work.error is not None:
            raise work.error
        if work.statuses[0] != ItemStatus.SIGNED:
            raise SignerFailed(f"the token did not sign with key {key.name!r}", hint="see the daemon's log")
        signature = bytes(work.signatures)
        digest = items.data if items.form is Form.DIGESTS else self._hashed(key, items).data
        if self._verifier.verify(key.public, digest, signature) != b"\1":
            raise SignerFailed(
                f"the signature of key {key.name!r} does not verify", hint="is the right token in?"
            )
        return signature

    def proves_possession(self, request: Request) -> bool:
        """Whether a certificate request is signed by the key it is for."""
        length = len(request.signed).to_bytes(4, "big")
        digest = self._verifier.digest(request.public, length, request.signed)
        return self._verifier.verify(request.public, digest, request.signature) == b"\1"

    def pump(self) -> None:
        """Give what was accepted to workers that have room."""
        for pool in self._pools.values():
            pool.dispatcher.pump()

    def cancel(self, works: list[Work]) -> None:
        """The connection has gone: nobody waits for these."""
        for pool in self._pools.values():
            pool.dispatcher.cancel(works)

    def _pool(self, key: HeldKey) -> SignerPool:
        pool = self._pools.get(key.token)
        if pool is None:
            raise Unavailable(
                f"the token {key.token!r} of key {key.name!r} is not configured", hint="add it under tokens:"
            )
        return pool

    def _hashed(self, key: HeldKey, items: Items) -> Items:
        block = self._verifier.digest(key.public, items.lengths, items.data)
        return Items(Form.DIGESTS, items.count, b"", block)

    async def _hash_then_submit(self, work: Work, key: HeldKey, pool: SignerPool) -> None:
        loop = asyncio.get_running_loop()
        try:
            work.items = await loop.run_in_executor(self._executor, self._hashed, key, work.items)
            if not work.ended:
                pool.submit(work)
                pool.dispatcher.pump()
        except ApplianceError as error:
            work.end(error)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    # Verifying ------------------------------------------------------------------------------------------

    async def verify(self, account_name: str, request: VerifyRequest, now: float) -> bytes:
        """A byte an item: 1 valid, 0 not."""
        self._check_draining()
        account = check_active(self._holdings.accounts.get(account_name), account_name)
        if request.key_kind is KeyKind.NAME:
            name = _utf8(request.key)
            public = visible_key(account, self._holdings.keys.get(name), name).public
        elif request.key_kind is KeyKind.SPKI:
            public = _public_key_from_spki(request.key)
        else:
            public = _public_key_from_certificate(request.key)
        items = request.items
        if self._verifying_items + items.count > self._max_queued_items:
            raise Busy("too many verifications wait already", retry_after_ms=100)
        self._verifying_items += items.count
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(self.deadline_at(request.deadline_ms, now) - self._clock()):
                return await loop.run_in_executor(
                    self._executor, self._verify, public, items, request.signatures
                )
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before all items were verified") from None
        finally:
            self._verifying_items -= items.count

    def _verify(self, public: PublicKey, items: Items, signatures: Buffer) -> bytes:
        block = items.data
        if items.form is Form.MESSAGES:
            block = self._verifier.digest(public, items.lengths, items.data)
        return self._verifier.verify(public, block, signatures)

    # Status ---------------------------------------------------------------------------------------------

    def key_status(self, account_name: str, request: StatusRequest) -> list[KeyRecord]:
        """What the account may know of the keys it names, or of all it may use."""
        account = check_active(self._holdings.accounts.get(account_name), account_name)
        keys = self._holdings.keys
        names = request.names or sorted(
            name for name, key in keys.items() if account.may_use(name, certifies=key.certifies)
        )
        records = []
        for name in names:
            key = keys.get(name)
            state = key_state(account, key, name, key is not None and self._token_up(key))
            if key is None or not state:
                records.append(KeyRecord(name, state, 0, b""))
            else:
                records.append(KeyRecord(name, state, key.public.algorithm.value, key.public.spki()))
        return records

    def _token_up(self, key: HeldKey) -> bool:
        pool = self._pools.get(key.token)
        return pool is not None and pool.is_up and key.name not in pool.refused_keys

    def appliance_status(self) -> dict[str, Any]:
        """Tokens, workers and queues."""
        tokens = [pool.status() for pool in self._pools.values()]
        up = bool(tokens) and all(token["state"] == "up" for token in tokens)
        return {
            "version": __version__,
            "front": self._front,
            "state": "draining" if self.draining else "ready" if up else "degraded",
            "verify_engine": self._verifier.engine,
            "tokens": tokens,
            "verifying_items": self._verifying_items,
        }

    def appliance_document(self) -> bytes:
        """The same as JSON."""
        return json.dumps(self.appliance_status(), separators=(",", ":")).encode()

    @property
    def live_requests(self) -> int:
        """Accepted and not answered; what a drain waits for."""
        signing = sum(pool.dispatcher.live_requests for pool in self._pools.values())
        return signing + len(self._tasks) + (1 if self._verifying_items else 0)


def _utf8(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise BadRequest("a key's name is UTF-8") from error
