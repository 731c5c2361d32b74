"""DeltaMask: what the server computes from bytes equals the definition on dense masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import masks, methods
from deltamask_jax.methods.votes import Votes
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from tests.conftest import cohort_of, tiny_config


def build(problem, **changes):
    return methods.build(tiny_config(**changes), problem.task)


def random_round(method, index, clients):
    """A state with spread θ and, for each client, a random θ_k near it."""
    rng = np.random.default_rng(1)
    state = method.init()
    theta = rng.integers(700, 64800, index.d).astype(np.uint16)
    state = dataclasses.replace(state, theta=theta)
    nearby = [np.clip(theta + rng.normal(0, 2000, index.d), 0, 65535).astype(np.uint16) for _ in clients]
    return state, nearby


@pytest.mark.parametrize("who", ["shared", "per_client"])
@pytest.mark.parametrize("aggregator", ["beta", "control_variate"])
def test_aggregate_equals_the_definition_on_dense_masks(problem, who, aggregator):
    index, cohort = problem.task.index, cohort_of([0, 2, 5])
    method = build(
        problem,
        mask__uniforms=who,
        mask__aggregator=aggregator,
        mask__kappa=1.0,
        mask__kappa_final=1.0,
        codec__name="side_info",  # exact, so that a filter's false positives do not blur the comparison
        robust__aggregator="mean",
    )
    state, thetas = random_round(method, index, cohort.clients)
    received = method.start(method.down.decode(method.down.encode(state, cohort), cohort), cohort)
    np.testing.assert_array_equal(received["theta"], state.theta)
    private = method.private(state, cohort)
    packed, own, globe = [], [], []
    for row, (client, theta_k) in enumerate(zip(cohort.clients, thetas, strict=True)):
        word = EVERY_CLIENT if who == "shared" else client
        u = uniforms(stream_key(0, 1, int(word), MASK), index.d)
        own.append(u < theta_k)
        globe.append(u < state.theta)
        # Exact positions, so that the filter's false positives do not blur the comparison.
        flips = np.flatnonzero(own[-1] != globe[-1])
        packed.append(
            _final(method, index, theta_k, received, jax.tree.map(lambda x, row=row: x[row], private))
        )
        np.testing.assert_array_equal(np.flatnonzero(np.unpackbits(packed[-1], count=index.d)), flips)
    votes, _ = method.up.decode(state, method.up.encode(state, packed, cohort), cohort)
    np.testing.assert_array_equal(votes.change, np.sum(own, axis=0) - np.sum(globe, axis=0))
    assert votes.flips == sum(np.bitwise_count(p).sum() for p in packed)
    new = method.merge(state, votes, cohort)
    mean = np.mean(own, axis=0)
    if aggregator == "control_variate":
        mean = state.theta / masks.SCALE + mean - np.mean(globe, axis=0)
    expected = np.clip(np.round(mean * masks.SCALE), 0.01 * masks.SCALE, 0.99 * masks.SCALE)
    np.testing.assert_allclose(new.theta, expected, atol=2)


def _final(method, index, theta_k, received, private):
    """`client.final` on given θ_k: hand it the logits of that θ_k."""
    s = jnp.asarray(theta_k, jnp.float32) / masks.SCALE
    s = jnp.log(jnp.maximum(s, 1e-9)) - jnp.log(jnp.maximum(1 - s, 1e-9))
    packed = method.client.final(None, received, (index.unravel(s), None), private)
    # The float logit does not hit every integer θ; compare through the same rounding.
    theta16 = np.asarray(masks.theta16(jax.nn.sigmoid(s)))
    assert np.abs(theta16.astype(int) - theta_k).max() <= 1
    theta_k[:] = theta16
    return np.asarray(packed)


def test_shared_uniforms_are_one_stream_and_per_client_are_many(problem):
    shared = build(problem).private(build(problem).init(), cohort_of([0, 1]))
    own = build(problem, mask__uniforms="per_client").private(build(problem).init(), cohort_of([0, 1]))
    (mask, _), (ranking, _) = shared
    assert mask[0] == mask[1] and ranking[0] != ranking[1]  # else all would drop the same flips
    assert own[0][0][0] != own[0][0][1]


def test_kappa_follows_a_cosine(problem):
    method = build(problem, rounds=11, mask__kappa=0.8, mask__kappa_final=0.2)
    kappas = [method.start(method.init(), cohort_of([0], number))["kappa"] for number in (1, 6, 11)]
    np.testing.assert_allclose(kappas, [0.8, 0.5, 0.2], rtol=1e-5)


def test_thinned_votes_count_the_more(problem):
    """κ of the flips travel, chosen at random, and each of their votes moves θ 1/κ as far."""
    d, rng = problem.task.index.d, np.random.default_rng(1)
    thin = {"mask__ranking": "thin", "mask__kappa": 0.25, "mask__kappa_final": 0.25}
    regime = {"mask__uniforms": "per_client", "mask__aggregator": "control_variate"}
    some, every = build(problem, **regime, **thin), build(problem, **regime, mask__kappa=1.0)
    state, moves = some.init(), rng.integers(-2, 3, d).astype(np.int32)
    state = dataclasses.replace(state, theta=rng.integers(20_000, 40_000, d).astype(np.uint16))
    votes, cohort = Votes(change=moves), cohort_of(range(60))
    moved, whole = (
        method.merge(state, votes, cohort).theta.astype(int) - state.theta for method in (some, every)
    )
    np.testing.assert_allclose(moved, 4 * whole, atol=3)  # roundings to 1/65536
    theta_k, kept = (state.theta + 3000).astype(np.uint16), []
    logits = problem.task.index.unravel(masks.logits(theta_k, 1e-6))
    final = jax.jit(lambda received, private: some.client.final(None, received, (logits, None), private))
    for number in range(1, 21):
        asked = cohort_of([0], number)
        received, key = some.start(state, asked), some.private(state, asked)
        private = jax.tree.map(lambda words: words[0], key)
        u = uniforms(private[0], d)
        flips = (u < theta_k) != (u < state.theta)
        packed = np.asarray(final(received, private))
        travelled = np.unpackbits(packed, count=d).astype(bool)
        assert travelled.sum() == np.ceil(flips.sum() / 4) and not (travelled & ~flips).any()
        kept.append(travelled[: d // 2].sum() / flips[: d // 2].sum())
    assert abs(np.mean(kept) - 0.25) < 3 * np.std(kept) / 20**0.5


def test_evaluated_networks(problem):
    index = problem.task.index
    theta = np.sqrt(np.linspace(1e7, 4.2e9, index.d)).astype(np.uint16)  # about two thirds in the mean
    kept = theta >= np.sort(theta)[-round(theta.mean() / masks.SCALE * index.d)]
    for kind, multiplier in (("mean", theta / masks.SCALE), ("threshold", kept)):
        method = build(problem, mask__evaluate=kind)
        state = type(method.init())(theta, None)
        params, head = method.network(state)
        expected = index.ravel(index.kernels(problem.task.params)) * multiplier
        np.testing.assert_allclose(index.ravel(index.kernels(params)), expected, rtol=1e-5, atol=1e-7)
        assert head is problem.task.head


def test_payloads_of_another_round_client_or_network_are_refused(problem):
    method = build(problem)
    state = method.init()
    packed = np.packbits(np.arange(problem.task.index.d) % 97 == 0)
    payloads = method.up.encode(state, [packed], cohort_of([3]))
    assert method.up.decode(state, payloads, cohort_of([3]))[0].flips >= np.bitwise_count(packed).sum()
    for number, client in ((2, 3), (1, 4)):
        _, rejected = method.up.decode(state, payloads, cohort_of([client], number))
        assert list(rejected) == [0]
    _, rejected = method.up.decode(state, [payloads[0], payloads[0][:-1]], cohort_of([3, 3]))
    assert list(rejected) == [1]


def test_filters_add_false_flips_at_their_rate_and_lose_none(problem):
    cohort = cohort_of(np.arange(6))
    method = build(problem, codec__name="bfuse", codec__bits=8)
    state, _ = random_round(method, problem.task.index, cohort.clients)
    packed = np.stack([np.packbits(np.arange(problem.task.index.d) % 89 == k) for k in cohort.clients])
    votes, _ = method.up.decode(state, method.up.encode(state, packed, cohort), cohort)
    details = method.report(packed, votes)
    assert details["flip_rate"] == pytest.approx(1 / 89, rel=0.01)
    assert details["false_flip_rate"] == pytest.approx(2**-8, rel=0.2)
    assert details["flip_entropy_bpp"] == pytest.approx(0.0890, abs=1e-3)


def test_clients_may_use_different_codecs(problem):
    config = tiny_config()
    config.codec.clients = {"0-1": {"bits": 16}, "2": {"name": "rice"}}
    method = methods.build(config, problem.task)
    state, cohort = method.init(), cohort_of(np.arange(4))
    packed = np.stack([np.packbits(np.arange(problem.task.index.d) % 50 == 0)] * 4)
    sizes = [len(p) for p in method.up.encode(state, packed, cohort)]
    assert sizes[0] > 1.7 * sizes[3] > 1.7 * sizes[2]
    config.codec.clients = {"0-9": {"bits": 16}}
    with pytest.raises(ValueError, match="0 .. 5"):
        methods.check(config)


def test_filters_with_room_for_as_many_flips_have_one_shape(problem):
    cohort = cohort_of([0, 2, 5])
    method, index = build(problem, codec__capacity=2000, codec__container="raw"), problem.task.index
    packed = np.stack([np.packbits(np.arange(index.d) % step == 0) for step in (20, 30, 40)])
    payloads = method.up.encode(method.init(), packed, cohort)
    assert len({len(payload) for payload in payloads}) == 1
    votes, _ = method.up.decode(method.init(), payloads, cohort)
    assert votes.flips >= sum(np.bitwise_count(p).sum() for p in packed)


def test_clients_that_share_uniforms_leave_out_flips_each_for_itself(problem):
    index, cohort = problem.task.index, cohort_of([0, 1])
    method = build(problem, mask__kappa=0.5, mask__kappa_final=0.5, mask__ranking="random")
    state, (theta_k, _) = random_round(method, index, cohort.clients)
    received, private = method.start(state, cohort), method.private(state, cohort)
    kept = [
        np.unpackbits(
            _final(method, index, theta_k, received, jax.tree.map(lambda x, row=row: x[row], private))
        )
        for row in (0, 1)
    ]
    assert 0.4 < (kept[0] & kept[1]).sum() / kept[0].sum() < 0.6  # chance; the same key would give 1


def test_random_ranking_keeps_as_many_flips_but_others(problem):
    index, cohort, kept = problem.task.index, cohort_of([0]), {}
    for ranking in ("kl", "random"):
        method = build(problem, mask__kappa=0.5, mask__kappa_final=0.5, mask__ranking=ranking)
        state, (theta_k,) = random_round(method, index, cohort.clients)
        received = method.start(state, cohort)
        private = jax.tree.map(lambda x: x[0], method.private(state, cohort))
        kept[ranking] = np.unpackbits(_final(method, index, theta_k, received, private), count=index.d)
        flips = masks.client_flips(
            theta_k, state.theta, uniforms(stream_key(0, 1, EVERY_CLIENT, MASK), index.d), 1.0
        )
        assert kept[ranking].sum() == np.ceil(flips.sum() / 2) and not (kept[ranking] & ~flips).any()
    shared = (kept["kl"] & kept["random"]).sum() / kept["kl"].sum()
    assert 0.4 < shared < 0.6  # chance


def test_a_thinned_vote_counts_by_the_kappa_of_its_own_round(problem):
    regime = {"mask__uniforms": "per_client", "mask__aggregator": "control_variate", "rounds": 2}
    thin = {"mask__ranking": "thin", "mask__kappa": 0.5, "mask__kappa_final": 0.25}
    some, every = build(problem, **regime, **thin), build(problem, **regime)
    state = dataclasses.replace(some.init(), theta=np.full(problem.task.index.d, 30_000, np.uint16))
    votes = Votes(change=np.ones(problem.task.index.d, np.int32))
    for number, times in ((1, 2), (2, 4)):
        moved, whole = (
            method.merge(state, votes, cohort_of(range(60), number)).theta[0] - 30_000.0
            for method in (some, every)
        )
        assert moved == pytest.approx(times * whole, abs=times)  # roundings to 1/65536


@pytest.mark.parametrize("ranking", ["random", "thin"])
def test_which_flips_are_kept_at_random_does_not_follow_from_their_uniforms(problem, ranking):
    index, cohort = problem.task.index, cohort_of([0])
    settings = {"mask__kappa": 0.5, "mask__kappa_final": 0.5, "mask__aggregator": "control_variate"}
    method = build(problem, **settings, mask__ranking=ranking)
    state, (theta_k,) = random_round(method, index, cohort.clients)
    private = jax.tree.map(lambda x: x[0], method.private(state, cohort))
    packed = _final(method, index, theta_k, method.start(state, cohort), private)
    u = uniforms(stream_key(0, 1, EVERY_CLIENT, MASK), index.d).astype(float)
    flips = (u < theta_k) != (u < state.theta)
    kept = np.unpackbits(packed, count=index.d).astype(bool)
    error = np.std(u[flips]) / np.sqrt(kept.sum())
    assert abs(u[kept].mean() - u[flips].mean()) < 4 * error
