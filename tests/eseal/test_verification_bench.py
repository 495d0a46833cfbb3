"""What verifying costs. A normal run looks that it still works; ``pytest --benchmark-only`` measures.

On one core of the machine that the project's figures are from, busy with other things: 8 to 12 us a signature by the
batch, 0.25 to 0.4 ms one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from appliance.eseal.batches import Item, verify_many
from appliance.eseal.chains import Trust
from appliance.eseal.structures import (
    Picture,
    Version,
    assemble_seal,
    assemble_signature,
    read_signature,
    seal_info_to_sign,
    tbs_to_sign,
)
from appliance.eseal.verification import ACTIVE, Examiner, Verdict
from appliance.verifying import Verifier

from .pki import SM2, Holder

AT = datetime(2026, 6, 1, tzinfo=UTC)
NOW = AT + timedelta(days=1)
COUNT = 256
ROOT = Holder("root", is_ca=True)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Signatures under one seal with a picture of 16 kB."""
    maker, signer = Holder("maker", issuer=ROOT), Holder("signer", issuer=ROOT)
    version = Version.GBT_38540_2020
    info = seal_info_to_sign(
        version, "vendor", "33010600000001", 1, "印章", [signer.certificate], AT, AT, AT + timedelta(days=90),
        Picture("png", bytes(16_384), 40, 40),
    )  # fmt: skip
    seal = assemble_seal(info, maker.certificate, SM2, maker.key.sign(info))
    made = []
    for number in range(COUNT):
        data_hash = number.to_bytes(32, "big")
        tbs = tbs_to_sign(
            version,
            seal,
            AT + timedelta(seconds=number // 9),
            data_hash,
            f"/Doc_0/Signs/Sign_{number}/Signature.xml",
        )
        made.append((assemble_signature(tbs, signer.certificate, SM2, signer.key.sign(tbs)), data_hash))
    return made


@pytest.fixture
def examiner(verifier: Verifier) -> Examiner:
    return Examiner(Trust([ROOT.certificate]), verifier)


@pytest.fixture
def quick(benchmark: Any) -> Callable[..., Any]:
    return lambda function: benchmark.pedantic(function, iterations=1, rounds=5, warmup_rounds=1)


def test_by_the_batch(quick: Any, examiner: Examiner, items: list[Item]) -> None:
    reports = quick(lambda: verify_many(examiner, items, NOW, lambda _: ACTIVE))
    assert {report.verdict for report in reports} == {Verdict.GOOD}


def test_one_by_one(quick: Any, examiner: Examiner, items: list[Item]) -> None:
    data, data_hash = items[0]
    assert quick(lambda: examiner.signature(data, data_hash, NOW, ACTIVE)).verdict is Verdict.GOOD


def test_reading(quick: Any, items: list[Item]) -> None:
    assert quick(lambda: read_signature(items[0][0])).seal.name == "印章"
