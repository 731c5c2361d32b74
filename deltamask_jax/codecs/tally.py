"""Sums of a cohort's votes, for the way down: exact, from what the receiver can compute itself.

A vote sum is Σ_k (m̂_k − m_g,k) of a position: how many voters flipped the bit there, up votes less down
votes. Where the masks were drawn from public streams, both ends know every voter's uniform, hence how easily
each could flip the bit (see `distance`) and in which direction. That gives each position a class:

    streams           what is coded
    one, shared       how many flipped it
    one per voter     the signed sum
    none              votes − round(voters · θ)

Which classes there are stands in `tally_classes`. The encoder chooses cut, bucket width and groups of
distances (`tally_choices`) and sends them. A value is a few binary decisions (zero? sign? more than 1? more
than 2? …), coded by rANS at probabilities that both ends learn from what has been coded before
(`tally_model`): positions go in passes, every 4**t-th one first, then those between. Votes in classes that
hardly ever have any travel as Rice-coded gaps.
"""

import struct
from collections.abc import Iterator

import numpy as np

from deltamask_jax.codecs import envelope, rans, rice
from deltamask_jax.codecs.codec import Codec, Context, PayloadError
from deltamask_jax.codecs.tally_choices import SHIFTS, choose_cut, choose_groups, choose_shift
from deltamask_jax.codecs.tally_classes import (
    EACH,
    EDGES,
    KINDS,
    NONE,
    SHARED,
    centre,
    far_positions,
    near_positions,
    shared_codes,
    theta_codes,
    voter_codes,
)
from deltamask_jax.codecs.tally_model import Model

_ID = envelope.CODEC_IDS["tally"]
_HEAD = struct.Struct("<BBBxII")
MOST_VOTERS = (1 << 16) - 1
_MOST_LANES_LOG2 = 13
_FIRST = 256  # positions of the first pass, at most
_PART = 1 << 22  # positions that answer together, at most: what is remembered of them is 64-bit integers
_GROUPS = struct.Struct(f"<{EDGES}H{EDGES + 1}B")


def tally() -> Codec:
    """Creates the codec: encode(votes i[d], context) -> bytes, decode(payload, context) -> votes i32[d].

    The context must hold theta u16[d], voters ≥ 1, and streams: none, one, or one per voter. Without streams
    votes are 0 … voters, otherwise −voters … voters; with one, −1 and below only where its uniform is below
    theta, 1 and above only elsewhere. `encode` raises ValueError on anything else.
    """
    return Codec("tally", _encode, _decode, kind="votes")


def _encode(votes: np.ndarray, context: Context) -> bytes:
    mode = _check(context)
    votes = np.asarray(votes)
    if votes.shape != (context.d,) or not np.issubdtype(votes.dtype, np.integer):
        raise ValueError(
            f"votes: expected integers of shape [{context.d}], got {votes.dtype} {list(votes.shape)}"
        )
    least = 0 if mode == NONE else -context.voters
    if votes.size and (votes.min() < least or votes.max() > context.voters):
        raise ValueError(f"votes must be in {least} … {context.voters}")
    n = int(np.count_nonzero(votes))
    body = b""
    if n:
        votes = votes.astype(np.int32, copy=False)
        known, kind = b"", KINDS[mode]
        if mode == NONE:
            shift, codes = 0, theta_codes(context)
            votes = votes - centre(context)
        elif mode == SHARED:
            shift = choose_shift(votes, context)
            codes = shared_codes(context, shift)
            if ((votes < 0) & (codes & 1 == 0) | (votes > 0) & (codes & 1 == 1)).any():
                raise ValueError("votes: a sum has the sign that its shared stream rules out")
        else:
            shift, (edges, weights) = 0, choose_groups(votes, context)
            known = _GROUPS.pack(*edges, *weights)
            codes = voter_codes(context, edges, weights)
        cut = choose_cut(votes, codes, kind)
        near = near_positions(codes, cut, kind)
        far = np.zeros(0, np.uint32)
        if near is not None:
            far = far_positions(votes, codes, cut, kind)
        k = rice.remainder_bits(len(far), context.d)
        gaps = rice.pack_gaps(far, k)
        m = context.d if near is None else len(near)
        runs: list[tuple[np.ndarray, np.ndarray]] = []

        def write(p: np.ndarray, bits: np.ndarray) -> np.ndarray:
            runs.append((bits, p))
            return bits

        model = Model(kind, context.voters, write)
        for passes, last in _passes(m):
            for part in passes:
                at = part if near is None else near[part]
                model.code(codes[at], votes[at], learn=not last)
            model.relearn()
        model.code(codes[far], votes[far], learn=False, nonzero=True)
        states, words = rans.encode_runs(runs, np.zeros(1 << _lanes_log2(m), np.uint16))
        body = b"".join(
            (
                _HEAD.pack(cut, shift, k, len(far), len(gaps)),
                known,
                gaps,
                states.astype("<u4").tobytes(),
                words.astype("<u2").tobytes(),
            )
        )
    return envelope.pack(_ID, mode, context.d, n, context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    mode = _check(context)
    d, kind = context.d, KINDS[mode]
    received = envelope.unpack(payload, codec_id=_ID, d=d, round=context.round, client=context.client)
    body = received.body
    if received.flags != mode:
        raise PayloadError(f"tally payload has flags {received.flags:#x}, its streams need {mode}")
    if received.n == 0:
        if len(body):
            raise PayloadError("payload without votes must have no body")
        return np.zeros(d, np.int32)
    start = _HEAD.size + (_GROUPS.size if mode == EACH else 0)
    if len(body) < start:
        raise PayloadError("tally payload is too short for its header")
    cut, shift, k, far_count, gap_bytes = _HEAD.unpack_from(body)
    if body[3] or cut > kind.ranks.max() or shift >= SHIFTS or (mode != SHARED and shift):
        raise PayloadError("tally payload has impossible header fields")
    if far_count > received.n or (far_count and not cut) or k != rice.remainder_bits(far_count, d):
        raise PayloadError("tally payload has far votes or remainder bits that no sender writes")
    if start + gap_bytes > len(body):
        raise PayloadError("tally payload is too short for what its header announces")
    far = rice.unpack_gaps(body[start : start + gap_bytes], far_count, k, d)

    if mode == NONE:
        codes = theta_codes(context)
    elif mode == SHARED:
        codes = shared_codes(context, shift)
    else:
        numbers = _GROUPS.unpack_from(body, _HEAD.size)
        edges, weights = numbers[:EDGES], numbers[EDGES:]
        if not all(before < after for before, after in zip((0, *edges), edges, strict=False)):
            raise PayloadError("tally payload has groups whose edges do not rise")
        codes = voter_codes(context, edges, weights)
    near = near_positions(codes, cut, kind)
    m = d if near is None else len(near)
    if (kind.ranks[codes[far]] >= cut).any():
        raise PayloadError("tally payload codes a near position as a far one")
    words_at = start + gap_bytes + (4 << _lanes_log2(m))
    if words_at > len(body) or (len(body) - words_at) % 2:
        raise PayloadError("tally payload is too short for its lanes, or ends within a word")
    coded = rans.Decoder(
        np.frombuffer(body[start + gap_bytes : words_at], "<u4"), np.frombuffer(body[words_at:], "<u2")
    )
    model = Model(kind, context.voters, lambda p, _: coded.read(p))
    votes = np.zeros(d, np.int32)
    for passes, last in _passes(m):
        for part in passes:
            at = part if near is None else near[part]
            nonzero, values = model.code(codes[at], None, learn=not last)
            if isinstance(at, slice):
                votes[at][nonzero] = values
            else:
                votes[at[nonzero]] = values
        model.relearn()
    _, votes[far] = model.code(codes[far], None, learn=False, nonzero=True)
    if coded.finish().any():
        raise PayloadError("tally payload carries what no sender writes")
    if mode == NONE:
        votes += centre(context)
    if np.count_nonzero(votes) != received.n:
        raise PayloadError("tally payload holds another number of votes than it says")
    if votes.max() > context.voters or votes.min() < (0 if mode == NONE else -context.voters):
        raise PayloadError(f"tally payload holds a sum of more than {context.voters} votes")
    return votes


def _check(context: Context) -> int:
    """Which streams the context has: NONE, SHARED or EACH.

    Raises:
        ValueError: it lacks theta u16[d] or voters, or has more streams than this codec adds up.
    """
    context.check(streams=False)
    if not 1 <= context.voters <= MOST_VOTERS or len(context.streams) > MOST_VOTERS:
        raise ValueError(
            f"this codec needs 1 … {MOST_VOTERS} context.voters and at most as many streams, "
            f"got {context.voters} and {len(context.streams)}"
        )
    return min(len(context.streams), 2)


# ---- order of what is coded ----


def _lanes_log2(m: int) -> int:
    """log2 of the lanes for m positions coded one by one: a lane costs 4 bytes, a step of all lanes time."""
    digits = m.bit_length()
    return min(max(min(digits - 11, 5), digits - 13, 0), _MOST_LANES_LOG2)


def _passes(m: int) -> Iterator[tuple[list[slice], bool]]:
    """Slices that cover 0 … m−1: first at most _FIRST, then each time three times as many as before; each
    slice of at most _PART positions."""
    depth = 0
    while m >> 2 * depth > _FIRST:
        depth += 1
    yield [slice(0, m, 1 << 2 * depth)], depth == 0
    for t in range(depth - 1, -1, -1):
        step = 4 << 2 * t
        yield (
            [
                slice(start, min(start + _PART * step, m), step)
                for q in (1, 2, 3)
                for start in range(q * step // 4, m, _PART * step)
            ],
            t == 0,
        )
