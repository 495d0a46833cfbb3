"""A worker signs: real token, real process, every signature verified by pyca/cryptography."""

from __future__ import annotations

import hashlib

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Kind


def digests_of(count, salt=""):
    return b"".join(hashlib.sha256(f"{salt}{index}".encode()).digest() for index in range(count))


def all_verify(check, point, digests, signed):
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


@pytest.mark.parametrize("count", [1, 2, 255, 2047, 2048])
def test_every_signature_of_a_batch_verifies(worker, key_id, check, count):
    created = worker.create(key_id, "合同专用章")
    loaded = worker.load(key_id)
    assert created["label"] == loaded["label"] == "合同专用章"
    assert loaded["point"] == created["point"]
    digests = digests_of(count)
    signed = worker.sign(loaded["slot"], digests)
    assert (signed.item_count, signed.done, signed.rv, signed.item_rv) == (count, count, 0, 0)
    assert bytes(signed.statuses) == bytes(count)
    assert signed.execution_ns > 0
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)


def test_the_largest_batch(worker, key_id, check):
    worker.create(key_id)
    loaded = worker.load(key_id)
    digests = digests_of(link.MAX_ITEMS)
    signed = worker.sign(loaded["slot"], digests)
    assert signed.done == link.MAX_ITEMS
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)


def test_a_large_batch_leaves_nothing_in_the_answer_to_a_small_one(worker, key_id, check):
    worker.create(key_id)
    loaded = worker.load(key_id)
    worker.sign(loaded["slot"], digests_of(300))
    digests = digests_of(3, "small")
    signed = worker.sign(loaded["slot"], digests)
    assert signed.item_count == 3
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)


def test_two_keys_in_turn(worker, check):
    slots = {}
    for key_id in (b"first of two keys", b"second of two keys"):
        worker.create(key_id)
        loaded = worker.load(key_id)
        slots[loaded["slot"]] = bytes.fromhex(loaded["point"])
    assert len(slots) == 2
    for slot, point in slots.items():
        digests = digests_of(5, str(slot))
        assert all_verify(check, point, digests, worker.sign(slot, digests))


def test_messages_are_refused_where_the_host_hashes(worker, key_id):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    worker.sock.sendall(link.pack_sign_messages(9, slot, [b"a contract"]))
    assert "hashes: host" in worker.receive_json(Kind.REFUSED)["detail"]
    assert worker.sign(slot, digests_of(1)).done == 1


def test_messages_are_hashed_by_a_token_that_does_so(spawn, shimmed, key_id, check_message):
    front = spawn()
    hashing = {"hashes": "token", "sign_mechanism": "CKM_ECDSA_SHA256"}
    front.ready(shimmed({"SHIM_HASH": "1"}, algorithm=hashing))
    front.create(key_id)
    loaded = front.load(key_id)
    assert loaded["form"] == "messages"
    point = bytes.fromhex(loaded["point"])
    messages = [b"", b"a", b"contract " * 1000, bytes(100_000)]
    front.sock.sendall(link.pack_sign_messages(9, loaded["slot"], messages))
    signed = front.signed()
    assert bytes(signed.statuses) == bytes(4)
    for index, message in enumerate(messages):
        assert check_message(point, message, bytes(signed.signatures[64 * index : 64 * index + 64]))
    front.sock.sendall(link.pack_sign_digests(10, loaded["slot"], bytes(32)))
    assert "hashes: token" in front.receive_json(Kind.REFUSED)["detail"]


def test_a_buffer_too_large_to_keep_is_used_and_given_back(spawn, shimmed, key_id, check_message):
    front = spawn()
    front.ready(
        shimmed({"SHIM_HASH": "1"}, algorithm={"hashes": "token", "sign_mechanism": "CKM_ECDSA_SHA256"})
    )
    front.create(key_id)
    loaded = front.load(key_id)
    for message in (bytes(link.MAX_PAYLOAD_LEN - 16), b"short"):
        front.sock.sendall(link.pack_sign_messages(9, loaded["slot"], [message]))
        signed = front.signed()
        assert check_message(bytes.fromhex(loaded["point"]), message, bytes(signed.signatures))


def test_der_signatures_become_r_and_s(spawn, shimmed, key_id, check):
    front = spawn()
    front.ready(shimmed({"SHIM_DER": "1"}, algorithm={"signature_form": "der"}))
    front.create(key_id)
    loaded = front.load(key_id)
    digests = digests_of(600)  # enough for integers that begin with a zero byte
    signed = front.sign(loaded["slot"], digests)
    assert bytes(signed.statuses) == bytes(600)
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)


@pytest.mark.parametrize(
    ("interfaces", "batch", "method"),
    [
        ("", "auto", "plain"),
        ("message", "auto", "message"),
        ("message vendor", "auto", "vendor"),
        ("message vendor", "message", "message"),
        ("message vendor", "plain", "plain"),
        ("message vendor refusing", "auto", "plain"),
    ],
)
def test_the_best_way_the_module_has_is_used(spawn, shimmed, key_id, check, interfaces, batch, method):
    front = spawn()
    told = front.ready(shimmed({"SHIM_INTERFACES": interfaces}, batch=batch))
    assert set(told["methods"]) == {"plain", *interfaces.split()} - {"refusing"}
    front.create(key_id)
    loaded = front.load(key_id)
    assert loaded["method"] == method
    digests = digests_of(100)
    signed = front.sign(loaded["slot"], digests)
    assert bytes(signed.statuses) == bytes(100)
    assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)


def test_four_sessions_answer_many_slices_each_exactly_once(spawn, token, key_id, check):
    front = spawn()
    assert front.ready(token.profile(sessions=4, locking="os"))["sessions"] == 4
    front.create(key_id)
    loaded = front.load(key_id)
    point = bytes.fromhex(loaded["point"])
    slices = {sequence: digests_of(1 + sequence % 40, f"slice {sequence} ") for sequence in range(100, 180)}
    for sequence, digests in slices.items():
        front.sock.sendall(link.pack_sign_digests(sequence, loaded["slot"], digests))
    while slices:
        header, payload = front.receive()
        assert header.kind == Kind.SIGNED
        digests = slices.pop(header.sequence)  # KeyError: answered twice, or never asked
        signed = link.unpack_signed(memoryview(payload))
        assert signed.done == signed.item_count == len(digests) // 32
        assert all_verify(check, point, digests, signed)


def test_four_sessions_sign_while_keys_are_looked_for_and_listed(spawn, token, key_id, check):
    front = spawn()
    front.ready(token.profile(sessions=4, locking="os"))
    front.create(key_id)
    loaded = front.load(key_id)
    digests = digests_of(20)
    fields = {"id": key_id.hex(), "challenge": "5a" * link.CHALLENGE_LEN}
    asked = {}
    for sequence in range(1000, 1090, 3):
        front.sock.sendall(link.pack_sign_digests(sequence, loaded["slot"], digests))
        front.sock.sendall(link.pack_json(Kind.LOAD_KEY, sequence + 1, fields))
        front.sock.sendall(link.pack_json(Kind.LIST_KEYS, sequence + 2, {}))
        asked |= {sequence: Kind.SIGNED, sequence + 1: Kind.KEY_LOADED, sequence + 2: Kind.KEYS}
    slots = set()
    while asked:
        header, payload = front.receive()
        assert header.kind == asked.pop(header.sequence)
        if header.kind == Kind.SIGNED:
            signed = link.unpack_signed(memoryview(payload))
            assert all_verify(check, bytes.fromhex(loaded["point"]), digests, signed)
        elif header.kind == Kind.KEY_LOADED:
            slots.add(link.unpack_json(payload)["slot"])
    assert len(slots) == 30


def test_stop_answers_what_came_before(spawn, token, key_id):
    for settings in ({}, {"sessions": 4, "locking": "os"}):
        front = spawn()
        front.ready(token.profile(**settings))
        if not settings:
            front.create(key_id)
        slot = front.load(key_id)["slot"]
        for sequence in range(20, 30):
            front.sock.sendall(link.pack_sign_digests(sequence, slot, digests_of(16)))
        front.send(Kind.STOP, {})
        assert {front.receive()[0].sequence for _ in range(10)} == set(range(20, 30))
        assert front.exit_code() == link.Exit.STOPPED
