"""Eight bits by stochastic rounding: size, error, expectation, and what a receiver refuses."""

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import codecs
from deltamask_jax.codecs import Context, PayloadError, envelope

CODEC = codecs.get("rounded")


def values(n=1300):
    """Three groups of very different scale, the last one incomplete."""
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    x[512:1024] *= 1e-6
    x[:512] *= 50
    return x


def step_of(x):
    return np.repeat([np.abs(x[i : i + 512]).max() / 127 for i in range(0, x.size, 512)], 512)[: x.size]


def context_of(n, draw=0):
    return Context(n, round=3, client=5, seed=draw)


def sent(x, draw=0):
    context = context_of(x.size, draw)
    return CODEC.decode(CODEC.encode(x, context), context)


def test_error_is_less_than_a_step_and_a_value_costs_a_byte():
    x = values()
    payload = CODEC.encode(x, context_of(x.size))
    error = np.abs(CODEC.decode(payload, context_of(x.size)) - x) / step_of(x)
    assert error.max() <= 1.0001 and np.mean(error > 0.5) > 0.1  # not to the nearest
    assert 0.85 * x.size < len(payload) - envelope.SIZE < x.size + 3 * 4 + 20


def test_expectation_is_the_value_within_three_standard_errors():
    x, draws = values(), 1000
    errors = np.stack([sent(x, draw) - x for draw in range(draws)])
    errors /= step_of(x)  # groups on one scale
    random = errors.std(axis=0) > 0.05  # a group's largest value lies on a step, and others close to one
    z = errors.mean(axis=0)[random] / (errors.std(axis=0)[random] / np.sqrt(draws))
    assert random.mean() > 0.97
    assert abs(z.mean()) < 3 / np.sqrt(z.size)
    assert abs(z @ np.sign(x[random])) < 3 * np.sqrt(z.size)  # no pull to zero
    assert abs(np.mean(z**2) - 1) < 3 * np.sqrt(2 / z.size)


def test_extremes_survive():
    for x in (np.zeros(700), np.full(3, -1e38), np.array([3e38, 0, -3e38]), np.zeros(0), [1e-44, 2e-44]):
        x = np.asarray(x, np.float32)
        np.testing.assert_allclose(sent(x), x, rtol=1e-5, atol=1e-43)
    for bad in (np.nan, np.inf):
        with pytest.raises(PayloadError):
            sent(np.array([1, bad, 2], np.float32))
    with pytest.raises(ValueError, match="takes f32"):
        CODEC.encode(np.zeros(3, np.float32), context_of(2))


def sealed(body, n=4):
    return envelope.pack(envelope.CODEC_IDS["rounded"], 0, n, n, 3, 5, body)


def zstd(raw):
    return zstandard.ZstdCompressor().compress(raw)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        sealed(b""),
        sealed(b"no frame at all"),
        sealed(zstd(bytes(7))),
        sealed(zstd(bytes(1 << 20))),
        sealed(zstd(bytes(8)), n=5),
        sealed(zstd(struct.pack("<f", np.nan) + bytes(4))),
        sealed(zstd(struct.pack("<f", -1) + bytes(4))),
        sealed(zstd(struct.pack("<f", 1) + b"\x80\0\0\0")),
        sealed(zstd(struct.pack("<f", 3e38) + b"\x7f\0\0\0")),
        sealed(zstd(bytes(8))[:-1]),
    ],
)
def test_what_no_sender_writes_is_refused(payload):
    with pytest.raises(PayloadError):
        CODEC.decode(payload, context_of(4))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(32, 300), byte=st.integers(0, 255), cut=st.integers(0, 300))
def test_damaged_bodies_under_a_valid_checksum_give_values_or_payload_error(at, byte, cut):
    body = bytearray(CODEC.encode(values(250), context_of(250))[envelope.SIZE :])
    body[at % len(body)] = byte
    payload = sealed(bytes(body[: len(body) - cut % 3]), 250)
    try:
        decoded = CODEC.decode(payload, context_of(250))
    except PayloadError:
        return
    assert decoded.shape == (250,) and np.isfinite(decoded).all()


@pytest.mark.parametrize("step, level", [(-0.0, 0), (0.0, 1)])
def test_zeros_have_one_payload(step, level):
    assert CODEC.decode(sealed(zstd(struct.pack("<f", 0) + bytes(4))), context_of(4)).tolist() == [0] * 4
    with pytest.raises(PayloadError, match="no sender writes"):
        CODEC.decode(sealed(zstd(struct.pack("<f4b", step, level, 0, 0, 0))), context_of(4))
