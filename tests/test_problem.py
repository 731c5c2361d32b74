"""Setting up: the prefix cache changes nothing but time, and the head has learned something."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax import problem as problem_lib
from deltamask_jax.methods import build
from deltamask_jax.rounds import MAIN_PHASE, evaluator, play_round
from tests.conftest import tiny_config


def two_rounds(tmp_path, cache):
    config = tiny_config(prefix_cache=cache)
    problem, head_round = problem_lib.set_up(config, tmp_path)
    method = build(config, problem.task)
    state = method.init()
    for number in (1, 2):
        state, result = play_round(problem, method, state, number, np.arange(6), MAIN_PHASE, 1)
    return problem, head_round, state, result, evaluator(problem, method)(state)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return two_rounds(tmp_path_factory.mktemp("memory"), "memory")


@pytest.mark.parametrize("cache", ["off", "folder"])
def test_the_prefix_cache_changes_nothing(tmp_path, cached, cache):
    folder = tmp_path / "cache"
    problem, _, state, result, accuracy = two_rounds(tmp_path, str(folder) if cache == "folder" else "off")
    if cache == "folder":
        assert len(list(folder.iterdir())) == 2  # train and test
    else:
        assert problem.inputs["tokens"][0].shape[1:] == (32, 32, 3)  # pixels
    # Rounding may differ between one batch size and another, so allow a handful of integer steps.
    assert np.mean(np.abs(state.theta.astype(int) - cached[2].theta) > 64) < 1e-3
    assert result.train_loss == pytest.approx(cached[3].train_loss, rel=1e-4)
    assert accuracy == pytest.approx(cached[4], abs=0.02)


def test_the_head_is_fitted_and_its_bytes_are_counted(cached):
    problem, head_round, *_ = cached
    random_head = problem_lib._random_head(0, 32, 10)["kernel"]
    assert np.abs(problem.task.head["kernel"] - random_head).max() > 0.01
    # 6 heads of 330 floats up, the first and the fitted one down; zstd saves a little.
    size = 330 * 4
    assert 0.8 * 6 * size < head_round.uplink_bytes < 1.1 * 6 * size + 6 * 64
    assert head_round.downlink_bytes > 1.5 * head_round.uplink_bytes


def test_a_random_head_costs_nothing(tmp_path):
    problem, head_round = problem_lib.set_up(tiny_config(head__init="he"), tmp_path)
    assert (head_round.uplink_bytes, head_round.downlink_bytes) == (0, 0)
    np.testing.assert_array_equal(problem.task.head["kernel"], problem_lib._random_head(0, 32, 10)["kernel"])


def test_the_linear_probe_keeps_training_for_the_runs_rounds(cached):
    few, many = (
        problem_lib.linear_probe_accuracy(
            dataclasses.replace(cached[0], config=tiny_config(rounds=rounds, head__learning_rate=0.03))
        )
        for rounds in (1, 30)
    )
    assert many > few and many > 0.2  # 10 classes, random features
