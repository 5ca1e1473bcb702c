"""Threads for async callers, so that no event loop waits for a device or a disk."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Lane = Literal["query", "bulk", "network"]
_THREADS: dict[Lane, int] = {"query": 4, "bulk": 2, "network": 32}


@functools.cache
def _pool(lane: Lane) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS[lane], thread_name_prefix=f"tars-rag-{lane}")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


async def in_thread(lane: Lane, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call without blocking the event loop.

    The threads are this package's own: a thousand concurrent calls queue here instead of taking
    every thread of the loop's default pool, and a query does not queue behind bulk work.

    Args:
        lane: ``"query"`` where a person waits for the answer, ``"bulk"`` otherwise; ``"network"``
            where another machine does the work, so that threads only wait.
        func: What to run; it sees the caller's context variables.
        *args: Passed on to `func`.
        **kwargs: Passed on to `func`.
    """
    call = functools.partial(contextvars.copy_context().run, func, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool(lane), call)


class Asynchronous(Generic[P, T]):
    """The asynchronous twin of a method, with the same arguments and result.

    It runs the method in a thread, of the lane that its object chooses (`_lane`) if it does; that
    of a subclass, where it has its own:
    ``asearch = Asynchronous(search).query`` in the body of a class.
    """

    def __init__(self, method: Callable[P, T]) -> None:
        self._method = method

    @property
    def query(self) -> Callable[P, Coroutine[Any, Any, T]]:
        """For calls whose answer a person waits for."""
        return self._twin("query")

    @property
    def bulk(self) -> Callable[P, Coroutine[Any, Any, T]]:
        """For work that may take long."""
        return self._twin("bulk")

    def _twin(self, lane: Lane) -> Callable[P, Coroutine[Any, Any, T]]:
        method, name = self._method, self._method.__name__

        async def twin(*args: P.args, **kwargs: P.kwargs) -> T:
            owner, *rest = args
            chosen = getattr(owner, "_lane", None)
            return await in_thread(
                chosen(lane) if chosen else lane, getattr(owner, name), *rest, **kwargs
            )

        functools.update_wrapper(twin, method)
        twin.__name__ = f"_a{name[1:]}" if name.startswith("_") else f"a{name}"
        twin.__qualname__ = method.__qualname__.removesuffix(name) + twin.__name__
        twin.__doc__ = f"As `{name}`, without blocking the event loop."
        return twin
