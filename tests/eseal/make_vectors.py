"""Makes the vectors in ``vectors/``: seals and seal signatures, one defect each, and what a verifier shall say.

Run by hand (``python tests/eseal/make_vectors.py``), never by a test. It uses OpenSSL for every key, certificate,
signature, time stamp and revocation list, and the few lines of DER below for the structures, nothing of the appliance:
what it makes and what the appliance reads have no code in common. Keys are made anew and thrown away; the people and
organisations do not exist. Python only, OpenSSL 3.0 or newer.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "vectors"
WORK = Path(tempfile.mkdtemp())
ID = "1234567812345678"
SM2_SM3, ECDSA = "1.2.156.10197.1.501", "1.2.840.10045.4.3.2"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
DOCUMENT = "关于测试文件的通知\n".encode() * 7

CURVE = bytes.fromhex(
    "FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC"
    "28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93"
    "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)


# DER ------------------------------------------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 128:
        return bytes((tag, len(content))) + content
    size = (len(content).bit_length() + 7) // 8
    return bytes((tag, 128 + size)) + len(content).to_bytes(size, "big") + content


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def octets(value: bytes) -> bytes:
    return tlv(0x04, value)


def bits(value: bytes) -> bytes:
    return tlv(0x03, b"\0", value)


def ia5(value: str) -> bytes:
    return tlv(0x16, value.encode())


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for arc in (first * 40 + second, *rest):
        septets = [arc & 127]
        while arc := arc >> 7:
            septets.append(arc & 127 | 128)
        content += bytes(reversed(septets))
    return tlv(0x06, content)


def general(moment: datetime) -> bytes:
    return tlv(0x18, f"{moment:%Y%m%d%H%M%SZ}".encode())


def utc(moment: datetime) -> bytes:
    return tlv(0x17, f"{moment:%y%m%d%H%M%SZ}".encode())


def elements(data: bytes) -> list[bytes]:
    """The elements one after the other in ``data``."""
    found = []
    while data:
        size = data[1] & 127 if data[1] & 128 else 0
        length = int.from_bytes(data[2 : 2 + size], "big") if size else data[1]
        end = 2 + size + length
        found.append(data[:end])
        data = data[end:]
    return found


def inner(element: bytes) -> bytes:
    return element[2 + (element[1] & 127 if element[1] & 128 else 0) :]


# OpenSSL --------------------------------------------------------------------------------------------------------


def openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, cwd=WORK)
    if done.returncode:
        raise SystemExit(f"openssl {' '.join(map(str, arguments))}\n{done.stderr.decode()}")
    return done.stdout


def sm3(data: bytes) -> bytes:
    return openssl("dgst", "-sm3", "-binary", stdin=data)


@dataclass
class Key:
    name: str
    kind: str = "SM2"
    certificate: bytes = b""

    def __post_init__(self) -> None:
        how = {
            "SM2": ("-algorithm", "SM2"),
            "P-256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
            "RSA": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
        }[self.kind]
        openssl("genpkey", *how, "-out", self.path)

    @property
    def path(self) -> Path:
        return WORK / f"{self.name}.key"

    @property
    def algorithm(self) -> str:
        return {"SM2": SM2_SM3, "P-256": ECDSA, "RSA": "1.2.840.113549.1.1.11"}[self.kind]

    def sign(self, message: bytes, user_id: str = ID) -> bytes:
        """DER r, s (RSA: PKCS#1)."""
        (WORK / "message").write_bytes(message)
        if self.kind == "SM2":
            return openssl("dgst", "-sm3", "-sign", self.path, "-sigopt", f"distid:{user_id}", "message")
        return openssl("dgst", "-sha256", "-sign", self.path, "message")

    def sign_digest(self, digest: bytes) -> bytes:
        (WORK / "digest").write_bytes(digest)
        return openssl("pkeyutl", "-sign", "-inkey", self.path, "-in", "digest")

    def z(self) -> bytes:
        point = openssl("pkey", "-in", self.path, "-pubout", "-outform", "DER")[-64:]
        return sm3(b"\0\x80" + ID.encode() + CURVE + point)

    def hash_with_z(self, data: bytes) -> bytes:
        return sm3(self.z() + data)


EXTENSIONS = {
    "authority": "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash",
    "signer": "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,nonRepudiation\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid",
    "encipherment": "keyUsage=critical,keyEncipherment\nauthorityKeyIdentifier=keyid",
    "stamp": "keyUsage=critical,digitalSignature\nextendedKeyUsage=critical,timeStamping\nauthorityKeyIdentifier=keyid",
}


class Authority:
    """A CA by ``openssl ca``, which lets dates be chosen and keeps what is revoked."""

    def __init__(self, name: str, kind: str = "SM2") -> None:
        self.key = Key(name, kind)
        self.name = name
        self.digest = ("-md", "sm3", "-sigopt", f"distid:{ID}") if kind == "SM2" else ("-md", "sha256")
        (WORK / f"{name}.index").write_text("")
        (WORK / f"{name}.serial").write_text("1000\n")
        (WORK / f"{name}.number").write_text("01\n")
        sections = "".join(f"[{each}]\n{text}\n" for each, text in EXTENSIONS.items())
        (WORK / f"{name}.cnf").write_text(
            f"[ca]\ndefault_ca=this\n[this]\ndatabase={name}.index\nserial={name}.serial\ncrlnumber={name}.number\n"
            f"new_certs_dir=.\npolicy=any\nunique_subject=no\ndefault_crl_days=3650\nstring_mask=utf8only\nutf8=yes\n"
            f"[any]\ncountryName=optional\norganizationName=optional\ncommonName=supplied\n"
            f"[req]\ndistinguished_name=dn\n[dn]\n{sections}"
        )
        self.certificate = self.issue(
            self.key, f"/C=CN/O=测试/CN=测试根 {name}", "authority", self_signed=True
        )
        self.key.certificate = self.certificate

    def issue(
        self, key: Key, subject: str, extensions: str, *, start: datetime = NOW - 400 * DAY,
        end: datetime = NOW + 3000 * DAY, self_signed: bool = False,
    ) -> bytes:  # fmt: skip
        request = WORK / f"{key.name}.csr"
        sm2 = ("-sm3", "-sigopt", f"distid:{ID}") if key.kind == "SM2" else ("-sha256",)
        openssl("req", "-new", "-utf8", "-config", WORK / f"{self.name}.cnf", "-key", key.path, *sm2, "-subj", subject,
                "-out", request)  # fmt: skip
        signer = ("-selfsign",) if self_signed else ("-cert", f"{self.name}.pem")
        vfy = ("-vfyopt", f"distid:{ID}") if key.kind == "SM2" else ()
        openssl("ca", "-batch", "-notext", "-config", f"{self.name}.cnf", "-keyfile", self.key.path, *signer,
                *self.digest, *vfy, "-in", request, "-extensions", extensions, "-utf8",
                "-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}",
                "-out", f"{key.name}.pem")  # fmt: skip
        key.certificate = openssl("x509", "-in", f"{key.name}.pem", "-outform", "DER")
        return key.certificate

    def revoke(self, key: Key) -> None:
        """Revoked now: OpenSSL knows no other time."""
        openssl("ca", "-config", f"{self.name}.cnf", "-keyfile", self.key.path, "-cert", f"{self.name}.pem",
                *self.digest, "-revoke", f"{key.name}.pem")  # fmt: skip

    def crl(self) -> bytes:
        openssl("ca", "-gencrl", "-config", f"{self.name}.cnf", "-keyfile", self.key.path,
                "-cert", f"{self.name}.pem", *self.digest, "-out", "crl.pem")  # fmt: skip
        return openssl("crl", "-in", "crl.pem", "-outform", "DER")


def time_stamp(tsa: Key, authority: Authority, value: bytes) -> bytes:
    """A token by ``openssl ts``."""
    (WORK / "tsa.serial").write_text("01\n")
    (WORK / "ts.cnf").write_text(
        "[tsa]\ndefault_tsa=this\n[this]\nserial=tsa.serial\ncrypto_device=builtin\ndefault_policy=1.2.3.4.1\n"
        "digests=sha256,sm3\naccuracy=secs:1\nordering=no\ntsa_name=no\ness_cert_id_chain=no\n"
        f"signer_digest=sha256\ness_cert_id_alg=sha256\nsigner_cert={tsa.name}.pem\ncerts={authority.name}.pem\n"
        f"signer_key={tsa.path}\n"
    )
    (WORK / "value").write_bytes(value)
    openssl("ts", "-query", "-data", "value", "-sm3", "-cert", "-out", "query.tsq")
    openssl("ts", "-reply", "-config", "ts.cnf", "-queryfile", "query.tsq", "-token_out", "-out", "token")
    return (WORK / "token").read_bytes()


# Structures -----------------------------------------------------------------------------------------------------


@dataclass
class Seal:
    maker: Key
    signers: list[bytes]
    version: int = 4
    name: str = "测试公司合同专用章"
    created: datetime = NOW - 300 * DAY
    start: datetime = NOW - 300 * DAY
    end: datetime = NOW + 1000 * DAY
    digests: bool = False
    extensions: bytes = b""
    user_id: str = ID
    scope_2014: bool = False
    altered: Callable[[bytes], bytes] = lambda info: info
    stamp: Callable[[bytes], bytes] | None = None

    def info(self) -> bytes:
        time = utc if self.version == 1 else general
        if self.digests:
            listed = [seq(tlv(0x13, b"SM3"), octets(each)) for each in self.signers]
        else:
            listed = [octets(each) for each in self.signers]
        return seq(
            seq(ia5("ES"), integer(self.version), ia5("cloud-seal-test")),
            ia5("33010600000001"),
            seq(
                integer(1),
                tlv(0x0C, self.name.encode()),
                b"" if self.version == 1 else integer(2 if self.digests else 1),
                seq(*listed),
                time(self.created),
                time(self.start),
                time(self.end),
            ),
            seq(ia5("png"), octets(b"\x89PNG\r\n\x1a\n a picture of no seal"), integer(40), integer(40)),
            self.extensions,
        )

    def der(self) -> bytes:
        info = self.info()
        cert, algorithm = octets(self.maker.certificate), oid(self.maker.algorithm)
        scope = seq(info, cert, algorithm) if self.scope_2014 or self.version == 1 else info
        value = self.maker.sign(scope, self.user_id)
        info = self.altered(info)
        if self.version == 1:
            return seq(info, seq(cert, algorithm, bits(value)))
        stamp = tlv(0xA0, bits(self.stamp(value))) if self.stamp else b""
        return seq(info, cert, algorithm, bits(value), stamp)


@dataclass
class Signature:
    seal: Seal
    signer: Key
    time: datetime = NOW - 60 * timedelta(seconds=1)
    hash: bytes = field(default_factory=lambda: sm3(DOCUMENT))
    extensions: bytes = b""
    user_id: str = ID
    sign: Callable[[bytes], bytes] | None = None
    written: Callable[[bytes], bytes] = lambda value: value
    stamp: Callable[[bytes], bytes] | None = None
    tail: bytes = b""
    seal_der: bytes | None = None

    def der(self) -> bytes:
        seal = self.seal_der or self.seal.der()
        cert, algorithm = octets(self.signer.certificate), oid(self.signer.algorithm)
        head = integer(self.seal.version), seal
        path = ia5("/Doc_0/Signs/Sign_0/Signature.xml")
        if self.seal.version == 1:
            tbs = seq(*head, bits(utc(self.time)), bits(self.hash), path, cert, algorithm)
        else:
            tbs = seq(*head, general(self.time), bits(self.hash), path, self.extensions)
        value = self.written(self.sign(tbs) if self.sign else self.signer.sign(tbs, self.user_id))
        if self.seal.version == 1:
            return seq(tbs, bits(value)) + self.tail
        stamp = tlv(0xA0, bits(self.stamp(value))) if self.stamp else b""
        return seq(tbs, cert, algorithm, bits(value), stamp) + self.tail


def raw_value(value: bytes) -> bytes:
    return b"".join(
        int.from_bytes(inner(number), "big").to_bytes(32, "big") for number in elements(inner(value))
    )


def odd_certificate(authority: Authority, key: Key) -> bytes:
    """What CAs have issued: cA FALSE written out, a serial with a needless zero, a name whose type is a lie."""
    model = elements(inner(key.certificate))
    tbs = elements(inner(model[0]))
    lie = seq(tlv(0x31, seq(oid("2.5.4.3"), tlv(0x13, "测试".encode("gb18030")))))
    constraints = seq(oid("2.5.29.19"), octets(seq(tlv(0x01, b"\0"))))
    cut_short = seq(oid("2.5.29.14"), octets(b"\x04\x14short"))
    tbs[1] = tlv(0x02, b"\0\0\x77")
    tbs[5] = lie
    tbs[7] = tlv(0xA3, seq(constraints, cut_short, *elements(inner(inner(tbs[7])))[1:2]))
    signed = seq(*tbs)
    return seq(signed, model[1], bits(authority.key.sign(signed)))


# The vectors ----------------------------------------------------------------------------------------------------

MANIFEST: dict[str, Any] = {}


def iso(moment: datetime) -> str:
    return moment.isoformat()


def add(
    name: str, data: bytes, verdict: str, codes: dict[str, str], how: str, *, kind: str = "signature",
    now: datetime = NOW + DAY, warning: str = "", **more: Any,
) -> None:  # fmt: skip
    (OUT / f"{name}.der").write_bytes(data)
    MANIFEST[name] = {
        "kind": kind, "verdict": verdict, "codes": codes, "provenance": how, "now": iso(now),
        **({"warning": warning} if warning else {}), **more,
    }  # fmt: skip


def critical(value: bytes) -> bytes:
    """An extension with ``critical`` as given, as some vendors write it."""
    return seq(oid("1.2.156.10197.6.7.2.2.1"), value, octets(b"2.1"))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    root, strangers, roots256 = Authority("root"), Authority("strangers"), Authority("root256", "P-256")
    maker, signer, other = Key("maker"), Key("signer"), Key("other")
    root.issue(maker, "/C=CN/O=测试制章中心/CN=制章者", "signer")
    root.issue(signer, "/C=CN/O=测试公司/CN=测试公司", "signer")
    root.issue(other, "/C=CN/O=别的公司/CN=别的公司", "signer")
    tsa = Key("tsa", "P-256")
    roots256.issue(tsa, "/C=CN/O=测试/CN=时间戳", "stamp")

    def stamp(value: bytes) -> bytes:
        return time_stamp(tsa, roots256, value)

    seal = Seal(maker, [signer.certificate])
    plain = Signature(seal, signer)

    def one(
        name: str, signature: Signature, verdict: str, codes: dict[str, str], how: str, **more: Any
    ) -> None:
        add(name, signature.der(), verdict, codes, how, **more)

    good(one, root, roots256, seal, plain, stamp)
    broken_seals(one, maker, signer, strangers, seal, plain, root)
    wrong_signers(one, root, signer, other, seal, plain)
    wrong_values(one, signer, plain)
    wrong_times(one, root, maker, seal, plain)
    wrong_stamps(one, root, roots256, plain, stamp)
    ended(one, root, maker, seal, plain)

    (OUT / "document.txt").write_bytes(DOCUMENT)
    for authority in (root, strangers, roots256):
        (OUT / f"{authority.name}.cer").write_bytes(authority.certificate)
    version = openssl("version").decode().split()[1]
    (OUT / "manifest.json").write_text(
        json.dumps(
            {"made_at": iso(NOW), "openssl": version, "vectors": MANIFEST}, ensure_ascii=False, indent=1
        )
        + "\n"
    )
    print(f"{len(MANIFEST)} vectors")


One = Callable[..., None]


def good(
    one: One, root: Authority, root256: Authority, seal: Seal, plain: Signature, stamp: Callable[[bytes], bytes]
) -> None:  # fmt: skip
    one("good_v4", plain, "good", {}, "version 4, a list of certificates")
    one("good_v1", replace(plain, seal=replace(seal, version=1)), "good", {}, "GM/T 0031-2014")
    stamped = replace(plain, seal=replace(seal, version=5, created=NOW - DAY, stamp=stamp), stamp=stamp)
    one("good_v5_stamped", stamped, "good", {"seal_timestamp": "ok", "timestamp": "ok"},
        "version 5, stamps on seal and signature by openssl ts (P-256, SHA-256, imprint SM3)")  # fmt: skip
    listed = replace(seal, digests=True, signers=[sm3(plain.signer.certificate)])
    one("good_digest_list", replace(plain, seal=listed), "good", {}, "certListType 2")
    mixed = Key("mixed", "P-256")
    root256.issue(mixed, "/C=CN/O=测试/CN=P-256", "signer")
    sealed = Signature(Seal(mixed, [mixed.certificate]), mixed)
    one("good_p256", sealed, "good", {}, "maker and signer with ECDSA P-256, SHA-256")
    extensions = seq(critical(tlv(0x01, b"\0")))
    one("good_critical_false", replace(plain, seal=replace(seal, extensions=extensions)), "good", {},
        "critical FALSE written out in the seal's extensions, under both signatures",
        warning="FALSE is the default and is written out")  # fmt: skip
    both = tlv(0xA0, seq(critical(b""), seq(oid("1.3.6.1.5.5.7.1.4"), tlv(0x01, b"\xff"), octets(b"x"))))
    one("good_extensions", replace(plain, extensions=both), "good", {}, "[0] extDatas in TBS_Sign")
    odd = Key("odd")
    root.issue(odd, "/C=CN/O=测试/CN=odd", "signer")
    odd.certificate = odd_certificate(root, odd)
    one("good_odd_certificate", Signature(Seal(seal.maker, [odd.certificate]), odd), "good", {},
        "signer's certificate as libraries refuse it: cA FALSE written out, lying name type, cut-short extension",
        warning="certificate not well-formed")  # fmt: skip


def broken_seals(
    one: One, maker: Key, signer: Key, strangers: Authority, seal: Seal, plain: Signature, root: Authority
) -> None:  # fmt: skip
    def renamed(info: bytes) -> bytes:
        return info.replace("合同".encode(), "财务".encode())

    tampered = replace(seal, altered=renamed)
    one("tampered_seal", replace(plain, seal=tampered), "invalid", {"seal_signature": "bad_signature"},
        "the seal's name altered after the maker signed, the signature made after that")  # fmt: skip
    add(
        "tampered_seal_alone",
        tampered.der(),
        "invalid",
        {"seal_signature": "bad_signature"},
        "as before",
        kind="seal",
    )
    add("good_seal_alone", seal.der(), "good", {}, "a seal by itself", kind="seal")
    one("scope_2014", replace(plain, seal=replace(seal, scope_2014=True)), "invalid",
        {"seal_signature": "scope_2014"}, "a version 4 seal signed over info, certificate and algorithm")  # fmt: skip
    one("seal_user_id", replace(plain, seal=replace(seal, user_id="ALICE123@YAHOO.COM")), "invalid",
        {"seal_signature": "user_id"}, "the maker signed with the user ID of the standard's examples")  # fmt: skip
    stranger = Key("stranger")
    strangers.issue(stranger, "/C=CN/O=某处/CN=陌生人", "signer")
    one("untrusted_maker", replace(plain, seal=replace(seal, maker=stranger)), "incomplete",
        {"maker_certificate": "untrusted"}, "the maker's CA is not trusted")  # fmt: skip
    forged = Key("forged")
    strangers.issue(forged, "/C=CN/O=测试制章中心/CN=制章者", "signer")
    parts = elements(inner(forged.certificate))
    tbs = elements(inner(parts[0]))
    tbs[3] = elements(inner(elements(inner(maker.certificate))[0]))[3]  # the issuer's name of the real one
    tbs[7] = tlv(0xA3, seq(*elements(inner(inner(tbs[7])))[:2]))
    forged.certificate = seq(seq(*tbs), *parts[1:])
    one("forged_maker", replace(plain, seal=replace(seal, maker=forged)), "invalid",
        {"maker_certificate": "broken_chain"}, "a maker's certificate in our CA's name, signed by another")  # fmt: skip
    enciphering = Key("enciphering")
    root.issue(enciphering, "/C=CN/CN=encipherment only", "encipherment")
    one("maker_key_usage", replace(plain, seal=replace(seal, maker=enciphering)), "invalid",
        {"maker_certificate": "key_usage"}, "the maker's certificate is for key encipherment only")  # fmt: skip
    rsa = Key("rsa", "RSA")
    root.issue(rsa, "/C=CN/CN=RSA", "signer")
    one("rsa_maker_v1", replace(plain, seal=replace(seal, version=1, maker=rsa)), "incomplete",
        {"seal_signature": "unsupported_key"}, "GM/T 0031-2014 allows RSA")  # fmt: skip


def wrong_signers(one: One, root: Authority, signer: Key, other: Key, seal: Seal, plain: Signature) -> None:
    one("not_listed", replace(plain, signer=other), "invalid", {"signer_listed": "not_listed"},
        "signed by somebody whom the seal does not name")  # fmt: skip
    again = Key("again")
    root.issue(again, "/C=CN/O=测试公司/CN=测试公司", "signer")
    one("renewed_certificate", replace(plain, signer=again), "invalid", {"signer_listed": "renewed"},
        "a newer certificate of the same subject")  # fmt: skip
    by_digest = replace(seal, digests=True)
    one("digest_not_listed", replace(plain, signer=other, seal=replace(by_digest, signers=[sm3(signer.certificate)])),
        "invalid", {"signer_listed": "not_listed"}, "certListType 2, another signer")  # fmt: skip
    with_z = replace(by_digest, signers=[signer.hash_with_z(signer.certificate)])
    one("digest_with_z", replace(plain, seal=with_z), "invalid", {"signer_listed": "digest_with_z"},
        "certListType 2 with SM3(Z||certificate)")  # fmt: skip


def wrong_values(one: One, signer: Key, plain: Signature) -> None:
    one("raw_signature", replace(plain, written=raw_value), "invalid", {"signature": "raw_signature"},
        "r||s in the BIT STRING, as one vendor writes", accepts_raw=True)  # fmt: skip
    one(
        "trailing_byte",
        replace(plain, tail=b"\0"),
        "invalid",
        {"format": "malformed"},
        "a byte after the end",
    )
    one("wrong_user_id", replace(plain, user_id="ALICE123@YAHOO.COM"), "invalid", {"signature": "user_id"},
        "signed with the user ID of the standard's examples")  # fmt: skip
    one("without_z", replace(plain, sign=lambda tbs: signer.sign_digest(sm3(tbs))), "invalid",
        {"signature": "user_id"}, "e = SM3(TBS) without Z")  # fmt: skip
    whole = plain.der()
    add("tampered_hash", whole.replace(plain.hash, sm3(b"else")), "invalid",
        {"signature": "bad_signature", "data_hash": "other_data"}, "the data hash altered after signing")  # fmt: skip
    one("hash_with_z", replace(plain, hash=signer.hash_with_z(DOCUMENT)), "invalid", {"data_hash": "hash_with_z"},
        "the data hash is SM3(Z||data)")  # fmt: skip
    one("other_data", replace(plain, hash=sm3(b"else")), "invalid", {"data_hash": "other_data"},
        "a good signature over other data")  # fmt: skip
    body = inner(whole)
    add("indefinite_length", b"\x30\x80" + body + b"\0\0", "invalid", {"format": "malformed"}, "BER, no DER")
    size = len(body).to_bytes(4, "big")
    add(
        "long_length",
        b"\x30\x84" + size + body,
        "invalid",
        {"format": "malformed"},
        "a length in too many bytes",
    )


def wrong_times(one: One, root: Authority, maker: Key, seal: Seal, plain: Signature) -> None:
    young = Key("young")
    root.issue(young, "/C=CN/CN=young", "signer", start=NOW - 10 * DAY)
    early = Signature(Seal(maker, [young.certificate]), young, time=NOW - 20 * DAY)
    one("before_certificate", early, "invalid",
        {"times": "outside_certificate", "signer_certificate": "outside_validity"},
        "signed before the signer's certificate is valid")  # fmt: skip
    one("before_seal", replace(plain, time=NOW - 350 * DAY), "invalid", {"times": "outside_seal"},
        "signed before the seal's validity")  # fmt: skip
    ended = replace(seal, end=NOW - 10 * DAY)
    one("after_seal", replace(plain, seal=ended), "invalid", {"times": "outside_seal"},
        "signed after the seal's end")  # fmt: skip
    one(
        "in_future",
        replace(plain, time=NOW + 9 * DAY),
        "incomplete",
        {"times": "in_future"},
        "signed next week",
    )
    one("maker_not_valid_then", replace(plain, seal=replace(seal, created=NOW - 500 * DAY)), "invalid",
        {"maker_certificate": "outside_validity"}, "a seal that is older than its maker's certificate")  # fmt: skip


def wrong_stamps(
    one: One, root: Authority, root256: Authority, plain: Signature, stamp: Callable[[bytes], bytes]
) -> None:  # fmt: skip
    one(
        "good_stamped",
        replace(plain, stamp=stamp),
        "good",
        {"timestamp": "ok"},
        "a time stamp on the signature",
    )
    one("stamp_over_other_data", replace(plain, stamp=lambda _: stamp(b"else")), "invalid",
        {"timestamp": "other_data"}, "a good time stamp over something else")  # fmt: skip
    one("stamp_malformed", replace(plain, stamp=lambda value: stamp(value)[:-1]), "invalid",
        {"timestamp": "malformed"}, "a token that is cut short")  # fmt: skip

    def tampered(value: bytes) -> bytes:
        token = bytearray(stamp(value))
        token[-5] ^= 1
        return bytes(token)

    one("stamp_bad_signature", replace(plain, stamp=tampered), "invalid", {"timestamp": "bad_signature"},
        "a bit of the token's signature value turned over")  # fmt: skip
    one("stamp_too_early", replace(plain, time=NOW + DAY / 2, stamp=stamp), "invalid",
        {"timestamp": "stamp_too_early"}, "signed half a day after it was stamped")  # fmt: skip
    no_tsa = Key("no_tsa", "P-256")
    root256.issue(no_tsa, "/C=CN/CN=no authority", "stamp")
    token = time_stamp(no_tsa, root256, b"")  # openssl itself refuses to stamp without the usage
    assert token
    one("stamp_untrusted", replace(plain, stamp=stamp), "incomplete", {"timestamp": "untrusted"},
        "the stamp's root is not trusted", roots=["root"])  # fmt: skip


def ended(one: One, root: Authority, maker: Key, seal: Seal, plain: Signature) -> None:
    then = NOW + 1200 * DAY
    one("seal_expired_since", plain, "good_when_signed", {"times": "seal_expired"},
        "good_v4, looked at after the seal's end", now=then)  # fmt: skip
    brief = Key("brief")
    root.issue(brief, "/C=CN/CN=brief", "signer", end=NOW + 30 * DAY)
    one("certificate_expired_since", Signature(Seal(maker, [brief.certificate]), brief), "good_when_signed",
        {"signer_certificate": "expired_since"}, "looked at after the signer's certificate's end",
        now=NOW + 40 * DAY)  # fmt: skip
    old_maker = Key("old_maker")
    root.issue(old_maker, "/C=CN/CN=old maker", "signer", end=NOW + 30 * DAY)
    one("maker_expired_since", replace(plain, seal=replace(seal, maker=old_maker)), "good",
        {"maker_certificate": "maker_expired"}, "looked at after the maker's certificate's end",
        now=NOW + 40 * DAY, warning="maker")  # fmt: skip
    status = {"standing": "cancelled", "since": iso(NOW + DAY / 2)}
    one("cancelled_since", plain, "good_when_signed", {"status": "cancelled_since"}, "good_v4, cancelled later",
        status=status)  # fmt: skip
    status = {"standing": "cancelled", "since": iso(NOW - DAY)}
    one("cancelled_before", plain, "invalid", {"status": "cancelled_before"}, "good_v4, cancelled earlier",
        status=status)  # fmt: skip
    status = {"standing": "suspended", "since": iso(NOW - DAY)}
    one("suspended_before", plain, "invalid", {"status": "suspended_before"}, "good_v4, suspended earlier",
        status=status)  # fmt: skip
    revoked = Key("revoked")
    root.issue(revoked, "/C=CN/CN=revoked", "signer")
    root.revoke(revoked)
    (OUT / "root.crl").write_bytes(root.crl())
    used = Signature(Seal(maker, [revoked.certificate]), revoked)
    one("revoked_since", replace(used, time=NOW - DAY), "good_when_signed",
        {"signer_certificate": "revoked_since"}, "revoked a day after signing", crls=["root"])  # fmt: skip
    one("revoked_before", replace(used, time=NOW + DAY / 2), "invalid", {"signer_certificate": "revoked_before"},
        "revoked half a day before signing", crls=["root"])  # fmt: skip
    one("not_revoked", plain, "good", {}, "with a revocation list that names another", crls=["root"])


if __name__ == "__main__":
    main()
