"""Whether a seal, or a seal signature, is good: every check by itself, and a verdict from all of them.

For: GB/T 38540-2020 7.3 and 6.3, GM/T 0031-2025, GM/T 0031-2014 6.1.2 and 6.2.3.
Not for: finding the sealed data, or looking a seal's status up: both come in as values.

Rules:

* All checks that can be run are run; a report has each check of its kind exactly once, in a fixed order. What they
  can find, and what verdict follows, stands in the tables of ``findings`` and nowhere else.
* Signatures are verified over the original bytes.
* The signer's certificate is not under the signature: it counts only when the seal names it.
* What held when it was signed and does not hold now (expired, revoked, suspended, cancelled) is told apart from what
  never held. The time of signing is the signer's own word unless a time stamp proves it, and the report says so.
* A failed signature is looked at once more for the mistakes that implementers make; that explains, it never excuses.
* An ``Examiner`` remembers what no time changes: signatures of seals, chains. It may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar

from appliance.algorithms import SM2_DEFAULT_ID, Algorithm, PublicKey
from appliance.errors import BadRequest
from appliance.eseal.chains import Certificate, Chain, Purpose, Trust, find_chain, read_certificate
from appliance.eseal.der import Reader
from appliance.eseal.findings import OK, Code, Finding, Outcome, Verdict, found, verdict_of
from appliance.eseal.structures import (
    ESeal,
    SealSignature,
    first_edition_scope,
    read_seal,
    read_signature,
)
from appliance.eseal.timestamps import CLOCK_SKEW, Token, check_token, read_token
from appliance.verifying import VALID, Verifier, sm2_z, sm3

MAX_CACHED_BYTES: Final = 64 << 20
"""What an ``Examiner`` remembers, counted in bytes of seals and certificates; over that it begins anew."""

_RAW_LEN: Final = 64
_KNOWN_USER_IDS: Final = (b"", b"ALICE123@YAHOO.COM")
"""No ID, and the one of the examples in GB/T 32918: what implementers take by mistake."""


class CheckName(StrEnum):
    """The checks, in the order in which reports have them."""

    FORMAT = "format"
    SEAL_SIGNATURE = "seal_signature"
    MAKER_CERTIFICATE = "maker_certificate"
    SEAL_TIMESTAMP = "seal_timestamp"
    SIGNATURE = "signature"
    SIGNER_LISTED = "signer_listed"
    SIGNER_CERTIFICATE = "signer_certificate"
    TIMES = "times"
    DATA_HASH = "data_hash"
    TIMESTAMP = "timestamp"
    STATUS = "status"


_SEAL_CHECKS: Final = (
    CheckName.FORMAT, CheckName.SEAL_SIGNATURE, CheckName.MAKER_CERTIFICATE, CheckName.SEAL_TIMESTAMP,
    CheckName.TIMES, CheckName.STATUS,
)  # fmt: skip
_SIGNATURE_CHECKS: Final = tuple(CheckName)


class Standing(Enum):
    """What the caller found out about a seal's status."""

    UNKNOWN = "unknown"
    NOT_ASKED = "not_asked"
    """On purpose: e.g. a seal that is just being made."""
    NOT_IN_USE = "not_in_use"
    """Made, and not activated yet."""
    ACTIVE = "active"
    SUSPENDED = "suspended"
    """Suspended or dormant."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Status:
    """A seal's status; ``since`` when, where it is not active."""

    standing: Standing
    since: datetime | None = None
    detail: str = ""


StatusOf = Callable[[ESeal], Status]
"""How to look a seal's status up, for whoever does not know beforehand which seal it is."""

UNKNOWN: Final = Status(Standing.UNKNOWN)
NOT_ASKED: Final = Status(Standing.NOT_ASKED)
ACTIVE: Final = Status(Standing.ACTIVE)


class Check(NamedTuple):
    """One line of a report."""

    name: CheckName
    outcome: Outcome
    code: Code
    text: str


class Report(NamedTuple):
    """What verifying came to. ``source`` is what was verified: a seal signature, or a seal."""

    verdict: Verdict
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    source: bytes
    is_signature: bool

    def check(self, name: CheckName) -> Check:
        """The line of that name."""
        return next(check for check in self.checks if check.name is name)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it says about itself, whether or not it is true; empty where it cannot be read."""
        try:
            if not self.is_signature:
                return _seal_facts(read_seal(self.source))
            signature = read_signature(self.source)
        except BadRequest:
            return {}
        return {
            **_seal_facts(signature.seal),
            "signed_at": signature.signed_at.isoformat() if signature.signed_at else None,
            "signer": _subject_of(signature.certificate),
            "property_info": signature.property_info,
            "data_hash": signature.data_hash.hex(),
            "time_stamped": signature.timestamp is not None or signature.time_token is not None,
        }


def _seal_facts(seal: ESeal) -> dict[str, Any]:
    return {
        "version": seal.version.value,
        "standard": seal.version.standard,
        "seal_code": seal.code,
        "seal_name": seal.name,
        "seal_type": seal.type,
        "vendor": seal.vendor_id,
        "created_at": seal.created_at.isoformat(),
        "valid_from": seal.valid_from.isoformat(),
        "valid_to": seal.valid_to.isoformat(),
        "maker": _subject_of(seal.maker_certificate),
        "picture": {
            "format": seal.picture.format,
            "width_mm": seal.picture.width_mm,
            "height_mm": seal.picture.height_mm,
        },
    }


def _subject_of(certificate: bytes) -> str | None:
    try:
        return read_certificate(certificate).subject_text
    except BadRequest:
        return None


def to_document(report: Report) -> dict[str, Any]:
    """A report as values for JSON."""
    return {
        "verdict": report.verdict.value,
        "checks": [
            {
                "name": check.name.value,
                "outcome": check.outcome.name.lower(),
                "code": check.code.label,
                "text": check.text,
            }
            for check in report.checks
        ],
        "warnings": list(report.warnings),
        "facts": dict(report.facts),
    }


def verify_seal(
    data: bytes, *, trust: Trust, verifier: Verifier, now: datetime, status: Status | StatusOf = UNKNOWN
) -> Report:
    """A seal by itself: was it made properly, and is it in force ``now``."""
    return Examiner(trust, verifier).seal(data, now, status)


def verify_signature(
    data: bytes,
    data_hash: bytes | None,
    *,
    trust: Trust,
    verifier: Verifier,
    now: datetime,
    status: Status | StatusOf = UNKNOWN,
    protected: bytes | None = None,
) -> Report:
    """A seal signature over data whose plain SM3 is ``data_hash``.

    ``protected`` is the data itself: it may come instead of the hash, and then also helps to explain a wrong one.
    """
    return Examiner(trust, verifier).signature(data, data_hash, now, status, protected)


# Examining ------------------------------------------------------------------------------------------------------

Value = TypeVar("Value")


class _Memory(Generic[Value]):
    """Values by bytes, begun anew when full. Threads that race do some work twice and nothing wrong."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[bytes, Value] = {}
        self._byte_count = 0

    def get(self, key: bytes) -> Value | None:
        return self._entries.get(key)

    def put(self, key: bytes, value: Value, size: int) -> None:
        if self._byte_count + size > self._max_bytes:
            self._entries, self._byte_count = {}, 0
        self._entries[key] = value
        self._byte_count += size


class Known(NamedTuple):
    """What no time changes about a seal. ``maker`` is ``None`` where its certificate cannot be read."""

    seal: ESeal
    signature: Finding
    maker: Chain | Finding
    token: Token | Finding | None


class Examiner:
    """Verifies seals and seal signatures against one trust.

    ``accept_raw`` takes signature values of 64 bytes r ‖ s, which one vendor writes, with a warning.
    ``stamp_certificates`` are those of time-stamp authorities whose tokens come without.
    """

    def __init__(
        self,
        trust: Trust,
        verifier: Verifier,
        *,
        accept_raw: bool = False,
        stamp_certificates: Iterable[bytes] = (),
    ) -> None:
        self._trust, self.verifier = trust, verifier
        self._accept_raw = accept_raw
        self._stamp_certificates = tuple(map(read_certificate, stamp_certificates))
        # Both only ever hold what follows from their keys and the trust: sharing them between threads is harmless.
        self._seals: _Memory[Known] = _Memory(MAX_CACHED_BYTES)
        self._chains: _Memory[Chain | Finding] = _Memory(MAX_CACHED_BYTES)

    def seal(self, data: bytes, now: datetime, status: Status | StatusOf = UNKNOWN) -> Report:
        """``verify_seal``."""
        try:
            seal = read_seal(data)
        except BadRequest as error:
            return _unreadable(data, error, _SEAL_CHECKS, is_signature=False)
        known = self.known(seal)
        findings = {
            CheckName.FORMAT: found(Code.OK, "", seal.notes),
            **self._seal_findings(known, now),
            CheckName.TIMES: _seal_period(seal, now),
            CheckName.STATUS: _judge_status(_looked_up(status, seal), seal.created_at),
        }
        return _report(data, findings, _SEAL_CHECKS, is_signature=False)

    def signature(
        self,
        data: bytes,
        data_hash: bytes | None,
        now: datetime,
        status: Status | StatusOf = UNKNOWN,
        protected: bytes | None = None,
    ) -> Report:
        """``verify_signature``."""
        try:
            signature = read_signature(data)
        except BadRequest as error:
            return _unreadable(data, error, _SIGNATURE_CHECKS, is_signature=True)
        known = self.known(signature.seal)
        signer = self.chain(signature.certificate)
        token = _read_stamp(signature.time_token or signature.timestamp)
        signed_at = signature.signed_at
        if signed_at is None and isinstance(token, Token):
            signed_at = token.at
        certificate = signer.certificate if isinstance(signer, Chain) else None
        findings = {
            CheckName.FORMAT: found(Code.OK, "", signature.notes),
            **self._seal_findings(known, now),
            CheckName.SIGNATURE: self._value(signer, signature.algorithm, signature.tbs, signature.signature),
            CheckName.SIGNER_LISTED: _listed(signature.certificate, certificate, known),
            CheckName.SIGNER_CERTIFICATE: _judge_signer(signer, signed_at, now),
            CheckName.TIMES: _times(signature.seal, certificate, signed_at, now),
            CheckName.DATA_HASH: _judge_hash(signature.data_hash, data_hash, protected, certificate),
            CheckName.TIMESTAMP: self._stamp(signature, token, now),
            CheckName.STATUS: _judge_status(_looked_up(status, signature.seal), signed_at),
        }
        return _report(data, findings, _SIGNATURE_CHECKS, is_signature=True)

    # What no time changes -----------------------------------------------------------------------------------

    def known(self, seal: ESeal) -> Known:
        """What no time changes about a seal, remembered by its bytes."""
        known = self._seals.get(seal.der)
        if known is None:
            maker = self.chain(seal.maker_certificate)
            other = first_edition_scope(seal.info, seal.maker_certificate, seal.algorithm)
            known = Known(
                seal,
                self._value(maker, seal.algorithm, seal.signed, seal.signature, other),
                maker,
                _read_stamp(seal.timestamp),
            )
            self._seals.put(seal.der, known, 2 * len(seal.der))
        return known

    def chain(self, certificate: bytes) -> Chain | Finding:
        """Where a certificate comes from, remembered by its bytes; a finding where it cannot be read."""
        chain = self._chains.get(certificate)
        if chain is None:
            try:
                read = read_certificate(certificate)
                chain = find_chain(read, self._trust, self.verifier, Purpose.SIGNING)
            except BadRequest as error:
                chain = found(Code.UNREADABLE, str(error))
            self._chains.put(certificate, chain, 4 * len(certificate))
        return chain

    def _value(
        self, signer: Chain | Finding, algorithm: str, signed: bytes, value: bytes, other_scope: bytes = b""
    ) -> Finding:
        """A signature value over ``signed``. ``other_scope`` is what may have been signed by mistake."""
        if isinstance(signer, Finding):
            return found(Code.NOT_RUN, signer.text)
        key = signer.certificate.public
        if key is None:
            return found(Code.UNSUPPORTED_KEY)
        if algorithm != key.algorithm.signature_oid:
            return found(Code.ALGORITHM, f"{algorithm} with a key of {key.algorithm.label}")
        raw, warnings = _raw_value(value)
        if raw is None:
            return found(Code.BAD_SIGNATURE, "its value is no signature")
        if len(value) == _RAW_LEN and value is raw:
            if not self._accept_raw:
                return found(Code.RAW_SIGNATURE)
            warnings = (*warnings, Code.RAW_SIGNATURE.text)
        if self._is_valid(key, self._digest(key, signed), raw):
            return found(Code.OK, "", warnings)
        return self._explain(key, signed, raw, other_scope)

    def _explain(self, key: PublicKey, signed: bytes, raw: bytes, other_scope: bytes) -> Finding:
        """A signature that is not good may be one of the mistakes that implementers make."""
        if other_scope and self._is_valid(key, self._digest(key, other_scope), raw):
            return found(Code.SCOPE_2014)
        if key.algorithm is Algorithm.SM2_SM3:
            if self._is_valid(key, sm3(signed), raw):
                return found(Code.USER_ID, "without Z")
            for user_id in _KNOWN_USER_IDS:
                if self._is_valid(key, self._digest(key, signed, user_id), raw):
                    return found(Code.USER_ID, repr(user_id.decode()))
        return found(Code.BAD_SIGNATURE)

    def _digest(self, key: PublicKey, message: bytes, user_id: bytes = SM2_DEFAULT_ID) -> bytes:
        return self.verifier.digest(key, len(message).to_bytes(4, "big"), message, user_id)

    def _is_valid(self, key: PublicKey, digest: bytes, raw: bytes) -> bool:
        return self.verifier.verify(key, digest, raw)[0] == VALID

    # What time changes --------------------------------------------------------------------------------------

    def _seal_findings(self, known: Known, now: datetime) -> dict[CheckName, Finding]:
        return {
            CheckName.SEAL_SIGNATURE: known.signature,
            CheckName.MAKER_CERTIFICATE: _judge_maker(known, now),
            CheckName.SEAL_TIMESTAMP: self._believe(
                known.token, known.seal.signature, known.seal.created_at, now
            ),
        }

    def _stamp(self, signature: SealSignature, token: Token | Finding | None, now: datetime) -> Finding:
        if signature.time_token is None:
            return self._believe(token, signature.signature, signature.signed_at, now)
        # The first edition does not say what the token in place of the time is made over; it lies under the
        # signature, so that it cannot be over its value. Vendors stamp the data's hash, or take it as the imprint.
        finding = self._believe(token, signature.data_hash, None, now)
        if (
            finding.code is Code.OTHER_DATA
            and isinstance(token, Token)
            and token.imprint == signature.data_hash
        ):
            return self._believe(token, None, None, now)
        return finding

    def _believe(
        self, token: Token | Finding | None, value: bytes | None, not_before: datetime | None, now: datetime
    ) -> Finding:
        if not isinstance(token, Token):
            return token or found(Code.ABSENT)
        finding = check_token(token, value, self._trust, self.verifier, now, self._stamp_certificates)
        if finding.outcome is Outcome.PASSED and not_before and token.at < not_before - CLOCK_SKEW:
            return found(Code.STAMP_TOO_EARLY, f"{token.at.isoformat()}, {not_before.isoformat()}")
        return finding


# Single checks, pure --------------------------------------------------------------------------------------------


def _raw_value(value: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    """``r || s`` of a signature value, and what is odd about it; ``value`` itself where it is 64 raw bytes."""
    reader = Reader(value, "signature value", "GB/T 35276", tolerant=True)
    try:
        pair = reader.inside("")
        reader.finish()
        raw = b"".join(pair.integer(name, 0, 2**256 - 1).to_bytes(32, "big") for name in ("r", "s"))
        pair.finish()
    except BadRequest:
        return (value if len(value) == _RAW_LEN else None), ()
    return raw, tuple(reader.notes)


def _read_stamp(token: bytes | None) -> Token | Finding | None:
    if token is None:
        return None
    try:
        return read_token(token)
    except BadRequest as error:
        return found(Code.MALFORMED, str(error))


def _judge_maker(known: Known, now: datetime) -> Finding:
    """GM/T 0031-2025: expired now and good when the seal was made is a notice and no more."""
    if isinstance(known.maker, Finding):
        return known.maker
    finding = known.maker.judge(known.seal.created_at, now)
    if finding.code is Code.EXPIRED_SINCE:
        return found(Code.MAKER_EXPIRED, "", (*finding.warnings, f"the seal's maker: {finding.text}"))
    return finding


def _judge_signer(signer: Chain | Finding, signed_at: datetime | None, now: datetime) -> Finding:
    if isinstance(signer, Finding):
        return signer
    return found(Code.NO_TIME) if signed_at is None else signer.judge(signed_at, now)


def _listed(certificate: bytes, read: Certificate | None, known: Known) -> Finding:
    """The signer's certificate against the seal's list, byte by byte or by SM3."""
    signers = known.seal.signers
    whole = [each for each in signers if isinstance(each, bytes)]
    digests = {each.value for each in signers if not isinstance(each, bytes)}
    if certificate in whole or (digests and sm3(certificate) in digests):
        return OK
    if read is None:
        return found(Code.NOT_LISTED)
    if any(_same_subject(each, read) for each in whole):
        return found(Code.RENEWED)
    maker = known.maker.certificate if isinstance(known.maker, Chain) else None
    if any(_hash_with_z(owner, certificate) in digests for owner in (read, maker)):
        return found(Code.DIGEST_WITH_Z)
    return found(Code.NOT_LISTED)


def _hash_with_z(owner: Certificate | None, data: bytes) -> bytes | None:
    """SM3(Z ‖ data), which some vendors take for the plain hash; only SM2 has a Z."""
    if owner is None or owner.public is None or owner.public.algorithm is not Algorithm.SM2_SM3:
        return None
    return sm3(sm2_z(owner.public) + data)


def _same_subject(listed: bytes, read: Certificate) -> bool:
    try:
        return read_certificate(listed).subject == read.subject
    except BadRequest:
        return False


def _times(
    seal: ESeal, certificate: Certificate | None, signed_at: datetime | None, now: datetime
) -> Finding:
    """The time of signing against the seal and the signer's certificate."""
    if signed_at is None:
        return found(Code.NO_TIME)
    said = signed_at.isoformat()
    if not seal.valid_from <= signed_at <= seal.valid_to:
        period = f"{seal.valid_from.isoformat()} to {seal.valid_to.isoformat()}"
        return found(Code.OUTSIDE_SEAL, f"{said}, the seal is valid from {period}")
    if certificate is not None and not certificate.valid_from <= signed_at <= certificate.valid_to:
        period = f"{certificate.valid_from.isoformat()} to {certificate.valid_to.isoformat()}"
        return found(Code.OUTSIDE_CERTIFICATE, f"{said}, the certificate is valid from {period}")
    if signed_at > now + CLOCK_SKEW:
        return found(Code.IN_FUTURE, said)
    warnings = ["signed before the seal was made"] if signed_at < seal.created_at - CLOCK_SKEW else []
    if now > seal.valid_to:
        return found(Code.SEAL_EXPIRED, seal.valid_to.isoformat(), warnings)
    return found(Code.OK, "", warnings)


def _seal_period(seal: ESeal, now: datetime) -> Finding:
    """A seal by itself: what matters is now."""
    if now < seal.valid_from:
        return found(Code.NOT_YET_VALID, seal.valid_from.isoformat())
    if seal.created_at > now + CLOCK_SKEW:
        return found(Code.IN_FUTURE, seal.created_at.isoformat())
    return found(Code.SEAL_EXPIRED, seal.valid_to.isoformat()) if now > seal.valid_to else OK


def _judge_hash(
    signed: bytes, data_hash: bytes | None, protected: bytes | None, signer: Certificate | None
) -> Finding:
    if data_hash is None and protected is None:
        return found(Code.NO_DATA)
    hashes = [data_hash] if data_hash is not None else []
    if protected is not None:
        hashes.append(sm3(protected))
    if all(each == signed for each in hashes):
        return OK
    if protected is not None and _hash_with_z(signer, protected) == signed:
        return found(Code.HASH_WITH_Z)
    return found(Code.OTHER_DATA)


def _looked_up(status: Status | StatusOf, seal: ESeal) -> Status:
    return status if isinstance(status, Status) else status(seal)


def _judge_status(status: Status, signed_at: datetime | None) -> Finding:
    """The looked-up status against the time of signing (for a seal by itself, of its making)."""
    standing, since = status.standing, status.since
    detail = ", ".join(part for part in (since.isoformat() if since else "", status.detail) if part)
    # Without either time nothing shows that it was still in force: then it counts as ended before.
    after = since is not None and signed_at is not None and signed_at < since
    match standing:
        case Standing.UNKNOWN:
            return found(Code.STATUS_UNKNOWN, detail)
        case Standing.NOT_ASKED:
            return found(Code.NOT_ASKED)
        case Standing.NOT_IN_USE:
            return found(Code.NOT_IN_USE, detail)
        case Standing.ACTIVE:
            return OK
        case Standing.SUSPENDED:
            return found(Code.SUSPENDED_SINCE if after else Code.SUSPENDED_BEFORE, detail)
        case Standing.CANCELLED:
            return found(Code.CANCELLED_SINCE if after else Code.CANCELLED_BEFORE, detail)


# Reports --------------------------------------------------------------------------------------------------------


def _report(
    source: bytes, findings: Mapping[CheckName, Finding], names: Sequence[CheckName], *, is_signature: bool
) -> Report:
    ordered = [(name, findings[name]) for name in names]
    checks = tuple(Check(name, found_.code.outcome, found_.code, found_.text) for name, found_ in ordered)
    warnings = [warning for _, found_ in ordered for warning in found_.warnings]
    verdict = verdict_of(findings.values())
    if verdict is Verdict.GOOD_WHEN_SIGNED:
        ended = "; ".join(check.text for check in checks if check.outcome is Outcome.ENDED)
        warnings.insert(0, f"good when it was signed, and not in force any more: {ended}")
        if is_signature and findings[CheckName.TIMESTAMP].code is not Code.OK:
            warnings.insert(1, "when it was signed is the signer's own word: no time stamp proves it")
    return Report(verdict, checks, tuple(dict.fromkeys(warnings)), source, is_signature)


def _unreadable(
    source: bytes, error: BadRequest, names: Sequence[CheckName], *, is_signature: bool
) -> Report:
    findings = dict.fromkeys(names, found(Code.NOT_RUN))
    findings[CheckName.FORMAT] = found(Code.MALFORMED, str(error))
    return _report(source, findings, names, is_signature=is_signature)
