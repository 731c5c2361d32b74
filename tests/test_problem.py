"""Setting up: the prefix cache changes nothing but time."""

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
        assert problem.inputs["tokens"][0].shape[1:] == (32, 32, 3)  # pixels
    # Rounding may differ between one batch size and another, so allow a handful of integer steps.
    assert np.mean(np.abs(state.theta.astype(int) - cached[1].theta) > 64) < 1e-3
    assert result.train_loss == pytest.approx(cached[2].train_loss, rel=1e-4)
    assert accuracy == pytest.approx(cached[3], abs=0.02)
