"""Numbers of the ledger: bits per parameter, entropy, how evenly accuracy is spread."""

import math
from collections.abc import Iterable

import numpy as np


def bits_per_parameter(num_bytes: int, clients: int, d: int) -> float | None:
    """Measured payload bits per client and masked weight: 8 · bytes / (clients · d); None of nobody."""
    return 8 * num_bytes / (clients * d) if clients else None


def three_digits(value: float) -> str:
    """A number of bytes or seconds for people: three significant digits, or all before the point.

    Example:
        >>> [three_digits(x) for x in (12345.6, 12.345, 1.5, 0.004567, 0)]
        ['12,346', '12.3', '1.5', '0.00457', '0']
    """
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return np.format_float_positional(value, 3, fractional=False, trim="-")


def binary_entropy(p: float) -> float:
    """H(p) in bits, the least an exact code of independent flips at rate p could average."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def fairness(
    correct: np.ndarray, shares: list[np.ndarray], labels: np.ndarray, held: np.ndarray
) -> dict[str, float]:
    """How evenly accuracy is spread over clients, each on its own share of the test examples.

    Args:
        correct: bool[m], which test examples the network gets right.
        shares: each client's indices into them; clients without any are left out.
        labels: of the test examples, i[m].
        held: training examples of each class at each client, i[clients, classes].

    Returns:
        `client_accuracy_mean`, `_worst` (mean of the worst tenth of clients, at least one), `_variance`,
        `_jain` (Jain's index (Σa)² / (k Σa²) of k clients: 1 where all are equal, 1/k where one has
        everything), `_smallest` (mean of the tenth that trains on the fewest examples), `_minority` (share of
        test examples right whose class is less than an equal part of what their client trains on; NaN where
        there is none), and how many `clients_tested`.
    """
    tested = np.array([k for k, share in enumerate(shares) if len(share)])
    accuracy, tenth = np.array([correct[shares[k]].mean() for k in tested]), -(-len(tested) // 10)
    squares = float(np.sum(accuracy**2))
    sizes, classes = held.sum(axis=1), np.maximum((held > 0).sum(axis=1), 1)
    rare = held < (sizes / classes)[:, None]
    minority = np.concatenate([correct[share][rare[k, labels[share]]] for k, share in enumerate(shares)])
    return {
        "client_accuracy_mean": float(np.mean(accuracy)),
        "client_accuracy_worst": float(np.mean(np.sort(accuracy)[:tenth])),
        "client_accuracy_variance": float(np.var(accuracy)),
        "client_accuracy_jain": float(np.sum(accuracy)) ** 2 / (len(accuracy) * squares) if squares else 1.0,
        "client_accuracy_smallest": float(
            np.mean(accuracy[np.argsort(sizes[tested], kind="stable")[:tenth]])
        ),
        "client_accuracy_minority": float(np.mean(minority)) if len(minority) else math.nan,
        "clients_tested": len(accuracy),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None where there are none."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None
