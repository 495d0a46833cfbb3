"""Proof of identity, with a clock that only moves when somebody waits for it, and hashes that cost next to nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import argon2
import pytest

from appliance import passwords
from appliance.accounts import Authenticator, Transport
from appliance.errors import BadRequest, Busy, NotAuthenticated
from appliance.passwords import MAX_REMEMBERED_FAILURES
from appliance.policy import Account
from appliance.settings import AuthSettings
from appliance.wire import Hello

Run = Callable[[Any], Any]
RIGHT = "correct horse"
SETTINGS = AuthSettings(argon2_memory_kib=8, argon2_passes=1, failure_delay_s=1.0, max_failure_delay_s=8.0)
HASH = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("correct horse")
FINGERPRINT = "ab" * 32
UNIX = Transport(peer="uid 1000", uid=1_000)
TLS = Transport(peer="192.0.2.1", is_tls=True)
TLS_CERTIFICATE = replace(TLS, certificate_sha256=FINGERPRINT)


class Inline(Executor):
    """Runs at once and counts: a hash is what an attempt costs."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **more))
        return future


def account(
    name: str = "a",
    password: bool = False,
    uid: int | None = None,
    certificate: str | None = None,
    disabled: bool = False,
) -> Account:
    return Account(name, HASH if password else None, uid, certificate, disabled, frozenset())


class Rig:
    def __init__(self, *known: Account, settings: AuthSettings = SETTINGS) -> None:
        self.accounts = {one.name: one for one in known}
        self.executor = Inline()
        self.failures = 0
        self.loop = asyncio.get_running_loop()
        self.authenticator = Authenticator(
            self.accounts, settings, self.executor, self.loop.time, self.count_failure
        )

    def count_failure(self) -> None:
        self.failures += 1

    async def attempt(self, password: str = RIGHT, name: str = "a", transport: Transport = UNIX) -> bool:
        try:
            got = await self.authenticator.authenticate(Hello(1, 1, name, password), transport)
        except NotAuthenticated:
            return False
        assert got is self.accounts[name]
        return True

    async def took(self, **options: Any) -> tuple[bool, float]:
        began_at = self.loop.time()
        return await self.attempt(**options), self.loop.time() - began_at


# What fits --------------------------------------------------------------------------------------------------

ON_FILE = {
    "nothing": account(),
    "password": account(password=True),
    "uid": account(uid=1_000),
    "uid+password": account(password=True, uid=1_000),
    "certificate": account(certificate=FINGERPRINT),
    "certificate+password": account(password=True, certificate=FINGERPRINT),
    "uid+certificate": account(uid=1_000, certificate=FINGERPRINT),
    "all": account(password=True, uid=1_000, certificate=FINGERPRINT),
}
SHOWN = {
    "unix": UNIX,
    "unix, other uid": replace(UNIX, uid=1_001),
    "unix, root": replace(UNIX, uid=0),
    "tls": TLS,
    "tls, certificate": TLS_CERTIFICATE,
    "tls, other certificate": replace(TLS, certificate_sha256="cd" * 32),
}
MAY_ENTER = {  # (on file, shown) -> needs the right password? Whatever is not here gets in nowhere.
    **{("password", shown): True for shown in SHOWN},
    ("uid", "unix"): False,
    ("uid+password", "unix"): True,
    **{("uid+password", shown): True for shown in SHOWN if shown.startswith("tls")},
    ("certificate", "tls, certificate"): False,
    ("certificate+password", "tls, certificate"): True,
    **{("certificate+password", shown): True for shown in SHOWN if shown.startswith("unix")},
    ("uid+certificate", "unix"): False,
    ("uid+certificate", "tls, certificate"): False,
    ("all", "unix"): True,
    ("all", "tls, certificate"): True,
}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("on_file", ON_FILE)
def test_all_that_is_on_file_for_the_transport_must_fit(run: Run, on_file: str, shown: str) -> None:
    async def test() -> None:
        for password in ("correct horse", "wrong", ""):
            rig = Rig(ON_FILE[on_file])
            needs_password = MAY_ENTER.get((on_file, shown))
            expected = needs_password is not None and (not needs_password or password == "correct horse")
            assert await rig.attempt(password, transport=SHOWN[shown]) is expected, password
            assert rig.failures == (not expected)

    run(test())


def test_a_disabled_account_gets_in_nowhere_and_costs_the_same(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True, disabled=True))
        assert not await rig.attempt()
        assert rig.executor.calls == 1

    run(test())


@pytest.mark.parametrize("name", ["a", "stranger", "uid-only", "certificate-only"])
def test_a_refusal_costs_one_hash_and_says_the_same(run: Run, name: str) -> None:
    """Time tells nobody which accounts there are, or which of them have a password."""

    async def test() -> None:
        rig = Rig(
            account(password=True),
            account("uid-only", uid=7),
            account("certificate-only", certificate=FINGERPRINT),
        )
        with pytest.raises(NotAuthenticated) as caught:
            await rig.authenticator.authenticate(Hello(1, 1, name, "guess"), UNIX)
        assert rig.executor.calls == 1
        assert name not in str(caught.value).replace("a", "") and caught.value.detail.startswith(
            "no such account, or"
        )

    run(test())


def test_what_is_on_file_and_no_hash(run: Run) -> None:
    async def test() -> None:
        rig = Rig(replace(account(), password_hash="not an Argon2 string"))
        assert not await rig.attempt()

    run(test())


def test_accounts_are_looked_up_after_the_wait(run: Run) -> None:
    """An account disabled while an attempt waits for its turn does not get in."""

    async def test() -> None:
        rig = Rig(account(password=True))
        assert not await rig.attempt("wrong")
        waiting = asyncio.ensure_future(rig.attempt())
        await asyncio.sleep(0.5)
        rig.accounts["a"] = account(password=True, disabled=True)
        assert not await waiting

    run(test())


# New passwords ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "good"),
    [("x" * 7, False), ("x" * 8, True), ("章" * 3, True), ("x" * 1_024, True), ("x" * 1_025, False)],
)
def test_lengths_of_new_passwords(run: Run, password: str, good: bool) -> None:
    async def test() -> None:
        rig = Rig()
        if not good:
            with pytest.raises(BadRequest):
                await rig.authenticator.hash_password(password)
            return
        hashed = await rig.authenticator.hash_password(password)
        assert hashed.startswith("$argon2id$") and password not in hashed
        rig.accounts["a"] = replace(account(), password_hash=hashed)
        assert await rig.attempt(password)
        assert not await rig.attempt(password[:-1])

    run(test())


# What failures cost -----------------------------------------------------------------------------------------


def test_each_failure_doubles_the_delay_up_to_a_limit(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        delays = [(await rig.took(password="wrong"))[1] for _ in range(7)]
        assert delays == [0, 1, 2, 4, 8, 8, 8]
        assert await rig.took() == (True, 8)
        assert await rig.took(password="wrong") == (False, 0), "a success wipes the slate"

    run(test())


def test_a_failure_slows_that_account_from_that_peer_and_nobody_else(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True), account("b", password=True))
        for _ in range(4):
            await rig.attempt("wrong")
        assert await rig.took(name="b") == (True, 0)
        assert await rig.took(transport=TLS) == (True, 0)
        assert (await rig.took())[1] > 0

    run(test())


def test_unknown_accounts_are_slowed_too(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        assert [(await rig.took(name="nobody"))[1] for _ in range(4)] == [0, 1, 2, 4]

    run(test())


def test_time_that_passes_counts(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        for _ in range(3):
            await rig.attempt("wrong")
        await asyncio.sleep(3)
        assert await rig.took() == (True, 1)

    run(test())


def test_failures_are_forgotten(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        for _ in range(5):
            await rig.attempt("wrong")
        await asyncio.sleep(901)
        logins = await asyncio.gather(*(rig.took() for _ in range(20)))
        assert logins == [(True, 0)] * 20, "yesterday's failures slow nobody, nor those who come together"
        await rig.attempt("wrong")
        assert (await rig.took(password="wrong"))[1] == 1

    run(test())


def test_parallel_attempts_take_turns(run: Run) -> None:
    """Many connections at once buy no more guesses than one after the other."""

    async def test() -> None:
        rig = Rig(account(password=True))
        for _ in range(3):
            await rig.attempt("wrong")
        began_at, guessed_at = rig.loop.time(), []
        verify = rig.authenticator._hasher.fits

        def watched(stored: str, password: str) -> bool:
            guessed_at.append(rig.loop.time() - began_at)
            return verify(stored, password)

        rig.authenticator._hasher.fits = watched  # type: ignore[method-assign]
        await asyncio.gather(*(rig.attempt("wrong") for _ in range(50)), return_exceptions=True)
        assert len(guessed_at) >= 2
        assert all(b - a >= 4 for a, b in itertools.pairwise(guessed_at)), guessed_at

    run(test())


def test_parallel_attempts_before_the_first_failure_take_turns_too(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        tasks = [asyncio.ensure_future(rig.attempt("wrong")) for _ in range(50)]
        await asyncio.sleep(0.5)
        assert rig.executor.calls <= SETTINGS.max_concurrent_hashes, "guesses for nothing"
        await asyncio.gather(*tasks, return_exceptions=True)

    run(test())


def test_parallel_right_logins_are_not_slowed(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        assert await asyncio.gather(*(rig.took() for _ in range(50))) == [(True, 0)] * 50

    run(test())


def test_a_flood_does_not_take_the_turns_of_hours(run: Run) -> None:
    """Nothing is locked for good: whoever comes after a flood waits as long as after any failure."""

    async def test() -> None:
        rig = Rig(account(password=True))
        for _ in range(5):
            await rig.attempt("wrong")
        flood = await asyncio.gather(*(rig.attempt("wrong") for _ in range(1_000)), return_exceptions=True)
        told = [one for one in flood if isinstance(one, Busy)]
        assert len(told) > 990 and all(0 < one.retry_after_ms <= 3 * 8_000 for one in told)
        assert (await rig.took())[0]
        assert rig.loop.time() < 1_000 + 100

    run(test())


def test_a_lost_client_does_not_leave_its_hash_place_taken(run: Run) -> None:
    async def test() -> None:
        rig = Rig(account(password=True))
        for _ in range(300):
            task = asyncio.ensure_future(rig.attempt("wrong", name=f"n{_}"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert rig.authenticator._hasher.waiting == 0
        assert await rig.attempt()

    run(test())


def test_too_many_hashes_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_WAITING_HASHES", 3)

    async def test() -> None:
        rig = Rig()
        results = await asyncio.gather(
            *(rig.attempt("wrong", name=f"n{i}") for i in range(6)), return_exceptions=True
        )
        assert [isinstance(one, Busy) for one in results] == [False] * 3 + [True] * 3

    run(test())


def test_the_memory_of_failures_is_bounded(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        for i in range(MAX_REMEMBERED_FAILURES + 50):
            rig.authenticator._failures.note((f"n{i}", "peer"))
        assert len(rig.authenticator._failures) == MAX_REMEMBERED_FAILURES
        assert ("n0", "peer") not in rig.authenticator._failures, "the oldest goes first"

    run(test())
