"""The flat index space: masked kernels addressed 0 … d−1.

Everything that travels (flips, θ, masks) speaks of positions, so both ends must number the weights alike.
The order is: parameter paths that match the masking rule, sorted as strings; inside each kernel, C order.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Params = dict[str, Any]
Kernels = dict[str, jax.Array]  # path -> array, in the order of the index
MOST = 2**31 - 1  # masked weights: devices count flips in 32 bits with a sign


@dataclasses.dataclass(frozen=True)
class FlatIndex:
    """Where each masked kernel lies in the flat index space.

    Example:
        >>> params = {"a": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "b": {"kernel": np.ones((3, 4))}}
        >>> index = FlatIndex.create(params, ".*/kernel")
        >>> index.paths, index.offsets, index.d
        (('a/kernel', 'b/kernel'), (0, 6), 18)

    Attributes:
        paths: '/'-joined parameter paths, sorted.
        shapes: one shape per path.
        offsets: position of each kernel's first element.
        d: number of masked weights.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    d: int

    @classmethod
    def create(cls, params: Params, pattern: str) -> "FlatIndex":
        """Index every parameter whose whole '/'-joined path matches the regular expression `pattern`.

        Raises:
            ValueError: `pattern` is no regular expression, or matches nothing, or more than can be counted.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        try:
            paths = sorted(path for path in flat if re.fullmatch(pattern, path))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"model.masked={pattern!r} is not a regular expression: {error}") from None
        if not paths:
            raise ValueError(
                f"model.masked={pattern!r} matches no parameter. Paths look like {sorted(flat)[0]!r}; "
                "the expression must match the whole path."
            )
        shapes = tuple(tuple(flat[path].shape) for path in paths)
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        if ends[-1] > MOST:
            raise ValueError(
                f"model.masked={pattern!r} matches {ends[-1]:,} weights, more than the {MOST:,} that devices "
                "can count: lower model.trained_blocks"
            )
        return cls(tuple(paths), shapes, (0, *(int(e) for e in ends[:-1])), int(ends[-1]))

    def kernels(self, params: Params) -> Kernels:
        """The masked kernels of a parameter tree."""
        flat = traverse_util.flatten_dict(params, sep="/")
        return {path: flat[path] for path in self.paths}

    def merge(self, params: Params, kernels: Kernels) -> Params:
        """`params` with its masked kernels replaced."""
        flat = traverse_util.flatten_dict(params, sep="/")
        return traverse_util.unflatten_dict({**flat, **kernels}, sep="/")

    def ravel(self, kernels: Kernels) -> jax.Array:
        """Kernels to one vector [d]."""
        return jnp.concatenate([kernels[path].reshape(-1) for path in self.paths])

    def unravel(self, vector: jax.Array) -> Kernels:
        """A vector [d] to kernels."""
        ends = (*self.offsets[1:], self.d)
        return {
            path: vector[start:end].reshape(shape)
            for path, shape, start, end in zip(self.paths, self.shapes, self.offsets, ends, strict=True)
        }

    def positions(self) -> Kernels:
        """The position of every weight, u32, in the shape of its kernel. Inside jit this costs no memory."""
        return {
            path: jnp.arange(start, start + int(np.prod(shape)), dtype=jnp.uint32).reshape(shape)
            for path, shape, start in zip(self.paths, self.shapes, self.offsets, strict=True)
        }
