"""FeedSign: votes about public directions by hand, bits both ways, and followers that hold the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import methods
from deltamask_jax.codecs import PayloadError
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import downlink
from deltamask_jax.federation.downlink import Memory
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.methods.feedsign import direction
from deltamask_jax.public_random import DIRECTIONS, EVERY_CLIENT, candidate_words, stream_key
from tests.conftest import cohort_of, play, tiny_config

EVERYONE = np.arange(6)
HEAD = {"method": "feedsign", "feedsign__trained": "peft", "peft__kind": "head"}
N = 3 * 33  # weights of the head: 3 biases, then 32 × 3 in the kernel
RATE = np.float32(0.02)


def build(problem, **changes):
    config = tiny_config(**HEAD | changes)
    return dataclasses.replace(problem, config=config), methods.build(config, problem.task)


def directions(number, count, n=N):
    """The round's public z, i32[count, n], written out."""
    a, b = stream_key(0, number, EVERY_CLIENT, DIRECTIONS)
    return np.stack([direction((a, word), n) for word in candidate_words((a, b), count)])


def mean_loss(weights, x, y):
    logits = x @ weights[3:].reshape(32, 3) + weights[:3]
    logits = logits - logits.max(1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y])


@pytest.mark.parametrize("count", [1, 5])
def test_a_round_by_hand(problem, count):
    """Clients look ahead and behind, the majority decides, and everybody moves against it."""
    changes = {"feedsign__learning_rate": float(RATE), "feedsign__perturbation": 0.01}
    problem, method = build(problem, feedsign__directions=count, **changes)
    x, y = (np.asarray(a) for a in (problem.inputs["features"][0], problem.labels[0]))
    start, z = method.init().astype(np.float64), directions(1, count)
    votes = np.array(
        [
            [
                mean_loss(start + 0.01 * one, x[part], y[part])
                > mean_loss(start - 0.01 * one, x[part], y[part])
                for one in z
            ]
            for part in problem.parts
        ]
    )
    state, result = play_round(problem, method, method.init(), cohort_of(EVERYONE))
    rises = 2 * votes.sum(0) >= 6
    moves = np.where(rises, 1, -1) @ z
    np.testing.assert_array_equal(state, method.init() - RATE * moves.astype(np.float32))
    assert result.details["agreement"] == pytest.approx(np.mean(votes == rises))
    assert result.uplink_bytes == 6 * (32 + 1)


def test_directions_are_signs_that_differ_and_numpys_and_jaxs_are_the_same():
    z = directions(1, 4, 10_000)
    assert set(np.unique(z)) == {-1, 1} and abs(z.mean()) < 0.02
    assert np.abs(z @ z.T / 10_000 - np.eye(4)).max() < 0.05
    assert abs(np.mean(z[0] * directions(2, 1, 10_000)[0])) < 0.05
    stream = jnp.array(stream_key(0, 1, EVERY_CLIENT, DIRECTIONS))
    np.testing.assert_array_equal(direction(stream, 100, jnp), direction(np.asarray(stream), 100))


def test_the_majority_is_of_those_who_are_valid_and_an_even_vote_rises(problem):
    _, method = build(problem, feedsign__directions=3)
    cohort = cohort_of([0, 1, 2, 3], examples=np.ones(4, int))
    votes = [np.array(v, bool) for v in ([1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1])]
    payloads = method.up.encode(method.init(), votes, cohort)
    rises, rejected = method.up.decode(method.init(), payloads, cohort)
    assert rises.tolist() == [True, True, True] and not rejected
    payloads[3] = payloads[3][:-1]
    rises, rejected = method.up.decode(method.init(), payloads, cohort)
    assert rises.tolist() == [True, False, False] and rejected.keys() == {3}
    assert method.up.decode(method.init(), payloads[3:], cohort.of([3]))[0] is None
    with pytest.raises(PayloadError):
        method.down.decode(payloads[0], cohort)


@pytest.mark.parametrize(
    "changes", [{}, {"feedsign__trained": "kernels"}, {"peft__kind": "unilora", "peft__unilora_size": 200}]
)
def test_bits_both_ways_and_followers_hold_the_weights(problem, changes):
    """Three rounds of news, from the start and from a snapshot in the middle."""
    problem, method, state, results = play(
        problem, 3, Memory.at_start(6), **HEAD | {"feedsign__directions": 12} | changes
    )
    assert results[0].downlink_bytes == 0
    names = 9 + 1 + 4  # whose votes they are, in a bit each, and how long they are
    for result in results:
        assert result.uplink_bytes == 6 * (32 + 2)
        assert result.news_bytes == 32 + names + 32 + 2
    assert results[2].downlink_bytes == 6 * results[1].news_bytes
    told = here = method.init()
    for number in (1, 2, 3):
        cohort = cohort_of(EVERYONE, number, examples=np.ones(6, int))
        rng = np.random.default_rng(number)
        payloads = method.up.encode(here, list(rng.random((6, 12)) < 0.5), cohort)
        rises, _ = method.up.decode(here, payloads, cohort)
        news = downlink.news_of(method, here, rises, payloads, cohort, "smaller")
        if number == 2:
            told = method.down.decode(method.down.encode(here, cohort), cohort)
        told = downlink.follow(method, told, news, cohort_of(EVERYONE, number))
        here = method.merge(here, rises, cohort)
        np.testing.assert_array_equal(told, here)
    assert np.any(here != method.init())


def test_it_learns_by_votes_alone(problem):
    settings = {"feedsign__directions": 64, "feedsign__learning_rate": 3e-3}
    problem, method, state, results = play(problem, 12, **HEAD | settings)
    assert results[-1].train_loss < 0.8 * results[0].train_loss
    score = evaluator(problem, method)
    assert score(state) > score(method.init()) + 0.1
    assert set(method.export(state)) == {"head/kernel", "head/bias"}


def test_what_the_network_is_trained_in(problem):
    """All masked kernels and the head, or the parts of parameter-efficient tuning: nothing else moves."""
    rates = {"feedsign__learning_rate": 1e-3, "feedsign__directions": 2}
    _, method, state, _ = play(problem, 1, **HEAD | rates | {"feedsign__trained": "kernels"})
    assert state.size == problem.task.index.d + N
    (before, _), (after, _) = method.network(method.init()), method.network(state)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), before, after)
    kernels = problem.task.index.kernels(moved)
    assert all(0 < move <= 2.1e-3 for move in kernels.values())
    assert sum(move > 0 for move in jax.tree.leaves(moved)) == len(kernels)
    _, method, state, _ = play(problem, 1, **HEAD | rates | {"peft__kind": "fedsb"})
    assert sum("square" in path for path in method.export(state)) == 12


def test_parts_are_checked_as_those_of_peft():
    config = tiny_config(**HEAD | {"peft__kind": "prompt", "model__name": "convmixer_768_32"})
    with pytest.raises(ValueError, match="config.peft.kind='prompt' is not for"):
        methods.check(config)
    config.feedsign.trained = "kernels"
    methods.check(config)
    assert not methods.trains_prefix(config)
    assert methods.trains_prefix(tiny_config(**HEAD | {"peft__kind": "bias", "peft__scope": "network"}))
