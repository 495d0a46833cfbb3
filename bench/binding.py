"""python-pkcs11 alone: the same loop as ``raw_loop.c`` through the binding, one signature per Python call.

Run as a process of its own by ``peers.binding``; prints one JSON object with the same fields. It imports the
library itself, which otherwise only ``appliance_pkcs11.token`` does: the library is what it measures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pkcs11


def measure(
    module: str, token_label: str, pin: str, key_id: bytes, mechanism: int, seconds: float
) -> dict[str, float]:
    token = pkcs11.lib(module).get_token(token_label=token_label)
    with token.open(user_pin=pin) as session:
        key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=key_id)
        how = pkcs11.Mechanism(mechanism)
        latencies_ns: list[int] = []
        started_at = before = time.perf_counter_ns()
        until = started_at + int(seconds * 1e9)
        while before < until:
            key.sign(len(latencies_ns).to_bytes(32, "big"), mechanism=how)
            after = time.perf_counter_ns()
            latencies_ns.append(after - before)
            before = after
    elapsed_s = (before - started_at) / 1e9
    latencies_ns.sort()
    count = len(latencies_ns)
    return {
        "rate": round(count / elapsed_s, 1),
        "signatures": count,
        "seconds": round(elapsed_s, 3),
        "p50_us": round(latencies_ns[count // 2] / 1000, 1),
        "p99_us": round(latencies_ns[count * 99 // 100] / 1000, 1),
        "threads": 1,
        "processes": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--pin-file", required=True, type=Path)
    parser.add_argument("--key-id", required=True, type=bytes.fromhex)
    parser.add_argument("--mechanism", required=True, type=lambda text: int(text, 0))
    parser.add_argument("--seconds", default=3.0, type=float)
    options = parser.parse_args()
    pin = options.pin_file.read_text().strip()
    result = measure(options.module, options.token, pin, options.key_id, options.mechanism, options.seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
