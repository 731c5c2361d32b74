"""A federated round of every method, on bytes: what the server ends with and what the ledger says."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deltamask_jax import methods
from deltamask_jax.data import partition
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import downlink, faults, rounds, uplink
from deltamask_jax.federation.clients import Answers
from deltamask_jax.federation.rounds import play_round
from tests.conftest import cohort_of, play, tiny_config


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_training_loss_falls_and_bytes_are_counted(problem, name):
    rates = {"fedavg__learning_rate": 1e-3, "mask__learning_rate": 0.5, "mask__learning_rate_final": 0.5}
    rates |= {"feedsign__learning_rate": 1e-3, "feedsign__directions": 4}
    problem, method, state, results = play(problem, 3, method=name, batch_size=4, **rates)
    assert results[-1].train_loss < results[0].train_loss
    for result in results:
        assert result.clients == 6
        assert result.uplink_bytes >= 6 * len(result.payload) * 0.5
        assert result.downlink_bytes % 6 == 0 and result.downlink_bytes > 0
    assert 0 <= evaluator(problem, method)(state) <= 1
    exported = method.export(state)
    assert all(isinstance(array, np.ndarray) for array in exported.values())


def test_fedavg_is_the_weighted_mean_of_client_training(problem):
    """One client alone, then two: the mean weighted by example counts, through float32 bytes."""
    config = tiny_config(method="fedavg", fedavg__learning_rate=1e-2)
    problem = dataclasses.replace(problem, config=config)
    method = methods.build(config, problem.task)
    start = method.init()

    def after(clients):
        state, _ = play_round(problem, method, start, cohort_of(clients))
        return state

    one, two, both = after([1]), after([4]), after([1, 4])
    expected = jax.tree.map(lambda a, b: (20 * a + 16 * b) / 36, one, two)
    jax.tree.map(lambda e, b: np.testing.assert_allclose(e, b, rtol=1e-4, atol=1e-6), expected, both)


def test_backends_give_the_same_round(problem):
    states = [
        play(problem, 1, cohort__backend=backend, cohort__chunk=chunk)[2].theta.astype(int)
        for backend, chunk in (("loop", 1), ("vmap", 1), ("vmap", 4))
    ]
    for other in states[1:]:  # a vote may differ where a logit rounds across its uniform
        assert np.mean(states[0] != other) < 2e-3


def test_local_randomness_counts_all_of_the_seed(problem, monkeypatch):
    class Seen(Exception):
        pass

    def sent(*arguments):
        raise Seen(jax.random.key_data(arguments[-1].keys()).tolist())

    monkeypatch.setattr(uplink, "train_and_send", sent)
    keys = []
    for seed in (5, 5 + 2**32, 5 + 2**33, 5):
        with pytest.raises(Seen) as seen:
            play(problem, rounds=1, seed=seed)
        keys.append(str(seen.value))
    assert keys[0] == keys[3] and len(set(keys)) == 3


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_each_attempt_asks_a_cohort_of_its_own_and_knows_what_the_one_before_told(monkeypatch, sampling):
    asked = []

    def play_round(problem, method, state, cohort, memory):
        asked.append((cohort.clients.tolist(), cohort.round, cohort.attempt, memory))
        spent = rounds.Round(0.0, {"clients": [], "down": [], "up": []}, {}, b"", memory=memory + 1)
        if len(asked) < 3:
            raise rounds.TooFewClients("too few", spent)
        return state, spent

    monkeypatch.setattr(rounds, "play_round", play_round)
    config = tiny_config(clients=40, participation=0.3, client_sampling=sampling, max_repeats=5, seed=3)
    rounds.play_until_enough(SimpleNamespace(config=config), None, None, 7, 10)
    drawn = [partition.cohort(40, 0.3, 3, 7, attempt, sampling).tolist() for attempt in range(3)]
    assert asked == [(drawn[attempt], 7, attempt, 10 + attempt) for attempt in range(3)]


LOST, BROKEN = 0, 2  # clients of the following rounds


def heard(updates, told):
    """Answers of clients 0 … 3, of whom one does not answer and one's payload breaks on the way."""

    def ask(problem, method, state, cohort, memory):
        cohort = dataclasses.replace(cohort, examples=np.array([1, 20, 7, 8]))
        payloads = method.up.encode(state, list(updates), cohort)
        payloads[BROKEN] = payloads[BROKEN][:-1]
        lost = {LOST: faults.NO_ANSWER}
        return Answers(state, cohort, payloads, np.ones(4), lost, updates, conclude=told.append)

    return ask


def test_who_is_lost_and_who_is_rejected_have_no_weight_and_are_in_no_news(problem):
    config, told = tiny_config(method="linear_probe", clients=4), []
    updates = np.arange(1, 5, dtype=np.float32)[:, None] * np.ones((4, 99), np.float32)
    asking = dataclasses.replace(problem, config=config, ask=heard(updates, told))
    method = methods.build(config, problem.task)
    memory, cohort = downlink.Memory.at_start(4), cohort_of(np.arange(4))
    state, result = play_round(asking, method, method.init(), cohort, memory)
    assert (result.lost, result.merged, sum(result.rejected.values())) == ({"no answer": 1}, 2, 1)
    moved = state.weights["bias"] - method.init().weights["bias"]
    np.testing.assert_allclose(moved, (20 * 2 + 8 * 4) / 28, rtol=1e-5)
    follower = downlink.follow(method, method.init(), told[0], cohort)
    jax.tree.map(np.testing.assert_array_equal, follower.weights, state.weights)


def test_a_round_is_described_by_those_who_were_merged(problem):
    config, d = tiny_config(codec__name="rice", clients=4), problem.task.index.d
    updates = np.stack([np.packbits(np.arange(d) % step == 0) for step in (2, 100, 3, 50)])
    asking = dataclasses.replace(problem, config=config, ask=heard(updates, []))
    method = methods.build(config, problem.task)
    _, result = play_round(asking, method, method.init(), cohort_of(np.arange(4)))
    assert result.details["flip_rate"] == pytest.approx(0.015, rel=0.01)
    assert result.details["false_flip_rate"] == 0
    rates = result.diagnostics["flip_rate_by_layer"].values()
    assert all(0.01 < rate < 0.02 for rate in rates)
