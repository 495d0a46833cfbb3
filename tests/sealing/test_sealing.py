"""The book, grants, limits and counts, on a real registry."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from eseal.pki import Holder
from hypothesis import given
from hypothesis import strategies as st
from made_seals import ANYTHING, advance, grant, make

from appliance.algorithms import Algorithm
from appliance.errors import BadRequest, Busy, Conflict, Denied, NotFound, Unavailable
from appliance.eseal.structures import Version, assemble_signature, tbs_to_sign
from appliance.lifecycle import Act, Operation, SealGrant, State
from appliance.policy import Account, HeldKey
from appliance.references import matches, read_pattern
from appliance.registry import Registry
from appliance.seal_lookups import SealLookups
from appliance.sealing import (
    BLOCK_SHARE,
    LOOPBACK,
    Limits,
    LoadedSeal,
    MinuteWindows,
    Permission,
    SealBook,
    UseCounter,
    UseRow,
    address_of,
)
from appliance.settings import PasswordSettings
from appliance.verifying import Verifier

LARGE = 1 << 28
Run = Callable[[Coroutine[Any, Any, Any]], None]
NOW = datetime(2026, 11, 22, 4, 30, tzinfo=UTC).timestamp()


def held(name: str, algorithm: Algorithm = Algorithm.SM2_SM3) -> tuple[Holder, HeldKey]:
    holder = Holder(name, algorithm)
    key = HeldKey(name, name.encode().ljust(16, b"."), "token", holder.key.public, False, "", True)
    return holder, key


def on_record(registry: Registry, key: HeldKey) -> HeldKey:
    registry.begin_key(key.name, key.key_id, key.token, key.public.algorithm)
    return registry.finish_key(key.name, key.public)


def account(registry: Registry, name: str = "approvals") -> None:
    registry.create_account(Account(name, "hash", None, None, False, frozenset()))


class Reader(SealLookups):
    """Counts what it reads; ``before`` runs in the thread that does."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, PasswordSettings())
        self.seals = 0
        self.grants = 0
        self.before: Callable[[], None] = lambda: None

    def seal(self, seal_id: str) -> LoadedSeal:
        self.seals += 1
        found = super().seal(seal_id)
        self.before()
        return found

    def grant(self, account: str, seal_id: str) -> SealGrant | None:
        self.grants += 1
        return super().grant(account, seal_id)


@pytest.fixture
def reader(registry: Registry) -> Reader:
    account(registry)
    make(registry, on_record(registry, held("key-1")[1]))
    grant(registry, "approvals")
    return Reader(registry)


# The book ---------------------------------------------------------------------------------------------------


def test_a_seal_is_read_once_for_all_who_ask(run: Run, reader: Reader) -> None:
    async def test() -> None:
        book = SealBook(reader, LARGE)
        assert book.find("approvals", "seal-1") is None
        both = await asyncio.gather(*(book.load("approvals", "seal-1") for _ in range(20)))
        assert len({id(seal) for seal, _ in both}) == 1
        assert (reader.seals, reader.grants) == (1, 1)
        assert book.find("approvals", "seal-1") == both[0]
        assert len(book) == 1 and book.held_len > 30_000

    run(test())


def test_without_a_grant_a_seal_looks_like_none_and_is_not_read(run: Run, reader: Reader) -> None:
    async def test() -> None:
        book = SealBook(reader, LARGE)
        errors = []
        for who, what in (("approvals", "seal-2"), ("other", "seal-1"), ("other", "seal-2")):
            with pytest.raises(NotFound) as caught:
                await book.load(who, what)
            errors.append(str(caught.value).replace(who, "?").replace(what, "?"))
        assert len(set(errors)) == 1
        assert reader.seals == 0 and len(book) == 0

    run(test())


def test_what_is_forgotten_is_read_again(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        book = SealBook(reader, LARGE)
        seal, _ = await book.load("approvals", "seal-1")
        seal.check_usable(datetime.now(UTC).timestamp())
        advance(registry, seal.seal, Act.SUSPEND)
        book.forget("seal-1")
        assert book.find("approvals", "seal-1") is None and book.held_len == 0
        seal, _ = await book.load("approvals", "seal-1")
        with pytest.raises(Conflict, match="suspended"):
            seal.check_usable(datetime.now(UTC).timestamp())

    run(test())


def test_a_suspension_while_the_seal_is_being_read_is_not_missed(
    run: Run, reader: Reader, registry: Registry
) -> None:
    """Whoever asks after ``forget`` gets the seal as it is then, also where the old one is still on its way."""

    async def test() -> None:
        book = SealBook(reader, LARGE)
        loop = asyncio.get_running_loop()
        has_read, go_on = asyncio.Event(), asyncio.Event()

        def hold() -> None:
            reader.before = lambda: None
            loop.call_soon_threadsafe(has_read.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        reader.before = hold
        early = asyncio.create_task(book.load("approvals", "seal-1"))
        await has_read.wait()
        advance(registry, registry.seals.seal("seal-1"), Act.SUSPEND)
        book.forget("seal-1")
        late = asyncio.create_task(book.load("approvals", "seal-1"))
        assert (await late)[0].seal.state is State.SUSPENDED
        go_on.set()
        assert (await early)[0].seal.state is State.ACTIVE, "it was asked for before"
        known = book.find("approvals", "seal-1")
        assert known is not None and known[0].seal.state is State.SUSPENDED

    run(test())


def test_a_grant_that_is_taken_back_while_it_is_read_is_not_kept(
    run: Run, reader: Reader, registry: Registry
) -> None:
    async def test() -> None:
        book = SealBook(reader, LARGE)
        loop = asyncio.get_running_loop()
        has_read, go_on = asyncio.Event(), asyncio.Event()

        def hold() -> None:
            reader.before = lambda: None
            loop.call_soon_threadsafe(has_read.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()

        reader.before = hold
        early = asyncio.create_task(book.load("approvals", "seal-1"))
        await has_read.wait()
        registry.grants.remove("approvals", "seal-1")
        book.forget("seal-1")
        go_on.set()
        await early
        assert book.find("approvals", "seal-1") is None
        with pytest.raises(NotFound):
            await book.load("approvals", "seal-1")

    run(test())


def test_whoever_leaves_takes_nothing_from_the_others(run: Run, reader: Reader) -> None:
    async def test() -> None:
        book = SealBook(reader, LARGE)
        leaver = asyncio.create_task(book.load("approvals", "seal-1"))
        await asyncio.sleep(0)
        stayer = asyncio.create_task(book.load("approvals", "seal-1"))
        await asyncio.sleep(0)
        leaver.cancel()
        assert (await stayer)[0].seal.id == "seal-1"
        assert reader.seals == 1
        await asyncio.gather(leaver, return_exceptions=True)

    run(test())


def test_the_book_is_bounded_by_bytes(run: Run, registry: Registry) -> None:
    account(registry)
    key = on_record(registry, held("key-1")[1])
    for number in range(5):
        made = make(registry, key, f"seal-{number}", picture_len=100_000, number=number + 1)
        assert len(made.generation.eseal) > 100_000
        grant(registry, "approvals", f"seal-{number}")
    reader = Reader(registry)

    async def test() -> None:
        book = SealBook(reader, 700_000)  # two copies of each: room for three
        for number in range(5):
            await book.load("approvals", f"seal-{number}")
            assert book.held_len <= 700_000
        assert [number for number in range(5) if book.find("approvals", f"seal-{number}")] == [2, 3, 4]
        book.find("approvals", "seal-2")  # used again: the others are older now
        await book.load("approvals", "seal-0")
        assert [number for number in range(5) if book.find("approvals", f"seal-{number}")] == [0, 2, 4]
        # What a template learns counts too.
        known = book.find("approvals", "seal-0")
        assert known is not None and known[0].template is not None
        before = book.held_len
        infos = [b"x" * length for length in range(1, 1_000)]
        lengths = b"".join(len(info).to_bytes(2, "big") for info in infos)
        known[0].template.digests(b"20261122043000Z", bytes(32 * len(infos)), lengths, b"".join(infos))
        book.find("approvals", "seal-0")
        assert book.held_len > before
        small = SealBook(reader, 1_000)
        await small.load("approvals", "seal-0")
        assert len(small) == 0 and small.held_len == 0, "one that does not fit is used and not kept"

    run(test())


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("version", [Version.GBT_38540_2020, Version.GMT_0031_2025])
def test_values_of_a_template_are_those_of_the_format(
    registry: Registry, algorithm: Algorithm, version: Version
) -> None:
    holder, key = held(f"key-{algorithm.label}", algorithm)
    made = make(registry, on_record(registry, key), version=version)
    loaded = SealLookups(registry, PasswordSettings()).seal("seal-1")
    assert loaded.template is not None
    at = datetime(2026, 11, 22, 4, 30, tzinfo=UTC)
    data_hash, info = bytes(range(32)), "/Doc_0/Signs/Sign_0/Signature.xml"
    tbs = tbs_to_sign(version, made.generation.eseal, at, data_hash, info)
    signature = holder.key.sign(tbs)
    expected = assemble_signature(tbs, made.generation.certificate, algorithm, signature)
    arguments = (b"20261122043000Z", data_hash, len(info).to_bytes(2, "big"), info.encode())
    digest = loaded.template.digests(*arguments)
    block = loaded.template.values(*arguments, b"\0", signature)
    head_len, middle_len = block[1], int.from_bytes(block[2:4], "big")
    head, middle, tail = (
        block[6 : 6 + head_len],
        block[6 + head_len :][:middle_len],
        block[6 + head_len + middle_len :],
    )
    time = bytes((0x18, 15)) + arguments[0]
    shared = bytes((0x16, len(info))) + info.encode() + loaded.suffix
    assert head + loaded.body + time + middle + shared + tail == expected
    assert Verifier().digest(key.public, len(tbs).to_bytes(4, "big"), tbs) == digest


def test_a_seal_without_its_key_or_never_made_cannot_be_used(registry: Registry) -> None:
    made = make(registry, on_record(registry, held("key-1")[1]))
    registry.destroy_key("key-1")
    loaded = SealLookups(registry, PasswordSettings()).seal("seal-1")
    with pytest.raises(Conflict):
        loaded.check_usable(datetime.now(UTC).timestamp())
    assert made.seal.state is State.ACTIVE


def test_validity_ends_by_the_clock(reader: Reader) -> None:
    loaded = reader.seal("seal-1")
    loaded.check_usable(loaded.valid_from)
    loaded.check_usable(loaded.valid_to - 0.001)
    with pytest.raises(Conflict, match="was valid until"):
        loaded.check_usable(loaded.valid_to)
    with pytest.raises(Conflict, match="is valid from"):
        loaded.check_usable(loaded.valid_from - 0.001)


@pytest.mark.parametrize("state", [one for one in State if one is not State.ACTIVE])
def test_every_other_state_is_refused_and_says_what_to_do(reader: Reader, state: State) -> None:
    loaded = reader.seal("seal-1")
    with pytest.raises(Conflict) as caught:
        replace(loaded, seal=replace(loaded.seal, state=state)).check_usable(loaded.valid_from)
    assert state.value in caught.value.detail and caught.value.hint


# Grants -----------------------------------------------------------------------------------------------------


def permission(**changes: Any) -> Permission:
    return Permission.of(replace(ANYTHING, **changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"operations": frozenset({Operation.STATUS})}, "does not cover 'seal'"),
        ({"operations": frozenset()}, "does not cover 'seal'"),
        ({"valid_from": "2026-11-22T04:30:01.000+00:00"}, "valid from"),
        ({"valid_to": "2026-11-22T04:30:00.000+00:00"}, "valid until"),
        ({"sources": ("10.0.0.0/8", "2001:db8::/32")}, "does not hold for 127.0.0.1"),
    ],
)
def test_each_rule_of_a_grant_refuses_by_name(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(Denied, match=word) as caught:
        permission(**changes).check(Operation.SEAL, NOW, LOOPBACK)
    assert caught.value.hint and "'seal-1'" in caught.value.detail


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, "203.0.113.7"),
        ({"valid_from": "2026-11-22T04:30:00.000+00:00"}, "127.0.0.1"),
        ({"valid_to": "2026-11-22T04:30:00.001+00:00"}, "127.0.0.1"),
        ({"sources": ("127.0.0.1/32",)}, "127.0.0.1"),
        ({"sources": ("10.1.2.3/8",)}, "10.9.9.9"),
        ({"sources": ("10.0.0.0/8",)}, "::ffff:10.9.9.9"),
        ({"sources": ("2001:db8::/32",)}, "2001:db8::1"),
        ({"sources": ("fe80::/10",)}, "fe80::1%eth0"),
    ],
)
def test_what_a_grant_covers(changes: dict[str, Any], source: str) -> None:
    permission(**changes).check(Operation.SEAL, NOW, address_of(source))


def test_a_grant_that_cannot_be_read_is_told() -> None:
    with pytest.raises(BadRequest, match="no network"):
        permission(sources=("10.0.0.0/33",))
    with pytest.raises(BadRequest, match="not an approval pattern"):
        permission(approval_pattern="(")


def test_an_approval_reference_must_match_as_a_whole() -> None:
    demanding = permission(approval_pattern=r"OA-[0-9]{4}-[0-9]{1,8}")
    demanding.check_reference("OA-2026-17")
    for reference in ("", "OA-2026-", "OA-2026-17 ", "xOA-2026-17", "OA-2026-17\n", "OA-2026-123456789"):
        with pytest.raises(Denied) as caught:
            demanding.check_reference(reference)
        assert "OA-[0-9]{4}" in caught.value.hint
    permission().check_reference("")
    permission().check_reference("anything")


@pytest.mark.parametrize(
    "pattern",
    ["", "x" * 257, "(", "a{1001}", "(?=a)", r"(a)\1", "(?<!a)b", "[z-a]", r"[\p{L}]{1000}", "\ud800"],
)
def test_patterns_that_are_none_or_too_much(pattern: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_pattern(pattern)
    assert caught.value.hint


def test_no_reference_takes_long() -> None:
    """What takes the usual engines longer than the world has existed."""
    for pattern in ("(a+)+b", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)b", "(a?){100}a{100}"):
        read = read_pattern(pattern)
        for _ in range(100):
            matches(read, "a" * 128)
    assert matches(read_pattern(".{128}"), "印" * 42 + "ab") is False, "characters, not bytes"
    assert not matches(read_pattern(".*"), "a" * 129) and matches(read_pattern(".*"), "a" * 128)
    assert not matches(read_pattern("a"), "\ud800")


# Limits -----------------------------------------------------------------------------------------------------


class Store:
    """The registry's reservations, called directly; and minutes."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self.registry = registry
        self.minutes = MinuteWindows(clock)
        self.reservations: list[int] = []

    async def reserve(self, owner: tuple[str, str], day: str, want: int, limit: int) -> int:
        self.reservations.append(want)
        return await asyncio.to_thread(self.registry.usage.reserve, owner[1], owner[0], day, want, limit)

    async def give_back(self, owner: tuple[str, str], day: str, count: int) -> None:
        await asyncio.to_thread(self.registry.usage.give_back, owner[1], owner[0], day, count)

    async def take_minute(self, owner: tuple[str, str], count: int, limit: int) -> int:
        return self.minutes.take(owner, count, limit)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


async def taken(limits: Limits, one: SealGrant, count: int) -> bool:
    if limits.take_now(one, count):
        return True
    try:
        await limits.take(one, count)
    except Denied:
        return False
    return True


def test_a_daily_limit_holds_to_the_last_and_begins_anew_with_the_day(
    run: Run, reader: Reader, registry: Registry
) -> None:
    async def test() -> None:
        clock = Clock()
        store = Store(registry, clock)
        limits = Limits(store, clock)
        one = replace(ANYTHING, daily_limit=100)
        assert [await taken(limits, one, 30) for _ in range(4)] == [True, True, True, False]
        assert await taken(limits, one, 10), "what is left is left"
        reservations = len(store.reservations)
        with pytest.raises(Denied, match="100 seal signatures a day, 0 are left") as caught:
            await limits.take(one, 1)
        assert "midnight" in caught.value.hint and len(store.reservations) == reservations, "asked once only"
        with pytest.raises(Denied, match="101 seal signatures are over the limit of 100 a day"):
            await limits.take(one, 101)
        clock.now += 86_400
        assert await taken(limits, one, 100) and not await taken(limits, one, 1)

    run(test())


def test_a_crash_loses_a_block_and_grants_nothing_twice(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        clock, one = Clock(), replace(ANYTHING, daily_limit=1_600)
        total = 0
        for _ in range(40):  # each time the process dies without a word
            limits = Limits(Store(registry, clock), clock)
            for count in (1, 7, 50):
                if await taken(limits, one, count):
                    total += count
        assert 1_600 - 1_600 // BLOCK_SHARE * 40 <= total <= 1_600
        assert total > 600

    run(test())


def test_a_drain_gives_back_what_is_left(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        clock, one = Clock(), replace(ANYTHING, daily_limit=160)
        total = 0
        for _ in range(200):
            limits = Limits(Store(registry, clock), clock)
            total += await taken(limits, one, 1)
            await limits.release()
        assert total == 160

    run(test())


def test_what_was_not_signed_is_given_back(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        clock, one = Clock(), replace(ANYTHING, daily_limit=10)
        limits = Limits(Store(registry, clock), clock)
        for _ in range(50):
            assert await taken(limits, one, 10)
            limits.give_back(one, 10)
        assert await taken(limits, one, 10) and not await taken(limits, one, 1)

    run(test())


def test_many_at_once_and_two_fronts_stay_within_a_daily_limit(
    run: Run, reader: Reader, registry: Registry
) -> None:
    async def test() -> None:
        clock, one = Clock(), replace(ANYTHING, daily_limit=500)
        fronts = [Limits(Store(registry, clock), clock) for _ in range(2)]
        counts = [1, 2, 3, 5, 8, 13]
        asked = [(fronts[i % 2], counts[i % 6]) for i in range(300)]
        got = await asyncio.gather(*(taken(limits, one, count) for limits, count in asked))
        total = sum(count for (_, count), was in zip(asked, got, strict=True) if was)
        assert 450 <= total <= 500

    run(test())


def test_a_changed_limit_holds_at_once(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        clock = Clock()
        limits = Limits(Store(registry, clock), clock)
        assert await taken(limits, replace(ANYTHING, daily_limit=1_000), 10)
        lower = replace(ANYTHING, daily_limit=15)
        assert await taken(limits, lower, 5) and not await taken(limits, lower, 1)
        assert await taken(limits, replace(ANYTHING, daily_limit=20), 5)

    run(test())


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 10)), max_size=60))
def test_no_minute_has_more_than_its_limit(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    minutes = MinuteWindows(clock)
    made: list[tuple[float, int]] = []
    for wait, count in steps:
        clock.now += wait
        wait_ms = minutes.take(("a", "s"), count, 20)
        if not wait_ms:
            made.append((clock.now, count))
        else:
            assert 0 < wait_ms <= 62_000
        recent = sum(one for at, one in made if at > clock.now - 60)
        assert recent <= 20
        if wait_ms:
            later = clock.now + wait_ms / 1_000
            saved, clock.now = clock.now, later
            copy = MinuteWindows(clock)
            copy._windows = {
                key: type(value)(list(one) for one in value) for key, value in minutes._windows.items()
            }
            assert copy.take(("a", "s"), count, 20) == 0, "it says when there is room"
            clock.now = saved


def test_minutes_are_forgotten_when_they_are_over() -> None:
    clock = Clock()
    minutes = MinuteWindows(clock)
    for account_number in range(100):
        minutes.take((f"a{account_number}", "s"), 1, 5)
    clock.now += 200
    minutes.take(("b", "s"), 1, 5)
    assert len(minutes._windows) == 1


def test_a_minute_limit_says_when_to_come_again(run: Run, reader: Reader, registry: Registry) -> None:
    async def test() -> None:
        clock = Clock()
        limits = Limits(Store(registry, clock), clock)
        one = replace(ANYTHING, minute_limit=10, daily_limit=100)
        assert await taken(limits, one, 10)
        for _ in range(30):
            with pytest.raises(Busy, match="10 seal signatures a minute") as caught:
                await limits.take(one, 10)
            assert 0 < caught.value.retry_after_ms <= 61_000
        with pytest.raises(Denied, match="over the limit of 10 a minute"):
            await limits.take(one, 11)
        clock.now += 61
        assert await taken(limits, one, 10), "a refusal by the minute takes nothing from the day"

    run(test())


# Uses -------------------------------------------------------------------------------------------------------


def test_uses_are_written_together_and_kept_where_they_cannot_be(
    run: Run, reader: Reader, registry: Registry
) -> None:
    async def test() -> None:
        clock = Clock()
        away = True
        written: list[list[UseRow]] = []

        async def write(rows: list[UseRow]) -> None:
            if away:
                raise Unavailable("the registry is away")
            written.append(rows)
            await asyncio.to_thread(registry.usage.add, rows)

        uses = UseCounter(write, clock)
        uses.add("seal-1", "approvals", 3)
        clock.now += 1
        uses.add("seal-1", "approvals", 4)
        with pytest.raises(Unavailable):
            await uses.flush()
        clock.now += 86_400
        uses.add("seal-1", "approvals", 1)
        away = False
        await uses.flush()
        await uses.flush()
        assert len(written) == 1
        assert registry.usage.uses("day", "2026-11-22", "2026-11-23") == [
            ("2026-11-22", 7),
            ("2026-11-23", 1),
        ]
        assert registry.seals.seal("seal-1").last_used_at == "2026-11-23T04:30:01.000+00:00"

    run(test())


def test_addresses() -> None:
    assert address_of("127.0.0.1") == LOOPBACK
    assert address_of("::1") == ipaddress.ip_address("::1")
