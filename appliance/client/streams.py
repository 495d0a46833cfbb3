"""Streams of a client's: what comes in, and calls for it whose answers leave in its order.

For: signing and sealing streams alike, which keep no more than so many requests out.
Not for: what is asked (``asynchronous``, ``seals``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def iterate(source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Either kind of source, as a generator; one that is a generator already is closed with it."""
    if isinstance(source, AsyncGenerator):
        async with aclosing(source):
            async for one in source:
                yield one
    elif isinstance(source, AsyncIterable):
        async for one in source:
            yield one
    else:
        for one in source:
            yield one


async def in_order(
    source: AsyncGenerator[T, None], call: Callable[[T], Coroutine[Any, Any, R]], depth: int
) -> AsyncGenerator[R, None]:
    """The results of ``call`` for all of a source, in its order, no more than ``depth`` at a time."""
    loop = asyncio.get_running_loop()
    out: deque[asyncio.Task[R]] = deque()
    coming: asyncio.Task[T | None] | None = loop.create_task(_next(source))
    try:
        while out or coming is not None:
            # Whichever is first: a source that waits for its receipts gets them, whatever the depth.
            heads: list[asyncio.Task[Any]] = [out[0]] if out else []
            if coming is not None and len(out) < depth:
                heads.append(coming)
            await asyncio.wait(heads, return_when=asyncio.FIRST_COMPLETED)
            if out and out[0].done():
                yield await out.popleft()
            if coming is not None and coming.done() and len(out) < depth:
                one = await coming
                coming = None
                if one is not None:
                    out.append(loop.create_task(call(one)))
                    coming = loop.create_task(_next(source))
    finally:
        left: list[asyncio.Task[Any]] = [*out, coming] if coming is not None else list(out)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await source.aclose()


async def _next(source: AsyncGenerator[T, None]) -> T | None:
    return await anext(source, None)
