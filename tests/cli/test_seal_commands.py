"""What a person types in a seal's life, against a real daemon: officers, each with a password file of their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from api_rig import ALGORITHM, NAME, OTHER_USCC, REGION, USCC, Town, imprint, settle
from appliance_fixture import PASSWORD, Bench, shared_bench

from appliance.cli.main import main

__all__ = ["shared_bench"]


@dataclass(frozen=True)
class Result:
    exit_code: int
    out: str
    err: str

    def document(self) -> Any:
        """What it answered; it must have gone well."""
        assert self.exit_code == 0, self.err
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)


Types = Callable[..., Result]


@pytest.fixture(scope="module")
def town(shared_bench: Bench) -> Iterator[Town]:
    return settle(shared_bench)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Passwords and pictures that people have at hand."""
    found = {}
    for name, text in {"officer": PASSWORD, "seal": "Seal-password-17", "next": "Seal-password-18"}.items():
        found[name] = tmp_path / name
        found[name].touch(0o600)
        found[name].write_text(text + "\n")
    found["imprint"] = tmp_path / "imprint.png"
    found["imprint"].write_bytes(imprint())
    return found


@pytest.fixture
def types(town: Town, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Types:
    """``types("clerk", "seal", "list")``: what the clerk types, with ``--json``."""

    def run(officer: str | None, *words: object, as_json: bool = True, api: bool = False) -> Result:
        capsys.readouterr()
        arguments = [*map(str, words), "--config", str(town.appliance.config_file)]
        if officer is not None:
            arguments += ["--officer", officer, "--officer-password-file", str(files["officer"])]
        if api:
            arguments += ["--api", f"http://127.0.0.1:{town.port}"]
        code = main([*arguments, "--json"] if as_json else arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def test_a_seal_from_application_to_cancellation(
    town: Town, types: Types, files: dict[str, Path], tmp_path: Path
) -> None:
    applied = types(
        "clerk", "seal", "apply", "--organisation", USCC, "--kind", "statutory", "--name", NAME,
        "--custodian", "keeper", "--imprint", files["imprint"], "--width", 42, "--height", 42, "--paper", "licence 17",
    ).document()  # fmt: skip
    seal = applied["sealId"]
    assert types("reviewer", "seal", "review", seal).document()["sealState"] == "reviewed"
    assert types("maker", "seal", "key", seal, "--algorithm", ALGORITHM).document()["algorithm"] == ALGORITHM
    request = tmp_path / "request.pem"
    types(
        "maker", "seal", "request", seal, "--subject", f"C=CN, O={NAME}, CN=章", "--out", request
    ).document()
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(town.issue(request.read_text()))
    types("maker", "seal", "certificate", seal, "--certificate", certificate).document()

    proposal = types("maker", "proposal", "make", seal).document()["proposalId"]
    refused = types("maker", "proposal", "approve", proposal)
    assert (refused.exit_code, refused.error["error"]) == (5, "denied") and refused.error["hint"]
    assert types("guard", "proposal", "approve", proposal, api=True).document()["state"] == "done"

    code = types("clerk", "seal", "show", seal).document()["sealCode"]
    assert code.startswith(REGION)
    types("filer", "seal", "file", code, "--receipt", "GA-1").document()  # by its code from here on
    types("clerk", "seal", "confirm", code, "--imprint", files["imprint"]).document()
    active = types("keeper", "seal", "activate", code, "--password-file", files["seal"]).document()
    assert active["sealState"] == "active"

    for name, start in (("imprint", b"\x89PNG"), ("eseal", b"\x30")):
        out = tmp_path / name
        assert types("clerk", "seal", name, code, "--out", out).document()["path"] == str(out)
        assert out.read_bytes().startswith(start)
    pdf = tmp_path / "making.pdf"
    types("clerk", "seal", "document", code, "--pdf", "--out", pdf).document()
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert types("clerk", "seal", "document", code).document()["documentKind"] == "making"

    assert (
        types("guard", "seal", "suspend", code, "--reason", "lost phone").document()["sealState"]
        == "suspended"
    )
    assert types("guard", "seal", "resume", code, "--reason", "found").document()["sealState"] == "active"
    state = types(
        "keeper", "seal", "rotate", code, "--old-password-file", files["seal"], "--password-file", files["next"]
    ).document()  # fmt: skip
    assert state == types("keeper", "seal", "password", code).document()
    reset = types(
        "guard", "proposal", "reset-password", code, "--password-file", files["seal"], "--reason", "forgotten"
    ).document()  # fmt: skip
    assert (
        types("guard-2", "proposal", "reject", reset["proposalId"], "--reason", "found").document()["state"]
        == "rejected"
    )

    terms = (
        "--operation",
        "seal",
        "--daily-limit",
        10,
        "--source",
        "127.0.0.1/32",
        "--approval-pattern",
        "[0-9]+",
    )
    alone = types("guard", "grant", "give", "app", code, *terms)
    assert alone.exit_code == 5 and "two people" in alone.error["detail"]
    wanted = types("guard", "grant", "give", "app", code, *terms, "--propose").document()
    types("guard-2", "proposal", "approve", wanted["proposalId"]).document()
    (grant,) = types("auditor", "grant", "list", "--seal", code).document()["grants"]
    assert (grant["account"], grant["dailyLimit"]) == ("app", 10)

    cancel = types("guard", "proposal", "cancel", code, "--cause", "lost", "--reason", "stolen").document()
    types("guard-2", "proposal", "approve", cancel["proposalId"]).document()
    assert types("clerk", "seal", "show", code).document()["cancelReason"] == "lost"
    again = types("guard", "seal", "suspend", code, "--reason", "x")
    assert (again.exit_code, again.error["error"]) == (7, "conflict")
    acts = [one["act"] for one in types("auditor", "seal", "events", seal).document()["events"]]
    assert acts[0] == "apply" and acts[-1] == "cancel"


def test_figures_for_assessment(types: Types, tmp_path: Path) -> None:
    rows = types("auditor", "statistics", "seals", "--by", "kind,state").document()["rows"]
    assert all(set(row) == {"sealKind", "sealState", "seals"} for row in rows)
    out = tmp_path / "seals.csv"
    types("auditor", "statistics", "seals", "--csv", out).document()
    with out.open(encoding="utf-8-sig") as file:
        assert next(csv.reader(file)) == ["sealState", "seals"]
    assert types("auditor", "statistics", "uses", "--by", "account", "--from", "2026-01-01").document() == {
        "rows": []
    }
    types("auditor", "statistics", "filing").document()
    types("auditor", "outbox", "list", "--delivered").document()


def test_officers_and_organisations(types: Types, files: dict[str, Path]) -> None:
    made = types(
        None, "officer", "create", "new", "--display-name", "新人", "--role", "clerk",
        "--password-file", files["officer"],
    ).document()  # fmt: skip
    assert (made["displayName"], made["roles"]) == ("新人", ["clerk"])
    assert types("new", "officer", "whoami").document()["officer"] == "new"
    assert types(None, "officer", "roles", "new", "--role", "clerk", "--role", "filer").document()[
        "roles"
    ] == [
        "clerk",
        "filer",
    ]
    assert types(None, "officer", "disable", "new").document()["disabled"] is True
    out = types("new", "officer", "whoami")
    assert (out.exit_code, out.error["error"]) == (4, "not_authenticated")
    assert types(None, "officer", "enable", "new").document()["disabled"] is False
    types(None, "officer", "password", "new", "--password-file", files["next"]).document()
    assert types("new", "officer", "whoami").exit_code == 4
    assert "new" in {one["officer"] for one in types(None, "officer", "list").document()["officers"]}
    elsewhere = types(None, "officer", "list", api=True)
    assert elsewhere.exit_code == 5 and "socket" in elsewhere.error["hint"]

    added = types(
        "clerk", "organisation", "add", OTHER_USCC, "--name", "乙公司", "--region", REGION
    ).document()
    assert added["useUnitName"] == "乙公司"
    types("clerk", "organisation", "change", OTHER_USCC, "--name", "丙公司", "--region", REGION).document()
    assert types("clerk", "organisation", "show", OTHER_USCC).document()["useUnitName"] == "丙公司"
    listed = types("clerk", "organisation", "list", "--limit", 1, "--all").document()["organisations"]
    assert {USCC, OTHER_USCC} <= {one["useUnitCode"] for one in listed}


def test_people_get_tables(types: Types) -> None:
    out = types("auditor", "seal", "list", as_json=False).out
    assert out.splitlines()[0].split("\t")[:3] == ["seal", "code", "name"]
    assert types("auditor", "statistics", "seals", as_json=False).out.startswith("sealState\tseals\n")
    assert types("auditor", "organisation", "show", USCC, as_json=False).out.startswith("useUnitCode\t")


def test_what_is_refused_says_what_to_do(types: Types, monkeypatch: pytest.MonkeyPatch, town: Town) -> None:
    monkeypatch.delenv("CLOUD_SEAL_OFFICER", raising=False)
    nobody = types(None, "seal", "list")
    assert nobody.exit_code == 2 and "CLOUD_SEAL_OFFICER" in nobody.error["hint"]
    monkeypatch.setenv("CLOUD_SEAL_OFFICER", "auditor")
    asked = types(None, "seal", "list")
    assert asked.exit_code == 2 and "terminal" in asked.error["detail"]
    assert types("auditor", "seal", "show", "33010099999999").exit_code == 6
    assert types("auditor", "seal", "list", "--limit", "0").exit_code == 2
    for url in ("ftp://x", "http://example.com:1", "https://"):
        wrong = types("auditor", "seal", "list", "--api", url)
        assert wrong.exit_code == 2 and "https" in wrong.error["detail"] + wrong.error["hint"]
