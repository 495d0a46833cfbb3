"""X.509 by the appliance's own keys: certificate requests, and what the demonstration CA issues.

For: PKCS#10 requests (RFC 2986) and certificates (RFC 5280; GB/T 20518 for SM2) whose signature a token makes.
Not for: running a real CA (no policy, no revocation: it exists so that demonstrations and tests have certificates),
nor for judging certificates.

Rules:

* Pure over bytes: whoever calls brings the signature of the to-be-signed part, the time and the serial number.
* SM2 is written as OpenSSL and real CAs write it: key algorithm id-ecPublicKey with the SM2 curve, signature algorithm
  1.2.156.10197.1.501 without parameters; the signer's ID is the default one.
* A request is only believed once its own signature has verified: it proves that the asker holds the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from asn1crypto import algos, core, csr, keys, pem, x509

from appliance.algorithms import Algorithm, PublicKey, signature_from_der, signature_to_der
from appliance.errors import BadRequest

MAX_REQUEST_LEN: Final = 16_384
"""A request has some 400 bytes; the limit bounds what a stranger can make us parse."""
MAX_SUBJECT_LEN: Final = 1_024
SERIAL_LEN: Final = 16
"""RFC 5280 4.1.2.2 allows 20; 16 random bytes never meet twice."""
MAX_VALIDITY_DAYS: Final = 3_653

_ATTRIBUTES: Final = {
    "C": "country_name",
    "ST": "state_or_province_name",
    "L": "locality_name",
    "O": "organization_name",
    "OU": "organizational_unit_name",
    "CN": "common_name",
    "SERIALNUMBER": "serial_number",
}


def _register_sm2() -> None:
    """Teach asn1crypto the names of GM/T 0006; it is its way to be extended, and it has no other."""
    keys.NamedCurve.register("sm2p256v1", Algorithm.SM2_SM3.curve_oid, 32)
    algos.SignedDigestAlgorithmId._map[Algorithm.SM2_SM3.signature_oid] = "sm2_sm3"
    algos.SignedDigestAlgorithmId._reverse_map = None  # it is made again from the map


_register_sm2()

_SIGNATURE_NAMES: Final = {Algorithm.ECDSA_P256_SHA256: "sha256_ecdsa", Algorithm.SM2_SM3: "sm2_sm3"}


@dataclass(frozen=True, slots=True)
class Request:
    """A PKCS#10 request, parsed. ``signed`` are the bytes its ``signature`` (r ‖ s) covers."""

    subject: x509.Name
    public: PublicKey
    signed: bytes
    signature: bytes


def parse_subject(text: str) -> x509.Name:
    r"""A name from ``C=CN, O=某某公司, CN=…``; a comma within a value is written ``\,``."""
    if not text or len(text) > MAX_SUBJECT_LEN:
        raise BadRequest(
            f"a subject has 1 to {MAX_SUBJECT_LEN} characters, got {len(text)}",
            hint="e.g. C=CN, O=某某公司, CN=合同专用章",
        )
    values: dict[str, str] = {}
    for part in text.replace("\\,", "\0").split(","):
        key, equals, value = (piece.strip().replace("\0", ",") for piece in part.partition("="))
        attribute = _ATTRIBUTES.get(key.upper())
        if not equals or attribute is None or not value or attribute in values:
            raise BadRequest(
                f"{part.strip()!r} is no part of a subject",
                hint=f"expected once each of {', '.join(_ATTRIBUTES)}",
            )
        if key.upper() == "C" and (len(value) != 2 or not value.isascii()):
            raise BadRequest(f"C={value}: expected two letters", hint="a country code of ISO 3166, e.g. CN")
        values[attribute] = value
    return x509.Name.build(values)


def _algorithm(algorithm: Algorithm) -> algos.SignedDigestAlgorithm:
    return algos.SignedDigestAlgorithm({"algorithm": _SIGNATURE_NAMES[algorithm]})


def _spki(public: PublicKey) -> keys.PublicKeyInfo:
    return keys.PublicKeyInfo.load(public.spki())


def request_to_sign(subject: x509.Name, public: PublicKey) -> bytes:
    """The part of a PKCS#10 request that its signature covers."""
    info = csr.CertificationRequestInfo(
        {"version": "v1", "subject": subject, "subject_pk_info": _spki(public), "attributes": []}
    )
    return bytes(info.dump())


def assemble_request(to_sign: bytes, public: PublicKey, signature: bytes) -> bytes:
    """The whole request, DER."""
    whole = csr.CertificationRequest(
        {
            "certification_request_info": csr.CertificationRequestInfo.load(to_sign),
            "signature_algorithm": _algorithm(public.algorithm),
            "signature": signature_to_der(signature),
        }
    )
    return bytes(whole.dump())


def parse_request(data: bytes) -> Request:
    """A request in DER or PEM; its signature is not checked here. ``BadRequest`` where it is none."""
    if len(data) > MAX_REQUEST_LEN:
        raise BadRequest(
            f"a certificate request has at most {MAX_REQUEST_LEN} bytes, got {len(data)}",
            hint="PKCS#10, PEM or DER",
        )
    try:
        request = csr.CertificationRequest.load(to_der(data), strict=True)
        info = request["certification_request_info"]
        signed = info.dump()
        subject = info["subject"]
        subject.native  # noqa: B018  # parses all of it, now rather than later
        spki = info["subject_pk_info"].dump()
        signature = bytes(request["signature"].native)
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest("not a PKCS#10 certificate request", hint=str(error)) from error
    return Request(subject, PublicKey.from_spki(spki), signed, signature_from_der(signature))


def certificate_to_sign(
    *,
    public: PublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_public: PublicKey,
    serial: int,
    not_before: datetime,
    days: int,
    is_ca: bool,
    path_len: int = 0,
    is_time_stamping: bool = False,
) -> bytes:
    """The part of a certificate that its signature covers.

    A signer's certificate gets key usage digitalSignature and nonRepudiation, a CA's keyCertSign and cRLSign, and
    may have ``path_len`` CAs below it. A time-stamp authority's is for nothing else (RFC 3161 2.3).
    """
    if not 1 <= days <= MAX_VALIDITY_DAYS:
        raise BadRequest(
            f"a certificate lasts 1 to {MAX_VALIDITY_DAYS} days, got {days}",
            hint="a signer's has a year or a few",
        )
    usage = {"key_cert_sign", "crl_sign"} if is_ca else {"digital_signature", "non_repudiation"}
    constraints = {"ca": True, "path_len_constraint": path_len} if is_ca else {"ca": False}
    extensions = [
        _extension("basic_constraints", constraints, critical=True),
        _extension("key_usage", usage, critical=True),
        _extension("key_identifier", core.OctetString(_spki(public).sha1)),
        _extension("authority_key_identifier", {"key_identifier": _spki(issuer_public).sha1}),
    ]
    if is_time_stamping:
        extensions.append(_extension("extended_key_usage", ["time_stamping"], critical=True))
    tbs = x509.TbsCertificate(
        {
            "version": "v3",
            "serial_number": serial,
            "signature": _algorithm(issuer_public.algorithm),
            "issuer": issuer,
            "validity": {
                "not_before": _time(not_before),
                "not_after": _time(not_before + timedelta(days=days)),
            },
            "subject": subject,
            "subject_public_key_info": _spki(public),
            "extensions": extensions,
        }
    )
    return bytes(tbs.dump())


def assemble_certificate(to_sign: bytes, issuer_public: PublicKey, signature: bytes) -> bytes:
    """The whole certificate, DER."""
    whole = x509.Certificate(
        {
            "tbs_certificate": x509.TbsCertificate.load(to_sign),
            "signature_algorithm": _algorithm(issuer_public.algorithm),
            "signature_value": signature_to_der(signature),
        }
    )
    return bytes(whole.dump())


def to_der(data: bytes) -> bytes:
    """DER from PEM or DER."""
    try:
        return bytes(pem.unarmor(data)[2]) if pem.detect(data) else data
    except ValueError as error:
        raise BadRequest("not PEM", hint=str(error)) from error


def subject_of(certificate: bytes) -> x509.Name:
    """The subject of a DER or PEM certificate, else ``BadRequest``."""
    try:
        parsed = x509.Certificate.load(to_der(certificate), strict=True)
        name = parsed.subject
        name.native  # noqa: B018  # parses all of it
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest("not an X.509 certificate", hint=str(error)) from error
    return name


def to_pem(kind: str, der: bytes) -> str:
    """``kind`` is ``CERTIFICATE`` or ``CERTIFICATE REQUEST``."""
    return bytes(pem.armor(kind, der)).decode()


def _extension(name: str, value: Any, *, critical: bool = False) -> Mapping[str, Any]:
    return {"extn_id": name, "critical": critical, "extn_value": value}


def _time(moment: datetime) -> x509.Time:
    """RFC 5280 4.1.2.5: UTCTime up to 2049, GeneralizedTime after."""
    whole = moment.replace(microsecond=0)
    if whole.year < 2050:
        return x509.Time(name="utc_time", value=whole)
    return x509.Time(name="general_time", value=whole)
