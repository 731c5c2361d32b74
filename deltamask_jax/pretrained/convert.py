"""An opened checkpoint to our parameters: every tensor checked, transposed, renamed."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from deltamask_jax.models import Model, Params
from deltamask_jax.pretrained import layouts, positions
from deltamask_jax.pretrained.checkpoints import Checkpoint

_TREE_IGNORED = r"(head|output_projection|pre_logits)/.*"  # classifier heads of native trees
_ERAS = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}  # names before Flax Linen
_ERAS |= {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
_LISTED = 20  # names in one error; the rest is counted


def convert(checkpoint: Checkpoint, model: Model) -> Params:
    """Brings an opened checkpoint into the model's names, axes and image size; see `load`."""
    shapes = layouts.parameter_shapes(model)
    if any(re.search(r"(^|/)(embedding|stem/conv)/kernel$", key) for key in checkpoint.tensors):
        _check_gelu(checkpoint, model)
        tensors = {_linen(key): reader for key, reader in checkpoint.tensors.items()}
        wanted = {p: layouts.Stored(p, s, tuple(range(len(s)))) for p, s in shapes.items()}
        ignored = _TREE_IGNORED
    else:
        tensors, ignored = _published(checkpoint, model)
        wanted = layouts.stored(model.architecture, shapes)
    missing = [tensor.key for tensor in wanted.values() if tensor.key not in tensors]
    known = {tensor.key for tensor in wanted.values()}
    unexpected = [k for k in tensors if k not in known and not re.fullmatch(ignored, k)]
    misshaped, flat = [], {}
    for path, tensor in wanted.items():
        if tensor.key not in tensors:
            continue
        array = tensors[tensor.key]()
        grid = path == layouts.POSITIONS and array.ndim == len(tensor.shape)
        fits = array.shape[-1:] == tensor.shape[-1:] if grid else array.shape == tensor.shape
        if not fits or not jnp.issubdtype(array.dtype, jnp.floating):
            misshaped.append(f"{tensor.key} {array.dtype}{[*array.shape]}, not {[*tensor.shape]}")
            continue
        array = array.astype(np.float32)
        if grid:
            array = _at_image_size(array[None] if array.ndim == 2 else array, shapes[path], model)
        else:
            array = tensor.read(array, shapes[path])
        flat[path] = jnp.asarray(array)
    problems = [("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped)]
    report = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in problems if names]
    if report:
        raise ValueError(f"{checkpoint.source} does not fit {model.name}: {'; '.join(report)}")
    return traverse_util.unflatten_dict(flat, sep="/")


def _published(checkpoint: Checkpoint, model: Model) -> tuple[dict[str, Any], str]:
    """Tensors without prefix, and what may be ignored; refuses another family."""
    layout = layouts.LAYOUTS[model.architecture.family]
    found = layouts.family_title(list(checkpoint.tensors))
    if found != layout.title:
        what = f"a {found} checkpoint" if found else "no checkpoint of a known family"
        raise ValueError(f"{checkpoint.source} is {what}, but {model.name} needs {layout.title}")
    _check_config(checkpoint, model)
    tensors = {re.sub(rf"^{layout.prefix}", "", k): v for k, v in checkpoint.tensors.items()}
    return tensors, layout.ignored


def _check_config(checkpoint: Checkpoint, model: Model) -> None:
    """Refuses what shapes cannot show: another head count, activation or LayerNorm epsilon."""
    config = checkpoint.config.get("vision_config") or checkpoint.config
    if not config or model.architecture.family == "convmixer":
        return
    ours = layouts.huggingface_config(model.architecture)
    for field in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        if field in config and config[field] != ours[field]:
            raise ValueError(
                f"{checkpoint.source}: config.json says {field} {config[field]!r}, "
                f"but {model.name} has {ours[field]!r}; choose the model it was trained as"
            )


def _check_gelu(checkpoint: Checkpoint, model: Model) -> None:
    """Flax's GELU is the tanh approximation and its epsilon 1e-6; transformers' ViT differs in both."""
    if checkpoint.flax and model.name.startswith("vit_"):
        raise ValueError(
            f"{checkpoint.source} was trained by Flax code, whose GELU and LayerNorm differ from "
            f"{model.name}'s; set model.name='augreg_{model.name}'"
        )


def _linen(key: str) -> str:
    return "/".join(_ERAS.get(part, part) for part in key.split("/"))


def _at_image_size(table: np.ndarray, shape: tuple[int, ...], model: Model) -> np.ndarray:
    a = model.architecture
    return positions.resize(table, shape[1], int(a.class_token), antialias=a.registers > 0)


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
