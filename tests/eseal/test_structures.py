"""Reading and writing seals and seal signatures."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from appliance.algorithms import Algorithm, signature_to_der
from appliance.errors import BadRequest
from appliance.eseal.structures import (
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


def seal_of(version: Version = Version.GBT_38540_2020, **changes: object) -> bytes:
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
