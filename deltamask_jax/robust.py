"""Bounds on what well-formed but lying clients can do to a round of flips.

Two bounds. Each compares a client with its cohort, so that nothing has to be known of the run, and each holds
as long as most clients are honest:

  1  a payload that flips far more weights than the cohort's median is rejected           check_flips
  2  the others are averaged by a robust estimator                                 clip_weights, total_change

Every client's change of a mask bit is −1, 0 or +1, so counts of ups and downs are all that an estimator
needs:

    clip      the mean, after each client's flips are scaled down to the cohort's median number of flips, at
              every distance |logit u − logit θ_g| for itself
    mean      Σ changes / K
    trimmed   the largest and smallest trim·K changes of each weight cut off (Yin et al., arXiv 1803.01498)
    median    of each weight's changes (same source)

A bit flips where θ moves past its uniform, and a round moves logits by little: honest flips lie near distance
0, and behind it only a filter's false ones. Colluders who know θ_g and u want the flips that hurt most, which
lie anywhere. Norm clipping (arXiv 1911.07963; a change's squared norm is its number of flips) lets them have
as many of those as an honest client has flips; clipped at every distance, they have as many as honest
training makes there, and those are other positions in every round. The price is paid where clients differ:
with few classes per client an honest client's flips exceed the median too, and `clip` learns less from them.

`trimmed` and `median` are made for dense updates. Flips are sparse: most weights are flipped by few clients
or none, and these two cut such a change off as an outlier, honest or not. They are here to be compared with.
"""

from collections.abc import Iterable

import numpy as np

from deltamask_jax.codecs import PayloadError

TOO_MANY = "too many flips"
AUTO = 5  # times the cohort's median number of flips that a payload may have
LEAST = 0.01  # of the weights, which a payload may always flip
BAND = 256  # units of `codecs.distance`, a quarter of a bit: a round's honest flips spread over several such
BANDS = 64  # the last is open; log2-odds of 16 bits differ by less than 36


def check_flips(sizes: list[int | PayloadError], d: int, limit: float) -> list[int | PayloadError]:
    """The same sizes, with an error in the place of every payload that flips too many weights.

    Args:
        sizes: flips of each payload, or why it was rejected already.
        d: number of weights.
        limit: the largest fraction of d weights; 0: `most_flips` of the cohort.
    """
    valid = [size for size in sizes if not isinstance(size, PayloadError)]
    most = limit * d or most_flips(valid, d)

    def checked(size):
        if isinstance(size, PayloadError) or size <= most:
            return size
        bound = (
            f"robust.max_flip_rate={limit}" if limit else f"{AUTO} times the cohort's median, or {LEAST:.0%},"
        )
        return PayloadError(
            f"payload flips {size} of {d} weights, more than the {most:.0f} that {bound} allows",
            reason=TOO_MANY,
        )

    return [checked(size) for size in sizes]


def most_flips(sizes: list[int], d: int) -> float:
    """Flips a payload may have where the cohort decides: AUTO times its median, at least LEAST of d."""
    return max(AUTO * float(np.median(sizes)) if len(sizes) else 0.0, LEAST * d)


def clip_weights(distances: list[np.ndarray]) -> list[np.ndarray]:
    """What each flip of each client counts under 'clip', f32[n] in 0 … 1 per client.

    Args:
        distances: of a client's flips, i32[n] per client, in the units of `codecs.distance`.
    """
    bands = [np.minimum(its // BAND, BANDS - 1) for its in distances]
    counts = np.stack([np.bincount(its, minlength=BANDS) for its in bands])
    typical = np.median(counts, axis=0)
    most = typical + 2 * np.sqrt(typical + 1)  # chance alone puts an honest client as far above its cohort
    weights = np.minimum(1, most / np.maximum(counts, 1)).astype(np.float32)
    return [weight[its] for weight, its in zip(weights, bands, strict=True)]


def total_change(
    aggregator: str, trim: float, received: Iterable[tuple[np.ndarray, np.ndarray]], d: int, voters: int
) -> np.ndarray:
    """Voters times the robust mean of their changes: i32[d] of 'mean', else f32[d].

    Args:
        aggregator: 'mean', 'clip', 'trimmed' or 'median'.
        trim: fraction of the voters that 'trimmed' cuts off at each end.
        received: (positions u32[n], their changes [n]) of each client, or of all together; no position twice
            in one. A change counts the voters that flip 0 → 1, or, negative, 1 → 0; weighted under 'clip'.
        d: number of weights.
    """
    if aggregator == "mean":
        total = np.zeros(d, np.int32)
        for flips, changes in received:
            total[flips] += changes
        return total
    ups, downs = np.zeros((2, d), np.float32 if aggregator == "clip" else np.int32)
    for flips, changes in received:
        ups[flips] += np.maximum(changes, 0)
        downs[flips] -= np.minimum(changes, 0)
    if aggregator == "clip":
        return ups - downs
    most = (voters - 1) // 2
    cut = most if aggregator == "median" else min(int(trim * voters), most)
    kept = voters - 2 * cut
    # Sorted, the changes are −1 … −1, 0 … 0, +1 … +1; `kept` of them remain in the middle.
    middle = np.clip(ups - cut, 0, kept) - np.clip(downs - cut, 0, kept)
    return (middle * np.float32(voters / kept)).astype(np.float32)
