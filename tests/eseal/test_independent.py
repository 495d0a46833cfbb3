"""Other people's code: the standard's modules under an ASN.1 compiler, and OpenSSL over the bytes we say are signed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asn1tools
import pytest

from appliance.algorithms import SM2_DEFAULT_ID, Algorithm, PublicKey, signature_to_der
from appliance.eseal.structures import (
    Extension,
    Picture,
    Version,
    assemble_seal,
    assemble_signature,
    certificate_digest,
    read_signature,
    seal_info_to_sign,
    tbs_to_sign,
)

from .conftest import MANIFEST, Vector, load
from .pki import P256, SM2, Holder

MODULES = {
    Version.GMT_0031_2014: "gmt-0031-2014",
    Version.GBT_38540_2020: "gbt-38540-2020",
    Version.GMT_0031_2025: "gmt-0031-2025",
}
GOOD = sorted(
    name
    for name, entry in MANIFEST.items()
    if entry["verdict"] == "good" and entry["kind"] == "signature" and "crls" not in entry
)
AT = datetime(2026, 6, 1, 8, 30, tzinfo=UTC)
Compile = Callable[[Version], Any]
Check = Callable[[PublicKey, bytes, bytes], bool]


@pytest.fixture(scope="module")
def compiled() -> Compile:
    known: dict[Version, Any] = {}

    def of(version: Version) -> Any:
        if version not in known:
            path = Path(__file__).parent / "asn1" / f"{MODULES[version]}.asn"
            known[version] = asn1tools.compile_files(str(path), "der")
        return known[version]

    return of


@pytest.fixture
def openssl_agrees(tmp_path: Path) -> Check:
    """Whether ``openssl dgst -verify`` finds a DER signature good over a message."""

    def check(public: PublicKey, message: bytes, signature: bytes) -> bool:
        for name, data in (("key.der", public.spki()), ("message", message), ("signature", signature)):
            (tmp_path / name).write_bytes(data)
        subprocess.run(
            ["openssl", "pkey", "-pubin", "-inform", "DER", "-in", "key.der", "-out", "key.pem"],
            check=True, cwd=tmp_path,
        )  # fmt: skip
        digest = ["-sha256"]
        if public.algorithm is SM2:
            digest = ["-sm3", "-sigopt", f"distid:{SM2_DEFAULT_ID.decode()}"]
        command = ["openssl", "dgst", *digest, "-verify", "key.pem", "-signature", "signature", "message"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0

    return check


def written(
    version: Version, algorithm: Algorithm, by_digest: bool, extensions: tuple[Extension, ...]
) -> bytes:
    root = Holder("root", algorithm, is_ca=True)
    maker, signer = Holder("maker", algorithm, root), Holder("signer", algorithm, root)
    listed = [certificate_digest(signer.certificate)] if by_digest else [signer.certificate]
    info = seal_info_to_sign(
        version, "cloud-seal", "33010600000001", 4, "某某公司合同专用章", listed, AT, AT, AT + timedelta(days=99),
        Picture("png", bytes(300), 40, 30), extensions,
    )  # fmt: skip
    stamp = b"a token" if version is Version.GMT_0031_2025 else None
    seal = assemble_seal(info, maker.certificate, algorithm, maker.key.sign(info), stamp)
    tbs = tbs_to_sign(version, seal, AT, bytes(range(32)), "/Doc_0/Signs/Sign_0/Signature.xml", extensions)
    return assemble_signature(tbs, signer.certificate, algorithm, signer.key.sign(tbs), b"another token")


@pytest.mark.parametrize("version", [Version.GBT_38540_2020, Version.GMT_0031_2025])
@pytest.mark.parametrize("algorithm", [SM2, P256])
@pytest.mark.parametrize("by_digest", [False, True])
@pytest.mark.parametrize(
    "extensions", [(), (Extension("1.2.156.10197.6.7.2.2.1", False, b"2.1"), Extension("1.3.6.1", True, b""))]
)
def test_what_we_write(
    compiled: Compile,
    openssl_agrees: Check,
    version: Version,
    algorithm: Algorithm,
    by_digest: bool,
    extensions: tuple[Extension, ...],
) -> None:
    whole = written(version, algorithm, by_digest, extensions)
    decoded = compiled(version).decode("SES-Signature", whole)
    assert compiled(version).encode("SES-Signature", decoded) == whole
    signature = read_signature(whole)
    compare(signature, decoded)
    seal = signature.seal
    for certificate, message, value in (
        (seal.maker_certificate, seal.signed, seal.signature),
        (signature.certificate, signature.tbs, signature.signature),
    ):
        public = PublicKey.from_certificate(certificate)
        assert openssl_agrees(public, message, value)
        assert not openssl_agrees(public, message + b"\0", value)


@pytest.mark.parametrize("name", GOOD)
def test_the_vectors(compiled: Compile, openssl_agrees: Check, name: str) -> None:
    whole = load(name).data
    signature = read_signature(whole)
    module = compiled(signature.version)
    decoded = module.decode("SES-Signature", whole)
    # DER leaves FALSE out: encoded again, that seal would be another one, with a wrong signature.
    assert (module.encode("SES-Signature", decoded) == whole) is (name != "good_critical_false")
    compare(signature, decoded)
    seal = signature.seal
    assert openssl_agrees(PublicKey.from_certificate(seal.maker_certificate), seal.signed, seal.signature)
    assert openssl_agrees(
        PublicKey.from_certificate(signature.certificate), signature.tbs, signature.signature
    )


def compare(signature: Any, decoded: Any) -> None:
    """Our reading against the compiler's, field by field."""
    tbs = decoded["toSign"]
    seal, first = signature.seal, signature.version is Version.GMT_0031_2014
    info = tbs["eseal"]["esealInfo" if first else "eSealInfo"]
    header, property_, picture = info["header"], info["property"], info["picture"]
    assert (header["iD"], header["version"], header["vid"]) == ("ES", seal.header_version, seal.vendor_id)
    assert (info["esID"], property_["type"], property_["name"]) == (seal.code, seal.type, seal.name)
    times = [property_[each].replace(tzinfo=UTC) for each in ("createDate", "validStart", "validEnd")]
    assert times == [seal.created_at, seal.valid_from, seal.valid_to]
    assert (picture["type"], picture["data"]) == (seal.picture.format, seal.picture.data)
    assert (picture["width"], picture["height"]) == (seal.picture.width_mm, seal.picture.height_mm)
    listed = [each if first else each[1] for each in property_["certList"]]
    assert listed == [
        each if isinstance(each, bytes) else {"type": each.type, "value": each.value} for each in seal.signers
    ]
    assert [each["extnID"] for each in info.get("extDatas", ())] == [each.oid for each in seal.extensions]
    sealed = tbs["eseal"]["signInfo"] if first else tbs["eseal"]
    assert sealed["cert"] == seal.maker_certificate
    assert sealed["signData" if first else "signedValue"] == (seal.signature, 8 * len(seal.signature))
    signer = tbs if first else decoded
    assert signer["cert"] == signature.certificate
    assert signer["signatureAlgorithm" if first else "signatureAlgID"] == signature.algorithm
    assert tbs["dataHash"] == (signature.data_hash, 8 * len(signature.data_hash))
    assert tbs["propertyInfo"] == signature.property_info
    assert decoded["signature"] == (signature.signature, 8 * len(signature.signature))
    if not first:
        assert tbs["timeInfo"].replace(tzinfo=UTC) == signature.signed_at
        stamp = decoded.get("timeStamp")
        assert (stamp[0] if stamp else None) == signature.timestamp


def test_a_signature_value_is_der() -> None:
    raw = load("raw_signature")
    assert isinstance(raw, Vector)
    value = read_signature(raw.data).signature
    assert len(value) == 64
    assert len(signature_to_der(value)) > 64
