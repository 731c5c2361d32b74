"""Binary-fuse-filter codec: DeltaMask's own (arXiv 2311.17299, section 3.2).

Flips are inserted in a binary fuse filter (Graf & Lemire, arXiv 2201.01174); the fingerprint array travels as a
grayscale image, and the receiver queries all d positions. Not exact: each position that is not a flip is reported with
probability 2**-bits.

Body: u64 seed, u32 capacity, container of the fingerprints (little-endian). No body where there are no flips.
"""

import struct

import numpy as np

from deltamask_jax.codecs import containers, envelope, fuse_filter, membership
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions

_ID = envelope.CODEC_IDS["bfuse"]
_HEAD = struct.Struct("<QI")


def bfuse(
    bits: int = 8, arity: int = 3, container: str = "png", capacity: int | None = None
) -> Codec:
    """Creates the codec.

    Args:
        bits: bits per entry, 8, 16 or 32.
        arity: slots per key, 3 or 4 (4 is 4 % smaller and slower to build).
        container: 'png', 'zstd' or 'raw'.
        capacity: key count that sets the geometry, so that a cohort shares it; None means each payload its own n.
            Payloads with more keys fall back to their own n.

    Raises:
        ValueError: an option has another value.
    """
    if bits not in (8, 16, 32) or arity not in (3, 4) or container not in containers.CONTAINERS:
        raise ValueError(
            f"bfuse: bits must be 8, 16 or 32, arity 3 or 4, container one of {', '.join(containers.CONTAINERS)}; "
            f"got bits={bits}, arity={arity}, container={container!r}"
        )
    flags = containers.CONTAINERS.index(container) | (bits // 16) << 2 | (arity - 3) << 4

    def encode(positions: np.ndarray, context: Context) -> bytes:
        positions = check_positions(positions, context.d)
        body = b""
        if positions.size:
            # A cohort's capacity counts only up to d, which is what every receiver accepts.
            room = min(max(capacity or 0, len(positions)), context.d)
            built = fuse_filter.build(positions, bits, arity, room)
            table = built.fingerprints.astype(f"<u{bits // 8}", copy=False).tobytes()
            body = _HEAD.pack(built.seed, room) + containers.pack(table, container)
        return envelope.pack(
            _ID, flags, context.d, len(positions), context.round, context.client, body
        )

    def decode(payload: bytes, context: Context) -> np.ndarray:
        built = read(payload, context, flags)
        return np.zeros(0, np.uint32) if built is None else membership.query_all(built, context.d)

    suffix = "" if arity == 3 else "-4wise"
    return Codec(f"bfuse{bits}{suffix}-{container}", encode, decode, exact=False)


def read(payload: bytes, context: Context, flags: int) -> fuse_filter.Filter | None:
    """Parses a payload in Python alone: no received byte reaches the C library. None where it holds no flips.

    Allocates at most 4 bytes per slot of the geometry that capacity <= d implies.

    Raises:
        PayloadError: anything but a valid payload written with the same settings.
    """
    received = envelope.unpack(
        payload, codec_id=_ID, d=context.d, round=context.round, client=context.client
    )
    if received.flags != flags:
        raise PayloadError(f"payload has filter settings {received.flags:#x}, expected {flags:#x}")
    if received.n == 0:
        if len(received.body):
            raise PayloadError("payload without flips must have no body")
        return None
    if len(received.body) < _HEAD.size:
        raise PayloadError("filter payload is too short for its seed and capacity")
    seed, capacity = _HEAD.unpack_from(received.body)
    if not received.n <= capacity <= context.d:
        raise PayloadError(f"filter capacity {capacity} is outside {received.n} .. {context.d}")
    shape = fuse_filter.geometry(capacity, 3 + (flags >> 4 & 1))
    width = 1 << (flags >> 2 & 3)
    container = containers.CONTAINERS[flags & 3]
    table = containers.unpack(received.body[_HEAD.size :], width * shape.array_length, container)
    return fuse_filter.Filter(
        shape, seed, np.frombuffer(table, f"<u{width}").astype(f"u{width}", copy=False)
    )
