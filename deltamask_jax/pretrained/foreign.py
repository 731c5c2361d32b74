"""Checkpoints with the names of timm, the original DINOv2 and OpenCLIP, as Hugging Face would name them.

Queries, keys and values lie fused there. Nothing is read here: what is renamed, cut or turned is so when it
is read.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deltamask_jax.pretrained import positions
from deltamask_jax.pretrained.checkpoints import Checkpoint
from deltamask_jax.pretrained.layouts import LAYOUTS, WRAPPERS
from deltamask_jax.pretrained.tensors import Tensor, one_line, printable

_TIMM = {
    r"cls_token": "embeddings.cls_token",
    r"mask_token": "embeddings.mask_token",
    r"reg_token|register_tokens": "embeddings.register_tokens",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(.*)": r"layernorm.\1",
    r"head\.(.*)": r"classifier.\1",
    r"blocks\.(\d+)\.attn\.qkv\.(.*)": r"encoder.layer.\1.attention.attention.{}.\2",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layer.\1.attention.output.dense.\2",
}
_TIMM_VIT = _TIMM | {
    r"blocks\.(\d+)\.norm1\.(.*)": r"encoder.layer.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(.*)": r"encoder.layer.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(.*)": r"encoder.layer.\1.intermediate.dense.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(.*)": r"encoder.layer.\1.output.dense.\2",
}
_DINOV2 = _TIMM | {
    r"blocks\.(\d+)\.(norm[12])\.(.*)": r"encoder.layer.\1.\2.\3",
    r"blocks\.(\d+)\.ls([12])\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"blocks\.(\d+)\.mlp\.(fc[12])\.(.*)": r"encoder.layer.\1.mlp.\2.\3",
    r"blocks\.(\d+)\.mlp\.w12\.(.*)": r"encoder.layer.\1.mlp.weights_in.\2",
    r"blocks\.(\d+)\.mlp\.w3\.(.*)": r"encoder.layer.\1.mlp.weights_out.\2",
}
_BLOCK = r"visual\.transformer\.resblocks\.(\d+)\."
_OPEN_CLIP = {
    r"visual\.class_embedding": "embeddings.class_embedding",
    r"visual\.positional_embedding": "embeddings.position_embedding.weight",
    r"visual\.conv1\.(.*)": r"embeddings.patch_embedding.\1",
    r"visual\.ln_pre\.(.*)": r"pre_layrnorm.\1",
    r"visual\.ln_post\.(.*)": r"post_layernorm.\1",
    r"visual\.proj": "visual_projection.weight",
    _BLOCK + r"ln_([12])\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
    _BLOCK + r"attn\.in_proj_(.*)": r"encoder.layers.\1.self_attn.{}_proj.\2",
    _BLOCK + r"attn\.out_proj\.(.*)": r"encoder.layers.\1.self_attn.out_proj.\2",
    _BLOCK + r"mlp\.c_fc\.(.*)": r"encoder.layers.\1.mlp.fc1.\2",
    _BLOCK + r"mlp\.c_proj\.(.*)": r"encoder.layers.\1.mlp.fc2.\2",
    r"(text\.|transformer\.|token_embedding\.|ln_final\.|positional_embedding|attn_mask).*": "logit_scale",
}
TIMM = (1e-6, "gelu")  # epsilon and activation of its ViT; that of transformers has another epsilon
_FORMATS = {  # family -> a name that only this format has, and all of its names
    "vit": (r"blocks\.0\.attn\.qkv\.weight", _TIMM_VIT, ("query", "key", "value")),
    "dinov2": (r"blocks\.0\.ls1\.gamma", _DINOV2, ("query", "key", "value")),
    "clip": (r"visual\.transformer\.resblocks\.0\.attn\.in_proj_weight", _OPEN_CLIP, ("q", "k", "v")),
}


def translated(checkpoint: Checkpoint, architecture: Any) -> Checkpoint:
    """The checkpoint with Hugging Face's names for this network; itself, if it has none of the names above.

    Raises:
        ValueError: an OpenCLIP checkpoint of another activation, or that does not say which.
    """
    family = architecture.family
    if family not in _FORMATS or (family == "vit" and (architecture.eps, architecture.activation) != TIMM):
        return checkpoint
    marker, names, parts = _FORMATS[family]
    bare = {re.sub(rf"^{WRAPPERS}", "", key): tensor for key, tensor in checkpoint.tensors.items()}
    if not any(re.fullmatch(marker, key) for key in bare) or len(bare) < len(checkpoint.tensors):
        return checkpoint
    if family == "clip":
        _check_activation(checkpoint, architecture.activation)
    found: dict[str, Tensor] = {}

    def add(name: str, tensor: Tensor) -> None:
        if name in found and not re.fullmatch(LAYOUTS[family].ignored, name):
            raise ValueError(f"{checkpoint.source} holds {printable(name)} twice, under names of two formats")
        found[name] = tensor

    for key, tensor in bare.items():
        name = next((m.expand(new) for old, new in names.items() if (m := re.fullmatch(old, key))), key)
        if "{}" in name:
            for i, part in enumerate(parts):
                add(name.format(part), _third(tensor, i))
        elif name == "visual_projection.weight":
            add(name, _changed(tensor, tensor.shape[::-1], np.transpose))
        elif name == "embeddings.position_embeddings":
            add(name, _with_cls(tensor))
        else:
            add(name, tensor)
    return dataclasses.replace(checkpoint, tensors=found)


def _changed(tensor: Tensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return dataclasses.replace(tensor, shape=shape, read=lambda: change(tensor()))


def _third(tensor: Tensor, i: int) -> Tensor:
    """Queries, keys or values of a fused tensor [3 c, …]."""
    if not tensor.shape or tensor.shape[0] % 3:
        raise ValueError(f"{tensor.source}: {[*tensor.shape]} are no queries, keys and values of one size")
    rows = tensor.shape[0] // 3
    return _changed(tensor, (rows, *tensor.shape[1:]), lambda x: x[i * rows : (i + 1) * rows])


def _with_cls(tensor: Tensor) -> Tensor:
    """Positions with one for cls: timm's networks with registers leave it out, it is in their cls token."""
    if len(tensor.shape) != 3 or not positions.is_grid(tensor.shape[1]):
        return tensor
    shape = (tensor.shape[0], tensor.shape[1] + 1, tensor.shape[2])
    return _changed(tensor, shape, lambda x: np.pad(x, ((0, 0), (1, 0), (0, 0))))


def _check_activation(checkpoint: Checkpoint, ours: str) -> None:
    """Neither names nor shapes of OpenCLIP show the activation; its own config does."""
    source = Path(checkpoint.source)
    file = (source if source.is_dir() else source.parent) / "open_clip_config.json"
    try:
        quick = json.loads(file.read_text())["model_cfg"].get("quick_gelu", False)
    except FileNotFoundError:
        raise ValueError(
            f"{checkpoint.source} has OpenCLIP's names, which do not show an activation: put its {file.name} "
            'beside it; for OpenAI\'s weights {"model_cfg": {"quick_gelu": true}}'
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from None
    theirs = "quick_gelu" if quick else "gelu"
    if theirs != ours:
        raise ValueError(f"{file} says {theirs}, but this network has {ours}: choose one trained with it")
