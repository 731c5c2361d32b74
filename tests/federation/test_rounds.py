"""A federated round of every method, on bytes: what the server ends with and what the ledger says."""

import dataclasses

import jax
import numpy as np
import pytest

from deltamask_jax import methods
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import uplink
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
