"""Membership of all positions 0 … d−1 in fingerprint filters: one filter, or a cohort at once.

Hashing is jitted on 32-bit integers (CPU, GPU, TPU; the 64-bit hash is carried as two words) and
bit-equal with the C library; a cohort on the CPU is hashed in 64-bit words, same bits. Tables are
padded to powers of two and positions taken in fixed chunks, so that few compilations serve every
key count and every d.

Clients whose filters share seed and shape share hashes and slots. Their fingerprints are laid out
[slot][client], so that a slot of 32 clients at 8 bits is one row of 32 bytes, which vector
instructions take at once. What takes the time on a CPU is then not arithmetic but fetching rows that
no cache holds: there the positions of a chunk are first sorted by the region of the table that their
rows lie in.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs.filter_builder import FIRST_SEED
from deltamask_jax.codecs.fingerprints import Filter, contains, mix64, slots64

CHUNK = 1 << 20  # positions a call, one filter
SMALL = 1 << 16  # below this many positions NumPy is faster than compiling
COHORT = 32  # clients decoded together, at most; with more lanes XLA no longer fuses their sum
_COHORT_CHUNK = 1 << 18  # positions a call, cohort
_SORTED_CHUNK = 1 << 21  # the same on a CPU; the longer, the more positions share what a region fetches
KEPT = 1 << 28  # positions whose order is kept from round to round; 4 bytes each
_REGIONS = 97  # of a table; with a power of two, the sort's buckets would contend for the same cache lines


def query_all(filter: Filter, d: int) -> np.ndarray:
    """Positions among 0 … d−1 that the filter contains, true and false: u32[hits], sorted."""
    if d <= SMALL:
        return np.flatnonzero(contains(filter, np.arange(d, dtype=np.uint32))).astype(np.uint32)
    table = jnp.asarray(pad_table(filter.fingerprints))
    hashing = _hashing(filter)

    def hits(start: int) -> np.ndarray:
        found = _contains_chunk(table, np.uint32(start), *hashing, kind=filter.geometry.kind)
        found = np.flatnonzero(np.asarray(found)[: d - start])
        return found.astype(np.uint32) + np.uint32(start)

    with threads.pool() as pool:
        return np.concatenate(list(pool.map(hits, range(0, d, CHUNK))))


def count_all(filters: Sequence[Filter], counts: np.ndarray) -> list[int]:
    """Adds to counts u16[d] the number of filters that contain each position.

    Returns:
        How many positions each filter contains, true and false.

    Filters of equal seed, shape and width are decoded together where there are many positions, others one
    by one. Memory: 4 * bits bytes per slot of a filter, and on a CPU 64 MB of scratch per core; up to `KEPT`
    positions also 4 bytes each that are kept for later cohorts.
    """
    alike: dict[tuple, list[int]] = {}
    for k, filter in enumerate(filters):
        key = (filter.geometry, filter.seed, filter.fingerprints.itemsize)
        alike.setdefault(key, []).append(k)
    sizes, d = [0] * len(filters), len(counts)
    for group in alike.values():
        for first in range(0, len(group), COHORT):
            places = group[first : first + COHORT]
            if len(places) > 2 and d > SMALL:
                for k, hits in zip(places, _count_cohort([filters[k] for k in places], counts), strict=True):
                    sizes[k] = hits
            else:
                for k in places:
                    found = query_all(filters[k], d)
                    counts[found] += 1
                    sizes[k] = len(found)
    return sizes


def _count_cohort(cohort: list[Filter], counts: np.ndarray) -> list[int]:
    """Adds the hits of up to 32 filters of equal seed, shape and width to counts u16[d]; those of each."""
    on_cpu, d = jax.default_backend() == "cpu", len(counts)
    table = jnp.asarray(pad_table(client_rows([filter.fingerprints for filter in cohort])))
    present = jnp.arange(table.shape[1]) < len(cohort)
    share = -(-d // threads.count())  # of a core
    chunk = min(_SORTED_CHUNK, 1 << (share - 1).bit_length()) if on_cpu else _COHORT_CHUNK
    usual = cohort[0].seed == FIRST_SEED  # others have none kept: a sender chooses its seed
    orders = _orders(d, chunk) if on_cpu and usual and d <= KEPT else {}

    def add(start: int) -> np.ndarray:
        size = min(chunk, d - start)
        if on_cpu:
            order = orders[start] if orders else _order(cohort[0].seed, start, chunk)
            hits, each = _count_sorted(cohort[0], table, present, start, size, order)
        else:
            hits, each = _count_in_order(cohort[0], table, present, start, size, chunk)
        counts[start : start + size] += hits[:size]
        return each.astype(np.int64)

    with threads.pool() as pool:
        return np.sum(list(pool.map(add, range(0, d, chunk))), axis=0)[: len(cohort)].tolist()


def client_rows(tables: list[np.ndarray]) -> np.ndarray:
    """Fingerprints of up to 32 clients, each u8, u16 or u32 [slots], side by side: [slots, lanes], one lane
    per client.

    There are 8, 16 or 32 lanes, so that few shapes are compiled; those without a client are 0.
    """
    rows = np.zeros((len(tables[0]), max(8, 1 << (len(tables) - 1).bit_length())), tables[0].dtype)
    for client, table in enumerate(tables):
        rows[:, client] = table
    return rows


def _count_sorted(
    filter: Filter, table: jax.Array, present: jax.Array, start: int, size: int, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hits of positions start + 0 … chunk−1, u8[chunk], taken in the order u32[chunk] and hashed in the
    CPU's 64-bit words, none from start + size on; and of each lane, u32[32]. Table and present as of
    `_count_matches`."""
    shape, hashing = filter.geometry, (np.uint64(start), np.uint64(filter.seed))
    lengths = np.uint64(shape.segment_length), np.uint64(shape.start_length)
    with jax.enable_x64(True):
        found, each = _count_at(table, present, order, np.uint32(size), *hashing, *lengths, kind=shape.kind)
    hits = np.empty(len(order), np.uint8)
    hits[order.astype(np.intp)] = found
    return hits, np.asarray(each)


@functools.lru_cache(maxsize=1)
def _orders(d: int, chunk: int) -> dict[int, np.ndarray]:
    """{start of a chunk: its order under the seed that senders begin with, u32[chunk]}."""
    with threads.pool() as pool:
        starts = range(0, d, chunk)
        made = pool.map(lambda start: _order(FIRST_SEED, start, chunk), starts)
        return dict(zip(starts, made, strict=True))


def _order(seed: int, start: int, chunk: int) -> np.ndarray:
    """0 .. chunk-1 by the region of the table where the rows of start + 0 .. chunk-1 lie, u32[chunk]."""
    with jax.enable_x64(True):
        regions = np.asarray(_regions(np.uint64(start), np.uint64(seed), chunk=chunk))
    return np.argsort(regions, kind="stable").astype(np.uint32)


def _count_in_order(
    filter: Filter, table: jax.Array, present: jax.Array, start: int, size: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same on an accelerator, in 32-bit words and the positions' own order: u8[chunk], u32[32]."""
    hashing, kind = (np.uint32(start), *_hashing(filter)), filter.geometry.kind
    hits, each = _count_chunk(table, present, np.uint32(size), *hashing, chunk=chunk, kind=kind)
    return np.asarray(hits), np.asarray(each)


def _hashing(filter: Filter) -> tuple[np.ndarray, np.uint32, np.uint32]:
    """Arguments of the jitted functions: seed as two words u32[2], segment length, start length."""
    seed = np.array([filter.seed & 0xFFFFFFFF, filter.seed >> 32], np.uint32)
    shape = filter.geometry
    return seed, np.uint32(shape.segment_length), np.uint32(shape.start_length)


def pad_table(table: np.ndarray) -> np.ndarray:
    """Pads axis 0 with zeros to a power of two, 2**16 or more, [slots, ...] -> [padded, ...]: little is
    compiled, whatever is announced."""
    length = 1 << max(len(table) - 1, SMALL - 1).bit_length()
    return np.pad(table, [(0, length - len(table))] + [(0, 0)] * (table.ndim - 1))


@functools.partial(jax.jit, static_argnames="kind")
def _contains_chunk(table, start, seed, segment_length, start_length, *, kind: str) -> jax.Array:
    """Whether a filter contains positions start + 0 … CHUNK−1, bool[CHUNK].

    Args:
        table: fingerprints [slots], u8, u16 or u32; a slot beyond the filter's is never read.
        start, segment_length, start_length: u32[].
        seed: two words, u32[2].
    """
    low, high = hash_positions(start, seed, CHUNK)
    result = (low ^ high).astype(table.dtype)
    for slot in _slots(low, high, segment_length, start_length, kind):
        result ^= table.at[slot].get(mode="promise_in_bounds")
    return result == 0


@functools.partial(jax.jit, static_argnames="chunk")
def _regions(start, seed, *, chunk: int) -> jax.Array:
    """Region of the table where a position's rows lie in a fuse filter, u8[chunk]: they follow the hash's
    high bits, whatever the filter's size."""
    h = mix64(jax.lax.iota(jnp.uint64, chunk) + start + seed)
    return ((h >> np.uint64(32)) * np.uint64(_REGIONS) >> np.uint64(32)).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="kind")
def _count_at(
    table, present, order, size, start, seed, segment_length, start_length, *, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Hits of positions start + order, none where order ≥ size, as `_count_matches` gives them; from order
    u32[chunk], size u32[] and four u64[]; table and present as there."""
    h = mix64(order.astype(jnp.uint64) + start + seed)
    where = [slot.astype(jnp.uint32) for slot in slots64(h, kind, segment_length, start_length)]
    return _count_matches(table, present, order < size, h ^ h >> np.uint64(32), where)


@functools.partial(jax.jit, static_argnames=("chunk", "kind"))
def _count_chunk(
    table, present, size, start, seed, segment_length, start_length, *, chunk: int, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Hits of positions start + 0 … chunk−1, none from start + size on, as `_count_matches` gives them;
    numbers as of `_contains_chunk`, table and present as of `_count_matches`."""
    low, high = hash_positions(start, seed, chunk)
    where = _slots(low, high, segment_length, start_length, kind)
    return _count_matches(table, present, jax.lax.iota(jnp.uint32, chunk) < size, low ^ high, where)


def _count_matches(table, present, inside, prints, where) -> tuple[jax.Array, jax.Array]:
    """Clients whose slots XOR to the fingerprint: their number at each position, u8[count], and the positions
    of each lane, u32[32].

    Args:
        table: u8, u16 or u32 [slots, lanes] as from `client_rows`.
        present: bool[lanes], whether a lane has a client.
        inside: bool[count], whether a position is one; count is a power of two.
        prints: u32[count] or u64[count], fingerprints in the low bits.
        where: slots, 3 or 4 times u32[count] or i32[count].
    """
    differs = prints.astype(table.dtype)[:, None]
    for slot in where:
        differs ^= table.at[slot].get(mode="promise_in_bounds")
    bit = jnp.uint32(1) << jnp.arange(table.shape[1], dtype=jnp.uint32)
    who = jnp.where((differs == 0) & present, bit, jnp.uint32(0)).sum(1, dtype=jnp.uint32)
    who = jnp.where(inside, who, jnp.uint32(0))
    return jax.lax.population_count(who).astype(jnp.uint8), _per_bit(who)


def _per_bit(words: jax.Array) -> jax.Array:
    """How many of u32[n] words have each bit set, u32[32], lowest first; n is a power of two.

    Eight words are added at once in fields of four bits, 16 of their sums in fields of eight.
    """
    u32, few = jnp.uint32, min(8, len(words))
    by = [jnp.arange(0, stop, step, dtype=u32)[:, None, None] for stop, step in ((4, 1), (8, 4), (32, 8))]
    fours = (words.reshape(few, -1) >> by[0] & u32(0x11111111)).sum(1, dtype=u32)
    eights = (fours >> by[1] & u32(0x0F0F0F0F)).reshape(8, min(16, fours.shape[1]), -1).sum(1, dtype=u32)
    return (eights >> by[2] & u32(0xFF)).sum(2, dtype=u32).reshape(32)


def hash_positions(start: jax.Array, seed: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`fingerprints.murmur64` of start + 0 … count−1 as (low, high) words, u32[count] each, from start u32[]
    and the seed's two words u32[2]."""
    position = jax.lax.iota(jnp.uint32, count) + start
    low = position + seed[0]
    high = seed[1] + (low < position).astype(jnp.uint32)
    low, high = _multiply(low ^ high >> 1, high, 0xFF51AFD7ED558CCD)
    low, high = _multiply(low ^ high >> 1, high, 0xC4CEB9FE1A85EC53)
    return low ^ high >> 1, high


def _slots(low, high, segment_length, start_length, kind: str) -> list[jax.Array]:
    """`fingerprints.slots` of hashes as two words u32[count]: i32[count] each."""
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
    """High word of the 64-bit product of two u32[...]: u32[...]."""
    a0, a1, b0, b1 = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    middle = a1 * b0 + (a0 * b0 >> 16)
    return a1 * b1 + (middle >> 16) + ((middle & 0xFFFF) + a0 * b1 >> 16)


def _multiply(low: jax.Array, high: jax.Array, constant: int) -> tuple[jax.Array, jax.Array]:
    """(high, low) * constant mod 2**64: (low, high) words, u32[...] each."""
    c_low, c_high = jnp.uint32(constant & 0xFFFFFFFF), jnp.uint32(constant >> 32)
    return low * c_low, multiply_high(low, c_low) + low * c_high + high * c_low
