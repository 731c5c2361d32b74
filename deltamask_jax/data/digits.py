"""The handwritten digits that scikit-learn bundles: 1,797 images of 8 × 8, no download."""

import numpy as np

from deltamask_jax.data import stratify
from deltamask_jax.data.dataset import Dataset, Split, labelled

TEST_EXAMPLES = 360  # a fifth; the split is fixed, so that results compare


def load() -> Dataset:
    """1,437 training and 360 test examples, stratified; pixel values 0 … 16 become 0 … 255."""
    from sklearn.datasets import load_digits  # slow to import, so only here

    bunch = load_digits()
    everything = Split(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int32))
    train, test = stratify.train_test(everything.labels, TEST_EXAMPLES / len(everything), seed=0)
    names = tuple(str(name) for name in bunch.target_names)
    return labelled("digits", everything.take(train), everything.take(test), names, where="digits")
