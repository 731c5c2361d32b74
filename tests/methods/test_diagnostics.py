"""Histograms of θ and flips by layer equal what a loop over layers counts."""

import jax.numpy as jnp
import numpy as np

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.diagnostics import mask_diagnostics, ones_between


def test_bits_between_any_two_positions():
    bits = np.random.default_rng(0).random((3, 45)) < 0.5
    packed = np.packbits(bits, axis=1)
    for start in range(45):
        for end in range(start + 1, 46):
            assert ones_between(packed, start, end) == bits[:, start:end].sum()


def test_layers_of_odd_sizes():
    rng = np.random.default_rng(1)
    index = FlatIndex.create({"a": {"kernel": jnp.zeros((3, 7))}, "b": {"kernel": jnp.zeros(14)}}, ".*kernel")
    theta = rng.integers(0, 65536, 35).astype(np.uint16)
    flips = rng.random((4, 35)) < 0.3
    found = mask_diagnostics(index, theta, np.packbits(flips, axis=1))
    assert found["flip_rate_by_layer"] == {
        "a/kernel": flips[:, :21].mean(),
        "b/kernel": flips[:, 21:].mean(),
    }
    expected = np.histogram(theta[:21], bins=16, range=(0, 65536))[0]
    assert found["theta_histogram"]["a/kernel"] == expected.tolist()
    assert sum(found["theta_histogram"]["b/kernel"]) == 14
