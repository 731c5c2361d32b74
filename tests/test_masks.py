"""Masks: integer θ, straight-through gradients, KL ranking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import masks


def test_theta16_round_trips_and_clamps():
    theta = jnp.array([0.0, 1e-9, 0.25, 0.5, 1 - 1e-9, 1.0])
    np.testing.assert_array_equal(masks.theta16(theta), [0, 0, 16384, 32768, 65535, 65535])
    inner = np.arange(700, 64000, 37, dtype=np.uint16)
    np.testing.assert_array_equal(masks.theta16(jax.nn.sigmoid(masks.logits(inner, 0.01))), inner)


def test_logits_hold_theta_inside_the_clip():
    s = masks.logits(np.uint16([0, 65535]), 0.01)
    np.testing.assert_allclose(jax.nn.sigmoid(s), [0.01, 0.99], rtol=1e-5)


def test_a_mask_bit_is_one_with_probability_theta():
    u = np.arange(65536).astype(np.uint16)  # every uniform once
    for theta in (0, 1, 655, 32768, 65535):
        assert masks.draw(np.uint16(theta), u).sum() == theta
    assert int(masks.sample(jnp.float32(0.25), jnp.asarray(u)).sum()) == 16384


def test_straight_through_equals_the_stop_gradient_form():
    rng = np.random.default_rng(0)
    s, w, x = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in range(3))
    bits = jnp.asarray(rng.integers(0, 2, (5, 4)), jnp.float32)

    def loss(effective):
        return jnp.sum(jnp.tanh(effective * x) ** 2)

    def stop_gradient_form(s):
        theta = jax.nn.sigmoid(s)
        return loss((theta + jax.lax.stop_gradient(bits - theta)) * w)

    ours = masks.straight_through(jax.grad(loss)(bits * w), w, jax.nn.sigmoid(s))
    np.testing.assert_allclose(ours, jax.grad(stop_gradient_form)(s), rtol=1e-4, atol=1e-6)


def test_kl_matches_float64():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 65536, (2, 1000)).astype(np.uint16)
    p, q = ((x.astype(np.float64) + 0.5) / 65537 for x in (a, b))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(masks.bernoulli_kl(a, b), expected, rtol=2e-3, atol=2e-6)
    assert np.isfinite(masks.bernoulli_kl(np.uint16([0, 65535]), np.uint16([65535, 0]))).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), kappa=st.floats(0.01, 1.0))
def test_top_kappa_equals_a_stable_sort(data, kappa):
    d = 50  # one shape, one compilation
    flips = np.array(data.draw(st.lists(st.booleans(), min_size=d, max_size=d)))
    # Few distinct scores, so that ties are common.
    score = np.float32(data.draw(st.lists(st.sampled_from([0, 0.1, 0.5, 3, 1e30]), min_size=d, max_size=d)))
    kept = np.asarray(_top_kappa(flips, score, kappa))
    at = np.flatnonzero(flips)
    keep = int(np.ceil(np.float32(kappa) * np.float32(len(at)) - 1e-4))
    best = at[np.argsort(-score[at], kind="stable")[:keep]]
    np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(best))


_top_kappa = jax.jit(masks.top_kappa)


@pytest.mark.parametrize("kappa", [0.25, 1.0])
def test_client_flips_are_where_theta_crossed_its_uniform(kappa):
    rng = np.random.default_rng(1)
    theta_g, u = rng.integers(0, 65536, (2, 4000)).astype(np.uint16)
    theta_k = np.clip(theta_g + rng.normal(0, 3000, 4000), 0, 65535).astype(np.uint16)
    between = (np.minimum(theta_g, theta_k) <= u) & (u < np.maximum(theta_g, theta_k))
    kept = np.asarray(masks.client_flips(theta_k, theta_g, u, kappa))
    assert between.sum() > 50 and kept.sum() == np.ceil(kappa * between.sum())
    assert not (kept & ~between).any()
    kl = np.asarray(masks.bernoulli_kl(theta_k, theta_g))
    if kappa < 1:
        assert kl[kept].min() >= kl[between & ~kept].max()


@given(st.lists(st.integers(0, masks.SCALE - 1) | st.sampled_from([1, 40_000, masks.SCALE - 1]), min_size=1))
def test_as_many_weights_stay_as_theta_expects_those_of_the_highest(values):
    theta = np.array(values, np.uint16)
    kept = theta >= masks.least_kept(theta)
    expected = round(sum(values) / masks.SCALE)
    assert kept.sum() >= expected
    if expected:  # without the last of them, and its ties, there were too few
        assert (theta > theta[kept].min()).sum() < expected
    else:
        assert not kept[theta < masks.SCALE - 1].any()


def test_a_network_that_has_learnt_nothing_keeps_all_its_weights():
    assert (np.full(100, 63_570, np.uint16) >= masks.least_kept(np.full(100, 63_570, np.uint16))).all()


def test_scores_below_zero_rank_as_zero():
    kept = _top_kappa(np.ones(4, bool), np.float32([-1, 0, -3, 2]), 0.5)
    assert kept.tolist() == [True, False, False, True]  # a tie of three, the first of which stays


@pytest.mark.parametrize("kappa, flips, keep", [(0.6, 25, 15), (0.5005, 10, 6)])
def test_no_flip_more_is_kept_where_float32_puts_a_whole_number_above_itself(kappa, flips, keep):
    """In float32 0.6 · 25 is 15.000001; 5.005 is more than 5."""
    kept = masks.top_kappa(jnp.ones(flips, bool), jnp.arange(flips, dtype=jnp.float32), jnp.float32(kappa))
    assert np.flatnonzero(kept).tolist() == list(range(flips - keep, flips))
