"""Several processes on one token, and forks."""

import ctypes
import os
import subprocess
import sys
from ctypes import byref
from pathlib import Path

import pytest

from .p11 import CK, InitializeArgs, Module, P11Error, Session

CHILD = Path(__file__).with_name("child.py")


def child(module_path: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, str(CHILD), str(module_path), *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_processes_see_each_others_objects(user: Session, module_path: Path) -> None:
    _, key = user.sm2_pair(token=True, CKA_ID=b"parent")
    assert child(module_path, "ids").split() == [b"parent".hex()] * 2
    child(module_path, "create", "child")
    assert len(user.find(CKA_ID=b"child")) == 2
    child(module_path, "relabel", "parent", "changed")
    (public,) = user.find(CKA_CLASS=CK["CKO_PUBLIC_KEY"], CKA_ID=b"parent")
    assert user.get(public, "CKA_LABEL") == b"changed"
    assert len(user.sign("CKM_SM2", key, bytes(32))) == 64
    child(module_path, "destroy", "parent")
    # Not even a search in between: the next use of the key finds that it is gone.
    with pytest.raises(P11Error, match="CKR_KEY_HANDLE_INVALID"):
        user.sign("CKM_SM2", key, bytes(32))
    assert user.find(CKA_ID=b"parent") == []


def test_a_token_initialised_anew_elsewhere_is_noticed(user: Session, module_path: Path) -> None:
    _, key = user.sm2_pair(token=True)
    child(module_path, "reset")
    with pytest.raises(P11Error):
        user.sign("CKM_SM2", key, bytes(32))
    with pytest.raises(P11Error):
        user.sm2_pair(token=True)
    assert user.find() == []


def test_many_processes_at_once(sim: Module, module_path: Path) -> None:
    """Eight processes start, log in and create at the same moment; nothing is lost and nobody is refused."""
    running = [
        subprocess.Popen([sys.executable, str(CHILD), str(module_path), "create", f"p{i}", "5"])
        for i in range(8)
    ]
    assert [process.wait() for process in running] == [0] * 8
    user = sim.open().login()
    assert len(user.find(CKA_CLASS=CK["CKO_PRIVATE_KEY"])) == 40
    assert len(user.find(CKA_CLASS=CK["CKO_PUBLIC_KEY"])) == 40


def test_a_fork_must_initialise_for_itself_and_repeats_no_nonce(sim: Module) -> None:
    """Equal nonces would show as equal r - e; the same e is signed in parent and children, so as equal r."""
    user = sim.open().login()
    _, key = user.sm2_pair(token=True, CKA_ID=b"k")
    user.sign("CKM_SM2", key, bytes(32))
    output, into = os.pipe()
    children = 8
    for _ in range(children):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                try:
                    user.sign("CKM_SM2", key, bytes(32))
                except P11Error as error:
                    assert error.name == "CKR_CRYPTOKI_NOT_INITIALIZED"
                sim.C_Initialize(byref(InitializeArgs(flags=CK["CKF_OS_LOCKING_OK"])))
                mine = sim.open().login()
                (again,) = mine.find(CKA_ID=b"k", CKA_CLASS=CK["CKO_PRIVATE_KEY"])
                os.write(into, b"".join(mine.sign("CKM_SM2", again, bytes(32))[:32] for _ in range(50)))
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
    os.close(into)
    values = [user.sign("CKM_SM2", key, bytes(32))[:32] for _ in range(50)]
    with os.fdopen(output, "rb") as stream:
        content = stream.read()
    values += [content[i : i + 32] for i in range(0, len(content), 32)]
    assert len(values) == len(set(values)) == 50 * (children + 1)


def test_interfaces(loaded: Module, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .p11 import Interface

    def names() -> list[tuple[bytes, int, int]]:
        count = ctypes.c_ulong()
        loaded.C_GetInterfaceList(None, byref(count))
        table = (Interface * count.value)()
        loaded.C_GetInterfaceList(table, byref(count))
        return [(item.name, *ctypes.string_at(item.functions, 2)) for item in table]

    assert names() == [(b"PKCS 11", 3, 0), (b"PKCS 11", 2, 40), (b"Vendor cloud-seal batch", 1, 0)]
    monkeypatch.setenv("FIRMWARE_SIM_BATCH", "off")
    assert names() == [(b"PKCS 11", 3, 0), (b"PKCS 11", 2, 40)]
    with pytest.raises(P11Error, match="CKR_ARGUMENTS_BAD"):
        loaded.C_GetInterface(b"Vendor cloud-seal batch", None, byref(ctypes.c_void_p()), ctypes.c_ulong(0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FIRMWARE_SIM_ENGINE", "abacus", 'engine: "abacus"'),
        ("FIRMWARE_SIM_BATCH", "perhaps", "expected on or off"),
        ("FIRMWARE_SIM_ENGINES", "0", "a number from 1 to 1024"),
        ("FIRMWARE_SIM_FAULTS", "C_Sign 1 explode", 'no action is named "explode"'),
        ("FIRMWARE_SIM_CONF", "/nonexistent", "No such file"),
    ],
)
def test_a_bad_setting_is_a_clear_error(
    loaded: Module,
    settings: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(P11Error, match="CKR_ARGUMENTS_BAD"), loaded.running():
        pass
    assert message in capfd.readouterr().err


def test_a_configuration_file(
    loaded: Module, tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "sim.conf"
    monkeypatch.delenv("FIRMWARE_SIM_TOKENS")
    monkeypatch.setenv("FIRMWARE_SIM_CONF", str(conf))
    conf.write_text(f"# a comment\ntokens = {tmp_path}/elsewhere\nbatch = off\n\nmax_user_failures = 2\n")
    with loaded.running():
        loaded.make_token()
        with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
            loaded.open().login(b"wrong")
        with pytest.raises(P11Error, match="CKR_PIN_LOCKED"):
            loaded.open().login(b"wrong")
    assert (tmp_path / "elsewhere" / "0" / "token").exists()
    conf.write_text("tokens = x\nspeed = high\n")
    with pytest.raises(P11Error, match="CKR_ARGUMENTS_BAD"), loaded.running():
        pass
