"""Commands for people and what they want: officers, organisations, proposals, grants.

For: ``cloud-seal officer …``, ``organisation …``, ``proposal …`` and ``grant …``, each one call to the HTTP API.
Not for: the seals themselves (``seals``), accounts (``officer``, the module for the machine's administrator).

Rules:

* Officers are the administrator's matter: those commands go to the officers' socket and take no log-in. Everything
  else takes an officer's.
* What takes two officers is a proposal, and the answer says who may approve it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from appliance.cli.session import (
    Api,
    Run,
    add_api_options,
    add_list_options,
    add_password_options,
    adder,
    list_answer,
    record_answer,
    session,
)
from appliance.cli.show import Answer, Screen
from appliance.cli.target import ask_password, new_password, read_password
from appliance.lifecycle import APPROVERS, CriticalAct, Operation, ProposalState, Reason, Role

GRANT_COLUMNS: Final = {
    "account": "account",
    "seal": "sealId",
    "operations": "operations",
    "a day": "dailyLimit",
    "a minute": "minuteLimit",
    "from": "validStartTime",
    "until": "validEndTime",
    "sources": "sources",
    "approval": "approvalPattern",
}
PROPOSAL_COLUMNS: Final = {
    "proposal": "proposalId",
    "act": "act",
    "seal": "sealId",
    "state": "state",
    "proposed by": "proposedBy",
    "until": "endTime",
    "decided by": "decidedBy",
    "outcome": "outcome",
}
OFFICER_COLUMNS: Final = {
    "officer": "officer",
    "name": "displayName",
    "roles": "roles",
    "disabled": "disabled",
    "since": "createTime",
}
ORGANISATION_COLUMNS: Final = {"code": "useUnitCode", "name": "useUnitName", "region": "sealZone"}
CANCEL_REASONS: Final = [one.value for one in Reason if one not in (Reason.CHANGED, Reason.NOT_COLLECTED)]
"""The other two come about by themselves."""


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``officer``, ``organisation``, ``proposal`` and ``grant`` to the parser."""
    _add_officer_commands(groups.add_parser("officer", help="officers, their roles and passwords"), parents)
    _add_organisation_commands(groups.add_parser("organisation", help="who uses seals"), parents)
    _add_proposal_commands(groups.add_parser("proposal", help="what takes two officers"), parents)
    _add_grant_commands(groups.add_parser("grant", help="what accounts may do with seals"), parents)


# Officers ---------------------------------------------------------------------------------------------------


def _add_officer_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = adder(group, parents)
    create = add("create", _officer_create, "enter an officer", "NAME", options=add_api_options)
    create.add_argument("--display-name", metavar="TEXT", help="the person's name; default: NAME")
    roles = add(
        "roles", _officer_roles, "say what an officer is trusted with", "NAME", options=add_api_options
    )
    for command in (create, roles):
        command.add_argument(
            "--role", required=True, action="append", choices=[one.value for one in Role], help="repeatable"
        )
    add("list", _officer_list, "list officers", options=add_api_options)
    password = add(
        "password", _officer_password, "give an officer a new password", "NAME", options=add_api_options
    )
    for command in (create, password):
        add_password_options(command, "the officer's password")
    add("disable", _officer_switch("disable"), "turn an officer away", "NAME", options=add_api_options)
    add("enable", _officer_switch("enable"), "let an officer in again", "NAME", options=add_api_options)
    add("whoami", _officer_whoami, "log in, and show who you are and what you may do")
    change = add("change-password", _officer_change, "change your own password")
    add_password_options(change, "your new password")


def _officer_create(args: argparse.Namespace, screen: Screen) -> Answer:
    password = new_password(args.password_file, f"Password for {args.name}")
    body = {
        "officer": args.name,
        "displayName": args.display_name or args.name,
        "roles": sorted(set(args.role)),
        "password": password,
    }
    return _officer_answer(Api.from_args(args).call("POST", "officers", body=body))


def _officer_answer(officer: Mapping[str, Any]) -> Answer:
    return record_answer(f"officer {officer['officer']}", officer)


def _officer_list(args: argparse.Namespace, screen: Screen) -> Answer:
    found = Api.from_args(args).call("GET", "officers")["items"]
    return list_answer("officers", found, False, OFFICER_COLUMNS)


def _officer_roles(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {"roles": sorted(set(args.role))}
    return _officer_answer(Api.from_args(args).call("PUT", "officers", args.name, "roles", body=body))


def _officer_password(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {"newPassword": new_password(args.password_file, f"New password for {args.name}")}
    return _officer_answer(Api.from_args(args).call("PUT", "officers", args.name, "password", body=body))


def _officer_switch(verb: str) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        return _officer_answer(Api.from_args(args).call("POST", "officers", args.name, verb))

    return run


def _officer_whoami(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        found = api.call("GET", "session")
    return record_answer(f"officer {found['officer']}", found)


def _officer_change(args: argparse.Namespace, screen: Screen) -> Answer:
    new = new_password(args.password_file, "New password")
    if args.officer_password_file is not None:
        old = read_password(args.officer_password_file)
    else:
        old = ask_password("The password until now, once more")
    with session(args) as api:
        api.call("POST", "session", "password", body={"oldPassword": old, "newPassword": new})
    return Answer({"changed": True}, ["changed; all your sessions have ended"])


# Organisations ----------------------------------------------------------------------------------------------


def _add_organisation_commands(
    group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]
) -> None:
    add = adder(group, parents)
    enter = add("add", _organisation_add, "enter an organisation by its unified social credit code", "CODE")
    change = add("change", _organisation_change, "change an organisation's name or region", "CODE")
    for command in (enter, change):
        command.add_argument("--name", required=True, help="its statutory name")
        command.add_argument("--region", required=True, metavar="CODE", help="six digits (GB/T 2260)")
    listing = add("list", _organisation_list, "list organisations")
    listing.add_argument("--text", help="part of a name or code")
    add_list_options(listing)
    add("show", _organisation_show, "show an organisation", "CODE")


def _organisation_add(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {"useUnitCode": args.code, "useUnitName": args.name, "sealZone": args.region}
    with session(args) as api:
        return _organisation_answer(api.call("POST", "organisations", body=body))


def _organisation_change(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {"useUnitName": args.name, "sealZone": args.region}
    with session(args) as api:
        return _organisation_answer(api.call("PUT", "organisations", args.code, body=body))


def _organisation_list(args: argparse.Namespace, screen: Screen) -> Answer:
    query = {"text": args.text, "limit": args.limit}
    with session(args) as api:
        found = api.listed("organisations", query=query, every=args.all)
    return list_answer("organisations", *found, ORGANISATION_COLUMNS)


def _organisation_show(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        return _organisation_answer(api.call("GET", "organisations", args.code))


def _organisation_answer(organisation: Mapping[str, Any]) -> Answer:
    return record_answer(f"organisation {organisation['useUnitCode']}", organisation)


# Proposals --------------------------------------------------------------------------------------------------


def _add_proposal_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = adder(group, parents)
    listing = add("list", _proposal_list, "list proposals")
    listing.add_argument("--state", choices=[one.value for one in ProposalState])
    add_list_options(listing)
    add("show", _proposal_show, "show a proposal", "PROPOSAL")
    add("approve", _proposal_approve, "approve what another officer proposed; it is done", "PROPOSAL")
    reject = add("reject", _proposal_reject, "reject what another officer proposed", "PROPOSAL")
    reject.add_argument("--reason", required=True, metavar="TEXT", help="it goes on record")
    add("make", _proposes(CriticalAct.MAKE), "propose that a seal be made", "SEAL")
    add("renew", _proposes(CriticalAct.RENEW), "propose that a seal be renewed", "SEAL")
    wake = add("wake", _proposes(CriticalAct.WAKE), "propose that a dormant seal be used again", "SEAL")
    cancel = add("cancel", _proposes(CriticalAct.CANCEL), "propose that a seal be cancelled", "SEAL")
    cancel.add_argument("--cause", required=True, choices=CANCEL_REASONS)
    cancel.add_argument(
        "--reason", required=True, metavar="TEXT", help="in words; it stands on the certificate"
    )
    destroy = add(
        "destroy-key", _proposes(CriticalAct.DESTROY_KEY), "propose that a seal's key be destroyed", "SEAL"
    )
    reset = add(
        "reset-password",
        _proposes(CriticalAct.RESET_PASSWORD),
        "propose a new protection password for a seal; the public security is told",
        "SEAL",
    )
    add_password_options(reset, "the new protection password")
    destroy.add_argument("--key", required=True, metavar="NAME", help="as `seal show` names it")
    for command in (wake, reset):
        command.add_argument("--reason", required=True, metavar="TEXT", help="it goes on record")


def _proposal_list(args: argparse.Namespace, screen: Screen) -> Answer:
    query = {"state": args.state, "limit": args.limit}
    with session(args) as api:
        return list_answer(
            "proposals", *api.listed("proposals", query=query, every=args.all), PROPOSAL_COLUMNS
        )


def _proposal_show(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        return _proposal_answer(api.call("GET", "proposals", args.proposal))


def _proposal_approve(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        return _proposal_answer(api.call("POST", "proposals", args.proposal, "approve"))


def _proposal_reject(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        body = {"reason": args.reason}
        return _proposal_answer(api.call("POST", "proposals", args.proposal, "reject", body=body))


def _proposes(act: CriticalAct) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        match act:
            case CriticalAct.CANCEL:
                arguments = {"cancelReason": args.cause, "cancelDescribe": args.reason}
            case CriticalAct.WAKE:
                arguments = {"reason": args.reason}
            case CriticalAct.RESET_PASSWORD:
                password = new_password(args.password_file, "New protection password")
                arguments = {"newPassword": password, "reason": args.reason}
            case CriticalAct.DESTROY_KEY:
                arguments = {"keyName": args.key}
            case _:
                arguments = {}
        with session(args) as api:
            return _proposed(api, act, api.seal_id(args.seal), arguments)

    return run


def _proposed(api: Api, act: CriticalAct, seal_id: str, arguments: Mapping[str, Any]) -> Answer:
    body = {"act": act.value, "sealId": seal_id, "arguments": dict(arguments)}
    answer = _proposal_answer(api.call("POST", "proposals", body=body))
    roles = " or ".join(sorted(role.value for role in APPROVERS[act]))
    proposal_id = answer.document["proposalId"] if answer.document else ""
    hint = f"another officer ({roles}) approves it: cloud-seal proposal approve {proposal_id}"
    return Answer(answer.document, [*answer.parts, hint])


def _proposal_answer(proposal: Mapping[str, Any]) -> Answer:
    return record_answer(f"proposal {proposal['proposalId']}", proposal)


# Grants -----------------------------------------------------------------------------------------------------


def _add_grant_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = adder(group, parents)
    listing = add("list", _grant_list, "list the grants of an account, or on a seal")
    which = listing.add_mutually_exclusive_group(required=True)
    which.add_argument("--account", metavar="NAME")
    which.add_argument("--seal", metavar="SEAL")
    add_list_options(listing)
    give = add("give", _grant_give, "let an account use a seal", "ACCOUNT", "SEAL")
    give.add_argument(
        "--operation",
        action="append",
        choices=[one.value for one in Operation],
        help="repeatable; default: all of them",
    )
    give.add_argument(
        "--daily-limit", type=int, default=0, metavar="N", help="seal signatures a day; 0: no limit"
    )
    give.add_argument("--minute-limit", type=int, default=0, metavar="N", help="… and a minute")
    give.add_argument("--valid-from", metavar="TIME", help="ISO 8601 with its offset")
    give.add_argument("--valid-to", metavar="TIME", help="ISO 8601 with its offset")
    give.add_argument(
        "--source", action="append", default=[], metavar="CIDR", help="repeatable; default: anywhere"
    )
    give.add_argument(
        "--approval-pattern", metavar="REGEX", help="what the approval reference must match as a whole"
    )
    take = add("take", _grant_take, "take a grant back", "ACCOUNT", "SEAL")
    for command in (give, take):
        command.add_argument(
            "--propose", action="store_true", help="an official seal's grants take two officers: propose it"
        )


def _grant_list(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        seal_id = api.seal_id(args.seal) if args.seal is not None else None
        query = {"account": args.account, "sealId": seal_id, "limit": args.limit}
        return list_answer("grants", *api.listed("grants", query=query, every=args.all), GRANT_COLUMNS)


def _grant_give(args: argparse.Namespace, screen: Screen) -> Answer:
    terms: dict[str, Any] = {
        "operations": sorted(set(args.operation or [one.value for one in Operation])),
        "dailyLimit": args.daily_limit,
        "minuteLimit": args.minute_limit,
        "sources": args.source,
    }
    given = {
        "validStartTime": args.valid_from,
        "validEndTime": args.valid_to,
        "approvalPattern": args.approval_pattern,
    }
    terms |= {name: value for name, value in given.items() if value is not None}
    with session(args) as api:
        seal_id = api.seal_id(args.seal)
        if args.propose:
            return _proposed(api, CriticalAct.GRANT, seal_id, {"account": args.account, "terms": terms})
        granted = api.call("PUT", "seals", seal_id, "grants", args.account, body=terms)
    return list_answer("grants", [granted], False, GRANT_COLUMNS)


def _grant_take(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        seal_id = api.seal_id(args.seal)
        if args.propose:
            return _proposed(api, CriticalAct.REVOKE, seal_id, {"account": args.account})
        api.call("DELETE", "seals", seal_id, "grants", args.account)
    document = {"account": args.account, "sealId": seal_id}
    return Answer(document, [f"{args.account} may not use seal {args.seal} any more"])
