"""The SM2 equations in plain integers: the native code is compared with them, and vectors come from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest

from appliance.algorithms import Algorithm, PublicKey

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
Point = tuple[int, int] | None  # None is the point at infinity


def add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % P == 0:
            return None
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


@cache  # the tests ask for the same few points again for each engine
def multiply(k: int, point: Point = G) -> Point:
    result: Point = None
    for bit in f"{k % N:b}":
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def b32(value: int) -> bytes:
    return value.to_bytes(32, "big")


@dataclass(frozen=True)
class Sm2:
    """Signing and verifying by the book (GB/T 32918.2, clauses 6 and 7)."""

    p = P
    n = N
    g = G
    add = staticmethod(add)
    multiply = staticmethod(multiply)
    b32 = staticmethod(b32)

    @staticmethod
    def public(d: int) -> PublicKey:
        point = multiply(d)
        assert point is not None
        return PublicKey(Algorithm.SM2_SM3, b32(point[0]) + b32(point[1]))

    @staticmethod
    def sign(d: int, e: int, k: int, point: Point = None) -> tuple[int, int]:
        """``point`` is kG if known. The result may be unusable (r = 0 and so on): tests want that."""
        x, _ = point or multiply(k) or (0, 0)
        r = (e + x) % N
        return r, pow(1 + d, -1, N) * (k - r * d) % N

    @staticmethod
    def verify(key: PublicKey, e: int, r: int, s: int) -> bool:
        t = (r + s) % N
        if not (0 < r < N and 0 < s < N and t):
            return False
        public = int.from_bytes(key.point[:32], "big"), int.from_bytes(key.point[32:], "big")
        point = add(multiply(s), multiply(t, public))
        return point is not None and (e + point[0]) % N == r

    @staticmethod
    def vectors(seed: int, d: int) -> Iterator[tuple[int, int, int]]:
        """Endless (e, r, s), all valid. Consecutive nonces cost one point addition each: it is fast."""
        rng = random.Random(seed)
        k = rng.randrange(1, N - 1_000_000)
        point, inverse = multiply(k), pow(1 + d, -1, N)
        while True:
            assert point is not None
            e = rng.getrandbits(256)
            r = (e + point[0]) % N
            yield e, r, inverse * (k - r * d) % N
            k, point = k + 1, add(point, G)


@pytest.fixture(scope="session")
def sm2() -> Sm2:
    return Sm2()


Batch = tuple[bytes, bytes]


@pytest.fixture(scope="session")
def batch_of() -> Callable[[list[tuple[int, int, int]]], Batch]:
    """(e, r, s) triples as the two blocks that ``verify`` takes."""
    return lambda vectors: (
        b"".join(b32(e) for e, _, _ in vectors),
        b"".join(b32(r) + b32(s) for _, r, s in vectors),
    )
