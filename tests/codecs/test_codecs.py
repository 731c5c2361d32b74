"""What every codec promises: round trips, typed and sorted results, refusal of everything else."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import codecs
from deltamask_jax.codecs import tally
from deltamask_jax.public_random import MASK, stream_key, uniforms
from tests.codecs.cases import (
    KEPT,
    SETTINGS,
    any_array,
    assert_arrived,
    assert_valid,
    drift,
    every_codec,
    payload_of,
    sample,
    sealed,
    type_of,
)


def each(*kinds):
    return pytest.mark.parametrize("codec", every_codec(*kinds), ids=lambda codec: codec.name)


ALL, POSITIONS = each(), each("positions")


def test_every_registered_codec_is_tested():
    """That of votes by test_tally.py: what both ends know there is a cohort, not a client."""
    here = {name for name in codecs.REGISTRY if codecs.get(name).kind != "votes"}
    assert {case["name"] for case in SETTINGS} == {case["name"] for case in KEPT} == here
    assert set(codecs.REGISTRY) - here == {"tally"}


def test_a_codec_says_what_its_arrays_are():
    names = {kind: {codec.name.split("-")[0] for codec in every_codec(kind)} for kind in ("values", "theta")}
    assert names == {"values": {"dense", "rounded", "qsgd", "eden", "signs"}, "theta": {"random_coding"}}
    assert {codec.kind for codec in every_codec()} == {"positions", *names}
    assert tally.tally().kind == "votes"


@ALL
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_any_array_arrives(codec, data, seed):
    # Some decoders are compiled for every d.
    d = data.draw(st.integers(1, 2000) if codec.kind == "positions" else st.sampled_from([1, 600]))
    array = data.draw(any_array(codec, d))
    _, context = drift(d, 0.1, seed, round=5, client=9)
    assert_arrived(codec, array, codec.decode(codec.encode(array, context), context), context)


@ALL
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_a_plausible_update_arrives(codec, spread):
    d = 150_000 if codec.kind == "positions" else 1 << 16
    array, context = sample(codec, d, spread, seed=1)
    assert_arrived(codec, array, codec.decode(codec.encode(array, context), context), context)


@POSITIONS
def test_all_and_single_positions(codec):
    d = 300
    _, context = drift(d, 0.1, seed=2)
    for positions in ([0], [d - 1], [0, d - 1], np.arange(d)):
        decoded = codec.decode(codec.encode(np.array(positions, np.uint32), context), context)
        assert np.isin(positions, decoded).all()


@ALL
def test_encoding_is_deterministic_and_names_its_size_round_and_client(codec):
    array, context = sample(codec, 3000, seed=3, round=4, client=5)
    payload = codec.encode(array, context)
    assert payload == codec.encode(array.copy(), context)
    for change in ({"round": 5}, {"client": 6}, {"client": codecs.SERVER}):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload, dataclasses.replace(context, **change))
    for d in (2999, 3001):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload, sample(codec, d, round=4, client=5)[1])


@ALL
def test_payloads_of_other_codecs_are_refused(codec):
    _, context = sample(codec, 500)
    for other in every_codec():
        if other.name != codec.name:
            with pytest.raises(codecs.PayloadError):
                codec.decode(payload_of(other, 500), context)


@ALL
def test_damage_is_refused(codec):
    payload, (_, context) = payload_of(codec, 700), sample(codec, 700)
    for cut in range(len(payload)):
        for short in (payload[:cut], sealed(payload[:cut]) if cut >= 32 else b""):
            with pytest.raises(codecs.PayloadError):
                codec.decode(short, context)
    for at in range(len(payload)):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload[:at] + bytes([payload[at] ^ 0x10]) + payload[at + 1 :], context)


@ALL
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_valid_checksum(codec, data):
    """Whoever forges a payload also forges its CRC: decoding raises PayloadError or is valid."""
    payload, (_, context) = bytearray(payload_of(codec, 700)), sample(codec, 700)
    start = data.draw(st.integers(0, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decoded = codec.decode(sealed(bytes(payload)) if len(payload) >= 32 else bytes(payload), context)
    except codecs.PayloadError:
        return
    assert_valid(codec, decoded, context)


@ALL
@settings(max_examples=50, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_refused(codec, junk):
    _, context = sample(codec, 100)
    with pytest.raises(codecs.PayloadError):
        codec.decode(junk, context)


@each("values", "theta")
def test_flags_and_numbers_of_values_are_checked(codec):
    _, context = sample(codec, 700)
    for place in (6, 12):  # of the flags, of n
        forged = bytearray(payload_of(codec, 700))
        forged[place] ^= 1
        with pytest.raises(codecs.PayloadError):
            codec.decode(sealed(bytes(forged)), context)


@each("values", "theta")
def test_arrays_of_another_length_are_refused(codec):
    array, context = sample(codec, 700)
    for other in (array[:-1], np.append(array, array[:1]), array[None]):
        with pytest.raises(ValueError, match="700"):
            codec.encode(other, context)


@each("values")
def test_values_that_are_not_finite_never_arrive(codec):
    """The sender refuses them or the receiver does."""
    if type_of(codec) == np.uint16:
        return
    for bad in (np.nan, np.inf, -np.inf):
        array, context = sample(codec, 700)
        array[3] = bad
        with pytest.raises(ValueError, match="finite|no sender writes"):
            codec.decode(codec.encode(array, context), context)


@pytest.mark.parametrize(
    "positions", [[3, 2], [2, 2], [100], [-1], [[1]], [0.5]], ids=lambda positions: str(positions)
)
def test_invalid_positions_are_refused(positions):
    with pytest.raises(ValueError, match="positions"):
        codecs.get("rice").encode(np.array(positions), codecs.Context(d=100))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'bfuse'"):
        codecs.get("bfuze")
    with pytest.raises(ValueError, match="did you mean 'bits'"):
        codecs.get("bfuse", bit=8)
    for name, options in {
        "bfuse": {"bits": 9},
        "xor": {"bits": 32},
        "bloom": {"fpr": 1.0},
    }.items():
        with pytest.raises(ValueError, match=next(iter(options))):
            codecs.get(name, **options)
    with pytest.raises(ValueError, match="container"):
        codecs.get("xor", container="gif")
    with pytest.raises(ValueError, match="arity"):
        codecs.get("bfuse", arity=5)


def test_a_window_drops_most_false_flips():
    positions, context = drift(200_000, 0.1, seed=8)
    false = {}
    for window in (False, True):
        codec = codecs.get("bfuse", window=window)
        payload = codec.encode(positions, context)
        decoded = codec.decode(payload, context)
        assert np.isin(positions, decoded).all()
        false[window] = len(decoded) - len(positions)
    assert false[True] < 0.5 * false[False]


@POSITIONS
@pytest.mark.parametrize("share", [0.001, 0.5, 1])
def test_decoding_positions_stays_within_the_stated_memory(codec, share):
    _, context = drift(300_000, 0.1, seed=9)
    positions = np.flatnonzero(np.random.default_rng(0).random(context.d) < share).astype(np.uint32)
    assert_stated_memory(codec, positions, context)


@each("values", "theta")
def test_decoding_stays_within_the_stated_memory(codec):
    assert_stated_memory(codec, *sample(codec, 1 << 18, spread=3.0))


def assert_stated_memory(codec, array, context):
    payload = codec.encode(array, context)
    tracemalloc.start()
    try:
        codec.decode(payload, context)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * context.d + 4e6


def test_a_window_reaches_as_far_as_its_farthest_hit():
    positions, context = drift(3000, 0.2, seed=0)
    codec = codecs.get("bfuse", window=True)
    payload = bytearray(codec.encode(positions, context))
    codec.decode(bytes(payload), context)
    window = int.from_bytes(payload[44:46], "little") + 1
    payload[44:46] = window.to_bytes(2, "little")
    with pytest.raises(codecs.PayloadError, match="window"):
        codec.decode(sealed(bytes(payload)), context)


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


@each("theta")
def test_a_codec_of_masks_needs_a_prior(codec):
    array, context = sample(codec, 500)
    without = dataclasses.replace(context, theta=None)
    for call in (lambda: codec.encode(array, without), lambda: codec.decode(payload_of(codec, 500), without)):
        with pytest.raises(ValueError, match="context.theta") as error:
            call()
        assert not isinstance(error.value, codecs.PayloadError)  # the caller's fault, not the sender's
    with pytest.raises(ValueError, match="u16"):
        codec.encode(array.astype(np.float32), context)
