"""Keys, accounts and their grants, in every database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from registry.conftest import Place
from registry.keys import ACCOUNT, P256, SM2, make_key

from appliance.algorithms import Algorithm
from appliance.errors import Conflict, NotFound
from appliance.policy import Account
from appliance.registry import KeyPurpose, Registry

# Keys -------------------------------------------------------------------------------------------------------


def test_the_life_of_a_key(registry: Registry, place: Place) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    assert registry.all_keys() == [] and registry.unfinished_keys() == [
        ("k", b"id", "token", Algorithm.SM2_SM3)
    ]
    made = registry.finish_key("k", SM2)
    assert (made.name, made.key_id, made.token, made.public, made.disabled) == (
        "k",
        b"id",
        "token",
        SM2,
        False,
    )
    assert registry.unfinished_keys() == [] and registry.all_keys() == [made] == [registry.key("k")]
    assert registry.set_key_disabled("k", True).disabled
    assert registry.set_key_disabled("k", True).disabled, "switching twice is no error"
    assert registry.all_keys()[0].disabled
    assert not registry.set_key_disabled("k", False).disabled
    registry.close()
    again = place.open()
    assert again.all_keys() == [made]
    again.close()


def test_a_name_or_an_id_is_taken_from_the_first_moment(registry: Registry) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    for name, key_id in (("k", b"other"), ("other", b"id")):
        with pytest.raises(Conflict):
            registry.begin_key(name, key_id, "token", Algorithm.SM2_SM3)
    registry.finish_key("k", SM2)
    with pytest.raises(Conflict):
        registry.begin_key("k", b"other", "token", Algorithm.SM2_SM3)
    assert len(registry.all_keys()) == 1


def test_a_key_is_finished_once(registry: Registry) -> None:
    make_key(registry)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    with pytest.raises(Conflict):
        registry.finish_key("never begun", P256)
    registry.set_key_disabled("k", True)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    assert registry.key("k").disabled, "finishing does not enable"


def test_a_key_is_finished_with_its_own_algorithm(registry: Registry, place: Place) -> None:
    """A point on another curve would make the whole registry unreadable at the next start."""
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    with pytest.raises(Conflict):
        registry.finish_key("k", P256)
    registry.finish_key("k", SM2)
    assert place.open().all_keys() == registry.all_keys()


def test_only_what_is_being_made_is_abandoned(registry: Registry) -> None:
    registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    registry.abandon_key("k")
    registry.abandon_key("k")
    make_key(registry)
    registry.abandon_key("k")
    assert registry.key("k")


@pytest.mark.parametrize("state", ["missing", "creating"])
def test_a_key_that_is_not_there(registry: Registry, state: str) -> None:
    registry.create_account(ACCOUNT)
    if state == "creating":
        registry.begin_key("k", b"id", "token", Algorithm.SM2_SM3)
    for act in (
        lambda: registry.key("k"),
        lambda: registry.set_key_disabled("k", False),
        lambda: registry.grant("a", "k"),
    ):
        with pytest.raises(NotFound):
            act()
    assert registry.all_keys() == []


def test_a_crash_between_the_two_halves(place: Place) -> None:
    """The process is gone without a word; what it had begun is found."""
    first = place.open()
    first.begin_key("k", b"id", "token", Algorithm.ECDSA_P256_SHA256)
    second = place.open()  # the first one was never closed
    assert second.unfinished_keys() == [("k", b"id", "token", Algorithm.ECDSA_P256_SHA256)]
    second.finish_key("k", P256)
    assert first.all_keys() == second.all_keys()
    first.close()
    second.close()


# Accounts and grants ----------------------------------------------------------------------------------------


def test_accounts(registry: Registry, place: Place) -> None:
    others = [
        Account("b", None, 0, None, False, frozenset()),
        Account("c", None, None, "cd" * 32, True, frozenset()),
    ]
    for account in (*others, ACCOUNT):
        registry.create_account(account)
    assert registry.all_accounts() == [ACCOUNT, *others]
    with pytest.raises(Conflict):
        registry.create_account(Account("a", None, 5, None, False, frozenset()))
    registry.set_account_password("a", "other")
    registry.set_account_disabled("b", True)
    registry.set_account_disabled("c", False)
    a, b, c = registry.all_accounts()
    assert (a.password_hash, b.disabled, c.disabled) == ("other", True, False)


@pytest.mark.parametrize(
    "act",
    [
        lambda registry: registry.set_account_password("nobody", "x"),
        lambda registry: registry.set_account_disabled("nobody", True),
        lambda registry: registry.grant("nobody", "*"),
        lambda registry: registry.grant("nobody", "k"),
        lambda registry: registry.revoke("nobody", "k"),
        lambda registry: registry.revoke("a", "k"),
        lambda registry: registry.grant("a", "no such key"),
    ],
)
def test_an_account_or_grant_that_is_not_there(registry: Registry, act: Callable[[Registry], None]) -> None:
    registry.create_account(ACCOUNT)
    make_key(registry)
    with pytest.raises(NotFound):
        act(registry)
    assert registry.all_accounts() == [ACCOUNT]


def test_grants(registry: Registry) -> None:
    registry.create_account(ACCOUNT)
    make_key(registry)
    for _ in range(2):
        registry.grant("a", "k")
    registry.grant("a", "*")
    assert registry.all_accounts()[0].grants == {"k", "*"}
    registry.revoke("a", "k")
    with pytest.raises(NotFound):
        registry.revoke("a", "k")
    assert registry.all_accounts()[0].grants == {"*"}


def test_names_are_values_and_no_sql(registry: Registry) -> None:
    name = "'; DROP TABLE key; --"
    make_key(registry, name)
    assert registry.key(name).name == name


# Keys of seals ----------------------------------------------------------------------------------------------


def test_keys_of_seals_are_found_by_name_only(registry: Registry) -> None:
    make_key(registry, "signs")
    registry.begin_key("seals", b"id", "token", SM2.algorithm, KeyPurpose.SEAL)
    assert [name for name, *_ in registry.unfinished_keys()] == ["seals"], (
        "a crash while it is made is mended alike"
    )
    made = registry.finish_key("seals", SM2)
    assert made.for_seal and registry.key("seals") == made
    assert [key.name for key in registry.all_keys()] == ["signs"]
    assert registry.set_key_disabled("seals", True).for_seal
    registry.create_account(ACCOUNT)
    with pytest.raises(NotFound):
        registry.grant("a", "seals")


def test_a_destroyed_key_is_no_more_and_its_name_is_taken(registry: Registry) -> None:
    make_key(registry, "k")
    for _ in range(2):
        registry.destroy_key("k")
    assert registry.all_keys() == [] and registry.unfinished_keys() == []
    for act in (lambda: registry.key("k"), lambda: registry.set_key_disabled("k", False)):
        with pytest.raises(NotFound):
            act()
    with pytest.raises(Conflict):
        registry.begin_key("k", b"other", "token", Algorithm.SM2_SM3)
    with pytest.raises(NotFound):
        registry.destroy_key("never there")
    registry.begin_key("begun", b"begun", "token", Algorithm.SM2_SM3)
    with pytest.raises(NotFound):
        registry.destroy_key("begun")
