"""Aggregators of masks: bias and variance by simulation, every position a trial; who may use which."""

import dataclasses
from functools import partial
from unittest import mock

import jax
import numpy as np
import pytest

from deltamask_jax import masks, methods
from deltamask_jax.aggregation import BetaPosterior
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods import masking
from deltamask_jax.methods.method import Link
from deltamask_jax.methods.votes import Votes, mask_streams
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from deltamask_jax.task import Task
from tests.conftest import cohort_of, play, tiny_config

TRIALS, WIDTH, CLIENTS = 1000, 50, 5  # vectors, their length, masks per vector


def vectors(spread: int):
    """θ_g u16[trials · width], and every client's θ_k near it, u16[clients, trials · width]."""
    rng = np.random.default_rng(0)
    theta = rng.integers(6000, 59_000, TRIALS * WIDTH)
    moved = theta + rng.normal(spread / 2, spread, (CLIENTS, theta.size))
    return theta.astype(np.uint16), np.clip(np.rint(moved), 0, 65535).astype(np.uint16)


def estimate(aggregator: str, theta, thetas, shared=False, rounds=1):
    """What the server makes of one mask per client and round, before it is clamped: θ f64[trials, width]."""
    method = masking.mask_method(
        "masks",
        Task(None, None, None, FlatIndex(("kernel",), (theta.shape,), (0,), len(theta))),
        tiny_config(mask__aggregator=aggregator).mask,
        rounds=rounds,
        clients=CLIENTS,
        participation=1.0,
        final=None,
        up=Link(None, None),
        report=None,
        streams=partial(mask_streams, shared=shared),
    )
    state = dataclasses.replace(method.init(), theta=theta)
    for number in range(1, rounds + 1):
        words = [EVERY_CLIENT if shared else client for client in range(CLIENTS)]
        u = np.stack([uniforms(stream_key(7, number, word, MASK), len(theta)) for word in words])
        ones = masks.draw(thetas, u).sum(0).astype(np.int32)
        change = ones - masks.draw(theta, u).sum(0, dtype=np.int32)
        cohort, merged = cohort_of(range(CLIENTS), number, seed=7), []
        for votes in (Votes(ones=ones), Votes(change=change)):
            with mock.patch.object(masks, "theta16", wraps=masks.theta16) as clamped:
                after = method.merge(state, votes, cohort)
            merged.append(np.asarray(clamped.call_args.args[0], np.float64))
        np.testing.assert_array_equal(*merged)
        state = dataclasses.replace(after, theta=theta)
    return merged[0].reshape(TRIALS, WIDTH)


def standard_errors(error, direction):
    """The mean projection of each trial's error, in standard errors."""
    projections = np.mean(error * direction, axis=1)
    return abs(projections.mean()) / (projections.std(ddof=1) / TRIALS**0.5)


@pytest.mark.parametrize("aggregator", ["beta", "running", "control_variate"])
def test_estimates_of_the_mean_are_unbiased(aggregator):
    theta, thetas = vectors(2000)
    error = estimate(aggregator, theta, thetas) - (thetas.mean(0) / masks.SCALE).reshape(TRIALS, WIDTH)
    step = (thetas.mean(0) - theta).reshape(TRIALS, WIDTH)
    assert standard_errors(error, np.ones(WIDTH)) < 3
    assert standard_errors(error, step) < 3
    # A part of the step left out would be seen.
    assert standard_errors(error - 0.3 * step / masks.SCALE, step) > 3


def test_the_control_variate_keeps_only_the_noise_of_the_step():
    theta, thetas = vectors(2000)
    p, q = thetas / masks.SCALE, theta / masks.SCALE
    target = p.mean(0).reshape(TRIALS, WIDTH)
    step = np.abs(p - q)
    expected = {
        "beta": np.mean(p * (1 - p)) / CLIENTS,
        "control_variate": np.mean(step * (1 - step)) / CLIENTS,
    }
    for name, variance in expected.items():
        error = estimate(name, theta, thetas) - target
        assert np.mean(error**2) == pytest.approx(variance, rel=0.05), name
    assert expected["control_variate"] < 0.2 * expected["beta"]


def test_shared_uniforms_do_not_average_out():
    """Equal clients with one u are one client: the paper's regime has K times the noise."""
    theta, thetas = vectors(2000)
    thetas[:] = thetas[0]
    target = (thetas[0] / masks.SCALE).reshape(TRIALS, WIDTH)
    noise = {
        shared: np.mean((estimate("control_variate", theta, thetas, shared) - target) ** 2)
        for shared in (True, False)
    }
    assert noise[True] / noise[False] == pytest.approx(CLIENTS, rel=0.1)


def test_the_running_posterior_averages_over_rounds_and_the_reset_one_does_not():
    theta, thetas = vectors(2000)
    target = (thetas.mean(0) / masks.SCALE).reshape(TRIALS, WIDTH)
    noise = {
        (name, rounds): np.mean((estimate(name, theta, thetas, rounds=rounds) - target) ** 2)
        for name in ("running", "beta")
        for rounds in (1, 4)
    }
    assert noise["running", 1] / noise["running", 4] == pytest.approx(4, rel=0.05)
    assert noise["beta", 1] / noise["beta", 4] == pytest.approx(1, rel=0.05)


def test_a_snapshot_of_any_posterior_is_within_the_envelopes_bound():
    """θ, α and β take 10 bytes per position where they are as irregular as can be."""
    d, rng = 1 << 16, np.random.default_rng(0)
    method = masking.mask_method(
        "masks",
        Task(None, None, None, FlatIndex(("kernel",), ((d,),), (0,), d)),
        tiny_config(mask__aggregator="running").mask,
        rounds=2,
        clients=CLIENTS,
        participation=1.0,
        final=None,
        up=Link(None, None),
        report=None,
        told_by_tally=False,
    )
    theta = rng.integers(0, 1 << 16, d).astype(np.uint16)
    alpha, beta = rng.integers(0, 0x7F800000, (2, d), np.uint32).view(np.float32)
    state = dataclasses.replace(method.init(), theta=theta, posterior=BetaPosterior(alpha, beta))
    asked = cohort_of(range(CLIENTS), 2)
    payload = method.down.encode(state, asked)
    assert len(payload) > 9.5 * d
    read = method.down.decode(payload, asked)
    jax.tree.map(np.testing.assert_array_equal, read, state)


def test_clients_that_keep_their_adam_go_on_where_they_stood(problem):
    """At no learning rate to speak of, all rounds have one θ, and first moments of two of them add up."""
    settings = {"mask__client_state": "kept", "cohort__chunk": 2}  # two at a time: one program for all rounds
    settings |= {"mask__learning_rate": 1e-9, "mask__learning_rate_final": 1e-9}
    problem, method, state, _ = play(problem, rounds=1, **settings)
    steps = np.array([1, 3, 1, 1, 2, 1])  # of clients with 1 … 20 examples, at batch 8
    assert [state.moments[str(k)].count for k in range(6)] == steps.tolist()
    zeros = dataclasses.replace(state, moments=jax.tree.map(np.zeros_like, state.moments))
    asked = cohort_of([1, 4], 2)
    after, anew = (play_round(problem, method, its, asked)[0].moments for its in (state, zeros))
    for client in map(str, asked.clients):
        before, gone_on, fresh = (index_of(problem, m[client].mu) for m in (state.moments, after, anew))
        assert np.abs(fresh).max() > 0 and np.abs(before).max() > 0
        expected = 0.9 ** int(anew[client].count) * before + fresh
        np.testing.assert_allclose(gone_on, expected, rtol=1e-4, atol=1e-7 * np.abs(fresh).max())
        assert after[client].count == 2 * anew[client].count
    assert after["0"] is state.moments["0"]  # was not asked
    *_, looped, _ = play(problem, rounds=1, **settings, cohort__backend="loop")
    for client in ("1", "4"):
        mine, theirs = (index_of(problem, its.moments[client].mu) for its in (state, looped))
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(mine).max())


def index_of(problem, tree) -> np.ndarray:
    """A tree of kernels as one vector, f32[d]."""
    return np.asarray(problem.task.index.ravel(tree))


def test_theta_goes_to_its_ends_before_the_hard_rounds_and_moves_on_from_there(problem):
    changes = {"mask__aggregator": "control_variate", "mask__hard_rounds": 2, "mask__theta_clip": 0.01}
    method = methods.build(tiny_config(rounds=5, **changes), problem.task)
    plain = methods.build(tiny_config(rounds=5, **changes | {"mask__hard_rounds": 0}), problem.task)
    rng, d = np.random.default_rng(0), problem.task.index.d
    state = dataclasses.replace(method.init(), theta=rng.integers(20_000, 64_000, d).astype(np.uint16))
    for number in range(1, 6):
        votes = Votes(change=rng.integers(-2, 3, d).astype(np.int32))
        merged = plain.merge(state, votes, cohort_of(range(6), number)).theta
        state = method.merge(state, votes, cohort_of(range(6), number))
        if number == 3:
            kept = merged >= masks.least_kept(merged)
            np.testing.assert_array_equal(state.theta, np.where(kept, 64881, 655))
            assert state.theta.dtype == np.uint16
        else:
            np.testing.assert_array_equal(state.theta, merged)
    assert len(np.unique(state.theta)) > 2
