"""PINs: counted before they are answered, locked after too many, unlocked by the officer, changed."""

import pytest

from .p11 import CK, SO_PIN, USER_PIN, Module, P11Error


def flags(sim: Module) -> int:
    return sim.token_info().flags


def test_lock_out_and_unlocking_by_the_officer(sim: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    session = sim.open().login()
    _, key = session.sm2_pair(token=True)
    session.C_Logout()
    for _ in range(9):
        with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
            session.login(b"wrong")
    assert flags(sim) & CK["CKF_USER_PIN_FINAL_TRY"]
    with pytest.raises(P11Error, match="CKR_PIN_LOCKED"):
        session.login(b"wrong")
    assert flags(sim) & CK["CKF_USER_PIN_LOCKED"]
    with pytest.raises(P11Error, match="CKR_PIN_LOCKED"):
        session.login(USER_PIN)
    session.login(SO_PIN, "CKU_SO")
    session.C_InitPIN(b"fresh", 5)
    session.C_Logout()
    with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
        session.login(USER_PIN)
    session.login(b"fresh")
    assert not flags(sim) & CK["CKF_USER_PIN_COUNT_LOW"]
    assert len(session.sign("CKM_SM2", key, bytes(32))) == 64  # the keys outlive the forgotten PIN


def test_a_success_sets_the_count_back(sim: Module) -> None:
    session = sim.open()
    for _ in range(3):
        for _ in range(7):
            with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
                session.login(b"wrong")
        session.login()
        session.C_Logout()


def test_the_count_outlives_the_process(loaded: Module, settings: object) -> None:
    with loaded.running():
        loaded.make_token()
    for attempt in range(10):
        with loaded.running(), pytest.raises(P11Error) as caught:
            loaded.open().login(b"wrong")
        assert caught.value.name == ("CKR_PIN_LOCKED" if attempt == 9 else "CKR_PIN_INCORRECT")


def test_the_officer_locks_too(sim: Module) -> None:
    session = sim.open()
    for _ in range(9):
        with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
            session.login(b"wrong", "CKU_SO")
    with pytest.raises(P11Error, match="CKR_PIN_LOCKED"):
        session.login(b"wrong", "CKU_SO")
    session.login()  # the user is not harmed


def test_pin_change(sim: Module) -> None:
    session = sim.open()
    with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
        session.C_SetPIN(b"wrong", 5, b"newer", 5)
    for pin in (b"abc", b"x" * 256):
        with pytest.raises(P11Error, match="CKR_PIN_LEN_RANGE"):
            session.C_SetPIN(USER_PIN, 4, pin, len(pin))
    session.C_SetPIN(USER_PIN, 4, b"newer", 5)
    session.login(b"newer")
    session.C_SetPIN(b"newer", 5, b"newest", 6)
    session.C_Logout()
    session.login(SO_PIN, "CKU_SO")
    session.C_SetPIN(SO_PIN, 8, b"officer", 7)
    session.C_Logout()
    session.login(b"officer", "CKU_SO").C_Logout()
    session.login(b"newest")


def test_states_and_their_rules(sim: Module) -> None:
    session, reader = sim.open(), sim.open(rw=False)
    with pytest.raises(P11Error, match="CKR_SESSION_READ_ONLY_EXISTS"):
        session.login(SO_PIN, "CKU_SO")
    session.login()
    with pytest.raises(P11Error, match="CKR_USER_ALREADY_LOGGED_IN"):
        reader.login()
    with pytest.raises(P11Error, match="CKR_SESSION_READ_ONLY"):
        reader.sm2_pair(token=True)
    reader.sm2_pair()
    reader.C_Logout()
    with pytest.raises(P11Error, match="CKR_USER_NOT_LOGGED_IN"):
        session.C_Logout()
    with pytest.raises(P11Error, match="CKR_USER_NOT_LOGGED_IN"):
        session.C_InitPIN(b"12345", 5)
    reader.close()
    session.login()
    with pytest.raises(P11Error, match="CKR_USER_ANOTHER_ALREADY_LOGGED_IN"):
        session.login(SO_PIN, "CKU_SO")
    session.C_Logout()
    session.login(SO_PIN, "CKU_SO")
    with pytest.raises(P11Error, match="CKR_SESSION_READ_WRITE_SO_EXISTS"):
        sim.open(rw=False)


def test_initialising_anew_empties_the_token(sim: Module) -> None:
    session = sim.open().login()
    session.sm2_pair(token=True)
    with pytest.raises(P11Error, match="CKR_SESSION_EXISTS"):
        sim.init_token()
    session.close()
    serial = bytes(sim.token_info().serial)
    with pytest.raises(P11Error, match="CKR_PIN_INCORRECT"):
        sim.init_token(so_pin=b"not the officer")
    sim.init_token(label="again")
    assert bytes(sim.token_info().serial) == serial
    assert bytes(sim.token_info().label).rstrip() == b"again"
    assert not flags(sim) & CK["CKF_USER_PIN_INITIALIZED"]
    with pytest.raises(P11Error, match="CKR_USER_PIN_NOT_INITIALIZED"):
        sim.open().login()
    assert sim.open().find() == []


def test_it_says_that_it_is_a_simulator(sim: Module) -> None:
    info = sim.token_info()
    assert b"SIMULATOR" in bytes(info.model)
    assert b"firmware-sim" in bytes(info.manufacturer)


def test_the_next_slot_is_empty(sim: Module) -> None:
    assert sim.slots() == [0, 1]
    sim.make_token(1, "second")
    assert sim.slots() == [0, 1, 2]
    first, second = sim.open(0).login(), sim.open(1).login()
    public, _ = first.sm2_pair(token=True)
    assert second.find() == []
    with pytest.raises(P11Error, match="CKR_OBJECT_HANDLE_INVALID"):
        second.get(public, "CKA_EC_POINT")
