"""A dense layer's matrix product, differentiated without transposed copies.

JAX's own rule writes the gradient of the kernel as (gᵀ x)ᵀ, and XLA's CPU back end answers with a transposed
copy of g, computed element by element with everything fused into it: a third of a training step
(docs/performance.md). Here it is xᵀ g on two-dimensional arrays, which matrix libraries read as they lie.
"""

import math
from typing import Any

import jax


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x f[n,c] times kernel f[c,m], f[n,m]."""
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    return grad @ kernel.T, x.T @ grad


product.defvjp(_forward, _backward)


def dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`product` in the place of `jax.lax.dot_general`, for Flax's dense layers.

    The last axes of x f[..., *inputs] are contracted with the first of kernel f[*inputs, *outputs].
    """
    (x_axes, kernel_axes), batch = dimension_numbers
    inputs, outputs = kernel.shape[: len(kernel_axes)], kernel.shape[len(kernel_axes) :]
    rows = x.shape[: x.ndim - len(inputs)]
    assert tuple(x_axes) == tuple(range(len(rows), x.ndim)) and batch == ((), ())
    width = math.prod(inputs)
    flat = product(x.reshape(-1, width), kernel.reshape(width, -1))
    return flat.reshape(*rows, *outputs).astype(preferred_element_type or flat.dtype)
