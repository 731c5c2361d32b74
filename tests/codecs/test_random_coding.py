"""Minimal random coding: the chosen candidates, their law, the size, and refusal of everything else."""

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import masks
from deltamask_jax.codecs import Context, PayloadError, envelope, random_coding
from deltamask_jax.public_random import CANDIDATES, candidate_words, stream_key, uniforms
from tests.codecs.cases import cost, sealed

KEY = stream_key(5, 3, 1, CANDIDATES)
GOLDEN = Path(__file__).parent / "golden" / "random_coding.bin"
MASK_CHECKSUM = 0xE52A906  # of what it decodes to


def drifted(d: int, spread: float, seed: int = 0):
    """θ_k u16[d] and the context with θ_g, logits apart by `spread` times a normal variable."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d)
    theta_g, theta_k = (
        np.clip(np.rint(65536 / (1 + np.exp(-s))), 655, 64880).astype(np.uint16)
        for s in (logits, logits + spread * rng.normal(size=d))
    )
    return theta_k, Context(d, theta_g, None, 3, 1)


def encode(theta_k, context, bits=8, block_kl=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return random_coding.encode(theta_k, KEY, context, bits=bits, block_kl=block_kl, rng=rng)


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
    mask = random_coding.decode(encode(theta_k, context, bits, block_kl), KEY, context, bits=bits)
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
        kept_step(
            theta_k, context, random_coding.decode(encode(theta_k, context, bits), KEY, context, bits=bits)
        )
        for bits in (2, 5, 8)
    ]
    assert kept[0] + 0.1 < kept[1] and kept[1] + 0.1 < kept[2] and 0.85 < kept[2] < 1.03


def test_choices_follow_the_ratio_of_probabilities():
    """One block, four candidates, 400 senders."""
    d, bits = 6, 2
    context = Context(d, np.full(d, 30_000, np.uint16), None, 3, 1)
    theta_k = np.array([45_000, 20_000, 30_000, 40_000, 25_000, 33_000], np.uint16)
    p, q = (theta_k + 0.5) / 65537, (context.theta + 0.5) / 65537
    candidates = np.stack(
        [uniforms((KEY[0], word), d) < context.theta for word in candidate_words(KEY, 1 << bits)]
    )
    assert len(np.unique(candidates, axis=0)) == 4
    weights = np.where(candidates, p / q, (1 - p) / (1 - q)).prod(1)
    masks_ = [
        random_coding.decode(encode(theta_k, context, bits, seed=i), KEY, context, bits=bits)
        for i in range(400)
    ]
    shares = [np.mean([np.array_equal(mask, c) for mask in masks_]) for c in candidates]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=4 * (0.25 / 400) ** 0.5)


def test_a_client_that_learned_nothing_sends_next_to_nothing():
    _, context = drifted(300_000, 0.4)
    payload = encode(context.theta, context)
    assert len(payload) < 60
    mask = random_coding.decode(payload, KEY, context, bits=8)
    assert mask.mean() == pytest.approx(context.theta.mean() / 65536, abs=4e-3)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_valid_checksum(data):
    theta_k, context = drifted(3000, 0.7)
    payload = bytearray(encode(theta_k, context, 4))
    start = data.draw(st.integers(0, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        mask = random_coding.decode(
            sealed(bytes(payload)) if len(payload) >= 32 else bytes(payload), KEY, context, bits=4
        )
    except PayloadError:
        return
    assert mask.dtype == bool and mask.shape == (3000,)


@pytest.mark.parametrize("bits", [8, 16])
def test_decoding_stays_within_the_stated_memory(bits):
    """The most blocks that a payload can announce: one a position."""
    d = 256 * 1200
    context = Context(d, np.full(d, 60_000, np.uint16), None, 3, 1)
    body = bytes([0, bits]) + zlib.compress(b"\xff" * 1200, 9, -15) + bytes(d * bits // 8)
    payload = envelope.pack(envelope.CODEC_IDS["random_coding"], 0, d, d, 3, 1, body)
    tracemalloc.start()
    try:
        mask = random_coding.decode(payload, KEY, context, bits=bits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    word = candidate_words(KEY, 1)[0]  # number 0 everywhere
    np.testing.assert_array_equal(mask, uniforms((KEY[0], word), d) < context.theta)
    assert peak < 48 * d + 4e6


def test_damage_and_other_settings_are_refused():
    theta_k, context = drifted(3000, 0.7)
    payload = encode(theta_k, context, 4)
    for cut in range(len(payload)):
        with pytest.raises(PayloadError):
            random_coding.decode(payload[:cut], KEY, context, bits=4)
    with pytest.raises(PayloadError, match="bits a block"):
        random_coding.decode(payload, KEY, context, bits=5)
    with pytest.raises(PayloadError, match="round"):
        random_coding.decode(payload, KEY, Context(3000, context.theta, None, 4, 1), bits=4)


def integers():
    """θ_k and a context from integer arithmetic alone, so that no generator's future matters."""
    i = np.arange(4000, dtype=np.uint64)
    theta_g = (i * 2654435761 % 65536).astype(np.uint16)
    return (theta_g // 2 + i % 5 * 6000).astype(np.uint16), Context(4000, theta_g, None, 258, 772)


def test_an_old_payload_is_still_read():
    """Kept as a file, which `python -m tests.codecs.test_random_coding` rewrites; its mask is integers."""
    mask = random_coding.decode(GOLDEN.read_bytes(), KEY, integers()[1], bits=4)
    assert zlib.crc32(np.packbits(mask)) == MASK_CHECKSUM


def test_long_segments_take_no_memory_beyond_d():
    """A segment may be of a million positions, of which d exist."""
    theta_k, context = drifted(3000, 0.7)
    own = encode(theta_k, context, 4)
    body = bytes([12, 4]) + zlib.compress(b"\0", 9, -15) + b"\x10"
    payload = envelope.pack(envelope.CODEC_IDS["random_coding"], 0, 3000, 1, 3, 1, body)

    def decode(data):
        return random_coding.decode(data, KEY, context, bits=4)

    word = candidate_words(KEY, 2)[1]
    np.testing.assert_array_equal(decode(payload), uniforms((KEY[0], word), 3000) < context.theta)
    assert len(decode(own)) == 3000
    assert cost(decode, payload)[1] < 2 * cost(decode, own)[1]


if __name__ == "__main__":
    GOLDEN.write_bytes(encode(*integers(), bits=4))
    mask = random_coding.decode(GOLDEN.read_bytes(), KEY, integers()[1], bits=4)
    print(f"MASK_CHECKSUM = {zlib.crc32(np.packbits(mask)):#x}")
