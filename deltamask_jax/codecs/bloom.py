"""Bloom-filter codec: the index half of DeepReduce (NeurIPS 2021, arXiv 2102.03112; Bloom 1970).

ceil(log2(1 / fpr)) hash functions and hashes * n / ln 2 bits, at least 4 * hashes². The hashes of a position
are a + j * b for the two words of a 64-bit hash (Kirsch & Mitzenmacher 2006), which in fewer bits fall
together too often: one key in 12 bits has ten times the rate that was asked for. So do more than a few of
them: every eight hashes begin with a new hash of the position, since sixteen of one a and b have ten times
the rate of 2**-16 with 48 keys. Not exact.

What the receiver makes of the filter's positives is DeepReduce's policy. P0 takes them all; P1 and P2 take
as many as were sent: P1 at random, P2 those in the smallest conflict sets first (positives that hash to
the same set bit, one of which must have set it).

Body: u32 number of bits m, then ceil(m / 8) bytes; flags: number of hash functions, and 64 times the
number of the policy. No body where there are no flips.
"""

import functools
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs import envelope, membership
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions
from deltamask_jax.codecs.fingerprints import murmur64

_ID = envelope.CODEC_IDS["bloom"]
_OF_ONE = 8  # hash functions from one 64-bit hash of a position
_SEED_STEP = 0x9E3779B97F4A7C15  # between the seeds of these, so that no two positions share a hash
_MOST_HASHES = 32
_PART = 1 << 16  # positives at a time, for memory
_POLICIES = ("P0", "P1", "P2")  # index = number on the wire


def bloom(fpr: float = 2**-8, policy: str = "P0") -> Codec:
    """Creates the codec.

    Args:
        fpr: false-positive rate, 2**-32 <= fpr < 1; the nearest power of two not above it is used.
        policy: which positives the receiver takes: 'P0', 'P1' or 'P2'.

    Raises:
        ValueError: fpr is out of range, or no such policy.
    """
    if not 2.0**-_MOST_HASHES <= fpr < 1:
        raise ValueError(f"bloom: fpr must be in 2**-{_MOST_HASHES} .. 1, got {fpr}")
    if policy not in _POLICIES:
        raise ValueError(f"bloom: policy must be one of {_POLICIES}, got {policy!r}")
    hashes = max(1, math.ceil(-math.log2(fpr)))
    flags = hashes | _POLICIES.index(policy) << 6

    def size_of(n: int) -> int:
        """Bits of the filter of n positions."""
        return max(math.ceil(n * hashes / math.log(2)), 4 * hashes**2)

    def encode(positions: np.ndarray, context: Context) -> bytes:
        positions = check_positions(positions, context.d)
        body = b""
        if positions.size:
            m = size_of(len(positions))
            table = np.zeros(m, bool)
            for bit in _bits(positions, hashes, m):
                table[bit] = True
            body = struct.pack("<I", m) + np.packbits(table, bitorder="little").tobytes()
        n = len(positions)
        return envelope.pack(_ID, flags, context.d, n, context.round, context.client, body)

    def decode(payload: bytes, context: Context) -> np.ndarray:
        received = envelope.unpack(
            payload, codec_id=_ID, d=context.d, round=context.round, client=context.client
        )
        if received.flags != flags:
            raise PayloadError(f"payload has Bloom settings {received.flags:#x}, expected {flags:#x}")
        if received.n == 0:
            if len(received.body):
                raise PayloadError("payload without flips must have no body")
            return np.zeros(0, np.uint32)
        if len(received.body) < 5:
            raise PayloadError("bloom payload is too short for its bits")
        (m,) = struct.unpack_from("<I", received.body)
        table = np.frombuffer(received.body[4:], np.uint8)
        if m != size_of(received.n) or len(table) != -(-m // 8) or (m % 8 and table[-1] >> m % 8):
            raise PayloadError(f"bloom payload announces {m} bits and has {len(table)} bytes")
        if np.bitwise_count(table).sum(dtype=np.int64) > received.n * hashes:
            raise PayloadError(f"bloom payload has more bits set than {received.n} keys set")
        positives = _query_all(table, m, hashes, context.d)
        if len(positives) < received.n:
            raise PayloadError(f"bloom payload claims {received.n} keys and has {len(positives)} positives")
        if policy == "P0":
            return positives
        rank = _priority(positives, context)
        if policy == "P2":
            rank = rank >> np.uint64(8) | _smallest_conflict(positives, hashes, m) << np.uint64(56)
        return np.sort(positives[np.argsort(rank, kind="stable")[: received.n]])

    return Codec(f"bloom-2^-{hashes}{'' if policy == 'P0' else '-' + policy}", encode, decode, exact=False)


def _priority(positions: np.ndarray, context: Context) -> np.ndarray:
    """A public random order of positions, u64[n], another one for each round and client."""
    seed = int(murmur64(np.array([context.round << 32 | context.client], np.uint64), 1)[0])
    return murmur64(positions.astype(np.uint64), seed)


def _smallest_conflict(positives: np.ndarray, hashes: int, m: int) -> np.ndarray:
    """Size of the smallest conflict set each positive is in, u64[n]; sizes count modulo 256."""
    parts = [positives[start : start + _PART] for start in range(0, len(positives), _PART)]
    size = np.zeros(m, np.uint8)
    for part in parts:
        for bit in _bits(part, hashes, m):
            np.add.at(size, bit, np.uint8(1))
    smallest = [np.min([size[bit] for bit in _bits(part, hashes, m)], axis=0) for part in parts]
    return np.concatenate(smallest).astype(np.uint64)


def _bits(positions: np.ndarray, hashes: int, m: int):
    """Yields each hash function's bit number of every position, u64[n]."""
    for j in range(hashes):
        if j % _OF_ONE == 0:
            h = murmur64(positions.astype(np.uint64), _seed(j))
            a, b = h & np.uint64(0xFFFFFFFF), h >> np.uint64(32)
        mixed = (a + np.uint64(j % _OF_ONE) * b) & np.uint64(0xFFFFFFFF)
        yield mixed * np.uint64(m) >> np.uint64(32)


def _seed(j: int) -> int:
    """Of the 64-bit hash that hash function j is made of."""
    return j // _OF_ONE * _SEED_STEP % 2**64


def _query_all(table: np.ndarray, m: int, hashes: int, d: int) -> np.ndarray:
    if d <= membership.SMALL:
        hit = np.ones(d, bool)
        for bit in _bits(np.arange(d, dtype=np.uint32), hashes, m):
            hit &= (table[bit >> np.uint64(3)] >> (bit & np.uint64(7)).astype(np.uint8) & 1) == 1
        return np.flatnonzero(hit).astype(np.uint32)
    padded = jnp.asarray(membership.pad_table(table))

    def hits(start: int) -> np.ndarray:
        found = np.asarray(_contains_chunk(padded, np.uint32(start), np.uint32(m), hashes=hashes))
        return np.flatnonzero(found[: d - start]).astype(np.uint32) + np.uint32(start)

    with threads.pool() as pool:
        return np.concatenate(list(pool.map(hits, range(0, d, membership.CHUNK))))


@functools.partial(jax.jit, static_argnames="hashes")
def _contains_chunk(table, start, m, *, hashes):
    """Whether a filter contains positions start + 0 … CHUNK−1, bool[CHUNK].

    Args:
        table: the filter's bits, u8[⌈m/8⌉] or longer.
        start: first position, u32[].
        m: bits of the filter, u32[].
        hashes: number of hash functions.
    """
    hit = jnp.uint8(1)
    for j in range(hashes):
        if j % _OF_ONE == 0:
            seed = jnp.array([_seed(j) & 0xFFFFFFFF, _seed(j) >> 32], jnp.uint32)
            low, high = membership.hash_positions(start, seed, membership.CHUNK)
        bit = membership.multiply_high(low + jnp.uint32(j % _OF_ONE) * high, m)
        octet = table.at[(bit >> 3).astype(jnp.int32)].get(mode="promise_in_bounds")
        hit = hit & octet >> (bit & 7).astype(jnp.uint8)
    return hit == 1
