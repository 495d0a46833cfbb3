"""Time stamps from our own small authority, over HTTP, for the client that asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from appliance_fixture import free_port, run
from office_rig import MakeRig, Rig

from appliance import certificates
from appliance.errors import Conflict, SignerFailed, Unavailable
from appliance.eseal.structures import read_seal
from appliance.eseal.timestamps import MAX_REQUEST_LEN, read_response, read_token
from appliance.lifecycle import CriticalAct, ProposalState, State
from appliance.office import authority_application
from appliance.office.stamping import QUERY, REPLY, Stamper
from appliance.settings import AuthoritySettings, TimestampSettings

VALUE = b"what was there"


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/tsa"
    finally:
        await runner.cleanup()


async def authority(one: Rig, root: Path, *, is_time_stamping: bool = True) -> AuthoritySettings:
    """Its key, and its certificate from the CA that is trusted."""
    (pool,) = one.pools.values()
    key = await one.holdings.create_key("tsa", pool.name, one.ca.public.algorithm, pool)
    certificate = await one.issue(
        key.public, "C=CN, O=Test, CN=time", 3_650, is_time_stamping=is_time_stamping
    )
    path = root / "tsa.pem"
    path.write_text(certificates.to_pem("CERTIFICATE", certificate))
    return AuthoritySettings(listen="127.0.0.1:0", key="tsa", certificate_file=path)


def application(one: Rig, settings: AuthoritySettings) -> web.Application:
    return authority_application(settings, one.holdings.keys, one.pipeline.sign_message, one.today)


def stamper(one: Rig, url: str | None) -> Stamper:
    return Stamper(TimestampSettings(url=url), one.office.maker.trust, one.verifier, one.today)


@pytest.mark.parametrize("which", ["rig", "sm2_rig"])
def test_a_stamp_is_given_and_believed(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    rig: MakeRig = request.getfixturevalue(which)

    async def test() -> None:
        async with rig() as one, serving(application(one, await authority(one, tmp_path))) as url:
            asking = stamper(one, url)
            first, second = await asking.stamp(VALUE), await asking.stamp(VALUE)
            await asking.close()
            assert read_token(first).at == one.today()
            assert read_token(first).serial != read_token(second).serial

    run(test())


def test_a_new_seal_carries_one(rig: MakeRig, tmp_path: Path) -> None:
    async def test() -> None:
        port = free_port()
        stamps = TimestampSettings(url=f"http://127.0.0.1:{port}/tsa", on_seals=True)
        async with rig(version=5, timestamp=stamps) as one:
            seal = await one.certified()
            proposal = await one.office.propose(one["maker"], CriticalAct.MAKE, seal.id, {})
            waiting = await one.office.approve(one["guard"], proposal.id)
            assert waiting.state is ProposalState.APPROVED, (
                "the authority is away: nothing is made without it"
            )
            runner = web.AppRunner(application(one, await authority(one, tmp_path)), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            assert await one.office.resume_approved() == 1
            await runner.cleanup()
            assert (await one.seal(seal)).state is State.MADE
            made = await asyncio.to_thread(one.registry.seals.generation, seal.id, 1)
            assert read_seal(made.eseal).timestamp is not None

    run(test())


def test_a_stamp_that_is_not_believed(rig: MakeRig, tmp_path: Path) -> None:
    """An authority whose certificate is not for that, one that answers another question, one that is none."""

    async def test() -> None:
        async with rig() as one:
            settings = await authority(one, tmp_path, is_time_stamping=False)
            async with serving(application(one, settings)) as url:
                asking = stamper(one, url)
                with pytest.raises(SignerFailed, match="time stamping"):
                    await asking.stamp(VALUE)
                await asking.close()

            kept: list[bytes] = []

            async def replay(request: web.Request) -> web.Response:
                return web.Response(body=kept[0], content_type=REPLY)

            replaying = web.Application()
            replaying.router.add_post("/tsa", replay)
            async with serving(application(one, settings)) as real, serving(replaying) as url:
                async with aiohttp.ClientSession() as session:
                    from appliance.eseal.timestamps import build_request

                    headers = {"Content-Type": QUERY}
                    async with session.post(real, data=build_request(VALUE, 7), headers=headers) as answer:
                        kept.append(await answer.read())
                asking = stamper(one, url)
                with pytest.raises(SignerFailed, match="nonce"):
                    await asking.stamp(VALUE)
                await asking.close()

            async def page(request: web.Request) -> web.Response:
                return web.Response(text="hello")

            other = web.Application()
            other.router.add_post("/tsa", page)
            async with serving(other) as url:
                asking = stamper(one, url)
                with pytest.raises(Unavailable, match="text/plain"):
                    await asking.stamp(VALUE)
                await asking.close()

    run(test())


def test_no_authority(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            asking = stamper(one, f"http://127.0.0.1:{free_port()}/tsa")
            with pytest.raises(Unavailable, match="cannot be reached"):
                await asking.stamp(VALUE)
            await asking.close()
            with pytest.raises(Conflict, match="configured"):
                await stamper(one, None).stamp(VALUE)

    run(test())


def test_what_the_authority_refuses(rig: MakeRig, tmp_path: Path) -> None:
    async def test() -> None:
        async with rig() as one:
            settings = await authority(one, tmp_path)
            async with (
                serving(application(one, settings)) as url,
                serving(application(one, replace(settings, key="maker"))) as wrong,
                aiohttp.ClientSession() as session,
            ):
                from appliance.eseal.timestamps import build_request

                good = build_request(VALUE, 7)
                for address, body, kind in (
                    (url, b"nonsense", QUERY),
                    (url, good, "text/plain"),
                    (url, good + bytes(MAX_REQUEST_LEN), QUERY),
                    (wrong, good, QUERY),
                ):
                    async with session.post(address, data=body, headers={"Content-Type": kind}) as answer:
                        assert answer.status == 200 and answer.content_type == REPLY
                        with pytest.raises(Exception, match="refused"):
                            read_response(await answer.read())

    run(test())
