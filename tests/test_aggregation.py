"""Posterior, resets, means."""

import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import aggregation


def test_posterior_mode_after_a_reset_is_the_mean_of_the_masks():
    masks = np.random.default_rng(0).integers(0, 2, (7, 20))
    posterior = aggregation.vote(aggregation.prior(20, 1.0), jnp.asarray(masks.sum(0)), 7)
    np.testing.assert_allclose(aggregation.mode(posterior, jnp.zeros(20)), masks.mean(0), rtol=1e-6)


def test_posterior_accumulates_without_a_reset():
    posterior = aggregation.vote(aggregation.prior(2, 1.0), jnp.array([3, 0]), 4)
    posterior = aggregation.vote(posterior, jnp.array([1, 2]), 2)
    np.testing.assert_allclose(aggregation.mode(posterior, jnp.zeros(2)), [4 / 6, 2 / 6])
    np.testing.assert_allclose(posterior.alpha + posterior.beta, 2 + 6)


def test_mode_without_votes_keeps_the_old_theta():
    fallback = jnp.array([0.1, 0.9])
    np.testing.assert_array_equal(aggregation.mode(aggregation.prior(2, 1.0), fallback), fallback)


def test_a_larger_prior_pulls_toward_one_half():
    posterior = aggregation.vote(aggregation.prior(1, 3.0), jnp.array([4]), 4)
    np.testing.assert_allclose(aggregation.mode(posterior, jnp.zeros(1)), (7 - 1) / (7 + 3 - 2))


@pytest.mark.parametrize(
    "participation, rounds", [(1.0, [0, 1, 2, 3]), (0.5, [0, 2]), (0.2, [0]), (0.3, [0, 3])]
)
def test_resets_every_one_over_rho_rounds(participation, rounds):
    assert [r for r in range(4) if aggregation.resets_at(r, participation)] == rounds


def test_weighted_mean():
    trees = [{"w": np.array([1.0, 2.0])}, {"w": np.array([4.0, 8.0])}]
    np.testing.assert_allclose(aggregation.weighted_mean(trees, [2, 1])["w"], [2, 4])
    with pytest.raises(ValueError, match="positive total weight"):
        aggregation.weighted_mean(trees, [0, 0])


def test_one_over_rho_is_rounded_to_the_nearest_round():
    assert [r for r in range(6) if aggregation.resets_at(r, 0.6)] == [0, 2, 4]  # 1/ρ = 1.67
    assert [r for r in range(8) if aggregation.resets_at(r, 0.15)] == [0, 7]  # 6.67
