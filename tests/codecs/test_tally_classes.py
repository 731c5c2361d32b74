"""What classes the positions have, against their definition."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax.codecs import Context, distance, tally_classes
from deltamask_jax.codecs.codec import SERVER
from deltamask_jax.public_random import uniforms
from tests.codecs.cases import keys_of, voted


@pytest.mark.parametrize("voters", [2, 5, 300])
def test_classes_of_chunks_equal_those_of_the_whole(voters, monkeypatch):
    _, context = voted("each", tally_classes._CHUNK + 1234, 1, 0.1)
    context = dataclasses.replace(context, streams=keys_of("each", voters), voters=voters)
    edges, weights = (100, 300, 600, 900), (255, 140, 50, 9, 1)
    codes = tally_classes.voter_codes(context, edges, weights)
    up, down = np.zeros((2, context.d), np.int64)
    for key in context.streams:
        u = uniforms(key, context.d)
        weight = np.array(weights)[np.searchsorted(edges, distance.between(u, context.theta), "right")]
        up += np.where(u >= context.theta, weight, 0)
        down += np.where(u >= context.theta, 0, weight)

    def bucket(total):
        mantissa, exponent = np.frexp(total)
        return np.where(total > 0, np.floor(8 * mantissa - 4) + 4 * (exponent - 1) + 1, 0)

    np.testing.assert_array_equal(codes, 128 * bucket(up) + bucket(down))
    shared = dataclasses.replace(context, streams=context.streams[:1])
    of_chunks = tally_classes.shared_codes(shared, 6)
    monkeypatch.setattr(tally_classes, "_SMALL", 1 << 20)
    np.testing.assert_array_equal(tally_classes.voter_codes(context, edges, weights), codes)
    np.testing.assert_array_equal(tally_classes.shared_codes(shared, 6), of_chunks)


def test_without_streams_a_class_is_a_sixteenth_of_an_octave_of_the_odds():
    theta = np.array([0, 1, 1 << 15, 49152, 65535], np.uint16)
    codes = tally_classes.theta_codes(Context(5, theta, (), 3, SERVER, voters=4))
    odds = np.log2(np.maximum(theta, 0.25) / (65536 - np.maximum(theta, 0.25)))
    np.testing.assert_allclose(codes, 16 * (odds + 18), atol=1)
    assert codes.max() < tally_classes.KINDS[tally_classes.NONE].shape[0]


def test_what_is_expected_without_streams_is_rounded_half_up():
    theta = np.array([0, 1, 32767, 32768, 32769, 65535], np.uint16)
    centre = tally_classes.centre(Context(6, theta, (), 3, SERVER, voters=3))
    assert centre.tolist() == [0, 0, 1, 2, 2, 3]  # 3 · ½ = 1.5 becomes 2


@pytest.mark.parametrize("cut", [1, 20, 63])
def test_a_position_is_near_or_far(cut):
    votes, context = voted("shared", 5_000, 6, 0.3)
    kind = tally_classes.KINDS[tally_classes.SHARED]
    codes = tally_classes.shared_codes(context, 5)
    near = tally_classes.near_positions(codes, cut, kind)
    far = tally_classes.far_positions(votes, codes, cut, kind)
    assert near.dtype == far.dtype == np.uint32
    is_near = np.isin(np.arange(context.d), near)
    np.testing.assert_array_equal(is_near, codes >> 1 <= 63 - cut)
    np.testing.assert_array_equal(far, np.flatnonzero(~is_near & (votes != 0)))
    assert tally_classes.near_positions(codes, 0, kind) is None
