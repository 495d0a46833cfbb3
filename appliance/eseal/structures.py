"""Seals and seal signatures as bytes: reading all three editions, writing the two current ones.

For: ``SESeal`` and ``SES_Signature`` of GB/T 38540-2020 (version 4) and GM/T 0031-2025 (version 5), read and written;
of GM/T 0031-2014 (version 1), read.
Not for: judging them (``verification``), signing (whoever calls brings the signature).

Rules:

* What is read keeps the exact bytes it was read from, and the exact bytes its signatures cover. Nothing is ever
  encoded again for verifying: some vendors write ``critical FALSE`` out, which is no DER and under a good signature.
* Reading is strict about structure (definite shortest lengths, order, types, nothing after the end, limits) and
  raises ``BadRequest`` with the clause and the place. What is merely odd is in ``notes``.
* Writing yields DER. Times go in with whole seconds, in UTC.
* A signature value is ``r || s`` where we are called and DER ``SEQUENCE { r, s }`` in the structure (GB/T 35276).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

from appliance.algorithms import DIGEST_LEN, MAX_CERTIFICATE_LEN, Algorithm, signature_to_der
from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.der import Reader
from appliance.verifying import sm3

MAX_SEAL_LEN: Final = 1 << 20
"""Real seals have 4 to 60 kB; a whole OFD as vector picture may be larger. Every signature carries its seal."""
MAX_SIGNATURE_LEN: Final = MAX_SEAL_LEN + (1 << 18)
"""A seal, a certificate, a time-stamp token and extensions."""
MAX_PICTURE_LEN: Final = 3 << 18
"""Three quarters of a seal."""
MAX_LISTED: Final = 256
"""Signers of one seal. Real seals list one; a department that shares a seal lists its people."""
MAX_EXTENSIONS: Final = 64
MAX_IDENTIFIER_LEN: Final = 128
"""A seal's code has 14 digits, or is a UUID; a vendor's name is about as long."""
MAX_NAME_LEN: Final = 1_024
"""UTF-8; an organisation's name has some hundred bytes."""
MAX_PROPERTY_LEN: Final = 4_096
"""A path, or a small JSON text where a plug-in puts one."""
MAX_TOKEN_LEN: Final = 1 << 16
"""A time-stamp token with its authority's chain has some 2 to 6 kB."""
MAX_SIGNATURE_VALUE_LEN: Final = 1_024
"""SM2 has 72 bytes, RSA of the first edition up to 512."""
MAX_SIZE_MM: Final = 1_000

SEAL_HEADER: Final = "ES"

_SOURCE: Final = "GB/T 38540-2020, GM/T 0031"
_MAX_INT: Final = 2**31 - 1


class Version(IntEnum):
    """An edition of the format; the value is what its headers say."""

    GMT_0031_2014 = 1
    GBT_38540_2020 = 4
    GMT_0031_2025 = 5

    @property
    def standard(self) -> str:
        """The standard's number."""
        return _STANDARDS[self]


_STANDARDS: Final = {
    Version.GMT_0031_2014: "GM/T 0031-2014",
    Version.GBT_38540_2020: "GB/T 38540-2020",
    Version.GMT_0031_2025: "GM/T 0031-2025",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """The imprint inside a seal; ``format`` as written (png, PNG, ofd …), sizes in mm."""

    format: str
    data: bytes
    width_mm: int
    height_mm: int


@dataclass(frozen=True, slots=True)
class Extension:
    """Something more, named by an OID."""

    oid: str
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class CertificateDigest:
    """A signer named by digest: ``value`` is the plain SM3 of the certificate, ``type`` the vendor's free text."""

    type: str
    value: bytes


@dataclass(frozen=True, slots=True)
class ESeal:
    """An electronic seal (电子印章): what its maker certified.

    ``info`` are the bytes of ``SES_SealInfo``, ``signed`` those that the maker's signature covers (the same but in
    the first edition). ``signature`` and ``timestamp`` are the contents of their BIT STRINGs.
    """

    version: Version
    header_version: int
    vendor_id: str
    code: str
    type: int
    name: str
    signers: tuple[bytes, ...] | tuple[CertificateDigest, ...]
    created_at: datetime
    valid_from: datetime
    valid_to: datetime
    picture: Picture
    extensions: tuple[Extension, ...]
    maker_certificate: bytes
    algorithm: str
    signature: bytes
    timestamp: bytes | None
    der: bytes
    info: bytes
    signed: bytes
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SealSignature:
    """An electronic seal signature (电子签章): a seal put under data.

    ``tbs`` are the bytes of ``TBS_Sign``, which the signature covers. ``signed_at`` is ``None`` where the first
    edition has a time-stamp token in its place: that is ``time_token`` then.
    """

    version: Version
    seal: ESeal
    signed_at: datetime | None
    time_token: bytes | None
    data_hash: bytes
    property_info: str
    extensions: tuple[Extension, ...]
    certificate: bytes
    algorithm: str
    signature: bytes
    timestamp: bytes | None
    tbs: bytes
    der: bytes
    notes: tuple[str, ...]


# Reading --------------------------------------------------------------------------------------------------------


def read_seal(data: bytes) -> ESeal:
    """An ``SESeal`` of any edition, DER; else ``BadRequest``."""
    _check_len(data, MAX_SEAL_LEN, "a seal")
    outer = Reader(data, "SESeal", _SOURCE)
    seal = _seal(outer, "")
    outer.finish()
    return seal


def read_signature(data: bytes) -> SealSignature:
    """An ``SES_Signature`` of any edition, DER; else ``BadRequest``."""
    _check_len(data, MAX_SIGNATURE_LEN, "a seal signature")
    outer = Reader(data, "SES_Signature", _SOURCE)
    reader = outer.inside("")
    outer.finish()
    if reader.peek() == der.OID:
        raise reader.fail("", "this is a CMS (GB/T 35275) signature, not a seal signature")
    tbs, body = reader.enter("toSign")
    version = body.integer("version", 0, _MAX_INT)
    seal = _seal(body, "eseal")
    if version != seal.header_version:
        body.note("version", f"{version}, where the seal's header says {seal.header_version}")
    read = _read_first_edition if seal.version is Version.GMT_0031_2014 else _read_current
    return read(data, reader, tbs, body, seal)


def _read_current(data: bytes, reader: Reader, tbs: bytes, body: Reader, seal: ESeal) -> SealSignature:
    signed_at = body.time("timeInfo", der.GENERALIZED_TIME)
    data_hash = body.bits("dataHash", MAX_SIGNATURE_VALUE_LEN)
    property_info = body.text("propertyInfo", der.IA5_STRING, MAX_PROPERTY_LEN)
    extensions: tuple[Extension, ...] = ()
    if body.peek() == der.explicit(0):
        wrapped = body.inside("extDatas", der.explicit(0))
        extensions = _extensions(wrapped, "")
        wrapped.finish()
    body.finish()
    certificate = reader.octets("cert", MAX_CERTIFICATE_LEN, 1)
    algorithm = reader.oid("signatureAlgID")
    signature = reader.bits("signature", MAX_SIGNATURE_VALUE_LEN)
    timestamp = _timestamp(reader)
    reader.finish()
    return SealSignature(
        seal.version, seal, signed_at, None, data_hash, property_info, extensions, certificate, algorithm, signature,
        timestamp, tbs, data, tuple(reader.notes),
    )  # fmt: skip


def _read_first_edition(data: bytes, reader: Reader, tbs: bytes, body: Reader, seal: ESeal) -> SealSignature:
    time_info = body.bits("timeInfo", MAX_TOKEN_LEN)
    signed_at, time_token = None, None
    inner = Reader(time_info, "SES_Signature.toSign.timeInfo", _SOURCE)
    if inner.peek() in (der.UTC_TIME, der.GENERALIZED_TIME):
        signed_at = inner.time("", der.UTC_TIME, der.GENERALIZED_TIME)
        inner.finish()
    else:
        time_token = time_info
    data_hash = body.bits("dataHash", MAX_SIGNATURE_VALUE_LEN)
    property_info = body.text("propertyInfo", der.IA5_STRING, MAX_PROPERTY_LEN)
    certificate = body.octets("cert", MAX_CERTIFICATE_LEN, 1)
    algorithm = body.oid("signatureAlgorithm")
    body.finish()
    signature = reader.bits("signature", MAX_SIGNATURE_VALUE_LEN)
    reader.finish()
    return SealSignature(
        seal.version, seal, signed_at, time_token, data_hash, property_info, (), certificate, algorithm, signature,
        None, tbs, data, (*reader.notes, *inner.notes),
    )  # fmt: skip


def _check_len(data: bytes, limit: int, what: str) -> None:
    if len(data) > limit:
        raise BadRequest(f"{what} has at most {limit} bytes, got {len(data)}")


def _seal(outer: Reader, name: str) -> ESeal:
    """The edition follows the form (``signInfo``: the first; a time stamp: the newest), else the header."""
    raw, reader = outer.enter(name)
    _check_len(raw, MAX_SEAL_LEN, "a seal")
    info_raw, info_reader = reader.enter("eSealInfo")
    first_edition = reader.peek() == der.SEQUENCE
    last = reader.inside("signInfo") if first_edition else reader
    maker_certificate = last.octets("cert", MAX_CERTIFICATE_LEN, 1)
    algorithm = last.oid("signatureAlgorithm" if first_edition else "signAlgID")
    signature = last.bits("signData" if first_edition else "signedValue", MAX_SIGNATURE_VALUE_LEN)
    timestamp = None if first_edition else _timestamp(reader)
    last.finish()
    reader.finish()

    info = _info(info_reader, first_edition)
    version = _version(first_edition, timestamp is not None, info.header_version)
    if info.header_version != version and not first_edition:  # the first edition's text fixes no number
        info_reader.note("header.version", f"{info.header_version} in a seal of the form of {version.value}")
    signed = info_raw
    if first_edition:
        # The one place where signed bytes are put together, as no element holds just them. What the reader lets
        # through of these three is DER, so writing them again yields the bytes that were there.
        signed = first_edition_scope(info_raw, maker_certificate, algorithm)
    return ESeal(
        version, *info, maker_certificate, algorithm, signature, timestamp, raw, info_raw, signed, tuple(outer.notes)
    )  # fmt: skip


def first_edition_scope(info: bytes, maker_certificate: bytes, algorithm: str) -> bytes:
    """What GM/T 0031-2014 has the maker sign: more than the later editions, which is mixed up in practice."""
    return der.sequence(info, der.octets(maker_certificate), der.oid(algorithm))


class _Info(NamedTuple):
    header_version: int
    vendor_id: str
    code: str
    type: int
    name: str
    signers: tuple[bytes, ...] | tuple[CertificateDigest, ...]
    created_at: datetime
    valid_from: datetime
    valid_to: datetime
    picture: Picture
    extensions: tuple[Extension, ...]


def _info(reader: Reader, first_edition: bool) -> _Info:
    """``SES_SealInfo``."""
    header = reader.inside("header")
    identifier = header.text("ID", der.IA5_STRING, MAX_IDENTIFIER_LEN)
    if identifier != SEAL_HEADER:
        raise header.fail("ID", f"expected {SEAL_HEADER!r}, got {identifier[:16]!r}")
    header_version = header.integer("version", 0, _MAX_INT)
    vendor_id = header.text("Vid", der.IA5_STRING, MAX_IDENTIFIER_LEN)
    header.finish()

    code = reader.text("esID", der.IA5_STRING, MAX_IDENTIFIER_LEN)
    properties = reader.inside("property")
    type_ = properties.integer("type", -_MAX_INT, _MAX_INT)
    name = properties.text("name", der.UTF8_STRING, MAX_NAME_LEN)
    digests = not first_edition and properties.integer("certListType", 1, 2) == 2
    signers = _digest_list(properties) if digests else _certificate_list(properties)
    tag = der.UTC_TIME if first_edition else der.GENERALIZED_TIME
    created_at = properties.time("createDate", tag)
    valid_from, valid_to = properties.time("validStart", tag), properties.time("validEnd", tag)
    properties.finish()

    image = reader.inside("picture")
    picture = Picture(
        image.text("type", der.IA5_STRING, MAX_IDENTIFIER_LEN),
        image.octets("data", MAX_PICTURE_LEN),
        image.integer("width", 0, MAX_SIZE_MM),
        image.integer("height", 0, MAX_SIZE_MM),
    )
    image.finish()

    extensions: tuple[Extension, ...] = ()
    if first_edition and reader.peek() == der.explicit(0):  # its text says EXPLICIT without a tag number
        wrapped = reader.inside("extDatas", der.explicit(0))
        extensions = _extensions(wrapped, "")
        wrapped.finish()
    elif not reader.at_end():
        extensions = _extensions(reader, "extDatas")
    reader.finish()
    return _Info(
        header_version, vendor_id, code, type_, name, signers, created_at, valid_from, valid_to, picture, extensions
    )  # fmt: skip


def _version(first_edition: bool, stamped: bool, header_version: int) -> Version:
    if first_edition:
        return Version.GMT_0031_2014
    if stamped or header_version == Version.GMT_0031_2025:
        return Version.GMT_0031_2025
    return Version.GBT_38540_2020


def _certificate_list(reader: Reader) -> tuple[bytes, ...]:
    listed = reader.inside("certList")
    found: list[bytes] = []
    while not listed.at_end():
        _check_count(listed, len(found), MAX_LISTED)
        found.append(listed.octets(f"[{len(found)}]", MAX_CERTIFICATE_LEN, 1))
    return tuple(found)


def _digest_list(reader: Reader) -> tuple[CertificateDigest, ...]:
    listed = reader.inside("certList")
    found: list[CertificateDigest] = []
    while not listed.at_end():
        _check_count(listed, len(found), MAX_LISTED)
        item = listed.inside(f"[{len(found)}]")
        type_ = item.text("type", der.PRINTABLE_STRING, MAX_IDENTIFIER_LEN)
        found.append(CertificateDigest(type_, item.octets("value", MAX_IDENTIFIER_LEN, 1)))
        item.finish()
    return tuple(found)


def _extensions(reader: Reader, name: str) -> tuple[Extension, ...]:
    listed = reader.inside(name)
    found: list[Extension] = []
    while not listed.at_end():
        _check_count(listed, len(found), MAX_EXTENSIONS)
        item = listed.inside(f"[{len(found)}]")
        oid = item.oid("extnID")
        found.append(Extension(oid, item.default_false("critical"), item.octets("extnValue", MAX_SEAL_LEN)))
        item.finish()
    return tuple(found)


def _check_count(reader: Reader, count: int, limit: int) -> None:
    if count >= limit:
        raise reader.fail("", f"more than {limit} items")


def _timestamp(reader: Reader) -> bytes | None:
    """``[0] EXPLICIT BIT STRING OPTIONAL``."""
    if reader.peek() != der.explicit(0):
        return None
    wrapped = reader.inside("timeStamp", der.explicit(0))
    token = wrapped.bits("", MAX_TOKEN_LEN)
    wrapped.finish()
    return token


# Writing --------------------------------------------------------------------------------------------------------


def certificate_digest(certificate: bytes) -> CertificateDigest:
    """How a list of digests names a signer."""
    return CertificateDigest("SM3", sm3(certificate))


def seal_info_to_sign(
    version: Version,
    vid: str,
    code: str,
    type_: int,
    name: str,
    certificates: Sequence[bytes] | Sequence[CertificateDigest],
    created_at: datetime,
    valid_from: datetime,
    valid_to: datetime,
    picture: Picture,
    extensions: Sequence[Extension] = (),
) -> bytes:
    """``SES_SealInfo``, DER: what the maker's key signs. ``certificates`` are all certificates, or all digests."""
    _check_writable(version)
    if valid_from >= valid_to:
        raise BadRequest("a seal's validity ends before it begins")
    digests = [item for item in certificates if isinstance(item, CertificateDigest)]
    whole = [item for item in certificates if isinstance(item, bytes)]
    if not certificates or (digests and whole):
        raise BadRequest("a seal lists its signers either as certificates or as digests, at least one")
    listed = [
        *map(der.octets, whole),
        *(der.sequence(der.text(der.PRINTABLE_STRING, d.type), der.octets(d.value)) for d in digests),
    ]
    info = der.sequence(
        der.sequence(
            der.text(der.IA5_STRING, SEAL_HEADER), der.integer(version), der.text(der.IA5_STRING, vid)
        ),
        der.text(der.IA5_STRING, code),
        der.sequence(
            der.integer(type_),
            der.text(der.UTF8_STRING, name),
            der.integer(2 if digests else 1),
            der.sequence(*listed),
            der.generalized_time(created_at),
            der.generalized_time(valid_from),
            der.generalized_time(valid_to),
        ),
        der.sequence(
            der.text(der.IA5_STRING, picture.format),
            der.octets(picture.data),
            der.integer(picture.width_mm),
            der.integer(picture.height_mm),
        ),
        *([_write_extensions(extensions)] if extensions else []),
    )
    _info(Reader(info, "SES_SealInfo", _SOURCE).inside(""), first_edition=False)  # holds the limits too
    return info


def assemble_seal(
    info: bytes,
    maker_certificate: bytes,
    algorithm: Algorithm,
    signature_raw: bytes,
    timestamp: bytes | None = None,
) -> bytes:
    """The ``SESeal``, DER. ``timestamp`` is a token over ``signature_to_der(signature_raw)``; version 5 has it."""
    seal = der.sequence(
        info,
        der.octets(maker_certificate),
        der.oid(algorithm.signature_oid),
        der.bits(signature_to_der(signature_raw)),
        _write_timestamp(timestamp),
    )
    read = read_seal(seal)
    if timestamp is not None and read.header_version != Version.GMT_0031_2025:
        raise BadRequest("only seals of version 5 carry a time stamp", hint=Version.GMT_0031_2025.standard)
    return seal


def tbs_to_sign(
    version: Version,
    eseal_der: bytes,
    time: datetime,
    data_hash: bytes,
    property_info: str,
    extensions: Sequence[Extension] = (),
) -> bytes:
    """``TBS_Sign``, DER: what the seal's key signs. ``data_hash`` is the plain SM3 of the protected data."""
    _check_writable(version)
    if len(data_hash) != DIGEST_LEN:
        raise BadRequest(f"a data hash is SM3: {DIGEST_LEN} bytes, got {len(data_hash)}")
    if len(property_info) > MAX_PROPERTY_LEN:
        raise BadRequest(f"property info has at most {MAX_PROPERTY_LEN} bytes, got {len(property_info)}")
    return der.sequence(
        der.integer(version),
        eseal_der,
        der.generalized_time(time),
        der.bits(data_hash),
        der.text(der.IA5_STRING, property_info),
        *([der.tlv(der.explicit(0), _write_extensions(extensions))] if extensions else []),
    )


def assemble_signature(
    tbs: bytes,
    signer_certificate: bytes,
    algorithm: Algorithm,
    signature_raw: bytes,
    timestamp: bytes | None = None,
) -> bytes:
    """The ``SES_Signature``, DER. ``timestamp`` is a token over ``signature_to_der(signature_raw)``."""
    return der.sequence(
        tbs,
        der.octets(signer_certificate),
        der.oid(algorithm.signature_oid),
        der.bits(signature_to_der(signature_raw)),
        _write_timestamp(timestamp),
    )


def _check_writable(version: Version) -> None:
    if version is Version.GMT_0031_2014:
        raise BadRequest(
            "seals of the first edition are read and verified, never made",
            hint="use version 4 (GB/T 38540-2020) or 5",
        )


def _write_extensions(extensions: Sequence[Extension]) -> bytes:
    return der.sequence(
        *(
            der.sequence(der.oid(e.oid), der.boolean(True) if e.critical else b"", der.octets(e.value))
            for e in extensions
        )
    )


def _write_timestamp(token: bytes | None) -> bytes:
    return b"" if token is None else der.tlv(der.explicit(0), der.bits(token))
