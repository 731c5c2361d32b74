"""What the encoder chooses is near the best it could."""

import itertools

import numpy as np
import pytest

from deltamask_jax.codecs import distance, tally, tally_choices
from deltamask_jax.codecs.tally_choices import choose_cut, choose_groups, choose_shift
from deltamask_jax.codecs.tally_classes import EACH, EDGES, KINDS, NONE, SHARED, shared_codes, voter_codes
from deltamask_jax.public_random import uniforms
from tests.codecs.cases import voted

CODEC = tally.tally()


def size_with(monkeypatch, name, value, votes, context) -> int:
    """Bytes of a payload whose encoder chose `value`."""
    with monkeypatch.context() as patch:
        patch.setattr(tally, name, lambda *_: value)
        return len(CODEC.encode(votes, context))


@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_a_shift_is_near_the_best_of_all(spread, monkeypatch):
    votes, context = voted("shared", 40_000, 10, spread)
    every = [size_with(monkeypatch, "choose_shift", s, votes, context) for s in range(tally_choices.SHIFTS)]
    chosen = choose_shift(votes, context)
    assert every[chosen] < 1.01 * min(every)
    assert chosen == {0.1: 6, 2.0: 9}[spread]  # narrow buckets where moves are small


@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_a_cut_is_near_the_best_of_all(spread, monkeypatch):
    votes, context = voted("shared", 40_000, 10, spread)
    codes = shared_codes(context, choose_shift(votes, context))
    chosen = choose_cut(votes, codes, KINDS[SHARED])
    every = {cut: size_with(monkeypatch, "choose_cut", cut, votes, context) for cut in (0, 1, 5, 20, 40, 63)}
    assert size_with(monkeypatch, "choose_cut", chosen, votes, context) < 1.03 * min(every.values())
    assert max(every.values()) > 1.9 * min(every.values())


def test_without_streams_every_position_is_near():
    votes, _ = voted("none", 500, 3, 0)
    assert choose_cut(votes, np.zeros(500, np.uint16), KINDS[NONE]) == 0


def test_groups_are_worth_their_bytes(monkeypatch):
    """Against groups that tell nothing of the distance."""
    votes, context = voted("each", 60_000, 10, 0.1)
    edges, weights = choose_groups(votes, context)
    assert len(edges) == EDGES and len(weights) == EDGES + 1
    assert all(0 < before < after for before, after in itertools.pairwise(edges))
    assert max(weights) == 255 and min(weights) >= 0 and weights[0] == 255
    own = len(CODEC.encode(votes, context))
    flat = size_with(monkeypatch, "choose_groups", (edges, (255,) * (EDGES + 1)), votes, context)
    assert own < 0.9 * flat


def test_weights_follow_how_often_voters_flip():
    """Counted from the voters themselves, which the encoder does not see."""
    votes, context = voted("each", 60_000, 10, 0.1)
    edges, weights = choose_groups(votes, context)
    rng, flips, seen = np.random.default_rng(0), np.zeros(EDGES + 1), np.zeros(EDGES + 1)
    logits = rng.normal(2, 2, context.d)
    for key in context.streams:  # as `voted` draws them
        u = uniforms(key, context.d)
        moved = np.clip(np.rint(65536 / (1 + np.exp(-(logits + 0.1 * rng.normal(size=context.d))))), 0, 65535)
        group = np.searchsorted(edges, distance.between(u, context.theta), "right")
        flips += np.bincount(group[(u < moved) != (u < context.theta)], minlength=EDGES + 1)
        seen += np.bincount(group, minlength=EDGES + 1)
    chances = flips / seen
    np.testing.assert_allclose(np.array(weights) / 255, chances / chances.max(), atol=0.05)
    assert voter_codes(context, edges, weights).max() < KINDS[EACH].ranks.size


def test_neighbours_are_merged_as_well_as_they_can_be():
    rng = np.random.default_rng(0)
    size = rng.uniform(10, 1000, 9)
    flips = size * rng.uniform(0.001, 0.9, 9)

    def bits(cuts):
        total = 0.0
        for start, end in itertools.pairwise(cuts):
            n, f = size[start:end].sum(), flips[start:end].sum()
            total -= f * np.log2(f / n) + (n - f) * np.log2(1 - f / n)
        return total

    every = [[0, *inner, 9] for inner in itertools.combinations(range(1, 9), EDGES)]
    assert bits(tally_choices._merge(size, flips)) == pytest.approx(min(map(bits, every)))
