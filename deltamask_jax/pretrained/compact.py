"""The compact form of a fine-tuned network: mask bits and head, tied to the base they belong to.

One safetensors file: `mask` (u8, zstandard of the bits, first position in the lowest bit of the
first byte, in the order of `flat_index`), `head/kernel`, `head/bias`; its metadata names the
format, the model, the masking rule, d and the SHA-256 of the base parameters.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from flax import traverse_util
from safetensors import safe_open

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models import Model, Params
from deltamask_jax.pretrained.tensors import Tensor, printable, read_safetensors, write_safetensors

FORMAT = "deltamask-compact-1"
_PLAIN = re.compile(r"(?:[\w/|()]|\\[^\w]|\\w\+|\.\*?)*")  # no group is repeated, nothing counted
_MOST = 4  # groups, and as many repetitions
_NAMED = ("model", "image_size", "masked", "d", "base_sha256")  # metadata beside the format


def params_hash(params: Params) -> str:
    """SHA-256 over every parameter's path, shape and float32 bytes, sorted by path; hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf, dtype="<f4")
        digest.update(f"{path} {list(array.shape)}\n".encode())
        digest.update(array)
    return digest.hexdigest()


def export_compact(
    path: str | Path, model: Model, params: Params, mask: np.ndarray, head: dict[str, Any]
) -> int:
    """Writes the compact form and returns its size in bytes.

    Args:
        path: file to write.
        model: what the parameters belong to.
        params: the *base* parameters, no mask applied.
        mask: bool[d] (or 0/1), in the order of the flat index.
        head: {'kernel': f32[feature_dim, classes], 'bias': f32[classes]}.

    Raises:
        ValueError: the mask has another length than the masked weights, or the head other shapes.
        OSError: the file cannot be written.
    """
    index = FlatIndex.create(params, model.masked)
    bits = np.asarray(mask).astype(bool)
    if bits.shape != (index.d,):
        raise ValueError(f"mask has shape {bits.shape}, but {model.name} masks {index.d} weights")
    tensors: dict[str, np.ndarray] = {}
    for name in ("kernel", "bias"):
        tensors[f"head/{name}"] = np.asarray(head[name], np.float32)
    if tensors["head/kernel"].shape != (model.feature_dim, *tensors["head/bias"].shape):
        shapes = " and ".join(str([*array.shape]) for array in tensors.values())
        raise ValueError(f"head has shapes {shapes}, but {model.name} gives {model.feature_dim} features")
    packed = zstandard.ZstdCompressor(level=9, write_checksum=True).compress(
        np.packbits(bits, bitorder="little").tobytes()
    )
    tensors["mask"] = np.frombuffer(packed, np.uint8)
    metadata = {
        "format": FORMAT,
        "model": model.name,
        "image_size": str(model.image_size),
        "masked": "|".join(map(re.escape, index.paths)),
        "d": str(index.d),
        "base_sha256": params_hash(params),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(Path(path), tensors, metadata)
    return Path(path).stat().st_size


def load_compact(path: str | Path, params: Params) -> tuple[Params, dict[str, np.ndarray]]:
    """Applies a compact file to the base it was trained on.

    Args:
        path: file written by `export_compact`.
        params: base parameters, as `pretrained.load` gives them for the same model and image size.

    Returns:
        (params with the mask applied, head {'kernel', 'bias'}).

    Raises:
        ValueError: no compact file, a damaged one, or one that belongs to another base.
    """
    tensors, about = read_safetensors(Path(path)), _metadata(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is no compact mask file ({FORMAT})")
    if lacking := [name for name in _NAMED if name not in about]:
        raise ValueError(f"{path} is damaged: its metadata lacks {', '.join(lacking)}")
    _check(path, tensors)
    found = params_hash(params)
    if about["base_sha256"] != found:
        raise ValueError(
            f"{path} belongs to {printable(about['model'])} at {printable(about['image_size'])} px with "
            f"SHA-256 {printable(about['base_sha256'], 17)}, but this base has {found[:16]}…; "
            "load that checkpoint"
        )
    index = _index(path, params, about["masked"])
    if about["d"] != str(index.d):
        raise ValueError(f"{path} is damaged: it masks {printable(about['d'], 17)} weights, not {index.d}")
    packed, size = tensors["mask"]().tobytes(), -(-index.d // 8)
    try:
        if zstandard.frame_content_size(packed) != size:  # before anything is allocated
            raise ValueError(f"{path} is damaged: its mask has not {index.d} bits")
        packed = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=index.d, bitorder="little")
    mask, kernels = index.unravel(bits), index.kernels(params)  # ty: ignore[invalid-argument-type]
    masked = index.merge(params, {k: kernels[k] * mask[k] for k in index.paths})
    return masked, {name: tensors[f"head/{name}"]() for name in ("kernel", "bias")}


def _metadata(path: str | Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _index(path: str | Path, params: Params, rule: str) -> FlatIndex:
    """The flat index of a file's rule: names, or what older exports wrote, an expression like
    'block_(4|5)/.*/kernel'. Others may take for ever to match, and are refused."""
    try:
        repeated = rule.count("*") + rule.count("+")
        if not _PLAIN.fullmatch(rule) or rule.count("(") > _MOST or repeated > _MOST:
            raise ValueError(f"{printable(rule)} names no parameters")
        return FlatIndex.create(params, rule)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: its rule of what is masked: {error}") from None


def _check(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Refuse other tensors than `export_compact` writes."""
    found = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in tensors.items()}
    if found != {"mask": ("uint8", 1), "head/kernel": ("float32", 2), "head/bias": ("float32", 1)}:
        raise ValueError(f"{path} is damaged: it holds other tensors than a mask and a head")
    if tensors["head/kernel"].shape[1:] != tensors["head/bias"].shape:
        raise ValueError(f"{path} is damaged: its head's kernel and bias differ in their classes")
    if not all(np.isfinite(tensors[f"head/{name}"]()).all() for name in ("kernel", "bias")):
        raise ValueError(f"{path} is damaged: its head holds NaN or infinite weights")
