"""A worker signs: real token, real process, every signature verified by pyca/cryptography."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Kind

Check = Callable[[bytes, bytes, bytes], bool]


def digests_of(count: int, salt: str = "") -> bytes:
    return b"".join(hashlib.sha256(f"{salt}{index}".encode()).digest() for index in range(count))


def all_verify(check: Check, point: bytes, digests: bytes, signed: link.Signed) -> bool:
    return all(
        check(point, digests[32 * i : 32 * i + 32], bytes(signed.signatures[64 * i : 64 * i + 64]))
        for i in range(signed.item_count)
    )


def test_ready_says_which_token_it_is(spawn, token):
    told = spawn().ready(token.profile())
    assert told["token_label"] == token.label
    assert len(told["token_serial"]) == 16
    assert told["methods"] == ["plain"]
    assert told["method"] == "plain"
    assert told["sessions"] == 1
    assert "token_initialized" in told["flags"]


@pytest.mark.parametrize("count", [1, 2, 255, 2048, 4096])
def test_every_signature_of_a_batch_verifies(worker, key_id, check, count):
    created = worker.create(key_id, "合同专用章")
    assert created["label"] == "合同专用章"
    loaded = worker.load(key_id)
    assert loaded["point"] == created["point"]
    digests = digests_of(count)
    signed = worker.sign(loaded["slot"], digests)
    assert (signed.item_count, signed.done, signed.rv, signed.item_rv) == (count, count, 0, 0)
    assert bytes(signed.statuses) == bytes(count)
    assert signed.execution_ns > 0
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)
    worker.ask(Kind.DESTROY_KEY, {"id": key_id.hex()}, Kind.DESTROYED)


def test_the_largest_batch(worker, key_id, check):
    worker.create(key_id)
    loaded = worker.load(key_id)
    digests = digests_of(link.MAX_ITEMS)
    signed = worker.sign(loaded["slot"], digests)
    assert signed.done == link.MAX_ITEMS
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)
