"""What all fingerprint-filter codecs share: payload layout, parsing, and querying all d positions.

Body: u64 seed, u32 capacity, container of the fingerprints (little-endian). No body where there are
no flips. Flags: bits 0-1 container, bits 2-3 log2 of the bytes per entry, bit 4 set for 4-wise.

Not exact: each position that is not a flip is reported with probability 2**-bits.
"""

import struct
from collections.abc import Callable

import numpy as np

from deltamask_jax.codecs import containers, envelope, membership
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, check_positions
from deltamask_jax.codecs.fingerprints import Filter, Geometry

_HEAD = struct.Struct("<QI")


def filter_codec(
    family: str,
    bits: int,
    arity: int,
    container: str,
    capacity: int | None,
    geometry: Callable[[int], Geometry],
    build: Callable[[np.ndarray, int], Filter],
) -> Codec:
    """Creates a codec from a filter family.

    Args:
        family: 'bfuse' or 'xor', a key of `envelope.CODEC_IDS`.
        bits, arity, container, capacity: as in `bfuse`.
        geometry: capacity -> shape of the filter.
        build: (positions u32[n], capacity) -> filter; n >= 1.
    """
    codec_id = envelope.CODEC_IDS[family]
    flags = containers.CONTAINERS.index(container) | (bits // 16) << 2 | (arity - 3) << 4

    def encode(positions: np.ndarray, context: Context) -> bytes:
        positions = check_positions(positions, context.d)
        body = b""
        if positions.size:
            # Receivers accept no capacity beyond d.
            room = min(max(capacity or 0, len(positions)), context.d)
            built = build(positions, room)
            table = built.fingerprints.astype(f"<u{bits // 8}", copy=False).tobytes()
            body = _HEAD.pack(built.seed, room) + containers.pack(table, container)
        n = len(positions)
        return envelope.pack(codec_id, flags, context.d, n, context.round, context.client, body)

    def read(payload: bytes, context: Context) -> Filter | None:
        """Parses a payload; no received byte reaches the C library. None where it holds no
        flips."""
        received = envelope.unpack(
            payload, codec_id=codec_id, d=context.d, round=context.round, client=context.client
        )
        if received.flags != flags:
            raise PayloadError(f"payload has filter settings {received.flags:#x}, expected {flags:#x}")
        if received.n == 0:
            if len(received.body):
                raise PayloadError("payload without flips must have no body")
            return None
        if len(received.body) < _HEAD.size:
            raise PayloadError("filter payload is too short for its seed and capacity")
        seed, room = _HEAD.unpack_from(received.body)
        if not received.n <= room <= context.d:
            raise PayloadError(f"filter capacity {room} is outside {received.n} .. {context.d}")
        shape = geometry(room)
        size = bits // 8 * shape.array_length
        table = containers.unpack(received.body[_HEAD.size :], size, container)
        return Filter(shape, seed, np.frombuffer(table, f"<u{bits // 8}").astype(f"u{bits // 8}"))

    def decode(payload: bytes, context: Context) -> np.ndarray:
        built = read(payload, context)
        if built is None:
            return np.zeros(0, np.uint32)
        return membership.query_all(built, context.d)

    def count(payloads, contexts) -> np.ndarray:
        filters = [read(*pair) for pair in zip(payloads, contexts, strict=True)]
        return membership.count_all([built for built in filters if built], contexts[0].d)

    suffix = "" if arity == 3 else "-4wise"
    return Codec(f"{family}{bits}{suffix}-{container}", encode, decode, exact=False, count=count)


def check_options(family: str, bits: int, widths: tuple[int, ...], container: str) -> None:
    """Refuses bits per entry and containers that the family does not have.

    Raises:
        ValueError: naming the valid values.
    """
    if bits not in widths:
        raise ValueError(f"{family}: bits must be one of {widths}, got {bits}")
    if container not in containers.CONTAINERS:
        raise ValueError(f"{family}: container must be one of {containers.CONTAINERS}, got {container!r}")
