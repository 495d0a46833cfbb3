"""Signatures through the module, judged by others: OpenSSL's command line, gmssl, the standard's example."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from asn1crypto.algos import DSASignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from gmssl import func, sm2, sm3

from .p11 import CK, P256_PARAMS, SM2_PARAMS, Module, P11Error, PssParameters, Session

SM2_ORDER = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DEFAULT_ID = "1234567812345678"


def to_der(signature: bytes) -> bytes:
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    return DSASignature({"r": r, "s": s}).dump()


def from_der(der: bytes) -> bytes:
    parsed = DSASignature.load(der)
    return parsed["r"].native.to_bytes(32) + parsed["s"].native.to_bytes(32)


def openssl(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, **options)


def sm2_z(point: bytes, identity: bytes = DEFAULT_ID.encode()) -> bytes:
    a = "FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC"
    b = "28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93"
    g = (
        "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
        "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
    )
    block = (8 * len(identity)).to_bytes(2) + identity + bytes.fromhex(a + b + g) + point
    return bytes.fromhex(sm3.sm3_hash(func.bytes_to_list(block)))


def sm3_of(data: bytes) -> bytes:
    return bytes.fromhex(sm3.sm3_hash(func.bytes_to_list(data)))


def import_sm2(session: Session, d: bytes, point: bytes) -> tuple[int, int]:
    common = {"CKA_KEY_TYPE": CK["CKK_EC"], "CKA_EC_PARAMS": SM2_PARAMS}
    public = {"CKA_CLASS": CK["CKO_PUBLIC_KEY"], "CKA_EC_POINT": b"\x04\x41\x04" + point} | common
    private = {"CKA_CLASS": CK["CKO_PRIVATE_KEY"], "CKA_VALUE": d} | common
    return session.create(public), session.create(private)


@pytest.fixture(params=["openssl", "fast"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, settings: Path) -> str:
    monkeypatch.setenv("FIRMWARE_SIM_ENGINE", request.param)
    return request.param


@pytest.mark.parametrize("identity", [DEFAULT_ID, "alice@example.com"])
def test_sm2_over_a_message_verifies_under_openssl(
    engine: str, user: Session, tmp_path: Path, identity: str
) -> None:
    public, private = user.sm2_pair()
    parameter = b"" if identity == DEFAULT_ID else identity.encode()
    key, message, signature = tmp_path / "pub.der", tmp_path / "message", tmp_path / "signature"
    key.write_bytes(user.get(public, "CKA_PUBLIC_KEY_INFO"))
    for text in (b"", b"abc", bytes(range(256)) * 9):
        message.write_bytes(text)
        made = user.sign("CKM_SM3_SM2", private, text, parameter)
        assert user.verify("CKM_SM3_SM2", public, text, made, parameter)
        assert not user.verify("CKM_SM3_SM2", public, text, made, b"somebody else")
        signature.write_bytes(to_der(made))
        arguments = ["dgst", "-sm3", "-verify", str(key), "-keyform", "DER", "-signature", str(signature)]
        assert openssl(*arguments, "-sigopt", f"distid:{identity}", str(message)).returncode == 0
        assert openssl(*arguments, "-sigopt", "distid:nobody", str(message)).returncode != 0


def test_openssl_signatures_verify_under_ours(user: Session, tmp_path: Path) -> None:
    pem, message = tmp_path / "key.pem", tmp_path / "message"
    message.write_bytes(b"a message to OpenSSL")
    assert openssl("genpkey", "-algorithm", "SM2", "-out", str(pem)).returncode == 0
    public_der = subprocess.run(
        ["openssl", "pkey", "-in", str(pem), "-pubout", "-outform", "DER"], capture_output=True, check=True
    ).stdout
    public = user.create(
        {
            "CKA_CLASS": CK["CKO_PUBLIC_KEY"],
            "CKA_KEY_TYPE": CK["CKK_SM2"],
            "CKA_EC_PARAMS": SM2_PARAMS,
            "CKA_EC_POINT": b"\x04\x41" + public_der[-65:],
        }
    )
    for identity, parameter in ((DEFAULT_ID, b""), ("bob", b"bob")):
        made = subprocess.run(
            ["openssl", "dgst", "-sm3", "-sign", str(pem), "-sigopt", f"distid:{identity}", str(message)],
            capture_output=True,
            check=True,
        ).stdout
        assert user.verify("CKM_SM3_SM2", public, message.read_bytes(), from_der(made), parameter)
        assert not user.verify("CKM_SM3_SM2", public, b"another message", from_der(made), parameter)


def test_sm2_both_ways_with_gmssl(engine: str, user: Session) -> None:
    public, private = user.sm2_pair()
    point = user.public_point(public)
    e = sm3_of(sm2_z(point) + b"gmssl")
    judge = sm2.CryptSM2(private_key="", public_key=point.hex())
    assert judge.verify(user.sign("CKM_SM2", private, e).hex(), e)
    assert judge.verify(user.sign("CKM_SM3_SM2", private, b"gmssl").hex(), e)

    d = "3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8"
    theirs = sm2.CryptSM2(private_key=d, public_key="")
    their_point = bytes.fromhex(theirs._kg(int(d, 16), theirs.ecc_table["g"]))
    their_public, _ = import_sm2(user, bytes.fromhex(d), their_point)
    e = sm3_of(sm2_z(their_point) + b"ours")
    signature = bytes.fromhex(
        theirs.sign(e, f"{0x59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21:064x}")
    )
    assert user.verify("CKM_SM2", their_public, e, signature)
    assert user.verify("CKM_SM3_SM2", their_public, b"ours", signature)


def test_the_example_of_gbt_32918_5(user: Session) -> None:
    """GB/T 32918.5-2017, A.2: the published signature verifies, the published d gives the published point."""
    d = bytes.fromhex("3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8")
    point = bytes.fromhex(
        "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020"
        "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13"
    )
    signature = bytes.fromhex(
        "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3"
        "B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA"
    )
    public, private = import_sm2(user, d, point)
    assert user.get(private, "CKA_PUBLIC_KEY_INFO")[-64:] == point
    assert user.verify("CKM_SM3_SM2", public, b"message digest", signature)
    e = bytes.fromhex("F0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640")
    assert user.verify("CKM_SM2", public, e, signature)


def test_the_engines_agree(loaded: Module, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one engine signs verifies, whatever signed it: edge values of e included."""
    inputs = [
        bytes(32),
        b"\xff" * 32,
        SM2_ORDER.to_bytes(32),
        (SM2_ORDER - 1).to_bytes(32),
        (SM2_ORDER + 1).to_bytes(32),
        *(hashlib.sha256(bytes([i])).digest() for i in range(20)),
    ]
    for d in (1, 2, SM2_ORDER - 2, 0x1234567890ABCDEF << 130):
        for engine in ("openssl", "fast"):
            monkeypatch.setenv("FIRMWARE_SIM_ENGINE", engine)
            with loaded.running():
                if not settings.joinpath("0").exists():
                    loaded.make_token()
                session = loaded.open().login()
                attributes = {"CKA_KEY_TYPE": CK["CKK_SM2"], "CKA_EC_PARAMS": SM2_PARAMS}
                private = session.create(
                    attributes | {"CKA_CLASS": CK["CKO_PRIVATE_KEY"], "CKA_VALUE": d.to_bytes(32)}
                )
                point = session.get(private, "CKA_PUBLIC_KEY_INFO")[-65:]
                public = session.create(
                    attributes | {"CKA_CLASS": CK["CKO_PUBLIC_KEY"], "CKA_EC_POINT": b"\x04\x41" + point}
                )
                made = [session.sign("CKM_SM2", private, e) for e in inputs]
                made += [item for item in loaded.sign_batch(session, "CKM_SM2", private, inputs) if item]
                assert len({signature[:32] for signature in made}) == 2 * len(inputs)
                for e, signature in zip(inputs * 2, made, strict=True):
                    assert session.verify("CKM_SM2", public, e, signature)


def hostile(order: int, good: bytes) -> list[bytes]:
    r, s = int.from_bytes(good[:32]), int.from_bytes(good[32:])
    pairs = [
        (0, s), (r, 0), (0, 0), (order, s), (r, order), (order - r, s), (r, order - r), (1, order - 1),
        (s, r), ((r + 1) % order, s), (r, (s + 1) % order), (2**256 - 1, 2**256 - 1),
    ]  # fmt: skip
    if r + order < 2**256:
        pairs.append((r + order, s))
    if s + order < 2**256:
        pairs.append((r, s + order))
    return [a.to_bytes(32) + b.to_bytes(32) for a, b in pairs]


def test_hostile_sm2_signatures_are_refused(user: Session) -> None:
    public, private = user.sm2_pair()
    e = hashlib.sha256(b"e").digest()
    good = user.sign("CKM_SM2", private, e)
    for bad in hostile(SM2_ORDER, good):
        assert not user.verify("CKM_SM2", public, e, bad), bad.hex()
    # The nonce that was zero: s = -r d / (1 + d) satisfies the equation with the point at infinity, r = e.
    d = 5
    _, weak = import_sm2(user, d.to_bytes(32), user.public_point(public))
    weak_point = user.get(weak, "CKA_PUBLIC_KEY_INFO")[-64:]
    weak_public, _ = import_sm2(user, d.to_bytes(32), weak_point)
    r = int.from_bytes(e) % SM2_ORDER
    s = -r * d * pow(1 + d, -1, SM2_ORDER) % SM2_ORDER
    assert not user.verify("CKM_SM2", weak_public, e, r.to_bytes(32) + s.to_bytes(32))
    for wrong in (good[:-1], good + b"\0", b"", to_der(good)):
        assert not user.verify("CKM_SM2", public, e, wrong)


def test_hostile_keys_are_refused(user: Session) -> None:
    public = {"CKA_CLASS": CK["CKO_PUBLIC_KEY"], "CKA_KEY_TYPE": CK["CKK_EC"]}
    private = {"CKA_CLASS": CK["CKO_PRIVATE_KEY"], "CKA_KEY_TYPE": CK["CKK_EC"]}
    good_public, _ = user.sm2_pair()
    point = user.get(good_public, "CKA_EC_POINT")
    for params in (SM2_PARAMS, P256_PARAMS):
        for bad in (
            b"\x04\x41\x04" + bytes(64),
            b"\x04\x41\x04" + b"\xff" * 64,
            point[:-1] + bytes([point[-1] ^ 1]),
            b"\x04\x01\x00",
            b"\x04\x21\x02" + point[3:35],
            point[2:],
            b"",
        ):
            with pytest.raises(P11Error, match="CKR_ATTRIBUTE_VALUE_INVALID"):
                user.create(public | {"CKA_EC_PARAMS": params, "CKA_EC_POINT": bad})
    for params, order, most in (
        (SM2_PARAMS, SM2_ORDER, SM2_ORDER - 2),
        (P256_PARAMS, P256_ORDER, P256_ORDER - 1),
    ):
        for d in (0, most + 1, order, order + 1, 2**256 - 1):
            with pytest.raises(P11Error, match="CKR_ATTRIBUTE_VALUE_INVALID"):
                user.create(private | {"CKA_EC_PARAMS": params, "CKA_VALUE": d.to_bytes(32)})
        user.create(private | {"CKA_EC_PARAMS": params, "CKA_VALUE": most.to_bytes(32)})
    p384 = bytes.fromhex("06052b81040022")
    with pytest.raises(P11Error, match="CKR_CURVE_NOT_SUPPORTED"):
        user.generate_pair("CKM_EC_KEY_PAIR_GEN", {"CKA_EC_PARAMS": p384})


def test_p256(user: Session) -> None:
    public, private = user.p256_pair()
    judge = serialization.load_der_public_key(user.get(public, "CKA_PUBLIC_KEY_INFO"))
    assert isinstance(judge, ec.EllipticCurvePublicKey)
    digest = hashlib.sha256(b"data").digest()
    made = user.sign("CKM_ECDSA", private, digest)
    judge.verify(to_der(made), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    made = user.sign("CKM_ECDSA_SHA256", private, b"data")
    judge.verify(to_der(made), b"data", ec.ECDSA(hashes.SHA256()))
    assert user.verify("CKM_ECDSA", public, digest, made)
    for bad in hostile(P256_ORDER, made):
        if int.from_bytes(bad[:32]) != P256_ORDER - int.from_bytes(made[:32]):
            assert not user.verify("CKM_ECDSA", public, digest, bad)


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa(user: Session, bits: int) -> None:
    public, private = user.generate_pair("CKM_RSA_PKCS_KEY_PAIR_GEN", {"CKA_MODULUS_BITS": bits})
    judge = serialization.load_der_public_key(user.get(public, "CKA_PUBLIC_KEY_INFO"))
    made = user.sign("CKM_SHA256_RSA_PKCS", private, b"data")
    judge.verify(made, b"data", padding.PKCS1v15(), hashes.SHA256())
    assert user.verify("CKM_SHA256_RSA_PKCS", public, b"data", made)
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(b"data").digest()
    assert user.sign("CKM_RSA_PKCS", private, info) == made
    parameters = PssParameters(CK["CKM_SHA256"], CK["CKG_MGF1_SHA256"], 32)
    made = user.sign("CKM_SHA256_RSA_PKCS_PSS", private, b"data", parameters)
    judge.verify(made, b"data", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    assert user.verify("CKM_RSA_PKCS_PSS", public, hashlib.sha256(b"data").digest(), made, parameters)
    assert not user.verify("CKM_SHA256_RSA_PKCS_PSS", public, b"datb", made, parameters)


def test_keys_are_not_shared_between_algorithms(user: Session) -> None:
    sm2_public, sm2_private = user.sm2_pair()
    p256_public, p256_private = user.p256_pair()
    for name, key in (("CKM_ECDSA", sm2_private), ("CKM_SM2", p256_private), ("CKM_RSA_PKCS", sm2_private)):
        with pytest.raises(P11Error, match="CKR_KEY_TYPE_INCONSISTENT"):
            user.sign(name, key, bytes(32))
    for name, key in (("CKM_ECDSA", sm2_public), ("CKM_SM2", p256_public)):
        with pytest.raises(P11Error, match="CKR_KEY_TYPE_INCONSISTENT"):
            user.verify(name, key, bytes(32), bytes(64))


def test_digests(user: Session) -> None:
    assert user.digest("CKM_SM3", b"abc").hex() == (
        "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    )
    assert user.digest("CKM_SHA256", b"abc") == hashlib.sha256(b"abc").digest()
