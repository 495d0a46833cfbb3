"""Which keys a worker makes, uses and refuses; and that no private key comes out of the token."""

from __future__ import annotations

import pytest
from appliance_pkcs11 import link
from appliance_pkcs11.link import Kind

MAKE = """
curve = {{Attribute.EC_PARAMS: encode_named_curve_parameters({curve!r})}}
parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
parameters.generate_keypair(store=True, id=bytes.fromhex({key_id!r}), label="x", private_template={template})
"""

GOOD = "Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False"


def make_key(in_library, token, key_id, template, curve="secp256r1"):
    in_library(token, MAKE.format(key_id=key_id.hex(), template="{" + template + "}", curve=curve))


def test_a_key_made_by_the_worker_has_every_attribute_it_needs(worker, token, key_id, in_library):
    created = worker.create(key_id, "公章")
    assert len(bytes.fromhex(created["point"])) == 64
    printed = in_library(
        token,
        f"""
key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex("{key_id.hex()}"))
names = "PRIVATE SENSITIVE ALWAYS_SENSITIVE NEVER_EXTRACTABLE SIGN TOKEN LOCAL".split()
print([key[Attribute[name]] for name in names])
print([key[Attribute[name]] for name in "EXTRACTABLE DERIVE UNWRAP DECRYPT".split()])
""",
    )
    assert printed.splitlines() == [str([True] * 7), str([False] * 4)]


def test_a_private_key_cannot_be_read_or_wrapped(worker, token, key_id, in_library):
    worker.create(key_id)
    printed = in_library(
        token,
        f"""
key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex("{key_id.hex()}"))
for attempt in (
    lambda: key[Attribute.VALUE],
    lambda: session.generate_key(KeyType.AES, 256).wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP_PAD),
    lambda: key.__setitem__(Attribute.EXTRACTABLE, True),
    lambda: key.__setitem__(Attribute.SENSITIVE, False),
    lambda: key.copy({{Attribute.EXTRACTABLE: True}}),
):
    try: print("out:", attempt())
    except exceptions.PKCS11Error as error: print("refused", type(error).__name__)
""",
    )
    lines = printed.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("refused") for line in lines), printed
    worker.load(key_id)  # and it is still the key it was


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("Attribute.PRIVATE: False, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False", "not private"),
        (
            "Attribute.PRIVATE: True, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: False",
            "not sensitive",
        ),
        ("Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True", "extractable"),
        (GOOD + ", Attribute.SIGN: False", "may not sign"),
    ],
)
def test_a_key_with_a_wrong_attribute_is_refused(worker, token, key_id, in_library, template, reason):
    make_key(in_library, token, key_id, template)
    refused = worker.load(key_id, Kind.REFUSED)
    assert reason in refused["detail"]
    assert refused["hint"]
    listed = {key["id"]: key for key in worker.ask(Kind.LIST_KEYS, {}, Kind.KEYS)["keys"]}
    assert not listed[key_id.hex()]["usable"]
    assert reason in listed[key_id.hex()]["reason"]


def test_a_key_that_was_extractable_once_is_refused(worker, token, key_id, in_library):
    make_key(in_library, token, key_id, "Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True")
    in_library(
        token,
        f"""
key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, id=bytes.fromhex("{key_id.hex()}"))
key[Attribute.EXTRACTABLE] = False
""",
    )
    assert "extractable once" in worker.load(key_id, Kind.REFUSED)["detail"]


def test_an_imported_key_is_refused(worker, token, key_id, in_library):
    in_library(
        token,
        f"""
session.create_object({{
    Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: KeyType.EC, Attribute.TOKEN: True,
    Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.SIGN: True,
    Attribute.ID: bytes.fromhex("{key_id.hex()}"), Attribute.VALUE: (7).to_bytes(32, "big"),
    Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1"),
}})
""",
    )
    assert "imported" in worker.load(key_id, Kind.REFUSED)["detail"]


def test_a_key_on_another_curve_is_refused(worker, token, key_id, in_library):
    make_key(in_library, token, key_id, GOOD, curve="secp384r1")
    assert "curve" in worker.load(key_id, Kind.REFUSED)["detail"]


def test_a_key_without_its_public_half_is_refused(worker, token, key_id, in_library):
    worker.create(key_id)
    in_library(
        token,
        f"""
session.get_key(object_class=ObjectClass.PUBLIC_KEY, id=bytes.fromhex("{key_id.hex()}")).destroy()
""",
    )
    assert "public point" in worker.load(key_id, Kind.REFUSED)["detail"]


def test_two_keys_of_one_id_are_refused(worker, token, key_id, in_library):
    make_key(in_library, token, key_id, GOOD)
    make_key(in_library, token, key_id, GOOD)
    assert "2 private keys" in worker.load(key_id, Kind.REFUSED)["detail"]


def test_an_unknown_key_and_an_unknown_algorithm_are_refused(worker, key_id):
    assert "no private key" in worker.load(key_id, Kind.REFUSED)["detail"]
    fields = {"id": key_id.hex(), "label": "seal", "algorithm": "sm2-sm3"}
    refused = worker.ask(Kind.CREATE_KEY, fields, Kind.REFUSED)
    assert "ecdsa-p256-sha256" in refused["hint"]


def test_a_key_loaded_for_another_algorithm_is_refused(worker, key_id):
    worker.create(key_id)
    fields = {"id": key_id.hex(), "challenge": "00" * 32, "algorithm": "sm2-sm3"}
    assert "not for sm2-sm3" in worker.ask(Kind.LOAD_KEY, fields, Kind.REFUSED)["detail"]


def test_an_id_is_given_once(worker, key_id):
    worker.create(key_id)
    fields = {"id": key_id.hex(), "label": "again", "algorithm": "ecdsa-p256-sha256"}
    assert "already" in worker.ask(Kind.CREATE_KEY, fields, Kind.REFUSED)["detail"]


def test_a_destroyed_key_is_gone_with_both_halves(worker, token, key_id, in_library):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    worker.ask(Kind.DESTROY_KEY, {"id": key_id.hex()}, Kind.DESTROYED)
    assert key_id.hex() not in {key["id"] for key in worker.ask(Kind.LIST_KEYS, {}, Kind.KEYS)["keys"]}
    count = f"print(len(list(session.get_objects({{Attribute.ID: bytes.fromhex('{key_id.hex()}')}}))))"
    assert in_library(token, count) == "0"
    assert worker.ask(Kind.FORGET_KEY, {"slot": slot}, Kind.REFUSED)
    assert worker.ask(Kind.DESTROY_KEY, {"id": key_id.hex()}, Kind.REFUSED)


def test_a_forgotten_slot_signs_no_more_and_is_not_given_again(worker, key_id):
    worker.create(key_id)
    slot = worker.load(key_id)["slot"]
    assert worker.ask(Kind.FORGET_KEY, {"slot": slot}, Kind.FORGOTTEN) == {"slot": slot}
    worker.sock.sendall(link.pack_sign_digests(9, slot, bytes(32)))
    assert "no key is loaded" in worker.receive_json(Kind.REFUSED)["detail"]
    assert worker.load(key_id)["slot"] != slot


def test_a_key_made_by_one_worker_is_loaded_by_another(spawn, token, worker, key_id):
    other = spawn()
    other.ready(token.profile())
    created = worker.create(key_id)
    assert other.load(key_id)["point"] == created["point"]
