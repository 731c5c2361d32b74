"""`data.load` and `data.subset`: names, sizes, and that importing them is quick."""

import subprocess
import sys

import numpy as np
import pytest

from deltamask_jax import data


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("tdfs:cifar10", "did you mean 'tfds:NAME'"),
        ("digits:8x8", "did you mean 'digits'"),
        ("imagenet", "choose from " + ", ".join(data.SOURCES)),
        ("folder", "needs a place after the colon: folder:DIR"),
    ],
)
def test_unknown_names_get_the_nearest(spec, message):
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(spec)
    assert str(caught.value).count("\n") == 0


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


def test_validation_examples_are_training_examples_that_do_not_train():
    digits = data.load("digits")
    pixels = {
        split: {image.tobytes() for image in getattr(digits, split).images} for split in ("train", "test")
    }
    part = data.subset(digits, 500, 50, 3, validation_examples=200)
    assert (len(part.train), len(part.test)) == (500, 200)  # test_examples says nothing
    trained, held = ({image.tobytes() for image in split.images} for split in (part.train, part.test))
    assert trained <= pixels["train"] and held <= pixels["train"] and not trained & held
    assert np.ptp(np.bincount(part.test.labels)) <= 2
    rest = data.subset(digits, seed=3, validation_examples=200)
    assert len(rest.train) == 1237
    np.testing.assert_array_equal(rest.test.images, part.test.images)
    with pytest.raises(
        data.DataError, match="validation_examples=1437 are held out of the training examples"
    ):
        data.subset(digits, validation_examples=1437)


def test_importing_data_loads_nothing_heavy():
    heavy = ("sklearn", "matplotlib", "tensorflow_datasets", "tensorflow", "torch")
    code = f"import sys, deltamask_jax.data.partition; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_seed_holds_out_other_validation_examples():
    digits = data.load("digits")
    first, second = (data.subset(digits, seed=seed, validation_examples=100).test for seed in (0, 1))
    assert not np.array_equal(first.images, second.images)
