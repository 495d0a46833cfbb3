"""Holdings: memory follows the registry, and a key is in both or in neither, whatever goes wrong between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import BadRequest, Conflict, NotFound, SignerFailed, Unavailable
from appliance.holdings import Holdings, check_name
from appliance.policy import Account, HeldKey
from appliance.registry import KeyPurpose, Registry, open_registry
from appliance.settings import Settings

ALGORITHM = Algorithm.ECDSA_P256_SHA256


def new_point() -> bytes:
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


class Token:
    """A key maker whose failures are the test's."""

    def __init__(self) -> None:
        self.points: dict[bytes, bytes] = {}
        self.before: BaseException | None = None
        self.after: BaseException | None = None
        self.down: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self.making = asyncio.Event()
        self.forgotten: list[str] = []

    async def create_key(self, key_id: bytes, name: str, algorithm: Algorithm) -> PublicKey:
        if self.before is not None:
            raise self.before
        self.points[key_id] = new_point()
        self.making.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.after is not None:
            raise self.after
        return PublicKey(algorithm, self.points[key_id])

    async def list_keys(self) -> list[dict[str, str]]:
        if self.down is not None:
            raise self.down
        return [{"id": key_id.hex(), "point": point.hex()} for key_id, point in self.points.items()]

    async def destroy_key(self, key_id: bytes, name: str) -> None:
        if self.before is not None:
            raise self.before
        self.points.pop(key_id, None)
        if self.after is not None:
            raise self.after

    def forget_key(self, name: str) -> None:
        self.forgotten.append(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    opened = open_registry(Settings(registry=path))
    yield opened
    opened.close()


def run(test: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        await test()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def agree(holdings: Holdings, registry: Registry) -> None:
    assert list(holdings.keys.values()) == registry.all_keys() or set(holdings.keys.values()) == set(
        registry.all_keys()
    )
    assert sorted(holdings.accounts.values(), key=lambda one: one.name) == registry.all_accounts()


def test_a_key_is_made(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry, lambda length: b"i" * length), Token()
        key = await holdings.create_key("k", "token", ALGORITHM, token)
        assert key == HeldKey(
            "k", b"i" * 16, "token", PublicKey(ALGORITHM, token.points[b"i" * 16]), False, key.created_at
        )
        assert holdings.keys == {"k": key}
        agree(holdings, registry)
        agree(Holdings(registry), registry)

    run(test)


def test_a_taken_name_does_not_reach_the_token(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        key = await holdings.create_key("k", "token", ALGORITHM, token)
        with pytest.raises(Conflict):
            await holdings.create_key("k", "token", ALGORITHM, token)
        assert len(token.points) == 1 and holdings.keys == {"k": key}

    run(test)


@pytest.mark.parametrize("error", [Conflict("the token says no"), SignerFailed("mechanism missing")])
def test_a_refusal_frees_the_name(registry: Registry, error: Exception) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        token.before = error
        with pytest.raises(type(error)):
            await holdings.create_key("k", "token", ALGORITHM, token)
        assert not holdings.keys and not registry.unfinished_keys()
        token.before = None
        await holdings.create_key("k", "token", ALGORITHM, token)
        agree(holdings, registry)

    run(test)


@pytest.mark.parametrize("half", ["not done", "done, answer lost"])
@pytest.mark.parametrize("then", ["restart", "again", "another"])
def test_a_worker_that_dies_while_it_makes_a_key(registry: Registry, half: str, then: str) -> None:
    """Both halves of the pair: nobody knows whether the token has made it, so it is asked before that."""

    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        lost = Unavailable("the signer worker is gone")
        token.before, token.after = (lost, None) if half == "not done" else (None, lost)
        with pytest.raises(Unavailable):
            await holdings.create_key("k", "token", ALGORITHM, token)
        assert not holdings.keys
        assert [row[0] for row in registry.unfinished_keys()] == ["k"], "the token has not been asked yet"
        token.before = token.after = None
        if then == "restart":
            holdings = Holdings(registry)
            await holdings.finish_unfinished("token", token)
        elif then == "another":
            await holdings.create_key("another", "token", ALGORITHM, token)
        elif half == "not done":
            await holdings.create_key("k", "token", ALGORITHM, token)
        else:
            with pytest.raises(Conflict):  # it is there already, and usable
                await holdings.create_key("k", "token", ALGORITHM, token)
        expected = {"another"} if then == "another" else set()
        if half != "not done" or then == "again":
            expected |= {"k"}
        assert set(holdings.keys) == expected
        assert {key.key_id for key in holdings.keys.values()} == set(token.points), (
            "no key that nobody knows of"
        )
        assert not registry.unfinished_keys()
        agree(holdings, registry)

    run(test)


def test_cancelled_while_the_token_makes_it(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        token.gate = asyncio.Event()
        making = asyncio.ensure_future(holdings.create_key("k", "token", ALGORITHM, token))
        await token.making.wait()
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await holdings.finish_unfinished("token", token)
        assert set(holdings.keys) == {"k"}
        agree(holdings, registry)

    run(test)


def test_what_is_being_made_is_not_cut_short(registry: Registry) -> None:
    """The look at start-up and an officer's act at the same moment: the key is recorded once, and not dropped."""

    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        token.gate = asyncio.Event()
        making = asyncio.ensure_future(holdings.create_key("k", "token", ALGORITHM, token))
        await token.making.wait()
        finishing = asyncio.ensure_future(holdings.finish_unfinished("token", token))
        for _ in range(50):
            await asyncio.sleep(0)
        token.gate.set()
        key = await making
        await finishing
        assert holdings.keys == {"k": key}
        agree(holdings, registry)

    run(test)


def test_unfinished_keys_of_another_token_are_left_alone(registry: Registry) -> None:
    async def test() -> None:
        registry.begin_key("k", b"i" * 16, "other", ALGORITHM)
        holdings, token = Holdings(registry), Token()
        await holdings.finish_unfinished("token", token)
        assert [row[0] for row in registry.unfinished_keys()] == ["k"]

    run(test)


def test_a_token_that_is_down_is_asked_later(registry: Registry) -> None:
    async def test() -> None:
        registry.begin_key("k", b"i" * 16, "token", ALGORITHM)
        holdings, token = Holdings(registry), Token()
        token.down = Unavailable("down")
        with pytest.raises(Unavailable):
            await holdings.create_key("k", "token", ALGORITHM, token)
        assert [row[0] for row in registry.unfinished_keys()] == ["k"] and not token.points
        token.down = None
        await holdings.create_key("k", "token", ALGORITHM, token)
        agree(holdings, registry)

    run(test)


def test_switching_a_key(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        await holdings.create_key("k", "token", ALGORITHM, token)
        for disabled in (True, False):
            key = await holdings.set_key_disabled("k", disabled, token)
            assert key.disabled is disabled and holdings.keys["k"] is key
            agree(holdings, registry)
        assert token.forgotten == ["k", "k"]
        with pytest.raises(NotFound):
            await holdings.set_key_disabled("none", True, token)

    run(test)


def test_keys_of_seals_are_read_when_they_are_wanted(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.holdings.MAX_SEAL_KEYS", 2)

    async def act() -> None:
        holdings, token = Holdings(registry), Token()
        made = {
            name: await holdings.create_key(
                name, "token", Algorithm.ECDSA_P256_SHA256, token, KeyPurpose.SEAL
            )
            for name in ("a", "b", "c")
        }
        assert holdings.keys == {} and {key.for_seal for key in made.values()} == {True}
        assert holdings.known_seal_key("a") is None, "two are kept, and those are the last ones"
        assert holdings.known_seal_key("b") == made["b"]
        for name, key in made.items():
            assert await holdings.find_seal_key(name) == key
        assert [holdings.known_seal_key(name) is not None for name in "abc"] == [False, True, True]
        await holdings.find_seal_key("b")
        await holdings.find_seal_key("a")
        assert holdings.known_seal_key("c") is None, "the one asked for the longest ago makes room"

        await holdings.create_key("signs", "token", Algorithm.ECDSA_P256_SHA256, token)
        for wrong in ("none", "signs"):
            with pytest.raises(NotFound):
                await holdings.find_seal_key(wrong)
        assert list(holdings.keys) == ["signs"]

        assert (await holdings.set_key_disabled("b", True, token)).disabled
        found = await holdings.find_seal_key("b")
        assert found is not None and found.disabled and list(holdings.keys) == ["signs"]

        again = Holdings(registry)  # another front, or the next start
        assert list(again.keys) == ["signs"] and again.known_seal_key("b") is None
        assert await again.find_seal_key("b") == found
        await holdings.set_key_disabled("b", False, token)
        await again.refresh("key", "b")
        assert await again.find_seal_key("b") == made["b"]
        for name in ("b", "signs"):
            await holdings.destroy_key(name, token)
            await again.refresh("key", name)
        for one in (holdings, again):
            assert one.keys == {} and one.known_seal_key("b") is None
            with pytest.raises(NotFound):
                await one.find_seal_key("b")

    asyncio.run(act())


def test_a_key_that_is_disabled_while_it_is_read(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before the act is not kept after it."""

    async def act() -> None:
        holdings, token = Holdings(registry), Token()
        await holdings.create_key("a", "token", Algorithm.ECDSA_P256_SHA256, token, KeyPurpose.SEAL)
        other = Holdings(registry)
        loop, real = asyncio.get_running_loop(), registry.key
        calls: list[str] = []

        def slow(name: str) -> HeldKey:
            found = real(name)
            calls.append(name)
            if len(calls) == 1:
                asyncio.run_coroutine_threadsafe(other.set_key_disabled("a", True, token), loop).result()
            return found

        monkeypatch.setattr(registry, "key", slow)
        found = await other.find_seal_key("a")
        assert found is not None and found.disabled and len(calls) == 2

    asyncio.run(act())


def test_accounts_and_grants(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        await holdings.create_key("k", "token", ALGORITHM, token)
        await holdings.create_account(Account("a", "hash", None, None, False, frozenset()))
        await holdings.set_account_password("a", "other")
        await holdings.grant("a", "k")
        await holdings.grant("a", "*")
        await holdings.revoke("a", "*")
        await holdings.set_account_disabled("a", True)
        assert holdings.accounts["a"] == Account("a", "other", None, None, True, frozenset({"k"}))
        agree(holdings, registry)
        agree(Holdings(registry), registry)

    run(test)


@pytest.mark.parametrize(
    "act",
    [
        lambda holdings: holdings.set_account_password("nobody", "x"),
        lambda holdings: holdings.set_account_disabled("nobody", True),
        lambda holdings: holdings.grant("nobody", "*"),
        lambda holdings: holdings.revoke("nobody", "*"),
        lambda holdings: holdings.revoke("a", "*"),
        lambda holdings: holdings.grant("a", "no such key"),
    ],
)
def test_an_act_that_fails_changes_nothing(
    registry: Registry, act: Callable[[Holdings], Awaitable[None]]
) -> None:
    async def test() -> None:
        holdings = Holdings(registry)
        await holdings.create_account(Account("a", "hash", None, None, False, frozenset()))
        before = dict(holdings.accounts)
        with pytest.raises(NotFound):
            await act(holdings)
        assert holdings.accounts == before
        agree(holdings, registry)

    run(test)


def test_an_account_without_a_proof_is_none(registry: Registry) -> None:
    async def test() -> None:
        with pytest.raises(BadRequest):
            await Holdings(registry).create_account(Account("a", None, None, None, False, frozenset()))
        assert not registry.all_accounts()

    run(test)


def test_a_taken_account_keeps_what_it_has(registry: Registry) -> None:
    async def test() -> None:
        holdings = Holdings(registry)
        await holdings.create_account(Account("a", "hash", None, None, False, frozenset()))
        with pytest.raises(Conflict):
            await holdings.create_account(Account("a", "another", None, None, False, frozenset()))
        assert holdings.accounts["a"].password_hash == "hash"

    run(test)


@pytest.mark.parametrize("name", ["k", "seal-2024", "公章", "x" * 64, "章" * 21, "a/b", "*a"])
def test_names(name: str) -> None:
    check_name(name, "key")


@pytest.mark.parametrize(
    "name", ["", "*", "x" * 65, "章" * 22, "a b", "a\n", "\0", "\u3000", "\u200b", "\udcff", "\x1b[31m"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_name(name, "key")
    assert "\x1b" not in caught.value.detail and "\n" not in caught.value.detail


# Keys of seals ------------------------------------------------------------------------------------------------


def test_a_seal_key_is_none_of_the_keys_that_accounts_sign_with(registry: Registry) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        made = await holdings.create_key("s", "token", ALGORITHM, token, KeyPurpose.SEAL)
        await holdings.create_key("k", "token", ALGORITHM, token)
        assert made.for_seal and set(holdings.keys) == {"k"}
        for each in (holdings, Holdings(registry)):
            assert await each.find_seal_key("s") == made == each.known_seal_key("s")
            with pytest.raises(NotFound):
                await each.find_seal_key("k")
            with pytest.raises(NotFound):
                await each.find_seal_key("nothing")
        await holdings.refresh("key", "s")
        assert set(holdings.keys) == {"k"}

    run(test)


def test_seal_keys_that_were_not_wanted_lately_are_read_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.holdings.MAX_SEAL_KEYS", 2)

    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        for name in ("a", "b"):
            await holdings.create_key(name, "token", ALGORITHM, token, KeyPurpose.SEAL)
        await holdings.find_seal_key("a")
        await holdings.create_key("c", "token", ALGORITHM, token, KeyPurpose.SEAL)
        known = [name for name in "abc" if holdings.known_seal_key(name) is not None]
        assert known == ["a", "c"]
        assert (await holdings.find_seal_key("b")).name == "b"

    run(test)


@pytest.mark.parametrize("half", ["not done", "done, answer lost"])
def test_a_key_is_destroyed_in_the_token_first(registry: Registry, half: str) -> None:
    async def test() -> None:
        holdings, token = Holdings(registry), Token()
        key = await holdings.create_key("s", "token", ALGORITHM, token, KeyPurpose.SEAL)
        lost = Unavailable("the signer worker is gone")
        token.before, token.after = (lost, None) if half == "not done" else (None, lost)
        with pytest.raises(Unavailable):
            await holdings.destroy_key("s", token)
        assert registry.key("s") == key, "nobody knows: it is asked for again"
        token.before = token.after = None
        await holdings.destroy_key("s", token)
        assert not token.points and token.forgotten == ["s"]
        assert holdings.known_seal_key("s") is None
        with pytest.raises(NotFound):
            await holdings.find_seal_key("s")
        follower = Holdings(registry)
        await follower.refresh("key", "s")
        assert follower.known_seal_key("s") is None and not follower.keys

    run(test)
