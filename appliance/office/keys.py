"""Keys of seals: made, found, used by officers, and destroyed, in whichever token has them.

For: choosing the token, and keeping registry, memory and token in step.
Not for: sealing, which goes by the batch and not through here.

Rules:

* A key is destroyed in its token before the registry says so. What asks twice finds it gone, and that is what it
  wanted.

Crash story: a key half made is ``holdings``'; a key destroyed and not recorded is still ``usable`` on record, and no
worker finds it: whoever destroys it again sets that right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from appliance.algorithms import Algorithm
from appliance.errors import BadRequest, NotFound, Unavailable
from appliance.holdings import Holdings
from appliance.policy import HeldKey
from appliance.registry import KeyPurpose
from appliance.signers import SignerPool

PREFERRED = (Algorithm.SM2_SM3, Algorithm.ECDSA_P256_SHA256)
"""What the law asks for first; the other where no token makes it."""


class SealKeys:
    """Owned by the event loop."""

    def __init__(
        self,
        holdings: Holdings,
        pools: Mapping[str, SignerPool],
        sign_message: Callable[[HeldKey, bytes], Awaitable[bytes]],
    ) -> None:
        self._holdings = holdings
        self._pools = pools
        self.sign = sign_message
        """r ‖ s over a message, verified (``Pipeline.sign_message``)."""

    async def find(self, name: str) -> HeldKey:
        """The one of that name, else ``NotFound``."""
        return await self._holdings.find_seal_key(name)

    async def create(self, name: str, algorithm: Algorithm, token: str | None) -> HeldKey:
        """A new one in that token, or in the first that makes such keys."""
        pool = self._pool_for(algorithm, token)
        pool.check_available()  # before a row is written that only the token could settle
        return await self._holdings.create_key(name, pool.name, algorithm, pool, KeyPurpose.SEAL)

    async def destroy(self, name: str) -> None:
        """Both halves, for ever; the record of it stays."""
        try:
            key = await self.find(name)
        except NotFound:
            return  # on record as destroyed
        pool = self._pools.get(key.token)
        if pool is None:
            raise Unavailable(
                f"the token {key.token!r} of key {name!r} is not configured", hint="add it under tokens:"
            )
        await self._holdings.destroy_key(name, pool)

    def default_algorithm(self) -> Algorithm:
        """SM2 where a token makes such keys."""
        for algorithm in PREFERRED:
            if any(algorithm.label in pool.profile.algorithms for pool in self._pools.values()):
                return algorithm
        return PREFERRED[0]

    def _pool_for(self, algorithm: Algorithm, token: str | None) -> SignerPool:
        known = ", ".join(self._pools) or "none"
        if token is not None and token not in self._pools:
            raise NotFound(f"no token {token!r}", hint=f"configured: {known}")
        candidates = [self._pools[token]] if token is not None else list(self._pools.values())
        for pool in candidates:
            if algorithm.label in pool.profile.algorithms:
                return pool
        raise BadRequest(f"no configured token makes {algorithm.label} keys", hint=f"configured: {known}")
