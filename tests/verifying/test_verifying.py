from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from appliance.algorithms import Algorithm, PublicKey, signature_from_der
from appliance.errors import BadRequest, ConfigError
from appliance.verifying import ENGINES, INVALID, MAX_ITEMS, VALID, Verifier

Vectors = list[tuple[int, int, int]]
BatchOf = Callable[[Vectors], tuple[bytes, bytes]]

# GB/T 32918.5-2017, annex A: the private key, then (e, r, s) of its example.
EXAMPLE_D = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
EXAMPLE = (
    0xF0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640,
    0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3,
    0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA,
)


@pytest.fixture(params=["openssl", "scalar", "lanes"])
def verifier(request: pytest.FixtureRequest) -> Verifier:
    if request.param not in ENGINES:
        pytest.skip(f"this processor cannot run the engine {request.param!r}")
    return Verifier(engine=request.param)


def test_the_standard_example(verifier: Verifier, sm2: Any, batch_of: BatchOf) -> None:
    key = sm2.public(EXAMPLE_D)
    for repeat in (1, 3, 8, 9, 100):  # never seen, then with whatever the engine keeps for the key
        assert verifier.verify(key, *batch_of([EXAMPLE] * repeat)) == bytes([VALID] * repeat)


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ConfigError, match="abacus"):
        Verifier(engine="abacus")
    with pytest.raises(ConfigError):
        Verifier(max_table_bytes=-1)
    assert Verifier().engine == ENGINES[0]


def test_p256(verifier: Verifier) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    key = PublicKey(
        Algorithm.ECDSA_P256_SHA256, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    )
    digests = random.Random(1).randbytes(32 * 20)
    signatures = bytearray()
    for i in range(0, len(digests), 32):
        der = private.sign(digests[i : i + 32], ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        signatures += signature_from_der(der)
    assert verifier.verify(key, digests, signatures) == bytes([VALID] * 20)
    for i in range(20):
        signatures[64 * i + i] ^= 1
    assert verifier.verify(key, digests, signatures) == bytes([INVALID] * 20)
    assert verifier.verify(key, digests, bytes(len(signatures))) == bytes([INVALID] * 20)
    assert verifier.verify(key, digests, b"\xff" * len(signatures)) == bytes([INVALID] * 20)


def test_blocks_that_do_not_fit_are_refused(verifier: Verifier, sm2: Any) -> None:
    key = sm2.public(1)
    index = array("I", [0, 0])
    for digests, signatures in (
        (31, 64),
        (32, 63),
        (64, 64),
        (0, 64),
        (32 * (MAX_ITEMS + 1), 64 * (MAX_ITEMS + 1)),
    ):
        with pytest.raises(BadRequest):
            verifier.verify(key, bytes(digests), bytes(signatures))
    for keys, wrong in (([key], array("I", [0])), ([key], array("I", [0, 1])), ([], index)):
        with pytest.raises(BadRequest):
            verifier.verify_mixed(keys, memoryview(wrong), bytes(64), bytes(128))
    assert verifier.verify(key, b"", b"") == b""
    assert verifier.verify_mixed([], b"", b"", b"") == b""
