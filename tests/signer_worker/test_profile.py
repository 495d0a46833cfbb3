"""Token profiles: strict reading, and every profile we ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from appliance_pkcs11.profile import ProfileError, TokenProfile

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "config" / "tokens").glob("*.yaml"))

BLOCK = {
    "key_type": "0x80000004",
    "ec_params": "06082a811ccf5501822d",
    "key_pair_mechanism": 0x80008001,
    "sign_mechanism": 0x80008000,
    "hashes": "host",
    "signature_form": "raw",
}
GOOD = {"name": "a-token", "module": "/usr/lib/m.so", "token_label": "seal", "algorithms": {"sm2-sm3": BLOCK}}


def with_block(**changes):
    return {**GOOD, "algorithms": {"sm2-sm3": {**BLOCK, **changes}}}


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


def test_defaults_and_numbers():
    profile = TokenProfile.from_mapping(GOOD)
    assert (profile.workers, profile.sessions, profile.locking, profile.batch) == (1, 1, "none", "auto")
    assert not profile.tested
    block = profile.algorithms["sm2-sm3"]
    assert (block.key_type, block.key_pair_mechanism) == (0x80000004, 0x80008001)
    assert block.public_point == "public_key"


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_profile_is_good_and_travels_as_json(path):
    profile = TokenProfile.from_mapping(yaml.safe_load(path.read_text()))
    assert profile.name == path.stem
    assert TokenProfile.from_mapping(json.loads(json.dumps(profile.to_mapping()))) == profile


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_an_untested_profile_says_so_at_the_top(path):
    text = path.read_text()
    assert text.startswith("# UNTESTED") != (path.stem in {"softhsm2", "firmware-sim"})
    assert yaml.safe_load(text)["tested"] or path.stem != "softhsm2"


@pytest.mark.parametrize(
    ("mapping", "key"),
    [
        ([], "profile"),
        ({**GOOD, "colour": "red"}, "colour"),
        (without(GOOD, "name"), "name"),
        (without(GOOD, "module"), "module"),
        (without(GOOD, "algorithms"), "algorithms"),
        ({**GOOD, "name": "A Token"}, "name"),
        ({**GOOD, "module": "libm.so"}, "module"),
        ({**GOOD, "token_label": "x" * 33}, "token_label"),
        ({**GOOD, "token_label": 7}, "token_label"),
        (without(GOOD, "token_label"), "token_label"),
        ({**GOOD, "token_serial": "0123"}, "token_label"),
        ({**GOOD, "environment": ["A=b"]}, "environment"),
        ({**GOOD, "environment": {"A B": "c"}}, "environment"),
        ({**GOOD, "environment": {"A": 1}}, "environment.A"),
        ({**GOOD, "environment": {"LD_PRELOAD": "/tmp/x.so"}}, "environment.LD_PRELOAD"),
        ({**GOOD, "workers": 0}, "workers"),
        ({**GOOD, "workers": True}, "workers"),
        ({**GOOD, "workers": 1.0}, "workers"),
        ({**GOOD, "workers": 65}, "workers"),
        ({**GOOD, "sessions": 2}, "sessions"),
        ({**GOOD, "sessions": 257, "locking": "os"}, "sessions"),
        ({**GOOD, "locking": "maybe"}, "locking"),
        ({**GOOD, "batch": "best"}, "batch"),
        ({**GOOD, "tested": "yes"}, "tested"),
        ({**GOOD, "start_timeout_s": -1}, "start_timeout_s"),
        ({**GOOD, "algorithms": {}}, "algorithms"),
        ({**GOOD, "algorithms": {"rsa": BLOCK}}, "algorithms.rsa"),
        ({**GOOD, "algorithms": {"sm2-sm3": None}}, "algorithms.sm2-sm3"),
        (with_block(color=1), "algorithms.sm2-sm3.color"),
        (with_block(key_type="CKK_SM2"), "algorithms.sm2-sm3.key_type"),
        (with_block(key_type=2**32), "algorithms.sm2-sm3.key_type"),
        (with_block(key_type=-1), "algorithms.sm2-sm3.key_type"),
        (with_block(sign_mechanism=True), "algorithms.sm2-sm3.sign_mechanism"),
        (with_block(sign_mechanism="0x"), "algorithms.sm2-sm3.sign_mechanism"),
        (with_block(ec_params="0x06"), "algorithms.sm2-sm3.ec_params"),
        (with_block(ec_params=6), "algorithms.sm2-sm3.ec_params"),
        (with_block(mechanism_parameter="00" * 4097), "algorithms.sm2-sm3.mechanism_parameter"),
        (with_block(hashes="both"), "algorithms.sm2-sm3.hashes"),
        (with_block(signature_form=None), "algorithms.sm2-sm3.signature_form"),
        (with_block(public_point="certificate"), "algorithms.sm2-sm3.public_point"),
        ({**with_block(signature_form="der"), "batch": "vendor"}, "batch"),
    ],
)
def test_a_fault_is_named_with_what_was_expected_and_got(mapping, key):
    with pytest.raises(ProfileError) as caught:
        TokenProfile.from_mapping(mapping)
    assert caught.value.key == key
    assert caught.value.expected
    assert caught.value.got
    assert str(caught.value) == f"{key}: expected {caught.value.expected}, got {caught.value.got}"


@pytest.mark.parametrize("field", ["hashes", "signature_form", "ec_params", "key_type", "sign_mechanism"])
def test_what_a_signature_depends_on_has_no_default(field):
    block = without(BLOCK, field)
    with pytest.raises(ProfileError, match=f"algorithms.sm2-sm3.{field}: expected a value, got nothing"):
        TokenProfile.from_mapping({**GOOD, "algorithms": {"sm2-sm3": block}})
