"""Accounts of business systems, and which signing keys each may use."""

from __future__ import annotations

from typing import Any, Final

from appliance.errors import Conflict, NotFound
from appliance.policy import EVERY_KEY, Account
from appliance.registry.database import Part, Transaction, Violation, atomic
from appliance.registry.keys import now


class Accounts(Part):
    """The registry's accounts."""

    @atomic
    def create_account(self, transaction: Transaction, account: Account) -> None:
        """``Conflict`` if the name is taken. Grants are given afterwards."""
        try:
            transaction.execute(
                "INSERT INTO account (name, password_hash, uid, certificate_sha256, disabled, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                account.name,
                account.password_hash,
                account.uid,
                account.certificate_sha256,
                account.disabled,
                now(),
            )
        except Violation as error:
            raise Conflict(
                f"there is an account {account.name!r} already", hint="choose another name"
            ) from error

    def all_accounts(self) -> list[Account]:
        """All of them with their grants on keys, by name."""
        grants: dict[str, set[str]] = {}
        for account, key_name in self._database.rows("SELECT account, key_name FROM key_grant"):
            grants.setdefault(account, set()).add(key_name)
        rows = self._database.rows(f"{_SELECT} ORDER BY name")
        return [_account(row, grants.get(row[0], set())) for row in rows]

    def account(self, name: str) -> Account:
        """The one of that name with its grants on keys, else ``NotFound``."""
        rows = self._database.rows(f"{_SELECT} WHERE name = ?", name)
        if not rows:
            raise _no_account(name)
        grants = self._database.rows("SELECT key_name FROM key_grant WHERE account = ?", name)
        return _account(rows[0], {key_name for (key_name,) in grants})

    @atomic
    def set_account_password(self, transaction: Transaction, name: str, password_hash: str) -> None:
        """Replace the hash."""
        if (
            transaction.execute("UPDATE account SET password_hash = ? WHERE name = ?", password_hash, name)
            != 1
        ):
            raise _no_account(name)

    @atomic
    def set_account_disabled(self, transaction: Transaction, name: str, disabled: bool) -> None:
        """Switch it off or on."""
        if transaction.execute("UPDATE account SET disabled = ? WHERE name = ?", disabled, name) != 1:
            raise _no_account(name)

    @atomic
    def grant(self, transaction: Transaction, account: str, key_name: str) -> None:
        """Let the account use that signing key (``*``: every one); granting twice is no error."""
        if key_name != EVERY_KEY and not transaction.rows(_SIGNING_KEY, key_name):
            raise NotFound(f"no key {key_name!r}", hint="cloud-seal key list")
        try:
            transaction.execute(
                "INSERT INTO key_grant (account, key_name, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                account,
                key_name,
                now(),
            )
        except Violation as error:
            raise _no_account(account) from error

    @atomic
    def revoke(self, transaction: Transaction, account: str, key_name: str) -> None:
        """Take a grant back, else ``NotFound``."""
        done = transaction.execute(
            "DELETE FROM key_grant WHERE account = ? AND key_name = ?", account, key_name
        )
        if done != 1:
            raise NotFound(
                f"account {account!r} has no grant on {key_name!r}", hint="cloud-seal account list"
            )


_SELECT: Final = "SELECT name, password_hash, uid, certificate_sha256, disabled FROM account"
_SIGNING_KEY: Final = (
    "SELECT 1 FROM key WHERE name = ? AND purpose = 'signing' AND state IN ('usable', 'disabled')"
)


def _no_account(name: str) -> NotFound:
    return NotFound(f"no account {name!r}", hint="cloud-seal account list")


def _account(row: tuple[Any, ...], grants: set[str]) -> Account:
    name, password_hash, uid, fingerprint, disabled = row
    return Account(name, password_hash, uid, fingerprint, bool(disabled), frozenset(grants))
