"""Dense vectors on the wire: θ as 16-bit integers on the downlink, weights in 16- or 32-bit floats both ways.

The body is the vector's little-endian bytes, byte planes apart (all low bytes, then the next, …), through
zstd: θ after a posterior reset takes few values, and the planes of the exponents of weights repeat.
"""

import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.codec import PayloadError, check_finite

SERVER = 0xFFFFFFFF  # the envelope's client number on the downlink

_CODEC_IDS = {
    np.dtype(np.uint16): "theta",
    np.dtype(np.float32): "dense",
    np.dtype(np.float16): "half",
    np.dtype(jnp.bfloat16): "bfloat16",
}


def encode(vector: np.ndarray, *, round_number: int, client: int) -> bytes:
    """One payload.

    Args:
        vector: u16[n], f32[n], f16[n] or bf16[n].
        client: client id, or `SERVER` on the downlink.

    Raises:
        ValueError: another dtype, or not one-dimensional.
    """
    vector = np.ascontiguousarray(vector)
    if vector.ndim != 1 or vector.dtype not in _CODEC_IDS:
        raise ValueError(f"dense codec takes u16[n] or floats [n], got {vector.dtype}{list(vector.shape)}")
    little = vector.view(f"u{vector.itemsize}").astype(f"<u{vector.itemsize}", copy=False)
    planes = np.ascontiguousarray(little.view(np.uint8).reshape(-1, vector.itemsize).T)
    body = containers.pack(planes.tobytes(), "zstd")
    code = envelope.CODEC_IDS[_CODEC_IDS[vector.dtype]]
    return envelope.pack(code, 0, vector.size, vector.size, round_number, client, body)


def decode(payload: bytes, size: int, dtype: type, *, round_number: int, client: int) -> np.ndarray:
    """The vector, `dtype[size]`.

    Raises:
        PayloadError: not such a payload, or float values that are not finite.
    """
    dtype = np.dtype(dtype)
    code = envelope.CODEC_IDS[_CODEC_IDS[dtype]]
    parcel = envelope.unpack(payload, codec_id=code, d=size, round=round_number, client=client)
    if parcel.flags or parcel.n != size:
        raise PayloadError(f"dense payload has flags or {parcel.n} values, expected {size}")
    planes = containers.unpack(parcel.body, size * dtype.itemsize, "zstd")
    values = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, size).T
    little = np.ascontiguousarray(values).view(f"<u{dtype.itemsize}").reshape(size)
    vector = little.astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # bfloat16 warns of a signalling NaN
        return vector if dtype == np.uint16 else check_finite("dense", vector)
