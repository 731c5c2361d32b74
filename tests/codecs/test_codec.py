"""The seam: what a context draws and checks, and which positions a codec takes."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.public_random import MASK, stream_key, uniforms
from tests.codecs.cases import (
    drift,
)


def test_the_contexts_uniforms_are_those_of_its_first_stream():
    keys = stream_key(7, 2, 3, MASK), stream_key(7, 2, 4, MASK)
    context, positions = codecs.Context(500, streams=keys), np.array([0, 7, 499], np.uint32)
    np.testing.assert_array_equal(context.uniforms(), uniforms(keys[0], 500))
    assert context.uniforms().dtype == np.uint16
    np.testing.assert_array_equal(context.uniforms(positions), uniforms(keys[0], 500)[positions])
    assert context.uniforms(positions[:0]).shape == (0,)


def test_a_contexts_stream_is_that_of_its_run_round_and_client():
    context = codecs.Context(5, round=2, client=3, seed=7)
    assert context.stream(MASK) == stream_key(7, 2, 3, MASK)
    others = [dataclasses.replace(context, **{field: 1}) for field in ("round", "client", "seed")]
    assert len({context.stream(MASK), context.stream(MASK + 1), *(c.stream(MASK) for c in others)}) == 5


def test_a_context_without_theta_or_streams_is_checked():
    _, context = drift(500, 0.2, seed=0)
    context.check()
    dataclasses.replace(context, streams=()).check(streams=False)
    for theta in (None, context.theta[:-1], context.theta.astype(np.int32)):
        for streams in (True, False):
            with pytest.raises(ValueError, match=r"context.theta as u16\[500\]"):
                dataclasses.replace(context, theta=theta).check(streams)
    with pytest.raises(ValueError, match="context.streams"):
        dataclasses.replace(context, streams=()).check()


@pytest.mark.parametrize(
    "positions", [[3, 2], [2, 2], [100], [-1], [[1]], [0.5]], ids=lambda positions: str(positions)
)
def test_invalid_positions_are_refused(positions):
    with pytest.raises(ValueError, match="positions"):
        codecs.get("rice").encode(np.array(positions), codecs.Context(d=100))


@pytest.mark.parametrize("d", [-1, 2**32, 2**33])
def test_more_positions_than_32_bits_number_are_refused(d):
    with pytest.raises(ValueError, match="at most 4,294,967,295"):
        codecs.Context(d)


def test_the_last_positions_of_32_bits_arrive():
    positions = np.array([0, 5, 2**31 - 1, 2**31, 2**32 - 3, 2**32 - 2], np.uint32)
    context = codecs.Context(2**32 - 1)
    rice = codecs.get("rice")
    np.testing.assert_array_equal(rice.decode(rice.encode(positions, context), context), positions)


def test_values_that_no_envelope_holds_are_refused_before_they_are_copied():
    endless = np.broadcast_to(np.float32(0), (2**30,))
    with pytest.raises(ValueError, match="1,073,741,824 values of float32 are more than the 4 GiB"):
        codecs.get("dense").encode(endless, codecs.Context(2**30))
