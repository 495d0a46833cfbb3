"""A worker meets frames that lie: it refuses what is well framed, and ends where no next frame can be."""

from __future__ import annotations

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import HEADER, SIGN_HEAD, Exit, Kind

DIGEST = bytes(32)


def sign_payload(slot=0, form=0, zeros=b"\0\0\0", count=1, blocks=DIGEST):
    return SIGN_HEAD.pack(slot, form, zeros, count) + blocks


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0, b""),
        (42, b"{}"),
        (255, b"\xff" * 100),
        (Kind.READY, b"{}"),
        (Kind.START, b"{}"),
        (Kind.PIN, b"1234"),
        (Kind.LIST_KEYS, b""),
        (Kind.LIST_KEYS, b"[]"),
        (Kind.LIST_KEYS, b"\xff"),
        (Kind.LIST_KEYS, b"[" * 100_000),
        (Kind.LOAD_KEY, b"{}"),
        (Kind.LOAD_KEY, b'{"id": "zz", "challenge": "00"}'),
        (Kind.LOAD_KEY, b'{"id": "00", "challenge": "00"}'),
        (Kind.LOAD_KEY, b'{"id": 7, "challenge": null}'),
        (Kind.CREATE_KEY, b'{"id": "00", "label": "\\u0000", "algorithm": "ecdsa-p256-sha256"}'),
        (Kind.CREATE_KEY, b'{"id": "", "label": "x", "algorithm": "ecdsa-p256-sha256"}'),
        (Kind.FORGET_KEY, b'{"slot": "0"}'),
        (Kind.FORGET_KEY, b'{"slot": -1}'),
        (Kind.SIGN, b""),
        (Kind.SIGN, SIGN_HEAD.pack(0, 0, b"\0\0\0", 1)[:-1]),
        (Kind.SIGN, sign_payload(count=0, blocks=b"")),
        (Kind.SIGN, sign_payload(count=2)),
        (Kind.SIGN, sign_payload(count=0xFFFFFFFF)),
        (Kind.SIGN, sign_payload(blocks=DIGEST[:-1])),
        (Kind.SIGN, sign_payload(blocks=DIGEST + b"\0")),
        (Kind.SIGN, sign_payload(form=2)),
        (Kind.SIGN, sign_payload(zeros=b"\0\0\1")),
        (Kind.SIGN, sign_payload(slot=0xFFFFFFFF)),
        (Kind.SIGN, sign_payload(form=1, blocks=b"")),
        (Kind.SIGN, sign_payload(form=1, blocks=b"\0\0\0\2a")),
        (Kind.SIGN, sign_payload(form=1, blocks=b"\xff\xff\xff\xffa")),
        (Kind.SIGN, sign_payload(form=1, count=2, blocks=b"\0\0\0\5\xff\xff\xff\xfchello")),
    ],
)
def test_a_well_framed_lie_is_refused_and_the_worker_goes_on(worker, kind, payload):
    worker.sock.sendall(HEADER.pack(len(payload), kind, 0, 0, 77) + payload)
    header, answer = worker.receive()
    assert (header.kind, header.sequence) == (Kind.REFUSED, 77), answer
    assert link.unpack_json(answer)["detail"]
    assert "keys" in worker.ask(Kind.LIST_KEYS, {}, Kind.KEYS)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(link.MAX_PAYLOAD_LEN + 1, Kind.SIGN, 0, 0, 1),
        HEADER.pack(0xFFFFFFFF, Kind.SIGN, 0, 0, 1),
        HEADER.pack(0, Kind.SIGN, 1, 0, 1),
        HEADER.pack(0, Kind.SIGN, 0, 1, 1),
    ],
    ids=["too-long", "longest", "flags", "reserved"],
)
@pytest.mark.parametrize("settings", [{}, {"sessions": 2, "locking": "os"}], ids=["one", "two"])
def test_a_header_that_cannot_be_ends_the_worker(spawn, token, header, settings):
    front = spawn()
    front.ready(token.profile(**settings))
    front.sock.sendall(header)
    told = front.receive_json(Kind.FAILED)
    assert told["stage"] == "link"
    assert front.exit_code() == Exit.LINK_BROKEN


@pytest.mark.parametrize(
    "frames",
    [
        link.pack_json(Kind.LIST_KEYS, 1, {}),
        link.pack_frame(Kind.PIN, 1, b"1234"),
        link.pack_json(Kind.START, 1, {}) + link.pack_json(Kind.LIST_KEYS, 2, {}),
        link.pack_json(Kind.START, 1, {}) + link.pack_frame(Kind.PIN, 2, b"1" * 256),
        link.pack_frame(Kind.START, 1, b"not JSON") + link.pack_frame(Kind.PIN, 2, b"1234"),
        link.pack_json(Kind.START, 1, {"worker": -1}) + link.pack_frame(Kind.PIN, 2, b"1234"),
        link.pack_json(Kind.START, 1, {"worker": True}) + link.pack_frame(Kind.PIN, 2, b"1234"),
    ],
    ids=["no-start", "pin-first", "no-pin", "long-pin", "not-json", "below-zero", "no-number"],
)
def test_the_opening_is_start_then_pin(spawn, frames):
    front = spawn()
    front.sock.sendall(frames)
    assert front.receive_json(Kind.FAILED)["stage"] == "link"
    assert front.exit_code() == Exit.LINK_BROKEN


def test_bytes_one_by_one_are_a_frame_all_the_same(worker):
    for byte in link.pack_json(Kind.LIST_KEYS, 5, {}):
        worker.sock.sendall(bytes((byte,)))
    header, _ = worker.receive()
    assert (header.kind, header.sequence) == (Kind.KEYS, 5)
