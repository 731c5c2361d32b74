"""What every codec promises: round trips, typed and sorted results, refusal of everything else."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import codecs
from tests.codecs.cases import SETTINGS, drift, every_codec, sealed

ALL = pytest.mark.parametrize("codec", every_codec(), ids=lambda codec: codec.name)


def test_every_registered_codec_is_tested():
    assert {case["name"] for case in SETTINGS} == set(codecs.REGISTRY)


@ALL
@settings(max_examples=40, deadline=None)
@given(data=st.data(), d=st.integers(1, 2000), seed=st.integers(0, 99))
def test_any_set_of_positions_survives(codec, data, d, seed):
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, d - 1)))), np.uint32)
    _, context = drift(d, 0.1, seed, round=5, client=9)
    decoded = codec.decode(codec.encode(positions, context), context)
    assert decoded.dtype == np.uint32
    assert (np.diff(decoded.astype(np.int64)) > 0).all()
    if codec.exact:
        np.testing.assert_array_equal(decoded, positions)
    else:
        assert np.isin(positions, decoded).all()
        assert positions.size or not decoded.size


@ALL
@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_flips_of_drifting_logits_survive(codec, spread):
    positions, context = drift(150_000, spread, seed=1)
    decoded = codec.decode(codec.encode(positions, context), context)
    assert np.isin(positions, decoded).all()
    assert not codec.exact or len(decoded) == len(positions)


@ALL
def test_all_and_single_positions(codec):
    d = 300
    _, context = drift(d, 0.1, seed=2)
    for positions in ([0], [d - 1], [0, d - 1], np.arange(d)):
        decoded = codec.decode(codec.encode(np.array(positions, np.uint32), context), context)
        assert np.isin(positions, decoded).all()


@ALL
def test_encoding_is_deterministic_and_names_its_client(codec):
    positions, context = drift(3000, 0.1, seed=3, round=4, client=5)
    payload = codec.encode(positions, context)
    assert payload == codec.encode(positions.copy(), context)
    for change in ({"round": 5}, {"client": 6}):
        other = codecs.Context(
            **{"d": 3000, "theta": context.theta, "uniforms": context.uniforms}
            | {"round": 4, "client": 5}
            | change
        )
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload, other)


@ALL
def test_payloads_of_other_codecs_are_refused(codec):
    positions, context = drift(500, 0.3, seed=4)
    for other in every_codec():
        if other.name != codec.name:
            with pytest.raises(codecs.PayloadError):
                codec.decode(other.encode(positions, context), context)


@ALL
def test_damage_is_refused(codec):
    positions, context = drift(700, 0.2, seed=5)
    payload = codec.encode(positions, context)
    for cut in range(len(payload)):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload[:cut], context)
    for at in range(len(payload)):
        with pytest.raises(codecs.PayloadError):
            codec.decode(payload[:at] + bytes([payload[at] ^ 0x10]) + payload[at + 1 :], context)


@ALL
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_valid_checksum(codec, data):
    """Whoever forges a payload also forges its CRC: decoding raises PayloadError or is valid."""
    positions, context = drift(700, 0.2, seed=6)
    payload = bytearray(codec.encode(positions, context))
    start = data.draw(st.integers(0, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decoded = codec.decode(sealed(bytes(payload)) if len(payload) >= 32 else payload, context)
    except codecs.PayloadError:
        return
    assert decoded.dtype == np.uint32 and decoded.ndim == 1 and len(decoded) <= context.d
    assert not decoded.size or decoded.max() < context.d
    assert (np.diff(decoded.astype(np.int64)) > 0).all()


@ALL
@settings(max_examples=50, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_refused(codec, junk):
    _, context = drift(100, 0.1, seed=7)
    with pytest.raises(codecs.PayloadError):
        codec.decode(junk, context)


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


@ALL
@pytest.mark.parametrize("share", [0.001, 0.5, 1])
def test_decoding_stays_within_the_stated_memory(codec, share):
    d = 300_000
    _, context = drift(d, 0.1, seed=9)
    positions = np.flatnonzero(np.random.default_rng(0).random(d) < share).astype(np.uint32)
    payload = codec.encode(positions, context)
    tracemalloc.start()
    try:
        codec.decode(payload, context)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * d + 4e6


def test_a_window_reaches_as_far_as_its_farthest_hit():
    positions, context = drift(3000, 0.2, seed=0)
    codec = codecs.get("bfuse", window=True)
    payload = bytearray(codec.encode(positions, context))
    codec.decode(bytes(payload), context)
    window = int.from_bytes(payload[44:46], "little") + 1
    payload[44:46] = window.to_bytes(2, "little")
    with pytest.raises(codecs.PayloadError, match="window"):
        codec.decode(sealed(bytes(payload)), context)
