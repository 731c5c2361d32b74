"""What filter codecs share: the window of distances, and the picture of a payload."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from deltamask_jax import codecs
from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.fingerprints import fuse_geometry, xor_geometry
from tests.codecs.cases import (
    drift,
    sealed,
)


def test_a_window_drops_most_false_flips():
    positions, context = drift(200_000, 0.1, seed=8)
    false = {}
    for window in (False, True):
        codec = codecs.get("bfuse", window=window)
        payload = codec.encode(positions, context)
        decoded = codec.decode(payload, context)
        assert np.isin(positions, decoded).all()
        false[window] = len(decoded) - len(positions)
    assert false[True] < 0.5 * false[False]


def test_a_window_reaches_as_far_as_its_farthest_hit():
    positions, context = drift(3000, 0.2, seed=0)
    codec = codecs.get("bfuse", window=True)
    payload = bytearray(codec.encode(positions, context))
    codec.decode(bytes(payload), context)
    window = int.from_bytes(payload[44:46], "little") + 1
    payload[44:46] = window.to_bytes(2, "little")
    with pytest.raises(codecs.PayloadError, match="window"):
        codec.decode(sealed(bytes(payload)), context)


def test_a_png_payload_is_drawn_as_the_image_that_travels():
    payload = codecs.get("bfuse").encode(np.arange(0, 9000, 9, dtype=np.uint32), codecs.Context(9000))
    travelled = Image.open(io.BytesIO(payload[payload.index(b"\x89PNG") :]))
    np.testing.assert_array_equal(codecs.picture(payload), np.asarray(travelled))


def test_pictures_come_from_our_own_parser():
    positions, context = np.arange(0, 9000, 9, dtype=np.uint32), codecs.Context(9000)
    pictures = []
    for container in containers.CONTAINERS:
        payload = codecs.get("bfuse", container=container).encode(positions, context)
        pictures.append(codecs.picture(payload))
    assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()
    assert pictures[0].ndim == 2 and pictures[0].dtype == np.uint8
    for settings in ({"name": "xor", "bits": 16}, {"name": "bfuse", "bits": 32, "arity": 4}):
        assert codecs.picture(codecs.get(**settings).encode(positions, context)).size > 1000
    # An accepted payload may hold anything, a picture of 2³¹ pixels too.
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + struct.pack(">IIBBBBB", 1 << 31, 1, 8, 0, 0, 0, 0)
    )
    payload = envelope.pack(envelope.CODEC_IDS["bitmap"], 0, 8 * len(bomb), 3, 0, 0, bomb)
    assert codecs.picture(payload).ravel()[: len(bomb)].tobytes() == bomb
    assert codecs.picture(b"").shape == (1, 1)


@pytest.mark.parametrize("name", ["bfuse", "xor"])
def test_a_filter_is_no_larger_than_what_was_sent(name):
    """Neither room for more keys than are announced, nor a table of zeros that unpacks a thousandfold."""
    d = 1 << 20
    codec, context = codecs.get(name), codecs.Context(d)
    many = np.arange(0, d, 20, dtype=np.uint32)
    payload = bytearray(codec.encode(many, context))
    payload[12:16] = (100).to_bytes(4, "little")
    lying = sealed(bytes(payload))
    flags = envelope.unpack(lying).flags
    with pytest.raises(codecs.PayloadError, match=f"of 100 keys has a capacity of {len(many)}"):
        codec.decode(lying, context)
    shape = fuse_geometry(d, 3) if name == "bfuse" else xor_geometry(d)
    zeros = io.BytesIO()
    Image.fromarray(containers.image(bytes(shape.array_length))).save(zeros, "png", compress_level=9)
    body = bytes(8) + d.to_bytes(4, "little") + zeros.getvalue()
    bomb = envelope.pack(envelope.CODEC_IDS[name], flags, d, d, context.round, context.client, body)
    assert len(bomb) < d // 100
    with pytest.raises(codecs.PayloadError, match=f"filter of {d} keys in {len(body)} bytes"):
        codec.decode(bomb, context)
