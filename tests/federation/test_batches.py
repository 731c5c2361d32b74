"""Which examples a client sees when: no lost example, Poisson batches at their rate, draws of their own."""

from functools import partial

import numpy as np
import pytest

from deltamask_jax.federation import batches
from deltamask_jax.task import PROBE_PHASE
from tests.conftest import cohort_of


def plan(problem, clients, epochs=2, batch_size=8, number=1):
    asked = cohort_of(clients, number)
    return batches.schedule(problem.parts, asked, epochs=epochs, batch_size=batch_size)


def test_schedule_shows_every_example_once_an_epoch(problem):
    clients = np.array([1, 3, 5])
    schedule = plan(problem, clients, epochs=2)
    assert schedule.batches.shape == (3, 2 * 3, 8)  # the largest client has 20 examples
    for row, client in enumerate(clients):
        part = problem.parts[client]
        steps = schedule.steps[row]
        assert steps == 2 * -(-len(part) // 8)
        used = schedule.batches[row, :steps].reshape(2, -1)
        for epoch in used:
            np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.sort(part))
        assert (schedule.batches[row, steps:] == -1).all()


def test_a_batch_is_no_larger_than_the_largest_client(problem):
    clients = np.arange(len(problem.parts))
    largest = max(map(len, problem.parts))
    vast, exact = plan(problem, clients, batch_size=5000), plan(problem, clients, batch_size=largest)
    assert vast.batches.shape == (len(clients), 2, largest)
    np.testing.assert_array_equal(vast.batches, exact.batches)
    np.testing.assert_array_equal(vast.steps, exact.steps)


def test_schedule_depends_on_seed_round_and_client_but_not_on_the_cohort(problem):
    alone, among = plan(problem, np.array([1])), plan(problem, np.array([0, 1, 4]))
    np.testing.assert_array_equal(alone.batches[0], among.batches[1])
    assert (plan(problem, np.array([1]), number=2).batches != alone.batches).any()


def poisson(problem, clients, number=1, microbatch=4):
    asked = cohort_of(clients, number)
    return batches.poisson_schedule(problem.parts, asked, epochs=2, batch_size=8, microbatch=microbatch)


def test_poisson_batches_hold_each_example_at_its_rate_and_are_never_cut(problem, monkeypatch):
    clients, seen = np.array([1, 5]), []  # of 20 examples, at 0.4, and of 3, which are in every batch
    for number in range(60):
        plan = poisson(problem, clients, number)
        assert plan.batches.shape == (2, 5, 20) and plan.steps.tolist() == [5, 2]
        np.testing.assert_array_equal(np.sort(plan.batches[1, 0][:3]), np.sort(problem.parts[5]))
        seen += plan.batches[0].ravel().tolist()
    assert poisson(problem, clients, microbatch=19).batches.shape == (2, 5, 18)  # one part of one width
    counts = np.array([seen.count(example) for example in problem.parts[1]])
    assert counts.sum() == sum(example >= 0 for example in seen)
    np.testing.assert_allclose(counts / 300, 0.4, atol=5 * np.sqrt(0.24 / 300))
    monkeypatch.setattr(batches.stats.binom, "isf", lambda *_: 1)  # a width that every batch exceeds
    np.testing.assert_array_equal(
        np.sort(poisson(problem, clients, 59).batches)[:, :, -8:], np.sort(plan.batches)[:, :, -8:]
    )


@pytest.mark.parametrize("draw", [batches.schedule, partial(batches.poisson_schedule, microbatch=4)])
def test_every_round_phase_and_seed_draws_batches_of_its_own(draw):
    asked = cohort_of([0]), cohort_of([0], 2), cohort_of([0], phase=PROBE_PHASE), cohort_of([0], seed=2**32)
    drawn = [draw([np.arange(20)], its, epochs=2, batch_size=8).batches for its in asked]
    assert len({its.tobytes() for its in drawn}) == len(asked)
