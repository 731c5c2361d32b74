"""Threads for work on the host: as many as this process has cores, however deep the calls that ask for them.

A cohort's payloads are encoded side by side, and each of them works on its positions side by side. There are
two pools for that in a process, one for the outer work and one for what that work divides in turn. Deeper
calls run on the thread that makes them, so that no thread waits for a pool it fills itself.

jax knows a default device for each thread. A pool's threads work on that of the thread that asks.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

BLOCK = 1 << 16  # positions of `elementwise`: half a dozen arrays of them stay in a core's cache
LEVELS = 2  # pools; 2 × count() threads at most


class Pool(Protocol):
    """What `pool` gives: `ThreadPoolExecutor.map`, or the builtin `map`."""

    def map(self, function: Callable, /, *iterables: Iterable) -> Iterator[Any]: ...


def count() -> int:
    """Cores this process may run on, which `taskset` and containers restrict."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def pool(threads: int | None = None) -> Generator[Pool]:
    """Threads to map a function over.

    Args:
        threads: how many, of the caller's own; None = the process's for this depth.
    """
    level = getattr(_here, "level", 0)
    if level == LEVELS:
        yield _Inline()
    elif threads:
        with _started(threads, level + 1) as own:
            yield own
    else:
        yield _shared(level)


def elementwise(function: Callable, *arrays: Any) -> Any:
    """`function` of long arrays, block by block on all cores: of what it makes on the way nothing is d long.

    Args:
        function: gives an array [n], or a pytree of them, from a slice [n] of each array; each value follows
            from the values at its own position.
        arrays: [d] each, at least one; those of jax are copied to the host.

    Returns:
        What `function(*arrays)` gives.
    """
    wide = [np.asarray(array) for array in arrays]  # of jax's, each slice would be compiled
    d = len(wide[0])
    if d <= BLOCK:
        return function(*wide)
    first = function(*(array[:BLOCK] for array in wide))
    whole = jax.tree.map(lambda part: np.empty(d, part.dtype), first)

    def fill(start: int) -> None:
        at = slice(start, start + BLOCK)
        parts = first if not start else function(*(array[at] for array in wide))
        jax.tree.map(lambda result, part: result.__setitem__(at, part), whole, parts)

    with pool() as workers:
        for _ in workers.map(fill, range(0, d, BLOCK)):
            pass
    return whole


class _Threads(ThreadPoolExecutor):
    def map(self, fn: Callable, *iterables: Iterable, **options: Any) -> Iterator[Any]:
        device = jax.config.jax_default_device  # ty: ignore[missing-attribute]
        if device is None:
            return super().map(fn, *iterables, **options)

        def there(*arguments):
            with jax.default_device(device):
                return fn(*arguments)

        return super().map(there, *iterables, **options)


class _Inline:
    def map(self, function: Callable, /, *iterables: Iterable) -> Iterator[Any]:
        return map(function, *iterables)


_here = threading.local()  # level: how many pools this thread is inside of
_pools: dict[int, _Threads] = {}
_lock = threading.Lock()


def _shared(level: int) -> _Threads:
    with _lock:
        if level not in _pools:
            _pools[level] = _started(count(), level + 1)
        return _pools[level]


def _started(threads: int, level: int) -> _Threads:
    return _Threads(threads, "host", lambda: setattr(_here, "level", level))


def _forget() -> None:
    """A forked child has the pools but not their threads."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()
    _here.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
