"""A signer that is none: enough of the client for a batch job, with signatures that tell what they are of."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from appliance import wire
from appliance.algorithms import Algorithm, PublicKey

# The base point of P-256 (SEC 2, 2.4.2): a public key whose private half is 1.
KEY = PublicKey(
    Algorithm.ECDSA_P256_SHA256,
    bytes.fromhex(
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    ),
)


def stand_in_signature(job_id: bytes, index: int, digest: bytes) -> bytes:
    """What an appliance with a journal answers however often it is asked: a function of the item's name."""
    return hashlib.sha512(job_id + index.to_bytes(8, "big") + digest).digest()


class StandIn:
    """Answers in order; indices in ``refused`` fail; after ``stop_after`` batches it raises ``error``."""

    def __init__(
        self,
        *,
        refused: frozenset[int] = frozenset(),
        stop_after: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        self.refused = refused
        self.stop_after = stop_after
        self.error = error
        self.asked: list[tuple[bytes, int, int]] = []

    async def sign_batches(
        self,
        key: str,
        batches: AsyncIterable[wire.Items],
        *,
        job_id: bytes | None = None,
        first_index: int = 0,
        depth: int = 16,
        deadline_s: float | None = None,
    ) -> AsyncIterator[wire.SignedAnswer]:
        assert job_id is not None
        index = first_index
        async for items in batches:
            if self.error is not None and len(self.asked) == self.stop_after:
                raise self.error
            self.asked.append((job_id, index, items.count))
            data = bytes(items.data)
            statuses, signatures = bytearray(), bytearray()
            for at in range(items.count):
                failed = index + at in self.refused
                statuses.append(wire.ItemStatus.REFUSED if failed else wire.ItemStatus.SIGNED)
                signatures += (
                    bytes(64)
                    if failed
                    else stand_in_signature(job_id, index + at, data[at * 32 : at * 32 + 32])
                )
            failed_count = statuses.count(wire.ItemStatus.REFUSED)
            yield wire.SignedAnswer(job_id, index, items.count, failed_count, statuses, signatures)
            index += items.count
