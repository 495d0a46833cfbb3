"""The API put together: contract, handlers, sessions, and the places it is reached at.

For: the daemon, which makes one in the front that leads.
Not for: what any part of it does.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from appliance.accounts import Authenticator, Transport
from appliance.api.contract import Contract
from appliance.api.figures import Figures
from appliance.api.limits import Allowance
from appliance.api.lives import Lives
from appliance.api.people import People
from appliance.api.sealing import Examining, Sealing, SmallSealer
from appliance.api.service import Caller, Credentials, Door, Service
from appliance.api.sessions import Sessions
from appliance.eseal.structures import ESeal
from appliance.eseal.verification import Examiner, Status
from appliance.office import Office
from appliance.policy import Account
from appliance.protection import Protection
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.wire import VERSION, Hello


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the API works with. ``state`` is the appliance's, ``standing`` that of a seal somebody shows us."""

    settings: Settings
    office: Office
    registry: Registry
    protection: Protection
    authenticator: Authenticator
    examiner: Callable[[], Examiner]
    sealer: SmallSealer
    state: Callable[[], Awaitable[str]]
    standing: Callable[[ESeal], Status]
    clock: Callable[[], float]
    now: Callable[[], datetime]


class HttpApi:
    """One for the appliance; owned by the event loop of the front that leads."""

    def __init__(self, parts: ApiParts) -> None:
        settings = parts.settings.web.api
        contract = Contract.load()
        self._authenticator = parts.authenticator
        self._sessions = Sessions(
            parts.clock, secrets.token_urlsafe, settings.session_idle_s, settings.session_s
        )
        font_file = str(parts.settings.seals.font_file)
        examining = Examining(parts.examiner, parts.standing, parts.now)
        groups = [
            Lives(parts.office, parts.registry, parts.protection, font_file),
            People(parts.office, parts.registry, self._sessions, parts.now),
            Figures(parts.registry, parts.now),
            Sealing(contract, parts.sealer, examining, parts.state),
        ]
        self._service = Service(
            contract,
            groups,
            Credentials(self._sessions, parts.office.current_officer, self._account),
            Allowance(settings.public_per_minute, settings.public_at_once, parts.clock),
            settings,
        )
        self.base = contract.base
        self.door = Door(self._service, contract.base, settings) if settings.listen is not None else None
        """On TCP, where that is wanted."""

    def application(self) -> web.Application:
        """For the officers' socket, under ``base``."""
        return self._service.application()

    async def _account(self, name: str, password: str, caller: Caller) -> Account:
        hello = Hello(VERSION, VERSION, name, password)
        transport = Transport(caller.address, uid=caller.uid, is_tls=caller.is_tls)
        return await self._authenticator.authenticate(hello, transport)
