"""Seals that are in use, written into a registry without an office: for tests and measurements of sealing.

Everything is real but the people: keys, certificates, the maker's signature, the records.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import argon2
from eseal.pki import Holder
from registry.seals import seal as described

from appliance import certificates
from appliance.algorithms import Algorithm
from appliance.eseal.structures import Picture, Version, assemble_seal, seal_info_to_sign
from appliance.lifecycle import (
    Act,
    Event,
    Generation,
    Imprint,
    Operation,
    Organisation,
    ProtectionPassword,
    Seal,
    SealGrant,
    State,
    transition,
)
from appliance.policy import HeldKey
from appliance.registry import Registry, Step
from appliance.verifying import sm3

ORGANISATION = Organisation("91330100MA27XYZ12Q", "杭州某某科技有限公司", "330100")
PASSWORD = "Seal-password-17"
ROOT = Holder("volume root", is_ca=True, days=3650)
MAKER = Holder("volume maker", issuer=ROOT)


def instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Made:
    """What a seal was made of."""

    seal: Seal
    generation: Generation
    key: HeldKey


def certificate_for(key: HeldKey, name: str = "signer", **options: Any) -> bytes:
    """Of the test's root, for a key whose private half lies in a token."""
    to_sign = certificates.certificate_to_sign(
        public=key.public,
        subject=certificates.parse_subject(f"C=CN, O=测试, CN={name}"),
        issuer=certificates.subject_of(ROOT.certificate),
        issuer_public=ROOT.key.public,
        serial=random.Random(name).getrandbits(60),
        not_before=datetime.now(UTC) - timedelta(days=1),
        days=365,
        is_ca=False,
        **options,
    )
    return certificates.assemble_certificate(to_sign, ROOT.key.public, ROOT.key.sign(to_sign))


def eseal_of(
    code: str, certificate: bytes, begins: datetime, ends: datetime, picture_len: int, version: Version
) -> bytes:
    """The certified seal."""
    picture = Picture("png", random.Random(code).randbytes(picture_len), 42, 42)
    info = seal_info_to_sign(
        version, "cloud-seal", code, 2, ORGANISATION.name, [certificate], begins, begins, ends, picture
    )
    return assemble_seal(info, MAKER.certificate, Algorithm.SM2_SM3, MAKER.key.sign(info))


def make(
    registry: Registry,
    key: HeldKey,
    id_: str = "seal-1",
    *,
    certificate: bytes = b"",
    picture_len: int = 30_000,
    version: Version = Version.GBT_38540_2020,
    valid_s: float = 86_400 * 300,
    purpose: str = "contract",
    number: int = 1,
) -> Made:
    """An active seal; ``key`` is on record already, or will be."""
    now = datetime.now(UTC).replace(microsecond=0)
    begins, ends = now - timedelta(hours=1), now + timedelta(seconds=valid_s)
    registry.seals.add_organisation(ORGANISATION)
    seal = registry.seals.apply(
        described(
            id_,
            organisation=ORGANISATION.code,
            purpose=purpose,
            number=number,
            name=ORGANISATION.name,
            region=ORGANISATION.region,
            applied_at=instant(begins),
        ),
        Imprint("png", b"picture", 42, 42, sm3(b"picture")),
        {},
        Event(id_, instant(begins), "apply", None, State.APPLIED, "li", None, {}),
    )
    seal = advance(registry, seal, Act.REVIEW)
    certificate = certificate or certificate_for(key, id_)
    code = registry.seals.next_code(seal.region)
    eseal = eseal_of(code, certificate, begins, ends, picture_len, version)
    generation = Generation(
        id_, 1, key.name, certificate, eseal, instant(begins), instant(ends), instant(now)
    )
    changes = {
        "code": code,
        "generation": 1,
        "key_name": key.name,
        "valid_from": generation.valid_from,
        "valid_to": generation.valid_to,
        "made_at": instant(now),
    }
    seal = advance(registry, seal, Act.MAKE, changes=changes, generation=generation)
    seal = advance(registry, seal, Act.FILE)
    hashed = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    first = ProtectionPassword(id_, hashed, seal.custodian, instant(now), 0, False, 1)
    seal = advance(registry, seal, Act.ACTIVATE, changes={"activated_at": instant(now)}, password=first)
    return Made(seal, generation, key)


def advance(registry: Registry, seal: Seal, act: Act, **more: Any) -> Seal:
    """The act, as the table has it."""
    row = transition(seal.state, act)
    event = Event(seal.id, instant(datetime.now(UTC)), act.value, seal.state, row.target, "zhang", None, {})
    return registry.seals.advance(
        Step(seal.id, seal.version, seal.state, row.target, more.pop("changes", {}), event, **more)
    )


EVERYTHING = frozenset(Operation)
ANYTHING = SealGrant(
    "approvals", "seal-1", EVERYTHING, 0, 0, None, None, (), None, "2026-01-01T00:00:00.000+00:00"
)


def grant(registry: Registry, account: str, seal_id: str = "seal-1", **changes: Any) -> SealGrant:
    """What the account may do from now on."""
    made = replace(ANYTHING, account=account, seal_id=seal_id, **changes)
    registry.grants.put(made)
    return made
