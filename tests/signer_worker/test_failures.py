"""What a failing token does to a batch: one item, one key, or everything; each told as what it is."""

from __future__ import annotations

import hashlib

import pytest
from appliance_pkcs11.cryptoki import return_code_name
from appliance_pkcs11.link import Exit, ItemStatus, Kind

DIGESTS = b"".join(hashlib.sha256(bytes((index,))).digest() for index in range(10))
SIGNED, REFUSED, NOT_DONE = bytes(ItemStatus)
INTERFACES = ["", "message", "vendor"]


def loaded_key(front, profile, key_id):
    front.ready(profile)
    front.create(key_id)
    return front.load(key_id)


@pytest.mark.parametrize("interfaces", INTERFACES, ids=["plain", "message", "vendor"])
@pytest.mark.parametrize("code", ["20", "21", "200", "68"])
def test_a_refused_item_does_not_fail_its_neighbours(spawn, shimmed, key_id, check, interfaces, code):
    front = spawn()
    settings = {
        "SHIM_FAIL": f"4:{code},9:{code}",
        "SHIM_INTERFACES": interfaces,
    }  # the first is the self-test
    loaded = loaded_key(front, shimmed(settings), key_id)
    signed = front.sign(loaded["slot"], DIGESTS)
    assert (signed.done, signed.rv) == (10, 0)
    assert signed.item_rv == (0x200 if interfaces == "vendor" else int(code, 16))
    assert bytes(signed.statuses) == bytes([0, 0, REFUSED, 0, 0, 0, 0, REFUSED, 0, 0])
    for index, status in enumerate(signed.statuses):
        signature = bytes(signed.signatures[64 * index : 64 * index + 64])
        if status == SIGNED:
            assert check(bytes.fromhex(loaded["point"]), DIGESTS[32 * index : 32 * index + 32], signature)
        else:
            assert signature == bytes(64)
    assert bytes(front.sign(loaded["slot"], DIGESTS).statuses) == bytes(10)


@pytest.mark.parametrize(
    ("interfaces", "spoil"),
    # The vendor interface has no lengths: a short signature cannot come through it.
    [("", 0), ("", 1), ("", 2), ("message", 0), ("message", 1), ("message", 2), ("vendor", 0), ("vendor", 2)],
)
def test_a_signature_that_is_none_is_a_refused_item(spawn, shimmed, key_id, interfaces, spoil):
    front = spawn()
    settings = {"SHIM_SPOIL": f"5:{spoil}", "SHIM_INTERFACES": interfaces}
    loaded = loaded_key(front, shimmed(settings), key_id)
    signed = front.sign(loaded["slot"], DIGESTS)
    assert bytes(signed.statuses) == bytes([0, 0, 0, REFUSED, 0, 0, 0, 0, 0, 0])
    assert bytes(signed.signatures[192:256]) == bytes(64)
    assert signed.item_rv


@pytest.mark.parametrize("spoil", [0, 1], ids=["zero", "short"])
def test_der_that_is_none_is_a_refused_item(spawn, shimmed, key_id, spoil):
    front = spawn()
    profile = shimmed({"SHIM_SPOIL": f"5:{spoil}", "SHIM_DER": "1"}, algorithm={"signature_form": "der"})
    loaded = loaded_key(front, profile, key_id)
    signed = front.sign(loaded["slot"], DIGESTS)
    assert bytes(signed.statuses) == bytes([0, 0, 0, REFUSED, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("interfaces", INTERFACES, ids=["plain", "message", "vendor"])
@pytest.mark.parametrize("settings", [{}, {"sessions": 3, "locking": "os"}], ids=["one", "three"])
def test_a_lost_token_ends_the_batch_and_the_worker(spawn, shimmed, key_id, check, interfaces, settings):
    front = spawn()
    profile = shimmed({"SHIM_FAIL": "8:30", "SHIM_INTERFACES": interfaces}, **settings)
    loaded = loaded_key(front, profile, key_id)
    signed = front.sign(loaded["slot"], DIGESTS)
    assert (signed.done, signed.rv) == (6, 0x30)
    assert bytes(signed.statuses) == bytes([SIGNED] * 6 + [NOT_DONE] * 4)
    assert bytes(signed.signatures[384:]) == bytes(256)
    for index in range(6):
        signature = bytes(signed.signatures[64 * index : 64 * index + 64])
        assert check(bytes.fromhex(loaded["point"]), DIGESTS[32 * index : 32 * index + 32], signature)
    told = front.receive_json(Kind.FAILED)
    assert (told["stage"], told["error"], told["pin_error"], told["fatal"]) == (
        "serve",
        "CKR_DEVICE_ERROR",
        False,
        False,
    )
    assert front.exit_code() == Exit.TOKEN_FAILED


@pytest.mark.parametrize("code", [0x05, 0x06, 0x31, 0x32, 0x60, 0xB0, 0xB3, 0xE0, 0x101, 0x190, 0x80000123])
def test_codes_that_stop_the_batch(spawn, shimmed, key_id, code):
    front = spawn()
    loaded = loaded_key(front, shimmed({"SHIM_FAIL": f"2:{code:x}"}), key_id)
    signed = front.sign(loaded["slot"], DIGESTS)
    assert (signed.done, signed.rv) == (0, code)
    assert bytes(signed.statuses) == bytes([NOT_DONE] * 10)
    assert front.receive_json(Kind.FAILED)["error"] == return_code_name(code)
    assert front.exit_code() == Exit.TOKEN_FAILED


def test_a_token_lost_in_the_self_test_ends_the_worker(spawn, shimmed, key_id):
    front = spawn()
    front.ready(shimmed({"SHIM_FAIL": "1:32"}))
    front.create(key_id)
    assert front.load(key_id, Kind.FAILED)["error"] == "CKR_DEVICE_REMOVED"
    assert front.exit_code() == Exit.TOKEN_FAILED


def test_a_key_that_fails_its_self_test_is_refused(spawn, shimmed, key_id):
    front = spawn()
    front.ready(shimmed({"SHIM_SPOIL": "1:0"}))
    front.create(key_id)
    assert "does not sign" in front.load(key_id, Kind.REFUSED)["detail"]
    front.load(key_id)
