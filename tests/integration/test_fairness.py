"""Who is served when: a clerk beside a giant job, bulk beside a flood, keys beside each other, a slow network token.

Nothing here asserts how long anything takes. The simulated HSM writes a line for each signature, in the order in which
it makes them, and its timing model makes one signature so slow that what is asked meanwhile waits together: order is
what is looked at.
"""

from __future__ import annotations

import hashlib
import select
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from appliance_fixture import Appliance, Bench, Wire, until
from simulated_token import Simulated

from appliance import wire
from appliance.algorithms import PublicKey
from appliance.verifying import Verifier
from appliance.wire import Priority

SLICE_ITEMS = 10
BULK_SHARE = 4
SERVICE_US = 1_000
"""One signature: a slice takes 10 ms, in which the front reads whatever a test has sent in one go."""


def plain(simulated: Simulated, **timing: int) -> dict[str, Any]:
    """A profile for one worker that signs item by item, so that the trace has the order of the slices."""
    profile = simulated.make(trace=str(simulated.trace), **timing)
    return {**profile, "workers": 1, "batch": "plain"}


def running(bench: Bench, profile: dict[str, Any], *keys: str) -> Appliance:
    """A daemon with these SM2 keys, one account, and every key tried once."""
    appliance = bench.appliance(
        profile,
        signers={"max_slice_items": SLICE_ITEMS, "bulk_share": BULK_SHARE, "slice_deadline_s": 60},
    ).start()
    for key in keys:
        appliance.ordered("POST", "/v1/keys", {"name": key, "algorithm": "sm2-sm3"})
    appliance.account("app", *keys)
    with appliance.wire() as connection:
        for key in keys:
            connection.sign(key)
    return appliance


def block(name: str, count: int) -> list[bytes]:
    """Digests that tell by themselves whose they are."""
    return [hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(count)]


def request(
    connection: Wire, key: str, digests: Sequence[bytes], priority: Priority = Priority.AUTOMATIC
) -> bytes:
    """A SIGN frame over these."""
    items = wire.digests(b"".join(digests))
    return wire.encode_sign(
        connection.next_id(), wire.SignRequest(b"j" * 16, 0, 120_000, priority, key, items)
    )


def signed_answer(connection: Wire) -> wire.SignedAnswer:
    """The next answer, with every item signed."""
    frame = connection.receive()
    assert frame.type is wire.FrameType.SIGNED, wire.decode_error(frame.payload)
    answer = wire.decode_signed(frame.payload)
    assert not answer.failed
    return answer


def has_answer(connection: Wire) -> bool:
    """Whether anything has come, without waiting for it."""
    return bool(select.select([connection.sock], [], [], 0)[0])


def wait_taken(appliance: Appliance, items: int) -> None:
    """Until the daemon holds so many items that are not signed."""

    def taken() -> bool:
        status = appliance.token_status()
        return int(status["queued_items"]) + int(status["inflight_items"]) >= items

    until(f"{items} items are queued or in flight", taken)


def runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """``aabccc`` -> a 2, b 1, c 3."""
    return [(name, len(list(group))) for name, group in groupby(names)]


# Order ------------------------------------------------------------------------------------------------------


def test_a_clerk_is_answered_before_a_giant_job_ends(bench: Bench, simulated: Simulated) -> None:
    appliance = running(bench, plain(simulated, service_us=SERVICE_US), "seal")
    with appliance.wire() as job, appliance.wire() as clerk:
        job.send(request(job, "seal", block("job", 65_536)))
        wait_taken(appliance, 60_000)
        for number in range(3):
            clerk.send(request(clerk, "seal", block(f"clerk {number}", 1)))
            assert signed_answer(clerk).count == 1
            assert not has_answer(job)
        assert appliance.token_status()["queued_items"] > 50_000  # it had hardly begun
        inputs = [digest for _, digest in simulated.signed()]
        waited_behind = inputs.index(block("clerk 0", 1)[0])
        assert waited_behind < 10_000
    appliance.wait_quiet()  # the job's connection is closed: what waited of it is not signed any more
    assert len(simulated.signed()) < 20_000


def test_bulk_keeps_its_share_beside_a_flood(bench: Bench, simulated: Simulated) -> None:
    flood, job = block("flood", 200), block("job", 2_000)
    appliance = running(bench, plain(simulated, service_us=SERVICE_US), "seal")
    with appliance.wire() as batch, appliance.wire() as singles:
        batch.send(request(batch, "seal", job, Priority.BULK))
        wait_taken(appliance, len(job) // 2)
        singles.send(b"".join(request(singles, "seal", [one], Priority.INTERACTIVE) for one in flood))
        for _ in flood:
            signed_answer(singles)
        assert not has_answer(batch)
        assert signed_answer(batch).count == len(job)
    kind = {**dict.fromkeys(flood, "flood"), **dict.fromkeys(job, "job")}
    order = [kind[digest] for _, digest in simulated.signed() if digest in kind]
    assert Counter(order) == {"flood": len(flood), "job": len(job)}, "each item is signed once"
    first, last = order.index("flood"), len(order) - order[::-1].index("flood")
    together = runs(order[first:last])
    # A slice of bulk work at least after every third of the others, and no more than one.
    assert max(count for name, count in together if name == "flood") <= (BULK_SHARE - 1) * SLICE_ITEMS
    assert max(count for name, count in together if name == "job") <= SLICE_ITEMS
    assert (
        sum(count for name, count in together if name == "job")
        >= len(flood) // (BULK_SHARE - 1) - SLICE_ITEMS
    )


def test_keys_take_turns(bench: Bench, simulated: Simulated) -> None:
    names = ("red", "blue", "green")
    appliance = running(bench, plain(simulated, service_us=SERVICE_US), *names)
    with appliance.wire() as connection:
        connection.send(b"".join(request(connection, name, block(name, 500)) for name in names))
        for _ in names:
            assert signed_answer(connection).count == 500
    whose = {digest: name for name in names for digest in block(name, 500)}
    order = [whose[digest] for _, digest in simulated.signed() if digest in whose]
    assert Counter(order) == dict.fromkeys(names, 500)
    began = max(order.index(name) for name in names)
    ended = min(len(order) - order[::-1].index(name) for name in names)
    together = runs(order[began:ended])
    assert all(count <= SLICE_ITEMS for _, count in together)
    # Between two slices of a key lies one of each other key.
    turns = [name for name, _ in together]
    assert all(set(turns[at : at + 3]) == set(names) for at in range(len(turns) - 3))


# A slow network token ---------------------------------------------------------------------------------------


def test_sixty_four_calls_at_once_before_a_slow_token(bench: Bench, simulated: Simulated) -> None:
    sessions = 64
    # A signature takes so long that all others are asked for before the first is there.
    profile = plain(simulated, service_us=5_000_000, engines=sessions, round_trip_us=1_000)
    appliance = running(bench, {**profile, "sessions": sessions, "locking": "os"}, "seal")
    public = PublicKey.from_spki(spki(appliance, "seal"))
    before = len(simulated.signed())
    digests = block("slow", sessions)
    with appliance.wire() as connection:
        connection.send(b"".join(request(connection, "seal", [one]) for one in digests))
        until("64 calls are in the token", lambda: len(simulated.signed()) - before == sessions)
        assert not has_answer(connection)  # a line is written when a call begins: all 64 are under way
        assert appliance.token_status()["inflight_items"] == sessions
        answers: dict[int, bytes] = {}
        for _ in digests:
            frame = connection.receive()
            answers[frame.request_id] = bytes(wire.decode_signed(frame.payload).signatures)
    signatures = b"".join(signature for _, signature in sorted(answers.items()))
    assert Verifier(engine="openssl").verify(public, b"".join(digests), signatures) == b"\1" * sessions
    assert Counter(digest for _, digest in simulated.signed()[before:]) == Counter(digests)


def spki(appliance: Appliance, key: str) -> bytes:
    """What STATUS tells of the key."""
    with appliance.wire() as connection:
        connection.send(wire.encode_status(connection.next_id(), wire.StatusKind.KEYS, [key]))
        records = wire.decode_status_answer(connection.receive().payload)
        assert not isinstance(records, bytes)
        return records[0].spki
