"""Heads: what each initialisation costs and gives; LDA equals scikit-learn's."""

import dataclasses

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from deltamask_jax import heads
from deltamask_jax.data import partition
from deltamask_jax.evaluation import evaluator
from deltamask_jax.methods import build
from tests.conftest import tiny_config


def with_config(problem, **changes):
    return dataclasses.replace(problem, config=tiny_config(**changes))


def accuracy(problem):
    method = build(tiny_config(method="linear_probe"), problem.task)
    return evaluator(problem, method)(method.init())


@pytest.mark.parametrize("init", ["lp", "fit", "fedcof"])
def test_a_fitted_head_beats_the_random_one_and_its_bytes_are_counted(problem, init):
    fitted, cost = heads.with_head(with_config(problem, head__init=init, head__epochs=20))
    assert accuracy(fitted) > accuracy(problem) + 0.1
    # 3 classes, 32 features; LDA also sends half a 32 × 32 matrix, FedCOF halves. zstd saves a little.
    floats = {"lp": 3 * 33, "fit": 3 * 33 + 32 * 33 // 2, "fedcof": 3 * 33 / 2}[init]
    assert 0.7 * 6 * 4 * floats < cost.uplink_bytes < 6 * (4 * floats + 64)
    downs = {"lp": 2, "fit": 1, "fedcof": 1}[init]  # linear probing also broadcasts the head it starts from
    assert 0.7 * downs * 6 * 4 * 99 < cost.downlink_bytes < downs * 6 * (4 * 99 + 64)


def test_a_random_head_counts_all_of_the_seed():
    draws = [np.asarray(heads.random_head(seed, 8, 3)["kernel"]) for seed in (5, 5 + 2**32, 5)]
    np.testing.assert_array_equal(draws[0], draws[2])
    assert not np.allclose(draws[0], draws[1])


def test_a_random_head_costs_nothing(problem):
    same, cost = heads.with_head(with_config(problem, head__init="he"))
    assert (cost.uplink_bytes, cost.downlink_bytes) == (0, 0)
    assert same.task.head is problem.task.head


def test_federated_lda_equals_scikit_learns_on_the_pooled_features(problem):
    fitted, _ = heads.with_head(with_config(problem, head__init="fit"))
    x, y = (np.asarray(a, np.float64) for a in (problem.inputs["features"][0], problem.labels[0]))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=heads.SHRINKAGE).fit(x, y)
    ours = x @ fitted.task.head["kernel"] + fitted.task.head["bias"]
    np.testing.assert_allclose(ours, reference.decision_function(x), rtol=1e-3, atol=1e-2)


def test_a_class_nobody_holds_is_unlikely_but_finite():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    counts, sums = np.array([25.0, 25.0, 0.0]), np.stack([x[:25].sum(0), x[25:].sum(0), np.zeros(4)])
    head = heads.discriminant(counts, sums, x.T @ x)
    assert np.isfinite(head["kernel"]).all() and head["bias"][2] < head["bias"][0]


def statistics(x, y, classes):
    """What the server adds up, of float32 features as clients send them."""
    x, y = x.astype(np.float32), np.eye(classes, dtype=np.float32)[y]
    return (a.astype(np.float64) for a in (y.sum(0), y.T @ x, x.T @ x))


WIDTH, CLASSES = 64, 5
MEANS = 3 + np.random.default_rng(1).normal(size=(CLASSES, WIDTH))


def drawn(counts, noise, copies=1):
    """Examples of each class around its mean: (x, y)."""
    y = np.repeat(np.arange(len(counts)), counts)
    x = MEANS[y] + noise * np.random.default_rng(2).normal(size=(len(y), WIDTH))
    return np.repeat(x, copies, axis=0), np.repeat(y, copies)


@pytest.mark.parametrize(
    "x, y",
    [
        drawn([1, 1, 1, 1, 1], 0.5),
        drawn([1, 20, 20, 20, 20], 0.5),
        drawn([1, 1, 1, 0, 0], 0.5),
        drawn([2, 2, 2, 2, 2], 0.5),  # ten examples of 64 features
        drawn([1, 1, 1, 1, 1], 0.5, copies=30),
        drawn([20, 20, 20, 20, 20], 0.0),  # nothing varies within a class
    ],
    ids=["one each", "one of one", "two classes missing", "few", "copies", "collapsed"],
)
def test_few_or_equal_examples_give_bounded_logits_that_are_right(x, y):
    head = heads.discriminant(*statistics(x, y, CLASSES))
    fresh = drawn([50] * CLASSES, 0.5)
    for points, labels in ((x, y), fresh):
        logits = points @ np.asarray(head["kernel"], np.float64) + np.asarray(head["bias"])
        assert np.abs(logits).max() < 100 * WIDTH / heads.SHRINKAGE
        seen = np.isin(labels, y)
        assert (logits.argmax(1) == labels)[seen].mean() > 0.95


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_features_leave_the_classes_shares(value):
    y = np.repeat(np.arange(CLASSES), [1, 2, 3, 4, 10])
    head = heads.discriminant(*statistics(np.full((20, WIDTH), value), y, CLASSES))
    logits = np.full(WIDTH, np.float32(value)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    shares = np.exp(logits - logits.max())
    np.testing.assert_allclose(shares / shares.sum(), [0.05, 0.1, 0.15, 0.2, 0.5], rtol=0.05)


def test_where_examples_are_many_the_ridge_is_shrinkage_alone():
    x, y = drawn([40] * CLASSES, 2.0)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=heads.SHRINKAGE).fit(x, y)
    head = heads.discriminant(*statistics(x, y, CLASSES))
    np.testing.assert_allclose(x @ head["kernel"] + head["bias"], reference.decision_function(x), atol=1e-2)


def test_the_linear_probe_keeps_training_for_the_runs_rounds(problem):
    few, many = (
        heads.linear_probe_accuracy(with_config(problem, rounds=rounds, linear_probe__learning_rate=0.03))
        for rounds in (1, 20)
    )
    assert many > few and many > 0.6  # 3 classes


def test_the_probe_asks_the_clients_that_the_run_asks(problem, monkeypatch):
    """So that both brackets meet the same data; of 'poisson' cohorts, too."""
    asked = []
    monkeypatch.setattr(
        heads, "play_round", lambda problem, method, state, cohort: asked.append(cohort) or (state, None)
    )
    drawn = with_config(problem, participation=0.5, rounds=4, client_sampling="poisson", head__init="he")
    heads.linear_probe_accuracy(drawn)
    for cohort in asked:
        clients = partition.cohort(6, 0.5, 0, cohort.round, sampling="poisson")
        np.testing.assert_array_equal(cohort.clients, clients)
    assert len(asked) == 4 and len({len(cohort) for cohort in asked}) > 1


def test_a_cohort_without_examples_does_not_end_the_probe(problem):
    """Of clients one of whom holds everything: most cohorts of one have nothing to train on."""
    parts = [np.arange(len(problem.labels[0])), *[np.zeros(0, np.int64)] * 5]
    lonely = with_config(problem, participation=1 / 6, rounds=4, head__init="he")
    lonely = dataclasses.replace(lonely, parts=parts)
    assert 0 < heads.linear_probe_accuracy(lonely) <= 1
