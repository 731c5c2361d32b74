"""Rice-coded gaps: size near the entropy, every bound checked."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamask_jax import codecs
from deltamask_jax.codecs import rice


@given(positions=st.sets(st.integers(0, 2**31), max_size=50), k=st.integers(17, 31))
def test_gaps_round_trip_for_any_divisor(positions, k):
    positions = np.array(sorted(positions), np.uint32)
    packed = rice.pack_gaps(positions, k)
    np.testing.assert_array_equal(rice.unpack_gaps(packed, len(positions), k, 2**31 + 1), positions)


@pytest.mark.parametrize("p", [0.0003, 0.01, 0.1, 0.4])
def test_size_is_within_five_percent_of_the_entropy(p):
    d = 300_000
    positions = np.flatnonzero(np.random.default_rng(0).random(d) < p).astype(np.uint32)
    payload = codecs.get("rice").encode(positions, codecs.Context(d))
    q = len(positions) / d
    entropy = -d * (q * np.log2(q) + (1 - q) * np.log2(1 - q))
    assert 8 * (len(payload) - 33) < 1.05 * entropy + 16


def test_known_bytes():
    # Gaps 0, 5, 2 with k = 1: quotients 0, 2, 1 -> 1 001 01; remainders 0, 1, 0.
    assert rice.pack_gaps(np.array([0, 6, 9], np.uint32), 1) == bytes([0b10010100, 0b01000000])


@pytest.mark.parametrize(
    ("data", "n", "k", "limit", "message"),
    [
        (b"\x94\x40", 3, 1, 9, "beyond position 8"),
        (b"\x94\x40", 4, 1, 10, "gaps"),
        (b"\x94\x40", 2, 1, 10, "gaps"),
        (b"\x94\x41", 3, 1, 10, "padded"),
        (b"\x94\x00\x40", 3, 1, 10, "beyond position 9"),
        (b"\x94\x00\x40", 3, 1, 20, "gaps"),
        (b"\x94", 3, 1, 10, "short"),
        (b"\x94\x40", 3, 32, 10, "short"),
        (b"", 1, 0, 10, "short"),
        (bytes(1000) + b"\x01", 1, 0, 10, "beyond position 9"),  # before the unary code takes memory
        (b"\x80\x00", 1, 0, 20, "longer than its 1 gaps need"),
    ],
)
def test_anything_else_is_refused(data, n, k, limit, message):
    with pytest.raises(codecs.PayloadError, match=message):
        rice.unpack_gaps(data, n, k, limit)


def test_more_gaps_than_announced_take_no_memory():
    data = b"\xff" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(codecs.PayloadError, match="holds 8000000 gaps, header says 1"):
            rice.unpack_gaps(data, 1, 0, 1 << 32)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
    finally:
        tracemalloc.stop()
