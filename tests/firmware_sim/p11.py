"""A thin ctypes face of the module, for the tests only: every entry point by name, errors as exceptions.

It knows nothing of python-pkcs11 and checks nothing by itself, so that a test can also call what a careful
library would never call.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_ubyte, c_ulong, c_void_p
from pathlib import Path
from typing import Any, Self

HEADER = Path(__file__).parents[2] / "firmware-sim" / "include" / "pkcs11.h"


def _constants() -> dict[str, int]:
    """Read the numbers from the header, so that tests and module cannot disagree about them."""
    text = HEADER.read_text()
    found = {
        name: int(number, 16) if number.startswith("0x") else int(number)
        for name, number in re.findall(r"#define (CK[A-Z]_\w+) (0x[0-9A-Fa-f]+|\d+)UL", text)
    }
    found |= {
        name: 0x80000000 + int(number, 16)
        for name, number in re.findall(r"#define (CK[A-Z]_\w+) \(CK_VENDOR \+ (0x[0-9A-Fa-f]+)UL\)", text)
    }
    found |= {name: int(number, 16) for name, number in re.findall(r"R\((CKR_\w+), (0x[0-9A-F]+)UL\)", text)}
    return found


CK = _constants()
RV_NAMES = {number: name for name, number in CK.items() if name.startswith("CKR_")}
SM2_PARAMS = bytes.fromhex("06082a811ccf5501822d")
P256_PARAMS = bytes.fromhex("06082a8648ce3d030107")
UNAVAILABLE = 2**64 - 1
USER_PIN, SO_PIN = b"1234", b"87654321"


class P11Error(Exception):
    """A call that did not return CKR_OK."""

    def __init__(self, call: str, rv: int) -> None:
        self.call, self.rv, self.name = call, rv, RV_NAMES.get(rv, hex(rv))
        super().__init__(f"{call}: {self.name}")


class Attribute(Structure):
    _fields_ = [("type", c_ulong), ("value", c_void_p), ("len", c_ulong)]


class Mechanism(Structure):
    _fields_ = [("type", c_ulong), ("parameter", c_void_p), ("parameter_len", c_ulong)]


class PssParameters(Structure):
    _fields_ = [("hash", c_ulong), ("mgf", c_ulong), ("salt_len", c_ulong)]


class InitializeArgs(Structure):
    _fields_ = [*((name, c_void_p) for name in "abcd"), ("flags", c_ulong), ("reserved", c_void_p)]


class TokenInfo(Structure):
    _fields_ = [
        ("label", c_ubyte * 32),
        ("manufacturer", c_ubyte * 32),
        ("model", c_ubyte * 16),
        ("serial", c_ubyte * 16),
        ("flags", c_ulong),
        ("numbers", c_ulong * 10),
        ("versions", c_ubyte * 4),
        ("time", c_ubyte * 16),
    ]


class Interface(Structure):
    _fields_ = [("name", c_char_p), ("functions", c_void_p), ("flags", c_ulong)]


class BatchFunctions(Structure):
    _fields_ = [("version", c_ubyte * 2), ("sign_batch", c_void_p)]


Value = bytes | bool | int


def template(attributes: dict[str, Value]) -> Any:
    """A CK_ATTRIBUTE array; it keeps its values alive."""
    array = (Attribute * max(len(attributes), 1))()
    array.keep = []
    for item, (name, value) in zip(array, attributes.items(), strict=False):
        if isinstance(value, bool):
            raw = bytes([value])
        elif isinstance(value, int):
            raw = value.to_bytes(8, "little")
        else:
            raw = value
        buffer = ctypes.create_string_buffer(raw, len(raw)) if raw else None
        array.keep.append(buffer)
        item.type = CK[name]
        item.value = ctypes.cast(buffer, c_void_p) if buffer else None
        item.len = len(raw)
    return array


def mechanism(name: str, parameter: bytes | Structure = b"") -> Mechanism:
    raw = bytes(parameter)
    result = Mechanism(CK[name], None, len(raw))
    if raw:
        result.keep = ctypes.create_string_buffer(raw, len(raw))
        result.parameter = ctypes.cast(result.keep, c_void_p)
    return result


class Session:
    """One session; the handle is `h`."""

    def __init__(self, module: "Module", handle: int) -> None:
        self.module, self.h = module, handle

    def __getattr__(self, name: str) -> Any:
        """`session.C_Xyz(...)` is `module.C_Xyz(handle, ...)`."""
        if not name.startswith("C_"):
            raise AttributeError(name)
        return lambda *arguments: self.module.call(name, c_ulong(self.h), *arguments)

    def login(self, pin: bytes = USER_PIN, user: str = "CKU_USER") -> Self:
        self.C_Login(c_ulong(CK[user]), pin, c_ulong(len(pin)))
        return self

    def generate_pair(
        self, name: str, public: dict[str, Value] | None = None, private: dict[str, Value] | None = None
    ) -> tuple[int, int]:
        a, b = c_ulong(), c_ulong()
        public, private = public or {}, private or {}
        self.C_GenerateKeyPair(
            byref(mechanism(name)),
            template(public),
            c_ulong(len(public)),
            template(private),
            c_ulong(len(private)),
            byref(a),
            byref(b),
        )
        return a.value, b.value

    def sm2_pair(self, token: bool = False, **more: Value) -> tuple[int, int]:
        common: dict[str, Value] = {"CKA_TOKEN": token, **more}
        return self.generate_pair("CKM_SM2_KEY_PAIR_GEN", common, common)

    def p256_pair(self, token: bool = False, **more: Value) -> tuple[int, int]:
        common: dict[str, Value] = {"CKA_TOKEN": token, **more}
        return self.generate_pair("CKM_EC_KEY_PAIR_GEN", {"CKA_EC_PARAMS": P256_PARAMS, **common}, common)

    def generate_key(self, name: str, attributes: dict[str, Value]) -> int:
        handle = c_ulong()
        self.C_GenerateKey(
            byref(mechanism(name)), template(attributes), c_ulong(len(attributes)), byref(handle)
        )
        return handle.value

    def create(self, attributes: dict[str, Value]) -> int:
        handle = c_ulong()
        self.C_CreateObject(template(attributes), c_ulong(len(attributes)), byref(handle))
        return handle.value

    def copy(self, handle: int, attributes: dict[str, Value]) -> int:
        result = c_ulong()
        self.C_CopyObject(c_ulong(handle), template(attributes), c_ulong(len(attributes)), byref(result))
        return result.value

    def destroy(self, handle: int) -> None:
        self.C_DestroyObject(c_ulong(handle))

    def set(self, handle: int, **attributes: Value) -> None:
        self.C_SetAttributeValue(c_ulong(handle), template(attributes), c_ulong(len(attributes)))

    def get(self, handle: int, name: str) -> bytes:
        item = (Attribute * 1)(Attribute(CK[name], None, 0))
        self.C_GetAttributeValue(c_ulong(handle), item, c_ulong(1))
        buffer = ctypes.create_string_buffer(max(item[0].len, 1))
        item[0].value = ctypes.cast(buffer, c_void_p)
        self.C_GetAttributeValue(c_ulong(handle), item, c_ulong(1))
        return buffer.raw[: item[0].len]

    def find(self, **attributes: Value) -> list[int]:
        self.C_FindObjectsInit(template(attributes), c_ulong(len(attributes)))
        found, handles, count = [], (c_ulong * 64)(), c_ulong(1)
        while count.value:
            self.C_FindObjects(handles, c_ulong(64), byref(count))
            found += handles[: count.value]
        self.C_FindObjectsFinal()
        return found

    def sign(self, name: str, key: int, data: bytes, parameter: bytes | Structure = b"") -> bytes:
        self.C_SignInit(byref(mechanism(name, parameter)), c_ulong(key))
        out, out_len = ctypes.create_string_buffer(1024), c_ulong(1024)
        self.C_Sign(data, c_ulong(len(data)), out, byref(out_len))
        return out.raw[: out_len.value]

    def verify(
        self, name: str, key: int, data: bytes, signature: bytes, parameter: bytes | Structure = b""
    ) -> bool:
        self.C_VerifyInit(byref(mechanism(name, parameter)), c_ulong(key))
        try:
            self.C_Verify(data, c_ulong(len(data)), signature, c_ulong(len(signature)))
        except P11Error as error:
            if error.name in ("CKR_SIGNATURE_INVALID", "CKR_SIGNATURE_LEN_RANGE"):
                return False
            raise
        return True

    def digest(self, name: str, data: bytes) -> bytes:
        self.C_DigestInit(byref(mechanism(name)))
        out, out_len = ctypes.create_string_buffer(64), c_ulong(64)
        self.C_Digest(data, c_ulong(len(data)), out, byref(out_len))
        return out.raw[: out_len.value]

    def wrap(self, name: str, wrapping: int, key: int, parameter: bytes = b"") -> bytes:
        out, out_len = ctypes.create_string_buffer(8192), c_ulong(8192)
        self.C_WrapKey(
            byref(mechanism(name, parameter)), c_ulong(wrapping), c_ulong(key), out, byref(out_len)
        )
        return out.raw[: out_len.value]

    def unwrap(
        self, name: str, key: int, wrapped: bytes, attributes: dict[str, Value], parameter: bytes = b""
    ) -> int:
        handle = c_ulong()
        self.C_UnwrapKey(
            byref(mechanism(name, parameter)),
            c_ulong(key),
            wrapped,
            c_ulong(len(wrapped)),
            template(attributes),
            c_ulong(len(attributes)),
            byref(handle),
        )
        return handle.value

    def public_point(self, public_key: int) -> bytes:
        """64 bytes, x || y."""
        return self.get(public_key, "CKA_EC_POINT")[3:]

    def close(self) -> None:
        self.C_CloseSession()


class Module:
    """The loaded module. `with module.running():` initialises and finalises it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = CDLL(str(path))

    def call(self, name: str, *arguments: Any) -> None:
        function = getattr(self.library, name)
        function.restype = c_ulong
        rv = function(*arguments)
        if rv != CK["CKR_OK"]:
            raise P11Error(name, rv)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("C_"):
            raise AttributeError(name)
        return lambda *arguments: self.call(name, *arguments)

    @contextmanager
    def running(self) -> Iterator[Self]:
        self.C_Initialize(byref(InitializeArgs(flags=CK["CKF_OS_LOCKING_OK"])))
        try:
            yield self
        finally:
            self.C_Finalize(None)

    def slots(self) -> list[int]:
        count = c_ulong()
        self.C_GetSlotList(c_ubyte(1), None, byref(count))
        slots = (c_ulong * count.value)()
        self.C_GetSlotList(c_ubyte(1), slots, byref(count))
        return list(slots)

    def open(self, slot: int = 0, rw: bool = True) -> Session:
        handle = c_ulong()
        flags = CK["CKF_SERIAL_SESSION"] | (CK["CKF_RW_SESSION"] if rw else 0)
        self.C_OpenSession(c_ulong(slot), c_ulong(flags), None, None, byref(handle))
        return Session(self, handle.value)

    def init_token(self, slot: int = 0, label: str = "test", so_pin: bytes = SO_PIN) -> None:
        self.C_InitToken(c_ulong(slot), so_pin, c_ulong(len(so_pin)), label.encode().ljust(32))

    def make_token(self, slot: int = 0, label: str = "test") -> None:
        """A token with both PINs, and nobody logged in."""
        self.init_token(slot, label)
        session = self.open(slot).login(SO_PIN, "CKU_SO")
        session.C_InitPIN(USER_PIN, c_ulong(len(USER_PIN)))
        session.close()

    def token_info(self, slot: int = 0) -> TokenInfo:
        info = TokenInfo()
        self.C_GetTokenInfo(c_ulong(slot), byref(info))
        return info

    def sign_batch(
        self, session: Session, name: str, key: int, digests: Sequence[bytes]
    ) -> list[bytes | None]:
        """Through the vendor interface; None where an item failed."""
        interface = POINTER(Interface)()
        self.C_GetInterface(b"Vendor cloud-seal batch", None, byref(interface), c_ulong(0))
        functions = ctypes.cast(interface.contents.functions, POINTER(BatchFunctions)).contents
        function = ctypes.CFUNCTYPE(
            c_ulong, c_ulong, c_void_p, c_ulong, c_ulong, c_char_p, c_char_p, c_char_p, c_void_p
        )(functions.sign_batch)
        count = len(digests)
        signatures = ctypes.create_string_buffer(64 * count + 1)
        statuses = ctypes.create_string_buffer(count + 1)
        done, item = c_ulong(), mechanism(name)
        rv = function(
            session.h,
            ctypes.addressof(item),
            key,
            count,
            b"".join(digests),
            ctypes.cast(signatures, c_char_p),
            ctypes.cast(statuses, c_char_p),
            ctypes.addressof(done),
        )
        if rv:
            raise P11Error("C_SignBatch", rv)
        result = [
            signatures.raw[64 * i : 64 * i + 64] if statuses.raw[i] == 0 else None for i in range(count)
        ]
        assert done.value == sum(item is not None for item in result)
        return result
