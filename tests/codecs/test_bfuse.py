"""The binary-fuse codec: no false negatives, agreement with the C library, false-positive rate, hostile input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfusefilter._xorfilter import ffi, lib

from deltamask_jax import codecs
from deltamask_jax.codecs import envelope, filter_builder, fingerprints, membership

SIZES = [1, 2, 3, 10, 1000, 11_480, 11_500, 11_521]


def random_positions(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(d, n, replace=False)).astype(np.uint32)


def c_contains(built: fingerprints.Filter, positions: np.ndarray) -> np.ndarray:
    """The C library's own answer, position by position."""
    bits = 8 * built.fingerprints.itemsize
    c_filter = ffi.new(f"binary_fuse{bits}_t *")
    c_filter.Seed = built.seed
    c_filter.SegmentLength = built.geometry.segment_length
    c_filter.SegmentLengthMask = built.geometry.segment_length - 1
    c_filter.SegmentCountLength = built.geometry.start_length
    c_filter.Fingerprints = ffi.from_buffer(f"uint{bits}_t[]", built.fingerprints)
    contain = getattr(lib, f"binary_fuse{bits}_contain")
    return np.array([contain(int(position), c_filter) for position in positions])


@pytest.mark.parametrize("n", [*SIZES, 100_000, 1_000_000])
def test_geometry_is_that_of_the_c_library(n):
    c_filter = ffi.new("binary_fuse8_t *")
    assert lib.binary_fuse8_allocate(n, c_filter)
    shape = fingerprints.fuse_geometry(n)
    assert (shape.segment_length, shape.segment_count, shape.start_length, shape.array_length) == (
        c_filter.SegmentLength,
        c_filter.SegmentCount,
        c_filter.SegmentCountLength,
        c_filter.ArrayLength,
    )
    lib.binary_fuse8_free(c_filter)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n", SIZES)
def test_numpy_and_jax_membership_equal_c(n, bits):
    d = membership.SMALL + 20_000  # more than the NumPy path takes
    positions = random_positions(n, d, seed=n)
    built = filter_builder.build(positions, bits, fingerprints.fuse_geometry(n))
    expected = c_contains(built, np.arange(d))
    assert expected[positions].all()
    np.testing.assert_array_equal(
        fingerprints.contains(built, np.arange(d, dtype=np.uint32)), expected
    )
    np.testing.assert_array_equal(membership.query_all(built, d), np.flatnonzero(expected))


@pytest.mark.parametrize("attempt", [0, 1, 5])
def test_seeds_that_wrap_around_64_bits_agree(attempt):
    """A retry shifts every key by a 64-bit offset; the carry has to survive the 32-bit arithmetic."""
    d = membership.SMALL + 5
    positions = random_positions(500, d)
    built = fingerprints.Filter(*_shifted(positions, attempt * 0x9E3779B97F4A7C15 & (2**64 - 1)))
    assert fingerprints.contains(built, positions).all()
    expected = np.flatnonzero(fingerprints.contains(built, np.arange(d, dtype=np.uint32)))
    np.testing.assert_array_equal(membership.query_all(built, d), expected)


def _shifted(positions, offset):
    shape = fingerprints.fuse_geometry(len(positions))
    return shape, *filter_builder._populate_c(positions.astype(np.uint64), 8, shape, offset)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), d=st.integers(1, 5000), container=st.sampled_from(["png", "zstd", "raw"]))
def test_round_trip_holds_every_flip(data, d, container):
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, d - 1)))), np.uint32)
    codec = codecs.get("bfuse", bits=16, container=container)
    context = codecs.Context(d=d, round=3, client=7)
    decoded = codec.decode(codec.encode(positions, context), context)
    assert set(positions) <= set(decoded)
    assert positions.size or not decoded.size
    assert decoded.dtype == np.uint32 and (np.diff(decoded.astype(np.int64)) > 0).all()


def test_false_positive_rate():
    d = 200_000
    codec = codecs.get("bfuse")
    context = codecs.Context(d=d)
    positions = random_positions(2000, d)
    false = len(codec.decode(codec.encode(positions, context), context)) - 2000
    expected = (d - 2000) / 256
    assert abs(false - expected) < 5 * expected**0.5


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bfuse'"):
        codecs.get("bfuze")
    with pytest.raises(ValueError, match="did you mean 'bits'"):
        codecs.get("bfuse", bit=8)
    with pytest.raises(ValueError, match="bits must be"):
        codecs.get("bfuse", bits=9)


@pytest.mark.parametrize("container", ["png", "zstd", "raw"])
def test_damaged_payloads_are_refused(container):
    codec = codecs.get("bfuse", container=container)
    context = codecs.Context(d=5000, round=1, client=2)
    payload = codec.encode(random_positions(100, 5000), context)
    for cut in [0, 1, 31, 32, 40, len(payload) - 1]:
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload[:cut], context)
    for at in range(len(payload)):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :], context)
    for other in [codecs.Context(5001, round=1, client=2), codecs.Context(5000, round=2, client=2)]:
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload, other)
    with pytest.raises(codecs.PayloadError):
        codecs.get("bfuse", bits=16, container=container).decode(payload, context)


@pytest.mark.parametrize("capacity", [0, 99, 5001, 2**32 - 1])
def test_geometry_fields_are_checked_before_allocation(capacity):
    codec = codecs.get("bfuse")
    context = codecs.Context(d=5000)
    good = envelope.unpack(codec.encode(random_positions(100, 5000), context))
    body = bytes(good.body[:8]) + capacity.to_bytes(4, "little") + bytes(good.body[12:])
    with pytest.raises(codecs.PayloadError, match="capacity"):
        codec.decode(envelope.pack(good.codec_id, good.flags, 5000, 100, 0, 0, body), context)
