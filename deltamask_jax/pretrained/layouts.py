"""Where each of our parameters lies in a published checkpoint: names, axes, what may be ignored.

The tables below are all there is to know about a format; `stored` reads them in both directions, so
import and export cannot disagree.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from deltamask_jax.models.bert import BertConfig

Shape = tuple[int, ...]
POSITIONS = "Transformer/posembed_input/pos_embedding"

_ATTENTION = "attention.attention"
_VIT = {
    "block": "encoder.layer.{}.",
    "cls": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "embedding": "embeddings.patch_embeddings.projection",
    POSITIONS: "embeddings.position_embeddings",
    "Transformer/encoder_norm": "layernorm",
    "LayerNorm_0": "layernorm_before",
    "LayerNorm_1": "layernorm_after",
    "MultiHeadDotProductAttention_0/query": f"{_ATTENTION}.query",
    "MultiHeadDotProductAttention_0/key": f"{_ATTENTION}.key",
    "MultiHeadDotProductAttention_0/value": f"{_ATTENTION}.value",
    "MultiHeadDotProductAttention_0/out": "attention.output.dense",
    "MlpBlock_0/Dense_0": "intermediate.dense",
    "MlpBlock_0/Dense_1": "output.dense",
}
_DINOV2 = _VIT | {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "LayerScale_0/scale": "layer_scale1.lambda1",
    "LayerScale_1/scale": "layer_scale2.lambda1",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
_SWIGLU = {"MlpBlock_0/Dense_0": "mlp.weights_in", "MlpBlock_0/Dense_1": "mlp.weights_out"}
_CLIP = {
    "block": "encoder.layers.{}.",
    "cls": "embeddings.class_embedding",
    "embedding": "embeddings.patch_embedding",
    POSITIONS: "embeddings.position_embedding.weight",
    "Transformer/pre_norm": "pre_layrnorm",  # sic
    "Transformer/encoder_norm": "post_layernorm",
    "projection": "visual_projection",
    "LayerNorm_0": "layer_norm1",
    "LayerNorm_1": "layer_norm2",
    "MultiHeadDotProductAttention_0/query": "self_attn.q_proj",
    "MultiHeadDotProductAttention_0/key": "self_attn.k_proj",
    "MultiHeadDotProductAttention_0/value": "self_attn.v_proj",
    "MultiHeadDotProductAttention_0/out": "self_attn.out_proj",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
_CONVMIXER = {
    "block": "blocks.{}.",
    "stem/conv": "stem.0",
    "stem/norm": "stem.2",
    "depthwise": "0.fn.0",
    "norm_0": "0.fn.2",
    "pointwise": "1",
    "norm_1": "3",
}
_BERT = {
    "block": "encoder.layer.{}.",
    "word_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "LayerNorm_0": "attention.output.LayerNorm",
    "LayerNorm_1": "output.LayerNorm",
    "MultiHeadDotProductAttention_0/query": "attention.self.query",
    "MultiHeadDotProductAttention_0/key": "attention.self.key",
    "MultiHeadDotProductAttention_0/value": "attention.self.value",
    "MultiHeadDotProductAttention_0/out": "attention.output.dense",
    "MlpBlock_0/Dense_0": "intermediate.dense",
    "MlpBlock_0/Dense_1": "output.dense",
}
# Modules that transformers 5 names otherwise than the files it reads and writes, and what adapters must name.
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
MODULES = {
    "vit": _RENAMED
    | {"encoder.layer.": "layers.", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"},
    "dinov2": _RENAMED | {"mlp.weights_out": "mlp.down_proj"},
}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_LEAVES |= {"embedding": "weight"}


# What DistributedDataParallel, torch.compile and training code put before every name.
WRAPPERS = r"((module|model|_orig_mod|backbone|encoder|network|net)[./])*"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published format.

    Attributes:
        title: how errors call it.
        names: our module or parameter -> theirs.
        prefix: regular expression for what some checkpoints put before every name.
        ignored: regular expression (whole name, prefix removed) for tensors we have no use for:
            classifier heads, pooler, mask token, CLIP's text tower, counters.
        marker: a name, prefix removed, that only this format has.
        model_types: of the config.json of this format.
        older: regular expression -> what names that end in it end in today: BERT's own files are of 2018.
    """

    title: str
    names: dict[str, str]
    prefix: str
    ignored: str
    marker: str
    model_types: tuple[str, ...] = ()
    older: dict[str, str] = dataclasses.field(default_factory=dict)

    def bare(self, key: str) -> str:
        """A name as the format has it today, without prefix."""
        key = re.sub(rf"^{self.prefix}", "", key)
        for old, new in self.older.items():
            key = re.sub(rf"{old}$", new, key)
        return key

    def roots(self, keys: Iterable[str]) -> set[str]:
        """What stands before the names, our prefix not counted, of every such network among `keys`."""
        pattern = re.compile(rf"((?:.*?\.)??)(?:{self.prefix})?{re.escape(self.marker)}")
        return {found[1] for key in keys if (found := pattern.fullmatch(key))}


LAYOUTS = {
    "vit": Layout(
        "Hugging Face ViT",
        _VIT,
        prefix=r"vit\.",
        ignored=r"classifier\..*|pooler\..*|embeddings\.mask_token",
        marker="encoder.layer.0.layernorm_before.weight",
        model_types=("vit",),
    ),
    "clip": Layout(
        "Hugging Face CLIP",
        _CLIP,
        prefix=r"vision_model\.",
        ignored=r"text_model\..*|text_projection\.weight|logit_scale|visual_projection\.weight"
        r"|embeddings\.position_ids|classifier\..*",
        marker="pre_layrnorm.weight",
        model_types=("clip", "clip_vision_model"),
    ),
    "dinov2": Layout(
        "Hugging Face DINOv2",
        _DINOV2,
        prefix=r"(dinov2|dinov2_with_registers)\.",
        ignored=r"classifier\..*|embeddings\.mask_token",
        marker="encoder.layer.0.layer_scale1.lambda1",
        model_types=("dinov2", "dinov2_with_registers"),
    ),
    **{
        family: Layout(
            f"Hugging Face {title}",
            _BERT,
            prefix=rf"{family}\.",
            ignored=r"classifier\..*|(bert\.)?pooler\..*|cls\..*|lm_head\..*|embeddings\.position_ids",
            marker="encoder.layer.0.attention.self.query.weight",
            model_types=types,
            older={r"LayerNorm\.gamma": "LayerNorm.weight", r"LayerNorm\.beta": "LayerNorm.bias"},
        )
        for family, title, types in (
            ("bert", "BERT", ("bert",)),
            ("roberta", "RoBERTa", ("roberta", "xlm-roberta", "camembert")),
        )
    },
    "convmixer": Layout(
        "timm ConvMixer",
        _CONVMIXER,
        prefix=r"(?!)",
        ignored=r"head\..*|.*\.num_batches_tracked",
        marker="blocks.0.0.fn.0.weight",
    ),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a published checkpoint.

    Attributes:
        key: its name there, without prefix.
        shape: its shape there.
        axes: transposition that brings it into our order of axes; a reshape completes it.
    """

    key: str
    shape: Shape
    axes: Shape

    def read(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """Theirs to ours."""
        return array.transpose(self.axes).reshape(shape)

    def write(self, array: np.ndarray) -> np.ndarray:
        """Ours to theirs."""
        turned = array.reshape([self.shape[axis] for axis in self.axes])
        return np.ascontiguousarray(turned.transpose(np.argsort(self.axes)))


def stored(architecture: Any, shapes: dict[str, Shape]) -> dict[str, Stored]:
    """Our flat parameter paths and shapes -> the tensors of the architecture's published format."""
    names = LAYOUTS[architecture.family].names
    if getattr(architecture, "activation", "") == "swiglu":
        names = names | _SWIGLU
    return {path: _stored(names, architecture.family, path, shape) for path, shape in shapes.items()}


def _stored(names: dict[str, str], family: str, path: str, shape: Shape) -> Stored:
    block = re.fullmatch(r"(?:Transformer/encoder)?block_(\d+)/(.*)", path)
    prefix = names["block"].format(block[1]) if block else ""
    local = block[2] if block else path
    if local in names:  # a bare parameter: token, position embedding, layer scale
        if family == "clip":  # stored without the leading 1
            shape = shape[2:] if local == "cls" else shape[1:]
        return Stored(prefix + names[local], shape, tuple(range(len(shape))))
    module, leaf = local.rsplit("/", 1)
    key = f"{prefix}{names[module]}.{_LEAVES.get(leaf, leaf)}"
    if leaf == "embedding":
        return Stored(key, shape, (0, 1))
    if leaf != "kernel":
        return Stored(key, (math.prod(shape),), (0,))
    if len(shape) == 4:  # convolution: ours [h,w,in,out], theirs [out,in,h,w]
        return Stored(key, (shape[3], shape[2], shape[0], shape[1]), (2, 3, 1, 0))
    inputs = math.prod(shape[:-1]) if module.endswith("/out") else shape[0]
    return Stored(key, (math.prod(shape) // inputs, inputs), (1, 0))


def modules(family: str, key: str) -> list[str]:
    """The modules of transformers 5 for a module's name in files: one, or both halves of a gated kernel."""
    for old, new in MODULES.get(family, {}).items():
        key = key.replace(old, new)
    if key.endswith("mlp.weights_in"):
        return [key.replace("weights_in", half) for half in ("gate_proj", "up_proj")]
    return [key]


def parameter_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Every parameter's path and shape, without computing anything."""
    tree = jax.eval_shape(model.init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def huggingface_config(a: Any) -> dict[str, Any]:
    """What a Hugging Face config.json says about a `ViTConfig` or `BertConfig`."""
    activations = {"gelu_tanh": "gelu_pytorch_tanh", "swiglu": "gelu"}  # with SwiGLU it is unused
    config: dict[str, Any] = {
        "hidden_size": a.width,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "hidden_act": activations.get(a.activation, a.activation),
        "layer_norm_eps": a.eps,
    }
    if isinstance(a, BertConfig):
        return config | {
            "model_type": a.family,
            "intermediate_size": a.mlp,
            "vocab_size": a.vocabulary,
            "max_position_embeddings": a.positions + a.first_position,
            "type_vocab_size": a.types,
            "pad_token_id": a.pad,
        }
    config |= {"patch_size": a.patch, "image_size": a.image_size, "num_channels": 3}
    if a.family == "dinov2":
        gated = a.activation == "swiglu"
        config |= {
            "model_type": "dinov2_with_registers" if a.registers else "dinov2",
            "mlp_ratio": round((1.5 if gated else 1) * a.mlp / a.width),  # SwiGLU: two thirds
            "use_swiglu_ffn": gated,
        }
        return config | ({"num_register_tokens": a.registers} if a.registers else {})
    config["intermediate_size"] = a.mlp
    if a.family == "clip":
        return config | {"model_type": "clip_vision_model", "projection_dim": a.projection or 512}
    return config | {"model_type": "vit", "qkv_bias": True}


_FOREIGN = {
    "timm ViT": r"blocks\.0\.attn\.qkv\.weight",
    "original DINOv2": r"blocks\.0\.ls1\.gamma",
    "open_clip": r"(visual\.)?transformer\.resblocks\.0\..*",
    "learned mask, not a": r"mask",
    "text model (of another family than BERT's)": r".*embeddings\.word_embeddings\.weight",
}


def family_title(keys: Iterable[str]) -> str:
    """What a checkpoint with these tensor names is, in words; '' if unknown."""
    keys = list(keys)
    for layout in LAYOUTS.values():
        if any(re.fullmatch(WRAPPERS, root) for root in layout.roots(keys)):
            return layout.title
    for title, pattern in reversed(_FOREIGN.items()):
        if any(re.fullmatch(pattern, key) for key in keys):
            return title
    return ""
