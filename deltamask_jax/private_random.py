"""Private randomness: jax keys for what one end alone draws, such as local sampling and the random head.

What both ends must draw alike is in public_random.py.
"""

import jax
import jax.numpy as jnp
import numpy as np


def root_key(seed: int) -> jax.Array:
    """The key all private randomness of a run is folded from.

    For seeds below 2³² it is `jax.random.key(seed)`, which of a larger seed keeps the low 32 bits alone.

    Args:
        seed: 0 … 2⁶⁴−1.

    Raises:
        ValueError: a seed out of that range.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in 0 … 2^64-1, got {seed}")
    words = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
