"""Making seals: the key in the token, the certificate for it, and the certified seal itself; renewing likewise.

For: what makers do before (a key, a certificate request, the certificate that came back), and what two people want
then: MAKE and RENEW.
Not for: the structures (``eseal``), the maker's own key (``maker``).

Rules:

* A seal's key is made in a token and named after the seal and the generation it is for; to make it again finds it.
* A certificate is taken only for that key, valid now, for signing, from a CA that is trusted; and it is looked at again
  when the seal is made (003 §8). That the key lies in the token and cannot leave it is proved by a signature: a worker
  loads no other keys.
* The imprint that is certified is the one that was reviewed, by its hash (003 §9).
* A seal is valid as long as its certificate (003 §12). It is verified as a stranger would, before anything is recorded.
* Renewing makes a new generation under the same code, at the earliest 30 days before the end.

Crash story: everything before the registry's transaction leaves nothing but a code that is never given again; the
proposal is still approved, and the next start makes the seal. A key half made is finished or dropped by ``holdings``;
a key that was made and not noted for its seal is found by its name when the maker asks again.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from appliance import certificates
from appliance.algorithms import Algorithm, PublicKey, signature_to_der
from appliance.documents import making_certificate
from appliance.errors import BadRequest, Conflict, NotFound, SignerFailed
from appliance.eseal.chains import Trust, read_certificate
from appliance.eseal.findings import Outcome, Verdict
from appliance.eseal.structures import (
    Picture,
    Version,
    assemble_seal,
    certificate_digest,
    seal_info_to_sign,
)
from appliance.eseal.verification import NOT_ASKED, verify_seal
from appliance.lifecycle import (
    RENEWAL_WINDOW,
    Act,
    CriticalAct,
    Document,
    DocumentKind,
    Generation,
    MessageKind,
    Officer,
    Proposal,
    Seal,
    State,
    Transition,
    check_role,
    transition,
)
from appliance.office import filing
from appliance.office.desk import Desk, instant, moment_of
from appliance.office.keys import SealKeys
from appliance.office.maker import Identity, Maker
from appliance.office.proposals import CriticalWork, no_more
from appliance.policy import HeldKey
from appliance.settings import SealSettings
from appliance.verifying import Verifier, sm3

MAX_CERTIFICATE_LEN: Final = 16_384
"""Characters of a certificate in PEM or base64; real ones have some 1,500."""
CHALLENGE: Final = b"cloud-seal: does this key sign"


Stamp = Callable[[bytes], Awaitable[bytes]]
"""A time-stamp token over a value, verified."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A certified seal that is not recorded yet."""

    generation: Generation
    signature: bytes
    maker: Identity


class Making:
    """Owned by the event loop."""

    def __init__(
        self,
        desk: Desk,
        maker: Maker,
        keys: SealKeys,
        verifier: Verifier,
        settings: SealSettings,
        stamp: Stamp | None,
    ) -> None:
        self._desk = desk
        self._seals = desk.registry.seals
        self._maker = maker
        self._keys = keys
        self._verifier = verifier
        self._settings = settings
        self._code = re.compile(settings.code_pattern)
        self._stamp = stamp
        self.works = {
            CriticalAct.MAKE: CriticalWork(self._check_make, self._make),
            CriticalAct.RENEW: CriticalWork(self._check_renewal, self._renew),
        }

    # Key and certificate --------------------------------------------------------------------------------

    async def make_key(
        self, officer: Officer, seal_id: str, algorithm: Algorithm | None = None, token: str | None = None
    ) -> HeldKey:
        """In a token, for the seal's first or next generation. Made already: that one."""
        seal = await self._in_making(officer, seal_id)
        name = key_name(seal)
        wanted = algorithm or self._keys.default_algorithm()
        try:
            key = await self._keys.find(name)
        except NotFound:
            key = await self._keys.create(name, wanted, token)
        if algorithm is not None and key.public.algorithm is not algorithm:
            raise Conflict(f"the seal has an {key.public.algorithm.label} key already", hint="use that one")
        pending = await self._desk.call(self._seals.pending, seal_id)
        if pending is None or pending.key_name != name:
            await self._pend(
                seal, "make-key", officer, name, None, key=name, algorithm=key.public.algorithm.label
            )
        return key

    async def certificate_request(self, officer: Officer, seal_id: str, subject: str) -> str:
        """A PKCS#10 request in PEM, signed by the seal's key, for the CA; ``subject`` as ``C=CN, O=…, CN=…``."""
        seal = await self._in_making(officer, seal_id)
        key = await self._key_to_certify(seal)
        to_sign = certificates.request_to_sign(certificates.parse_subject(subject), key.public)
        signature = await self._keys.sign(key, to_sign)
        return certificates.to_pem(
            "CERTIFICATE REQUEST", certificates.assemble_request(to_sign, key.public, signature)
        )

    async def _key_to_certify(self, seal: Seal) -> HeldKey:
        """The one for the next generation if it was made, else the one in use."""
        try:
            return await self._keys.find(key_name(seal))
        except NotFound:
            if seal.key_name is not None:
                return await self._keys.find(seal.key_name)
        raise Conflict("the seal has no key yet", hint="make it first: cloud-seal seal key")

    async def accept_certificate(self, officer: Officer, seal_id: str, certificate: str | bytes) -> Seal:
        """The CA's, for the seal's next making; looked at now, and again when it is made."""
        seal = await self._in_making(officer, seal_id)
        der = certificate_of(certificate)
        key = await self._key_of(seal, der)
        await self._check_certificate(der, key)
        digest = sm3(der).hex()
        return await self._pend(seal, "accept-certificate", officer, key.name, der, certificate_sm3=digest)

    async def _pend(
        self, seal: Seal, act: str, officer: Officer, name: str, certificate: bytes | None, **detail: str
    ) -> Seal:
        event = self._desk.event(seal, act, officer.name, detail=detail)
        return await self._desk.finish(
            self._desk.told(
                [seal.id], self._seals.set_pending, seal.id, seal.version, name, certificate, event
            )
        )

    async def _in_making(self, officer: Officer, seal_id: str) -> Seal:
        seal = await self._desk.seal(seal_id)
        act = Act.RENEW if seal.state is State.ACTIVE else Act.MAKE
        check_role(transition(seal.state, act), officer.roles, officer.name)
        return seal

    async def _check_certificate(self, certificate: bytes, key: HeldKey) -> None:
        try:
            public = PublicKey.from_certificate(certificate)
        except BadRequest as error:
            raise BadRequest(f"the certificate: {error.detail}", hint="X.509, PEM or DER") from error
        if public != key.public:
            raise Conflict(
                f"the certificate is not of key {key.name!r}",
                hint="have one issued for the certificate request of that key",
            )
        await self._maker.check_certificate(certificate, "the seal's")
        await self._keys.sign(key, CHALLENGE)  # it is in the token and cannot leave it, or no worker loads it

    # Making ---------------------------------------------------------------------------------------------

    async def _check_make(self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]) -> dict[str, Any]:
        transition(seal.state, Act.MAKE)
        no_more(arguments)
        return await self._what_is_pending(seal)

    async def _what_is_pending(self, seal: Seal) -> dict[str, Any]:
        """What is approved is this certificate and no other that may come in meanwhile."""
        await self._maker.identity()
        return {"certificate_sm3": sm3((await self._pending(seal))[1]).hex()}

    async def _pending(self, seal: Seal) -> tuple[str, bytes]:
        """The name of the key and the certificate for the next making."""
        pending = await self._desk.call(self._seals.pending, seal.id)
        if pending is None or pending.certificate is None:
            raise Conflict(
                "the seal has no certificate to be made with",
                hint="make its key, and hand in the CA's certificate for it",
            )
        return pending.key_name, pending.certificate

    async def _approved(self, seal: Seal, proposal: Proposal) -> tuple[str, bytes]:
        key, certificate = await self._pending(seal)
        if sm3(certificate).hex() != proposal.arguments["certificate_sm3"]:
            raise Conflict("another certificate came in since the proposal", hint="propose it again")
        return key, certificate

    async def _make(self, seal: Seal, proposal: Proposal) -> None:
        row = transition(seal.state, Act.MAKE)
        key, certificate = await self._approved(seal, proposal)
        code = await self._desk.call(self._seals.next_code, seal.region)
        if self._code.fullmatch(code) is None:
            raise Conflict(
                f"code {code!r} does not fit seals.code_pattern", hint="mend the pattern or the region"
            )
        made = await self._certify(replace(seal, code=code), 1, key, certificate)
        generation = made.generation
        coded = replace(
            seal, code=code, valid_from=generation.valid_from, valid_to=generation.valid_to,
            made_at=generation.made_at,
        )  # fmt: skip
        parent = await self._parent_code(seal)
        body = filing.made_body(
            coded, self._settings.filing.system_id, proposal.proposed_by, made.signature, certificate,
            generation.valid_from, generation.valid_to, generation.made_at, parent,
        )  # fmt: skip
        signed = await self._maker.sign_der(made.maker, filing.to_sign(body))
        body["taskSignature"] = base64.b64encode(signed).decode()
        message = filing.message(self._desk.new_id(), MessageKind.MADE, coded, body, self._desk.now())
        document = await self._certificate(made, coded, proposal)
        step = self._desk.step(
            seal,
            row,
            proposal.proposed_by,
            approver=proposal.decided_by,
            changes={
                "code": code,
                "generation": 1,
                "made_at": generation.made_at,
                "valid_from": generation.valid_from,
                "valid_to": generation.valid_to,
            },
            detail={
                "code": code,
                "certificate_sm3": sm3(certificate).hex(),
                "eseal_sm3": sm3(generation.eseal).hex(),
            },
            generation=generation,
            messages=(message,),
            documents=(document,),
            proposal_done=(proposal.id, f"made as {code}"),
        )
        await self._desk.advance(step)

    async def _parent_code(self, seal: Seal) -> str:
        """The code of the seal that this one replaces, where it does."""
        return (await self._desk.seal(seal.replaces)).code if seal.replaces is not None else ""

    async def _certify(self, seal: Seal, number: int, key: str, certificate: bytes) -> _Made:
        """The certified seal, verified; nothing is recorded."""
        held = await self._keys.find(key)
        await self._check_certificate(certificate, held)
        identity = await self._maker.identity()
        await self._maker.check_certificate(identity.certificate, "the maker's")
        imprint = await self._checked_imprint(seal)
        parsed = read_certificate(certificate)
        now = self._desk.now()
        version = Version(self._settings.version)
        listed = self._settings.certificate_list == "digests"
        info = seal_info_to_sign(
            version,
            self._settings.vendor_id,
            seal.code,
            int(filing.seal_type(seal.kind, seal.purpose)),
            seal.name,
            [certificate_digest(certificate)] if listed else [certificate],
            now,
            parsed.valid_from,
            parsed.valid_to,
            imprint,
        )
        signature = await self._maker.sign(identity, info)
        token = None
        if self._settings.timestamp.on_seals and self._stamp is not None:
            token = await self._stamp(signature_to_der(signature))
        eseal = assemble_seal(info, identity.certificate, identity.key.public.algorithm, signature, token)
        trust = await self._maker.trust()
        await self._verify(eseal, trust)
        generation = Generation(
            seal.id, number, key, certificate, eseal, instant(parsed.valid_from), instant(parsed.valid_to),
            instant(now),
        )  # fmt: skip
        return _Made(generation, signature_to_der(signature), identity)

    async def _certificate(self, made: _Made, seal: Seal, proposal: Proposal) -> Document:
        """The making certificate (电子印章制作证书)."""
        organisation = await self._desk.call(self._seals.organisation, seal.organisation)
        imprint = await self._desk.call(self._seals.imprint, seal.id)
        at = made.generation.made_at
        issue = self._maker.issue(made.maker, at, proposal.proposed_by, proposal.decided_by)
        body = making_certificate(seal, organisation, made.generation, imprint, issue)
        return await self._maker.document(made.maker, DocumentKind.MAKING, seal.id, at, body)

    async def _verify(self, eseal: bytes, trust: Trust) -> None:
        report = await asyncio.to_thread(
            verify_seal, eseal, trust=trust, verifier=self._verifier, now=self._desk.now(), status=NOT_ASKED
        )
        if report.verdict is not Verdict.GOOD:
            bad = "; ".join(
                f"{check.name.value}: {check.text}"
                for check in report.checks
                if check.outcome > Outcome.ABSENT
            )
            raise SignerFailed(f"the seal that was made does not verify: {bad}", hint="nothing was recorded")

    async def _checked_imprint(self, seal: Seal) -> Picture:
        """The picture that was reviewed: by its own hash, and by the one in the record of the review."""
        imprint = await self._desk.call(self._seals.imprint, seal.id)
        events = await self._desk.call(self._seals.events, seal.id)
        reviewed = [event.detail.get("imprint_sm3") for event in events if event.act == Act.REVIEW.value]
        actual = sm3(imprint.data)
        if actual != imprint.sm3 or reviewed[-1:] != [actual.hex()]:
            raise Conflict(
                "the imprint is not the one that was reviewed (003 §9)", hint="refuse this, and apply again"
            )
        return Picture(imprint.format, imprint.data, imprint.width_mm, imprint.height_mm)

    # Renewing -------------------------------------------------------------------------------------------

    async def _check_renewal(
        self, officer: Officer, seal: Seal, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._check_window(seal)
        no_more(arguments)
        kept = await self._what_is_pending(seal)
        self._check_later(seal, (await self._pending(seal))[1])
        return kept

    async def _renew(self, seal: Seal, proposal: Proposal) -> None:
        row = self._check_window(seal)
        key, certificate = await self._approved(seal, proposal)
        self._check_later(seal, certificate)
        made = await self._certify(seal, seal.generation + 1, key, certificate)
        generation = made.generation
        renewed = replace(seal, valid_from=generation.valid_from, valid_to=generation.valid_to)
        body = filing.renewed_body(
            renewed, self._settings.filing.system_id, made.signature, certificate, generation.valid_to
        )
        message = filing.message(self._desk.new_id(), MessageKind.RENEWED, renewed, body, self._desk.now())
        document = await self._certificate(made, renewed, proposal)
        step = self._desk.step(
            seal,
            row,
            proposal.proposed_by,
            approver=proposal.decided_by,
            changes={
                "generation": generation.number,
                "key_name": key,
                "valid_from": generation.valid_from,
                "valid_to": generation.valid_to,
            },
            detail={"certificate_sm3": sm3(certificate).hex(), "eseal_sm3": sm3(generation.eseal).hex()},
            generation=generation,
            messages=(message,),
            documents=(document,),
            proposal_done=(proposal.id, f"renewed until {generation.valid_to}"),
        )
        await self._desk.advance(step)

    def _check_window(self, seal: Seal) -> Transition:
        row = transition(seal.state, Act.RENEW)
        assert seal.valid_to is not None
        end, now = moment_of(seal.valid_to), self._desk.now()
        if now < end - RENEWAL_WINDOW:
            raise Conflict(
                f"the seal is valid until {seal.valid_to}: it is renewed within {RENEWAL_WINDOW.days} days before"
                " (003 §12)",
                hint="come again then, or apply for one that replaces it",
            )
        if now >= end:
            raise Conflict(f"the seal expired at {seal.valid_to}", hint="apply for one that replaces it")
        return row

    def _check_later(self, seal: Seal, certificate: bytes) -> None:
        assert seal.valid_to is not None
        if read_certificate(certificate).valid_to <= moment_of(seal.valid_to):
            raise Conflict(
                "the new certificate does not last longer than the old one", hint="have another one issued"
            )

    async def _key_of(self, seal: Seal, certificate: bytes) -> HeldKey:
        """The seal's own key, or the one made for its next generation."""
        public = PublicKey.from_certificate(certificate)
        for name in (seal.key_name, key_name(seal)):
            try:
                key = await self._keys.find(name or "")
            except NotFound:
                continue
            if key.public == public:
                return key
        raise Conflict(
            "the certificate is of no key of this seal's", hint="have one issued for its certificate request"
        )


def key_name(seal: Seal) -> str:
    """Of the key for the seal's next generation."""
    return f"seal-{seal.id}-{seal.generation + 1}"


def certificate_of(given: str | bytes) -> bytes:
    """DER from PEM, DER or base64, else ``BadRequest``."""
    if len(given) > MAX_CERTIFICATE_LEN:
        raise BadRequest(
            f"a certificate has at most {MAX_CERTIFICATE_LEN} characters, got {len(given)}",
            hint="one certificate, without its chain",
        )
    data = given.encode() if isinstance(given, str) else given
    if isinstance(given, str) and not given.lstrip().startswith("-----"):
        try:
            data = base64.b64decode("".join(given.split()), validate=True)
        except ValueError as error:  # binascii.Error is one; what is not ASCII is another
            raise BadRequest(
                "a certificate is given as PEM or as base64 of its DER", hint=str(error)
            ) from error
    return certificates.to_der(data)
