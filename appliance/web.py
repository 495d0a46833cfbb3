"""HTTP: health and metrics on loopback TCP, the officers' interface on a Unix socket.

For: ``/healthz`` (the process lives), ``/readyz`` (it can sign), ``/metrics``; and ``/v1/…`` in JSON for keys,
certificates and accounts, which ``cloud-seal key …``, ``ca …`` and ``account …`` use.
Not for: sealing, which has its own protocol.

Security note: the officers' socket has mode 0600 and its peer must be root, the daemon's own user or listed in
``web.officer_uids``, as the kernel tells it. Health and metrics name no account and no key, and listen on loopback.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from asn1crypto.x509 import Name

from appliance import certificates
from appliance.accounts import Authenticator
from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import (
    STATE_UNKNOWN_EXIT,
    ApplianceError,
    BadRequest,
    Conflict,
    Denied,
    NotFound,
    StateUnknown,
    Unavailable,
)
from appliance.fronts import Fronts
from appliance.holdings import Holdings
from appliance.metrics import Metrics, merge_pages
from appliance.pipeline import Pipeline
from appliance.policy import Account, HeldKey
from appliance.server import bind_unix_socket, peer_uid
from appliance.settings import WebSettings, split_address
from appliance.signers import SignerPool

log = logging.getLogger(__name__)

MAX_BODY_LEN: Final = 65_536
"""Every request here is a handful of short fields."""
MAX_UID: Final = 2**32 - 2
"""Linux has 32 bits for it, and the last one means none."""
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Services:
    """What the handlers work with."""

    holdings: Holdings
    pools: Mapping[str, SignerPool]
    pipeline: Pipeline
    authenticator: Authenticator
    metrics: Metrics
    fronts: Fronts

    async def status(self) -> dict[str, Any]:
        """The leading front's status; those of the others under ``fronts``."""
        status = self.pipeline.appliance_status()
        others = await self.fronts.ask("status")
        if others:
            status["fronts"] = others
            if status["state"] == "ready" and any(other["state"] != "ready" for other in others):
                status["state"] = "degraded"
        return status


def health_application(services: Services) -> web.Application:
    """Health and metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        status = await services.status()
        return web.json_response(status, status=200 if status["state"] == "ready" else 503)

    async def metrics(_: web.Request) -> web.Response:
        others = [answer["page"].encode() for answer in await services.fronts.ask("metrics")]
        page = merge_pages([services.metrics.page(), *others]) if others else services.metrics.page()
        return web.Response(body=page, content_type="text/plain", charset="utf-8")

    application = web.Application(client_max_size=MAX_BODY_LEN)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", metrics)
    return application


def officer_application(
    services: Services, allowed_uids: frozenset[int], api: web.Application | None = None, base: str = ""
) -> web.Application:
    """Keys and accounts, for officers on this machine; and the HTTP API under its base path."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            transport = request.transport
            if transport is None or peer_uid(transport) not in allowed_uids:
                raise Denied("this user is no officer", hint="list the uid under web.officer_uids")
            return await handler(request)
        except ApplianceError as error:
            return _error(error)
        except StateUnknown as error:
            log.critical("%s: the process ends, and the next start reads what is there", error)
            os._exit(STATE_UNKNOWN_EXIT)
        except web.HTTPRequestEntityTooLarge:
            return _error(BadRequest(f"a request has at most {MAX_BODY_LEN} bytes"))
        except web.HTTPNotFound:
            return _error(NotFound(f"no such resource: {request.path}"))
        except web.HTTPMethodNotAllowed as error:
            return _error(
                BadRequest(
                    f"{request.method} does nothing here", hint=f"use {', '.join(error.allowed_methods)}"
                )
            )

    application = web.Application(middlewares=[guard], client_max_size=MAX_BODY_LEN)
    _Officers(services).add_routes(application.router)
    if api is not None:
        application.add_subapp(base, api)
    return application


async def start_site(runner: web.AppRunner, settings: WebSettings, *, officers: bool) -> None:
    """Listen where the settings say."""
    await runner.setup()
    if officers:
        assert settings.officer_socket is not None
        site: web.BaseSite = web.SockSite(runner, bind_unix_socket(settings.officer_socket, 0o600))
    else:
        assert settings.health is not None
        host, port = split_address(settings.health)
        site = web.TCPSite(runner, host, port)
    await site.start()


def officer_uids(settings: WebSettings) -> frozenset[int]:
    """Root, ourselves, and whom the settings name."""
    return frozenset({0, os.geteuid(), *settings.officer_uids})


class _Officers:
    """The handlers of the officers' interface."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._holdings = services.holdings

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/status", self._status)
        router.add_get("/v1/keys", self._keys)
        router.add_post("/v1/keys", self._create_key)
        router.add_get("/v1/keys/{name}", self._key)
        router.add_post("/v1/keys/{name}/{act:disable|enable}", self._switch_key)
        router.add_post("/v1/keys/{name}/request", self._request)
        router.add_post("/v1/keys/{name}/self-signed", self._self_signed)
        router.add_post("/v1/keys/{name}/issue", self._issue)
        router.add_get("/v1/accounts", self._accounts)
        router.add_post("/v1/accounts", self._create_account)
        router.add_post("/v1/accounts/{name}/password", self._set_password)
        router.add_post("/v1/accounts/{name}/{act:disable|enable}", self._switch_account)
        router.add_post("/v1/accounts/{name}/grants", self._grant)
        router.add_delete("/v1/accounts/{name}/grants/{key}", self._revoke)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._services.status())

    # Keys

    async def _keys(self, _: web.Request) -> web.Response:
        keys = sorted(self._holdings.keys.values(), key=lambda key: key.name)
        return web.json_response([self._key_document(key) for key in keys])

    async def _key(self, request: web.Request) -> web.Response:
        return web.json_response(self._key_document(self._find_key(request.match_info["name"])))

    async def _create_key(self, request: web.Request) -> web.Response:
        fields = await _fields(request, {"name": str, "algorithm": str}, {"token": str})
        algorithm = Algorithm.from_label(fields["algorithm"])
        pool = self._pool_for(algorithm, fields.get("token"))
        pool.check_available()  # before a row is written that only the token could settle
        key = await self._holdings.create_key(fields["name"], pool.name, algorithm, pool)
        return web.json_response(self._key_document(key), status=201)

    async def _switch_key(self, request: web.Request) -> web.Response:
        key = self._find_key(request.match_info["name"])
        pool = self._services.pools.get(key.token)
        if pool is None:
            raise Unavailable(f"the token {key.token!r} is not configured", hint="add it under tokens:")
        disabled = request.match_info["act"] == "disable"
        key = await self._holdings.set_key_disabled(key.name, disabled, pool)
        return web.json_response(self._key_document(key))

    # Certificates

    async def _request(self, request: web.Request) -> web.Response:
        """A PKCS#10 request for a key, signed by it."""
        fields = await _fields(request, {"subject": str}, {})
        key = self._find_key(request.match_info["name"])
        to_sign = certificates.request_to_sign(certificates.parse_subject(fields["subject"]), key.public)
        signature = await self._services.pipeline.sign_message(key, to_sign)
        der = certificates.assemble_request(to_sign, key.public, signature)
        return web.json_response({"request": certificates.to_pem("CERTIFICATE REQUEST", der)}, status=201)

    async def _self_signed(self, request: web.Request) -> web.Response:
        """The root certificate of a demonstration CA whose key this is."""
        fields = await _fields(request, {"subject": str}, {"days": int})
        key = self._find_key(request.match_info["name"])
        subject = certificates.parse_subject(fields["subject"])
        return await self._certify(key, subject, key.public, subject, fields.get("days", 3_650), is_ca=True)

    async def _issue(self, request: web.Request) -> web.Response:
        """A signer's certificate from the demonstration CA whose key this is, for a PKCS#10 request."""
        optional = {"days": int, "time_stamping": bool}
        fields = await _fields(request, {"request": str, "issuer_certificate": str}, optional)
        key = self._find_key(request.match_info["name"])
        issuer = fields["issuer_certificate"].encode()
        if PublicKey.from_certificate(certificates.to_der(issuer)) != key.public:
            raise Conflict(
                f"the issuer's certificate is not of key {key.name!r}", hint="give the CA's own certificate"
            )
        wanted = certificates.parse_request(fields["request"].encode())
        if not self._services.pipeline.proves_possession(wanted):
            raise BadRequest(
                "the request's signature does not verify", hint="it must be signed by the key it is for"
            )
        name = certificates.subject_of(issuer)
        return await self._certify(
            key,
            name,
            wanted.public,
            wanted.subject,
            fields.get("days", 365),
            is_ca=False,
            is_time_stamping=fields.get("time_stamping", False),
        )

    async def _certify(
        self,
        key: HeldKey,
        issuer: Name,
        public: PublicKey,
        subject: Name,
        days: int,
        *,
        is_ca: bool,
        is_time_stamping: bool = False,
    ) -> web.Response:
        to_sign = certificates.certificate_to_sign(
            public=public,
            subject=subject,
            issuer=issuer,
            issuer_public=key.public,
            serial=int.from_bytes(secrets.token_bytes(certificates.SERIAL_LEN), "big") >> 1 | 1,
            not_before=datetime.now(UTC),
            days=days,
            is_ca=is_ca,
            is_time_stamping=is_time_stamping,
        )
        signature = await self._services.pipeline.sign_message(key, to_sign)
        der = certificates.assemble_certificate(to_sign, key.public, signature)
        return web.json_response({"certificate": certificates.to_pem("CERTIFICATE", der)}, status=201)

    def _find_key(self, name: str) -> HeldKey:
        key = self._holdings.keys.get(name)
        if key is None:
            raise NotFound(f"no key {name!r}", hint="cloud-seal key list")
        return key

    def _pool_for(self, algorithm: Algorithm, token: str | None) -> SignerPool:
        pools = self._services.pools
        if token is not None:
            if token not in pools:
                raise NotFound(f"no token {token!r}", hint=f"configured: {', '.join(pools) or 'none'}")
            candidates = [pools[token]]
        else:
            candidates = list(pools.values())
        for pool in candidates:
            if algorithm.label in pool.profile.algorithms:
                return pool
        raise BadRequest(
            f"no configured token makes {algorithm.label} keys",
            hint=f"configured: {', '.join(pools) or 'none'}",
        )

    def _key_document(self, key: HeldKey) -> dict[str, Any]:
        pool = self._services.pools.get(key.token)
        up = pool is not None and pool.is_up and key.name not in pool.refused_keys
        return {
            "name": key.name,
            "id": key.key_id.hex(),
            "token": key.token,
            "algorithm": key.public.algorithm.label,
            "state": "disabled" if key.disabled else "usable" if up else "unavailable",
            "created_at": key.created_at,
            "spki": base64.b64encode(key.public.spki()).decode(),
        }

    # Accounts

    async def _accounts(self, _: web.Request) -> web.Response:
        accounts = sorted(self._holdings.accounts.values(), key=lambda account: account.name)
        return web.json_response([_account_document(account) for account in accounts])

    async def _create_account(self, request: web.Request) -> web.Response:
        fields = await _fields(
            request, {"name": str}, {"password": str, "uid": int, "certificate_sha256": str}
        )
        fingerprint = fields.get("certificate_sha256")
        if fingerprint is not None:
            fingerprint = fingerprint.replace(":", "").lower()
            if not _FINGERPRINT.fullmatch(fingerprint):
                raise BadRequest("certificate_sha256 is no SHA-256 fingerprint", hint="64 hexadecimal digits")
        if not 0 <= fields.get("uid", 0) <= MAX_UID:
            raise BadRequest(f"uid: expected 0 to {MAX_UID}, got {fields['uid']}")
        password = fields.get("password")
        hash_ = await self._services.authenticator.hash_password(password) if password is not None else None
        account = Account(fields["name"], hash_, fields.get("uid"), fingerprint, False, frozenset())
        return web.json_response(_account_document(await self._holdings.create_account(account)), status=201)

    async def _set_password(self, request: web.Request) -> web.Response:
        fields = await _fields(request, {"password": str}, {})
        name = self._find_account(request)
        hash_ = await self._services.authenticator.hash_password(fields["password"])
        await self._holdings.set_account_password(name, hash_)
        return web.json_response(_account_document(self._holdings.accounts[name]))

    async def _switch_account(self, request: web.Request) -> web.Response:
        name = self._find_account(request)
        await self._holdings.set_account_disabled(name, request.match_info["act"] == "disable")
        return web.json_response(_account_document(self._holdings.accounts[name]))

    async def _grant(self, request: web.Request) -> web.Response:
        fields = await _fields(request, {"key": str}, {})
        name = self._find_account(request)
        await self._holdings.grant(name, fields["key"])
        return web.json_response(_account_document(self._holdings.accounts[name]))

    async def _revoke(self, request: web.Request) -> web.Response:
        name = self._find_account(request)
        await self._holdings.revoke(name, request.match_info["key"])
        return web.json_response(_account_document(self._holdings.accounts[name]))

    def _find_account(self, request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in self._holdings.accounts:
            raise NotFound(f"no account {name!r}", hint="cloud-seal account list")
        return name


def _account_document(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "password": account.password_hash is not None,
        "uid": account.uid,
        "certificate_sha256": account.certificate_sha256,
        "disabled": account.disabled,
        "grants": sorted(account.grants),
    }


async def _fields(
    request: web.Request, required: dict[str, type], optional: dict[str, type]
) -> dict[str, Any]:
    """The JSON object in the body, with exactly these fields."""
    try:
        document = json.loads(await request.read())
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not JSON", hint=str(error)) from error
    if not isinstance(document, dict):
        raise BadRequest("expected a JSON object")
    known = {**required, **optional}
    for name, value in document.items():
        if name not in known:
            raise BadRequest(f"unknown field {name!r}", hint=f"expected {', '.join(known)}")
        if type(value) is not known[name]:
            raise BadRequest(f"field {name!r}: expected {known[name].__name__}, got {type(value).__name__}")
        if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            raise BadRequest(
                f"field {name!r}: half a surrogate pair is no text"
            )  # JSON can say it, UTF-8 cannot
    missing = [name for name in required if name not in document]
    if missing:
        raise BadRequest(f"missing field {missing[0]!r}")
    return document


def _error(error: ApplianceError) -> web.Response:
    document = {
        "error": error.label,
        "detail": error.detail,
        "hint": error.hint,
        "retry_after_ms": error.retry_after_ms,
    }
    headers = {"Retry-After": str(-(-error.retry_after_ms // 1_000))} if error.retry_after_ms else None
    return web.json_response(document, status=error.http_status, headers=headers)
