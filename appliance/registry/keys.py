"""Keys: which there are, for what, in which token, and in what state.

A key is first recorded as ``creating``, then made in the token, then recorded as ``usable``; ``HSM first, record
never`` would leave a key that nobody knows of. Start-up asks the token about each key found ``creating``
(``holdings``).

Keys of seals are made, found and destroyed like others, and are not in ``all_keys``: a million of them is read one by
one, when it is wanted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from appliance.algorithms import Algorithm, PublicKey
from appliance.errors import Conflict, NotFound
from appliance.policy import HeldKey
from appliance.registry.database import Part, Transaction, Violation, atomic


class KeyPurpose(Enum):
    """What a key is for."""

    SIGNING = "signing"
    """Business systems sign with it, by name."""
    SEAL = "seal"
    """One seal's; nothing but sealing uses it."""


class Keys(Part):
    """The registry's keys."""

    @atomic
    def begin_key(
        self,
        transaction: Transaction,
        name: str,
        key_id: bytes,
        token: str,
        algorithm: Algorithm,
        purpose: KeyPurpose = KeyPurpose.SIGNING,
    ) -> None:
        """Reserve the name before the token makes the key; ``Conflict`` if it is taken."""
        try:
            transaction.execute(
                "INSERT INTO key (name, key_id, token, algorithm, state, purpose, created_at)"
                " VALUES (?, ?, ?, ?, 'creating', ?, ?)",
                name,
                key_id,
                token,
                algorithm.label,
                purpose.value,
                now(),
            )
        except Violation as error:
            raise Conflict(f"there is a key {name!r} already", hint="choose another name") from error

    @atomic
    def finish_key(self, transaction: Transaction, name: str, public: PublicKey) -> HeldKey:
        """The token has made it: from here on it is usable."""
        done = transaction.execute(
            "UPDATE key SET state = 'usable', point = ? WHERE name = ? AND state = 'creating' AND algorithm = ?",
            public.point,
            name,
            public.algorithm.label,
        )
        if done != 1:
            raise Conflict(f"no {public.algorithm.label} key {name!r} is being created")
        return _key(transaction.rows(_ONE_KEY, name), name)

    @atomic
    def abandon_key(self, transaction: Transaction, name: str) -> None:
        """The token has not made it: the name is free again."""
        transaction.execute("DELETE FROM key WHERE name = ? AND state = 'creating'", name)

    def unfinished_keys(self) -> list[tuple[str, bytes, str, Algorithm]]:
        """Keys whose making was cut short: name, id, token, algorithm."""
        rows = self._database.rows(
            "SELECT name, key_id, token, algorithm FROM key WHERE state = 'creating' ORDER BY name"
        )
        return [(name, key_id, token, Algorithm.from_label(label)) for name, key_id, token, label in rows]

    def all_keys(self) -> list[HeldKey]:
        """Signing keys that are usable or disabled, by name."""
        rows = self._database.rows(
            f"{_SELECT} WHERE purpose = 'signing' AND state IN ('usable', 'disabled') ORDER BY name"
        )
        return [_held(row) for row in rows]

    def key(self, name: str) -> HeldKey:
        """The one of that name, whatever it is for, else ``NotFound``."""
        return _key(self._database.rows(_ONE_KEY, name), name)

    @atomic
    def set_key_disabled(self, transaction: Transaction, name: str, disabled: bool) -> HeldKey:
        """Switch it off or on; switching twice is no error."""
        transaction.execute(
            "UPDATE key SET state = ? WHERE name = ? AND state IN ('usable', 'disabled')",
            "disabled" if disabled else "usable",
            name,
        )
        return _key(transaction.rows(_ONE_KEY, name), name)

    @atomic
    def destroy_key(self, transaction: Transaction, name: str) -> None:
        """The token has destroyed it. Its row stays, so that no other key is ever called so; again is no error."""
        done = transaction.execute(
            "UPDATE key SET state = 'destroyed' WHERE name = ? AND state <> 'creating'", name
        )
        if done != 1:
            raise _no_key(name)


_SELECT: Final = "SELECT name, key_id, token, algorithm, point, state, purpose, created_at FROM key"
_ONE_KEY: Final = f"{_SELECT} WHERE name = ? AND state IN ('usable', 'disabled')"


def _no_key(name: str) -> NotFound:
    return NotFound(f"no key {name!r}", hint="cloud-seal key list")


def _key(rows: list[tuple[Any, ...]], name: str) -> HeldKey:
    if not rows:
        raise _no_key(name)
    return _held(rows[0])


def _held(row: tuple[Any, ...]) -> HeldKey:
    name, key_id, token, label, point, state, purpose, created_at = row
    public = PublicKey(Algorithm.from_label(label), point)
    return HeldKey(name, key_id, token, public, state == "disabled", created_at, purpose == "seal")


def now() -> str:
    """When keys, accounts and their grants were made; no rule depends on it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
