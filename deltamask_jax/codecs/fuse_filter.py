"""Binary fuse filters: geometry, hashing and construction (Graf & Lemire, arXiv 2201.01174).

A key's fingerprint is the XOR of `arity` slots, one in each of `arity` consecutive segments. The 3-wise hashing and
geometry are those of xor_singleheader's `binary_fuse8/16`, bit for bit; 4-wise differs only in the bits that choose
the slots.
"""

import math
from dataclasses import dataclass

import numpy as np
from pyfusefilter._xorfilter import ffi, lib

from deltamask_jax.codecs import fuse_builder

ATTEMPTS = 20  # seeds tried before giving up; one alone succeeds with probability > 0.9
MAX_KEYS = 1 << 30


@dataclass(frozen=True)
class Geometry:
    """Shape of a fuse filter, in slots.

    Attributes:
        arity: slots a key uses, 3 or 4.
        segment_length: slots in a segment, a power of two.
        segment_count: segments in which a key's first slot may lie.
    """

    arity: int
    segment_length: int
    segment_count: int

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


def geometry(capacity: int, arity: int = 3) -> Geometry:
    """Shape of a filter for `capacity` keys; the same integers as xor_singleheader's `allocate` for arity 3."""
    if arity == 3:
        exponent, factor_min, factor_base, factor_scale = (
            (3.33, 2.25),
            1.125,
            0.875,
            0.25 * math.log(1e6),
        )
    else:
        exponent, factor_min, factor_base, factor_scale = (
            (2.91, -0.5),
            1.075,
            0.77,
            0.305 * math.log(6e5),
        )
    size = max(capacity, 1)
    longest = 18 if arity == 3 else 16  # a slot index takes that many bits of the hash
    log2_length = math.floor(math.log(size) / math.log(exponent[0]) + exponent[1])
    segment_length = 1 << min(max(log2_length, 2), longest)
    slots = 0
    if size > 1:
        slots = math.floor(
            size * max(factor_min, factor_base + factor_scale / math.log(size)) + 0.5
        )
    while segment_length > 256 and -(-slots // segment_length) < 32 + arity - 1:
        segment_length //= 2
    return Geometry(arity, segment_length, max(1, -(-slots // segment_length) - (arity - 1)))


def build(positions: np.ndarray, bits: int, arity: int = 3, capacity: int | None = None) -> Filter:
    """Constructs a filter that contains every position.

    Args:
        positions: u32[n], unique, n >= 1.
        bits: bits per entry, 8, 16 or 32; the false-positive rate is 2**-bits.
        arity: 3 or 4.
        capacity: key count that sets the geometry, >= n; clients of one cohort share it so that one hash of a position
            serves all. Default n.

    Raises:
        RuntimeError: no seed worked, which honest keys do not cause.
    """
    shape = geometry(capacity or len(positions), arity)
    keys = positions.astype(np.uint64)
    in_c = arity == 3 and bits in (8, 16)
    for attempt in range(ATTEMPTS):
        # hash(key) = murmur(key + seed): shifting all keys is the way to give the C library another seed.
        offset = attempt * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        built = (
            _populate_c(keys, bits, shape, offset)
            if in_c
            else fuse_builder.populate(keys, bits, shape, offset)
        )
        if built is not None:
            return Filter(shape, *built)
    raise RuntimeError(
        f"fuse filter of {len(keys)} keys failed with {ATTEMPTS} seeds: are the keys unique?"
    )


def _populate_c(
    keys: np.ndarray, bits: int, shape: Geometry, offset: int
) -> tuple[int, np.ndarray] | None:
    """Seed and fingerprints by pyfusefilter's compiled library (the GIL is released), or None where it fails."""
    keys = keys + np.uint64(offset)  # a copy: populate may reorder its buffer
    fingerprints = np.zeros(shape.array_length, np.uint8 if bits == 8 else np.uint16)
    c_filter = ffi.new(f"binary_fuse{bits}_t *")
    c_filter.Size = len(keys)
    c_filter.SegmentLength = shape.segment_length
    c_filter.SegmentLengthMask = shape.segment_length - 1
    c_filter.SegmentCount = shape.segment_count
    c_filter.SegmentCountLength = shape.start_length
    c_filter.ArrayLength = shape.array_length
    c_filter.Fingerprints = ffi.from_buffer(
        "uint8_t[]" if bits == 8 else "uint16_t[]", fingerprints
    )
    populate = lib.binary_fuse8_populate if bits == 8 else lib.binary_fuse16_populate
    if not populate(ffi.from_buffer("uint64_t[]", keys), len(keys), c_filter):
        return None
    return (c_filter.Seed + offset) & 0xFFFFFFFFFFFFFFFF, fingerprints


def murmur64(keys: np.ndarray, seed: int) -> np.ndarray:
    """MurmurHash3's finaliser of key + seed: u64[n] -> u64[n]."""
    h = keys + np.uint64(seed)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


def mulhi(h: np.ndarray, length: int) -> np.ndarray:
    """(h * length) >> 64 for u64 h, exact for length < 2**32."""
    low = (h & np.uint64(0xFFFFFFFF)) * np.uint64(length) >> np.uint64(32)
    return ((h >> np.uint64(32)) * np.uint64(length) + low) >> np.uint64(32)


def slots(h: np.ndarray, shape: Geometry) -> list[np.ndarray]:
    """The `arity` slots of each hash, u64[n] each."""
    mask = np.uint64(shape.segment_length - 1)
    step = 18 if shape.arity == 3 else 16
    first = mulhi(h, shape.start_length)
    rest = [
        (first + np.uint64(j * shape.segment_length))
        ^ (h >> np.uint64(step * (shape.arity - 1 - j)) & mask)
        for j in range(1, shape.arity)
    ]
    return [first, *rest]


def fingerprint(h: np.ndarray, bits: int) -> np.ndarray:
    """Fingerprint of each hash: u64[n] -> u8, u16 or u32 [n]."""
    return (h ^ h >> np.uint64(32)).astype(np.dtype(f"u{bits // 8}"))


def contains(filter: Filter, positions: np.ndarray) -> np.ndarray:
    """Membership of positions u32[m] in NumPy: bool[m], bit-equal with the C library's `contain` for 3-wise."""
    h = murmur64(positions.astype(np.uint64), filter.seed)
    result = fingerprint(h, 8 * filter.fingerprints.itemsize)
    for slot in slots(h, filter.geometry):
        result ^= filter.fingerprints[slot]
    return result == 0
