"""Construction of fuse and XOR filters: pyfusefilter's compiled library, and our own in NumPy for
the rest.

Both peel the hypergraph whose edges are keys and whose nodes are slots (Botelho et al. 2007; Graf &
Lemire, arXiv 2201.01174): a key that is alone in a slot decides that slot last; remove it, and
others become alone. The NumPy builder peels all such keys of a round at once.
"""

import logging
from typing import Any

import numpy as np

from deltamask_jax.codecs.fingerprints import Filter, Geometry, fingerprint, murmur64, slots

try:
    from pyfusefilter._xorfilter import ffi, lib  # private: what is public fixes the geometry itself
except ImportError as error:
    logging.warning("filters are built in NumPy, some times slower: no pyfusefilter._xorfilter (%s)", error)
    ffi: Any = None
    lib: Any = None

ATTEMPTS = 20  # seeds tried before giving up; one alone nearly always works
FIRST_SEED = 0x1E89E7A8E42F3F6D  # any number: clients that start from the same one share their hashes
_STEP = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1


def build(positions: np.ndarray, bits: int, shape: Geometry) -> Filter:
    """Constructs a filter of the given shape that contains every position.

    Args:
        positions: u32[n], unique, 1 <= n <= the key count that the shape was made for.
        bits: bits per entry, 8, 16 or 32; the false-positive rate is 2**-bits.
        shape: from `fuse_geometry` or `xor_geometry`.

    Raises:
        RuntimeError: no seed worked, which unique keys do not cause.
    """
    keys = positions.astype(np.uint64)
    populate = _populate_c if lib and bits < 32 and shape.arity == 3 else _populate
    for attempt in range(ATTEMPTS):
        built = populate(keys, bits, shape, attempt * _STEP & _U64)
        if built is not None:
            return Filter(shape, *built)
    raise RuntimeError(f"filter of {len(keys)} keys failed with {ATTEMPTS} seeds: are keys unique?")


def _populate_c(keys: np.ndarray, bits: int, shape: Geometry, offset: int) -> tuple[int, np.ndarray] | None:
    """Seed and fingerprints by the C library, which releases the GIL; None where it gives up."""
    # hash(key) = murmur(key + seed), and C chooses its seeds itself: shifting the keys gives it
    # others.
    keys = keys + np.uint64(offset)  # a copy as well: populate may reorder its buffer
    fingerprints = np.zeros(shape.array_length, f"u{bits // 8}")
    if shape.kind == "xor3":
        c_filter = ffi.new(f"xor{bits}_t *")
        c_filter.blockLength = shape.segment_length
        c_filter.fingerprints = ffi.from_buffer(f"uint{bits}_t[]", fingerprints)
        populate = lib.xor8_populate if bits == 8 else lib.xor16_populate
    else:
        c_filter = ffi.new(f"binary_fuse{bits}_t *")
        c_filter.Size = len(keys)
        c_filter.SegmentLength = shape.segment_length
        c_filter.SegmentLengthMask = shape.segment_length - 1
        c_filter.SegmentCount = shape.segment_count
        c_filter.SegmentCountLength = shape.start_length
        c_filter.ArrayLength = shape.array_length
        c_filter.Fingerprints = ffi.from_buffer(f"uint{bits}_t[]", fingerprints)
        populate = lib.binary_fuse8_populate if bits == 8 else lib.binary_fuse16_populate
    if not populate(ffi.from_buffer("uint64_t[]", keys), len(keys), c_filter):
        return None
    seed = c_filter.seed if shape.kind == "xor3" else c_filter.Seed
    return (seed + offset) & _U64, fingerprints


def _populate(keys: np.ndarray, bits: int, shape: Geometry, offset: int) -> tuple[int, np.ndarray] | None:
    """Seed and fingerprints in NumPy; None where peeling gets stuck."""
    seed = FIRST_SEED + offset & _U64
    h = np.sort(murmur64(keys, seed))  # in the order of their first slots: kinder to the cache
    where = np.stack(slots(h, shape)).astype(np.int64)  # [arity, n]
    rounds = _peel(where, shape.array_length)
    if rounds is None:
        return None
    prints = fingerprint(h, bits)
    table = np.zeros(shape.array_length, prints.dtype)
    for key, own in reversed(rounds):
        # Keys of one round own distinct slots, which no other key of that round uses; theirs are
        # still 0.
        value = prints[key]
        for row in where:
            value ^= table[row[key]]
        table[own] = value
    return seed, table


def _peel(where: np.ndarray, length: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Rounds of (keys, the slot each is alone in), in peeling order; None where a core remains."""
    keys_in = np.bincount(where.ravel(), minlength=length)
    key_sum = np.zeros(length, np.int64)  # once a slot holds one key, the sum is that key
    for row in where:
        np.add.at(key_sum, row, np.arange(len(row)))
    rounds, left = [], where.shape[1]
    candidates = np.flatnonzero(keys_in == 1)
    while candidates.size:
        # A key may be alone in several slots: keep one of them.
        keys, first = np.unique(key_sum[candidates], return_index=True)
        rounds.append((keys, candidates[first]))
        left -= len(keys)
        touched = where[:, keys]
        for row in touched:
            np.subtract.at(keys_in, row, 1)
            np.subtract.at(key_sum, row, keys)
        touched = touched.ravel()
        candidates = np.unique(touched[keys_in[touched] == 1])
    return rounds if left == 0 else None
