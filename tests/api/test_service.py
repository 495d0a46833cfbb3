"""The machinery over real sockets: who gets in, what is too much, and what a refusal looks like."""

from __future__ import annotations

import asyncio
import base64
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from appliance_fixture import Authority, run, until_async

from appliance.api import service
from appliance.api.contract import Contract
from appliance.api.limits import Allowance
from appliance.api.service import HEADERS, Call, Caller, Credentials, Door, Reply, Service, bind
from appliance.api.sessions import Sessions
from appliance.errors import TABLE, ApplianceError, NotAuthenticated
from appliance.lifecycle import Officer, Role
from appliance.policy import Account
from appliance.server import bind_unix_socket
from appliance.settings import ApiSettings

SETTINGS = ApiSettings(listen="127.0.0.1:0", request_s=2.0)
ANSWER = {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "It."}


def operation(id_: str, **more: Any) -> dict[str, Any]:
    return {"operationId": id_, "responses": {"200": ANSWER}, **more}


TAKES = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
DOCUMENT = {
    "openapi": "3.1.0",
    "servers": [{"url": "/api/v1"}],
    "security": [{"session": []}],
    "paths": {
        "/open": {
            "get": operation("readOpen", security=[]),
            "post": operation("giveOpen", security=[], **TAKES),
        },
        "/mine/{name}": {
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": operation("readMine"),
            "post": operation("giveMine", **TAKES),
        },
        "/app": {"get": operation("readApp", security=[{"account": []}])},
        "/admin": {"get": operation("readAdmin", security=[], **{"x-reach": "administrator"})},
    },
}
LI = Officer("li", "Li", frozenset({Role.CLERK}), "", False, "2026-11-22T04:30:00.000+00:00")
APP = Account("app", None, None, None, False, frozenset())


class Handlers:
    """Says what it was asked."""

    error: ApplianceError | None = None

    async def read_open(self, call: Call) -> Reply:
        if self.error is not None:
            raise self.error
        return Reply({"address": call.caller.address})

    async def give_open(self, call: Call) -> Reply:
        return Reply({"body": call.body})

    async def read_mine(self, call: Call) -> Reply:
        return Reply({"officer": call.actor.name, "name": call.values["name"]})

    async def give_mine(self, call: Call) -> Reply:
        return Reply({"officer": call.actor.name})

    async def read_app(self, call: Call) -> Reply:
        return Reply({"account": call.user.name, "tls": call.caller.is_tls})

    async def read_admin(self, call: Call) -> Reply:
        return Reply({"uid": call.caller.uid})


@dataclass
class House:
    """The service on TCP and on a Unix socket."""

    url: str
    port: int
    unix: Path
    sessions: Sessions
    handlers: Handlers
    strangers: set[str]
    """Officers who may not log in any more."""
    http: aiohttp.ClientSession
    on_unix: aiohttp.ClientSession


@asynccontextmanager
async def house(
    tmp_path: Path, settings: ApiSettings = SETTINGS, *, per_minute: int = 1_000
) -> AsyncIterator[House]:
    strangers = {"wang"}

    async def officer(name: str) -> Officer:
        if name in strangers:
            raise NotAuthenticated("gone", hint="ask")
        return LI

    async def account(name: str, password: str, caller: Caller) -> Account:
        if (name, password) != ("app", "pässword:"):
            raise NotAuthenticated("no such account", hint="check")
        return APP

    sessions = Sessions(time.monotonic, secrets.token_urlsafe, 100, 1_000)
    handlers = Handlers()
    made = Service(
        Contract(DOCUMENT),
        [handlers],
        Credentials(sessions, officer, account),
        Allowance(per_minute, 4, time.monotonic),
        settings,
    )
    door = Door(made, "/api/v1", settings)
    root = web.Application()
    root.add_subapp("/api/v1", made.application())
    runner = web.AppRunner(root, access_log=None)
    await runner.setup()
    path = tmp_path / "s"
    await web.SockSite(runner, bind_unix_socket(path, 0o600)).start()
    await door.open()
    watch = asyncio.ensure_future(door.watch())
    (address,) = door.addresses
    scheme = "https" if settings.key_file else "http"
    try:
        async with (
            aiohttp.ClientSession() as http,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as on_unix,
        ):
            yield House(
                f"{scheme}://127.0.0.1:{address[1]}/api/v1",
                address[1],
                path,
                sessions,
                handlers,
                strangers,
                http,
                on_unix,
            )
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await door.close()
        await runner.cleanup()
        # A connection that its client has left ends a moment after the server does.
        await until_async("the server's tasks have ended", lambda: len(asyncio.all_tasks()) == 1)


async def refused(response: aiohttp.ClientResponse, status: int, error: str) -> dict[str, Any]:
    """The problem, which must be one."""
    async with response:
        document = await response.json()
        assert (response.status, document["error"]) == (status, error), document
        assert document["detail"] and document["hint"]
        assert set(document) == {"error", "detail", "hint", "retry_after_ms"}
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        return {**document, "headers": response.headers}


async def document(response: aiohttp.ClientResponse) -> Any:
    async with response:
        assert response.status == 200, await response.text()
        for name, value in HEADERS.items():
            assert response.headers[name] == value
        return await response.json()


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_every_operation_has_one_handler() -> None:
    contract = Contract(DOCUMENT)
    assert set(bind(contract, [Handlers()])) == set(contract.operations)
    with pytest.raises(RuntimeError, match="2 handlers"):
        bind(contract, [Handlers(), Handlers()])
    with pytest.raises(RuntimeError, match="0 handlers"):
        bind(contract, [])


def test_officers_need_a_session(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            token, _ = here.sessions.open("li")
            for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {'x' * 43}"},
                           {"Authorization": f"Basic {token}"}, {"Authorization": "Bearer"}):  # fmt: skip
                problem = await refused(
                    await here.http.get(f"{here.url}/mine/a", headers=header), 401, "not_authenticated"
                )
                assert problem["headers"]["WWW-Authenticate"].startswith("Bearer")
            header = {"Authorization": f"Bearer {token}"}
            found = await document(await here.http.get(f"{here.url}/mine/%E7%AB%A0%2Fb", headers=header))
            assert found == {"officer": "li", "name": "章/b"}
            # The officer is looked up anew for each request: one who was disabled is out.
            gone, _ = here.sessions.open("wang")
            header = {"Authorization": f"Bearer {gone}"}
            await refused(await here.http.get(f"{here.url}/mine/a", headers=header), 401, "not_authenticated")

    run(body())


def test_who_is_turned_away_while_a_body_comes_in_does_nothing_any_more(tmp_path: Path) -> None:
    """Else an officer could keep requests half sent for the day on which he or she is disabled."""

    async def body() -> None:
        async with house(tmp_path) as here:
            for turn_away in (here.sessions.close_all, here.strangers.add):
                token, _ = here.sessions.open("li")
                asked = asyncio.Event()

                async def slow(
                    turn_away: Any = turn_away, asked: asyncio.Event = asked
                ) -> AsyncIterator[bytes]:
                    yield b"{"
                    asked.set()
                    await asyncio.sleep(0.1)
                    turn_away("li")
                    yield b"}"

                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                answer = await here.http.post(f"{here.url}/mine/a", data=slow(), headers=headers)
                await refused(answer, 401, "not_authenticated")

    run(body())


def test_a_session_opened_with_an_older_password_is_none(tmp_path: Path) -> None:
    """A log-in that was under way while the password changed."""

    async def body() -> None:
        async with house(tmp_path) as here:
            token, _ = here.sessions.open("li", "an older hash")
            header = {"Authorization": f"Bearer {token}"}
            await refused(await here.http.get(f"{here.url}/mine/a", headers=header), 401, "not_authenticated")

    run(body())


def test_accounts_need_a_password(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            for header in ({}, basic("app", "wrong"), {"Authorization": "Basic !"}, {"Authorization": "Basic YXBw"},
                           {"Authorization": "Basic /w=="}):  # fmt: skip
                problem = await refused(
                    await here.http.get(f"{here.url}/app", headers=header), 401, "not_authenticated"
                )
                assert problem["headers"]["WWW-Authenticate"].startswith("Basic")
            found = await document(await here.http.get(f"{here.url}/app", headers=basic("app", "pässword:")))
            assert found == {"account": "app", "tls": False}

    run(body())


def test_what_is_the_administrators_answers_on_the_socket_only(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            await refused(await here.http.get(f"{here.url}/admin"), 403, "denied")
            found = await document(await here.on_unix.get("http://x/api/v1/admin"))
            assert type(found["uid"]) is int

    run(body())


def test_a_body_has_a_type_a_length_and_a_time(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            url = f"{here.url}/open"
            assert await document(await here.http.post(url, json={"a": 1})) == {"body": {"a": 1}}
            await refused(await here.http.post(url, data=b"{}"), 415, "bad_request")
            await refused(await here.http.post(url, json={"a": "x" * 65_536}), 413, "bad_request")
            headers = {"Content-Encoding": "deflate", "Content-Type": "application/json"}
            await refused(await here.http.post(url, data=b"xyz", headers=headers), 415, "bad_request")
            await refused(await here.http.get(url, json={"a": 1}), 400, "bad_request")

            async def slow() -> AsyncIterator[bytes]:
                yield b"{"
                await asyncio.sleep(60)

            json_type = {"Content-Type": "application/json"}
            await refused(await here.http.post(url, data=slow(), headers=json_type), 408, "bad_request")

    run(body())


def test_what_is_not_there(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            await refused(await here.http.get(f"{here.url}/nothing"), 404, "not_found")
            await refused(await here.http.get(here.url.replace("/api/v1", "/v1/keys")), 404, "not_found")
            problem = await refused(await here.http.delete(f"{here.url}/open"), 405, "bad_request")
            assert problem["headers"]["Allow"] == "GET, POST"
            await refused(await here.http.get(f"{here.url}/open?x=1"), 400, "bad_request")
            await refused(await here.http.get(f"{here.url}/open?{'x' * 5_000}=1"), 400, "bad_request")

    run(body())


def test_strangers_are_rate_limited_and_those_on_the_socket_are_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, per_minute=2) as here:
            for _ in range(2):
                await document(await here.http.get(f"{here.url}/open"))
            problem = await refused(await here.http.get(f"{here.url}/open"), 429, "busy")
            assert problem["retry_after_ms"] > 0
            assert int(problem["headers"]["Retry-After"]) >= 1
            for _ in range(5):
                await document(await here.on_unix.get("http://x/api/v1/open"))

    run(body())


def test_what_strangers_are_refused_for_counts_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, per_minute=2) as here:
            for _ in range(2):
                await refused(await here.http.post(f"{here.url}/open", json=[]), 400, "bad_request")
            await refused(await here.http.post(f"{here.url}/open", json=[]), 429, "busy")

    run(body())


def test_bodies_of_strangers_that_come_in_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_BODIES_LEN", 1_000)

    async def body() -> None:
        async with house(tmp_path) as here:
            await refused(await here.http.post(f"{here.url}/open", json={"a": "x" * 2_000}), 429, "busy")
            token, _ = here.sessions.open("li")
            header = {"Authorization": f"Bearer {token}"}
            await document(
                await here.http.post(f"{here.url}/mine/a", json={"a": "x" * 2_000}, headers=header)
            )
            await document(await here.http.post(f"{here.url}/open", json={"a": 1}))

    run(body())


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.label)
def test_every_error_is_a_problem_with_its_status_and_a_hint(row: Any, tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as here:
            here.handlers.error = row.error("it is so")
            problem = await refused(await here.http.get(f"{here.url}/open"), row.http_status, row.label)
            assert problem["detail"] == "it is so"
            here.handlers.error = row.error("it is so", hint="do that", retry_after_ms=1)
            problem = await refused(await here.http.get(f"{here.url}/open"), row.http_status, row.label)
            assert (problem["hint"], problem["retry_after_ms"]) == ("do that", 1)
            assert problem["headers"]["Retry-After"] == "1"

    run(body())


def test_a_connection_that_asks_nothing_is_closed_and_one_that_asks_is_not(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, replace(SETTINGS, request_s=0.2)) as here:
            await document(await here.http.get(f"{here.url}/open"))
            for first in (b"", b"GET /api/v1/open HTTP/1.1\r\nX-Slow: "):
                reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
                writer.write(first)
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
                writer.close()
            await document(await here.http.get(f"{here.url}/open"))

    run(body())


def test_more_connections_than_allowed_are_closed(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, replace(SETTINGS, max_connections=2, request_s=600)) as here:
            streams = [await asyncio.open_connection("127.0.0.1", here.port) for _ in range(3)]
            for reader, writer in streams:
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
                writer.close()

    run(body())


def test_over_the_network_it_is_tls_1_3(tmp_path: Path, authority: Authority) -> None:
    settings = replace(
        SETTINGS,
        certificate_file=authority.root / "server.pem",
        key_file=authority.root / "server.key",
    )

    async def body() -> None:
        async with house(tmp_path, settings) as here:
            async with here.http.get(
                f"{here.url}/app", headers=basic("app", "pässword:"), ssl=authority.context()
            ) as answer:
                assert (await answer.json())["tls"] is True
                assert "Strict-Transport-Security" in answer.headers
            old = authority.context()
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(aiohttp.ClientConnectionError):
                await here.http.get(f"{here.url}/open", ssl=old)

    run(body())
