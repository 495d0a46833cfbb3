"""An independent conformance suite, pkcs11-check, on the module.

It needs Python 3.12 and is pinned to one version, so it runs in an environment of its own, made once beside
the build. A machine without such a Python, or without a package index, says that this test was left out. The
bounded selection runs with every test run, the whole suite in the gauntlet. CONFORMANCE.md explains each
failure; one that it does not explain fails the test, and so does an explanation that no longer applies.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from firmware_build import PROJECT

from .p11 import SO_PIN, USER_PIN, Module

VERSION = "0.2.3"
CONFORMANCE = PROJECT / "CONFORMANCE.md"
# Return values, objects, keys, sessions, signatures: a minute or less. The whole takes ten.
BOUNDED = (
    "ckr/test_ckr_keygen.py",
    "ckr/test_ckr_object.py",
    "ckr/test_ckr_raw_args_bad.py",
    "ckr/test_ckr_session.py",
    "ckr/test_ckr_sign.py",
    "ckr/test_ckr_slot_token.py",
    "ckr/test_ckr_state.py",
    "ckr/test_ckr_verify.py",
    "ckr/test_ckr_wrap.py",
    "test_attribute_enforcement.py",
    "test_init.py",
    "test_interface.py",
    "test_object.py",
    "test_operation_termination.py",
    "test_pin.py",
    "test_sensitivity.py",
    "test_session_state_machine.py",
    "test_sign.py",
    "test_v30_session.py",
)


def suitable_python() -> str | None:
    candidates = [sys.executable] if sys.version_info >= (3, 12) else []
    candidates += [found for minor in range(12, 16) if (found := shutil.which(f"python3.{minor}"))]
    candidates += map(str, sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python3")))
    asks = ["-c", "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))"]
    for candidate in candidates:  # one on the path may be a stub of a version manager
        if subprocess.run([candidate, *asks], check=False, capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="session")
def pkcs11_check() -> Path:
    python = suitable_python()
    if python is None:
        pytest.skip("left out: pkcs11-check needs Python 3.12 or newer, and this machine has none")
    home = PROJECT / "build-pkcs11-check"
    program = home / "bin" / "pkcs11-check"
    if not (home / f"installed-{VERSION}").exists():
        if python == sys.executable:
            venv.create(home, with_pip=True, clear=True)
        else:
            subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", f"pkcs11-check=={VERSION}"]
        if subprocess.run(pip, check=False, capture_output=True).returncode:
            pytest.skip("left out: pkcs11-check could not be installed from a package index")
        # The suite runs under pytest of its own; without this it would find and obey our pyproject.toml.
        (home / "pytest.ini").write_text("[pytest]\n")
        (home / f"installed-{VERSION}").touch()
    return program


def explained() -> set[str]:
    return set(re.findall(r"^\| `([^`]+::[^`]+)` \|", CONFORMANCE.read_text(), re.MULTILINE))


def run(program: Path, module_path: Path, results: Path, targets: tuple[str, ...]) -> dict[str, int]:
    (testcases,) = program.parent.parent.glob("lib/python3.*/site-packages/pkcs11_check/testcases")
    command = [program, "test", "--module", module_path, "--slot", "0", "--skip-slow", "--timeout", "120"]
    # Every file in a process of its own: a crash would cost one file.
    command += ["--isolation", "file", "--output", "json", "--output-file", results / "results.json"]
    environment = os.environ | {"P11TEST_PIN": USER_PIN.decode(), "P11TEST_SO_PIN": SO_PIN.decode()}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [*map(str, command), *(str(testcases / name) for name in targets)],
        cwd=results, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (results / "results.json").exists(), done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((results / "results.json").read_text())["summary"]


def failures(results: Path) -> set[str]:
    found = set()
    for line in (results / "report.jsonl").read_text().splitlines():
        report = json.loads(line)
        if report.get("$report_type") == "TestReport" and report["outcome"] == "failed":
            found.add(report["nodeid"].split("testcases/")[-1])
    return found


def judge(summary: dict[str, int], results: Path, least_passed: int) -> set[str]:
    failed = failures(results)
    assert failed <= explained(), f"not explained in CONFORMANCE.md: {sorted(failed - explained())}"
    for bad in ("crashed", "timeout", "child_crash", "child_timeout", "error", "crash_limited"):
        assert summary[bad] == 0, summary
    assert summary["failed"] == len(failed) < 12
    assert summary["passed"] >= least_passed, summary
    return failed


@pytest.mark.timeout(600)
def test_a_bounded_selection(pkcs11_check: Path, sim: Module, module_path: Path, tmp_path: Path) -> None:
    judge(run(pkcs11_check, module_path, tmp_path, BOUNDED), tmp_path, 200)


@pytest.mark.gauntlet
@pytest.mark.timeout(3600)
def test_the_whole_suite(pkcs11_check: Path, sim: Module, module_path: Path, tmp_path: Path) -> None:
    failed = judge(run(pkcs11_check, module_path, tmp_path, ()), tmp_path, 1600)
    assert failed == explained(), f"explained, but it passes: {sorted(explained() - failed)}"
