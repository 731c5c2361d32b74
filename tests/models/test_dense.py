"""The dense product: values and gradients of `jax.lax.dot_general`; rematerialisation keeps less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax.models import PRESETS, dense, from_architecture


@pytest.mark.parametrize("inputs, outputs", [((6,), (5,)), ((2, 3), (4,)), ((6,), (2, 3))])
def test_values_and_gradients_are_those_of_dot_general(inputs, outputs):
    x = jax.random.normal(jax.random.key(0), (3, 4, *inputs))
    kernel = jax.random.normal(jax.random.key(1), (*inputs, *outputs))
    axes = tuple(range(2, x.ndim)), tuple(range(len(inputs)))

    def loss(product, x, kernel):
        return jnp.sum(jnp.sin(product(x, kernel, (axes, ((), ())))))

    for ours, theirs in zip(
        jax.value_and_grad(loss, (1, 2))(dense.dot_general, x, kernel)[1],
        jax.value_and_grad(loss, (1, 2))(jax.lax.dot_general, x, kernel)[1],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_remat_gives_the_same_gradient_from_fewer_residuals():
    """Counted before XLA, whose CPU back end merges the two computations again."""
    tokens = jax.random.normal(jax.random.key(0), (8, 17, 32))
    gradients, kept = [], []
    for remat in (False, True):
        model = from_architecture(PRESETS["tiny_vit"], trained_blocks=2, remat=remat)
        params = model.init(jax.random.key(1))

        def of_tokens(params, model=model):
            return model.suffix(params, tokens)

        _, pull = jax.eval_shape(lambda params: jax.vjp(of_tokens, params), params)
        kept.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull)))
        gradients.append(jax.jit(jax.grad(lambda params: jnp.sum(of_tokens(params) ** 2)))(params))
    assert kept[1] < 0.5 * kept[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)
