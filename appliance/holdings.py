"""What a request needs to know, in memory: accounts and keys as the registry has them.

For: look-ups on the hot path without I/O, and for officers' acts: written to the registry first, then here.
Not for: deciding (``policy``), durability (``registry``).

Crash story: memory follows the registry, never leads it. An act that a crash cut short before the registry's commit
never was; after it, the next start reads it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from appliance import _express
from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import BadRequest, NotFound, RequestError, SignerFailed
from appliance.policy import EVERY_KEY, Account, HeldKey
from appliance.registry import KeyPurpose, Registry
from appliance.wire import MAX_NAME_LEN

log = logging.getLogger(__name__)
_T = TypeVar("_T")

MAX_SEAL_KEYS: Final = 100_000
"""Keys of seals that are remembered, some 50 MB: more seals than that are not in use at once."""
KEY_ID_LEN: Final = 16
"""CKA_ID: random, so that no two appliances sharing a token choose the same."""


class KeyMaker(Protocol):
    """What makes keys: a signer pool."""

    async def create_key(self, key_id: bytes, name: str, algorithm: Algorithm) -> PublicKey:
        """Have the token make a key pair; its public half."""

    async def list_keys(self) -> list[dict[str, str]]:
        """What the token holds."""

    async def destroy_key(self, key_id: bytes, name: str) -> None:
        """Have the token destroy it; gone already is no error."""

    def forget_key(self, name: str) -> None:
        """What was known of that key is out of date."""


class Holdings:
    """Owned by the event loop; registry calls run in a thread, one act at a time."""

    def __init__(
        self,
        registry: Registry,
        id_source: Callable[[int], bytes] = secrets.token_bytes,
        certifies: Callable[[HeldKey], bool] = lambda key: False,
    ) -> None:
        self._registry = registry
        self._certifies = certifies
        self._id_source = id_source
        self.announce: Callable[[str, str], Awaitable[None]] = _nobody_else
        """Called with ``key`` or ``account`` and a name, after a change and before the act is answered."""
        self._acts = asyncio.Lock()
        self.unfinished = asyncio.Event()
        """Set where a key's making may have been cut short; ``finish_unfinished`` is due once its token is up."""
        self.unfinished.set()  # an earlier process may have left some
        self._accounts: dict[str, Account] = _Told({one.name: one for one in registry.all_accounts()})
        self._keys: dict[str, HeldKey] = _Told({one.name: self._marked(one) for one in registry.all_keys()})
        self._seal_keys: OrderedDict[str, HeldKey] = OrderedDict()  # those wanted last, the latest at the end
        self._seal_key_changes = 0

    @property
    def accounts(self) -> Mapping[str, Account]:
        """By name; always current."""
        return self._accounts

    @property
    def keys(self) -> Mapping[str, HeldKey]:
        """By name; always current."""
        return self._keys

    # Keys of seals --------------------------------------------------------------------------------------

    async def find_seal_key(self, name: str) -> HeldKey:
        """A seal's key, else ``NotFound``; read when it is first wanted, for there may be a million of them."""
        key = self._seal_keys.get(name)
        if key is not None:
            self._seal_keys.move_to_end(name)
            return key
        while True:  # again where an act changed some key meanwhile: what was read may be from before it
            changes = self._seal_key_changes
            key = await asyncio.to_thread(self._registry.key, name)
            if not key.for_seal:
                raise NotFound(f"no seal has a key {name!r}", hint="cloud-seal seal show names it")
            if changes == self._seal_key_changes:
                self._remember(key)
                return key

    def known_seal_key(self, name: str) -> HeldKey | None:
        """The same without I/O, where it was wanted lately."""
        return self._seal_keys.get(name)

    def _remember(self, key: HeldKey) -> None:
        if not key.for_seal:
            self._keys[key.name] = self._marked(key)
            return
        self._seal_keys[key.name] = key
        self._seal_keys.move_to_end(key.name)
        if len(self._seal_keys) > MAX_SEAL_KEYS:
            self._seal_keys.popitem(last=False)

    def _marked(self, key: HeldKey) -> HeldKey:
        return replace(key, certifies=True) if self._certifies(key) else key

    async def destroy_key(self, name: str, maker: KeyMaker) -> None:
        """For ever, in the token first. Its row stays, and no other key is ever called so."""
        async with self._acts:
            key = await asyncio.to_thread(self._registry.key, name)
            await maker.destroy_key(key.key_id, name)
            # A crash here leaves a row that no token has a key for; to destroy it again sets that right.
            await asyncio.to_thread(self._registry.destroy_key, name)
            self._forget(name)
            maker.forget_key(name)
            await self.announce("key", name)

    def _forget(self, name: str) -> None:
        self._seal_key_changes += 1
        self._seal_keys.pop(name, None)
        self._keys.pop(name, None)

    # Keys -----------------------------------------------------------------------------------------------

    async def create_key(
        self,
        name: str,
        token: str,
        algorithm: Algorithm,
        maker: KeyMaker,
        purpose: KeyPurpose = KeyPurpose.SIGNING,
    ) -> HeldKey:
        """Record the name, make the key in the token, record that it is there."""
        check_name(name, "key")
        key_id = self._id_source(KEY_ID_LEN)
        async with self._acts:
            await self._finish_unfinished(token, maker)  # perhaps an earlier try at this very name
            await asyncio.to_thread(self._registry.begin_key, name, key_id, token, algorithm, purpose)
            # A crash from here on leaves a row `creating`; `finish_unfinished` asks the token about it.
            try:
                public = await maker.create_key(key_id, name, algorithm)
            except (RequestError, SignerFailed):  # the token says no: there is no key
                await asyncio.shield(asyncio.to_thread(self._registry.abandon_key, name))
                raise
            except BaseException:
                # The worker died, or did not answer, perhaps after the token had made it: the row stays, and the
                # token is asked, as after a crash.
                self.unfinished.set()
                raise
            key = await asyncio.to_thread(self._registry.finish_key, name, public)
            self._remember(key)
            await self.announce("key", name)
        return key

    async def finish_unfinished(self, token: str, maker: KeyMaker) -> None:
        """After a start: keys whose making was cut short are there or they are not; the token knows."""
        async with self._acts:  # what is being made at this moment is not cut short
            await self._finish_unfinished(token, maker)

    async def _finish_unfinished(self, token: str, maker: KeyMaker) -> None:
        unfinished = [
            row for row in await asyncio.to_thread(self._registry.unfinished_keys) if row[2] == token
        ]
        if not unfinished:
            return
        points = {entry["id"]: entry.get("point", "") for entry in await maker.list_keys()}
        for name, key_id, _, algorithm in unfinished:
            point = points.get(key_id.hex(), "")
            if point:
                public = PublicKey(algorithm, bytes.fromhex(point))
                self._remember(await asyncio.to_thread(self._registry.finish_key, name, public))
                await self.announce("key", name)
                log.warning(
                    "key %r: its making was cut short after the token had made it; it is usable", name
                )
            else:
                await asyncio.to_thread(self._registry.abandon_key, name)
                log.warning("key %r: its making was cut short before the token had made it; dropped", name)

    async def set_key_disabled(self, name: str, disabled: bool, maker: KeyMaker) -> HeldKey:
        """In force for every request that is looked at after this returns."""
        async with self._acts:
            key = await asyncio.to_thread(self._registry.set_key_disabled, name, disabled)
            self._seal_key_changes += 1
            self._remember(key)
            maker.forget_key(name)
            await self.announce("key", name)
        return key

    async def refresh(self, kind: str, name: str) -> None:
        """The leading front has changed a key or an account: read it again."""
        if kind == "key":
            self._seal_key_changes += 1  # who is reading it now may have the old one
            try:
                key = await asyncio.to_thread(self._registry.key, name)
            except NotFound:
                self._forget(name)  # it was destroyed
                return
            if not key.for_seal or name in self._seal_keys:
                self._remember(key)
        elif kind == "account":
            self._accounts[name] = await asyncio.to_thread(self._registry.account, name)

    # Accounts -------------------------------------------------------------------------------------------

    async def create_account(self, account: Account) -> Account:
        """It has no grants yet."""
        check_name(account.name, "account")
        if account.password_hash is None and account.uid is None and account.certificate_sha256 is None:
            raise BadRequest(
                "an account needs a password, a uid or a certificate", hint="give one of them, or several"
            )
        async with self._acts:
            await asyncio.to_thread(self._registry.create_account, account)
            self._accounts[account.name] = account
            await self.announce("account", account.name)
        return account

    async def set_account_password(self, name: str, password_hash: str) -> None:
        """From the next HELLO on."""
        async with self._acts:
            await asyncio.to_thread(self._registry.set_account_password, name, password_hash)
            self._accounts[name] = replace(self._accounts[name], password_hash=password_hash)
            await self.announce("account", name)

    async def set_account_disabled(self, name: str, disabled: bool) -> None:
        """In force from the next request on, on open connections too."""
        async with self._acts:
            await asyncio.to_thread(self._registry.set_account_disabled, name, disabled)
            self._accounts[name] = replace(self._accounts[name], disabled=disabled)
            await self.announce("account", name)

    async def grant(self, account: str, key_name: str) -> None:
        """Let the account use a key, or with ``*`` every key."""
        if account not in self._accounts:
            raise NotFound(f"no account {account!r}", hint="cloud-seal account list")
        async with self._acts:
            await asyncio.to_thread(self._registry.grant, account, key_name)
            known = self._accounts[account]
            self._accounts[account] = replace(known, grants=known.grants | {key_name})
            await self.announce("account", account)

    async def revoke(self, account: str, key_name: str) -> None:
        """In force from the next request on."""
        async with self._acts:
            await asyncio.to_thread(self._registry.revoke, account, key_name)
            known = self._accounts[account]
            self._accounts[account] = replace(known, grants=known.grants - {key_name})
            await self.announce("account", account)


class _Told(dict[str, _T]):
    """A mapping of which each change ends what was allowed by what it held before."""

    def __setitem__(self, name: str, value: _T) -> None:
        super().__setitem__(name, value)
        _express.withdraw()

    def pop(self, name: str, *default: Any) -> Any:
        value = super().pop(name, *default)
        _express.withdraw()
        return value


async def _nobody_else(kind: str, name: str) -> None:
    """There is one front."""


def check_name(name: str, what: str) -> None:
    """Names are what people type and logs show: printable, no blanks, 1 to 64 bytes, and not ``*``."""
    encoded = name.encode("utf-8", "replace")
    if not 1 <= len(encoded) <= MAX_NAME_LEN or not name.isprintable() or " " in name or name == EVERY_KEY:
        raise BadRequest(
            f"{name[: MAX_NAME_LEN + 1]!r}: no name for {what}s",
            hint=f"1 to {MAX_NAME_LEN} bytes of printable UTF-8 without blanks",
        )
