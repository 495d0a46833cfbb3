"""The registry: what must outlive the process. Seals and their records, officers, proposals, grants, keys, accounts.

For: keeping, finding and counting, in SQLite or PostgreSQL.
Not for: deciding (``policy``, ``office``), secrets other than password hashes, anything on the hot path (``holdings``
and ``sealing`` keep what a request needs in memory and are told of every change).

Rules:

* Calls are short, synchronous, and come from worker threads, never from the event loop.
* Safety is in the SQL ``WHERE``, the row count and the tables' own rules, not in an earlier look.
* Statements are written once, in what both databases read; tables, locks and errors are native to each.
* What is recorded of a seal is never altered, and not deleted before its time: triggers refuse it in both.

Crash story: a call that has returned is on disk. An act is one transaction, with its event, its messages and its
documents: it is there whole or not at all. A commit of unknown outcome ends the process (``StateUnknown``).
"""

from __future__ import annotations

from appliance.errors import ConfigError
from appliance.registry.accounts import Accounts
from appliance.registry.custody import Custody
from appliance.registry.database import Database
from appliance.registry.grants import Grants
from appliance.registry.keys import KeyPurpose, Keys
from appliance.registry.messages import FilingDelay, Messages
from appliance.registry.people import People
from appliance.registry.postgres import PostgresDatabase, read_url
from appliance.registry.seals import Pending, SealFilter, SealRecords, Step
from appliance.registry.sqlite import SqliteDatabase
from appliance.registry.usage import Usage, Use
from appliance.settings import Settings, Url

__all__ = [
    "FilingDelay",
    "KeyPurpose",
    "Pending",
    "Registry",
    "SealFilter",
    "Step",
    "Use",
    "check_place",
    "open_registry",
]


class Registry(Keys, Accounts):
    """All parts on one database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.seals = SealRecords(database)
        self.people = People(database)
        self.custody = Custody(database)
        self.grants = Grants(database)
        self.messages = Messages(database)
        self.usage = Usage(database)

    def close(self) -> None:
        """No call may follow."""
        self._database.close()


def check_place(settings: Settings) -> None:
    """``ConfigError`` where the settings name no registry that could be opened; nothing is opened."""
    if isinstance(settings.registry, Url):
        read_url(settings.registry)
    elif settings.registry_password_file is not None:
        raise ConfigError(
            "registry_password_file: a registry in a file has no password",
            hint="leave it out, or name a server",
        )


def open_registry(settings: Settings, *, hold: bool = False) -> Registry:
    """What the settings name, brought to this program's version.

    ``hold`` keeps every other daemon away from it until it is closed, else ``ConfigError``.
    """
    if isinstance(settings.registry, Url):
        return Registry(PostgresDatabase(settings.registry, settings.registry_password_file, hold=hold))
    return Registry(SqliteDatabase(settings.registry, hold=hold))
