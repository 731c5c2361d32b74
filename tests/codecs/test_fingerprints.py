"""Filters: geometry and membership of the C library, no false negatives, false-positive rates."""

import runpy
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfusefilter._xorfilter import ffi, lib

from deltamask_jax.codecs import filter_builder, fingerprints, membership

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


@pytest.mark.parametrize(("bits", "kind"), VARIANTS)
@pytest.mark.parametrize("n", [1, 2000, 11_500])
def test_jax_membership_equals_numpy(n, bits, kind):
    d = membership.SMALL + 20_000  # more than the NumPy path takes
    positions = random_positions(n, d, seed=n)
    built = filter_builder.build(positions, bits, SHAPES[kind](n))
    expected = np.flatnonzero(fingerprints.contains(built, np.arange(d, dtype=np.uint32)))
    np.testing.assert_array_equal(membership.query_all(built, d), expected)


@pytest.mark.parametrize("seed", [1, 2**32 - 1, 2**63, 2**64 - 1, 2**64 - 70_000])
def test_seeds_that_wrap_around_64_bits_agree(seed):
    """key + seed is a 64-bit sum: its carry has to survive 32-bit arithmetic."""
    d = membership.SMALL + 20_000
    shape = fingerprints.fuse_geometry(5000)
    table = np.random.default_rng(0).integers(0, 4, shape.array_length, dtype=np.uint8)
    built = fingerprints.Filter(shape, seed, table)
    expected = np.flatnonzero(fingerprints.contains(built, np.arange(d, dtype=np.uint32)))
    np.testing.assert_array_equal(membership.query_all(built, d), expected)


def test_hash_needs_the_whole_start_length():
    """(hash * length) >> 64 against Python's integers, at lengths that stress the carries."""
    h = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    for length_log2, count in ((18, 16_383), (2, 3), (18, 1)):
        shape = fingerprints.Geometry("fuse3", 1 << length_log2, count)
        first = fingerprints.slots(h, shape)[0]
        assert first.tolist() == [x * shape.start_length >> 64 for x in h.tolist()]


@pytest.mark.parametrize("arity", [3, 4])
@pytest.mark.parametrize("bits", [8, 32])
def test_own_builder_has_no_false_negatives(bits, arity):
    rng = np.random.default_rng(arity)
    for _ in range(1000):
        n = int(rng.integers(1, 400))
        keys = rng.choice(1 << 20, n, replace=False).astype(np.uint64)
        shape = fingerprints.fuse_geometry(n, arity)
        built = next(
            built
            for attempt in range(filter_builder.ATTEMPTS)
            if (built := filter_builder._populate(keys, bits, shape, attempt * 12345))
        )
        filled = fingerprints.Filter(shape, *built)
        assert fingerprints.contains(filled, keys.astype(np.uint32)).all()


def test_failed_seeds_are_retried_and_given_up(monkeypatch):
    positions = random_positions(50, 1000)
    shape = fingerprints.fuse_geometry(50)
    real, failures = filter_builder._populate_c, iter([None, None])
    monkeypatch.setattr(filter_builder, "_populate_c", lambda *args: next(failures, 0) or real(*args))
    built = filter_builder.build(positions, 8, shape)
    assert fingerprints.contains(built, positions).all()
    monkeypatch.setattr(filter_builder, "_populate_c", lambda *args: None)
    with pytest.raises(RuntimeError, match="are keys unique"):
        filter_builder.build(positions, 8, shape)


def test_duplicate_keys_do_not_hang():
    with pytest.raises(RuntimeError, match="unique"):
        filter_builder.build(np.zeros(9, np.uint32), 32, fingerprints.fuse_geometry(9))


def test_four_slots_need_fewer_bits():
    shape = fingerprints.fuse_geometry(1_000_000, 4)
    assert 8 * shape.array_length / 1e6 <= 8.7
    positions = random_positions(60_000, 1 << 25)
    built = filter_builder.build(positions, 8, fingerprints.fuse_geometry(60_000, 4))
    assert fingerprints.contains(built, positions).all()


@pytest.mark.parametrize(("bits", "kind"), [(8, "fuse3"), (16, "fuse3"), (8, "fuse4"), (8, "xor3")])
def test_false_positive_rate(bits, kind):
    positions = random_positions(4000, 1 << 20)
    built = filter_builder.build(positions, bits, SHAPES[kind](4000))
    false = len(membership.query_all(built, 1 << 20)) - 4000
    expected = ((1 << 20) - 4000) * 2.0**-bits
    assert abs(false - expected) < 5 * expected**0.5


def test_without_the_c_library_numpy_builds(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pyfusefilter._xorfilter", None)  # importing it fails
    alone = runpy.run_path(filter_builder.__file__)
    assert "filters are built in NumPy" in caplog.text
    positions = random_positions(1000, 50_000)
    built = alone["build"](positions, 8, fingerprints.fuse_geometry(1000))
    assert c_contains(built, positions).all()
