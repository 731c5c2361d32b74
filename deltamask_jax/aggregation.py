"""How the server merges what clients sent: Beta–Bernoulli posterior of masks, weighted means of weights.

All of it is NumPy: clients that follow the news compute the same on their own machines, and must come to the
same bits.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BetaPosterior:
    """Beta posterior of every mask probability (FedPM, ICLR 2023; DeltaMask §3, step 7).

    Attributes:
        alpha: f32[d], λ₀ plus the votes for 1.
        beta: f32[d], λ₀ plus the votes for 0.
    """

    alpha: np.ndarray
    beta: np.ndarray


def prior(d: int, lambda0: float) -> BetaPosterior:
    """The state at the start and after each reset: α = β = λ₀ votes, f32[d] each."""
    return BetaPosterior(np.full(d, lambda0, np.float32), np.full(d, lambda0, np.float32))


def vote(posterior: BetaPosterior, ones: np.ndarray, voters: int) -> BetaPosterior:
    """Adds a round's votes: α += Σ m̂, β += K − Σ m̂ (DeltaMask §3, step 7).

    Args:
        posterior: before the round, f32[d] each.
        ones: Σ m̂ over the round's clients, i32[d].
        voters: K, the number of clients whose masks arrived.

    Returns:
        The posterior after the round, f32[d] each.
    """
    ones = np.asarray(ones, np.float32)
    return BetaPosterior(posterior.alpha + ones, posterior.beta + (np.float32(voters) - ones))


def mode(posterior: BetaPosterior, fallback: np.ndarray) -> np.ndarray:
    """The posterior's mode θ = (α − 1)/(α + β − 2), a probability: f32[d].

    Args:
        posterior: f32[d] each.
        fallback: θ f32[d] where there is no vote yet (0/0 at λ₀ = 1).
    """
    alpha, beta = np.asarray(posterior.alpha), np.asarray(posterior.beta)
    votes = alpha + beta - 2
    return np.divide(alpha - 1, votes, out=np.array(fallback, np.float32), where=votes > 0)


def resets_at(round_number: int, participation: float) -> bool:
    """Whether the posterior returns to its prior before this round's votes: every 1/ρ rounds.

    Args:
        round_number: rounds that were played before, from 0.
        participation: ρ, in 0 … 1.

    Example:
        >>> [resets_at(played, 0.5) for played in range(4)]
        [True, False, True, False]
    """
    return round_number % max(1, round(1 / participation)) == 0


def weighted_mean(trees: list, weights: Sequence[float]):
    """Mean of pytrees of arrays, weighted (FedAvg, arXiv 1602.05629: weights are example counts).

    Args:
        trees: pytrees of one structure, with leaves of one shape.
        weights: one per tree, not negative.

    Example:
        >>> weighted_mean([np.float32([0, 4]), np.float32([4, 0])], [1, 3]).tolist()
        [3.0, 1.0]

    Raises:
        ValueError: no tree, or the weights do not sum to a positive number.
    """
    total = float(sum(weights))
    if not trees or not total > 0:
        raise ValueError("weighted_mean needs at least one tree and a positive total weight")
    shares = [w / total for w in weights]
    return jax.tree.map(
        lambda *leaves: sum(s * np.asarray(x) for s, x in zip(shares, leaves, strict=True)), *trees
    )
