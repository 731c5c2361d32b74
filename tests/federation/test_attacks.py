"""Clients that lie: what they send, what is rejected, and what the ledger says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltamask_jax import codecs, methods
from deltamask_jax.codecs import distance, envelope
from deltamask_jax.federation import attacks, clients
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from deltamask_jax.task import PROBE_PHASE
from tests.conftest import cohort_of, tiny_config
from tests.federation.test_faults import EVERYONE, build, play
from tests.methods.test_averaging import perceptron

REASONS = {
    "corrupt": {"checksum", "foreign", "other version", "wrong length"},
    "truncate": {"wrong length"},
    "replay": {"other round"},
    "wrong_d": {"other d"},
}


@pytest.mark.parametrize("kind", REASONS)
def test_malformed_payloads_are_rejected_by_reason_and_change_nothing(problem, kind):
    hostile, method = build(problem, attack__kind=kind, attack__share=0.5)
    liars = attacks.hostile_clients(hostile.config)
    assert len(liars) == 3
    state, result = play(hostile, method)
    assert set(result.rejected) <= REASONS[kind] and sum(result.rejected.values()) == 3
    assert result.merged == 3 and result.senders == 6
    assert envelope.unpack(result.payload).client == np.setdiff1d(EVERYONE, liars)[-1]
    honest, _ = play(hostile, method, np.setdiff1d(EVERYONE, liars))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state, honest)


def test_lies_are_well_formed_and_the_cap_rejects_them(problem):
    liars = cohort_of([2, 4])
    for kind, rate in (("all_flip", 1.0), ("random_flip", 0.3)):
        settings = {"method": "deltamask", "codec__name": "rice", "attack__kind": kind, "attack__share": 1.0}
        problem, method = build(problem, **settings, robust__max_flip_rate=1.0)
        d, state = problem.task.index.d, method.init()
        nothing = np.zeros((2, -(-d // 8)), np.uint8)
        _, payloads = attacks.strike(problem, method, state, nothing, [b"", b""], liars)
        votes, _ = method.up.decode(state, payloads, liars)
        assert votes.flips / (2 * d) == pytest.approx(rate, abs=0.02)
        capped = methods.build(tiny_config(**settings, robust__max_flip_rate=0.2), problem.task)
        _, rejected = capped.up.decode(state, payloads, liars)
        assert {error.reason for error in rejected.values()} == {"too many flips"} and len(rejected) == 2
        assert envelope.unpack(payloads[0]).round == 1


@pytest.mark.parametrize("kind", ["collude", "collude_near"])
def test_colluders_send_the_flips_that_hurt_most_within_the_bounds(problem, kind):
    settings = {"method": "deltamask", "codec__name": "rice", "attack__kind": kind, "attack__share": 1.0}
    problem, method = build(problem, **settings, attack__flip_rate=0.05)
    index, liars, state = problem.task.index, cohort_of([1, 4]), method.init()
    u = uniforms(stream_key(0, 1, EVERY_CLIENT, MASK), index.d)
    apart = distance.between(u, state.theta)
    near = apart <= 800
    updates = np.stack([np.packbits(near)] * 2)
    sent, payloads = attacks.strike(problem, method, state, updates, [b"", b""], liars)
    flips = np.unpackbits(sent[0], count=index.d).astype(bool)
    np.testing.assert_array_equal(sent[0], sent[1])
    assert 0 < flips.sum() <= 0.05 * index.d
    if kind == "collude_near":
        assert apart[flips].max() <= 800

    def loss(mask):
        kernels = jax.tree.map(jnp.multiply, index.kernels(problem.task.params), index.unravel(mask))
        params, head = index.merge(problem.task.params, kernels), problem.task.head
        tokens, labels = problem.inputs["tokens"][0], problem.labels[0]
        logits = problem.task.model.suffix(params, tokens) @ head["kernel"] + head["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    honest = u < state.theta
    random = np.zeros(index.d, bool)
    random[np.random.default_rng(0).choice(index.d, flips.sum(), replace=False)] = True
    harm, noise = (loss(jnp.float32(honest ^ what)) - loss(jnp.float32(honest)) for what in (flips, random))
    assert harm > 2 * abs(noise)
    _, rejected = method.up.decode(state, payloads, liars)
    assert not rejected


def test_colluders_that_flip_all_flip_what_hurts(problem):
    settings = {"method": "deltamask", "codec__name": "rice", "attack__kind": "collude", "attack__share": 1.0}
    problem, method = build(problem, **settings, attack__flip_rate=1.0)
    updates = np.full((1, -(-problem.task.index.d // 8)), 0x55, np.uint8)  # five times as many are all
    lies = attacks.most_damaging(problem, method.init().theta, updates, cohort_of([4]))
    assert 0.2 * problem.task.index.d < np.bitwise_count(lies).sum() < problem.task.index.d


@pytest.mark.parametrize("kind", ["all_flip", "random_flip"])
def test_lies_leave_the_padding_alone(problem, kind):
    settings = {"method": "deltamask", "codec__name": "rice", "attack__kind": kind, "attack__share": 1.0}
    problem, _ = build(problem, **settings, attack__flip_rate=0.9)
    params = {"kernel": jnp.zeros((11, 3))}
    task = dataclasses.replace(problem.task, params=params, index=FlatIndex.create(params, ".*"))
    problem = dataclasses.replace(problem, task=task)
    method, nothing = methods.build(problem.config, task), np.zeros((6, 5), np.uint8)
    sent, _ = attacks.strike(problem, method, method.init(), nothing, [b""] * 6, cohort_of(EVERYONE))
    bits = np.unpackbits(sent, axis=1)
    assert bits[:, :33].any() and not bits[:, 33:].any()


def test_another_seed_has_other_hostile_clients():
    few = {"clients": 40, "attack__kind": "corrupt", "attack__share": 0.5}
    first, again, second = (
        attacks.hostile_clients(tiny_config(**few, seed=seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again != second and len(first) == len(second) == 20


def test_attacks_are_for_the_main_phase_alone(problem):
    hostile, method = build(problem, attack__kind="truncate", attack__share=1.0)
    asked = cohort_of(EVERYONE, phase=PROBE_PHASE)
    _, result = play_round(hostile, method, method.init(), asked)
    assert result.merged == 6 and not result.rejected


def test_a_client_whose_payload_was_damaged_keeps_what_its_own_lost(problem):
    hostile, _ = build(problem, attack__kind="truncate", attack__share=1.0, min_clients=1)
    method = perceptron(codec=codecs.get("signs"), error_feedback=True)
    heard = clients.ask(hostile, method, method.init(), cohort_of([1, 4]))
    for row, client in enumerate(("1", "4")):
        whole = method.up.encode(method.init(), [heard.updates[row]], cohort_of([int(client)]))
        assert len(heard.payloads[row]) < len(whole[0])
        (arrived,), _ = method.up.decode(method.init(), whole, cohort_of([int(client)]))
        np.testing.assert_array_equal(heard.state.residuals[client], heard.updates[row] - arrived)
