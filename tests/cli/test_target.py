"""How commands find the appliance, and prove who they are."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from appliance_fixture import free_port
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.cli import target
from appliance.cli.demo import running_daemon
from appliance.cli.main import main
from appliance.cli.setup import initialise
from appliance.cli.show import Screen
from appliance.errors import TABLE, ApplianceError, BadRequest, ConfigError, ProtocolError, Unavailable
from appliance.settings import load_settings

# The configuration ------------------------------------------------------------------------------------------


def test_the_configuration_is_looked_for_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, "CONFIG_PLACES", (Path("config/appliance.yaml"), tmp_path / "etc.yaml"))
    with pytest.raises(ConfigError) as error:
        target.find_config(None, {})
    assert "cloud-seal init" in error.value.hint
    (tmp_path / "etc.yaml").touch()
    assert target.find_config(None, {}) == tmp_path / "etc.yaml"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "appliance.yaml").touch()
    assert target.find_config(None, {}) == Path("config/appliance.yaml")
    assert target.find_config(None, {"CLOUD_SEAL_CONFIG": "elsewhere"}) == Path("elsewhere")
    assert target.find_config(Path("named"), {"CLOUD_SEAL_CONFIG": "elsewhere"}) == Path("named")


def test_a_configuration_that_is_named_and_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "list", "--config", str(tmp_path / "no.yaml"), "--json"]) == 13
    assert "no.yaml" in json.loads(capsys.readouterr().err)["detail"]


@pytest.mark.parametrize(
    ("line", "command", "complaint"),
    [
        ("listen: {unix_socket: null}", ["status"], "--address"),
        ("web: {officer_socket: null}", ["key", "list"], "web.officer_socket"),
    ],
)
def test_what_is_switched_off_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, command: list[str], complaint: str
) -> None:
    config = tmp_path / "appliance.yaml"
    config.write_text(f"{line}\n")
    assert main([*command, "--config", str(config)]) == 13
    assert complaint in capsys.readouterr().err


# The wire ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_who_waits_for_a_connection_is_told_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    """Early and once; the error says it again."""
    if transport == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as gone:
            address = f"127.0.0.1:{gone.getsockname()[1]}"
    else:
        address = f"unix:{tmp_path / 's'}"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "s"))
    command = ["status", "--address", address, "--deadline", "0.5"]
    assert main(command) == Unavailable.exit_code
    note, error, hint = capsys.readouterr().err.splitlines()
    reason = f"cannot connect: connection refused at {address}"
    assert note.startswith(f"{reason}; trying again until the deadline") and error == f"error: {reason}"
    assert "cloud-seald" in hint
    assert main([*command, "--json"]) == Unavailable.exit_code
    assert json.loads(capsys.readouterr().err)["detail"] == reason, "a program gets the one document"


# Passwords --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
@pytest.mark.parametrize(
    "content", [b"secret 123", b"secret 123\n", b"secret 123\r\n", b"secret 123\nmore\n"]
)
def test_a_password_is_the_first_line(tmp_path: Path, content: bytes, mode: int) -> None:
    path = tmp_path / "p"
    path.write_bytes(content)
    path.chmod(mode)
    assert target.read_password(path) == "secret 123"


def test_what_is_no_password_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(BadRequest, match="No such file"):
        target.read_password(path)
    path.touch(0o600)
    for content in (b"\xff\xfe", b"x" * 5_000):
        path.write_bytes(content)
        with pytest.raises(BadRequest):
            target.read_password(path)


# The officers' interface ------------------------------------------------------------------------------------


@contextmanager
def answering(tmp_path: Path, answer: bytes) -> Iterator[target.Officer]:
    """A server that says this to whoever asks, once, and closes."""
    path = tmp_path / "s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(65_536)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield target.Officer(path)
    finally:
        thread.join()
        server.close()


def response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.label)
def test_an_error_comes_back_as_what_it_is(tmp_path: Path, row: Any) -> None:
    body = {"error": row.label, "detail": "what", "hint": "then", "retry_after_ms": 7}
    with (
        answering(tmp_path, response(row.http_status, json.dumps(body).encode())) as officer,
        pytest.raises(ApplianceError) as error,
    ):
        officer.call("GET", "keys")
    assert type(error.value) is row.error
    assert (error.value.detail, error.value.hint, error.value.retry_after_ms) == ("what", "then", 7)


@pytest.mark.parametrize(("method", "told"), [("GET", False), ("POST", True), ("DELETE", True)])
def test_an_act_whose_answer_was_lost_is_not_called_undone(tmp_path: Path, method: str, told: bool) -> None:
    with answering(tmp_path, b"") as officer, pytest.raises(Unavailable) as error:
        officer.call(method, "keys", "k")
    assert ("not known" in error.value.detail) == told


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"front": 0, "fronts": [1]}'])
def test_a_port_of_somebody_else_tells_no_readiness(body: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(response(200, body))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ProtocolError, match="expected the appliance's status"):
            target.readiness(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (response(500, b'{"error": "from the future", "detail": "x"}'), Unavailable),
        (response(500, b"[]"), Unavailable),
        (response(500, b"<html>"), ProtocolError),
        (response(200, b"\xff"), ProtocolError),
        (b"", Unavailable),
        (b"SSH-2.0-x\r\n", Unavailable),
        (b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\nshort", Unavailable),
    ],
)
def test_what_is_no_answer_is_told(tmp_path: Path, answer: bytes, expected: type[ApplianceError]) -> None:
    with answering(tmp_path, answer) as officer, pytest.raises(expected):
        officer.call("GET", "keys")


# TLS --------------------------------------------------------------------------------------------------------


class Authority:
    """A CA of the test's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(True, 0), critical=True
        )
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = certificate.add_extension(usage, critical=True)
        self.path = self._write(f"{name}.pem", certificate.sign(self._key, hashes.SHA256()))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        day = dt.timedelta(days=1)
        public = key.public_key()
        return (
            x509.CertificateBuilder(
                self._name, subject, public, x509.random_serial_number(), now - day, now + day
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._directory / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, server and client in one, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = (
            self._builder(subject, key)
            .add_extension(alternative, critical=False)
            .add_extension(usages, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key_path = self._directory / f"{name}.key"
        key_path.touch(0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return self._write(f"{name}.crt", certificate), key_path


def test_over_tls_with_a_certificate(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("t")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    server_certificate, server_key = ours.issue("server")
    port = free_port()
    initialise(directory, demo_token=True, health="127.0.0.1:0")
    config = directory / "appliance.yaml"
    text = config.read_text().replace("  tcp: null", f"  tcp: 127.0.0.1:{port}")
    for name, path in (("certificate", server_certificate), ("key", server_key), ("client_ca", ours.path)):
        text = text.replace(f"    {name}_file: null", f"    {name}_file: {path}")
    config.write_text(text)

    def cli(*words: object) -> tuple[int, Any]:
        program = Path(sys.executable).parent / "cloud-seal"
        done = subprocess.run(
            [program, *map(str, words), "--json"], capture_output=True, text=True, check=False
        )
        return done.returncode, json.loads(done.stdout or done.stderr)

    client, client_key = ours.issue("client")
    other, other_key = ours.issue("other")
    foreign, foreign_key = theirs.issue("foreign")
    wire = ("status", "--address", f"127.0.0.1:{port}", "--account", "approval", "--deadline", 5)
    with running_daemon(config, load_settings(config), Screen(as_json=True)):
        officer = ("--config", config)
        assert cli("account", "create", "approval", "--certificate", client, *officer)[0] == 0
        trusting = (*wire, "--ca-file", ours.path)
        exit_code, document = cli(*trusting, "--client-certificate", client, "--client-key", client_key)
        assert (exit_code, document["appliance"]["state"]) == (0, "ready")
        # Another certificate of the same CA is another client's.
        assert cli(*trusting, "--client-certificate", other, "--client-key", other_key)[0] == 4
        # No certificate, or one that nobody vouches for, proves nothing.
        assert cli(*trusting)[0] in (4, 8)
        exit_code, document = cli(*trusting, "--client-certificate", foreign, "--client-key", foreign_key)
        assert (exit_code, document["error"]) == (4, "not_authenticated")
        assert "certificate" in document["detail"] and "listen.tls.client_ca_file" in document["hint"]
        # A server that our CAs do not vouch for is not spoken to.
        exit_code, document = cli(*wire, "--ca-file", theirs.path)
        assert (exit_code, document["error"]) == (2, "bad_request")
    assert cli(*wire, "--ca-file", directory / "absent")[0] == 2
    assert (
        cli(*wire, "--ca-file", ours.path, "--client-certificate", client, "--client-key", other_key)[0] == 2
    )


def test_login_name_is_there_for_users_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert target.login_name() == "uid-4000000000"
