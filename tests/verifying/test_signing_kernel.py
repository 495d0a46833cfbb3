"""The signing kernel, compiled here as the simulated HSM compiles it: plain C, no Python, no libcrypto."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from appliance.verifying import VALID, Verifier

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "appliance" / "native"
SOURCES = [NATIVE / name for name in ("sm2_sign.c", "sm2_sign_lanes.c", "sm2_tables.c")]
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-pthread"]

N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
# Scalars at the edges of the comb: the smallest and largest, and those whose last addition is a doubling.
EDGES = [
    1,
    2,
    3,
    6,
    31,
    32,
    33,
    63,
    64,
    65,
    N - 1,
    N - 2,
    N - 3,
    N - 6,
    2**256 - N,
    2 * N - 2**256,
    2**255,
    2**252,
]
EDGES += [(1 << 252) * d * 2 - N for d in range(1, 16, 2) if 0 < (1 << 252) * d * 2 - N < N]

cc = shutil.which("cc") or pytest.skip("needs a C compiler", allow_module_level=True)


def compile_with(*arguments: str | Path) -> None:
    subprocess.run([cc, *FLAGS, *map(str, arguments)], check=True)


class Kernel:
    """The functions of ``sm2_sign.h`` over Python's integers."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))

    def init(self, d: int) -> ctypes.Array[ctypes.c_uint64] | None:
        key = (ctypes.c_uint64 * 8)()
        return key if self._c.sm2_signing_key_init(key, d.to_bytes(32, "big")) == 0 else None

    def wipe(self, key: ctypes.Array[ctypes.c_uint64]) -> None:
        self._c.sm2_signing_key_wipe(key)

    def public(self, d: int) -> bytes | None:
        point = ctypes.create_string_buffer(64)
        return point.raw if self._c.sm2_public_from_private(d.to_bytes(32, "big"), point) == 0 else None

    def sign(self, key: Any, e: int, k: int) -> bytes | None:
        signature = ctypes.create_string_buffer(b"\xaa" * 64, 64)
        if self._c.sm2_sign_with_nonce(key, e.to_bytes(32, "big"), k.to_bytes(32, "big"), signature) == 1:
            return signature.raw
        assert signature.raw == bytes(64)
        return None

    def sign8(self, key: Any, es: list[int], ks: list[int]) -> list[bytes | None]:
        if not self._c.sm2_sign8_available():
            pytest.skip("this processor has no AVX-512 IFMA")
        signatures, ok = ctypes.create_string_buffer(b"\xaa" * 512, 512), ctypes.create_string_buffer(8)
        blocks = [b"".join(v.to_bytes(32, "big") for v in values) for values in (es, ks)]
        self._c.sm2_sign8(key, *blocks, signatures, ok)
        raw = [signatures.raw[i : i + 64] for i in range(0, 512, 64)]
        for i in range(8):
            assert ok.raw[i] in (0, 1)
            assert ok.raw[i] or raw[i] == bytes(64)
        return [raw[i] if ok.raw[i] else None for i in range(8)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    library = tmp_path_factory.mktemp("kernel") / "kernel.so"
    compile_with("-shared", "-fPIC", "-o", library, *SOURCES)
    return Kernel(library)


def test_the_standard_example(kernel: Kernel) -> None:
    """GB/T 32918.5-2017, annex A."""
    d = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
    e = 0xF0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640
    k = 0x59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21
    signature = kernel.sign(kernel.init(d), e, k)
    assert signature is not None
    assert signature.hex() == (
        "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"
        "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa"
    )


def test_keys_at_the_edges(kernel: Kernel, sm2: Any) -> None:
    for d in (0, N - 1, N, N + 1, 2**256 - 1):
        assert kernel.init(d) is None
    for d in (0, N, 2**256 - 1):
        assert kernel.public(d) is None
    for d in EDGES:
        assert kernel.public(d) == sm2.public(d).point, hex(d)
    key = kernel.init(5)
    assert key is not None and any(key)
    kernel.wipe(key)
    assert not any(key)


def expected(sm2: Any, d: int, e: int, k: int) -> bytes | None:
    if not 0 < k < N:
        return None
    r, s = sm2.sign(d, e, k)
    return None if not r or not s or r + k == N else sm2.b32(r) + sm2.b32(s)


def nonces(sm2: Any, d: int) -> list[tuple[int, int]]:
    """(e, k): nonces at the edges and beyond, digests that make r, s or r + k vanish, and random ones."""
    rng = random.Random(d)
    cases = [(rng.getrandbits(256), k) for k in [0, N, N + 1, 2**256 - 1, *EDGES]]
    for k in (1, 2, rng.randrange(N), rng.randrange(N)):
        x = sm2.multiply(k)[0]
        cases += [(-x % N, k), ((N - k - x) % N, k), ((k * pow(d, -1, N) - x) % N, k)]
        cases += [(e, k) for e in (0, 1, N - 1, N, N + 1, sm2.p, 2**256 - 1)]
    return cases + [(rng.getrandbits(256), rng.randrange(1, N)) for _ in range(50)]


@pytest.mark.parametrize("d", [1, N - 2, N // 3])
def test_signatures_are_the_standards(kernel: Kernel, sm2: Any, d: int) -> None:
    key = kernel.init(d)
    for e, k in nonces(sm2, d):
        assert kernel.sign(key, e, k) == expected(sm2, d, e, k), (hex(e), hex(k))


@pytest.mark.parametrize("d", [1, N // 3])
def test_eight_at_a_time_are_the_same(kernel: Kernel, sm2: Any, d: int) -> None:
    key, cases = kernel.init(d), nonces(sm2, d)
    for start in range(0, len(cases), 8):
        eight = (cases[start : start + 8] + cases)[:8]
        signatures = kernel.sign8(key, [e for e, _ in eight], [k for _, k in eight])
        assert signatures == [expected(sm2, d, e, k) for e, k in eight]


def test_signatures_verify(kernel: Kernel, sm2: Any) -> None:
    rng = random.Random(7)
    d = rng.randrange(1, N - 1)
    key, digests, signatures = kernel.init(d), bytearray(), bytearray()
    for _ in range(200):
        e = rng.getrandbits(256)
        digests += e.to_bytes(32, "big")
        signatures += kernel.sign(key, e, rng.randrange(1, N)) or b""
    assert Verifier(engine="openssl").verify(sm2.public(d), digests, signatures) == bytes([VALID] * 200)


@pytest.mark.parametrize("leak", [False, True], ids=["kernel", "with a deliberate leak"])
def test_no_branch_or_address_depends_on_a_secret(tmp_path: Path, leak: bool) -> None:
    """With d and k undefined, valgrind reports each branch on them and each address made of them."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        pytest.skip("needs valgrind")
    program = tmp_path / "secrets"
    compile_with(
        "-o", program, *(["-DLEAK"] if leak else []), Path(__file__).with_name("signing_secrets.c"), *SOURCES
    )
    command = [valgrind, "--quiet", "--error-exitcode=9", "--track-origins=no", str(program)]
    assert subprocess.run(command, capture_output=True).returncode == (9 if leak else 0)
