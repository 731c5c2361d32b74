"""Averaging of weights: server optimisers, proximal term, downlink types, compressed wires, residuals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import codecs, methods
from deltamask_jax.codecs import PayloadError
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.local_training import cross_entropy
from deltamask_jax.methods.averaging import WHOLE, averaging
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
        "perceptron", "features", weights, (), loss_of, lambda round: 3e-3, None, clients=6, **settings
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


def test_plain_averaging_moves_by_the_weighted_mean():
    method, rng = perceptron(), np.random.default_rng(0)
    updates = rng.normal(size=(2, N)).astype(np.float32)
    state = method.merge(method.init(), list(updates), TWO)
    expected = flat(method.init().weights) + (3 * updates[0] + updates[1]) / 4
    np.testing.assert_allclose(flat(state.weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "eden", "linear_probe", "peft"])
def test_the_learning_rate_decays_to_its_share(problem, name):
    section = name if name != "eden" else "fedavg"
    rates = {f"{section}__learning_rate": 0.4, f"{section}__decay": 0.25}
    method = methods.build(tiny_config(method=name, rounds=11, **rates), problem.task)
    steps = [method.start(method.init(), cohort_of([0], n))["learning_rate"] for n in (1, 6, 11)]
    np.testing.assert_allclose(steps, [0.4, 0.25, 0.1], rtol=1e-5)
    constant = methods.build(tiny_config(method=name, **{f"{section}__learning_rate": 0.4}), problem.task)
    assert constant.start(constant.init(), cohort_of([0], 3))["learning_rate"] == np.float32(0.4)


@pytest.mark.parametrize("kind, step", [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_the_downlink_is_rounded_to_its_type_and_as_long_as_it_says(kind, step):
    method = perceptron(downlink=jnp.dtype(kind))
    state = method.init()
    payload = method.down.encode(state, TWO)
    told = method.down.decode(payload, TWO)
    assert method.exact == (kind == "float32")
    sent, received = flat(state.weights), flat(method.start(told, TWO)["weights"])
    assert received.dtype == np.float32 and (np.abs(received - sent) <= step * np.abs(sent) + 1e-7).all()
    assert bool(step) == (received != sent).any()
    size = jnp.dtype(kind).itemsize
    assert 0.7 * size * N < len(payload) < size * N + 100  # zstd finds little in weights
    with pytest.raises(PayloadError):
        method.down.decode(payload, dataclasses.replace(TWO, round=2))
