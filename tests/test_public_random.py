"""The generator is part of the wire protocol: golden values, NumPy == JAX, and sound statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax.public_random import (
    CANDIDATES,
    EVERY_CLIENT,
    MASK,
    candidate_words,
    stream_key,
    uniforms,
    uniforms_at,
)

words = st.integers(0, 2**32 - 1)


def test_golden_values():
    # Changing any of these breaks every deployed client: raise the format version instead.
    assert stream_key(0, 0, 0, 0) == (1608878740, 108118967)
    key = stream_key(1234567890123456789, 7, 29, MASK)
    assert key == (4127855818, 3829376412)
    assert uniforms(key, 8).tolist() == [32109, 3215, 51455, 58268, 23614, 33931, 24051, 32240]
    assert uniforms_at(key, np.uint32([2**31, 2**32 - 1])).tolist() == [47435, 47417]
    key = stream_key(1234567890123456789, 7, 29, CANDIDATES)
    words = candidate_words(key, 3)
    assert words.tolist() == [3945165534, 725286243, 2337023494]
    assert uniforms((key[0], words[1]), 4).tolist() == [45608, 39831, 13481, 33920]


def test_plain_integer_reference():
    """The formula of the module's docstring, written out once more with Python integers."""

    def mix(h):
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    seed, round_number, client = 2**40 + 5, 3, 11
    a, b = 0x9E3779B9, 0x7F4A7C15
    for word in (seed % 2**32, seed // 2**32, round_number, client, MASK):
        a = mix(a ^ word)
        b = mix((b + a) % 2**32)
    expected = [mix(mix((i + a) % 2**32) ^ b) >> 16 for i in range(100)]
    assert uniforms(stream_key(seed, round_number, client, MASK), 100).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(a=words, b=words, positions=st.lists(words, min_size=4, max_size=4))
def test_numpy_and_jax_agree_bit_for_bit(a, b, positions):
    key, positions = (np.uint32(a), np.uint32(b)), np.uint32(positions)
    ours = uniforms_at(key, positions)
    theirs = np.asarray(uniforms_at(key, jnp.asarray(positions), jnp))
    assert ours.dtype == theirs.dtype == np.uint16
    np.testing.assert_array_equal(ours, theirs)


def test_uniform_and_independent():
    n = 1 << 20
    base = uniforms(stream_key(1, 1, EVERY_CLIENT, MASK), n).astype(np.int64)
    counts = np.bincount(base >> 8, minlength=256)
    chi2 = np.sum((counts - n / 256) ** 2 / (n / 256))
    assert 160 < chi2 < 370  # 255 degrees of freedom, about ±5 standard deviations
    others = {
        "next position": np.roll(base, 1),
        "next round": uniforms(stream_key(1, 2, EVERY_CLIENT, MASK), n),
        "a client": uniforms(stream_key(1, 1, 0, MASK), n),
        "next client": uniforms(stream_key(1, 1, 1, MASK), n),
        "next seed": uniforms(stream_key(2, 1, EVERY_CLIENT, MASK), n),
        "other purpose": uniforms(stream_key(1, 1, EVERY_CLIENT, MASK + 1), n),
    }
    for name, other in others.items():
        correlation = np.corrcoef(base, other)[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n), name
        # Joint distribution of the high bits, not only the linear correlation.
        joint = np.bincount((base >> 12) * 16 + (other.astype(np.int64) >> 12), minlength=256)
        assert np.sum((joint - n / 256) ** 2 / (n / 256)) < 370, name


@pytest.mark.parametrize("arguments", [(-1, 0, 0, 0), (2**64, 0, 0, 0), (0, -1, 0, 0), (0, 0, 2**32, 0)])
def test_words_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be in 0"):
        stream_key(*arguments)


def test_more_uniforms_than_a_stream_has_are_refused():
    with pytest.raises(ValueError, match="a stream has 2\\^32 uniforms"):
        uniforms(stream_key(0, 0, 0, MASK), 2**32 + 1)
