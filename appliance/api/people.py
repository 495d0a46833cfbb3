"""Operations of and on people: sessions, officers, proposals, grants.

For: a request that was checked, one call of the office's or the registry's, and the document that answers it.
Not for: rules; the office has them.

Rules:

* What changes how an officer proves who he is, or turns him away, ends his sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.api import shapes
from appliance.api.service import Call, Reply
from appliance.api.sessions import Session, Sessions
from appliance.errors import BadRequest
from appliance.lifecycle import CriticalAct, Officer, ProposalState, Role
from appliance.office import Office
from appliance.registry import Registry


class People:
    """Each public method is the operation of that name."""

    def __init__(
        self, office: Office, registry: Registry, sessions: Sessions, now: Callable[[], datetime]
    ) -> None:
        self._office = office
        self._registry = registry
        self._sessions = sessions
        self._now = now

    # Sessions -------------------------------------------------------------------------------------------

    async def open_session(self, call: Call) -> Reply:
        officer = await self._office.login(call.body["officer"], call.body["password"], call.caller.address)
        token, session = self._sessions.open(officer.name, officer.password_hash)
        return Reply({"token": token, **self._session(officer, session)}, 201)

    async def read_session(self, call: Call) -> Reply:
        return Reply(self._session(call.actor, self._sessions.find(call.token)))

    async def close_session(self, call: Call) -> Reply:
        self._sessions.close(call.token)
        return Reply(status=204)

    async def change_own_password(self, call: Call) -> Reply:
        old, new = call.body["oldPassword"], call.body["newPassword"]
        await self._office.change_own_password(call.actor, old, new, call.caller.address)
        self._sessions.close_all(call.actor.name)
        return Reply(status=204)

    def _session(self, officer: Officer, session: Session) -> dict[str, Any]:
        idle_s, end_s = self._sessions.seconds_left(session)
        return {
            "officer": officer.name,
            "displayName": officer.display_name,
            "roles": sorted(role.value for role in officer.roles),
            "idleEndTime": self._in_seconds(idle_s),
            "endTime": self._in_seconds(end_s),
        }

    def _in_seconds(self, seconds: float) -> str:
        moment = self._now() + timedelta(seconds=seconds)
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")

    # Officers: the administrator's ----------------------------------------------------------------------

    async def list_officers(self, call: Call) -> Reply:
        return Reply({"items": [shapes.officer(one) for one in await self._office.officers()]})

    async def create_officer(self, call: Call) -> Reply:
        body = call.body
        roles = [Role(one) for one in body["roles"]]
        made = await self._office.create_officer(
            _uid(call), body["officer"], body["displayName"], roles, body["password"]
        )
        return Reply(shapes.officer(made), 201)

    async def set_officer_password(self, call: Call) -> Reply:
        name = call.values["officer"]
        changed = await self._office.set_officer_password(_uid(call), name, call.body["newPassword"])
        self._sessions.close_all(name)
        return Reply(shapes.officer(changed))

    async def set_officer_roles(self, call: Call) -> Reply:
        roles = [Role(one) for one in call.body["roles"]]
        return Reply(
            shapes.officer(await self._office.set_officer_roles(_uid(call), call.values["officer"], roles))
        )

    async def disable_officer(self, call: Call) -> Reply:
        changed = await self._office.set_officer_disabled(_uid(call), call.values["officer"], True)
        self._sessions.close_all(changed.name)
        return Reply(shapes.officer(changed))

    async def enable_officer(self, call: Call) -> Reply:
        changed = await self._office.set_officer_disabled(_uid(call), call.values["officer"], False)
        return Reply(shapes.officer(changed))

    # Proposals ------------------------------------------------------------------------------------------

    async def list_proposals(self, call: Call) -> Reply:
        limit, state = call.values["limit"], call.values["state"]
        wanted = ProposalState(state) if state is not None else None
        found = await self._office.proposals(call.actor, wanted, call.values["after"] or "", limit + 1)
        return Reply(shapes.page(found, limit, shapes.proposal, lambda one: one.id))

    async def propose(self, call: Call) -> Reply:
        act = CriticalAct(call.body["act"])
        arguments, useless = shapes.proposal_arguments(act, call.body["arguments"])
        if useless:
            takes = ", ".join(shapes.argument_names(act)) or "none"
            raise BadRequest(f"arguments: {act.value} takes no {useless[0]!r}", hint=f"it takes: {takes}")
        made = await self._office.propose(call.actor, act, call.body["sealId"], arguments)
        return Reply(shapes.proposal(made), 201)

    async def show_proposal(self, call: Call) -> Reply:
        return Reply(shapes.proposal(await self._office.proposal(call.actor, call.values["proposalId"])))

    async def approve_proposal(self, call: Call) -> Reply:
        return Reply(shapes.proposal(await self._office.approve(call.actor, call.values["proposalId"])))

    async def reject_proposal(self, call: Call) -> Reply:
        rejected = await self._office.reject(call.actor, call.values["proposalId"], call.body["reason"])
        return Reply(shapes.proposal(rejected))

    # Grants ---------------------------------------------------------------------------------------------

    async def list_grants(self, call: Call) -> Reply:
        account, seal_id, limit = call.values["account"], call.values["sealId"], call.values["limit"]
        after, grants = call.values["after"] or "", self._registry.grants
        if (account is None) == (seal_id is None):
            raise BadRequest("expected an account or a seal", hint="give exactly one of account and sealId")
        if account is not None:
            found = await asyncio.to_thread(grants.of_account, account, after, limit + 1)
            return Reply(shapes.page(found, limit, shapes.grant, lambda one: one.seal_id))
        found = [one for one in await asyncio.to_thread(grants.of_seal, seal_id) if one.account > after]
        return Reply(shapes.page(found, limit, shapes.grant, lambda one: one.account))

    async def put_grant(self, call: Call) -> Reply:
        arguments = {"account": call.values["account"], **shapes.grant_arguments(call.body)}
        return Reply(shapes.grant(await self._office.grant(call.actor, call.values["sealId"], arguments)))

    async def remove_grant(self, call: Call) -> Reply:
        await self._office.revoke(call.actor, call.values["sealId"], call.values["account"])
        return Reply(status=204)


def _uid(call: Call) -> int:
    assert call.caller.uid is not None, "the contract lets nobody else come here"
    return call.caller.uid
