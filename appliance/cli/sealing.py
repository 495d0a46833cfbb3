"""Commands of whoever seals: unlock a seal, seal files, verify what was sealed.

For: ``cloud-seal seal unlock | lock | sign | verify``: the account's part of ``seal``, over the wire protocol;
verifying asks the public endpoint, which needs no account.
Not for: the officers' part (``seals``), jobs of millions (the client library).

Rules:

* What is sealed is the file's plain SM3; ``FILE.ses`` holds the complete DER ``SES_Signature`` (GB/T 38540-2020).
* The property info, which the signature covers, is the file's name unless another text is given.
* A ``.ses`` file that is there is replaced only with ``--force``, and appears whole or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cryptography.hazmat.primitives import hashes

from appliance.cli.files import read_limited, write_durably
from appliance.cli.session import Api, add_api_options
from appliance.cli.show import Answer, Screen, Table
from appliance.cli.target import add_wire_options, ask_password, connect, read_password, run
from appliance.errors import BadRequest, Conflict
from appliance.eseal.structures import MAX_SIGNATURE_LEN
from appliance.wire import ItemStatus

READ_LEN: Final = 1 << 20
MAX_FILES: Final = 65_536
"""A request's items; more is a job for the client library."""
DEFAULT_UNLOCK_S: Final = 3_600


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add them to ``seal``."""
    unlock = add(
        "unlock", _unlock, "unlock a seal for your account, by its protection password", "SEAL",
        options=add_wire_options,
    )  # fmt: skip
    unlock.add_argument(
        "--seconds",
        type=int,
        default=DEFAULT_UNLOCK_S,
        metavar="N",
        help="for how long; default: %(default)s",
    )
    unlock.add_argument(
        "--seal-password-file", metavar="FILE", type=Path, help="the seal's, first line; default: ask"
    )
    add(
        "lock",
        _lock,
        "lock a seal for your account before its time is over",
        "SEAL",
        options=add_wire_options,
    )
    sign = add(
        "sign", _sign, "seal files; each seal signature goes into FILE.ses", "SEAL", options=add_wire_options
    )
    sign.add_argument("files", metavar="FILE", nargs="+", type=Path)
    sign.add_argument("--out-dir", metavar="DIR", type=Path, help="where they go; default: beside each file")
    sign.add_argument("--force", action="store_true", help="replace .ses files that are there")
    sign.add_argument("--property-info", metavar="TEXT", help="signed along; default: each file's name")
    sign.add_argument("--reference", default="", metavar="TEXT", help="the approval's, where it is demanded")
    sign.add_argument("--time-stamp", action="store_true", help="have the time-stamp authority stamp each")
    verify = add(
        "verify", _verify, "verify seal signatures; exit code 1 if one is invalid", options=add_api_options
    )
    verify.add_argument("files", metavar="FILE", nargs="+", type=Path, help="each beside its FILE.ses")
    verify.add_argument("--signature", metavar="SES", type=Path, help="of the one file; default: FILE.ses")


def _unlock(args: argparse.Namespace, screen: Screen) -> Answer:
    if args.seal_password_file is not None:
        password = read_password(args.seal_password_file)
    else:
        password = ask_password("Protection password of the seal", "--seal-password-file")

    async def ask() -> int:
        async with await connect(args) as client:
            return await client.unlock(args.seal, password, args.seconds)

    until = datetime.fromtimestamp(run(ask()), UTC).isoformat(timespec="seconds")
    return Answer(
        {"seal": args.seal, "unlocked_until": until}, [f"seal {args.seal} is unlocked until {until}"]
    )


def _lock(args: argparse.Namespace, screen: Screen) -> Answer:
    async def ask() -> None:
        async with await connect(args) as client:
            await client.lock(args.seal)

    run(ask())
    return Answer(
        {"seal": args.seal, "unlocked_until": None}, [f"seal {args.seal} is locked for your account"]
    )


# Sealing ----------------------------------------------------------------------------------------------------


def _sign(args: argparse.Namespace, screen: Screen) -> Answer:
    if len(args.files) > MAX_FILES:
        raise BadRequest(f"{len(args.files)} files, at most {MAX_FILES}", hint="give them in several runs")
    targets = [(args.out_dir or path.parent) / f"{path.name}.ses" for path in args.files]
    _check_targets(targets, args.force)
    infos = [
        args.property_info if args.property_info is not None else quote(path.name) for path in args.files
    ]
    if not all(info.isascii() and info.isprintable() for info in infos):
        raise BadRequest("--property-info is IA5String in the standard: printable ASCII")

    async def seal() -> list[tuple[ItemStatus, bytes]]:
        async with await connect(args) as client:
            digests = await asyncio.to_thread(lambda: [file_sm3(path) for path in args.files])
            answer = await client.seal(
                args.seal, digests, infos, reference=args.reference, time_stamp=args.time_stamp
            )
            return list(answer.values())

    rows, items, failed = [], [], 0
    for path, target, (status, value) in zip(args.files, targets, run(seal()), strict=True):
        if status is ItemStatus.SIGNED:
            write_durably(target, value)
        failed += status is not ItemStatus.SIGNED
        place = str(target) if status is ItemStatus.SIGNED else ""
        items.append({"file": str(path), "status": status.name, "signature": place or None})
        rows.append([str(path), status.name.lower(), place])
    table = Table(("file", "status", "seal signature"), rows)
    return Answer(
        {"seal": args.seal, "files": items, "failed": failed}, [table], exit_code=1 if failed else 0
    )


def _check_targets(targets: list[Path], force: bool) -> None:
    if len(set(targets)) != len(targets):
        raise BadRequest(
            "two of the files would leave their signature in one place", hint="give each file once"
        )
    for target in targets:
        if target.exists() and not force:
            raise Conflict(f"{target} is there already", hint="--force replaces it")


def file_sm3(path: Path) -> bytes:
    """The plain SM3 of a file, 32 bytes; ``BadRequest`` names one that cannot be read."""
    state = hashes.Hash(hashes.SM3())
    try:
        with path.open("rb") as file:
            while chunk := file.read(READ_LEN):
                state.update(chunk)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error
    return state.finalize()


# Verifying --------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, screen: Screen) -> Answer:
    if args.signature is not None and len(args.files) != 1:
        raise BadRequest("--signature goes with one file")
    api = Api.from_args(args)
    reports: list[dict[str, Any]] = []
    parts: list[str | Table] = []
    bad = 0
    for path in args.files:
        signature = args.signature or path.with_name(f"{path.name}.ses")
        body = {
            "signature": base64.b64encode(read_limited(signature, MAX_SIGNATURE_LEN)).decode(),
            "dataHash": file_sm3(path).hex(),
        }
        report = api.call("POST", "verify", body=body)
        reports.append({"file": str(path), **report})
        bad += report["verdict"] == "invalid"
        parts += [_report_table(path, report), *(f"warning: {text}" for text in report["warnings"])]
    return Answer({"reports": reports, "invalid": bad}, parts, exit_code=1 if bad else 0)


def _report_table(path: Path, report: Mapping[str, Any]) -> Table:
    rows = [[check["name"], check["outcome"], check["text"]] for check in report["checks"]]
    return Table(("check", "outcome", "what was found"), rows, title=f"{path}: {report['verdict']}")
