"""FedMask: a bit per weight, and no sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import masks, methods
from tests.conftest import cohort_of, tiny_config
from tests.methods.test_fedpm import CLIENTS, COHORT, D, build, some_round, updates


def test_fedmask_is_one_bit_a_weight_and_a_header(problem):
    method = build(problem, "fedmask")
    state, thetas = some_round(method)
    sent = updates(method, thetas)
    payloads = method.up.encode(state, sent, COHORT)
    assert {len(payload) for payload in payloads} == {32 + -(-D // 8)}
    votes = sum((theta > 32768).astype(int) for theta in thetas)
    decoded, _ = method.up.decode(state, payloads, COHORT)
    assert np.mean(decoded.ones != votes) < 1e-4  # but for rounding of logits
    new = method.merge(state, decoded, COHORT)
    expected = np.clip(65536.0 * decoded.ones / 3, 655, 64881)
    np.testing.assert_allclose(new.theta, expected, atol=1)
    assert len(method.up.decode(state, payloads, cohort_of(CLIENTS, 2))[1]) == len(CLIENTS)


def test_fedmask_does_not_sample(problem):
    """Two keys, one step; FedPM's steps differ."""
    batch = {
        "inputs": problem.inputs["tokens"][0][:4],
        "labels": problem.labels[0][:4],
        "weights": jnp.ones(4),
    }
    differs = {}
    for name in ("fedmask", "fedpm"):
        method = methods.build(tiny_config(method=name), problem.task)
        received = method.start(method.init(), COHORT)
        start = method.client.init(method.frozen, received, ())
        step = jax.jit(method.client.step)
        carries = [step(method.frozen, received, start, batch, jax.random.key(i))[0] for i in (0, 1)]
        first, second = (problem.task.index.ravel(carry[0]) for carry in carries)
        differs[name] = float(jnp.abs(first - second).max())
        assert float(jnp.abs(first - problem.task.index.ravel(start[0])).max()) > 0.05
    assert differs["fedmask"] == 0 < differs["fedpm"]


def test_its_thresholded_mask_is_what_its_clients_trained_with(problem):
    method, index = methods.build(tiny_config(method="fedmask"), problem.task), problem.task.index
    theta = np.linspace(20_000, 60_000, index.d).astype(np.uint16)  # 0.61 in the mean
    state = dataclasses.replace(method.init(), theta=theta)
    kept = np.unpackbits(method.export(state)["mask"], count=index.d).astype(bool)
    np.testing.assert_array_equal(kept, theta > 32768)
    network, _ = methods.build(
        tiny_config(method="fedmask", mask__evaluate="threshold"), problem.task
    ).network(state)
    weights = index.ravel(index.kernels(problem.task.params))
    np.testing.assert_array_equal(index.ravel(index.kernels(network)), np.where(kept, weights, 0))


def test_a_weight_at_exactly_one_half_is_off_in_training_on_the_wire_and_in_what_is_stored(problem):
    """θ is ½ where half of an even cohort votes 1."""
    assert masks.above_half(jnp.array([0.5, 0.500001]), None).tolist() == [False, True]
    method = build(problem, "fedmask")
    zeros = {"kernel": jnp.zeros(D)}  # logits of ½
    assert not np.any(method.client.final(None, {}, (zeros, None), ()))
    half = dataclasses.replace(method.init(), theta=np.full(D, 32768, np.uint16))
    assert not method.export(half)["mask"].any()


def test_clients_start_as_near_the_threshold_as_the_config_says(problem):
    method = build(problem, "fedmask", fedmask__start=0.3, mask__theta_init=0.97)
    start, _ = method.client.init(method.frozen, method.start(method.init(), COHORT), ())
    np.testing.assert_allclose(jax.nn.sigmoid(start["kernel"][:5]), 0.7, rtol=1e-5)
