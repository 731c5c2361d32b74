"""Membership of every position 0 .. d-1 in a fuse filter, jitted on 32-bit integers (CPU, GPU or TPU).

The 64-bit hash is carried as two u32 words, so results do not depend on jax_enable_x64. Tables are padded to few sizes
and positions taken in fixed chunks, so one compilation serves every key count and every d.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs.fuse_filter import Filter, contains

CHUNK = 1 << 20  # positions a call
SMALL = 1 << 16  # below this many positions NumPy is faster than compiling


def query_all(filter: Filter, d: int, threads: int | None = None) -> np.ndarray:
    """Positions 0 .. d-1 that the filter contains, true and false positives.

    Args:
        filter: fingerprints u8, u16 or u32.
        d: number of positions.
        threads: Python threads over chunks; default the number of cores.

    Returns:
        u32[hits], sorted.
    """
    if d <= SMALL:
        return np.flatnonzero(contains(filter, np.arange(d, dtype=np.uint32))).astype(np.uint32)
    shape = filter.geometry
    table = jnp.asarray(pad_table(filter.fingerprints))
    seed = np.array([filter.seed & 0xFFFFFFFF, filter.seed >> 32], np.uint32)

    def hits(start: int) -> np.ndarray:
        found = _contains_chunk(
            table,
            seed,
            np.uint32(start),
            np.uint32(shape.segment_length),
            np.uint32(shape.start_length),
            shape.arity,
        )
        found = np.flatnonzero(np.asarray(found)[: d - start])
        return found.astype(np.uint32) + np.uint32(start)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(hits, range(0, d, CHUNK))))


def pad_table(fingerprints: np.ndarray) -> np.ndarray:
    """Pads axis 0 with zeros to one of eight sizes per power of two, so that few shapes are ever compiled."""
    length = len(fingerprints)
    step = 1 << max(length.bit_length() - 4, 0)
    padding = [(0, -length % step)] + [(0, 0)] * (fingerprints.ndim - 1)
    return np.pad(fingerprints, padding)


def hash_chunk(seed: jax.Array, start: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """murmur64(start + 0 .. count-1 + seed) as (low, high) u32[count]."""
    low = jax.lax.iota(jnp.uint32, count) + start
    total = low + seed[0]
    high = seed[1] + (total < low).astype(jnp.uint32)
    low = total ^ high >> 1
    low, high = _multiply(low, high, 0xFF51AFD7ED558CCD)
    low = low ^ high >> 1
    low, high = _multiply(low, high, 0xC4CEB9FE1A85EC53)
    return low ^ high >> 1, high


def slots(
    low: jax.Array, high: jax.Array, segment_length: jax.Array, start_length: jax.Array, arity: int
):
    """The `arity` slots of each hash, i32 each; see `fuse_filter.slots`."""
    mask = segment_length - 1
    # mulhi(h, L): the carry out of (high * L)'s low word plus (low * L)'s high word.
    product_low = high * start_length
    carry = (product_low + _mulhi32(low, start_length)) < product_low
    first = _mulhi32(high, start_length) + carry.astype(jnp.uint32)
    step = 18 if arity == 3 else 16
    result = [first]
    for j in range(1, arity):
        shift = step * (arity - 1 - j)
        if shift == 0:
            window = low
        elif shift < 32:
            window = low >> shift | high << (32 - shift)
        else:
            window = high >> (shift - 32)
        result.append((first + jnp.uint32(j) * segment_length) ^ (window & mask))
    return [slot.astype(jnp.int32) for slot in result]


@functools.partial(jax.jit, static_argnames="arity")
def _contains_chunk(table, seed, start, segment_length, start_length, arity):
    low, high = hash_chunk(seed, start, CHUNK)
    result = (low ^ high).astype(table.dtype)
    for slot in slots(low, high, segment_length, start_length, arity):
        result ^= table.at[slot].get(mode="promise_in_bounds")
    return result == 0


def _mulhi32(a: jax.Array, b: jax.Array) -> jax.Array:
    """High word of the 64-bit product of two u32."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((middle & 0xFFFF) + a0 * b1 >> 16)


def _multiply(low: jax.Array, high: jax.Array, constant: int) -> tuple[jax.Array, jax.Array]:
    """(high, low) * constant mod 2**64."""
    c_low, c_high = jnp.uint32(constant & 0xFFFFFFFF), jnp.uint32(constant >> 32)
    return low * c_low, _mulhi32(low, c_low) + low * c_high + high * c_low
