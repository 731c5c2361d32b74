"""The server's state after a round is what the paper's formula says, for every method.

Votes and updates are made up; the formulas are written out here in NumPy and share nothing with the package
but the public uniforms. Methods are black boxes: only `play`, `theta` and `weights` know how they are called.
"""

import numpy as np
import pytest
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from deltamask_jax import methods
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from tests.conftest import cohort_of, tiny_config

COHORTS = [[0, 2, 5], [1, 3, 4], [0, 1, 4]]  # of rounds 1, 2 and 3
EXAMPLES = [20, 7, 3]
SCALE = 65536  # of θ, u16
LOW, HIGH = 655, 64881  # θ_clip = 0.01 and 1 − θ_clip in units of 1 / SCALE
EXACT = {"codec__name": "rice", "codec__fpr": 2.0**-32}  # all flips arrive, and no others
FLIPS, WHOLE_MASKS = ("deltamask", "deepreduce"), ("fedpm", "fedmask")
WEIGHTS = ("fedavg", "eden", "drive", "qsgd", "signsgd", "linear_probe", "peft")
ELSEWHERE = ("fedcof", "feedsign")  # by their own tests: their votes are neither masks nor updates
AGGREGATORS = {
    "beta": {},
    "beta, λ₀ = 2.5, ρ = ½": {"mask__lambda0": 2.5, "participation": 0.5},
    "running": {"mask__aggregator": "running", "mask__lambda0": 1.5},
    "control variate": {"mask__aggregator": "control_variate"},
    "control variate, u per client": {
        "mask__aggregator": "control_variate",
        "mask__uniforms": "per_client",
    },
}


def build(problem, name: str, **settings):
    return methods.build(tiny_config(method=name, **settings), problem.task)


def play(method, state, updates: list, number: int, clients: list[int], examples: list[int] = EXAMPLES):
    """The state after a round in which `clients` send `updates`: the one place that calls the method."""
    cohort = cohort_of(clients, number, examples=np.array(examples[: len(clients)]))
    payloads = method.up.encode(state, updates, cohort)
    kept = method.remember(state, updates, payloads, cohort)
    votes, rejected = method.up.decode(kept, payloads, cohort)
    assert not rejected
    return method.merge(kept, votes, cohort)


def theta(method, state) -> np.ndarray:
    """θ_g in units of 1 / SCALE, i64[d]."""
    return method.export(state)["theta"].astype(np.int64)


def weights(method, state) -> np.ndarray:
    """All trained weights as one vector, f64[n], in the order of an update."""
    named = {tuple(path.split("/")): leaf for path, leaf in method.export(state).items()}
    if method.name == "peft":  # whose export leaves 'parts' out of the names
        named = {path if path[0] == "head" else ("parts", *path): leaf for path, leaf in named.items()}
    return np.asarray(ravel_pytree(traverse_util.unflatten_dict(named))[0], np.float64)


def clamped(probabilities: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(probabilities * SCALE), LOW, HIGH).astype(np.int64)


def global_masks(theta_g: np.ndarray, number: int, clients: list[int], shared: bool) -> np.ndarray:
    """m_g,k = [u_k < θ_g], bool[k, d]."""
    streams = [stream_key(0, number, EVERY_CLIENT if shared else client, MASK) for client in clients]
    return np.stack([uniforms(key, theta_g.size) < theta_g for key in streams])


def rounds_of_masks(problem, name: str, settings: dict):
    """Plays three rounds; yields θ_g before and after, and the masks m_k and m_g,k of each."""
    method = build(problem, name, **EXACT, **settings)
    alone = build(problem, name, **EXACT)  # of one client the Beta posterior is its mask
    shared = settings.get("mask__uniforms") != "per_client" and name in FLIPS
    state, rng = method.init(), np.random.default_rng(0)
    for number, clients in enumerate(COHORTS, 1):
        before, first = theta(method, state), state
        ours = global_masks(before, number, clients, shared)
        if name in FLIPS:
            changes = rng.random(ours.shape) < 0.03
            changes[:, 0] = (
                True  # all hashes of position 0 are one bit of the Bloom filter: often a false flip
            )
            sent, updates = ours ^ changes, list(np.packbits(changes, axis=1))
        elif name in WHOLE_MASKS:
            sent = rng.random(ours.shape) < rng.random(ours.shape[1])
            updates = list(np.packbits(sent, axis=1))
        else:
            near = np.clip(before + rng.normal(0, 1500, ours.shape), 100, SCALE - 100).astype(np.uint16)
            updates = [{"theta": mine, "kl": np.float32(0)} for mine in near]
            each = [
                play(alone, first, [mine], number, [client], [1])
                for mine, client in zip(updates, clients, strict=True)
            ]
            sent = np.stack([theta(alone, one) == HIGH for one in each])
            assert all(set(theta(alone, one)) == {LOW, HIGH} for one in each)
        state = play(method, state, updates, number, clients)
        yield before, theta(method, state), sent, ours


@pytest.mark.parametrize(
    "name, aggregator",
    [
        (name, aggregator)
        for name in methods.MASK_METHODS
        for aggregator in AGGREGATORS
        if "control" not in aggregator
        or name not in ("fedmask", "klms")  # whose masks have no public uniforms
    ],
)
def test_masks_are_merged_as_the_papers_say(problem, name, aggregator):
    settings = AGGREGATORS[aggregator]
    kind, lambda0 = settings.get("mask__aggregator", "beta"), settings.get("mask__lambda0", 1.0)
    every = {"beta": round(1 / settings.get("participation", 1.0)), "running": 1000}.get(kind)
    masks = []
    for number, (before, after, sent, ours) in enumerate(rounds_of_masks(problem, name, settings)):
        if kind == "control_variate":  # θ_g + mean(m_k − m_g,k)
            expected = before / SCALE + np.mean(sent.astype(float) - ours, axis=0)
        else:  # the Beta posterior's mode, (α − 1) / (α + β − 2), since the last reset to α = β = λ₀
            masks = [*([] if number % every == 0 else masks), *sent]
            alpha, beta = lambda0 + np.sum(masks, axis=0), lambda0 + np.sum(~np.array(masks), axis=0)
            expected = (alpha - 1) / (alpha + beta - 2)
        np.testing.assert_array_equal(after, clamped(expected))
        if not settings:  # reset in every round, and λ₀ = 1: FedPM's, FedMask's and KLMS's mean of the masks
            np.testing.assert_array_equal(after, clamped(sent.mean(0)))
        assert len(set(after)) > 2


def made_up(method, state, rng) -> tuple[list, np.ndarray]:
    """Updates of three clients as the method takes them, and as vectors f64[3, n]."""
    vector, unravel = ravel_pytree(state if method.name == "peft" else np.zeros(weights(method, state).size))
    flat = rng.normal(0, 0.01, (3, vector.size)).astype(np.float32)
    return [unravel(one) if method.name == "peft" else one for one in flat], flat.astype(np.float64)


def weighted(updates: np.ndarray) -> np.ndarray:
    """Σ n_k Δ_k / Σ n_k."""
    return sum(n * one for n, one in zip(EXAMPLES, updates, strict=True)) / sum(EXAMPLES)


def signs(update: np.ndarray) -> np.ndarray:
    """What arrives of an update under SignSGD: the signs, times the mean size of 4,096 neighbours."""
    blocks = [update[at : at + 4096] for at in range(0, update.size, 4096)]
    return np.concatenate([np.where(block < 0, -1, 1) * np.abs(block).mean() for block in blocks])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_follow_the_mean_update_weighted_by_examples(problem, name):
    settings = {"peft__kind": "lora"} if name == "peft" else {}
    method = build(problem, name, **settings)
    state, rng = method.init(), np.random.default_rng(0)
    lost = {client: 0 for client in range(6)}
    for number, clients in enumerate(COHORTS[:2], 1):
        before = weights(method, state)
        updates, arrived = made_up(method, state, rng)
        if name == "signsgd":  # with error feedback
            wanted = [lost[client] + mine for client, mine in zip(clients, arrived, strict=True)]
            arrived = np.stack([signs(one) for one in wanted])
            lost |= {c: want - got for c, want, got in zip(clients, wanted, arrived, strict=True)}
        elif name in ("eden", "drive", "qsgd"):  # what a lone client moves is what arrives of its update
            each = [
                play(method, state, [mine], number, [client], [1])
                for mine, client in zip(updates, clients, strict=True)
            ]
            whole, arrived = arrived, np.stack([weights(method, one) - before for one in each])
            assert (np.sum(whole * arrived, axis=1) > 0.5 * np.sum(whole**2, axis=1)).all()
        state = play(method, state, updates, number, clients)
        np.testing.assert_allclose(weights(method, state), before + weighted(arrived), atol=1e-6)


RATE, EPSILON, BETA1, BETA2 = 0.05, 1e-3, 0.9, 0.99


def sgd(change, number, m, v):
    return RATE * change, m, v


def adam(change, number, m, v):
    """FedAdam of FedOpt (arXiv 2003.00295), with Adam's own correction of the moments' start."""
    m = BETA1 * m + (1 - BETA1) * change
    v = BETA2 * v + (1 - BETA2) * change**2
    return _step(m, v, number), m, v


def yogi(change, number, m, v):
    """FedYogi, likewise; optax starts both moments at 1e-6, the first one against the change."""
    m = BETA1 * m + (1 - BETA1) * change
    v = v - (1 - BETA2) * change**2 * np.sign(v - change**2)
    return _step(m, v, number), m, v


def _step(m, v, number):
    return RATE * (m / (1 - BETA1**number)) / (np.sqrt(v / (1 - BETA2**number)) + EPSILON)


SERVERS = [(sgd, 0.0), (adam, 0.0), (yogi, 1e-6)]


@pytest.mark.parametrize(
    "name, server, start",
    [("fedavg", *server) for server in SERVERS]
    + [(name, adam, 0.0) for name in methods.WEIGHT_METHODS if name != "fedavg"],  # all share what steps
)
def test_the_server_steps_along_the_mean_as_fedopt_does(problem, name, server, start):
    """The mean is what a plain server moves by, which is tested above."""
    options = {"fedavg__server_learning_rate": RATE, "fedavg__server_epsilon": EPSILON}
    method = build(problem, name, fedavg__server=server.__name__, **options)
    plain = build(problem, name)
    state, mirror, rng = method.init(), plain.init(), np.random.default_rng(0)
    expected, m, v = weights(method, state), -start, start
    for number, clients in enumerate(COHORTS[:2], 1):
        updates, _ = made_up(method, state, rng)
        before = weights(plain, mirror)
        mirror = play(plain, mirror, updates, number, clients)
        step, m, v = server(weights(plain, mirror) - before, number, m, v)
        expected = expected + step
        state = play(method, state, updates, number, clients)
        np.testing.assert_allclose(weights(method, state), expected, atol=2e-5)


def test_every_method_is_tested():
    assert {*methods.MASK_METHODS, *WEIGHTS, *ELSEWHERE} == set(methods.METHODS)
