"""The office's one face: its parts tied together.

For: whoever lets officers act (``api``), and the daemon, which runs what goes on by itself.
Not for: what the acts are; each stands in the module that the part it comes from is in.

Rules:

* Every method takes the acting ``Officer`` first; the administrator's take his uid, as the kernel told it.
* Only the front that leads has an office. The others are told of each change before it is answered.

Crash story: that of the parts. ``run`` begins with what a crash may have left: proposals approved and not done,
messages not sent, seals whose time came while nobody looked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime

from appliance.errors import StateUnknown
from appliance.lifecycle import Officer, Seal
from appliance.office.acts import Acts, check_custodian
from appliance.office.critical import Critical
from appliance.office.desk import Announce, Desk
from appliance.office.ending import Ending
from appliance.office.keys import SealKeys
from appliance.office.maker import Maker
from appliance.office.making import Making
from appliance.office.outbox import Outbox
from appliance.office.people import People
from appliance.office.proposals import Proposals
from appliance.office.stamping import Stamper
from appliance.office.sweeper import Sweeper
from appliance.policy import Account, HeldKey
from appliance.protection import Protection
from appliance.registry import Registry
from appliance.settings import AuthSettings, SealSettings
from appliance.verifying import Verifier


@dataclass(frozen=True, slots=True)
class OfficeParts:
    """What an office works with; the daemon's, or a test's.

    ``keys`` are the appliance's signing keys, the maker's among them; ``seal_keys`` makes and finds those of seals.
    ``clock`` is monotonic, ``now`` the calendar's. ``watch_overdue`` is told how many messages are overdue,
    ``give_up`` ends the process when it is not known what the registry holds.
    """

    registry: Registry
    settings: SealSettings
    auth: AuthSettings
    protection: Protection
    accounts: Mapping[str, Account]
    keys: Mapping[str, HeldKey]
    seal_keys: SealKeys
    verifier: Verifier
    executor: Executor
    announce: Announce
    clock: Callable[[], float]
    now: Callable[[], datetime]
    new_id: Callable[[int], bytes] = secrets.token_bytes
    on_login_failure: Callable[[], None] = lambda: None
    watch_overdue: Callable[[int], None] = lambda overdue: None
    give_up: Callable[[StateUnknown], None] = lambda error: None


class Office:
    """One for the appliance, owned by the event loop of the front that leads."""

    def __init__(self, parts: OfficeParts) -> None:
        settings = parts.settings
        desk = self._desk = Desk(parts.registry, parts.announce, parts.now, parts.new_id, parts.give_up)
        maker = self.maker = Maker(settings, parts.keys, parts.seal_keys.sign, parts.verifier, parts.now)
        self._stamper = Stamper(settings.timestamp, maker.trust, parts.verifier, parts.now)
        ending = Ending(desk, maker, settings.filing.system_id)
        acts = Acts(desk, ending, parts.protection)
        making = Making(desk, maker, parts.seal_keys, parts.verifier, settings, self._stamper.stamp)
        critical = Critical(
            desk, ending, parts.protection, parts.accounts, parts.seal_keys, settings.filing.system_id
        )
        proposals = Proposals(desk, {**making.works, **critical.works}, settings.proposal_ttl_s)
        people = People(desk, parts.auth, parts.executor, parts.clock, parts.on_login_failure)
        self._protection = parts.protection
        self._outbox = Outbox(desk, settings.filing, parts.watch_overdue)
        self._sweeper = Sweeper(desk, ending, proposals, settings.sweep_s)
        desk.on_message = self._outbox.wake.set

        # Officers
        self.login = people.login
        self.current_officer = people.current
        self.change_own_password = people.change_password
        # The administrator's
        self.create_officer = people.create
        self.set_officer_roles = people.set_roles
        self.set_officer_disabled = people.set_disabled
        self.set_officer_password = people.set_password
        self.officers = people.officers
        self.officer_events = people.events
        # One officer alone
        self.add_organisation = acts.add_organisation
        self.change_organisation = acts.change_organisation
        self.apply = acts.apply
        self.review = acts.review
        self.refuse = acts.refuse
        self.make_key = making.make_key
        self.certificate_request = making.certificate_request
        self.accept_certificate = making.accept_certificate
        self.file = acts.file
        self.confirm = acts.confirm
        self.activate = acts.activate
        self.suspend = acts.suspend
        self.resume = acts.resume
        self.grant = critical.grant_alone
        self.revoke = critical.revoke_alone
        # Two officers
        self.propose = proposals.propose
        self.approve = proposals.approve
        self.reject = proposals.reject
        self.proposal = proposals.proposal
        self.proposals = proposals.proposals
        # By itself
        self.resume_approved = proposals.resume_approved
        self.sweep = self._sweeper.sweep
        self.deliver = self._outbox.deliver
        self.stamp = self._stamper.stamp

    async def rotate_password(self, officer: Officer, seal_id: str, old: str, new: str) -> Seal:
        """The custodian's: a new protection password for the old one; what is unlocked stays so."""
        seal = await self._desk.seal(seal_id)
        check_custodian(seal, officer)
        await self._protection.rotate(seal, old, new, officer.name)
        return seal

    async def run(self) -> None:
        """What goes on by itself, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweeper.run(), name="sweeper")
            group.create_task(self._outbox.run(), name="outbox")

    async def close(self) -> None:
        """What is under way comes to its end; no act may follow."""
        await self._desk.settle()
        await self._outbox.close()
        await self._stamper.close()
