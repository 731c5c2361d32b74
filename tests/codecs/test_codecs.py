"""What every codec promises: round trips, typed and sorted results, refusal of everything else."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import codecs
from deltamask_jax.codecs import tally
from tests.codecs.cases import (
    KEPT,
    SETTINGS,
    any_array,
    assert_arrived,
    assert_valid,
    context_of,
    drift,
    every_codec,
    heavy_tailed,
    of_type,
    payload_of,
    sample,
    sealed,
    sent,
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
def test_any_array_arrives(codec):
    # Coding θ tries 2**bits candidates per block. Some decoders are compiled for every d.
    @settings(max_examples=6 if codec.kind == "theta" else 40, deadline=None)
    @given(data=st.data(), seed=st.integers(0, 99))
    def arrives(data, seed):
        d = data.draw(st.integers(1, 2000) if codec.kind == "positions" else st.sampled_from([1, 600]))
        array = data.draw(any_array(codec, d))
        _, context = drift(d, 0.1, seed, round=5, client=9)
        assert_arrived(codec, array, codec.decode(codec.encode(array, context), context), context)

    arrives()


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


def bias(estimates, vectors, mean):
    """How many standard errors the mean error along `mean` is from 0, and the same over all directions."""
    errors = (estimates - vectors).astype(np.float64)
    along = errors @ mean / (mean @ mean)
    standard = np.std(errors, axis=0) / np.sqrt(len(errors))
    spread = np.sum((errors.mean(axis=0) / standard) ** 2)  # χ² with as many degrees as coordinates
    degrees = errors.shape[1]
    return (
        along.mean() / (along.std() / np.sqrt(len(errors))),
        (spread - degrees) / np.sqrt(2 * degrees),
    )


@pytest.mark.parametrize(
    "codec",
    [*(codecs.get("eden", bits=bits) for bits in (0.3, 1.0, 2.5)), codecs.get("qsgd", levels=8, bucket=128)],
    ids=lambda codec: codec.name,
)
def test_the_mean_of_a_thousand_vectors_is_estimated_without_bias(codec):
    rng = np.random.default_rng(3)
    mean = heavy_tailed(512, seed=4)
    vectors = (mean + rng.normal(size=(1000, 512)) * np.abs(mean).mean()).astype(np.float32)
    if codec.name.startswith("qsgd"):  # rounds every bucket for itself: one payload is as good as a thousand
        estimates = sent(codec, vectors.ravel(), client=0).reshape(1000, 512)
    else:
        estimates = np.stack([sent(codec, x, client=k) for k, x in enumerate(vectors)])
    along, everywhere = bias(estimates, vectors, mean)
    assert abs(along) < 3 and everywhere < 3
    shrunk, _ = bias(0.95 * estimates, vectors, mean)  # what the test would say of a slightly biased codec
    assert shrunk < -3


@each("values")
def test_zeros_tiny_and_huge_values_survive(codec):
    huge = 60_000 if codec.exact else 1e30
    for x in (np.zeros(600), np.full(600, 1e-30), np.full(600, -huge), np.eye(1, 600)[0]):
        x = of_type(codec, x)
        decoded = sent(codec, x)
        assert decoded.dtype == x.dtype and np.isfinite(decoded.astype(np.float64)).all()
        assert x.any() or not decoded.any()


@pytest.mark.parametrize(
    "codec",
    [codec for codec in every_codec("values") if not codec.exact and codec.name != "rounded"],
    ids=lambda codec: codec.name,
)
def test_vectors_that_are_not_finite_are_the_senders_error(codec):
    with pytest.raises(ValueError, match="finite") as error:
        codec.encode(np.array([1, np.nan], np.float32), context_of(2))
    assert not isinstance(error.value, codecs.PayloadError)


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
