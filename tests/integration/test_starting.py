"""How ``cloud-seald`` starts, or says why not: exit codes, messages, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from appliance_fixture import ROOT, Appliance, Authority, Bench, SoftToken, free_port, until

from appliance.errors import ConfigError


@pytest.fixture(scope="module")
def token(shared_bench: Bench) -> SoftToken:
    return shared_bench.token()


@pytest.fixture
def appliance(bench: Bench, token: SoftToken) -> Appliance:
    return bench.appliance(token.profile())


def tried(appliance: Appliance, *more: str, root: bool = True) -> subprocess.CompletedProcess[str]:
    """Start it; it is expected to end by itself."""
    command = [part for part in appliance.command(*more) if root or part != "--allow-root"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def configure(appliance: Appliance, **changes: object) -> None:
    appliance.settings = {**appliance.settings, **changes}
    appliance.config_file.write_text(json.dumps(appliance.settings))


def test_check_of_a_good_configuration(appliance: Appliance) -> None:
    done = tried(appliance, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{appliance.config_file}: good\n", "")
    assert not appliance.registry_file.exists(), "a check changes nothing"
    assert not appliance.socket.exists()


def test_check_of_the_shipped_configuration(appliance: Appliance) -> None:
    shipped = Path(__file__).parents[2] / "config/appliance.yaml"
    done = subprocess.run(
        [appliance.command()[0], "--config", shipped, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def unknown_key(appliance: Appliance) -> str:
    appliance.config_file.write_text("listen:\n  unix_sokcet: x\n")
    return r"appliance\.yaml:2: listen\.unix_sokcet: .*unknown"


def not_yaml(appliance: Appliance) -> str:
    appliance.config_file.write_text("listen: [\n")
    return r"appliance\.yaml:2: not YAML"


def out_of_range(appliance: Appliance) -> str:
    configure(appliance, times={"hello_s": -1})
    return r"times\.hello_s: expected 0\.1 to 600, got -1"


def no_such_processor(appliance: Appliance) -> str:
    configure(appliance, signers={"processors": [0, 4_000]})
    return r"signers\.processors: there is no processor 4000\n  name some of 0 to \d+"


def missing_config(appliance: Appliance) -> str:
    appliance.config_file.unlink()
    return "No such file"


def tcp_without_certificate(appliance: Appliance) -> str:
    configure(appliance, listen={"tcp": "127.0.0.1:0"})
    return r"listen\.tcp: expected listen\.tls\.certificate_file"


def health_for_everybody(appliance: Appliance) -> str:
    configure(appliance, web={"health": "0.0.0.0:9440"})  # it is refused
    return r"web\.health: expected a loopback address"


def bad_mode(appliance: Appliance) -> str:
    configure(appliance, listen={"unix_socket_mode": "0888"})
    return "expected an octal mode"


def profile_missing(appliance: Appliance) -> str:
    appliance.profile_file.unlink()
    return "profile.yaml: No such file"


def profile_wrong(appliance: Appliance) -> str:
    appliance.profile_file.write_text(json.dumps({**appliance.profile, "sessions": 8}))
    return r"profile\.yaml: sessions: expected 1, or locking: os"


def profile_unknown_key(appliance: Appliance) -> str:
    appliance.profile_file.write_text(json.dumps({**appliance.profile, "colour": "red"}))
    return r"profile\.yaml: colour: expected one of"


def profile_twice(appliance: Appliance) -> str:
    configure(appliance, tokens=appliance.settings["tokens"] * 2)
    return "two token profiles are named 'softhsm2'"


def pin_missing(appliance: Appliance) -> str:
    appliance.pin_file.unlink()
    return r"tokens\[0\]\.pin_file: .*No such file or directory; expected a file with the user PIN"


def pin_readable_by_others(appliance: Appliance) -> str:
    appliance.pin_file.chmod(0o644)
    return r"others may read it \(mode 0644\)\n  chmod 600"


def pin_directory(appliance: Appliance) -> str:
    appliance.pin_file.unlink()
    appliance.pin_file.mkdir(0o700)
    return r"tokens\[0\]\.pin_file: .*not a regular file; expected a file with the user PIN"


def pin_empty(appliance: Appliance) -> str:
    appliance.pin_file.write_text("\n")
    return "0 bytes, expected 1 to 255"


def module_missing(appliance: Appliance) -> str:
    appliance.profile_file.write_text(json.dumps({**appliance.profile, "module": "/nonexistent.so"}))
    return r"profile\.yaml: module: /nonexistent\.so: no such file; expected the PKCS#11 module"


def maker_certificate_missing(appliance: Appliance) -> str:
    configure(appliance, seals={"maker_key": "maker", "maker_certificate_file": "/nonexistent.pem"})
    return (
        r"seals\.maker_certificate_file: nonexistent\.pem: No such file or directory; expected a certificate"
    )


BROKEN = (
    unknown_key, not_yaml, out_of_range, no_such_processor, missing_config, tcp_without_certificate,
    health_for_everybody, bad_mode, profile_missing, profile_wrong, profile_unknown_key, profile_twice, pin_missing,
    pin_readable_by_others, pin_directory, pin_empty, module_missing, maker_certificate_missing,
)  # fmt: skip


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda one: one.__name__)
def test_configuration_that_cannot_be_used(
    appliance: Appliance, break_it: Callable[[Appliance], str]
) -> None:
    message = break_it(appliance)
    done = tried(appliance, "--check")
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    assert len(done.stderr.splitlines()) <= 2, "one line that says what, one that says what to do"


def test_start_checks_too(appliance: Appliance) -> None:
    pin_readable_by_others(appliance)
    refused(appliance, "others may read it")


def test_every_fault_is_told(appliance: Appliance) -> None:
    """Whoever installs a rack mends them in one go."""
    pin_missing(appliance)
    module_missing(appliance)
    tls = {name: f"/nonexistent/{name}" for name in ("certificate_file", "key_file", "client_ca_file")}
    configure(appliance, listen={"tcp": "127.0.0.1:0", "tls": tls})
    done = tried(appliance, "--check")
    assert done.returncode == ConfigError.exit_code and not done.stdout
    told = [line for line in done.stderr.splitlines() if line.startswith("cloud-seald: ")]
    assert all("; expected " in line for line in told), told
    for name, what in (
        ("tokens[0].pin_file", "PIN"),
        ("listen.tls.certificate_file", "a certificate in PEM"),
        ("listen.tls.key_file", "private key in PEM"),
        ("listen.tls.client_ca_file", "certificates of CAs"),
        ("module", "the PKCS#11 module"),
    ):
        assert any(name in line and what in line for line in told), (name, told)
    assert len(told) == 5
    # A start tells all of them but the module: that one is waited for.
    done = tried(appliance)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if "module" not in line]
    assert all(name in done.stderr for name in ("pin_file", "certificate_file", "key_file", "client_ca_file"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "certificate_file",
            "key",
            r"certificate_file: .*: no certificate in it; expected a certificate in PEM",
        ),
        ("client_ca_file", "key", r"client_ca_file: .*: no certificate in it; expected certificates of CAs"),
        ("key_file", "certificate", r"key_file: .*: no private key in it; expected the certificate's"),
        (
            "key_file",
            "another",
            r"key_file: .*: not the key of the certificate in .*; expected the private key",
        ),
        ("key_file", "encrypted", r"key_file: .*: encrypted; expected a key without a pass phrase"),
        ("key_file", "directory", r"key_file: .*: Is a directory; expected the certificate's private key"),
    ],
)
def test_tls_files_that_do_not_fit(
    appliance: Appliance, authority: Authority, tmp_path: Path, name: str, content: str, message: str
) -> None:
    server = {"certificate": authority.root / "server.pem", "key": authority.root / "server.key"}
    wrong = tmp_path / "wrong"
    if content == "another":
        authority.issue("another")
        shutil.copy(authority.root / "another.key", wrong)
    elif content == "encrypted":
        subprocess.run(
            ["openssl", "pkey", "-in", server["key"], "-aes256", "-passout", "pass:x", "-out", wrong],
            check=True,
        )
    elif content == "directory":
        wrong.mkdir()
    else:
        shutil.copy(server[content], wrong)
    tls = {
        "certificate_file": str(server["certificate"]),
        "key_file": str(server["key"]),
        "client_ca_file": str(authority.root / "ca.pem"),
    }
    configure(appliance, listen={"tcp": "127.0.0.1:0", "tls": tls})
    assert tried(appliance, "--check").returncode == 0
    configure(appliance, listen={"tcp": "127.0.0.1:0", "tls": {**tls, name: str(wrong)}})
    done = tried(appliance, "--check")
    assert done.returncode == ConfigError.exit_code and re.search(rf"listen\.tls\.{message}", done.stderr), (
        done
    )
    assert len(done.stderr.splitlines()) == 2 and "Enter" not in done.stderr, "nobody is asked"
    assert tried(appliance).stderr == done.stderr, "a start says the same"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to start as root")
def test_root_without_allow_root(appliance: Appliance) -> None:
    done = tried(appliance, root=False)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.startswith("cloud-seald: cloud-seald does not run as root")


def refused(appliance: Appliance, message: str) -> None:
    """It ends with the exit code of configuration errors, says why, and leaves no socket."""
    done = tried(appliance)
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not appliance.officer_socket.exists() and not appliance.socket.exists()


def test_registry_that_cannot_be_written(appliance: Appliance) -> None:
    configure(appliance, registry="/proc/nowhere/registry.sqlite")
    refused(appliance, "registry /proc/nowhere/registry.sqlite")


def test_registry_that_is_none(appliance: Appliance) -> None:
    appliance.registry_file.write_text("a shopping list\n" * 100)
    refused(appliance, "file is not a database")


def test_registry_of_a_newer_version(appliance: Appliance) -> None:
    database = sqlite3.connect(appliance.registry_file)
    database.execute("PRAGMA user_version = 99")
    database.close()
    refused(appliance, "the registry has version 99")


def test_health_port_in_use(appliance: Appliance) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", appliance.health_port))
        sock.listen()
        refused(appliance, "cannot listen")


def test_tcp_port_in_use(appliance: Appliance, authority: Authority) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listen = {**authority.listen, "tcp": f"127.0.0.1:{sock.getsockname()[1]}"}
        configure(appliance, listen={**listen, "unix_socket": str(appliance.socket)})
        refused(appliance, "cannot listen")


@pytest.mark.parametrize("which", ["wire", "officer"])
def test_socket_in_use_stays_with_its_owner(bench: Bench, appliance: Appliance, which: str) -> None:
    appliance.start()
    second = bench.appliance(appliance.profile)
    if which == "wire":
        configure(second, listen={"unix_socket": str(appliance.socket)})
    else:
        web = {"health": f"127.0.0.1:{free_port()}", "officer_socket": str(appliance.officer_socket)}
        configure(second, web=web)
    refused(second, "is in use")
    with appliance.wire(None):
        assert appliance.status()["state"] == "ready", "the first goes on"


def test_two_daemons_do_not_share_a_registry(bench: Bench, appliance: Appliance) -> None:
    """Each would keep in memory what the other has changed: a disabled account would still sign."""
    appliance.start()
    second = bench.appliance(appliance.profile)
    configure(second, registry=str(appliance.registry_file))
    refused(second, "registry")


def test_socket_path_that_is_something_else(appliance: Appliance) -> None:
    appliance.socket.parent.mkdir()
    appliance.socket.write_text("not a socket")
    done = tried(appliance)
    assert done.returncode == ConfigError.exit_code and "Traceback" not in done.stderr
    assert appliance.socket.read_text() == "not a socket"
    assert not appliance.officer_socket.exists()


def test_module_that_is_none_is_no_reason_to_end(appliance: Appliance) -> None:
    """A module may be repaired while the daemon runs; the token is down, and says why."""
    appliance.profile_file.write_text(json.dumps({**appliance.profile, "module": "/nonexistent.so"}))
    appliance.start("down")
    assert "/nonexistent.so" in appliance.token_status()["reason"]


def test_health_readiness_and_metrics(appliance: Appliance) -> None:
    appliance.start()
    health, ready, metrics = (appliance.http(path) for path in ("/healthz", "/readyz", "/metrics"))
    assert (health.status, health.body) == (200, b"ok\n")
    assert ready.status == 200 and ready.json["state"] == "ready"
    assert ready.json["tokens"][0]["state"] == "up"
    assert metrics.status == 200 and metrics.headers["Content-Type"].startswith("text/plain")
    assert appliance.metric("cloudseal_token_up", token="softhsm2") == 1
    assert appliance.metric("cloudseal_workers_up", token="softhsm2") == 2
    assert appliance.http("/v1/keys").status == 404, "officers' business is not done on TCP"


def test_metrics_please_promtool(appliance: Appliance) -> None:
    promtool = shutil.which("promtool") or shutil.which("promtool", path=ROOT / "build")
    if promtool is None:
        pytest.skip("needs promtool, from the Debian package prometheus")
    appliance.start()
    page = appliance.http("/metrics").body
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_readiness_follows_the_token(bench: Bench) -> None:
    token = bench.token(initialised=False)
    appliance = bench.appliance(token.profile()).start("down")
    assert appliance.http("/readyz").status == 503
    assert appliance.http("/readyz").json["state"] == "degraded"
    assert appliance.http("/healthz").status == 200
    token.initialise()
    until("it is ready", lambda: appliance.http("/readyz").status == 200, 10)


def test_no_token_at_all_is_not_ready(appliance: Appliance) -> None:
    configure(appliance, tokens=[])
    appliance.launch()
    appliance.wait_listening()
    assert appliance.http("/readyz").status == 503
