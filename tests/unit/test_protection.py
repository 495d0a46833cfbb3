"""Protection passwords, with a clock that only moves when somebody waits for it, and hashes that cost nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from registry import seals

from appliance import protection as module
from appliance.errors import BadRequest, Busy, Conflict, Denied, RequestError, Unavailable
from appliance.lifecycle import Act, ProtectionPassword, State
from appliance.protection import MAX_WAITING_AT_A_SEAL, Protection, Unlock
from appliance.registry import Registry
from appliance.registry.sqlite import SqliteDatabase
from appliance.settings import PasswordSettings

Run = Callable[[Any], Any]
RIGHT, NEXT, WRONG = "Correct-horse-7", "Battery-staple-8", "Wrong-donkey-9"
SETTINGS = PasswordSettings(argon2_memory_kib=8, argon2_passes=1, max_failures=5)
BEGAN = datetime(2026, 11, 22, 4, 30, tzinfo=UTC)
SEAL = seals.seal("s1", holder="Zhang San", custodian="liwei", code="33010000000001", state=State.FILED)


class Inline(Executor):
    """Runs at once, unless it is told to hold what comes; counts what it ran."""

    def __init__(self) -> None:
        self.held: list[tuple[Future[Any], Callable[[], None]]] = []
        self.holds = False

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(function(*arguments, **more))
            except Exception as error:  # noqa: BLE001  # as an executor does
                future.set_exception(error)

        if self.holds:
            future.set_running_or_notify_cancel()  # a thread has begun with it
            self.held.append((future, work))
        else:
            work()
        return future

    def let_go(self) -> None:
        self.holds = False
        held, self.held = self.held, []
        for _, work in held:
            work()


class Rig:
    folder: ClassVar[Path]
    opened: ClassVar[list[Registry]] = []

    def __init__(self, settings: PasswordSettings = SETTINGS) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.database = SqliteDatabase(self.folder / f"{len(self.opened)}.sqlite")
        self.registry = Registry(self.database)
        self.opened.append(self.registry)
        self.executor = Inline()
        self.announced: list[tuple[str, str]] = []
        self.began_at = self.loop.time()
        self.start()

    def start(self) -> None:
        """A process begins, with nothing but what is on record."""
        self.protection = Protection(
            self.registry.custody, self.settings, self.executor, self.loop.time, self.now, self.announce
        )

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self.loop.time() - self.began_at)

    async def announce(self, kind: str, name: str) -> None:
        self.announced.append((kind, name))

    def record(self, seal_id: str = "s1") -> ProtectionPassword:
        record = self.registry.custody.password(seal_id)
        assert record is not None
        return record

    async def set(self, seal_id: str = "s1", password: str = RIGHT) -> ProtectionPassword:
        """A seal from its application to its activation with that password."""
        number = int(seal_id[1:]) + 1
        applied = seals.apply(
            self.registry, seals.seal(seal_id, custodian="liwei", holder="Zhang San", number=number)
        )
        seal = seals.bring_to(self.registry, applied, State.FILED)
        first = await self.protection.set_first(seal, password, "liwei")
        self.registry.seals.advance(seals.step(seal, Act.ACTIVATE, password=first))
        return first

    async def reset(self, password: str = NEXT) -> None:
        await self.protection.finish_reset(await self.reset_on_record(password))

    async def reset_on_record(self, password: str = NEXT) -> ProtectionPassword:
        """By whoever is in charge of it: another Protection hashes."""
        other = Protection(
            self.registry.custody, self.settings, Inline(), self.loop.time, self.now, self.announce
        )
        new = await other.prepare_reset(SEAL, password, "security")
        return self.registry.custody.reset("s1", new.password_hash, new.set_by, new.set_at)

    async def unlock(
        self, password: str = RIGHT, account: str = "a", seal_id: str = "s1", seconds: float | None = None
    ) -> Unlock:
        return await self.protection.unlock(account, seal_id, password, seconds)

    async def fail(self, times: int = 1, **options: Any) -> None:
        """Wrong ones, each in its turn."""
        for _ in range(times):
            with pytest.raises(Denied) as caught:
                await self.unlock(WRONG, **options)
            await asyncio.sleep(caught.value.retry_after_ms / 1_000)

    def is_unlocked(self, account: str = "a", seal_id: str = "s1") -> bool:
        return self.protection.is_unlocked(account, seal_id)


@pytest.fixture(autouse=True)
def registries(tmp_path: Path) -> Iterator[None]:
    Rig.folder = tmp_path
    yield
    while Rig.opened:
        Rig.opened.pop().close()


# Unlocking --------------------------------------------------------------------------------------------------


def test_the_right_one_unlocks_for_that_account_and_that_seal_until_the_time_is_over(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.set("s2")
        assert not rig.is_unlocked()
        unlock = await rig.unlock(seconds=60)
        assert unlock.expires_at == "2026-11-22T04:31:00.000+00:00"
        assert rig.is_unlocked() and not rig.is_unlocked("b") and not rig.is_unlocked(seal_id="s2")
        await asyncio.sleep(59.9)
        assert rig.is_unlocked()
        await asyncio.sleep(0.1)
        assert not rig.is_unlocked(), "at the limit it is over"

    run(test())


@pytest.mark.parametrize(
    ("seconds", "good"),
    [(None, True), (1, True), (86_400, True), (0.9, False), (86_401, False), (float("nan"), False)],
)
def test_how_long(run: Run, seconds: float | None, good: bool) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        if not good:
            with pytest.raises(BadRequest, match="1 to 86400 s"):
                await rig.unlock(seconds=seconds)
            return
        unlock = await rig.unlock(seconds=seconds)
        assert unlock.until == rig.loop.time() + (seconds or SETTINGS.unlock_s)

    run(test())


def test_a_restart_locks_every_seal(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.unlock()
        rig.start()
        assert not rig.is_unlocked()

    run(test())


def test_locking(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.set("s2")
        for account in ("a", "b"):
            for seal_id in ("s1", "s2"):
                await rig.unlock(account=account, seal_id=seal_id)
        rig.protection.lock("a", "s1")
        rig.protection.lock("a", "s1")
        rig.protection.lock("a", "unknown")
        assert not rig.is_unlocked() and rig.is_unlocked("b") and rig.is_unlocked(seal_id="s2")
        rig.protection.lock_account("b")
        assert not rig.is_unlocked("b") and not rig.is_unlocked("b", "s2") and rig.is_unlocked(seal_id="s2")
        rig.protection.lock_account("a")
        assert rig.protection._unlocks == {} and rig.protection._unlock_count == 0

    run(test())


def test_a_seal_without_a_password(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        with pytest.raises(Conflict, match="no protection password yet"):
            await rig.unlock()
        with pytest.raises(Conflict):
            await rig.protection.state_of("s1")
        assert rig.protection._turns == {}

    run(test())


def test_keyboards_differ_in_how_they_compose(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set(password="Caf\u00e9-au-lait-1")
        assert await rig.unlock("Cafe\u0301-au-lait-1")

    run(test())


def test_unlocks_are_bounded_and_those_over_make_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNLOCKS", 3)

    async def test() -> None:
        rig = Rig()
        await rig.set()
        for account in ("a", "b", "c"):
            await rig.unlock(account=account, seconds=60 if account == "a" else 600)
        with pytest.raises(Busy):
            await rig.unlock(account="d")
        await asyncio.sleep(60)
        await rig.unlock(account="d")
        assert rig.protection._unlock_count == 3 and rig.is_unlocked("d")

    run(test())


# Another front ----------------------------------------------------------------------------------------------


def test_other_fronts_adopt_what_the_first_tells(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        follower = Protection(
            rig.registry.custody, SETTINGS, rig.executor, rig.loop.time, rig.now, rig.announce
        )
        unlock = await rig.unlock(seconds=60)
        follower.adopt(unlock)
        assert follower.is_unlocked("a", "s1")
        follower.void("s1", 2)
        assert not follower.is_unlocked("a", "s1")
        with pytest.raises(Conflict, match="reset meanwhile"):
            follower.adopt(unlock)
        follower.adopt(replace(unlock, generation=2))
        await asyncio.sleep(60)
        assert not follower.is_unlocked("a", "s1")

    run(test())


# Rotation and reset -----------------------------------------------------------------------------------------


def test_rotation_leaves_unlocks_alone(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.unlock()
        await asyncio.sleep(3_600)
        await rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei")
        assert rig.is_unlocked() and rig.announced == []
        row = rig.record()
        assert (row.generation, row.set_by, row.set_at) == (1, "liwei", "2026-11-22T05:30:00.000+00:00")
        line = rig.registry.seals.events("s1")[-1]
        assert (line.act, line.officer, line.at) == ("rotate-password", "liwei", row.set_at)
        with pytest.raises(Denied, match="does not fit"):
            await rig.unlock(RIGHT, account="b")
        await asyncio.sleep(1)
        await rig.unlock(NEXT, account="b")

    run(test())


def test_a_wrong_old_one_is_a_guess_like_any_other(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        with pytest.raises(Denied, match="does not fit"):
            await rig.protection.rotate(SEAL, WRONG, NEXT, "liwei")
        assert rig.record().failures == 1
        with pytest.raises(Busy):
            await rig.unlock()

    run(test())


@pytest.mark.parametrize("new", [RIGHT, "short", "Correct-horse-7\n"])
def test_a_bad_new_one_costs_no_guess(run: Run, new: str) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        with pytest.raises(BadRequest):
            await rig.protection.rotate(SEAL, RIGHT, new, "liwei")
        assert rig.record().failures == 0

    run(test())


def test_two_rotations_at_once_one_of_them_fails(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        results = await asyncio.gather(
            rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei"),
            rig.protection.rotate(SEAL, RIGHT, NEXT + "!", "liwei"),
            return_exceptions=True,
        )
        assert [type(one) for one in results] == [type(None), Denied]

    run(test())


def test_a_reset_meanwhile_is_not_overwritten_by_a_rotation(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        rig.executor.holds = True
        rotation = asyncio.ensure_future(rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei"))
        await asyncio.sleep(0)
        await rig.reset_on_record("Third-time-lucky-3")  # by another appliance on the same registry
        rig.executor.let_go()
        with pytest.raises(RequestError):
            await rotation
        assert rig.record().generation == 2

    run(test())


def test_a_reset_voids_unlocks_everywhere_before_it_is_answered(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.unlock()
        await rig.fail(2, account="b")
        await rig.reset()
        assert not rig.is_unlocked() and rig.announced == [("password", "s1")]
        row = rig.record()
        assert (row.generation, row.failures, row.locked) == (2, 0, False)
        assert (await rig.unlock(NEXT)).generation == 2

    run(test())


def test_to_prepare_a_reset_is_no_way_to_guess(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        for password in (RIGHT, NEXT):
            new = await rig.protection.prepare_reset(SEAL, password, "security")
            assert (new.generation, new.failures, new.locked) == (2, 0, False)
        with pytest.raises(BadRequest):
            await rig.protection.prepare_reset(SEAL, "short", "security")
        assert rig.record().generation == 1 and rig.announced == []

    run(test())


def test_an_unlock_under_way_does_not_outlive_a_reset(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        rig.executor.holds = True
        unlock = asyncio.ensure_future(rig.unlock())
        await asyncio.sleep(0)
        rig.executor.let_go()  # the record is read, as it was
        rig.executor.holds = True
        while not rig.executor.held:
            await asyncio.sleep(0)
        await rig.protection.finish_reset(await rig.reset_on_record())
        rig.executor.let_go()
        with pytest.raises(Conflict, match="reset meanwhile"):
            await unlock
        assert not rig.is_unlocked()

    run(test())


# Age --------------------------------------------------------------------------------------------------------

DAY_S = 86_400


def test_a_password_warns_and_then_unlocks_nothing_more(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        assert (await rig.unlock()).days_left == 90
        await asyncio.sleep(76 * DAY_S - 1)
        assert not (await rig.unlock()).is_due
        assert await rig.protection.due_for_rotation(10) == []
        await asyncio.sleep(2)
        unlock = await rig.unlock()
        assert unlock.is_due and unlock.days_left == 13
        assert [one.seal_id for one in await rig.protection.due_for_rotation(10)] == ["s1"]
        await asyncio.sleep(14 * DAY_S - 2)
        assert (await rig.unlock()).days_left == 0, "in the last second"
        await asyncio.sleep(1)
        with pytest.raises(Denied, match=r"older than 90 days .*custodian rotates"):
            await rig.unlock()
        assert rig.is_unlocked(), "what was unlocked stays so"
        state = await rig.protection.state_of("s1")
        assert state.is_expired and state.is_due and state.days_left == 0 and not state.is_locked
        await rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei")
        assert (await rig.unlock(NEXT)).days_left == 90

    run(test())


def test_state(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.unlock(account="b", seconds=60)
        await rig.unlock(account="c")
        await rig.fail()
        await asyncio.sleep(60)
        state = await rig.protection.state_of("s1")
        assert (state.set_by, state.set_at) == ("liwei", "2026-11-22T04:30:00.000+00:00")
        assert state.expires_at == "2027-02-20T04:30:00.000+00:00"
        assert (state.failures, state.is_due, state.generation) == (1, False, 1)
        assert state.unlocked_for == ("c",)

    run(test())


# Guessing ---------------------------------------------------------------------------------------------------


def test_each_failure_doubles_the_delay_and_then_the_password_locks(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        delays = []
        for left in (4, 3, 2, 1):
            with pytest.raises(Denied, match=f"after {left} more") as caught:
                await rig.unlock(WRONG)
            delays.append(caught.value.retry_after_ms)
            with pytest.raises(Busy) as early:
                await rig.unlock()
            assert early.value.retry_after_ms == delays[-1]
            await asyncio.sleep(delays[-1] / 1_000)
        assert delays == [1_000, 2_000, 4_000, 8_000]
        with pytest.raises(Denied, match="locked"):
            await rig.unlock(WRONG)
        await asyncio.sleep(DAY_S)
        for attempt in (rig.unlock(), rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei")):
            with pytest.raises(Denied, match="two security officers"):
                await attempt
        rig.start()
        with pytest.raises(Denied, match="locked"):
            await rig.unlock()
        await rig.reset()
        assert await rig.unlock(NEXT)

    run(test())


def test_a_locked_password_leaves_unlocks_alone(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.unlock()
        await rig.fail(5, account="b")
        assert (await rig.protection.state_of("s1")).is_locked and rig.is_unlocked()

    run(test())


def test_a_restart_is_no_way_out(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.fail(3)
        rig.start()
        with pytest.raises(Busy) as caught:
            await rig.unlock()
        assert caught.value.retry_after_ms == 4_000, "from the start on"
        await asyncio.sleep(4)
        with pytest.raises(Denied, match="after 1 more") as denied:
            await rig.unlock(WRONG)
        assert denied.value.retry_after_ms == 8_000

    run(test())


def test_a_right_one_clears_the_seals_count(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await rig.fail(4)
        await rig.unlock()
        assert rig.record().failures == 0
        rig.start()
        await rig.unlock()
        await rig.fail(4)

    run(test())


def test_an_account_that_fails_at_one_seal_waits_at_others_too(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        for i in range(1, 5):
            await rig.set(f"s{i}")
        await rig.fail(3)
        with pytest.raises(Denied) as caught:
            await rig.unlock(WRONG, seal_id="s2")
        assert caught.value.retry_after_ms == 8_000
        with pytest.raises(Busy):
            await rig.unlock(seal_id="s3")
        await rig.unlock(account="b", seal_id="s3"), "nobody else does"
        await asyncio.sleep(8)
        await rig.unlock(seal_id="s3")
        with pytest.raises(Denied) as caught:
            await rig.unlock(WRONG, seal_id="s4")
        assert caught.value.retry_after_ms == 16_000, "to know one password earns no guesses at another"

    run(test())


def test_many_guesses_at_once_are_one(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        results = await asyncio.gather(
            *(rig.unlock(WRONG, account=f"a{i}") for i in range(MAX_WAITING_AT_A_SEAL + 10)),
            return_exceptions=True,
        )
        kinds = [type(one) for one in results]
        assert kinds.count(Denied) == 1 and kinds.count(Busy) == len(kinds) - 1
        assert rig.record().failures == 1
        assert rig.protection._turns == {}

    run(test())


def test_many_guesses_at_many_seals_at_once_are_no_more_than_hash_at_once(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        for i in range(50):
            await rig.set(f"s{i}")
        results = await asyncio.gather(
            *(rig.unlock(WRONG, seal_id=f"s{i}") for i in range(50)), return_exceptions=True
        )
        kinds = [type(one) for one in results]
        assert 1 <= kinds.count(Denied) <= SETTINGS.max_concurrent_hashes
        assert kinds.count(Denied) + kinds.count(Busy) == 50
        assert sum(rig.record(f"s{i}").failures for i in range(50)) == kinds.count(Denied)

    run(test())


def test_many_right_ones_at_once_all_unlock(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        await asyncio.gather(*(rig.unlock(account=f"a{i}") for i in range(MAX_WAITING_AT_A_SEAL)))
        assert all(rig.is_unlocked(f"a{i}") for i in range(MAX_WAITING_AT_A_SEAL))

    run(test())


def test_who_leaves_before_the_answer_is_counted_and_waits(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        for password in (WRONG, RIGHT):
            unlock = asyncio.ensure_future(rig.unlock(password))
            await asyncio.sleep(0)  # the record is read
            rig.executor.holds = True
            while not rig.executor.held:
                await asyncio.sleep(0)
            unlock.cancel()
            await asyncio.gather(unlock, return_exceptions=True)
            rig.executor.let_go()
            assert unlock.cancelled() and not rig.is_unlocked()
            with pytest.raises(Busy):
                await rig.unlock()
            await asyncio.sleep(10)
        assert rig.record().failures == 1, "the wrong one"

    run(test())


def test_a_guess_that_cannot_be_counted_is_slowed_all_the_same(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        rig.database._writer.execute("PRAGMA query_only = ON")  # what comes is refused
        for delay in (1, 2, 4):
            with pytest.raises(Unavailable):
                await rig.unlock(WRONG)
            with pytest.raises(Busy) as caught:
                await rig.unlock(WRONG)
            assert caught.value.retry_after_ms == delay * 1_000
            await asyncio.sleep(delay)

    run(test())


def test_a_password_that_is_no_password_is_told_so_and_costs_nothing(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        await rig.set()
        for password in ("\ud800", "x" * 1_025):
            with pytest.raises(BadRequest):
                await rig.unlock(password)
        with pytest.raises(Denied):
            await rig.unlock("x" * 1_024)
        assert rig.record().failures == 1

    run(test())


def test_passwords_are_in_no_log_and_no_error(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        rig = Rig()
        await rig.set()
        with pytest.raises(Denied) as caught:
            await rig.unlock(WRONG)
        await asyncio.sleep(1)
        unlock = await rig.unlock()
        await rig.protection.rotate(SEAL, RIGHT, NEXT, "liwei")
        await rig.reset(RIGHT)
        told = caplog.text + str(caught.value) + repr(unlock) + repr(rig.record())
        assert "wrong one from account a" in told and "rotated by liwei" in told
        assert not any(one in told for one in (RIGHT, NEXT, WRONG))

    run(test())


# New passwords ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "told"),
    [
        ("Abcdefgh-1", None),
        ("Abcdefg-1", "9 characters"),
        ("印章保管人甲乙丙1a", None),
        ("Ab-1" * 256, "repeats itself"),
        ("Abcde-1" + "x" * 1_017, None),
        ("Abcde-1" + "x" * 1_018, "at most 1024 bytes"),
        ("abcdefghij1", "too few kinds"),
        ("abcdefghij-1", None),
        ("Aa1-Aa1-Aa1-", "repeats itself"),
        (" Abcdefgh-1", "blank at its ends"),
        ("Abcde fgh-1", None),
        ("Abcdefgh-1\x07", "cannot be seen"),
        ("Abcdefgh\u200b-1", "cannot be seen"),
        ("\udc00Abcdefgh-1", "not Unicode"),
        ("Seal-33010000000001", "the seal's code"),
        ("91330100ma27xyz12q-A", "organisation's code"),
        ("杭州某某科技有限公司合同专用章Aa1", "the seal's name"),
        ("ZHANG san-123", "the seal's holder"),
        ("LiWei-12345", "the seal's custodian"),
    ],
)
def test_rules(run: Run, password: str, told: str | None) -> None:
    async def test() -> None:
        rig = Rig()
        if told is None:
            await rig.set(password=password)
            assert await rig.unlock(password)
            return
        with pytest.raises(BadRequest, match=told):
            await rig.set(password=password)

    run(test())


def test_rules_are_configuration(run: Run) -> None:
    async def test() -> None:
        rig = Rig(replace(SETTINGS, min_len=8, min_classes=1))
        await rig.set(password="abcdefgh")
        rig = Rig(replace(SETTINGS, min_classes=4))
        with pytest.raises(BadRequest, match="take 4 of"):
            await rig.set(password="Abcdefghi1")

    run(test())


def test_a_short_holder_is_only_forbidden_as_the_whole(run: Run) -> None:
    async def test() -> None:
        rig = Rig()
        seal = replace(SEAL, holder="李", code="")
        assert await rig.protection.set_first(seal, "李-Abcdefgh-1", "liwei")

    run(test())


@hypothesis_settings(max_examples=60, deadline=None)
@given(password=st.text(max_size=40) | st.text(alphabet="aB1章 -", min_size=8, max_size=14))
def test_any_text_is_a_password_or_told_why_not(password: str) -> None:
    async def test() -> None:
        custody: Any = None  # it is not asked
        rules = Protection(custody, SETTINGS, Inline(), lambda: 0.0, lambda: BEGAN, announce)
        try:
            first = await rules.set_first(SEAL, password, "liwei")
        except BadRequest as error:
            assert error.detail
        else:
            assert first.password_hash.startswith("$argon2id$")

    async def announce(kind: str, name: str) -> None:
        raise AssertionError((kind, name))

    asyncio.run(test())
