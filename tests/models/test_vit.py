"""The vision transformer: what is pooled. What all networks share is in test_models.py."""

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import models
from deltamask_jax.models.vit import ViTConfig

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image_size": 12}


def test_mean_pooling_leaves_cls_and_registers_out():
    model = models.from_architecture(ViTConfig("vit", **TINY, registers=2, pooling="mean"), trained_blocks=1)
    params = model.init(jax.random.key(0))
    encoder = params["Transformer"]
    kernels = encoder["encoderblock_1"]
    for layer in (
        kernels["MultiHeadDotProductAttention_0"]["out"],
        kernels["MlpBlock_0"]["Dense_1"],
    ):
        layer["kernel"] = jnp.zeros_like(layer["kernel"])  # the block now changes nothing
    tokens = jax.random.normal(jax.random.key(1), (1, 12, 16))
    x = np.asarray(tokens)[0, 3:]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.suffix(params, tokens)[0], normed.mean(0), atol=1e-5)
