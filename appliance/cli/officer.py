"""Commands of officers: keys, accounts and grants.

For: ``cloud-seal key …``, ``ca …`` and ``account …``, each one call to the officers' interface.
Not for: using a key (``signing``).

Rules:

* A new password comes from a prompt, asked twice, or from a file; never from the command line.
* What was done is read back from the answer, never assumed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asn1crypto import pem

from appliance.algorithms import Algorithm
from appliance.cli.files import read_der, write_durably
from appliance.cli.show import Answer, Screen, Table, fields
from appliance.cli.target import Officer, add_officer_options, new_password

Run = Callable[[argparse.Namespace, Screen], Answer]


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``key``, ``ca`` and ``account`` to the parser."""
    _add_key_commands(groups.add_parser("key", help="make, list, show, disable and enable keys"), parents)
    _add_ca_commands(
        groups.add_parser("ca", help="a small CA for demonstrations, whose key lies in the token"), parents
    )
    _add_account_commands(groups.add_parser("account", help="accounts, their passwords and grants"), parents)


def _adder(
    group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]
) -> Callable[..., argparse.ArgumentParser]:
    commands = group.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, summary: str, *positionals: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name, parents=parents, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        command.set_defaults(run=run)
        for positional in positionals:
            command.add_argument(positional.lower(), metavar=positional)
        add_officer_options(command)
        return command

    return add


def _add_key_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = _adder(group, parents)
    create = add(
        "create", _key_create, "make a key pair inside a token; its private half never leaves it", "NAME"
    )
    create.add_argument("--algorithm", required=True, choices=sorted(one.label for one in Algorithm))
    create.add_argument("--token", help="the profile's name; needed where several tokens know the algorithm")
    add("list", _key_list, "list all keys")
    show = add("show", _key_show, "show one key", "NAME")
    show.add_argument("--pem", action="store_true", help="print the public key as PEM and nothing else")
    request = add("request", _key_request, "write a certificate request (PKCS#10) signed by the key", "NAME")
    _add_subject(request)
    _add_out(request, "where the request goes, PEM; default: standard output")
    add("disable", _key_switch("disable"), "refuse to sign with a key from the next request on", "NAME")
    add("enable", _key_switch("enable"), "let a disabled key sign again", "NAME")


def _add_subject(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--subject", required=True, metavar="NAME", help="e.g. 'C=CN, O=某某公司, CN=合同专用章'"
    )


def _add_out(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--out", metavar="FILE", type=Path, help=text)


def _add_ca_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = _adder(group, parents)
    root = add(
        "root", _ca_root, "write the root certificate of a demonstration CA, signed by its own key", "NAME"
    )
    _add_subject(root)
    issue = add("issue", _ca_issue, "issue a signer's certificate for a certificate request", "NAME")
    issue.add_argument("--root", required=True, metavar="FILE", type=Path, help="the CA's root certificate")
    issue.add_argument("--request", required=True, metavar="FILE", type=Path, help="the request, PEM or DER")
    issue.add_argument("--time-stamping", action="store_true", help="for a time-stamp authority")
    for command in (root, issue):
        command.add_argument("--days", type=int, help="how long it lasts; default: ten years, or one")
        _add_out(command, "where the certificate goes, PEM; default: standard output")


def _add_account_commands(group: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    add = _adder(group, parents)
    create = add(
        "create", _account_create, "make an account; whatever proofs it is given must all fit", "NAME"
    )
    create.add_argument("--uid", type=int, help="on the Unix socket, only this user of this machine")
    certificate = create.add_mutually_exclusive_group()
    certificate.add_argument(
        "--certificate",
        metavar="FILE",
        type=Path,
        help="over TLS, only with this client certificate (PEM, DER)",
    )
    certificate.add_argument("--certificate-sha256", metavar="HEX", help="… or the SHA-256 of its DER")
    _add_password_options(create)
    add("list", _account_list, "list all accounts with their grants")
    _add_password_options(add("password", _account_password, "give an account a new password", "NAME"))
    add("disable", _account_switch("disable"), "turn an account away from the next request on", "NAME")
    add("enable", _account_switch("enable"), "let a disabled account in again", "NAME")
    add("grant", _account_grant, "let an account use a key ('*': every key)", "NAME", "KEY")
    add("revoke", _account_revoke, "take a grant back", "NAME", "KEY")


def _add_password_options(command: argparse.ArgumentParser) -> None:
    proof = command.add_mutually_exclusive_group()
    proof.add_argument("--password-file", metavar="FILE", type=Path, help="the new password, first line")
    proof.add_argument("--ask-password", action="store_true", help="ask for the new password, twice")


# Keys -------------------------------------------------------------------------------------------------------


def _key_create(args: argparse.Namespace, screen: Screen) -> Answer:
    body = {"name": args.name, "algorithm": args.algorithm}
    if args.token is not None:
        body["token"] = args.token
    return _key_answer(Officer.from_args(args).call("POST", "keys", body=body))


def _key_list(args: argparse.Namespace, screen: Screen) -> Answer:
    keys = _listed(Officer.from_args(args).call("GET", "keys"), "keys")
    rows = [[str(key.get(column, "")) for column in _KEY_COLUMNS] for key in keys]
    return Answer({"keys": keys}, [Table(_KEY_COLUMNS, rows)])


def _key_show(args: argparse.Namespace, screen: Screen) -> Answer:
    key = Officer.from_args(args).call("GET", "keys", args.name)
    if args.pem:
        return Answer(key, [spki_pem(key)])
    return _key_answer(key)


def _key_switch(verb: str) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        officer = Officer.from_args(args)
        officer.call("POST", "keys", args.name, verb)
        return _key_answer(officer.call("GET", "keys", args.name))

    return run


_KEY_COLUMNS = ("name", "algorithm", "state", "token", "created_at")


def _key_answer(key: Mapping[str, Any]) -> Answer:
    shown = ("id", "algorithm", "token", "state", "created_at")
    rows = [[name, str(key.get(name, ""))] for name in shown]
    return Answer(key, [fields(f"key {key.get('name')}", rows), spki_pem(key)])


def spki_pem(key: Mapping[str, Any]) -> str:
    """A key record's public half as PEM, without the last line's end."""
    der = base64.b64decode(str(key["spki"]))
    return bytes(pem.armor("PUBLIC KEY", der)).decode().rstrip("\n")


def _listed(document: Any, name: str) -> list[dict[str, Any]]:
    found = document.get(name, []) if isinstance(document, dict) else document
    return list(found)


# Accounts ---------------------------------------------------------------------------------------------------


def _key_request(args: argparse.Namespace, screen: Screen) -> Answer:
    answer = Officer.from_args(args).call(
        "POST", "keys", args.name, "request", body={"subject": args.subject}
    )
    return _pem_answer(answer["request"], "request", args.out)


def _ca_root(args: argparse.Namespace, screen: Screen) -> Answer:
    body: dict[str, Any] = {"subject": args.subject}
    return _certificate_answer(args, "self-signed", body)


def _ca_issue(args: argparse.Namespace, screen: Screen) -> Answer:
    request, root = (
        pem.armor(kind, read_der(path)).decode()
        for kind, path in (("CERTIFICATE REQUEST", args.request), ("CERTIFICATE", args.root))
    )
    body: dict[str, Any] = {"request": request, "issuer_certificate": root}
    if args.time_stamping:
        body["time_stamping"] = True
    return _certificate_answer(args, "issue", body)


def _certificate_answer(args: argparse.Namespace, act: str, body: dict[str, Any]) -> Answer:
    if args.days is not None:
        body["days"] = args.days
    answer = Officer.from_args(args).call("POST", "keys", args.name, act, body=body)
    return _pem_answer(answer["certificate"], "certificate", args.out)


def _pem_answer(text: str, what: str, out: Path | None) -> Answer:
    """To a file, or to standard output as it is."""
    if out is None:
        return Answer({what: text}, [text.rstrip()])
    write_durably(out, text.encode())
    return Answer({what: text, "path": str(out)}, [f"{what} written to {out}"])


def _account_create(args: argparse.Namespace, screen: Screen) -> Answer:
    body: dict[str, Any] = {"name": args.name}
    if args.uid is not None:
        body["uid"] = args.uid
    if args.certificate is not None:
        body["certificate_sha256"] = hashlib.sha256(read_der(args.certificate)).hexdigest()
    elif args.certificate_sha256 is not None:
        body["certificate_sha256"] = args.certificate_sha256.replace(":", "").lower()
    # Without any other proof an account needs a password: one that nothing proves is open to nobody.
    if args.password_file is not None or args.ask_password or len(body) == 1:
        body["password"] = new_password(args.password_file)
    officer = Officer.from_args(args)
    officer.call("POST", "accounts", body=body)
    return _account_answer(officer, args.name)


def _account_list(args: argparse.Namespace, screen: Screen) -> Answer:
    accounts = _listed(Officer.from_args(args).call("GET", "accounts"), "accounts")
    return Answer({"accounts": accounts}, [_account_table(accounts)])


def _account_password(args: argparse.Namespace, screen: Screen) -> Answer:
    officer = Officer.from_args(args)
    officer.call(
        "POST", "accounts", args.name, "password", body={"password": new_password(args.password_file)}
    )
    return _account_answer(officer, args.name)


def _account_switch(verb: str) -> Run:
    def run(args: argparse.Namespace, screen: Screen) -> Answer:
        officer = Officer.from_args(args)
        officer.call("POST", "accounts", args.name, verb)
        return _account_answer(officer, args.name)

    return run


def _account_grant(args: argparse.Namespace, screen: Screen) -> Answer:
    officer = Officer.from_args(args)
    officer.call("POST", "accounts", args.name, "grants", body={"key": args.key})
    return _account_answer(officer, args.name)


def _account_revoke(args: argparse.Namespace, screen: Screen) -> Answer:
    officer = Officer.from_args(args)
    officer.call("DELETE", "accounts", args.name, "grants", args.key)
    return _account_answer(officer, args.name)


def _account_answer(officer: Officer, name: str) -> Answer:
    """The account as the registry has it now."""
    accounts = _listed(officer.call("GET", "accounts"), "accounts")
    mine = [account for account in accounts if account.get("name") == name]
    return Answer(mine[0] if mine else None, [_account_table(mine)])


def _account_table(accounts: list[dict[str, Any]]) -> Table:
    rows = [
        [
            str(account.get("name", "")),
            "disabled" if account.get("disabled") else "enabled",
            _proofs(account),
            ", ".join(map(str, account.get("grants", ()))) or "none",
        ]
        for account in accounts
    ]
    return Table(("account", "state", "proofs", "grants"), rows)


def _proofs(account: Mapping[str, Any]) -> str:
    proofs = []
    if account.get("password") or account.get("has_password"):
        proofs.append("password")
    if account.get("uid") is not None:
        proofs.append(f"uid {account['uid']}")
    if fingerprint := account.get("certificate_sha256"):
        proofs.append(f"certificate {str(fingerprint)[:16]}…")
    return ", ".join(proofs) or "none"
