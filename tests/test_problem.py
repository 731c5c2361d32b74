"""Setting up: the prefix cache changes nothing but time."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax.heads import with_head
from deltamask_jax.methods import build
from deltamask_jax.problem import set_up
from deltamask_jax.rounds import MAIN_PHASE, evaluator, play_round
from tests.conftest import tiny_config


def two_rounds(tmp_path, cache):
    config = tiny_config(prefix_cache=cache)
    problem, _ = with_head(set_up(config, tmp_path))
    method = build(config, problem.task)
    state = method.init()
    for number in (1, 2):
        state, result = play_round(problem, method, state, number, np.arange(6), MAIN_PHASE, 1)
    return problem, state, result, evaluator(problem, method)(state)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return two_rounds(tmp_path_factory.mktemp("memory"), "memory")


@pytest.mark.parametrize("cache", ["off", "folder"])
def test_the_prefix_cache_changes_nothing(tmp_path, cached, cache):
    folder = tmp_path / "cache"
    problem, state, result, accuracy = two_rounds(tmp_path, str(folder) if cache == "folder" else "off")
    if cache == "folder":
        assert len(list(folder.iterdir())) == 2  # train and test
    else:
        assert "tokens" not in problem.inputs
    np.testing.assert_array_equal(state.theta, cached[1].theta)
    assert (result.train_loss, accuracy) == (cached[2].train_loss, cached[3])


def test_without_a_prefix_cache_a_round_computes_only_its_cohort(tmp_path, cached):
    config = tiny_config(prefix_cache="off")
    problem, _ = with_head(set_up(config, tmp_path))
    computed = []

    def tokens_again(split, rows):
        computed.append(len(np.unique(rows)))
        return problem.tokens_again(split, rows)

    method, rounds = build(config, problem.task), []
    watched = dataclasses.replace(problem, tokens_again=tokens_again)
    stored = dataclasses.replace(cached[0], task=problem.task)
    for number, clients in enumerate((np.array([1, 4]), np.array([0, 2])), 1):
        rounds = [
            play_round(each, method, method.init(), number, clients, MAIN_PHASE, 1)[1].train_loss
            for each in (watched, stored)
        ]
        assert computed[-1] == sum(len(problem.parts[client]) for client in clients)
        assert rounds[0] == rounds[1]
