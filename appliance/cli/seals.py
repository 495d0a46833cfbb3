"""Commands for seals: from the application to the end.

For: ``cloud-seal seal …``, each one call to the HTTP API in the session of an officer.
Not for: what takes two officers (``people``: ``proposal``), what accounts do with a seal (``sealing``).

Rules:

* A seal is named by its id, or by its code once it has one.
* Passwords come from a prompt or a file.
* What was done is read from the answer, never assumed.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from asn1crypto import pem

from appliance.cli import sealing
from appliance.cli.files import read_der, read_limited, write_durably
from appliance.cli.session import (
    Run,
    add_list_options,
    add_password_options,
    adder,
    file_answer,
    list_answer,
    record_answer,
    session,
)
from appliance.cli.show import Answer, Screen
from appliance.cli.target import ask_password, new_password, read_password
from appliance.lifecycle import DocumentKind, Kind, State
from appliance.verifying import sm3

SEAL_COLUMNS: Final = {
    "seal": "sealId",
    "code": "sealCode",
    "name": "sealName",
    "kind": "sealKind",
    "state": "sealState",
    "organisation": "useUnitCode",
    "custodian": "custodian",
    "valid until": "validEndTime",
}

EVENT_COLUMNS: Final = {
    "time": "time",
    "act": "act",
    "to": "target",
    "by": "officer",
    "approved by": "approver",
    "detail": "detail",
}


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``seal`` to the parser."""
    group = groups.add_parser("seal", help="seals, from the application to the end")
    add = adder(group, parents)
    _add_application(add("apply", _apply, "apply for a seal"))
    _add_filters(add("list", _list, "list seals"))
    add("show", _show, "show a seal", "SEAL")
    add("events", _events, "show the record of a seal, which cannot be altered", "SEAL")
    _add_downloads(add)
    _add_making(add)
    _add_keeping(add)
    sealing.add_commands(add)


def _add_application(command: argparse.ArgumentParser) -> None:
    command.add_argument("--organisation", required=True, metavar="CODE", help="unified social credit code")
    command.add_argument("--kind", required=True, choices=[one.value for one in Kind])
    command.add_argument("--name", required=True, help="what stands on the seal")
    command.add_argument("--custodian", required=True, metavar="OFFICER", help="who will keep it")
    command.add_argument("--imprint", required=True, metavar="PNG", type=Path, help="its picture")
    command.add_argument("--width", required=True, metavar="MM", type=int, help="of the imprint")
    command.add_argument("--height", required=True, metavar="MM", type=int, help="of the imprint")
    command.add_argument("--purpose", default="", help="special seals: contract, finance, invoice, …")
    command.add_argument(
        "--number", type=int, metavar="N", help="of a special seal; default: the next free one"
    )
    command.add_argument(
        "--holder", default="", metavar="NAME", help="of an office or personal seal: whose it is"
    )
    command.add_argument("--replaces", metavar="SEAL", help="the seal that this one takes the place of")
    command.add_argument(
        "--filed-imprint-sm3", metavar="HEX", help="hash of the imprint the public security has on file"
    )
    command.add_argument(
        "--paper", action="append", default=[], metavar="TEXT", help="a paper that was handed in; repeatable"
    )
    command.add_argument("--note", default="")


def _add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--organisation", metavar="CODE")
    command.add_argument("--kind", choices=[one.value for one in Kind])
    command.add_argument("--state", choices=[one.value for one in State])
    command.add_argument("--region", metavar="CODE")
    command.add_argument("--custodian", metavar="OFFICER")
    command.add_argument("--text", help="part of a name")
    add_list_options(command)


def _add_downloads(add: Any) -> None:
    document = add("document", _document, "show or save a certificate about a seal", "SEAL")
    document.add_argument(
        "--kind",
        choices=[one.value for one in DocumentKind],
        default=DocumentKind.MAKING.value,
        help="default: %(default)s",
    )
    document.add_argument("--pdf", action="store_true", help="to print; needs --out")
    document.add_argument("--out", metavar="FILE", type=Path)
    imprint = add("imprint", _download("imprint", "imprint"), "save the imprint of a seal (PNG)", "SEAL")
    eseal = add(
        "eseal", _download("eseal", "seal"), "save the certified seal (DER SESeal, GB/T 38540)", "SEAL"
    )
    for command in (imprint, eseal):
        command.add_argument("--out", required=True, metavar="FILE", type=Path)


def _add_making(add: Any) -> None:
    review = add("review", _act("review", "note"), "accept an application", "SEAL")
    review.add_argument("--note", default="")
    _add_reason(add("refuse", _act("refuse", "reason"), "refuse an application, with a reason", "SEAL"))
    key = add("key", _key, "make the key of a seal inside a token; it never leaves it", "SEAL")
    key.add_argument("--algorithm", help="default: SM2 where a token makes such keys")
    key.add_argument("--token", help="the profile's name")
    request = add(
        "request", _request, "write a certificate request (PKCS#10) signed by the seal's key", "SEAL"
    )
    request.add_argument(
        "--subject", required=True, metavar="NAME", help="e.g. 'C=CN, O=某某公司, CN=合同专用章'"
    )
    request.add_argument("--out", metavar="FILE", type=Path, help="PEM; default: standard output")
    certificate = add("certificate", _certificate, "hand in the certificate that the CA issued", "SEAL")
    certificate.add_argument("--certificate", required=True, metavar="FILE", type=Path, help="PEM or DER")
    file = add("file", _act("file", "receipt"), "enter that the public security has the seal on file", "SEAL")
    file.add_argument("--receipt", required=True, help="what the public security called it")
    confirm = add("confirm", _confirm, "confirm the imprint of the seal that was made", "SEAL")
    confirm.add_argument(
        "--imprint", required=True, metavar="PNG", type=Path, help="the picture that was looked at"
    )


def _add_keeping(add: Any) -> None:
    activate = add(
        "activate", _activate, "take a seal over as its custodian, and set its protection password", "SEAL"
    )
    add_password_options(activate, "the protection password")
    _add_reason(add("suspend", _act("suspend", "reason"), "stop sealing from the next request on", "SEAL"))
    _add_reason(add("resume", _act("resume", "reason"), "let a suspended seal be used again", "SEAL"))
    add("password", _password, "show how old the protection password is", "SEAL")
    rotate = add("rotate", _rotate, "change the protection password; running jobs go on", "SEAL")
    old = rotate.add_mutually_exclusive_group()
    old.add_argument(
        "--old-password-file", metavar="FILE", type=Path, help="the password until now, first line"
    )
    old.add_argument("--ask-old-password", action="store_true", help="ask for it (the default)")
    add_password_options(rotate, "the new protection password")


def _add_reason(command: argparse.ArgumentParser) -> None:
    command.add_argument("--reason", required=True, metavar="TEXT", help="it goes on record")


# What they do -----------------------------------------------------------------------------------------------


def seal_answer(seal: Mapping[str, Any]) -> Answer:
    """A seal as a person reads it."""
    return record_answer(f"seal {seal['sealCode'] or seal['sealId']}", seal)


def _apply(args: argparse.Namespace, screen: Screen) -> Answer:
    body: dict[str, Any] = {
        "useUnitCode": args.organisation,
        "sealKind": args.kind,
        "sealName": args.name,
        "custodian": args.custodian,
        "sealPurpose": args.purpose,
        "sealHolder": args.holder,
        "papers": args.paper,
        "note": args.note,
        "imprint": {
            "data": base64.b64encode(read_limited(args.imprint)).decode(),
            "widthMm": args.width,
            "heightMm": args.height,
        },
    }
    if args.number is not None:
        body["sealNumber"] = args.number
    if args.filed_imprint_sm3 is not None:
        body["filedImprintSm3"] = args.filed_imprint_sm3.lower()
    with session(args) as api:
        if args.replaces is not None:
            body["replaces"] = api.seal_id(args.replaces)
        return seal_answer(api.call("POST", "seals", body=body))


def _list(args: argparse.Namespace, screen: Screen) -> Answer:
    query = {
        "useUnitCode": args.organisation,
        "sealKind": args.kind,
        "sealState": args.state,
        "sealZone": args.region,
        "custodian": args.custodian,
        "text": args.text,
        "limit": args.limit,
    }
    with session(args) as api:
        return list_answer("seals", *api.listed("seals", query=query, every=args.all), SEAL_COLUMNS)


def _show(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        return seal_answer(api.call("GET", "seals", api.seal_id(args.seal)))


def _events(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        found = api.call("GET", "seals", api.seal_id(args.seal), "events")["items"]
        return list_answer("events", found, False, EVENT_COLUMNS)


def _document(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        place = ("seals", api.seal_id(args.seal), "documents", args.kind)
        if args.pdf:
            out = args.out or Path(f"{args.seal}-{args.kind}.pdf")
            return file_answer(api.read(*place, "pdf"), out, f"{args.kind} certificate")
        found = api.call("GET", *place)
    if args.out is not None:
        return file_answer(base64.b64decode(found["body"]), args.out, f"{args.kind} certificate")
    shown = record_answer(f"{args.kind} certificate of {found['issueTime']}", found["document"])
    return Answer(found, shown.parts)


def _download(name: str, what: str) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        with session(args) as api:
            return file_answer(api.read("seals", api.seal_id(args.seal), name), args.out, what)

    return run


def _act(name: str, field: str) -> Run:
    """An act that takes one word of a person's."""

    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        return _acted(args, name, {field: getattr(args, field)})

    return run


def _acted(args: argparse.Namespace, name: str, body: Mapping[str, Any]) -> Answer:
    with session(args) as api:
        return seal_answer(api.call("POST", "seals", api.seal_id(args.seal), name, body=body))


def _key(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {name: value for name in ("algorithm", "token") if (value := getattr(args, name)) is not None}
    with session(args) as api:
        key = api.call("POST", "seals", api.seal_id(args.seal), "key", body=body)
    return record_answer(f"key {key['keyName']}", key)


def _request(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        found = api.call(
            "POST", "seals", api.seal_id(args.seal), "certificate-request", body={"subject": args.subject}
        )
    if args.out is None:
        return Answer(found, [found["request"].rstrip()])
    write_durably(args.out, found["request"].encode())
    return Answer({**found, "path": str(args.out)}, [f"request written to {args.out}"])


def _certificate(args: argparse.Namespace, screen: Screen) -> Answer:
    armoured = pem.armor("CERTIFICATE", read_der(args.certificate)).decode()
    return _acted(args, "certificate", {"certificate": armoured})


def _confirm(args: argparse.Namespace, screen: Screen) -> Answer:
    return _acted(args, "confirm", {"imprintSm3": sm3(read_limited(args.imprint)).hex()})


def _activate(args: argparse.Namespace, screen: Screen) -> Answer:
    password = new_password(args.password_file, "Protection password of the seal")
    return _acted(args, "activate", {"newPassword": password})


def _password(args: argparse.Namespace, screen: Screen) -> Answer:
    with session(args) as api:
        return _password_answer(api.call("GET", "seals", api.seal_id(args.seal), "password"))


def _rotate(args: argparse.Namespace, screen: Screen) -> Answer:
    if args.old_password_file is not None:
        old = read_password(args.old_password_file)
    else:
        old = ask_password("Protection password until now", "--old-password-file")
    new = new_password(args.password_file, "New protection password")
    with session(args) as api:
        body = {"oldPassword": old, "newPassword": new}
        return _password_answer(api.call("PUT", "seals", api.seal_id(args.seal), "password", body=body))


def _password_answer(state: Mapping[str, Any]) -> Answer:
    return record_answer(f"protection password of seal {state['sealId']}", state)
