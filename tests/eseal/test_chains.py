"""Chains: who may issue what, at which time, and who was revoked when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.chains import (
    MAX_CHAIN,
    MAX_CRL_LEN,
    Purpose,
    Trust,
    check_chain,
    find_chain,
    name_text,
    read_certificate,
    read_crl,
)
from appliance.eseal.findings import Code
from appliance.verifying import Verifier

from .pki import P256, SM2, Holder

START = datetime(2026, 1, 1, tzinfo=UTC)
AT = START + timedelta(days=100)
DAY = timedelta(days=1)
ROOT = Holder("root", is_ca=True, days=3650, options={"path_len": 9})


def code_of(holder: Holder, verifier: Verifier, trust: Trust, at: datetime = AT, **more: Any) -> Code:
    (finding,) = check_chain(holder.certificate, trust, at, verifier, **more)
    return finding.code


@pytest.mark.parametrize("algorithm", [SM2, P256])
def test_a_chain_of_three(verifier: Verifier, algorithm: Any) -> None:
    root = Holder("root", algorithm, is_ca=True, options={"path_len": 1})
    middle = Holder("middle", algorithm, root, is_ca=True)
    leaf = Holder("leaf", algorithm, middle)
    assert code_of(leaf, verifier, Trust([root.certificate], [middle.certificate])) is Code.OK
    assert code_of(leaf, verifier, Trust([middle.certificate])) is Code.OK  # trusted itself
    assert code_of(leaf, verifier, Trust([leaf.certificate])) is Code.OK
    assert code_of(leaf, verifier, Trust([root.certificate])) is Code.UNTRUSTED
    assert code_of(leaf, verifier, Trust([], [root.certificate, middle.certificate])) is Code.UNTRUSTED
    read = read_certificate(leaf.certificate)
    chain = find_chain(read, Trust([root.certificate]), verifier, more=[read_certificate(middle.certificate)])
    assert chain.judge(AT, AT).code is Code.OK
    assert [c.subject_text for c in chain.paths[0].certificates][::2] == [
        read.subject_text,
        "C=CN, O=测试, CN=root",
    ]


def test_a_chain_of_both_algorithms(verifier: Verifier) -> None:
    middle = Holder("middle", P256, ROOT, is_ca=True)
    leaf = Holder("leaf", SM2, middle)
    assert code_of(leaf, verifier, Trust([ROOT.certificate], [middle.certificate])) is Code.OK


def test_who_may_not_issue(verifier: Verifier) -> None:
    person = Holder("person", issuer=ROOT)
    leaf = Holder("leaf", issuer=person)
    assert code_of(leaf, verifier, Trust([ROOT.certificate], [person.certificate])) is Code.NOT_A_CA
    short = Holder("short", is_ca=True)  # no CA below it
    middle = Holder("middle", issuer=short, is_ca=True)
    below = Holder("below", issuer=middle)
    assert code_of(below, verifier, Trust([short.certificate], [middle.certificate])) is Code.NOT_A_CA
    assert code_of(middle, verifier, Trust([short.certificate])) is Code.KEY_USAGE  # a CA signs no documents


def test_a_signature_that_is_not_the_issuers(verifier: Verifier) -> None:
    leaf = Holder("leaf", issuer=ROOT)
    changed = bytearray(leaf.certificate)
    changed[-1] ^= 1
    (finding,) = check_chain(bytes(changed), Trust([ROOT.certificate]), AT, verifier)
    assert finding.code is Code.BROKEN_CHAIN
    # Another CA of the same name and another key: its key identifier tells that it is not the issuer.
    double = Holder("double", is_ca=True, known_as="root")
    assert code_of(leaf, verifier, Trust([double.certificate])) is Code.UNTRUSTED
    assert code_of(leaf, verifier, Trust([double.certificate, ROOT.certificate])) is Code.OK


def test_certificates_that_issue_each_other(verifier: Verifier) -> None:
    one, other = Holder("one", is_ca=True), Holder("other", is_ca=True)
    one.issuer, other.issuer = other, one
    leaf = Holder("leaf", issuer=one)
    assert code_of(leaf, verifier, Trust([], [one.certificate, other.certificate])) is Code.UNTRUSTED


def test_a_chain_at_the_limit(verifier: Verifier) -> None:
    holders = [ROOT]
    for depth in range(MAX_CHAIN - 1):
        holders.append(
            Holder(
                f"ca{depth}", issuer=holders[-1], is_ca=depth < MAX_CHAIN - 2, options={"path_len": 9 - depth}
            )
        )
    trust = Trust([ROOT.certificate], [each.certificate for each in holders[1:]])
    assert code_of(holders[-1], verifier, trust) is Code.OK
    too_deep = Holder("too deep", issuer=holders[-2])
    deeper = Holder("deeper", issuer=Holder("deep", issuer=holders[-2], is_ca=True))
    assert code_of(too_deep, verifier, trust) is Code.OK
    assert deeper.issuer is not None
    trust = Trust([ROOT.certificate], [each.certificate for each in (*holders[1:], deeper.issuer)])
    assert code_of(deeper, verifier, trust) is Code.UNTRUSTED


def test_times(verifier: Verifier) -> None:
    leaf, trust = Holder("leaf", issuer=ROOT, days=30), Trust([ROOT.certificate])
    inside, end = START + DAY, START + 30 * DAY
    assert code_of(leaf, verifier, trust, START - DAY / 24) is Code.OUTSIDE_VALIDITY
    assert code_of(leaf, verifier, trust, START) is code_of(leaf, verifier, trust, end) is Code.OK
    assert code_of(leaf, verifier, trust, end + DAY / 24) is Code.OUTSIDE_VALIDITY
    assert code_of(leaf, verifier, trust, inside, now=end + DAY) is Code.EXPIRED_SINCE
    brief = Holder("brief", issuer=ROOT, is_ca=True, days=10)
    under = Holder("under", issuer=brief, days=30)
    trust = Trust([ROOT.certificate], [brief.certificate])
    assert code_of(under, verifier, trust, START + 20 * DAY) is Code.OUTSIDE_VALIDITY
    assert code_of(under, verifier, trust, inside, now=START + 20 * DAY) is Code.EXPIRED_SINCE
    # A root that has expired is still the operator's to trust.
    assert code_of(under, verifier, Trust([brief.certificate]), START + 20 * DAY) is Code.OK


def test_the_better_of_two_ways_counts(verifier: Verifier) -> None:
    other_root = Holder("other root", is_ca=True, days=3650, options={"path_len": 9})
    middle = Holder("middle", issuer=ROOT, is_ca=True, days=10)
    crossed = Holder("middle", issuer=other_root, is_ca=True, days=300)
    leaf = Holder("leaf", issuer=middle, days=300)
    both = [middle.certificate, crossed.certificate]
    trust = Trust([ROOT.certificate, other_root.certificate], both)
    assert code_of(leaf, verifier, trust, START + 100 * DAY) is Code.OK
    assert (
        code_of(leaf, verifier, Trust([ROOT.certificate], both), START + 100 * DAY) is Code.OUTSIDE_VALIDITY
    )


def test_revocation(verifier: Verifier) -> None:
    leaf, other = Holder("leaf", issuer=ROOT), Holder("other", issuer=ROOT)
    crl = ROOT.crl({leaf.serial: AT, 99_999: START}, AT + DAY, AT + 9 * DAY)
    trust = Trust([ROOT.certificate], crls=[crl])
    assert code_of(leaf, verifier, trust, AT) is Code.REVOKED_BEFORE
    assert code_of(leaf, verifier, trust, AT - DAY, now=AT + DAY) is Code.REVOKED_SINCE
    assert code_of(other, verifier, trust, AT) is Code.OK


def test_a_revoked_issuer(verifier: Verifier) -> None:
    middle = Holder("middle", issuer=ROOT, is_ca=True)
    leaf = Holder("leaf", issuer=middle)
    trust = Trust([ROOT.certificate], [middle.certificate], [ROOT.crl({middle.serial: AT}, AT)])
    assert code_of(leaf, verifier, trust, AT + DAY) is Code.REVOKED_BEFORE
    assert code_of(leaf, verifier, trust, AT - DAY, now=AT) is Code.REVOKED_SINCE


def test_lists_that_do_not_count(verifier: Verifier) -> None:
    leaf = Holder("leaf", issuer=ROOT)
    double = Holder("double", is_ca=True, known_as="root")
    forged = double.crl({leaf.serial: START}, AT)
    trust = Trust([ROOT.certificate], crls=[forged])
    (finding,) = check_chain(leaf.certificate, trust, AT, verifier)
    assert finding.code is Code.OK and "revocation not checked" in finding.warnings[0]
    old, new = ROOT.crl({}, START), ROOT.crl({leaf.serial: START}, AT)
    assert code_of(leaf, verifier, Trust([ROOT.certificate], crls=[old, new])) is Code.REVOKED_BEFORE
    assert code_of(leaf, verifier, Trust([ROOT.certificate], crls=[forged, new])) is Code.REVOKED_BEFORE


def test_revocation_that_is_demanded(verifier: Verifier) -> None:
    leaf, roots = Holder("leaf", issuer=ROOT), [ROOT.certificate]
    assert code_of(leaf, verifier, Trust(roots, demand_revocation=True)) is Code.REVOCATION_UNKNOWN
    crls = [ROOT.crl({}, AT - DAY, AT + DAY)]
    demanding = Trust(roots, crls=crls, demand_revocation=True)
    assert code_of(leaf, verifier, demanding) is Code.OK
    assert code_of(leaf, verifier, demanding, now=AT + 2 * DAY) is Code.REVOCATION_UNKNOWN
    (finding,) = check_chain(leaf.certificate, Trust(roots, crls=crls), AT, verifier, now=AT + 2 * DAY)
    assert finding.code is Code.OK and finding.warnings == ("the newest revocation list is out of date",)


def test_time_stamping_is_a_purpose_of_its_own(verifier: Verifier) -> None:
    trust = Trust([ROOT.certificate])
    person = Holder("person", issuer=ROOT)
    authority = Holder("authority", issuer=ROOT, options={"is_time_stamping": True})
    assert code_of(person, verifier, trust, purpose=Purpose.TIME_STAMPING) is Code.KEY_USAGE
    assert code_of(authority, verifier, trust, purpose=Purpose.TIME_STAMPING) is Code.OK


def test_what_is_no_certificate(verifier: Verifier) -> None:
    (finding,) = check_chain(b"0\x03\x02\x01\x00", Trust([]), AT, verifier)
    assert finding.code is Code.UNREADABLE
    with pytest.raises(BadRequest, match="at most"):
        read_certificate(bytes(65_537))
    with pytest.raises(BadRequest, match="at most"):
        read_crl(bytes(MAX_CRL_LEN + 1))


def test_a_delta_list_is_refused() -> None:
    whole = ROOT.crl({}, AT)
    tbs, algorithm, value = split(whole)
    indicator = der.sequence(der.oid("2.5.29.27"), der.octets(der.integer(1)))
    parts = [*split(tbs), der.tlv(0xA0, der.sequence(indicator))]
    read_crl(der.sequence(der.sequence(*split(tbs)), algorithm, value))
    with pytest.raises(BadRequest, match="delta"):
        read_crl(der.sequence(der.sequence(*parts), algorithm, value))


def split(element: bytes) -> list[bytes]:
    reader, found = der.Reader(element, "", "").inside(""), []
    while not reader.at_end():
        found.append(reader.raw(""))
    return found


@pytest.mark.parametrize(
    ("tag", "value", "text"),
    [
        (0x0C, "某某公司".encode(), "某某公司"),
        (0x13, "某某公司".encode("gb18030"), "某某公司"),
        (0x1E, "某某公司".encode("utf-16-be"), "某某公司"),
        (0x13, b"Cloud, Inc.", "Cloud\\, Inc."),
        (0x03, b"\x00\xff\xff", "#00ffff"),
        (0x0C, b"\x1b[31m", "#1b5b33316d"),  # nothing that a terminal would obey
    ],
)
def test_names_for_people(tag: int, value: bytes, text: str) -> None:
    attribute = der.sequence(der.oid("2.5.4.3"), der.tlv(tag, value))
    odd = der.sequence(der.oid("1.2.3.4"), der.tlv(0x0C, b"x"))
    name = der.sequence(der.tlv(der.SET, attribute), der.tlv(der.SET, odd))
    assert name_text(name) == f"CN={text}, 1.2.3.4=x"


def test_names_that_are_none() -> None:
    assert name_text(b"\x30\x05abc").startswith("#3005")
