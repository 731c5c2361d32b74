"""Randomised Hadamard rotation: what DRIVE and EDEN (arXiv 2105.08339, 2108.08842) do before they quantise.

y = H D′ H D x with random signs D, D′ and H the Walsh–Hadamard matrix over √size: orthonormal, and it makes
the entries of any x look Gaussian, so that one quantiser fits all. Those papers' code applies H D once. Where
a few large values dominate x, that leaves entries far from Gaussian and an estimate that is biased (measured
at one bit: the largest entries of heavy-tailed vectors come out 1 to 7 % too large). Applied twice, none is
found.

H needs a power of two, and padding one vector of 35 million to 2²⁶ would send 1.9 times as much. So a vector
is cut into blocks of 2¹⁶; what is left is cut into ever smaller powers of two down to 2⁹, and only the last
of these is padded with zeros. At most 511 zeros travel, whatever the length, and a scale per block costs next
to nothing (32 bits for 65,536 values). All arithmetic is in 32 bits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.public_random import Key, uniforms

LARGEST, SMALLEST = 1 << 16, 1 << 9  # values in a block
_RADIX = 16  # one matrix product replaces four passes of additions over memory


def blocks(n: int) -> list[tuple[int, int]]:
    """How n values are cut: (number of blocks, values in each), the largest blocks first."""
    cut, size = [], LARGEST
    while size > SMALLEST:
        count, n = divmod(n, size)
        cut += [(count, size)] if count else []
        size //= 2
    return cut + ([(-(-n // size), size)] if n else [])


def padded(n: int) -> int:
    """Values after padding; at most 511 more than n."""
    return sum(count * size for count, size in blocks(n))


def rotate(vector: jax.Array, key: Key) -> list[jax.Array]:
    """H D′ H D x.

    Args:
        vector: f32[n].
        key: two uint32 words; bits 15 and 14 of its public uniforms are the signs D and D′, 1 for −1.

    Returns:
        f32[count, size] for each entry of `blocks(n)`.
    """
    n = vector.size
    first, second = _signs(key, n)
    once = [_hadamard(part) for part in split(jnp.pad(vector, (0, padded(n) - n)) * first, n)]
    return [_hadamard(part) for part in split(join(once) * second, n)]


def unrotate(parts: list[jax.Array], n: int, key: Key) -> jax.Array:
    """The inverse of `rotate`, f32[n]."""
    first, second = _signs(key, n)
    once = [_hadamard(part) for part in split(join([_hadamard(part) for part in parts]) * second, n)]
    return (join(once) * first)[:n]


def split(flat: jax.Array, n: int) -> list[jax.Array]:
    """A vector [padded(n)] of any type to [count, size] for each entry of `blocks(n)`."""
    ends = np.cumsum([0, *(count * size for count, size in blocks(n))])
    return [
        flat[start:end].reshape(cut) for start, end, cut in zip(ends[:-1], ends[1:], blocks(n), strict=True)
    ]


def join(parts: list[jax.Array]) -> jax.Array:
    """The inverse of `split`: [count, size] for each entry of `blocks(n)` to [padded(n)]."""
    return jnp.concatenate([part.reshape(-1) for part in parts])


def _signs(key: Key, n: int) -> tuple[jax.Array, jax.Array]:
    """D and D′, f32[padded(n)]."""
    u = uniforms(key, padded(n), jnp)
    return tuple(1 - 2 * (u >> bit & 1).astype(jnp.float32) for bit in (15, 14))


def _hadamard(x: jax.Array) -> jax.Array:
    """Walsh–Hadamard transform of every row of f32[count, size], orthonormal.

    H of size a·b is H_a ⊗ H_b (Sylvester's order), so it is a product with a small matrix along each axis of
    [.., 16, 16, ..]. Full precision is asked for, or accelerators would multiply in bfloat16.
    """
    from scipy.linalg import hadamard  # slow to import, and few codecs rotate

    count, size = x.shape
    inner = 1
    while inner < size:
        radix = min(_RADIX, size // inner)
        x = x.reshape(count, size // (radix * inner), radix, inner)
        x = jnp.einsum("ij,cajb->caib", hadamard(radix, np.float32), x, precision=jax.lax.Precision.HIGHEST)
        inner *= radix
    return x.reshape(count, size) * np.float32(size**-0.5)
