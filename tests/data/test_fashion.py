"""The embedded part of Fashion-MNIST."""

import numpy as np

from deltamask_jax import data


def test_fashion():
    fashion = data.load("fashion")
    assert (len(fashion.train), len(fashion.test)) == (2000, 1000)
    assert fashion.train.images.shape == (2000, 28, 28) and fashion.train.images.dtype == np.uint8
    assert np.bincount(fashion.train.labels).tolist() == [200] * 10
    assert np.bincount(fashion.test.labels).tolist() == [100] * 10
    assert fashion.class_names[0] == "T-shirt/top" and fashion.class_names[9] == "ankle boot"
    assert not {i.tobytes() for i in fashion.train.images} & {i.tobytes() for i in fashion.test.images}
