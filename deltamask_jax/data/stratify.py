"""Seeded subsets that keep the label proportions."""

from collections.abc import Sequence

import numpy as np

from deltamask_jax.data.dataset import DataError, Dataset, Split, classes, labelled
from deltamask_jax.progress import say

TEST_FRACTION = 0.2  # where the source has no test split of its own


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of 0 … n−1 as i64[n], the same in every NumPy version."""
    # NumPy promises stable raw bits, not stable shuffles.
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` sorted positions whose label counts are in proportion to those of `labels: i32[n]`.

    Counts are rounded by largest remainder: every class is within one example of its exact share.

    Raises:
        DataError: `size` is not in 0 … n.
    """
    n = len(labels)
    if not 0 <= size <= n:
        raise DataError(f"cannot take {size} of {n} examples")
    order = shuffled(n, seed)
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    quota, remainder = np.divmod(counts * size, max(n, 1))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # position within its class
    return np.sort(by_class[rank < np.repeat(quota, counts)])


def train_test(labels: np.ndarray, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of a stratified training and test part, together every example once.

    The only example of a class trains.

    Args:
        labels: i[n], 0 … C−1.
        test_fraction: of the examples of every class, 0 … 1.
        seed: of the draw.

    Returns:
        Positions i[train] and i[test].
    """
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    test = several[stratified(labels[several], round(test_fraction * len(several)), seed)]
    return np.setdiff1d(np.arange(len(labels)), test), test


def hold_out(
    name: str, train: Split, class_names: Sequence[str] | None = None, *, where: str, whole: bool = False
) -> Dataset:
    """A data set whose test split is a fifth of what trains, always the same one; see `dataset.labelled`.

    Args:
        whole: nothing is held out, the test split is empty.

    Raises:
        DataError: as of `labelled`; or no class has examples enough for a fifth.
    """
    labels, _, class_names = classes(train.labels, train.labels, class_names, where=where)
    if whole:
        every = Split(train.images, labels, train.users)
        return Dataset(name, every, every.take(np.arange(0)), class_names)
    kept, held = train_test(labels, TEST_FRACTION, seed=0)
    if not len(held):
        raise DataError(f"{where} has too few examples to hold a fifth out as the test: add some")
    return labelled(name, train.take(kept), train.take(held), class_names, where=where)


def subset(
    dataset: Dataset,
    train_examples: int = 0,
    test_examples: int = 0,
    seed: int = 0,
    validation_examples: int = 0,
) -> Dataset:
    """A stratified, seeded part of a data set; 0 keeps the whole split.

    Args:
        validation_examples: with these, training examples are held out first and stand in the place of the
            test split, so that no test example is looked at; `test_examples` then says nothing. 0: none.

    Raises:
        DataError: more examples are asked for than there are.
    """
    train, test = dataset.train, dataset.test
    if validation_examples:
        if not validation_examples < len(train):
            raise DataError(
                f"validation_examples={validation_examples} are held out of the training examples, of which "
                f"{dataset.name} has {len(train)}: ask for fewer"
            )
        held = stratified(train.labels, validation_examples, seed)
        train, test = train.take(np.setdiff1d(np.arange(len(train)), held)), train.take(held)
        test_examples = 0
    parts = []
    for name, split, size in (("train", train, train_examples), ("test", test, test_examples)):
        if size == 0:
            parts.append(split)
            continue
        if not 0 < size <= len(split):
            raise DataError(f"{name}_examples={size}, but {dataset.name} has {len(split)}; 0 takes them all")
        parts.append(split.take(stratified(split.labels, size, seed)))
    trained, tested = (np.unique(part.labels) for part in parts)
    if untrained := len(np.setdiff1d(tested, trained)):
        among = f"are not among the {len(parts[0])} training examples"
        say(f"{dataset.name}: {untrained} classes of the test {among}")
    return Dataset(dataset.name, *parts, dataset.class_names)
