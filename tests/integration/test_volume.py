"""Long runs: memory stays flat in a stream of millions, and with more keys than any cache holds.

Under the marker ``gauntlet``. ``CLOUD_SEAL_VOLUME_ITEMS`` says how long the stream is (3,000,000 by default; the bar is
50,000,000), ``CLOUD_SEAL_VOLUME_KEYS`` how many keys (100,000).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator

import pytest
from appliance_fixture import Appliance, Bench, rss_len, run
from simulated_token import Simulated

from appliance import wire
from appliance.algorithms import Algorithm, PublicKey

STREAM_ITEMS = int(os.environ.get("CLOUD_SEAL_VOLUME_ITEMS", "3000000"))
KEYS = int(os.environ.get("CLOUD_SEAL_VOLUME_KEYS", "100000"))
BATCH_ITEMS = 4_096
SLACK_LEN = 16 << 20
"""What an allocator may take and keep; a leak of 10 bytes an item is 30 MB in the shortest stream."""
TABLE_LEN = 16 << 20
KEY_OBJECTS_LEN = 16 << 20  # what `Verifier` may keep besides

pytestmark = [pytest.mark.gauntlet, pytest.mark.timeout(4 * 3_600)]


def total_rss_len(appliance: Appliance) -> int:
    """Of the front and its workers."""
    return sum(map(rss_len, [appliance.pid, *appliance.worker_pids()]))


def batches(items: int) -> Iterator[wire.Items]:
    """Digests that differ from batch to batch, without a copy of them being kept."""
    for number in range(items // BATCH_ITEMS):
        first = hashlib.sha256(number.to_bytes(8, "big")).digest()
        yield wire.digests(first * BATCH_ITEMS)


def test_memory_is_flat_in_a_long_stream(bench: Bench, simulated: Simulated) -> None:
    appliance = bench.appliance(simulated.make()).start()
    appliance.ordered("POST", "/v1/keys", {"name": "seal", "algorithm": "sm2-sm3"})
    appliance.account("app", "seal")
    total = STREAM_ITEMS // BATCH_ITEMS * BATCH_ITEMS
    sizes: list[int] = []

    async def stream() -> None:
        done = 0
        async with await appliance.client() as client:
            async for answer in client.sign_batches("seal", batches(total), deadline_s=300):
                assert not answer.failed
                assert answer.first_index == done  # in order, none twice, none left out
                done += answer.count
                if done * 20 // total > len(sizes):
                    sizes.append(total_rss_len(appliance))
        assert done == total

    run(stream())
    warm, rest = sizes[1], sizes[2:]  # after a tenth all buffers have their size
    assert max(rest) - warm < SLACK_LEN, f"{total:,} items: {[size >> 20 for size in sizes]} MiB"
    print(f"{total:,} items, MiB at each twentieth: {[size >> 20 for size in sizes]}")


# SM2 by hand (GB/T 32918): private keys 1, 2, 3, … under one nonce make a hundred thousand valid signatures in seconds.
P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)


def doubled(point: tuple[int, int]) -> tuple[int, int]:
    """2 Q; a is -3."""
    x, y = point
    slope = 3 * (x * x - 1) * pow(2 * y, -1, P) % P
    x2 = (slope * slope - 2 * x) % P
    return x2, (slope * (x - x2) - y) % P


def plus_generator(point: tuple[int, int]) -> tuple[int, int]:
    """Q + G, for Q other than G, -G and infinity."""
    slope = (point[1] - G[1]) * pow(point[0] - G[0], -1, P) % P
    x = (slope * slope - point[0] - G[0]) % P
    return x, (slope * (G[0] - x) - G[1]) % P


def keys_and_signatures(count: int, digest: bytes) -> Iterator[tuple[PublicKey, bytes]]:
    """Public keys d G for d = 2, 3, …, each with a signature over the digest (nonce 2)."""
    point = nonce_point = doubled(G)
    r = (int.from_bytes(digest, "big") + nonce_point[0]) % N
    for d in range(2, count + 2):
        s = (2 - r * d) * pow(1 + d, -1, N) % N
        encoded = b"".join(part.to_bytes(32, "big") for part in point)
        yield PublicKey(Algorithm.SM2_SM3, encoded), r.to_bytes(32, "big") + s.to_bytes(32, "big")
        point = plus_generator(point)


def test_more_keys_than_the_tables_hold(bench: Bench, simulated: Simulated) -> None:
    uses = 24  # of each key, in one request: so often that a table for it is worth while
    appliance = bench.appliance(simulated.make(), verify={"max_table_len": TABLE_LEN}).start()
    appliance.account("app")
    digest = hashlib.sha256(b"volume").digest()
    sizes: list[int] = []

    async def verify_all() -> None:
        work = enumerate(keys_and_signatures(KEYS, digest))
        items = wire.digests(digest * uses)
        async with await appliance.client() as client:

            async def caller() -> None:
                for number, (key, signature) in work:
                    assert await client.verify(key, items, signature * uses) == b"\1" * uses
                    if number % (KEYS // 20) == 0:
                        sizes.append(rss_len(appliance.pid))

            await asyncio.gather(*(caller() for _ in range(32)))

    first = rss_len(appliance.pid)
    run(verify_all())
    assert max(sizes) - first < TABLE_LEN + KEY_OBJECTS_LEN + SLACK_LEN, [size >> 20 for size in sizes]
    assert max(sizes[10:]) - max(sizes[5:10]) < SLACK_LEN // 2, "it still grows"
    print(f"{KEYS:,} keys, {first >> 20} MiB before, at each twentieth: {[size >> 20 for size in sizes]}")
