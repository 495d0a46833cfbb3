"""Sessions: found by their token and by nothing else, and over when they should be."""

from __future__ import annotations

import itertools
import secrets

import pytest

from appliance.api.sessions import MAX_SESSIONS_PER_OFFICER, Sessions
from appliance.errors import NotAuthenticated

IDLE_S, TTL_S = 100.0, 1_000.0


class Clock:
    now = 5_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(clock, secrets.token_urlsafe, IDLE_S, TTL_S)


def test_a_token_finds_its_session_until_log_out(sessions: Sessions) -> None:
    token, session = sessions.open("li")
    assert len(token) >= 43
    assert sessions.find(token) is session
    sessions.close(token)
    with pytest.raises(NotAuthenticated) as caught:
        sessions.find(token)
    assert caught.value.hint


@pytest.mark.parametrize("wrong", ["", "x" * 43, "\ud800" * 43])
def test_no_other_token_does(sessions: Sessions, wrong: str) -> None:
    sessions.open("li")
    with pytest.raises(NotAuthenticated):
        sessions.find(wrong)


def test_the_token_itself_is_not_kept(sessions: Sessions) -> None:
    token, _ = sessions.open("li")
    assert token not in repr(vars(sessions))


def test_a_session_that_is_not_used_ends_at_the_limit(sessions: Sessions, clock: Clock) -> None:
    token, _ = sessions.open("li")
    clock.now += IDLE_S - 1
    sessions.find(token)
    clock.now += IDLE_S - 1
    sessions.find(token)
    clock.now += IDLE_S
    with pytest.raises(NotAuthenticated):
        sessions.find(token)
    assert len(sessions) == 0


def test_a_session_that_is_used_ends_all_the_same(sessions: Sessions, clock: Clock) -> None:
    token, session = sessions.open("li")
    for _ in range(int(TTL_S / 50) - 1):
        clock.now += 50
        sessions.find(token)
    idle_s, ttl_s = sessions.seconds_left(session)
    assert idle_s == ttl_s == 50
    clock.now += 50
    with pytest.raises(NotAuthenticated):
        sessions.find(token)


def test_an_officer_has_so_many_and_the_oldest_ends_first(sessions: Sessions) -> None:
    other, _ = sessions.open("wang")
    tokens = [sessions.open("li")[0] for _ in range(MAX_SESSIONS_PER_OFFICER + 1)]
    with pytest.raises(NotAuthenticated):
        sessions.find(tokens[0])
    for token in (*tokens[1:], other):
        sessions.find(token)


def test_all_sessions_of_an_officer_end_at_once(sessions: Sessions) -> None:
    mine = [sessions.open("li")[0] for _ in range(3)]
    other, _ = sessions.open("wang")
    assert sessions.close_all("li") == 3
    assert sessions.find(other).officer == "wang"
    for token in mine:
        with pytest.raises(NotAuthenticated):
            sessions.find(token)


def test_sessions_that_have_ended_are_forgotten(clock: Clock) -> None:
    numbers = itertools.count()
    sessions = Sessions(clock, lambda length: f"token-{next(numbers)}", IDLE_S, TTL_S)
    for _ in range(10):
        sessions.open(f"officer-{next(numbers)}")
        clock.now += IDLE_S
    assert len(sessions) == 1
