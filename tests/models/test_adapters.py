"""Parts grown into a network: the same function at first, a different one afterwards, and what runs where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from deltamask_jax import models
from deltamask_jax.models import adapters
from deltamask_jax.models.vit import EncoderBlock, ViTConfig
from deltamask_jax.public_random import stream_key

ARCHITECTURE = ViTConfig("vit", width=16, depth=2, heads=2, mlp=24, patch=4, image_size=12)
MEAN = ViTConfig("vit", width=16, depth=2, heads=2, mlp=24, patch=4, image_size=12, pooling="mean")
KEY = stream_key(0, 0, 0, 0)
BLOCKS = range(2)
TOKENS = np.random.default_rng(0).normal(size=(3, 10, 16)).astype(np.float32)


def whole(architecture=ARCHITECTURE):
    model = models.from_architecture(architecture, trained_blocks=2)
    return model, model.init(jax.random.key(0))


def parts_of(kind, params):
    return {
        "bias": lambda: adapters.biases(params, ".*"),
        "adapter": lambda: adapters.bottlenecks(KEY, 16, BLOCKS, 4),
        "lora": lambda: adapters.low_rank(KEY, params, BLOCKS, 2),
        "no prompts": lambda: adapters.prompts(KEY, 16, 48, BLOCKS, 0, True),
        "deep": lambda: adapters.prompts(KEY, 16, 48, BLOCKS, 5, True),
        "shallow": lambda: adapters.prompts(KEY, 16, 48, BLOCKS, 5, False),
    }[kind]()


@pytest.mark.parametrize("kind", ["bias", "adapter", "lora", "no prompts"])
def test_before_training_the_network_is_the_pretrained_one_exactly(kind):
    model, params = whole()
    grown = adapters.grow(params, parts_of(kind, params))
    np.testing.assert_array_equal(model.suffix(grown, TOKENS), model.suffix(params, TOKENS))


def test_every_part_reaches_the_output():
    """Gradients of all kinds at once, away from the initial zeros, which hide the factor before them."""
    model, params = whole()
    parts = {}
    for kind in ("bias", "adapter", "lora", "deep"):
        parts |= jax.tree.map(lambda x: x + 0.1, parts_of(kind, params))

    def loss(parts):
        return jnp.square(model.suffix(adapters.grow(params, parts), TOKENS)[:, 0]).sum()

    slopes = jax.jit(jax.grad(loss))(parts)
    silent = {path for path, slope in slopes.items() if not np.any(slope)}
    # The prefix here is the patch embedding alone; a constant added to all keys changes no attention.
    assert all(path == "embedding/bias" or "key/bias" in path for path in silent)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_join_as_tokens_and_are_replaced_in_every_block_or_carried_through(deep):
    model, params = whole()
    parts = parts_of("deep" if deep else "shallow", params)
    encoder = params["Transformer"]

    def block(i, x):
        return EncoderBlock(ARCHITECTURE, jnp.float32).apply({"params": encoder[f"encoderblock_{i}"]}, x)

    def join(x, i):  # in front this time: their place must not matter
        prompt = parts[f"Transformer/prompts_{i}"]
        return jnp.concatenate([jnp.broadcast_to(prompt, (3, 5, 16)), x], axis=1)

    x = block(0, join(TOKENS, 0))
    x = block(1, join(x[:, 5:], 1) if deep else x)[:, 5]
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(model.suffix(adapters.grow(params, parts), TOKENS), normed, atol=1e-5)


def test_prompts_are_not_pooled():
    model, params = whole(MEAN)
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in flat:  # blocks that change nothing
        if "/out/" in path or "/Dense_1/" in path:
            flat[path] = jnp.zeros_like(flat[path])
    params = traverse_util.unflatten_dict(flat, sep="/")
    grown = adapters.grow(params, parts_of("deep", params))
    np.testing.assert_allclose(model.suffix(grown, TOKENS), model.suffix(params, TOKENS), atol=1e-6)


def test_low_rank_is_the_product_of_its_factors():
    _, params = whole()
    rng = np.random.default_rng(0)
    parts = jax.tree.map(lambda x: x + rng.normal(size=x.shape), parts_of("lora", params))
    at = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query"
    flat, grown = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (params, adapters.grow(params, parts))
    )
    change = (grown[f"{at}/kernel"] - flat[f"{at}/kernel"]).reshape(16, 16)
    np.testing.assert_allclose(change, parts[f"{at}/lora_a"] @ parts[f"{at}/lora_b"], atol=1e-5)
    assert np.linalg.matrix_rank(change, tol=1e-4) == 2
    assert flat.keys() == grown.keys()


def test_initial_values_depend_on_the_key_alone():
    first, again = (adapters.prompts(KEY, 16, 48, BLOCKS, 5, True) for _ in range(2))
    other = adapters.prompts(stream_key(1, 0, 0, 0), 16, 48, BLOCKS, 5, True)
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        assert np.mean(first[path] == other[path]) < 0.1
    values = np.concatenate([x.ravel() for x in first.values()])
    assert 0.9 < np.abs(values).max() / np.sqrt(6 / (3 * 16 + 16)) < 1
