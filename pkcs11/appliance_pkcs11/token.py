"""The token of a signer worker: module, sessions, key pairs, and the reasons to refuse a key.

For: everything that needs python-pkcs11. This is the one module of ours that imports the library ``pkcs11``.
Not for: the signing loop (``_batch``) and not for the link (``worker``).

Rules:

* The module is opened and initialised natively, with ``CKF_OS_LOCKING_OK`` where the profile says so.
  python-pkcs11 would call ``C_Initialize(NULL)``, a promise of one thread, while it releases the GIL around
  every call.
* The PIN goes from one bytearray into ``C_Login`` and is wiped by the native code; it never becomes a
  ``str``. Log-in is tried once, and not at all when the token says that the next failure locks it.
* A key is used only if it is private, sensitive, never extractable, was never readable, may sign without
  asking for the PIN again, and lies on the curve of its algorithm. Its public half is what the token says it
  is; whether the two halves match, the front decides: it checks the self-test signature with an engine of its
  own.
* Object handles are found once, when a key is loaded.
* An error either concerns the request (``Refused``) or the token (``TokenLost``: this process is of no more
  use).

A crash while a key pair is created may leave a pair in the token that no registry knows; ``LIST_KEYS`` shows
it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pkcs11._pkcs11 import lib
from pkcs11.attributes import AttributeMapper
from pkcs11.constants import Attribute, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.mechanisms import Mechanism

from appliance_pkcs11 import _batch
from appliance_pkcs11.cryptoki import PIN_ERRORS, return_code_name
from appliance_pkcs11.link import SIGNATURE_LEN, Form
from appliance_pkcs11.profile import ORDERS, AlgorithmProfile, TokenProfile
from pkcs11 import exceptions as errors

_ULONG: Final = struct.Struct("@L")

_CONCERN_THE_TOKEN: Final = (
    errors.DeviceError,
    errors.DeviceMemory,
    errors.DeviceRemoved,
    errors.FunctionFailed,
    errors.GeneralError,
    errors.HostMemory,
    errors.SessionClosed,
    errors.SessionHandleInvalid,
    errors.SlotIDInvalid,
    errors.TokenNotPresent,
    errors.TokenNotRecognised,
    errors.UserNotLoggedIn,
)
"""After these nothing the process asks of the token will work; nor after an error without its own class."""

_UNREADABLE: Final = (errors.AttributeTypeInvalid, errors.AttributeSensitive, errors.FunctionFailed)
"""How modules say that an object has no such attribute, or does not tell."""


class StartError(Exception):
    """The worker cannot start. ``fatal``: starting again with the same profile and PIN cannot succeed."""

    def __init__(
        self,
        stage: str,
        error: str,
        detail: str,
        *,
        hint: str = "",
        pin_error: bool = False,
        fatal: bool = False,
    ) -> None:
        super().__init__(detail)
        self.stage = stage
        self.error = error
        self.detail = detail
        self.hint = hint
        self.pin_error = pin_error
        self.fatal = fatal


class Refused(Exception):  # named for what it says to whoever asked
    """A request failed; the token is well."""

    def __init__(self, error: str, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail
        self.hint = hint


class TokenLost(Exception):  # named for what happened
    """The token or the module failed; only a new process may do better."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What the token says of one private key. ``reason`` says why it may not be used; empty if it may."""

    key_id: bytes
    label: str
    algorithm: str
    point: bytes
    attributes: dict[str, bool | None]
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A key that may sign, and the self-test signature over the front's challenge."""

    facts: KeyFacts
    signer: _batch.Key
    method: _batch.Method
    form: Form
    signature: bytes


class _Library(lib):
    """python-pkcs11 over the module that ``_batch`` has opened and initialised.

    Its own ``initialized`` stays false, so that it never finalises what it has not initialised.
    """

    def initialize(self) -> None:
        """Do nothing: ``_batch.Module`` has called C_Initialize, with the locking the profile asks for."""


class Token:
    """An open token with its sessions. A session is used by one thread at a time; the caller sees to that."""

    def __init__(
        self, profile: TokenProfile, module: _batch.Module, library: Any, token: Any, sessions: list[Any]
    ) -> None:
        self.profile = profile
        self.module = module
        self.sessions = sessions
        self._library = library
        self._token = token

    @classmethod
    def open(cls, profile: TokenProfile) -> Token:
        """Load the module, find the token, open the sessions; ``StartError`` says what failed."""
        try:
            module = _batch.Module(profile.module, os_locking=profile.locking == "os")
            library = _Library(_batch.__file__)  # which answers with the function list of the module
        except OSError as error:
            raise StartError("module", "", str(error), hint="check `module` in the token profile") from error
        except _batch.CryptokiError as error:
            name = return_code_name(error.args[1])
            raise StartError("module", name, f"{error.args[0]}: {name}", hint=_INITIALIZE_HINT) from error
        except errors.PKCS11Error as error:
            raise StartError("module", _code_name(error), f"C_GetInfo: {_code_name(error)}") from error
        if profile.batch != "auto" and profile.batch not in module.methods:
            offered = ", ".join(module.methods)
            raise StartError(
                "module",
                "",
                f"the module has no batch method {profile.batch!r}",
                hint=f"it has {offered}",
                fatal=True,
            )
        token = _find_token(library, profile)
        writable = not token.flags & TokenFlag.WRITE_PROTECTED
        try:
            sessions = [token.open(rw=writable, attribute_mapper=_mapper()) for _ in range(profile.sessions)]
        except errors.PKCS11Error as error:
            detail = f"C_OpenSession: {_code_name(error)}"
            raise StartError(
                "session", _code_name(error), detail, hint="lower `workers` or `sessions`?"
            ) from error
        return cls(profile, module, library, token, sessions)

    def login(self, pin: bytearray) -> None:
        """Log in once. ``pin`` is wiped whatever happens."""
        flags = self._token.flags
        try:
            if flags & TokenFlag.USER_PIN_LOCKED:
                raise _pin_error(
                    "CKR_PIN_LOCKED", "the token says that the user PIN is locked", "unlock it as SO"
                )
            if flags & TokenFlag.USER_PIN_FINAL_TRY:
                raise _pin_error(
                    "CKR_PIN_INCORRECT",
                    "the token says that one more wrong PIN locks it; log-in was not tried",
                    "log in once by hand with the right PIN, then start again",
                )
            if not pin and not flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
                raise _pin_error(
                    "CKR_PIN_LEN_RANGE", "the PIN is empty", "put the PIN into the file the config names"
                )
            try:
                self.module.login(self.sessions[0].handle, pin)
            except _batch.CryptokiError as error:
                name = return_code_name(error.args[1])
                if name in PIN_ERRORS:
                    raise _pin_error(
                        name, f"C_Login: {name}", "it was tried once and will not be again"
                    ) from error
                if name != "CKR_USER_ALREADY_LOGGED_IN":  # some modules share the state between processes
                    raise StartError("login", name, f"C_Login: {name}") from error
        finally:
            pin[:] = bytes(len(pin))

    def describe(self) -> dict[str, Any]:
        """What READY tells about the token."""
        token, library = self._token, self._library
        return {
            "token_label": token.label,
            "token_serial": _serial(token),
            "manufacturer": token.manufacturer_id,
            "model": token.model,
            "firmware": ".".join(map(str, token.firmware_version)),
            "module": f"{library.library_description} {'.'.join(map(str, library.library_version))}".strip(),
            "methods": list(self.module.methods),
            "method": self.module.methods[0] if self.profile.batch == "auto" else self.profile.batch,
            "sessions": len(self.sessions),
            "flags": sorted(flag.name.lower() for flag in TokenFlag if flag & token.flags and flag.name),
        }

    def load_key(self, session: Any, key_id: bytes, challenge: bytes, algorithm: str | None) -> LoadedKey:
        """Find the key of that CKA_ID, check it, and sign ``challenge`` with it."""
        with _asking("look for the key"):
            private = _the_private_key(session, key_id)
            facts = self._facts(session, private)
        if facts.reason:
            raise Refused("", f"key {key_id.hex()} may not be used: {facts.reason}", hint=_KEY_HINT)
        if algorithm is not None and algorithm != facts.algorithm:
            raise Refused("", f"key {key_id.hex()} is for {facts.algorithm}, not for {algorithm}")
        return self._self_test(session, private.handle, facts, challenge)

    def create_key(self, session: Any, key_id: bytes, label: str, algorithm: str) -> KeyFacts:
        """Make a key pair that never leaves the token; one the token made otherwise is destroyed again."""
        how = self.profile.algorithms.get(algorithm)
        if how is None:
            known = ", ".join(self.profile.algorithms)
            raise Refused(
                "", f"profile {self.profile.name} has no algorithm {algorithm!r}", hint=f"it has {known}"
            )
        with _asking("create a key pair"):
            if list(session.get_objects({Attribute.ID: key_id})):
                raise Refused("", f"the token has an object with ID {key_id.hex()} already")
            common = {Attribute.KEY_TYPE: how.key_type, Attribute.TOKEN: True}
            curve = {Attribute.EC_PARAMS: how.ec_params} if how.ec_params else {}
            parameters = session.create_domain_parameters(how.key_type, curve, local=True)
            _, private = parameters.generate_keypair(
                id=key_id,
                label=label,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                mechanism=_mechanism(how.key_pair_mechanism),
                public_template={**common, Attribute.PRIVATE: False},
                private_template={
                    **common,
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                },
            )
            facts = self._facts(session, private)
        if facts.reason:
            self.destroy_key(session, key_id)
            raise Refused(
                "", f"the token made a key that may not be used: {facts.reason}; it was destroyed again"
            )
        return facts

    def list_keys(self, session: Any) -> list[KeyFacts]:
        """Every private key that the token shows, usable or not."""
        with _asking("list the keys"):
            found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            return [self._facts(session, private) for private in found]

    def destroy_key(self, session: Any, key_id: bytes) -> None:
        """Destroy both halves of the pair, the private one first."""
        with _asking("destroy the key"):
            private = _the_private_key(session, key_id)
            public = list(
                session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id})
            )
            private.destroy()
            for half in public:
                half.destroy()

    def _facts(self, session: Any, private: Any) -> KeyFacts:
        key_id = _read(private, Attribute.ID) or b""
        public_keys = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: key_id}
        public = next(iter(list(session.get_objects(public_keys))), None) if key_id else None
        curve = _read(private, Attribute.EC_PARAMS) or (
            _read(public, Attribute.EC_PARAMS) if public else None
        )
        algorithm = self._algorithm(_read(private, Attribute.KEY_TYPE), curve)
        point = b""
        if algorithm:
            half = public if self.profile.algorithms[algorithm].public_point == "public_key" else private
            point = _point(_read(half, Attribute.EC_POINT)) if half else b""
        attributes = {name: _read(private, attribute) for name, attribute, _, _ in _CHECKS}
        return KeyFacts(
            key_id=key_id,
            label=_read(private, Attribute.LABEL) or "",
            algorithm=algorithm,
            point=point,
            attributes=attributes,
            reason=_reason_to_refuse(algorithm, point, attributes),
        )

    def _algorithm(self, key_type: int | None, curve: bytes | None) -> str:
        for label, how in self.profile.algorithms.items():
            if how.key_type == key_type and (not how.ec_params or how.ec_params == curve):
                return label
        return ""

    def _self_test(self, session: Any, handle: int, facts: KeyFacts, challenge: bytes) -> LoadedKey:
        how = self.profile.algorithms[facts.algorithm]
        form = Form.DIGESTS if how.hashes == "host" else Form.MESSAGES
        lengths = None if form is Form.DIGESTS else struct.pack("!I", len(challenge))
        rv = item_rv = 0
        for method in self._methods(how):
            signer = _batch.Key(
                self.module,
                handle,
                how.sign_mechanism,
                parameter=how.mechanism_parameter,
                order=ORDERS[facts.algorithm],
                der=how.signature_form == "der",
                method=method,
            )
            status, signature = bytearray(1), bytearray(SIGNATURE_LEN)
            _, rv, item_rv, _ = signer.sign(session.handle, lengths, challenge, status, signature)
            if status == b"\0":
                return LoadedKey(facts, signer, method, form, bytes(signature))
        # Whatever stopped a better way, the last one is every module's own: what it says is what counts.
        if rv:
            raise TokenLost(return_code_name(rv), f"self-test signature: {return_code_name(rv)}")
        name = return_code_name(item_rv)
        raise Refused(
            name,
            f"key {facts.key_id.hex()} does not sign: {name}",
            hint="check sign_mechanism in the profile",
        )

    def _methods(self, how: AlgorithmProfile) -> list[_batch.Method]:
        """What to try a key with, best first: a module may offer more than it can do for this mechanism."""
        if self.profile.batch != "auto":
            return [self.profile.batch]
        vendor_fits = how.hashes == "host" and how.signature_form == "raw"
        return [method for method in self.module.methods if method != "vendor" or vendor_fits]


_INITIALIZE_HINT: Final = (
    "SoftHSM2 fails now and then when several processes start at once: stagger and try again"
)
_KEY_HINT: Final = "use a key that was made inside the token by `cloud-seal key create`"

_CHECKS: Final = (
    ("private", Attribute.PRIVATE, True, "it is not private: it can be seen without the PIN"),
    ("sensitive", Attribute.SENSITIVE, True, "it is not sensitive: its value can be read"),
    ("extractable", Attribute.EXTRACTABLE, False, "it is extractable: it can be wrapped out of the token"),
    ("never_extractable", Attribute.NEVER_EXTRACTABLE, True, "it was extractable once, or was imported"),
    ("always_sensitive", Attribute.ALWAYS_SENSITIVE, True, "it was not sensitive once, or was imported"),
    ("sign", Attribute.SIGN, True, "it may not sign"),
    ("always_authenticate", Attribute.ALWAYS_AUTHENTICATE, False, "it asks for the PIN at every signature"),
)
"""Name, attribute, the value it must have, and the reason if it has not."""

_MAY_BE_UNTOLD: Final = frozenset({"always_sensitive", "always_authenticate"})
"""Attributes that older tokens do not have; where they are told, they must be right."""


def _reason_to_refuse(algorithm: str, point: bytes, attributes: dict[str, bool | None]) -> str:
    for name, _, wanted, reason in _CHECKS:
        value = attributes[name]
        if value is None and name not in _MAY_BE_UNTOLD:
            return f"the token does not tell whether it is {name.replace('_', ' ')}"
        if value is not None and value is not wanted:
            return reason
    if not algorithm:
        return "its type and curve belong to no algorithm of the token profile"
    if not point:
        return "the token does not give its public point"
    return ""


def _point(block: bytes | None) -> bytes:
    """CKA_EC_POINT as ``x || y``. A DER OCTET STRING is the rule; some vendors give the point bare."""
    if block is None:
        return b""
    for prefix in (b"\x04\x41\x04", b"\x04\x40", b"\x04", b""):
        if len(block) == len(prefix) + 64 and block.startswith(prefix):
            return block[len(prefix) :]
    return b""


def _find_token(library: Any, profile: TokenProfile) -> Any:
    wanted = f"label {profile.token_label!r}" if profile.token_label else f"serial {profile.token_serial!r}"
    try:
        tokens = _tokens(library)
    except errors.PKCS11Error as error:
        raise StartError(
            "token", _code_name(error), f"the slots cannot be listed: {_code_name(error)}"
        ) from error
    if profile.token_label:
        found = [token for token in tokens if token.label == profile.token_label]
    else:
        found = [token for token in tokens if _serial(token) == profile.token_serial]
    if len(found) == 1:
        return found[0]
    if found:
        raise StartError(
            "token",
            "",
            f"{len(found)} tokens have {wanted}",
            hint="name it by token_serial instead",
            fatal=True,
        )
    seen = ", ".join(f"{token.label!r} (serial {_serial(token)})" for token in tokens)
    hint = f"the module shows {seen or 'no token'}"
    raise StartError("token", "CKR_TOKEN_NOT_PRESENT", f"no token has {wanted}", hint=hint)


def _tokens(library: Any) -> list[Any]:
    """The initialised tokens. The library's own search reads every mechanism list too, for nothing."""
    found = []
    for slot in library.get_slots(token_present=True):
        try:
            token = slot.get_token()
        except (errors.TokenNotPresent, errors.TokenNotRecognised):  # taken out since the slots were listed
            continue
        if token.flags & TokenFlag.TOKEN_INITIALIZED:
            found.append(token)
    return found


def _serial(token: Any) -> str:
    return bytes(token.serial).rstrip(b"\0 ").decode("utf-8", "replace")


def _the_private_key(session: Any, key_id: bytes) -> Any:
    found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}))
    if len(found) != 1:
        raise Refused(
            "", f"the token has {len(found) or 'no'} private key{'s'[: len(found)]} with ID {key_id.hex()}"
        )
    return found[0]


def _read(item: Any, attribute: Attribute) -> Any:
    """An attribute, or None where the object has none or does not tell."""
    try:
        return item[attribute]
    except _UNREADABLE:
        return None


def _mapper() -> AttributeMapper:
    """python-pkcs11's attributes, with vendors' key types as numbers and labels that no byte can break."""
    mapper = AttributeMapper()
    mapper.register_handler(
        Attribute.KEY_TYPE, lambda number: _ULONG.pack(number), lambda block: _ULONG.unpack(block)[0]
    )
    mapper.register_handler(Attribute.LABEL, str.encode, lambda block: block.decode("utf-8", "replace"))
    return mapper


def _mechanism(number: int) -> Mechanism:
    """A mechanism as python-pkcs11 wants it; for a vendor's number, a member that it does not list."""
    try:
        return Mechanism(number)
    except ValueError:
        member = int.__new__(Mechanism, number)
        member._name_ = f"VENDOR_{number:08X}"
        member._value_ = number
        return member


def _pin_error(error: str, detail: str, hint: str) -> StartError:
    return StartError("login", error, detail, hint=hint, pin_error=True, fatal=True)


def _code_name(error: errors.PKCS11Error) -> str:
    """The CKR name of python-pkcs11's exception: ``PinIncorrect`` is CKR_PIN_INCORRECT."""
    if type(error) is errors.PKCS11Error:  # a code it has no class for: it is in the text, in hex or in words
        code = re.search(r"0x[0-9a-f]+", str(error))
        if code:
            return return_code_name(int(code[0], 16))
        return "CKR_CRYPTOKI_NOT_INITIALIZED" if "not initialized" in str(error) else "CKR_GENERAL_ERROR"
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", type(error).__name__)
    return "CKR_" + "_".join(words).upper().replace("CANCELLED", "CANCELED").replace(
        "RECOGNISED", "RECOGNIZED"
    )


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Sort what python-pkcs11 raises into ``Refused`` and ``TokenLost``."""
    try:
        yield
    except errors.PKCS11Error as error:
        name = _code_name(error)
        if isinstance(error, _CONCERN_THE_TOKEN) or type(error) is errors.PKCS11Error:
            raise TokenLost(name, f"{what}: {name}") from error
        raise Refused(name, f"{what}: {name}") from error
    except (struct.error, ValueError, NotImplementedError) as error:  # an attribute of a shape that cannot be
        raise Refused("", f"{what}: the module answered nonsense: {error}") from error
