"""Position embeddings for another grid, resized once, when a checkpoint is loaded."""

import math

import numpy as np

LARGEST = 1024  # side of a grid, in patches: images of 14,336 pixels at the usual patch of 14


def is_grid(patches: int) -> bool:
    """Whether so many patches form a square, and one that can be meant."""
    return 0 < patches <= LARGEST**2 and math.isqrt(patches) ** 2 == patches


def resize(table: np.ndarray, tokens: int, extra: int, antialias: bool = False) -> np.ndarray:
    """Resizes learned positions as torch's bicubic, align_corners=False, resizes an image.

    Every step is an elementwise float64 operation in a fixed order, so all machines get the same
    bits: the hash of a base checkpoint depends on it.

    Args:
        table: f32[1,t,c]; the first `extra` rows (cls) have no place on the grid and are kept.
        tokens: rows wanted, `extra` included.
        extra: rows that are no patches.
        antialias: torch's antialias=True, as DINOv2 with registers resizes.

    Returns:
        f32[1,tokens,c].

    Raises:
        ValueError: the patches of either grid do not form a square.
    """
    if not is_grid(table.shape[1] - extra) or not is_grid(tokens - extra):
        raise ValueError(f"positions of {table.shape[1]} and {tokens} tokens are not square grids")
    old, new = math.isqrt(table.shape[1] - extra), math.isqrt(tokens - extra)
    if old == new:
        return table
    grid = table[0, extra:].reshape(old, old, -1).astype(np.float64)
    weights = _antialiased(old, new) if antialias else _bicubic(old, new)
    for axis in (0, 1):
        lines = np.moveaxis(grid, axis, 0)
        grid = np.zeros((new, *lines.shape[1:]))
        for i, line in enumerate(lines):  # at most a few dozen lines
            grid += weights[:, i, None, None] * line
        grid = np.moveaxis(grid, 0, axis)
    patches = grid.reshape(1, new * new, -1).astype(np.float32)
    return np.concatenate([table[:, :extra].astype(np.float32), patches], axis=1)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel at distance |x| (Keys, 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
    """f64[new,old]: four taps, a = -0.75, borders repeated."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        source = np.floor(centre) + tap
        column = np.clip(source, 0, old - 1).astype(int)
        weights[np.arange(new), column] += _cubic(centre - source, -0.75)
    return weights


def _antialiased(old: int, new: int) -> np.ndarray:
    """f64[new,old]: a = -0.5, widened when shrinking, renormalised at the borders."""
    stretch = max(old / new, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * (old / new)
    weights = _cubic((np.arange(old)[None] + 0.5 - centre) / stretch, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)
