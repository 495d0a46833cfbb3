"""Who may do what: pure rules over values.

For: deciding, from what is known of an account and a key, whether a request goes on.
Not for: finding out who somebody is (``accounts``), or looking anything up (``registry``).

Rules:

* A key that an account holds no grant for looks exactly like one that does not exist.
* A key that others trust to certify (the seal maker's, a CA's, a time-stamp authority's) is covered by a grant on its
  very name and by no other: whoever signs digests with it makes seals.
* Being disabled beats every grant, and holds from the next request on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from appliance.algorithms import PublicKey
from appliance.errors import Conflict, Denied, NotFound
from appliance.wire import KeyState

EVERY_KEY: Final = "*"
"""A grant on this name holds for every key there is and will be, but for those that certify."""


@dataclass(frozen=True, slots=True)
class Account:
    """A business system, as the registry knows it.

    ``password_hash`` is an Argon2id string; ``uid`` the user on this machine, for the Unix socket;
    ``certificate_sha256`` the fingerprint in lower-case hex of its TLS client certificate. Whatever is set must fit.
    """

    name: str
    password_hash: str | None
    uid: int | None
    certificate_sha256: str | None
    disabled: bool
    grants: frozenset[str]

    def may_use(self, key_name: str, *, certifies: bool = False) -> bool:
        """Whether a grant covers that key."""
        return key_name in self.grants or (EVERY_KEY in self.grants and not certifies)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key that the appliance holds: its private half lies in the token, under ``key_id`` (CKA_ID)."""

    name: str
    key_id: bytes
    token: str
    public: PublicKey
    disabled: bool
    created_at: str
    for_seal: bool = False
    """One seal's key: nothing but sealing uses it."""
    certifies: bool = False
    """Seals, certificates or time stamps are trusted for being signed by it."""


def check_active(account: Account | None, name: str) -> Account:
    """The account, still there and not disabled, else ``Denied``."""
    if account is None or account.disabled:
        raise Denied(f"account {name!r} is disabled", hint="ask a security officer to enable it")
    return account


def visible_key(account: Account, key: HeldKey | None, name: str) -> HeldKey:
    """The key, if the account may know of it, else ``NotFound``."""
    if key is None or not account.may_use(name, certifies=key.certifies):
        raise NotFound(
            f"no key {name!r} for account {account.name!r}",
            hint="check the name, or have it granted: cloud-seal account grant",
        )
    return key


def signing_key(account: Account, key: HeldKey | None, name: str) -> HeldKey:
    """The key, if the account may sign with it now, else ``NotFound`` or ``Conflict``."""
    found = visible_key(account, key, name)
    if found.disabled:
        raise Conflict(f"key {name!r} is disabled", hint="cloud-seal key enable, once the reason is gone")
    return found


def key_state(account: Account, key: HeldKey | None, name: str, token_up: bool) -> KeyState:
    """What a STATUS may tell the account of that key."""
    if key is None or not account.may_use(name, certifies=key.certifies):
        return KeyState.UNKNOWN
    if key.disabled:
        return KeyState.DISABLED
    return KeyState.USABLE if token_up else KeyState.UNAVAILABLE
