"""Keys, certificates and revocation lists for tests, in process: SM2 by its equations, P-256 by ``cryptography``."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import count
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance import certificates
from appliance.algorithms import Algorithm, PublicKey, signature_from_der, signature_to_der
from appliance.eseal import der
from appliance.verifying import sm2_z, sm3

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
Point = tuple[int, int]
SM2, P256 = Algorithm.SM2_SM3, Algorithm.ECDSA_P256_SHA256


def add(a: Point, b: Point) -> Point:
    slope = (
        (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    )
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(k: int) -> Point:
    result = G
    for bit in f"{k:b}"[1:]:
        result = add(result, result)
        if bit == "1":
            result = add(result, G)
    return result


class Sm2Key:
    """Signs by GB/T 32918.2 with nonces that follow one another: fast, and for tests only."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self._d, self._k = rng.randrange(2, N - 2), rng.randrange(2, N - 2**32)
        self._point = multiply(self._k)
        x, y = multiply(self._d)
        self.public = PublicKey(SM2, x.to_bytes(32, "big") + y.to_bytes(32, "big"))
        self._inverse = pow(1 + self._d, -1, N)

    def sign(self, message: bytes) -> bytes:
        e = int.from_bytes(sm3(sm2_z(self.public) + message), "big")
        r = (e + self._point[0]) % N
        s = self._inverse * (self._k - r * self._d) % N
        self._k, self._point = self._k + 1, add(self._point, G)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class P256Key:
    def __init__(self, seed: int) -> None:
        self._key = ec.derive_private_key(seed + 2, ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        self.public = PublicKey(P256, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))

    def sign(self, message: bytes) -> bytes:
        return signature_from_der(self._key.sign(message, ec.ECDSA(hashes.SHA256())))


_serials = count(1)


@dataclass
class Holder:
    """Somebody with a key and a certificate."""

    name: str
    algorithm: Algorithm = SM2
    issuer: Holder | None = None
    not_before: datetime = field(default_factory=lambda: datetime.fromisoformat("2026-01-01T00:00:00Z"))
    days: int = 365
    is_ca: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    serial: int = field(default_factory=lambda: next(_serials))
    known_as: str = ""

    @cached_property
    def key(self) -> Sm2Key | P256Key:
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        return Sm2Key(seed) if self.algorithm is SM2 else P256Key(seed)

    @cached_property
    def certificate(self) -> bytes:
        issuer = self.issuer or self
        to_sign = certificates.certificate_to_sign(
            public=self.key.public,
            subject=certificates.parse_subject(f"C=CN, O=测试, CN={self.known_as or self.name}"),
            issuer=certificates.parse_subject(f"C=CN, O=测试, CN={issuer.known_as or issuer.name}"),
            issuer_public=issuer.key.public,
            serial=self.serial,
            not_before=self.not_before,
            days=self.days,
            is_ca=self.is_ca,
            **self.options,
        )
        return certificates.assemble_certificate(to_sign, issuer.key.public, issuer.key.sign(to_sign))

    def crl(
        self, revoked: dict[int, datetime], this_update: datetime, next_update: datetime | None = None
    ) -> bytes:
        """A revocation list of this CA, written with the appliance's DER."""
        algorithm = der.sequence(der.oid(self.algorithm.signature_oid))
        subject = certificates.subject_of(self.certificate).dump()
        entries = [
            der.sequence(der.integer(serial), der.generalized_time(at)) for serial, at in revoked.items()
        ]
        to_sign = der.sequence(
            der.integer(1),
            algorithm,
            subject,
            der.generalized_time(this_update),
            der.generalized_time(next_update) if next_update else b"",
            der.sequence(*entries) if entries else b"",
        )
        return der.sequence(to_sign, algorithm, der.bits(signature_to_der(self.key.sign(to_sign))))
