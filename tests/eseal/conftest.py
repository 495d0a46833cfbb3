"""The vectors, and a verifier that all share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.eseal.chains import Trust
from appliance.eseal.verification import ACTIVE, Examiner, Standing, Status
from appliance.verifying import Verifier

VECTORS = Path(__file__).parent / "vectors"
MANIFEST: dict[str, dict[str, Any]] = json.loads((VECTORS / "manifest.json").read_text())["vectors"]
ROOTS = ("root", "root256")
DOCUMENT = (VECTORS / "document.txt").read_bytes()


@dataclass(frozen=True)
class Vector:
    """One of the vectors with what the manifest says about it."""

    name: str
    entry: dict[str, Any]

    @property
    def data(self) -> bytes:
        return (VECTORS / f"{self.name}.der").read_bytes()

    @property
    def now(self) -> datetime:
        return datetime.fromisoformat(self.entry["now"])

    @property
    def status(self) -> Status:
        said = self.entry.get("status")
        if said is None:
            return ACTIVE
        return Status(Standing(said["standing"]), datetime.fromisoformat(said["since"]))

    @property
    def trust(self) -> Trust:
        return trust(tuple(self.entry.get("roots", ROOTS)), tuple(self.entry.get("crls", ())))

    def examiner(self, verifier: Verifier, **options: bool) -> Examiner:
        return Examiner(self.trust, verifier, **options)


def trust(roots: tuple[str, ...] = ROOTS, crls: tuple[str, ...] = ()) -> Trust:
    return Trust(
        [(VECTORS / f"{name}.cer").read_bytes() for name in roots],
        crls=[(VECTORS / f"{name}.crl").read_bytes() for name in crls],
    )


def load(name: str) -> Vector:
    return Vector(name, MANIFEST[name])


@pytest.fixture(scope="session")
def verifier() -> Verifier:
    return Verifier()


@pytest.fixture(params=sorted(MANIFEST))
def vector(request: pytest.FixtureRequest) -> Vector:
    return load(request.param)
