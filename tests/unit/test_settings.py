"""Configuration: the annotated default file is the default, and every mistake is told with its place."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ConfigError
from appliance.settings import (
    MAX_CONFIG_LEN,
    Settings,
    TokenSettings,
    load_mapping,
    load_settings,
    split_address,
)

DEFAULTS = Path(__file__).parents[2] / "config" / "appliance.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "appliance.yaml"


def load(path: Path, text: str | bytes) -> Settings:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_settings(path)


def error_of(path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, text)
    return caught.value.detail


# The default file -------------------------------------------------------------------------------------------


def leaves(settings: object, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of a dataclass."""
    found: dict[str, Any] = {}
    for one in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, one.name)
        if is_dataclass(value):
            found |= leaves(value, f"{prefix}{one.name}.")
        else:
            found[prefix + one.name] = value
    return found


def yaml_leaves(node: yaml.Node, prefix: str = "") -> dict[str, int]:
    """Dotted key -> line, of a file."""
    found: dict[str, int] = {}
    assert isinstance(node, yaml.MappingNode)
    for name, value in node.value:
        if isinstance(value, yaml.MappingNode):
            found |= yaml_leaves(value, f"{prefix}{name.value}.")
        else:
            found[prefix + name.value] = name.start_mark.line
    return found


def test_the_default_file_lists_every_key_and_no_other() -> None:
    written = yaml_leaves(yaml.compose(DEFAULTS.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    assert list(written) == list(leaves(Settings())), "and in the order of the code"


def test_the_default_file_is_the_default(path: Path) -> None:
    loaded, empty = load(path, DEFAULTS.read_bytes()), load(path, "")
    assert loaded == empty
    for (key, value), default in zip(leaves(loaded).items(), leaves(Settings()).values(), strict=True):
        if isinstance(default, Path):
            default = path.parent / default
        assert (value, type(value)) == (default, type(default)), key


def test_every_key_has_a_comment_above_it_or_shares_its_neighbours() -> None:
    """A comment speaks of the keys that follow it without a gap; a group's first key has one, or the group has."""
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    for key, line in yaml_leaves(yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)).items():
        at = line
        while at >= 0 and lines[at].strip() and not lines[at].strip().startswith("#"):
            at -= 1
        explained = at >= 0 and lines[at].strip().startswith("#")
        speaks_for_itself = key in ("window.requests", "listen.unix_socket_mode")
        assert explained or speaks_for_itself, key


def test_the_example_entry_in_the_comments_is_one(path: Path) -> None:
    text = DEFAULTS.read_text(encoding="utf-8")
    entry = "\n".join(re.findall(r"^#( {3}- profile.*| {5}pin_file.*)$", text, re.MULTILINE))
    assert load(path, f"tokens:\n{entry}").tokens == (
        TokenSettings(path.parent / "tokens/softhsm2.yaml", path.parent / "secrets/softhsm2.pin"),
    )


def settings_classes(kind: type = Settings) -> list[type]:
    found = [kind]
    for hint in get_type_hints(kind).values():
        if is_dataclass(hint):
            found += settings_classes(hint)  # type: ignore[arg-type]
    return found


def limited() -> list[Any]:
    cases = []

    def walk(kind: type, prefix: tuple[str, ...]) -> None:
        hints = get_type_hints(kind)
        for one in fields(kind):
            if is_dataclass(hints[one.name]):
                walk(hints[one.name], (*prefix, one.name))
            elif "low" in one.metadata:
                low, high = one.metadata["low"], one.metadata["high"]
                cases.append(pytest.param((*prefix, one.name), low, high, one.default, id=one.name))

    walk(Settings, ())
    return cases


def nested(keys: tuple[str, ...], value: object) -> str:
    lines = ["# a line before"]
    lines += ["  " * depth + f"{key}:" for depth, key in enumerate(keys)]
    lines[-1] += f" {value}"
    return "\n".join(lines)


@pytest.mark.parametrize(("keys", "low", "high", "default"), limited())
def test_every_number_has_limits_that_hold(
    path: Path, keys: tuple[str, ...], low: Any, high: Any, default: Any
) -> None:
    assert default is None or low <= default <= high
    step = 0.01 if isinstance(default, float) else 1
    for value in (low - step, high + step, ".nan" if isinstance(default, float) else -1 << 70):
        told = error_of(path, nested(keys, value))
        assert told.startswith(f"{path}:{len(keys) + 1}: {'.'.join(keys)}: expected {low} to {high}, got ")


def test_a_number_that_may_be_left_open(path: Path) -> None:
    signers = load(path, "signers:\n  cpu_latency_us: null\n  spin_us: 0\n").signers
    assert (signers.cpu_latency_us, signers.spin_us) == (None, 0)


def test_every_number_is_limited() -> None:
    for kind in settings_classes():
        for one in fields(kind):
            if one.default is not MISSING and type(one.default) in (int, float):
                assert "low" in one.metadata, f"{kind.__name__}.{one.name}"


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("nonsense: 1", 1, "nonsense: expected one of the keys registry, registry_password_file, tokens, "),
        ("listen:\n  backlogg: 1", 2, "listen.backlogg: expected one of the keys unix_socket, "),
        ("listen:\n  tls:\n    key: x", 3, "listen.tls.key: expected one of the keys certificate_file"),
        ("tokens:\n- profile: a\n  pin_file: b\n  pin: 1234", 4, "tokens[0].pin: expected one of"),
        ("tokens:\n- profile: a", 2, "tokens[0].pin_file: expected a value; this key has no default"),
        ("log_level: info\nlog_level: info", 2, "log_level: expected each key once"),
        ("window:\n  items: 70000\n  items: 70000", 3, "window.items: expected each key once"),
        ("web: {}\nweb: {}", 2, "web: expected each key once"),
        ("listen:\n  backlog: many", 2, "listen.backlog: expected a whole number, got 'many'"),
        ("listen:\n  backlog: 1.5", 2, "listen.backlog: expected a whole number, got 1.5"),
        ("listen:\n  backlog: true", 2, "listen.backlog: expected a whole number, got True"),
        ("listen:\n  backlog:", 2, "listen.backlog: expected a whole number, got nothing"),
        ("listen:\n  unix_socket_mode: 0660", 2, "listen.unix_socket_mode: expected text, got 432"),
        ("listen: 7", 1, "listen: expected keys and values"),
        ("listen: [1]", 1, "listen: expected keys and values"),
        ("- 1", 1, "top level: expected keys and values"),
        ("just text", 1, "top level: expected keys and values"),
        ("tokens: a", 1, "tokens: expected a list"),
        ("tokens:\n- 1", 2, "tokens[0]: expected keys and values"),
        ("web:\n  officer_uids: [1, x]", 2, "web.officer_uids[1]: expected a whole number, got 'x'"),
        ("registry: 5", 1, "registry: expected a path, got 5"),
        ("registry: ''", 1, "registry: expected a path, got ''"),
        ("registry: null", 1, "registry: expected a path, got nothing"),
        ("times:\n  hello_s: soon", 2, "times.hello_s: expected a number, got 'soon'"),
        ("times:\n  hello_s: .inf", 2, "times.hello_s: expected 0.1 to 600"),
        ("[a, b]: 1", 1, "expected one of the keys"),
        # What no single key can tell
        ("log_level: loud", 1, "log_level: expected debug, info, warning or error, got 'loud'"),
        ("listen:\n  tcp: 0.0.0.0:9443", 2, "listen.tcp: expected listen.tls.certificate_file and key_file"),
        ("listen:\n  tcp: nowhere", 2, "listen.tcp: 'nowhere' is no address: expected host:port"),
        ("web:\n  health: 127.0.0.1", 2, "web.health: '127.0.0.1' is no address: expected host:port"),
        ("web:\n  health: 0.0.0.0:80", 2, "web.health: expected a loopback address"),
        ("listen:\n  unix_socket_mode: '0999'", 2, "listen.unix_socket_mode: expected an octal mode"),
        ("listen:\n  unix_socket_mode: '01777'", 2, "listen.unix_socket_mode: expected an octal mode"),
        ("listen:\n  unix_socket_mode: rw", 2, "listen.unix_socket_mode: expected an octal mode"),
        ("listen:\n  unix_socket_mode: '٦٦٠'", 2, "listen.unix_socket_mode: expected an octal mode"),
        ("verify:\n  engine: abacus", 2, "verify.engine: expected auto, openssl, scalar or lanes"),
        ("times:\n  max_deadline_s: 5", 1, "times.default_deadline_s: expected at most times.max_deadline_s"),
        (
            "seals:\n  password:\n    warn_days: 91",
            3,
            "password.warn_days: expected at most seals.password.max_age",
        ),
        (
            "seals:\n  password:\n    unlock_s: 90000",
            3,
            "password.unlock_s: expected at most seals.password.max_un",
        ),
        ("seals:\n  password:\n    max_failure_delay_s: 0.5", 1, "failure_delay_s: expected at most"),
        (
            "seals:\n  password:\n    max_failure_delay_s: 901",
            3,
            "failure_delay_s: expected at most seals.password.fo",
        ),
        # Not YAML
        ("listen:\n  backlog: [", 2, "not YAML: "),
        ("a: b: c", 1, "not YAML: "),
        ("\tlisten: 1", 1, "not YAML: "),
        ("listen: 1\n---\nlisten: 1", 2, "not YAML: "),
        ("registry: a\nlog_level: \x00", 2, "not YAML: "),
        (b"registry: a\nlog_level: \xff", 2, "not UTF-8"),
        # More than plain values
        ("web: &a {health: null}\nlisten: *a", 2, "not YAML: expected plain values, got an alias"),
        ("web: &a\n  officer_uids: *a", 2, "not YAML: expected plain values, got an alias"),
        ("<<: {registry: a}", 1, "<<: expected one of the keys"),
        ("registry: !!python/object/apply:os.system ['true']", 1, "registry: expected a plain value"),
        ("registry: !secret x", 1, "registry: expected a plain value"),
        ("registry: !!timestamp soon", 1, "registry: expected a plain value"),
        ("registry: !!bool soon", 1, "registry: expected a plain value"),
        ("registry: !!int ''", 1, "registry: expected a plain value"),
        ("registry: !!float x", 1, "registry: expected a plain value"),
        ("registry: !!binary '%'", 1, "registry: expected a p"),
        ("registry: !!set {a, b}", 1, "registry: expected a path"),
        ("listen:\n  backlog: 2001-01-01", 2, "listen.backlog: expected a whole number"),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_what_was_expected(
    path: Path, text: str | bytes, line: int, expected: str
) -> None:
    told = error_of(path, text)
    if "default_deadline_s" in expected or expected.startswith("failure_delay_s"):
        assert expected in told and told.startswith(f"{path}:")
        return
    assert told.startswith(f"{path}:{line}: "), told
    assert expected in told


def test_no_file(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        load_settings(path)
    assert "--config" in caught.value.hint
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings(path.parent)


def test_a_file_that_is_too_large(path: Path) -> None:
    load(path, "#" * MAX_CONFIG_LEN)
    assert str(MAX_CONFIG_LEN) in error_of(path, "#" * (MAX_CONFIG_LEN + 1))


@pytest.mark.parametrize("opener", ["[", "{a: ", "- "])
def test_nesting_without_end(path: Path, opener: str) -> None:
    assert error_of(path, "tokens: " + opener * 20_000).startswith(f"{path}:")


def test_a_billion_laughs_are_told_in_a_line(path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 10)]
    assert len(error_of(path, "\n".join([*levels, "log_level: *a9"]))) < 500


def test_what_was_got_is_cut_short(path: Path) -> None:
    assert len(error_of(path, f"listen:\n  backlog: {'x' * 100_000}")) < 1_000


@given(
    st.text(max_size=60)
    | st.from_regex(r"(listen|web|tokens|window):[ \n\[\]{}&*!a-z0-9:-]{0,40}", fullmatch=True)
)
def test_any_text_is_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    try:
        load(path, text.encode("utf-8", "surrogatepass"))
        load_mapping(path)
    except ConfigError as error:
        assert error.detail.startswith(f"{path}:")


# Paths ------------------------------------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file(path: Path) -> None:
    settings = load(
        path, "registry: here/r.sqlite\nlisten:\n  unix_socket: ../s.sock\nweb:\n  officer_socket: /abs/o"
    )
    assert settings.registry == path.parent / "here/r.sqlite"
    assert settings.listen.unix_socket == path.parent.parent / "s.sock"
    assert settings.web.officer_socket == Path("/abs/o")


def test_defaulted_paths_are_relative_to_the_file_too(path: Path) -> None:
    for text in ("", "listen: {}\nweb: {}", "listen:\n  backlog: 5"):
        settings = load(path, text)
        assert settings.registry == path.parent / "data/registry.sqlite"
        assert settings.listen.unix_socket == path.parent / "run/cloud-seal.sock"
        assert settings.web.officer_socket == path.parent / "run/officer.sock"
        assert settings.listen.tls.key_file is None


def test_null_switches_off(path: Path) -> None:
    settings = load(path, "listen:\n  unix_socket: null\nweb:\n  health:\n  officer_socket: ~")
    assert (settings.listen.unix_socket, settings.web.health, settings.web.officer_socket) == (
        None,
        None,
        None,
    )


# Addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9440", "127.0.0.1", 9_440),
        ("[::1]:1", "::1", 1),
        ("host:65535", "host", 65_535),
        ("h:0", "h", 0),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":80",
        "host",
        "host:",
        "host:65536",
        "host:-1",
        "host:x",
        "host:1e3",
        "::1",
        "::1:80",
        "[::1]",
        "[]:80",
        "[::1:80",
        "host:٣",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        split_address(text)
