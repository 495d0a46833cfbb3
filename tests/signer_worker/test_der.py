"""The batch loop's DER reader: it accepts what is DER of two 256-bit integers, and nothing else."""

from __future__ import annotations

import pytest
from appliance_pkcs11._batch import signature_from_der
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st

INTEGERS = st.integers(0, 2**256 - 1)


@given(INTEGERS, INTEGERS)
@example(0, 0)
@example(127, 128)
@example(255, 256)
@example(2**255, 2**256 - 1)
@example(2**248 - 1, 2**247)
def test_der_is_read(r, s):
    assert signature_from_der(encode_dss_signature(r, s)) == r.to_bytes(32, "big") + s.to_bytes(32, "big")


@given(INTEGERS, INTEGERS, st.data())
def test_a_changed_byte_is_refused_or_means_something_else(r, s, data):
    der = bytearray(encode_dss_signature(r, s))
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] = data.draw(st.integers(0, 255))
    try:
        raw = signature_from_der(der)
    except ValueError:
        return
    assert encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")) == bytes(
        der
    )


@given(st.binary(max_size=80))
def test_bytes_are_read_as_others_read_them_or_refused(block):
    try:
        raw = signature_from_der(block)
    except ValueError:
        return
    assert decode_dss_signature(block) == (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


NOT_DER = {
    "empty": "",
    "tag only": "30",
    "no integers": "3000",
    "one integer": "3003020101",
    "cut": "30060201010201",
    "trailing byte": "300602010102010100",
    "trailing byte inside": "300702010102010100",
    "long sequence": "3007020101020101",
    "set": "3106020101020101",
    "bit string": "3006030101020101",
    "not the shortest form": "3007020200010201" + "01",
    "negative": "3006020181020101",
    "sequence length in long form": "308106020101020101",
    "integer length in long form": "300702810101020101",
    "empty integer": "30050200020101",
    "integer past the end": "3006020101020201",
    "integer over the next": "3006020201020101",
    "34 bytes": "3027" + "0222" + "00" + "80" * 33 + "020101",
    "257 bits": "3026" + "0221" + "01" + "80" * 32 + "020101",
    "indefinite length": "30800201010201010000",
}


@pytest.mark.parametrize("der", NOT_DER.values(), ids=NOT_DER)
def test_what_is_no_der_is_refused(der):
    with pytest.raises(ValueError, match="not a DER signature"):
        signature_from_der(bytes.fromhex(der))
