"""Fingerprint filters as arrays: shapes, hashing and membership, for fuse and XOR filters alike.

A position's fingerprint is the XOR of the few slots that its hash selects. Binary fuse filters
(Graf & Lemire, arXiv 2201.01174) take them from consecutive segments, XOR filters (Graf & Lemire,
arXiv 1912.08258) from three blocks. Hashing and 3-wise geometry are those of xor_singleheader (and
so of pyfusefilter), bit for bit.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Shape of a filter, in slots.

    Attributes:
        kind: 'fuse3', 'fuse4' or 'xor3'.
        segment_length: slots in a segment, a power of two; in a block for XOR filters.
        segment_count: segments in which a key's first slot may lie; 1 for XOR filters.
    """

    kind: str
    segment_length: int
    segment_count: int

    @property
    def arity(self) -> int:
        """Slots a key uses."""
        return int(self.kind[-1])

    @property
    def start_length(self) -> int:
        """Slots a key's first slot is drawn from (`SegmentCountLength` in C)."""
        return self.segment_count * self.segment_length

    @property
    def array_length(self) -> int:
        """Slots of the whole fingerprint array."""
        return (self.segment_count + self.arity - 1) * self.segment_length


@dataclass(frozen=True)
class Filter:
    """A constructed filter.

    Attributes:
        geometry: its shape.
        seed: u64 added to every key before hashing.
        fingerprints: u8, u16 or u32 [geometry.array_length].
    """

    geometry: Geometry
    seed: int
    fingerprints: np.ndarray


def fuse_geometry(capacity: int, arity: int = 3) -> Geometry:
    """Shape of a fuse filter for `capacity` keys; for arity 3 that of xor_singleheader's
    `allocate`."""
    if arity == 3:
        log_base, offset, least, base, scale = 3.33, 2.25, 1.125, 0.875, 0.25 * math.log(1e6)
    else:
        log_base, offset, least, base, scale = 2.91, -0.5, 1.075, 0.77, 0.305 * math.log(6e5)
    size = max(capacity, 1)
    longest = 18 if arity == 3 else 16  # an offset in a segment takes that many bits of the hash
    exponent = math.floor(math.log(size) / math.log(log_base) + offset)
    segment_length = 1 << min(max(exponent, 2), longest)
    slots = 0
    if size > 1:
        slots = math.floor(size * max(least, base + scale / math.log(size)) + 0.5)
    while segment_length > 256 and -(-slots // segment_length) < 32 + arity - 1:
        segment_length //= 2
    segments = max(1, -(-slots // segment_length) - (arity - 1))
    return Geometry(f"fuse{arity}", segment_length, segments)


def xor_geometry(capacity: int) -> Geometry:
    """Shape of an XOR filter for `capacity` keys, that of xor_singleheader's `allocate`."""
    return Geometry("xor3", int(32 + 1.23 * capacity) // 3, 1)


def murmur64(keys: np.ndarray, seed: int) -> np.ndarray:
    """MurmurHash3's finaliser of key + seed: u64[n] -> u64[n]."""
    return mix64(keys + np.uint64(seed))


def mix64(h):
    """MurmurHash3's finaliser: u64[n] -> u64[n], in NumPy (overwrites h) or JAX."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


def slots(h: np.ndarray, shape: Geometry) -> list[np.ndarray]:
    """The slots of each hash: one u64[n] per slot of a key."""
    return slots64(h, shape.kind, np.uint64(shape.segment_length), np.uint64(shape.start_length))


def slots64(h, kind: str, length, start_length) -> list:
    """`slots` for a kind of filter and u64 lengths, in NumPy or JAX."""
    if kind == "xor3":
        low = np.uint64(0xFFFFFFFF)
        rotated = (h, h << np.uint64(21) | h >> np.uint64(43), h << np.uint64(42) | h >> np.uint64(22))
        return [((r & low) * length >> np.uint64(32)) + np.uint64(j) * length for j, r in enumerate(rotated)]
    # (h * start_length) >> 64, exact because start_length < 2**32
    carry = (h & np.uint64(0xFFFFFFFF)) * start_length >> np.uint64(32)
    first = ((h >> np.uint64(32)) * start_length + carry) >> np.uint64(32)
    arity, step = (3, 18) if kind == "fuse3" else (4, 16)
    return [first] + [
        (first + np.uint64(j) * length) ^ (h >> np.uint64(step * (arity - 1 - j)) & (length - np.uint64(1)))
        for j in range(1, arity)
    ]


def fingerprint(h: np.ndarray, bits: int) -> np.ndarray:
    """Fingerprint of each hash: u64[n] -> u8, u16 or u32 [n]."""
    return (h ^ h >> np.uint64(32)).astype(f"u{bits // 8}")


def contains(filter: Filter, positions: np.ndarray) -> np.ndarray:
    """Membership of positions u32[m] in NumPy: bool[m], bit-equal with the C library's
    `contain`."""
    h = murmur64(positions.astype(np.uint64), filter.seed)
    result = fingerprint(h, 8 * filter.fingerprints.itemsize)
    for slot in slots(h, filter.geometry):
        result ^= filter.fingerprints[slot]
    return result == 0
