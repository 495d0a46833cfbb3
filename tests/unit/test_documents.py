"""Certificates about seals: one content has one form, one signature and one page; other people's programs read them."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from appliance import documents
from appliance.cli.drawing import draw_demo_imprint
from appliance.documents import (
    MAX_DOCUMENT_LEN,
    MAX_TEXT_LEN,
    Issue,
    cancellation_certificate,
    canonical,
    digest_to_sign,
    from_file,
    making_certificate,
    read_body,
    to_file,
    to_pdf,
    verify,
)
from appliance.errors import BadRequest, Conflict, Unavailable
from appliance.imprints import check_imprint
from appliance.lifecycle import (
    Document,
    DocumentKind,
    Generation,
    Imprint,
    Kind,
    Organisation,
    Reason,
    Seal,
    State,
)
from appliance.settings import SealSettings
from appliance.verifying import Verifier

FONT = str(SealSettings().font_file)
NOW, THEN = "2026-11-22T04:31:00.000+00:00", "2029-11-22T04:30:00.000+00:00"
ISSUER = "杭州市电子印章制作中心"
WORDS = "单位名称变更，换领新章"
SEAL = Seal(
    id="ab12",
    code="33010000000001",
    organisation="91330100MA27XYZ12Q",
    kind=Kind.SPECIAL,
    purpose="合同",
    number=2,
    name="杭州云章科技有限公司合同专用章",
    region="330100",
    holder="",
    custodian="李伟",
    applicant="王芳",
    state=State.MADE,
    version=3,
    generation=1,
    key_name="k1",
    valid_from=NOW,
    valid_to=THEN,
    applied_at=NOW,
    made_at=NOW,
    filed_at=None,
    confirmed_at=None,
    activated_at=None,
    last_used_at=None,
    ended_at=None,
    end_reason=None,
    replaces=None,
    replaced_by=None,
)
ORGANISATION = Organisation("91330100MA27XYZ12Q", "杭州云章科技有限公司", "330100")
CURVES = {"SM2": ("SM2", "-sm3", ["-sigopt", "distid:1234567812345678"]), "P-256": ("P-256", "-sha256", [])}
VERIFIER = Verifier()


class Maker:
    """A maker's key and certificate, and a signature over any bytes, by OpenSSL's program."""

    def __init__(self, folder: Path, curve: str) -> None:
        name, self.digest, self.options = CURVES[curve]
        self.key, self.folder = folder / "key.pem", folder
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{name}", "-out", str(self.key))
        self.certificate = openssl(
            *("req", "-x509", "-new", "-key", str(self.key), self.digest, *self.options),
            *("-subj", "/CN=maker", "-days", "30", "-outform", "DER"),
        )

    def sign(self, data: bytes) -> bytes:
        (self.folder / "data").write_bytes(data)
        return openssl("dgst", self.digest, "-sign", str(self.key), *self.options, str(self.folder / "data"))


def openssl(*arguments: str) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30).stdout


@pytest.fixture(scope="module", params=CURVES)
def maker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("maker"), request.param)


@cache
def imprint() -> Imprint:
    picture = draw_demo_imprint(ORGANISATION.name, Path(FONT), 42, "合同专用章")
    return check_imprint("PNG", picture, 42, 42, Kind.SPECIAL)


def generation(maker: Maker) -> Generation:
    return Generation("ab12", 1, "k1", maker.certificate, b"\x30\x03\x02\x01\x05", NOW, THEN, NOW)


def issue(maker: Maker, approved_by: str | None = "刘洋") -> Issue:
    return Issue(ISSUER, maker.certificate, NOW, "陈刚", approved_by)


def body_of(maker: Maker, kind: DocumentKind, words: str = WORDS, seal: Seal = SEAL) -> bytes:
    if kind is DocumentKind.MAKING:
        return making_certificate(seal, ORGANISATION, generation(maker), imprint(), issue(maker))
    return cancellation_certificate(
        seal, ORGANISATION, generation(maker), imprint(), issue(maker), Reason.CHANGED, words, NOW
    )


def signed(maker: Maker, kind: DocumentKind = DocumentKind.MAKING, **more: Any) -> Document:
    body = body_of(maker, kind, **more)
    return Document("ab12", kind, NOW, body, maker.sign(body), maker.certificate)


# Content ----------------------------------------------------------------------------------------------------


def test_a_making_certificate_says_what_was_made_in_the_national_names(maker: Maker) -> None:
    fields = verify(signed(maker), VERIFIER)
    assert {name: fields[name] for name in ("sealCode", "sealName", "useUnitCode", "sealZone")} == {
        "sealCode": "33010000000001",
        "sealName": "杭州云章科技有限公司合同专用章",
        "useUnitCode": "91330100MA27XYZ12Q",
        "sealZone": "330100",
    }
    assert (fields["validStartTime"], fields["validEndTime"], fields["createTime"]) == (NOW, THEN, NOW)
    assert (fields["proposer"], fields["approver"], fields["issuer"]) == ("陈刚", "刘洋", ISSUER)
    assert base64.b64decode(fields["signCert"]) == maker.certificate
    assert fields["esealSha256"] == sha256(b"\x30\x03\x02\x01\x05").hexdigest()
    assert fields["imprintSm3"] == imprint().sm3.hex()
    assert fields["imprintSha256"] == sha256(imprint().data).hexdigest()
    assert "invalidType" not in fields


def test_the_hashes_are_openssls(maker: Maker, tmp_path: Path) -> None:
    fields = verify(signed(maker), VERIFIER)
    for name, data in (("certSm3", maker.certificate), ("imprintSm3", imprint().data)):
        (tmp_path / "data").write_bytes(data)
        assert openssl("dgst", "-sm3", "-r", str(tmp_path / "data"))[:64].decode() == fields[name]


@pytest.mark.parametrize(
    ("reason", "type_"), [(Reason.KEY_COMPROMISED, 0), (Reason.WITHDRAWN, 1), (Reason.LOST, 2)]
)
def test_a_cancellation_certificate_says_why_and_from_when(maker: Maker, reason: Reason, type_: int) -> None:
    body = cancellation_certificate(SEAL, ORGANISATION, None, imprint(), issue(maker, None), reason, "", THEN)
    fields = read_body(body)
    assert (fields["cancelReason"], fields["invalidType"]) == (reason.value, type_)
    assert (fields["invalidEffectTime"], fields["applyDate"]) == (THEN, NOW)
    assert fields["approver"] is None and "esealSm3" not in fields, "a seal that was never made has none"


def test_limits(maker: Maker) -> None:
    with pytest.raises(BadRequest, match=f"at most {MAX_TEXT_LEN}"):
        body_of(maker, DocumentKind.CANCELLATION, "字" * (MAX_TEXT_LEN + 1))
    with pytest.raises(Conflict, match="without a code"):
        body_of(maker, DocumentKind.MAKING, seal=replace(SEAL, code=""))
    room = MAX_DOCUMENT_LEN - len(canonical({"a": ""}))
    assert len(canonical({"a": "x" * room})) == MAX_DOCUMENT_LEN
    with pytest.raises(BadRequest, match="at most 65536 bytes"):
        canonical({"a": "x" * (room + 1)})
    with pytest.raises(BadRequest, match="at most 65536 bytes"):
        read_body(b" " * (MAX_DOCUMENT_LEN + 1))


# Form -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "data"),
    [
        # RFC 8785 3.2.2, its string and literals
        (
            {"string": '\u20ac$\u000f\u000aA\'\u0042"\\\\"/', "literals": [None, True, False]},
            b'{"literals":[null,true,false],"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
        ),
        ({"b": 1, "a": {"d": -2, "c": 0}, "B": []}, b'{"B":[],"a":{"c":0,"d":-2},"b":1}'),
        ({"a": 2**53 - 1, "b": -(2**53) + 1}, b'{"a":9007199254740991,"b":-9007199254740991}'),
        ({"a": "\x7f\u2028\x00\U00020000"}, b'{"a":"\x7f\xe2\x80\xa8\\u0000\xf0\xa0\x80\x80"}'),
    ],
)
def test_vectors_of_the_form(value: dict[str, Any], data: bytes) -> None:
    assert canonical(value) == data
    assert read_body(data) == value


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1.0},
        {"a": 2**53},
        {"a": -(2**53)},
        {"章": 1},
        {"a": "\ud800"},
        {"a": b""},
        {1: 2},
        {"a": float("nan")},
    ],
)
def test_what_has_no_form(value: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        canonical(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'{"a":1.0}',
        b'{"a":1e0}',
        b'{"a":-0}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 5_000 + b"}",
        b"[" * 10_000,
        b'{"a":' * 9 + b"1" + b"}" * 9,
        b"[]",
        b"",
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
    ],
)
def test_what_is_not_in_the_form(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_body(data)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), PLAIN, max_size=6))
def test_the_form_round_trips_and_does_not_know_the_order_of_names(value: dict[str, Any]) -> None:
    try:
        data = canonical(value)
    except BadRequest as error:
        assert "nested" in error.detail
        return
    assert read_body(data) == value == json.loads(data)
    assert canonical(dict(reversed(value.items()))) == data


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:ab01.-\\ue ', max_size=30).map(str.encode))
def test_any_bytes_are_a_document_or_told_why_not(data: bytes) -> None:
    for read in (read_body, from_file):
        try:
            read(data)
        except BadRequest as error:
            assert error.detail


# Signature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DocumentKind)
def test_openssls_signature_verifies_and_travels(maker: Maker, kind: DocumentKind) -> None:
    document = signed(maker, kind)
    assert verify(document, VERIFIER)["sealId"] == "ab12"
    assert len(digest_to_sign(document.body, document.signer, VERIFIER)) == 32
    assert from_file(to_file(document)) == document
    loosely = json.dumps(json.loads(to_file(document)), indent=2, sort_keys=False).encode()
    assert from_file(loosely) == document, "blanks are not signed"


def test_each_thing_that_can_be_wrong(maker: Maker, tmp_path: Path) -> None:
    document = signed(maker)
    (tmp_path / "other").mkdir()
    other = Maker(tmp_path / "other", "P-256")
    altered = canonical(read_body(document.body) | {"sealName": "杭州云章科技有限公司财务专用章"})
    flipped = bytearray(document.signature)
    flipped[-1] ^= 1
    for told, wrong in (
        ("signature does not fit", replace(document, body=altered)),
        ("signature does not fit", replace(document, signature=bytes(flipped))),
        ("signature does not fit", replace(document, signature=other.sign(document.body))),
        ("issuerCertSm3", replace(document, signer=other.certificate)),
        ("documentType", replace(document, kind=DocumentKind.CANCELLATION)),
        ("sealId", replace(document, seal_id="cd34")),
        ("issueTime", replace(document, issued_at=THEN)),
        ("canonical", replace(document, body=document.body + b"\n")),
        ("DER", replace(document, signature=document.signature + b"\x00")),
        ("X.509", replace(document, signer=b"\x30\x00")),
    ):
        with pytest.raises(BadRequest, match=told):
            verify(wrong, VERIFIER)


@pytest.mark.parametrize(
    "alter",
    [
        lambda value: value.pop("signature"),
        lambda value: value.update(more=1),
        lambda value: value.update(signature="*"),
        lambda value: value.update(signature=7),
        lambda value: value.update(document=[]),
        lambda value: value["document"].update(documentType="invoice"),
        lambda value: value["document"].update(documentType=[]),
        lambda value: value["document"].pop("sealId"),
        lambda value: value["document"].update(sealNumber=1.5),
    ],
)
def test_files_that_are_none(maker: Maker, alter: Any) -> None:
    value = json.loads(to_file(signed(maker)))
    alter(value)
    with pytest.raises(BadRequest):
        from_file(json.dumps(value).encode())


# Paper ------------------------------------------------------------------------------------------------------


def poppler(program: str, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60, text=True)
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=DocumentKind)
def printed(
    request: pytest.FixtureRequest, maker: Maker, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Document, Path]:
    document = signed(maker, request.param)
    path = tmp_path_factory.mktemp("printed") / "page.pdf"
    path.write_bytes(to_pdf(document, imprint(), FONT))
    return document, path


def test_the_page_says_it_in_chinese(printed: tuple[Document, Path]) -> None:
    document, path = printed
    text = poppler("pdftotext", "-layout", str(path), "-")
    expected = [
        SEAL.name,
        SEAL.code,
        ORGANISATION.name,
        ORGANISATION.code,
        ISSUER,
        "陈刚 / 刘洋",
        "合同（2）",
    ]
    expected += ["2026-11-22 12:31:00", "2029-11-22 12:30:00", imprint().sm3.hex(), "42 mm × 42 mm"]
    expected += [documents.TITLES[document.kind]]
    if document.kind is DocumentKind.CANCELLATION:
        expected += [f"变更换领：{WORDS}", "失效时间"]
    squeezed = re.sub(r"\s+", "", text)
    assert not [one for one in expected if re.sub(r"\s+", "", one) not in squeezed]
    assert "持有人" not in text, "what the document does not say is not there"
    info = poppler("pdfinfo", str(path))
    assert re.search(r"Pages: +1\n", info) and re.search(r"Page size: +595\.\d+ x 841\.\d+ pts \(A4\)", info)


def test_the_signed_file_is_in_the_page(printed: tuple[Document, Path], tmp_path: Path) -> None:
    document, path = printed
    poppler("pdfdetach", "-saveall", "-o", str(tmp_path), str(path))
    (saved,) = tmp_path.iterdir()
    assert saved.read_bytes() == to_file(document)
    assert verify(from_file(saved.read_bytes()), VERIFIER)


def test_fonts_are_embedded(printed: tuple[Document, Path]) -> None:
    lines = poppler("pdffonts", str(printed[1])).splitlines()[2:]
    assert lines and all(re.search(r"Identity-H +yes yes yes", line) for line in lines)
    assert printed[1].stat().st_size < 150_000, "and no more of them than is used"


def test_it_is_for_archives(printed: tuple[Document, Path]) -> None:
    data = printed[1].read_bytes()
    assert b"<pdfaid:part>3</pdfaid:part>" in data and b"/AFRelationship /Source" in data
    assert b"/OutputIntents" in data


def test_the_imprint_has_its_true_size(printed: tuple[Document, Path], tmp_path: Path) -> None:
    row = poppler("pdfimages", "-list", str(printed[1])).splitlines()[2].split()
    assert (row[3], row[4], row[12], row[13]) == ("496", "496", "300", "300")
    poppler("pdftoppm", "-r", "254", "-png", str(printed[1]), str(tmp_path / "page"))
    page = Image.open(next(tmp_path.iterdir())).convert("RGB")
    part = page.crop((1_100, 2_050, 1_900, 2_720))  # tenths of mm; the frame is outside
    red = part.split()[1].point(lambda green: 255 if green < 40 else 0)
    red = Image.composite(
        red, Image.new("L", red.size), part.split()[0].point(lambda r: 255 if r > 170 else 0)
    )
    left, top, right, bottom = red.getbbox() or (0, 0, 0, 0)
    # The ring's outer edge is 1.2 % inside the picture on each side.
    assert 404 <= right - left <= 414 and 404 <= bottom - top <= 414


def test_the_same_document_gives_the_same_page_in_any_process_at_any_time(
    maker: Maker, tmp_path: Path
) -> None:
    document = signed(maker)
    (tmp_path / "document").write_bytes(to_file(document))
    (tmp_path / "imprint").write_bytes(imprint().data)
    script = (
        "import sys, hashlib, pathlib, appliance.documents as d, appliance.imprints as i\n"
        "from appliance.lifecycle import Kind\n"
        "document, picture = (pathlib.Path(p).read_bytes() for p in sys.argv[1:3])\n"
        "imprint = i.check_imprint('PNG', picture, 42, 42, Kind.SPECIAL)\n"
        "pdf = d.to_pdf(d.from_file(document), imprint, sys.argv[3])\n"
        "print(hashlib.sha256(pdf).hexdigest())\n"
    )
    here = sha256(to_pdf(document, imprint(), FONT)).hexdigest()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-I", "-c", script, str(tmp_path / "document"), str(tmp_path / "imprint"), FONT],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TZ": f"UTC-{seed}"},
        )
        assert done.stdout.strip() == here


def test_long_words_and_names_take_a_further_page(maker: Maker, tmp_path: Path) -> None:
    organisation = replace(ORGANISATION, name="长" * 100)
    body = cancellation_certificate(
        replace(SEAL, name="章" * 100, holder="人" * 64, custodian="管" * 64),
        organisation,
        generation(maker),
        imprint(),
        issue(maker),
        Reason.CHANGED,
        "字" * MAX_TEXT_LEN,
        NOW,
    )
    document = Document("ab12", DocumentKind.CANCELLATION, NOW, body, maker.sign(body), maker.certificate)
    path = tmp_path / "page.pdf"
    path.write_bytes(to_pdf(document, imprint(), FONT))
    text = poppler("pdftotext", "-layout", str(path), "-")
    # Three more stand in the labels.
    assert text.count("\f") == 2 and text.count("字") == MAX_TEXT_LEN + 3 and "（续）" in text.split("\f")[1]
    assert all(text.count(one) >= count for one, count in (("长", 100), ("章", 100), ("人", 64), ("管", 64)))


def test_names_are_printed_as_they_are(maker: Maker, tmp_path: Path) -> None:
    name = "{nb}**粗**__A&B__<b>~~%s{}\\n"
    body = making_certificate(
        replace(SEAL, name=name), replace(ORGANISATION, name=name), generation(maker), imprint(), issue(maker)
    )
    document = Document("ab12", DocumentKind.MAKING, NOW, body, maker.sign(body), maker.certificate)
    (tmp_path / "page.pdf").write_bytes(to_pdf(document, imprint(), FONT))
    assert poppler("pdftotext", str(tmp_path / "page.pdf"), "-").count(name) == 2


def test_a_character_that_the_font_lacks_is_told_and_not_left_out(maker: Maker) -> None:
    body = making_certificate(
        replace(SEAL, name="\U0003106c公司"), ORGANISATION, generation(maker), imprint(), issue(maker)
    )
    document = Document("ab12", DocumentKind.MAKING, NOW, body, maker.sign(body), maker.certificate)
    with pytest.raises(Unavailable, match="has no \U0003106c"):
        to_pdf(document, imprint(), FONT)


def test_no_font(maker: Maker, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"none.ttf.*fonts-wqy-microhei"):
        to_pdf(signed(maker), imprint(), str(tmp_path / "none.ttf"))
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(Unavailable, match=r"text.ttf.*fonts-wqy-microhei"):
        to_pdf(signed(maker), imprint(), str(tmp_path / "text.ttf"))


def test_another_seals_imprint(maker: Maker) -> None:
    other = draw_demo_imprint("别的公司", Path(FONT))
    with pytest.raises(BadRequest, match="not the document's"):
        to_pdf(signed(maker), check_imprint("PNG", other, 42, 42, Kind.SPECIAL), FONT)
