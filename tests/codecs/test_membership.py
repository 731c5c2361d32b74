"""Membership of all positions: JAX equals NumPy, false-positive rates, shapes that compile once."""

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import filter_builder, fingerprints, membership
from tests.codecs.test_fingerprints import SHAPES, VARIANTS, random_positions


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


def test_the_last_positions_of_32_bits_hash_alike():
    start, seed = 2**32 - 1000, 2**63 + 12345
    words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    low, high = membership.hash_positions(np.uint32(start), words, 1000)
    expected = fingerprints.murmur64(np.arange(start, 2**32, dtype=np.uint64), seed)
    np.testing.assert_array_equal(np.asarray(low) | np.asarray(high).astype(np.uint64) << 32, expected)


@pytest.mark.parametrize(("bits", "kind"), [(8, "fuse3"), (16, "fuse3"), (8, "fuse4"), (8, "xor3")])
def test_false_positive_rate(bits, kind):
    positions = random_positions(4000, 1 << 20)
    built = filter_builder.build(positions, bits, SHAPES[kind](4000))
    false = len(membership.query_all(built, 1 << 20)) - 4000
    expected = ((1 << 20) - 4000) * 2.0**-bits
    assert abs(false - expected) < 5 * expected**0.5


def test_capacities_of_the_senders_choice_compile_little():
    sizes = {membership.pad_table(np.zeros(codecs.bfuse.fuse_geometry(room).array_length)).shape[0]
             for room in range(1, 1_000_000, 997)}  # fmt: skip
    assert len(sizes) <= 6 and all(size & (size - 1) == 0 for size in sizes)


def test_rows_hold_every_client_side_by_side():
    tables = [np.random.default_rng(k).integers(0, 1 << 16, 50, dtype=np.uint16) for k in range(11)]
    rows = membership.client_rows(tables)
    assert rows.dtype == np.uint16 and rows.shape == (50, 16)
    np.testing.assert_array_equal(rows[:, :11].T, tables)
    assert not rows[:, 11:].any()
