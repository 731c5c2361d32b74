"""Minimal random coding: the chosen candidates, their law, the size, and refusal of everything else."""

import tracemalloc
import zlib

import numpy as np
import pytest

from deltamask_jax import codecs, masks
from deltamask_jax.codecs import Context, PayloadError, envelope, random_coding
from deltamask_jax.public_random import CANDIDATES, candidate_words, stream_key, uniforms
from tests.codecs.cases import Given, cost, empty_blocks

KEY = stream_key(5, 3, 1, CANDIDATES)


def drifted(d: int, spread: float, seed: int = 0):
    """θ_k u16[d] and the context with θ_g, logits apart by `spread` times a normal variable."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d)
    theta_g, theta_k = (
        np.clip(np.rint(65536 / (1 + np.exp(-s))), 655, 64880).astype(np.uint16)
        for s in (logits, logits + spread * rng.normal(size=d))
    )
    return theta_k, context_of(theta_g)


def context_of(theta_g, round=3):
    return Context(len(theta_g), theta_g, round=round, client=1, seed=5)


def encode(theta_k, context, bits=8, block_kl=2.0):
    return codecs.get("random_coding", bits=bits, block_kl=block_kl).encode(theta_k, context)


def decode(payload, context, bits=8):
    return codecs.get("random_coding", bits=bits).decode(payload, context)


def nats(theta_k, context) -> float:
    """KL(θ_k ‖ θ_g)."""
    return float(np.asarray(masks.bernoulli_kl(theta_k, context.theta)).sum(dtype=np.float64))


def kept_step(theta_k, context, mask) -> float:
    """Least-squares slope of m̂ − θ_g on θ_k − θ_g: 1 without bias, 0 for a draw from the prior."""
    step = (theta_k.astype(float) - context.theta) / 65536
    return float((step * (mask - context.theta / 65536)).sum() / (step**2).sum())


def test_the_receiver_has_the_candidates_that_the_sender_chose():
    """Written out once more in NumPy, block by block."""
    d, bits, block_kl = 6000, 4, 1.0
    theta_k, context = drifted(d, 0.7)
    mask = decode(encode(theta_k, context, bits, block_kl), context, bits)
    p, q = (theta_k + 0.5) / 65537, (context.theta + 0.5) / 65537
    candidates = np.stack(
        [uniforms((KEY[0], word), d) < context.theta for word in candidate_words(KEY, 1 << bits)]
    )
    ratio = np.where(candidates, np.log(p / q), np.log((1 - p) / (1 - q)))
    kl = np.asarray(masks.bernoulli_kl(theta_k, context.theta))
    rows_log2, counts = random_coding._plan(kl, block_kl)
    assert len(counts) > 3 and counts.min() < counts.max()
    size = 256 << rows_log2
    block_of = np.arange(d) // size * 256 + np.arange(d) % 256 % counts[np.arange(d) // size]
    chosen_ratio = []
    for block in np.unique(block_of):
        mine = block_of == block
        matches = [c for c in range(1 << bits) if np.array_equal(candidates[c, mine], mask[mine])]
        assert matches  # it is one of the candidates, whole
        chosen_ratio.append(ratio[matches[0], mine].sum())
    # Candidates of blocks, averaged: prior draws have E log q/p = −KL(θ_g ‖ θ_k), chosen ones are far above.
    assert np.mean(chosen_ratio) > np.mean(ratio.sum(1)) / len(counts) + 1


def test_bytes_are_within_the_target_rate():
    theta_k, context = drifted(300_000, 0.4)
    payload = encode(theta_k, context)
    target = nats(theta_k, context) / 2.0  # bytes: 8 bits for every 2 nats
    assert target < len(payload) < 1.15 * target + 32
    assert len(payload) < 1.3 * target
    # Where nine weights in ten do not move the layout has more to say.
    moved = np.where(np.arange(context.d) // 30_000 == 4, drifted(300_000, 1.2)[0], context.theta)
    target = nats(moved, context) / 2.0
    assert target < len(encode(moved, context)) < 1.3 * target


def test_what_arrives_comes_closer_to_theta_k_with_more_candidates():
    theta_k, context = drifted(300_000, 0.4)
    kept = [
        kept_step(theta_k, context, decode(encode(theta_k, context, bits), context, bits))
        for bits in (2, 5, 8)
    ]
    assert kept[0] + 0.1 < kept[1] and kept[1] + 0.1 < kept[2] and 0.85 < kept[2] < 1.03


def test_choices_follow_the_ratio_of_probabilities():
    """One block, four candidates, 400 senders that choose for themselves."""
    d, bits, theta_g = 6, 2, np.full(6, 30_000, np.uint16)
    senders = [Given(d, theta_g, round=3, client=1, seed=seed, key=KEY) for seed in range(400)]
    theta_k = np.array([45_000, 20_000, 30_000, 40_000, 25_000, 33_000], np.uint16)
    p, q = (theta_k + 0.5) / 65537, (theta_g + 0.5) / 65537
    candidates = np.stack([uniforms((KEY[0], word), d) < theta_g for word in candidate_words(KEY, 1 << bits)])
    assert len(np.unique(candidates, axis=0)) == 4
    weights = np.where(candidates, p / q, (1 - p) / (1 - q)).prod(1)
    masks_ = [decode(encode(theta_k, context, bits), context, bits) for context in senders]
    shares = [np.mean([np.array_equal(mask, c) for mask in masks_]) for c in candidates]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=4 * (0.25 / 400) ** 0.5)


def test_a_client_that_learned_nothing_sends_next_to_nothing():
    _, context = drifted(300_000, 0.4)
    payload = encode(context.theta, context)
    assert len(payload) < 60
    mask = decode(payload, context)
    assert mask.mean() == pytest.approx(context.theta.mean() / 65536, abs=4e-3)


@pytest.mark.parametrize("bits", [8, 16])
def test_decoding_stays_within_the_stated_memory(bits):
    """The most blocks that a payload can announce: one a position."""
    d = 256 * 1200
    context = context_of(np.full(d, 60_000, np.uint16))
    body = bytes([0, bits]) + zlib.compress(b"\xff" * 1200, 9, -15) + bytes(d * bits // 8)
    payload = envelope.pack(envelope.CODEC_IDS["random_coding"], 0, d, d, 3, 1, body)
    tracemalloc.start()
    try:
        mask = decode(payload, context, bits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    word = candidate_words(KEY, 1)[0]  # number 0 everywhere
    np.testing.assert_array_equal(mask, uniforms((KEY[0], word), d) < context.theta)
    assert peak < 48 * d + 4e6


def test_another_number_of_bits_is_refused():
    theta_k, context = drifted(3000, 0.7)
    with pytest.raises(PayloadError, match="bits per block"):
        decode(encode(theta_k, context, 4), context, bits=5)


@pytest.mark.parametrize("d", [1, 3, 255, 257, 300, 515])
def test_a_segment_has_no_more_blocks_than_positions(d):
    """However far θ_k is: the envelope allows no more of them than d."""
    context = context_of(np.full(d, 65_535, np.uint16))
    payload = encode(np.zeros(d, np.uint16), context, bits=2, block_kl=0.1)
    assert int.from_bytes(payload[12:16], "little") == d
    assert decode(payload, context, bits=2).shape == (d,)


def test_long_segments_take_no_memory_beyond_d():
    """A segment may be of a million positions, of which d exist."""
    theta_k, context = drifted(3000, 0.7)
    own = encode(theta_k, context, 4)
    body = bytes([12, 4]) + zlib.compress(b"\0", 9, -15) + b"\x10"
    payload = envelope.pack(envelope.CODEC_IDS["random_coding"], 0, 3000, 1, 3, 1, body)

    word = candidate_words(KEY, 2)[1]
    np.testing.assert_array_equal(decode(payload, context, 4), uniforms((KEY[0], word), 3000) < context.theta)
    assert len(decode(own, context, 4)) == 3000
    assert cost(decode, payload, context, 4)[1] < 2 * cost(decode, own, context, 4)[1]


def test_counts_behind_empty_blocks_are_refused_before_they_are_read():
    theta_k, context = drifted(5000, 0.5)
    payload = encode(theta_k, context)
    received, head = envelope.unpack(payload), random_coding._HEAD.size
    body = bytes(received.body)
    body = body[:head] + empty_blocks(10) + body[head:]
    hostile = envelope.pack(received.codec_id, 0, context.d, received.n, context.round, context.client, body)
    with pytest.raises(PayloadError, match="deflated bytes for"):
        decode(hostile, context)
