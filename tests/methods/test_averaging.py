"""Averaging of weights: server optimisers, proximal term, downlink types, compressed wires, residuals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltamask_jax import codecs, methods, models
from deltamask_jax.codecs import PayloadError
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.local_training import cross_entropy, weight_training
from deltamask_jax.methods.averaging import WHOLE, averaging
from deltamask_jax.methods.fedavg import server_optimizer, trained_weights
from deltamask_jax.task import Task
from tests.conftest import cohort_of, tiny_config

EVERYONE = np.arange(6)
TWO = cohort_of([0, 1], examples=np.array([3, 1]))
N = 32 * 64 + 64 * 3  # weights of the perceptron


def perceptron(**settings):
    """A small network on cached features, averaged."""
    hidden, out = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((32, 64), (64, 3))))

    def loss_of(frozen, w, batch):
        return cross_entropy(jnp.tanh(batch["inputs"] @ w["hidden"]) @ w["out"], batch)

    weights = {"hidden": hidden / 32**0.5, "out": out / 8}
    return averaging(
        "perceptron", "features", weights, (), loss_of, optax.adam(3e-3), None, clients=6, **settings
    )


def play(problem, method, rounds):
    problem = dataclasses.replace(problem, config=tiny_config(local_epochs=3))
    state, results = method.init(), []
    for number in range(1, rounds + 1):
        state, result = play_round(problem, method, state, cohort_of(EVERYONE, number))
        results.append(result)
    return state, results


def flat(weights):
    return np.concatenate([np.ravel(weights["hidden"]), np.ravel(weights["out"])])


@pytest.fixture(scope="module")
def averaged(problem):
    """FedAvg itself: start, weights after five rounds, and what these cost."""
    method = perceptron()
    state, results = play(problem, method, 5)
    return flat(method.init().weights), flat(state.weights), results


@pytest.mark.parametrize(
    "codec, bits, error",
    [
        (codecs.get("eden", bits=1.0), 1, 0.6),  # DRIVE
        (codecs.get("eden", bits=4.0), 4, 0.08),
        (codecs.get("qsgd", levels=32, bucket=512), 3.2, 0.25),
        (codecs.get("signs"), 1, 0.8),
    ],
    ids=["drive", "eden-4", "qsgd", "signsgd"],
)
def test_compressed_updates_follow_fedavg(problem, averaged, codec, bits, error):
    """Five rounds on the same problem: weights end close to FedAvg's, and so does the loss, at few bits."""
    start, expected, whole = averaged
    state, results = play(problem, perceptron(codec=codec), 5)
    moved = np.linalg.norm(expected - start)
    assert np.linalg.norm(flat(state.weights) - expected) < error * moved
    assert results[0].train_loss == pytest.approx(whole[0].train_loss)
    fall = whole[0].train_loss - whole[-1].train_loss
    assert fall > 0.1
    assert results[-1].train_loss == pytest.approx(whole[-1].train_loss, abs=0.15 * fall)
    assert 8 * results[-1].uplink_bytes / 6 < bits * N * 1.25 + 600  # blocks, header, states of the coder
    assert 0 < results[-1].details["update_error"]


def test_error_feedback_sends_later_what_a_payload_lost():
    """What was sent and what is kept add up to all updates."""
    method = perceptron(codec=codecs.get("signs"), error_feedback=True)
    state, rng = method.init(), np.random.default_rng(0)
    assert set(state.residuals) == set("012345")
    updates, sent = np.zeros((2, N)), np.zeros((2, N))
    for number in (1, 2, 3):
        new = rng.lognormal(size=(2, N)).astype(np.float32)
        cohort = cohort_of([1, 4], number)
        payloads = method.up.encode(state, list(new), cohort)
        sent += method.up.decode(state, payloads, cohort)[0]
        state = method.remember(state, list(new), payloads, cohort)
        updates += new
    kept = np.stack([state.residuals["1"], state.residuals["4"]])
    np.testing.assert_allclose(sent + kept, updates, rtol=1e-4, atol=1e-4)
    assert np.abs(kept).max() > 1 and not state.residuals["0"].any()


def test_without_error_feedback_nothing_is_kept():
    state = perceptron(codec=codecs.get("eden", bits=1.0)).init()
    assert state.residuals == {} and perceptron().remember(state, [], [], cohort_of([])) is state


def test_payloads_of_another_client_or_round_are_refused():
    compressed = codecs.get("eden", bits=0.5), codecs.get("qsgd", levels=16, bucket=512), codecs.get("signs")
    for codec in (WHOLE, *compressed):
        method = perceptron(codec=codec)
        state, update = method.init(), np.ones(N, np.float32)
        payloads = method.up.encode(state, [update], cohort_of([3]))
        for number, client in ((2, 3), (1, 4)):
            decoded, rejected = method.up.decode(state, payloads, cohort_of([client], number))
            assert decoded == [] and list(rejected) == [0]


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


def test_plain_averaging_moves_by_the_weighted_mean():
    method, rng = perceptron(), np.random.default_rng(0)
    updates = rng.normal(size=(2, N)).astype(np.float32)
    state = method.merge(method.init(), list(updates), TWO)
    expected = flat(method.init().weights) + (3 * updates[0] + updates[1]) / 4
    np.testing.assert_allclose(flat(state.weights), expected, rtol=1e-5, atol=1e-6)


def test_the_proximal_term_pulls_toward_the_broadcast():
    """On a flat loss with gradient 1, w settles where μ (w − w₀) = −1."""
    training = weight_training(lambda frozen, w, batch: jnp.sum(w), optax.sgd(0.1), proximal=2.0)
    received = jnp.array([3.0, -1.0])
    carry = training.init((), received, ())
    for _ in range(60):
        carry, loss = training.step((), received, carry, {}, None)
    np.testing.assert_allclose(carry[0], received - 0.5, atol=1e-4)
    assert loss == pytest.approx(float(jnp.sum(received)) - 1, abs=1e-3)  # reported without the term


@pytest.mark.parametrize("kind, step", [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_the_downlink_is_rounded_to_its_type_and_as_long_as_it_says(kind, step):
    method = perceptron(downlink=jnp.dtype(kind))
    state = method.init()
    payload = method.down.encode(state, TWO)
    told = method.down.decode(payload, TWO)
    assert method.exact == (kind == "float32")
    sent, received = flat(state.weights), flat(method.start(told, TWO))
    assert received.dtype == np.float32 and (np.abs(received - sent) <= step * np.abs(sent) + 1e-7).all()
    assert bool(step) == (received != sent).any()
    size = jnp.dtype(kind).itemsize
    assert 0.7 * size * N < len(payload) < size * N + 100  # zstd finds little in weights
    with pytest.raises(PayloadError):
        method.down.decode(payload, dataclasses.replace(TWO, round=2))


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


def test_training_the_whole_backbone_leaves_no_prefix_to_cache():
    config = tiny_config(method="eden", fedavg__trained="backbone")
    assert methods.trains_prefix(config)
    config.method = "deltamask"  # whose weights are frozen anyway
    assert not methods.trains_prefix(config)
