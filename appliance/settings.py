"""Configuration: one YAML file into frozen dataclasses, strictly.

For: what an operator may set, with its default and its limits; ``config/appliance.yaml`` lists every key and a test
compares it with this file.
Not for: secrets. They are named by file (a systemd credential is a file too) and read where they are used.

Rules:

* An unknown key, a wrong type or a value out of range is a ``ConfigError`` that names file, line, key, what was
  expected and what was got.
* Relative paths are relative to the file that names them.
* Units stand in the names: ``_s`` seconds, ``_ms`` milliseconds, ``_len`` bytes.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from appliance.errors import ConfigError

MAX_CONFIG_LEN: Final = 1 << 20
"""A configuration is written by hand; a larger file is some other file."""


class Url(str):
    """A value that names a server. Where a path may stand too, ``://`` tells the two apart."""

    __slots__ = ()


def _limited(default: Any, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The TLS listener; TLS 1.3 only."""

    certificate_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where approval systems connect."""

    unix_socket: Path | None = Path("run/cloud-seal.sock")
    unix_socket_mode: str = "0660"
    tcp: str | None = None
    tls: TlsSettings = field(default_factory=TlsSettings)
    backlog: int = _limited(512, 1, 65_535)
    max_connections: int = _limited(1_024, 1, 100_000)


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """What one connection may have unanswered, and what all of them together may have the daemon hold."""

    requests: int = _limited(256, 1, 65_536)
    items: int = _limited(131_072, 65_536, 16_777_216)
    max_payload_len: int = _limited(16_777_216, 6_500_000, 33_554_432)
    max_buffered_len: int = _limited(268_435_456, 33_554_432, 1 << 40)
    max_queued_items: int = _limited(1_048_576, 65_536, 1 << 32)


@dataclass(frozen=True, slots=True)
class TimeSettings:
    """How long things may take."""

    default_deadline_s: float = _limited(30.0, 0.001, 86_400)
    max_deadline_s: float = _limited(600.0, 0.001, 86_400)
    hello_s: float = _limited(10.0, 0.1, 600)
    frame_s: float = _limited(30.0, 0.1, 600)
    drain_s: float = _limited(30.0, 0.1, 3_600)


@dataclass(frozen=True, slots=True)
class SignerSettings:
    """How batches go to the signer workers."""

    slice_target_ms: float = _limited(10.0, 0.1, 10_000)
    max_slice_items: int = _limited(4_096, 1, 65_536)
    slice_deadline_s: float = _limited(10.0, 0.1, 3_600)
    max_attempts: int = _limited(4, 1, 100)
    bulk_share: int = _limited(4, 2, 1_000)
    start_stagger_ms: float = _limited(150.0, 0, 60_000)
    max_restart_delay_s: float = _limited(0.5, 0.05, 600)
    cpu_latency_us: int | None = _limited(0, 0, 1_000_000)
    spin_us: int | None = _limited(None, 0, 10_000)
    processors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Password hashing (Argon2id) and what failures cost."""

    argon2_memory_kib: int = _limited(65_536, 8, 4_194_304)
    argon2_passes: int = _limited(3, 1, 100)
    argon2_lanes: int = _limited(1, 1, 64)
    max_concurrent_hashes: int = _limited(2, 1, 64)
    failure_delay_s: float = _limited(0.25, 0, 60)
    max_failure_delay_s: float = _limited(30.0, 0, 3_600)
    forget_failures_after_s: float = _limited(900.0, 1, 86_400)


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """Software verification."""

    engine: str = "auto"
    max_table_len: int = _limited(67_108_864, 0, 1 << 40)
    threads: int = _limited(2, 1, 256)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The HTTP API on TCP, for officers, accounts and the public; TLS 1.3 only, or plain on loopback."""

    listen: str | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    max_connections: int = _limited(256, 1, 65_536)
    request_s: float = _limited(30.0, 0.1, 600)
    session_idle_s: float = _limited(900.0, 1, 86_400)
    session_s: float = _limited(28_800.0, 1, 604_800)
    public_per_minute: int = _limited(60, 1, 1_000_000)
    public_at_once: int = _limited(8, 1, 4_096)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """HTTP: health and metrics on TCP, the officers' interface on a Unix socket."""

    health: str | None = "127.0.0.1:9440"
    officer_socket: Path | None = Path("run/officer.sock")
    officer_uids: tuple[int, ...] = ()
    api: ApiSettings = field(default_factory=ApiSettings)


@dataclass(frozen=True, slots=True)
class PasswordSettings:
    """Protection passwords of seals: what a good one is, how long it lasts, what guessing costs."""

    min_len: int = _limited(10, 8, 64)
    min_classes: int = _limited(3, 1, 4)
    max_age_days: int = _limited(90, 1, 3_650)
    warn_days: int = _limited(14, 0, 3_649)
    unlock_s: int = _limited(28_800, 60, 604_800)
    max_unlock_s: int = _limited(86_400, 60, 604_800)
    max_failures: int = _limited(10, 3, 100)
    failure_delay_s: float = _limited(1.0, 0.1, 60)
    max_failure_delay_s: float = _limited(300.0, 0.1, 3_600)
    forget_failures_after_s: float = _limited(900.0, 1, 86_400)
    argon2_memory_kib: int = _limited(65_536, 8, 4_194_304)
    argon2_passes: int = _limited(3, 1, 100)
    argon2_lanes: int = _limited(1, 1, 64)
    max_concurrent_hashes: int = _limited(2, 1, 64)


@dataclass(frozen=True, slots=True)
class FilingSettings:
    """The public security's interface: where makings, changes and cancellations are filed."""

    url: str | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    system_id: str = "cloud-seal"
    timeout_s: float = _limited(30.0, 0.1, 600)
    first_retry_s: float = _limited(5.0, 0.01, 3_600)
    max_retry_s: float = _limited(900.0, 0.01, 86_400)
    rejected_retry_s: float = _limited(3_600.0, 0.01, 86_400)
    poll_s: float = _limited(5.0, 0.01, 3_600)


@dataclass(frozen=True, slots=True)
class TimestampSettings:
    """The time-stamp authority (GB/T 20520) that new seals and seal signatures get their time from."""

    url: str | None = None
    ca_file: Path | None = None
    timeout_s: float = _limited(10.0, 0.1, 600)
    on_seals: bool = False


@dataclass(frozen=True, slots=True)
class AuthoritySettings:
    """A small time-stamp authority of our own on a key of the token, for demonstrations and tests."""

    listen: str | None = None
    key: str | None = None
    certificate_file: Path | None = None
    policy: str = "1.2.3.4.1"


@dataclass(frozen=True, slots=True)
class SealSettings:
    """Making and keeping seals."""

    maker_key: str | None = None
    maker_certificate_file: Path | None = None
    vendor_id: str = "cloud-seal"
    version: int = _limited(4, 4, 5)
    certificate_list: str = "certificates"
    trust_files: tuple[Path, ...] = ()
    crl_files: tuple[Path, ...] = ()
    code_pattern: str = "[1-9][0-9]{12,13}"
    proposal_ttl_s: float = _limited(259_200.0, 1, 2_592_000)
    max_book_len: int = _limited(268_435_456, 1_048_576, 1 << 40)
    sweep_s: float = _limited(60.0, 0.1, 86_400)
    font_file: Path = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")
    password: PasswordSettings = field(default_factory=PasswordSettings)
    filing: FilingSettings = field(default_factory=FilingSettings)
    timestamp: TimestampSettings = field(default_factory=TimestampSettings)
    authority: AuthoritySettings = field(default_factory=AuthoritySettings)


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """One token: how its module is spoken to, and where its PIN is."""

    profile: Path
    pin_file: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the daemon is told."""

    registry: Path | Url = Path("data/registry.sqlite")
    registry_password_file: Path | None = None
    tokens: tuple[TokenSettings, ...] = ()
    listen: ListenSettings = field(default_factory=ListenSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    times: TimeSettings = field(default_factory=TimeSettings)
    signers: SignerSettings = field(default_factory=SignerSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    web: WebSettings = field(default_factory=WebSettings)
    seals: SealSettings = field(default_factory=SealSettings)
    front_processes: int = _limited(1, 1, 64)
    log_level: str = "info"


def load_settings(path: Path) -> Settings:
    """Read the file; ``ConfigError`` says file, line and key."""
    settings = _Reader(path).read(_compose(path), Settings, "")
    assert isinstance(settings, Settings)
    _check(settings, path)
    return settings


def load_mapping(path: Path) -> Mapping[str, Any]:
    """A YAML file of plain values, for token profiles; whoever takes the mapping checks its keys."""
    node = _compose(path)
    value = _Reader(path).plain(node, "")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: expected a mapping of keys to values")
    return value


def line_of(path: Path, keys: tuple[str, ...]) -> int:
    """The line of a nested key, for errors found after reading; 1 where it is not there."""
    node = _compose(path)
    line = 1
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in node.value:
            if name.value == key:
                line, node = name.start_mark.line + 1, value
                break
        else:
            break
    return line


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for more values than fit into memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # in its stubs
            raise yaml.composer.ComposerError(None, None, "expected plain values, got an alias", mark)
        return super().compose_node(parent, index)


def _compose(path: Path) -> yaml.Node:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}", hint="check --config, and the files that the configuration names"
        ) from error
    if len(raw) > MAX_CONFIG_LEN:
        raise ConfigError(f"{path}: {len(raw)} bytes, expected at most {MAX_CONFIG_LEN}")
    try:
        node = yaml.compose(raw.decode(), Loader=_Loader)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:1: not YAML that a person wrote: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = raw.decode()[: error.position].count("\n") + 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.reason}") from error
    return node if node is not None else yaml.MappingNode("tag:yaml.org,2002:map", [])


class _Reader:
    """Turns YAML nodes into dataclasses; every error knows its line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _fail(self, node: yaml.Node, key: str, expected: str, got: object = ...) -> ConfigError:
        line = node.start_mark.line + 1 if node.start_mark else 1
        tail = "" if got is ... else ", got nothing" if got is None else f", got {str(got)[:80]!r}"
        if got is not ... and not isinstance(got, str | None):
            tail = f", got {repr(got)[:80]}"
        return ConfigError(f"{self._path}:{line}: {key or 'top level'}: expected {expected}{tail}")

    def read(self, node: yaml.Node, kind: Any, key: str) -> Any:
        origin = typing.get_origin(kind)
        if origin in (types.UnionType, typing.Union):
            kinds = [one for one in typing.get_args(kind) if one is not type(None)]
            is_null = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
            if is_null and len(kinds) < len(typing.get_args(kind)):
                return None
            if Url in kinds and isinstance(node, yaml.ScalarNode) and "://" in node.value:
                return Url(self._read_scalar(node, str, key))
            return self.read(node, kinds[0], key)
        if origin is tuple:
            if not isinstance(node, yaml.SequenceNode):
                raise self._fail(node, key, "a list")
            inner = typing.get_args(kind)[0]
            return tuple(self.read(item, inner, f"{key}[{i}]") for i, item in enumerate(node.value))
        if is_dataclass(kind):
            return self._read_dataclass(node, kind, key)
        return self._read_scalar(node, kind, key)

    def _read_dataclass(self, node: yaml.Node, kind: Any, key: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            raise self._fail(node, key, "keys and values")
        hints = typing.get_type_hints(kind)
        known: dict[str, Field[Any]] = {one.name: one for one in fields(kind)}
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            full = f"{key}.{name}" if key else name
            if name not in known:
                raise self._fail(name_node, full, f"one of the keys {', '.join(known)}; this key is unknown")
            if name in values:
                raise self._fail(name_node, full, "each key once")
            value = self.read(value_node, hints[name], full)
            limits = known[name].metadata
            if "low" in limits and value is not None and not limits["low"] <= value <= limits["high"]:
                raise self._fail(value_node, full, f"{limits['low']} to {limits['high']}", value)
            values[name] = value
        for name, one in known.items():
            if name not in values and is_dataclass(hints[name]):
                absent = yaml.MappingNode("tag:yaml.org,2002:map", [], node.start_mark)
                values[name] = self._read_dataclass(absent, hints[name], name)
            elif name not in values and one.default is MISSING and one.default_factory is MISSING:
                raise self._fail(node, f"{key}.{name}" if key else name, "a value; this key has no default")
        settings = kind(**values)
        defaults = {  # a default path is relative to the file that leaves it out, like one that stands there
            name: (self._path.parent / default).resolve()
            for name in known
            if name not in values and isinstance(default := getattr(settings, name), Path)
        }
        return replace(settings, **defaults)

    def _read_scalar(self, node: yaml.Node, kind: Any, key: str) -> Any:
        value = self.plain(node, key)
        if kind is Path and isinstance(value, str) and value:
            return (self._path.parent / value).resolve() if not Path(value).is_absolute() else Path(value)
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (int, bool, str) and type(value) is kind:
            return value
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
        raise self._fail(node, key, names[kind], value)

    def plain(self, node: yaml.Node, key: str) -> Any:
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Besides its own errors, PyYAML lets through whatever an explicit tag on a wrong value runs into.
            raise self._fail(node, key, "a plain value") from error
        finally:
            loader.dispose()


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``; ``ConfigError`` otherwise."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise ConfigError(f"{text!r} is no address: expected host:port, e.g. 127.0.0.1:9440")
    return found["host"] or found["v6"], int(found["port"])


_ADDRESS: Final = re.compile(r"(?:(?P<host>[^\[\]:\s]+)|\[(?P<v6>[^\[\]\s]+)\]):(?P<port>[0-9]{1,5})")


def is_loopback(host: str) -> bool:
    """Whether nothing outside this machine can reach that address."""
    return host in ("127.0.0.1", "::1", "localhost")


def _check(settings: Settings, path: Path) -> None:
    """What no single key can tell."""

    def fail(keys: tuple[str, ...], text: str) -> ConfigError:
        return ConfigError(f"{path}:{line_of(path, keys)}: {'.'.join(keys)}: {text}")

    def address(keys: tuple[str, ...], text: str) -> tuple[str, int]:
        try:
            return split_address(text)
        except ConfigError as error:
            raise fail(keys, error.detail) from error

    listen = settings.listen
    if listen.tcp is not None:
        address(("listen", "tcp"), listen.tcp)
        if listen.tls.certificate_file is None or listen.tls.key_file is None:
            raise fail(
                ("listen", "tcp"), "expected listen.tls.certificate_file and key_file: TCP is TLS only"
            )
    if re.fullmatch("0?[0-7]{3}", listen.unix_socket_mode) is None:
        raise fail(("listen", "unix_socket_mode"), "expected an octal mode in quotes, e.g. '0660'")
    health = settings.web.health
    if health is not None and not is_loopback(address(("web", "health"), health)[0]):
        raise fail(
            ("web", "health"), "expected a loopback address: health and metrics have no TLS of their own"
        )
    _check_api(settings.web.api, fail, address)
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise fail(("log_level",), f"expected debug, info, warning or error, got {settings.log_level!r}")
    if settings.verify.engine not in ("auto", "openssl", "scalar", "lanes"):
        raise fail(("verify", "engine"), "expected auto, openssl, scalar or lanes")
    _check_seals(settings.seals, fail, address)
    _check_passwords(settings.seals.password, fail)
    if settings.times.default_deadline_s > settings.times.max_deadline_s:
        raise fail(("times", "default_deadline_s"), "expected at most times.max_deadline_s")


def _check_api(
    api: ApiSettings,
    fail: Callable[[tuple[str, ...], str], ConfigError],
    address: Callable[[tuple[str, ...], str], tuple[str, int]],
) -> None:
    keys = ("web", "api", "listen")
    if (api.certificate_file is None) != (api.key_file is None):
        raise fail(("web", "api", "certificate_file"), "expected certificate_file and key_file, or neither")
    if api.listen is not None and not is_loopback(address(keys, api.listen)[0]) and api.key_file is None:
        raise fail(keys, "expected web.api.certificate_file and key_file too, or a loopback address")


def _check_seals(
    seals: SealSettings,
    fail: Callable[[tuple[str, ...], str], ConfigError],
    address: Callable[[tuple[str, ...], str], tuple[str, int]],
) -> None:
    if (seals.maker_key is None) != (seals.maker_certificate_file is None):
        raise fail(
            ("seals", "maker_key"), "expected maker_key and maker_certificate_file together, or neither"
        )
    if seals.certificate_list not in ("certificates", "digests"):
        raise fail(("seals", "certificate_list"), "expected certificates or digests")
    if _IDENTIFIER.fullmatch(seals.vendor_id) is None:
        raise fail(("seals", "vendor_id"), "expected 1 to 32 printable ASCII characters without blanks")
    try:
        re.compile(seals.code_pattern)
    except re.error as error:
        raise fail(("seals", "code_pattern"), f"expected a regular expression: {error}") from error
    for name, part in (("filing", seals.filing), ("timestamp", seals.timestamp)):
        if part.url is not None and not _may_call(part.url):
            raise fail(("seals", name, "url"), "expected https://host…, or http:// on loopback only")
    filing = seals.filing
    if (filing.certificate_file is None) != (filing.key_file is None):
        raise fail(
            ("seals", "filing", "certificate_file"), "expected certificate_file and key_file, or neither"
        )
    if _IDENTIFIER.fullmatch(filing.system_id) is None:
        raise fail(
            ("seals", "filing", "system_id"), "expected 1 to 32 printable ASCII characters without blanks"
        )
    if filing.first_retry_s > filing.max_retry_s:
        raise fail(("seals", "filing", "first_retry_s"), "expected at most seals.filing.max_retry_s")
    if seals.timestamp.on_seals and (seals.timestamp.url is None or seals.version < 5):
        raise fail(
            ("seals", "timestamp", "on_seals"), "expected seals.timestamp.url, and seals.version 5 or later"
        )
    authority = seals.authority
    if authority.listen is not None:
        keys = ("seals", "authority", "listen")
        if not is_loopback(address(keys, authority.listen)[0]):
            raise fail(keys, "expected a loopback address: this authority is for demonstrations and tests")
        if authority.key is None or authority.certificate_file is None:
            raise fail(keys, "expected seals.authority.key and certificate_file too")


_IDENTIFIER: Final = re.compile(r"[!-~]{1,32}")


def _may_call(url: str) -> bool:
    """Whether what is sent there is protected on its way."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def _check_passwords(password: PasswordSettings, fail: Callable[[tuple[str, ...], str], ConfigError]) -> None:
    for small, large in (
        ("warn_days", "max_age_days"),
        ("unlock_s", "max_unlock_s"),
        ("failure_delay_s", "max_failure_delay_s"),
        ("max_failure_delay_s", "forget_failures_after_s"),
    ):
        if getattr(password, small) > getattr(password, large):
            raise fail(("seals", "password", small), f"expected at most seals.password.{large}")
