"""The side-information codec: size against its rivals, and its own checks."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import distance, envelope, rans, rice, side_info
from tests.codecs.cases import cost, drift, sealed


@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
def test_flips_of_drifting_logits_cost_half_of_what_rivals_need(spread):
    positions, context = drift(400_000, spread, seed=0)
    size = {
        name: 8 * len(codecs.get(name).encode(positions, context)) / len(positions)
        for name in ("side_info", "bfuse", "rice")
    }
    assert size["side_info"] < 3.7
    assert size["side_info"] < size["bfuse"] / 2.3
    assert size["side_info"] < size["rice"] / 1.4


def test_distances_of_chunks_equal_those_of_the_whole():
    _, context = drift(side_info._CHUNK + 1234, 0.1, seed=0)
    apart = distance.between(context.uniforms(), context.theta)
    for shift, buckets in ((5, 40), (3, 10)):
        near, bucket = side_info.near_positions(context, shift, buckets)
        np.testing.assert_array_equal(near, np.flatnonzero(apart >> shift < buckets))
        np.testing.assert_array_equal(bucket, apart[near] >> shift)
    short = dataclasses.replace(context, d=70_000, theta=context.theta[:70_000])
    near, bucket = side_info.near_positions(short, 5, 40)
    np.testing.assert_array_equal(near, np.flatnonzero(apart[:70_000] >> 5 < 40))


def test_the_same_flips_at_other_uniforms_are_refused_or_other():
    positions, context = drift(5000, 0.2, seed=0)
    other = dataclasses.replace(context, streams=drift(5000, 0.2, seed=1)[1].streams)
    payload = codecs.get("side_info").encode(positions, context)
    with pytest.raises(codecs.PayloadError):
        codecs.get("side_info").decode(payload, other)


def test_a_context_without_side_information_is_a_callers_error():
    positions, context = drift(500, 0.2, seed=0)
    codec = codecs.get("side_info")
    payload = codec.encode(positions, context)
    lacking = [{"theta": None}, {"theta": context.theta[:-1]}, {"theta": context.theta.astype(np.int32)}]
    for change in (*lacking, {"streams": ()}):
        bad = dataclasses.replace(context, **change)
        for call in (
            lambda bad=bad: codec.encode(positions, bad),
            lambda bad=bad: codec.decode(payload, bad),
        ):
            with pytest.raises(ValueError, match=f"context.{next(iter(change))}") as error:
                call()
            assert not isinstance(error.value, codecs.PayloadError)


def test_every_header_byte_is_checked():
    positions, context = drift(3000, 0.2, seed=0)
    codec = codecs.get("side_info")
    payload = codec.encode(positions, context)
    for at in range(envelope.SIZE, envelope.SIZE + side_info._HEAD.size):
        for value in (0, 1, 127, 255):
            if payload[at] != value:
                forged = sealed(payload[:at] + bytes([value]) + payload[at + 1 :])
                try:
                    decoded = codec.decode(forged, context)
                except codecs.PayloadError:
                    continue
                assert len(decoded) == len(positions)


def test_the_senders_lanes_are_bounded_both_ways():
    """All positions near, in any number of lanes: too few take a step per position, too many memory."""
    d = 40_000
    _, context = drift(d, 0.2, seed=0)
    codec, shift, buckets = codecs.get("side_info"), 11, 48
    near, bucket = side_info.near_positions(context, shift, buckets)
    assert len(near) == d
    q = np.full(buckets, 16, np.uint8)
    p = side_info._PROBABILITIES[q][bucket]
    bits = np.arange(d) % 2 == 0
    _, most_bytes = cost(codec.decode, codec.encode(np.arange(0, d, 2), context), context)
    accepted = []
    for lanes_log2 in range(13):
        states, words = rans.encode(bits, p, np.zeros(1 << lanes_log2, np.uint16))
        head = side_info._HEAD.pack(shift, buckets, rice.remainder_bits(0, d), lanes_log2, 0, 0)
        body = head + q.tobytes() + states.tobytes() + words.tobytes()
        payload = envelope.pack(envelope.CODEC_IDS["side_info"], 0, d, d // 2, 0, 0, body)
        steps, peak = cost(codec.decode, payload, context)
        assert steps < 20 * 8192 and peak < 2 * most_bytes
        decoded = codecs.attempt(codec.decode, payload, context)
        if isinstance(decoded, np.ndarray):
            np.testing.assert_array_equal(decoded, np.arange(0, d, 2))
            accepted.append(lanes_log2)
    assert accepted == list(range(rans.lanes_log2(d), (d >> 9).bit_length() + 1))
