"""Membership of all positions 0 .. d-1 in fingerprint filters: one filter, or a cohort at once.

Hashing is jitted on 32-bit integers (CPU, GPU, TPU; the 64-bit hash is carried as two words) and
bit-equal with the C library; a cohort on the CPU is hashed in 64-bit words, same bits. Tables are
padded to few sizes and positions taken in fixed chunks, so that one compilation serves every key
count and every d.

Clients whose filters share seed and shape share hashes and slots. Their fingerprints are laid out
[slot][bit][client], so that a slot of up to 32 clients is one short row, and one XOR and a few ORs
decide for all of them.
"""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs.fingerprints import Filter, contains, mix64, slots64

CHUNK = 1 << 20  # positions a call, one filter
SMALL = 1 << 16  # below this many positions NumPy is faster than compiling
COHORT = 32  # clients decoded together
_COHORT_CHUNK = 1 << 18  # positions a call, cohort
_ROWS = 1 << 14  # rows gathered at a time: they should stay in a core's cache


def query_all(filter: Filter, d: int) -> np.ndarray:
    """Positions among 0 .. d-1 that the filter contains, true and false: u32[hits], sorted."""
    if d <= SMALL:
        return np.flatnonzero(contains(filter, np.arange(d, dtype=np.uint32))).astype(np.uint32)
    table = jnp.asarray(pad_table(filter.fingerprints))
    hashing = _hashing(filter)

    def hits(start: int) -> np.ndarray:
        found = _contains_chunk(table, np.uint32(start), *hashing, kind=filter.geometry.kind)
        found = np.flatnonzero(np.asarray(found)[: d - start])
        return found.astype(np.uint32) + np.uint32(start)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(hits, range(0, d, CHUNK))))


def count_all(filters: Sequence[Filter], counts: np.ndarray) -> None:
    """Adds to counts u16[d] the number of filters that contain each position.

    Filters of equal seed, shape and width are decoded together, others one by one. Memory: 4 * bits
    bytes per slot of a filter.
    """
    alike: dict[tuple, list[Filter]] = {}
    for filter in filters:
        key = (filter.geometry, filter.seed, filter.fingerprints.itemsize)
        alike.setdefault(key, []).append(filter)
    for group in alike.values():
        for first in range(0, len(group), COHORT):
            cohort = group[first : first + COHORT]
            if len(cohort) > 2:
                _count_cohort(cohort, counts)
            else:
                for filter in cohort:
                    counts[query_all(filter, len(counts))] += 1


def _count_cohort(cohort: list[Filter], counts: np.ndarray) -> None:
    """Adds the hits of up to 32 filters of equal seed, shape and width to counts u16[d]."""
    planes = bit_planes([filter.fingerprints for filter in cohort])
    present = np.uint32((1 << len(cohort)) - 1)
    on_cpu, d = jax.default_backend() == "cpu", len(counts)
    table = None if on_cpu else jnp.asarray(pad_table(planes))

    def add(start: int) -> None:
        if on_cpu:
            # XLA's gather on the CPU moves word by word; NumPy's moves a row at a time.
            prints, where = _slots_on_cpu(cohort[0], start)
            size = min(_COHORT_CHUNK, d - start)
            hits = _count_rows(planes, prints[:size], [slot[:size] for slot in where], present)
        else:
            hashing, kind = _hashing(cohort[0]), cohort[0].geometry.kind
            hits = _count_chunk(table, present, np.uint32(start), *hashing, kind=kind)
            hits = np.asarray(hits)[: d - start]
        counts[start : start + len(hits)] += hits

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(add, range(0, d, _COHORT_CHUNK)))


def _slots_on_cpu(filter: Filter, start: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Fingerprints u8[chunk, bits/8] and slots i64[chunk] each, hashed in the CPU's 64-bit words."""
    shape, octets = filter.geometry, filter.fingerprints.itemsize
    lengths = np.uint64(shape.segment_length), np.uint64(shape.start_length)
    with jax.enable_x64(True):
        prints, *where = _slots_chunk(
            np.uint64(start), np.uint64(filter.seed), *lengths, kind=shape.kind, bits=8 * octets
        )
        where = [np.asarray(slot) for slot in where]
        prints = np.asarray(prints).astype(f"<u{octets}", copy=False)
    return prints.view(np.uint8).reshape(-1, octets), where


def bit_planes(tables: list[np.ndarray]) -> np.ndarray:
    """Fingerprints of up to 32 clients, each [slots], as u32[slots, bits]: word b holds bit b of
    all clients."""
    bits = 8 * tables[0].itemsize
    planes = np.zeros((len(tables[0]), bits), np.uint32)
    for client, table in enumerate(tables):
        octets = table.astype(f"<u{bits // 8}", copy=False).view(np.uint8)
        unpacked = np.unpackbits(octets, bitorder="little").reshape(-1, bits)
        planes |= unpacked.astype(np.uint32) << np.uint32(client)
    return planes


# All-ones words where a byte has its bits set: u32[256, 8], a fingerprint byte as a row of bit
# planes.
_BYTE_PLANES = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.uint32) * np.uint32(0xFFFFFFFF)


def _count_rows(planes, prints, where, present) -> np.ndarray:
    """Hits per position u8[m]. prints: u8[m, bits/8]; where: slots i64[m] each."""
    m, bits = len(prints), planes.shape[1]
    hits, table = np.empty(m, np.uint8), _rows(planes)
    # Scratch is made once: fresh pages cost more than the arithmetic.
    expected, gathered = np.empty(_ROWS * bits // 8, "V32"), np.empty(_ROWS, f"V{4 * bits}")
    either = np.empty(_ROWS, np.uint64)
    for first in range(0, m, _ROWS):
        part = slice(first, min(first + _ROWS, m))
        size = part.stop - first
        octets, row, differs = expected[: size * bits // 8], gathered[:size], either[:size]
        np.take(_rows(_BYTE_PLANES), prints[part].ravel(), out=octets, mode="clip")
        words, others = octets.view(np.uint64), row.view(np.uint64)
        for slot in where:
            np.take(table, slot[part], out=row, mode="clip")
            np.bitwise_xor(words, others, out=words)
        words = words.reshape(size, bits // 2)  # two planes a word
        np.bitwise_or(words[:, 0], words[:, 1], out=differs)
        for column in range(2, bits // 2):
            np.bitwise_or(differs, words[:, column], out=differs)
        halves = differs.view(np.uint32).reshape(size, 2)
        np.bitwise_count(~(halves[:, 0] | halves[:, 1]) & present, out=hits[part])
    return hits


def _rows(array: np.ndarray) -> np.ndarray:
    """The rows of a two-dimensional array as opaque items, which NumPy gathers one move each."""
    return array.view(f"V{array.shape[1] * array.itemsize}").ravel()


def _hashing(filter: Filter) -> tuple[np.ndarray, np.uint32, np.uint32]:
    """Arguments of the jitted functions: seed as two words, segment length, start length."""
    seed = np.array([filter.seed & 0xFFFFFFFF, filter.seed >> 32], np.uint32)
    shape = filter.geometry
    return seed, np.uint32(shape.segment_length), np.uint32(shape.start_length)


def pad_table(table: np.ndarray) -> np.ndarray:
    """Pads axis 0 with zeros to one of eight lengths per power of two, so that few shapes are
    compiled."""
    step = 1 << max(len(table).bit_length() - 4, 0)
    return np.pad(table, [(0, -len(table) % step)] + [(0, 0)] * (table.ndim - 1))


@functools.partial(jax.jit, static_argnames="kind")
def _contains_chunk(table, start, seed, segment_length, start_length, *, kind):
    low, high = hash_positions(start, seed, CHUNK)
    result = (low ^ high).astype(table.dtype)
    for slot in _slots(low, high, segment_length, start_length, kind):
        result ^= table.at[slot].get(mode="promise_in_bounds")
    return result == 0


@functools.partial(jax.jit, static_argnames=("kind", "bits"))
def _slots_chunk(start, seed, segment_length, start_length, *, kind, bits):
    h = mix64(jax.lax.iota(jnp.uint64, _COHORT_CHUNK) + start + seed)
    where = slots64(h, kind, segment_length, start_length)
    prints = (h ^ h >> np.uint64(32)).astype(f"uint{bits}")
    return prints, *(slot.astype(jnp.int64) for slot in where)


@functools.partial(jax.jit, static_argnames="kind")
def _count_chunk(table, present, start, seed, segment_length, start_length, *, kind):
    low, high = hash_positions(start, seed, _COHORT_CHUNK)
    bits = jnp.arange(table.shape[1], dtype=jnp.uint32)
    words = jnp.uint32(0) - ((low ^ high)[:, None] >> bits & 1)
    for slot in _slots(low, high, segment_length, start_length, kind):
        words ^= table.at[slot].get(mode="promise_in_bounds")
    differs = jax.lax.reduce(words, jnp.uint32(0), jax.lax.bitwise_or, (1,))
    return jax.lax.population_count(~differs & present).astype(jnp.uint8)


def hash_positions(start: jax.Array, seed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`fingerprints.murmur64` of start + 0 .. count-1 as (low, high) words, u32[count] each."""
    position = jax.lax.iota(jnp.uint32, count) + start
    low = position + seed[0]
    high = seed[1] + (low < position).astype(jnp.uint32)
    low, high = _multiply(low ^ high >> 1, high, 0xFF51AFD7ED558CCD)
    low, high = _multiply(low ^ high >> 1, high, 0xC4CEB9FE1A85EC53)
    return low ^ high >> 1, high


def _slots(low, high, segment_length, start_length, kind: str) -> list[jax.Array]:
    """`fingerprints.slots` on 32-bit words: i32[count] each."""
    if kind == "xor3":
        rotated = (low, low << 21 | high >> 11, low >> 22 | high << 10)
        result = [
            multiply_high(r, segment_length) + jnp.uint32(j) * segment_length for j, r in enumerate(rotated)
        ]
    else:
        # (hash * start_length) >> 64: the high word's product and the carry out of its low word.
        product = high * start_length
        carry = product + multiply_high(low, start_length) < product
        result = [multiply_high(high, start_length) + carry.astype(jnp.uint32)]
        if kind == "fuse3":
            windows = (low >> 18 | high << 14, low)
        else:
            windows = (high, low >> 16 | high << 16, low)
        for j, window in enumerate(windows, start=1):
            offset = window & (segment_length - 1)
            result.append((result[0] + jnp.uint32(j) * segment_length) ^ offset)
    return [slot.astype(jnp.int32) for slot in result]


def multiply_high(a: jax.Array, b: jax.Array) -> jax.Array:
    """High word of the 64-bit product of two u32."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((middle & 0xFFFF) + a0 * b1 >> 16)


def _multiply(low: jax.Array, high: jax.Array, constant: int) -> tuple[jax.Array, jax.Array]:
    """(high, low) * constant mod 2**64."""
    c_low, c_high = jnp.uint32(constant & 0xFFFFFFFF), jnp.uint32(constant >> 32)
    return low * c_low, multiply_high(low, c_low) + low * c_high + high * c_low
