"""FedAvg: which weights are trained, and the server's optimisers."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import methods, models
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.fedavg import server_optimizer, trained_weights
from deltamask_jax.task import Task
from tests.conftest import cohort_of, play, tiny_config
from tests.methods.test_averaging import TWO, N, flat, perceptron


@pytest.mark.parametrize("server", ["adam", "yogi"])
def test_the_server_optimiser_takes_the_mean_update_for_a_gradient(server):
    options = tiny_config(fedavg__server=server, fedavg__server_learning_rate=0.01).fedavg
    method, rng = perceptron(server=server_optimizer(options)), np.random.default_rng(0)
    state, start = method.init(), flat(method.init().weights)
    updates = rng.normal(size=(2, N)).astype(np.float32)
    for number in (1, 2):
        state = method.merge(state, list(updates), dataclasses.replace(TWO, round=number))
    mean = (3 * updates[0] + updates[1]) / 4
    if server == "adam":  # a constant gradient g moves Adam by rate · g / (|g| + ε) a step
        expected = start + 2 * 0.01 * mean / (np.abs(mean) + options.server_epsilon)
        np.testing.assert_allclose(flat(state.weights), expected, atol=1e-5)
    assert (np.sign(flat(state.weights) - start) == np.sign(mean)).all()


def test_what_is_trained(problem):
    task, flat_params = problem.task, lambda config: set(trained_weights(config.fedavg, problem.task).paths)
    kernels = flat_params(tiny_config())
    blocks = flat_params(tiny_config(fedavg__trained="blocks"))
    backbone = flat_params(tiny_config(fedavg__trained="backbone"))
    assert kernels == set(task.index.paths) and kernels < blocks < backbone
    assert "Transformer/encoderblock_5/LayerNorm_0/scale" in blocks
    assert not any("encoderblock_3" in path for path in blocks)
    assert {"embedding/kernel", "Transformer/posembed_input/pos_embedding"} <= backbone
    assert (
        sum(x.size for x in jax.tree.leaves(task.params))
        == trained_weights(tiny_config(fedavg__trained="backbone").fedavg, task).d
    )


def test_batch_statistics_are_not_trained():
    from deltamask_jax.models.convmixer import ConvMixerConfig

    model = models.from_architecture(
        ConvMixerConfig(8, 3, kernel=3, patch=4, activation="relu", image_size=16),
        name="convmixer_768_32",
        trained_blocks=2,
    )
    task = Task(model, jax.eval_shape(model.init, jax.random.key(0)), {}, None)
    for trained in ("blocks", "backbone"):
        last = {
            path.split("/")[-1]
            for path in trained_weights(tiny_config(fedavg__trained=trained).fedavg, task).paths
        }
        assert last == {"kernel", "bias", "scale"}


def test_the_whole_backbone_trains_on_images_through_every_block(problem):
    """One round without a cached prefix: the embedding, first of all parameters, moves too."""
    config = tiny_config(
        method="fedavg", fedavg__trained="backbone", prefix_cache="off", fedavg__learning_rate=1e-3
    )
    methods.check(config)
    shape = dataclasses.replace(models.PRESETS["tiny_vit"], depth=2)  # six take long to compile
    model = models.from_architecture(shape, name="tiny_vit", trained_blocks=1)
    params = model.init(jax.random.key(0))
    whole = dataclasses.replace(
        model, suffix=lambda params, images: model.suffix(params, model.prefix(params, images))
    )
    images = jax.random.normal(jax.random.key(3), (len(problem.labels[0]), 32, 32, 3))
    trained = dataclasses.replace(
        problem,
        config=config,
        task=Task(whole, params, problem.task.head, FlatIndex.create(params, model.masked)),
        inputs={"tokens": (images, images)},
    )
    method = methods.build(config, trained.task)
    state, result = play_round(trained, method, method.init(), cohort_of([0, 3]))
    after, _ = method.network(state)
    assert not np.allclose(after["embedding"]["kernel"], params["embedding"]["kernel"], atol=1e-5)
    assert result.downlink_bytes > 2 * 4 * 0.7 * sum(x.size for x in jax.tree.leaves(params))


def test_a_head_that_is_not_trained_stays_and_does_not_travel(problem):
    _, method, state, (result,) = play(
        problem, 1, method="fedavg", head__trained=False, fedavg__learning_rate=1e-2
    )
    d, (params, head), index = problem.task.index.d, method.network(state), problem.task.index
    assert sum(leaf.size for leaf in jax.tree.leaves(state.weights)) == d
    assert result.uplink_bytes < (4 * d + 100) * len(problem.parts)
    jax.tree.map(np.testing.assert_array_equal, head, problem.task.head)
    moved, before = (index.ravel(index.kernels(params)) for params in (params, problem.task.params))
    assert (np.asarray(moved) != np.asarray(before)).mean() > 0.9
    np.testing.assert_array_equal(method.export(state)["head/kernel"], problem.task.head["kernel"])


@pytest.mark.parametrize("name", methods.WEIGHT_METHODS)
def test_the_proximal_term_of_the_config_pulls_every_weight_back(name):
    """Under a large μ Adam's first step goes toward the broadcast, whatever the loss."""
    params = {"kernel": jnp.full((4, 3), 0.5)}
    model = SimpleNamespace(suffix=lambda params, inputs: inputs @ params["kernel"])
    head = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}
    task = Task(model, params, head, FlatIndex.create(params, "kernel"))
    config = tiny_config(method=name, fedavg__proximal=1e6, fedavg__learning_rate=0.25)
    method = methods.build(config, task)
    received = method.start(method.init(), TWO)
    weights, adam = method.client.init(method.frozen, received, ())
    away = jax.tree.map(lambda w: w + 1, weights)
    batch = {"inputs": jnp.eye(4)[:2], "labels": jnp.array([0, 1]), "weights": jnp.ones(2)}
    (after, _), _ = method.client.step(method.frozen, received, (away, adam), batch, jax.random.key(0))
    jax.tree.map(lambda w, moved: np.testing.assert_allclose(moved, w + 0.75, rtol=1e-4), weights, after)
