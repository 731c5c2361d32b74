"""Seeded subsets keep the labels' proportions."""

import numpy as np

from deltamask_jax.data import Dataset, Split, stratify


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


def test_classes_that_lose_all_their_training_examples_are_counted(capsys):
    labels = np.repeat([0, 1, 2], [50, 50, 1]).astype(np.int32)
    split = Split(np.zeros((101, 2), np.uint8), labels)
    dataset = Dataset("odd", split, split, ("a", "b", "c"))
    stratify.subset(dataset)
    assert "class" not in capsys.readouterr().out
    stratify.subset(dataset, train_examples=40)
    assert "odd: 1 classes of the test are not among the 40 training examples" in capsys.readouterr().out
