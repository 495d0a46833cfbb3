"""Sending what the public security must be told: until it is received, and no longer than a day late unnoticed.

For: the messages that acts left in the registry's outbox; each goes to ``seals.filing.url`` as JSON over HTTPS.
Not for: what stands in them (``filing``).

Rules:

* A message is sent until the receiver answers 2xx with ``{"receipt": "…"}``. Anything else is a failure, kept with the
  message: it is tried again after a delay that doubles up to a limit.
* A 4xx is the receiver's *no*: it needs a person, is told as an error, and is tried again all the same, but slowly.
* Every attempt carries the message's id as ``Idempotency-Key``: a receiver that has it already gives the same receipt.
* A delivered making is filed: the seal goes to ``filed`` by itself, with the receipt in its record.
* What is due and not delivered is counted (``cloudseal_filing_overdue_messages``).

Crash story: between the receiver's answer and our record of it a crash makes us send once more, under the same key. The
seal is filed first and the message marked after; a message of a seal that is filed already is only marked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final

import aiohttp

from appliance.errors import ApplianceError, ConfigError, Conflict, Unavailable
from appliance.lifecycle import SYSTEM, Act, Message, MessageKind, State
from appliance.office.desk import Desk, by_itself, instant
from appliance.settings import FilingSettings

log = logging.getLogger(__name__)

BATCH: Final = 32
"""Messages read at once; what is more waits for the next round, a moment later."""
CONCURRENT: Final = 4
"""Attempts at once: a receiver that is slow is not stormed."""
MAX_ANSWER_LEN: Final = 65_536
"""Of an answer, which is a receipt and a few words."""
MAX_RECEIPT_LEN: Final = 128
MAX_ERROR_LEN: Final = 500
MAX_DOUBLINGS: Final = 32

Watch = Callable[[int], None]
"""Told how many messages are overdue."""


class _Refused(Exception):
    """What the receiver answered is no receipt; ``needs_person`` where to wait does not help."""

    def __init__(self, detail: str, needs_person: bool) -> None:
        super().__init__(detail)
        self.needs_person = needs_person


class Outbox:
    """Owned by the event loop."""

    def __init__(self, desk: Desk, settings: FilingSettings, watch: Watch = lambda overdue: None) -> None:
        self._desk = desk
        self._messages = desk.registry.messages
        self._settings = settings
        self._watch = watch
        self._tls = tls_of(settings) if settings.url is not None else None
        self._session: aiohttp.ClientSession | None = None
        self.wake = asyncio.Event()
        """Set by who has put a message there: it is sent now, and not at the next look."""

    async def run(self) -> None:
        """Look for what is due until cancelled."""
        while True:
            self.wake.clear()
            try:
                while await self.deliver():
                    pass
                await self.count()
            except Unavailable as error:
                log.warning("filing: %s", error)
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self.wake.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """No call may follow."""
        if self._session is not None:
            await self._session.close()

    async def count(self) -> None:
        """Tell the metrics what waits."""
        self._watch(await self._desk.call(self._messages.overdue_count, self._desk.instant()))

    async def deliver(self) -> int:
        """One round: what is due now is tried once; how many were tried. Nothing without a receiver."""
        if self._settings.url is None:
            return 0
        due = await self._desk.call(self._messages.due, self._desk.instant(), BATCH)
        permits = asyncio.Semaphore(CONCURRENT)
        async with asyncio.TaskGroup() as group:
            for message in due:
                group.create_task(self._try(message, permits))
        return len(due)

    async def _try(self, message: Message, permits: asyncio.Semaphore) -> None:
        async with permits:
            try:
                receipt = await self._send(message)
            except _Refused as error:
                await self._failed(message, str(error), error.needs_person)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                await self._failed(message, f"{type(error).__name__}: {error}", False)
            else:
                try:
                    await self._desk.finish(self._delivered(message, receipt))
                except ApplianceError as error:
                    # It is still due, and sent again under the same key.
                    log.warning("filing: the receipt for message %s is not noted yet: %s", message.id, error)

    async def _send(self, message: Message) -> str:
        """The receipt."""
        assert self._settings.url is not None
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
                connector=aiohttp.TCPConnector(limit=CONCURRENT, ssl=self._tls or True),
            )
        document = {
            "messageId": message.id,
            "kind": message.kind.value,
            "dueTime": message.due_at,
            **message.body,
        }
        async with self._session.post(
            self._settings.url,
            data=json.dumps(document, ensure_ascii=False).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": message.id},
            allow_redirects=False,  # what is filed goes to the address that was configured, and nowhere else
        ) as response:
            body = await _read(response.content)
            if not 200 <= response.status < 300:
                raise _Refused(
                    f"the receiver answered {response.status}: {body[:200].decode(errors='replace')}",
                    400 <= response.status < 500,
                )
        return _receipt(body)

    async def _failed(self, message: Message, error: str, needs_person: bool) -> None:
        settings = self._settings
        error = "".join(sign if sign.isprintable() else " " for sign in error)[:MAX_ERROR_LEN]
        delay_s = min(
            settings.first_retry_s * 2.0 ** min(message.attempts, MAX_DOUBLINGS), settings.max_retry_s
        )
        if needs_person:
            delay_s = max(delay_s, settings.rejected_retry_s)
            error = f"needs a person: {error}"
        at = self._desk.now() + timedelta(seconds=delay_s)
        say = log.error if needs_person else log.warning
        say("filing %s of seal %s, due %s: %s", message.kind.value, message.seal_id, message.due_at, error)
        with suppress(Conflict):  # the same
            await self._desk.call(self._messages.failed, message.id, error, instant(at))

    async def _delivered(self, message: Message, receipt: str) -> None:
        if message.kind is MessageKind.MADE:
            await self._file(message, receipt)
        # A crash here sends it once more: the receiver knows the key, and the seal is filed already.
        with suppress(Conflict):  # a filing officer has recorded it by hand at this moment
            await self._desk.call(self._messages.delivered, message.id, receipt, self._desk.instant())

    async def _file(self, message: Message, receipt: str) -> None:
        for _ in range(3):  # somebody else's act on this seal may come between, some times, but not for ever
            seal = await self._desk.seal(message.seal_id)
            if seal.state is not State.MADE:
                return  # filed by hand meanwhile, or cancelled
            row = by_itself(seal, Act.FILE)
            step = self._desk.step(
                seal,
                row,
                SYSTEM,
                changes={"filed_at": self._desk.instant()},
                detail={"receipt": receipt, "message": message.id},
            )
            try:
                await self._desk.advance(step)
                return
            except Conflict:
                continue
        log.error("seal %s is not filed: it changes all the time; its message is sent again", message.seal_id)
        raise Unavailable(f"seal {message.seal_id} changes all the time")


def tls_of(settings: FilingSettings) -> ssl.SSLContext:
    """Whom we trust there, and who we are; ``ConfigError`` where a file is not what it should be."""
    try:
        context = ssl.create_default_context(
            cafile=str(settings.ca_file) if settings.ca_file is not None else None
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate_file is not None and settings.key_file is not None:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"seals.filing: {error}", hint="check ca_file, certificate_file and key_file"
        ) from error
    return context


async def _read(stream: aiohttp.StreamReader) -> bytes:
    """All of it, up to the limit."""
    body = bytearray()
    async for chunk in stream.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_LEN:
            raise _Refused(f"the receiver's answer is longer than {MAX_ANSWER_LEN} bytes", False)
    return bytes(body)


def _receipt(body: bytes) -> str:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    receipt = document.get("receipt") if isinstance(document, Mapping) else None
    if not isinstance(receipt, str) or not 1 <= len(receipt) <= MAX_RECEIPT_LEN or not receipt.isprintable():
        raise _Refused('the receiver\'s answer has no receipt: expected {"receipt": "…"}', False)
    return receipt
