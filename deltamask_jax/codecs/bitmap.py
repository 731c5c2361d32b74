"""One bit per position, uncompressed: what FedMask sends (Li et al., SenSys 2021). Exact.

Body: ceil(d / 8) bytes; bit b is bit 7 - b mod 8 of byte b div 8, padding is zero.
"""

import numpy as np

from deltamask_jax.codecs import envelope
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions, unpack_bits

_ID = envelope.CODEC_IDS["bitmap"]


def bitmap() -> Codec:
    """Creates the codec. It needs neither theta nor uniforms; every payload has 32 + ceil(d / 8) bytes."""
    return Codec("bitmap", _encode, _decode)


def _encode(positions: np.ndarray, context: Context) -> bytes:
    positions = check_positions(positions, context.d)
    bits = np.zeros(context.d, bool)
    bits[positions] = True
    body = np.packbits(bits).tobytes()
    return envelope.pack(_ID, 0, context.d, len(positions), context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    received = envelope.unpack(payload, codec_id=_ID, d=context.d, round=context.round, client=context.client)
    if received.flags or len(received.body) != -(-context.d // 8):
        raise PayloadError(f"bitmap payload has unknown flags or not {context.d} bits")
    bits = unpack_bits("bitmap", np.frombuffer(received.body, np.uint8), context.d)
    positions = np.flatnonzero(bits).astype(np.uint32)
    if len(positions) != received.n:
        raise PayloadError("bitmap payload holds another number of set bits than it says")
    return positions
