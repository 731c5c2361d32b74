"""Values at 8 bits by stochastic rounding: unbiased, whatever the values.

Each group of 512 values has a float32 step, a 127th of its largest magnitude; a value travels as a signed
byte, the number of steps rounded up or down at random so that its expectation is exact. Bytes and steps go
through zstd, which gains where values crowd near zero.
"""

import numpy as np

from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_finite, check_scales
from deltamask_jax.public_random import ROUNDING, uniforms

GROUP = 512  # values that share a step; the steps add 1/16 bit per value
LEVELS = 127  # steps on either side of zero


def rounded() -> Codec:
    """Creates the codec of values f32[d]. Unbiased.

    A value that is not finite spoils its group's step, and the receiver refuses that.
    """
    return Codec("rounded", _encode, _decode, exact=False, kind="values")


def _encode(vector: np.ndarray, context: Context) -> bytes:
    vector = np.asarray(vector, np.float32)
    n = context.d
    if vector.shape != (n,):
        raise ValueError(f"rounding takes f32[{n}], got {list(vector.shape)}")
    noise = uniforms(context.stream(ROUNDING), n)
    grouped = np.pad(vector, (0, -n % GROUP)).reshape(-1, GROUP)
    steps = np.abs(grouped).max(axis=1, initial=0) / np.float32(LEVELS)
    divisor = np.where((steps > 0) & np.isfinite(steps), steps, 1)
    ratio = np.nan_to_num(grouped / divisor[:, None])
    up = (np.pad(noise, (0, -n % GROUP)).reshape(-1, GROUP).astype(np.float32) + 0.5) / 65536
    whole = np.floor(ratio)  # the fraction alone meets the noise: a sum would lose its low bits
    levels = np.clip(whole + (up < ratio - whole), -LEVELS, LEVELS).astype(np.int8).reshape(-1)[:n]
    body = containers.pack(steps.astype("<f4").tobytes() + levels.tobytes(), "zstd")
    return envelope.pack(envelope.CODEC_IDS["rounded"], 0, n, n, context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    code, size = envelope.CODEC_IDS["rounded"], context.d
    parcel = envelope.unpack(payload, codec_id=code, d=size, round=context.round, client=context.client)
    if parcel.flags or parcel.n != size:
        raise PayloadError(f"rounded payload has flags or {parcel.n} values, expected {size}")
    groups = -(-size // GROUP)
    body = containers.unpack(parcel.body, 4 * groups + size, "zstd")
    steps = np.frombuffer(body, "<f4", groups).astype(np.float32)
    levels = np.frombuffer(body, np.int8, size, 4 * groups)
    check_scales("rounded", steps)
    step = np.repeat(steps, GROUP)[:size]
    if (levels < -LEVELS).any() or levels[step == 0].any():
        raise PayloadError("rounded payload holds a value that no sender writes")
    with np.errstate(over="ignore"):
        return check_finite("rounded", levels * step)
