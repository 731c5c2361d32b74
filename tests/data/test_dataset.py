"""The one rule that the labels of every source keep."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltamask_jax import data
from deltamask_jax.data.dataset import DataError, Split, classes, labelled

LABELS = st.lists(st.integers(-2, 5) | st.sampled_from([255, 20_000_003, 2**40]), max_size=12)
TYPES = st.sampled_from([np.int64, np.uint64, np.int32, np.uint8, np.float32])


@example([0, 1, 2, 1], [1], np.uint64, None)
@example([0, 1, 3], [1], np.int64, 5)
@example([-1, 0, 1], [0], np.int64, None)
@example([-1, 0, 1], [0], np.int64, 3)
@example([0, 1, 255], [0], np.int64, None)
@example([0, 1], [0, 2], np.int64, 3)
@example([1, 1], [1], np.int64, 2)
@given(LABELS, LABELS, TYPES, st.none() | st.integers(0, 7))
def test_labels_are_accepted_by_the_rule_and_by_nothing_else(train, test, kind, named):
    train, test = (np.array(labels, np.int64).astype(kind) for labels in (train, test))
    names = None if named is None else [f"class {k}" for k in range(named)]
    trained, tested = set(train.tolist()), set(test.tolist())
    allowed = set(range(len(trained) if named is None else named))
    whole = trained == allowed if named is None else trained <= allowed
    right = kind != np.float32 and whole and trained and tested and tested <= trained
    try:
        got, got_test, got_names = classes(train, test, names, where="here")
    except DataError as error:
        assert not right and "here" in str(error) and "\n" not in str(error) and len(str(error)) < 300
        return
    assert right
    assert got.tolist() == train.tolist() and got_test.tolist() == test.tolist()
    assert got.dtype == got_test.dtype == np.int32
    assert len(got_names) == (len(trained) if named is None else named)


def test_labels_beyond_63_bits_are_refused():
    with pytest.raises(DataError, match=r"below 2\*\*63"):
        classes(np.array([0, 2**63], np.uint64), np.array([0]), where="here")


def test_many_labels_are_not_all_named():
    with pytest.raises(DataError, match=r"got 5, 6, 7, 8, 9, 10, … \(1000 in all\)"):
        classes(np.arange(5, 1005), np.array([5]), where="here")


def test_images_without_pixels_are_refused():
    empty = Split(np.zeros((2, 0, 3), np.uint8), np.array([0, 1]))
    whole = Split(np.zeros((2, 1, 3), np.uint8), np.array([0, 1]))
    with pytest.raises(DataError, match="test images have no pixels"):
        labelled("name", whole, empty, where="here")


def test_lazy_images_are_taken_from_what_was_taken():
    lazy = data.LazyImages(lambda positions: [np.full((2, 2), p) for p in positions], range(9), "")
    part = lazy.take(np.array([8, 3, 5])).take(np.array([2, 0]))
    assert len(part) == 2
    assert part[:][:, 0, 0].tolist() == part[np.array([0, 1])][:, 0, 0].tolist() == [5, 8]
    assert part[1].shape == (2, 2) and part[1][0, 0] == 8
