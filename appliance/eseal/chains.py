"""Certificates as real CAs write them, and whether a chain of them leads to somebody we trust.

For: reading X.509 certificates and revocation lists (RFC 5280, GB/T 20518) without the strictness that makes a good
signature unverifiable; building and judging chains at a point in time.
Not for: fetching anything, name constraints, policies, OCSP.

Rules:

* A certificate that has its parts is read; what is wrong with its names and extensions is a warning, never an error
  (of 36 certificates in real seals, common libraries refuse ten). Names are compared as bytes.
* A chain is built once, whatever the time; ``judge`` then says how it stood at one time and stands at another.
* A trusted certificate ends a chain. That it has expired does not matter there: trusting it is the operator's act.
* Every signature in a chain is verified by us, under the issuer's key and with that key's algorithm.
* Revocation is told by the lists that were given. None for an issuer is a warning, or unknown where it is demanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import Final

from appliance.algorithms import MAX_CERTIFICATE_LEN, PublicKey, signature_from_der
from appliance.errors import BadRequest
from appliance.eseal import der
from appliance.eseal.der import Reader
from appliance.eseal.findings import OK, Code, Finding, found
from appliance.verifying import VALID, Verifier

MAX_CHAIN: Final = 8
"""Certificates from the signer to the root; real chains have two to four."""
MAX_PATHS: Final = 4
"""Ways to roots that are kept: cross-certified CAs have two or three."""
MAX_TRIALS: Final = 32
"""Signatures verified to build one chain: bounds the work where many CAs share a name."""
MAX_CRL_LEN: Final = 1 << 26
"""64 MB: a million revoked certificates."""
MAX_EXTENSIONS: Final = 64
MAX_ATTRIBUTES: Final = 64
"""Parts of a name; real ones have three to ten."""

_SOURCE: Final = "RFC 5280, GB/T 20518"
_KEY_USAGE: Final = "2.5.29.15"
_BASIC_CONSTRAINTS: Final = "2.5.29.19"
_EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_SUBJECT_KEY_ID: Final = "2.5.29.14"
_AUTHORITY_KEY_ID: Final = "2.5.29.35"
_HARMLESS: Final = frozenset({"2.5.29.17", "2.5.29.18", "2.5.29.31", "2.5.29.32", "1.3.6.1.5.5.7.1.1"})
"""Other names, where lists are, policies: critical or not, they change nothing that is judged here."""
_TIME_STAMPING: Final = "1.3.6.1.5.5.7.3.8"
_DELTA_INDICATOR: Final = "2.5.29.27"
_USAGES: Final = (
    "digital_signature", "non_repudiation", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip
_NAMES: Final = {
    "2.5.4.3": "CN", "2.5.4.5": "SERIALNUMBER", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O",
    "2.5.4.11": "OU", "1.2.840.113549.1.9.1": "E", "2.5.4.97": "ORGID",
}  # fmt: skip


class Purpose(Enum):
    """What a certificate is wanted for."""

    SIGNING = "signing"
    """Making or using seals: digitalSignature or nonRepudiation, where the certificate says any usage."""
    TIME_STAMPING = "time_stamping"
    """RFC 3161 2.3: the same, and the extended key usage timeStamping."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, tolerantly read.

    ``issuer`` and ``subject`` are names as they stand, DER. ``public`` is ``None`` for a key that is neither SM2 nor
    P-256. ``key_usage``, ``purposes`` and ``is_ca`` are ``None`` where the certificate does not say.
    """

    der: bytes
    tbs: bytes
    serial: int
    issuer: bytes
    subject: bytes
    valid_from: datetime
    valid_to: datetime
    spki: bytes
    public: PublicKey | None
    algorithm: str
    signature: bytes
    key_usage: frozenset[str] | None
    purposes: frozenset[str] | None
    is_ca: bool | None
    path_len: int | None
    key_id: bytes | None
    issuer_key_id: bytes | None
    unknown_critical: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def subject_text(self) -> str:
        """The subject for people: ``C=CN, O=某某公司, CN=…``."""
        return name_text(self.subject)

    @property
    def issuer_text(self) -> str:
        """The issuer for people."""
        return name_text(self.issuer)


# Certificates ---------------------------------------------------------------------------------------------------


def read_certificate(data: bytes) -> Certificate:
    """A DER certificate; ``BadRequest`` only where one of its parts is not there."""
    if len(data) > MAX_CERTIFICATE_LEN:
        raise BadRequest(f"a certificate has at most {MAX_CERTIFICATE_LEN} bytes, got {len(data)}")
    outer = Reader(data, "Certificate", _SOURCE, tolerant=True)
    reader = outer.inside("")
    outer.finish()
    tbs, body = reader.enter("tbsCertificate")
    algorithm = reader.inside("signatureAlgorithm").oid("algorithm")
    signature = reader.bits("signatureValue", MAX_CERTIFICATE_LEN)
    reader.finish()

    if body.peek() == der.explicit(0):
        body.raw("version")
    serial = body.integer("serialNumber", -(2**511), 2**511)
    if body.inside("signature").oid("algorithm") != algorithm:
        body.note("signature", "another algorithm than outside")
    issuer = body.raw("issuer", der.SEQUENCE)
    validity = body.inside("validity")
    valid_from = validity.time("notBefore", der.UTC_TIME, der.GENERALIZED_TIME)
    valid_to = validity.time("notAfter", der.UTC_TIME, der.GENERALIZED_TIME)
    subject = body.raw("subject", der.SEQUENCE)
    spki = body.raw("subjectPublicKeyInfo", der.SEQUENCE)
    for tag in (1, 2):
        if body.peek() in (der.explicit(tag), der.implicit(tag)):
            body.raw("uniqueID")
    said = _Said()
    if body.peek() == der.explicit(3):
        try:
            _read_extensions(body.inside("extensions", der.explicit(3)), said)
        except BadRequest as error:
            body.note("extensions", error.detail)
    elif not body.at_end():
        body.note("", "something that is no extension at the end")
    return Certificate(
        data, tbs, serial, issuer, subject, valid_from, valid_to, spki, _public(spki), algorithm, signature,
        said.key_usage, said.purposes, said.is_ca, said.path_len, said.key_id, said.issuer_key_id,
        tuple(said.unknown_critical), tuple(f"certificate not well-formed: {note}" for note in outer.notes),
    )  # fmt: skip


@dataclass(slots=True)
class _Said:
    """What the extensions said, as far as they could be read."""

    key_usage: frozenset[str] | None = None
    purposes: frozenset[str] | None = None
    is_ca: bool | None = None
    path_len: int | None = None
    key_id: bytes | None = None
    issuer_key_id: bytes | None = None
    unknown_critical: tuple[str, ...] = ()


def _public(spki: bytes) -> PublicKey | None:
    try:
        return PublicKey.from_spki(spki)
    except BadRequest:
        return None


def _read_extensions(reader: Reader, said: _Said) -> None:
    listed = reader.inside("")
    count = 0
    while not listed.at_end():
        count += 1
        if count > MAX_EXTENSIONS:
            raise listed.fail("", f"more than {MAX_EXTENSIONS} of them")
        extension = listed.inside("")
        oid = extension.oid("extnID")
        critical = extension.default_false("critical")
        try:
            _read_extension(oid, extension, said, critical)
        except BadRequest as error:
            listed.note(oid, error.detail)


def _read_extension(oid: str, extension: Reader, said: _Said, critical: bool) -> None:
    if oid not in _EXTENSION_READERS:
        if critical and oid not in _HARMLESS:
            said.unknown_critical = (*said.unknown_critical, oid)
        return
    value = extension.inside("extnValue", der.OCTET_STRING)
    _EXTENSION_READERS[oid](value, said)
    value.finish()


def _read_key_usage(value: Reader, said: _Said) -> None:
    bits = value.content("keyUsage", der.BIT_STRING, 8)
    flags = int.from_bytes(bits[1:3].ljust(2, b"\0"), "big")
    said.key_usage = frozenset(name for at, name in enumerate(_USAGES) if flags >> 15 - at & 1)


def _read_basic_constraints(value: Reader, said: _Said) -> None:
    constraints = value.inside("basicConstraints")
    said.is_ca = constraints.default_false("cA")
    if constraints.peek() == der.INTEGER:
        said.path_len = constraints.integer("pathLenConstraint", 0, 2**31 - 1)


def _read_extended_key_usage(value: Reader, said: _Said) -> None:
    listed = value.inside("extKeyUsage")
    purposes: set[str] = set()
    while not listed.at_end() and len(purposes) < MAX_EXTENSIONS:
        purposes.add(listed.oid("keyPurposeId"))
    said.purposes = frozenset(purposes)


def _read_key_id(value: Reader, said: _Said) -> None:
    said.key_id = value.octets("subjectKeyIdentifier", 64)


def _read_issuer_key_id(value: Reader, said: _Said) -> None:
    inner = value.inside("authorityKeyIdentifier")
    if inner.peek() == der.implicit(0):
        said.issuer_key_id = inner.content("keyIdentifier", der.implicit(0), 64)


_EXTENSION_READERS: Final = {
    _KEY_USAGE: _read_key_usage,
    _BASIC_CONSTRAINTS: _read_basic_constraints,
    _EXTENDED_KEY_USAGE: _read_extended_key_usage,
    _SUBJECT_KEY_ID: _read_key_id,
    _AUTHORITY_KEY_ID: _read_issuer_key_id,
}


@lru_cache(maxsize=256)  # the same few names come with every report
def name_text(name: bytes) -> str:
    """A name for people. What cannot be decoded is shown as its OID and bytes in hexadecimal."""
    parts: list[str] = []
    try:
        sets = Reader(name, "Name", _SOURCE, tolerant=True).inside("")
        while not sets.at_end() and len(parts) < MAX_ATTRIBUTES:
            attributes = sets.inside("", der.SET)
            while not attributes.at_end() and len(parts) < MAX_ATTRIBUTES:
                attribute = attributes.inside("")
                oid = attribute.oid("type")
                tag = attribute.peek()
                value = attribute.content("value", tag) if tag != -1 else b""
                parts.append(f"{_NAMES.get(oid, oid)}={_attribute_text(tag, value)}")
    except BadRequest:
        parts.append(f"#{name[:64].hex()}")
    return ", ".join(parts)


def _attribute_text(tag: int, value: bytes) -> str:
    """The text, by its type; then as UTF-8 or GB 18030, which are what mistyped names turn out to be."""
    for codec in ("utf-16-be",) if tag == der.BMP_STRING else ("utf-8", "gb18030"):
        try:
            decoded = value.decode(codec)
        except UnicodeDecodeError:
            continue
        if decoded.isprintable():
            return decoded.replace(",", "\\,")
    return f"#{value[:64].hex()}"


# Revocation lists -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL (RFC 5280 5): when which of an issuer's certificates was revoked. Not verified yet."""

    tbs: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    revoked: dict[int, datetime]
    algorithm: str
    signature: bytes


def read_crl(data: bytes) -> RevocationList:
    """A complete CRL in DER; ``BadRequest`` for anything else, deltas among it."""
    if len(data) > MAX_CRL_LEN:
        raise BadRequest(f"a revocation list has at most {MAX_CRL_LEN} bytes, got {len(data)}")
    outer = Reader(data, "CertificateList", _SOURCE, tolerant=True)
    reader = outer.inside("")
    outer.finish()
    tbs, body = reader.enter("tbsCertList")
    algorithm = reader.inside("signatureAlgorithm").oid("algorithm")
    signature = reader.bits("signatureValue", MAX_CERTIFICATE_LEN)
    reader.finish()
    if body.peek() == der.INTEGER:
        body.raw("version")
    body.raw("signature", der.SEQUENCE)
    issuer = body.raw("issuer", der.SEQUENCE)
    times = (der.UTC_TIME, der.GENERALIZED_TIME)
    this_update = body.time("thisUpdate", *times)
    next_update = body.time("nextUpdate", *times) if body.peek() in times else None
    revoked: dict[int, datetime] = {}
    if body.peek() == der.SEQUENCE:
        entries = body.inside("revokedCertificates")
        while not entries.at_end():
            entry = entries.inside("")
            serial = entry.integer("userCertificate", -(2**511), 2**511)
            revoked[serial] = entry.time("revocationDate", *times)
    if body.peek() == der.explicit(0):
        extensions = body.inside("crlExtensions", der.explicit(0)).inside("")
        while not extensions.at_end():
            extension = extensions.inside("")
            if extension.oid("extnID") == _DELTA_INDICATOR:
                raise extension.fail("", "a delta list alone does not tell what is revoked")
    return RevocationList(tbs, issuer, this_update, next_update, revoked, algorithm, signature)


# Trust ----------------------------------------------------------------------------------------------------------


class Trust:
    """Whom we trust, and what we know beside: immutable once made.

    ``roots`` end chains, ``intermediates`` only help to build them; ``crls`` tell who was revoked. All DER.
    ``demand_revocation`` makes it unknown rather than a warning where no current list tells.
    """

    def __init__(
        self,
        roots: Iterable[bytes],
        intermediates: Iterable[bytes] = (),
        crls: Iterable[bytes] = (),
        *,
        demand_revocation: bool = False,
    ) -> None:
        self._roots = frozenset(roots)
        self.demand_revocation = demand_revocation
        self._by_subject: dict[bytes, list[Certificate]] = {}
        for each in (*sorted(self._roots), *sorted(set(intermediates) - self._roots)):
            certificate = read_certificate(each)
            self._by_subject.setdefault(certificate.subject, []).append(certificate)
        self._crls: dict[bytes, list[RevocationList]] = {}
        for each in crls:
            crl = read_crl(each)
            self._crls.setdefault(crl.issuer, []).append(crl)
        for lists in self._crls.values():
            lists.sort(key=lambda crl: crl.this_update, reverse=True)

    def is_root(self, certificate: Certificate) -> bool:
        """Whether chains end here: it is one of the roots, byte by byte."""
        return certificate.der in self._roots

    def issuers(self, certificate: Certificate, more: Sequence[Certificate]) -> list[Certificate]:
        """Who may have issued it: of that name and, where both say one, with that key identifier."""
        known = self._by_subject.get(certificate.issuer, ())
        wanted = certificate.issuer_key_id
        return [
            issuer
            for issuer in (*known, *more)
            if issuer.subject == certificate.issuer
            and (wanted is None or issuer.key_id is None or issuer.key_id == wanted)
        ]

    def crls(self, issuer: Certificate) -> Sequence[RevocationList]:
        """The lists under the issuer's name, the newest first; whether they are its own is not checked."""
        return self._crls.get(issuer.subject, ())


def is_signed_by(
    issuer: Certificate, tbs: bytes, algorithm: str, signature: bytes, verifier: Verifier
) -> bool:
    """Whether the signature over ``tbs`` (a certificate's or a list's) is the issuer's."""
    key = issuer.public
    if key is None or algorithm != key.algorithm.signature_oid:
        return False
    try:
        raw = signature_from_der(signature)
    except BadRequest:
        return False
    digest = verifier.digest(key, len(tbs).to_bytes(4, "big"), tbs)
    return verifier.verify(key, digest, raw)[0] == VALID


# Chains ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Path:
    """One way from a certificate to a root. ``revoked`` are the certificates on it that a list names, and when."""

    certificates: tuple[Certificate, ...]
    fault: Finding | None
    revoked: tuple[tuple[Certificate, datetime], ...]
    unlisted: tuple[Certificate, ...]
    lists_until: datetime | None
    """When the first of the lists used is out of date."""

    @property
    def timed(self) -> tuple[Certificate, ...]:
        """Those whose validity counts: all but the root, unless it is the certificate itself."""
        return self.certificates[:-1] or self.certificates

    @property
    def window(self) -> tuple[datetime, datetime]:
        """When all of them are valid."""
        return max(c.valid_from for c in self.timed), min(c.valid_to for c in self.timed)

    def judge(self, at: datetime, now: datetime, demand_revocation: bool) -> Finding:
        """How the path stood ``at``, and what has changed up to ``now``."""
        if self.fault is not None:
            return self.fault
        for certificate in self.timed:
            if not certificate.valid_from <= at <= certificate.valid_to:
                period = f"{certificate.valid_from.isoformat()} to {certificate.valid_to.isoformat()}"
                return found(Code.OUTSIDE_VALIDITY, f"{certificate.subject_text} is valid from {period}")
        for certificate, since in self.revoked:
            if since <= at:
                return found(Code.REVOKED_BEFORE, f"{certificate.subject_text} at {since.isoformat()}")
        unlisted = [c.subject_text for c in self.unlisted]
        stale = self.lists_until is not None and self.lists_until < now
        if demand_revocation and (unlisted or stale):
            return found(Code.REVOCATION_UNKNOWN, ", ".join(unlisted) or "the newest list is out of date")
        warnings = [f"revocation not checked, no list of its issuer is here: {name}" for name in unlisted]
        if stale:
            warnings.append("the newest revocation list is out of date")
        for certificate, since in self.revoked:
            return found(Code.REVOKED_SINCE, f"{certificate.subject_text} at {since.isoformat()}", warnings)
        for certificate in self.timed:
            if now > certificate.valid_to:
                detail = f"{certificate.subject_text} at {certificate.valid_to.isoformat()}"
                return found(Code.EXPIRED_SINCE, detail, warnings)
        return found(Code.OK, "", warnings) if warnings else OK


@dataclass(frozen=True, slots=True)
class Chain:
    """All that is known about where a certificate comes from, at no particular time."""

    certificate: Certificate
    paths: tuple[Path, ...]
    fault: Finding | None
    demand_revocation: bool

    def judge(self, at: datetime, now: datetime) -> Finding:
        """By the best of the paths."""
        return self.best(at, now)[0]

    def best(self, at: datetime, now: datetime) -> tuple[Finding, Path | None]:
        """The finding, and the path that it is from."""
        path = None
        if self.fault is not None:
            finding = self.fault
        else:
            judged = [(each.judge(at, now, self.demand_revocation), each) for each in self.paths]
            finding, path = min(judged, key=lambda each: each[0].outcome)
        if self.certificate.warnings:
            finding = Finding(finding.code, finding.text, (*self.certificate.warnings, *finding.warnings))
        return finding, path


def find_chain(
    certificate: Certificate,
    trust: Trust,
    verifier: Verifier,
    purpose: Purpose = Purpose.SIGNING,
    more: Sequence[Certificate] = (),
) -> Chain:
    """Every way to a root, verified. ``more`` are certificates that came along; they are trusted in nothing."""
    search = _Search(trust, verifier, more)
    search.walk((certificate,))
    fault = None
    if not search.paths:
        fault = (
            found(Code.BROKEN_CHAIN, search.broken)
            if search.broken
            else found(Code.UNTRUSTED, f"issued by {certificate.issuer_text}")
        )
    paths = tuple(_assess(path, trust, verifier, purpose) for path in search.paths)
    return Chain(certificate, paths, fault, trust.demand_revocation)


def check_chain(
    certificate: bytes,
    trust: Trust,
    at: datetime,
    verifier: Verifier,
    *,
    now: datetime | None = None,
    purpose: Purpose = Purpose.SIGNING,
) -> list[Finding]:
    """How a certificate stood ``at``, seen from ``now`` (``at`` itself, if not said): one finding."""
    try:
        read = read_certificate(certificate)
    except BadRequest as error:
        return [found(Code.UNREADABLE, str(error))]
    return [find_chain(read, trust, verifier, purpose).judge(at, now or at)]


class _Search:
    """A walk up from a certificate, bounded in depth, ways and signatures."""

    def __init__(self, trust: Trust, verifier: Verifier, more: Sequence[Certificate]) -> None:
        self._trust, self._verifier, self._more = trust, verifier, more
        self._trials = 0
        self.paths: list[tuple[Certificate, ...]] = []
        self.broken = ""

    def walk(self, path: tuple[Certificate, ...]) -> None:
        last = path[-1]
        if self._trust.is_root(last):
            self.paths.append(path)
            return
        if len(path) >= MAX_CHAIN:
            return
        for issuer in self._trust.issuers(last, self._more):
            if any(issuer.der == seen.der for seen in path):
                continue
            if self._trials >= MAX_TRIALS or len(self.paths) >= MAX_PATHS:
                return
            self._trials += 1
            if is_signed_by(issuer, last.tbs, last.algorithm, last.signature, self._verifier):
                self.walk((*path, issuer))
            elif issuer not in self._more:
                self.broken = f"{last.subject_text} is not signed by {issuer.subject_text}"


def _assess(path: tuple[Certificate, ...], trust: Trust, verifier: Verifier, purpose: Purpose) -> Path:
    """What holds about a path at any time: its rules, and what the lists say."""
    revoked: list[tuple[Certificate, datetime]] = []
    unlisted: list[Certificate] = []
    until: list[datetime] = []
    for certificate, issuer in pairwise(path):
        crl = _list_of(issuer, trust, verifier)
        if crl is None:
            unlisted.append(certificate)
            continue
        if crl.next_update is not None:
            until.append(crl.next_update)
        if certificate.serial in crl.revoked:
            revoked.append((certificate, crl.revoked[certificate.serial]))
    return Path(path, _fault(path, purpose), tuple(revoked), tuple(unlisted), min(until, default=None))


def _list_of(issuer: Certificate, trust: Trust, verifier: Verifier) -> RevocationList | None:
    """The issuer's newest list that is its own."""
    if issuer.key_usage is not None and "crl_sign" not in issuer.key_usage:
        return None
    for crl in trust.crls(issuer):
        if is_signed_by(issuer, crl.tbs, crl.algorithm, crl.signature, verifier):
            return crl
    return None


def _fault(path: tuple[Certificate, ...], purpose: Purpose) -> Finding | None:
    """Whether everybody on the path may do what they did."""
    leaf = path[0]
    usage = leaf.key_usage
    if usage is not None and not usage & {"digital_signature", "non_repudiation"}:
        return found(Code.KEY_USAGE, f"{leaf.subject_text} is for {', '.join(sorted(usage)) or 'nothing'}")
    if purpose is Purpose.TIME_STAMPING and _TIME_STAMPING not in (leaf.purposes or ()):
        return found(Code.KEY_USAGE, f"{leaf.subject_text} is not for time stamping")
    for below, issuer in enumerate(path[1:]):
        is_root = issuer is path[-1]
        if issuer.is_ca is False or (issuer.is_ca is None and not is_root):
            return found(Code.NOT_A_CA, issuer.subject_text)
        if issuer.key_usage is not None and "key_cert_sign" not in issuer.key_usage:
            return found(Code.NOT_A_CA, f"{issuer.subject_text} is not for signing certificates")
        if issuer.path_len is not None and issuer.path_len < below:
            return found(Code.NOT_A_CA, f"{issuer.subject_text} may have {issuer.path_len} CAs below it")
    unknown = [oid for certificate in path for oid in certificate.unknown_critical]
    return found(Code.CRITICAL_EXTENSION, ", ".join(unknown)) if unknown else None
