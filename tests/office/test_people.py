"""Officers: how they prove who they are, what guessing costs them, and what the administrator does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

import pytest
from appliance_fixture import run
from office_rig import PASSWORD, MakeRig, Rig

from appliance.errors import BadRequest, Busy, Conflict, NotAuthenticated, NotFound
from appliance.lifecycle import Role
from appliance.office import Office
from appliance.office.people import MIN_PASSWORD_LEN
from appliance.wire import MAX_NAME_LEN, MAX_PASSWORD_LEN

NEW = "a new password"


def slowed(one: Rig, delay_s: float) -> Office:
    """An office that slows guesses down."""
    auth = replace(one.parts.auth, failure_delay_s=delay_s, max_failure_delay_s=4 * delay_s)
    return one.again(auth=auth)


async def seconds(login: Awaitable[object]) -> float:
    """How long it took, whatever came of it."""
    began_at = time.monotonic()
    with suppress(NotAuthenticated):
        await login
    return time.monotonic() - began_at


def test_login(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            officer = await one.office.login("clerk", PASSWORD, "peer")
            assert (officer.name, officer.roles) == ("clerk", {Role.CLERK})
            for name, password in (
                ("clerk", "wrong"),
                ("nobody", PASSWORD),
                ("", ""),
                ("clerk", "x" * 10_000),
            ):
                with pytest.raises(NotAuthenticated) as caught:
                    await one.office.login(name, password, "peer")
                assert "no such officer, or the password" in caught.value.detail, "they all look the same"

    run(test())


def test_guessing_is_slowed_for_that_name_and_peer(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            office = slowed(one, 0.2)
            guesses = [await seconds(office.login("clerk", "wrong", "peer")) for _ in range(4)]
            for took, least in zip(guesses, (0.0, 0.2, 0.4, 0.8), strict=True):
                assert took >= least, guesses
            # On the same slate the next would take 0.8 s. On a busy machine anything may take a while.
            assert await seconds(office.login("clerk", "wrong", "another peer")) < 0.7
            assert await seconds(office.login("maker", "wrong", "peer")) < 0.7
            assert await seconds(office.login("clerk", PASSWORD, "peer")) >= 0.7
            assert await seconds(office.login("clerk", PASSWORD, "peer")) < 0.7, "a success wipes the slate"
            await office.close()

    run(test())


def test_no_crowd_queues_up_before_the_owner(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            office = slowed(one, 60.0)
            with pytest.raises(NotAuthenticated):
                await office.login("clerk", "wrong", "peer")
            crowd = [asyncio.create_task(office.login("clerk", "wrong", "peer")) for _ in range(20)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            busy = [task for task in crowd if task.done() and isinstance(task.exception(), Busy)]
            assert len(busy) >= 15
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
            await office.close()

    run(test())


def test_a_disabled_officer_is_turned_away_in_open_sessions_too(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            assert (await one.office.current_officer("clerk")).name == "clerk"
            await one.office.set_officer_disabled(0, "clerk", True)
            with pytest.raises(NotAuthenticated):
                await one.office.current_officer("clerk")
            with pytest.raises(NotAuthenticated):
                await one.office.login("clerk", PASSWORD, "peer")
            await one.office.set_officer_disabled(0, "clerk", False)
            await one.office.login("clerk", PASSWORD, "peer")

    run(test())


def test_roles_hold_from_the_next_request_on(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            await one.office.set_officer_roles(0, "clerk", {Role.REVIEWER, Role.CLERK})
            assert (await one.office.current_officer("clerk")).roles == {Role.REVIEWER, Role.CLERK}
            with pytest.raises(BadRequest, match="role"):
                await one.office.set_officer_roles(0, "clerk", set())
            with pytest.raises(Conflict, match="auditor"):
                await one.office.set_officer_roles(0, "clerk", {Role.AUDITOR, Role.CLERK})
            with pytest.raises(NotFound):
                await one.office.set_officer_roles(0, "nobody", {Role.CLERK})

    run(test())


def test_passwords_of_officers(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            with pytest.raises(NotAuthenticated):
                await one.office.change_own_password(one["clerk"], "wrong", NEW, "peer")
            await one.office.change_own_password(one["clerk"], PASSWORD, NEW, "peer")
            with pytest.raises(NotAuthenticated):
                await one.office.login("clerk", PASSWORD, "peer")
            await one.office.login("clerk", NEW, "peer")
            await one.office.set_officer_password(0, "clerk", PASSWORD)
            await one.office.login("clerk", PASSWORD, "peer")
            for length, good in (
                (MIN_PASSWORD_LEN - 1, False),
                (MIN_PASSWORD_LEN, True),
                (MAX_PASSWORD_LEN, True),
                (MAX_PASSWORD_LEN + 1, False),
            ):
                if good:
                    await one.office.set_officer_password(0, "clerk", "x" * length)
                else:
                    with pytest.raises(BadRequest, match="password"):
                        await one.office.set_officer_password(0, "clerk", "x" * length)

    run(test())


def test_what_is_done_to_officers_is_on_record(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            await one.office.set_officer_roles(7, "clerk", {Role.CLERK, Role.REVIEWER})
            await one.office.set_officer_disabled(7, "clerk", True)
            await one.office.set_officer_disabled(7, "clerk", False)
            await one.office.set_officer_password(7, "clerk", PASSWORD)
            await one.office.change_own_password(one["clerk"], PASSWORD, NEW, "peer")
            events = await one.office.officer_events("clerk")
            assert [(event.act, event.by) for event in events] == [
                ("create-officer", "uid:0"),
                ("set-roles", "uid:7"),
                ("disable-officer", "uid:7"),
                ("enable-officer", "uid:7"),
                ("set-officer-password", "uid:7"),
                ("change-password", "clerk"),
            ]
            assert events[1].detail == {"roles": "clerk, reviewer", "before": "clerk"}
            assert not any(PASSWORD in str(event) or "argon2" in str(event) for event in events)
            with pytest.raises(NotFound):
                await one.office.officer_events("nobody")

    run(test())


def test_names_of_officers(rig: MakeRig) -> None:
    async def test() -> None:
        async with rig() as one:
            for name in ("", " ", "two words", "x" * (MAX_NAME_LEN + 1), "tab\t"):
                with pytest.raises(BadRequest):
                    await one.office.create_officer(0, name, "Name", {Role.CLERK}, PASSWORD)
            made = await one.office.create_officer(0, "x" * MAX_NAME_LEN, "王小明", {Role.CLERK}, PASSWORD)
            assert made.display_name == "王小明"
            with pytest.raises(Conflict):
                await one.office.create_officer(0, made.name, "Another", {Role.CLERK}, PASSWORD)
            assert made.name in [officer.name for officer in await one.office.officers()]

    run(test())
