"""Every engine against the book, libcrypto and gmssl, with a table for the key and without."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from gmssl import sm2 as referee

from appliance import _verify
from appliance.algorithms import Algorithm, PublicKey, signature_from_der
from appliance.errors import BadRequest, ConfigError
from appliance.verifying import ENGINES, INVALID, MAX_ITEMS, VALID, Verifier

Vector = tuple[int, int, int]  # e, r, s
BatchOf = Callable[[list[Vector]], tuple[bytes, bytes]]

# GB/T 32918.5-2017, annex A: the private key, then (e, r, s) of its example.
EXAMPLE_D = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
EXAMPLE = (
    0xF0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640,
    0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3,
    0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA,
)
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
KEYS = [1, 2, 3, 127, N - 2, N - 3, EXAMPLE_D]


@pytest.fixture(params=["openssl", "scalar", "lanes"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param not in ENGINES:
        pytest.skip(f"this processor cannot run the engine {request.param!r}")
    return str(request.param)


@pytest.fixture
def verifier(engine: str) -> Verifier:
    return Verifier(engine=engine)


@pytest.fixture
def check(engine: str, batch_of: BatchOf) -> Callable[[PublicKey, list[Vector], list[bool]], None]:
    """Assert the status of each vector: of a key that never gets a table, and of one that has one."""
    without, with_table = Verifier(engine=engine, max_table_bytes=0), Verifier(engine=engine)

    def check(key: PublicKey, vectors: list[Vector], expected: list[bool]) -> None:
        digests, signatures = batch_of([EXAMPLE] * 100)
        with_table.verify(key, digests, signatures)  # enough uses for a table
        for v in (without, with_table):
            status = v.verify(key, *batch_of(vectors))
            wrong = [(i, vectors[i]) for i, (s, e) in enumerate(zip(status, expected, strict=True)) if s != e]
            assert not wrong, (v.statistics().tables, wrong[:3])

    return check


def valid_for(sm2: Any, d: int, r: int, s: int) -> Vector | None:
    """The digest that makes (r, s) valid under d, for k = s + (r + s) d; None if the nonce is zero."""
    point = sm2.multiply(s + (r + s) * d)
    return point and ((r - point[0]) % N, r, s)


def test_the_standard_example(check: Any, sm2: Any) -> None:
    for repeat in (1, 7, 8, 9, 16, 17, 33):
        check(sm2.public(EXAMPLE_D), [EXAMPLE] * repeat, [True] * repeat)


@pytest.mark.parametrize("d", KEYS)
def test_r_and_s_at_their_limits(check: Any, sm2: Any, d: int) -> None:
    """Any (r, s) in range but r + s = n is valid for some digest: small ones, and those next to n."""
    edges, vectors, expected = [1, 2, 3, 64, 127, 128, N - 128, N - 3, N - 2, N - 1], [], []
    for r, s in product(edges, edges):
        vector = valid_for(sm2, d, r, s)
        vectors.append(vector or (r, r, s))
        expected.append(vector is not None and (r + s) % N != 0)
    for r, s in product([0, N, N + 1, 2**256 - 1, 5], repeat=2):
        vectors.append(((valid_for(sm2, d, r % N, s % N) or (0,))[0], r, s))
        expected.append(r == s == 5)
    check(sm2.public(d), vectors, expected)


@pytest.mark.parametrize("d", KEYS)
def test_digests_at_their_limits(check: Any, sm2: Any, d: int) -> None:
    vectors = [(e, *sm2.sign(d, e, 12345)) for e in (0, 1, N - 1, N, N + 1, P - 1, P, 2**256 - 1)]
    check(sm2.public(d), vectors, [True] * len(vectors))
    # A digest and that plus n are the same number to the equations.
    check(sm2.public(d), [(1, *sm2.sign(d, N + 1, 777)), (N + 1, *sm2.sign(d, 1, 777))], [True, True])


@pytest.mark.parametrize("d", [2, 3, N - 3, EXAMPLE_D])
def test_sums_that_are_infinite_or_doublings(check: Any, sm2: Any, d: int) -> None:
    vectors, expected = [], []
    for r in (1, 5, N - 1, 0x123456789, EXAMPLE[1]):
        s = -r * d * pow(1 + d, -1, N) % N  # sG + tP at infinity: the nonce was zero
        vectors += [(r, r, s), ((r - P) % N, r, s), ((r - 1) % N, r, s)]
        expected += [False] * 3
        s = r * d * pow(1 - d, -1, N) % N  # sG = tP
        vectors.append(valid_for(sm2, d, r, s) or (0, 0, 0))
        expected.append(True)
    check(sm2.public(d), vectors, expected)


@pytest.mark.parametrize("d", [1, 2, 128, N - 2])
def test_collisions_within_the_combs(check: Any, sm2: Any, d: int) -> None:
    """Scalars of few bits, keys that are small multiples of G: equal and opposite partial sums meet."""
    scalars = [
        1,
        2,
        3,
        128,
        129,
        2**7 + 2**14,
        2**70,
        2**249,
        2**252,
        2**255,
        N - 2**14,
        N - 2**252,
        (N + 1) // 2,
    ]
    vectors, expected = [], []
    for s, t in product(scalars, scalars):
        vector = valid_for(sm2, d, (t - s) % N, s) if s != t else None
        vectors.append(vector or (1, (t - s) % N, s))
        expected.append(vector is not None)
    check(sm2.public(d), vectors, expected)


def test_x_between_the_order_and_the_prime(check: Any, sm2: Any) -> None:
    """An x coordinate of n or more is reduced: r - e is not x itself. (No signer meets one by chance.)"""
    found = 0
    for x in range(N, N + 20):
        y = pow(
            x**3 - 3 * x + 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93, (P + 1) // 4, P
        )
        try:
            PublicKey(Algorithm.SM2_SM3, sm2.b32(x) + sm2.b32(y))
        except BadRequest:
            continue
        found += 1
        e, s, t = 4711, 815, 0xABCDEF
        r = (e + x) % N
        minus_sg = sm2.multiply(N - (t - r) % N)
        s = (t - r) % N
        point = sm2.multiply(pow(t, -1, N), sm2.add((x, y), minus_sg))
        key = PublicKey(Algorithm.SM2_SM3, sm2.b32(point[0]) + sm2.b32(point[1]))
        assert sm2.verify(key, e, r, s)
        check(key, [(e, r, s), (e + 1, r, s), (e, r, s + 1)], [True, False, False])
    assert found > 3


@pytest.mark.parametrize(
    "point",
    [bytes(64), b"\xff" * 64, P.to_bytes(32, "big") * 2, (1).to_bytes(32, "big") * 2],
    ids=["zero", "out of range", "p", "off the curve"],
)
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_points_that_are_none(engine: str, batch_of: BatchOf, point: bytes, algorithm: Algorithm) -> None:
    with pytest.raises(BadRequest):
        PublicKey(algorithm, point)
    native = _verify.Engine(engine, 2**20)  # whoever gets past PublicKey is refused below it
    status = native.verify(bytes((algorithm.value,)), point, None, *batch_of([EXAMPLE] * 50))
    assert status == bytes([INVALID] * 50)


def random_batch(sm2: Any, seed: int, count: int) -> tuple[list[PublicKey], array[int], list[Vector]]:
    """Valid signatures under several keys, some used once, some often."""
    rng = random.Random(seed)
    secrets = [rng.randrange(1, N - 1) for _ in range(12)]
    streams = [sm2.vectors(seed + i, d) for i, d in enumerate(secrets)]
    index = array("I", [min(int(rng.expovariate(0.5)), 11) for _ in range(count)])
    return [sm2.public(d) for d in secrets], index, [next(streams[i]) for i in index]


def mutated(vectors: list[Vector], seed: int) -> list[Vector]:
    """One bit of e, r or s flipped in each."""
    rng = random.Random(seed)
    result = []
    for vector in vectors:
        changed = list(vector)
        changed[rng.randrange(3)] ^= 1 << rng.randrange(256)
        result.append((changed[0], changed[1], changed[2]))
    return result


@pytest.fixture(
    scope="session",
    params=[pytest.param(1_500, id="sample"), pytest.param(100_000, id="all", marks=pytest.mark.gauntlet)],
)
def judged(request: pytest.FixtureRequest, sm2: Any, batch_of: BatchOf) -> Any:
    """Valid and mutated vectors in mixed order, with what libcrypto says of them."""
    keys, index, vectors = random_batch(sm2, 20, request.param)
    vectors += mutated(vectors, 21)
    order = random.Random(22).sample(range(len(vectors)), len(vectors))
    batches = []
    for start in range(0, len(order), 5000):
        part = order[start : start + 5000]
        part_index = array("I", [index[i % len(index)] for i in part])
        digests, signatures = batch_of([vectors[i] for i in part])
        status = Verifier(engine="openssl").verify_mixed(keys, memoryview(part_index), digests, signatures)
        assert [bool(s) for s in status] == [i < len(index) for i in part]  # no flip makes another valid one
        batches.append((memoryview(part_index), digests, signatures, status))
    return keys, batches


@pytest.mark.parametrize("engine", ["lanes", "scalar"], indirect=True)  # libcrypto is the judge
@pytest.mark.parametrize("max_table_bytes", [0, 500_000, 64 * 2**20], ids=["none", "three", "all"])
def test_random_and_mutated_signatures_as_libcrypto(engine: str, judged: Any, max_table_bytes: int) -> None:
    keys, batches = judged
    verifier = Verifier(engine=engine, max_table_bytes=max_table_bytes)
    for index, digests, signatures, status in batches:
        assert verifier.verify_mixed(keys, index, digests, signatures) == status
    assert verifier.statistics().tables.byte_count <= max_table_bytes


def test_a_sample_as_gmssl(verifier: Verifier, sm2: Any, batch_of: BatchOf) -> None:
    keys, index, vectors = random_batch(sm2, 5, 6)
    vectors += mutated(vectors, 6)
    index.extend(index)
    digests, signatures = batch_of(vectors)
    status = verifier.verify_mixed(keys, memoryview(index), digests, signatures)
    for i, (e, r, s) in enumerate(vectors):
        judge = referee.CryptSM2(private_key="", public_key=keys[index[i]].point.hex())
        assert judge.verify(f"{r:064x}{s:064x}", sm2.b32(e)) == bool(status[i])


@pytest.mark.parametrize("count", [1, 2, 8, 15, 16, 17, 40, 129])
def test_each_item_has_its_own_status(verifier: Verifier, sm2: Any, batch_of: BatchOf, count: int) -> None:
    rng = random.Random(count)
    vectors = list(islice(sm2.vectors(count, EXAMPLE_D), count))
    for _ in range(4):
        bad = {i for i in range(count) if rng.random() < 0.3}
        batch = [mutated([v], rng.random())[0] if i in bad else v for i, v in enumerate(vectors)]
        status = verifier.verify(sm2.public(EXAMPLE_D), *batch_of(batch))
        assert [i for i, s in enumerate(status) if s != VALID] == sorted(bad)


def p256_batch(count: int) -> tuple[PublicKey, bytes, bytes]:
    private = ec.derive_private_key(0x1234567, ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    digests, signatures = random.Random(1).randbytes(32 * count), b""
    for i in range(0, len(digests), 32):
        der = private.sign(digests[i : i + 32], ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        signatures += signature_from_der(der)
    return PublicKey(Algorithm.ECDSA_P256_SHA256, point), digests, signatures


def test_p256(verifier: Verifier) -> None:
    key, digests, signatures = p256_batch(20)
    assert verifier.verify(key, digests, signatures) == bytes([VALID] * 20)
    changed = bytearray(signatures)
    for i in range(20):
        changed[64 * i + i] ^= 1
    assert verifier.verify(key, digests, changed) == bytes([INVALID] * 20)
    order = Algorithm.ECDSA_P256_SHA256.order.to_bytes(32, "big")
    for r, s in product([bytes(32), order, b"\xff" * 32, signatures[:32]], [bytes(32), order, b"\xff" * 32]):
        assert verifier.verify(key, digests[:32], r + s) == bytes([INVALID])


def test_both_algorithms_in_one_batch(verifier: Verifier, sm2: Any, batch_of: BatchOf) -> None:
    p256, digests, signatures = p256_batch(10)
    sm2_digests, sm2_signatures = batch_of(list(islice(sm2.vectors(9, EXAMPLE_D), 10)))
    index, mixed_digests, mixed_signatures = array("I"), b"", b""
    for i in range(10):
        index.extend((0, 1))
        mixed_digests += digests[32 * i : 32 * i + 32] + sm2_digests[32 * i : 32 * i + 32]
        mixed_signatures += signatures[64 * i : 64 * i + 64] + sm2_signatures[64 * i : 64 * i + 64]
    keys = [p256, sm2.public(EXAMPLE_D)]
    assert verifier.verify_mixed(keys, memoryview(index), mixed_digests, mixed_signatures) == bytes(
        [VALID] * 20
    )
    swapped = verifier.verify_mixed(keys[::-1], memoryview(index), mixed_digests, mixed_signatures)
    assert swapped == bytes([INVALID] * 20)


def test_blocks_that_do_not_fit_are_refused(verifier: Verifier, sm2: Any) -> None:
    key = sm2.public(1)
    index = array("I", [0, 0])
    for digests, signatures in (
        (31, 64),
        (32, 63),
        (64, 64),
        (0, 64),
        (32 * MAX_ITEMS + 32, 64 * MAX_ITEMS + 64),
    ):
        with pytest.raises(BadRequest):
            verifier.verify(key, bytes(digests), bytes(signatures))
    for keys, wrong in (([key], array("I", [0])), ([key], array("I", [0, 1])), ([], index)):
        with pytest.raises(BadRequest):
            verifier.verify_mixed(keys, memoryview(wrong), bytes(64), bytes(128))
    assert verifier.verify(key, b"", b"") == b""
    assert verifier.verify_mixed([], b"", b"", b"") == b""


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match="abacus"):
        Verifier(engine="abacus")
    with pytest.raises(ConfigError):
        Verifier(max_table_bytes=-1)
    assert Verifier().engine == ENGINES[0]


@pytest.fixture(scope="module")
def many_keys(sm2: Any) -> list[tuple[PublicKey, Vector]]:
    """Keys d = k0 + i, whose points and signatures (with the same nonces) take one addition each."""
    d, k, pairs = 0x1000001, 0x2000002, []
    public, nonce = sm2.multiply(d), sm2.multiply(k)
    for _ in range(200):
        key = PublicKey(Algorithm.SM2_SM3, sm2.b32(public[0]) + sm2.b32(public[1]))
        pairs.append((key, (99, *sm2.sign(d, 99, k, nonce))))
        d, k, public, nonce = d + 1, k + 1, sm2.add(public, sm2.g), sm2.add(nonce, sm2.g)
    return pairs


@pytest.mark.skipif("scalar" not in ENGINES, reason="needs an engine with tables")
def test_the_cache_keeps_to_its_bound(many_keys: Any, batch_of: BatchOf) -> None:
    bound = 1_000_000
    verifier = Verifier(engine="scalar", max_table_bytes=bound)
    for _ in range(3):
        for key, vector in many_keys[:60]:
            assert verifier.verify(key, *batch_of([vector] * 12)) == bytes([VALID] * 12)
            assert verifier.statistics().tables.byte_count <= bound
    tables = verifier.statistics().tables
    assert tables.entries == bound // (tables.byte_count // tables.entries)
    # More keys than fit, all used alike, do not displace each other for ever.
    assert tables.builds < 30


def test_a_key_used_more_displaces_one_used_less(many_keys: Any, batch_of: BatchOf) -> None:
    verifier = Verifier(engine="scalar", max_table_bytes=160_000)
    (key, vector), (other, other_vector) = many_keys[:2]
    verifier.verify(key, *batch_of([vector] * 30))
    assert verifier.statistics().tables.builds == 1
    verifier.verify(other, *batch_of([other_vector] * 20))
    assert verifier.statistics().tables.evictions == 0
    for _ in range(3):
        assert verifier.verify(other, *batch_of([other_vector] * 100)) == bytes([VALID] * 100)
    assert verifier.statistics().tables.evictions == 1
    assert verifier.statistics().tables.hits >= 100


def test_threads_share_a_verifier(engine: str, many_keys: Any, batch_of: BatchOf) -> None:
    """Few tables for many keys: batches work with tables that others evict meanwhile."""
    verifier = Verifier(engine=engine, max_table_bytes=500_000)

    def work(seed: int) -> bool:
        rng = random.Random(seed)
        for _ in range(2 if engine == "openssl" else 12):
            chosen = rng.sample(many_keys, 6)
            index = array("I", [min(int(rng.expovariate(0.8)), 5) for _ in range(150)])
            batch = batch_of([chosen[i][1] for i in index])
            status = verifier.verify_mixed([key for key, _ in chosen], memoryview(index), *batch)
            if status != bytes([VALID] * 150):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert verifier.statistics().tables.byte_count <= 500_000
