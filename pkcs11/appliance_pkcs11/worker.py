"""A signer worker: a process that owns one PKCS#11 module, one token, its PIN and its sessions.

``python -P -m appliance_pkcs11.worker FD`` serves the link (``link.py``) on the inherited socket ``FD``.

For: turning SIGN frames into SIGNED frames as fast as the token goes, and managing keys when told to.
Not for: policy, queues, retries, deadlines: they are the front's. A worker that hangs is killed, one that
fails exits.

Rules:

* The front decides when a worker ends: SIGINT and SIGTERM are ignored, STOP and end of file are obeyed, and
  the kernel kills the worker when its parent dies.
* One session: one thread, and SIGN frames are answered natively (``serve.c``); what is left for Python are the
  other frames, and to say no. More sessions: a thread each, the reader hands them frames; answers leave in any
  order, each whole, under one lock.
* A permit (a free buffer) is taken before a frame is read, two for each session: one being signed, one
  waiting. What is more stays in the socket, and the front feels it.
* Buffers are used again; nothing is allocated per item.
* The PIN lives in one bytearray that is wiped right after log-in. What cannot be promised: the kernel's
  socket buffer held it, and the module keeps what it keeps. It never was in argv, in the environment or in a
  ``str``.
* A token-level error ends the process (``Exit.TOKEN_FAILED``) after the front was told what was signed and
  why it stopped: a new process is the one sure way to reload a module.

Crash story: a worker that dies in mid-batch leaves nothing behind. Signatures it made and did not send are
lost with it; the front never saw them, and gives the batch to another worker.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, NoReturn

from appliance_pkcs11 import _batch, link
from appliance_pkcs11.cryptoki import return_code_name
from appliance_pkcs11.link import Exit, Header, Kind, LinkError
from appliance_pkcs11.profile import MAX_WORKERS, ProfileError, TokenProfile
from appliance_pkcs11.token import KeyFacts, LoadedKey, Refused, StartError, Token, TokenLost

FIRST_BUFFER_LEN: Final = 64 * 1024
"""Holds 2,047 digests; a buffer grows to the largest frame it has met."""
MAX_KEPT_BUFFER_LEN: Final = 4 * 1024 * 1024
"""Holds 65,536 digests. A buffer that had to grow past it for long messages is given back after use."""
MAX_KEY_ID_LEN: Final = 64
"""CKA_ID has no limit of its own; ours are 16 bytes, and other software's are a hash at most."""
MAX_SPIN_US: Final = 10_000
"""A worker that spins for longer than its slowest slice takes is a worker that never sleeps."""
MAX_LABEL_LEN: Final = 255
MAX_PIN_LEN: Final = 255
"""No token we know takes more; the limit bounds the buffer."""


_USAGE: Final = "usage: python -P -m appliance_pkcs11.worker FD (started by cloud-seald, not by hand)"


class _Gone(Exception):  # not an error: the front closed the link
    """End of file: the front is gone, and nobody is left to answer."""


class Link:
    """The worker's end of the socketpair. Reading belongs to one thread; writing is under a lock."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._header = bytearray(link.HEADER_LEN)
        self._writing = threading.Lock()

    def fileno(self) -> int:
        """The socket's file descriptor, for the native loop: between its calls reading and writing is ours."""
        return self._sock.fileno()

    def receive_header(self) -> Header:
        """The next frame's header, or ``_Gone``; ``LinkError`` if it cannot be one."""
        self.receive_into(memoryview(self._header))
        return link.unpack_header(self._header)

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view`` from the link, or raise ``_Gone``."""
        while view:
            try:
                received = self._sock.recv_into(view, len(view), socket.MSG_WAITALL)
            except ConnectionResetError:  # it has gone and left answers unread
                raise _Gone from None
            if received == 0:
                raise _Gone
            view = view[received:]

    def send(self, *frames: bytes | memoryview) -> None:
        """Send whole frames, one after the other; the process ends if the front is gone."""
        with self._writing:
            self._send(frames)

    def send_and_exit(self, code: Exit, *frames: bytes | memoryview) -> NoReturn:
        """Send whole frames and end the process; no other thread's frame follows them."""
        with self._writing:
            self._send(frames)
            _exit(code)

    def _send(self, frames: tuple[bytes | memoryview, ...]) -> None:
        try:
            for frame in frames:
                self._sock.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            _exit(Exit.STOPPED)


class Lane:
    """One session, the thread that uses it, and its answer buffer."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._answer = bytearray(FIRST_BUFFER_LEN)

    def answer_buffer(self, needed_len: int) -> bytearray:
        """A buffer of at least that length; it holds until the next call."""
        if len(self._answer) < needed_len:
            self._answer = bytearray(needed_len)
        return self._answer


class Worker:
    """A logged-in token behind a link.

    ``_keys`` is shared by the lanes: a slot is written once before its number is told, and removed by
    FORGET_KEY; the lock guards the counting of slots only. ``_server`` is there with one session, and has the slots
    that ``_keys`` has.
    """

    def __init__(self, wire: Link, token: Token, spin_us: int = 0) -> None:
        self._spin_us = spin_us
        self._wire = wire
        self._token = token
        self._keys: dict[int, LoadedKey] = {}
        self._next_slot = 0
        self._counting = threading.Lock()
        self._server: _batch.Server | None = None
        self._requests: dict[int, Callable[[Any, dict[str, Any]], tuple[Kind, dict[str, Any]]]] = {
            Kind.LOAD_KEY: self._load_key,
            Kind.CREATE_KEY: self._create_key,
            Kind.LIST_KEYS: self._list_keys,
            Kind.DESTROY_KEY: self._destroy_key,
            Kind.FORGET_KEY: self._forget_key,
        }

    def serve(self) -> None:
        """Serve the link until STOP; ``_Gone`` when the front is gone."""
        lanes = [Lane(session) for session in self._token.sessions]
        if len(lanes) == 1:
            self._serve_alone(lanes[0])
        else:
            self._serve_together(lanes)

    def _serve_alone(self, lane: Lane) -> None:
        self._server = _batch.Server(
            self._wire.fileno(),
            lane.session.handle,
            buffer_len=FIRST_BUFFER_LEN,
            max_kept_len=MAX_KEPT_BUFFER_LEN,
            spin_us=self._spin_us,
        )
        while True:
            try:
                frame = self._server.serve()
            except _batch.BatchStopped as stop:
                sequence, count, done, rv = stop.args
                self._wire.send_and_exit(Exit.TOKEN_FAILED, _stopped(sequence, count, done, rv))
            if frame is None:
                raise _Gone
            header = link.unpack_header(frame[0])
            if header.kind == Kind.STOP:
                return
            self._answer(lane, header, memoryview(frame[1]))

    def _serve_together(self, lanes: list[Lane]) -> None:
        free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(2 * len(lanes)):
            free.put(bytearray(FIRST_BUFFER_LEN))
        # Bounded by the buffers in `free`: nothing is put here that does not hold one.
        work: SimpleQueue[tuple[Header, bytearray, memoryview] | None] = SimpleQueue()

        def run(lane: Lane) -> None:
            while (task := work.get()) is not None:
                header, buffer, payload = task
                self._answer(lane, header, payload)
                free.put(buffer)

        threads = [threading.Thread(target=run, args=(lane,), daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        while True:
            buffer = free.get()
            header = self._wire.receive_header()
            buffer, payload = self._receive_payload(header, buffer)
            if header.kind == Kind.STOP:
                break
            work.put((header, buffer, payload))
        for _ in threads:
            work.put(None)
        for thread in threads:
            thread.join()

    def _receive_payload(self, header: Header, buffer: bytearray) -> tuple[bytearray, memoryview]:
        """The payload as a view of a buffer, and the buffer to keep: a very large one is not kept."""
        if header.payload_len > MAX_KEPT_BUFFER_LEN:
            payload = memoryview(bytearray(header.payload_len))
        else:
            if header.payload_len > len(buffer):
                buffer = bytearray(header.payload_len)
            payload = memoryview(buffer)[: header.payload_len]
        self._wire.receive_into(payload)
        return buffer, payload

    def _answer(self, lane: Lane, header: Header, payload: memoryview) -> None:
        try:
            if header.kind == Kind.SIGN:
                self._sign(lane, header.sequence, payload)
                return
            request = self._requests.get(header.kind)
            if request is None:
                raise LinkError(f"a worker takes no frame of kind {header.kind}")
            kind, fields = request(lane.session, link.unpack_json(payload))
            self._wire.send(link.pack_json(kind, header.sequence, fields))
        except LinkError as error:
            self._refuse(header.sequence, Refused("", str(error), hint="the two ends of the link disagree"))
        except Refused as error:
            self._refuse(header.sequence, error)
        except TokenLost as error:
            self._wire.send_and_exit(
                Exit.TOKEN_FAILED, _failed(header.sequence, "serve", error.error, error.detail)
            )

    def _refuse(self, sequence: int, error: Refused) -> None:
        fields = {"error": error.error, "detail": error.detail, "hint": error.hint}
        self._wire.send(link.pack_json(Kind.REFUSED, sequence, fields))

    def _sign(self, lane: Lane, sequence: int, payload: memoryview) -> None:
        slot, form, count, lengths, data = link.unpack_sign(payload)
        key = self._keys.get(slot)
        if key is None:
            raise Refused("", f"no key is loaded in slot {slot}")
        if form is not key.form:
            got = "digests" if form is link.Form.DIGESTS else "messages"
            where = "host" if key.form is link.Form.DIGESTS else "token"
            raise Refused("", f"the key takes no {got}: the profile says `hashes: {where}`")
        frame_len = link.signed_frame_len(count)
        buffer = lane.answer_buffer(frame_len)
        frame = memoryview(buffer)[:frame_len]
        blocks = frame[link.HEADER_LEN + link.SIGNED_HEAD.size :]
        done, rv, item_rv, execution_ns = key.signer.sign(
            lane.session.handle, lengths, data, blocks[:count], blocks[count:]
        )
        link.pack_signed_head_into(buffer, sequence, count, done, rv, item_rv, execution_ns)
        if rv:
            self._wire.send_and_exit(Exit.TOKEN_FAILED, frame, _stopped(sequence, count, done, rv))
        self._wire.send(frame)

    def _load_key(self, session: Any, fields: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
        key_id = link.take_hex(fields, "id", 1, MAX_KEY_ID_LEN)
        challenge = link.take_hex(fields, "challenge", link.CHALLENGE_LEN, link.CHALLENGE_LEN)
        algorithm = link.take_text(fields, "algorithm", MAX_LABEL_LEN) if "algorithm" in fields else None
        key = self._token.load_key(session, key_id, challenge, algorithm)
        with self._counting:
            slot = self._next_slot
            self._next_slot += 1
        self._keys[slot] = key
        if self._server:
            self._server.load(slot, key.signer, key.form)
        return Kind.KEY_LOADED, {
            "slot": slot,
            **_key_fields(key.facts),
            "point": key.facts.point.hex(),
            "method": key.method,
            "form": key.form.name.lower(),
            "signature": key.signature.hex(),
            "attributes": key.facts.attributes,
        }

    def _create_key(self, session: Any, fields: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
        facts = self._token.create_key(
            session,
            link.take_hex(fields, "id", 1, MAX_KEY_ID_LEN),
            link.take_text(fields, "label", MAX_LABEL_LEN),
            link.take_text(fields, "algorithm", MAX_LABEL_LEN),
        )
        return Kind.KEY_CREATED, {**_key_fields(facts), "point": facts.point.hex()}

    def _list_keys(self, session: Any, fields: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
        keys = [
            {
                **_key_fields(facts),
                "point": facts.point.hex(),
                "usable": not facts.reason,
                "reason": facts.reason,
            }
            for facts in self._token.list_keys(session)
        ]
        return Kind.KEYS, {"keys": keys}

    def _destroy_key(self, session: Any, fields: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
        key_id = link.take_hex(fields, "id", 1, MAX_KEY_ID_LEN)
        for slot, key in list(self._keys.items()):
            if key.facts.key_id == key_id:
                self._forget(slot)
        self._token.destroy_key(session, key_id)
        return Kind.DESTROYED, {"id": key_id.hex()}

    def _forget_key(self, session: Any, fields: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
        slot = link.take_number(fields, "slot", 2**32 - 1)
        if not self._forget(slot):
            raise Refused("", f"no key is loaded in slot {slot}")
        return Kind.FORGOTTEN, {"slot": slot}

    def _forget(self, slot: int) -> bool:
        """Whether there was a key to forget: of two lanes that are told to, one does."""
        forgotten = self._keys.pop(slot, None) is not None
        if forgotten and self._server:
            self._server.forget(slot)
        return forgotten


def _key_fields(facts: KeyFacts) -> dict[str, Any]:
    return {"id": facts.key_id.hex(), "label": facts.label, "algorithm": facts.algorithm}


def _failed(sequence: int, stage: str, error: str, detail: str) -> bytes:
    fields = {
        "stage": stage,
        "error": error,
        "detail": detail,
        "hint": "",
        "pin_error": False,
        "fatal": False,
    }
    return link.pack_json(Kind.FAILED, sequence, fields)


def _stopped(sequence: int, count: int, done: int, rv: int) -> bytes:
    name = return_code_name(rv)
    return _failed(sequence, "serve", name, f"signing stopped after {done} of {count} items: {name}")


def _exit(code: Exit) -> NoReturn:
    """End the process without running destructors: modules are known to hang or crash in theirs."""
    sys.stderr.flush()
    os._exit(code)


def _confine() -> None:
    """Leave no trace of the PIN in a core file, and no way to outlive the front."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _batch.confine("seal-signer")


def _receive_small(wire: Link, expected: Kind, max_len: int) -> tuple[int, bytearray]:
    """One of the two frames that open the link: its sequence and payload, in a buffer of exactly its size."""
    header = wire.receive_header()
    if header.kind != expected or header.payload_len > max_len:
        raise LinkError(f"expected {expected.name}, got kind {header.kind} with {header.payload_len} bytes")
    payload = bytearray(header.payload_len)
    wire.receive_into(memoryview(payload))
    return header.sequence, payload


def _open(wire: Link) -> tuple[int, Token, int]:
    """Read START and PIN, open the token and log in; START's sequence, the token, and for how long to spin."""
    sequence, start = _receive_small(wire, Kind.START, FIRST_BUFFER_LEN)
    _, pin = _receive_small(wire, Kind.PIN, MAX_PIN_LEN)
    try:
        fields = link.unpack_json(start)
        _batch.confine(f"seal-signer {link.take_number(fields, 'worker', MAX_WORKERS - 1)}")
        spin_us = link.take_number(fields, "spin_us", MAX_SPIN_US) if "spin_us" in fields else 0
        profile = TokenProfile.from_mapping(fields.get("profile"))
        os.environ.update(profile.environment or {})
        token = Token.open(profile)
        token.login(pin)
    except ProfileError as error:
        raise StartError("profile", "", str(error), fatal=True) from error
    finally:
        pin[:] = bytes(len(pin))
    return sequence, token, spin_us


def main(arguments: list[str]) -> NoReturn:
    """Serve the link whose file descriptor is the one argument; ends the process."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        sys.exit(_USAGE)
    _confine()
    try:
        sock = socket.socket(fileno=int(arguments[0]))
    except OSError as error:
        sys.exit(f"{_USAGE}\nfile descriptor {arguments[0]}: {error.strerror}")
    sock.set_inheritable(False)  # a helper that the module starts must not hold the link open
    sock.setblocking(True)
    wire = Link(sock)
    threading.excepthook = _die_of_a_bug
    sys.unraisablehook = _say_in_a_line
    try:
        sequence, token, spin_us = _open(wire)
        wire.send(link.pack_json(Kind.READY, sequence, token.describe()))
        Worker(wire, token, spin_us).serve()
        token.module.finalize()
    except _Gone:
        _exit(Exit.STOPPED)
    except StartError as error:
        fields = {
            name: getattr(error, name) for name in ("stage", "error", "detail", "hint", "pin_error", "fatal")
        }
        print(f"seal-signer: {error.stage}: {error.detail}", file=sys.stderr)
        code = Exit.PIN_REFUSED if error.pin_error else Exit.NOT_STARTED
        wire.send_and_exit(code, link.pack_json(Kind.FAILED, 0, fields))
    except LinkError as error:
        print(f"seal-signer: link: {error}", file=sys.stderr)
        wire.send_and_exit(Exit.LINK_BROKEN, _failed(0, "link", "", str(error)))
    except _batch.CryptokiError:
        pass  # C_Finalize failed: the process ends here anyway, and its sessions with it
    _exit(Exit.STOPPED)


def _say_in_a_line(hook: sys.UnraisableHookArgs) -> None:
    """The library raises in destructors when the token has gone; that is told elsewhere, a traceback tells no more."""
    print(f"seal-signer: while cleaning up: {hook.exc_value!r}", file=sys.stderr)


def _die_of_a_bug(hook: threading.ExceptHookArgs) -> None:
    """A lane that dies silently would leave its frame unanswered: the whole process goes."""
    sys.excepthook(hook.exc_type, hook.exc_value or hook.exc_type(), hook.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
