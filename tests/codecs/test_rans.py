"""The entropy coder: exact, near the entropy, and refusing streams it did not make."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax.codecs import PayloadError, rans


@settings(deadline=None)
@given(m=st.integers(0, 300), lanes=st.integers(1, 40), seed=st.integers(0, 10**6), sure=st.booleans())
def test_bits_and_carried_data_come_back(m, lanes, seed, sure):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, rans.ONE, m).astype(np.uint16)
    bits = rng.random(m) < (0.5 if sure else p / rans.ONE)  # also bits that p finds unlikely
    carried = rng.integers(0, 1 << 16, lanes).astype(np.uint16)
    states, words = rans.encode(bits, p, carried)
    decoded, back = rans.decode(p, states, words)
    np.testing.assert_array_equal(decoded, bits)
    np.testing.assert_array_equal(back, carried)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(0, 300), lanes=st.integers(1, 31), seed=st.integers(0, 10**6))
def test_few_lanes_are_coded_to_the_words_of_many(m, lanes, seed):
    """Symbol by symbol, or all lanes in a vector operation; each reads what the other wrote."""
    rng = np.random.default_rng(seed)
    carried, runs = rng.integers(0, 1 << 16, lanes).astype(np.uint16), []
    for size in (m, 5, 0, 64):
        p = rng.integers(1, rans.ONE, size).astype(np.uint16)
        runs.append((rng.random(size) < p / rans.ONE, p))
    written, read = [], []
    for few in (0, 32):
        with mock.patch.object(rans, "_FEW", few):
            written.append(rans.encode_runs(runs, carried))
            states, words = written[0]
            words = np.frombuffer(b"\0" + words.tobytes(), "<u2", offset=1)  # as in a payload: not aligned
            decoder = rans.Decoder(states, words)
            read.append([*(decoder.read(p) for _, p in runs), decoder.finish()])
    for one, other in zip(*map(tuple, written), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for bits in read:
        for got, sent in zip(bits, [*(bits for bits, _ in runs), carried], strict=True):
            assert got.dtype == sent.dtype
            np.testing.assert_array_equal(got, sent)


def test_size_is_the_entropy_plus_a_byte_per_lane():
    rng = np.random.default_rng(0)
    p = rng.integers(100, 9000, 200_000).astype(np.uint16)
    bits = rng.random(len(p)) < p / rans.ONE
    lanes = 64
    states, words = rans.encode(bits, p, np.zeros(lanes, np.uint16))
    q = p / rans.ONE
    ideal = -np.where(bits, np.log2(q), np.log2(1 - q)).sum()
    carried_bits = 16 * lanes
    assert 16 * len(words) + 32 * lanes - carried_bits < 1.003 * ideal + 10 * lanes


@pytest.mark.parametrize("few", [0, 32])
def test_streams_it_did_not_make_are_refused(monkeypatch, few):
    monkeypatch.setattr(rans, "_FEW", few)
    rng = np.random.default_rng(0)
    p = np.full(1000, 4000, np.uint16)
    states, words = rans.encode(rng.random(1000) < 0.25, p, np.zeros(8, np.uint16))
    for bad_states, bad_words in (
        (states, words[:-1]),
        (states, np.append(words, np.uint16(0))),
        (states ^ 1, words),
        (states, words[::-1]),
        (states & 0xFFFF, words),
    ):
        with pytest.raises(PayloadError):
            rans.decode(p, bad_states, bad_words)
