"""Bounds on what well-formed but lying clients can do to a round of flips.

Three bounds, in this order. Each compares a client with its cohort, so that nothing has to be known of the
run, and each holds as long as most clients are honest:

  1  a payload that flips far more weights than the cohort's median is rejected           check_flips
  2  a flip counts only where honest training could have flipped: a bit flips where θ moves past its uniform,
     and a round moves logits by little, so honest flips lie near |logit u − logit θ_g| = 0   farthest
  3  what remains is averaged by a robust estimator (below)                               total_change

The second is what stops colluders who know θ_g and u: of the flips that hurt most they may make only those
few that training might have made as well, and those are others in every round.

Every client's change of a mask bit is −1, 0 or +1, so counts of ups and downs are all that an estimator
needs:

    mean      what an honest cohort deserves: Σ changes / K
    clip      every payload scaled down to the cohort's median number of flips, which is the squared norm of
              its change; the norm clipping of arXiv 1911.07963, as we understand it
    trimmed   the largest and smallest trim·K changes of each weight cut off (Yin et al., arXiv 1803.01498)
    median    of each weight's changes (same source)

`trimmed` and `median` are made for dense updates. Flips are sparse: most weights are flipped by few clients
or none, and these two cut such a change off as an outlier, honest or not. They are here to be compared with.
"""

import numpy as np

from deltamask_jax.codecs import PayloadError

TOO_MANY = "too many flips"
AUTO = 5  # times the cohort's median number of flips that a payload may have
LEAST = 0.01  # of the weights, which a payload may always flip


def check_flips(sizes: list[int | PayloadError], d: int, limit: float) -> list[int | PayloadError]:
    """The same sizes, with an error in the place of every payload that flips too many weights.

    Args:
        sizes: flips of each payload, or why it was rejected already.
        limit: the largest fraction of d weights; 0: `most_flips` of the cohort.
    """
    valid = [size for size in sizes if not isinstance(size, PayloadError)]
    most = limit * d or most_flips(valid, d)

    def checked(size):
        if isinstance(size, PayloadError) or size <= most:
            return size
        return PayloadError(
            f"payload flips {size} of {d} weights, more than the {most:.0f} that "
            f"robust.max_flip_rate={limit} allows",
            reason=TOO_MANY,
        )

    return [checked(size) for size in sizes]


def most_flips(sizes: list[int], d: int) -> float:
    """Flips a payload may have where the cohort decides: AUTO times its median, at least LEAST of d."""
    return max(AUTO * float(np.median(sizes)) if len(sizes) else 0.0, LEAST * d)


def farthest(distances: list[np.ndarray], votes: list[np.ndarray], limit: float) -> float:
    """The distance of u from θ_g beyond which a flip does not count.

    Args:
        distances: of the received flips, i32[n] per client, in the units of `codecs.distance`.
        votes: how many clients made each, i32[n] likewise.
        limit: times the cohort's lower quartile. Distances of honest flips end at 5 to 8 times theirs; the
            lower quartile hardly moves when a fifth of all flips, or a filter's false ones, lie anywhere.
            0: no bound.
    """
    if not limit or not sum(map(len, distances)):
        return np.inf
    total = np.cumsum(np.bincount(np.concatenate(distances), np.concatenate(votes)))
    return limit * max(1, int(np.searchsorted(total, total[-1] / 4)))


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
