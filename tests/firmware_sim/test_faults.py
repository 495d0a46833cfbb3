"""Faults on command, in pairs (not done / done, answer lost); the trace is the oracle of what was done."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_ulong
from pathlib import Path

import pytest

from .p11 import CK, Module, P11Error, Session, mechanism

CHILD = Path(__file__).with_name("child.py")
FAULTS = Path(__file__).parents[2] / "firmware-sim" / "FAULTS.md"
E = bytes(range(32))


@pytest.fixture
def trace(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "trace"
    monkeypatch.setenv("FIRMWARE_SIM_TRACE", str(path))
    return path


def signatures(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


@pytest.fixture
def planned(loaded: Module, trace: Path, monkeypatch: pytest.MonkeyPatch):
    """`with planned(text) as (session, public, private)`: a token with one SM2 key, under a plan."""
    with loaded.running():
        loaded.make_token()
        loaded.open().login().sm2_pair(token=True, CKA_ID=b"\x07")

    @contextmanager
    def use(text: str) -> Iterator[tuple[Session, int, int]]:
        monkeypatch.setenv("FIRMWARE_SIM_FAULTS", text)
        with loaded.running():
            session = loaded.open().login()
            (public,) = session.find(CKA_CLASS=CK["CKO_PUBLIC_KEY"])
            (private,) = session.find(CKA_CLASS=CK["CKO_PRIVATE_KEY"])
            yield session, public, private

    return use


def test_the_trace_tells_every_signature(planned, trace: Path) -> None:
    with planned("") as (session, _, private):
        session.sign("CKM_SM2", private, E)
        session.sign("CKM_SM3_SM2", private, b"message")
        session.module.sign_batch(session, "CKM_SM2", private, [E] * 70)
    lines = signatures(trace)
    assert len(lines) == 72
    expected = rf"sign pid={os.getpid()} n=(\d+) key=07 mechanism=0x80008000 input={E.hex()}"
    assert re.fullmatch(expected, lines[0])
    assert "mechanism=0x80008100" in lines[1]
    assert [int(re.search(r"n=(\d+)", line)[1]) for line in lines] == list(range(1, 73))


@pytest.mark.parametrize("call", ["C_Sign", "signature"])
def test_fail_and_lose(planned, trace: Path, call: str) -> None:
    with planned(f"{call} 2 fail CKR_DEVICE_ERROR; {call} 4 lose CKR_DEVICE_MEMORY") as (session, _, private):
        outcome = []
        for _ in range(5):
            try:
                session.sign("CKM_SM2", private, E)
                outcome.append("signed")
            except P11Error as error:
                outcome.append(error.name)
    assert outcome == ["signed", "CKR_DEVICE_ERROR", "signed", "CKR_DEVICE_MEMORY", "signed"]
    assert len(signatures(trace)) == 4  # the failed one was not made; the lost one was


def test_occurrences(planned) -> None:
    with planned("C_Sign 2..3 fail CKR_DEVICE_ERROR; C_Sign 5.. fail CKR_HOST_MEMORY") as (
        session,
        _,
        private,
    ):
        names = []
        for _ in range(6):
            try:
                session.sign("CKM_SM2", private, E)
                names.append("")
            except P11Error as error:
                names.append(error.name[4:])
    assert names == ["", "DEVICE_ERROR", "DEVICE_ERROR", "", "HOST_MEMORY", "HOST_MEMORY"]


def test_corrupt(planned, trace: Path) -> None:
    with planned("signature every 3 corrupt") as (session, public, private):
        made = [session.sign("CKM_SM2", private, E) for _ in range(6)]
        assert [session.verify("CKM_SM2", public, E, one) for one in made] == [True, True, False] * 2
        batch = session.module.sign_batch(session, "CKM_SM2", private, [E] * 3)
        assert [session.verify("CKM_SM2", public, E, one) for one in batch] == [True, True, False]
    assert len(signatures(trace)) == 9


@pytest.mark.parametrize(("action", "made"), [("crash", 2), ("crash-after", 3)])
@pytest.mark.parametrize("call", ["C_Sign", "signature"])
def test_crash(
    planned,
    trace: Path,
    module_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    action: str,
    made: int,
) -> None:
    monkeypatch.setenv("FIRMWARE_SIM_FAULTS", f"{call} 3 {action} once")
    command = [sys.executable, str(CHILD), str(module_path), "sign", "\x07", "5"]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(died.stdout.split()) == 2
    assert len(signatures(trace)) == made
    again = subprocess.run(command, capture_output=True, text=True, check=True)  # `once`: not a second time
    assert len(again.stdout.split()) == 5


@pytest.mark.parametrize(("action", "made"), [("hang", 0), ("hang-after", 1)])
def test_hang(
    planned, trace: Path, module_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, made: int
) -> None:
    """Without a clock: the hanging process is asked which system call it sleeps in."""
    monkeypatch.setenv("FIRMWARE_SIM_FAULTS", f"C_Sign 1 {action}")
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(module_path), "sign", "\x07", "1"], stdout=subprocess.PIPE
    )
    try:
        call = Path(f"/proc/{process.pid}/syscall")
        pause = str({"x86_64": 34}.get(os.uname().machine, 73))  # ppoll(2) where there is no pause(2)
        while not call.read_text().startswith(pause + " "):
            assert process.poll() is None
        assert len(signatures(trace)) == made
    finally:
        process.kill()
        process.communicate()


def test_delay_and_session_lost(planned) -> None:
    with planned("C_Sign 1 delay 1; C_Sign 2 session-lost") as (session, _, private):
        assert len(session.sign("CKM_SM2", private, E)) == 64
        for _ in range(2):
            with pytest.raises(P11Error, match="CKR_SESSION_HANDLE_INVALID"):
                session.sign("CKM_SM2", private, E)
        assert session.module.open().login().find(CKA_ID=b"\x07")


def test_the_token_is_pulled_and_put_back(planned) -> None:
    with planned("C_Sign 1 remove calls 4") as (session, _, private):
        sim = session.module
        with pytest.raises(P11Error, match="CKR_DEVICE_REMOVED"):
            session.sign("CKM_SM2", private, E)
        with pytest.raises(P11Error, match="CKR_TOKEN_NOT_PRESENT"):
            sim.open()
        assert sim.slots() == []  # two calls
        with pytest.raises(P11Error, match="CKR_SESSION_HANDLE_INVALID"):
            session.sign("CKM_SM2", private, E)
        assert len(sim.open().login().sign("CKM_SM2", private, E)) == 64


def test_pin_locked(planned, loaded: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRMWARE_SIM_FAULTS", "C_Login 1 pin-locked")
    with loaded.running():
        with pytest.raises(P11Error, match="CKR_PIN_LOCKED"):
            loaded.open().login()
        loaded.open().login()


def test_a_plan_is_replaced_while_running(planned, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan"
    with planned(str(plan)) as (session, _, private):

        def replace(text: str) -> None:
            new = tmp_path / "plan.new"
            new.write_text(text)
            new.rename(plan)

        session.sign("CKM_SM2", private, E)
        replace("# broken from here on\nC_SignInit 1.. fail CKR_DEVICE_REMOVED\n")
        for _ in range(2):
            with pytest.raises(P11Error, match="CKR_DEVICE_REMOVED"):
                session.sign("CKM_SM2", private, E)
        replace("nonsense")
        with pytest.raises(P11Error, match="CKR_DEVICE_REMOVED"):
            session.sign("CKM_SM2", private, E)
        assert 'no call is named "nonsense"' in capfd.readouterr().err
        plan.unlink()
        session.sign("CKM_SM2", private, E)


@pytest.mark.parametrize(
    "plan",
    [
        "C_Sing 1 crash", "C_Sign crash", "C_Sign 0 crash", "C_Sign 3..2 crash", "C_Sign every 0 crash",
        "C_Sign 1",
        "C_Sign 1 fail", "C_Sign 1 fail CKR_OK", "C_Sign 1 fail CKR_NONE", "C_Sign 1 delay",
        "C_Sign 1 delay x",
        "C_Sign 1 remove 5", "C_Sign 1 remove calls", "C_Sign 1 crash twice", "signature 1 remove calls 2",
        "C_Sign 1 crash once more", "C_Sign 99999999999999999999 crash", "x" * 300,
    ],
)  # fmt: skip
def test_a_bad_plan_is_a_clear_error(
    loaded: Module,
    settings: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    plan: str,
) -> None:
    monkeypatch.setenv("FIRMWARE_SIM_FAULTS", "C_Sign 1 crash;" + plan)
    with pytest.raises(P11Error, match="CKR_ARGUMENTS_BAD"), loaded.running():
        pass
    assert "fault plan, line 2: " in capfd.readouterr().err


def test_the_document_lists_what_the_parser_knows() -> None:
    source = (FAULTS.parent / "src" / "fault.c").read_text()
    known = set(re.findall(r'\{"([a-z-]+)", FAULT_', source))
    told = set(re.findall(r"^\| `([a-z-]+)[^|]*\| [^|]* \| (?:yes|no) \|$", FAULTS.read_text(), re.MULTILINE))
    assert known == told


def test_every_call_can_be_named(loaded: Module, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = (FAULTS.parent / "include" / "pkcs11.h").read_text()
    calls = re.findall(r"^    F\((C_\w+),", header, re.MULTILINE)
    assert len(calls) == 92
    monkeypatch.setenv(
        "FIRMWARE_SIM_FAULTS", ";".join(f"{call} 1000000 crash" for call in [*calls, "C_SignBatch"])
    )
    with loaded.running():
        pass


def test_message_signing_goes_on_after_a_failed_message(planned) -> None:
    with planned("signature 2 fail CKR_DEVICE_ERROR") as (session, public, private):
        session.C_MessageSignInit(byref(mechanism("CKM_SM2")), c_ulong(private))
        results = []
        for _ in range(3):
            out, out_len = bytes(64), c_ulong(64)
            try:
                session.C_SignMessage(None, c_ulong(0), E, c_ulong(32), out, byref(out_len))
                results.append(session.verify("CKM_SM2", public, E, out))
            except P11Error as error:
                results.append(error.name)
        session.C_MessageSignFinal()
    assert results == [True, "CKR_DEVICE_ERROR", True]
