"""What a sender may claim: time, memory and compilations follow d, and one update has few encodings."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError, containers, envelope, membership, rans
from tests.codecs.cases import drift, sealed


def steps_of(function, monkeypatch) -> int:
    """How many passes over the lanes an rANS decoder takes inside `function`, refused or not."""
    steps = 0
    whole = rans.np.flatnonzero

    def counting(array):
        nonlocal steps
        steps += 1
        return whole(array)

    monkeypatch.setattr(rans, "_FEW", 0)  # few lanes are passed over too
    monkeypatch.setattr(rans, "np", type("numpy", (), {**vars(np), "flatnonzero": staticmethod(counting)}))
    try:
        function()
    except PayloadError:
        pass
    monkeypatch.undo()
    return steps


def with_lanes(payload: bytes, at: int, before: int, after: int, states_at: int) -> bytes:
    """The payload announcing 2**after lanes, of which it holds the states."""
    body = bytearray(payload)
    assert body[at] == before
    body[at] = after
    body[states_at : states_at + (4 << before)] = struct.pack("<I", 1 << 16) * (1 << after)
    body[24:28] = struct.pack("<I", len(body) - envelope.SIZE)
    return sealed(bytes(body))


@pytest.mark.parametrize("d", [1, 5000, 70_000, 1_000_000])
def test_an_arithmetic_payload_cannot_choose_its_lanes(d, monkeypatch):
    codec, context = codecs.get("arithmetic"), codecs.Context(d)
    honest = codec.encode(np.arange(0, d, 7, dtype=np.uint32), context)
    lanes = rans.lanes_log2(d)
    usual = steps_of(lambda: codec.decode(honest, context), monkeypatch)
    assert usual <= 8192 + 1
    for other in {0, lanes - 1, lanes + 1, 12} - {lanes, -1}:
        forged = with_lanes(honest, 33, lanes, other, 36)
        with pytest.raises(PayloadError, match="lanes"):
            codec.decode(forged, context)
        assert steps_of(lambda forged=forged: codec.decode(forged, context), monkeypatch) == 0


def test_side_info_and_qsgd_cannot_choose_few_lanes(monkeypatch):
    positions, context = drift(1 << 18, 0.3, seed=0)
    payload = codecs.get("side_info").encode(positions, context)
    buckets, lanes = payload[33], payload[35]
    assert lanes > 3
    forged = with_lanes(payload, 35, lanes, 0, 44 + buckets)
    with pytest.raises(PayloadError, match="lanes"):
        codecs.get("side_info").decode(forged, context)
    wide = bytearray(payload)
    wide[32], wide[33] = 16, 128  # every position near
    assert steps_of(lambda: codecs.get("side_info").decode(sealed(bytes(wide)), context), monkeypatch) <= 8192

    vector = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    codec, context = codecs.get("qsgd", levels=4), codecs.Context(20_000, round=1, client=2)
    forged = bytearray(codec.encode(vector, context))
    forged[37] = 0
    with pytest.raises(PayloadError, match="lanes"):
        codec.decode(sealed(bytes(forged)), context)


def test_capacities_of_the_senders_choice_compile_little():
    sizes = {membership.pad_table(np.zeros(codecs.bfuse.fuse_geometry(room).array_length)).shape[0]
             for room in range(1, 1_000_000, 997)}  # fmt: skip
    assert len(sizes) <= 6 and all(size & (size - 1) == 0 for size in sizes)


def test_a_payload_longer_than_any_codec_makes_is_refused():
    long = envelope.pack(4, 0, 10, 1, 0, 0, bytes(8 * 10 + 65536 + 1))
    with pytest.raises(PayloadError, match="longer") as error:
        codecs.get("rice").decode(long, codecs.Context(10))
    assert error.value.reason == "too long"


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


def test_padding_bits_are_zero():
    codec, context = codecs.get("signs"), codecs.Context(1001, round=1, client=2)
    forged = bytearray(codec.encode(np.linspace(-1, 1, 1001), context))
    forged[-1] |= 1
    with pytest.raises(PayloadError, match="padded"):
        codec.decode(sealed(bytes(forged)), context)
    with pytest.raises(PayloadError, match="padded"):
        codecs.codec.unpack_bits("any", np.array([0xFF], np.uint8), 7)


@pytest.mark.parametrize("levels", range(1, 256, 7))
def test_qsgd_values_are_finite_whatever_the_norms(levels):
    vector = np.zeros(64, np.float32)
    vector[:3] = (3e38, -1e38, 1e38)
    codec, context = codecs.get("qsgd", levels=levels, bucket=16), codecs.Context(64)
    payload = bytearray(codec.encode(vector, context))
    most = payload[36]
    norm_at = 38 + 4 * most
    for norm in (np.float32(3.4028235e38), np.float32(-0.0), np.float32(np.nan)):
        payload[norm_at : norm_at + 4] = norm.tobytes()
        try:
            values = codec.decode(sealed(bytes(payload)), context)
        except PayloadError:
            continue
        assert np.isfinite(values).all() and norm > 0


def test_an_exact_payload_has_one_set_of_parameters():
    """A rice remainder or an arithmetic probability that the encoder would not choose is refused."""
    context = codecs.Context(4000)
    positions = np.arange(0, 4000, 40, dtype=np.uint32)
    rice = codecs.rice.pack_gaps(positions, 2)
    forged = envelope.pack(4, 0, 4000, len(positions), 0, 0, bytes([2]) + rice)
    with pytest.raises(PayloadError, match="remainder"):
        codecs.get("rice").decode(forged, context)
    bits = np.zeros(4000, bool)
    bits[positions] = True
    states, words = rans.encode(bits, np.full(4000, 900, np.uint16), np.zeros(1, np.uint16))
    body = b"".join((bytes([1, 0]), struct.pack("<H", 900), states.astype("<u4"), words.astype("<u2")))
    with pytest.raises(PayloadError, match="probabilities"):
        codecs.get("arithmetic").decode(envelope.pack(6, 0, 4000, len(positions), 0, 0, body), context)


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
