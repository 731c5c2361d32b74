"""QSGD: bytes, and values that are finite whatever a sender claims."""

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError, envelope, qsgd
from tests.codecs.cases import context_of, heavy_tailed, sealed


def qsgd_of(levels=16, bucket=512):
    return codecs.get("qsgd", levels=levels, bucket=bucket)


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_qsgd_spends_the_entropy_of_its_levels(levels):
    n, bucket = 200_000, 512
    x = heavy_tailed(n)
    codec, context = qsgd_of(levels, bucket), context_of(n)
    payload = codec.encode(x, context)
    norms = np.repeat(np.linalg.norm(np.pad(x, (0, -n % bucket)).reshape(-1, bucket), axis=1), bucket)[:n]
    level = np.rint(np.abs(codec.decode(payload, context)) * levels / norms).astype(int)
    p = np.bincount(level)[np.bincount(level) > 0] / n
    bits = n * -np.sum(p * np.log2(p)) + np.sum(level > 0) + 32 * -(-n // bucket)
    assert 8 * (len(payload) - 32) == pytest.approx(bits, rel=0.01, abs=3000)


def test_a_claim_of_many_levels_costs_no_memory():
    """Levels that Σ|v| ≤ r·√bucket forbids are refused before anything is allocated for them."""
    n = 600
    body = bytearray(qsgd._HEAD.pack(512, 255, 0)) + np.full(255, n, "<u4").tobytes() + bytes(4000)
    payload = envelope.pack(envelope.CODEC_IDS["qsgd"], 255, n, n, 1, 2, bytes(body))
    with pytest.raises(PayloadError, match="no rounding gives"):
        qsgd_of(255).decode(payload, context_of(n))


@pytest.mark.parametrize("size", [1e-38, 1e-39, 1e-41])
def test_values_below_what_float32_inverts_survive(size):
    x = np.float32(size) * np.linspace(-1, 1, 8, dtype=np.float32)
    codec, context = qsgd_of(255, 8), context_of(8)
    decoded = codec.decode(codec.encode(x, context), context)
    np.testing.assert_allclose(decoded, x, rtol=0, atol=2.5 * size / 100)


@pytest.mark.parametrize("levels", range(1, 256))
def test_qsgd_values_are_finite_for_every_level_count(levels):
    """s · (r / s) rounds to infinity for some s where r is the largest float."""
    codec, context, largest = qsgd_of(levels, 8), context_of(8), np.finfo(np.float32).max
    payload = bytearray(codec.encode(np.eye(1, 8, dtype=np.float32)[0], context))
    at = 32 + 6 + 4 * payload[36]
    for norm in (largest, 1.0, 1e-45):
        payload[at : at + 4] = np.float32(norm).tobytes()
        decoded = codec.decode(sealed(bytes(payload)), context)
        assert np.isfinite(decoded).all() and decoded[0] <= np.float32(norm)
        assert norm < 1e-30 or decoded[0] == pytest.approx(norm, rel=1e-6)
    for norm in (np.inf, np.nan, -1.0, -0.0, 0.0):
        payload[at : at + 4] = np.float32(norm).tobytes()
        with pytest.raises(PayloadError):
            codec.decode(sealed(bytes(payload)), context)
