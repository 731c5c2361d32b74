import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax.models.convmixer import depthwise


def by_xla(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("size", [3, 7])
def test_depthwise_and_its_gradients_equal_the_grouped_convolution(size):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 4))
    results = []
    for convolution in (depthwise, by_xla):

        @jax.jit
        def value_and_slopes(x, kernel, convolution=convolution):
            slopes = jax.grad(lambda *a: jnp.sin(convolution(*a)).sum(), argnums=(0, 1))
            return convolution(x, kernel), *slopes(x, kernel)

        results.append(value_and_slopes(x, kernel))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)
