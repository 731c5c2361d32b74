"""Vote sums on the way down: exact in all three modes, near what the streams leave open, and hard to fool."""

import dataclasses
import functools
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltamask_jax.codecs import Context, PayloadError, envelope, rans, tally, tally_classes, tally_model
from deltamask_jax.codecs.codec import SERVER
from deltamask_jax.public_random import uniforms
from tests.codecs.cases import cost, keys_of, sealed, voted

GOLDEN = Path(__file__).parent / "golden"
MODES = ("none", "shared", "each")
CODEC = tally.tally()


def arbitrary(mode: str, d: int, voters: int, share: float, seed: int) -> tuple[np.ndarray, Context]:
    """Votes that no round gives, of any size a sum may have."""
    rng = np.random.default_rng(seed)
    theta = rng.choice(np.array([0, 1, 60000, 65535, *rng.integers(0, 65536, 20)], np.uint16), d)
    keys = keys_of(mode, max(min(voters, 9), 2))
    context = Context(d, theta, tuple(keys), 3, SERVER, voters=voters)
    votes = np.where(rng.random(d) < share, rng.integers(1, voters + 1, d), 0)
    if mode == "each":
        votes *= rng.choice([-1, 1], d)
    if mode == "shared":
        votes *= np.where(uniforms(keys[0], d) < theta, -1, 1)
    return votes.astype(np.int32), context


def entropy(votes: np.ndarray) -> float:
    """Bits per position of the votes alone."""
    _, counts = np.unique(votes, return_counts=True)
    share = counts / len(votes)
    return float(-(share * np.log2(share)).sum())


@settings(deadline=None, max_examples=60)
@given(
    mode=st.sampled_from(MODES),
    d=st.integers(1, 3000),
    voters=st.sampled_from([1, 2, 3, 25, 26, 27, 300, 65535]),
    share=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    seed=st.integers(0, 10**6),
)
@example("each", 1, 1, 1.0, 0)
@example("none", 3000, 65535, 1.0, 0)
def test_any_votes_come_back(mode, d, voters, share, seed):
    votes, context = arbitrary(mode, d, voters, share, seed)
    payload = CODEC.encode(votes, context)
    decoded = CODEC.decode(payload, context)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, votes)
    assert envelope.unpack(payload).n == np.count_nonzero(votes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("d", [0, 1, 70_000])
def test_no_votes_cost_a_header(mode, d):
    _, context = voted(mode, d, 3, 0.1)
    payload = CODEC.encode(np.zeros(d, np.int64), context)
    assert len(payload) == envelope.SIZE
    assert not CODEC.decode(payload, context).any()


@pytest.mark.parametrize("mode, spread, share", [("each", 0.1, 0.7), ("shared", 0.1, 0.5), ("none", 0, 0.75)])
def test_what_both_ends_know_saves_bits(mode, spread, share):
    votes, context = voted(mode, 100_000, 10, spread)
    payload = CODEC.encode(votes, context)
    assert 8 * len(payload) / context.d < share * entropy(votes)
    np.testing.assert_array_equal(CODEC.decode(payload, context), votes)


def test_votes_without_structure_cost_little_more_than_their_entropy():
    rng = np.random.default_rng(0)
    votes, context = arbitrary("each", 60_000, 3, 0.3, 0)
    votes = np.where(rng.random(60_000) < 0.3, rng.choice([-1, 1], 60_000), 0)
    assert 8 * len(CODEC.encode(votes, context)) < 1.02 * 60_000 * entropy(votes) + 4000


@pytest.mark.parametrize("mode", MODES)
def test_long_passes_go_in_parts(mode, monkeypatch):
    """So what is remembered of a pass is bounded."""
    votes, context = voted(mode, 6_000, 4, 0.3)
    whole = CODEC.encode(votes, context)
    monkeypatch.setattr(tally, "_PART", 700)
    for m in (1, 699, 700, 701, 6_000, 300_000):
        parts = [np.arange(m)[part] for parts, _ in tally._passes(m) for part in parts]
        assert max(map(len, parts)) <= 700
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(m))
    payload = CODEC.encode(votes, context)
    np.testing.assert_array_equal(CODEC.decode(payload, context), votes)
    assert len(payload) < 1.02 * len(whole) + 20


@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_threads_at_either_end(mode, monkeypatch):
    votes, context = voted(mode, 3 * tally_classes._CHUNK + 77, 4, 0.2)
    payloads, real = [], tally_classes.threads.pool
    for count in (1, 3):
        pool = functools.partial(real, count)
        monkeypatch.setattr(tally_classes, "threads", types.SimpleNamespace(pool=pool))
        payloads.append(CODEC.encode(votes, context))
        np.testing.assert_array_equal(CODEC.decode(payloads[0], context), votes)
    assert payloads[0] == payloads[1]


def test_votes_that_the_context_rules_out_are_a_callers_error():
    votes, context = voted("shared", 500, 3, 0.5)
    assert votes.any()
    for wrong in (-votes, votes * 4, votes[:-1], votes.astype(np.float32)):
        with pytest.raises(ValueError, match="votes"):
            CODEC.encode(wrong, context)
    votes, context = voted("none", 500, 3, 0)
    with pytest.raises(ValueError, match="votes"):
        CODEC.encode(votes - 1, context)
    for change in ({"voters": 0}, {"voters": 65536}, {"theta": None}, {"theta": context.theta[:-1]}):
        with pytest.raises(ValueError, match="needs"):
            CODEC.encode(votes, dataclasses.replace(context, **change))


@settings(deadline=None, max_examples=150)
@given(mode=st.sampled_from(MODES), data=st.data())
def test_tampered_bytes_give_votes_or_a_payload_error(mode, data):
    votes, context = voted(mode, 600, 5, 0.5)
    payload = bytearray(CODEC.encode(votes, context))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(4, len(payload) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(envelope.SIZE, len(payload))) :]
    try:
        decoded = CODEC.decode(sealed(bytes(payload)), context)
    except PayloadError:
        return
    assert np.abs(decoded).max() <= 5


@pytest.mark.parametrize("mode", MODES)
def test_every_header_byte_is_checked(mode):
    votes, context = voted(mode, 3000, 5, 0.3)
    payload = CODEC.encode(votes, context)
    for at in (6, 7, *range(12, 16), *range(envelope.SIZE, envelope.SIZE + 12)):
        for value in {0, 1, 2, 60, 127, 255} - {payload[at]}:
            forged = sealed(payload[:at] + bytes([value]) + payload[at + 1 :])
            try:
                decoded = CODEC.decode(forged, context)
            except PayloadError:
                continue
            assert np.count_nonzero(decoded) == np.count_nonzero(votes)


def test_a_payload_for_other_streams_is_refused():
    votes, context = voted("each", 3000, 5, 0.3)
    payload = CODEC.encode(votes, context)
    for streams in ((), context.streams[:1], context.streams[::-1][:3]):
        with pytest.raises(PayloadError):
            CODEC.decode(payload, dataclasses.replace(context, streams=streams))


def test_more_votes_than_voters_are_refused():
    votes, context = arbitrary("each", 2000, 5, 0.5, 0)
    payload = CODEC.encode(votes, context)
    with pytest.raises(PayloadError):
        CODEC.decode(payload, dataclasses.replace(context, voters=4))


@pytest.mark.parametrize("mode, d", [("each", 40_000), ("none", 500), ("shared", 500)])
def test_the_dearest_payload_takes_bounded_time_and_memory(mode, d):
    votes, context = arbitrary(mode, d, 65_535, 1.0, 0)
    payload = CODEC.encode(votes, context)
    CODEC.decode(payload, context)
    steps, peak = cost(CODEC.decode, payload, context)
    most_bits = 2 + tally_model.LEVELS + 2 * 16  # decisions per position
    assert steps < 20 * (d * most_bits >> tally._lanes_log2(d)) + 20_000
    assert peak < 48 * d + (16 << 20)


def test_lanes_follow_from_what_both_ends_know():
    lanes = [tally._lanes_log2(m) for m in (0, 1, 8000, 60_000, 1 << 20, 1 << 25, 1 << 31)]
    assert lanes == [0, 0, 2, 5, 8, 13, 13]
    for m in range(0, 5000, 7):
        covered = np.concatenate([np.arange(m)[part] for passes, _ in tally._passes(m) for part in passes])
        np.testing.assert_array_equal(np.sort(covered), np.arange(m))


def test_runs_are_read_one_by_one():
    rng = np.random.default_rng(0)
    runs = [(rng.random(m) < 0.3, rng.integers(1, rans.ONE, m).astype(np.uint16)) for m in (5, 0, 700, 1, 64)]
    coder = rans.Decoder(*rans.encode_runs(runs, np.arange(8, dtype=np.uint16)))
    for bits, p in runs:
        np.testing.assert_array_equal(coder.read(p), bits)
    np.testing.assert_array_equal(coder.finish(), np.arange(8))


def golden_case(mode: str) -> tuple[np.ndarray, Context]:
    """Inputs from integer arithmetic alone, so that no generator's future matters."""
    i = np.arange(4000, dtype=np.uint64)
    theta = (i * 2654435761 % 65536).astype(np.uint16)
    context = Context(4000, theta, keys_of(mode, 4), 258, SERVER, voters=40)
    votes = (i * 40503 % 65521 // 6553 * (i % 3 == 0) + 30 * (i % 401 == 7)).astype(np.int32)
    if mode == "shared":
        votes *= np.where(uniforms(context.streams[0], 4000) < theta, -1, 1)
    if mode == "each":
        votes *= np.where(i % 2 == 0, -1, 1)
    return votes, context


@pytest.mark.parametrize("mode", MODES)
def test_old_payloads_are_still_read_and_new_ones_are_the_same(mode):
    votes, context = golden_case(mode)
    kept = (GOLDEN / f"tally-{mode}.bin").read_bytes()
    np.testing.assert_array_equal(CODEC.decode(kept, context), votes)
    assert CODEC.encode(votes, context) == kept


if __name__ == "__main__":
    for mode in MODES:
        (GOLDEN / f"tally-{mode}.bin").write_bytes(CODEC.encode(*golden_case(mode)))
