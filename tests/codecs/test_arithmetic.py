"""Whole masks at real entropy, with and without theta."""

import numpy as np
import pytest

from deltamask_jax import codecs


def entropy(p):
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize("with_theta", [True, False])
def test_a_sampled_mask_costs_its_entropy(with_theta):
    d = 200_000
    rng = np.random.default_rng(0)
    theta = (65535 * rng.beta(3, 0.5, d)).astype(np.uint16)
    mask = rng.integers(0, 1 << 16, d) < theta
    context = codecs.Context(d, theta if with_theta else None)
    codec = codecs.get("arithmetic")
    positions = np.flatnonzero(mask).astype(np.uint32)
    payload = codec.encode(positions, context)
    np.testing.assert_array_equal(codec.decode(payload, context), positions)
    ideal = entropy(theta / 65536).sum() if with_theta else d * entropy(mask.mean())
    assert 8 * len(payload) < 1.02 * ideal + 8 * 200


def test_both_ends_must_have_theta():
    theta = np.full(100, 30_000, np.uint16)
    codec = codecs.get("arithmetic")
    payload = codec.encode(np.arange(50, dtype=np.uint32), codecs.Context(100, theta))
    with pytest.raises(codecs.PayloadError, match="buckets"):
        codec.decode(payload, codecs.Context(100))
    with pytest.raises(ValueError, match="u16"):
        codec.encode(np.arange(50, dtype=np.uint32), codecs.Context(100, theta[:-1]))
