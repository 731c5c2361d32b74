"""What all fingerprint-filter codecs share: payload layout, parsing, and querying all d positions.

Body: u64 seed, u32 capacity, u16 window if flagged, container of the fingerprints (little-endian).
No body where there are no flips. Flags: bits 0-1 container, bits 2-3 log2 of the bytes per entry,
bit 4 set for 4-wise, bit 5 set for a window.

Not exact: each position that is not a flip is reported with probability 2**-bits.
"""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs import containers, distance, envelope, membership
from deltamask_jax.codecs.codec import Codec, Context, PayloadError, Sizes, check_positions
from deltamask_jax.codecs.cohort import attempt
from deltamask_jax.codecs.fingerprints import Filter, Geometry, fuse_geometry, xor_geometry

_HEAD = struct.Struct("<QI")
_LEAST = 0.9  # of `bits` per key: what distinguishes keys does not compress
_WINDOW = struct.Struct("<H")


class _Received(NamedTuple):
    filter: Filter
    farthest: int  # the window; 0 without one


def filter_codec(
    family: str,
    bits: int,
    arity: int,
    container: str,
    capacity: int,
    window: bool,
    geometry: Callable[[int], Geometry],
    build: Callable[[np.ndarray, int], Filter],
) -> Codec:
    """Creates a codec from a filter family.

    Args:
        family: 'bfuse' or 'xor', a key of `envelope.CODEC_IDS`.
        bits, arity, container, capacity, window: as in `bfuse`.
        geometry: capacity -> shape of the filter.
        build: (positions u32[n], capacity) -> filter; n >= 1.
    """
    codec_id = envelope.CODEC_IDS[family]
    flags = containers.CONTAINERS.index(container) | (bits // 16) << 2
    flags |= (arity - 3) << 4 | window << 5

    def room_of(n: int, d: int) -> int:
        """Keys that a filter of n has room for; receivers accept no other."""
        return min(max(capacity, n), d)

    def encode(positions: np.ndarray, context: Context) -> bytes:
        positions = check_positions(positions, context.d)
        body = b""
        if window:
            context.check()
        if positions.size:
            room = room_of(len(positions), context.d)
            built = build(positions, room)
            table = built.fingerprints.astype(f"<u{bits // 8}", copy=False).tobytes()
            body = _HEAD.pack(built.seed, room) + containers.pack(table, container)
            if window:
                farthest = distance.at(context, positions).max()
                body = body[: _HEAD.size] + _WINDOW.pack(farthest) + body[_HEAD.size :]
        n = len(positions)
        return envelope.pack(codec_id, flags, context.d, n, context.round, context.client, body)

    def read(payload: bytes, context: Context) -> _Received | None:
        """What a payload holds, None where there are no flips. No received byte reaches C."""
        received = envelope.unpack(
            payload, codec_id=codec_id, d=context.d, round=context.round, client=context.client
        )
        if received.flags != flags:
            raise PayloadError(f"payload has filter settings {received.flags:#x}, expected {flags:#x}")
        if received.n == 0:
            if len(received.body):
                raise PayloadError("payload without flips must have no body")
            return None
        head = _HEAD.size + window * _WINDOW.size
        if len(received.body) < head:
            raise PayloadError("filter payload is too short for its seed and capacity")
        seed, room = _HEAD.unpack_from(received.body)
        if received.n > context.d or room != room_of(received.n, context.d):
            raise PayloadError(f"filter of {received.n} keys has a capacity of {room}")
        if 8 * len(received.body) < _LEAST * bits * received.n:  # no filter of so many keys is so small
            raise PayloadError(f"filter of {received.n} keys in {len(received.body)} bytes")
        shape = geometry(room)
        size = bits // 8 * shape.array_length
        table = containers.unpack(received.body[head:], size, container)
        fingerprints = np.frombuffer(table, f"<u{bits // 8}").astype(f"u{bits // 8}")
        farthest = _WINDOW.unpack_from(received.body, _HEAD.size)[0] if window else 0
        return _Received(Filter(shape, seed, fingerprints), farthest)

    def decode(payload: bytes, context: Context) -> np.ndarray:
        if window:
            context.check()
        received = read(payload, context)
        if received is None:
            return np.zeros(0, np.uint32)
        hits = membership.query_all(received.filter, context.d)
        if window:
            apart = distance.at(context, hits)
            hits, apart = hits[apart <= received.farthest], apart[apart <= received.farthest]
            if apart.max(initial=-1) != received.farthest:
                raise PayloadError(f"filter holds no position at distance {received.farthest}, its window")
        return hits

    def count(payloads: Sequence[bytes], contexts: Sequence[Context], counts: np.ndarray) -> Sizes:
        with threads.pool() as pool:  # unpacking the containers takes its time
            received = list(pool.map(lambda *pair: attempt(read, *pair), payloads, contexts))
        full = [k for k, item in enumerate(received) if isinstance(item, _Received)]
        filters = [received[k].filter for k in full]
        sizes = dict(zip(full, membership.count_all(filters, counts), strict=True))
        return [sizes.get(k, item or 0) for k, item in enumerate(received)]

    name = f"{family}{bits}{'' if arity == 3 else '-4wise'}-{container}{'-window' if window else ''}"
    return Codec(name, encode, decode, exact=False, count=None if window else count)


def picture(payload: bytes) -> np.ndarray:
    """A payload that its codec has accepted as a near-square grayscale image u8[height, width].

    A filter's is that of its fingerprints, as it travels in a PNG; any other payload's shows the bytes of its
    body, row by row. b"", where nothing was sent, gives one black pixel.
    """
    if not payload:
        return containers.image(b"")
    received = envelope.unpack(payload)
    fuse = received.codec_id == envelope.CODEC_IDS["bfuse"]
    if not (fuse or received.codec_id == envelope.CODEC_IDS["xor"]) or not received.n:
        return containers.image(bytes(received.body))
    fields = ((0, 3), (2, 3), (4, 1), (5, 1))
    container, width, arity, window = (received.flags >> at & mask for at, mask in fields)
    _, room = _HEAD.unpack_from(received.body)
    shape = fuse_geometry(room, arity + 3) if fuse else xor_geometry(room)
    size = shape.array_length << width
    table = received.body[_HEAD.size + window * _WINDOW.size :]
    return containers.image(containers.unpack(table, size, containers.CONTAINERS[container]))


def check_options(family: str, bits: int, widths: tuple[int, ...], container: str) -> None:
    """Refuses bits per entry and containers that the family does not have.

    Raises:
        ValueError: naming the valid values.
    """
    if bits not in widths:
        raise ValueError(f"{family}: bits must be one of {widths}, got {bits}")
    if container not in containers.CONTAINERS:
        raise ValueError(f"{family}: container must be one of {containers.CONTAINERS}, got {container!r}")
