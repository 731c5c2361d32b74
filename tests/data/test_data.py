"""`data.load` and the digits: names, sizes, splits."""

import subprocess
import sys

import numpy as np
import pytest

from deltamask_jax import data
from deltamask_jax.data import stratify


def test_digits():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    assert digits.train.images.shape == (1437, 8, 8) and digits.train.images.dtype == np.uint8
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255
    assert digits.train.labels.dtype == np.int32 and digits.train.users is None


def test_the_digits_split_never_changes():
    digits = data.load("digits")
    assert digits.test.labels[:10].tolist() == [2, 3, 1, 3, 5, 0, 1, 5, 0, 8]
    assert int(digits.test.images.sum()) == 1792876


def test_the_digits_split_has_no_image_twice_and_keeps_proportions():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    both = np.concatenate([digits.train.images, digits.test.images])
    everything = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in both) == sorted(i.tobytes() for i in everything)
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)
    assert np.abs(test - (train + test) * 360 / 1797).max() <= 1


def test_fashion():
    fashion = data.load("fashion")
    assert (len(fashion.train), len(fashion.test)) == (2000, 1000)
    assert fashion.train.images.shape == (2000, 28, 28) and fashion.train.images.dtype == np.uint8
    assert np.bincount(fashion.train.labels).tolist() == [200] * 10
    assert np.bincount(fashion.test.labels).tolist() == [100] * 10
    assert fashion.class_names[0] == "T-shirt/top" and fashion.class_names[9] == "ankle boot"
    assert not {i.tobytes() for i in fashion.train.images} & {i.tobytes() for i in fashion.test.images}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("tdfs:cifar10", "did you mean 'tfds:NAME'"),
        ("digits:8x8", "did you mean 'digits'"),
        ("imagenet", "choose from digits, fashion, folder:DIR, idx:DIR, npz:FILE, tfds:NAME"),
        ("folder", "needs a place after the colon: folder:DIR"),
    ],
)
def test_unknown_names_get_the_nearest(spec, message):
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(spec)
    assert str(caught.value).count("\n") == 0


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


def test_subset():
    digits = data.load("digits")
    part = data.subset(digits, train_examples=200, test_examples=50, seed=3)
    assert (len(part.train), len(part.test)) == (200, 50)
    assert np.bincount(part.train.labels).min() >= 19
    again = data.subset(digits, 200, 50, 3)
    np.testing.assert_array_equal(part.train.images, again.train.images)
    whole = data.subset(digits)
    assert whole.train is digits.train and whole.test is digits.test
    with pytest.raises(data.DataError, match="train_examples=2000, but digits has 1437"):
        data.subset(digits, 2000)


def test_lazy_images_are_taken_from_what_was_taken():
    lazy = data.LazyImages(lambda positions: [np.full((2, 2), p) for p in positions], range(9), "")
    part = lazy.take(np.array([8, 3, 5])).take(np.array([2, 0]))
    assert len(part) == 2
    assert part[:][:, 0, 0].tolist() == part[np.array([0, 1])][:, 0, 0].tolist() == [5, 8]
    assert part[1].shape == (2, 2) and part[1][0, 0] == 8


def test_importing_data_loads_nothing_heavy():
    heavy = ("sklearn", "matplotlib", "tensorflow_datasets", "tensorflow", "torch")
    code = f"import sys, deltamask_jax.data.partition; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
