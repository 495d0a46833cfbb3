"""Values of the appliance under the names of the API, and back; ``README.md`` beside this has the table of names.

For: pure translation. Not for: looking anything up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from appliance.lifecycle import (
    INVALID_TYPES,
    CriticalAct,
    Document,
    Event,
    Kind,
    Message,
    Officer,
    Organisation,
    Proposal,
    Seal,
    SealGrant,
    State,
)
from appliance.office import Application
from appliance.protection import PasswordState

T = TypeVar("T")

VALID, NOT_VALID = 0, 1
"""The national platform's ``sealStatus``."""

_TERMS: Final = {
    "operations": "operations",
    "dailyLimit": "daily_limit",
    "minuteLimit": "minute_limit",
    "validStartTime": "valid_from",
    "validEndTime": "valid_to",
    "sources": "sources",
    "approvalPattern": "approval_pattern",
}
_ARGUMENTS: Final[Mapping[CriticalAct, Mapping[str, str]]] = {
    CriticalAct.MAKE: {},
    CriticalAct.RENEW: {},
    CriticalAct.WAKE: {"reason": "reason"},
    CriticalAct.CANCEL: {"cancelReason": "reason", "cancelDescribe": "words"},
    CriticalAct.GRANT: {"account": "account"},
    CriticalAct.REVOKE: {"account": "account"},
    CriticalAct.RESET_PASSWORD: {"newPassword": "password", "reason": "reason"},
    CriticalAct.DESTROY_KEY: {"keyName": "key"},
}
"""For each act the arguments of the API, and the office's names for them."""


def page(
    items: Sequence[T], limit: int, shape: Callable[[T], Any], key: Callable[[T], str]
) -> dict[str, Any]:
    """A page out of one item more than it holds: that one tells whether there is another page."""
    shown = items[:limit]
    return {"items": [shape(one) for one in shown], "next": key(shown[-1]) if len(items) > limit else None}


def seal(value: Seal) -> dict[str, Any]:
    """A seal's record."""
    return {
        "sealId": value.id,
        "sealCode": value.code,
        "sealName": value.name,
        "sealKind": value.kind.value,
        "sealPurpose": value.purpose,
        "sealNumber": value.number,
        "useUnitCode": value.organisation,
        "sealZone": value.region,
        "sealHolder": value.holder,
        "custodian": value.custodian,
        "applicant": value.applicant,
        "sealState": value.state.value,
        "sealStatus": VALID if value.state is State.ACTIVE else NOT_VALID,
        "version": value.version,
        "generation": value.generation,
        "keyName": value.key_name,
        "validStartTime": value.valid_from,
        "validEndTime": value.valid_to,
        "applyTime": value.applied_at,
        "createTime": value.made_at,
        "fileTime": value.filed_at,
        "confirmTime": value.confirmed_at,
        "activateTime": value.activated_at,
        "lastUseTime": value.last_used_at,
        "invalidEffectTime": value.ended_at,
        "cancelReason": value.end_reason.value if value.end_reason is not None else None,
        "invalidType": INVALID_TYPES[value.end_reason] if value.end_reason is not None else None,
        "replaces": value.replaces,
        "replacedBy": value.replaced_by,
    }


def seal_status(value: Seal, now: str) -> dict[str, Any]:
    """What a seal's user may know of it."""
    record = seal(value)
    names = (
        "sealId",
        "sealCode",
        "sealName",
        "sealState",
        "validStartTime",
        "validEndTime",
        "invalidEffectTime",
    )
    within = value.valid_to is None or now < value.valid_to
    status = record["sealStatus"] if within else NOT_VALID
    return {**{name: record[name] for name in names}, "sealStatus": status, "queryTime": now}


def application(body: Mapping[str, Any]) -> Application:
    """What a clerk hands in."""
    imprint, filed = body["imprint"], body.get("filedImprintSm3")
    return Application(
        organisation=body["useUnitCode"],
        kind=Kind(body["sealKind"]),
        name=body["sealName"],
        custodian=body["custodian"],
        imprint_format=imprint["format"],
        imprint_data=imprint["data"],
        width_mm=imprint["widthMm"],
        height_mm=imprint["heightMm"],
        purpose=body["sealPurpose"],
        number=body.get("sealNumber"),
        holder=body["sealHolder"],
        replaces=body.get("replaces"),
        filed_imprint_sm3=bytes.fromhex(filed) if filed is not None else None,
        papers=tuple(body["papers"]),
        note=body["note"],
    )


def organisation(value: Organisation) -> dict[str, Any]:
    """An organisation."""
    return {"useUnitCode": value.code, "useUnitName": value.name, "sealZone": value.region}


def event(value: Event) -> dict[str, Any]:
    """A line of a seal's record."""
    return {
        "time": value.at,
        "act": value.act,
        "source": value.source.value if value.source is not None else None,
        "target": value.target.value,
        "officer": value.officer,
        "approver": value.approver,
        "detail": dict(value.detail),
    }


def document_head(value: Document) -> dict[str, Any]:
    """That there is a certificate."""
    return {"documentKind": value.kind.value, "issueTime": value.issued_at}


def officer(value: Officer) -> dict[str, Any]:
    """An officer, without the password's hash."""
    return {
        "officer": value.name,
        "displayName": value.display_name,
        "roles": sorted(role.value for role in value.roles),
        "disabled": value.disabled,
        "createTime": value.created_at,
    }


def proposal(value: Proposal) -> dict[str, Any]:
    """A proposal; the office has taken out what nobody is shown."""
    return {
        "proposalId": value.id,
        "act": value.act.value,
        "sealId": value.target,
        "arguments": _arguments_shown(value.act, value.arguments),
        "proposedBy": value.proposed_by,
        "proposeTime": value.proposed_at,
        "endTime": value.expires_at,
        "state": value.state.value,
        "decidedBy": value.decided_by,
        "decideTime": value.decided_at,
        "outcome": value.outcome,
    }


def _arguments_shown(act: CriticalAct, arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in (*_ARGUMENTS[act].items(), *_TERMS.items())}
    return {names.get(name, name): value for name, value in arguments.items()}


def proposal_arguments(act: CriticalAct, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arguments as the office takes them, and the names of those that this act has no use for."""
    names = _ARGUMENTS[act]
    known = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    useless = [
        name for name in given if name not in names and not (act is CriticalAct.GRANT and name == "terms")
    ]
    if act is CriticalAct.GRANT:
        known |= grant_arguments(given.get("terms", {}))
    return known, useless


def argument_names(act: CriticalAct) -> list[str]:
    """What a proposal of that act takes."""
    return [*_ARGUMENTS[act], *(["terms"] if act is CriticalAct.GRANT else [])]


def grant_arguments(terms: Mapping[str, Any]) -> dict[str, Any]:
    """A grant's terms as the office takes them."""
    return {_TERMS[name]: value for name, value in terms.items()}


def grant(value: SealGrant) -> dict[str, Any]:
    """A grant."""
    return {
        "account": value.account,
        "sealId": value.seal_id,
        "operations": sorted(one.value for one in value.operations),
        "dailyLimit": value.daily_limit,
        "minuteLimit": value.minute_limit,
        "validStartTime": value.valid_from,
        "validEndTime": value.valid_to,
        "sources": list(value.sources),
        "approvalPattern": value.approval_pattern,
        "createTime": value.created_at,
    }


def message(value: Message, now: str) -> dict[str, Any]:
    """A message to the public security."""
    return {
        "messageId": value.id,
        "messageKind": value.kind.value,
        "sealId": value.seal_id,
        "body": dict(value.body),
        "createTime": value.created_at,
        "dueTime": value.due_at,
        "overdue": (value.delivered_at or now) > value.due_at,
        "attempts": value.attempts,
        "nextAttemptTime": value.next_attempt_at if value.delivered_at is None else None,
        "lastError": value.last_error,
        "deliverTime": value.delivered_at,
        "receipt": value.receipt,
    }


def password_state(seal_id: str, value: PasswordState) -> dict[str, Any]:
    """What an officer may know of a protection password."""
    return {
        "sealId": seal_id,
        "setBy": value.set_by,
        "setTime": value.set_at,
        "endTime": value.expires_at,
        "daysLeft": value.days_left,
        "due": value.is_due,
        "expired": value.is_expired,
        "locked": value.is_locked,
        "failures": value.failures,
        "generation": value.generation,
        "unlockedFor": list(value.unlocked_for),
    }
