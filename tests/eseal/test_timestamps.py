"""Time stamps: ours under OpenSSL, OpenSSL's under ours, and what is wrong with the others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import cms, tsp

from appliance.algorithms import SM2_DEFAULT_ID, Algorithm
from appliance.certificates import to_pem
from appliance.errors import BadRequest
from appliance.eseal import der, timestamps
from appliance.eseal.chains import Trust, read_certificate
from appliance.eseal.findings import Code
from appliance.eseal.timestamps import (
    CLOCK_SKEW,
    MAX_REQUEST_LEN,
    MAX_RESPONSE_LEN,
    REFUSALS,
    SHA256_OID,
    SM3_OID,
    assemble_token,
    build_request,
    check_token,
    granted,
    read_request,
    read_response,
    read_token,
    refused,
    token_of_response,
    token_to_sign,
)
from appliance.verifying import Verifier

from .pki import P256, SM2, Holder

AT = datetime(2026, 6, 1, 8, 30, tzinfo=UTC)
VALUE = b"the DER signature value of a seal signature"
SECOND = timedelta(seconds=1)
POLICY = "1.2.156.10197.6.99"


def authority(algorithm: Algorithm, name: str = "authority", **options: object) -> Holder:
    root = Holder("stamp root", algorithm, is_ca=True)
    return Holder(name, algorithm, root, options={"is_time_stamping": True, **options})


def root_of(holder: Holder) -> bytes:
    assert holder.issuer is not None
    return holder.issuer.certificate


def stamp(holder: Holder, request: bytes, at: datetime = AT, serial: int = 7) -> bytes:
    draft = token_to_sign(
        read_request(request), certificate=holder.certificate, policy=POLICY, serial=serial, at=at
    )
    return assemble_token(draft, holder.key.sign(draft.to_sign))


def without_certificate() -> bytes:
    """A request whose last element, certReq, is left out."""
    request = build_request(VALUE, 5)[:-3]
    return bytes((0x30, len(request) - 2)) + request[2:]


@pytest.fixture
def openssl(tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: str, **files: bytes) -> str:
        for name, data in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(data)
        done = subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


@pytest.mark.parametrize("algorithm", [SM2, P256])
@pytest.mark.parametrize("imprint", [SM3_OID, SHA256_OID])
def test_asked_stamped_believed(verifier: Verifier, algorithm: Algorithm, imprint: str) -> None:
    holder = authority(algorithm)
    trust = Trust([root_of(holder)])
    request = build_request(VALUE, 2**64 + 5, algorithm_oid=imprint)
    whole = token_of_response(granted(stamp(holder, request)), request)
    token = read_token(whole)
    assert (token.at, token.serial, token.nonce, token.policy) == (AT, 7, 2**64 + 5, POLICY)
    assert check_token(token, VALUE, trust, verifier, AT).code is Code.OK
    assert check_token(token, VALUE + b".", trust, verifier, AT).code is Code.OTHER_DATA
    assert check_token(token, VALUE, Trust([]), verifier, AT).code is Code.UNTRUSTED
    assert check_token(token, VALUE, trust, verifier, AT - CLOCK_SKEW).code is Code.OK
    assert check_token(token, VALUE, trust, verifier, AT - CLOCK_SKEW - SECOND).code is Code.IN_FUTURE
    later = check_token(token, VALUE, trust, verifier, AT + timedelta(days=999))
    assert later.code is Code.OK and "expired" in " ".join(later.warnings)


@pytest.mark.parametrize("algorithm", [SM2, P256])
def test_read_by_others(openssl: Callable[..., str], algorithm: Algorithm) -> None:
    """asn1crypto reads it, and OpenSSL verifies the signature over the signed attributes, as it can for SM2."""
    holder = authority(algorithm)
    request = build_request(VALUE, 5, policy=POLICY)
    assert "0x05" in openssl("ts", "-query", "-in", "a.tsq", "-text", a_tsq=request)
    parsed = tsp.TimeStampReq.load(request, strict=True)
    assert parsed["req_policy"].native == POLICY and parsed.dump(force=True) == request
    whole = stamp(holder, request)
    text = openssl("ts", "-reply", "-in", "a.tsr", "-text", a_tsr=granted(whole))
    assert "Granted" in text and "Jun  1 08:30:00 2026 GMT" in text
    signed = cms.ContentInfo.load(whole, strict=True)["content"]
    info = signed["encap_content_info"]["content"].parsed
    assert info["gen_time"].native == AT and info["policy"].native == POLICY
    (signer,) = signed["signer_infos"]
    attributes = {each["type"].native: each["values"][0].native for each in signer["signed_attrs"]}
    assert attributes.keys() == {"content_type", "message_digest", "signing_certificate_v2"}
    digest = ["-sha256"]
    if algorithm is SM2:
        digest = ["-sm3", "-sigopt", f"distid:{SM2_DEFAULT_ID.decode()}"]
    openssl(
        "pkey", "-pubin", "-inform", "DER", "-in", "key.der", "-out", "key.pem",
        key_der=holder.key.public.spki(),
    )  # fmt: skip
    openssl(
        "dgst", *digest, "-verify", "key.pem", "-signature", "signature", "attributes",
        signature=signer["signature"].native, attributes=signer["signed_attrs"].untag().dump(),
    )  # fmt: skip


def test_verified_by_openssl_ts(openssl: Callable[..., str]) -> None:
    """P-256 and SHA-256 as a whole: our request and token, and our answer to OpenSSL's own request."""
    holder = authority(P256)
    root = to_pem("CERTIFICATE", root_of(holder)).encode()
    moment = str(int(AT.timestamp()))
    verify = ("ts", "-verify", "-CAfile", "root.pem", "-attime", moment, "-in", "a.tsr")
    request = build_request(VALUE, 5, algorithm_oid=SHA256_OID)
    response = granted(stamp(holder, request))
    openssl(*verify, "-queryfile", "a.tsq", root_pem=root, a_tsq=request, a_tsr=response)
    openssl("ts", "-query", "-data", "value", "-sha256", "-cert", "-out", "b.tsq", value=VALUE)
    theirs = subprocess.run(
        ["openssl", "ts", "-query", "-data", "/dev/stdin", "-sha256", "-cert"],
        input=VALUE, capture_output=True, check=True,
    ).stdout  # fmt: skip
    asked = read_request(theirs)
    assert asked.wants_certificate and asked.nonce is not None and asked.algorithm_oid == SHA256_OID
    openssl(*verify, "-queryfile", "a.tsq", a_tsq=theirs, a_tsr=granted(stamp(holder, theirs)))


def test_a_token_without_its_certificate(verifier: Verifier) -> None:
    holder = authority(SM2)
    token, trust = read_token(stamp(holder, without_certificate())), Trust([root_of(holder)])
    assert not token.certificates
    assert check_token(token, VALUE, trust, verifier, AT).code is Code.UNTRUSTED
    known = [read_certificate(holder.certificate)]
    assert check_token(token, VALUE, trust, verifier, AT, known).code is Code.OK


def test_who_may_not_stamp(verifier: Verifier) -> None:
    holder = authority(SM2, "nobody", is_time_stamping=False)
    token = read_token(stamp(holder, build_request(VALUE, 5)))
    assert check_token(token, VALUE, Trust([root_of(holder)]), verifier, AT).code is Code.KEY_USAGE


def test_signed_by_another_key(verifier: Verifier) -> None:
    holder, other = authority(SM2), authority(SM2, "other")
    draft = token_to_sign(
        read_request(build_request(VALUE, 5)), certificate=holder.certificate, policy=POLICY, serial=1, at=AT
    )
    trust = Trust([root_of(holder)])
    token = read_token(assemble_token(draft, other.key.sign(draft.to_sign)))
    assert check_token(token, VALUE, trust, verifier, AT).code is Code.BAD_SIGNATURE
    # A certificate of the same name and number is not yet the one that the signed attributes mean.
    double = Holder(
        "double", SM2, holder.issuer, serial=holder.serial, known_as=holder.name, options=holder.options
    )
    token, known = read_token(stamp(double, without_certificate())), [read_certificate(holder.certificate)]
    finding = check_token(token, VALUE, trust, verifier, AT, known)
    assert finding.code is Code.BAD_SIGNATURE and "another certificate" in finding.text


def test_the_content_is_another(verifier: Verifier) -> None:
    holder = authority(SM2)
    whole = stamp(holder, build_request(VALUE, 5))
    changed = whole.replace(b"20260601083000Z", b"20250601083000Z")
    assert changed != whole
    finding = check_token(read_token(changed), VALUE, Trust([root_of(holder)]), verifier, AT)
    assert finding.code is Code.BAD_SIGNATURE and "message digest" in finding.text


def test_answers_to_something_else() -> None:
    holder = authority(SM2)
    request = build_request(VALUE, 5)
    for other, match in ((build_request(VALUE, 6), "nonce"), (build_request(b"else", 5), "something else")):
        with pytest.raises(BadRequest, match=match):
            token_of_response(granted(stamp(holder, other)), request)


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals(openssl: Callable[..., str], reason: str) -> None:
    response = refused(reason, "今天不行")
    status = der.Reader(response, "", "").inside("").raw("")  # asn1crypto wants a token beside it even so
    parsed = tsp.PKIStatusInfo.load(status, strict=True)
    assert parsed["status"].native == "rejection" and parsed["status_string"].native == ["今天不行"]
    assert len(parsed["fail_info"].native) == 1
    assert "Rejected" in openssl("ts", "-reply", "-in", "a.tsr", "-text", a_tsr=response)
    with pytest.raises(BadRequest, match="今天不行"):
        read_response(response)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (bytes(MAX_REQUEST_LEN + 1), "at most"),
        (b"", "missing"),
        (build_request(VALUE, 5).replace(b"\x02\x01\x01", b"\x02\x01\x02", 1), "version"),
        (
            build_request(VALUE, 5).replace(bytes.fromhex("811ccf55"), bytes.fromhex("811ccf56"), 1),
            "SM3 or SHA-256",
        ),
    ],
)
def test_requests_that_are_refused(wrong: bytes, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        read_request(wrong)


def test_what_is_not_built() -> None:
    with pytest.raises(BadRequest, match="SM3 or SHA-256"):
        build_request(VALUE, 5, algorithm_oid="1.3.14.3.2.26")
    with pytest.raises(BadRequest, match="at most"):
        read_response(bytes(MAX_RESPONSE_LEN + 1))


def test_every_truncation_of_a_request_and_a_response() -> None:
    request = build_request(VALUE, 5)
    response = granted(stamp(authority(SM2), request))
    for read, good in ((read_request, request), (timestamps.read_response, response)):
        read(good)  # type: ignore[operator]
        for length in range(len(good)):
            with pytest.raises(BadRequest):
                read(good[:length])  # type: ignore[operator]
