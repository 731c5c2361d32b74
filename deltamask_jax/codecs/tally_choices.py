"""What the encoder of `tally` chooses and sends: cut, bucket width, groups of distances.

Estimates in floating point, from samples: they decide how small a payload is, never what it says.
"""

import numpy as np

from deltamask_jax.codecs import distance
from deltamask_jax.codecs.codec import Context
from deltamask_jax.codecs.tally_classes import EDGES, Kind
from deltamask_jax.public_random import uniforms_at

SHIFTS = 12  # bucket widths 1 … 2**11 of a shared stream
_FINE = np.rint(16 * 1.25 ** np.arange(31)).astype(np.int64)  # edges the encoder chooses from


def choose_cut(votes: np.ndarray, codes: np.ndarray, kind: Kind) -> int:
    """The rank from which on positions are near, with the least estimated size; 0 where all are.

    Args:
        votes: as they are coded, i32[d]: without streams, less what is expected.
        codes: the positions' classes, u16[d].
    """
    if not kind.ranks.any():
        return 0
    step = max(1, len(codes) >> 20) | 1
    size = np.bincount(codes[::step], minlength=len(kind.ranks)) * step
    some = np.bincount(codes[::step][votes[::step] != 0], minlength=len(kind.ranks)) * step
    p = (some + 0.1) / (size + 0.2)
    # What one symbol fewer is worth, in bits: time matters.
    near_bits = -some * np.log2(p) - (size - some) * np.log2(1 - p) + 0.01 * size

    def by_rank(amounts):
        return np.bincount(kind.ranks, amounts, minlength=int(kind.ranks.max()) + 1)

    near_bits, far = (np.cumsum(by_rank(amounts)) for amounts in (near_bits, some))
    near_bits, far = near_bits[-1] - near_bits, np.maximum(far, 0)
    far_bits = far * (np.log2(len(codes) / np.maximum(far, 1)) + 1.5)
    bits = near_bits + far_bits  # of cut = 1, 2, …
    cut = int(np.argmin(bits[:-1])) + 1
    everything = near_bits[0] + by_rank(-some * np.log2(p) - (size - some) * np.log2(1 - p))[0]
    everything += by_rank(0.01 * size)[0]
    return cut if bits[cut - 1] < everything else 0


def choose_shift(votes: np.ndarray, context: Context) -> int:
    """Bucket width of a shared stream, as a shift, with the least estimated size.

    Args:
        votes: i32[d], not all 0.
    """
    at = np.arange(0, context.d, max(1, context.d >> 17) | 1, dtype=np.uint32)
    some = np.flatnonzero(votes)
    some = some[:: max(1, len(some) >> 16) | 1].astype(np.uint32)
    everywhere, there = distance.at(context, at), distance.at(context, some)
    weight = np.count_nonzero(votes) / len(some)
    best = (np.inf, 0)
    for shift in range(SHIFTS):
        size = np.bincount(np.minimum(everywhere >> shift, 63), minlength=64) * (context.d / len(at))
        flips = np.bincount(np.minimum(there >> shift, 63), minlength=64) * weight
        p = np.clip((flips + 0.4) / np.maximum(size + 0.8, flips + 0.8), 1e-6, 1 - 1e-6)
        bits = -flips * np.log2(p) - np.maximum(size - flips, 0) * np.log2(1 - p)
        # The last bucket and what is beyond may travel as gaps.
        bits[-1] = min(bits[-1], flips[-1] * (np.log2(context.d / max(flips[-1], 1)) + 1.5))
        best = min(best, (bits.sum() + 20 * np.count_nonzero(flips), shift))
    return best[1]


def choose_groups(votes: np.ndarray, context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and weights of the groups of distances, from a sample of positions.

    Only sums of votes are known. Which voters gave them is estimated by expectation maximisation: given the
    chance p of a flip in each fine bucket of distances, up and down votes of a position are about Poisson,
    which gives their expected numbers given their difference, and each voter's share of them.
    """
    rows = min(max((1 << 20) // len(context.streams), 256), 1 << 15)
    at = np.arange(0, context.d, max(1, context.d // rows) | 1, dtype=np.uint32)
    theta, sums = context.check()[at], votes[at].astype(np.float64)
    bucket_of = np.searchsorted(_FINE, np.arange(1 << 16), "right")
    buckets = len(_FINE) + 1
    voters = np.zeros((2, len(at), buckets), np.float32)  # up, down: how many in each bucket
    row = np.arange(len(at))
    for key in context.streams:
        u = uniforms_at(key, at)
        voters[(u < theta).astype(int), row, bucket_of[distance.between(u, theta)]] += 1
    size = voters.sum((0, 1), np.float64)
    total, middle = max(np.abs(sums).sum(), 1), np.append(_FINE, 2 * _FINE[-1]) * 0.9
    scales = _FINE[:, None].astype(np.float64)
    guesses = 0.4 / (1 + (middle / scales) ** 2)
    p = guesses[np.argmin(np.abs(guesses @ size - total))]
    first = np.abs(sums)
    for _ in range(12):
        up, down = np.maximum(voters @ p.astype(np.float32), 1e-6).astype(np.float64)
        term, ratio = np.ones(len(at)), up * down
        cancelled, norm = np.zeros(len(at)), np.ones(len(at))
        for t in range(1, 6):
            term = term * ratio / (t * (first + t))
            cancelled, norm = cancelled + t * term, norm + term
        cancelled /= norm
        share = [
            (np.maximum(sign * sums, 0) + cancelled) / expected for sign, expected in ((1, up), (-1, down))
        ]
        flips = p * sum(share[way].astype(np.float32) @ voters[way] for way in range(2))
        p = np.clip((flips + 1e-3) / (size + 1e-2), 1e-9, 0.999)
    groups = _merge(size, np.minimum(p * size, size))
    edges = tuple(int(_FINE[end - 1]) for end in groups[1:-1])
    chances = [
        (p * size)[start:end].sum() / max(size[start:end].sum(), 1e-9)
        for start, end in zip(groups, groups[1:], strict=False)
    ]
    weights = np.rint(255 * np.array(chances) / max(chances)).astype(int)
    return edges, tuple(int(w) for w in weights)


def _merge(size: np.ndarray, flips: np.ndarray) -> list[int]:
    """Cuts buckets into EDGES + 1 groups of neighbours that tell most about flips: [0, …, buckets]."""
    sizes, flipped = (np.concatenate([[0], np.cumsum(x)]) for x in (size, flips))
    buckets = len(size)

    def bits(start, end):
        n, f = sizes[end] - sizes[start], flipped[end] - flipped[start]
        p = min(max(f / max(n, 1e-9), 1e-12), 1 - 1e-12)
        return -f * np.log2(p) - max(n - f, 0) * np.log2(1 - p)

    cost = {(i, j): bits(i, j) for i in range(buckets) for j in range(i + 1, buckets + 1)}
    best = {end: (cost[0, end], [0, end]) for end in range(1, buckets + 1)}
    for _ in range(EDGES):
        reached, best = best, {}
        for end in range(min(reached) + 1, buckets + 1):
            best[end] = min(
                (reached[cut][0] + cost[cut, end], [*reached[cut][1], end]) for cut in reached if cut < end
            )
    return best[buckets][1]
