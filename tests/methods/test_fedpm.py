"""FedPM: bits on the wire, sums of masks, gradients."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import masks, methods
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import MASK, stream_key, uniforms
from deltamask_jax.task import Task
from tests.conftest import cohort_of, tiny_config

D = 400_001
CLIENTS = np.array([0, 3, 5])
COHORT = cohort_of(CLIENTS)


def build(problem, name, **changes):
    """The method on one kernel of D weights; only its training would miss the network."""
    index = FlatIndex(("kernel",), ((D,),), (0,), D)
    return methods.build(tiny_config(method=name, **changes), dataclasses.replace(problem.task, index=index))


def some_round(method):
    """A state with spread θ and each client's θ_k, u16[d]."""
    rng = np.random.default_rng(0)
    theta = np.clip(65536 * rng.beta(3, 0.5, D), 656, 64880).astype(np.uint16)
    moved = [np.clip(theta + rng.normal(0, 3000, D), 0, 65535).astype(np.uint16) for _ in CLIENTS]
    return dataclasses.replace(method.init(), theta=theta), moved


def sampled(thetas):
    """The masks FedPM's clients draw in round 1, bool[clients, d]."""
    keys = [stream_key(0, 1, int(client), MASK) for client in CLIENTS]
    return np.stack([uniforms(key, D) < theta for key, theta in zip(keys, thetas, strict=True)])


def updates(method, thetas):
    private = method.private(method.init(), COHORT)
    return [
        np.asarray(method.client.final(None, {}, ({"kernel": logits(theta)}, None), key))
        for theta, key in zip(
            thetas, zip(*private, strict=True) if private else [()] * len(thetas), strict=True
        )
    ]


def logits(theta):
    p = (jnp.asarray(theta, jnp.float32)) / masks.SCALE
    return jnp.log(jnp.maximum(p, 1e-9)) - jnp.log1p(-p)


@pytest.mark.parametrize("coding", ["marginal", "given_theta"])
def test_fedpm_sends_the_entropy_of_its_masks(problem, coding):
    method = build(problem, "fedpm", fedpm__coding=coding)
    state, thetas = some_round(method)
    drawn = sampled(thetas)
    payloads = method.up.encode(state, [np.packbits(mask) for mask in drawn], COHORT)
    for mask, payload in zip(drawn, payloads, strict=True):
        entropy = D * binary_entropy(mask.mean())
        if coding == "given_theta":
            groups = [mask[state.theta >> 10 == i] for i in range(64)]
            entropy = sum(len(group) * binary_entropy(group.mean()) for group in groups if len(group))
        table = 2 * 64 if coding == "given_theta" else 2
        assert entropy < 8 * len(payload) < 1.01 * entropy + 8 * (32 + table)
    votes, _ = method.up.decode(state, payloads, COHORT)
    np.testing.assert_array_equal(votes.ones, drawn.sum(0))
    details = method.report(np.stack([np.packbits(mask) for mask in drawn]), votes)
    assert details["mask_rate"] == pytest.approx(drawn.mean())


@pytest.mark.parametrize("aggregator", ["beta", "running", "control_variate"])
def test_fedpm_aggregates_what_the_definition_says(problem, aggregator):
    method = build(problem, "fedpm", mask__aggregator=aggregator)
    state, thetas = some_round(method)
    sent = updates(method, thetas)
    own = np.stack([np.unpackbits(packed, count=D) for packed in sent]).astype(bool)
    assert np.mean(own != sampled(thetas)) < 1e-4  # but for rounding of logits
    votes, _ = method.up.decode(state, method.up.encode(state, sent, COHORT), COHORT)
    mean = own.mean(0)
    if aggregator == "control_variate":
        mean = state.theta / masks.SCALE + mean - sampled([state.theta] * len(CLIENTS)).mean(0)
    expected = np.clip(np.rint(mean * masks.SCALE), 0.01 * masks.SCALE, 0.99 * masks.SCALE)
    new = method.merge(state, votes, COHORT)
    np.testing.assert_allclose(new.theta, expected, atol=2)


def test_the_straight_through_variant_of_the_public_code():
    """There the sampled mask's gradient is p times what comes from above, and a sigmoid precedes it."""

    @jax.custom_vjp
    def bernoulli(p):
        return (p > 0.4).astype(jnp.float32)  # the draw does not matter

    bernoulli.defvjp(lambda p: (bernoulli(p), p), lambda p, above: (p * above,))
    s, w, x = (jnp.asarray(np.random.default_rng(i).normal(size=20), jnp.float32) for i in range(3))
    loss = lambda masked: jnp.sum(jnp.tanh(masked * x))  # noqa: E731
    expected = jax.grad(lambda s: loss(bernoulli(jax.nn.sigmoid(s)) * w))(s)
    theta = jax.nn.sigmoid(s)
    grad = jax.grad(loss)(bernoulli(theta) * w)
    np.testing.assert_allclose(masks.straight_through_times_p(grad, w, theta), expected, rtol=1e-5)


def test_the_gradient_is_the_one_that_the_config_names():
    """Adam's first step hides the factor p; its first moment does not."""
    params = {"kernel": jnp.full((4, 3), 0.5)}
    model = SimpleNamespace(suffix=lambda params, inputs: inputs @ params["kernel"])
    head = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    task = Task(model, params, head, FlatIndex.create(params, "kernel"))
    batch = {"inputs": jnp.eye(4)[:2] + 1, "labels": jnp.array([0, 1]), "weights": jnp.ones(2)}
    moments = {}
    for name in ("sigmoid", "times_p"):
        config = tiny_config(method="fedpm", fedpm__straight_through=name, mask__theta_init=0.75)
        method = methods.build(config, task)
        received = method.start(method.init(), COHORT)
        start = method.client.init(method.frozen, received, ())
        (_, adam), _ = method.client.step(method.frozen, received, start, batch, jax.random.key(0))
        moments[name] = np.asarray(adam.mu["kernel"])
    assert moments["sigmoid"].any()
    np.testing.assert_allclose(moments["times_p"], 0.75 * moments["sigmoid"], rtol=1e-4)
