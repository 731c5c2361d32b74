"""What masks add up to, in both forms and as a tally; which votes wait."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import masks
from deltamask_jax.codecs import PayloadError
from deltamask_jax.methods.votes import (
    Votes,
    global_ones,
    hold_back,
    mask_streams,
    set_positions,
    stacked,
    sums_of,
)
from deltamask_jax.public_random import EVERY_CLIENT, MASK, uniforms
from tests.conftest import cohort_of

D, CLIENTS = 400, 5


def masks_of(shared: bool):
    """State, cohort, streams, and masks that clients drew: bool[clients, D], each beside its m_g."""
    rng = np.random.default_rng(0)
    theta = rng.integers(5_000, 60_000, D).astype(np.uint16)
    theta_k = np.clip(theta + rng.normal(0, 4000, (CLIENTS, D)), 0, 65535).astype(np.uint16)
    cohort = cohort_of(range(CLIENTS), 3)

    def streams(cohort):
        return mask_streams(cohort, shared)

    keys = streams(cohort) * (CLIENTS if shared else 1)
    u = np.stack([uniforms(key, D) for key in keys])
    return SimpleNamespace(theta=theta), cohort, streams, masks.draw(theta_k, u), masks.draw(theta, u)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_one_form_gives_the_other_and_a_tally_gives_both(shared, whole):
    state, cohort, streams, mine, everyones = masks_of(shared)
    ones, change = mine.sum(0), mine.sum(0) - everyones.sum(0)
    sums = sums_of(D, streams, whole, hold=1)
    sent = Votes(ones=ones.astype(np.int32)) if whole else Votes(change=change.astype(np.int32))
    arrived = sums.tally.decode(state, sums.tally.encode(state, sent, cohort), cohort)
    for votes in (Votes(ones=ones), Votes(change=change), arrived):
        np.testing.assert_array_equal(sums.ones(state, votes, cohort), ones)
        np.testing.assert_array_equal(sums.change(state, votes, cohort), change)
    assert (arrived.ones is None) == (sent.ones is None)


def test_without_streams_the_sum_of_masks_travels():
    state, cohort, _, mine, _ = masks_of(False)
    sums, votes = sums_of(D, lambda cohort: [], True, hold=1), Votes(ones=mine.sum(0).astype(np.int32))
    arrived = sums.tally.decode(state, sums.tally.encode(state, votes, cohort), cohort)
    np.testing.assert_array_equal(arrived.ones, votes.ones)


def test_votes_of_nothing_are_a_fault():
    state, cohort, streams, *_ = masks_of(False)
    with pytest.raises(ValueError, match="without a sum"):
        sums_of(D, streams, False, 1).ones(state, Votes(), cohort)


def test_a_tally_may_hold_what_waited():
    """hold − 1 votes of earlier rounds beside this one's; no more."""
    state, cohort, streams, *_ = masks_of(False)
    change = np.zeros(D, np.int32)
    change[7] = CLIENTS + 2
    with pytest.raises(ValueError, match="votes"):
        sums_of(D, streams, False, hold=2).tally.encode(state, Votes(change=change), cohort)
    payload = sums_of(D, streams, False, hold=3).tally.encode(state, Votes(change=change), cohort)
    with pytest.raises(PayloadError):
        sums_of(D, streams, False, hold=2).tally.decode(state, payload, cohort)


def test_small_votes_wait_until_they_amount_to_something():
    room, held, told = (np.full(4, 9), np.full(4, 9)), None, []
    for change in ([2, 1, -1, 0], [0, 1, 1, 0], [0, 1, -1, -3]):
        travels, held = hold_back(np.array(change, np.int32), held, room, hold=2)
        told.append(travels.tolist())
    assert told == [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, -3]]
    assert held.tolist() == [0, 1, -1, 0]


def test_votes_that_theta_has_no_room_for_are_dropped():
    up, down = np.array([3, 0, 9]), np.array([9, 9, 2])
    travels, held = hold_back(np.array([5, 1, -7], np.int32), np.zeros(3, np.int32), (up, down), hold=3)
    assert travels.tolist() == [3, 0, 0] and held.tolist() == [0, 0, -2]


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_nothing_is_lost_where_there_is_room(hold, seed):
    rng, held, told = np.random.default_rng(seed), None, 0
    rounds = rng.integers(-3, 4, (6, 20)).astype(np.int32)
    for change in rounds:
        travels, held = hold_back(change, held, (np.full(20, 99), np.full(20, 99)), hold)
        assert (np.abs(held) < hold).all() and not np.any((np.abs(travels) < hold) & (travels != 0))
        told = told + travels
    np.testing.assert_array_equal(told + held, rounds.sum(0))


def test_streams_are_one_that_all_share_or_one_per_client():
    cohort = cohort_of([4, 2], 3)
    assert mask_streams(cohort, shared=True) == [cohort.stream(MASK, EVERY_CLIENT)]
    assert mask_streams(cohort) == [cohort.stream(MASK, 4), cohort.stream(MASK, 2)]
    first, second = stacked(mask_streams(cohort))
    assert [*zip(first.tolist(), second.tolist(), strict=True)] == [tuple(k) for k in mask_streams(cohort)]


def test_masks_drawn_from_theta_add_up():
    state, cohort, streams, _, everyones = masks_of(False)
    np.testing.assert_array_equal(global_ones(state.theta, stacked(streams(cohort))), everyones.sum(0))


def test_packed_bits_become_positions():
    bits = np.array([[1, 0, 0, 1, 0, 0, 0, 0, 1, 0], [0] * 10], bool)
    got = list(set_positions(list(np.packbits(bits, axis=1)), 10))
    assert [p.tolist() for p in got] == [[0, 3, 8], []] and got[0].dtype == np.uint32
