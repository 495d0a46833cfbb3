"""Who makes seals here: the maker's key and certificate, and whom we trust.

For: signatures of the maker's over seals and over certificates about seals; the trusted CAs and revocation lists.
Not for: deciding whether a seal may be made (``making``).

Rules:

* Certificates and lists are read from their files when they are needed, not at the start: one that was renewed holds
  from then on, and a fault in a file stops making, not sealing.
* The maker's certificate must be of the maker's key, valid, and for signing: each time.
* Everything signed here is verified by us before it is used (``Pipeline.sign_message``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from asn1crypto import pem

from appliance.algorithms import PublicKey, signature_to_der
from appliance.documents import Issue
from appliance.errors import BadRequest, Conflict, Unavailable
from appliance.eseal.chains import Trust, check_chain, read_certificate
from appliance.eseal.findings import Outcome
from appliance.lifecycle import Document, DocumentKind
from appliance.policy import HeldKey
from appliance.settings import SealSettings
from appliance.verifying import Verifier

MAX_FILE_LEN: Final = 1 << 26
"""As long as the longest revocation list that is read."""

SignMessage = Callable[[HeldKey, bytes], Awaitable[bytes]]
"""``Pipeline.sign_message``: r ‖ s, verified."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The maker as it is now; ``certificate`` is DER."""

    key: HeldKey
    certificate: bytes


class Maker:
    """Owned by the event loop."""

    def __init__(
        self,
        settings: SealSettings,
        keys: Mapping[str, HeldKey],
        sign_message: SignMessage,
        verifier: Verifier,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._sign_message = sign_message
        self._verifier = verifier
        self._now = now

    async def identity(self) -> Identity:
        """Key and certificate, else ``Conflict`` with what the configuration lacks."""
        name, path = self._settings.maker_key, self._settings.maker_certificate_file
        if name is None or path is None:
            raise Conflict(
                "this appliance makes no seals", hint="set seals.maker_key and seals.maker_certificate_file"
            )
        key = self._keys.get(name)
        if key is None:
            raise Conflict(f"seals.maker_key: there is no key {name!r}", hint="cloud-seal key create")
        certificate = (await asyncio.to_thread(read_certificates, path))[0]
        if PublicKey.from_certificate(certificate) != key.public:
            raise Conflict(
                f"seals.maker_certificate_file {path.name} is not of key {name!r}",
                hint="have a certificate issued for that key: cloud-seal key request",
            )
        return Identity(key, certificate)

    async def sign(self, identity: Identity, message: bytes) -> bytes:
        """A signature r ‖ s by the maker's key, in its token."""
        return await self._sign_message(identity.key, message)

    def issue(self, identity: Identity, issued_at: str, proposed_by: str, approved_by: str | None) -> Issue:
        """Who stands for a certificate about a seal: the maker, as its own certificate names it."""
        issuer = read_certificate(identity.certificate).subject_text
        return Issue(issuer, identity.certificate, issued_at, proposed_by, approved_by)

    async def document(
        self, identity: Identity, kind: DocumentKind, seal_id: str, issued_at: str, body: bytes
    ) -> Document:
        """A certificate about a seal, signed."""
        signature = await self.sign_der(identity, body)
        return Document(seal_id, kind, issued_at, body, signature, identity.certificate)

    async def sign_der(self, identity: Identity, message: bytes) -> bytes:
        """The same as DER."""
        return signature_to_der(await self.sign(identity, message))

    async def trust(self) -> Trust:
        """Whom we trust now, else ``Conflict``."""
        if not self._settings.trust_files:
            raise Conflict("no CA is trusted to issue certificates for seals", hint="set seals.trust_files")
        return await asyncio.to_thread(self._read_trust)

    def _read_trust(self) -> Trust:
        roots = [der for path in self._settings.trust_files for der in read_certificates(path)]
        crls = [der for path in self._settings.crl_files for der in read_certificates(path)]
        return Trust(roots, crls=crls)

    async def check_certificate(self, certificate: bytes, whose: str) -> None:
        """``Conflict`` where it does not lead to a trusted CA, is not valid now or not for signing."""
        trust = await self.trust()
        findings = await asyncio.to_thread(check_chain, certificate, trust, self._now(), self._verifier)
        for finding in findings:
            if finding.outcome is not Outcome.PASSED:
                raise Conflict(
                    f"{whose} certificate: {finding.text}",
                    hint="003 §8: it must be valid when a seal is made",
                )


def read_certificates(path: Path) -> list[bytes]:
    """What a file holds, DER: one object, or PEM with several."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_LEN + 1)
    except OSError as error:
        raise Unavailable(f"{path.name}: {error.strerror}", hint="see seals: in the configuration") from error
    if len(data) > MAX_FILE_LEN:
        raise Conflict(f"{path.name}: more than {MAX_FILE_LEN} bytes", hint="see seals: in the configuration")
    if not pem.detect(data):
        return [data]
    try:
        found = [bytes(der) for _, _, der in pem.unarmor(data, multiple=True)]
    except ValueError as error:
        raise BadRequest(f"{path.name}: not PEM", hint=str(error)) from error
    return found
