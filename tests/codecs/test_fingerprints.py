"""Filters: geometry and membership of the C library."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfusefilter._xorfilter import ffi, lib

from deltamask_jax.codecs import filter_builder, fingerprints

SIZES = [1, 2, 3, 10, 1000, 11_480, 11_500, 11_521]
SHAPES = {
    "fuse3": fingerprints.fuse_geometry,
    "fuse4": lambda n: fingerprints.fuse_geometry(n, 4),
    "xor3": fingerprints.xor_geometry,
}
VARIANTS = [(8, "fuse3"), (16, "fuse3"), (32, "fuse3"), (8, "fuse4"), (32, "fuse4")]
VARIANTS += [(8, "xor3"), (16, "xor3")]


def random_positions(n: int, d: int, seed: int = 0) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(d, n, replace=False, shuffle=False)
    return np.sort(chosen).astype(np.uint32)


def c_contains(built: fingerprints.Filter, positions: np.ndarray) -> np.ndarray:
    """The C library's own answer, position by position."""
    bits, shape = 8 * built.fingerprints.itemsize, built.geometry
    table = ffi.from_buffer(f"uint{bits}_t[]", built.fingerprints)
    if shape.kind == "xor3":
        c_filter = ffi.new(f"xor{bits}_t *")
        c_filter.seed, c_filter.blockLength = built.seed, shape.segment_length
        c_filter.fingerprints = table
        contain = getattr(lib, f"xor{bits}_contain")
    else:
        c_filter = ffi.new(f"binary_fuse{bits}_t *")
        c_filter.Seed, c_filter.SegmentLength = built.seed, shape.segment_length
        c_filter.SegmentLengthMask = shape.segment_length - 1
        c_filter.SegmentCountLength = shape.start_length
        c_filter.Fingerprints = table
        contain = getattr(lib, f"binary_fuse{bits}_contain")
    return np.array([contain(position, c_filter) for position in positions.tolist()])


@pytest.mark.parametrize("n", [*SIZES, 100_000, 354_000, 1_000_000, 35_000_000])
def test_geometry_is_that_of_the_c_library(n):
    c_fuse, c_xor = ffi.new("binary_fuse8_t *"), ffi.new("xor8_t *")
    assert lib.binary_fuse8_allocate(n, c_fuse) and lib.xor8_allocate(n, c_xor)
    shape = fingerprints.fuse_geometry(n)
    assert (shape.segment_length, shape.start_length, shape.array_length) == (
        c_fuse.SegmentLength,
        c_fuse.SegmentCountLength,
        c_fuse.ArrayLength,
    )
    assert fingerprints.xor_geometry(n).segment_length == c_xor.blockLength
    lib.binary_fuse8_free(c_fuse)
    lib.xor8_free(c_xor)


@pytest.mark.parametrize(("bits", "kind"), [(8, "fuse3"), (16, "fuse3"), (8, "xor3"), (16, "xor3")])
@pytest.mark.parametrize("n", SIZES)
def test_membership_equals_c(n, bits, kind):
    positions = random_positions(n, 30_000, seed=n)
    built = filter_builder.build(positions, bits, SHAPES[kind](n))
    everywhere = np.arange(30_000, dtype=np.uint32)
    expected = c_contains(built, everywhere)
    assert expected[positions].all()
    np.testing.assert_array_equal(fingerprints.contains(built, everywhere), expected)


@pytest.mark.parametrize("n", [100_000, 1_000_000])
def test_membership_equals_c_for_many_keys(n):
    positions = random_positions(n, 1 << 25)
    built = filter_builder.build(positions, 8, fingerprints.fuse_geometry(n))
    assert fingerprints.contains(built, positions).all()
    probes = random_positions(20_000, 1 << 25, seed=1)
    np.testing.assert_array_equal(fingerprints.contains(built, probes), c_contains(built, probes))


@settings(max_examples=60, deadline=None)
@given(
    keys=st.sets(st.integers(0, 2**32 - 1), min_size=1, max_size=200),
    variant=st.sampled_from(VARIANTS),
    probes=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50),
)
def test_any_keys_are_contained_and_answers_equal_c(keys, variant, probes):
    bits, kind = variant
    positions = np.array(sorted(keys), np.uint32)
    built = filter_builder.build(positions, bits, SHAPES[kind](len(keys)))
    assert fingerprints.contains(built, positions).all()
    if bits < 32 and kind != "fuse4":
        probes = np.array(probes, np.uint32)
        np.testing.assert_array_equal(fingerprints.contains(built, probes), c_contains(built, probes))


def test_hash_needs_the_whole_start_length():
    """(hash * length) >> 64 against Python's integers, at lengths that stress the carries."""
    h = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    for length_log2, count in ((18, 16_383), (2, 3), (18, 1)):
        shape = fingerprints.Geometry("fuse3", 1 << length_log2, count)
        first = fingerprints.slots(h, shape)[0]
        assert first.tolist() == [x * shape.start_length >> 64 for x in h.tolist()]
