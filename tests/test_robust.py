"""Robust merges of flips equal their definition on the cohort's dense changes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import methods, robust
from deltamask_jax.codecs import PayloadError, distance
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from tests.conftest import cohort_of, tiny_config


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(0, 0.49), st.integers(0, 2**32 - 1))
def test_trimmed_mean_and_median_from_counts(voters, trim, seed):
    changes = np.random.default_rng(seed).integers(-1, 2, (voters, 50))
    received = [(np.flatnonzero(row), row[row != 0]) for row in changes]

    def total(aggregator):
        return robust.total_change(aggregator, trim, received, 50, voters)

    median = total("median") / voters
    np.testing.assert_allclose(median, np.median(changes, axis=0), atol=1e-6)
    cut = min(int(trim * voters), (voters - 1) // 2)
    expected = np.sort(changes, axis=0)[cut : voters - cut].mean(0)
    trimmed = total("trimmed") / voters
    np.testing.assert_allclose(trimmed, expected, atol=1e-6)
    np.testing.assert_array_equal(total("mean"), changes.sum(0))
    halves = [(at, np.float32(0.5) * its) for at, its in received]
    np.testing.assert_array_equal(robust.total_change("clip", trim, halves, 50, voters), changes.sum(0) / 2)


def counts_allowed(counts):
    """Flips that count fully of each client, from the definition: the median and what chance adds to it."""
    typical = np.median(counts)
    return np.minimum(counts, typical + 2 * np.sqrt(typical + 1))


def test_clipping_scales_what_is_more_than_the_cohort_flips_at_a_distance():
    sizes, others = [10, 20, 40, 0, 20], [7, 7, 7, 0, 300]
    distances = [
        np.repeat([robust.BAND // 2, 9 * robust.BAND], [near, far])
        for near, far in zip(sizes, others, strict=True)
    ]
    weights = robust.clip_weights(distances)
    for flips, near in ((sizes, True), (others, False)):
        kept = [its[(at < robust.BAND) == near].sum() for its, at in zip(weights, distances, strict=True)]
        np.testing.assert_allclose(kept, counts_allowed(flips), rtol=1e-6)
    (alone,) = robust.clip_weights([np.arange(50_000)])  # nobody to compare with; distances without end
    np.testing.assert_array_equal(alone, 1)
    assert robust.clip_weights([np.zeros(0, int)])[0].size == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 20_000))
def test_a_minority_of_liars_counts_no_more_than_honest_clients_at_any_distance(seed, liars, lies):
    """Flips happen where θ's drift passes the distance; lies lie anywhere, in any number."""
    rng = np.random.default_rng(seed)
    drift = np.abs(rng.normal(0, 300, (10, 20_000)))
    distances = rng.integers(0, 8000, drift.shape)
    honest = [row[moved] for row, moved in zip(distances, distances < drift, strict=True)][liars:]
    weights = robust.clip_weights(honest + [rng.integers(0, 8000, lies)] * liars)
    for its in weights[10 - liars :]:
        assert its.sum() < 1.6 * max(map(len, honest)) + 4 * robust.BANDS  # by chance two in empty bands
    assert sum(its.sum() for its in weights[: 10 - liars]) > 0.9 * sum(map(len, honest))


@pytest.mark.parametrize("who", ["shared", "per_client"])
@pytest.mark.parametrize("aggregator", ["mean", "trimmed", "median", "clip"])
def test_what_is_decoded_is_the_robust_merge_of_dense_changes(problem, who, aggregator):
    config = tiny_config(
        mask__uniforms=who,
        codec__name="rice",
        robust__aggregator=aggregator,
        robust__trim=0.3,
        robust__max_flip_rate=1.0,
    )
    method, d = methods.build(config, problem.task), problem.task.index.d
    cohort = cohort_of([0, 1, 2, 4, 5])
    rng, state = np.random.default_rng(3), method.init()
    theta = rng.integers(700, 64800, d).astype(np.uint16)
    state = dataclasses.replace(state, theta=theta)
    flips = rng.random((5, d)) < np.array([0.05, 0.1, 0.2, 0.3, 0.45])[:, None]
    flips[:, : d // 2] |= flips[:1, : d // 2]  # half of the positions agree more than chance
    packed = [np.packbits(row) for row in flips]
    votes, _ = method.up.decode(state, method.up.encode(state, packed, cohort), cohort)
    words = [EVERY_CLIENT if who == "shared" else int(client) for client in cohort.clients]
    streams = np.stack([uniforms(stream_key(0, 1, word, MASK), d) for word in words])
    globe = streams < theta
    changes = flips * np.where(globe, -1, 1)
    ordered = np.sort(changes, axis=0)
    apart = np.stack([distance.between(u, theta) for u in streams]) // robust.BAND
    scale = np.ones(flips.shape)
    for band in range(apart.max() + 1):
        there = flips & (apart == band)
        counts = there.sum(1)
        scale[apart == band] = np.repeat(
            counts_allowed(counts) / np.maximum(counts, 1), (apart == band).sum(1)
        )
    expected = {
        "mean": changes.mean(0),
        "trimmed": ordered[1:4].mean(0),
        "median": ordered[2],
        "clip": (scale * changes).mean(0),
    }[aggregator]
    np.testing.assert_allclose(votes.change / 5, expected, atol=1e-5)
    assert votes.flips == flips.sum()


def test_a_cap_below_the_cohorts_sum_does_not_reject_honest_payloads(problem):
    """Shared uniforms are decoded as counts first; their sum may pass the cap though no payload does."""
    config = tiny_config(codec__name="rice", robust__max_flip_rate=0.2)
    method, d, cohort = methods.build(config, problem.task), problem.task.index.d, cohort_of(np.arange(3))
    packed = [np.packbits(np.arange(d) % 10 == k) for k in cohort.clients]  # 10 % each, 30 % together
    payloads = method.up.encode(method.init(), packed, cohort)
    assert method.up.decode(method.init(), payloads, cohort)[0].flips == pytest.approx(0.3 * d, abs=3)


def test_the_cap_follows_the_cohorts_median_and_a_minority_cannot_move_it():
    d = 10_000
    honest = [300, 310, 290, 320, 305, 295, 300]
    sizes = robust.check_flips([*honest, 10_000, 9_000, 1_600], d, 0.0)
    assert sizes[:7] == honest
    assert [error.reason for error in sizes[7:]] == [robust.TOO_MANY] * 3
    assert robust.check_flips([*honest, 1_499], d, 0.0)[-1] == 1_499
    # Where hardly anybody flips, a hundredth of the weights is no lie; nor is a cohort of one.
    assert robust.check_flips([0, 0, 0, 99], d, 0.0) == [0, 0, 0, 99]
    assert robust.check_flips([5_000], d, 0.0) == [5_000]
    rejected = PayloadError("earlier", reason="checksum")
    assert robust.check_flips([rejected, 20], d, 0.0) == [rejected, 20]
    assert isinstance(robust.check_flips([20], d, 0.001)[0], PayloadError)


@pytest.mark.parametrize("who", ["shared", "per_client"])
def test_flips_where_nobody_else_flips_hardly_count(problem, who):
    config = tiny_config(
        mask__uniforms=who, codec__name="rice", robust__aggregator="clip", robust__max_flip_rate=1.0
    )
    method, d, cohort = methods.build(config, problem.task), problem.task.index.d, cohort_of(np.arange(5))
    state = method.init()
    sent, expected = [], np.zeros(d, int)
    for client in cohort.clients:
        u = uniforms(stream_key(0, 1, EVERY_CLIENT if who == "shared" else int(client), MASK), d)
        apart = distance.between(u, state.theta)
        near = apart < 400
        if client == 4:  # flips the farthest positions, as many as the others
            lie = np.argsort(-apart)[: near.sum()]
            sent.append(np.packbits(np.isin(np.arange(d), lie)))
        else:
            sent.append(np.packbits(near))
            expected += near * np.where(u < state.theta, -1, 1)
    votes, rejected = method.up.decode(state, method.up.encode(state, sent, cohort), cohort)
    assert not rejected
    lies = np.bincount(np.minimum(apart[lie] // robust.BAND, robust.BANDS - 1))
    much = np.minimum(lies, 2).sum()  # and honest counts that chance put above what the cohort may flip
    assert np.abs(votes.change - expected).sum() == pytest.approx(much, abs=0.02 * near.sum())


def test_a_hundredth_of_the_weights_is_all_that_is_allowed_where_hardly_anybody_flips():
    *allowed, refused = robust.check_flips([0, 0, 0, 100, 101], 10_000, 0.0)
    assert allowed == [0, 0, 0, 100] and refused.reason == robust.TOO_MANY


def test_rejected_payloads_do_not_lower_the_cohorts_median():
    """Otherwise a few clients of damaged bytes would have the honest ones rejected."""
    rejected = PayloadError("earlier", reason="checksum")
    assert robust.check_flips([*[rejected] * 4, 600, 610, 590], 10_000, 0.0)[4:] == [600, 610, 590]


@pytest.mark.parametrize("who", ["shared", "per_client"])
def test_a_payload_of_too_many_flips_leaves_no_vote(problem, who):
    """Under shared uniforms it is counted together with the others before anybody knows."""
    config = tiny_config(mask__uniforms=who, codec__name="rice", robust__max_flip_rate=0.2)
    method, d = methods.build(config, problem.task), problem.task.index.d
    state, cohort = method.init(), cohort_of([0, 1, 4])
    packed = [np.packbits(np.arange(d) % step == 0) for step in (10, 2, 15)]
    payloads = method.up.encode(state, packed, cohort)
    votes, rejected = method.up.decode(state, payloads, cohort)
    honest, _ = method.up.decode(state, payloads[::2], cohort.of([0, 2]))
    assert list(rejected) == [1] and votes.flips == honest.flips
    np.testing.assert_array_equal(votes.change, honest.change)
