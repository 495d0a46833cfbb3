"""How a worker starts, why it does not, and how it ends."""

from __future__ import annotations

import ctypes.util
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Exit, Kind


def failed(front):
    fields = front.receive_json(Kind.FAILED)
    with pytest.raises(EOFError):
        front.receive()
    return fields


def test_a_wrong_pin_is_tried_once_and_ends_the_worker(spawn, shimmed, tmp_path):
    front = spawn()
    logins = tmp_path / "logins"
    front.start(shimmed({"SHIM_LOGINS": str(logins)}), pin=b"wrong PIN")
    told = failed(front)
    assert told["pin_error"]
    assert told["fatal"]
    assert (told["stage"], told["error"]) == ("login", "CKR_PIN_INCORRECT")
    assert front.exit_code() == Exit.PIN_REFUSED
    assert logins.read_text() == "x"


@pytest.mark.parametrize("flags", ["20000", "40000"], ids=["final-try", "locked"])
def test_a_pin_that_could_lock_the_token_is_not_tried(spawn, shimmed, tmp_path, flags):
    front = spawn()
    logins = tmp_path / "logins"
    front.start(shimmed({"SHIM_LOGINS": str(logins), "SHIM_FLAGS": flags}))
    assert failed(front)["pin_error"]
    assert front.exit_code() == Exit.PIN_REFUSED
    assert not logins.exists()


def test_an_empty_pin_is_not_tried(spawn, shimmed, tmp_path):
    front = spawn()
    logins = tmp_path / "logins"
    front.start(shimmed({"SHIM_LOGINS": str(logins)}), pin=b"")
    assert failed(front)["pin_error"]
    assert front.exit_code() == Exit.PIN_REFUSED
    assert not logins.exists()


@pytest.mark.parametrize(
    ("changes", "stage", "says", "fatal"),
    [
        ({"token_label": "elsewhere"}, "token", "no token has label 'elsewhere'", False),
        ({"module": "/nonexistent/module.so"}, "module", "/nonexistent/module.so", False),
        ({"module": "/dev/null"}, "module", "/dev/null", False),
        ({"batch": "vendor"}, "module", "no batch method 'vendor'", True),
        ({"colour": "red"}, "profile", "colour", True),
        ({"sessions": 2}, "profile", "sessions", True),
    ],
)
def test_what_cannot_be_opened_is_named(spawn, token, changes, stage, says, fatal):
    front = spawn()
    front.start({**token.profile(), **changes})
    told = failed(front)
    assert told["stage"] == stage
    assert says in told["detail"]
    assert (told["pin_error"], told["fatal"]) == (False, fatal)
    assert front.exit_code() == Exit.NOT_STARTED


def test_a_library_that_is_no_module_is_named(spawn, token):
    front = spawn()
    front.start(token.profile(module="libcrypto.so.3") | {"module": _some_library()})
    assert "C_GetFunctionList" in failed(front)["detail"]
    assert front.exit_code() == Exit.NOT_STARTED


def _some_library():
    name = ctypes.util.find_library("crypto")
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return next(line.split()[-1] for line in listing.splitlines() if line.split()[:1] == [name])


def test_the_hint_names_the_tokens_there_are(spawn, token):
    front = spawn()
    front.start({**token.profile(), "token_label": "elsewhere"})
    assert token.label in failed(front)["hint"]


def test_a_token_is_found_by_serial(spawn, token):
    serial = spawn().ready(token.profile())["token_serial"]
    profile = {**token.profile(), "token_serial": serial}
    del profile["token_label"]
    assert spawn().ready(profile)["token_label"] == token.label


def test_the_pin_is_in_no_argument_and_no_environment(spawn, token):
    front = spawn()
    front.ready(token.profile())
    process = Path(f"/proc/{front.process.pid}")
    assert token.pin not in (process / "cmdline").read_bytes()
    try:
        environment = (process / "environ").read_bytes()
    except PermissionError:
        return  # not dumpable: nobody but root may even look
    assert token.pin not in environment


def test_the_pin_is_nowhere_in_the_memory_of_a_worker_that_is_logged_in(spawn, token):
    front = spawn()
    front.ready(token.profile())
    process = Path(f"/proc/{front.process.pid}")
    try:
        maps = (process / "maps").read_text().splitlines()
        memory = (process / "mem").open("rb", buffering=0)
    except PermissionError:
        return  # not dumpable: nobody but root may even look
    searched = 0
    with memory:
        for line in maps:
            bounds, permissions = line.split()[:2]
            if not permissions.startswith("rw"):
                continue
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            memory.seek(start)
            block = memory.read(end - start)
            searched += len(block)
            assert token.pin not in block, line
    assert searched > 1_000_000


def test_the_worker_is_named_leaves_no_core_and_searches_no_working_directory(spawn, token):
    front = spawn()
    front.ready(token.profile())
    process = Path(f"/proc/{front.process.pid}")
    assert (process / "comm").read_text() == "seal-signer 0\n"
    arguments = (process / "cmdline").read_bytes().split(b"\0")
    assert arguments[1:4] == [b"-P", b"-m", b"appliance_pkcs11.worker"]
    try:
        limits = (process / "limits").read_text()
    except PermissionError:
        return
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]


@pytest.mark.parametrize("settings", [{}, {"sessions": 4, "locking": "os"}], ids=["one", "four"])
def test_end_of_file_ends_the_worker(spawn, token, settings):
    front = spawn()
    front.ready(token.profile(**settings))
    front.sock.close()
    assert front.exit_code() == Exit.STOPPED


def test_end_of_file_before_start_and_in_mid_frame_end_the_worker(spawn, token):
    front = spawn()
    front.sock.close()
    assert front.exit_code() == Exit.STOPPED
    front = spawn()
    front.ready(token.profile())
    front.sock.sendall(link.pack_sign_digests(1, 0, bytes(64))[:40])
    front.sock.close()
    assert front.exit_code() == Exit.STOPPED


def test_terminate_and_interrupt_are_the_fronts_business(spawn, token):
    front = spawn()
    front.ready(token.profile())
    for number in (signal.SIGTERM, signal.SIGINT):
        front.process.send_signal(number)
    assert front.ask(Kind.LIST_KEYS, {}, Kind.KEYS)["keys"] is not None
    front.send(Kind.STOP, {})
    assert front.exit_code() == Exit.STOPPED


def test_the_worker_dies_with_the_process_that_started_it(token):
    """Its end of the link is held open here, so that only the parent's death can end it."""
    ours, theirs = socket.socketpair()
    script = (
        "import subprocess, sys\n"
        "from appliance_pkcs11 import link\n"
        "fd = int(sys.argv[1])\n"
        "print(subprocess.Popen(link.spawn_arguments(fd), pass_fds=[fd]).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with ours, theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", script, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert parent.stdout and parent.stdin
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        ours.settimeout(60)
        ours.sendall(link.pack_json(Kind.START, 1, {"profile": token.profile(), "worker": 0}))
        ours.sendall(link.pack_frame(Kind.PIN, 2, token.pin))
        assert link.unpack_header(ours.recv(link.HEADER_LEN)).kind == Kind.READY
        parent.kill()
        parent.communicate()
        readable, _, _ = select.select([watch], [], [], 60)
        os.close(watch)
        assert readable


def test_a_person_who_starts_it_is_told_how(tmp_path):
    done = subprocess.run([*link.spawn_arguments(0)[:-1]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "started by cloud-seald" in done.stderr
