"""Setting up: the prefix cache changes nothing but time."""

import dataclasses

import jax
import numpy as np
import pytest

from deltamask_jax.data.features import TokensOnDemand
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import cohort
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.heads import with_head
from deltamask_jax.methods import build
from deltamask_jax.setup import set_up, set_up_client, set_up_server, with_features
from tests.conftest import cohort_of, tiny_config


def two_rounds(tmp_path, cache, memory=0.0):
    config = tiny_config(prefix_cache=cache, cohort__memory=memory, cohort__chunk=1)
    problem, _ = with_head(set_up(config, tmp_path))
    method = build(config, problem.task)
    state = method.init()
    for number in (1, 2):
        state, result = play_round(problem, method, state, cohort_of(np.arange(6), number))
    return problem, state, result, evaluator(problem, method)(state)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return two_rounds(tmp_path_factory.mktemp("memory"), "memory")


def assert_same(rounds, cached):
    np.testing.assert_array_equal(rounds[1].theta, cached[1].theta)
    assert (rounds[2].train_loss, rounds[3]) == (cached[2].train_loss, cached[3])


def test_without_a_prefix_cache_the_rounds_are_the_same(tmp_path, cached):
    rounds = two_rounds(tmp_path, "off")
    assert isinstance(rounds[0].inputs["tokens"][0], TokensOnDemand)
    assert_same(rounds, cached)


@pytest.mark.parametrize(
    "cache, kind", [("memory", np.ndarray), ("folder", np.memmap), ("off", TokensOnDemand)]
)
def test_examples_too_large_for_a_device_stay_on_the_host_and_the_rounds_are_the_same(
    tmp_path, cached, capsys, monkeypatch, cache, kind
):
    folder = tmp_path / "cache"
    received, train_in_chunks = [], cohort.train_in_chunks

    def watched(engine, training, frozen, start, examples, *arguments):
        received.append(examples["inputs"])
        return train_in_chunks(engine, training, frozen, start, examples, *arguments)

    monkeypatch.setattr(cohort, "train_in_chunks", watched)
    rounds = two_rounds(tmp_path, str(folder) if cache == "folder" else cache, memory=1e-6)
    assert type(rounds[0].inputs["tokens"][0]) is kind
    assert all(isinstance(inputs, np.ndarray) for inputs in received if inputs.ndim > 2)  # not features
    assert_same(rounds, cached)
    if cache == "folder":
        assert len(list(folder.iterdir())) == 2  # train and test
    assert "stay on the host" in capsys.readouterr().out


def test_a_folder_s_examples_go_to_the_devices_when_they_fit(tmp_path, cached):
    rounds = two_rounds(tmp_path, str(tmp_path / "cache"))
    assert isinstance(rounds[0].inputs["tokens"][0], jax.Array)
    assert_same(rounds, cached)


def test_without_a_prefix_cache_a_round_computes_only_what_its_clients_train_on(tmp_path, cached):
    config = tiny_config(prefix_cache="off")
    problem, _ = with_head(set_up(config, tmp_path))
    method, computed, shapes = build(config, problem.task), [], set()
    train, test = problem.inputs["tokens"]

    def compute(rows):
        computed.append(rows)
        return train.compute(rows)

    def watched_train(engine, training, frozen, received, examples, *arguments):
        shapes.add(examples["inputs"].shape)
        return train_in_chunks(engine, training, frozen, received, examples, *arguments)

    train_in_chunks = cohort.train_in_chunks
    watched = problem.inputs | {"tokens": (dataclasses.replace(train, compute=compute), test)}
    on_demand = dataclasses.replace(problem, inputs=watched)
    stored = dataclasses.replace(problem, inputs=cached[0].inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "train_in_chunks", watched_train)
        for number, clients in enumerate((np.array([1, 4]), np.array([0, 2])), 1):
            first, second = (
                play_round(each, method, method.init(), cohort_of(clients, number))[1]
                for each in (on_demand, stored)
            )
            assert sorted(computed[-1]) == sorted(np.concatenate([problem.parts[k] for k in clients]))
            assert first.train_loss == second.train_loss
    assert len(shapes) == 2  # one for both cohorts, and that of everything


def test_a_client_holds_its_own_examples_and_the_server_the_tests(tmp_path):
    config = tiny_config(train_examples=60, test_examples=40, clients=3)
    everybody, server = set_up(config, tmp_path), set_up_server(config, tmp_path)
    client = set_up_client(config, 1)
    mine = everybody.parts[1]
    for kind in ("tokens", "features"):
        train, test = everybody.inputs[kind]
        own, none = with_features(client).inputs[kind]
        np.testing.assert_array_equal(own, np.asarray(train)[mine])
        assert len(none) == 0 and len(server.inputs[kind][0]) == 0
        np.testing.assert_array_equal(server.inputs[kind][1], test)
    np.testing.assert_array_equal(client.labels[0], np.asarray(everybody.labels[0])[mine])
    assert [len(part) for part in client.parts] == [len(part) for part in everybody.parts]
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = set_up_client(config, 1, f"npz:{tmp_path / 'own.npz'}")
    assert [len(part) for part in own.parts] == [0, 20, 0] and len(own.inputs["tokens"][0]) == 20
