"""Reports: what a seal's status, missing data, options and time stamps do to them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.algorithms import signature_to_der
from appliance.errors import BadRequest
from appliance.eseal import der, verification
from appliance.eseal.chains import Trust
from appliance.eseal.findings import OK, VERDICTS, Code, Finding, Outcome, Verdict, verdict_of
from appliance.eseal.structures import (
    Picture,
    Version,
    assemble_seal,
    assemble_signature,
    read_seal,
    read_signature,
    seal_info_to_sign,
    tbs_to_sign,
)
from appliance.eseal.timestamps import assemble_token, build_request, read_request, token_to_sign
from appliance.eseal.verification import (
    ACTIVE,
    NOT_ASKED,
    UNKNOWN,
    CheckName,
    Examiner,
    Report,
    Standing,
    Status,
    to_document,
    verify_seal,
    verify_signature,
)
from appliance.verifying import Verifier, sm3

from .conftest import DOCUMENT, load, trust
from .pki import SM2, Holder

HASH = sm3(DOCUMENT)
DAY = timedelta(days=1)
MADE = datetime(2026, 6, 1, tzinfo=UTC)
SIGNED = MADE + 10 * DAY
ROOT = Holder("root", is_ca=True)
MAKER, SIGNER = Holder("maker", issuer=ROOT), Holder("signer", issuer=ROOT)
STAMPER = Holder("stamper", issuer=ROOT, options={"is_time_stamping": True})


def seal_of(version: Version = Version.GBT_38540_2020, stamped_at: datetime | None = None) -> bytes:
    info = seal_info_to_sign(
        version, "vendor", "33010600000001", 1, "印章", [SIGNER.certificate], MADE, MADE, MADE + 50 * DAY,
        Picture("png", b"picture", 40, 40),
    )  # fmt: skip
    raw = MAKER.key.sign(info)
    stamp = token(signature_to_der(raw), stamped_at) if stamped_at else None
    return assemble_seal(info, MAKER.certificate, SM2, raw, stamp)


def token(value: bytes, at: datetime) -> bytes:
    request = read_request(build_request(value, 5))
    draft = token_to_sign(request, certificate=STAMPER.certificate, policy="1.2.3", serial=1, at=at)
    return assemble_token(draft, STAMPER.key.sign(draft.to_sign))


def signature_of(at: datetime = SIGNED, stamped_at: datetime | None = None) -> bytes:
    tbs = tbs_to_sign(Version.GBT_38540_2020, seal_of(), at, HASH, "/Doc_0/Signs/Sign_0/Signature.xml")
    raw = SIGNER.key.sign(tbs)
    stamp = token(signature_to_der(raw), stamped_at) if stamped_at else None
    return assemble_signature(tbs, SIGNER.certificate, SM2, raw, stamp)


@pytest.fixture
def examiner(verifier: Verifier) -> Examiner:
    return Examiner(Trust([ROOT.certificate]), verifier)


def code(report: Report, name: CheckName) -> Code:
    return report.check(name).code


BEFORE, AFTER, NOW = SIGNED - DAY, SIGNED + DAY, SIGNED + 2 * DAY


@pytest.mark.parametrize(
    ("status", "expected", "verdict"),
    [
        (ACTIVE, Code.OK, Verdict.GOOD),
        (NOT_ASKED, Code.NOT_ASKED, Verdict.GOOD),
        (UNKNOWN, Code.STATUS_UNKNOWN, Verdict.INCOMPLETE),
        (Status(Standing.NOT_IN_USE), Code.NOT_IN_USE, Verdict.INVALID),
        (Status(Standing.SUSPENDED, BEFORE), Code.SUSPENDED_BEFORE, Verdict.INVALID),
        (Status(Standing.SUSPENDED, SIGNED), Code.SUSPENDED_BEFORE, Verdict.INVALID),
        (Status(Standing.SUSPENDED, AFTER), Code.SUSPENDED_SINCE, Verdict.GOOD_WHEN_SIGNED),
        (Status(Standing.CANCELLED, BEFORE), Code.CANCELLED_BEFORE, Verdict.INVALID),
        (Status(Standing.CANCELLED, AFTER, "lost"), Code.CANCELLED_SINCE, Verdict.GOOD_WHEN_SIGNED),
        (Status(Standing.CANCELLED), Code.CANCELLED_BEFORE, Verdict.INVALID),  # nothing says it was later
    ],
)
def test_status(examiner: Examiner, status: Status, expected: Code, verdict: Verdict) -> None:
    report = examiner.signature(signature_of(), HASH, NOW, status)
    assert (code(report, CheckName.STATUS), report.verdict) == (expected, verdict)
    assert examiner.signature(signature_of(), HASH, NOW, lambda seal: status).verdict is verdict
    if verdict is Verdict.GOOD_WHEN_SIGNED:
        assert "not in force any more" in report.warnings[0] and "own word" in report.warnings[1]
        assert status.detail in report.check(CheckName.STATUS).text
        stamped = examiner.signature(signature_of(stamped_at=SIGNED), HASH, NOW, status)
        assert stamped.verdict is verdict and not any("own word" in each for each in stamped.warnings)


@pytest.mark.parametrize(
    ("now", "expected", "verdict"),
    [
        (MADE - DAY, Code.NOT_YET_VALID, Verdict.INVALID),
        (MADE, Code.OK, Verdict.GOOD),
        (MADE + 50 * DAY, Code.OK, Verdict.GOOD),
        (MADE + 51 * DAY, Code.SEAL_EXPIRED, Verdict.GOOD_WHEN_SIGNED),
    ],
)
def test_a_seal_alone(verifier: Verifier, now: datetime, expected: Code, verdict: Verdict) -> None:
    report = verify_seal(
        seal_of(), trust=Trust([ROOT.certificate]), verifier=verifier, now=now, status=ACTIVE
    )
    assert (code(report, CheckName.TIMES), report.verdict) == (expected, verdict)
    names = ["format", "seal_signature", "maker_certificate", "seal_timestamp", "times", "status"]
    assert [check.name for check in report.checks] == names


def test_a_cancelled_seal_alone_was_good_when_it_was_made(examiner: Examiner) -> None:
    report = examiner.seal(seal_of(), NOW, Status(Standing.CANCELLED, SIGNED))
    assert report.verdict is Verdict.GOOD_WHEN_SIGNED


def test_data(examiner: Examiner) -> None:
    whole = signature_of()

    def judged(data_hash: bytes | None, protected: bytes | None = None) -> tuple[Code, Verdict]:
        report = examiner.signature(whole, data_hash, NOW, ACTIVE, protected)
        return code(report, CheckName.DATA_HASH), report.verdict

    assert judged(HASH) == judged(None, DOCUMENT) == judged(HASH, DOCUMENT) == (Code.OK, Verdict.GOOD)
    assert judged(None) == (Code.NO_DATA, Verdict.INCOMPLETE)
    for wrong in ((bytes(32), None), (HASH, b"else"), (bytes(32), DOCUMENT), (b"", None), (HASH[:-1], None)):
        assert judged(*wrong) == (Code.OTHER_DATA, Verdict.INVALID)


def test_raw_signatures_by_option(verifier: Verifier) -> None:
    vector = load("raw_signature")
    report = vector.examiner(verifier, accept_raw=True).signature(vector.data, HASH, vector.now, ACTIVE)
    assert report.verdict is Verdict.GOOD
    assert any("64 bytes" in warning for warning in report.warnings)
    changed = vector.data[:-1] + bytes((vector.data[-1] ^ 1,))
    report = vector.examiner(verifier, accept_raw=True).signature(changed, HASH, vector.now, ACTIVE)
    assert code(report, CheckName.SIGNATURE) is Code.BAD_SIGNATURE


def test_integers_that_are_not_the_shortest(examiner: Examiner) -> None:
    signature = read_signature(signature_of())
    pair = der.Reader(signature.signature, "", "").inside("")
    r, s = (pair.content(name, der.INTEGER) for name in "rs")
    value = der.sequence(der.tlv(der.INTEGER, b"\0", r), der.tlv(der.INTEGER, s))
    whole = der.sequence(
        signature.tbs, der.octets(signature.certificate), der.oid(signature.algorithm), der.bits(value)
    )
    report = examiner.signature(whole, HASH, NOW, ACTIVE)
    assert report.verdict is Verdict.GOOD and "fewest bytes" in " ".join(report.warnings)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (MADE - 6 * DAY / 1440, Code.STAMP_TOO_EARLY),
        (MADE - 5 * DAY / 1440, Code.OK),
        (MADE + DAY, Code.OK),
        (NOW + DAY, Code.IN_FUTURE),
    ],
)
def test_the_stamp_of_a_seal(examiner: Examiner, at: datetime, expected: Code) -> None:
    report = examiner.seal(seal_of(Version.GMT_0031_2025, at), NOW, ACTIVE)
    assert code(report, CheckName.SEAL_TIMESTAMP) is expected


def first_edition(time_info: bytes, data_hash: bytes = HASH) -> bytes:
    old = read_signature(load("good_v1").data)
    algorithm = der.oid(SM2.signature_oid)
    parts = der.Reader(old.seal.info, "", "").inside("")
    header, es_id, properties, picture = (parts.raw("") for _ in range(4))
    of_properties = der.Reader(properties, "", "").inside("")
    changed = der.sequence(
        of_properties.raw(""), of_properties.raw(""), der.sequence(der.octets(SIGNER.certificate)),
        *(der.tlv(der.UTC_TIME, f"{each:%y%m%d%H%M%SZ}".encode()) for each in (MADE, MADE, MADE + 50 * DAY)),
    )  # fmt: skip
    info = der.sequence(header, es_id, changed, picture)
    scope = der.sequence(info, der.octets(MAKER.certificate), algorithm)
    sign_info = der.sequence(
        der.octets(MAKER.certificate), algorithm, der.bits(signature_to_der(MAKER.key.sign(scope)))
    )
    tbs = der.sequence(
        der.integer(1), der.sequence(info, sign_info), der.bits(time_info), der.bits(data_hash),
        der.text(der.IA5_STRING, "/x"), der.octets(SIGNER.certificate), algorithm,
    )  # fmt: skip
    return der.sequence(tbs, der.bits(signature_to_der(SIGNER.key.sign(tbs))))


def test_a_token_in_place_of_the_time(examiner: Examiner) -> None:
    """GM/T 0031-2014 does not say what it is over: the data hash as value, or as imprint."""
    for stamp in (token(HASH, SIGNED), token(DOCUMENT, SIGNED)):
        report = examiner.signature(first_edition(stamp), HASH, NOW, ACTIVE)
        assert report.verdict is Verdict.GOOD and code(report, CheckName.TIMESTAMP) is Code.OK
    report = examiner.signature(first_edition(token(b"else", SIGNED)), HASH, NOW, ACTIVE)
    assert code(report, CheckName.TIMESTAMP) is Code.OTHER_DATA
    report = examiner.signature(first_edition(b"no token"), HASH, NOW, ACTIVE)
    assert code(report, CheckName.TIMES) is Code.NO_TIME
    assert code(report, CheckName.TIMESTAMP) is Code.MALFORMED
    utc = der.tlv(der.UTC_TIME, f"{SIGNED:%y%m%d%H%M%SZ}".encode())
    assert examiner.signature(first_edition(utc), HASH, NOW, ACTIVE).verdict is Verdict.GOOD
    with pytest.raises(BadRequest, match="timeInfo"):
        read_signature(first_edition(utc + b"\0"))


def test_certificates_that_are_none(examiner: Examiner) -> None:
    signature = read_signature(signature_of())
    whole = der.sequence(
        signature.tbs,
        der.octets(b"no certificate"),
        der.oid(signature.algorithm),
        der.bits(signature.signature),
    )
    report = examiner.signature(whole, HASH, NOW, ACTIVE)
    assert report.verdict is Verdict.INVALID
    assert code(report, CheckName.SIGNER_CERTIFICATE) is Code.UNREADABLE
    assert code(report, CheckName.SIGNATURE) is Code.NOT_RUN
    assert code(report, CheckName.SIGNER_LISTED) is Code.NOT_LISTED


def test_the_algorithm_is_the_keys(examiner: Examiner) -> None:
    signature = read_signature(signature_of())
    whole = der.sequence(
        signature.tbs, der.octets(signature.certificate), der.oid("1.2.840.10045.4.3.2"),
        der.bits(signature.signature),
    )  # fmt: skip
    assert code(examiner.signature(whole, HASH, NOW, ACTIVE), CheckName.SIGNATURE) is Code.ALGORITHM


def test_documents(verifier: Verifier, examiner: Examiner) -> None:
    report = verify_signature(
        signature_of(stamped_at=SIGNED), HASH, trust=Trust([ROOT.certificate]), verifier=verifier, now=NOW
    )
    document = json.loads(json.dumps(to_document(report)))
    assert document["verdict"] == "incomplete"
    assert [check["name"] for check in document["checks"]] == [name.value for name in CheckName]
    assert document["checks"][-1] == {
        "name": "status", "outcome": "unknown", "code": "status_unknown", "text": Code.STATUS_UNKNOWN.text
    }  # fmt: skip
    facts = document["facts"]
    assert (facts["seal_code"], facts["seal_name"], facts["version"]) == ("33010600000001", "印章", 4)
    assert (facts["signer"], facts["maker"]) == ("C=CN, O=测试, CN=signer", "C=CN, O=测试, CN=maker")
    assert (facts["signed_at"], facts["time_stamped"]) == (SIGNED.isoformat(), True)
    assert to_document(examiner.seal(seal_of(), NOW))["facts"]["standard"] == "GB/T 38540-2020"
    broken = to_document(examiner.signature(b"\x30\x00", HASH, NOW))
    assert broken["facts"] == {} and broken["verdict"] == "invalid"
    assert {check["code"] for check in broken["checks"]} == {"malformed", "not_run"}
    assert "SES_Signature.toSign" in broken["checks"][0]["text"]


def test_what_is_remembered_is_bounded(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MAX_CACHED_BYTES", 2_000)
    examiner = Examiner(Trust([ROOT.certificate]), verifier)
    whole = signature_of()
    for _ in range(3):
        assert examiner.signature(whole, HASH, NOW, ACTIVE).verdict is Verdict.GOOD
        assert examiner._seals._byte_count <= max(2_000, 2 * len(seal_of()))


def test_seals_are_told_apart_by_all_their_bytes(examiner: Examiner) -> None:
    good = seal_of()
    assert examiner.seal(good, NOW, ACTIVE).verdict is Verdict.GOOD
    other = good.replace("印章".encode(), "假章".encode())
    assert read_seal(other).signature == read_seal(good).signature
    assert code(examiner.seal(other, NOW, ACTIVE), CheckName.SEAL_SIGNATURE) is Code.BAD_SIGNATURE


def test_vectors_under_no_trust_are_incomplete(verifier: Verifier) -> None:
    vector = load("good_v4")
    report = Examiner(Trust([]), verifier).signature(vector.data, HASH, vector.now, ACTIVE)
    assert report.verdict is Verdict.INCOMPLETE
    assert Examiner(trust(), verifier).signature(vector.data, HASH, vector.now).verdict is Verdict.INCOMPLETE


# The tables -----------------------------------------------------------------------------------------------------


def test_the_worst_outcome_decides() -> None:
    by_outcome = {outcome: next(c for c in Code if c.outcome is outcome) for outcome in Outcome}
    for outcome in Outcome:
        for worse in Outcome:
            findings = [OK, *(Finding(by_outcome[each], "") for each in (outcome, worse))]
            assert verdict_of(findings) is VERDICTS[max(outcome, worse)]
    assert verdict_of([]) is Verdict.INCOMPLETE
    assert len({each.label for each in Code}) == len(Code)
    assert set(VERDICTS) == set(Outcome) and set(VERDICTS.values()) == set(Verdict)


def test_the_page_says_what_the_code_does() -> None:
    page = (Path(verification.__file__).parent / "VERIFICATION.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    checks, outcomes, codes = (
        re.findall(r"^\| `([^|]+)` \| (.*) \|$", each, re.MULTILINE) for each in sections
    )
    alone = {"format", "seal_signature", "maker_certificate", "seal_timestamp", "times", "status"}
    assert [name for name, _ in checks] == [name.value for name in CheckName]
    assert {name for name, rest in checks if rest.startswith("yes")} == alone
    assert outcomes == [(each.name.lower(), f"`{VERDICTS[each].value}`") for each in Outcome]
    assert codes == [(each.label, f"`{each.outcome.name.lower()}` | {each.text}") for each in Code]
