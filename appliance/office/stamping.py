"""Time stamps over HTTP (RFC 3161 3.4, GB/T 20520): asking an authority, and being a small one.

For: ``Stamper``, which gets a verified token over a value; ``authority_application``, on a key of a token of ours.
Not for: the tokens themselves (``eseal.timestamps``).

Rules:

* A token is believed only when it is over our value, of our nonce, and its signer leads to a CA that is trusted for
  time stamping. What is not believed is not used, and nothing is made without a token that was asked for.
* The authority here is for demonstrations and tests: it has the machine's own time, and listens on loopback only.

Crash story: nothing is kept. A token that was given and not used harms nobody. The serial numbers of ours are random.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Final

import aiohttp
from aiohttp import web

from appliance.algorithms import PublicKey
from appliance.errors import ApplianceError, BadRequest, ConfigError, Conflict, SignerFailed, Unavailable
from appliance.eseal.chains import Trust
from appliance.eseal.findings import Outcome
from appliance.eseal.timestamps import (
    MAX_REQUEST_LEN,
    MAX_RESPONSE_LEN,
    assemble_token,
    build_request,
    check_token,
    granted,
    read_request,
    read_response,
    read_token,
    refused,
    token_to_sign,
)
from appliance.office.maker import read_certificates
from appliance.policy import HeldKey
from appliance.settings import AuthoritySettings, TimestampSettings
from appliance.verifying import Verifier

QUERY: Final = "application/timestamp-query"
REPLY: Final = "application/timestamp-reply"
NONCE_LEN: Final = 8
SERIAL_LEN: Final = 16


class Stamper:
    """Asks ``seals.timestamp.url``. Owned by the event loop."""

    def __init__(
        self,
        settings: TimestampSettings,
        trust: Callable[[], Awaitable[Trust]],
        verifier: Verifier,
        now: Callable[[], datetime],
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._settings = settings
        self._trust = trust
        self._verifier = verifier
        self._now = now
        self._random = random
        self._session: aiohttp.ClientSession | None = None
        try:
            self._tls = ssl.create_default_context(
                cafile=str(settings.ca_file) if settings.ca_file is not None else None
            )
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"seals.timestamp.ca_file: {error}") from error

    async def stamp(self, value: bytes) -> bytes:
        """A token over the value. ``Unavailable`` where the authority is away, ``SignerFailed`` for a bad token."""
        nonce = int.from_bytes(self._random(NONCE_LEN), "big")
        answer = await self._ask(build_request(value, nonce))
        try:
            der = read_response(answer)
            token = read_token(der)
        except BadRequest as error:
            raise SignerFailed(f"time-stamp authority: {error.detail}", hint=error.hint) from error
        if token.nonce != nonce:
            raise SignerFailed("time-stamp authority: the token is not for this request (nonce)")
        finding = await asyncio.to_thread(
            check_token, token, value, await self._trust(), self._verifier, self._now()
        )
        if finding.outcome is not Outcome.PASSED:
            raise SignerFailed(
                f"time-stamp authority: {finding.text}", hint="is its CA among seals.trust_files?"
            )
        return der

    async def _ask(self, request: bytes) -> bytes:
        url = self._settings.url
        if url is None:
            raise Conflict("no time-stamp authority is configured", hint="set seals.timestamp.url")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
                connector=aiohttp.TCPConnector(ssl=self._tls),
            )
        try:
            async with self._session.post(
                url, data=request, headers={"Content-Type": QUERY}, allow_redirects=False
            ) as response:
                body = await response.content.read(MAX_RESPONSE_LEN + 1)
                while len(body) <= MAX_RESPONSE_LEN and (more := await response.content.readany()):
                    body += more
                if response.status != 200 or response.content_type != REPLY:
                    raise Unavailable(
                        f"the time-stamp authority answered {response.status} {response.content_type}",
                        hint="check seals.timestamp.url",
                    )
                return body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"the time-stamp authority cannot be reached: {type(error).__name__}",
                hint="check seals.timestamp.url, and that it runs",
                retry_after_ms=1_000,
            ) from error

    async def close(self) -> None:
        """No call may follow."""
        if self._session is not None:
            await self._session.close()


def authority_application(
    settings: AuthoritySettings,
    keys: Mapping[str, HeldKey],
    sign_message: Callable[[HeldKey, bytes], Awaitable[bytes]],
    now: Callable[[], datetime],
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> web.Application:
    """``POST /tsa``: a small authority on a key of ours."""

    async def stamp(request: web.Request) -> web.Response:
        try:
            if request.content_type != QUERY:
                return _reply(refused("bad_format", f"expected {QUERY}"))
            asked = read_request(await request.read())
        except BadRequest as error:
            return _reply(refused("bad_format", error.detail))
        except web.HTTPRequestEntityTooLarge:
            return _reply(refused("bad_format", f"a request has at most {MAX_REQUEST_LEN} bytes"))
        try:
            assert settings.key is not None and settings.certificate_file is not None
            key = keys.get(settings.key)
            certificate = (await asyncio.to_thread(read_certificates, settings.certificate_file))[0]
            if key is None or PublicKey.from_certificate(certificate) != key.public:
                raise Conflict(
                    f"there is no key {settings.key!r} with that certificate", hint="see seals.authority"
                )
            serial = int.from_bytes(random(SERIAL_LEN), "big") >> 1 | 1
            draft = token_to_sign(
                asked, certificate=certificate, policy=settings.policy, serial=serial, at=now()
            )
            token = assemble_token(draft, await sign_message(key, draft.to_sign))
        except ApplianceError as error:
            return _reply(refused("unavailable", error.detail))
        return _reply(granted(token))

    application = web.Application(client_max_size=MAX_REQUEST_LEN)
    application.router.add_post("/tsa", stamp)
    return application


def _reply(body: bytes) -> web.Response:
    return web.Response(body=body, content_type=REPLY)
