"""The API over HTTP: routes out of the contract, credentials, limits, answers.

For: everything between a socket and a handler, which gets a ``Call`` and gives a ``Reply`` and knows no HTTP.
Not for: what an operation does.

Rules:

* Credentials come before the body is read. Officers send a token, accounts a password with each request; operations
  for the machine's administrator answer on the officers' socket only, whose peers the kernel has named. Who an
  officer is and may do is looked up after the body, which may have been long in coming.
* A body has a limit and a time to arrive; no compressed one is taken: a few bytes of it stand for any number.
* Every refusal is a ``Problem`` with a hint. Nothing of a body, a header or a token is logged.
* HTTP's own statuses (405, 408, 413, 415) carry the problem ``bad_request``.

Security note: the public operations are rate-limited by address (``limits``), before anything of a request is
read or taken apart, for that is done on the loop that signs; a connection that asks nothing is closed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from appliance.api.contract import Contract, Operation
from appliance.api.limits import Allowance
from appliance.api.sessions import Sessions
from appliance.errors import (
    STATE_UNKNOWN_EXIT,
    ApplianceError,
    BadRequest,
    Busy,
    ConfigError,
    Denied,
    NotAuthenticated,
    NotFound,
    StateUnknown,
)
from appliance.lifecycle import Officer
from appliance.policy import Account
from appliance.server import peer_uid
from appliance.settings import ApiSettings, is_loopback, split_address

log = logging.getLogger(__name__)

MAX_QUERY_LEN: Final = 4_096
"""Filters and a cursor; the server's own limit for the whole line is twice that."""
MAX_BODIES_LEN: Final = 128 << 20
"""Bytes of requests without credentials that may be coming in at a time; a few of the longest."""
DOOR_TICK_S: Final = 1.0
"""How often connections are looked at that have not asked anything."""
GENERAL_HINT: Final = "GET /api/v1/openapi.json says what this operation takes and who may ask for it"
HEADERS: Final = {
    "Server": "cloud-seal",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from, as the kernel or TLS tells it. ``uid`` is set on the officers' socket only."""

    address: str
    uid: int | None
    is_tls: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been checked. ``officer`` or ``account`` is whose credentials came with it."""

    operation: Operation
    values: Mapping[str, Any]
    body: Any
    caller: Caller
    officer: Officer | None = None
    account: Account | None = None
    token: str = ""

    @property
    def actor(self) -> Officer:
        """The officer who asks; the contract says that there is one."""
        assert self.officer is not None
        return self.officer

    @property
    def user(self) -> Account:
        """The account that asks; the contract says that there is one."""
        assert self.account is not None
        return self.account


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a document, or bytes of some other type."""

    document: Any = None
    status: int = 200
    raw: bytes | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """How those who ask are recognised."""

    sessions: Sessions
    officer: Callable[[str], Awaitable[Officer]]
    """The officer of that name as they are now; raises where there is none or they are disabled."""
    account: Callable[[str, str, Caller], Awaitable[Account]]
    """The account with that password from there, else ``NotAuthenticated``."""


def bind(contract: Contract, groups: Sequence[object]) -> dict[str, Handler]:
    """Each operation's handler: the method of one of the groups that bears its name. A defect of ours raises here."""
    handlers = {}
    for operation in contract.operations.values():
        found = [getattr(group, operation.handler) for group in groups if hasattr(group, operation.handler)]
        if len(found) != 1:
            raise RuntimeError(f"{operation.id}: {len(found)} handlers are named {operation.handler}")
        handlers[operation.id] = found[0]
    return handlers


class Service:
    """The contract, bound; ``application`` makes one for each place that is listened on."""

    def __init__(
        self,
        contract: Contract,
        groups: Sequence[object],
        credentials: Credentials,
        allowance: Allowance,
        settings: ApiSettings,
    ) -> None:
        self._contract = contract
        self._handlers = bind(contract, groups)
        self._credentials = credentials
        self._allowance = allowance
        self._settings = settings
        self._bodies_len = 0  # of strangers' bodies that are coming in; the event loop alone touches it

    def application(self) -> web.Application:
        """The operations under their paths, without the base path of the document."""
        application = web.Application(middlewares=[_guard])
        for operation in self._contract.operations.values():
            path = re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", operation.path)
            application.router.add_route(operation.method, path, self._entry(operation))
        return application

    def _entry(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.Response]]:
        handler = self._handlers[operation.id]

        async def enter(request: web.Request) -> web.Response:
            try:
                caller = _caller(request)
                is_stranger = not (operation.credentials or operation.administrator or caller.uid is not None)
                if is_stranger:
                    self._allowance.count(
                        caller.address
                    )  # before the body: what is refused for it counts too
                call = await self._admit(operation, request, caller)
                if not is_stranger:
                    return _response(await handler(call))
                with self._allowance.place():
                    return _response(await handler(call))
            except NotAuthenticated as error:
                scheme = "Basic" if "account" in operation.credentials else "Bearer"
                return problem(error, headers={"WWW-Authenticate": f'{scheme} realm="cloud-seal"'})

        return enter

    async def _admit(self, operation: Operation, request: web.Request, caller: Caller) -> Call:
        """The request, checked: who asks, then what."""
        if operation.administrator and caller.uid is None:
            raise Denied(
                f"{operation.id}: only for the administrator of this machine",
                hint="use the officers' Unix socket (web.officer_socket), or cloud-seal on the machine itself",
            )
        officer, account, token = None, None, ""
        if "session" in operation.credentials:
            token = _bearer(request)
            self._credentials.sessions.find(token)  # nobody else makes us read a body
        elif "account" in operation.credentials:
            account = await self._credentials.account(*_basic(request), caller)
        if len(request.rel_url.raw_query_string) > MAX_QUERY_LEN:
            raise BadRequest(f"the query is longer than {MAX_QUERY_LEN} characters", hint=GENERAL_HINT)
        values = self._contract.read_parameters(operation, request.match_info, request.query.items())
        raw = await self._read(operation, request)
        if token:
            # Only now: a body may be long in coming, and whoever was turned away meanwhile sends the end of it in vain.
            officer = await self._officer(token)
        body = self._contract.read_body(operation, raw) if operation.takes_body else None
        return Call(operation, values, body, caller, officer, account, token)

    async def _officer(self, token: str) -> Officer:
        """Whose session it is, as the officer is now."""
        session = self._credentials.sessions.find(token)
        officer = await self._credentials.officer(session.officer)
        if (
            officer.password_hash != session.password_hash
        ):  # it was changed while this one logged in with the old one
            raise NotAuthenticated("the officer's password has changed", hint="log in with the new one")
        return officer

    async def _read(self, operation: Operation, request: web.Request) -> bytes:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Refused(
                415, BadRequest("a compressed body is not taken", hint="leave out Content-Encoding")
            )
        block = bytearray()
        counts = not operation.credentials
        try:
            async with asyncio.timeout(self._settings.request_s):
                async for chunk in request.content.iter_any():
                    block += chunk
                    self._bodies_len += len(chunk) * counts
                    if counts and self._bodies_len > MAX_BODIES_LEN:
                        raise Busy("too many long requests at once", hint="try again", retry_after_ms=1_000)
                    if len(block) > operation.max_body_len:
                        raise _Refused(
                            413,
                            BadRequest(
                                f"the body is longer than {operation.max_body_len} bytes", hint=GENERAL_HINT
                            ),
                        )
        except TimeoutError:
            raise _Refused(
                408,
                BadRequest(
                    f"the body did not arrive within {self._settings.request_s:g} s", hint="try again"
                ),
            ) from None
        finally:
            self._bodies_len -= len(block) * counts
        if operation.takes_body and request.content_type != "application/json":
            raise _Refused(
                415, BadRequest("the body is not declared to be JSON", hint="Content-Type: application/json")
            )
        if not operation.takes_body and bytes(block.strip()) not in (b"", b"{}"):
            raise BadRequest(f"{operation.id} takes no body", hint="leave it out")
        return bytes(block)


class _Refused(Exception):
    """A problem under a status that is HTTP's own."""

    def __init__(self, status: int, error: ApplianceError) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except _Refused as refused:
        response = problem(refused.error, status=refused.status)
    except ApplianceError as error:
        response = problem(error)
    except StateUnknown as error:
        log.critical("%s: the process ends, and the next start reads what is there", error)
        os._exit(STATE_UNKNOWN_EXIT)
    except web.HTTPNotFound:
        response = problem(NotFound(f"no such resource: {request.path[:200]}", hint=GENERAL_HINT))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = problem(
            BadRequest(f"{request.method[:20]} does nothing here", hint=f"use {allowed}"),
            status=405,
            headers={"Allow": allowed},
        )
    response.headers.update(HEADERS)
    if request.secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response


def problem(
    error: ApplianceError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """What a refusal looks like; one that brings no hint of its own gets the general one."""
    document = {
        "error": error.label,
        "detail": error.detail,
        "hint": error.hint or GENERAL_HINT,
        "retry_after_ms": error.retry_after_ms,
    }
    more = dict(headers or {})
    if error.retry_after_ms:
        more["Retry-After"] = str(-(-error.retry_after_ms // 1_000))
    return web.json_response(document, status=status or error.http_status, headers=more)


def _response(reply: Reply) -> web.Response:
    headers = dict(reply.headers)
    if reply.raw is not None:
        return web.Response(
            body=reply.raw, status=reply.status, content_type=reply.media_type, headers=headers
        )
    if reply.document is None:
        return web.Response(status=reply.status, headers=headers)
    text = json.dumps(reply.document, ensure_ascii=False)
    return web.Response(
        text=text, status=reply.status, content_type="application/json", charset="utf-8", headers=headers
    )


def _caller(request: web.Request) -> Caller:
    transport = request.transport
    if transport is None:
        raise BadRequest("the connection has gone", hint="ask again")
    if isinstance(transport.get_extra_info("peername"), tuple):
        return Caller(request.remote or "unknown", None, request.secure)
    uid = peer_uid(transport)
    return Caller(f"uid-{uid}", uid, False)


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or _TOKEN.fullmatch(token.strip()) is None:
        raise NotAuthenticated(
            "this takes an officer's session",
            hint="log in (POST /api/v1/sessions) and send Authorization: Bearer TOKEN",
        )
    return token.strip()


def _basic(request: web.Request) -> tuple[str, str]:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    try:
        if scheme.lower() == "basic":
            name, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
            if colon:
                return name, password
    except (binascii.Error, ValueError):  # UnicodeDecodeError is one too
        pass
    raise NotAuthenticated("this takes an account and its password", hint="send them by HTTP Basic, in UTF-8")


# Listening --------------------------------------------------------------------------------------------------


class Door:
    """The API on TCP: TLS 1.3, or plain on loopback; it counts connections and closes those that ask nothing."""

    def __init__(self, service: Service, base: str, settings: ApiSettings) -> None:
        assert settings.listen is not None
        self._settings = settings
        self._address = split_address(settings.listen)
        self._tls = tls_context(settings)
        self._asked: set[int] = set()
        self._first_seen: dict[int, float] = {}
        root = web.Application(middlewares=[_guard, self._note])
        root.add_subapp(base, service.application())
        # A body is read as it comes: one that unpacks itself is refused before anything is unpacked.
        # What still comes after a refusal is read for a moment, so that the refusal arrives.
        self._runner = web.AppRunner(
            root, access_log=None, auto_decompress=False, lingering_time=1.0, shutdown_timeout=1.0
        )

    @web.middleware
    async def _note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self._asked.add(id(request.protocol))
        return await handler(request)

    async def open(self) -> None:
        """Listen; ``ConfigError`` where that cannot be."""
        await self._runner.setup()
        host, port = self._address
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        except OSError as error:
            raise ConfigError(
                f"web.api.listen {host}:{port}: cannot listen: {error}", hint="is something else there?"
            ) from error
        for address in self.addresses:
            log.info(
                "the API listens on %s port %d, %s", address[0], address[1], "TLS" if self._tls else "plain"
            )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens; the system may have chosen the port."""
        return [(address[0], address[1]) for address in self._runner.addresses]

    async def watch(self) -> None:
        """Close what exceeds the limit, and what has asked nothing in time. Runs until cancelled."""
        while True:
            await asyncio.sleep(DOOR_TICK_S)
            server = self._runner.server
            if server is None:
                continue
            now = time.monotonic()
            connections = server.connections
            here = {id(one) for one in connections}
            self._asked &= here
            self._first_seen = {one: self._first_seen.get(one, now) for one in here}
            silent = [one for one in connections if id(one) not in self._asked]
            too_many = len(connections) > self._settings.max_connections
            for one in silent:
                if too_many or now - self._first_seen[id(one)] > self._settings.request_s:
                    one.force_close()

    async def close(self) -> None:
        """Stop listening; requests under way have a moment."""
        await self._runner.cleanup()


def tls_context(settings: ApiSettings) -> ssl.SSLContext | None:
    """TLS 1.3 with the configured certificate; None on loopback without one."""
    assert settings.listen is not None
    if settings.certificate_file is None or settings.key_file is None:
        if is_loopback(split_address(settings.listen)[0]):
            return None
        raise ConfigError("web.api.listen: TLS needs web.api.certificate_file and key_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"web.api: certificate_file, key_file: {error}") from error
    return context
