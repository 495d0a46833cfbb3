"""``cloud-seal demo``: the whole appliance in one sitting, for whoever sees it for the first time.

For: a real token, a real daemon, a batch job of real signatures, verified by the appliance and by somebody else's
code; then an orderly end. ``make run`` is this.
Not for: measuring (``bench/``), or keeping anything: its directory can be thrown away.

It is a command, not a script beside the product: it types what a person would type, through the same ``main``, so
that it shows the commands it runs and is checked and tested like them. A rack without this repository has it too.

Rules:

* It runs as often as one likes in the same directory: token, keys and configuration are kept, the batch is signed anew.
* The daemon it starts, it stops: however the demonstration ends.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from appliance import wire
from appliance.algorithms import SIGNATURE_LEN, SM2_DEFAULT_ID, PublicKey, signature_to_der
from appliance.cli import demo_seals, target
from appliance.cli.files import write_durably
from appliance.cli.officer import spki_pem
from appliance.cli.setup import initialise
from appliance.cli.show import Answer, Screen, Table, fields
from appliance.cli.signing import Hasher
from appliance.cli.stream import SyntheticSource, job_path_of
from appliance.cli.target import Officer, run
from appliance.cli.typist import Commands, Typist
from appliance.client import Client
from appliance.errors import ApplianceError, NotFound, SignerFailed, Unavailable
from appliance.settings import Settings, load_settings

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
VERIFY_ITEMS: Final = 1_024
VERIFY_IN_FLIGHT: Final = 4
SEALED_ITEMS: Final = 5_000
"""Each complete value has the whole seal in it, some 20 kB, and the demonstration keeps them all."""
OPENSSL_SAMPLE: Final = 25
"""Each is a process of its own; enough to see that it is not luck."""


@dataclass(frozen=True, slots=True)
class Act:
    """One key and what is shown with it."""

    key: str
    token: str
    algorithm: str
    openssl: tuple[str, ...]
    """How OpenSSL is told to verify; key, signature and message files follow."""
    openssl_verify: tuple[str, ...] = ()
    """What ``openssl verify`` needs besides."""


ACTS: Final = (
    Act("demo-p256", "softhsm2", "ecdsa-p256-sha256", ("dgst", "-sha256")),
    # OpenSSL knows no default user ID (GB/T 35276): it must be told.
    Act(
        "demo-sm2",
        "firmware-sim",
        "sm2-sm3",
        ("dgst", "-sm3", "-sigopt", f"distid:{SM2_DEFAULT_ID.decode()}"),
        ("-vfyopt", f"distid:{SM2_DEFAULT_ID.decode()}"),
    ),
)


def add_commands(groups: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add ``demo`` to the parser."""
    command = groups.add_parser(
        "demo",
        parents=parents,
        help="show it all: token, daemon, a batch of signatures, verified by OpenSSL",
        description="Make a demonstration token, start a daemon, sign a batch, verify it, stop the daemon.",
    )
    command.set_defaults(run=partial(_demo, groups.choices))
    command.add_argument(
        "--directory", metavar="DIR", type=Path, default=Path(".demo"), help="default: %(default)s"
    )
    command.add_argument(
        "--simulated-hsm", metavar="MODULE", type=Path, help="also show SM2, on a token of firmware-sim"
    )
    command.add_argument("--items", metavar="N", type=int, default=20_000, help="default: %(default)s")


def _demo(commands: Commands, args: argparse.Namespace, screen: Screen) -> Answer:
    began_at = time.monotonic()
    directory: Path = args.directory
    config = directory / "appliance.yaml"
    if shutil.which("openssl") is None:
        raise Unavailable("OpenSSL's program is not installed", hint="apt-get install openssl")
    typist = Typist(commands, config, screen)
    screen.heading("A token and a configuration")
    simulated = f" --simulated-hsm {args.simulated_hsm}" if args.simulated_hsm is not None else ""
    screen.note(f"$ cloud-seal init --directory {directory} --demo-token{simulated}")
    steps = initialise(
        directory, demo_token=True, simulator=args.simulated_hsm, health=f"127.0.0.1:{_free_port()}"
    )
    made = sum(step["done"] == "made" for step in steps)
    screen.note(f"{made} things made, {len(steps) - made} kept")
    settings = load_settings(config)
    tokens = {token.profile.stem for token in settings.tokens}
    if args.simulated_hsm is not None and "firmware-sim" not in tokens:
        screen.note(f"{directory} was made without the simulated HSM; remove it to see SM2 too")
    screen.heading("The daemon")
    acts = [act for act in ACTS if act.token in tokens]
    with running_daemon(config, settings, screen) as daemon:
        results = [_play(act, directory, settings, args.items, typist) for act in acts]
        for act in acts:
            _certify(act, directory, settings, typist)
        demo_seals.make_certificates(_stage(acts[-1], directory, settings, typist))
    _check_end(daemon, directory, screen)
    demo_seals.configure(directory, _free_port())
    settings = load_settings(config)
    screen.heading("The daemon again, now as a maker of seals")
    with demo_seals.receiver(settings), running_daemon(config, settings, screen) as daemon:
        sealing = _play_seal(
            _stage(acts[-1], directory, settings, typist), min(args.items, SEALED_ITEMS), target.login_name()
        )
        screen.heading("How the appliance is")
        typist.run("status")
        counted = _metrics(settings)
    screen.heading("The end")
    _check_end(daemon, directory, screen)
    document = {
        "results": results,
        "seal": sealing,
        "metrics": counted,
        "daemon_exit_code": daemon.returncode,
        "elapsed_s": round(time.monotonic() - began_at, 1),
    }
    return Answer(document, [_summary(results, document)])


def _stage(act: Act, directory: Path, settings: Settings, typist: Typist) -> demo_seals.Stage:
    return demo_seals.Stage(typist, directory, settings, act.token, act.algorithm)


def _check_end(daemon: subprocess.Popen[bytes], directory: Path, screen: Screen) -> None:
    screen.note(
        f"SIGTERM: what was accepted was finished; cloud-seald ended with exit code {daemon.returncode}"
    )
    if daemon.returncode != 0:
        raise Unavailable(
            f"the daemon ended with {daemon.returncode}", hint=f"see {directory / 'daemon.log'}"
        )


def _summary(results: Sequence[dict[str, Any]], document: dict[str, Any]) -> Table:
    rows = []
    for result in results:
        rows += [
            ["key", f"{result['key']} ({result['algorithm']}), made in {result['token']}, never leaves it"],
            ["signed", f"{result['items']:,} at {result['per_second']:,.0f}/s, {result['failed']} failed"],
            ["verified here", f"{result['verified']:,} at {result['verified_per_second']:,.0f}/s"],
            [
                "verified by OpenSSL",
                f"{result['openssl_verified']} of a sample of {result['openssl_sample']}",
            ],
        ]
    seal = document["seal"]
    rows += [
        ["seal", f"{seal['code']}, {seal['name']}: applied for, made by two, filed, activated, cancelled"],
        ["sealed", f"{seal['sealed']:,} SES_Signature at {seal['sealed_per_second']:,.0f}/s"],
        ["verified here", f"{seal['verified']:,} at {seal['verified_per_second']:,.0f}/s"],
        ["verified by OpenSSL", f"{seal['openssl_verified']} of a sample of {seal['openssl_sample']}"],
        ["while suspended", f"refused: {seal['while_suspended']}"],
        ["while its password changed", f"{seal['sealed_while_rotating']:,} sealed, none lost"],
    ]
    rows.append(["daemon", f"drained, exit code {document['daemon_exit_code']}"])
    rows.append(["took", f"{document['elapsed_s']} s"])
    return fields("demonstration", rows)


# One key ----------------------------------------------------------------------------------------------------


def _play(act: Act, directory: Path, settings: Settings, items: int, typist: Typist) -> dict[str, Any]:
    screen = typist.screen
    screen.heading(f"A key in the token: {act.algorithm}")
    assert settings.web.officer_socket is not None
    officer = Officer(settings.web.officer_socket)
    try:
        record = officer.call("GET", "keys", act.key)
        screen.note(f"{act.key} was made by an earlier run, in the same token")
    except NotFound:
        typist.run("key", "create", act.key, "--algorithm", act.algorithm, "--token", act.token)
        record = officer.call("GET", "keys", act.key)
    pem_path = directory / f"{act.key}.pem"
    write_durably(pem_path, f"{spki_pem(record)}\n".encode())

    screen.heading(f"A batch of {items:,} signatures")
    out = directory / f"{act.key}.signatures"
    for stale in (
        job_path_of(out),
        out,
    ):  # the job file first: an output without one is refused, not continued
        stale.unlink(missing_ok=True)
    count = str(items)
    job = typist.run(
        "stream", "--key", act.key, "--synthetic", count, "--out", str(out), "--format", "binary"
    )

    screen.heading("Verified")
    signatures = out.read_bytes()
    key = PublicKey.from_spki(base64.b64decode(record["spki"]))
    verified_s = run(_verify_all(settings, act.key, key, signatures, items, screen))
    sample = _openssl_sample(act, pem_path, signatures, items)
    screen.note(f"OpenSSL verified {sample} of {sample} taken from all over the batch:")
    screen.note(f"  openssl {' '.join(act.openssl)} -verify {pem_path} -signature … …")
    return {
        "key": act.key,
        "token": act.token,
        "algorithm": act.algorithm,
        "items": items,
        "failed": job["failed"],
        "per_second": job["per_second"],
        "batch_latency_ms": job["batch_latency_ms"],
        "verified": items,
        "verified_per_second": round(items / verified_s, 1),
        "openssl_sample": sample,
        "openssl_verified": sample,
    }


def _certify(act: Act, directory: Path, settings: Settings, typist: Typist) -> None:
    """A certificate for the key, from a small CA whose key lies in the same token; OpenSSL checks it."""
    screen = typist.screen
    screen.heading(f"A certificate: {act.algorithm}")
    ca = f"{act.key}-ca"
    assert settings.web.officer_socket is not None
    try:
        Officer(settings.web.officer_socket).call("GET", "keys", ca)
    except NotFound:
        typist.run("key", "create", ca, "--algorithm", act.algorithm)
    root, request, leaf = (str(directory / f"{act.key}.{end}") for end in ("root.pem", "csr", "crt"))
    typist.run("ca", "root", ca, "--subject", f"C=CN, O=cloud-seal, CN={ca}", "--out", root)
    typist.run(
        "key", "request", act.key, "--subject", "C=CN, O=演示公司, CN=演示公司合同专用章", "--out", request
    )
    typist.run("ca", "issue", ca, "--root", root, "--request", request, "--out", leaf)
    command = ("openssl", "verify", *act.openssl_verify, "-CAfile", root, leaf)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SignerFailed("OpenSSL does not verify the certificate", hint=done.stderr.strip())
    screen.note(f"OpenSSL: {done.stdout.strip()}")


def _play_seal(stage: demo_seals.Stage, items: int, account: str) -> dict[str, Any]:
    """A seal's whole life."""
    demo_seals.enter_people(stage)
    seal = demo_seals.make_seal(stage, account)
    used = demo_seals.use_seal(stage, str(seal["sealId"]), account, items)
    demo_seals.end_seal(stage, str(seal["sealId"]))
    return {"code": seal["sealCode"], "name": seal["sealName"], **used}


async def _verify_all(
    settings: Settings, name: str, key: PublicKey, signatures: bytes, items: int, screen: Screen
) -> float:
    """All of them, by the appliance (in software, from the public key); the seconds it took."""
    hasher = Hasher(key)
    address = f"unix:{settings.listen.unix_socket}"
    async with await Client.connect(address, account=target.login_name()) as client:
        done = 0

        async def verify_some(firsts: Iterator[int], tell: Callable[[int], None]) -> None:
            nonlocal done
            for first in firsts:  # shared by all: each takes the next batch
                last = min(first + VERIFY_ITEMS, items)
                digests = b"".join(hasher.digest(SyntheticSource.message(i)) for i in range(first, last))
                block = signatures[first * SIGNATURE_LEN : last * SIGNATURE_LEN]
                verdicts = await client.verify(name, wire.digests(digests), block)
                if verdicts.count(1) != last - first:
                    raise SignerFailed(f"signature {first + verdicts.index(0)} is not valid")
                done += last - first
                tell(done)

        began_at = time.perf_counter()
        with screen.progress("verifying", items) as tell:
            firsts = iter(range(0, items, VERIFY_ITEMS))
            async with asyncio.TaskGroup() as group:
                for _ in range(VERIFY_IN_FLIGHT):
                    group.create_task(verify_some(firsts, tell))
        return time.perf_counter() - began_at


def _openssl_sample(act: Act, pem_path: Path, signatures: bytes, items: int) -> int:
    """Some signatures, evenly spread, first and last among them, by OpenSSL's own program; how many."""
    wanted = min(OPENSSL_SAMPLE, items)
    indices = [i * (items - 1) // max(wanted - 1, 1) for i in range(wanted)]
    with tempfile.TemporaryDirectory() as scratch:
        signature_path, message_path = Path(scratch, "signature"), Path(scratch, "message")
        for index in indices:
            raw = signatures[index * SIGNATURE_LEN : (index + 1) * SIGNATURE_LEN]
            signature_path.write_bytes(signature_to_der(raw))
            message_path.write_bytes(SyntheticSource.message(index))
            done = subprocess.run(
                ("openssl", *act.openssl, "-verify", pem_path, "-signature", signature_path, message_path),
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                raise SignerFailed(
                    f"OpenSSL does not verify signature {index}", hint=done.stderr.decode().strip()
                )
    return len(indices)


# The daemon -------------------------------------------------------------------------------------------------


@contextmanager
def running_daemon(config: Path, settings: Settings, screen: Screen) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of our own, ready when this is entered and stopped when it is left."""
    program = Path(sys.executable).parent / "cloud-seald"
    command = [str(program), "--config", str(config)]
    if os.geteuid() == 0:
        command.append("--allow-root")  # a container knows no other user; a rack does, and must not
    screen.note(f"$ cloud-seald {' '.join(command[1:])}")
    log_path = config.parent / "daemon.log"
    with log_path.open("wb") as log:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(daemon, settings, log_path)
            screen.note(f"ready; its log is {log_path}")
            yield daemon
        finally:
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_ready(daemon: subprocess.Popen[bytes], settings: Settings, log_path: Path) -> None:
    assert settings.web.officer_socket is not None
    officer = Officer(settings.web.officer_socket)
    ends_at = time.monotonic() + START_TIMEOUT_S
    state: object = "not listening"
    while time.monotonic() < ends_at:
        if daemon.poll() is not None:
            said = log_path.read_text(errors="replace").strip().splitlines()
            raise Unavailable(
                f"the daemon ended with {daemon.returncode} instead of starting: {said[-1] if said else 'no word'}",
                hint=f"see {log_path}",
            )
        try:
            state = officer.call("GET", "status")["state"]
        except ApplianceError:
            pass  # it does not listen yet
        else:
            if state == "ready":
                return
        time.sleep(POLL_S)
    raise Unavailable(f"the daemon was not ready in {START_TIMEOUT_S:g} s: {state}", hint=f"see {log_path}")


def _free_port() -> int:
    """A port nobody listens on: a demonstration must not be in the way of an appliance."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _metrics(settings: Settings) -> dict[str, float]:
    """What the daemon itself counted, as Prometheus would read it."""
    with urllib.request.urlopen(f"http://{settings.web.health}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    counted = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("cloudseal_") and "_bucket" not in name:
            counted[name] = float(value)
    return counted
