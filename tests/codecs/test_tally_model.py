"""How vote sums become binary decisions, and what is learned from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax.codecs import rans
from deltamask_jax.codecs.tally_classes import EACH, KINDS, NONE, SHARED
from deltamask_jax.codecs.tally_model import LEVELS, Model, _estimate


class Tape:
    """Decisions in the order in which they were asked, and at which probabilities."""

    def __init__(self):
        self.runs = []

    def write(self, p, truth):
        self.runs.append((p.copy(), truth.copy()))
        return truth

    def read(self, p, truth):
        assert truth is None
        asked, decisions = self.runs.pop(0)
        np.testing.assert_array_equal(p, asked)
        return decisions


@settings(deadline=None, max_examples=60)
@given(
    mode=st.sampled_from([NONE, SHARED, EACH]),
    voters=st.sampled_from([1, 2, LEVELS, LEVELS + 1, LEVELS + 2, 100, 65535]),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_reader_asks_what_the_writer_asked(mode, voters, share, seed):
    rng = np.random.default_rng(seed)
    kind, tape = KINDS[mode], Tape()
    writer, reader = Model(kind, voters, tape.write), Model(kind, voters, tape.read)
    for part in range(3):  # the second and third at probabilities that were learned
        codes = rng.integers(0, kind.ranks.size, 200).astype(np.uint16)
        sizes = np.minimum(np.rint(rng.pareto(0.4, 200) + 1), voters).astype(np.int32)
        values = np.where(rng.random(200) < share, sizes, 0)
        values *= np.where(codes & 1 == 1 if mode == SHARED else rng.random(200) < 0.3, -1, 1)
        if part == 2:
            codes, values = codes[values != 0], values[values != 0]
        writer.code(codes, values, learn=True, nonzero=part == 2)
        where, read = reader.code(codes, None, learn=True, nonzero=part == 2)
        np.testing.assert_array_equal(where, values != 0)
        np.testing.assert_array_equal(read, values[values != 0])
        writer.relearn(), reader.relearn()
    assert not tape.runs


def test_decisions_of_a_few_values_by_hand():
    """Zero? Below? More than 1, than 2? Of three voters nobody asks whether it is more than 3."""
    tape = Tape()
    model = Model(KINDS[NONE], 3, tape.write)
    model.code(np.zeros(5, np.uint16), np.array([0, 1, -2, 3, 0]), learn=False)
    asked = [decisions.tolist() for _, decisions in tape.runs]
    assert asked == [
        [False, True, True, True, False],
        [False, True, False],
        [False, True, True],
        [False, True],
    ]


def test_what_is_beyond_the_levels_travels_as_elias_gamma_at_even_odds():
    tape = Tape()
    Model(KINDS[NONE], 100, tape.write).code(np.zeros(1, np.uint16), np.array([LEVELS + 5]), learn=False)
    rest = tape.runs[2 + LEVELS :]  # nonzero, sign, more than 1 … LEVELS
    assert {int(p) for asked, _ in rest for p in asked} == {rans.ONE // 2}
    decisions = [bool(bits[0]) for _, bits in rest if len(bits)]
    assert decisions == [True, True, False, False, True]  # 5 = 101: two more digits, no third; then 0, 1


@pytest.mark.parametrize("learn", [True, False])
def test_only_what_is_to_be_learned_is_counted(learn):
    model = Model(KINDS[NONE], 3, Tape().write)
    codes = np.full(1000, 7, np.uint16)
    before = model._p_nonzero.copy()
    model.code(codes, np.ones(1000, np.int32), learn=learn)
    model.relearn()
    assert (model._p_nonzero[7] > 0.99 * rans.ONE) == learn
    assert np.array_equal(model._p_nonzero, before) != learn


def test_an_estimate_leans_on_the_class_of_twice_the_width():
    """(65536 · yes + 4 · coarser) / (asked + 4), from the widest class to the finest, in whole numbers."""
    asked, yes = np.array([[10, 0, 3, 0]]), np.array([[10, 0, 0, 0]])
    widest = ((10 << 16) + 4 * (1 << 13)) // (13 + 4)
    halves = [((10 << 16) + 4 * widest) // (10 + 4), (4 * widest) // (3 + 4)]
    finest = [
        ((10 << 16) + 4 * halves[0]) // (10 + 4),
        (4 * halves[0]) // 4,
        (4 * halves[1]) // (3 + 4),
        (4 * halves[1]) // 4,
    ]
    expected = [min(p >> 2, rans.ONE - 1) for p in finest]
    assert _estimate(asked, yes, 1 << 13).ravel().tolist() == expected


def test_an_estimate_is_never_certain():
    many = np.full((2, 2), 1 << 40)
    assert (_estimate(many, many, 1 << 15) == rans.ONE - 1).all()
    assert (_estimate(many, np.zeros_like(many), 1 << 15) == 1).all()
    np.testing.assert_array_equal(_estimate(0 * many, 0 * many, 1 << 15), np.full((2, 2), 1 << 13))
