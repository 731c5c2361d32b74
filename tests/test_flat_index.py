"""The flat index space: order, round trips, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax.flat_index import MOST, FlatIndex

PARAMS = {
    "b": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3)},
    "a10": {"kernel": np.arange(4.0).reshape(2, 2) + 10},
    "a2": {"kernel": np.arange(2.0) + 20},
}


@pytest.fixture
def index():
    return FlatIndex.create(PARAMS, ".*kernel")


def test_order_is_sorted_path_then_c_order(index):
    assert index.paths == ("a10/kernel", "a2/kernel", "b/kernel")
    assert (index.offsets, index.d) == ((0, 4, 6), 12)
    vector = index.ravel(index.kernels(PARAMS))
    np.testing.assert_array_equal(vector, [10, 11, 12, 13, 20, 21, 0, 1, 2, 3, 4, 5])


def test_ravel_and_unravel_are_inverse_and_positions_number_them(index):
    vector = np.random.default_rng(0).normal(size=12).astype(np.float32)
    kernels = index.unravel(vector)
    np.testing.assert_array_equal(index.ravel(kernels), vector)
    jax.tree.map(lambda at, k: np.testing.assert_array_equal(vector[at], k), index.positions(), kernels)


def test_merge_replaces_only_masked_kernels(index):
    merged = index.merge(PARAMS, index.unravel(np.zeros(12)))
    assert not merged["b"]["kernel"].any() and merged["b"]["bias"] is PARAMS["b"]["bias"]


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("[", "regular expression"),
        ("a{99999999999999999999}", "regular expression"),
        ("(" * 3000, "regular expression"),
        ("kernel", "whole path"),
    ],
)
def test_bad_patterns_are_explained(pattern, message):
    with pytest.raises(ValueError, match=message):
        FlatIndex.create(PARAMS, pattern)


def sized(*sizes):
    """A tree of kernels that nobody allocates."""
    return {f"k{i}": {"kernel": jax.ShapeDtypeStruct((size, 2), np.float32)} for i, size in enumerate(sizes)}


def test_more_weights_than_can_be_counted_are_refused():
    most = sized(2**29, 2**29 - 1)
    index = FlatIndex.create(most, ".*kernel")
    assert index.d == MOST - 1 and index.offsets == (0, 2**30)
    places = jax.eval_shape(lambda: index.positions())["k1/kernel"]
    assert (places.shape, places.dtype) == ((2**29 - 1, 2), jnp.uint32)
    with pytest.raises(ValueError, match="matches 2,147,483,648 weights, more than the 2,147,483,647"):
        FlatIndex.create(sized(2**29, 2**29), ".*kernel")
