"""Certificates about seals: the making certificate (电子印章制作证书) and the cancellation certificate (注销证书).

For: their content as canonical JSON, what is signed and how it is verified, the file that travels, a page to print.
Not for: making signatures (a token does), trusting the signer (``eseal`` checks chains), keeping (``registry``).

Rules:

* The body is JSON in the one form of RFC 8785: names sorted, no blanks, UTF-8; no number but whole ones. What is not
  in that form is refused, so that one content has one signature.
* The signature is the maker's, over the body's bytes, by the algorithm of the key in the maker's certificate: SM2 over
  SM3(Z ‖ body), or ECDSA over SHA-256(body). A seal's signed part is DER and begins with ``0``; a body begins with
  ``{``: neither can be taken for the other.
* Names are the national platform's and GM/T 0131's where they are known (``sealCode``, ``useUnitCode``, ``sealZone``,
  ``validStartTime``, ``invalidType`` …); instants are ISO 8601 in UTC, as everywhere here. On paper they are Beijing's.
* A seal, an imprint and a certificate are named by their SM3 and SHA-256, so that anybody can tell whether it is them.
* The printed page carries the signed file as an attachment, and the attachment is what counts. The same document
  gives the same PDF, byte for byte: PDF/A-3, fonts embedded, the imprint in its true size.
"""

from __future__ import annotations

import base64
import binascii
import html
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from appliance.algorithms import PublicKey, signature_from_der
from appliance.errors import BadRequest, Conflict, Unavailable
from appliance.lifecycle import (
    INVALID_TYPES,
    Document,
    DocumentKind,
    Generation,
    Imprint,
    Kind,
    Organisation,
    Reason,
    Seal,
)
from appliance.verifying import VALID, Verifier, sm3

if TYPE_CHECKING:
    from fpdf import FPDF

MAX_DOCUMENT_LEN: Final = 64 * 1024
"""Bytes of a body, and of a file with its signature; real ones have 3 kB, a certificate of 4 kB included twice."""
MAX_TEXT_LEN: Final = 500
"""Characters of a reason or description: it must fit on the page."""
_MAX_INTEGER: Final = 2**53 - 1
"""RFC 8785 3.2.2.3: beyond, readers of JSON disagree."""
_VERSION: Final = 1

_TYPES: Final = {
    DocumentKind.MAKING: "sealMakingCertificate",
    DocumentKind.CANCELLATION: "sealCancellationCertificate",
}


@dataclass(frozen=True, slots=True)
class Issue:
    """Who stands for a certificate.

    ``signer`` is the maker's certificate, DER; ``approved_by`` is None where no second person was asked.
    """

    issuer: str
    signer: bytes
    issued_at: str
    proposed_by: str
    approved_by: str | None


# Content ----------------------------------------------------------------------------------------------------


def making_certificate(
    seal: Seal, organisation: Organisation, generation: Generation, imprint: Imprint, issue: Issue
) -> bytes:
    """The body to be signed, for a seal that is being made or renewed."""
    return canonical(_common(DocumentKind.MAKING, seal, organisation, imprint, issue) | _made(generation))


def cancellation_certificate(
    seal: Seal,
    organisation: Organisation,
    generation: Generation | None,
    imprint: Imprint,
    issue: Issue,
    reason: Reason,
    description: str,
    effective_at: str,
) -> bytes:
    """The body to be signed, for a seal that ends at that instant. ``description`` is the applicant's words."""
    if len(description) > MAX_TEXT_LEN:
        raise BadRequest(f"the description has {len(description)} characters", hint=f"at most {MAX_TEXT_LEN}")
    return canonical(
        _common(DocumentKind.CANCELLATION, seal, organisation, imprint, issue)
        | (_made(generation) if generation is not None else {})
        | {
            "applyDate": issue.issued_at,
            "cancelDescribe": description,
            "cancelReason": reason.value,
            "invalidEffectTime": effective_at,
            "invalidType": INVALID_TYPES[reason],
        }
    )


def _common(
    kind: DocumentKind, seal: Seal, organisation: Organisation, imprint: Imprint, issue: Issue
) -> dict[str, Any]:
    if not seal.code:
        raise Conflict("a seal without a code has no certificate", hint="the making gives it one")
    key = PublicKey.from_certificate(issue.signer)
    return {
        "approver": issue.approved_by,
        "documentType": _TYPES[kind],
        "documentVersion": _VERSION,
        "imprintFormat": imprint.format,
        "imprintHeight": imprint.height_mm,
        "imprintSha256": sha256(imprint.data).hexdigest(),
        "imprintSm3": imprint.sm3.hex(),
        "imprintWidth": imprint.width_mm,
        "issueTime": issue.issued_at,
        "issuer": issue.issuer,
        "issuerCertSm3": sm3(issue.signer).hex(),
        "proposer": issue.proposed_by,
        "sealCode": seal.code,
        "sealCustodian": seal.custodian,
        "sealHolder": seal.holder,
        "sealId": seal.id,
        "sealName": seal.name,
        "sealNumber": seal.number,
        "sealPurpose": seal.purpose,
        "sealType": seal.kind.value,
        "sealZone": seal.region,
        "signAlgorithm": key.algorithm.signature_oid,
        "useUnitCode": organisation.code,
        "useUnitName": organisation.name,
    }


def _made(generation: Generation) -> dict[str, Any]:
    return {
        "certSha256": sha256(generation.certificate).hexdigest(),
        "certSm3": sm3(generation.certificate).hex(),
        "createTime": generation.made_at,
        "esealSha256": sha256(generation.eseal).hexdigest(),
        "esealSm3": sm3(generation.eseal).hex(),
        "generation": generation.number,
        "signCert": base64.b64encode(generation.certificate).decode(),
        "validEndTime": generation.valid_to,
        "validStartTime": generation.valid_from,
    }


# Form -------------------------------------------------------------------------------------------------------


def canonical(value: Mapping[str, Any]) -> bytes:
    """RFC 8785, for text, whole numbers, true, false, null, lists and objects; ``BadRequest`` for anything else."""
    _check_plain(value, 0)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    data = text.encode()
    if len(data) > MAX_DOCUMENT_LEN:
        raise BadRequest(f"a document has at most {MAX_DOCUMENT_LEN} bytes, got {len(data)}")
    return data


def read_body(body: bytes) -> dict[str, Any]:
    """The fields of a body, ``BadRequest`` where it is not in canonical form."""
    fields = _load(body)
    if canonical(fields) != body:
        raise BadRequest(
            "the document is not in canonical form (RFC 8785)", hint="take the bytes as they were issued"
        )
    return fields


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT_LEN:
        raise BadRequest(f"a document has at most {MAX_DOCUMENT_LEN} bytes, got {len(data)}")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequest("the document is not JSON", hint=str(error)[:100]) from error
    if not isinstance(value, dict):
        raise BadRequest("the document is not a JSON object")
    return value


def _check_plain(value: object, depth: int) -> None:
    if depth > 8:
        raise BadRequest("the document is nested deeper than 8 levels")
    if isinstance(value, Mapping):
        for name, item in value.items():
            # ASCII alone: there the order of UTF-16 that RFC 8785 asks for is the order of characters.
            if not isinstance(name, str) or not name.isascii():
                raise BadRequest("the document has a name that is not ASCII text")
            _check_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRequest("the document has text that is not Unicode")
    elif isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise BadRequest("the document has a number beyond 2^53")
    elif value is not None:
        raise BadRequest(f"the document has a value of type {type(value).__name__}")


# Signature --------------------------------------------------------------------------------------------------


def digest_to_sign(body: bytes, signer: bytes, verifier: Verifier) -> bytes:
    """What the maker's key signs: 32 bytes. ``signer`` is its certificate, DER."""
    key = PublicKey.from_certificate(signer)
    return verifier.digest(key, len(body).to_bytes(4, "big"), body)


def verify(document: Document, verifier: Verifier) -> dict[str, Any]:
    """The fields, where the document is whole and its signer's key signed it; else ``BadRequest`` says what is wrong.

    Whether that signer is to be trusted, and was when it signed, is another question.
    """
    fields = read_body(document.body)
    key = PublicKey.from_certificate(document.signer)
    for name, expected in (
        ("documentType", _TYPES[document.kind]),
        ("documentVersion", _VERSION),
        ("sealId", document.seal_id),
        ("issueTime", document.issued_at),
        ("issuerCertSm3", sm3(document.signer).hex()),
        ("signAlgorithm", key.algorithm.signature_oid),
    ):
        if fields.get(name) != expected:
            raise BadRequest(
                f"the document's {name} is {fields.get(name)!r}, expected {expected!r}",
                hint="it belongs to another certificate, or was altered",
            )
    digest = digest_to_sign(document.body, document.signer, verifier)
    if verifier.verify(key, digest, signature_from_der(document.signature))[0] != VALID:
        raise BadRequest(
            "the document's signature does not fit", hint="it was altered, or signed by another key"
        )
    return fields


def to_file(document: Document) -> bytes:
    """The document as it travels, JSON: the body as it was signed, the signature and the signer's certificate."""
    parts = (
        b'{"document":',
        document.body,
        b',"signature":"',
        base64.b64encode(document.signature),
        b'","signerCertificate":"',
        base64.b64encode(document.signer),
        b'"}\n',
    )
    return b"".join(parts)


def from_file(data: bytes) -> Document:
    """The inverse; blanks and the order of names do not matter to it. Verify it before believing it."""
    value = _load(data)
    fields = value.get("document")
    kinds = {name: kind for kind, name in _TYPES.items()}
    if not isinstance(fields, dict) or fields.get("documentType") not in (*kinds,):
        raise BadRequest("no certificate of a seal", hint=f"expected a document of type {' or '.join(kinds)}")
    texts = (
        fields.get("sealId"),
        fields.get("issueTime"),
        value.get("signature"),
        value.get("signerCertificate"),
    )
    if len(value) != 3 or not all(isinstance(text, str) for text in texts):
        raise BadRequest(
            "no certificate of a seal", hint="expected document, signature and signerCertificate"
        )
    seal_id, issued_at, signature, signer = (str(text) for text in texts)
    try:
        return Document(
            seal_id,
            kinds[fields["documentType"]],
            issued_at,
            canonical(fields),
            base64.b64decode(signature, validate=True),
            base64.b64decode(signer, validate=True),
        )
    except binascii.Error as error:
        raise BadRequest("the signature or its certificate is not base64", hint=str(error)) from error


# Paper ------------------------------------------------------------------------------------------------------

TITLES: Final = {DocumentKind.MAKING: "电子印章制作证书", DocumentKind.CANCELLATION: "电子印章注销证书"}
KIND_NAMES: Final = {
    Kind.STATUTORY: "法定名称章",
    Kind.DEPARTMENT: "内设机构章",
    Kind.SPECIAL: "业务专用章",
    Kind.OFFICE: "电子职务章",
    Kind.PERSONAL: "个人名章",
}
REASON_NAMES: Final = {
    Reason.WITHDRAWN: "申请撤销",
    Reason.LOST: "遗失或被盗",
    Reason.KEY_COMPROMISED: "密钥泄露",
    Reason.ORGANISATION_ENDED: "单位终止",
    Reason.CHANGED: "变更换领",
    Reason.NOT_COLLECTED: "逾期未领取",
}
_STATEMENTS: Final = {
    DocumentKind.MAKING: "兹证明下列电子印章已经审核批准，依照国家标准制作，并与所列数字证书和印模绑定。",
    DocumentKind.CANCELLATION: "兹证明下列电子印章已经注销，自所列时间起不再有效；此前依法盖章的效力不受影响。",
}
_FONTS: Final = (b"\0\1\0\0", b"true", b"ttcf", b"OTTO")
"""How font files begin (OpenType 1.9, 4.1)."""
_PRODUCER: Final = "cloud-seal"
_XMP: Final = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
  <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
      xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:pdf="http://ns.adobe.com/pdf/1.3/"
      xmlns:pdfaid="http://www.aiim.org/pdfa/ns/id/">
    <rdf:Description rdf:about="" xmp:CreateDate="{}" xmp:ModifyDate="{}" pdf:Producer="{}">
      <pdfaid:part>3</pdfaid:part>
      <pdfaid:conformance>B</pdfaid:conformance>
      <dc:title><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:title>
      <dc:creator><rdf:Seq><rdf:li>{}</rdf:li></rdf:Seq></dc:creator>
    </rdf:Description>
  </rdf:RDF>
</x:xmpmeta>"""
"""What PDF/A asks a file to say of itself (ISO 19005-3, 6.6)."""
_BEIJING: Final = timezone(timedelta(hours=8))
_INK: Final = (176, 24, 24)
_PALE: Final = (110, 110, 110)
_MARGIN_MM: Final = 22.0
_LABEL_MM: Final = 36.0
_LINE_MM: Final = 6.6
_FOOT_MM: Final = 88.0
"""From the page's end: the imprint, at most 60 mm, and who issued it."""
_LONG_LEN: Final = 60
"""Characters from which on a line of text is printed smaller."""


def to_pdf(document: Document, imprint: Imprint, font_file: str) -> bytes:
    """A4, PDF/A-3, one page but for long words, with the signed file attached. Takes up to 1 s: not for the event loop.

    ``font_file`` is a TrueType font with the characters of names and titles, part of which is embedded;
    ``Unavailable`` where it is not there or lacks one of them. ``BadRequest`` where the imprint is another seal's.
    """
    # fpdf2 and the font tools it brings take 0.3 s to import, which a start need not wait for.
    from fpdf import FPDF

    fields = read_body(document.body)
    if sm3(imprint.data).hex() != fields["imprintSm3"]:
        raise BadRequest("the imprint is not the document's", hint="take the one on record for this seal")
    pdf = FPDF(format="A4", enforce_compliance="PDF/A-3B")
    pdf.set_creation_date(datetime.fromisoformat(document.issued_at))
    pdf.set_title(TITLES[document.kind])
    pdf.set_author(fields["issuer"])
    pdf.set_lang("zh-CN")
    pdf.set_producer(_PRODUCER)
    # Written here, since the library's own tells when the PDF was made: the same document, the same bytes.
    pdf.set_xmp_metadata(
        _XMP.format(
            *(
                html.escape(text)
                for text in (
                    document.issued_at,
                    document.issued_at,
                    _PRODUCER,
                    TITLES[document.kind],
                    fields["issuer"],
                )
            )
        )
    )
    pdf.set_auto_page_break(False)
    pdf.alias_nb_pages("")  # else the library puts a number where a name has {nb}
    page = _Page(pdf, font_file)
    try:
        page.frame()
        page.title(TITLES[document.kind], f"印章编码 {fields['sealCode']}")
        page.text(_STATEMENTS[document.kind])
        for label, value in _rows(document.kind, fields):
            page.row(label, value)
        page.make_room(_FOOT_MM)
        page.imprint(imprint, is_cancelled=document.kind is DocumentKind.CANCELLATION)
        page.issuer(fields, document.signature)
        pdf.embed_file(
            bytes=to_file(document),
            basename=f"{_TYPES[document.kind]}-{fields['sealCode']}.json",
            mime_type="application/json",
            modification_date=datetime.fromisoformat(document.issued_at),
            associated_file_relationship="Source",
            desc="The signed certificate that this page shows",
        )
        return bytes(pdf.output())
    finally:
        page.close()


def _rows(kind: DocumentKind, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands on the page, line by line; nothing where the document says nothing."""
    purpose = fields["sealPurpose"] + (f"（{fields['sealNumber']}）" if fields["sealNumber"] else "")
    rows = [
        ("印章名称", fields["sealName"]),
        ("印章编码", fields["sealCode"]),
        (
            "印章类型",
            KIND_NAMES[Kind(fields["sealType"])] + (f"　{purpose}" if fields["sealPurpose"] else ""),
        ),
        ("使用单位", fields["useUnitName"]),
        ("统一社会信用代码", fields["useUnitCode"]),
        ("持有人", fields["sealHolder"]),
        ("保管人", fields["sealCustodian"]),
        ("行政区划", fields["sealZone"]),
    ]
    if "esealSm3" in fields:
        rows += [
            ("有效期", f"{_beijing(fields['validStartTime'])}　至　{_beijing(fields['validEndTime'])}"),
            ("制作时间", f"{_beijing(fields['createTime'])}　第 {fields['generation']} 次制作"),
        ]
    if kind is DocumentKind.CANCELLATION:
        reason = REASON_NAMES[Reason(fields["cancelReason"])]
        rows += [
            ("注销原因", reason + (f"：{fields['cancelDescribe']}" if fields["cancelDescribe"] else "")),
            ("失效时间", _beijing(fields["invalidEffectTime"])),
        ]
    rows.append(("经办 / 批准", f"{fields['proposer']} / {fields['approver'] or '—'}"))
    if "esealSm3" in fields:
        rows += [("印章数据 SM3", fields["esealSm3"]), ("数字证书 SM3", fields["certSm3"])]
    rows.append(("印模 SM3", fields["imprintSm3"]))
    return [(label, value) for label, value in rows if value]


def _beijing(instant: str) -> str:
    return datetime.fromisoformat(instant).astimezone(_BEIJING).strftime("%Y-%m-%d %H:%M:%S")


class _Page:
    """The one page: each call writes below the last."""

    def __init__(self, pdf: FPDF, font_file: str) -> None:
        from fontTools.ttLib import TTLibError  # late for the same reason as above
        from fpdf.enums import WrapMode
        from fpdf.fonts import TTFFont

        self._pdf = pdf
        try:
            with open(font_file, "rb") as file:  # noqa: PTH123  # a pure module knows no paths
                magic = file.read(4)
            if magic not in _FONTS:
                raise _no_font(f"{font_file} is no TrueType font")
            pdf.add_font("text", fname=font_file)
        except OSError as error:
            raise _no_font(f"{font_file}: {error.strerror}") from error
        except TTLibError as error:
            raise _no_font(f"{font_file}: {error}") from error
        font = pdf.fonts["text"]
        assert isinstance(font, TTFFont)
        self._font = font
        self._known = font.cmap
        self._missing: set[str] = set()
        self._heading = ""
        self._wrap = WrapMode.CHAR  # Chinese has no blanks to break lines at
        pdf.set_margins(_MARGIN_MM, _MARGIN_MM)
        pdf.add_page()

    def close(self) -> None:
        """The font's file, which the library reads from to the end, and leaves open."""
        self._font.close()

    def make_room(self, room_mm: float) -> None:
        """A further page, which says of what, where less is left on this one."""
        if self._pdf.get_y() > self._pdf.h - room_mm:
            self._pdf.add_page()
            self.frame()
            self._pdf.set_y(22)
            self._cell(self._heading, 9, align="C", height_mm=7, colour=_PALE)
            self._pdf.ln(3)

    def frame(self) -> None:
        pdf = self._pdf
        pdf.set_draw_color(*_INK)
        for inset_mm, line_mm in ((10.0, 0.9), (12.0, 0.25)):
            pdf.set_line_width(line_mm)
            pdf.rect(inset_mm, inset_mm, pdf.w - 2 * inset_mm, pdf.h - 2 * inset_mm)

    def title(self, title: str, under: str) -> None:
        self._heading = f"{title}　{under}　（续）"
        self._pdf.set_y(26)
        self._cell(title, 24, align="C", height_mm=14, colour=_INK)
        self._cell(under, 10, align="C", height_mm=7, colour=_PALE)
        self._pdf.ln(5)

    def text(self, text: str) -> None:
        self._cell(text, 11, height_mm=_LINE_MM)
        self._pdf.ln(3)

    def row(self, label: str, value: str) -> None:
        pdf = self._pdf
        self.make_room(_MARGIN_MM + _LINE_MM * (1 + len(value) / 30))
        top = pdf.get_y()
        self._cell(label, 10, width_mm=_LABEL_MM, height_mm=_LINE_MM, colour=_PALE)
        pdf.set_xy(_MARGIN_MM + _LABEL_MM, top)
        is_long = len(value) > _LONG_LEN
        size, height_mm = (9, 5.2) if is_long else (11, _LINE_MM)
        self._cell(value, size, width_mm=pdf.epw - _LABEL_MM, height_mm=height_mm)
        pdf.set_y(max(pdf.get_y(), top + _LINE_MM))
        pdf.set_draw_color(225, 215, 215)
        pdf.set_line_width(0.15)
        pdf.line(_MARGIN_MM, pdf.get_y() + 0.4, pdf.w - _MARGIN_MM, pdf.get_y() + 0.4)
        pdf.ln(0.8)

    def imprint(self, imprint: Imprint, *, is_cancelled: bool) -> None:
        """In its true size, in the lower right; over it the word for a seal that has ended."""
        pdf = self._pdf
        left = pdf.w - _MARGIN_MM - 62 + (60 - imprint.width_mm) / 2
        top = pdf.h - 26 - 60 + (60 - imprint.height_mm) / 2
        pdf.image(io.BytesIO(imprint.data), x=left, y=top, w=imprint.width_mm, h=imprint.height_mm)
        if is_cancelled:
            middle_x, middle_y = left + imprint.width_mm / 2, top + imprint.height_mm / 2
            with pdf.rotation(20, middle_x, middle_y):
                pdf.set_draw_color(60, 60, 60)
                pdf.set_line_width(0.7)
                pdf.rect(middle_x - 21, middle_y - 6.5, 42, 13)
                pdf.set_xy(middle_x - 21, middle_y - 6.5)
                self._cell("已 注 销", 22, width_mm=42, height_mm=13, align="C", colour=(60, 60, 60))
        pdf.set_xy(pdf.w - _MARGIN_MM - 62, pdf.h - 25)
        size = f"印模（原大）　{imprint.width_mm} mm × {imprint.height_mm} mm"
        self._cell(size, 8, width_mm=60, height_mm=5, align="C", colour=_PALE)

    def issuer(self, fields: Mapping[str, Any], signature: bytes) -> None:
        pdf = self._pdf
        width_mm = pdf.epw - 66
        pdf.set_y(pdf.h - 72)
        for label, value in (("签发单位", fields["issuer"]), ("签发时间", _beijing(fields["issueTime"]))):
            self._cell(label, 9, width_mm=width_mm, height_mm=5, colour=_PALE)
            self._cell(value, 12, width_mm=width_mm, height_mm=6.5)
            pdf.ln(1.5)
        for label, value in (("签发证书 SM3", fields["issuerCertSm3"]), ("数字签名", signature.hex())):
            self._cell(label, 7, width_mm=width_mm, height_mm=4, colour=_PALE)
            self._cell(value, 6.5, width_mm=width_mm, height_mm=3.2)
            pdf.ln(0.8)
        note = "本页附有带数字签名的证书文件（JSON），以该文件为准。时间均为北京时间。"
        pdf.set_xy(_MARGIN_MM, pdf.h - 20.5)
        self._cell(note, 7.5, height_mm=4, colour=_PALE)
        if self._missing:
            raise _no_font(f"the font has no {' '.join(sorted(self._missing)[:8])}")

    def _cell(
        self,
        text: str,
        size: float,
        *,
        width_mm: float = 0,
        height_mm: float,
        align: str = "L",
        colour: tuple[int, int, int] = (20, 20, 20),
    ) -> None:
        self._missing |= {one for one in text if ord(one) not in self._known}
        if self._missing:
            return  # what it would look like does not matter any more
        self._pdf.set_font("text", size=size)
        self._pdf.set_text_color(*colour)
        self._pdf.multi_cell(
            width_mm, height_mm, text, align=align, new_x="LMARGIN", new_y="NEXT", wrapmode=self._wrap
        )


def _no_font(detail: str) -> Unavailable:
    return Unavailable(
        f"the page cannot be printed: {detail}",
        hint="install Debian's fonts-wqy-microhei, or name a font file that has them (seals.font_file)",
    )
