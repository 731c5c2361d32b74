"""What a round did inside the mask: how θ is spread, and where bits flipped, layer by layer."""

from typing import Any

import numpy as np

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.masks import SCALE

THETA_BINS = 16  # of equal width over 0 … 1


def layers(index: FlatIndex) -> list[tuple[str, int, int]]:
    """(path, first position, end) of every masked kernel."""
    ends = (*index.offsets[1:], index.d)
    return list(zip(index.paths, index.offsets, ends, strict=True))


def ones_between(packed: np.ndarray, start: int, end: int) -> int:
    """Set bits at positions start … end−1 over all rows of `np.packbits` output u8[k, ⌈d/8⌉]."""
    block = packed[:, start // 8 : -(-end // 8)].copy()
    block[:, 0] &= 0xFF >> start % 8
    block[:, -1] &= 0xFF << -end % 8 & 0xFF
    return int(np.bitwise_count(block).sum(dtype=np.int64))


def mask_diagnostics(index: FlatIndex, theta: np.ndarray, packed_flips: np.ndarray) -> dict[str, Any]:
    """One line of diagnostics.jsonl for a method that learns a mask.

    Args:
        theta: θ_g after the round, u16[d].
        packed_flips: the clients' flips as `np.packbits` of bool[k, d].

    Returns:
        theta_histogram: layer -> counts of θ in `THETA_BINS` bins;
        flip_rate_by_layer: layer -> flips per weight and client.
    """
    histogram, flips = {}, {}
    for path, start, end in layers(index):
        bins = theta[start:end] // (SCALE // THETA_BINS)
        histogram[path] = np.bincount(bins, minlength=THETA_BINS).tolist()
        flips[path] = ones_between(packed_flips, start, end) / (len(packed_flips) * (end - start))
    return {"theta_histogram": histogram, "flip_rate_by_layer": flips}
