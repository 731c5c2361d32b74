"""Bloom filters: chosen false-positive rate, JAX equal to NumPy."""

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import bloom, membership


@pytest.mark.parametrize("hashes", [1, 3, 8])
def test_false_positive_rate_and_size(hashes):
    d, n = 400_000, 5000
    positions = np.sort(np.random.default_rng(0).choice(d, n, replace=False)).astype(np.uint32)
    codec = codecs.get("bloom", fpr=2.0**-hashes)
    payload = codec.encode(positions, codecs.Context(d))
    false = len(codec.decode(payload, codecs.Context(d))) - n
    expected = (d - n) * 2.0**-hashes
    # The fill of the table varies too, so the rate scatters more than binomially.
    assert abs(false - expected) < 5 * expected**0.5 + 0.05 * expected
    assert 8 * (len(payload) - 36) == pytest.approx(n * hashes / np.log(2), rel=0.01)


def test_jax_equals_numpy(monkeypatch):
    d = membership.SMALL + 3000
    table = np.random.default_rng(0).integers(0, 256, 700, dtype=np.uint8)
    in_jax = bloom._query_all(table, 5600, 3, d)
    monkeypatch.setattr(membership, "SMALL", d)
    np.testing.assert_array_equal(bloom._query_all(table, 5600, 3, d), in_jax)
