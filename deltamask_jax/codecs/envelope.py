"""The 32-byte envelope around every payload, up or down. Byte by byte in docs/wire-format.md."""

import struct
import zlib
from dataclasses import dataclass

from deltamask_jax.codecs.codec import PayloadError

MAGIC = b"DMJX"
VERSION = 1
SIZE = 32  # bytes
# Of a body: this many per position, and this many more. A snapshot whose posterior has fractions takes 10.
MOST_BYTES = (12, 1 << 16)

# One table for all payload kinds; a number is never reused.
CODEC_IDS = {
    "bfuse": 1,
    "xor": 2,
    "bloom": 3,
    "rice": 4,
    "side_info": 5,
    "arithmetic": 6,
    "bitmap": 7,
    "random_coding": 8,  # masks by minimal random coding; see random_coding.py
    "tally": 9,  # votes of a cohort, on the way down; see tally.py
    "bundle": 10,  # several payloads in one; see bundle.py
    "theta": 32,  # downlink: theta as u16[d]; see dense.py
    "dense": 35,  # float32 values, both ways; see dense.py
    "half": 48,  # float16 values, both ways; see dense.py
    "rounded": 49,  # values rounded to 8 bits, both ways; see rounded.py
    "bfloat16": 64,  # bfloat16 values; see dense.py
    "eden": 65,  # rotated and quantised values; see eden.py
    "qsgd": 66,  # values rounded to few levels; see qsgd.py
    "signs": 67,  # signs of values; see signs.py
}

_FIELDS = struct.Struct("<4sBBHIIIII")  # without the CRC32, which follows
assert _FIELDS.size == SIZE - 4


@dataclass(frozen=True)
class Envelope:
    """A checked payload: header fields and body.

    Attributes:
        codec_id: value of `CODEC_IDS`.
        flags: u16, meaning given by the codec.
        d: number of masked weights (or of values, where a payload carries something else).
        n: number of keys (flips) or values.
        round: round number.
        client: client number; 2³² − 1 on the downlink.
        body: the bytes after the header, not copied.
    """

    codec_id: int
    flags: int
    d: int
    n: int
    round: int
    client: int
    body: memoryview


def pack(codec_id: int, flags: int, d: int, n: int, round: int, client: int, body: bytes) -> bytes:
    """Returns header + body.

    Raises:
        ValueError: a field does not fit its width.
    """
    if len(body) >= 1 << 32:
        raise ValueError(f"a payload of {len(body):,} bytes is more than an envelope holds, 4 GiB")
    try:
        fields = _FIELDS.pack(MAGIC, VERSION, codec_id, flags, d, n, round, client, len(body))
    except struct.error as error:
        raise ValueError(f"envelope field out of range: {error}") from None
    crc = zlib.crc32(body, zlib.crc32(fields))
    return b"".join((fields, struct.pack("<I", crc), body))


def unpack(
    payload: bytes,
    *,
    codec_id: int | None = None,
    d: int | None = None,
    round: int | None = None,
    client: int | None = None,
) -> Envelope:
    """Checks a received payload against what the receiver expects; allocates nothing.

    Args:
        payload: any bytes.
        codec_id, d, round, client: expected values; None accepts any.

    Raises:
        PayloadError: truncated, corrupted, foreign, or meant for something else.
    """
    view = memoryview(payload).cast("B")
    if len(view) < SIZE:
        raise PayloadError(
            f"payload of {len(view)} bytes is shorter than its {SIZE}-byte header (truncated?)",
            reason="wrong length",
        )
    magic, version, got_id, flags, got_d, n, got_round, got_client, length = _FIELDS.unpack_from(view)
    if magic != MAGIC:
        raise PayloadError("payload does not start with DMJX: not written by deltamask_jax", reason="foreign")
    if version != VERSION:
        raise PayloadError(
            f"payload has format version {version}, this program reads {VERSION}: use the same release",
            reason="other version",
        )
    if length != len(view) - SIZE:
        raise PayloadError(
            f"payload body has {len(view) - SIZE} bytes, header says {length} (truncated or padded)",
            reason="wrong length",
        )
    if length > MOST_BYTES[0] * got_d + MOST_BYTES[1]:
        raise PayloadError(f"payload of {length} bytes is longer than any for d = {got_d}", reason="too long")
    (crc,) = struct.unpack_from("<I", view, SIZE - 4)
    if crc != zlib.crc32(view[SIZE:], zlib.crc32(view[: SIZE - 4])):
        raise PayloadError("payload checksum does not match: corrupted on the way", reason="checksum")
    expectations = (("codec id", codec_id, got_id), ("d", d, got_d), ("round", round, got_round))
    for field, expected, got in (*expectations, ("client", client, got_client)):
        if expected is not None and expected != got:
            raise PayloadError(f"payload has {field} {got}, expected {expected}", reason=f"other {field}")
    if n > got_d:
        raise PayloadError(f"payload claims {n} keys of only {got_d} positions")
    return Envelope(got_id, flags, got_d, n, got_round, got_client, view[SIZE:])
