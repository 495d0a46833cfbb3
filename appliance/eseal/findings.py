"""What a check can find, what each finding means, and what all of them together say: three tables.

For: the codes that reports carry, and the verdict.
Not for: finding anything (``chains``, ``timestamps``, ``verification``).

Rules:

* The codes are closed: a report carries no other. Each has one outcome, whatever check it stands in.
* The verdict is that of the worst outcome (``Outcome`` is in that order), and nothing else decides about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


class Outcome(IntEnum):
    """What a check came to; the greater, the worse."""

    PASSED = 0
    ABSENT = 1
    """There was nothing to check, or it was not asked for."""
    ENDED = 2
    """In order when it was signed, and not any more."""
    UNKNOWN = 3
    """It could not be told."""
    FAILED = 4


class Verdict(Enum):
    """What a report comes to."""

    GOOD = "good"
    GOOD_WHEN_SIGNED = "good_when_signed"
    """Good at the time it was made; expired, revoked, suspended or cancelled since."""
    INCOMPLETE = "incomplete"
    """Nothing is wrong, and something that matters could not be told."""
    INVALID = "invalid"


VERDICTS: Final[Mapping[Outcome, Verdict]] = {
    Outcome.PASSED: Verdict.GOOD,
    Outcome.ABSENT: Verdict.GOOD,
    Outcome.ENDED: Verdict.GOOD_WHEN_SIGNED,
    Outcome.UNKNOWN: Verdict.INCOMPLETE,
    Outcome.FAILED: Verdict.INVALID,
}


class Code(Enum):
    """A finding: its name in reports, its outcome, its text."""

    OK = "ok", Outcome.PASSED, "in order"
    ABSENT = "absent", Outcome.ABSENT, "there is none"
    NOT_RUN = "not_run", Outcome.UNKNOWN, "could not be checked, for something before it could not be read"
    MALFORMED = "malformed", Outcome.FAILED, "does not have the form that the standard gives it"

    BAD_SIGNATURE = (
        "bad_signature",
        Outcome.FAILED,
        "the signature does not belong to these bytes and this key",
    )
    SCOPE_2014 = (
        "scope_2014", Outcome.FAILED,
        "the maker signed what GM/T 0031-2014 has signed, which is not what this edition has signed",
    )  # fmt: skip
    USER_ID = (
        "user_id", Outcome.FAILED, "signed with another user ID than 1234567812345678 (GB/T 35276): the signer's error"
    )  # fmt: skip
    RAW_SIGNATURE = (
        "raw_signature", Outcome.FAILED, "the signature value is 64 bytes r ‖ s where GB/T 35276 wants DER"
    )  # fmt: skip
    ALGORITHM = "algorithm", Outcome.FAILED, "the signature algorithm does not belong to the key"
    UNSUPPORTED_KEY = "unsupported_key", Outcome.UNKNOWN, "neither SM2 nor P-256: cannot be verified here"

    UNREADABLE = "unreadable", Outcome.FAILED, "not a certificate"
    UNTRUSTED = "untrusted", Outcome.UNKNOWN, "no chain leads to a root that is trusted here"
    BROKEN_CHAIN = "broken_chain", Outcome.FAILED, "the issuer's signature on a certificate is wrong"
    NOT_A_CA = "not_a_ca", Outcome.FAILED, "a certificate was issued by somebody who may not issue any"
    KEY_USAGE = "key_usage", Outcome.FAILED, "the certificate is not for this use"
    CRITICAL_EXTENSION = (
        "critical_extension", Outcome.UNKNOWN, "a critical extension of a certificate is not known here"
    )  # fmt: skip
    OUTSIDE_VALIDITY = "outside_validity", Outcome.FAILED, "a certificate was not valid at that time"
    EXPIRED_SINCE = "expired_since", Outcome.ENDED, "the certificate has expired since"
    REVOKED_BEFORE = "revoked_before", Outcome.FAILED, "a certificate had been revoked by that time"
    REVOKED_SINCE = "revoked_since", Outcome.ENDED, "a certificate has been revoked since"
    REVOCATION_UNKNOWN = (
        "revocation_unknown", Outcome.UNKNOWN, "no current revocation list tells about a certificate"
    )  # fmt: skip
    MAKER_EXPIRED = (
        "maker_expired", Outcome.PASSED, "the certificate has expired since the making, which does not end the seal"
    )  # fmt: skip

    NOT_LISTED = "not_listed", Outcome.FAILED, "the seal does not name this certificate among its signers"
    RENEWED = (
        "renewed", Outcome.FAILED,
        "the seal names another certificate of the same subject: after a renewal the seal must be made again",
    )  # fmt: skip
    DIGEST_WITH_Z = (
        "digest_with_z", Outcome.FAILED,
        "the seal lists SM3(Z ‖ certificate) where GB/T 38540 wants the plain SM3: the maker's error",
    )  # fmt: skip

    OUTSIDE_SEAL = "outside_seal", Outcome.FAILED, "signed at a time when the seal was not valid"
    OUTSIDE_CERTIFICATE = (
        "outside_certificate", Outcome.FAILED, "signed at a time when the signer's certificate was not valid"
    )  # fmt: skip
    IN_FUTURE = "in_future", Outcome.UNKNOWN, "the time it says lies in the future"
    NO_TIME = "no_time", Outcome.UNKNOWN, "the time of signing cannot be told"
    NOT_YET_VALID = "not_yet_valid", Outcome.FAILED, "the seal's validity has not begun"
    SEAL_EXPIRED = "seal_expired", Outcome.ENDED, "the seal has expired since"

    OTHER_DATA = "other_data", Outcome.FAILED, "this was made for other data"
    HASH_WITH_Z = (
        "hash_with_z", Outcome.FAILED, "the data hash is SM3(Z ‖ data) where the standard wants the plain SM3"
    )  # fmt: skip
    NO_DATA = "no_data", Outcome.UNKNOWN, "the sealed data, or its hash, was not given"
    STAMP_TOO_EARLY = "stamp_too_early", Outcome.FAILED, "the time stamp is older than what it stamps"

    NOT_ASKED = "not_asked", Outcome.ABSENT, "was not asked for"
    STATUS_UNKNOWN = "status_unknown", Outcome.UNKNOWN, "nothing is known about the seal's status"
    NOT_IN_USE = "not_in_use", Outcome.FAILED, "the seal had not been taken into use"
    CANCELLED_BEFORE = "cancelled_before", Outcome.FAILED, "the seal had been cancelled by that time"
    CANCELLED_SINCE = "cancelled_since", Outcome.ENDED, "the seal has been cancelled since"
    SUSPENDED_BEFORE = "suspended_before", Outcome.FAILED, "the seal had been suspended by that time"
    SUSPENDED_SINCE = "suspended_since", Outcome.ENDED, "the seal has been suspended since"

    def __init__(self, label: str, outcome: Outcome, text: str) -> None:
        self.label = label
        self.outcome = outcome
        self.text = text


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ``text`` tells a person; ``warnings`` are what they should know all the same."""

    code: Code
    text: str
    warnings: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The code's."""
        return self.code.outcome


def found(code: Code, detail: str = "", warnings: Iterable[str] = ()) -> Finding:
    """A finding in the words of its code, with what is particular to this one."""
    return Finding(code, f"{code.text}: {detail}" if detail else code.text, tuple(warnings))


OK: Final = found(Code.OK)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """That of the worst; of nothing at all nothing can be said."""
    return VERDICTS[max((finding.outcome for finding in findings), default=Outcome.UNKNOWN)]
