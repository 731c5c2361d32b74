"""Numbers of the ledger: bits per parameter, entropy, how evenly accuracy is spread."""

import math
from collections.abc import Iterable

import numpy as np


def bits_per_parameter(num_bytes: int, clients: int, d: int) -> float:
    """Measured payload bits a client a masked weight: 8 · bytes / (clients · d); 0 of nobody."""
    return 8 * num_bytes / (max(clients, 1) * d)


def binary_entropy(p: float) -> float:
    """H(p) in bits, the least an exact code of independent flips at rate p could average."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def fairness(correct: np.ndarray, shares: list[np.ndarray]) -> dict[str, float]:
    """How evenly accuracy is spread over clients, each on its own share of the test examples.

    Args:
        correct: bool[m], which test examples the network gets right.
        shares: each client's indices into them; clients without any are left out.

    Returns:
        `client_accuracy_mean`, `_worst` (mean of the worst tenth of clients, at least one), `_variance`,
        `_jain` (Jain's index (Σa)² / (k Σa²) of k clients: 1 where all are equal, 1/k where one has
        everything), and how many `clients_tested`.
    """
    accuracy = np.sort([correct[share].mean() for share in shares if len(share)])
    squares = float(np.sum(accuracy**2))
    return {
        "client_accuracy_mean": float(np.mean(accuracy)),
        "client_accuracy_worst": float(np.mean(accuracy[: -(-len(accuracy) // 10)])),
        "client_accuracy_variance": float(np.var(accuracy)),
        "client_accuracy_jain": float(np.sum(accuracy)) ** 2 / (len(accuracy) * squares) if squares else 1.0,
        "clients_tested": len(accuracy),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None where there are none."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
