"""A token whose backend goes and comes back: SoftHSM2 behind ``p11-kit server``, killed and started again.

The worker's part: say what happened and exit, never hang, never linger half dead. The rest is the front's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Exit, Kind


class Backend:
    """``p11-kit server`` in front of a token. Its socket is up when ``start`` returns."""

    def __init__(self, token, folder):
        self.token = token
        self.path = folder / "p11"
        self.process = None

    def start(self):
        program = shutil.which("p11-kit")
        assert program, "p11-kit is not installed"
        uri = f"pkcs11:token={self.token.label.replace(' ', '%20')}"
        command = [
            program,
            "server",
            "--foreground",
            "--name",
            self.path,
            "--provider",
            self.token.module,
            uri,
        ]
        self.process = subprocess.Popen(
            command, env={**os.environ, "SOFTHSM2_CONF": str(self.token.config)}, stdout=subprocess.PIPE
        )
        assert self.process.stdout
        # It prints the address of its socket once that is bound: no need to poll.
        while b"P11_KIT_SERVER_ADDRESS" not in (line := self.process.stdout.readline()):
            assert line, "p11-kit server did not start"

    def kill(self):
        """End the server and the children that serve its clients: the whole process group of each."""
        if self.process is None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            os.kill(int(child), 9)
        self.process.communicate()
        self.process = None
        self.path.unlink(missing_ok=True)


@pytest.fixture
def backend(token, tmp_path):
    backend = Backend(token, tmp_path)
    backend.start()
    yield backend
    backend.kill()


@pytest.fixture
def remote(token, backend):
    clients = [
        *Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"),
        Path("/usr/lib/pkcs11/p11-kit-client.so"),
    ]
    return {
        **token.profile(),
        "module": str(clients[0]),
        "environment": {"P11_KIT_SERVER_ADDRESS": f"unix:path={backend.path}"},
    }


def test_a_backend_that_goes_ends_the_worker_and_a_new_one_works_when_it_is_back(
    spawn, backend, remote, key_id, check
):
    front = spawn()
    front.ready(remote)
    front.create(key_id)
    loaded = front.load(key_id)
    assert front.sign(loaded["slot"], bytes(64)).done == 2

    backend.kill()
    signed = front.sign(loaded["slot"], bytes(64))
    assert signed.done == 0
    assert signed.rv
    assert front.receive_json(Kind.FAILED)["stage"] == "serve"
    assert front.exit_code() == Exit.TOKEN_FAILED

    front = spawn()
    front.start(remote)
    told = front.receive_json(Kind.FAILED)
    assert told["stage"] in {"module", "token"}
    assert (told["pin_error"], told["fatal"]) == (False, False)
    assert front.exit_code() == Exit.NOT_STARTED

    backend.start()
    front = spawn()
    front.ready(remote)
    loaded = front.load(key_id)
    signed = front.sign(loaded["slot"], bytes(32))
    assert check(bytes.fromhex(loaded["point"]), bytes(32), bytes(signed.signatures))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(Kind.LIST_KEYS, {}), (Kind.LOAD_KEY, {"id": "00", "challenge": "00" * link.CHALLENGE_LEN})],
)
def test_a_backend_that_goes_is_noticed_by_key_management_too(spawn, backend, remote, kind, fields):
    front = spawn()
    front.ready(remote)
    backend.kill()
    assert front.ask(kind, fields, Kind.FAILED)["stage"] == "serve"
    assert front.exit_code() == Exit.TOKEN_FAILED
