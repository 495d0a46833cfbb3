"""What is told to the public security: messages in the words of the national platform. Pure.

For: the bodies of the outbox's messages, with the field names of the national platform's interface for seals (release,
renewal, deactivation); what that interface does not know (a reset password) has names of our own in the same style.
Not for: sending them (``outbox``).

Rules:

* A body is complete when the act is done: nothing is looked up when it is sent, days later perhaps.
* Times are ``yyyy-MM-dd HH:mm:ss`` in China Standard Time; the platform's words name no zone.
* No password, no hash of one and no picture is ever in a message.
"""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from appliance.lifecycle import FILE_WITHIN, INVALID_TYPES, Kind, Message, MessageKind, Reason, Seal
from appliance.office.desk import instant, moment_of

CHINA: Final = timezone(timedelta(hours=8))
TASK_CODES: Final = {
    MessageKind.MADE: "207",
    MessageKind.RENEWED: "108",
    MessageKind.CANCELLED: "209",
    MessageKind.PASSWORD_RESET: "",
}
"""The platform's ``taskCode``; it has none for what it does not know."""
_TYPES: Final = {"finance": "02", "财务": "02", "invoice": "03", "发票": "03", "contract": "04", "合同": "04"}


def seal_type(kind: Kind, purpose: str) -> str:
    """By the national code list: 01 statutory, 02 finance, 03 invoice, 04 contract, 05 legal person's, 99 other."""
    if kind is Kind.STATUTORY:
        return "01"
    if kind is Kind.SPECIAL:
        return next((code for word, code in _TYPES.items() if word in purpose.lower()), "99")
    if kind is Kind.OFFICE and ("法定代表人" in purpose or "legal representative" in purpose.lower()):
        return "05"
    return "99"


def platform_time(text: str) -> str:
    """One of our instants, as the platform writes it."""
    return moment_of(text).astimezone(CHINA).strftime("%Y-%m-%d %H:%M:%S")


def message(id_: str, kind: MessageKind, seal: Seal, body: dict[str, Any], now: datetime) -> Message:
    """A message that is due within a day (004 §3.2.2)."""
    at, due = instant(now), instant(now + FILE_WITHIN)
    full = {"taskCode": TASK_CODES[kind], "sealCode": seal.code, "sealName": seal.name, **body}
    return Message(id_, kind, seal.id, full, at, due, 0, at, None, None, None)


def made_body(
    seal: Seal,
    system_id: str,
    maker: str,
    seal_signature: bytes,
    certificate: bytes,
    valid_from: str,
    valid_to: str,
    made_at: str,
    parent_code: str,
) -> dict[str, Any]:
    """Release. ``maker`` is who made it, ``seal_signature`` the value over the seal, ``certificate`` the signer's."""
    return {
        "provincePubSysId": system_id,
        "sealCode": seal.code,
        "sealName": seal.name,
        "useUnitCode": seal.organisation,
        "sealZone": seal.region,
        "sealType": seal_type(seal.kind, seal.purpose),
        "validStartTime": platform_time(valid_from),
        "validEndTime": platform_time(valid_to),
        "parentSealCode": parent_code,
        "createTime": platform_time(made_at),
        "creater": maker,
        "legalType": "",
        "signature": _base64(seal_signature),
        "certStartTime": platform_time(valid_from),
        "certEndTime": platform_time(valid_to),
        "signCert": _base64(certificate),
        "requestParam": "",
    }


_TASK_SIGNATURE_FIELDS: Final = (
    "sealCode", "parentSealCode", "sealName", "validStartTime", "validEndTime", "creater", "sealCode", "useUnitCode",
    "legalType", "signature", "createTime", "provincePubSysId", "certStartTime", "certEndTime", "signCert",
    "requestParam",
)  # fmt: skip


def to_sign(body: dict[str, Any]) -> bytes:
    """What the platform's ``taskSignature`` of a release covers; the seal's code stands there twice."""
    return "|".join(str(body[name]) for name in _TASK_SIGNATURE_FIELDS).encode()


def renewed_body(
    seal: Seal, system_id: str, seal_signature: bytes, certificate: bytes, valid_to: str
) -> dict[str, Any]:
    """Renewal."""
    return {
        "provincePubSysId": system_id,
        "validEndTime": platform_time(valid_to),
        "signature": _base64(seal_signature),
        "signCert": _base64(certificate),
    }


def cancelled_body(
    seal: Seal, system_id: str, reason: Reason, words: str, seal_signature: bytes, at: str
) -> dict[str, Any]:
    """Deactivation: revoked, withdrawn or reported lost."""
    return {
        "provincePubSysId": system_id,
        "cancelReason": reason.value,
        "cancelDescribe": words,
        "applyDate": platform_time(at),
        "signature": _base64(seal_signature),
        "invalidType": INVALID_TYPES[reason],
        "invalidEffectTime": platform_time(at),
    }


def password_reset_body(seal: Seal, system_id: str, words: str, at: str) -> dict[str, Any]:
    """The platform has no word for it; 004 §3.4 wants it told."""
    return {
        "provincePubSysId": system_id,
        "resetReason": words,
        "resetTime": platform_time(at),
        "custodian": seal.custodian,
    }


def _base64(block: bytes) -> str:
    return base64.b64encode(block).decode()
