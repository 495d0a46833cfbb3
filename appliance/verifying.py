"""Software verification of signatures and hashing of what they sign, by the batch.

For: SM2 with SM3 (GB/T 32918.2) and ECDSA P-256 with SHA-256 over public values, at the processor's speed.
Not for: signing. Nothing here, nor in the native code behind it, ever sees a private key, and nothing of it
is constant time.

Rules:

* A batch is contiguous blocks: 32 bytes a digest, 64 bytes a signature (``r || s``), one status byte an item.
  No Python object exists per item, and the interpreter lock is released for the whole batch.
* A call uses the thread that makes it and no other; a ``Verifier`` may be called from any number of threads.
* Whatever is wrong with a signature makes its status ``INVALID``. Only what is wrong with the *call* raises
  ``BadRequest``: blocks that do not fit together, too many items, a user ID that is too long.
* Nothing is durable: a crash leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance import _verify
from appliance.algorithms import SM2_DEFAULT_ID, Algorithm, PublicKey
from appliance.errors import BadRequest, ConfigError

VALID: Final = 1
"""The status of an item whose signature is valid."""
INVALID: Final = 0
"""The status of an item whose signature is not."""

MAX_ITEMS: Final = _verify.MAX_ITEMS
"""Items in one call: bounds its memory and the time its thread is gone."""
MAX_USER_ID_LEN: Final = 8191
"""ENTL, the length of a user ID in bits, has 16 bits (GB/T 32918.2, 5.5)."""

ENGINES: Final = _verify.ENGINES
"""What this processor can run, fastest first."""

Block = bytes | bytearray | memoryview
"""A contiguous block of bytes."""

_CURVE_AND_GENERATOR: Final = bytes.fromhex(
    "FFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC"
    "28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93"
    "32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7"
    "BC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0"
)
"""a, b, xG, yG of the SM2 curve (GB/T 32918.5, annex A), as they enter Z."""


@dataclass(frozen=True, slots=True)
class CacheCounters:
    """What a cache holds now (``entries``, ``byte_count``) and what it did since its verifier was made.

    ``hits`` counts items, not look-ups; ``builds`` counts tables or objects made.
    """

    entries: int
    byte_count: int
    hits: int
    builds: int
    evictions: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The caches of a ``Verifier``: its own multiplication tables, and libcrypto's key objects."""

    tables: CacheCounters
    key_objects: CacheCounters


class Verifier:
    """Verifies batches. Thread-safe; one is shared by a process.

    ``engine`` is ``auto`` (the fastest this processor has) or one of ``lanes`` (AVX-512 IFMA, eight at a
    time), ``scalar`` (64-bit integers, any processor) and ``openssl`` (libcrypto, the referee); it decides
    about SM2. P-256 is always libcrypto's. ``max_table_bytes`` bounds the tables kept for keys that come
    again; what running batches still hold of evicted tables, and 16 MiB of key objects at most, come on top.
    """

    def __init__(self, *, max_table_bytes: int = 64 * 2**20, engine: str = "auto") -> None:
        if max_table_bytes < 0:
            raise ConfigError(f"max_table_bytes must not be negative, got {max_table_bytes}")
        chosen = ENGINES[0] if engine == "auto" else engine
        if chosen not in ENGINES:
            raise ConfigError(
                f"no verification engine {engine!r} here", hint=f"use one of: {', '.join(('auto', *ENGINES))}"
            )
        self._native = _verify.Engine(chosen, max_table_bytes)

    @property
    def engine(self) -> str:
        """The engine in use for SM2."""
        return self._native.name

    def verify(self, key: PublicKey, digests: Block, signatures: Block) -> bytes:
        """Verify n signatures under one key: n×32 bytes and n×64 bytes in, n status bytes out."""
        try:
            return self._native.verify(bytes((key.algorithm.value,)), key.point, None, digests, signatures)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def verify_mixed(
        self, keys: Sequence[PublicKey], key_index: Block, digests: Block, signatures: Block
    ) -> bytes:
        """Verify item i under ``keys[key_index[i]]``. The index is n native 32-bit integers (``array('I')``).

        Keys of both algorithms may be mixed.
        """
        algorithms = bytes(key.algorithm.value for key in keys)
        points = b"".join(key.point for key in keys)
        try:
            return self._native.verify(algorithms, points, key_index, digests, signatures)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def digest(
        self,
        key: PublicKey,
        lengths: Block,
        data: Block,
        user_id: bytes = SM2_DEFAULT_ID,
        *,
        prefix: bytes = b"",
    ) -> bytes:
        """Hash n messages as the key's algorithm signs them: SHA-256(m), or SM3(Z || m) for SM2.

        ``data`` is the messages one after the other, ``lengths`` their lengths as n big-endian 32-bit
        integers; n×32 bytes come back. ``user_id`` enters Z and means nothing to P-256.
        ``prefix`` (up to 2 MiB) is what all messages begin with and is hashed once.
        """
        try:
            if key.algorithm is Algorithm.SM2_SM3:
                return _verify.sm3_many(sm2_z(key, user_id) + prefix, lengths, data)
            return _sha256_after(prefix, lengths, data) if prefix else _verify.sha256_many(lengths, data)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def statistics(self) -> Statistics:
        """The state of the caches, for the metrics."""
        tables, key_objects = self._native.statistics()
        return Statistics(CacheCounters(*tables), CacheCounters(*key_objects))


def _sha256_after(prefix: bytes, lengths: Block, data: Block) -> bytes:
    """The rare case, in plain Python: P-256 is the family of test tokens."""
    start, view, digests = hashlib.sha256(prefix), memoryview(data), bytearray()
    if len(lengths) % 4:
        raise ValueError("lengths are 32-bit integers")
    for (length,) in struct.iter_unpack("!I", lengths):
        if length > len(view):
            raise ValueError("a message is longer than what is left of the data")
        one = start.copy()
        one.update(view[:length])
        digests += one.digest()
        view = view[length:]
    if len(view):
        raise ValueError(f"{len(view)} bytes of data belong to no message")
    return bytes(digests)


def sm3(data: Block) -> bytes:
    """SM3 (GB/T 32905) of one message, 32 bytes."""
    return _verify.sm3(data)


def sm3_many(lengths: Block, data: Block) -> bytes:
    """SM3 of n messages, laid out as for ``Verifier.digest``: n×32 bytes come back."""
    try:
        return _verify.sm3_many(b"", lengths, data)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def sm2_z(key: PublicKey, user_id: bytes = SM2_DEFAULT_ID) -> bytes:
    """Z (GB/T 32918.2, 5.5): the hash of the signer's ID, the curve and the public key.

    It is computed anew for each batch and not cached: four blocks of SM3 take less time than a look-up.
    """
    if key.algorithm is not Algorithm.SM2_SM3:
        raise BadRequest(f"Z belongs to SM2, not to {key.algorithm.label}")
    if len(user_id) > MAX_USER_ID_LEN:
        raise BadRequest(f"a user ID has at most {MAX_USER_ID_LEN} bytes, got {len(user_id)}")
    entl = (8 * len(user_id)).to_bytes(2, "big")
    return _verify.sm3(entl + user_id + _CURVE_AND_GENERATOR + key.point)
