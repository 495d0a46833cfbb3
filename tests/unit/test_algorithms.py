"""Keys and signatures as bytes, against what others make of the same: pyca/cryptography and the openssl program."""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from appliance.algorithms import (
    MAX_CERTIFICATE_LEN,
    MAX_SPKI_LEN,
    Algorithm,
    PublicKey,
    signature_from_der,
    signature_to_der,
)
from appliance.errors import BadRequest

P256 = Algorithm.ECDSA_P256_SHA256
SM2 = Algorithm.SM2_SM3
GENERATORS = {
    P256: "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296"
    "4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5",  # SEC 2, 2.4.2
    SM2: "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0",  # GB/T 32918.5
}
PRIMES = {
    P256: 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF,
    SM2: 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF,
}
SPKI_FORMAT = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def sm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An SM2 key's SubjectPublicKeyInfo and a certificate of it, made by the openssl program."""
    key = tmp_path_factory.mktemp("sm2") / "key.pem"
    key.write_bytes(openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2"))
    spki = openssl("pkey", "-in", str(key), "-pubout", "-outform", "DER")
    certificate = openssl(
        "req", "-x509", "-new", "-key", str(key), "-sm3", "-subj", "/CN=seal", "-days", "1", "-outform", "DER"
    )
    return spki, certificate


def certificate_of(public: object, issuer: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "seal")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, public, 1, now, now + dt.timedelta(days=1))  # type: ignore[arg-type]
    return builder.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# Points -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_generator_is_on_its_curve_and_on_no_other(algorithm: Algorithm) -> None:
    for other, point in GENERATORS.items():
        if other is algorithm:
            assert PublicKey(algorithm, bytes.fromhex(point)).point.hex().upper() == point
        else:
            with pytest.raises(BadRequest, match="not on the curve"):
                PublicKey(algorithm, bytes.fromhex(point))


def big(value: int) -> bytes:
    return value.to_bytes(32, "big")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_points_that_are_none(algorithm: Algorithm) -> None:
    point, p = bytes.fromhex(GENERATORS[algorithm]), PRIMES[algorithm]
    x, y = int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big")
    assert PublicKey(algorithm, big(x) + big(p - y)), "the other root is a point too"
    bad = {
        "infinity": bytes(64),
        "off by one": big(x) + big(y + 1),
        "swapped": big(y) + big(x),
        "x is p": big(p) + big(y),
        "all ones": b"\xff" * 64,
        "short": point[:63],
        "long": point + b"\0",
        "empty": b"",
        "with its format byte": b"\4" + point,
    }
    for what, value in bad.items():
        with pytest.raises(BadRequest):
            PublicKey(algorithm, value)
            pytest.fail(what)


def test_coordinates_are_below_p() -> None:
    """x and x + p are the same number modulo p and not the same encoding: only one of them is a key."""
    for algorithm, p in PRIMES.items():
        b = {
            P256: 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
            SM2: 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93,
        }[algorithm]
        for x in range(200):
            square = (x**3 - 3 * x + b) % p
            y = pow(square, (p + 1) // 4, p)
            if y * y % p == square and x + p < 2**256:
                assert PublicKey(algorithm, big(x) + big(y))
                with pytest.raises(BadRequest):
                    PublicKey(algorithm, big(x + p) + big(y))
                break
        else:
            pytest.fail("no small x")


# SubjectPublicKeyInfo and certificates ----------------------------------------------------------------------


def test_p256_as_others_write_it() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    spki = private.public_key().public_bytes(*SPKI_FORMAT)
    key = PublicKey.from_spki(spki)
    numbers = private.public_key().public_numbers()
    assert key == PublicKey(P256, big(numbers.x) + big(numbers.y))
    assert key.spki() == spki and len(spki) == 91
    assert PublicKey.from_certificate(certificate_of(private.public_key(), private)) == key


def test_sm2_as_openssl_writes_it(sm2: tuple[bytes, bytes]) -> None:
    spki, certificate = sm2
    key = PublicKey.from_spki(spki)
    assert key.algorithm is SM2 and key.spki() == spki and len(spki) == 91
    assert PublicKey.from_certificate(certificate) == key


@pytest.mark.parametrize("algorithm", Algorithm)
def test_openssl_reads_what_we_write(algorithm: Algorithm) -> None:
    spki = PublicKey(algorithm, bytes.fromhex(GENERATORS[algorithm])).spki()
    text = openssl("pkey", "-pubin", "-inform", "DER", "-noout", "-text", stdin=spki).decode()
    assert {P256: "prime256v1", SM2: "SM2"}[algorithm] in text


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    signer = ec.generate_private_key(ec.SECP256R1())
    others = [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65_537, 2_048).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ]
    for other in others:
        with pytest.raises(BadRequest):
            PublicKey.from_spki(other.public_bytes(*SPKI_FORMAT))
        with pytest.raises(BadRequest):
            PublicKey.from_certificate(certificate_of(other, signer))


def test_other_ways_to_write_a_key_are_refused(sm2: tuple[bytes, bytes]) -> None:
    """Explicit parameters (CVE-2020-0601) and compressed points: one key has one encoding here."""
    for form in (("-param_enc", "explicit"), ("-conv_form", "compressed")):
        der = openssl("ec", "-pubin", "-inform", "DER", "-pubout", "-outform", "DER", *form, stdin=sm2[0])
        with pytest.raises(BadRequest):
            PublicKey.from_spki(der)


def test_a_key_has_no_trailing_bytes_and_a_limit(sm2: tuple[bytes, bytes]) -> None:
    spki, certificate = sm2
    bad = [spki + b"\0", spki[:-1], b"", b"\x30", spki[1:], spki + bytes(MAX_SPKI_LEN)]
    for der in bad:
        with pytest.raises(BadRequest):
            PublicKey.from_spki(der)
    for der in (certificate + b"\0", certificate[:-1], b"", spki, certificate + bytes(MAX_CERTIFICATE_LEN)):
        with pytest.raises(BadRequest):
            PublicKey.from_certificate(der)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_key_or_a_bad_request(der: bytes) -> None:
    for read in (PublicKey.from_spki, PublicKey.from_certificate, signature_from_der):
        try:
            read(der)
        except BadRequest as error:
            assert error.detail


@given(st.data())
def test_mutated_certificates_are_a_key_or_a_bad_request(
    sm2: tuple[bytes, bytes], data: st.DataObject
) -> None:
    """What a stranger sends must not come out as the parser's own idea of an error."""
    der = bytearray(sm2[1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(der) - 1))
        match data.draw(st.sampled_from(("set", "delete", "insert"))):
            case "set":
                der[at] = data.draw(st.integers(0, 255))
            case "delete":
                del der[at : at + data.draw(st.integers(1, 4))]
            case _:
                der[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        PublicKey.from_certificate(bytes(der))
    except BadRequest as error:
        assert error.detail


def test_every_single_byte_of_a_certificate_changed(sm2: tuple[bytes, bytes]) -> None:
    der = sm2[1]
    for at in range(len(der)):
        for value in {0, 0x80, 0xFF, der[at] ^ 1, der[at] ^ 0x20}:
            with contextlib.suppress(BadRequest):
                PublicKey.from_certificate(der[:at] + bytes((value,)) + der[at + 1 :])


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
def test_labels(algorithm: Algorithm) -> None:
    assert Algorithm.from_label(algorithm.label) is algorithm
    with pytest.raises(BadRequest) as caught:
        Algorithm.from_label(algorithm.label.upper())
    assert algorithm.label in caught.value.hint


def test_oids_are_those_of_openssl(sm2: tuple[bytes, bytes]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    for algorithm, der in ((P256, certificate_of(private.public_key(), private)), (SM2, sm2[1])):
        assert (
            x509.load_der_x509_certificate(der).signature_algorithm_oid.dotted_string
            == algorithm.signature_oid
        )


# Signatures -------------------------------------------------------------------------------------------------

HALVES = st.integers(0, 2**256 - 1)


@given(HALVES, HALVES)
def test_signatures_as_pyca_writes_them(r: int, s: int) -> None:
    raw, der = big(r) + big(s), encode_dss_signature(r, s)
    assert signature_to_der(raw) == der and signature_from_der(der) == raw
    assert decode_dss_signature(der) == (r, s)


@pytest.mark.parametrize(
    "der",
    [
        pytest.param("", id="nothing"),
        pytest.param("3006020101020101 00", id="trailing byte"),
        pytest.param("3007020101020101 00", id="trailing byte inside"),
        pytest.param("30060201010201", id="truncated"),
        pytest.param("3003020101", id="one integer"),
        pytest.param("3009020101020101020101", id="three integers"),
        pytest.param("3007 02020001 020101", id="leading zero"),
        pytest.param("3006 0201ff 020101", id="negative"),
        pytest.param("3005 0200 020101", id="empty integer"),
        pytest.param("308106 020101 020101", id="long form length"),
        pytest.param("30800201010201010000", id="indefinite length"),
        pytest.param("3006 030101 020101", id="a bit string"),
        pytest.param("3106 020101 020101", id="a set"),
        pytest.param("a006 020101 020101", id="context tag"),
        pytest.param("3000", id="empty sequence"),
        pytest.param("0500", id="null"),
        pytest.param("3026 0221 01" + "00" * 32 + "020101", id="257 bits"),
        pytest.param("3006 220101 020101", id="constructed integer"),
    ],
)
def test_signatures_that_are_not_der(der: str) -> None:
    with pytest.raises(BadRequest):
        signature_from_der(bytes.fromhex(der))


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_a_raw_signature_has_64_bytes(length: int) -> None:
    with pytest.raises(BadRequest):
        signature_to_der(bytes(length))
