"""Values at 8 bits by stochastic rounding: unbiased, whatever the values.

Each group of 512 values has a float32 step, a 127th of its largest magnitude; a value travels as a signed
byte, the number of steps rounded up or down at random so that its expectation is exact. Bytes and steps go
through zstd, which gains where values crowd near zero.
"""

import numpy as np

from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.codec import PayloadError, check_finite, check_scales

GROUP = 512  # values that share a step; the steps add 1/16 bit a value
LEVELS = 127  # steps on either side of zero


def encode(vector: np.ndarray, noise: np.ndarray, *, round_number: int, client: int) -> bytes:
    """One payload.

    Args:
        vector: f32[n]. A value that is not finite spoils its group's step, and the receiver refuses that.
        noise: u16[n], uniform integers that decide what is rounded up.
        client: client id, or `dense.SERVER` on the downlink.

    Raises:
        ValueError: not one-dimensional, or noise of another length.
    """
    vector = np.asarray(vector, np.float32)
    if vector.ndim != 1 or noise.shape != vector.shape:
        raise ValueError(f"rounding takes f32[n] and as much noise, got {vector.shape}, {noise.shape}")
    n = vector.size
    grouped = np.pad(vector, (0, -n % GROUP)).reshape(-1, GROUP)
    steps = np.abs(grouped).max(axis=1, initial=0) / np.float32(LEVELS)
    divisor = np.where((steps > 0) & np.isfinite(steps), steps, 1)
    ratio = np.nan_to_num(grouped / divisor[:, None])
    up = (np.pad(noise, (0, -n % GROUP)).reshape(-1, GROUP).astype(np.float32) + 0.5) / 65536
    whole = np.floor(ratio)  # the fraction alone meets the noise: a sum would lose its low bits
    levels = np.clip(whole + (up < ratio - whole), -LEVELS, LEVELS).astype(np.int8).reshape(-1)[:n]
    body = containers.pack(steps.astype("<f4").tobytes() + levels.tobytes(), "zstd")
    return envelope.pack(envelope.CODEC_IDS["rounded"], 0, n, n, round_number, client, body)


def decode(payload: bytes, size: int, *, round_number: int, client: int) -> np.ndarray:
    """The rounded values, f32[size].

    Raises:
        PayloadError: not such a payload.
    """
    code = envelope.CODEC_IDS["rounded"]
    parcel = envelope.unpack(payload, codec_id=code, d=size, round=round_number, client=client)
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
