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


def test_zstd_bombs_are_refused():
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1024))
    good = containers.pack(bytes(1024), "zstd")
    for blob in (bomb, unsized, good + b"x", good + good, good[:-1], b""):
        with pytest.raises(PayloadError):
            containers.unpack(blob, 1024, "zstd")
