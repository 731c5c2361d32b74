"""Low-rank updates of kernels of which only very little is trained; the rest is drawn from the public hash.

Every function gives a `Subspace`: what is trained, what is frozen, and the low-rank factors that both make,
as `adapters.grow` takes them. All of the frozen part follows from the seed and is never sent.

    square  Fed-SB, arXiv 2502.15436: W + A R B, where only R, a rank × rank matrix per kernel, is trained.
            ΔW is linear in R, so that the mean of clients' R is exactly the mean of their updates
    shared  Uni-LoRA, arXiv 2506.00799: every entry of every factor of LoRA is one of the `size` entries of a
            single vector. Of entries that share one, n_j, each is its value / √n_j, which keeps lengths
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models.adapters import Params, Parts, factor_shapes, uniform_parts
from deltamask_jax.public_random import Key, uniforms

START = 0.02  # the shared vector starts uniform on ± this, as in the authors' code


class Subspace(NamedTuple):
    """Low-rank updates by few numbers.

    Attributes:
        trained: their initial values.
        frozen: what both ends draw from the seed.
        expand: (frozen, trained) -> parts for `adapters.grow`; a pure function, also of traced parts.
    """

    trained: Parts
    frozen: Parts
    expand: Callable[[Any, Any], Parts]


def whole(parts: Parts) -> Subspace:
    """All of the parts are trained, and stand for themselves."""
    return Subspace(parts, {}, lambda frozen, trained: trained)


def square(key: Key, index: FlatIndex, rank: int) -> Subspace:
    """R f32[rank, rank], zero at first, between A f32[inputs, rank] and B f32[rank, outputs], per kernel.

    A's columns and B's rows are nearly orthonormal: independent entries of variance 1/inputs and 1/outputs,
    so that ‖A R B‖ ≈ ‖R‖. The authors take them from the SVD of a first gradient, which would have to travel.

    Raises:
        ValueError: a kernel is too small for the rank.
    """
    sides = {
        path.removesuffix("/kernel"): _sides(path, shape)
        for path, shape in zip(index.paths, index.shapes, strict=True)
    }
    smallest = min(min(pair) for pair in sides.values())
    if rank > smallest:
        raise ValueError(
            f"config.peft.fedsb_rank={rank}: the smallest kernel has {smallest} inputs or outputs"
        )
    before = {f"{name}/lora_a": (inputs, rank) for name, (inputs, _) in sides.items()}
    after = {f"{name}/lora_b": (rank, outputs) for name, (_, outputs) in sides.items()}
    drawn = uniform_parts(key, before | after, 1.0)
    frozen: Parts = {
        path: x * np.float32(math.sqrt(3 / (len(x) if path in before else x.shape[1])))
        for path, x in drawn.items()
    }
    trained: Parts = {f"{name}/square": np.zeros((rank, rank), np.float32) for name in sides}

    def expand(frozen: Parts, trained: Parts) -> Parts:
        return {
            path: x if path in before else trained[path.replace("/lora_b", "/square")] @ x
            for path, x in frozen.items()
        }

    return Subspace(trained, frozen, expand)


def shared(key: Key, params: Params, blocks: Sequence[int], rank: int, size: int) -> Subspace:
    """The factors of LoRA for queries and values, all from one vector f32[size].

    Entries are dealt out evenly: in a random order, as cards are. Both factors start small and not at zero,
    where their product would have no gradient.

    Raises:
        ValueError: there are fewer entries than the vector has.
    """
    shapes = factor_shapes(params, blocks, rank)
    entries = sum(math.prod(shape) for shape in shapes.values())
    if size > entries:
        raise ValueError(f"config.peft.unilora_size={size}: LoRA's factors have only {entries} entries")
    u = uniforms(key, size + 2 * entries)
    vector = START * (2 * (u[:size].astype(np.float32) + np.float32(0.5)) / 65536 - 1)
    order = np.argsort(u[size::2].astype(np.uint32) << 16 | u[size + 1 :: 2], kind="stable")
    owner = np.empty(entries, np.int32)
    owner[order] = np.arange(entries) % size
    share = 1 / np.sqrt(np.bincount(owner, minlength=size)).astype(np.float32)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]

    def expand(frozen: Parts, trained: Parts) -> Parts:
        values = (trained["shared"] * frozen["share"])[frozen["owner"]]
        pieces = zip(shapes.items(), jnp.split(values, ends), strict=True)
        return {path: piece.reshape(shape) for (path, shape), piece in pieces}

    return Subspace({"shared": vector}, {"owner": owner, "share": share}, expand)


def _sides(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel: of attention [c, heads, c/heads], `out` [heads, c/heads, c], or MLP."""
    projects = path.rsplit("/", 2)[-2] in ("query", "key", "value")
    split = 1 if projects else len(shape) - 1
    return math.prod(shape[:split]), math.prod(shape[split:])
