"""Keys and an account for tests."""

from __future__ import annotations

from appliance.algorithms import Algorithm, PublicKey
from appliance.policy import Account
from appliance.registry import Registry

P256 = PublicKey(
    Algorithm.ECDSA_P256_SHA256,
    bytes.fromhex(  # the generator, SEC 2
        "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296"
        "4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5"
    ),
)
SM2 = PublicKey(
    Algorithm.SM2_SM3,
    bytes.fromhex(  # the generator, GB/T 32918.5
        "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
        "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
    ),
)
ACCOUNT = Account("a", "hash", 1_000, "ab" * 32, False, frozenset())


def make_key(
    registry: Registry, name: str = "k", public: PublicKey = P256, key_id: bytes | None = None
) -> None:
    registry.begin_key(name, key_id or name.encode(), "token", public.algorithm)
    registry.finish_key(name, public)
