"""Reading and writing seals and seal signatures."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from asn1crypto import core
from hypothesis import given
from hypothesis import strategies as st

from appliance.algorithms import Algorithm, signature_to_der
from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.structures import (
    MAX_SEAL_LEN,
    MAX_SIGNATURE_LEN,
    MAX_TOKEN_LEN,
    CertificateDigest,
    Extension,
    Picture,
    Version,
    assemble_seal,
    assemble_signature,
    certificate_digest,
    read_seal,
    read_signature,
    seal_info_to_sign,
    tbs_to_sign,
)

SM2 = Algorithm.SM2_SM3
MADE, FROM, TO = (datetime(2026, month, 2, 3, 4, 5, tzinfo=UTC) for month in (1, 2, 11))
PICTURE = Picture("png", b"\x89PNG imprint", 42, 42)
RAW = bytes(range(64))


def seal_of(version: Version = Version.GBT_38540_2020, /, **changes: object) -> bytes:
    values: dict[str, object] = {
        "vid": "cloud-seal", "code": "33010600000001", "type_": 1, "name": "某某公司", "certificates": [b"cert"],
        "created_at": MADE, "valid_from": FROM, "valid_to": TO, "picture": PICTURE, **changes,
    }  # fmt: skip
    info = seal_info_to_sign(version, **values)  # type: ignore[arg-type]
    stamp = b"token" if version is Version.GMT_0031_2025 else None
    return assemble_seal(info, b"maker", SM2, RAW, stamp)


@pytest.mark.parametrize("version", [Version.GBT_38540_2020, Version.GMT_0031_2025])
@pytest.mark.parametrize("signers", [(b"one",), (b"one", b"two" * 99), (certificate_digest(b"one"),)])
@pytest.mark.parametrize(
    "extensions", [(), (Extension("1.2.3", False, b"a"), Extension("2.5.29.15", True, b""))]
)
def test_what_is_written_is_read(
    version: Version,
    signers: tuple[bytes, ...] | tuple[CertificateDigest, ...],
    extensions: tuple[Extension, ...],
) -> None:
    written = seal_of(version, certificates=signers, extensions=extensions)
    seal = read_seal(written)
    assert seal.der == written and seal.info == seal.signed and seal.info in written
    assert (seal.version, seal.header_version, seal.code, seal.type) == (
        version,
        version,
        "33010600000001",
        1,
    )
    assert (seal.name, seal.vendor_id, seal.signers) == ("某某公司", "cloud-seal", signers)
    assert (seal.created_at, seal.valid_from, seal.valid_to) == (MADE, FROM, TO)
    assert (seal.picture, seal.extensions, seal.notes) == (PICTURE, extensions, ())
    assert (seal.maker_certificate, seal.algorithm) == (b"maker", SM2.signature_oid)
    assert seal.signature == signature_to_der(RAW)
    assert seal.timestamp == (b"token" if version == 5 else None)

    for stamp in (None, b"token"):
        tbs = tbs_to_sign(version, written, FROM, bytes(32), "/Doc_0/Signs/Sign_0/Signature.xml", extensions)
        whole = assemble_signature(tbs, b"signer", SM2, RAW, stamp)
        signature = read_signature(whole)
        assert signature.der == whole and signature.tbs == tbs and signature.seal == seal
        assert (signature.signed_at, signature.time_token, signature.timestamp) == (FROM, None, stamp)
        assert (signature.data_hash, signature.property_info) == (
            bytes(32),
            "/Doc_0/Signs/Sign_0/Signature.xml",
        )
        assert (signature.extensions, signature.certificate) == (extensions, b"signer")
        assert signature.signature == signature_to_der(RAW)


def test_the_first_edition_is_not_written() -> None:
    with pytest.raises(BadRequest, match="never made"):
        seal_of(Version.GMT_0031_2014)
    with pytest.raises(BadRequest, match="never made"):
        tbs_to_sign(Version.GMT_0031_2014, b"", MADE, bytes(32), "")


@pytest.mark.parametrize(
    ("at_the_limit", "beyond", "match"),
    [
        ({"vid": "v" * 128}, {"vid": "v" * 129}, "Vid: at most 128"),
        ({"code": "1" * 128}, {"code": "1" * 129}, "esID: at most 128"),
        ({"name": "章" * 341}, {"name": "章" * 342}, "name: at most 1024"),
        ({"picture": Picture("png", bytes(3 << 18), 1, 1)}, {"picture": Picture("png", bytes((3 << 18) + 1), 1, 1)},
         "data: at most 786432"),
        ({"picture": Picture("png", b"", 1000, 0)}, {"picture": Picture("png", b"", 1001, 1)}, "width: expected 0 to"),
        ({"certificates": [b"c"] * 256}, {"certificates": [b"c"] * 257}, "certList: more than 256"),
        ({"certificates": [certificate_digest(b"c")] * 256}, {"certificates": [certificate_digest(b"c")] * 257},
         "certList: more than 256"),
        ({"certificates": [bytes(65_536)]}, {"certificates": [bytes(65_537)]}, "at most 65536"),
        ({"extensions": [Extension("1.2.3", False, b"")] * 64}, {"extensions": [Extension("1.2.3", False, b"")] * 65},
         "extDatas: more than 64"),
        ({"type_": 2**31 - 1}, {"type_": 2**31}, "type: expected"),
        ({"type_": -5}, {"certificates": []}, "at least one"),
        ({}, {"certificates": [b"c", certificate_digest(b"c")]}, "either"),
        ({}, {"valid_from": TO}, "ends before it begins"),
        ({}, {"created_at": datetime(2026, 1, 1)}, "zone"),  # noqa: DTZ001
        ({}, {"code": "三三"}, "IA5String"),
        ({}, {"extensions": [Extension("1.99.3", False, b"")]}, "object identifier"),
        ({}, {"extensions": [Extension("0.1." + "9" * 300, False, b"")]}, "object identifier"),
    ],
)  # fmt: skip
def test_limits_of_a_seal(at_the_limit: dict[str, object], beyond: dict[str, object], match: str) -> None:
    seal_of(**at_the_limit)
    with pytest.raises(BadRequest, match=match):
        seal_of(**beyond)


def test_limits_of_a_signature() -> None:
    seal = seal_of()

    def tbs(info: str, hash_: bytes = bytes(32)) -> bytes:
        return tbs_to_sign(Version.GBT_38540_2020, seal, FROM, hash_, info)

    read_signature(assemble_signature(tbs("p" * 4096), b"c", SM2, RAW))
    with pytest.raises(BadRequest, match="at most 4096"):
        tbs("p" * 4097)
    with pytest.raises(BadRequest, match="IA5String"):
        tbs("路径")
    with pytest.raises(BadRequest, match="32 bytes, got 31"):
        tbs("p", bytes(31))
    read_signature(assemble_signature(tbs("p"), b"c", SM2, RAW, bytes(MAX_TOKEN_LEN)))
    with pytest.raises(BadRequest, match="timeStamp: at most"):
        read_signature(assemble_signature(tbs("p"), b"c", SM2, RAW, bytes(MAX_TOKEN_LEN + 1)))
    with pytest.raises(BadRequest, match="a seal signature has at most"):
        read_signature(bytes(MAX_SIGNATURE_LEN + 1))
    with pytest.raises(BadRequest, match="a seal has at most"):
        read_seal(bytes(MAX_SEAL_LEN + 1))
    full = [Extension("1.2.3", False, bytes(300_000))]
    with pytest.raises(BadRequest, match="a seal has at most"):
        seal_of(picture=Picture("png", bytes(3 << 18), 1, 1), extensions=full)


def test_only_the_newest_edition_has_a_stamp_on_the_seal() -> None:
    info = read_seal(seal_of()).info
    with pytest.raises(BadRequest, match="version 5"):
        assemble_seal(info, b"maker", SM2, RAW, b"token")
    assert read_seal(seal_of(Version.GMT_0031_2025)).timestamp == b"token"


def parts_of(element: bytes) -> list[bytes]:
    reader, found = der.Reader(element, "", "").inside(""), []
    while not reader.at_end():
        found.append(reader.raw(""))
    return found


def with_info(*changes: tuple[int, bytes]) -> bytes:
    """A seal whose ``SES_SealInfo`` has other elements at some places, one more where the place is not there."""
    info, *rest = parts_of(seal_of())
    elements = parts_of(info)
    for at, element in changes:
        elements[at : at + 1] = [element]
    return der.sequence(der.sequence(*elements), *rest)


EXTENSION = der.sequence(der.oid("1.2.3"), der.octets(b"x"))


@pytest.mark.parametrize(
    ("seal", "match"),
    [
        (with_info((0, der.sequence(der.text(0x16, "EX"), der.integer(4), der.text(0x16, "v")))), "header.ID"),
        (with_info((0, der.sequence(der.text(0x16, "ES"), der.boolean(True), der.text(0x16, "v")))), "header.version"),
        (with_info((1, der.text(0x0C, "x"))), "esID: expected IA5String, got UTF8String"),
        (with_info((1, der.tlv(0x16, b"\xff"))), "esID: not a IA5String"),
        (with_info((4, der.tlv(0xA0, der.sequence(EXTENSION)))), r"extDatas: expected SEQUENCE, got \[0\]"),
        (with_info((4, der.sequence(EXTENSION)), (5, EXTENSION)), "bytes too many at the end"),
        (with_info((4, der.sequence(der.sequence(der.oid("1.2.3"))))), "extnValue: is missing"),
        (with_info((4, der.sequence(der.sequence(der.tlv(6, b"\x80\x01"), der.octets(b""))))), "OBJECT IDENTIFIER"),
        (with_info((4, der.sequence(der.sequence(der.oid("1.2.3"), der.tlv(1, b"\x01"), der.octets(b""))))), "00 or"),
        (seal_of() + b"\0", "1 bytes too many"),
        (b"\x02\x01\x00", "SESeal: expected SEQUENCE, got INTEGER"),
        (b"", "SESeal: is missing"),
        (b"\x30", "ends before its length"),
        (b"\x30\x82\x01", "ends before its length"),
        (b"\x30\x80\x00\x00", "definite"),
        (b"\x30\x85\x00\x00\x00\x00\x00", "definite"),
        (b"\x30\x81\x01\x00", "fewest bytes"),
        (b"\x30\x05\x00", "says 5 bytes, 1 are left"),
    ],
)  # fmt: skip
def test_what_is_no_seal(seal: bytes, match: str) -> None:
    with pytest.raises(BadRequest, match=match) as caught:
        read_seal(seal)
    if len(seal) < 2**20:
        assert "GB/T 38540-2020" in caught.value.hint


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"20260203040506Z", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (b"20260203040506.25Z", datetime(2026, 2, 3, 4, 5, 6, 250_000, tzinfo=UTC)),
        (b"20260203120506+0800", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (b"20260203040506", None),
        (b"20260203040506.Z", None),
        (b"20260230040506Z", None),
        (b"00000203040506Z", None),
        (b"00010101000000+0100", None),
        (b"2026020304050\xb2Z", None),
        (b"202602030405Z", None),
        (b"Z", None),
        (b"", None),
    ],
)
def test_times(written: bytes, read: datetime | None) -> None:
    reader = der.Reader(der.tlv(der.GENERALIZED_TIME, written), "time", "source")
    if read is None:
        with pytest.raises(BadRequest):
            reader.time("", der.GENERALIZED_TIME)
        return
    assert reader.time("", der.GENERALIZED_TIME) == read
    assert bool(reader.notes) is (not written.endswith(b"Z"))


@pytest.mark.parametrize(("written", "year"), [(b"491231235959Z", 2049), (b"500101000000Z", 1950)])
def test_centuries(written: bytes, year: int) -> None:
    reader = der.Reader(der.tlv(der.UTC_TIME, written), "time", "source")
    assert reader.time("", der.UTC_TIME).year == year


@given(st.integers(-(2**80), 2**80))
def test_integers(value: int) -> None:
    written = der.integer(value)
    assert core.Integer(value).dump() == written
    assert der.Reader(written, "", "").integer("", -(2**80), 2**80) == value


@given(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 2**64), max_size=6))
def test_object_identifiers(first: int, second: int, rest: list[int]) -> None:
    dotted = ".".join(map(str, (first, second, *rest)))
    written = der.oid(dotted)
    assert core.ObjectIdentifier(dotted).dump() == written
    assert der.Reader(written, "", "").oid("") == dotted


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65_535, 65_536])
def test_lengths(length: int) -> None:
    written = der.octets(bytes(length))
    assert core.OctetString(bytes(length)).dump() == written
    assert der.Reader(written, "", "").octets("", length) == bytes(length)


def test_depth() -> None:
    nested = b""
    for _ in range(20):
        nested = der.sequence(nested)
    reader = der.Reader(nested, "", "")
    with pytest.raises(BadRequest, match="deeper than 16"):
        for _ in range(20):
            reader = reader.inside("")


def test_editions_are_told_by_their_form() -> None:
    """The newest has a stamp, whatever its header says; without one the header decides."""
    info, maker, algorithm, value = parts_of(seal_of())
    stamp = der.tlv(0xA0, der.bits(b"token"))
    odd = read_seal(der.sequence(info, maker, algorithm, value, stamp))
    assert odd.version is Version.GMT_0031_2025 and "form of 5" in odd.notes[0]
    header, *others = parts_of(info)
    identifier, _, vendor = parts_of(header)
    for number, version in (
        (5, Version.GMT_0031_2025),
        (4, Version.GBT_38540_2020),
        (11, Version.GBT_38540_2020),
    ):
        changed = der.sequence(der.sequence(identifier, der.integer(number), vendor), *others)
        seal = read_seal(der.sequence(changed, maker, algorithm, value))
        assert seal.version is version and bool(seal.notes) is (number == 11)


def test_a_cms_signature_is_named_as_such() -> None:
    with pytest.raises(BadRequest, match="CMS"):
        read_signature(der.sequence(der.oid("1.2.840.113549.1.7.2"), der.tlv(0xA0)))
