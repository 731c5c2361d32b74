"""One client's training: what its loss counts, and the proximal term. A cohort's: test_cohort.py."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltamask_jax.local_training import cross_entropy, weight_training


def test_the_proximal_term_pulls_toward_the_broadcast():
    """On a flat loss with gradient 1, w settles where μ (w − w₀) = −1."""
    training = weight_training(lambda frozen, w, batch: jnp.sum(w), optax.identity(), proximal=2.0)
    start = jnp.array([3.0, -1.0])
    received = {"weights": start, "learning_rate": 0.1}
    carry = training.init((), received, ())
    for _ in range(60):
        carry, loss = training.step((), received, carry, {}, None)
    np.testing.assert_allclose(carry[0], start - 0.5, atol=1e-4)
    assert loss == pytest.approx(float(jnp.sum(start)) - 1, abs=1e-3)  # reported without the term


def test_the_received_rate_scales_the_steps_of_adam():
    """As optax.adam with that rate."""
    training = weight_training(lambda _, w, batch: jnp.sum(w**3), optax.scale_by_adam())
    start, adam = jnp.array([3.0, -1.0]), optax.adam(0.05)
    received = {"weights": start, "learning_rate": 0.05}
    carry, w, state = training.init((), received, ()), start, adam.init(start)
    for _ in range(3):
        carry, _ = training.step((), received, carry, {}, None)
        steps, state = adam.update(3 * w**2, state, w)
        w = optax.apply_updates(w, steps)
    np.testing.assert_allclose(carry[0], w, rtol=1e-6)


def test_padding_does_not_count_in_the_loss():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [50.0, -50.0]])
    batch = {"labels": jnp.array([0, 0, 1]), "weights": jnp.array([1.0, 1.0, 0.0])}
    expected = np.mean(np.log1p(np.exp([-2.0, 1.0])))
    assert cross_entropy(logits, batch) == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(logits, batch | {"weights": jnp.zeros(3)}) == 0  # a client without examples
