"""Kill the process in front of each call that changes a file; what it had reported done must be there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .p11 import CK, SO_PIN, USER_PIN, Module, P11Error

SCENARIO = Path(__file__).with_name("crash_scenario.py")
MAX_STEPS = 400  # far more than the scenario takes: it bounds the search for its end
SAMPLE = 12


def run(module_path: Path, tokens: Path, **more: str) -> subprocess.CompletedProcess[str]:
    shim = str(module_path.with_name("crash_shim.so"))
    preload = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), shim]))
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "CRASH_UNDER": str(tokens),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, str(SCENARIO), str(module_path)],
        env=environment | more,
        capture_output=True,
        text=True,
        check=False,
    )


def prepare(loaded: Module, tokens: Path) -> None:
    with loaded.running():
        loaded.make_token()
    assert (tokens / "0" / "token").exists()


def steps(module_path: Path, tokens: Path, log: Path) -> list[str]:
    done = run(module_path, tokens, CRASH_LOG=str(log))
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def check(loaded: Module, said: list[str]) -> None:
    """The token opens; what was reported done is there, what was begun may be or not, nothing is half."""
    done = {line[5:] for line in said if line.startswith("done ")}
    begun = {line[6:] for line in said if line.startswith("begin ")} - done
    with loaded.running():
        officer = loaded.open().login(SO_PIN, "CKU_SO")
        officer.close()
        session = loaded.open()
        pins = [b"third"] if "reset" in done else [b"second"] if "pin" in done else [USER_PIN]
        pins += [b"third"] if "reset" in begun else [b"second"] if "pin" in begun else []
        for pin in pins:
            try:
                session.login(pin)
                break
            except P11Error as error:
                assert error.name == "CKR_PIN_INCORRECT"
        else:
            pytest.fail(f"no PIN of {pins} opens the token after {said}")
        for name in ("a", "b"):
            private = session.find(CKA_ID=name.encode(), CKA_CLASS=CK["CKO_PRIVATE_KEY"])
            public = session.find(CKA_ID=name.encode(), CKA_CLASS=CK["CKO_PUBLIC_KEY"])
            if f"destroy {name}" in done:
                assert not private
                assert not public
            elif f"create {name}" in done and f"destroy {name}" not in begun:
                assert len(private) == len(public) == 1, said
            for key in private:  # whatever is there is whole
                signature = session.sign("CKM_SM2", key, bytes(32))
                for other in public:
                    assert session.verify("CKM_SM2", other, bytes(32), signature)
            for key in private + public:
                label = session.get(key, "CKA_LABEL")
                if "relabel a" in done and name == "a":
                    assert label == b"relabelled"
                assert label in (b"", b"relabelled")
        # And life goes on: what a dead writer left behind hinders nobody.
        session.sm2_pair(token=True, CKA_ID=b"after")
    rubbish = [path.name for path in Path(os.environ["FIRMWARE_SIM_TOKENS"], "0").glob(".tmp-*")]
    assert rubbish == []


def crash_at(loaded: Module, module_path: Path, tokens: Path, step: int) -> None:
    shutil.rmtree(tokens, ignore_errors=True)
    prepare(loaded, tokens)
    died = run(module_path, tokens, CRASH_AT=str(step))
    assert died.returncode == -signal.SIGKILL, died.stderr
    check(loaded, died.stdout.splitlines())


def test_a_sample_of_the_crash_points(
    loaded: Module, module_path: Path, settings: Path, tmp_path: Path
) -> None:
    prepare(loaded, settings)
    count = len(steps(module_path, settings, tmp_path / "log"))
    assert SAMPLE < count < MAX_STEPS
    for sample in range(SAMPLE):
        crash_at(loaded, module_path, settings, 1 + sample * (count - 1) // (SAMPLE - 1))


@pytest.mark.gauntlet
@pytest.mark.timeout(900)
def test_every_crash_point(loaded: Module, module_path: Path, settings: Path, tmp_path: Path) -> None:
    prepare(loaded, settings)
    count = len(steps(module_path, settings, tmp_path / "log"))
    for step in range(1, count + 1):
        crash_at(loaded, module_path, settings, step)


def test_crashes_while_the_token_is_made(
    loaded: Module, module_path: Path, settings: Path, tmp_path: Path
) -> None:
    """Before its file exists the slot is empty; afterwards it is a token, with or without a user PIN."""
    log = steps(module_path, settings, tmp_path / "log")
    last = next(number for number, line in enumerate(log, 1) if line.endswith(".obj "[:-1]) or ".obj" in line)
    for step in range(1, last):
        shutil.rmtree(settings, ignore_errors=True)
        died = run(module_path, settings, CRASH_AT=str(step))
        assert died.returncode == -signal.SIGKILL, died.stderr
        with loaded.running():
            flags = loaded.token_info().flags
            if not flags & CK["CKF_TOKEN_INITIALIZED"]:
                loaded.make_token()
            elif not flags & CK["CKF_USER_PIN_INITIALIZED"]:
                session = loaded.open().login(SO_PIN, "CKU_SO")
                session.C_InitPIN(USER_PIN, len(USER_PIN))
                session.close()
            loaded.open().login().sm2_pair(token=True)


def test_the_order_of_syncing(loaded: Module, module_path: Path, settings: Path, tmp_path: Path) -> None:
    """A killed process tests the order of steps; that they survive a power failure is this order: each new
    file is synced before it is renamed, and its directory after."""
    prepare(loaded, settings)
    log = steps(module_path, settings, tmp_path / "log")
    renames = [number for number, line in enumerate(log) if line.startswith("rename ")]
    assert len(renames) > 10
    for number in renames:
        temporary = log[number].split()[1]
        assert log[number - 1] == f"fsync {temporary} "
        assert re.fullmatch(rf"fsync {settings}/0 ", log[number + 1])
    unlinks = [number for number, line in enumerate(log) if re.match(r"unlink .*00000001\.obj", line)]
    assert unlinks
