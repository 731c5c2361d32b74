"""Small trainable parts of a frozen network: biases, bottleneck adapters, prompts, low-rank updates.

Every function gives the parts' initial values by '/'-joined path, in the network's own tree of parameters,
and `grow` puts them there. Biases replace the tree's own and low-rank updates are added to its kernels, so
any network runs them; adapters and prompts are new parameters, which `vit.py` runs where the tree has them.

    biases       BitFit, arXiv 2106.10199
    bottlenecks  Houlsby et al., arXiv 1902.00751; here one per block, on the MLP's branch
    prompts      Visual Prompt Tuning, arXiv 2203.12119
    low_rank     LoRA, arXiv 2106.09685; here of queries and values

All but the prompts leave the network's function as it is until they are trained. Random initial values come
from the public hash, so that whoever knows the seed knows them and only changes have to travel. Low-rank
updates of which even less is trained are in `subspaces.py`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from deltamask_jax.public_random import Key, uniforms

Params = dict[str, Any]
Parts = dict[str, jax.Array | np.ndarray]  # path -> array

_BLOCK = "Transformer/encoderblock_{}"
_PROJECTION = _BLOCK + "/MultiHeadDotProductAttention_0/{}"


def biases(params: Params, pattern: str) -> Parts:
    """Every bias whose whole path matches `pattern`, as it is: attention, MLP, LayerNorm, patch embedding."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {p: x for p, x in flat.items() if p.split("/")[-1] == "bias" and re.fullmatch(pattern, p)}


def bottlenecks(key: Key, width: int, blocks: Sequence[int], hidden: int) -> Parts:
    """Adapters x + up(gelu(down(x))) from `width` to `hidden` channels and back; `up` starts at zero."""
    parts = uniform_parts(
        key,
        {_BLOCK.format(i) + "/adapter/down/kernel": (width, hidden) for i in blocks},
        math.sqrt(3 / width),
    )
    for i in blocks:
        adapter = _BLOCK.format(i) + "/adapter"
        parts[f"{adapter}/down/bias"] = np.zeros(hidden, np.float32)
        parts[f"{adapter}/up/kernel"] = np.zeros((hidden, width), np.float32)
        parts[f"{adapter}/up/bias"] = np.zeros(width, np.float32)
    return parts


def prompts(key: Key, width: int, inputs: int, blocks: Sequence[int], count: int, deep: bool) -> Parts:
    """`count` tokens more: fresh ones in each of the blocks (deep), or only before the first (shallow).

    Uniform with the bound of Xavier's rule for an embedding of so many inputs (those of an image's patch; of
    texts the width): as VPT starts them (arXiv 2203.12119).
    """
    names = [f"Transformer/prompts_{i}" for i in (blocks if deep else blocks[:1])]
    return uniform_parts(key, dict.fromkeys(names, (count, width)), math.sqrt(6 / (inputs + width)))


def low_rank(key: Key, params: Params, blocks: Sequence[int], rank: int) -> Parts:
    """Query and value kernels W as W + A B, with A f32[inputs, rank] and B f32[rank, outputs], zero at first.

    LoRA's factor α/rank is left out: under Adam it acts like the learning rate (§4.1).
    """
    shapes = factor_shapes(params, blocks, rank)
    before = {path: shape for path, shape in shapes.items() if path.endswith("lora_a")}
    inputs = next(iter(before.values()))[0]
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items() if path not in before}
    return uniform_parts(key, before, math.sqrt(3 / inputs)) | zeros


def factor_shapes(params: Params, blocks: Sequence[int], rank: int) -> dict[str, tuple[int, int]]:
    """Shapes of LoRA's factors: A of every query and value kernel, then B."""
    flat = traverse_util.flatten_dict(params, sep="/")
    names = [_PROJECTION.format(i, projection) for i in blocks for projection in ("query", "value")]
    inputs = {name: flat[f"{name}/kernel"].shape[0] for name in names}
    before = {f"{name}/lora_a": (inputs[name], rank) for name in names}
    return before | {f"{name}/lora_b": (rank, flat[f"{name}/kernel"].size // inputs[name]) for name in names}


def grow(params: Params, parts: Parts) -> Params:
    """`params` with the parts in it; a pure function, also of traced parts."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, part in parts.items():
        module, _, name = path.rpartition("/")
        if name == "lora_a":
            kernel = flat[f"{module}/kernel"]
            flat[f"{module}/kernel"] = kernel + (part @ parts[f"{module}/lora_b"]).reshape(kernel.shape)
        elif name != "lora_b":
            flat[path] = part
    return traverse_util.unflatten_dict(flat, sep="/")


def uniform_parts(key: Key, shapes: dict[str, tuple[int, int]], bound: float) -> Parts:
    """Uniform on −bound … bound, one stream for all."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    u = (uniforms(key, sum(sizes)).astype(np.float32) + 0.5) / 65536
    pieces = np.split(bound * (2 * u - 1), np.cumsum(sizes)[:-1])
    return {path: x.reshape(shape) for (path, shape), x in zip(shapes.items(), pieces, strict=True)}
