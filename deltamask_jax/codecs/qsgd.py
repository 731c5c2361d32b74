"""QSGD (Alistarh et al., arXiv 1610.02132): each bucket's norm, and its values at few levels, at random.

A value v of a bucket with Euclidean norm r becomes sign(v) · r · l / s, where l is s·|v|/r rounded up or down
at random so that its mean is exact: an unbiased estimate. Most l are 0 or 1, so they are entropy-coded. The
paper uses Elias codes; here l is written in unary (is it ≥ 1? if so, ≥ 2? …) and the answers to each question
are coded at their own measured probability by rANS (see rans.py).

Body (little-endian): u32 bucket size, u8 largest l = K, u8 log2 lanes, u32[K] how many values have l ≥ 1 … K,
float32 norm a bucket, signs of the values with l ≥ 1 (a set bit is negative, padded to a byte), u32[lanes]
states, u16[...] words. All answers about l ≥ 1 come first, by position, then those about l ≥ 2. Flags: s.
"""

import math
import struct
from functools import partial

import numpy as np

from deltamask_jax.codecs import envelope, rans
from deltamask_jax.codecs.codec import (
    Codec,
    Context,
    PayloadError,
    check_scales,
    check_values,
    unpack_bits,
)
from deltamask_jax.public_random import QUANTISE, uniforms

_ID = envelope.CODEC_IDS["qsgd"]
_HEAD = struct.Struct("<IBB")


def qsgd(levels: int = 16, bucket: int = 512) -> Codec:
    """Creates the codec of values f32[d]. Unbiased.

    Args:
        levels: s, 1 … 255.
        bucket: values that share a norm.
    """
    encode, decode = partial(_encode, levels, bucket), partial(_decode, levels, bucket)
    return Codec(f"qsgd-{levels}-{bucket}", encode, decode, exact=False, kind="values")


def _encode(levels: int, bucket: int, vector: np.ndarray, context: Context) -> bytes:
    vector = check_values("qsgd", vector, context)
    n = vector.size
    size = np.abs(np.pad(vector, (0, -n % bucket))).reshape(-1, bucket).astype(np.float64)
    norms = np.sqrt(np.sum(size * size, axis=1)).astype(np.float32)
    with np.errstate(over="ignore"):
        per_norm = levels / np.where(norms > 0, norms, 1)
    tiny = np.isinf(per_norm)  # s / r is beyond float32
    per_norm = np.where(tiny, levels / np.where(tiny, norms, 1).astype(np.float64), per_norm)
    scaled = (size * per_norm[:, None]).reshape(-1)[:n]
    level = np.floor(scaled)
    up = (uniforms(context.stream(QUANTISE), n) + 0.5) / 65536 < scaled - level
    level = np.minimum(level + up, levels).astype(np.uint8)

    counts = np.cumsum(np.bincount(level, minlength=1)[::-1])[::-1]  # counts[k]: values with l ≥ k
    answers, asked = [], level
    for k in range(1, len(counts)):
        answers.append(asked >= k)
        asked = asked[answers[-1]]
    lanes_log2 = rans.lanes_log2(n)
    states, words = rans.encode(
        np.concatenate(answers) if answers else np.zeros(0, bool),
        _probabilities(counts),
        np.zeros(1 << lanes_log2, np.uint16),
    )
    body = b"".join(
        (
            _HEAD.pack(bucket, len(counts) - 1, lanes_log2),
            counts[1:].astype("<u4").tobytes(),
            norms.astype("<f4").tobytes(),
            np.packbits(vector[level > 0] < 0).tobytes(),
            states.astype("<u4").tobytes(),
            words.astype("<u2").tobytes(),
        )
    )
    return envelope.pack(_ID, levels, n, n, context.round, context.client, body)


def _decode(levels: int, bucket: int, payload: bytes, context: Context) -> np.ndarray:
    size = context.d
    parcel = envelope.unpack(payload, codec_id=_ID, d=size, round=context.round, client=context.client)
    body = parcel.body
    if parcel.flags != levels or parcel.n != size or len(body) < _HEAD.size:
        raise PayloadError(f"qsgd payload has {parcel.flags} levels or no header, expected {levels}")
    got_bucket, most, lanes_log2 = _HEAD.unpack_from(body)
    if got_bucket != bucket or most > levels or lanes_log2 != rans.lanes_log2(size):
        raise PayloadError(
            f"qsgd payload has buckets of {got_bucket}, levels to {most} and 2^{lanes_log2} lanes"
        )
    buckets, at = -(-size // bucket), _HEAD.size

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal at
        if len(body) - at < count * np.dtype(dtype).itemsize:
            raise PayloadError("qsgd payload is shorter than its header announces")
        values = np.frombuffer(body, dtype, count, at)
        at += values.nbytes
        return values

    counts = np.concatenate([[size], take(most, "<u4").astype(np.int64)])
    # Levels come from rounding s·|v|/r, and Σ|v| ≤ r·√bucket: what is beyond no sender writes.
    most_answers = size + buckets * (math.ceil(levels * math.sqrt(bucket)) + bucket)
    if (np.diff(counts) > 0).any() or counts[-1] < (size > 0) or counts.sum() > most_answers:
        raise PayloadError("qsgd payload announces levels that no rounding gives")
    norms = take(buckets, "<f4").astype(np.float32)
    check_scales("qsgd", norms)
    nonzero = int(counts[1]) if most else 0
    negative = unpack_bits("qsgd", take(-(-nonzero // 8), "u1"), nonzero)
    states = take(1 << lanes_log2, "<u4")
    if (len(body) - at) % 2:
        raise PayloadError("qsgd payload does not end with whole words")
    answers, carried = rans.decode(_probabilities(counts), states, take((len(body) - at) // 2, "<u2"))

    level, asked, start = np.zeros(size, np.uint8), np.arange(size), 0
    for k in range(1, most + 1):
        asked, start = asked[answers[start : start + asked.size]], start + asked.size
        if asked.size != counts[k]:
            raise PayloadError("qsgd payload holds other levels than it announces")
        level[asked] = k
    if carried.any():
        raise PayloadError("qsgd payload carries what no sender writes")
    norm = np.repeat(norms, bucket)[:size]
    if level[norm == 0].any():
        raise PayloadError("qsgd payload has levels where its norm is 0")
    with np.errstate(over="ignore"):  # s · (r / s) may round to more than the largest float
        values = np.minimum(level * np.repeat(norms / np.float32(levels), bucket)[:size], norm)
    values[np.flatnonzero(level)[negative]] *= -1
    return values


def _probabilities(counts: np.ndarray) -> np.ndarray:
    """Of each answer, the chance of yes: u16[Σ counts[:-1]] in units of 2⁻¹⁴, as `rans` wants it."""
    yes = np.rint(rans.ONE * counts[1:] / np.maximum(counts[:-1], 1)).clip(1, rans.ONE - 1)
    return np.repeat(yes.astype(np.uint16), counts[:-1])
