"""Scaled signs, what SignSGD sends (arXiv 1802.04434) with the scale of EF-SignSGD (arXiv 1901.09847).

v becomes sign(v) · mean |v|, with one mean for every 4,096 values: layers differ in scale, and 32 bits for so
many are a hundredth of a bit per value. Biased: error feedback makes up for it.

Body (little-endian): a float32 mean per bucket, then a bit per value, set where it is negative, padded to a
byte. Where a mean is 0 no bit is set.
"""

import numpy as np

from deltamask_jax.codecs import envelope
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_scales, check_values, unpack_bits

_ID = envelope.CODEC_IDS["signs"]
BUCKET = 4096  # values that share a scale


def signs() -> Codec:
    """Creates the codec of values f32[d]: a bit per value, and 32 per bucket."""
    return Codec("signs", _encode, _decode, exact=False, kind="values")


def _encode(vector: np.ndarray, context: Context) -> bytes:
    vector = check_values("signs", vector, context)
    n = vector.size
    sums = np.add.reduceat(np.abs(vector), np.arange(0, n, BUCKET), dtype=np.float64) if n else np.zeros(0)
    means = (sums / np.minimum(BUCKET, n - np.arange(0, n, BUCKET))).astype("<f4")
    negative = (vector < 0) & (np.repeat(means, BUCKET)[:n] > 0)
    body = means.tobytes() + np.packbits(negative).tobytes()
    return envelope.pack(_ID, 0, n, n, context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    size = context.d
    parcel = envelope.unpack(payload, codec_id=_ID, d=size, round=context.round, client=context.client)
    buckets = -(-size // BUCKET)
    if parcel.flags or parcel.n != size or len(parcel.body) != 4 * buckets + -(-size // 8):
        raise PayloadError(f"signs payload of {len(parcel.body)} bytes does not hold {size} values")
    means = np.frombuffer(parcel.body, "<f4", buckets).astype(np.float32)
    check_scales("signs", means)
    negative = unpack_bits("signs", np.frombuffer(parcel.body, np.uint8, offset=4 * buckets), size)
    values = np.repeat(means, BUCKET)[:size]
    if (values[negative] == 0).any():
        raise PayloadError("signs payload has signs where its scale is 0")
    return np.where(negative, -values, values)
