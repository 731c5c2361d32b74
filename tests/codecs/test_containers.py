"""Containers: lossless, readable by others, and no decompression bombs."""

import io
import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deltamask_jax.codecs import PayloadError, containers
from tests.codecs.cases import empty_blocks


@given(data=st.binary(max_size=3000), container=st.sampled_from(containers.CONTAINERS))
def test_round_trip(data, container):
    assert containers.unpack(containers.pack(data, container), len(data), container) == data


def test_png_is_the_near_square_grayscale_image_of_the_fingerprints():
    data = np.random.default_rng(0).integers(0, 256, 10_007, dtype=np.uint8).tobytes()
    opened = Image.open(io.BytesIO(containers.pack(data, "png")))
    assert opened.mode == "L" and opened.format == "PNG"
    assert abs(opened.width - opened.height) <= 1
    np.testing.assert_array_equal(np.asarray(opened), containers.image(data))
    assert np.asarray(opened).tobytes()[: len(data)] == data


def test_empty_slots_make_the_image_smaller():
    data = np.random.default_rng(0).integers(1, 256, 20_000, dtype=np.uint8)
    full = len(containers.pack(data.tobytes(), "png"))
    data[np.random.default_rng(1).random(20_000) < 0.12] = 0
    assert len(containers.pack(data.tobytes(), "png")) < 0.97 * full


@pytest.mark.parametrize("container", containers.CONTAINERS)
def test_another_size_is_refused(container):
    blob = containers.pack(b"\xff" * 1000, container)
    for size in (0, 1, 900, 999, 1100, 10**6):
        with pytest.raises(PayloadError):
            containers.unpack(blob, size, container)


def _png(stream, width=32, height=32, depth=8, colour=0, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunk = containers._chunk
    return b"".join((b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), extra, chunk(b"IDAT", stream))) + chunk(
        b"IEND", b""
    )


def test_png_bombs_and_unexpected_images_are_refused():
    good = zlib.compress(bytes(32 * 33))
    assert containers.unpack(_png(good), 1024, "png") == bytes(1024)
    bomb = zlib.compress(bytes(50_000_000))
    filtered = zlib.compress((b"\1" + bytes(32)) * 32)
    for blob in (
        _png(bomb),
        _png(good, width=60_000, height=60_000),
        _png(good, depth=16),
        _png(good, colour=2),
        _png(good, extra=containers._chunk(b"tEXt", b"Comment\0x")),
        _png(good[:-4]),
        _png(good + b"more"),
        _png(b""),
        _png(filtered),
        b"",
        b"\x89PNG\r\n\x1a\n",
    ):
        with pytest.raises(PayloadError):
            containers.unpack(blob, 1024, "png")


def test_streams_of_empty_blocks_are_refused_before_they_are_read():
    """Each costs a table, though it gives nothing: time would be bounded by the payload's length alone."""
    rows = bytes(range(256)) * 2000
    deflated = zlib.compress(rows, 9, wbits=-15)
    assert containers.inflate(empty_blocks(2) + deflated + b"next", len(rows), -15) == (rows, b"next")
    with pytest.raises(PayloadError, match="empty blocks"):
        containers.inflate(empty_blocks(5000) + deflated, len(rows), -15)
    small = zlib.compress(bytes(32 * 33))
    hostile = small[:2] + empty_blocks(40) + small[2:]
    assert zlib.decompress(hostile) == bytes(32 * 33)
    with pytest.raises(PayloadError, match="more than any sender's"):
        containers.unpack(_png(hostile), 1024, "png")


@given(
    st.binary(max_size=3000),
    st.integers(0, 9),
    st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY]),
)
def test_what_a_sender_deflates_is_inflated(data, level, strategy):
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    stream = deflate.compress(data) + deflate.flush()
    assert len(stream) <= containers.most_deflated(len(data))
    assert containers.inflate(stream + b"ab", len(data), -15) == (data, b"ab")


def test_rare_bytes_that_come_first_do_not_look_like_empty_blocks():
    rng = np.random.default_rng(0)
    rare, usual = np.repeat(np.arange(256, dtype=np.uint8), 20), np.zeros(1 << 18, np.uint8)
    for part in (np.concatenate([rare, usual]), np.concatenate([usual, rare]), rng.integers(0, 256, 1 << 20)):
        data = part.astype(np.uint8).tobytes()
        assert containers.unpack(containers.pack(data, "png"), len(data), "png") == data


def test_zstd_bombs_are_refused():
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1024))
    good = containers.pack(bytes(1024), "zstd")
    for blob in (bomb, unsized, good + b"x", good + good, good[:-1], b""):
        with pytest.raises(PayloadError):
            containers.unpack(blob, 1024, "zstd")


def frame(pieces, header=0xE0):
    """A zstd frame of raw blocks, which states its size in eight bytes."""
    blocks = [(len(p) << 3 | (i == len(pieces) - 1)).to_bytes(3, "little") + p for i, p in enumerate(pieces)]
    return struct.pack("<IBQ", 0xFD2FB528, header, sum(map(len, pieces))) + b"".join(blocks)


def test_zstd_frames_of_many_blocks_or_with_a_checksum_are_refused():
    data = bytes(range(256)) * 16
    assert containers.unpack(frame([data]), 4096, "zstd") == data
    assert containers.unpack(frame([data[i : i + 1024] for i in range(0, 4096, 1024)]), 4096, "zstd") == data
    with pytest.raises(PayloadError, match="more than 12 blocks"):
        containers.unpack(frame([data[i : i + 256] for i in range(0, 4096, 256)]), 4096, "zstd")
    with pytest.raises(PayloadError, match="more than 12 blocks"):
        containers.unpack(frame([b""] * 20 + [data]), 4096, "zstd")
    with pytest.raises(PayloadError, match="checksum or a dictionary"):
        containers.unpack(zstandard.ZstdCompressor(write_checksum=True).compress(data), 4096, "zstd")


@pytest.mark.parametrize("size", [1, 1000, 300_000, 3_000_000])
@pytest.mark.parametrize("level", [-5, 1, 9, 19])
def test_what_encoders_write_has_few_blocks_and_is_short_enough(size, level):
    """Compressible and not, in stretches, as encoders that look for borders split them."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, size, dtype=np.uint8)
    data[rng.random(size) < np.arange(size) // 5000 % 3 / 2] = 0
    blob = zstandard.ZstdCompressor(level=level).compress(data.tobytes())
    assert containers.unpack(blob, size, "zstd") == data.tobytes()
    incompressible = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    for container in containers.CONTAINERS:
        assert containers.unpack(containers.pack(incompressible, container), size, container)


def test_a_png_of_the_right_pixels_needs_its_checksums():
    data = bytes(range(200))
    blob = bytearray(containers.pack(data, "png"))
    assert containers.unpack(bytes(blob), 200, "png") == data
    at = blob.index(b"IDAT")
    (length,) = struct.unpack_from(">I", blob, at - 4)
    for place in (29, at + 4 + length, len(blob) - 1):  # of IHDR, IDAT and IEND
        broken = bytearray(blob)
        broken[place] ^= 1
        with pytest.raises(PayloadError):
            containers.unpack(bytes(broken), 200, "png")
