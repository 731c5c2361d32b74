"""Clients that fail: who is merged, with what weight, and what the ledger says."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deltamask_jax import methods
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import batches, cohort, engine, faults
from deltamask_jax.federation.rounds import TooFewClients, play_round, play_until_enough
from deltamask_jax.task import PROBE_PHASE
from tests.conftest import cohort_of, tiny_config

EVERYONE = np.arange(6)


def build(problem, **changes):
    """Linear probing is the quickest method to compile; its weights are examples."""
    config = tiny_config(**({"method": "linear_probe", "linear_probe__learning_rate": 0.1} | changes))
    problem = dataclasses.replace(problem, config=config, engine=engine.from_config(config))
    return problem, methods.build(config, problem.task)


def play(problem, method, clients=EVERYONE):
    return play_round(problem, method, method.init(), cohort_of(clients))


def plan(problem, **changes):
    config = tiny_config(**changes)
    full = batches.schedule(problem.parts, cohort_of(EVERYONE), epochs=2, batch_size=8)
    return full, *faults.draw(config, full, cohort_of(EVERYONE))


def test_dropouts_and_stragglers_have_their_rates(problem):
    config, lost, shares = tiny_config(faults__dropout=0.3, faults__straggler=0.5), 0, []
    full = batches.Schedule(np.zeros((6, 100, 1), np.int32), np.full(6, 100, np.int32), 100)
    for number in range(200):
        struck, failed = faults.draw(config, full, cohort_of(EVERYONE, number))
        assert set(failed.values()) <= {faults.NO_ANSWER}
        assert all((struck.steps[row] == 0) == (row in failed) for row in range(6))
        lost += len(failed)
        shares += [struck.steps[row] / 100 for row in range(6) if row not in failed]
    assert lost / 1200 == pytest.approx(0.3, abs=0.05)
    partial = np.array([share for share in shares if share < 1])
    assert len(partial) / len(shares) == pytest.approx(0.5, abs=0.06)
    assert partial.mean() == pytest.approx(0.5, abs=0.05)


def test_a_deadline_loses_whoever_needs_longer(problem):
    full, struck, lost = plan(
        problem, faults__deadline=3.0, faults__step_seconds=1.0, faults__speed_spread=0.0
    )
    assert set(lost) == set(np.flatnonzero(full.steps > 3)) and set(lost.values()) == {faults.LATE}
    slow = [faults.slowness(tiny_config(), client) for client in range(400)]
    assert np.median(slow) == pytest.approx(1, abs=0.1)
    assert np.std(np.log(slow)) == pytest.approx(0.5, abs=0.06)


def test_luck_does_not_depend_on_the_cohort_but_on_the_attempt(problem):
    config = tiny_config(faults__dropout=0.5)
    full = batches.Schedule(np.zeros((40, 1, 1), np.int32), np.ones(40, np.int32), 1)
    everyone, half = cohort_of(np.arange(40)), slice(None, None, 2)
    lost = faults.draw(config, full, everyone)[1]
    among = faults.draw(config, full.of(half), everyone.of(half))[1]
    assert {2 * row for row in among} == {row for row in lost if row % 2 == 0}
    assert set(faults.draw(config, full, dataclasses.replace(everyone, attempt=1))[1]) != set(lost)


def test_the_merge_is_the_weighted_mean_of_the_survivors(problem):
    """Survivors' weights are the examples they have seen, and sum to one without those who are lost."""
    problem, method = build(problem, faults__dropout=0.4, faults__straggler=0.5, batch_size=4)
    state, result = play(problem, method)
    config = problem.config
    full = batches.schedule(problem.parts, cohort_of(EVERYONE), epochs=1, batch_size=4)
    struck, lost = faults.draw(config, full, cohort_of(EVERYONE))
    alive = [k for k in EVERYONE if k not in lost]
    assert 0 < len(lost) < 6 and (struck.steps[alive] < full.steps[alive]).any()
    assert result.lost == {"no answer": len(lost)} and result.merged == len(alive) == result.senders

    # Each survivor alone, on the examples it got to; only the fault-free seam of `play_round` is used.
    expected, total = None, 0
    for client in alive:
        seen = struck.batches[client][: struck.steps[client]]
        count = len(np.unique(seen[seen >= 0]))
        alone = cohort.train(
            problem.engine,
            method.client,
            method.frozen,
            method.start(method.init(), cohort_of([client])),
            {"inputs": problem.inputs["features"][0], "labels": problem.labels[0]},
            struck.of([client]),
            (),
            jax.random.split(jax.random.key(0), 1),  # linear probing draws nothing
        )[0]
        part = jax.tree.map(lambda x, count=count: count * np.asarray(x[0]), alone)
        expected = part if expected is None else jax.tree.map(np.add, expected, part)
        total += count
    start, end = (ravel_pytree(at.weights)[0] for at in (method.init(), state))
    np.testing.assert_allclose(start + ravel_pytree(expected)[0] / total, end, rtol=1e-4, atol=1e-6)


def test_a_client_without_examples_is_left_out_and_one_with_a_single_example_counts(problem):
    parts = [np.zeros(0, np.int64), *problem.parts[1:]]
    emptied, method = build(dataclasses.replace(problem, parts=parts))
    state, result = play(emptied, method)
    assert result.lost == {"no examples": 1} and result.merged == 5
    without, _ = play(emptied, method, EVERYONE[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, without)
    one, _ = play(problem=build(problem)[0], method=method, clients=EVERYONE[:1])  # it has one example
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(method.init()), strict=True)
    )


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_client_whose_loss_turns_nan_is_dropped_and_named(problem, backend, caplog):
    broken, method = build(problem, cohort__backend=backend)
    features = problem.inputs["features"][0].at[problem.parts[2][0]].set(np.nan)
    broken = dataclasses.replace(broken, inputs={"features": (features, features)})
    with caplog.at_level(logging.WARNING):
        state, result = play(broken, method)
    assert "round 1: client 2 dropped, its loss is not finite at step 1" in caplog.text
    assert result.lost == {"not finite": 1} and np.isfinite(result.train_loss)
    without, _ = play(broken, method, np.array([0, 1, 3, 4, 5]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state, without)
    with pytest.raises(TooFewClients, match=r"round 1: 0 of 1 clients could be merged.*1 not finite"):
        play(broken, method, np.array([2]))
    with pytest.raises(FloatingPointError, match="logits are not finite for 1 of"):
        evaluator(broken, method)(state)


def test_a_training_state_that_overflows_is_found_though_the_loss_was_finite(problem, caplog):
    overflowing, method = build(problem, linear_probe__learning_rate=float("inf"))
    with pytest.raises(TooFewClients, match="2 not finite"):
        play(overflowing, method, np.array([0, 3]))  # they have one step
    assert "client 3 dropped, its training state is not finite at step 1" in caplog.text


def test_a_round_with_too_few_survivors_is_repeated_with_a_new_cohort_and_paid_for(problem):
    settings = {"participation": 0.5, "min_clients": 3, "faults__dropout": 0.5}
    problem, method = build(problem, **settings, max_repeats=50)
    repeated = next(  # a round that needs repeats; the draws depend on the round alone
        (number, result)
        for number in range(1, 50)
        if (result := play_until_enough(problem, method, method.init(), number)[1]).repeats
    )
    number, result = repeated
    assert result.merged == 3 and result.clients == 3 * (result.repeats + 1)
    assert result.senders == 3 + result.rejected.get("round repeated", 0)
    broadcast = len(method.down.encode(method.init(), cohort_of([], number)))
    assert result.downlink_bytes == broadcast * result.clients
    one = len(result.payload)  # others compress more or less, but travel too
    assert 0.5 * one * result.senders < result.uplink_bytes < 2 * one * result.senders
    problem.config.max_repeats = result.repeats - 1
    with pytest.raises(TooFewClients, match=f"after {result.repeats - 1} repeats: raise config.max_repeats"):
        play_until_enough(problem, method, method.init(), number)


def test_failures_are_for_the_main_phase_alone(problem):
    problem, method = build(problem, faults__dropout=1.0)
    _, result = play_round(problem, method, method.init(), cohort_of(EVERYONE, phase=PROBE_PHASE))
    assert result.merged == 6
    with pytest.raises(TooFewClients, match="6 no answer"):
        play(problem, method)


def test_luck_and_speed_follow_the_seed():
    full = batches.Schedule(np.zeros((40, 1, 1), np.int32), np.ones(40, np.int32), 1)
    configs = [tiny_config(seed=seed, faults__dropout=0.5) for seed in (0, 1)]
    first, second = (set(faults.draw(config, full, cohort_of(np.arange(40)))[1]) for config in configs)
    assert first != second
    assert faults.slowness(configs[0], 3) != faults.slowness(configs[1], 3)


def test_a_client_that_needs_just_the_deadline_is_in_time():
    full = batches.Schedule(np.zeros((2, 4, 1), np.int32), np.array([3, 4], np.int32), 4)
    config = tiny_config(faults__deadline=3.0, faults__step_seconds=1.0, faults__speed_spread=0.0)
    assert faults.draw(config, full, cohort_of([0, 1]))[1] == {1: faults.LATE}
