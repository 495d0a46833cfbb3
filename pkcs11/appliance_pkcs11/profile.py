"""Token profiles: how one PKCS#11 module is spoken to.

For: the value that says which module, which token, how many workers and sessions, and, for each algorithm,
which numbers, who hashes and which form a signature has. Vendors differ in all of these, above all for SM2,
for which no standard number exists.
Not for: reading files (the front reads the YAML and knows file and line) and not for secrets: the PIN is no
part.

Rules:

* Unknown keys, wrong types and missing keys raise ``ProfileError``, which names the key, what was expected
  and what was got. The first fault found is the one reported.
* ``from_mapping(to_mapping(p)) == p``: the profile travels to the worker as JSON.
* More than one session means threads, and threads mean ``locking: os``: a module initialised without locking
  may be used by one thread only (PKCS#11 2.40, 5.4, C_Initialize).
* No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeVar

from appliance_pkcs11.cryptoki import KEY_TYPES, MECHANISMS

MAX_WORKERS: Final = 64
"""Processes for one token; each is an operating system process of about 20 MB."""
MAX_SESSIONS: Final = 256
"""Sessions, and so threads, in one worker; vendors ask for some 60 outstanding jobs per HSM."""
MAX_START_TIMEOUT_S: Final = 600
"""A network HSM may take minutes to come up; more than ten is a fault, not a start."""
MAX_PARAMETER_LEN: Final = 4096
"""A mechanism parameter is a handful of bytes; the limit only bounds what a profile may carry."""

ORDERS: Final = {
    "ecdsa-p256-sha256": bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"),
    "sm2-sm3": bytes.fromhex("fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54123"),
}
"""Algorithm label -> the order n of its group (SEC 2, 2.4.2; GB/T 32918.5): r and s lie in [1, n-1]."""

Hashes = Literal["host", "token"]
SignatureForm = Literal["raw", "der"]
PublicPoint = Literal["public_key", "private_key"]
Locking = Literal["os", "none"]
Batch = Literal["auto", "vendor", "message", "plain"]


class ProfileError(ValueError):
    """A token profile that cannot be used: which ``key`` is wrong, what was ``expected``, what it ``got``."""

    def __init__(self, key: str, expected: str, got: str) -> None:
        super().__init__(f"{key}: expected {expected}, got {got}")
        self.key = key
        self.expected = expected
        self.got = got


@dataclass(frozen=True, slots=True)
class AlgorithmProfile:
    """How the module makes and uses keys of one algorithm.

    ``hashes``: on the ``host`` a 32-byte digest goes in (for SM2 e = SM3(Z || M)), in the ``token`` the
    message does. ``ec_params`` is the DER of the curve's OID; empty where the vendor's key type implies the
    curve: it is then neither sent nor compared. ``public_point`` says which object carries CKA_EC_POINT.
    """

    key_type: int
    ec_params: bytes
    key_pair_mechanism: int
    sign_mechanism: int
    mechanism_parameter: bytes = b""
    hashes: Hashes = "host"
    signature_form: SignatureForm = "raw"
    public_point: PublicPoint = "public_key"


@dataclass(frozen=True, slots=True)
class TokenProfile:
    """One token and how it is spoken to. Exactly one of ``token_label`` and ``token_serial`` is not empty.

    ``environment`` holds variables the module reads (``SOFTHSM2_CONF``); they are no secrets. ``batch`` is
    the way to sign a batch: the best the module has, or the one named. ``tested`` says whether we ever ran
    it.
    """

    name: str
    module: str
    algorithms: Mapping[str, AlgorithmProfile]
    token_label: str = ""
    token_serial: str = ""
    environment: Mapping[str, str] | None = None
    workers: int = 1
    sessions: int = 1
    locking: Locking = "none"
    batch: Batch = "auto"
    start_timeout_s: int = 30
    tested: bool = False

    @classmethod
    def from_mapping(cls, mapping: object) -> TokenProfile:
        """Read a profile as YAML or JSON gives it, else ``ProfileError``."""
        reader = _Reader.over(mapping, "", {field.name for field in fields(cls)})
        profile = cls(
            name=reader.take("name", _name),
            module=reader.take("module", _absolute_path),
            algorithms=_algorithms(reader.take("algorithms", _anything)),
            token_label=reader.take("token_label", _text(32), ""),
            token_serial=reader.take("token_serial", _text(16), ""),
            environment=_environment(reader.take("environment", _anything, {})),
            workers=reader.take("workers", _count(MAX_WORKERS), 1),
            sessions=reader.take("sessions", _count(MAX_SESSIONS), 1),
            locking=reader.take("locking", _one_of("os", "none"), "none"),
            batch=reader.take("batch", _one_of("auto", "vendor", "message", "plain"), "auto"),
            start_timeout_s=reader.take("start_timeout_s", _count(MAX_START_TIMEOUT_S), 30),
            tested=reader.take("tested", _flag, False),
        )
        if bool(profile.token_label) == bool(profile.token_serial):
            got = "both" if profile.token_label else "neither"
            raise ProfileError("token_label", "either this or token_serial", got)
        if profile.sessions > 1 and profile.locking != "os":
            expected = "1, or locking: os (threads need a module initialised for them)"
            raise ProfileError("sessions", expected, f"{profile.sessions} with locking: {profile.locking}")
        for label, algorithm in profile.algorithms.items():
            if profile.batch == "vendor" and (algorithm.hashes, algorithm.signature_form) != ("host", "raw"):
                raise ProfileError(
                    "batch", f"another way for {label}", "vendor, which signs digests into r || s"
                )
        return profile

    def to_mapping(self) -> dict[str, object]:
        """The profile as plain values for JSON or YAML; of label and serial only the one that is used."""
        mapping: dict[str, object] = {
            "name": self.name,
            "tested": self.tested,
            "module": self.module,
            "environment": dict(self.environment or {}),
            "workers": self.workers,
            "sessions": self.sessions,
            "locking": self.locking,
            "batch": self.batch,
            "start_timeout_s": self.start_timeout_s,
            "algorithms": {
                label: {
                    "key_type": _number_name(algorithm.key_type, KEY_TYPES),
                    "ec_params": algorithm.ec_params.hex(),
                    "key_pair_mechanism": _number_name(algorithm.key_pair_mechanism, MECHANISMS),
                    "sign_mechanism": _number_name(algorithm.sign_mechanism, MECHANISMS),
                    "mechanism_parameter": algorithm.mechanism_parameter.hex(),
                    "hashes": algorithm.hashes,
                    "signature_form": algorithm.signature_form,
                    "public_point": algorithm.public_point,
                }
                for label, algorithm in self.algorithms.items()
            },
        }
        if self.token_label:
            mapping["token_label"] = self.token_label
        else:
            mapping["token_serial"] = self.token_serial
        return mapping


T = TypeVar("T")
Check = Callable[[object, str], T]
"""Takes a value and the key it stands under; returns it in its type or raises ``ProfileError``."""

_REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class _Reader:
    """A mapping whose keys are all known, read key by key."""

    mapping: Mapping[str, object]
    prefix: str

    @classmethod
    def over(cls, mapping: object, prefix: str, known: set[str]) -> _Reader:
        if not isinstance(mapping, Mapping):
            raise ProfileError(prefix.rstrip(".") or "profile", "a mapping", _shown(mapping))
        for key in mapping:
            if key not in known:
                raise ProfileError(f"{prefix}{key}", f"one of {', '.join(sorted(known))}", "an unknown key")
        return cls(mapping, prefix)

    def take(self, key: str, check: Check[T], default: object = _REQUIRED) -> T:
        value = self.mapping.get(key, default)
        if value is _REQUIRED:
            raise ProfileError(f"{self.prefix}{key}", "a value", "nothing")
        return check(value, f"{self.prefix}{key}")


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def _anything(value: object, key: str) -> object:
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise ProfileError(key, "true or false", _shown(value))
    return value


def _text(max_len: int) -> Check[str]:
    def check(value: object, key: str) -> str:
        if not isinstance(value, str) or not value.isprintable() or len(value.encode()) > max_len:
            raise ProfileError(key, f"at most {max_len} bytes of printable text", _shown(value))
        return value

    return check


def _name(value: object, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", value):
        raise ProfileError(key, "a name of at most 32 of a-z, 0-9 and -", _shown(value))
    return value


def _absolute_path(value: object, key: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ProfileError(key, "the absolute path of a PKCS#11 module", _shown(value))
    return value


def _count(maximum: int) -> Check[int]:
    def check(value: object, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
            raise ProfileError(key, f"a whole number from 1 to {maximum}", _shown(value))
        return value

    return check


L = TypeVar("L", bound=str)


def _one_of(*choices: L) -> Check[L]:
    def check(value: object, key: str) -> L:
        for choice in choices:
            if value == choice:
                return choice
        raise ProfileError(key, f"one of {', '.join(choices)}", _shown(value))

    return check


def _hex(max_len: int) -> Check[bytes]:
    def check(value: object, key: str) -> bytes:
        if isinstance(value, str) and re.fullmatch(r"([0-9a-fA-F]{2})*", value) and len(value) <= 2 * max_len:
            return bytes.fromhex(value)
        raise ProfileError(key, f"at most {max_len} bytes in hex, in quotes", _shown(value))

    return check


def _number(names: Mapping[str, int]) -> Check[int]:
    def check(value: object, key: str) -> int:
        number = value
        if isinstance(value, str):
            number = names.get(value)
            if number is None and re.fullmatch(r"0x[0-9a-fA-F]{1,8}", value):
                number = int(value, 16)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 32:
            raise ProfileError(key, f"a number 0x… below 2**32 or one of {', '.join(names)}", _shown(value))
        return number

    return check


def _number_name(number: int, names: Mapping[str, int]) -> str:
    return next((name for name, known in names.items() if known == number), f"0x{number:08x}")


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ProfileError("environment", "a mapping of names to text", _shown(value))
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ProfileError("environment", "names of letters, digits and _", _shown(name))
        if name.startswith(("LD_", "PYTHON")):
            raise ProfileError(
                f"environment.{name}", "a variable the module reads", "one that changes the process"
            )
        if not isinstance(text, str) or "\0" in text:
            raise ProfileError(
                f"environment.{name}", "text, in quotes if it looks like a number", _shown(text)
            )
    return dict(value)


def _algorithms(value: object) -> dict[str, AlgorithmProfile]:
    reader = _Reader.over(value, "algorithms.", set(ORDERS))
    if not reader.mapping:
        raise ProfileError("algorithms", f"at least one of {', '.join(ORDERS)}", "none")
    known = {field.name for field in fields(AlgorithmProfile)}
    found = {}
    for label, block in reader.mapping.items():
        one = _Reader.over(block, f"algorithms.{label}.", known)
        found[label] = AlgorithmProfile(
            key_type=one.take("key_type", _number(KEY_TYPES)),
            ec_params=one.take("ec_params", _hex(64)),
            key_pair_mechanism=one.take("key_pair_mechanism", _number(MECHANISMS)),
            sign_mechanism=one.take("sign_mechanism", _number(MECHANISMS)),
            mechanism_parameter=one.take("mechanism_parameter", _hex(MAX_PARAMETER_LEN), ""),
            hashes=one.take("hashes", _one_of("host", "token")),
            signature_form=one.take("signature_form", _one_of("raw", "der")),
            public_point=one.take("public_point", _one_of("public_key", "private_key"), "public_key"),
        )
    return found
