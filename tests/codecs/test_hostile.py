"""What a sender may claim: time, memory and compilations follow d, and one update has few encodings."""

import struct

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError, envelope, rans
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


def test_a_payload_longer_than_any_codec_makes_is_refused():
    long = envelope.pack(4, 0, 10, 1, 0, 0, bytes(12 * 10 + 65536 + 1))
    with pytest.raises(PayloadError, match="longer") as error:
        codecs.get("rice").decode(long, codecs.Context(10))
    assert error.value.reason == "too long"


def test_padding_bits_are_zero():
    codec, context = codecs.get("signs"), codecs.Context(1001, round=1, client=2)
    forged = bytearray(codec.encode(np.linspace(-1, 1, 1001), context))
    forged[-1] |= 1
    with pytest.raises(PayloadError, match="padded"):
        codec.decode(sealed(bytes(forged)), context)
    with pytest.raises(PayloadError, match="padded"):
        codecs.codec.unpack_bits("any", np.array([0xFF], np.uint8), 7)


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
