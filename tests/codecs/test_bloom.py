"""Bloom filters: chosen false-positive rate, JAX equal to NumPy, policies about false positives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import codecs
from deltamask_jax.codecs import bloom, membership
from tests.codecs.cases import sealed


@pytest.mark.parametrize("hashes", [1, 3, 8])
def test_false_positive_rate_and_size(hashes):
    d, n = 400_000, 5000
    positions = np.sort(np.random.default_rng(0).choice(d, n, replace=False)).astype(np.uint32)
    codec = codecs.get("bloom", fpr=2.0**-hashes)
    payload = codec.encode(positions, codecs.Context(d))
    false = len(codec.decode(payload, codecs.Context(d))) - n
    expected = (d - n) * 2.0**-hashes
    # The fill of the table varies too, so the rate scatters more than binomially.
    assert abs(false - expected) < 5 * expected**0.5 + 0.05 * expected
    assert 8 * (len(payload) - 36) == pytest.approx(n * hashes / np.log(2), rel=0.01)


@pytest.mark.parametrize("hashes", [1, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 23, 100])
def test_few_keys_have_the_asked_rate_too(hashes, n):
    d, rng = 20_000, np.random.default_rng(n)
    codec, false, trials = codecs.get("bloom", fpr=2.0**-hashes), 0, 40
    for _ in range(trials):
        positions = np.sort(rng.choice(d, n, replace=False)).astype(np.uint32)
        false += len(codec.decode(codec.encode(positions, codecs.Context(d)), codecs.Context(d))) - n
    assert false / (trials * (d - n)) < 1.5 * 2.0**-hashes


@pytest.mark.parametrize("hashes", [2, 8, 9, 12, 16])
@pytest.mark.parametrize("n", [3, 16, 24, 32, 48, 64])
def test_many_hashes_of_few_keys_have_the_asked_rate_too(hashes, n):
    """With all hashes from one a and b, 16 of them had twelve times that rate at 48 keys."""
    rng, trials = np.random.default_rng(n), 200 if hashes > 12 else 30
    payload = codecs.get("bloom", fpr=2.0**-hashes).encode(np.arange(n), codecs.Context(n))
    m = int.from_bytes(payload[32:36], "little")
    others = rng.integers(2**31, 2**32, 1 << 17, dtype=np.uint32)
    bits, false = list(bloom._bits(others, hashes, m)), 0
    for _ in range(trials):
        table, held = np.zeros(m, bool), np.arange(len(others))
        table[np.concatenate(list(bloom._bits(rng.integers(2**31, size=n), hashes, m)))] = True
        for bit in bits:
            held = held[table[bit[held]]]
        false += len(held)
    assert false / (trials * len(others)) < 1.45 * 2.0**-hashes


@pytest.mark.parametrize("hashes", [3, 9])
def test_jax_equals_numpy(monkeypatch, hashes):
    d = membership.SMALL + 3000
    table = np.packbits(np.random.default_rng(0).random(5600) < 0.9)
    in_jax = bloom._query_all(table, 5600, hashes, d)
    monkeypatch.setattr(membership, "SMALL", d)
    np.testing.assert_array_equal(bloom._query_all(table, 5600, hashes, d), in_jax)
    assert 0.05 < len(in_jax) / d < 0.8


def test_policies():
    d, n = 400_000, 5000
    positions = np.sort(np.random.default_rng(0).choice(d, n, replace=False)).astype(np.uint32)
    context = codecs.Context(d, round=3, client=1)
    taken = {
        policy: (codec := codecs.get("bloom", policy=policy)).decode(
            codec.encode(positions, context), context
        )
        for policy in ("P0", "P1", "P2")
    }
    for policy in ("P1", "P2"):  # as many as were sent, out of the positives
        assert len(taken[policy]) == n and (np.diff(taken[policy].astype(int)) > 0).all()
        assert np.isin(taken[policy], taken["P0"]).all()
    right = {policy: np.isin(positions, taken[policy]).mean() for policy in taken}
    share = n / len(taken["P0"])  # of true flips among the positives, about 0.76
    assert right["P0"] == 1
    assert right["P1"] == pytest.approx(share, abs=0.02)
    assert right["P2"] > 0.95
    other = codecs.Context(d, round=4, client=1)
    codec = codecs.get("bloom", policy="P1")
    assert not np.array_equal(codec.decode(codec.encode(positions, other), other), taken["P1"])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_payloads_of_a_policy(data):
    context = codecs.Context(700)
    codec = codecs.get("bloom", policy="P2")
    payload = bytearray(codec.encode(np.arange(0, 700, 9), context))
    start = data.draw(st.integers(0, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decoded = codec.decode(sealed(bytes(payload)) if len(payload) >= 32 else payload, context)
    except codecs.PayloadError:
        return
    assert decoded.dtype == np.uint32 and (np.diff(decoded.astype(int)) > 0).all()


@pytest.mark.parametrize("n", [1, 76, 78])
def test_the_number_of_keys_sets_the_size(n):
    """Otherwise a sender could make the receiver's table of conflicts as large as its payload may be."""
    payload = bytearray(codecs.get("bloom", policy="P2").encode(np.arange(0, 693, 9), codecs.Context(700)))
    payload[12:16] = n.to_bytes(4, "little")
    with pytest.raises(codecs.PayloadError, match="bits"):
        codecs.get("bloom", policy="P2").decode(sealed(bytes(payload)), codecs.Context(700))


def test_a_policy_is_part_of_the_payload():
    payload = codecs.get("bloom", policy="P1").encode(np.arange(5), codecs.Context(100))
    with pytest.raises(codecs.PayloadError, match="Bloom settings"):
        codecs.get("bloom").decode(payload, codecs.Context(100))
    with pytest.raises(ValueError, match="policy"):
        codecs.get("bloom", policy="P3")


@pytest.mark.parametrize("policy", ["P0", "P2"])
def test_a_filter_has_no_more_bits_set_than_its_keys_set_and_no_fewer_positives_than_keys(policy):
    """A full table makes every position a positive, and P2 compares them all."""
    codec, context = codecs.get("bloom", policy=policy), codecs.Context(5000)
    payload = bytearray(codec.encode(np.arange(0, 5000, 100, dtype=np.uint32), context))
    for octet, what in ((0xFF, "more bits set"), (0, "positives")):
        payload[36:-1] = bytes([octet]) * (len(payload) - 37)
        payload[-1] = 0
        with pytest.raises(codecs.PayloadError, match=what):
            codec.decode(sealed(bytes(payload)), context)
