"""What can be told of a configuration before anything starts: whether the files that it names will do.

For: ``cloud-seald --check``, and the same looks at each start.
Not for: the configuration's own words (``settings``), nor anything that needs a token, a server or the network.

Rules:

* Every fault is told, not the first one: whoever installs a rack mends them in one go.
* Each says which setting, which file, what is wrong with it and what was expected.
* ``faults`` end a start. ``gaps`` do not, as the daemon comes up without what they are about and takes it as soon as
  it is there; a check tells them all the same.
* Nothing is written, and no file is kept in memory.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from appliance_pkcs11.profile import ProfileError, TokenProfile

from appliance.errors import ApplianceError, ConfigError
from appliance.eseal.chains import Trust
from appliance.office.maker import read_certificates
from appliance.registry import check_place
from appliance.settings import SealSettings, Settings, TokenSettings, load_mapping

MAX_PIN_LEN: Final = 255


def check(settings: Settings) -> list[TokenProfile]:
    """The profiles, where nothing would end a start; else ``ConfigError``, or a group of several."""
    found = faults(settings)
    if len(found) > 1:
        raise ExceptionGroup("the configuration cannot be used", found)
    if found:
        raise found[0]
    return [load_profile(token) for token in settings.tokens]


def faults(settings: Settings) -> list[ConfigError]:
    """What would end a start."""
    found: list[ConfigError] = []
    names: list[str] = []
    for token in settings.tokens:
        with _noting(found):
            names.append(load_profile(token).name)
    found += [
        ConfigError(f"two token profiles are named {name!r}", hint="keys are recorded under that name")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for at, token in enumerate(settings.tokens):
        with _noting(found):
            check_secret_file(token.pin_file, f"tokens[{at}].pin_file", "the user PIN of the token")
            pin_reader(token.pin_file)()
    found += _processor_faults(settings.signers.processors)
    listen, api, filing = settings.listen, settings.web.api, settings.seals.filing
    if listen.tcp is not None:
        found += _tls_faults(
            "listen.tls", listen.tls.certificate_file, listen.tls.key_file, listen.tls.client_ca_file
        )
    if api.listen is not None:
        found += _tls_faults("web.api", api.certificate_file, api.key_file)
    if filing.url is not None:
        found += _tls_faults("seals.filing", filing.certificate_file, filing.key_file, filing.ca_file)
    found += _tls_faults("seals.timestamp", None, None, settings.seals.timestamp.ca_file)
    with _noting(found):
        read_trust(settings.seals)
    with _noting(found):
        check_place(settings)
        if settings.registry_password_file is not None:
            check_secret_file(
                settings.registry_password_file, "registry_password_file", "the password for PostgreSQL"
            )
    return found


def gaps(settings: Settings) -> list[ConfigError]:
    """What the daemon would start without, and wait for."""
    found: list[ConfigError] = []
    for token in settings.tokens:
        try:
            profile = load_profile(token)
        except ConfigError:
            continue  # a fault, which is told as one
        if not Path(profile.module).is_file():
            found.append(
                ConfigError(
                    f"{token.profile}: module: {profile.module}: no such file; expected the PKCS#11 module of token"
                    f" {profile.name}",
                    hint="install what it comes with, or name the file where it lies",
                )
            )
    for setting, path in (
        ("seals.maker_certificate_file", settings.seals.maker_certificate_file),
        ("seals.authority.certificate_file", settings.seals.authority.certificate_file),
    ):
        if path is not None:
            try:
                read_certificates(path)
            except ApplianceError as error:
                found.append(
                    ConfigError(f"{setting}: {error.detail}; expected a certificate, PEM or DER ({path})")
                )
    return found


@contextmanager
def _noting(found: list[ConfigError]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        found.append(error)


# Tokens and secrets -----------------------------------------------------------------------------------------


def load_profile(token: TokenSettings) -> TokenProfile:
    """The token's profile, else ``ConfigError`` with the file's name."""
    try:
        return TokenProfile.from_mapping(load_mapping(token.profile))
    except ProfileError as error:
        raise ConfigError(f"{token.profile}: {error}") from error


def pin_reader(path: Path) -> Callable[[], bytes]:
    """Reads the PIN anew for each start of a worker: a rotated PIN needs no restart, and none is kept in memory."""

    def read() -> bytes:
        try:
            pin = path.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(
                f"PIN file {path}: {error.strerror}; expected a file that the daemon's user may read",
                hint="check tokens[].pin_file, and who owns the file and its directory",
            ) from error
        if not 1 <= len(pin) <= MAX_PIN_LEN:
            raise ConfigError(
                f"PIN file {path}: {len(pin)} bytes, expected 1 to {MAX_PIN_LEN}",
                hint="the file holds the PIN and nothing else",
            )
        return pin

    return read


def check_secret_file(path: Path, setting: str, content: str) -> None:
    """A secret that others may read is none."""
    expected = f"expected a file with {content} that nobody but the daemon's user may read"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"{setting}: {path}: {error.strerror}; {expected}", hint=f"install -m 600 /dev/stdin {path}"
        ) from error
    if not stat.S_ISREG(mode):
        # It is read for each start of a worker or connection, and a pipe gives what it holds once.
        raise ConfigError(
            f"{setting}: {path}: not a regular file; {expected}", hint="name the file that holds it"
        )
    others = 0o077
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials is not None and path.is_relative_to(credentials):
        others = 0o007  # systemd lets the service's user in by an ACL, whose mask shows as the group's mode
    if mode & others:
        raise ConfigError(f"{path}: others may read it (mode {mode & 0o777:04o})", hint=f"chmod 600 {path}")


def _processor_faults(listed: tuple[int, ...]) -> Iterator[ConfigError]:
    """Of processors that this machine has not."""
    there = range(os.cpu_count() or 1)
    missing = [number for number in listed if number not in there]
    if missing:
        yield ConfigError(
            f"signers.processors: there is no processor {', '.join(map(str, missing))}",
            hint=f"name some of 0 to {there[-1]}, or none",
        )


# TLS and trust ----------------------------------------------------------------------------------------------


def _tls_faults(
    section: str, certificate: Path | None, key: Path | None, ca: Path | None = None
) -> Iterator[ConfigError]:
    """Of a certificate with its key, and of CAs; what is not named has no faults."""
    sound = True
    for setting, path, content in (
        ("certificate_file", certificate, "a certificate in PEM, those of its issuers after it"),
        ("key_file", key, "the certificate's private key in PEM"),
        ("client_ca_file" if section == "listen.tls" else "ca_file", ca, "certificates of CAs in PEM"),
    ):
        if path is None:
            continue
        try:
            with path.open("rb") as file:
                file.read(1)
            if path is not key:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
        except OSError as error:  # ssl.SSLError is one
            sound = sound and path is ca
            wrong = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
            yield ConfigError(
                f"{section}.{setting}: {path}: {wrong}; expected {content}",
                hint=f"name another file in {section}, or mend this one and let the daemon's user read it",
            )
    if certificate is not None and key is not None and sound:
        yield from _pair_faults(section, certificate, key)


def _pair_faults(section: str, certificate: Path, key: Path) -> Iterator[ConfigError]:
    asked = False

    def pass_phrase() -> str:
        nonlocal asked
        asked = True  # and not on the terminal, where OpenSSL would ask by itself
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, pass_phrase)
    except OSError as error:  # ssl.SSLError is one
        wrong = f"cannot be used ({error})"
        hint = f"openssl pkey -in {key} -check"
        if asked:
            wrong = "encrypted; expected a key without a pass phrase: nobody is there to type it"
            hint = f"openssl pkey -in {key} -out another file, mode 0600"
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            wrong = f"not the key of the certificate in {certificate}; expected the private key that belongs to it"
            hint = (
                "compare: openssl pkey -pubout -in the key, openssl x509 -pubkey -noout -in the certificate"
            )
        elif getattr(error, "reason", None) is None or "PEM" in str(error):
            wrong = "no private key in it; expected the certificate's private key in PEM"
        yield ConfigError(f"{section}.key_file: {key}: {wrong}", hint=hint)


def read_trust(settings: SealSettings) -> Trust:
    """Whom verification trusts, as the files say now; ``ConfigError`` where one cannot be read."""
    try:
        roots, crls = (
            [der for path in paths for der in read_certificates(path)]
            for paths in (settings.trust_files, settings.crl_files)
        )
        return Trust(roots, crls=crls)
    except ApplianceError as error:
        raise ConfigError(f"seals.trust_files, crl_files: {error.detail}", hint=error.hint) from error
