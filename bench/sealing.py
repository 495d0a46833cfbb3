"""What a seal signature costs beyond the signature itself: SEAL beside SIGN on the same daemon, token and key.

Two daemons (SM2 on firmware-sim with its batch interface, ECDSA P-256 on SoftHSM2), a seal whose picture has 40 kB, one
account that has unlocked it. SIGN and SEAL take turns in requests of the same shape; what a SEAL costs beyond its
signature is the difference of processor time of the front an item, which hardly depends on what else the machine does;
nobody looks out for what comes next (``signers.spin_us: 0``), for that is processor time too, but no work.
The template is measured by itself as well, and the client that puts complete values together. The seal is made as the
tests make theirs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import end_to_end
import report
import tokens
import uvloop
from end_to_end import ACCOUNT, KEY, Appliance
from report import Measurement

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import made_seals

from appliance import wire
from appliance.client import Client
from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase
from appliance.seal_lookups import SealLookups
from appliance.settings import PasswordSettings

PICTURE_LEN = 40_000
INFO = "/Doc_0/Signs/Sign_0/Signature.xml"
SEAL = "seal-1"
SHAPES = ((1, 8), (16, 8), (256, 8), (1_024, 8))
"""Items of a request, and requests under way."""
TIME = b"20261122043000Z"


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    document: dict[str, Any] = {"machine": report.machine(), "picture_len": PICTURE_LEN, "tokens": {}}
    for name, make in (("SM2 on firmware-sim", tokens.firmware_sim), ("P-256 on SoftHSM2", tokens.softhsm)):
        with make() as token, _daemon(token) as (daemon, registry):
            print(f"sealing: {name}", flush=True)
            document["tokens"][name] = {
                "template": _template(registry),
                "shapes": [_shape(daemon, items, in_flight, rounds, seconds) for items, in_flight in SHAPES],
                "verify": _median([_run(daemon, _verifying(256), 256, 4, seconds) for _ in range(rounds)]),
            }
    return document


@contextmanager
def _daemon(token: tokens.Token) -> Iterator[tuple[Appliance, Registry]]:
    """One with a seal that its account has unlocked."""
    passwords = {"argon2_memory_kib": 1_024, "argon2_passes": 1, "max_unlock_s": 86_400}
    settings = {"seals": {"password": passwords}, "signers": {"spin_us": 0}}
    with end_to_end.running(token, settings=settings) as daemon:
        registry = Registry(SqliteDatabase(daemon.folder / "data" / "registry.sqlite"))
        made_seals.make(registry, registry.key(KEY), SEAL, picture_len=PICTURE_LEN)
        made_seals.grant(registry, ACCOUNT, SEAL)

        async def unlock() -> None:
            async with end_to_end.clients(daemon, 1) as (client,):
                await client.unlock(SEAL, made_seals.PASSWORD, 28_800)

        uvloop.run(unlock())
        try:
            yield daemon, registry
        finally:
            registry.close()


# The template by itself -------------------------------------------------------------------------------------


def _template(registry: Registry) -> dict[str, float]:
    """µs an item: what is signed, and complete values; and the seal hashed once."""
    loaded = SealLookups(registry, PasswordSettings()).seal(SEAL)
    assert loaded.template is not None and loaded.key is not None
    count = 256
    info = INFO.encode()
    arguments = (TIME, os.urandom(32 * count), len(info).to_bytes(2, "big") * count, info * count)
    outcome = bytes(count), os.urandom(64 * count)
    digests = _best(lambda: loaded.template.digests(*arguments))
    values = _best(lambda: loaded.template.values(*arguments, *outcome))
    first = []
    for length in range(100, 130):  # lengths not met before
        fresh = (TIME, bytes(32), length.to_bytes(2, "big"), bytes(length))
        began_at = time.perf_counter()
        loaded.template.digests(*fresh)
        first.append(time.perf_counter() - began_at)
    return {
        "digests_us": round(digests / count * 1e6, 3),
        "values_us": round(values / count * 1e6, 3),
        "first_us": round(statistics.median(first) * 1e6, 1),
        "template_len": loaded.template.size,
    }


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(200):
        began_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_at)
    return min(times)


# SIGN and SEAL ----------------------------------------------------------------------------------------------


Ask = Callable[[Client], Coroutine[Any, Any, None]]


def _signing(items: int) -> Ask:
    block = wire.digests(os.urandom(32 * items))

    async def ask(client: Client) -> None:
        if (await client.sign_batch(KEY, block)).failed:
            raise RuntimeError("a signature failed")

    return ask


def _sealing_of(items: int, *, whole: bool) -> Ask:
    """``whole``: the client puts every value together, too."""
    block = os.urandom(32 * items)
    infos = [INFO] * items

    async def ask(client: Client) -> None:
        answer = await client.seal(SEAL, block, infos)
        if answer.failed:
            raise RuntimeError("a seal signature failed")
        if whole:
            for _ in answer.values():
                pass

    return ask


def _verifying(items: int) -> Ask:
    making: list[asyncio.Task[list[tuple[bytes, bytes]]]] = []

    async def make(client: Client) -> list[tuple[bytes, bytes]]:
        hashes = [os.urandom(32) for _ in range(items)]
        answer = await client.seal(SEAL, hashes, [INFO] * items)
        return [(value, one) for (_, value), one in zip(answer.values(), hashes, strict=True)]

    async def ask(client: Client) -> None:
        if not making:  # once, for all callers
            making.append(asyncio.create_task(make(client)))
        await client.verify_seals(await making[0], deadline_s=60)

    return ask


def _run(daemon: Appliance, ask: Ask, items: int, in_flight: int, seconds: float) -> Measurement:
    async def run() -> Measurement:
        async with end_to_end.clients(daemon, 1) as callers:
            return await end_to_end.drive(daemon, callers * in_flight, ask, items, seconds)

    return uvloop.run(run())


def _shape(daemon: Appliance, items: int, in_flight: int, rounds: int, seconds: float) -> dict[str, Any]:
    ways: dict[str, Ask] = {
        "sign": _signing(items),
        "seal": _sealing_of(items, whole=False),
        "whole": _sealing_of(items, whole=True),
    }
    found: dict[str, list[Measurement]] = {name: [] for name in ways}
    for _ in range(rounds):  # they take turns: whatever else the machine does hits all alike
        for name, ask in ways.items():
            found[name].append(_run(daemon, ask, items, in_flight, seconds))
    return {"items": items, "in_flight": in_flight, **{name: _median(runs) for name, runs in found.items()}}


def _median(runs: list[Measurement]) -> Measurement:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


# Report -----------------------------------------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    rows = []
    for name, found in document["tokens"].items():
        for shape in found["shapes"]:
            sign, seal, whole = shape["sign"], shape["seal"], shape["whole"]
            rows.append(
                (
                    f"{name}, requests of {shape['items']:,}",
                    f"{sign['rate']:,.0f}",
                    f"{seal['rate']:,.0f}",
                    f"{sign['front_us']:.2f}",
                    f"{seal['front_us']:.2f}",
                    f"{seal['front_us'] - sign['front_us']:.2f}",
                    f"{whole['client_us']:.2f}",
                )
            )
    head = (
        "",
        "SIGN /s",
        "SEAL /s",
        "SIGN: front µs",
        "SEAL: front µs",
        "beyond, µs",
        "client, whole values, µs",
    )
    lines = [
        (
            f"On {report.machine_line(document['machine'])}. µs of processor time an item; the picture has "
            f"{document['picture_len']:,} bytes."
        ),
        "",
        report.table(head, rows),
        "",
        report.table(
            ("the template by itself", *document["tokens"]),
            [
                (what, *(f"{found['template'][key]:,.3f}" for found in document["tokens"].values()))
                for what, key in (
                    ("what is signed, µs an item (batches of 256)", "digests_us"),
                    ("complete DER around the signature, µs an item", "values_us"),
                    ("a length of property info met for the first time, µs", "first_us"),
                )
            ],
        ),
        "",
        "VERIFY_SEAL, 256 values of the seal a request, every check: "
        + ", ".join(
            f"{found['verify']['rate']:,.0f}/s ({name}; front {found['verify']['front_us']:.0f} µs)"
            for name, found in document["tokens"].items()
        )
        + ".",
    ]
    return "\n".join(lines)
