"""Public-side-information codec: exact, at about 3 bits per flip.

Both ends know θ_g and the uniforms u. A mask bit flips only where u lies between θ_g and
θ_k, and training moves logits by similar amounts everywhere, so flips crowd where the distance
|logit u − logit θ_g| is small. Positions are bucketed by that distance, in integers. Those of
the near buckets are coded bit by bit at their bucket's flip probability (rANS); the few flips
elsewhere as Rice-coded gaps, whose bits ride in the first states of the rANS lanes and so cost
nothing extra.

Body (little-endian): u8 shift, u8 near buckets B, u8 remainder bits k, u8 log2 lanes, u32 far
flips, u32 bytes of the gap code, u8[B] probabilities, u32[lanes] states, u16[...] words (even
number of bytes), then what the lanes could not carry of the gap code. No body where there are no
flips.
"""

import struct

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs import distance, envelope, rans, rice
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions

_ID = envelope.CODEC_IDS["side_info"]
_HEAD = struct.Struct("<BBBBII")
_CHUNK = 1 << 18  # positions per jitted call
_SMALL = 1 << 16  # below this many positions NumPy is faster than compiling
_MOST_BUCKETS = 48
_SHIFTS = 12  # bucket widths 1 .. 2**11

# Flip probabilities travel as one byte q: 2**(-q / 16), here in the units of rans.py.
_PROBABILITIES = np.clip(np.rint(rans.ONE * 2.0 ** (-np.arange(256) / 16)), 1, rans.ONE - 1)
_PROBABILITIES = _PROBABILITIES.astype(np.uint16)


def side_info() -> Codec:
    """Creates the codec. It is exact; the context must hold theta u16[d] and a stream."""
    return Codec("side_info", _encode, _decode)


def _encode(positions: np.ndarray, context: Context) -> bytes:
    positions = check_positions(positions, context.d)
    context.check()
    body = b""
    if positions.size:
        flip_distances = distance.at(context, positions)
        shift, buckets, near_bits = _choose_buckets(flip_distances, context)
        near, bucket = near_positions(context, shift, buckets)
        is_near = flip_distances >> shift < buckets
        far_flips = positions[~is_near]

        # Which probability a bucket gets is the encoder's choice: a sample of positions will do.
        step = max(1, len(bucket) >> 19)
        size = np.bincount(bucket[::step], minlength=buckets) * step
        flips = np.bincount(flip_distances[is_near] >> shift, minlength=buckets)
        q = np.rint(-16 * np.log2((flips + 0.4) / (np.maximum(size, flips) + 0.8)))
        q = np.clip(q, 0, 255).astype(np.uint8)

        k = rice.remainder_bits(len(far_flips), context.d)
        gaps = rice.pack_gaps(far_flips, k)
        # A lane costs a byte, a step of all lanes some microseconds: about 1 % or 4096 steps.
        lanes_log2 = _lanes_log2(max(near_bits >> 10, len(near) >> 12))
        carried = gaps[: 2 << lanes_log2].ljust(2 << lanes_log2, b"\0")
        bits = np.zeros(len(near), bool)
        bits[np.searchsorted(near, positions[is_near])] = True
        states, words = rans.encode(
            bits, _PROBABILITIES[q][bucket], np.frombuffer(carried, "<u2").astype(np.uint16)
        )
        body = b"".join(
            (
                _HEAD.pack(shift, buckets, k, lanes_log2, len(far_flips), len(gaps)),
                q.tobytes(),
                states.astype("<u4").tobytes(),
                words.astype("<u2").tobytes(),
                gaps[2 << lanes_log2 :],
            )
        )
    return envelope.pack(_ID, 0, context.d, len(positions), context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    context.check()
    received = envelope.unpack(payload, codec_id=_ID, d=context.d, round=context.round, client=context.client)
    body = received.body
    if received.flags:
        raise PayloadError(f"side_info payload has unknown flags {received.flags:#x}")
    if received.n == 0:
        if len(body):
            raise PayloadError("payload without flips must have no body")
        return np.zeros(0, np.uint32)
    if len(body) < _HEAD.size:
        raise PayloadError("side_info payload is too short for its header")
    shift, buckets, k, lanes_log2, far_count, gap_bytes = _HEAD.unpack_from(body)
    # The sender has a lane for 1,024 bits, and no near position costs more than one: twice that is allowed.
    most_lanes_log2 = min((context.d >> 9).bit_length(), rans.MOST_LANES_LOG2)
    known = shift < _SHIFTS and 1 <= buckets <= _MOST_BUCKETS
    if not known or lanes_log2 > most_lanes_log2 or far_count > received.n:
        raise PayloadError("side_info payload has impossible header fields")
    if k != rice.remainder_bits(far_count, context.d):
        raise PayloadError(f"side_info payload has {k} remainder bits, not those of its far flips and d")
    lanes_at = _HEAD.size + buckets
    words_at = lanes_at + (4 << lanes_log2)
    words_end = len(body) - max(gap_bytes - (2 << lanes_log2), 0)
    if words_end < words_at or (words_end - words_at) % 2:
        raise PayloadError("side_info payload is too short for what its header announces")
    q = np.frombuffer(body[_HEAD.size : lanes_at], np.uint8)
    states = np.frombuffer(body[lanes_at:words_at], "<u4")
    words = np.frombuffer(body[words_at:words_end], "<u2")

    near, bucket = near_positions(context, shift, buckets)
    if lanes_log2 < _lanes_log2(len(near) >> 12):
        raise PayloadError(f"side_info payload codes {len(near)} positions in only 2^{lanes_log2} lanes")
    bits, carried = rans.decode(_PROBABILITIES[q][bucket], states, words)
    near_flips = near[bits]
    carried = carried.astype("<u2").tobytes()
    if len(near_flips) + far_count != received.n or carried[gap_bytes:].strip(b"\0"):
        raise PayloadError("side_info payload holds another number of flips than it says")
    gaps = carried[:gap_bytes] + bytes(body[words_end:])
    far_flips = rice.unpack_gaps(gaps, far_count, k, context.d)
    far = distance.at(context, far_flips) >> shift >= buckets
    if not far.all():
        raise PayloadError("side_info payload codes a near position as a far one")
    return np.sort(np.concatenate((near_flips, far_flips)))


def _lanes_log2(lanes: int) -> int:
    """log2 of the power of two nearest to so many lanes, 0 … 12."""
    return min(round(np.log2(max(lanes, 1))), rans.MOST_LANES_LOG2)


def near_positions(context: Context, shift: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions whose distance >> shift is below `buckets`, and that bucket: u32[m], u8[m]."""
    theta_g = context.check()
    if context.d <= _SMALL:
        bucket = distance.between(context.uniforms(), theta_g) >> shift
        near = np.flatnonzero(bucket < buckets)
        return near.astype(np.uint32), bucket[near].astype(np.uint8)

    def near_in(start: int) -> tuple[np.ndarray, np.ndarray]:
        # The last chunk is moved back so that every call has the same shape.
        first = min(start, context.d - _CHUNK)
        chunk = slice(max(first, 0), first + _CHUNK)
        theta = theta_g[chunk]
        uniforms = context.uniforms(np.arange(chunk.start, chunk.start + len(theta), dtype=np.uint32))
        if first < 0:
            uniforms, theta = np.pad(uniforms, (0, -first)), np.pad(theta, (0, -first))
        bucket = np.asarray(_bucket_chunk(uniforms, theta, *distance.logit_tables(), np.int32(shift)))
        skip = start - max(first, 0)
        bucket = bucket[skip : min(context.d, _CHUNK)]
        near = np.flatnonzero(bucket < buckets)
        return near.astype(np.uint32) + np.uint32(start), bucket[near]

    with threads.pool() as pool:
        parts = list(pool.map(near_in, range(0, context.d, _CHUNK)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@jax.jit
def _bucket_chunk(uniforms, theta, uniform_odds, theta_odds, shift):
    """min(distance >> shift, 255) of positions, u8[chunk].

    Args:
        uniforms, theta: u16[chunk].
        uniform_odds, theta_odds: the tables U and T of `distance.logit_tables`, i16[65536].
        shift: i32[].
    """

    def look_up(table, index):
        return table.at[index.astype(jnp.int32)].get(mode="promise_in_bounds").astype(jnp.int32)

    apart = jnp.abs(look_up(uniform_odds, uniforms) - look_up(theta_odds, theta))
    return jnp.minimum(apart >> shift, 255).astype(jnp.uint8)


def _choose_buckets(flip_distances: np.ndarray, context: Context) -> tuple[int, int, int]:
    """Bucket width (as a shift) and near buckets with the least estimated size, and their bits."""
    step = max(1, context.d >> 17) | 1
    sample = distance.at(context, np.arange(0, context.d, step, dtype=np.uint32))
    thinning = max(1, len(flip_distances) >> 16) | 1
    total, flip_distances = len(flip_distances), flip_distances[::thinning]
    # Bits the encoder would pay to have one position fewer to code one by one: time matters at large d.
    symbol_cost = 0.008 + 0.012 * min(1, context.d / (1 << 25))
    best = (np.inf, 0, 1, 0)
    for shift in range(_SHIFTS):
        edges = np.arange(1, _MOST_BUCKETS + 1)
        flips = np.bincount(np.minimum(flip_distances >> shift, _MOST_BUCKETS))[:_MOST_BUCKETS]
        sizes = np.bincount(np.minimum(sample >> shift, _MOST_BUCKETS))[:_MOST_BUCKETS]
        flips = np.pad(flips, (0, _MOST_BUCKETS - len(flips))) * total / len(flip_distances)
        sizes = np.pad(sizes, (0, _MOST_BUCKETS - len(sizes))) * context.d / len(sample)
        p = np.clip((flips + 0.4) / np.maximum(sizes + 0.8, flips + 0.8), 1e-6, 1 - 1e-6)
        near_bits = -flips * np.log2(p) - np.maximum(sizes - flips, 0) * np.log2(1 - p)
        far = np.maximum(total - np.cumsum(flips), 0)
        far_bits = far * (np.log2(context.d / np.maximum(far, 1)) + 1.5)
        near_bits = np.cumsum(near_bits)
        # The lanes carry 16 bits each of what codes the far flips; about one lane per 1024 bits.
        far_bits = np.maximum(far_bits - near_bits / 64, 0)
        bits = near_bits + symbol_cost * np.cumsum(sizes) + far_bits + 8 * edges
        at = int(np.argmin(bits))
        best = min(best, (bits[at], shift, at + 1, int(near_bits[at])))
    return best[1:]
