"""Dense vectors on the wire: θ as 16-bit integers on the downlink, weights in 16- or 32-bit floats both ways.

The body is the vector's little-endian bytes, byte planes apart (all low bytes, then the next, …), through
zstd: θ after a posterior reset takes few values, and the planes of the exponents of weights repeat.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_finite

_CODEC_IDS = {
    np.dtype(np.uint16): "theta",
    np.dtype(np.float32): "dense",
    np.dtype(np.float16): "half",
    np.dtype(jnp.bfloat16): "bfloat16",
}


def dense(dtype: Any = "float32") -> Codec:
    """Creates the codec of vectors of `dtype`, of shape [d]; values of another type are cast.

    Args:
        dtype: float32, float16, bfloat16, or uint16 for θ.

    Raises:
        ValueError: another type.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in _CODEC_IDS:
        raise ValueError(f"dense: dtype must be one of {', '.join(map(str, _CODEC_IDS))}, got {dtype}")
    return Codec(f"dense-{dtype}", partial(_encode, dtype), partial(_decode, dtype), kind="values")


def _encode(dtype: np.dtype, vector: np.ndarray, context: Context) -> bytes:
    if context.d * dtype.itemsize >= 1 << 32:
        raise ValueError(
            f"{context.d:,} values of {dtype} are more than the 4 GiB an envelope holds: send a narrower "
            "type, or train fewer weights"
        )
    vector = np.ascontiguousarray(vector, dtype)
    if vector.shape != (context.d,):
        raise ValueError(f"dense codec takes {dtype}[{context.d}], got {list(vector.shape)}")
    little = vector.view(f"u{vector.itemsize}").astype(f"<u{vector.itemsize}", copy=False)
    planes = np.ascontiguousarray(little.view(np.uint8).reshape(-1, vector.itemsize).T)
    body = containers.pack(planes.tobytes(), "zstd")
    code = envelope.CODEC_IDS[_CODEC_IDS[vector.dtype]]
    return envelope.pack(code, 0, context.d, context.d, context.round, context.client, body)


def _decode(dtype: np.dtype, payload: bytes, context: Context) -> np.ndarray:
    code, size = envelope.CODEC_IDS[_CODEC_IDS[dtype]], context.d
    parcel = envelope.unpack(payload, codec_id=code, d=size, round=context.round, client=context.client)
    if parcel.flags or parcel.n != size:
        raise PayloadError(f"dense payload has flags or {parcel.n} values, expected {size}")
    planes = containers.unpack(parcel.body, size * dtype.itemsize, "zstd")
    values = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, size).T
    little = np.ascontiguousarray(values).view(f"<u{dtype.itemsize}").reshape(size)
    vector = little.astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # bfloat16 warns of a signalling NaN
        return vector if dtype == np.uint16 else check_finite("dense", vector)
