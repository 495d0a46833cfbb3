"""Private values never leave: not as attributes, not wrapped, not from the files, not by loosening a rule."""

from pathlib import Path

import pytest

from .p11 import CK, SM2_PARAMS, USER_PIN, Module, P11Error, Session

GUARDS = ("CKA_SENSITIVE", "CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE", "CKA_LOCAL")
AES = {"CKA_VALUE_LEN": 32, "CKA_WRAP": True, "CKA_UNWRAP": True}


@pytest.mark.parametrize("pair", ["sm2_pair", "p256_pair"])
@pytest.mark.parametrize("token", [False, True])
def test_a_generated_key_is_guarded(user: Session, pair: str, token: bool) -> None:
    _, private = getattr(user, pair)(token=token)
    assert all(user.get(private, name) == b"\1" for name in GUARDS)
    assert user.get(private, "CKA_EXTRACTABLE") == b"\0"
    with pytest.raises(P11Error, match="CKR_ATTRIBUTE_SENSITIVE"):
        user.get(private, "CKA_VALUE")


def test_an_rsa_key_is_guarded(user: Session) -> None:
    _, private = user.generate_pair("CKM_RSA_PKCS_KEY_PAIR_GEN", {"CKA_MODULUS_BITS": 2048})
    for name in ("PRIVATE_EXPONENT", "PRIME_1", "PRIME_2", "EXPONENT_1", "EXPONENT_2", "COEFFICIENT"):
        with pytest.raises(P11Error, match="CKR_ATTRIBUTE_SENSITIVE"):
            user.get(private, f"CKA_{name}")


def test_attributes_only_tighten(user: Session) -> None:
    loose = {"CKA_SENSITIVE": False, "CKA_EXTRACTABLE": True}
    _, private = user.generate_pair("CKM_SM2_KEY_PAIR_GEN", {}, loose)
    assert len(user.get(private, "CKA_VALUE")) == 32
    user.set(private, CKA_SENSITIVE=True)
    user.set(private, CKA_EXTRACTABLE=False)
    for name, value in (("CKA_SENSITIVE", False), ("CKA_EXTRACTABLE", True)):
        with pytest.raises(P11Error, match="CKR_ATTRIBUTE_READ_ONLY"):
            user.set(private, **{name: value})
        with pytest.raises(P11Error, match="CKR_ATTRIBUTE_READ_ONLY"):
            user.copy(private, {name: value})
    for name in ("CKA_ALWAYS_SENSITIVE", "CKA_NEVER_EXTRACTABLE", "CKA_LOCAL"):
        with pytest.raises(P11Error, match="CKR_ATTRIBUTE_READ_ONLY"):
            user.set(private, **{name: True})
    assert user.get(private, "CKA_ALWAYS_SENSITIVE") == user.get(private, "CKA_NEVER_EXTRACTABLE") == b"\0"
    with pytest.raises(P11Error, match="CKR_ATTRIBUTE_SENSITIVE"):
        user.get(private, "CKA_VALUE")


def test_a_private_object_is_not_laid_open_by_copying(user: Session) -> None:
    _, private = user.sm2_pair()
    with pytest.raises(P11Error, match="CKR_TEMPLATE_INCONSISTENT"):
        user.copy(private, {"CKA_PRIVATE": False})


def test_an_unextractable_key_is_not_wrapped(user: Session) -> None:
    kek = user.generate_key("CKM_AES_KEY_GEN", AES)
    sm4 = user.generate_key("CKM_SM4_KEY_GEN", {"CKA_WRAP": True, "CKA_UNWRAP": True})
    _, private = user.sm2_pair()
    secret = user.generate_key("CKM_AES_KEY_GEN", {"CKA_VALUE_LEN": 16})
    for key in (private, secret):
        for name, by, iv in (
            ("CKM_AES_KEY_WRAP", kek, b""),
            ("CKM_AES_KEY_WRAP_PAD", kek, b""),
            ("CKM_AES_CBC_PAD", kek, bytes(16)),
            ("CKM_SM4_CBC_PAD", sm4, bytes(16)),
        ):
            with pytest.raises(P11Error, match="CKR_KEY_UNEXTRACTABLE"):
                user.wrap(name, by, key, iv)


@pytest.mark.parametrize(
    ("name", "iv"),
    [("CKM_AES_KEY_WRAP_PAD", b""), ("CKM_AES_CBC_PAD", b"i" * 16), ("CKM_SM4_CBC_PAD", b"i" * 16)],
)
def test_an_extractable_key_comes_back_from_its_wrapping(user: Session, name: str, iv: bytes) -> None:
    if "SM4" in name:
        kek = user.generate_key("CKM_SM4_KEY_GEN", {"CKA_WRAP": True, "CKA_UNWRAP": True})
    else:
        kek = user.generate_key("CKM_AES_KEY_GEN", AES)
    public, private = user.generate_pair("CKM_SM2_KEY_PAIR_GEN", {}, {"CKA_EXTRACTABLE": True})
    wrapped = user.wrap(name, kek, private, iv)
    template = {"CKA_CLASS": CK["CKO_PRIVATE_KEY"], "CKA_KEY_TYPE": CK["CKK_SM2"]}
    back = user.unwrap(name, kek, wrapped, template, iv)
    assert user.get(back, "CKA_PUBLIC_KEY_INFO") == user.get(public, "CKA_PUBLIC_KEY_INFO")
    assert user.get(back, "CKA_ALWAYS_SENSITIVE") == user.get(back, "CKA_LOCAL") == b"\0"
    assert user.verify("CKM_SM2", public, bytes(32), user.sign("CKM_SM2", back, bytes(32)))
    with pytest.raises(P11Error, match=r"CKR_WRAPPED_KEY_(INVALID|LEN_RANGE)"):
        user.unwrap(name, kek, bytes([wrapped[0] ^ 1]) + wrapped[1:-1] + b"\0", template, iv)


def test_without_a_login_there_are_no_keys(sim: Module) -> None:
    user = sim.open().login()
    public, private = user.sm2_pair(token=True)
    assert set(user.find()) == {public, private}
    user.C_Logout()
    assert user.find() == [public]
    with pytest.raises(P11Error, match="CKR_KEY_HANDLE_INVALID"):
        user.sign("CKM_SM2", private, bytes(32))
    with pytest.raises(P11Error, match="CKR_USER_NOT_LOGGED_IN"):
        user.sm2_pair(token=True)
    user.login(b"87654321", "CKU_SO")
    assert user.find() == [public]


def test_a_logout_ends_what_was_begun(sim: Module) -> None:
    user, other = sim.open().login(), sim.open()
    _, private = user.sm2_pair(token=True)
    from ctypes import byref, c_ulong

    from .p11 import mechanism

    other.C_SignInit(byref(mechanism("CKM_SM2")), c_ulong(private))
    user.C_Logout()
    with pytest.raises(P11Error, match="CKR_OPERATION_NOT_INITIALIZED"):
        other.C_Sign(bytes(32), c_ulong(32), bytes(64), byref(c_ulong(64)))


def test_the_files_do_not_hold_the_secret(sim: Module, settings: Path) -> None:
    user = sim.open().login()
    attributes = {"CKA_KEY_TYPE": CK["CKK_SM2"], "CKA_EC_PARAMS": SM2_PARAMS, "CKA_TOKEN": True}
    secret = b"this would be the private number"
    user.create(attributes | {"CKA_CLASS": CK["CKO_PRIVATE_KEY"], "CKA_VALUE": secret})
    note = b"a confidential note of the officer"
    private = {"CKA_CLASS": CK["CKO_DATA"], "CKA_TOKEN": True, "CKA_PRIVATE": True, "CKA_VALUE": note}
    held = user.create(private)
    assert user.get(held, "CKA_VALUE") == note
    files = list(settings.joinpath("0").iterdir())
    assert len([path for path in files if path.suffix == ".obj"]) == 2
    for path in files:
        content = path.read_bytes()
        assert secret not in content
        assert note not in content
        assert USER_PIN not in content
        assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_was_tampered_with_is_no_key(loaded: Module, settings: Path) -> None:
    """Flip bytes of a key's file: the object is gone, or does not sign; never does it sign differently."""
    with loaded.running():
        loaded.make_token()
        user = loaded.open().login()
        public, private = user.sm2_pair(token=True, CKA_ID=b"k")
        user.destroy(public)
        assert private
    (path,) = settings.joinpath("0").glob("*.obj")
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 0x40
        path.write_bytes(bad)
        with loaded.running():
            assert loaded.open().login().find() == [], position
    # One who mends the checksum still meets the seal: every attribute of the key is bound to it.
    import hashlib

    usage = bytearray(good[:-32])
    at = bytes(usage).index((CK["CKA_EXTRACTABLE"]).to_bytes(8) + (1).to_bytes(4)) + 12
    assert usage[at] == 0
    usage[at] = 1
    path.write_bytes(bytes(usage) + hashlib.sha256(usage).digest())
    with loaded.running():
        user = loaded.open().login()
        (private,) = user.find()
        with pytest.raises(P11Error, match="CKR_DEVICE_ERROR"):
            user.sign("CKM_SM2", private, bytes(32))
    path.write_bytes(good)
    with loaded.running():
        user = loaded.open().login()
        assert len(user.sign("CKM_SM2", user.find()[0], bytes(32))) == 64


def test_foreign_attributes_are_refused(user: Session) -> None:
    for attributes, problem in (
        ({"CKA_CLASS": CK["CKO_DATA"], "CKA_SENSITIVE": True}, "CKR_ATTRIBUTE_TYPE_INVALID"),
        ({"CKA_CLASS": CK["CKO_DATA"], "CKA_TOKEN": b"\2"}, "CKR_ATTRIBUTE_VALUE_INVALID"),
        ({"CKA_CLASS": b"\0\0"}, "CKR_ATTRIBUTE_VALUE_INVALID"),
        ({"CKA_VALUE": b"x"}, "CKR_TEMPLATE_INCOMPLETE"),
        ({"CKA_CLASS": CK["CKO_DATA"], "CKA_UNIQUE_ID": b"x"}, "CKR_ATTRIBUTE_READ_ONLY"),
        ({"CKA_CLASS": CK["CKO_SECRET_KEY"], "CKA_KEY_TYPE": CK["CKK_AES"]}, "CKR_TEMPLATE_INCOMPLETE"),
    ):
        with pytest.raises(P11Error, match=problem):
            user.create(attributes)


def test_certificates_and_data_objects(user: Session) -> None:
    certificate = user.create(
        {
            "CKA_CLASS": CK["CKO_CERTIFICATE"],
            "CKA_CERTIFICATE_TYPE": CK["CKC_X_509"],
            "CKA_SUBJECT": b"0\0",
            "CKA_VALUE": b"0\0",
            "CKA_ID": b"7",
            "CKA_TOKEN": True,
        }
    )
    data = user.create(
        {"CKA_CLASS": CK["CKO_DATA"], "CKA_LABEL": b"note", "CKA_VALUE": b"v", "CKA_TOKEN": True}
    )
    assert user.find(CKA_ID=b"7") == [certificate]
    assert user.find(CKA_LABEL=b"note") == [data]
    user.set(data, CKA_VALUE=b"another")
    assert user.get(data, "CKA_VALUE") == b"another"
    user.destroy(data)
    with pytest.raises(P11Error, match="CKR_OBJECT_HANDLE_INVALID"):
        user.get(data, "CKA_VALUE")
