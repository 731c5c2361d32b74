"""Whole-mask arithmetic coding at real entropy: what FedPM sends (Isik et al., ICLR 2023).

`positions` are the set bits of any binary vector of length d: the sampled mask for FedPM, or flips.
Every position is coded (rANS) at the frequency of set bits among positions of similar theta, or at
one frequency for all where the context has no theta. Exact.

Body (little-endian): u8 number of theta buckets B (1 or 64), u8 log2 lanes, u16[B] probabilities in
units of 2**-14, u32[lanes] states, u16[...] words.
"""

import struct

import numpy as np

from deltamask_jax.codecs import envelope, rans
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions

_ID = envelope.CODEC_IDS["arithmetic"]
_HEAD = struct.Struct("<BB")
_BUCKETS = 64


def arithmetic() -> Codec:
    """Creates the codec. Both ends must have the same context.theta, u16[d], or both None."""
    return Codec("arithmetic", _encode, _decode)


def _encode(positions: np.ndarray, context: Context) -> bytes:
    positions = check_positions(positions, context.d)
    bucket, buckets = _buckets(context)
    p = _probabilities(positions, bucket, buckets)
    lanes_log2 = rans.lanes_log2(context.d)
    bits = np.zeros(context.d, bool)
    bits[positions] = True
    states, words = rans.encode(bits, p[bucket], np.zeros(1 << lanes_log2, np.uint16))
    body = b"".join(
        (
            _HEAD.pack(buckets, lanes_log2),
            p.astype("<u2").tobytes(),
            states.astype("<u4").tobytes(),
            words.astype("<u2").tobytes(),
        )
    )
    return envelope.pack(_ID, 0, context.d, len(positions), context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    received = envelope.unpack(payload, codec_id=_ID, d=context.d, round=context.round, client=context.client)
    body = received.body
    bucket, buckets = _buckets(context)
    if received.flags or len(body) < _HEAD.size:
        raise PayloadError("arithmetic payload has unknown flags or no header")
    announced, lanes_log2 = _HEAD.unpack_from(body)
    if announced != buckets or lanes_log2 != rans.lanes_log2(context.d):
        raise PayloadError(
            f"arithmetic payload has {announced} buckets and 2^{lanes_log2} lanes, "
            f"expected {buckets} and 2^{rans.lanes_log2(context.d)}"
        )
    states_at = _HEAD.size + 2 * buckets
    words_at = states_at + (4 << lanes_log2)
    if len(body) < words_at or (len(body) - words_at) % 2:
        raise PayloadError("arithmetic payload is too short for what its header announces")
    p = np.frombuffer(body[_HEAD.size : states_at], "<u2").astype(np.uint16)
    if (p < 1).any() or (p >= rans.ONE).any():
        raise PayloadError("arithmetic payload has probabilities outside 0 .. 1")
    states = np.frombuffer(body[states_at:words_at], "<u4")
    bits, carried = rans.decode(p[bucket], states, np.frombuffer(body[words_at:], "<u2"))
    positions = np.flatnonzero(bits).astype(np.uint32)
    if len(positions) != received.n or carried.any():
        raise PayloadError("arithmetic payload holds another number of set bits than it says")
    if not np.array_equal(p, _probabilities(positions, bucket, buckets)):
        raise PayloadError("arithmetic payload has other probabilities than its set bits")
    return positions


def _probabilities(positions: np.ndarray, bucket: np.ndarray, buckets: int) -> np.ndarray:
    """Frequency of set bits in every bucket, u16[buckets] as `rans` wants it."""
    size = np.bincount(bucket, minlength=buckets)
    set_bits = np.bincount(bucket[positions], minlength=buckets)
    return np.rint(rans.ONE * set_bits / np.maximum(size, 1)).clip(1, rans.ONE - 1).astype(np.uint16)


def _buckets(context: Context) -> tuple[np.ndarray, int]:
    """Bucket of every position, u8[d], and the number of buckets."""
    if context.theta is None:
        return np.zeros(context.d, np.uint8), 1
    if context.theta.shape != (context.d,) or context.theta.dtype != np.uint16:
        raise ValueError(f"arithmetic needs context.theta as u16[{context.d}] or None")
    return (context.theta >> 10).astype(np.uint8), _BUCKETS
