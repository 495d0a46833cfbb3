"""Officers' sessions: a token for a log-in, in memory only.

For: giving tokens, finding the officer of one, ending sessions.
Not for: passwords (``office``), what an officer may do (``lifecycle``).

Rules:

* A token is 256 random bits and bound to nothing that could be guessed. Only its SHA-256 is kept, and looked up: how
  long a look-up takes tells nothing about a token.
* A session ends when it was not used for a while, when its time is up in any case, at log-out, when the officer is
  disabled or gets another password (also where the log-in was under way at that moment), and with the process.
* One officer has a few sessions at a time; a further one ends the oldest.

A crash ends all sessions: officers log in again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from appliance.errors import NotAuthenticated

TOKEN_LEN: Final = 32
MAX_SESSIONS_PER_OFFICER: Final = 16
"""A person has a few windows and scripts; without a bound a script that never logs out would fill memory."""


@dataclass(slots=True)
class Session:
    """A log-in. ``idle_end`` moves with each use; both are of the monotonic clock.

    ``password_hash`` is that of the password which opened it: a session lives no longer than that.
    """

    officer: str
    password_hash: str = field(repr=False)
    idle_end: float
    end: float


class Sessions:
    """The sessions of this process; the event loop alone touches them."""

    def __init__(
        self,
        clock: Callable[[], float],
        token: Callable[[int], str],
        idle_s: float,
        ttl_s: float,
    ) -> None:
        self._clock = clock
        self._token = token
        self._idle_s = idle_s
        self._ttl_s = ttl_s
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()  # by the token's hash, oldest first

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, officer: str, password_hash: str = "") -> tuple[str, Session]:
        """A new session and its token, which is kept nowhere."""
        now = self._clock()
        self._forget_ended(now)
        mine = [key for key, one in self._sessions.items() if one.officer == officer]
        for key in mine[: max(0, len(mine) - MAX_SESSIONS_PER_OFFICER + 1)]:
            del self._sessions[key]
        token = self._token(TOKEN_LEN)
        session = Session(
            officer, password_hash, min(now + self._idle_s, now + self._ttl_s), now + self._ttl_s
        )
        self._sessions[_key(token)] = session
        return token, session

    def find(self, token: str) -> Session:
        """The session, used just now; ``NotAuthenticated`` where there is none."""
        key = _key(token)
        session = self._sessions.get(key)
        now = self._clock()
        if session is not None and now >= min(session.idle_end, session.end):
            del self._sessions[key]
            session = None
        if session is None:
            raise NotAuthenticated("no such session, or it has ended", hint="log in: POST /api/v1/sessions")
        session.idle_end = min(now + self._idle_s, session.end)
        return session

    def close(self, token: str) -> None:
        """Log out."""
        self._sessions.pop(_key(token), None)

    def close_all(self, officer: str) -> int:
        """End all sessions of an officer; how many there were."""
        mine = [key for key, one in self._sessions.items() if one.officer == officer]
        for key in mine:
            del self._sessions[key]
        return len(mine)

    def seconds_left(self, session: Session) -> tuple[float, float]:
        """Until it ends if it is not used, and in any case."""
        now = self._clock()
        return max(0.0, session.idle_end - now), max(0.0, session.end - now)

    def _forget_ended(self, now: float) -> None:
        for key in [key for key, one in self._sessions.items() if now >= min(one.idle_end, one.end)]:
            del self._sessions[key]


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
