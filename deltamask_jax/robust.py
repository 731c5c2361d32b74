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


def check_flips(flips: int, d: int, limit: float) -> None:
    """Refuse a payload that flips more than a fraction `limit` of d weights.

    Raises:
        PayloadError: it does.
    """
    if flips > limit * d:
        raise PayloadError(
            f"payload flips {flips} of {d} weights, more than robust.max_flip_rate={limit} allows",
            reason="too many flips",
        )


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
