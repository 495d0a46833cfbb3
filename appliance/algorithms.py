"""The signature algorithms and the values that go with them: public keys, digests, signatures.

For: what an algorithm is called in every place it has a name, how a public key and a signature are written.
Not for: computing anything with them (``verifying`` and the signer workers do that).

Rules:

* The algorithm belongs to the key, never to the request.
* Both families have 32-byte digests and 64-byte signatures, so a batch is two contiguous blocks.
* Inside the appliance and on the wire a signature is ``r || s``, 32 bytes each, big endian (PKCS#11 2.40, 6.3.1);
  DER (RFC 3279 2.2.3, GB/T 35276) is for whoever needs it outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from asn1crypto import core, x509

from appliance.errors import BadRequest

DIGEST_LEN: Final = 32
SIGNATURE_LEN: Final = 64
POINT_LEN: Final = 64
SM2_DEFAULT_ID: Final = b"1234567812345678"
"""The user ID that GB/T 35276 fixes for whoever has agreed on no other."""

MAX_SPKI_LEN: Final = 512
"""A P-256 or SM2 SubjectPublicKeyInfo has 91 bytes; explicit curve parameters, which we refuse, some 330."""
MAX_CERTIFICATE_LEN: Final = 65_536
"""Real certificates have 1 to 4 kB; the limit only bounds what a stranger can make us parse."""

_EC_PUBLIC_KEY: Final = "1.2.840.10045.2.1"


class Algorithm(Enum):
    """A signature scheme with its hash. The value is the number it has on the wire."""

    ECDSA_P256_SHA256 = 1
    SM2_SM3 = 2

    @property
    def label(self) -> str:
        """The name in configuration, tables and JSON."""
        return _LABELS[self]

    @property
    def curve_oid(self) -> str:
        """The named curve: 1.2.840.10045.3.1.7 (SEC 2) or 1.2.156.10197.1.301 (GM/T 0006)."""
        return _CURVES[self]

    @property
    def signature_oid(self) -> str:
        """The signature algorithm in certificates and seals."""
        return _SIGNATURES[self]

    @property
    def order(self) -> int:
        """The order n of the group; r and s lie in [1, n-1]."""
        return _ORDERS[self]

    @classmethod
    def from_label(cls, label: str) -> Algorithm:
        """The algorithm of that name; ``BadRequest`` names the ones there are."""
        for algorithm, known in _LABELS.items():
            if label == known:
                return algorithm
        raise BadRequest(
            f"unknown algorithm {label!r}", hint=f"use one of: {', '.join(sorted(_LABELS.values()))}"
        )


_LABELS: Final = {Algorithm.ECDSA_P256_SHA256: "ecdsa-p256-sha256", Algorithm.SM2_SM3: "sm2-sm3"}
_CURVES: Final = {
    Algorithm.ECDSA_P256_SHA256: "1.2.840.10045.3.1.7",
    Algorithm.SM2_SM3: "1.2.156.10197.1.301",
}
_SIGNATURES: Final = {
    Algorithm.ECDSA_P256_SHA256: "1.2.840.10045.4.3.2",
    Algorithm.SM2_SM3: "1.2.156.10197.1.501",
}
_ORDERS: Final = {
    Algorithm.ECDSA_P256_SHA256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    Algorithm.SM2_SM3: 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123,
}
_FIELDS: Final = {
    Algorithm.ECDSA_P256_SHA256: (
        0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    Algorithm.SM2_SM3: (
        0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF,
        0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93,
    ),
}
"""p and b of each curve; a is p - 3 on both."""


class _SignatureValue(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    _fields = [("r", core.Integer), ("s", core.Integer)]  # noqa: RUF012  # asn1crypto's way to declare


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that lies on its curve.

    ``point`` is ``x || y``, 32 bytes each, big endian. Constructing one from a point that is out of range, off
    the curve or at infinity raises ``BadRequest``.
    """

    algorithm: Algorithm
    point: bytes

    def __post_init__(self) -> None:
        if len(self.point) != POINT_LEN:
            raise BadRequest(f"a public point has {POINT_LEN} bytes, got {len(self.point)}")
        p, b = _FIELDS[self.algorithm]
        x, y = int.from_bytes(self.point[:32], "big"), int.from_bytes(self.point[32:], "big")
        if x >= p or y >= p or (y * y - (x * x * x - 3 * x + b)) % p:
            raise BadRequest(f"the point is not on the curve of {self.algorithm.label}")

    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo (RFC 5480; GB/T 20518 for SM2), 91 bytes."""
        return _SPKI_PREFIXES[self.algorithm] + self.point

    @classmethod
    def from_spki(cls, der: bytes) -> PublicKey:
        """Read a DER SubjectPublicKeyInfo with a named curve and an uncompressed point, else ``BadRequest``."""
        if len(der) > MAX_SPKI_LEN:
            raise BadRequest(f"a public key has at most {MAX_SPKI_LEN} bytes, got {len(der)}")
        for algorithm, prefix in _SPKI_PREFIXES.items():
            if der.startswith(prefix):
                return cls(algorithm, der[len(prefix) :])
        raise BadRequest(
            "not a SubjectPublicKeyInfo on a curve we know",
            hint="send DER, named curve prime256v1 or SM2, uncompressed point",
        )

    @classmethod
    def from_certificate(cls, der: bytes) -> PublicKey:
        """The subject's key in a DER X.509 certificate. Nothing else in the certificate is looked at."""
        if len(der) > MAX_CERTIFICATE_LEN:
            raise BadRequest(f"a certificate has at most {MAX_CERTIFICATE_LEN} bytes, got {len(der)}")
        try:
            certificate = x509.Certificate.load(der, strict=True)
            spki = certificate["tbs_certificate"]["subject_public_key_info"].dump()
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest("not a DER X.509 certificate", hint=str(error)) from error
        return cls.from_spki(spki)


def _spki_prefix(algorithm: Algorithm) -> bytes:
    """All of a SubjectPublicKeyInfo up to the point: only the 64 bytes of ``x || y`` differ between keys."""
    oids: bytes = (
        core.ObjectIdentifier(_EC_PUBLIC_KEY).dump() + core.ObjectIdentifier(algorithm.curve_oid).dump()
    )
    inner = bytes((0x30, len(oids))) + oids + bytes((0x03, POINT_LEN + 2, 0x00, 0x04))
    return bytes((0x30, len(inner) + POINT_LEN)) + inner


_SPKI_PREFIXES: Final = {algorithm: _spki_prefix(algorithm) for algorithm in Algorithm}


def signature_to_der(raw: bytes) -> bytes:
    """``r || s`` (64 bytes) as DER ``SEQUENCE { r INTEGER, s INTEGER }``, 8 to 72 bytes."""
    if len(raw) != SIGNATURE_LEN:
        raise BadRequest(f"a signature has {SIGNATURE_LEN} bytes, got {len(raw)}")
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    return bytes(_SignatureValue({"r": r, "s": s}).dump())


def signature_from_der(der: bytes) -> bytes:
    """The inverse of ``signature_to_der``: strict DER, no trailing bytes, values of at most 256 bits."""
    try:
        value = _SignatureValue.load(der, strict=True)
        r, s = int(value["r"].native), int(value["s"].native)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest("not a DER signature of two 256-bit integers", hint=str(error)) from error
    if signature_to_der(raw) != der:
        raise BadRequest("the signature is not in DER (shortest form)")
    return raw
