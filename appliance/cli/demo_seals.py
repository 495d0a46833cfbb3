"""The demonstration's second half: an organisation's seal, from application to activation, and what it does then.

For: ``demo``. Officers, a CA and a maker are there after the first run; each run makes one more special-purpose seal of
the same organisation, which is what numbers are for, and cancels it at the end.
Not for: production; the demonstration's officers are all played by whoever runs it, from password files beside it.

The part of the public security is played by a small HTTP receiver in this process.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

from appliance.algorithms import SM2_DEFAULT_ID, Algorithm, PublicKey
from appliance.certificates import to_pem
from appliance.cli.drawing import draw_demo_imprint
from appliance.cli.files import write_durably
from appliance.cli.setup import with_line
from appliance.cli.target import Officer, run
from appliance.cli.typist import Typist
from appliance.client import Client
from appliance.errors import ApplianceError, NotFound, SignerFailed, Unavailable
from appliance.eseal.structures import read_signature
from appliance.settings import Settings, split_address
from appliance.verifying import sm3
from appliance.wire import ItemStatus
from appliance.wire_seals import SealVerdict

ORGANISATION: Final = "91330100MA27DEMA0X"
ORGANISATION_NAME: Final = "杭州云章演示有限公司"
REGION: Final = "330100"
SIZE_MM: Final = 42
DEMO_CA: Final = "demo-seal-ca"
DEMO_MAKER: Final = "demo-maker"
"""The keys, and the names of the certificates, of the demonstration's CA and seal maker."""
FILING_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.05
"""Between looks at a seal that is being filed: each look is a command with a log-in, which takes longer."""
BATCH_ITEMS: Final = 256
OPENSSL_SAMPLE: Final = 25
"""Each is a process of its own; enough to see that it is not luck."""
MAX_FILING_LEN: Final = 1 << 20

OFFICERS: Final = {
    "chen": ("陈经办", ("clerk",)),
    "li": ("李审核", ("reviewer",)),
    "zhao": ("赵制作", ("maker",)),
    "qian": ("钱安全", ("security",)),
    "sun": ("孙安全", ("security",)),
    "zhou": ("周保管", ("custodian",)),
}
"""Who acts: the name they log in with, their own name, what they are trusted with."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it is played, and by whom."""

    typist: Typist
    directory: Path
    settings: Settings
    token: str
    algorithm: str

    def path(self, name: str) -> Path:
        """A file of the demonstration's."""
        return self.directory / name

    def secret(self, name: str) -> Path:
        """A password file; made at random where there is none."""
        path = self.directory / "secrets" / f"{name}.password"
        if not path.exists():
            write_durably(path, f"{secrets.token_urlsafe(18)}-A1\n".encode(), mode=0o600)
        return path

    def act(self, officer: str, *words: str, quiet: bool = True) -> Any:
        """Type a command as that officer."""
        return self.typist.run(
            *words, "--officer", officer, "--officer-password-file", str(self.secret(officer)), quiet=quiet
        )


# What is there after the first run ---------------------------------------------------------------------------


def make_certificates(stage: Stage) -> None:
    """A CA and a seal maker, whose keys lie in the token; then the configuration that names them."""
    stage.typist.screen.heading("A CA and a seal maker")
    root, request = stage.path(f"{DEMO_CA}.pem"), stage.path(f"{DEMO_MAKER}.csr")
    certificate = stage.path(f"{DEMO_MAKER}.pem")
    if certificate.exists():
        stage.typist.screen.note("made by an earlier run, in the same token")
        return
    for key in (DEMO_CA, DEMO_MAKER):
        if not _has_key(stage, key):
            where = ("--algorithm", stage.algorithm, "--token", stage.token)
            stage.typist.run("key", "create", key, *where, quiet=True)
    subject = f"C=CN, O=cloud-seal, CN={DEMO_CA}"
    stage.typist.run("ca", "root", DEMO_CA, "--subject", subject, "--out", str(root), quiet=True)
    subject = "C=CN, O=cloud-seal, CN=演示制章机构"
    stage.typist.run("key", "request", DEMO_MAKER, "--subject", subject, "--out", str(request), quiet=True)
    issue(stage, request, certificate)


def configure(directory: Path, filing_port: int) -> None:
    """Name them in the configuration, as an operator would; nothing where that is done."""
    config = directory / "appliance.yaml"
    text = config.read_text()
    if f"\n  maker_key: {DEMO_MAKER}\n" in text:
        return
    unset = "null: messages wait, and are filed by hand.\n    url: "
    text = with_line(text, "  maker_key: null\n", f"  maker_key: {DEMO_MAKER}\n")
    text = with_line(
        text, "  maker_certificate_file: null\n", f"  maker_certificate_file: {DEMO_MAKER}.pem\n"
    )
    text = with_line(text, "  trust_files: []\n", f"  trust_files: [{DEMO_CA}.pem]\n")
    text = with_line(text, f"{unset}null\n", f"{unset}http://127.0.0.1:{filing_port}/filing\n")
    write_durably(config, text.encode())


def enter_people(stage: Stage) -> None:
    """Officers and the organisation, where an earlier run has not."""
    stage.typist.screen.heading("Officers, and an organisation")
    known = {one["officer"] for one in stage.typist.run("officer", "list", quiet=True)["officers"]}
    for name, (display_name, roles) in OFFICERS.items():
        if name not in known:
            trusted = [word for role in roles for word in ("--role", role)]
            words = ("--display-name", display_name, *trusted, "--password-file", str(stage.secret(name)))
            stage.typist.run("officer", "create", name, *words, quiet=True)
    try:
        stage.act("chen", "organisation", "show", ORGANISATION)
    except NotFound:
        words = ("--name", ORGANISATION_NAME, "--region", REGION)
        stage.act("chen", "organisation", "add", ORGANISATION, *words)


def issue(stage: Stage, request: Path, certificate: Path) -> None:
    """The demonstration's CA issues a certificate."""
    root = stage.path(f"{DEMO_CA}.pem")
    stage.typist.run(
        "ca",
        "issue",
        DEMO_CA,
        "--root",
        str(root),
        "--request",
        str(request),
        "--out",
        str(certificate),
        quiet=True,
    )


def _has_key(stage: Stage, name: str) -> bool:
    assert stage.settings.web.officer_socket is not None
    try:
        Officer(stage.settings.web.officer_socket).call("GET", "keys", name)
    except NotFound:
        return False
    return True


# A seal's life -----------------------------------------------------------------------------------------------


def make_seal(stage: Stage, account: str) -> dict[str, Any]:
    """From the application to a seal that the account may use; the seal's record."""
    screen = stage.typist.screen
    screen.heading("A seal: applied for, reviewed, made by two, filed, confirmed, taken over")
    imprint = stage.path("imprint.png")
    write_durably(
        imprint,
        draw_demo_imprint(ORGANISATION_NAME, stage.settings.seals.font_file, SIZE_MM, "合同专用章"),
    )
    seal = stage.act(
        "chen", "seal", "apply", "--organisation", ORGANISATION, "--kind", "special", "--purpose", "合同专用章",
        "--name", f"{ORGANISATION_NAME}合同专用章", "--custodian", "zhou", "--imprint", str(imprint),
        "--width", str(SIZE_MM), "--height", str(SIZE_MM), "--paper", "营业执照", "--paper", "授权委托书",
    )  # fmt: skip
    seal_id = str(seal["sealId"])
    stage.act("li", "seal", "review", seal_id, "--note", "材料齐全")
    stage.act("zhao", "seal", "key", seal_id, "--algorithm", stage.algorithm, "--token", stage.token)
    request, certificate = stage.path("seal.csr"), stage.path("seal.pem")
    subject = f"C=CN, O={ORGANISATION_NAME}, CN={ORGANISATION_NAME}合同专用章"
    stage.act("zhao", "seal", "request", seal_id, "--subject", subject, "--out", str(request))
    issue(stage, request, certificate)
    stage.act("zhao", "seal", "certificate", seal_id, "--certificate", str(certificate))
    proposal = stage.act("zhao", "proposal", "make", seal_id)
    stage.act("qian", "proposal", "approve", str(proposal["proposalId"]))
    _wait_for(stage, seal_id, "filed")
    screen.note("the public security's receiver has given a receipt: filed")
    stage.act("chen", "seal", "confirm", seal_id, "--imprint", str(imprint))
    stage.act("zhou", "seal", "activate", seal_id, "--password-file", str(stage.secret("seal-1")))
    proposal = stage.act("zhou", "grant", "give", account, seal_id, "--propose")
    stage.act("qian", "proposal", "approve", str(proposal["proposalId"]))
    found: dict[str, Any] = stage.act("zhou", "seal", "show", seal_id, quiet=False)
    paper = stage.path("making-certificate.pdf")
    stage.act("chen", "seal", "document", seal_id, "--pdf", "--out", str(paper), quiet=False)
    return found


def use_seal(stage: Stage, seal_id: str, account: str, items: int) -> dict[str, Any]:
    """Unlock it, seal a batch, verify it; stop the seal and start it again; change its password under a job."""
    screen = stage.typist.screen
    screen.heading(f"{items:,} documents sealed")
    password = stage.secret("seal-1")
    stage.typist.run("seal", "unlock", seal_id, "--seal-password-file", str(password), quiet=True)
    began_at = time.perf_counter()
    values = run(_seal_all(stage, account, seal_id, items))
    sealed_s = time.perf_counter() - began_at
    lengths = {len(value) for value in values}
    screen.note(
        f"{items:,} complete SES_Signature values (GB/T 38540-2020) of {min(lengths):,} to {max(lengths):,} bytes"
    )

    screen.heading("Verified")
    verified, verified_s = run(_verify(stage, account, values))
    by_openssl = _openssl_sample(stage, values)
    screen.note(
        f"OpenSSL verified {by_openssl} of {by_openssl} taken from all over the batch, under the seal's certificate"
    )
    example, signature = stage.path("contract.txt"), stage.path("contract.txt.ses")
    write_durably(example, "甲方与乙方签订本合同。\n".encode())
    stage.typist.run("seal", "sign", seal_id, str(example), "--force")
    stage.typist.run("seal", "verify", str(example))
    screen.note(f"the seal signature is in {signature}")

    screen.heading("Stopped at once")
    stage.act("qian", "seal", "suspend", seal_id, "--reason", "演示停用")
    refusal = _refused(stage, lambda: stage.typist.run("seal", "sign", seal_id, str(example), "--force"))
    stage.act("qian", "seal", "resume", seal_id, "--reason", "演示恢复")

    screen.heading("The protection password is changed while a job runs")
    changed = stage.secret(f"seal-{secrets.token_hex(4)}")

    def rotate() -> None:
        old, new = ("--old-password-file", str(password)), ("--password-file", str(changed))
        stage.act("zhou", "seal", "rotate", seal_id, *old, *new)

    during = run(_seal_during(stage, account, seal_id, items, rotate))
    changed.replace(password)
    screen.note(f"{during:,} sealed before, during and after the change: none lost, none twice")
    return {
        "seal": seal_id,
        "items": items,
        "sealed": len(values),
        "sealed_per_second": round(items / sealed_s, 1),
        "verified": verified,
        "verified_per_second": round(items / verified_s, 1),
        "openssl_verified": by_openssl,
        "openssl_sample": min(OPENSSL_SAMPLE, items),
        "while_suspended": refusal,
        "sealed_while_rotating": during,
    }


def _address(stage: Stage) -> str:
    return f"unix:{stage.settings.listen.unix_socket}"


def _document(index: int) -> tuple[bytes, str]:
    """A document's SM3, and where it lies."""
    return sm3(b"document %d" % index), f"/document/{index}"


async def _seal_all(stage: Stage, account: str, seal_id: str, items: int) -> list[bytes]:
    """The complete values, in order."""

    async def documents() -> AsyncIterator[tuple[bytes, str]]:
        for index in range(items):
            yield _document(index)

    values: list[bytes] = []
    with stage.typist.screen.progress("sealing", items) as tell:
        await _seal(stage, account, seal_id, documents(), values.append, tell)
    if len(values) != items:
        raise SignerFailed(f"{items} documents were given, {len(values)} sealed", hint="this is a defect")
    return values


async def _seal_during(stage: Stage, account: str, seal_id: str, items: int, act: Callable[[], None]) -> int:
    """One job around an act: it begins once the first documents are sealed, and as many as ``items`` follow it."""
    began = asyncio.Event()
    given = 0

    async def documents() -> AsyncIterator[tuple[bytes, str]]:
        nonlocal given
        for given in range(1, BATCH_ITEMS + 1):
            yield _document(given)
        await began.wait()
        doing = asyncio.create_task(asyncio.to_thread(act))
        while not doing.done():
            given += 1
            yield _document(given)
        await doing
        for _ in range(items):
            given += 1
            yield _document(given)

    sealed = 0

    def count(value: bytes) -> None:
        nonlocal sealed
        sealed += 1
        began.set()

    with stage.typist.screen.progress("sealing", None) as tell:
        await _seal(stage, account, seal_id, documents(), count, tell)
    if sealed != given:
        raise SignerFailed(f"{given} documents were given, {sealed} sealed", hint="this is a defect")
    return sealed


async def _seal(
    stage: Stage,
    account: str,
    seal_id: str,
    documents: AsyncIterable[tuple[bytes, str]],
    keep: Callable[[bytes], None],
    tell: Callable[[int], None],
) -> None:
    """A job of one stream: each document sealed exactly once, in order."""
    async with await Client.connect(_address(stage), account=account) as client:
        stream = client.seal_stream(seal_id, documents, batch_items=BATCH_ITEMS)
        expected = 0
        async with aclosing(stream) as receipts:
            async for receipt in receipts:
                if receipt.status is not ItemStatus.SIGNED or receipt.index != expected:
                    raise SignerFailed(f"document {expected} was not sealed", hint="see the daemon's log")
                keep(receipt.value)
                expected += 1
                if expected % BATCH_ITEMS == 0:
                    tell(expected)
        tell(expected)


async def _verify(stage: Stage, account: str, values: Sequence[bytes]) -> tuple[int, float]:
    """By the appliance: how many are good, and the seconds it took."""
    pairs = [(value, _document(index)[0]) for index, value in enumerate(values)]
    async with await Client.connect(_address(stage), account=account) as client:
        began_at = time.perf_counter()
        found = await client.verify_seals(pairs)
        took_s = time.perf_counter() - began_at
    bad = [index for index, one in enumerate(found) if one.verdict is not SealVerdict.GOOD]
    if bad:
        raise SignerFailed(f"seal signature {bad[0]} is {found[bad[0]].verdict.name.lower()}")
    return len(found), took_s


def _openssl_sample(stage: Stage, values: Sequence[bytes]) -> int:
    """Some of them, evenly spread, by OpenSSL's own program: the signature over TBS_Sign, under the certificate."""
    wanted = min(OPENSSL_SAMPLE, len(values))
    is_sm2 = stage.algorithm == Algorithm.SM2_SM3.label
    how = ("-sm3", "-sigopt", f"distid:{SM2_DEFAULT_ID.decode()}") if is_sm2 else ("-sha256",)
    with tempfile.TemporaryDirectory() as scratch:
        key, signature, message = (Path(scratch, name) for name in ("key.pem", "signature", "tbs"))
        for i in range(wanted):
            parsed = read_signature(values[i * (len(values) - 1) // max(wanted - 1, 1)])
            key.write_text(to_pem("PUBLIC KEY", PublicKey.from_certificate(parsed.certificate).spki()))
            signature.write_bytes(parsed.signature)
            message.write_bytes(parsed.tbs)
            command = ("openssl", "dgst", *how, "-verify", key, "-signature", signature, message)
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0:
                raise SignerFailed(
                    "OpenSSL does not verify a seal signature", hint=done.stderr.decode().strip()
                )
    return wanted


def _refused(stage: Stage, attempt: Callable[[], object]) -> str:
    """What the appliance says to an attempt that must not succeed."""
    try:
        attempt()
    except ApplianceError as error:
        stage.typist.screen.note(f"refused, as it must be: {error}")
        return error.label
    raise Unavailable("a suspended seal was used", hint="this is a defect")


def end_seal(stage: Stage, seal_id: str) -> None:
    """Cancelled by two; what remains is the record."""
    stage.typist.screen.heading("The seal's end")
    proposal = stage.act(
        "qian", "proposal", "cancel", seal_id, "--cause", "withdrawn", "--reason", "演示结束，不再使用"
    )
    stage.act("sun", "proposal", "approve", str(proposal["proposalId"]))
    stage.act("qian", "seal", "events", seal_id, quiet=False)


def _wait_for(stage: Stage, seal_id: str, state: str) -> None:
    ends_at = time.monotonic() + FILING_TIMEOUT_S
    while (now := stage.act("chen", "seal", "show", seal_id)["sealState"]) != state:
        if time.monotonic() > ends_at:
            raise Unavailable(
                f"the seal is {now} and not {state} after {FILING_TIMEOUT_S:g} s", hint="see the daemon's log"
            )
        time.sleep(POLL_S)  # the daemon tells nobody when a receipt has come; a person would look again, too


# The public security -----------------------------------------------------------------------------------------


class _Receiver(BaseHTTPRequestHandler):
    """Takes every message, once for each idempotency key, and gives a receipt."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.read(min(length, MAX_FILING_LEN))
        receipt = json.dumps({"receipt": f"BA-{secrets.token_hex(6)}"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(receipt)))
        self.end_headers()
        self.wfile.write(receipt)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
        """The daemon's log tells what was filed."""


@contextmanager
def receiver(settings: Settings) -> Iterator[None]:
    """The public security's part, on loopback, while this is entered."""
    url = settings.seals.filing.url
    if url is None:
        yield
        return
    server = ThreadingHTTPServer(split_address(url.split("/")[2]), _Receiver)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
