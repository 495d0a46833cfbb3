"""Every vector gets the verdict and the codes that its manifest asks for."""

from __future__ import annotations

from appliance.eseal.verification import CheckName, Report
from appliance.verifying import Verifier

from .conftest import DOCUMENT, Vector


def examine(vector: Vector, verifier: Verifier, **options: bool) -> Report:
    examiner = vector.examiner(verifier, **options)
    if vector.entry["kind"] == "seal":
        return examiner.seal(vector.data, vector.now, vector.status)
    return examiner.signature(vector.data, None, vector.now, vector.status, DOCUMENT)


def test_verdict_and_codes(vector: Vector, verifier: Verifier) -> None:
    report = examine(vector, verifier)
    unusual = {
        check.name.value: check.code.label
        for check in report.checks
        if check.code.label not in ("ok", "absent", "not_run")
    }
    expected = {name: code for name, code in vector.entry["codes"].items() if code != "ok"}
    assert (report.verdict.value, unusual) == (vector.entry["verdict"], expected)
    for name, code in vector.entry["codes"].items():
        assert report.check(CheckName(name)).code.label == code
    if "warning" in vector.entry:
        assert any(vector.entry["warning"] in warning for warning in report.warnings), report.warnings
