"""Root keys: all of the seed, and the bits that smaller seeds always had."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamask_jax.private_random import root_key

SMALL, LARGE = st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1)


def words(key):
    return jax.random.key_data(key).tolist()


@given(SMALL, LARGE)
def test_the_high_bits_of_a_seed_count_and_without_them_it_is_jaxs_key(low, high):
    assert words(root_key(low)) == words(jax.random.key(low))
    assert words(root_key(low + (high << 32))) != words(root_key(low))


def test_whatever_the_default_generator_is():
    with jax.default_prng_impl("rbg"):
        draws = jax.random.bits(root_key(3), (4,)).tolist()
    assert draws == jax.random.bits(jax.random.key(3), (4,)).tolist()


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        root_key(seed)
