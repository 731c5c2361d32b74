"""Rice-coded gaps between flips: exact, no side information (Rice & Plaunt 1971; Golomb 1966).

Gaps of uniformly spread flips are geometric, for which Golomb's code is optimal and Rice's (a power
of two as divisor) within 3 %. Quotients and remainders travel as two separate bit strings, so that
both ends are vector operations.

Body: u8 remainder bits k, then the gaps (see `pack_gaps`). No body where there are no flips.
"""

import numpy as np

from deltamask_jax.codecs import envelope
from deltamask_jax.codecs.codec import Bytes, Codec, Context, PayloadError, check_positions

_ID = envelope.CODEC_IDS["rice"]


def rice() -> Codec:
    """Creates the codec of positions u32[n]. It is exact and needs neither θ nor uniforms."""

    def encode(positions: np.ndarray, context: Context) -> bytes:
        positions = check_positions(positions, context.d)
        body = b""
        if positions.size:
            k = remainder_bits(len(positions), context.d)
            body = bytes([k]) + pack_gaps(positions, k)
        return envelope.pack(_ID, 0, context.d, len(positions), context.round, context.client, body)

    def decode(payload: bytes, context: Context) -> np.ndarray:
        received = envelope.unpack(
            payload, codec_id=_ID, d=context.d, round=context.round, client=context.client
        )
        if received.flags:
            raise PayloadError(f"rice payload has unknown flags {received.flags:#x}")
        if received.n == 0:
            if len(received.body):
                raise PayloadError("payload without flips must have no body")
            return np.zeros(0, np.uint32)
        if not len(received.body):
            raise PayloadError("rice payload has no body")
        if received.body[0] != remainder_bits(received.n, context.d):
            raise PayloadError(f"rice payload has {received.body[0]} remainder bits, not its n's and d's")
        return unpack_gaps(received.body[1:], received.n, received.body[0], context.d)

    return Codec("rice", encode, decode)


def remainder_bits(n: int, d: int) -> int:
    """Best k for n flips spread over d positions: 2**k close to ln 2 times the mean gap."""
    mean = max(d / max(n, 1) - 1, 0)
    return max(0, int(np.floor(np.log2(max(mean * 0.98, 1)))))


def pack_gaps(positions: np.ndarray, k: int) -> bytes:
    """Codes sorted unique positions u32[n] with k remainder bits a gap.

    Layout: quotients in unary (that many 0 bits, then a 1), padded to a byte; then n remainders of
    k bits, padded to a byte. First bit = highest of the first byte.
    """
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    ends = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    remainders = np.empty((len(gaps), k), np.uint8)
    for j in range(k):
        remainders[:, j] = gaps >> (k - 1 - j) & 1
    return np.packbits(unary).tobytes() + np.packbits(remainders).tobytes()


def unpack_gaps(data: Bytes, n: int, k: int, limit: int) -> np.ndarray:
    """Inverse of `pack_gaps`: sorted unique positions u32[n], all below `limit`.

    Allocates at most about 60 bytes per position, and one per 2**k positions below `limit`.

    Raises:
        PayloadError: not exactly n gaps in exactly these bytes, or a position at or beyond `limit`.
    """
    split = len(data) - (n * k + 7) // 8
    if k > 31 or split * 8 < n:
        raise PayloadError(f"gap code of {len(data)} bytes is too short for {n} gaps of {k} bits")
    if (split - 1) * 8 >= n + (limit >> k):
        raise PayloadError(f"gap code of {len(data)} bytes reaches beyond position {limit - 1}")
    packed = np.frombuffer(data, np.uint8)
    held = int(np.bitwise_count(packed[:split]).sum())  # before each of them takes memory
    if held != n:
        raise PayloadError(f"gap code holds {held} gaps, header says {n}")
    ends = np.flatnonzero(np.unpackbits(packed[:split]))
    if (split - 1) * 8 > (ends[-1] if n else -1):
        raise PayloadError(f"gap code of {len(data)} bytes is longer than its {n} gaps need")
    tail = np.unpackbits(packed[split:])
    if tail[n * k :].any():
        raise PayloadError("gap code is not padded with zeros")
    remainder_rows = tail[: n * k].reshape(n, k)
    gaps = np.diff(ends, prepend=-1) - 1
    for j in range(k):
        gaps = gaps << 1 | remainder_rows[:, j]
    if (gaps >= limit).any():
        raise PayloadError(f"gap code reaches beyond position {limit - 1}")
    positions = np.cumsum(gaps + 1) - 1
    if n and positions[-1] >= limit:
        raise PayloadError(f"gap code reaches beyond position {limit - 1}")
    return positions.astype(np.uint32)
