"""EDEN, at one bit DRIVE: its error, its bytes, its centroids and samples."""

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import eden, rotation
from deltamask_jax.public_random import ROTATION
from tests.codecs.cases import context_of, heavy_tailed, sent


def eden_of(bits):
    return codecs.get("eden", bits=bits)


def relative_error(codec, x):
    return np.sum((sent(codec, x) - x) ** 2) / np.sum(x**2)


@pytest.mark.parametrize("bits, distortion", [(1, 1 - 2 / np.pi), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_eden_reaches_the_lloyd_max_distortion(bits, distortion):
    """Distortions: J. Max, 1960, table I. The unbiased scale turns D into D / (1 − D): π/2 − 1 at one bit."""
    assert relative_error(eden_of(bits), heavy_tailed(65_536)) == pytest.approx(
        distortion / (1 - distortion), rel=0.02
    )


def test_one_bit_is_drive():
    """sign(R x) and S = ‖x‖² / ‖R x‖₁."""
    x = heavy_tailed(4096)
    key = context_of(4096).stream(ROTATION)
    (rotated,) = rotation.rotate(x, key)
    scale = np.sum(x**2) / np.abs(rotated).sum()
    expected = rotation.unrotate([scale * np.where(rotated > 0, 1, -1)], 4096, key)
    np.testing.assert_allclose(sent(eden_of(1), x), expected, rtol=1e-4, atol=1e-4)
    assert np.sum((expected - x) ** 2) / np.sum(x**2) == pytest.approx(np.pi / 2 - 1, rel=0.02)


def test_errors_of_fractional_bits_lie_between():
    x = heavy_tailed(65_536)
    errors = [relative_error(eden_of(bits), x) for bits in (0.5, 1, 1.5, 2)]
    assert errors == sorted(errors, reverse=True)
    # Half of the values, each with weight 2 and one bit: (π/2) / ½ − 1.
    assert errors[0] == pytest.approx(np.pi - 1, rel=0.1)


@pytest.mark.parametrize("n, bits", [(100, 1), (65_536, 1), (70_000, 0.1), (70_000, 3), (70_000, 1.25)])
def test_eden_sends_the_bits_it_promises(n, bits):
    kept = n if bits >= 1 else round(bits * n)
    values, blocks = rotation.padded(kept), sum(count for count, _ in rotation.blocks(kept))
    size = 32 + 4 * blocks + values * max(bits, 1) / 8
    payload = eden_of(bits).encode(heavy_tailed(n), context_of(n))
    assert size <= len(payload) <= size + 3  # planes end with whole bytes


def test_centroids_are_those_of_the_literature():
    np.testing.assert_allclose(eden.centroids(1), [-0.79788, 0.79788], atol=1e-5)
    np.testing.assert_allclose(eden.centroids(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=1e-3)
    for bits in range(1, 9):
        c = eden.centroids(bits)
        assert len(c) == 1 << bits and (np.diff(c) > 0).all()


def test_samples_are_one_of_each_stretch_and_weighted_by_its_length():
    positions, weights = eden.sample(1003, 100, (np.uint32(1), np.uint32(2)))
    assert weights.sum() == 1003 and set(weights) == {10, 11}
    ends = np.cumsum(weights)
    assert (positions < ends).all() and (positions >= ends - weights).all()
    assert len(set(positions - (ends - weights))) >= 10  # all places of a stretch are taken by some
