"""Bounds on what well-formed but lying clients can do to a round of flips.

Every client's change of a mask bit is −1, 0 or +1, so counts of ups and downs are all that a coordinate-wise
estimator needs:

    mean      what an honest cohort deserves: Σ changes / K
    trimmed   the largest and smallest trim·K changes of each weight cut off (Yin et al., arXiv 1803.01498)
    median    of each weight's changes (same source)
    clip      every payload scaled down to the cohort's median number of flips, which is the squared norm of
              its change; the norm clipping of arXiv 1911.07963, as we understand it

`trimmed` and `median` see a change that only few honest clients make as an outlier too: with sparse flips
that differ between clients they keep little of the signal. Beside them, a payload that flips more than
`robust.max_flip_rate` of the weights is rejected whatever the estimator.
"""

import numpy as np

from deltamask_jax.codecs import PayloadError

TOO_MANY = "too many flips"
AUTO = 5  # times the cohort's median number of flips


def check_flips(
    sizes: list[int | PayloadError], d: int, limit: float | str
) -> list[int | PayloadError]:
    """The same sizes, with an error for every payload that flips too many weights.

    Args:
        sizes: flips of each payload, or why it was rejected already.
        limit: the largest fraction of d weights; 'auto': AUTO times the cohort's median, at least 1 %.
    """
    valid = [size for size in sizes if not isinstance(size, PayloadError)]
    most = limit * d if limit else most_flips(valid or [0], d)

    def checked(size):
        if isinstance(size, PayloadError) or size <= most:
            return size
        return PayloadError(
            f"payload flips {size} of {d} weights, more than the {most:.0f} that "
            f"robust.max_flip_rate={limit} allows",
            reason=TOO_MANY,
        )

    return [checked(size) for size in sizes]


def most_flips(sizes, d: int) -> float:
    return max(AUTO * np.median(sizes), 0.01 * d)


def farthest(apart, weights, factor) -> float:
    """Distance of u from θ beyond which a flip is no honest client's."""
    if not factor or not apart:
        return np.inf
    weights = [np.broadcast_to(w, a.shape) for a, w in zip(apart, weights, strict=True)]
    counts = np.bincount(np.concatenate(apart), np.concatenate(weights))
    total = np.cumsum(counts)
    return factor * max(1, int(np.searchsorted(total, total[-1] / 4)))


def client_weights(aggregator: str, flips: list[int]) -> np.ndarray:
    """What each client's change is multiplied by, f64[k] in 0 … 1, from its number of flips."""
    if aggregator != "clip":
        return np.ones(len(flips))
    return np.minimum(1, np.median(flips) / np.maximum(flips, 1))


def total_change(aggregator: str, trim: float, ups: np.ndarray, downs: np.ndarray, voters: int) -> np.ndarray:
    """Voters times the robust mean of their changes, [d].

    Args:
        trim: fraction of the voters that 'trimmed' cuts off at each end.
        ups: how many voters change 0 → 1 (weighted), [d].
        downs: how many change 1 → 0, [d].
    """
    if aggregator in ("mean", "clip"):
        return ups - downs
    most = (voters - 1) // 2
    cut = most if aggregator == "median" else min(int(trim * voters), most)
    kept = voters - 2 * cut
    # Sorted, the changes are −1 … −1, 0 … 0, +1 … +1; `kept` of them remain in the middle.
    middle = np.clip(ups - cut, 0, kept) - np.clip(downs - cut, 0, kept)
    return (middle * np.float32(voters / kept)).astype(np.float32)
