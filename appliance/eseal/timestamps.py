"""Time stamps: requests, responses and tokens of RFC 3161 (GB/T 20520), with SM2 and SM3 or P-256 and SHA-256.

For: asking an authority, being a small one whose key a token holds, and verifying tokens.
Not for: HTTP, deciding whom to stamp for.

Rules:

* Building is pure: the signature of the signed attributes comes from outside, as with certificates.
* Reading takes what authorities send: content types and signature algorithms by the numbers of RFC 5652 or of
  GB/T 35275, any chain beside. The signed attributes are verified as the bytes they are.
* A token is believed when it is over the given value, its signature verifies, the certificate is the one that the
  signed attributes name, and that certificate is for time stamping and leads to a root.
* The imprint is SM3 or SHA-256 of the value; the token's own digest is that of its key's algorithm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from appliance.algorithms import DIGEST_LEN, Algorithm, signature_from_der, signature_to_der
from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.chains import Certificate, Purpose, Trust, find_chain, read_certificate
from appliance.eseal.der import Reader
from appliance.eseal.findings import Code, Finding, Outcome, found
from appliance.verifying import VALID, Verifier, sm3

CLOCK_SKEW: Final = timedelta(minutes=5)
"""By how much the clocks of signers, authorities and ours may differ before it counts."""
MAX_REQUEST_LEN: Final = 4_096
"""A request has some 60 bytes; the limit bounds what a stranger can make us parse."""
MAX_RESPONSE_LEN: Final = 1 << 17
MAX_NONCE: Final = 1 << 256
MAX_CERTIFICATES: Final = 8
"""An authority's chain, in a token."""

SM3_OID: Final = "1.2.156.10197.1.401"
SHA256_OID: Final = "2.16.840.1.101.3.4.2.1"
_SIGNED_DATA: Final = ("1.2.840.113549.1.7.2", "1.2.156.10197.6.1.4.2.2")
_TST_INFO: Final = "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE: Final = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST: Final = "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE: Final = "1.2.840.113549.1.9.16.2.12"
_SIGNING_CERTIFICATE_V2: Final = "1.2.840.113549.1.9.16.2.47"
_SHA1_OID: Final = "1.3.14.3.2.26"
_DIGESTS: Final = (SM3_OID, SHA256_OID)
_KEY_DIGESTS: Final = {Algorithm.SM2_SM3: SM3_OID, Algorithm.ECDSA_P256_SHA256: SHA256_OID}
_SIGNATURE_OIDS: Final = {
    Algorithm.SM2_SM3: (Algorithm.SM2_SM3.signature_oid, "1.2.156.10197.1.301.1", "1.2.156.10197.1.301"),
    Algorithm.ECDSA_P256_SHA256: (Algorithm.ECDSA_P256_SHA256.signature_oid, "1.2.840.10045.2.1"),
}
"""What stands in a SignerInfo: the full algorithm, or as GB/T 35275 and old CMS have it, the key's."""
_SOURCE: Final = "RFC 3161, GB/T 20520"
_MAX_INT: Final = 2**31 - 1


def _digest(algorithm_oid: str, value: bytes) -> bytes:
    """SM3 or SHA-256; nothing for any other, which then equals no digest."""
    if algorithm_oid == SM3_OID:
        return sm3(value)
    return hashlib.sha256(value).digest() if algorithm_oid == SHA256_OID else b""


# Requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A ``TimeStampReq``: ``imprint`` is the digest, by ``algorithm_oid``, of what is to be stamped.

    ``message_imprint`` is both as they were written, for the token to repeat.
    """

    algorithm_oid: str
    imprint: bytes
    message_imprint: bytes
    nonce: int | None
    wants_certificate: bool
    policy: str | None


def build_request(
    value: bytes, nonce: int, *, algorithm_oid: str = SM3_OID, policy: str | None = None
) -> bytes:
    """Ask for a stamp over ``value`` (for a seal signature: its DER signature value) with the certificate."""
    imprint = _digest(algorithm_oid, value)
    if not imprint:
        raise BadRequest(f"a stamp is asked for with SM3 or SHA-256, not {algorithm_oid}")
    return der.sequence(
        der.integer(1),
        der.sequence(_algorithm(algorithm_oid, der.tlv(der.NULL)), der.octets(imprint)),
        b"" if policy is None else der.oid(policy),
        der.integer(nonce),
        der.boolean(True),
    )


def _algorithm(dotted: str, parameters: bytes = b"") -> bytes:
    return der.sequence(der.oid(dotted), parameters)


def read_request(data: bytes) -> Request:
    """A ``TimeStampReq`` in DER, else ``BadRequest``."""
    if len(data) > MAX_REQUEST_LEN:
        raise BadRequest(f"a time-stamp request has at most {MAX_REQUEST_LEN} bytes, got {len(data)}")
    outer = Reader(data, "TimeStampReq", _SOURCE, tolerant=True)
    reader = outer.inside("")
    outer.finish()
    reader.integer("version", 1, 1)
    message_imprint, algorithm_oid, imprint = _read_imprint(reader)
    if algorithm_oid not in _DIGESTS or len(imprint) != DIGEST_LEN:
        raise reader.fail("messageImprint", "a stamp is made over SM3 or SHA-256")
    policy = reader.oid("reqPolicy") if reader.peek() == der.OID else None
    nonce = reader.integer("nonce", -MAX_NONCE, MAX_NONCE) if reader.peek() == der.INTEGER else None
    wants_certificate = reader.default_false("certReq")
    if reader.peek() == der.explicit(0):
        raise reader.fail("extensions", "none are known here")  # RFC 3161 2.4.1: then no stamp is made
    reader.finish()
    return Request(algorithm_oid, imprint, message_imprint, nonce, wants_certificate, policy)


def _read_imprint(reader: Reader) -> tuple[bytes, str, bytes]:
    raw, inner = reader.enter("messageImprint")
    algorithm_oid = inner.inside("hashAlgorithm").oid("algorithm")
    imprint = inner.octets("hashedMessage", 64)
    inner.finish()
    return raw, algorithm_oid, imprint


# Building -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """A token that lacks its signature: the authority's key signs ``to_sign``, the signed attributes as a SET."""

    content: bytes
    to_sign: bytes
    certificate: Certificate
    algorithm: Algorithm
    with_certificate: bool


def token_to_sign(
    request: Request, *, certificate: bytes, policy: str, serial: int, at: datetime, accuracy_s: int = 1
) -> Draft:
    """A token for the request. ``certificate`` is the authority's, DER; ``serial`` never comes twice."""
    authority = read_certificate(certificate)
    if authority.public is None:
        raise BadRequest("a time-stamp authority's key is SM2 or P-256")
    digest_oid = _KEY_DIGESTS[authority.public.algorithm]
    content = der.sequence(
        der.integer(1),
        der.oid(policy),
        request.message_imprint,
        der.integer(serial),
        der.generalized_time(at),
        der.sequence(der.integer(accuracy_s)),
        b"" if request.nonce is None else der.integer(request.nonce),
    )
    named = der.sequence(_algorithm(digest_oid), der.octets(_digest(digest_oid, certificate)))
    attributes = (
        (_CONTENT_TYPE, der.oid(_TST_INFO)),
        (_MESSAGE_DIGEST, der.octets(_digest(digest_oid, content))),
        (_SIGNING_CERTIFICATE_V2, der.sequence(der.sequence(named))),
    )
    encoded = [der.sequence(der.oid(oid), der.tlv(der.SET, value)) for oid, value in attributes]
    return Draft(
        content,
        der.tlv(der.SET, *sorted(encoded)),  # DER orders the members of a SET OF by their bytes
        authority,
        authority.public.algorithm,
        request.wants_certificate,
    )


def assemble_token(draft: Draft, signature_raw: bytes) -> bytes:
    """The whole token, DER."""
    digest_oid, certificate = _KEY_DIGESTS[draft.algorithm], draft.certificate
    signer_info = der.sequence(
        der.integer(1),
        der.sequence(certificate.issuer, der.integer(certificate.serial)),
        _algorithm(digest_oid),
        bytes((der.explicit(0),)) + draft.to_sign[1:],
        _algorithm(draft.algorithm.signature_oid),
        der.octets(signature_to_der(signature_raw)),
    )
    signed = der.sequence(
        der.integer(3),
        der.tlv(der.SET, _algorithm(digest_oid)),
        der.sequence(der.oid(_TST_INFO), der.tlv(der.explicit(0), der.octets(draft.content))),
        der.tlv(der.explicit(0), certificate.der) if draft.with_certificate else b"",
        der.tlv(der.SET, signer_info),
    )
    return der.sequence(der.oid(_SIGNED_DATA[0]), der.tlv(der.explicit(0), signed))


def granted(token: bytes) -> bytes:
    """A ``TimeStampResp`` with the token."""
    return der.sequence(der.sequence(der.integer(0)), token)


REFUSALS: Final = {"bad_algorithm": 0, "bad_request": 2, "bad_format": 5, "unavailable": 14, "failure": 25}
"""RFC 3161 2.4.2, ``PKIFailureInfo``: names of ours, and the bits."""


def refused(reason: str, text: str) -> bytes:
    """A ``TimeStampResp`` that says no. ``reason`` is a key of ``REFUSALS``."""
    bit = REFUSALS[reason]
    octets = bytearray(bit // 8 + 1)
    octets[-1] = 0x80 >> bit % 8
    failure = der.tlv(der.BIT_STRING, bytes((7 - bit % 8,)), bytes(octets))
    free_text = der.sequence(der.text(der.UTF8_STRING, text[:256]))
    return der.sequence(der.sequence(der.integer(2), free_text, failure))


def read_response(data: bytes) -> bytes:
    """The token in a ``TimeStampResp``; ``BadRequest`` with the authority's words where it gave none."""
    if len(data) > MAX_RESPONSE_LEN:
        raise BadRequest(f"a time-stamp response has at most {MAX_RESPONSE_LEN} bytes, got {len(data)}")
    outer = Reader(data, "TimeStampResp", _SOURCE, tolerant=True)
    reader = outer.inside("")
    outer.finish()
    status = reader.inside("status")
    number = status.integer("status", 0, 255)
    if number > 1:
        said = ""
        if status.peek() == der.SEQUENCE:
            said = status.inside("statusString").text("", der.UTF8_STRING, 4_096)
        raise BadRequest(f"the time-stamp authority refused: status {number}", hint=said[:256])
    token = reader.raw("timeStampToken", der.SEQUENCE)
    reader.finish()
    return token


# Verifying ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token:
    """A time-stamp token, read and not yet believed.

    ``attributes`` are the signed attributes as a DER SET, which is what ``signature`` covers. ``signer`` is
    (issuer's name, serial number), or the key identifier; ``certificate_hash`` names the certificate again, signed.
    """

    algorithm_oid: str
    imprint: bytes
    policy: str
    serial: int
    at: datetime
    nonce: int | None
    content: bytes
    attributes: bytes
    message_digest: bytes
    certificate_hash: tuple[str, bytes]
    signer: tuple[bytes, int] | bytes
    digest_oid: str
    signature_oid: str
    signature: bytes
    certificates: tuple[Certificate, ...]


def read_token(data: bytes) -> Token:
    """A ``TimeStampToken``, else ``BadRequest``."""
    outer = Reader(data, "TimeStampToken", _SOURCE, tolerant=True)
    reader = outer.inside("")
    outer.finish()
    if reader.oid("contentType") not in _SIGNED_DATA:
        raise reader.fail("contentType", "expected signedData")
    wrapped = reader.inside("content", der.explicit(0))
    reader.finish()
    signed = wrapped.inside("")
    wrapped.finish()
    signed.integer("version", 1, 5)
    signed.raw("digestAlgorithms", der.SET)
    encapsulated = signed.inside("encapContentInfo")
    if encapsulated.oid("eContentType") != _TST_INFO:
        raise encapsulated.fail("eContentType", "expected TSTInfo")
    content = encapsulated.inside("eContent", der.explicit(0)).octets("", MAX_RESPONSE_LEN)
    certificates_: tuple[Certificate, ...] = ()
    if signed.peek() == der.explicit(0):
        certificates_ = _read_certificates(signed.inside("certificates", der.explicit(0)))
    if signed.peek() == der.explicit(1):
        signed.raw("crls")
    infos = signed.inside("signerInfos", der.SET)
    signed.finish()
    info = infos.inside("[0]")
    infos.finish()  # RFC 3161 2.4.2: the authority's signature and no other
    return _read_signer(info, content, certificates_)


def _read_signer(info: Reader, content: bytes, certificates_: tuple[Certificate, ...]) -> Token:
    info.integer("version", 1, 3)
    signer: tuple[bytes, int] | bytes
    if info.peek() == der.implicit(0):
        signer = info.content("subjectKeyIdentifier", der.implicit(0), 64)
    else:
        named = info.inside("issuerAndSerialNumber")
        signer = named.raw("issuer", der.SEQUENCE), named.integer("serialNumber", -(2**511), 2**511)
    digest_oid = info.inside("digestAlgorithm").oid("algorithm")
    raw, attributes = info.enter("signedAttrs", der.explicit(0))
    message_digest, certificate_hash = _read_attributes(attributes)
    signature_oid = info.inside("signatureAlgorithm").oid("algorithm")
    signature = info.octets("signature", 1_024)
    if info.peek() == der.explicit(1):
        info.raw("unsignedAttrs")
    info.finish()
    tst = Reader(content, "TSTInfo", _SOURCE, tolerant=True)
    body = tst.inside("")
    tst.finish()
    body.integer("version", 1, 1)
    policy = body.oid("policy")
    _, algorithm_oid, imprint = _read_imprint(body)
    serial = body.integer("serialNumber", -(2**511), 2**511)
    at = body.time("genTime", der.GENERALIZED_TIME)
    nonce = None
    while not body.at_end():  # accuracy, ordering, nonce, tsa, extensions: in that order, each may be missing
        if body.peek() == der.INTEGER:
            nonce = body.integer("nonce", -MAX_NONCE, MAX_NONCE)
        else:
            body.raw("")
    return Token(
        algorithm_oid, imprint, policy, serial, at, nonce, content, bytes((der.SET,)) + raw[1:], message_digest,
        certificate_hash, signer, digest_oid, signature_oid, signature, certificates_,
    )  # fmt: skip


def _read_certificates(reader: Reader) -> tuple[Certificate, ...]:
    found_: list[Certificate] = []
    while not reader.at_end():
        if len(found_) >= MAX_CERTIFICATES:
            raise reader.fail("", f"more than {MAX_CERTIFICATES} of them")
        found_.append(read_certificate(reader.raw("", der.SEQUENCE)))
    return tuple(found_)


def _read_attributes(reader: Reader) -> tuple[bytes, tuple[str, bytes]]:
    """The message digest and the hash of the signer's certificate, each there once, and the right content type."""
    values: dict[str, Reader] = {}
    while not reader.at_end():
        attribute = reader.inside("")
        oid = attribute.oid("type")
        if oid in values:
            raise attribute.fail("type", f"{oid} stands there twice")
        values[oid] = attribute.inside("values", der.SET)
    if _CONTENT_TYPE not in values or _MESSAGE_DIGEST not in values:
        raise reader.fail("", "content type or message digest is missing")
    if values[_CONTENT_TYPE].oid("contentType") != _TST_INFO:
        raise reader.fail("", "the content type is not that of a time stamp")
    message_digest = values[_MESSAGE_DIGEST].octets("messageDigest", 64)
    if _SIGNING_CERTIFICATE_V2 in values:
        first = values[_SIGNING_CERTIFICATE_V2].inside("signingCertificateV2").inside("certs").inside("")
        oid = SHA256_OID  # RFC 5035: the default
        if first.peek() == der.SEQUENCE:
            oid = first.inside("hashAlgorithm").oid("algorithm")
    elif _SIGNING_CERTIFICATE in values:
        first = values[_SIGNING_CERTIFICATE].inside("signingCertificate").inside("certs").inside("")
        oid = _SHA1_OID
    else:
        raise reader.fail("", "which certificate signed is not among the signed attributes (RFC 3161 2.4.2)")
    return message_digest, (oid, first.octets("certHash", 64, 20))


def check_token(
    token: Token,
    value: bytes | None,
    trust: Trust,
    verifier: Verifier,
    now: datetime,
    more: Sequence[Certificate] = (),
) -> Finding:
    """Whether the token proves that ``value`` existed at ``token.at``. ``more`` may hold the certificate it lacks.

    Without ``value``, that is left to the caller.
    """
    if token.algorithm_oid not in _DIGESTS:
        return found(Code.UNSUPPORTED_KEY, f"its imprint is by {token.algorithm_oid}")
    if value is not None and _digest(token.algorithm_oid, value) != token.imprint:
        return found(Code.OTHER_DATA)
    available = (*token.certificates, *more)
    certificate = next((each for each in available if _is_signer(each, token.signer)), None)
    if certificate is None:
        return found(Code.UNTRUSTED, "the authority's certificate is neither in the token nor known here")
    fault = _check_signature(token, certificate, verifier)
    if fault is not None:
        return fault
    chain = find_chain(certificate, trust, verifier, Purpose.TIME_STAMPING, available[:MAX_CERTIFICATES])
    finding = chain.judge(token.at, now)
    if finding.code is Code.EXPIRED_SINCE:  # an old stamp proves what it proved
        warning = f"the time-stamp authority's {finding.text}"
        finding = found(Code.OK, "", (*finding.warnings, warning))
    if finding.outcome is Outcome.PASSED and token.at > now + CLOCK_SKEW:
        return found(Code.IN_FUTURE, token.at.isoformat())
    return finding


def _is_signer(certificate: Certificate, signer: tuple[bytes, int] | bytes) -> bool:
    if isinstance(signer, bytes):
        return certificate.key_id == signer
    return (certificate.issuer, certificate.serial) == signer


def _check_signature(token: Token, certificate: Certificate, verifier: Verifier) -> Finding | None:
    key = certificate.public
    if key is None:
        return found(Code.UNSUPPORTED_KEY, certificate.subject_text)
    if (
        token.signature_oid not in _SIGNATURE_OIDS[key.algorithm]
        or token.digest_oid != _KEY_DIGESTS[key.algorithm]
    ):
        return found(Code.ALGORITHM, f"{token.signature_oid} with {token.digest_oid}")
    hash_oid, named = token.certificate_hash
    if (
        hash_oid == _SHA1_OID
    ):  # what signingCertificate (RFC 2634) is fixed to: it names, the signature proves
        hashed = hashlib.sha1(certificate.der, usedforsecurity=False).digest()
    else:
        hashed = _digest(hash_oid, certificate.der)
    if hashed != named:
        return found(Code.BAD_SIGNATURE, "the signed attributes name another certificate")
    if _digest(token.digest_oid, token.content) != token.message_digest:
        return found(Code.BAD_SIGNATURE, "the message digest is another")
    try:
        raw = signature_from_der(token.signature)
    except BadRequest as error:
        return found(Code.BAD_SIGNATURE, error.detail)
    hashed = verifier.digest(key, len(token.attributes).to_bytes(4, "big"), token.attributes)
    return None if verifier.verify(key, hashed, raw)[0] == VALID else found(Code.BAD_SIGNATURE)


def token_of_response(response: bytes, request: bytes) -> bytes:
    """The token that an authority answered ``request`` with; ``BadRequest`` where it is about something else.

    Whether it is to be believed, ``check_token`` says.
    """
    asked = read_request(request)
    whole = read_response(response)
    token = read_token(whole)
    if (token.algorithm_oid, token.imprint) != (asked.algorithm_oid, asked.imprint):
        raise BadRequest("the time-stamp authority stamped something else")
    if token.nonce != asked.nonce:
        raise BadRequest("the time stamp is not an answer to this request: another nonce")
    return whole
