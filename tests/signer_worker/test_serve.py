"""The native serving loop: what it takes, what it hands to Python, in which order, and what it keeps."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
import tracemalloc

import pytest
from appliance_pkcs11 import _batch, link
from appliance_pkcs11.link import HEADER, HEADER_LEN, SIGN_HEAD, Exit, Form, Kind, LinkError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DIGESTS = b"".join(hashlib.sha256(bytes((index,))).digest() for index in range(100))
BUFFER_LEN = 256
HASHED_BY_THE_TOKEN = {"hashes": "token", "sign_mechanism": "CKM_ECDSA_SHA256"}


@pytest.fixture
def ends():
    front, worker = socket.socketpair()
    with front, worker:
        yield front, worker


def new_server(worker, buffer_len=BUFFER_LEN, max_kept_len=4 * BUFFER_LEN, spin_us=20):
    return _batch.Server(
        worker.fileno(), 1, buffer_len=buffer_len, max_kept_len=max_kept_len, spin_us=spin_us
    )


@given(
    st.integers(HEADER_LEN, 200),
    st.integers(0, 100),
    st.lists(st.tuples(st.sampled_from([0, 3, 4, 9, 255]), st.binary(max_size=300)), max_size=20),
    st.integers(0, HEADER_LEN),
)
def test_whatever_is_not_answered_is_handed_over_as_it_came(buffer_len, kept_more, frames, cut):
    front, worker = socket.socketpair()
    with front, worker:
        server = new_server(worker, buffer_len, buffer_len + kept_more)
        sent = [(HEADER.pack(len(payload), kind, 0, 0, 7), payload) for kind, payload in frames]
        front.sendall(b"".join(map(b"".join, sent)) + bytes(HEADER_LEN)[cut:])
        front.shutdown(socket.SHUT_WR)
        for frame in sent:
            assert server.serve() == frame
        if not cut:  # sixteen zeros are a frame as well
            assert server.serve() == (bytes(HEADER_LEN), b"")
        assert server.serve() is None


@pytest.mark.parametrize(
    "header", [(link.MAX_PAYLOAD_LEN + 1, 4, 0, 0), (0, 4, 1, 0), (0, 4, 0, 1), (0, 4, 0, 256)]
)
def test_a_header_that_cannot_be_comes_alone_for_python_to_say_why(ends, header):
    front, worker = ends
    block = HEADER.pack(*header, 1)
    front.sendall(block + bytes(100))
    assert new_server(worker).serve() == (block, b"")
    with pytest.raises(LinkError):
        link.unpack_header(block)


def test_a_buffer_too_large_to_keep_is_given_back(ends):
    front, worker = ends
    server = new_server(worker)
    header = HEADER.pack(link.MAX_PAYLOAD_LEN, 255, 0, 0, 1)
    sender = threading.Thread(
        target=lambda: [front.sendall(header), front.sendall(bytes(link.MAX_PAYLOAD_LEN))]
    )
    tracemalloc.start()
    try:
        sender.start()
        frame = server.serve()
        sender.join()
        assert frame is not None
        assert frame[0] == header
        assert len(frame[1]) == link.MAX_PAYLOAD_LEN
        del frame
        assert tracemalloc.get_traced_memory()[0] >= link.MAX_PAYLOAD_LEN
        front.sendall(HEADER.pack(0, 255, 0, 0, 2))
        server.serve()
        assert tracemalloc.get_traced_memory()[0] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_front_that_is_gone_is_no_error(ends):
    front, worker = ends
    worker.sendall(b"an answer that nobody reads")
    front.close()
    assert new_server(worker).serve() is None


def test_what_is_no_stream_socket_is_an_error(ends):
    _, worker = ends
    server = new_server(worker)
    worker.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        server.serve()


def test_a_server_is_used_by_one_thread(ends):
    front, worker = ends
    server = new_server(worker)
    caller = threading.Thread(target=server.serve)
    caller.start()
    front.sendall(HEADER.pack(1, 255, 0, 0, 1))  # a byte is missing: it goes on waiting
    while True:
        try:
            server.forget(0)
        except RuntimeError:
            break
        except ValueError:  # not yet
            continue
    with pytest.raises(RuntimeError, match="is serving"):
        server.serve()
    front.sendall(b"\0")
    caller.join()
    with pytest.raises(ValueError, match="not loaded"):
        server.forget(0)


def test_what_makes_no_server(ends):
    _, worker = ends
    for buffer_len, max_kept_len in ((0, 0), (HEADER_LEN - 1, 100), (100, 99), (-1, 100)):
        with pytest.raises(ValueError, match="cannot be"):
            new_server(worker, buffer_len, max_kept_len)
    with pytest.raises(RuntimeError, match="set up already"):
        new_server(worker).__init__(worker.fileno(), 1, buffer_len=16, max_kept_len=16)
    with pytest.raises(RuntimeError, match="not set up"):
        _batch.Server.__new__(_batch.Server).serve()


def test_frames_that_come_together_are_answered_in_their_order(worker, key_id, check):
    worker.create(key_id)
    loaded = worker.load(key_id)
    frames, expected = [], []
    for sequence in range(100, 160):
        if sequence % 10 == 0:
            frames.append(link.pack_json(Kind.LIST_KEYS, sequence, {}))
            expected.append((Kind.KEYS, sequence))
        elif sequence % 10 == 5:
            frames.append(link.pack_sign_digests(sequence, 99, DIGESTS))
            expected.append((Kind.REFUSED, sequence))
        else:
            frames.append(link.pack_sign_digests(sequence, loaded["slot"], DIGESTS[: 32 * (sequence % 10)]))
            expected.append((Kind.SIGNED, sequence))
    worker.sock.sendall(b"".join(frames))
    for kind, sequence in expected:
        header, payload = worker.receive()
        assert (header.kind, header.sequence) == (kind, sequence)
        if kind == Kind.SIGNED:
            signed = link.unpack_signed(memoryview(payload))
            assert signed.done == signed.item_count == sequence % 10
            for index in range(signed.item_count):
                signature = bytes(signed.signatures[64 * index : 64 * index + 64])
                digest = DIGESTS[32 * index : 32 * index + 32]
                assert check(bytes.fromhex(loaded["point"]), digest, signature)


def test_an_answer_does_not_wait_for_a_long_batch_behind_it(spawn, shimmed, key_id, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    front = spawn()
    front.ready(shimmed({"SHIM_WAIT": f"3:{gate}"}))  # the first is the self-test
    front.create(key_id)
    slot = front.load(key_id)["slot"]
    first, second = (
        link.pack_sign_digests(1, slot, DIGESTS[:32]),
        link.pack_sign_digests(2, slot, DIGESTS * 3),
    )
    front.sock.sendall(first + second)
    header, _ = front.receive()
    assert (header.kind, header.sequence) == (Kind.SIGNED, 1)
    gate.write_bytes(b"")  # only now does the second batch go on
    header, _ = front.receive()
    assert (header.kind, header.sequence) == (Kind.SIGNED, 2)


def test_sign_frames_byte_by_byte(worker, key_id):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    for byte in link.pack_sign_digests(5, slot, DIGESTS[:32]) * 2:
        worker.sock.sendall(bytes((byte,)))
    assert worker.signed().done == 1
    assert worker.signed().done == 1


def test_what_was_signed_before_the_token_failed_is_answered(spawn, shimmed, key_id):
    front = spawn()
    front.ready(shimmed({"SHIM_FAIL": "6:30"}))  # the first is the self-test
    front.create(key_id)
    slot = front.load(key_id)["slot"]
    front.sock.sendall(
        b"".join(link.pack_sign_digests(sequence, slot, DIGESTS[:64]) for sequence in range(1, 6))
    )
    told = [(signed.done, signed.rv) for signed in (front.signed() for _ in range(3))]
    assert told == [(2, 0), (2, 0), (0, 0x30)]
    header, payload = front.receive()
    assert (header.kind, header.sequence) == (Kind.FAILED, 3)
    assert link.unpack_json(payload)["detail"] == "signing stopped after 0 of 2 items: CKR_DEVICE_ERROR"
    assert front.exit_code() == Exit.TOKEN_FAILED


def test_a_slot_that_was_forgotten_or_destroyed_signs_no_more(worker, key_id):
    worker.create(key_id)
    slots = [worker.load(key_id)["slot"] for _ in range(5)]
    for slot in (slots[1], slots[4], slots[0]):
        worker.ask(Kind.FORGET_KEY, {"slot": slot}, Kind.FORGOTTEN)
        worker.sock.sendall(link.pack_sign_digests(1, slot, DIGESTS))
        assert "no key is loaded" in worker.receive_json(Kind.REFUSED)["detail"]
    assert worker.sign(slots[2], DIGESTS).done == worker.sign(slots[3], DIGESTS).done == 100
    worker.ask(Kind.DESTROY_KEY, {"id": key_id.hex()}, Kind.DESTROYED)
    for slot in slots:
        worker.sock.sendall(link.pack_sign_digests(1, slot, DIGESTS))
        assert "no key is loaded" in worker.receive_json(Kind.REFUSED)["detail"]


def test_a_front_that_goes_without_reading_ends_the_worker_all_the_same(worker, key_id):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    for _ in range(5):
        worker.sock.sendall(link.pack_sign_digests(1, slot, DIGESTS))
    worker.sock.close()
    assert worker.exit_code() == Exit.STOPPED
    assert worker.process.stderr.read() == b""


PIECES = st.one_of(
    st.just(DIGESTS[:32]),
    st.just(b"\0\0\0\2ab"),
    st.just(b"\0\0\0\1\0\0\0\0a"),
    st.just(b"\xff\xff\xff\xff\0\0\0\1"),
    st.binary(max_size=4),
)


@pytest.mark.parametrize("form", list(Form), ids=["digests", "messages"])
def test_the_loop_signs_what_the_codec_reads_and_nothing_else(spawn, shimmed, key_id, form):
    front = spawn()
    if form is Form.DIGESTS:
        front.ready(shimmed())
    else:
        front.ready(shimmed({"SHIM_HASH": "1"}, algorithm=HASHED_BY_THE_TOKEN))
    front.create(key_id)
    key_slot = front.load(key_id)["slot"]

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300, deadline=None)
    @given(
        st.sampled_from([key_slot, key_slot, key_slot, key_slot + 1]),
        st.sampled_from([form, form, form, 1 - form, 2, 255]),
        st.sampled_from([b"\0\0\0"] * 4 + [b"\0\0\1", b"\1\0\0", b"\0\1\0"]),
        st.sampled_from([1, 1, 2, 3, 0, 65_537, 0xFFFFFFFF]),
        st.lists(PIECES, max_size=3).map(b"".join),
        st.integers(0, 3),
    )
    def check(slot, told_form, zeros, count, blocks, cut):
        payload = SIGN_HEAD.pack(slot, told_form, zeros, count) + blocks
        payload = payload[: len(payload) - cut]
        front.sock.sendall(link.pack_frame(Kind.SIGN, 3, payload))
        header, answer = front.receive()
        assert header.sequence == 3
        try:
            request = link.unpack_sign(memoryview(payload))
        except LinkError as error:
            assert header.kind == Kind.REFUSED
            assert link.unpack_json(answer)["detail"] == str(error)
            return
        if (request.slot, request.form) != (key_slot, form):
            assert header.kind == Kind.REFUSED
            return
        assert header.kind == Kind.SIGNED
        assert link.unpack_signed(memoryview(answer)).done == request.item_count

    check()


def test_one_item_too_many_is_refused(worker, key_id):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    count = link.MAX_ITEMS + 1
    payload = SIGN_HEAD.pack(slot, Form.DIGESTS, b"\0\0\0", count) + bytes(32 * count)
    worker.sock.sendall(link.pack_frame(Kind.SIGN, 1, payload))
    assert "65536" in worker.receive_json(Kind.REFUSED)["detail"]


# Looking for the next frame -----------------------------------------------------------------------------------------


def test_whoever_is_asked_again_and_again_does_not_sleep(ends):
    """Frames come as fast as they are taken: after a while the thread finds each without having slept."""
    front, worker = ends
    server = new_server(worker, spin_us=10_000)
    slept = []

    def serve():
        while server.serve() is not None:
            slept.append(resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw)
            taken.release()

    taken = threading.Semaphore(0)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(200):  # where others compute it sleeps as well, for a while
            before = len(slept)
            for _ in range(50):
                front.sendall(HEADER.pack(0, 255, 0, 0, 1))
                assert taken.acquire(timeout=30)
            if slept[-1] - slept[before] < 5:
                return
        raise AssertionError("it slept all the time")
    finally:
        front.shutdown(socket.SHUT_WR)
        thread.join()
    assert len(slept) % 50 == 0, "the end came while it looked, and was seen"


@pytest.mark.parametrize("spin_us", [0, 1, 200])
def test_a_frame_that_comes_late_is_taken_too(ends, spin_us):
    front, worker = ends
    server = new_server(worker, spin_us=spin_us)
    frames = [(HEADER.pack(length, 255, 0, 0, 1), bytes(length)) for length in (0, 100, 3 * BUFFER_LEN)]

    def send():
        for round_ in range(60):
            for header, payload in frames:
                front.sendall(header)
                if round_ > 50:
                    served.wait(0.002)  # longer than anybody looks
                front.sendall(payload)
        front.shutdown(socket.SHUT_WR)

    served = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(60):
            for frame in frames:
                assert server.serve() == frame
        assert server.serve() is None
    finally:
        served.set()
        sender.join()
