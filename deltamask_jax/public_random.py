"""Public randomness: 16-bit uniforms both ends of the wire compute from a few integers.

DeltaMask (arXiv 2311.17299, §3) lets server and client draw the same mask from a public seed. That only
works if the generator is part of the protocol, not of a framework, so it is specified here in full and
implemented once, over NumPy or `jax.numpy`, with the same bits from both (golden values in the tests).
All arithmetic is on unsigned 32-bit integers, modulo 2³².

    mix(h):                                   # the finaliser of MurmurHash3 (A. Appleby, public domain)
        h ^= h >> 16;  h *= 0x85EBCA6B
        h ^= h >> 13;  h *= 0xC2B2AE35
        h ^= h >> 16

    stream_key(seed, round, client, purpose):
        a, b = 0x9E3779B9, 0x7F4A7C15
        for word in (seed mod 2³², seed div 2³², round, client, purpose):
            a = mix(a ^ word)
            b = mix(b + a)
        return a, b

    uniform(key = (a, b), position) = mix(mix(position + a) ^ b) >> 16      # an integer in 0 … 65535

Candidate c of a stream (a, b), where one stream has to give many, is the stream (a, mix(b + c)).

A mask bit with probability θ/65536, θ an integer in 0 … 65535, is `uniform < θ`. The hash is fast and
statistically sound (tested), not cryptographic: it hides nothing, and nothing here needs hiding.
"""

from types import ModuleType
from typing import Any

import numpy as np

EVERY_CLIENT = 0xFFFFFFFF  # the `client` word of a stream that all clients of a round share

# Purposes keep the streams of one run apart: one seed serves them all.
MASK = 1  # the uniforms a round's masks are drawn from
CANDIDATES = 2  # those of the candidates of minimal random coding
PARTS = 16  # initial values of adapters, prompts and low-rank updates
ROUNDING = 17  # stochastic rounding to 8 bits; both ends need not agree on it, but a run repeats
ROTATION = 32  # signs of a randomised Hadamard rotation
SAMPLE = 33  # which values are sent, or sent with more bits
QUANTISE = 34  # stochastic rounding; both ends need not agree on it, but a run repeats
DIRECTIONS = 48  # along which clients try whether their loss rises

_MASK32 = 0xFFFFFFFF

Key = Any  # two uint32 words: a pair of NumPy scalars or traced JAX values, or one such array


def _mix_int(h: int) -> int:
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _MASK32
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _MASK32
    return h ^ (h >> 16)


def _mix(h, xp: ModuleType):
    h = h ^ (h >> xp.uint32(16))
    h = h * xp.uint32(0x85EBCA6B)
    h = h ^ (h >> xp.uint32(13))
    h = h * xp.uint32(0xC2B2AE35)
    return h ^ (h >> xp.uint32(16))


def stream_key(seed: int, round: int, client: int, purpose: int) -> tuple[np.uint32, np.uint32]:
    """The two 32-bit words that name one stream of uniforms.

    Args:
        seed: the run's public seed, 0 … 2⁶⁴−1.
        round: round number, 0 … 2³²−1.
        client: client id, or `EVERY_CLIENT` for a stream shared by the whole cohort.
        purpose: what the stream is for, `MASK` for a round's masks.

    Raises:
        ValueError: an argument is negative or too large for its field.

    Example:
        >>> key = stream_key(seed=1234567890123456789, round=7, client=29, purpose=MASK)
        >>> uniforms(key, 4).tolist()
        [32109, 3215, 51455, 58268]
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in 0 … 2^64-1, got {seed}")
    for name, value in (("round", round), ("client", client), ("purpose", purpose)):
        if not 0 <= value <= _MASK32:
            raise ValueError(f"{name} must be in 0 … 2^32-1, got {value}")
    a, b = 0x9E3779B9, 0x7F4A7C15
    for word in (seed & _MASK32, seed >> 32, round, client, purpose):
        a = _mix_int(a ^ int(word))
        b = _mix_int((b + a) & _MASK32)
    return np.uint32(a), np.uint32(b)


def uniforms_at(key: Key, positions, xp: ModuleType = np):
    """Uniform integers at given positions.

    Args:
        key: two uint32 words, from `stream_key` or any other source of 64 random bits.
        positions: u32[...] positions in the flat index space.
        xp: `numpy` or `jax.numpy`; both give the same bits.

    Returns:
        u16[...], uniform on 0 … 65535.
    """
    with np.errstate(over="ignore"):
        h = _mix(xp.asarray(positions, xp.uint32) + xp.asarray(key[0], xp.uint32), xp)
        h = _mix(h ^ xp.asarray(key[1], xp.uint32), xp)
        return (h >> xp.uint32(16)).astype(xp.uint16)


def candidate_words(key: Key, candidates: int) -> np.ndarray:
    """Second words of the streams of candidates 0 … candidates−1, u32[candidates]; they share the first."""
    with np.errstate(over="ignore"):
        return _mix(np.arange(candidates, dtype=np.uint32) + np.uint32(key[1]), np)


def uniforms(key: Key, d: int, xp: ModuleType = np):
    """Uniform integers at positions 0 … d−1, as u16[d]. See `uniforms_at`.

    Raises:
        ValueError: more positions than 32 bits number.
    """
    if d > 1 << 32:
        raise ValueError(f"a stream has 2^32 uniforms, asked for {d:,}")
    return uniforms_at(key, xp.arange(d, dtype=xp.uint32), xp)
