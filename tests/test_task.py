"""A cohort: some of its clients are the same clients, and randomness is each client's own."""

import jax
import numpy as np
import pytest

from deltamask_jax.public_random import MASK, stream_key
from deltamask_jax.task import PROBE_PHASE
from tests.conftest import cohort_of


def test_some_of_a_cohort_keep_their_examples_and_their_randomness():
    whole = cohort_of([4, 0, 7], 3, attempt=1, examples=np.array([20, 7, 3]))
    some = whole.of([2, 0])
    assert (some.clients.tolist(), some.weights(), len(some)) == ([7, 4], [3, 20], 2)
    assert (some.round, some.attempt, some.phase) == (3, 1, whole.phase)
    words = jax.random.key_data(whole.keys())
    np.testing.assert_array_equal(jax.random.key_data(some.keys()), words[np.array([2, 0])])
    np.testing.assert_array_equal(jax.random.key_data(whole.key(0)), words[1])
    assert some.stream(MASK, 7) == whole.stream(MASK, 7) == stream_key(0, 3, 7, MASK)


def test_every_round_phase_and_seed_has_keys_of_its_own():
    cohorts = cohort_of([1]), cohort_of([1], 2), cohort_of([1], phase=PROBE_PHASE), cohort_of([1], seed=2**32)
    assert len({str(jax.random.key_data(its.key(1))) for its in cohorts}) == len(cohorts)


def test_a_cohort_that_has_not_trained_has_no_weights():
    with pytest.raises(ValueError, match="has not trained"):
        cohort_of([1, 2]).weights()


def test_clients_and_the_server_have_keys_of_their_own():
    cohort = cohort_of([0, 3, 5], 2)
    words = [jax.random.key_data(cohort.key(client)).tolist() for client in cohort.clients]
    assert jax.random.key_data(cohort.keys()).tolist() == words
    assert len({*map(str, words), str(jax.random.key_data(cohort.server_key()).tolist())}) == 4
