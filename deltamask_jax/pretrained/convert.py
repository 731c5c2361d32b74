"""An opened checkpoint to our parameters: every tensor checked, transposed, renamed."""

import re
import reprlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from deltamask_jax.models import Model, Params
from deltamask_jax.pretrained import foreign, layouts, positions
from deltamask_jax.pretrained.checkpoints import Checkpoint
from deltamask_jax.pretrained.tensors import FLOATS, Tensor, printable

_NATIVE = re.compile(r"((?:.*[./])??)(?:embedding|stem/conv)/kernel")  # in every tree of Flax and ours
_TREE_IGNORED = r"(head|output_projection|pre_logits)/.*"  # classifier heads of native trees
_ERAS = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}  # names before Flax Linen
_ERAS |= {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
_LISTED = 20  # names in one error; the rest is counted


def convert(checkpoint: Checkpoint, model: Model) -> Params:
    """Brings an opened checkpoint into the model's names, axes and image size; see `load`."""
    shapes = layouts.parameter_shapes(model)
    checkpoint = foreign.translated(checkpoint, model.architecture)
    if roots := {found[1] for key in checkpoint.tensors if (found := _NATIVE.fullmatch(key))}:
        _check_gelu(checkpoint, model)
        tensors = _renamed(checkpoint, roots, _linen)
        wanted = {p: layouts.Stored(p, s, tuple(range(len(s)))) for p, s in shapes.items()}
        ignored = _TREE_IGNORED
    else:
        tensors, ignored = _published(checkpoint, model)
        wanted = layouts.stored(model.architecture, shapes)
    missing = [tensor.key for tensor in wanted.values() if tensor.key not in tensors]
    known = {tensor.key for tensor in wanted.values()}
    unexpected = [k for k in tensors if k not in known and not re.fullmatch(ignored, k)]
    misshaped = [
        f"{printable(key)} {tensors[key].dtype}{[*tensors[key].shape]}, not {expected}"
        for path, key in ((path, stored.key) for path, stored in wanted.items())
        if key in tensors and (expected := _expected(tensors[key], wanted[path], path, model))
    ]
    _refuse(checkpoint, model, {"missing": missing, "unexpected": unexpected, "misshaped": misshaped})
    flat, broken = {}, []
    for path, stored in wanted.items():
        array = tensors[stored.key]().astype(np.float32)
        if not np.isfinite(array).all():
            broken.append(stored.key)
        elif path == layouts.POSITIONS:
            table = array[None] if array.ndim == 2 else array
            flat[path] = jnp.asarray(_at_image_size(table, shapes[path], model))
        else:
            flat[path] = jnp.asarray(stored.read(array, shapes[path]))
    _refuse(checkpoint, model, {"with NaN or infinite weights": broken})
    return traverse_util.unflatten_dict(flat, sep="/")


def _refuse(checkpoint: Checkpoint, model: Model, problems: dict[str, list[str]]) -> None:
    report = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in problems.items() if names]
    if report:
        raise ValueError(f"{checkpoint.source} does not fit {model.name}: {'; '.join(report)}")


def _expected(tensor: Tensor, stored: layouts.Stored, path: str, model: Model) -> str:
    """What a tensor ought to be, if it is not; '' if it is."""
    fits = tensor.shape == stored.shape
    if path == layouts.POSITIONS and len(tensor.shape) == len(stored.shape):
        *ones, tokens, width = tensor.shape
        patches = tokens - int(model.architecture.class_token)
        fits = set(ones) <= {1} and width == stored.shape[-1] and positions.is_grid(patches)
    if fits and tensor.dtype in FLOATS:
        return ""
    grid = " or another square grid" if path == layouts.POSITIONS else ""
    kinds = "" if tensor.dtype in FLOATS else f" of {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
    return f"{[*stored.shape]}{grid}{kinds}"


def _published(checkpoint: Checkpoint, model: Model) -> tuple[dict[str, Tensor], str]:
    """Tensors without prefix, and what may be ignored; refuses another family."""
    layout = layouts.LAYOUTS[model.architecture.family]
    roots = layout.roots(checkpoint.tensors)
    if not roots:
        found = layouts.family_title(checkpoint.tensors)
        what = f"a {found} checkpoint" if found else "no checkpoint of a known family"
        raise ValueError(f"{checkpoint.source} is {what}, but {model.name} needs {layout.title}")
    _check_config(checkpoint, model, layout)
    return _renamed(checkpoint, roots, layout.bare), layout.ignored


def _renamed(checkpoint: Checkpoint, roots: set[str], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Tensors without what wrappers put before their names, and renamed; refuses what remains unclear."""
    shown = " and ".join(repr(printable(root)) for root in sorted(roots)[:3])
    if len(roots) > 1:
        raise ValueError(f"{checkpoint.source} holds several networks, below {shown}; keep one of them")
    (root,) = roots
    if not re.fullmatch(layouts.WRAPPERS, root):
        raise ValueError(
            f"{checkpoint.source} names its tensors below {shown}, as another network or a wrapper does; "
            f"if it is a wrapper, rename them without it"
        )
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        name = rename(key.removeprefix(root))
        if name in tensors:
            raise ValueError(f"{checkpoint.source} holds {printable(name)} twice, also as {printable(key)}")
        tensors[name] = tensor
    return tensors


def _check_config(checkpoint: Checkpoint, model: Model, layout: layouts.Layout) -> None:
    """Refuses what shapes cannot show: another head count, activation or LayerNorm epsilon.

    A config.json may be of another program, or of another file of its folder: then it says nothing.
    """
    config = checkpoint.config.get("vision_config") or checkpoint.config
    if not isinstance(config, dict):
        raise ValueError(f"{checkpoint.source}: vision_config in config.json is no object; fetch it again")
    if model.architecture.family == "convmixer":
        return
    ours = layouts.huggingface_config(model.architecture)
    if checkpoint.shares_folder and not _describes(config, ours, layout):
        return
    for field in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        if field in config and config[field] != ours[field]:
            beside = "; if it is of another file, move it away" if checkpoint.shares_folder else ""
            raise ValueError(
                f"{checkpoint.source}: config.json says {field} {reprlib.repr(config[field])}, "
                f"but {model.name} has {ours[field]!r}; choose the model it was trained as{beside}"
            )


def _describes(config: dict[str, Any], ours: dict[str, Any], layout: layouts.Layout) -> bool:
    """Whether a config.json is of a network of this format and size, as far as it says."""
    kind = config.get("model_type", layout.model_types[0])
    if kind not in layout.model_types:
        known = {kind for other in layouts.LAYOUTS.values() for kind in other.model_types}
        # ViT's relatives say another type; text models have no patches.
        if kind in known or "patch_size" not in config:
            return False
    return all(
        field not in config or config[field] == ours[field]
        for field in ("hidden_size", "num_hidden_layers", "patch_size", "vocab_size")
        if field in ours
    )


def _check_gelu(checkpoint: Checkpoint, model: Model) -> None:
    """Flax's GELU is the tanh approximation and its epsilon 1e-6; transformers' ViT differs in both."""
    name = model.name.removeprefix("timm_")
    if checkpoint.flax and name.startswith("vit_"):
        raise ValueError(
            f"{checkpoint.source} was trained by Flax code, whose GELU and LayerNorm differ from "
            f"{model.name}'s; set model.name='augreg_{name}'"
        )


def _linen(key: str) -> str:
    return "/".join(_ERAS.get(part, part) for part in key.split("/"))


def _at_image_size(table: np.ndarray, shape: tuple[int, ...], model: Model) -> np.ndarray:
    a = model.architecture
    return positions.resize(table, shape[1], int(a.class_token), antialias=a.registers > 0)


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(map(printable, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")
