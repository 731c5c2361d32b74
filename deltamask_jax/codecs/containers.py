"""Containers of a fingerprint array: a grayscale PNG as in DeltaMask (arXiv 2311.17299), zstd, or
the raw bytes.

Received bytes never reach an image library: the PNG reader below accepts exactly what the writer
makes (one 8-bit grayscale image of the expected size, rows unfiltered) and inflates at most the
expected number of bytes.
"""

import math
import struct
import zlib

import numpy as np
import zstandard

from deltamask_jax.codecs.codec import Bytes, PayloadError

CONTAINERS = ("raw", "png", "zstd")  # index = number on the wire

_PIECE = 1 << 16  # bytes that are inflated at once
_LEAST_BLOCK = 1024  # bytes a zstd block holds on average, at least; encoders split at 8,192
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def pack(data: bytes, container: str) -> bytes:
    """Returns `data` in the named container."""
    if container == "png":
        return _png(data)
    if container == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return bytes(data)


def unpack(blob: Bytes, size: int, container: str) -> bytes:
    """Returns the `size` bytes inside the container; allocates a small multiple of `size` at most.

    Raises:
        PayloadError: the container is malformed or holds another number of bytes.
    """
    if container == "png":
        return _read_png(blob, size)
    if container == "zstd":
        return _read_zstd(blob, size)
    if len(blob) != size:
        raise PayloadError(f"fingerprint array has {len(blob)} bytes, its geometry needs {size}")
    return bytes(blob)


def image_shape(size: int) -> tuple[int, int]:
    """Height and width in pixels of the near-square image that holds `size` bytes."""
    width = max(1, math.isqrt(max(size, 1) - 1) + 1)
    return max(1, -(-size // width)), width


def image(data: bytes) -> np.ndarray:
    """The fingerprint array as the picture it travels as: u8[height, width], zero-padded."""
    height, width = image_shape(len(data))
    pixels = np.zeros(height * width, np.uint8)
    pixels[: len(data)] = np.frombuffer(data, np.uint8)
    return pixels.reshape(height, width)


def inflate(stream: Bytes, size: int, wbits: int = 15) -> tuple[bytes, Bytes]:
    """Inflates what should hold `size` bytes, in a time bounded by that.

    Blocks of deflate may be empty, and each costs a table all the same. No sender's stream is much longer
    than what it holds, up to any of its places.

    Args:
        wbits: as of `zlib.decompressobj`; −15 for a stream without header and checksum.

    Returns:
        The bytes, and what follows the stream.

    Raises:
        PayloadError: the stream is damaged, holds another number of bytes, or is longer than a sender's.
    """
    worker, data, read = zlib.decompressobj(wbits), bytearray(), 0
    while not worker.eof:
        piece = stream[read : read + _PIECE]
        read += len(piece)
        try:
            data += worker.decompress(piece, size + 1 - len(data))
        except zlib.error as error:
            raise PayloadError(f"deflated bytes do not inflate: {error}") from None
        if len(data) > size or not (len(piece) or worker.eof):
            raise PayloadError(f"deflated bytes hold another number than {size}")
        if not worker.eof and read > len(data) + len(data) // 8 + _PIECE:
            raise PayloadError("deflated bytes hold empty blocks, which no sender writes")
    if len(data) != size:
        raise PayloadError(f"deflated bytes hold another number than {size}")
    return bytes(data), stream[read - len(worker.unused_data) :]


def most_deflated(size: int) -> int:
    """Bytes that no sender's deflate stream of `size` bytes exceeds."""
    return size + size // 8 + 64


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _header(height: int, width: int) -> bytes:
    return struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grayscale, not interlaced


def _png(data: bytes) -> bytes:
    pixels = image(data)
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # each row starts with its filter type, 0
    # All that deflate gains on fingerprints is the short code of empty (zero) slots: no need to
    # search for matches.
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    stream = deflate.compress(rows) + deflate.flush()
    return b"".join(
        (
            _PNG_SIGNATURE,
            _chunk(b"IHDR", _header(*pixels.shape)),
            _chunk(b"IDAT", stream),
            _chunk(b"IEND", b""),
        )
    )


def _read_png(blob: Bytes, size: int) -> bytes:
    view = memoryview(blob)
    height, width = image_shape(size)
    start = _PNG_SIGNATURE + _chunk(b"IHDR", _header(height, width))
    end = _chunk(b"IEND", b"")
    first, last = len(start), len(view) - len(end)
    if last - first < 12 or view[:first] != start or view[last:] != end:
        raise PayloadError(f"not a PNG of one 8-bit grayscale image of {width} x {height} pixels")
    (length,) = struct.unpack_from(">I", view, first)
    if length != last - first - 12 or view[first + 4 : first + 8] != b"IDAT":
        raise PayloadError("PNG must hold its pixels in one IDAT chunk")
    stream = view[first + 8 : last - 4]
    if zlib.crc32(view[first + 4 : last - 4]) != struct.unpack_from(">I", view, last - 4)[0]:
        raise PayloadError("PNG pixels do not have their checksum")
    expected = height * (width + 1)
    if len(stream) > most_deflated(expected):
        raise PayloadError(f"PNG has {len(stream)} deflated bytes of {expected}, more than any sender's")
    pixels, rest = inflate(stream, expected)
    if len(rest):
        raise PayloadError("PNG has bytes behind its pixels")
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width + 1)
    pixels = rows[:, 1:].ravel()
    if rows[:, 0].any() or pixels[size:].any():
        raise PayloadError("PNG rows must be unfiltered and padded with zeros")
    return pixels[:size].tobytes()


def _read_zstd(blob: Bytes, size: int) -> bytes:
    try:
        # The frame's own claims decide what zstandard allocates: check them first.
        frame = zstandard.get_frame_parameters(blob)
        if frame.content_size != size or frame.window_size > max(size, 1024):
            raise PayloadError(f"zstd frame claims {frame.content_size} bytes, expected {size}")
        if frame.has_checksum or frame.dict_id:
            raise PayloadError("zstd frame has a checksum or a dictionary, which no sender writes")
        _check_blocks(blob, zstandard.frame_header_size(blob), most=size // _LEAST_BLOCK + 8)
        data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"zstd frame does not decompress: {error}") from None
    if len(data) != size:
        raise PayloadError(f"zstd frame holds {len(data)} bytes, expected {size}")
    return data


def _check_blocks(blob: Bytes, at: int, most: int) -> None:
    """Follows the headers of a zstd frame's blocks (RFC 8878, 3.1.1.2) from byte `at` to the frame's end: a
    decoder builds tables for each block, which takes microseconds however little it holds."""
    for _ in range(most):
        header = int.from_bytes(blob[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)  # of kind 1, a byte that is repeated
        if last:
            if at != len(blob):
                raise PayloadError("zstd frame does not end where its last block does")
            return
    raise PayloadError(f"zstd frame has more than {most} blocks")
