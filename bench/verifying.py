"""Verification and hashing, all engines side by side in one run on one core.

    python bench/verifying.py [results.json]

The clock is the thread's own processor time, since all work is done in the calling thread. Engines take turns
in short slices, and the best slice of each counts: on a machine that others share, that is the figure that
travels. OpenSSL's key objects are cached like our tables: its figures hold no set-up, except for keys never
seen before, where setting up is the point.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from appliance.algorithms import Algorithm, PublicKey, signature_from_der
from appliance.verifying import ENGINES, VALID, Verifier, sm3, sm3_many

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
N = Algorithm.SM2_SM3.order
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
BATCH = 1024
SLICE_S = 0.25
ROUNDS = 4
MANY_KEYS = 100_000

Point = tuple[int, int]
Batch: TypeAlias = "tuple[list[PublicKey], array[int], bytes, bytes]"


def add(a: Point, b: Point) -> Point:
    if a == b:
        rise, run = 3 * a[0] * a[0] - 3, 2 * a[1]
    else:
        rise, run = b[1] - a[1], b[0] - a[0]
    slope = rise * pow(run, -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k: int) -> Point:
    result = G
    for bit in f"{k:b}"[1:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, G)
    return result


class Signers:
    """Keys d, d + 1, ... and signatures with one nonce: a key costs a point addition, a signature little."""

    def __init__(self, count: int) -> None:
        self._rng = random.Random(4)
        self._d = 0x123456789ABCDEF << 100
        self._k = 0xFEDCBA987654321 << 120
        self._x = multiply(self._k)[0]
        point, self.keys = multiply(self._d), []
        for _ in range(count):
            raw = point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")
            self.keys.append(PublicKey(Algorithm.SM2_SM3, raw))
            point = add(point, G)
        self._inverses: dict[int, int] = {}

    def batch(self, choose: Callable[[int], int], count: int = BATCH) -> Batch:
        """Valid signatures; item i is under key ``choose(i)``."""
        used: dict[int, int] = {}
        index, digests, signatures = array("I"), bytearray(), bytearray()
        for i in range(count):
            key = choose(i)
            d = self._d + key
            inverse = self._inverses.get(key) or self._inverses.setdefault(key, pow(1 + d, -1, N))
            e = self._rng.getrandbits(256)
            r = (e + self._x) % N
            index.append(used.setdefault(key, len(used)))
            digests += e.to_bytes(32, "big")
            signatures += r.to_bytes(32, "big") + (inverse * (self._k - r * d) % N).to_bytes(32, "big")
        return [self.keys[key] for key in used], index, bytes(digests), bytes(signatures)


def run(verifier: Verifier, batch: Batch) -> float:
    """Processor seconds for one batch."""
    keys, index, digests, signatures = batch
    start = time.thread_time()
    status = verifier.verify_mixed(keys, memoryview(index), digests, signatures)
    elapsed = time.thread_time() - start
    if status != bytes([VALID]) * len(index):
        raise SystemExit(f"{verifier.engine} finds a valid signature invalid")
    return elapsed


def rate(batches: list[Batch], verifier: Callable[[], Verifier]) -> float:
    """Items per second in one slice, over all the batches in turn."""
    items, busy_s, i = 0, 0.0, 0
    while busy_s < SLICE_S:
        busy_s += run(verifier(), batches[i % len(batches)])
        items += len(batches[i % len(batches)][1])
        i += 1
    return items / busy_s


def p256_batch() -> Batch:
    private = ec.derive_private_key(0x1234567, ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    raw = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    digests, signatures = random.Random(1).randbytes(32 * BATCH), b""
    for i in range(0, len(digests), 32):
        der = private.sign(digests[i : i + 32], ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        signatures += signature_from_der(der)
    return [PublicKey(Algorithm.ECDSA_P256_SHA256, raw)], array("I", [0] * BATCH), digests, signatures


def verification() -> dict[str, dict[str, float]]:
    signers = Signers(MANY_KEYS)
    rng = random.Random(9)
    # The same batches for keys that were never seen, each by a verifier of its own, so that nothing else differs.
    many = [signers.batch(lambda i: rng.randrange(MANY_KEYS)) for _ in range(60)]
    scenarios: dict[str, list[Batch]] = {
        "1 key": [signers.batch(lambda i: 0)],
        "64 keys": [signers.batch(lambda i: i % 64)],
        "256 keys": [signers.batch(lambda i: i % 256)],
        "never-seen keys": many,
        f"{MANY_KEYS:,} keys": many,
        "1 key, one by one": [signers.batch(lambda i: 0, 1)],
        "P-256, 1 key": [p256_batch()],
    }
    results: dict[str, dict[str, float]] = {name: {} for name in scenarios}
    for name, batches in scenarios.items():
        engines = {engine: Verifier(engine=engine) for engine in ENGINES}
        for engine, verifier in engines.items():
            if not name.startswith("never") and engine != "openssl":
                for batch in batches:  # let the cache settle
                    run(verifier, batch)
                    run(verifier, batch)
        for _ in range(ROUNDS):
            for engine, verifier in engines.items():
                if name.startswith("never"):
                    one = rate(batches, lambda engine=engine: Verifier(engine=engine))
                else:
                    one = rate(batches, lambda verifier=verifier: verifier)
                results[name][engine] = max(one, results[name].get(engine, 0))
        tables = {engine: v.statistics().tables.byte_count for engine, v in engines.items()}
        if max(tables.values()) > 64 * 2**20:
            raise SystemExit(f"a cache has outgrown its bound: {tables}")
    return results


def hashing() -> dict[str, float]:
    """Megabytes per second."""
    results: dict[str, float] = {}

    def best(name: str, byte_count: int, work: Callable[[], object]) -> None:
        shortest = min(timed(work) for _ in range(12))
        results[name] = byte_count / shortest / 1e6

    def timed(work: Callable[[], object]) -> float:
        start = time.thread_time()
        work()
        return time.thread_time() - start

    for size in (32, 256, 1024, 16384):
        count = min(16384, 2**23 // size)
        data, lengths = random.Random(size).randbytes(size * count), size.to_bytes(4, "big") * count
        best(f"many messages of {size} bytes", size * count, lambda a=lengths, b=data: sm3_many(a, b))
    data = random.Random(0).randbytes(2**23)
    best("one message", len(data), lambda: sm3(data))
    best("one message, OpenSSL", len(data), lambda: hashlib.new("sm3", data).digest())
    return results


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    words = [found.get("model name", platform.processor())]
    words += [f"family {found[k]}" for k in ("cpu family",) if k in found]
    words += [f"model {found[k]}" for k in ("model\t",) if k in found]
    return ", ".join(words)


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, whatever libcrypto may think of
    started = time.strftime("%Y-%m-%d")
    verified, hashed = verification(), hashing()
    print(f"{processor()}; one core; {started}\n")
    print(
        f"{'verifications a second':<24}"
        + "".join(f"{engine:>12}" for engine in ENGINES)
        + "   times OpenSSL"
    )
    for name, rates in verified.items():
        ratios = " ".join(f"{engine} {rates[engine] / rates['openssl']:.1f}" for engine in ENGINES[:-1])
        print(f"{name:<24}" + "".join(f"{rates[engine]:>12,.0f}" for engine in ENGINES) + f"   {ratios}")
    print("\nSM3, MB/s")
    for name, speed in hashed.items():
        print(f"{name:<32}{speed:>8,.0f}")
    if len(sys.argv) > 1:
        report = {"processor": processor(), "date": started, "batch": BATCH}
        report |= {"verifications_per_s": verified, "sm3_mb_per_s": hashed}
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
