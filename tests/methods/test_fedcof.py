"""FedCOF: the formula by hand and on Gaussians, what travels, and who follows."""

import dataclasses

import numpy as np
import pytest
from sklearn import covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from deltamask_jax import codecs, experiment, heads, methods
from deltamask_jax.codecs import PayloadError
from deltamask_jax.federation import downlink
from deltamask_jax.federation.downlink import Memory
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.methods.fedcof import oas, solve
from tests.conftest import cohort_of, play, tiny_config

EVERYONE = np.arange(6)


def statistics(x, y, parts, classes):
    """Counts f64[clients, classes] and class means f64[clients, classes, features] of each client's share."""
    one_hot = np.eye(classes)[y]
    counts = np.stack([one_hot[part].sum(0) for part in parts])
    sums = np.stack([one_hot[part].T @ x[part] for part in parts])
    return counts, sums / np.maximum(counts, 1)[:, :, None]


def gaussians(rng, examples, classes=4, features=40):
    """Classes around means of their own, all with one full covariance: (x, y, draw more of them)."""
    means, rotation = rng.normal(size=(classes, features)), np.linalg.qr(rng.normal(size=(features,) * 2))[0]
    factor = rotation * np.geomspace(0.5, 8, features)

    def draw(n):
        y = rng.integers(0, classes, n)
        return 1 + means[y] + rng.normal(size=(n, features)) @ factor.T, y

    return *draw(examples), draw


def accuracy(head, x, y):
    return np.mean((x @ head["kernel"] + head["bias"]).argmax(1) == y)


def nearest_mean_accuracy(x, y, fresh, truth):
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    return np.mean(((fresh[:, None] - means) ** 2).sum(-1).argmin(1) == truth)


def test_two_clients_two_classes_by_hand():
    counts = np.array([[2.0, 1.0], [2.0, 3.0]])
    means = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 6.0]]])
    # μ_0 = (2, 0), N_0 = 4;  Σ̂_0 = (2 · 1 + 2 · 1) on the first feature = diag(4, 0) + γ I
    # μ_1 = (0, 5), N_1 = 4;  Σ̂_1 = (1 · 9 + 3 · 1) on the second        = diag(0, 12) + γ I
    # Ĝ = 3 Σ̂_0 + 3 Σ̂_1 + 8 μ μᵀ with μ = (1, 2.5), γ = ½
    gram = 3 * np.diag([4.5, 0.5]) + 3 * np.diag([0.5, 12.5]) + 8 * np.outer([1, 2.5], [1, 2.5])
    weights = np.linalg.solve(gram, np.array([[8.0, 0.0], [0.0, 20.0]]).T)
    head = solve(counts, means, 0.5)
    np.testing.assert_allclose(head["kernel"], weights / np.linalg.norm(weights, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(head["bias"], 0)


def without_between(x, y):
    """Columns (Σ x xᵀ − scatter between classes)⁻¹ N_c μ_c of all features, scaled to length 1."""
    counts, means = np.bincount(y), np.stack([x[y == c].mean(0) for c in range(4)])
    between = (counts[:, None] * (means - x.mean(0))).T @ (means - x.mean(0))
    weights = np.linalg.solve(x.T @ x - between, (counts[:, None] * means).T)
    return weights / np.linalg.norm(weights, axis=0)


def test_of_clients_with_one_example_each_it_is_ridge_without_the_scatter_between_classes():
    """Then the spread of the means is the covariance of the features themselves."""
    x, y, _ = gaussians(np.random.default_rng(0), 400)
    head = solve(*statistics(x, y, np.arange(400)[:, None], 4), 1e-9)
    np.testing.assert_allclose(head["kernel"], without_between(x, y), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1e-3])
def test_on_gaussians_means_are_as_good_as_all_features(gamma):
    x, y, draw = gaussians(np.random.default_rng(1), 4000)
    parts = np.array_split(np.arange(4000), 200)  # of some five examples of each class
    head, (fresh, truth) = solve(*statistics(x, y, parts, 4), gamma), draw(4000)
    ours, whole = accuracy(head, fresh, truth), {"kernel": without_between(x, y), "bias": 0}
    assert abs(ours - accuracy(whole, fresh, truth)) < 0.005
    assert ours > LinearDiscriminantAnalysis(solver="lsqr").fit(x, y).score(fresh, truth) - 0.015
    assert ours > nearest_mean_accuracy(x, y, fresh, truth) + 0.15


@pytest.mark.parametrize("degrees", [3, 30, 300])
def test_the_ridge_is_that_of_oas(degrees):
    x = np.random.default_rng(2).normal(size=(degrees, 12)) * np.arange(1, 13)
    covariances = x.T @ x / degrees
    shrunk, shrinkage = covariance.oas(x, assume_centered=True)
    if shrinkage == 1:  # the identity alone: the ridge stops at 99 parts of 100
        shrunk, shrinkage = 0.01 * covariances + 0.99 * shrunk, 0.99
    ours = (1 - shrinkage) * (covariances + oas(covariances, degrees) * np.eye(12))
    np.testing.assert_allclose(ours, shrunk, rtol=1e-6, atol=1e-9)


def test_a_class_of_one_client_takes_the_covariance_of_the_others(caplog):
    x, y, draw = gaussians(np.random.default_rng(3), 2000)
    lone = np.flatnonzero(y == 2)
    parts = [*np.array_split(np.flatnonzero(y != 2), 100), lone]
    head = solve(*statistics(x, y, parts, 4), 0.0)
    assert "only one client holds class 2: the covariance of the other classes" in caplog.text
    fresh, truth = draw(2000)
    assert accuracy(head, fresh, truth) > 0.95 > nearest_mean_accuracy(x, y, fresh, truth) + 0.1


def test_where_no_class_has_two_clients_the_nearest_mean_wins(caplog):
    x, y, draw = gaussians(np.random.default_rng(4), 2000)
    x -= x.mean(0)
    head = solve(*statistics(x, y, [np.flatnonzero(y == c) for c in range(4)], 4), 0.0)
    assert "no class has two" in caplog.text
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    cosines = x @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    assert np.mean((x @ head["kernel"]).argmax(1) == cosines.argmax(1)) > 0.9


def test_a_class_that_nobody_holds_is_never_chosen():
    x, y, draw = gaussians(np.random.default_rng(5), 500, classes=3)
    head = solve(*statistics(x, y, np.array_split(np.arange(500), 20), 4), 0.0)
    assert np.isfinite(head["kernel"]).all() and not (x @ head["kernel"] + head["bias"]).argmax(1).max() > 2


@pytest.mark.parametrize("values", [np.zeros((1, 8)), np.ones((1, 8)), 1e4 * np.eye(8)[:1]])
def test_features_that_do_not_vary_give_a_finite_head(values):
    counts, means = np.full((3, 2), 4.0), np.broadcast_to(values, (3, 2, 8))
    head = solve(counts, means, 0.0)
    assert all(np.isfinite(x).all() for x in head.values())


@pytest.mark.parametrize("wire, size", [("float32", 4), ("float16", 2)])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_round_sends_counts_and_means_and_solves_for_the_head(problem, wire, size, epochs):
    problem, method, state, (result,) = play(
        problem, 1, method="fedcof", fedcof__wire=wire, local_epochs=epochs, fedcof__gamma=0.1
    )
    x, y = (np.asarray(a) for a in (problem.inputs["features"][0], problem.labels[0]))
    expected = solve(*statistics(x.astype(float), y, problem.parts, 3), 0.1)
    np.testing.assert_allclose(state["kernel"], expected["kernel"], atol=0.02 if size == 2 else 1e-4)
    values = 3 * (1 + 32)
    assert 0.4 * 6 * size * values < result.uplink_bytes < 6 * (size * values + 64)


def test_nobody_is_told_anything_before_and_the_head_is_the_news(problem):
    _, method, _, (result,) = play(problem, 1, Memory.at_start(6), method="fedcof")
    assert result.downlink_bytes == 0
    assert 4 * 99 < result.news_bytes < 4 * 99 + 200


@pytest.mark.parametrize("kind", ["smaller", "tally", "relay"])
def test_followers_hold_the_servers_head(problem, kind):
    """By the head itself, or by the clients' own means, which then have to be few."""
    clients = EVERYONE[:1] if kind == "relay" else EVERYONE
    config = tiny_config(method="fedcof")
    problem, method = dataclasses.replace(problem, config=config), methods.build(config, problem.task)
    cohort = cohort_of(clients, examples=np.array([len(problem.parts[k]) for k in clients]))
    rng, start = np.random.default_rng(0), method.init()
    updates = [
        {"counts": n * np.ones(3, np.float32) / 3, "means": rng.normal(size=(3, 32)).astype(np.float32)}
        for n in cohort.examples
    ]
    payloads = method.up.encode(start, updates, cohort)
    head, rejected = method.up.decode(start, payloads, cohort)
    assert not rejected
    news = downlink.news_of(method, start, head, payloads, cohort, kind)
    told = downlink.follow(method, start, news, cohort_of(EVERYONE))
    after = method.merge(start, head, cohort)
    for mine in (told, method.down.decode(method.down.encode(after, cohort), cohort)):
        assert all(np.array_equal(mine[name], after[name]) for name in ("kernel", "bias"))


def test_what_no_client_sends_is_refused(problem):
    method = methods.build(tiny_config(method="fedcof"), problem.task)
    cohort = cohort_of([0, 1, 2], examples=np.array([1, 20, 7]))
    updates = [{"counts": np.array([1.0, 0, 0]), "means": np.ones((3, 32))}] * 3
    payloads = method.up.encode(method.init(), updates, cohort)
    known = codecs.Context(99, round=1, client=1)
    negative = codecs.get("dense", dtype="float16").encode(-np.ones(99), known)
    head, rejected = method.up.decode(method.init(), [payloads[0], negative, payloads[2][:-1]], cohort)
    assert rejected.keys() == {1, 2} and np.isfinite(head["kernel"]).all()
    assert all(isinstance(error, PayloadError) for error in rejected.values())
    assert method.up.decode(method.init(), [negative], cohort.of([1]))[0] is None


def test_the_head_of_other_methods_is_the_same_and_costs_the_means_up_and_itself_down(problem):
    config = tiny_config(head__init="fedcof")
    start, cost = heads.with_head(dataclasses.replace(problem, config=config))
    config = tiny_config(method="fedcof")
    method = methods.build(config, problem.task)
    state, round_ = play_round(problem, method, method.init(), cohort_of(EVERYONE))
    np.testing.assert_allclose(start.task.head["kernel"], state["kernel"], atol=1e-5)
    assert abs(cost.uplink_bytes - round_.uplink_bytes) < 6
    assert 0.9 * 6 * 4 * 99 < cost.downlink_bytes < 6 * (4 * 99 + 64)


@pytest.mark.parametrize("changes", [{"rounds": 2, "head__init": "he"}, {"rounds": 1, "head__init": "lp"}])
def test_more_than_its_one_round_is_refused(changes):
    with pytest.raises(ValueError, match=r"use --config.rounds=1 and --config.head.init=he"):
        methods.check(tiny_config(method="fedcof", **changes))


def test_a_run_from_config_to_results(tmp_path):
    config = tiny_config(method="fedcof", rounds=1, head__init="he", train_examples=60, test_examples=30)
    summary = experiment.run(config, tmp_path)
    assert summary["downlink_bytes"] == 0 and 0 < summary["uplink_bytes"] < 6 * (2 * 10 * 33 + 64)
    assert (tmp_path / "fedcof.safetensors").exists()
