"""What is told to the public security: over HTTPS to a real server, until it has said that it knows."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from appliance_fixture import Authority, free_port, run
from office_rig import USCC, MakeRig, Rig

from appliance.errors import ConfigError
from appliance.lifecycle import SYSTEM, CriticalAct, Message, MessageKind, Seal, State
from appliance.office.outbox import MAX_ANSWER_LEN, MAX_RECEIPT_LEN, tls_of
from appliance.settings import FilingSettings

Answer = Callable[[web.Request], web.Response]


def receipt(request: web.Request) -> web.Response:
    return web.json_response({"receipt": f"R-{request.headers['Idempotency-Key'][:6]}"}, status=201)


@dataclass
class Receiver:
    """The public security's server: what it got, and what it answers."""

    port: int = 0
    answer: Answer = receipt
    got: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((request.headers["Idempotency-Key"], json.loads(await request.read())))
        assert request.transport is not None
        certificate = request.transport.get_extra_info("peercert")
        if certificate:
            self.clients.append(dict(pair[0] for pair in certificate["subject"])["commonName"])
        return self.answer(request)


@asynccontextmanager
async def receiving(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """It listens on loopback; ``port`` says where."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/filing", receiver.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


def plain(receiver: Receiver, **changes: Any) -> FilingSettings:
    url = f"http://127.0.0.1:{receiver.port}/filing"
    fast = {"first_retry_s": 10.0, "max_retry_s": 60.0, "rejected_retry_s": 600.0, **changes}
    return FilingSettings(url=url, **fast)


async def message(one: Rig, seal: Seal, kind: MessageKind = MessageKind.MADE) -> Message:
    found = await asyncio.to_thread(one.registry.messages.messages, False, "", 10, seal.id)
    return next(message for message in found if message.kind is kind)


async def delay_s(one: Rig, seal: Seal) -> float:
    waiting = await message(one, seal)
    return (datetime.fromisoformat(waiting.next_attempt_at) - one.today()).total_seconds()


def test_a_making_that_was_received_is_filed(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            seal = await one.made()
            assert await one.office.deliver() == 1
            filed = await one.seal(seal)
            assert filed.state is State.FILED and filed.filed_at is not None
            event = (await asyncio.to_thread(one.registry.seals.events, seal.id))[-1]
            sent = await message(one, seal)
            assert (event.act, event.officer, event.detail["receipt"]) == ("file", SYSTEM, f"R-{sent.id[:6]}")
            assert (sent.receipt, sent.attempts) == (f"R-{sent.id[:6]}", 1)
            ((key, body),) = receiver.got
            assert key == sent.id == body["messageId"]
            assert (body["kind"], body["taskCode"], body["sealCode"]) == ("made", "207", filed.code)
            assert (body["useUnitCode"], body["sealZone"], body["sealType"]) == (USCC, "330100", "01")
            made_at = datetime.fromisoformat(str(filed.made_at))
            assert body["createTime"] == datetime.fromtimestamp(
                made_at.timestamp() + 8 * 3_600, UTC
            ).strftime("%Y-%m-%d %H:%M:%S"), "Beijing's time"
            assert await one.office.deliver() == 0, "once"

    run(test())


def test_what_the_platform_calls_a_cancellation(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            seal = await one.active()
            await one.both(
                "guard", "guard-2", CriticalAct.CANCEL, seal, reason="key_compromised", words="leaked"
            )
            await one.office.deliver()
            (body,) = [body for _, body in receiver.got if body["kind"] == "cancelled"]
            assert (body["taskCode"], body["invalidType"], body["cancelDescribe"]) == ("209", 0, "leaked")
            assert body["sealName"] == seal.name and body["signature"]

    run(test())


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lambda _: web.Response(status=503, text="later"), "503: later"),
        (lambda _: web.Response(text="no JSON"), "receipt"),
        (lambda _: web.json_response({"receipt": ""}), "receipt"),
        (lambda _: web.json_response({"receipt": "x" * (MAX_RECEIPT_LEN + 1)}), "receipt"),
        (lambda _: web.json_response(["receipt"]), "receipt"),
        (lambda _: web.Response(body=b"x" * (MAX_ANSWER_LEN + 1)), "longer"),
        (lambda _: web.Response(status=302, headers={"Location": "/filing"}), "302"),
    ],
)
def test_anything_else_than_a_receipt_is_tried_again(rig: MakeRig, answer: Answer, word: str) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            receiver.answer = answer
            seal = await one.made()
            assert await one.office.deliver() == 1
            kept = await message(one, seal)
            assert word in str(kept.last_error) and kept.attempts == 1
            assert (await one.seal(seal)).state is State.MADE
            assert await one.office.deliver() == 0, "not at once"
            receiver.answer = receipt
            one.today.pass_(seconds=10)
            assert await one.office.deliver() == 1
            assert (await one.seal(seal)).state is State.FILED
            assert receiver.got[0] == receiver.got[1], "the same message under the same key"

    run(test())


def test_a_receipt_at_the_limit_is_taken(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            receiver.answer = lambda _: web.json_response({"receipt": "x" * MAX_RECEIPT_LEN})
            seal = await one.made()
            await one.office.deliver()
            assert (await message(one, seal)).receipt == "x" * MAX_RECEIPT_LEN

    run(test())


def test_the_delay_doubles_up_to_its_limit(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            receiver.answer = lambda _: web.Response(status=500)
            seal = await one.made()
            delays = []
            for _ in range(5):
                assert await one.office.deliver() == 1
                delays.append(await delay_s(one, seal))
                one.today.pass_(seconds=delays[-1])
            assert delays == [10, 20, 40, 60, 60]

    run(test())


def test_a_no_needs_a_person_and_is_tried_again_slowly(
    rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            receiver.answer = lambda _: web.Response(status=422, text="no such region")
            seal = await one.made()
            await one.office.deliver()
            assert "needs a person" in str((await message(one, seal)).last_error)
            assert await delay_s(one, seal) == 600
            assert any(
                record.levelname == "ERROR" and "no such region" in record.message
                for record in caplog.records
            )
            receiver.answer = receipt
            one.today.pass_(seconds=600)
            await one.office.deliver()
            assert (await one.seal(seal)).state is State.FILED

    run(test())


def test_a_receiver_that_is_away_and_what_is_overdue(rig: MakeRig) -> None:
    async def test() -> None:
        filing = FilingSettings(url=f"http://127.0.0.1:{free_port()}/filing", first_retry_s=1, poll_s=0.02)
        async with rig(filing=filing) as one:
            seal = await one.made()
            due = datetime.fromisoformat((await message(one, seal)).due_at)
            assert (due - one.today()).total_seconds() == 24 * 3_600
            assert await one.office.deliver() == 1
            assert "ClientConnector" in str((await message(one, seal)).last_error)
            for hours, overdue in ((24, 0), (1, 1)):
                one.today.pass_(hours=hours)
                running = asyncio.create_task(one.office.run())
                async with asyncio.timeout(20):
                    while not one.overdue:
                        await asyncio.sleep(0.01)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                assert one.overdue[-1] == overdue
                one.overdue.clear()

    run(test())


def test_filed_by_hand_it_is_not_sent_again(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            seal = await one.filed()
            assert (await message(one, seal)).receipt == "by hand 1"
            assert await one.office.deliver() == 0

    run(test())


def test_an_answer_that_was_not_noted_is_asked_for_again(rig: MakeRig) -> None:
    """A crash between the receipt and our record of it: the same key again, and the seal is filed once."""

    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            seal = await one.made()
            real = one.registry.messages.delivered
            one.registry.messages.delivered = lambda *_: (_ for _ in ()).throw(ZeroDivisionError)
            with pytest.raises(ExceptionGroup):
                await one.office.deliver()
            one.registry.messages.delivered = real
            assert (await one.seal(seal)).state is State.FILED
            again = one.again()
            assert await again.deliver() == 1
            await again.close()
            assert receiver.got[0] == receiver.got[1]
            assert (await one.acts(seal)).count("file") == 1

    run(test())


def test_two_hundred_messages_in_batches(rig: MakeRig) -> None:
    async def test() -> None:
        async with receiving() as receiver, rig(filing=plain(receiver)) as one:
            seal = await one.made()
            first = await message(one, seal)
            from dataclasses import replace

            for i in range(40):
                extra = replace(first, id=f"m{i:03}", kind=MessageKind.PASSWORD_RESET)
                current = await one.seal(seal)
                await asyncio.to_thread(_add_message, one, current, extra)
            sent = 0
            while count := await one.office.deliver():
                sent += count
            assert sent == 41 and len({key for key, _ in receiver.got}) == 41

    run(test())


def _add_message(one: Rig, seal: Seal, extra: Message) -> None:
    from appliance.registry.record import add_messages

    one.registry.messages._database.run(lambda transaction: add_messages(transaction, (extra,)))


# HTTPS ----------------------------------------------------------------------------------------------------------


def test_over_https_with_a_certificate_of_ours(rig: MakeRig, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.issue("office")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.root / "server.pem", authority.root / "server.key")
    context.load_verify_locations(authority.root / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    async def test() -> None:
        async with receiving(context) as receiver:
            filing = FilingSettings(
                url=f"https://127.0.0.1:{receiver.port}/filing",
                ca_file=authority.root / "ca.pem",
                certificate_file=authority.root / "office.pem",
                key_file=authority.root / "office.key",
            )
            async with rig(filing=filing) as one:
                seal = await one.made()
                await one.office.deliver()
                assert receiver.clients == ["office"]
                assert (await one.seal(seal)).state is State.FILED

    run(test())


def test_nothing_is_told_to_a_stranger(rig: MakeRig, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.root / "server.pem", other.root / "server.key")

    async def test() -> None:
        async with receiving(context) as receiver:
            url = f"https://127.0.0.1:{receiver.port}/filing"
            async with rig(filing=FilingSettings(url=url, ca_file=authority.root / "ca.pem")) as one:
                seal = await one.made()
                await one.office.deliver()
                assert not receiver.got
                assert "Certificate" in str((await message(one, seal)).last_error)

    run(test())


def test_a_file_that_is_no_certificate_is_told_at_the_start(tmp_path: Path) -> None:
    for settings in (
        FilingSettings(ca_file=tmp_path / "nowhere"),
        FilingSettings(certificate_file=tmp_path / "nowhere", key_file=tmp_path / "nowhere"),
    ):
        with pytest.raises(ConfigError, match="filing"):
            tls_of(settings)
