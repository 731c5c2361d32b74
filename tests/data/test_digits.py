"""The bundled digits: sizes, and a split that never changes."""

import numpy as np

from deltamask_jax import data


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
