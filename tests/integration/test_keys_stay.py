"""A private key cannot be had: not by officers, not by clients, not with the PIN and other software on the token."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from appliance_fixture import PIN, Appliance, Bench, SoftToken

from appliance import wire

ATTEMPT = """
import json, sys
import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass, MechanismFlag, Mechanism

module, label, pin = sys.argv[1:]
said = {}

def attempt(name, act):
    try:
        said[name] = "done: " + repr(act())
    except (pkcs11.PKCS11Error, NotImplementedError) as error:
        said[name] = type(error).__name__

token = pkcs11.lib(module).get_token(token_label=label)
with token.open(rw=True, user_pin=pin) as session:
    key = next(iter(list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))))
    said["flags"] = {
        name: key[Attribute[name]]
        for name in ("PRIVATE", "SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "ALWAYS_SENSITIVE", "LOCAL")
    }
    wrapper = session.generate_key(
        KeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP
    )
    attempt("value", lambda: key[Attribute.VALUE])
    attempt("wrap", lambda: wrapper.wrap_key(key))
    attempt("wrap_pad", lambda: wrapper.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP_PAD))
    attempt("make_extractable", lambda: key.__setitem__(Attribute.EXTRACTABLE, True))
    attempt("make_insensitive", lambda: key.__setitem__(Attribute.SENSITIVE, False))
    attempt("copy_extractable", lambda: key.copy({Attribute.EXTRACTABLE: True, Attribute.TOKEN: False}))
    attempt("copy_insensitive", lambda: key.copy({Attribute.SENSITIVE: False, Attribute.TOKEN: False}))
    attempt("wrap_after_all", lambda: wrapper.wrap_key(key))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def token(shared_bench: Bench) -> SoftToken:
    return shared_bench.token()


@pytest.fixture(scope="module")
def appliance(shared_bench: Bench, token: SoftToken) -> Appliance:
    made = shared_bench.appliance(token.profile()).start()
    made.key("seal")
    made.account("app", "seal")
    return made


def test_the_user_with_the_pin_cannot_have_it(appliance: Appliance, token: SoftToken) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, token.module, token.label, PIN],
        env=token.environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said.pop("flags") == {
        "PRIVATE": True, "SENSITIVE": True, "EXTRACTABLE": False,
        "NEVER_EXTRACTABLE": True, "ALWAYS_SENSITIVE": True, "LOCAL": True,
    }  # fmt: skip
    assert said["value"] == "AttributeSensitive", said
    for name in ("wrap", "wrap_pad", "wrap_after_all"):
        assert said[name] in ("KeyUnextractable", "KeyNotWrappable"), said
    assert not [name for name, outcome in said.items() if outcome.startswith("done")], said


def test_pkcs11_tool_cannot_have_it(appliance: Appliance, token: SoftToken) -> None:
    def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
        return token.run(
            "pkcs11-tool", "--module", token.module, "--token-label", token.label, "--login", "--pin", PIN,
            *arguments, check=False,
        )  # fmt: skip

    shown = tool("--list-objects", "--type", "privkey").stdout
    assert "sensitive" in shown and "never extractable" in shown
    read = tool("--read-object", "--type", "privkey", "--label", "seal")
    assert read.returncode != 0 or not read.stdout.strip(), read.stdout
    without_pin = token.run(
        "pkcs11-tool", "--module", token.module, "--token-label", token.label, "--list-objects", "--type", "privkey"
    ).stdout  # fmt: skip
    assert "Private Key Object" not in without_pin


KEY_FIELDS = {"name", "id", "token", "algorithm", "state", "created_at", "spki"}


def test_no_officer_call_tells_it(appliance: Appliance) -> None:
    assert set(appliance.ordered("GET", "/v1/keys/seal")) == KEY_FIELDS
    assert all(set(one) == KEY_FIELDS for one in appliance.ordered("GET", "/v1/keys"))
    assert set(appliance.ordered("POST", "/v1/keys/seal/disable")) == KEY_FIELDS
    assert set(appliance.ordered("POST", "/v1/keys/seal/enable")) == KEY_FIELDS
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        for act in ("export", "private", "value", "wrap", "backup", "unwrap", "import", "download"):
            answer = appliance.officer(method, f"/v1/keys/seal/{act}", {} if method != "GET" else None)
            assert answer.status in (400, 404, 405), (method, act, answer.body)
        if method not in ("GET", "POST"):
            assert appliance.officer(method, "/v1/keys/seal", {}).status in (400, 404, 405)
    for fields in ({"extractable": True}, {"sensitive": False}, {"id": "00"}, {"value": "00"}):
        body = {"name": "other", "algorithm": "ecdsa-p256-sha256", **fields}
        assert appliance.officer("POST", "/v1/keys", body).status == 400


def test_no_frame_tells_it(appliance: Appliance) -> None:
    """Every type there is, and every number that is none, with a body that a request of that kind might have."""
    known = {1, 2, 3, 4, 5}
    for number in range(256):
        if number in known:
            continue
        with appliance.wire() as client:
            client.send(
                (5).to_bytes(4, "big") + bytes((number,)) + bytes(3) + (2).to_bytes(8, "big") + b"\4seal"
            )
            assert client.receive_error().code == 2
            assert client.at_end()
    with appliance.wire() as client:
        client.send(wire.encode_status(2, wire.StatusKind.KEYS, ["seal"]))
        records = wire.decode_status_answer(client.receive().payload)
        assert isinstance(records, list)
        assert len(records[0].spki) == 91  # the public half, and no byte more
