import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from deltamask_jax import models
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models.convmixer import ConvMixerConfig
from deltamask_jax.models.vit import ViTConfig

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image_size": 12}
VIT = ViTConfig("vit", **TINY)
EVERYTHING = ViTConfig(
    "dinov2",
    **TINY,
    layer_scale=True,
    registers=2,
    pre_norm=True,
    projection=5,
    activation="swiglu",
)
MIXER = ConvMixerConfig(6, 2, kernel=3, patch=4, activation="relu", image_size=12)


def config(name, **changes):
    values = {
        "name": name,
        "image_size": 0,
        "max_length": 128,
        "trained_blocks": 5,
        "dtype": "float32",
        "masked": "",
        "remat": False,
    }
    return types.SimpleNamespace(**(values | changes))


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)


def features_of(model, params):
    return jax.jit(lambda params: model.suffix(params, model.prefix(params, IMAGES)))(params)


@pytest.mark.parametrize(
    ("name", "masked", "total"),
    [
        ("vit_s16", 8_847_360, 21_665_664),
        ("vit_b16", 35_389_440, 85_798_656),
        ("vit_l16", 62_914_560, 303_301_632),
        ("clip_vit_b32", 35_389_440, 87_849_216),
        ("dinov2_base", 35_389_440, 85_724_928),
        ("convmixer_768_32", 3_137_280, 20_441_088),
    ],
)
def test_masked_weights_of_the_last_five_blocks(name, masked, total):
    """Masked: arXiv 2311.17299 with five blocks. Totals: the published networks without their head."""
    model = models.build(config(name))
    assert FlatIndex.create(shapes(model), model.masked).d == masked
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model))) == total


@pytest.mark.parametrize("architecture", [EVERYTHING, MIXER])
def test_the_cut_does_not_change_the_network(architecture):
    features = []
    for trained_blocks in (1, 2):
        model = models.from_architecture(architecture, trained_blocks=trained_blocks)
        params = model.init(jax.random.key(0))
        features.append(features_of(model, params))
    assert features[0].shape == (2, architecture.feature_dim)
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)


@pytest.mark.parametrize("architecture", [EVERYTHING, MIXER])
def test_the_suffix_needs_its_own_parameters_only_and_all_of_them(architecture):
    model = models.from_architecture(architecture, trained_blocks=1)
    params = model.init(jax.random.key(0))
    tokens = jax.jit(model.prefix)(params, IMAGES)

    def loss(params):
        return jnp.square(model.suffix(params, tokens)).sum()

    slopes = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    pattern = architecture.trained_pattern(1)
    used = {path for path, slope in slopes.items() if np.any(slope)}
    flat = traverse_util.flatten_dict(params, sep="/")
    own = {path for path in flat if re.fullmatch(pattern, path)}
    # Attention does not depend on a constant added to all keys; ReLU may be dead somewhere.
    assert used <= own and all("key/bias" in path for path in own - used)
    part = traverse_util.unflatten_dict({path: flat[path] for path in own}, sep="/")
    np.testing.assert_array_equal(jax.jit(model.suffix)(part, tokens), jax.jit(model.suffix)(params, tokens))


def test_bfloat16_computes_in_half_and_returns_float32():
    full = models.from_architecture(VIT, trained_blocks=1)
    half = models.from_architecture(VIT, trained_blocks=1, dtype="bfloat16")
    params = full.init(jax.random.key(0))
    tokens = jax.jit(half.prefix)(params, IMAGES)
    assert tokens.dtype == jnp.bfloat16
    features = jax.jit(half.suffix)(params, tokens)
    assert features.dtype == jnp.float32
    expected = features_of(full, params)
    np.testing.assert_allclose(features, expected, atol=0.1 * float(jnp.abs(expected).max()))
    assert not np.array_equal(features, expected)


@pytest.mark.parametrize("at_once", [True, False])
def test_random_parameters_are_scaled_by_their_fan_in(at_once, monkeypatch):
    monkeypatch.setattr(models, "DRAWN_AT_ONCE", 1 << 29 if at_once else 0)
    architecture = ViTConfig("vit", width=128, depth=1, heads=4, mlp=512, patch=16)
    model = models.from_architecture(architecture, trained_blocks=1)
    params = model.init(jax.random.key(0))
    block = params["Transformer"]["encoderblock_0"]
    attention, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
    for kernel, inputs in [
        (attention["query"]["kernel"], 128),
        (attention["out"]["kernel"], 128),
        (mlp["Dense_1"]["kernel"], 512),
        (params["embedding"]["kernel"], 768),
    ]:
        np.testing.assert_allclose(kernel.std() * inputs**0.5, 1, atol=0.02)
    assert not np.any(mlp["Dense_0"]["bias"]) and np.all(block["LayerNorm_0"]["scale"] == 1)
    assert np.any(model.init(jax.random.key(1))["cls"] != params["cls"])
    assert np.any(attention["query"]["kernel"] != attention["key"]["kernel"])


def test_random_parameters_are_sliced_from_one_draw():
    """A GPU's compiler, left free, writes the generator into each of ViT-B's 150 slices: three minutes."""
    lines = jax.jit(models.build(config("tiny_vit")).init).lower(jax.random.key(0)).as_text().splitlines()
    (barrier,) = [line for line in lines if "optimization_barrier" in line]
    held = barrier.split("=")[0].strip()
    sliced = [line for line in lines if " stablehlo.slice " in line and "xf32" in line]
    assert len(sliced) > 20 and all(f"slice {held} " in line for line in sliced)


def test_a_masking_rule_of_ones_own():
    rule = r"Transformer/encoderblock_5/MlpBlock_0/.*/kernel"
    model = models.build(config("tiny_vit", masked=rule))
    assert FlatIndex.create(shapes(model), model.masked).paths == (
        "Transformer/encoderblock_5/MlpBlock_0/Dense_0/kernel",
        "Transformer/encoderblock_5/MlpBlock_0/Dense_1/kernel",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "vit_b"}, "unknown model 'vit_b'; did you mean 'vit_b"),
        ({"image_size": 30}, "multiple of 8"),
        ({"trained_blocks": 7}, "must be 1..6, got 7"),
        ({"trained_blocks": 0}, "must be 1..6, got 0"),
        ({"dtype": "float16"}, "'float32' or 'bfloat16'"),
        ({"name": "convmixer_768_32", "image_size": 6}, "convmixer_768_32 must be at least 7, one patch"),
        ({"masked": "("}, "not a regular expression"),
        ({"masked": "a{99999999999999999999}"}, "not a regular expression"),
        ({"masked": "(" * 3000}, "not a regular expression"),
        ({"masked": "kernel"}, "matches no whole parameter path"),
        ({"masked": "embedding/kernel"}, "in the prefix"),
        ({"masked": "Transformer/encoderblock_.*/kernel"}, "raise model.trained_blocks"),
    ],
)
def test_what_cannot_be_built_says_why(changes, reason):
    with pytest.raises(ValueError, match=reason) as error:
        models.build(config(**({"name": "tiny_vit"} | changes)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(models.PRESETS.keys() - {"scenic_vit"}))
def test_every_preset_has_shapes_that_fit(name):
    shallow = dataclasses.replace(models.PRESETS[name], depth=2)  # tracing forty blocks takes seconds
    model = models.from_architecture(shallow, name=name, trained_blocks=1, dtype="bfloat16")
    params = shapes(model)
    batch = jax.ShapeDtypeStruct((2, *model.preprocessing.shape), model.preprocessing.dtype)
    tokens = jax.eval_shape(model.prefix, params, batch)
    features = jax.eval_shape(model.suffix, params, tokens)
    assert tokens.dtype == jnp.bfloat16 and features.dtype == jnp.float32
    assert features.shape == (2, model.feature_dim)
    assert model.image_size == getattr(model.preprocessing, "size", 0)


def test_a_network_of_more_masked_weights_than_can_be_counted_is_refused():
    huge = dataclasses.replace(VIT, width=8192, heads=64, mlp=32768, depth=4)
    assert models.from_architecture(huge, trained_blocks=2).trained_blocks == 2
    with pytest.raises(ValueError, match="3,221,225,472 weights, more than .*: lower model.trained_blocks"):
        models.from_architecture(huge, trained_blocks=4)
