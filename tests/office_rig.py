"""An office at work, without a daemon around it: a real registry, a real token behind real signer workers, a real CA.

For: ``tests/office``. ``Rig`` is made inside a running loop and closed there.

Rules:

* The calendar is the test's (``rig.today``); the loop's time is real, and nothing waits for it.
* Officers' passwords are hashed as cheaply as Argon2 allows.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from appliance_fixture import PIN, until_async
from appliance_pkcs11.profile import TokenProfile
from PIL import Image, ImageDraw

from appliance import certificates
from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import StateUnknown
from appliance.holdings import Holdings
from appliance.lifecycle import CriticalAct, Kind, Officer, Organisation, Proposal, Role, Seal
from appliance.metrics import Metrics
from appliance.office import Application, Office, OfficeParts
from appliance.office.keys import SealKeys
from appliance.pipeline import Pipeline
from appliance.policy import Account, HeldKey
from appliance.protection import Protection
from appliance.registry import open_registry
from appliance.server import Outbox
from appliance.settings import (
    AuthSettings,
    FilingSettings,
    PasswordSettings,
    SealSettings,
    Settings,
    SignerSettings,
    TimeSettings,
    Url,
)
from appliance.signers import SignerPool
from appliance.verifying import Verifier

CHEAP = {"argon2_memory_kib": 8, "argon2_passes": 1}
PASSWORD = "correct horse battery"
SEAL_PASSWORD = "Seal-password-17"
USCC = "91330100MA27XYW12Q"
OTHER_USCC = "91330100MA27XYW13N"
NAME = "杭州某某有限公司"
REGION = "330100"

OFFICERS: Mapping[str, frozenset[Role]] = {
    "clerk": frozenset({Role.CLERK}),
    "reviewer": frozenset({Role.REVIEWER}),
    "maker": frozenset({Role.MAKER}),
    "maker-2": frozenset({Role.MAKER}),
    "filer": frozenset({Role.FILER}),
    "guard": frozenset({Role.SECURITY}),
    "guard-2": frozenset({Role.SECURITY}),
    "auditor": frozenset({Role.AUDITOR}),
    "keeper": frozenset({Role.CUSTODIAN}),
    "keeper-2": frozenset({Role.CUSTODIAN}),
}


@cache  # compressing it takes longer than most of what is done with it
def imprint(side_px: int = 500, colour: tuple[int, int, int] = (200, 20, 20)) -> bytes:
    """A round seal on a transparent background."""
    image = Image.new("RGBA", (side_px, side_px), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 6, side_px - 6, side_px - 6), outline=(*colour, 255), width=side_px // 14)
    draw.rectangle((side_px // 3, side_px // 2, 2 * side_px // 3, side_px // 2 + 40), fill=(*colour, 255))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass
class Calendar:
    """What the office takes for now."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **much: float) -> None:
        """Later."""
        self.now += timedelta(**much)


MakeRig = Callable[..., AbstractAsyncContextManager["Rig"]]
"""The fixture ``rig``: ``async with rig(**changes of SealSettings) as office``."""


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Rig:
    """The office and everything around it."""

    root: Path
    office: Office
    registry: Any
    holdings: Holdings
    pools: dict[str, SignerPool]
    pipeline: Pipeline
    protection: Protection
    verifier: Verifier
    settings: SealSettings
    today: Calendar
    told: list[tuple[str, str]]
    overdue: list[int]
    gave_up: list[StateUnknown]
    parts: OfficeParts
    people: dict[str, Officer]
    ca: HeldKey
    ca_name: Any
    accounts: dict[str, Account]

    def __getitem__(self, name: str) -> Officer:
        return self.people[name]

    # Certificates

    async def issue(
        self, public: PublicKey, subject: str = "C=CN, O=某某, CN=signer", days: int = 365, **options: Any
    ) -> bytes:
        """By the CA that is trusted, from today on."""
        to_sign = certificates.certificate_to_sign(
            public=public, subject=certificates.parse_subject(subject), issuer=self.ca_name,
            issuer_public=self.ca.public, serial=int.from_bytes(secrets.token_bytes(8), "big"),
            not_before=self.today.now - timedelta(minutes=1), days=days, is_ca=options.pop("is_ca", False), **options,
        )  # fmt: skip
        signature = await self.pipeline.sign_message(self.ca, to_sign)
        return certificates.assemble_certificate(to_sign, self.ca.public, signature)

    # Acts, as far as a test is not about them

    def application(self, **changes: Any) -> Application:
        """A statutory seal of the organisation."""
        plain = Application(
            organisation=USCC, kind=Kind.STATUTORY, name=NAME, custodian="keeper", imprint_format="PNG",
            imprint_data=imprint(), width_mm=42, height_mm=42,
        )  # fmt: skip
        return replace(plain, **changes)

    def contract_seal(self, **changes: Any) -> Application:
        """A special-purpose seal: there may be several."""
        return self.application(kind=Kind.SPECIAL, purpose="合同", name=f"{NAME}合同专用章", **changes)

    def personal_seal(self, **changes: Any) -> Application:
        """One that is no official seal."""
        return self.application(
            kind=Kind.PERSONAL, name="王小明", holder="王小明", imprint_data=imprint(400), width_mm=20, height_mm=20,
            **changes,
        )  # fmt: skip

    async def applied(self, application: Application | None = None) -> Seal:
        return await self.office.apply(self["clerk"], application or self.application())

    async def reviewed(self, application: Application | None = None) -> Seal:
        return await self.office.review(self["reviewer"], (await self.applied(application)).id)

    async def certified(self, application: Application | None = None, days: int = 365) -> Seal:
        """Reviewed, with its key and its certificate."""
        seal = await self.reviewed(application)
        return await self.certify(seal, days)

    async def certify(self, seal: Seal, days: int = 365) -> Seal:
        await self.office.make_key(self["maker"], seal.id)
        subject = f"C=CN, O={seal.name}, CN={seal.name}"
        request = certificates.parse_request(
            (await self.office.certificate_request(self["maker"], seal.id, subject)).encode()
        )
        certificate = await self.issue(request.public, subject, days)
        return await self.office.accept_certificate(
            self["maker"], seal.id, certificates.to_pem("CERTIFICATE", certificate)
        )

    async def made(self, application: Application | None = None, days: int = 365) -> Seal:
        seal = await self.certified(application, days)
        await self.both("maker", "guard", CriticalAct.MAKE, seal)
        return await self.seal(seal)

    async def filed(self, application: Application | None = None, days: int = 365) -> Seal:
        return await self.office.file(self["filer"], (await self.made(application, days)).id, "by hand 1")

    async def active(self, application: Application | None = None, days: int = 365) -> Seal:
        seal = await self.filed(application, days)
        picture = await asyncio.to_thread(self.registry.seals.imprint, seal.id)
        await self.office.confirm(self["clerk"], seal.id, picture.sm3)
        return await self.office.activate(self[seal.custodian], seal.id, SEAL_PASSWORD)

    async def both(self, one: str, another: str, act: CriticalAct, seal: Seal, **arguments: Any) -> Proposal:
        """Propose and approve."""
        proposal = await self.office.propose(self[one], act, seal.id, arguments)
        return await self.office.approve(self[another], proposal.id)

    async def seal(self, seal: Seal | str) -> Seal:
        id_ = seal if isinstance(seal, str) else seal.id
        return await asyncio.to_thread(self.registry.seals.seal, id_)

    async def acts(self, seal: Seal | str) -> list[str]:
        """Its record, as words."""
        id_ = seal if isinstance(seal, str) else seal.id
        return [event.act for event in await asyncio.to_thread(self.registry.seals.events, id_)]

    def again(self, **changes: Any) -> Office:
        """Another office on the same registry, as after a restart."""
        return Office(replace(self.parts, **changes))


@asynccontextmanager
async def working(
    root: Path,
    profile: dict[str, Any],
    *,
    algorithm: Algorithm,
    registry_url: Url | None = None,
    **changes: Any,
) -> AsyncIterator[Rig]:
    """An office with officers, an organisation, a CA, a maker and an account."""
    registry = open_registry(Settings(registry=registry_url or root / "registry.sqlite"))
    holdings = Holdings(registry)
    profile = {**profile, "workers": 1}
    verifier = Verifier(max_table_bytes=1 << 20)
    threads = ThreadPoolExecutor(2)
    metrics = Metrics([profile["name"]])
    clock = time.monotonic
    pool = SignerPool(
        TokenProfile.from_mapping(profile), lambda: PIN.encode(), SignerSettings(), 65_536, verifier, metrics, clock,
        lambda name: holdings.keys.get(name) or holdings.known_seal_key(name), Outbox(),
    )  # fmt: skip
    pools = {pool.name: pool}
    pipeline = Pipeline(holdings, pools, verifier, threads, TimeSettings(), 65_536, clock)
    running = asyncio.create_task(pool.run())
    today = Calendar()
    told: list[tuple[str, str]] = []

    async def announce(kind: str, name: str) -> None:
        told.append((kind, name))

    overdue: list[int] = []
    gave_up: list[StateUnknown] = []
    holdings.announce = announce
    protection = Protection(registry.custody, PasswordSettings(**CHEAP), threads, clock, today, announce)
    accounts: dict[str, Account] = {}
    try:
        await until_async("the token is up", lambda: pool.is_up)
        ca = await holdings.create_key("ca", pool.name, algorithm, pool)
        maker = await holdings.create_key("maker", pool.name, algorithm, pool)
        settings = replace(
            SealSettings(
                maker_key="maker", maker_certificate_file=root / "maker.pem", trust_files=(root / "ca.pem",),
                filing=FilingSettings(first_retry_s=1, max_retry_s=8, rejected_retry_s=60, poll_s=0.05),
            ),
            **changes,
        )  # fmt: skip
        parts = OfficeParts(
            registry, settings, AuthSettings(**CHEAP, failure_delay_s=0.0), protection, accounts, holdings.keys,
            SealKeys(holdings, pools, pipeline.sign_message), verifier, threads, announce, clock, today,
            watch_overdue=overdue.append, give_up=gave_up.append,
        )  # fmt: skip
        office = Office(parts)
        ca_name = certificates.parse_subject("C=CN, O=Test CA, CN=root")
        rig = Rig(
            root, office, registry, holdings, pools, pipeline, protection, verifier, settings, today, told, overdue,
            gave_up, parts, {}, ca, ca_name, accounts,
        )  # fmt: skip
        for name, key, is_ca in (("ca", ca, True), ("maker", maker, False)):
            subject = "C=CN, O=Test CA, CN=root" if is_ca else "C=CN, O=印章制作中心, CN=maker"
            certificate = await rig.issue(key.public, subject, 3_650, is_ca=is_ca)
            (root / f"{name}.pem").write_text(certificates.to_pem("CERTIFICATE", certificate))
        for name, roles in OFFICERS.items():
            rig.people[name] = await office.create_officer(0, name, name.title(), roles, PASSWORD)
        for code in (USCC, OTHER_USCC):
            await office.add_organisation(rig["clerk"], Organisation(code, NAME, REGION))
        account = Account("approval", None, 1000, None, False, frozenset())
        await holdings.create_account(account)
        accounts["approval"] = account
        told.clear()
        yield rig
        await office.close()
    finally:
        pool.stop()
        await running
        threads.shutdown()
        registry.close()
