"""Seeded subsets keep the labels' proportions."""

import numpy as np

from deltamask_jax.data import stratify


def test_stratified_is_proportional_and_seeded():
    labels = np.repeat([0, 1, 3], [600, 300, 100])
    chosen = stratify.stratified(labels, 50, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [30, 15, 0, 5]
    assert len(np.unique(chosen)) == 50 and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratify.stratified(labels, 50, seed=0))
    assert not np.array_equal(chosen, stratify.stratified(labels, 50, seed=1))
    assert len(stratify.stratified(labels, 1000, seed=0)) == 1000
    assert len(stratify.stratified(labels, 0, seed=0)) == 0
    assert len(stratify.stratified(labels[:0], 0, seed=0)) == 0
