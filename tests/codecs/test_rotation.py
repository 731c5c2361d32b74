"""The rotation: orthonormal, its own inverse, and hardly padded."""

import jax
import numpy as np
import pytest
from scipy.linalg import hadamard

from deltamask_jax.codecs import rotation

KEY = (np.uint32(5), np.uint32(77))


@pytest.mark.parametrize("n", [1, 511, 512, 513, 65_535, 65_536, 100_000, 35_389_440, 35_466_340])
def test_blocks_are_powers_of_two_and_hold_at_most_511_zeros(n):
    for count, size in rotation.blocks(n):
        assert count >= 1 and size & (size - 1) == 0 and 512 <= size <= 65_536
    assert 0 <= rotation.padded(n) - n <= 511


def test_a_block_is_twice_the_hadamard_matrix_times_signed_values():
    x = np.random.default_rng(0).normal(size=512).astype(np.float32)
    (rotated,) = rotation.rotate(x, KEY)
    u, h = rotation.uniforms(KEY, 512).astype(int), hadamard(512) / 512**0.5
    first, second = 1 - 2 * (u >= 32768), 1 - 2 * (u % 32768 >= 16384)
    np.testing.assert_allclose(rotated[0], h @ (second * (h @ (first * x))), rtol=1e-4, atol=1e-5)


def test_the_inverse_is_exact_where_arithmetic_is():
    """Whole numbers times √1024 stay whole numbers: every bit comes back."""
    x = np.random.default_rng(1).integers(-99, 100, 1024).astype(np.float32)
    np.testing.assert_array_equal(rotation.unrotate(rotation.rotate(x, KEY), 1024, KEY), x)


def test_lengths_are_kept_and_the_inverse_is_close_over_all_kinds_of_blocks():
    n = 2 * 65_536 + 8192 + 700
    x = np.random.default_rng(2).lognormal(size=n).astype(np.float32)
    parts, back = jax.jit(lambda x: (p := rotation.rotate(x, KEY), rotation.unrotate(p, n, KEY)))(x)
    assert [part.shape for part in parts] == rotation.blocks(n)
    assert sum(np.sum(np.square(part, dtype=np.float64)) for part in parts) == pytest.approx(
        np.sum(np.square(x, dtype=np.float64)), rel=1e-5
    )
    np.testing.assert_allclose(back, x, atol=1e-5 * np.abs(x).max())


def test_one_large_value_becomes_gaussian():
    x = np.zeros(4096, np.float32)
    x[1234] = 64
    y = np.asarray(rotation.rotate(x, KEY)[0])
    assert np.mean(y**2) == pytest.approx(1, abs=1e-4)
    assert np.mean(y**4) == pytest.approx(3, abs=4 * np.sqrt(96 / 4096))  # 4 standard errors
