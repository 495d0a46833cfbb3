"""Tokens and offices for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from appliance_fixture import SoftToken, bench, pytest_runtest_makereport
from office_rig import MakeRig, Rig, working
from postgres_server import PostgresServer
from simulated_token import Simulated, simulated, simulator

from appliance.algorithms import Algorithm

__all__ = ["bench", "pytest_runtest_makereport", "simulated", "simulator"]


@pytest.fixture(scope="session")
def soft_token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """One SoftHSM2 token for all tests: keys have random IDs."""
    return SoftToken(tmp_path_factory.mktemp("token")).initialise()


@pytest.fixture
def rig(soft_token: SoftToken, tmp_path: Path) -> MakeRig:
    """An office on SoftHSM2 (P-256): ``async with rig() as office_rig``."""

    def make(**changes: Any) -> AbstractAsyncContextManager[Rig]:
        return working(tmp_path, soft_token.profile(), algorithm=Algorithm.ECDSA_P256_SHA256, **changes)

    return make


@pytest.fixture
def postgres_rig(soft_token: SoftToken, tmp_path: Path) -> Iterator[MakeRig]:
    """An office on SoftHSM2 whose registry is a PostgreSQL server's."""
    server = PostgresServer()

    def make(**changes: Any) -> AbstractAsyncContextManager[Rig]:
        algorithm = Algorithm.ECDSA_P256_SHA256
        return working(
            tmp_path, soft_token.profile(), algorithm=algorithm, registry_url=server.url("office"), **changes
        )

    yield make
    server.close()


@pytest.fixture
def sm2_rig(simulated: Simulated, tmp_path: Path) -> MakeRig:
    """An office on firmware-sim (SM2)."""

    def make(**changes: Any) -> AbstractAsyncContextManager[Rig]:
        return working(tmp_path, simulated.make(), algorithm=Algorithm.SM2_SM3, **changes)

    return make
