"""Commands of whoever uses keys: sign and verify files, ask for status, measure quickly.

For: ``cloud-seal sign``, ``verify``, ``status`` and ``bench``, each over the wire protocol.
Not for: batch jobs (``stream``), making keys (``officer``).

Rules:

* Files are hashed here, by the key's algorithm, in constant memory; only digests travel.
* A signature file appears whole or not at all, and never over another one unless told to.
* ``verify`` says "invalid" with exit code 1, and only for a signature that was checked and is not valid; whatever
  kept it from checking is an error of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives import hashes

from appliance import wire
from appliance.algorithms import (
    SIGNATURE_LEN,
    Algorithm,
    PublicKey,
    signature_from_der,
    signature_to_der,
)
from appliance.cli.files import read_der, read_limited, write_durably
from appliance.cli.show import Answer, Screen, Table, fields
from appliance.cli.target import add_wire_options, connect, readiness, run, settings_of
from appliance.client import Client
from appliance.errors import ApplianceError, BadRequest, Conflict, NotFound, SignerFailed, Unavailable
from appliance.verifying import sm2_z

READ_LEN: Final = 1 << 20
FILES_PER_REQUEST: Final = 4_096
"""Files in one request: their digests are 128 kB, and the answer comes within a second or so."""
FORMS: Final = ("der", "raw")
MAX_BENCH_S: Final = 60.0


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``sign``, ``verify``, ``status`` and ``bench`` to the parser."""

    def add(
        name: str, run_: Callable[[argparse.Namespace, Screen], Answer], summary: str, **more: Any
    ) -> Any:
        description = f"{summary[0].upper()}{summary[1:]}."
        command = groups.add_parser(name, parents=parents, help=summary, description=description, **more)
        command.set_defaults(run=run_)
        return command

    sign = add("sign", _sign, "sign files; each signature goes into FILE.sig")
    sign.add_argument("files", metavar="FILE", nargs="+", type=Path)
    sign.add_argument("--key", required=True, help="the key to sign with")
    sign.add_argument(
        "--out-dir", metavar="DIR", type=Path, help="where the .sig files go; default: beside each file"
    )
    sign.add_argument(
        "--form", choices=FORMS, default="der", help="DER, or 64 bytes r || s; default: %(default)s"
    )
    sign.add_argument("--force", action="store_true", help="replace .sig files that are there")
    add_wire_options(sign)

    verify = add("verify", _verify, "verify the signatures of files; exit code 1 if one is invalid")
    verify.add_argument("files", metavar="FILE", nargs="+", type=Path)
    verify.add_argument("--signature", metavar="SIG", type=Path, help="of the one file; default: FILE.sig")
    under = verify.add_mutually_exclusive_group(required=True)
    under.add_argument("--key", help="a key that the appliance holds")
    under.add_argument("--public-key", metavar="PEM|DER", type=Path, help="a SubjectPublicKeyInfo")
    under.add_argument(
        "--certificate", metavar="PEM|DER", type=Path, help="only its key is used; the rest is not checked"
    )
    add_wire_options(verify)

    status = add("status", _status, "show what keys can do now and, without KEY, how the appliance is")
    status.add_argument("keys", metavar="KEY", nargs="*")
    add_wire_options(status)

    bench = add("bench", _bench, "measure a running appliance for some seconds")
    bench.add_argument("--key", required=True, help="the key to sign with")
    bench.add_argument("--seconds", type=float, default=2.0, help="for each way; default: %(default)s")
    add_wire_options(bench)


# Hashing ----------------------------------------------------------------------------------------------------


class Hasher:
    """Hashes as a key's algorithm signs: SHA-256(M), or SM3(Z || M) with the default user ID (GB/T 32918.2, 6.1)."""

    def __init__(self, key: PublicKey) -> None:
        self._is_sm2 = key.algorithm is Algorithm.SM2_SM3
        if self._is_sm2:
            self._sm3 = hashes.Hash(hashes.SM3())
            self._sm3.update(sm2_z(key))

    def digest(self, message: bytes) -> bytes:
        """32 bytes."""
        if not self._is_sm2:
            return hashlib.sha256(message).digest()
        state = self._sm3.copy()
        state.update(message)
        return state.finalize()

    def digest_file(self, path: Path) -> bytes:
        """32 bytes; ``BadRequest`` names a file that cannot be read."""
        try:
            with path.open("rb") as file:
                if not self._is_sm2:
                    return hashlib.file_digest(file, "sha256").digest()
                state = self._sm3.copy()
                while chunk := file.read(READ_LEN):
                    state.update(chunk)
                return state.finalize()
        except OSError as error:
            raise BadRequest(f"{path}: {error.strerror}") from error

    def digest_files(self, paths: Sequence[Path]) -> bytes:
        """32 bytes each, end to end."""
        return b"".join(map(self.digest_file, paths))


async def held_key(client: Client, name: str) -> tuple[PublicKey, wire.KeyState]:
    """A key of the appliance's, and whether it can sign, else ``NotFound``."""
    (record,) = await client.status([name])
    if record.state is wire.KeyState.UNKNOWN:
        raise NotFound(
            f"no key {name!r} for this account",
            hint="cloud-seal status lists those it may use; or have it granted",
        )
    return PublicKey.from_spki(record.spki), record.state


async def usable_key(client: Client, name: str) -> PublicKey:
    """A key that can sign now: better said before a thousand files are hashed."""
    key, state = await held_key(client, name)
    if state is wire.KeyState.DISABLED:
        raise Conflict(f"key {name!r} is disabled", hint="cloud-seal key enable, once the reason is gone")
    if state is wire.KeyState.UNAVAILABLE:
        raise Unavailable(
            f"the token of key {name!r} cannot be reached", hint="cloud-seal status", retry_after_ms=1_000
        )
    return key


# sign -------------------------------------------------------------------------------------------------------


def _sign(args: argparse.Namespace, screen: Screen) -> Answer:
    targets = [_signature_path(path, args.out_dir) for path in args.files]
    if len(set(targets)) != len(targets):
        raise BadRequest(
            "two files would have the same signature file", hint="sign them apart, or without --out-dir"
        )
    if not args.force:
        for target in targets:
            if target.exists():
                raise Conflict(f"{target} is there already", hint="--force replaces it")
    return run(_sign_async(args, targets, screen))


def _signature_path(path: Path, out_dir: Path | None) -> Path:
    return (out_dir or path.parent) / f"{path.name}.sig"


async def _sign_async(args: argparse.Namespace, targets: list[Path], screen: Screen) -> Answer:
    results: list[dict[str, Any]] = []
    async with await connect(args) as client:
        hasher = Hasher(await usable_key(client, args.key))
        with screen.progress("signing", len(args.files)) as tell:
            for first in range(0, len(args.files), FILES_PER_REQUEST):
                paths = args.files[first : first + FILES_PER_REQUEST]
                digests = await asyncio.to_thread(hasher.digest_files, paths)
                answer = await client.sign_batch(args.key, wire.digests(digests))
                outs = targets[first : first + FILES_PER_REQUEST]
                results += await asyncio.to_thread(_write_signatures, args.form, paths, outs, answer)
                tell(first + len(paths))
    failed = sum(result["signature"] is None for result in results)
    if failed == len(results) == 1:
        raise SignerFailed(f"{args.files[0]}: the token did not sign it", hint="the daemon's log says why")
    rows = [[result["file"], result["status"], result["signature"] or ""] for result in results]
    document = {"key": args.key, "form": args.form, "files": results, "failed": failed}
    return Answer(document, [Table(("file", "status", "signature"), rows)], exit_code=1 if failed else 0)


def _write_signatures(
    form: str, paths: Sequence[Path], targets: Sequence[Path], answer: wire.SignedAnswer
) -> list[dict[str, Any]]:
    signatures = bytes(answer.signatures)
    results = []
    for i, (path, target, status) in enumerate(zip(paths, targets, bytes(answer.statuses), strict=True)):
        signed = status == wire.ItemStatus.SIGNED
        if signed:
            raw = signatures[i * SIGNATURE_LEN : (i + 1) * SIGNATURE_LEN]
            write_durably(target, signature_to_der(raw) if form == "der" else raw)
        results.append(
            {
                "file": str(path),
                "status": wire.ItemStatus(status).name.lower(),
                "signature": str(target) if signed else None,
            }
        )
    return results


# verify -----------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, screen: Screen) -> Answer:
    if args.signature is not None and len(args.files) != 1:
        raise BadRequest("--signature goes with one file", hint="leave it out: each FILE has its FILE.sig")
    signature_paths = [args.signature or _signature_path(path, None) for path in args.files]
    signatures = b"".join(map(read_signature, signature_paths))
    return run(_verify_async(args, signature_paths, signatures))


def read_signature(path: Path) -> bytes:
    """``r || s`` from a file that holds it so, in 64 bytes, or in DER.

    DER of 64 bytes exists where r and s together are 8 bytes shorter than usual, once in 2**60 signatures.
    """
    raw = read_limited(path)
    if len(raw) == SIGNATURE_LEN:
        return raw
    try:
        return signature_from_der(raw)
    except BadRequest as error:
        raise BadRequest(f"{path}: {error.detail}", hint="expected DER, or 64 bytes r || s") from error


async def _verify_async(args: argparse.Namespace, signature_paths: list[Path], signatures: bytes) -> Answer:
    verdicts = b""
    async with await connect(args) as client:
        name_or_key, public = await _verifying_key(args, client)
        hasher = Hasher(public)
        for first in range(0, len(args.files), FILES_PER_REQUEST):
            paths = args.files[first : first + FILES_PER_REQUEST]
            digests = await asyncio.to_thread(hasher.digest_files, paths)
            block = signatures[first * SIGNATURE_LEN : (first + len(paths)) * SIGNATURE_LEN]
            verdicts += await client.verify(name_or_key, wire.digests(digests), block)
    results: list[dict[str, Any]] = [
        {"file": str(path), "signature": str(signature), "valid": bool(verdict)}
        for path, signature, verdict in zip(args.files, signature_paths, verdicts, strict=True)
    ]
    rows = [
        [str(one["file"]), "valid" if one["valid"] else "INVALID", str(one["signature"])] for one in results
    ]
    invalid = verdicts.count(0)
    document = {"algorithm": public.algorithm.label, "files": results, "invalid": invalid}
    return Answer(document, [Table(("file", "verdict", "signature"), rows)], exit_code=1 if invalid else 0)


async def _verifying_key(
    args: argparse.Namespace, client: Client
) -> tuple[str | PublicKey | bytes, PublicKey]:
    """How to name the key to the appliance, and the key itself, for hashing."""
    if args.key is not None:
        key, _ = await held_key(client, args.key)
        return args.key, key
    if args.public_key is not None:
        key = PublicKey.from_spki(read_der(args.public_key))
        return key, key
    certificate = read_der(args.certificate)
    return certificate, PublicKey.from_certificate(certificate)


# status -----------------------------------------------------------------------------------------------------


def _status(args: argparse.Namespace, screen: Screen) -> Answer:
    return run(_status_async(args))


async def _status_async(args: argparse.Namespace) -> Answer:
    async with await connect(args) as client:
        records = await client.status(args.keys)
        appliance = None if args.keys else await client.appliance_status()
        round_trip_s = await client.ping()
    keys = [
        {
            "name": record.name,
            "state": record.state.name.lower(),
            "algorithm": _algorithm_label(record.algorithm),
            "spki": base64.b64encode(record.spki).decode(),
        }
        for record in records
    ]
    rows = [[str(key["name"]), str(key["state"]), str(key["algorithm"] or "")] for key in keys]
    table = Table(("key", "state", "algorithm"), rows)
    document: dict[str, Any] = {"keys": keys, "round_trip_ms": round(round_trip_s * 1e3, 3)}
    if appliance is None:
        return Answer(document, [table])
    document["appliance"] = appliance
    fronts = await asyncio.to_thread(_all_fronts, args, appliance)
    document["fronts"] = {"configured": fronts.configured, "known": list(fronts.known)}
    return Answer(document, [*_appliance_tables(appliance, fronts), table])


class _Fronts(NamedTuple):
    """The front processes of the appliance: those we know the status of, by their number."""

    known: tuple[dict[str, Any], ...]
    configured: int | None
    """How many there should be; None where the configuration is on another machine."""

    def __str__(self) -> str:
        reached = self.known[0].get("front", 0)
        if self.configured is None:
            return f"shown is {reached}, which answered; on the appliance's machine all are"
        if len(self.known) == self.configured:
            return str(self.configured)
        shown = f"shown is {reached}, which answered" if len(self.known) == 1 else f"{len(self.known)} serve"
        return f"{self.configured}; {shown}"


def _all_fronts(args: argparse.Namespace, reached: dict[str, Any]) -> _Fronts:
    """Over the wire one front tells of itself; on the appliance's own machine readiness tells of all."""
    if args.address is not None:
        return _Fronts((reached,), None)
    web, count = settings_of(args).web, settings_of(args).front_processes
    if count == 1 or web.health is None:
        return _Fronts((reached,), count)
    try:
        leader = readiness(web.health)
    except ApplianceError:  # somebody else may have the port, or the daemon another configuration by now
        return _Fronts((reached,), count)
    known = [leader, *leader.pop("fronts", [])]
    return _Fronts(tuple(sorted(known, key=lambda one: int(one["front"]))), count)


def _algorithm_label(number: int) -> str | None:
    try:
        return Algorithm(number).label
    except ValueError:
        return None  # no algorithm where the key is unknown; and a newer appliance may know more than we do


def _appliance_tables(appliance: dict[str, Any], fronts: _Fronts) -> list[Table]:
    """The tokens of each front as a table; whatever else it tells, now or later, as names and values."""
    several = len(fronts.known) > 1
    tables = []
    for front in fronts.known:
        plain = [[name, str(value)] for name, value in front.items() if not isinstance(value, list | dict)]
        if front is fronts.known[0]:
            plain.append(["fronts", str(fronts)])
        tables.append(
            fields("appliance" if front is fronts.known[0] else f"front {front.get('front')}", plain)
        )
    rows = [
        [*([str(front.get("front"))] if several else []), *_token_row(token)]
        for front in fronts.known
        for token in front.get("tokens", ())
        if isinstance(token, dict)
    ]
    if rows:
        columns = (
            *(["front"] if several else []),
            "token",
            "state",
            "workers>",
            "queued items>",
            "in flight>",
            "restarts>",
            "refused keys",
            "reason",
        )
        tables.append(Table(columns, rows))
    return tables


def _token_row(token: dict[str, Any]) -> list[str]:
    return [
        str(token.get("token", "")),
        str(token.get("state", "")),
        f"{len(token.get('workers', ()))}/{token.get('workers_wanted', '?')}",
        str(token.get("queued_items", "")),
        str(token.get("inflight_items", "")),
        str(token.get("restarts", "")),
        ", ".join(map(str, token.get("refused_keys", ()))) or "none",
        str(token.get("reason") or ""),
    ]


# bench ------------------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace, screen: Screen) -> Answer:
    if not 0 < args.seconds <= MAX_BENCH_S:
        raise BadRequest(f"--seconds {args.seconds:g}: expected more than 0, at most {MAX_BENCH_S:g}")
    return run(_bench_async(args, screen))


async def _bench_async(args: argparse.Namespace, screen: Screen) -> Answer:
    results: list[dict[str, Any]] = []
    async with await connect(args) as client:
        await usable_key(client, args.key)
        digest = os.urandom(32)

        async def single() -> None:
            await client.sign(args.key, digest)

        def batch(count: int) -> Callable[[], Awaitable[None]]:
            items = wire.digests(os.urandom(32 * count))

            async def sign() -> None:
                answer = await client.sign_batch(args.key, items)
                if answer.failed:
                    raise SignerFailed(
                        f"{answer.failed} of {count} items failed", hint="the daemon's log says why"
                    )

            return sign

        ways: list[tuple[str, int, int, Callable[[], Awaitable[None]]]] = [
            ("one at a time", 1, 1, single),
            ("64 in flight", 64, 1, single),
            ("batches of 64, 4 in flight", 4, 64, batch(64)),
            ("batches of 256, 4 in flight", 4, 256, batch(256)),
            ("batches of 4096, 2 in flight", 2, 4_096, batch(4_096)),
        ]
        for name, in_flight, items, call in ways:
            screen.note(f"{name} …")
            results.append({"way": name, **await _measure(call, in_flight, items, args.seconds)})
    columns = ("way", "signatures/s>", "p50 ms>", "p99 ms>")
    rows = [
        [str(one["way"]), f"{one['per_second']:,.0f}", f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}"]
        for one in results
    ]
    return Answer({"key": args.key, "seconds": args.seconds, "results": results}, [Table(columns, rows)])


async def _measure(
    call: Callable[[], Awaitable[None]], in_flight: int, items: int, seconds: float
) -> dict[str, Any]:
    """So many callers, each asking again when it was answered, for so long; the first call warms up."""
    await call()
    latencies_s: list[float] = []
    began_at = perf_counter()
    ends_at = began_at + seconds

    async def caller() -> None:
        while (asked_at := perf_counter()) < ends_at:
            await call()
            latencies_s.append(perf_counter() - asked_at)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(caller())
    elapsed_s = perf_counter() - began_at
    latencies_s.sort()

    def percentile_ms(share: float) -> float:
        return round(latencies_s[min(int(len(latencies_s) * share), len(latencies_s) - 1)] * 1e3, 4)

    return {
        "per_second": round(len(latencies_s) * items / elapsed_s, 1),
        "p50_ms": percentile_ms(0.5),
        "p99_ms": percentile_ms(0.99),
    }
