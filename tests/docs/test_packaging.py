"""Lock files, set-up and the unit: what a rack relies on."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LOCK_LINE = re.compile(
    r"# Made by .*"
    r"|[a-z0-9.-]+==[\w.]+( ; .+)? \\"  # a version, for some Pythons perhaps
    r"|    --hash=sha256:[0-9a-f]{64}( \\)?"
    r"|    +#( +via)?( .*)?"  # who asked for it
)


def pinned(name: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([a-z0-9.-]+)==(\S+)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_versions_and_hashes_and_nothing_else(name: str) -> None:
    for line in (ROOT / name).read_text().splitlines():
        assert LOCK_LINE.fullmatch(line), line
        assert "://" not in line
        assert "/" not in line


def test_every_dependency_is_locked() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=!\[ ;]", one)[0].lower() for one in requirements}

    runtime = names(PROJECT["project"]["dependencies"])
    development = names([one for group in PROJECT["dependency-groups"].values() for one in group])
    assert runtime <= set(pinned("requirements.lock"))
    assert runtime | development <= set(pinned("requirements-dev.lock"))


def test_what_is_tested_is_what_a_rack_installs() -> None:
    rack, development = pinned("requirements.lock"), pinned("requirements-dev.lock")
    assert all(versions <= development[name] for name, versions in rack.items())


def test_build_requirements_are_locked() -> None:
    for requirement in PROJECT["build-system"]["requires"]:
        assert requirement in PROJECT["dependency-groups"]["build"]


def test_the_wheel_has_no_package_that_belongs_to_others() -> None:
    """A top-level ``pkcs11`` of ours would overwrite the library's."""
    files = distribution("cloud-seal").files or []
    top = {file.parts[0] for file in files if file.suffix in (".py", ".so", ".yaml")}
    assert top == {"appliance", "appliance_pkcs11"}


def test_every_module_is_in_the_wheel() -> None:
    installed = {str(file) for file in distribution("cloud-seal").files or []}
    for folder, package in ((ROOT, "appliance"), (ROOT / "pkcs11", "appliance_pkcs11")):
        for path in (folder / package).rglob("*.py"):
            assert str(path.relative_to(folder)) in installed, path
    shipped = {f"appliance/{path.relative_to(ROOT)}" for path in (ROOT / "config" / "tokens").glob("*.yaml")}
    shipped.add("appliance/config/appliance.yaml")
    # Nothing else from there: whoever ran `cloud-seal init` in the repository has secrets in that folder.
    assert {name for name in installed if name.startswith("appliance/config/")} == shipped


def test_no_file_names_an_address_of_a_registry() -> None:
    for name in ("Makefile", ".ci/setup", ".ci/run", *LOCKS, "pyproject.toml"):
        assert not re.search(r"https?://|--(extra-)?index\b|--find-links", (ROOT / name).read_text()), name


# The unit ---------------------------------------------------------------------------------------------------

UNIT = ROOT / "systemd" / "cloud-seald.service"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="this machine has no systemd-analyze")
MAX_EXPOSURE = 15
"""Tenths of systemd's scale from 0 (safe) to 10; what is left is the network and the sockets it exists for."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd asks for that."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/cloud-seal/bin/cloud-seald", "/bin/true"))
    return path


@needs_systemd
def test_systemd_understands_the_unit(unit: Path) -> None:
    assert SYSTEMD_ANALYZE is not None
    done = subprocess.run([SYSTEMD_ANALYZE, "verify", unit], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, complaints) == (0, [])


@needs_systemd
def test_the_unit_gives_the_daemon_little(unit: Path) -> None:
    assert SYSTEMD_ANALYZE is not None
    version = subprocess.run(
        [SYSTEMD_ANALYZE, "--version"], capture_output=True, text=True, check=True
    ).stdout
    if int(version.split()[1]) < 250:
        pytest.skip("systemd-analyze security --offline came with 250")
    command = [
        SYSTEMD_ANALYZE,
        "security",
        "--no-pager",
        "--offline=true",
        f"--threshold={MAX_EXPOSURE}",
        unit,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:]


def test_the_unit_starts_the_daemon_as_itself() -> None:
    text = UNIT.read_text()
    for line in (
        "User=cloud-seal",
        "LoadCredential=token.pin:/etc/cloud-seal/secrets/token.pin",
        "LimitCORE=0",
    ):
        assert f"\n{line}\n" in text
    assert "--allow-root" not in text
    assert not re.search(r"^Environment", text, re.MULTILINE)
