"""Who may do what, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import ApplianceError, Conflict, Denied, NotFound
from appliance.policy import EVERY_KEY, Account, HeldKey, check_active, key_state, signing_key, visible_key
from appliance.wire import KeyState

POINT = bytes.fromhex(
    "6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296"
    "4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5"
)
KEY = HeldKey("k", b"id", "token", PublicKey(Algorithm.ECDSA_P256_SHA256, POINT), False, "2026-01-01")
OFF = replace(KEY, disabled=True)
ACCOUNT = Account("a", None, 0, None, False, frozenset())
GRANTS = {
    "none": frozenset[str](),
    "another": frozenset({"other"}),
    "this": frozenset({"k"}),
    "every": frozenset({EVERY_KEY}),
}
MISSING, ON, DISABLED = None, KEY, OFF


@pytest.mark.parametrize("grant", GRANTS)
@pytest.mark.parametrize("key", [MISSING, ON, DISABLED], ids=["missing", "on", "disabled"])
@pytest.mark.parametrize("token_up", [True, False])
def test_keys(grant: str, key: HeldKey | None, token_up: bool) -> None:
    account = replace(ACCOUNT, grants=GRANTS[grant])
    granted = grant in ("this", "every")
    state = key_state(account, key, "k", token_up)
    if key is None or not granted:
        assert state is KeyState.UNKNOWN
        for look in (visible_key, signing_key):
            with pytest.raises(NotFound):
                look(account, key, "k")
        return
    assert visible_key(account, key, "k") is key
    if key.disabled:
        assert state is KeyState.DISABLED
        with pytest.raises(Conflict):
            signing_key(account, key, "k")
    else:
        assert state is (KeyState.USABLE if token_up else KeyState.UNAVAILABLE)
        assert signing_key(account, key, "k") is key


def told(key: HeldKey | None) -> tuple[type[ApplianceError], str, str]:
    with pytest.raises(NotFound) as caught:
        signing_key(ACCOUNT, key, "k")
    return type(caught.value), caught.value.detail, caught.value.hint


def test_a_key_without_a_grant_looks_like_one_that_does_not_exist() -> None:
    assert told(None) == told(KEY) == told(OFF)


def test_a_key_that_is_called_like_the_grant_on_all_is_covered_by_nothing_else() -> None:
    assert not replace(ACCOUNT, grants=frozenset({"k"})).may_use(EVERY_KEY)
    assert not replace(ACCOUNT, grants=frozenset({"k*", "?"})).may_use("k")


def test_a_key_that_certifies_is_covered_by_its_name_alone() -> None:
    """Who signs digests with the maker's key makes seals."""
    certifying = replace(KEY, certifies=True)
    named = replace(ACCOUNT, grants=GRANTS["this"])
    every = replace(ACCOUNT, grants=GRANTS["every"])
    assert signing_key(named, certifying, "k") is certifying
    assert key_state(every, certifying, "k", True) is KeyState.UNKNOWN
    for look in (visible_key, signing_key):
        with pytest.raises(NotFound):
            look(every, certifying, "k")


def test_a_disabled_or_vanished_account_may_nothing() -> None:
    assert check_active(ACCOUNT, "a") is ACCOUNT
    for account in (None, replace(ACCOUNT, disabled=True, grants=frozenset({EVERY_KEY}))):
        with pytest.raises(Denied) as caught:
            check_active(account, "a")
        assert caught.value.detail == "account 'a' is disabled"


def test_every_refusal_says_what_to_do() -> None:
    for refuse in (
        lambda: check_active(None, "a"),
        lambda: signing_key(ACCOUNT, None, "k"),
        lambda: signing_key(replace(ACCOUNT, grants=frozenset({"k"})), OFF, "k"),
    ):
        with pytest.raises(ApplianceError) as caught:
            refuse()
        assert caught.value.hint
