"""The ledger's formulas: bits per parameter, entropy, means, fairness."""

import numpy as np
import pytest

from deltamask_jax import metrics


def test_bits_per_parameter_and_entropy():
    assert metrics.bits_per_parameter(0, 0, 35_389_440) is None
    assert metrics.bits_per_parameter(398_000 * 30, 30, 35_389_440) == pytest.approx(0.08997, abs=1e-5)
    assert metrics.binary_entropy(0.5) == 1 and metrics.binary_entropy(0.0) == 0
    assert metrics.binary_entropy(0.01) == pytest.approx(0.0808, abs=1e-4)


def test_fairness_of_known_accuracies():
    """Twelve clients: ten always right, one never, one half; and one that has no test example."""
    correct = np.ones(50, bool)
    correct[40:44], correct[44:46] = False, False
    shares = [*np.arange(40).reshape(10, 4), np.arange(40, 44), np.arange(44, 48), np.arange(0)]
    held = np.full((13, 2), 4)  # the client that is never right has the fewest examples
    held[10] = 3, 1
    got = metrics.fairness(correct, shares, np.ones(50, int), held)
    accuracies = np.array([1.0] * 10 + [0.0, 0.5])
    assert got["clients_tested"] == 12
    assert got["client_accuracy_mean"] == pytest.approx(accuracies.mean())
    assert got["client_accuracy_worst"] == pytest.approx(
        0.25
    )  # of two clients: a tenth of twelve, rounded up
    assert got["client_accuracy_variance"] == pytest.approx(accuracies.var())
    assert got["client_accuracy_jain"] == pytest.approx(10.5**2 / (12 * 10.25))
    # The smallest two of twelve: that one, and the first of the others; its rare class is the only one.
    assert (got["client_accuracy_smallest"], got["client_accuracy_minority"]) == (0.5, 0.0)
    pair = [np.arange(2), np.arange(2, 4)]
    nobody = metrics.fairness(np.zeros(4, bool), pair, np.zeros(4, int), np.ones((2, 1), int))
    assert np.isnan(nobody["client_accuracy_minority"])  # equal parts
    assert (nobody["client_accuracy_jain"], nobody["client_accuracy_worst"]) == (1, 0)


def test_bits_per_parameter_of_one_client():
    assert metrics.bits_per_parameter(100, 1, 400) == 2


def test_a_minority_class_is_rare_among_the_classes_that_its_client_holds():
    """Of 5 and 3 examples an equal part is 4; a class it holds nothing of is rare as well."""
    got = metrics.fairness(np.array([True, False, True]), [np.arange(3)], np.arange(3), np.array([[5, 3, 0]]))
    assert got["client_accuracy_minority"] == 0.5
