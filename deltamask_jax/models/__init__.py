"""Frozen foundation models, cut where training starts.

`build(config.model)` gives a `Model`: pure functions over a plain nested dict of parameters. The
head is not part of it. Reading and writing checkpoints is the business of
`deltamask_jax.pretrained`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.data import preprocessing
from deltamask_jax.data.tokenization import Tokenization
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models.bert import BertConfig, TextTransformer
from deltamask_jax.models.convmixer import ConvMixerConfig
from deltamask_jax.models.vit import VisionTransformer, ViTConfig
from deltamask_jax.registry import look_up

Params = dict[str, Any]
DRAWN_AT_ONCE = 1 << 29  # random parameters; one draw takes five times their memory


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen network cut into a prefix that never changes and a suffix whose kernels are masked.

    Attributes:
        name: preset name.
        architecture: the frozen configuration the network was built from.
        feature_dim: width of the features the head sees.
        image_size: input side, pixels; 0 for texts.
        trained_blocks: blocks in the suffix.
        preprocessing: how images must be prepared for this family, at this size; or texts.
        masked: regular expression that the whole '/'-joined path of a masked parameter matches.
        init: key -> params, random.
        prefix: (params, images f32[n,s,s,3] or words i32[n,t]) -> tokens [n,t,c] in the compute dtype.
        suffix: (params, tokens [n,t,c]) -> features f32[n,feature_dim]; reads only the
            parameters of the trained blocks and of what follows them.
    """

    name: str
    architecture: Any
    feature_dim: int
    image_size: int
    trained_blocks: int
    preprocessing: preprocessing.Preprocessing | Tokenization
    masked: str
    init: Callable[[jax.Array], Params]
    prefix: Callable[[Params, jax.Array], jax.Array]
    suffix: Callable[[Params, jax.Array], jax.Array]


def _vit(width: int, depth: int, heads: int, patch: int, **changes: Any) -> ViTConfig:
    return ViTConfig("vit", width, depth, heads, 4 * width, patch, **changes)


def _clip(width: int, depth: int, heads: int, patch: int, projection: int) -> ViTConfig:
    return ViTConfig(
        "clip", width, depth, heads, 4 * width, patch, eps=1e-5, activation="quick_gelu",
        patch_bias=False, pre_norm=True, projection=projection,
    )  # fmt: skip


def _dinov2(width: int, depth: int, heads: int, registers: int, **changes: Any) -> ViTConfig:
    shape: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "mlp": 4 * width, "patch": 14}
    variant: dict[str, Any] = {"layer_scale": True, "registers": registers}
    return ViTConfig("dinov2", **(shape | variant | changes))


def _bert(width: int, depth: int, heads: int, **changes: Any) -> BertConfig:
    return BertConfig("bert", width, depth, heads, 4 * width, **changes)


def _roberta(width: int, depth: int, heads: int) -> BertConfig:
    return BertConfig("roberta", width, depth, heads, 4 * width, vocabulary=50265, pad=1, types=1, eps=1e-5)


PRESETS: dict[str, Any] = {
    "glyph_vit": _vit(128, 8, 4, 4, image_size=32),  # embedded, pretrained on rendered glyphs
    "tiny_vit": _vit(32, 6, 2, 8, image_size=32),  # no weights: for tests
    "clip_vit_b32": _clip(768, 12, 12, 32, 512),
    "clip_vit_b16": _clip(768, 12, 12, 16, 512),
    "clip_vit_l14": _clip(1024, 24, 16, 14, 768),
    "bert_base": _bert(768, 12, 12),
    "bert_large": _bert(1024, 24, 16),
    "minilm_l6": _bert(384, 6, 12, pooling="mean"),  # as sentence-transformers pools it
    "minilm_l12": _bert(384, 12, 12, pooling="mean"),
    "roberta_base": _roberta(768, 12, 12),
    "roberta_large": _roberta(1024, 24, 16),
    "convmixer_768_32": ConvMixerConfig(768, 32, kernel=7, patch=7, activation="relu"),
    "convmixer_1536_20": ConvMixerConfig(1536, 20, kernel=9, patch=7, activation="gelu"),
}
for _name, _shape in {
    "s16": (384, 12, 6, 16),
    "b16": (768, 12, 12, 16),
    "b32": (768, 12, 12, 32),
    "l16": (1024, 24, 16, 16),
}.items():
    PRESETS[f"vit_{_name}"] = _vit(*_shape, eps=1e-12)  # as transformers computes it
    PRESETS[f"augreg_vit_{_name}"] = _vit(*_shape, activation="gelu_tanh")  # as Flax trained it
    PRESETS[f"timm_vit_{_name}"] = _vit(*_shape)  # as timm computes it
PRESETS["scenic_vit"] = dataclasses.replace(PRESETS["augreg_vit_b16"], scenic=True)
for _suffix, _registers in (("", 0), ("_reg", 4)):
    PRESETS |= {
        f"dinov2_small{_suffix}": _dinov2(384, 12, 6, _registers),
        f"dinov2_base{_suffix}": _dinov2(768, 12, 12, _registers),
        f"dinov2_large{_suffix}": _dinov2(1024, 24, 16, _registers),
        f"dinov2_giant{_suffix}": _dinov2(1536, 40, 24, _registers, mlp=4096, activation="swiglu"),
    }

# How each family was trained; a preset of its own name takes precedence.
PREPROCESSING = {
    "glyph_vit": preprocessing.GLYPH,
    "vit": preprocessing.INCEPTION,
    "clip": preprocessing.CLIP,
    "dinov2": preprocessing.IMAGENET,
    "convmixer": preprocessing.CONVMIXER,
}


def build(config: Any) -> Model:
    """The model `config` describes: name, image_size or max_length, trained_blocks, dtype, masked, remat.

    `image_size` 0 means the preset's own; `masked` '' the default rule: every attention and MLP (or
    convolution) kernel of the last `trained_blocks` blocks. Biases, norms, embeddings stay frozen.

    Raises:
        ValueError: unknown name, image size no multiple of the patch, texts longer than it reads, too many
            trained blocks, or a masking rule that matches nothing, too much, or what is in the frozen prefix.
    """
    return from_architecture(
        look_up("model", config.name, PRESETS),
        name=config.name,
        image_size=config.image_size,
        max_length=config.max_length,
        trained_blocks=config.trained_blocks,
        dtype=config.dtype,
        masked=config.masked,
        remat=config.remat,
    )


def from_architecture(
    architecture: Any,
    *,
    name: str = "custom",
    image_size: int = 0,
    max_length: int = 128,
    trained_blocks: int = 5,
    dtype: str = "float32",
    masked: str = "",
    remat: bool = False,
) -> Model:
    """Builds a `Model` from any architecture; arguments and errors as for `build`.

    With `remat` the backward pass keeps each block's input alone and computes the rest again.
    """
    prepared = _prepared(architecture, name, image_size, max_length)
    if not 1 <= trained_blocks <= architecture.depth:
        most = architecture.depth
        raise ValueError(f"trained_blocks of {name} must be 1..{most}, got {trained_blocks}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    module = architecture.module(trained_blocks, jnp.dtype(dtype))
    if remat:
        if not isinstance(module, VisionTransformer | TextTransformer):
            raise ValueError(f"model.remat is for transformers of this package, not for {name}")
        module = module.clone(remat=True)

    example = jax.ShapeDtypeStruct((1, *prepared.shape), prepared.dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
    model = Model(
        name=name,
        architecture=architecture,
        feature_dim=architecture.feature_dim,
        image_size=0 if isinstance(prepared, Tokenization) else prepared.size,
        trained_blocks=trained_blocks,
        preprocessing=prepared,
        masked=masked or architecture.masked_pattern(trained_blocks),
        init=_initialiser(shapes),
        prefix=lambda params, images: module.apply({"params": params}, images, method="prefix"),
        suffix=lambda params, tokens: module.apply({"params": params}, tokens, method="suffix"),
    )
    if masked:
        _check_masked(model)
    FlatIndex.create(shapes, model.masked)  # refuses more weights than can be numbered
    return model


def _prepared(
    architecture: Any, name: str, image_size: int, max_length: int
) -> preprocessing.Preprocessing | Tokenization:
    """How inputs are prepared for a network; its tokenizer comes with its checkpoint."""
    if isinstance(architecture, BertConfig):
        if not 2 <= max_length <= architecture.positions:
            raise ValueError(
                f"model.max_length of {name} must be 2..{architecture.positions}, got {max_length}"
            )
        return Tokenization(max_length, architecture.pad)
    size = image_size or architecture.image_size
    if size % architecture.stride:
        raise ValueError(f"image_size {size} of {name} must be a multiple of {architecture.stride}")
    if size < architecture.patch:
        raise ValueError(f"image_size {size} of {name} must be at least {architecture.patch}, one patch")
    return PREPROCESSING.get(name, PREPROCESSING[architecture.family]).at(size)


def _initialiser(shapes: Params) -> Callable[[jax.Array], Params]:
    """key -> random parameters of these shapes; of what is large one after the other."""
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    ends = np.cumsum(sizes)

    def at_once(key: jax.Array) -> Params:
        # Without the barrier a GPU's compiler writes the generator into every slice: minutes for ViT-B.
        noise = jax.lax.optimization_barrier(jax.random.normal(key, (ends[-1],)))
        return _random([noise[end - size : end] for size, end in zip(sizes, ends, strict=True)], shapes)

    def one_by_one(key: jax.Array) -> Params:
        return _random((_normal(key, i, size) for i, size in enumerate(sizes)), shapes)

    return one_by_one if ends[-1] > DRAWN_AT_ONCE else jax.jit(at_once)


@partial(jax.jit, static_argnums=2)
def _normal(key: jax.Array, number: int, size: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, number), (size,))


def _random(noise: Iterable[jax.Array], shapes: Params) -> Params:
    """Random parameters: kernels normal with variance 1/fan-in, tokens and positions 0.02.

    Flax's own init compiles a random generator for every parameter, which takes seconds even for the smallest
    network.

    Args:
        noise: normal values of every parameter, in the order of the tree.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    values = []
    for (path, leaf), normal in zip(leaves, noise, strict=True):
        module, name = path[-2].key if len(path) > 1 else "", path[-1].key
        if name in ("bias", "mean"):
            values.append(jnp.zeros(leaf.shape))
        elif name in ("scale", "var"):
            values.append(jnp.ones(leaf.shape))
        else:
            split_heads = module in ("query", "key", "value")  # [inputs, heads, outputs]
            inputs = leaf.shape[0] if split_heads else math.prod(leaf.shape[:-1])
            std = inputs**-0.5 if name == "kernel" else 0.02
            values.append(std * normal.reshape(leaf.shape))
    return jax.tree.unflatten(tree, values)


def _check_masked(model: Model) -> None:
    rule = f"model.masked={model.masked!r}"
    try:
        pattern = re.compile(model.masked)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{rule} is not a regular expression: {error}") from None
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    paths = list(flax.traverse_util.flatten_dict(shapes, sep="/"))
    chosen = [path for path in paths if pattern.fullmatch(path)]
    if not chosen:
        raise ValueError(f"{rule} matches no whole parameter path; one is {paths[-1]!r}")
    trained = re.compile(model.architecture.trained_pattern(model.trained_blocks))
    frozen = [path for path in chosen if not trained.fullmatch(path)]
    if frozen:
        raise ValueError(f"{rule} reaches {frozen[0]!r} in the prefix; raise model.trained_blocks")
