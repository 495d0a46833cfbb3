from __future__ import annotations

import hashlib
import random

import pytest
from gmssl import sm3 as referee

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import BadRequest
from appliance.verifying import MAX_ITEMS, Verifier, sm2_z, sm3, sm3_many

# GB/T 32905-2016, annex A.
ABC = "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
ABCD_16_TIMES = "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"

P256_POINT = bytes.fromhex(  # the generator (SEC 2, 2.4.2)
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def blocks(messages: list[bytes]) -> tuple[bytes, bytes]:
    return b"".join(len(m).to_bytes(4, "big") for m in messages), b"".join(messages)


def split(digests: bytes) -> list[bytes]:
    return [digests[i : i + 32] for i in range(0, len(digests), 32)]


def referee_sm3(message: bytes) -> bytes:
    return bytes.fromhex(referee.sm3_hash(list(message)))


def test_standard_vectors() -> None:
    assert sm3(b"abc").hex() == ABC
    assert sm3(b"abcd" * 16).hex() == ABCD_16_TIMES


@pytest.mark.parametrize("length", [0, 1, 23, 24, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 1000])
def test_lengths_around_the_block_agree_with_gmssl(length: int) -> None:
    message = random.Random(length).randbytes(length)
    assert sm3(message) == referee_sm3(message) == hashlib.new("sm3", message).digest()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 100])
def test_many_of_all_lengths_agree_with_one_by_one(count: int) -> None:
    rng = random.Random(count)
    messages = [
        rng.randbytes(rng.choice([0, 1, 20, 31, 55, 56, 64, 100, 119, 120, 128, 300, 5000]))
        for _ in range(count)
    ]
    assert split(sm3_many(*blocks(messages))) == [sm3(m) for m in messages]


def test_many_of_one_length() -> None:
    for length in (0, 23, 24, 32, 55, 56, 64, 256):
        messages = [random.Random(i).randbytes(length) for i in range(40)]
        assert split(sm3_many(*blocks(messages))) == [sm3(m) for m in messages]


def test_one_long_among_many_short_ones() -> None:
    messages = [b"x" * (200_000 if i == 5 else i) for i in range(50)]
    assert split(sm3_many(*blocks(messages))) == [sm3(m) for m in messages]


def test_z_and_e_of_the_standard_example() -> None:
    """GB/T 32918.5-2017, annex A."""
    key = PublicKey(
        Algorithm.SM2_SM3,
        bytes.fromhex(
            "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
            "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
        ),
    )
    assert sm2_z(key).hex() == "b2e14c5c79c6df5b85f4fe7ed8db7a262b9da7e07ccb0ea9f4747b8ccda8a4f3"
    e = Verifier().digest(key, *blocks([b"message digest"]))
    assert e.hex() == "f0b43e94ba45accaace692ed534382eb17e6ab5a19ce7b31f4486fdfc0d28640"


@pytest.mark.parametrize("length", [0, 1, 16, 31, 32, 8191])
def test_user_ids_of_other_lengths(length: int) -> None:
    key = PublicKey(Algorithm.SM2_SM3, SM2_G)
    user_id = random.Random(length).randbytes(length)
    a_to_y = (Z_CONSTANTS_A, Z_CONSTANTS_B, SM2_G)
    z = referee_sm3((8 * length).to_bytes(2, "big") + user_id + b"".join(a_to_y) + key.point)
    assert sm2_z(key, user_id) == z
    assert Verifier().digest(key, *blocks([b"m"]), user_id) == sm3(z + b"m")


def test_a_user_id_whose_length_does_not_fit_is_refused() -> None:
    with pytest.raises(BadRequest, match="8191"):
        Verifier().digest(PublicKey(Algorithm.SM2_SM3, SM2_G), b"", b"", b"x" * 8192)


def test_p256_messages_are_hashed_with_sha256() -> None:
    messages = [b"", b"abc", b"x" * 1000]
    digests = Verifier().digest(PublicKey(Algorithm.ECDSA_P256_SHA256, P256_POINT), *blocks(messages))
    assert split(digests) == [hashlib.sha256(m).digest() for m in messages]


@pytest.mark.parametrize(
    ("lengths", "data"),
    [
        (b"\0\0\0", b""),
        (b"\0\0\0\1", b""),
        (b"\0\0\0\1", b"xy"),
        (b"", b"x"),
        (b"\xff\xff\xff\xff", b"x"),
        (b"\0\0\0\0" * (MAX_ITEMS + 1), b""),
    ],
    ids=["cut", "short", "long", "none", "huge", "too many"],
)
def test_lengths_that_do_not_fit_the_data_are_refused(lengths: bytes, data: bytes) -> None:
    with pytest.raises(BadRequest):
        sm3_many(lengths, data)
    for algorithm, point in ((Algorithm.SM2_SM3, SM2_G), (Algorithm.ECDSA_P256_SHA256, P256_POINT)):
        with pytest.raises(BadRequest):
            Verifier().digest(PublicKey(algorithm, point), lengths, data)


def test_z_of_a_p256_key_is_refused() -> None:
    with pytest.raises(BadRequest):
        sm2_z(PublicKey(Algorithm.ECDSA_P256_SHA256, P256_POINT))


# The SM2 curve (GB/T 32918.5): a, b and the generator.
Z_CONSTANTS_A = bytes.fromhex("FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC")
Z_CONSTANTS_B = bytes.fromhex("28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93")
SM2_G = bytes.fromhex(
    "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)
