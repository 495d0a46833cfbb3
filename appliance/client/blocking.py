"""``SyncClient``: the client for whoever has no event loop. Blocking calls, ordinary iterators.

It runs a ``Client`` on an event loop in a thread of its own, and may be used from any thread.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import threading
from collections.abc import (
    Awaitable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from types import TracebackType
from typing import Any, Self, TypeVar

from appliance.algorithms import PublicKey
from appliance.client.asynchronous import (
    DEFAULT_BATCH_ITEMS,
    DEFAULT_DEADLINE_S,
    DEFAULT_DEPTH,
    Client,
    Receipt,
    check_batch_items,
    join_items,
    receipts,
)
from appliance.client.seals import SealItem, SealReceipt, seal_receipts
from appliance.errors import (
    Unavailable,
)
from appliance.wire import (
    Form,
    Items,
    KeyRecord,
    Priority,
    SignedAnswer,
)
from appliance.wire_seals import SealedAnswer, SealStatusRecord, SealVerified

T = TypeVar("T")


async def _end_tasks() -> None:
    """Let calls that were under way when the client was closed come to their end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    _, late = await asyncio.wait(tasks, timeout=1.0) if tasks else (None, set())
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class SyncClient:
    """The same without asyncio: blocking calls, ordinary iterators. Any thread may call it."""

    def __init__(
        self,
        address: str,
        *,
        account: str,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        retries: bool = True,
    ) -> None:
        self._closing = threading.Lock()
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloud-seal-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._wait(
                Client.connect(
                    address,
                    account=account,
                    password=password,
                    tls=tls,
                    deadline_s=deadline_s,
                    retries=retries,
                )
            )
        except BaseException:
            self._end_loop()
            raise

    def _wait(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        with self._closing:  # no call gets in between the last look at the loop and its end
            if self._ended:
                if isinstance(call, Coroutine):
                    call.close()
                raise Unavailable("the client was closed")
            future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return future.result()

    def _end_loop(self) -> None:
        with self._closing:
            if self._ended:
                return
            self._ended = True
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        """Unanswered calls end with ``Unavailable``."""
        if not self._ended:
            self._wait(self._client.close())
            self._end_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sign(self, key: str, digest: bytes, *, deadline_s: float | None = None) -> bytes:
        """See ``Client.sign``."""
        return self._wait(self._client.sign(key, digest, deadline_s=deadline_s))

    def sign_message(self, key: str, message: bytes, *, deadline_s: float | None = None) -> bytes:
        """See ``Client.sign_message``."""
        return self._wait(self._client.sign_message(key, message, deadline_s=deadline_s))

    def sign_batch(
        self,
        key: str,
        items: Items,
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        priority: Priority = Priority.AUTOMATIC,
        deadline_s: float | None = None,
    ) -> SignedAnswer:
        """See ``Client.sign_batch``."""
        return self._wait(
            self._client.sign_batch(
                key, items, job_id=job_id, first_index=first_index, priority=priority, deadline_s=deadline_s
            )
        )

    def sign_batches(
        self,
        key: str,
        batches: Iterable[Items],
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        depth: int = DEFAULT_DEPTH,
        deadline_s: float | None = None,
    ) -> Iterator[SignedAnswer]:
        """See ``Client.sign_batches``. ``batches`` is consumed in the client's own thread."""
        answers = self._client.sign_batches(
            key, batches, job_id=job_id, first_index=first_index, depth=depth, deadline_s=deadline_s
        )
        try:
            while True:
                try:
                    yield self._wait(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            if not self._ended:
                self._wait(answers.aclose())

    def sign_stream(
        self,
        key: str,
        items: Iterable[bytes],
        *,
        form: Form = Form.DIGESTS,
        job_id: bytes | None = None,
        first_index: int = 0,
        batch_items: int = DEFAULT_BATCH_ITEMS,
        depth: int = DEFAULT_DEPTH,
        deadline_s: float | None = None,
    ) -> Iterator[Receipt]:
        """See ``Client.sign_stream``. ``items`` is consumed in the client's own thread."""
        check_batch_items(batch_items)
        iterator = iter(items)
        batches = (
            join_items(batch, form)
            for batch in iter(lambda: list(itertools.islice(iterator, batch_items)), [])
        )
        for answer in self.sign_batches(
            key, batches, job_id=job_id, first_index=first_index, depth=depth, deadline_s=deadline_s
        ):
            yield from receipts(answer)

    def verify(
        self,
        key: str | PublicKey | bytes,
        items: Items,
        signatures: bytes,
        *,
        deadline_s: float | None = None,
    ) -> bytes:
        """See ``Client.verify``."""
        return self._wait(self._client.verify(key, items, signatures, deadline_s=deadline_s))

    def status(self, names: Sequence[str] = (), *, deadline_s: float | None = None) -> list[KeyRecord]:
        """See ``Client.status``."""
        return self._wait(self._client.status(names, deadline_s=deadline_s))

    def appliance_status(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """See ``Client.appliance_status``."""
        return self._wait(self._client.appliance_status(deadline_s=deadline_s))

    # Seals ----------------------------------------------------------------------------------------------

    def seal(
        self,
        seal: str,
        hashes: bytes | Sequence[bytes],
        property_infos: str | Sequence[str],
        *,
        reference: str = "",
        time_stamp: bool = False,
        job_id: bytes | None = None,
        first_index: int = 0,
        priority: Priority = Priority.AUTOMATIC,
        deadline_s: float | None = None,
    ) -> SealedAnswer:
        """See ``Client.seal``."""
        return self._wait(
            self._client.seal(
                seal,
                hashes,
                property_infos,
                reference=reference,
                time_stamp=time_stamp,
                job_id=job_id,
                first_index=first_index,
                priority=priority,
                deadline_s=deadline_s,
            )
        )

    def seal_batches(self, seal: str, items: Iterable[SealItem], **options: Any) -> Iterator[SealedAnswer]:
        """See ``Client.seal_batches``. ``items`` is consumed in the client's own thread."""
        answers = self._client.seal_batches(seal, items, **options)
        try:
            while True:
                try:
                    yield self._wait(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            if not self._ended:
                self._wait(answers.aclose())

    def seal_stream(self, seal: str, items: Iterable[SealItem], **options: Any) -> Iterator[SealReceipt]:
        """See ``Client.seal_stream``. ``items`` is consumed in the client's own thread."""
        for answer in self.seal_batches(seal, items, **options):
            yield from seal_receipts(answer)

    def verify_seals(
        self, items: Sequence[tuple[bytes, bytes]], *, deadline_s: float | None = None
    ) -> list[SealVerified]:
        """See ``Client.verify_seals``."""
        return self._wait(self._client.verify_seals(items, deadline_s=deadline_s))

    def seal_status(
        self, names: Sequence[str], *, by_code: bool = False, deadline_s: float | None = None
    ) -> list[SealStatusRecord]:
        """See ``Client.seal_status``."""
        return self._wait(self._client.seal_status(names, by_code=by_code, deadline_s=deadline_s))

    def unlock(self, seal: str, password: str, seconds: int, *, deadline_s: float | None = None) -> int:
        """See ``Client.unlock``."""
        return self._wait(self._client.unlock(seal, password, seconds, deadline_s=deadline_s))

    def lock(self, seal: str, *, deadline_s: float | None = None) -> None:
        """See ``Client.lock``."""
        self._wait(self._client.lock(seal, deadline_s=deadline_s))

    def ping(self, *, deadline_s: float | None = None) -> float:
        """See ``Client.ping``."""
        return self._wait(self._client.ping(deadline_s=deadline_s))
