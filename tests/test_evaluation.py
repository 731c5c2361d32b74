"""Any function over examples in chunks."""

import jax
import numpy as np

from deltamask_jax import devices
from deltamask_jax.evaluation import in_chunks


def test_in_chunks_equals_one_call(monkeypatch):
    monkeypatch.setattr("deltamask_jax.evaluation.EVALUATION_CHUNK", 4)
    x = np.arange(10.0)
    for array in (x, jax.numpy.asarray(x)):
        for rows in (None, slice(3, 9), slice(9, 10), slice(4, 4)):
            expected = 2 * x[rows or slice(None)]
            np.testing.assert_array_equal(in_chunks(lambda a: a * 2, array, devices.mesh(), rows), expected)
