"""Membership inference: what attackers make of losses and cosines that are known."""

import numpy as np
import pytest

from benchmarks import membership


def test_a_member_s_lower_loss_tells_once_each_example_s_usual_loss_is_taken_off():
    rng = np.random.default_rng(0)
    usual, found = rng.exponential(10, 400), []  # examples differ far more than membership moves them
    for _ in range(4):
        member = rng.random(400) < 0.5
        found.append({"member": member, "loss": usual - 0.1 * member, "cosine": rng.normal(size=400)})
    results = membership.scores(found)
    aucs, rates = zip(*results["model"], strict=True)
    assert min(aucs) > 0.9 and max(rates) <= 1
    aucs, rates = zip(*results["server"], strict=True)  # which knows nothing here
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.05) and np.mean(rates) < 0.05


def test_thirds_leave_even_numbers_and_share_nothing():
    parts = np.split(np.random.default_rng(1).permutation(40), [7, 20])
    public, pools = membership.thirds(parts, np.random.default_rng(0))
    assert [len(pool) for pool in pools] == [4, 8, 14]
    for part, *its in zip(parts, public, pools, strict=True):
        assert set(np.concatenate(its)) <= set(part) and not np.intersect1d(*its).size


def test_the_interval_is_student_s():
    mean, wide = membership.interval([0.4, 0.6])
    assert (mean, wide) == (pytest.approx(0.5), pytest.approx(12.706 * 0.1, rel=1e-3))
