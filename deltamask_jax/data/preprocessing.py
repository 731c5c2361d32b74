"""From stored images to network input, as each family of models was trained.

The resize is Pillow's, which the published CLIP, DINOv2, ViT and ConvMixer weights were evaluated
with: a separable filter widened when shrinking (antialiased), rounded to 8 bits after each pass,
width before height (Pillow 13 turns the order for some tall images, which moves a fifth of their
pixels by one grey level). Here a pass is one matrix product over all images of a size.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # half-width of the filter, in source pixels


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes network input.

    Attributes:
        size: side of the square the network takes, pixels.
        mean, std: per channel (RGB), on values scaled to 0 … 1.
        resize: 'exact' squeezes the image to size × size; 'shorter' keeps its aspect and brings the
            shorter side to size / crop pixels, then cuts the central size × size.
        crop: part of the resized shorter side that is kept, 0 < crop ≤ 1; 1 keeps it all.
        filter: 'bilinear' or 'bicubic' (a = −0.5), both antialiased.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "shorter"
    crop: float = 1.0
    filter: str = "bicubic"

    def __post_init__(self):
        if self.resize not in ("exact", "shorter"):
            raise ValueError(f"resize must be 'exact' or 'shorter', got {self.resize!r}")
        if self.filter not in _SUPPORT:
            raise ValueError(f"filter must be 'bilinear' or 'bicubic', got {self.filter!r}")
        if self.size < 1 or not 0 < self.crop <= 1:
            raise ValueError(f"size must be ≥ 1 and crop in (0, 1], got {self.size} and {self.crop}")
        if self.resize == "exact" and self.crop != 1:
            raise ValueError("resize='exact' keeps the whole image: crop must be 1")

    def at(self, size: int) -> "Preprocessing":
        """The same at another input size."""
        return dataclasses.replace(self, size=size)


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

# OpenAI's CLIP: shorter side to 224, bicubic, centre crop.
CLIP = Preprocessing(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# DINOv2: shorter side to 256, bicubic, centre crop 224.
IMAGENET = Preprocessing(224, _IMAGENET_MEAN, _IMAGENET_STD, crop=0.875)
# timm's ConvMixer: the same constants, crop fraction 0.96 (shorter side to 233).
CONVMIXER = dataclasses.replace(IMAGENET, crop=0.96)
# Google's ViT and AugReg: squeezed to 224 × 224, bilinear, values to −1 … 1.
INCEPTION = Preprocessing(224, _HALF, _HALF, resize="exact", filter="bilinear")
# The embedded glyph network: squeezed to 32 × 32, bilinear, values to −1 … 1.
GLYPH = INCEPTION.at(32)


def apply(images: np.ndarray | Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Resizes, crops, repeats grayscale as RGB and normalises.

    Args:
        images: u8[n, h, w] or u8[n, h, w, c] with c = 1 or 3, or a list of u8[h, w] or u8[h, w, c]
            of any sizes.
        preprocessing: what to do.

    Returns:
        f32[n, size, size, 3].

    Raises:
        ValueError: the images are not uint8, have no pixels, or have neither one nor three channels.
    """
    p = preprocessing
    if isinstance(images, np.ndarray):
        pixels = _resize_and_crop(_with_channels(images, 3), p)
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    else:
        pixels = np.empty((len(images), p.size, p.size, 3), np.uint8)
        for i, image in enumerate(images):
            pixels[i] = _resize_and_crop(_with_channels(image, 2)[None], p)[0]
    # A row of pixels at a time: NumPy's inner loop over three channels alone is eight times slower.
    mean, std = (np.tile(np.asarray(value, np.float32), p.size) for value in (p.mean, p.std))
    rows = pixels.reshape(len(pixels), p.size, 3 * p.size).astype(np.float32)
    rows *= 1 / (255 * std)
    rows -= mean / std
    return rows.reshape(pixels.shape)


def _with_channels(images: np.ndarray, ndim: int) -> np.ndarray:
    """Images with a channel axis; `ndim` is what they have without one."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}: scale them to 0 … 255 and round first")
    if images.ndim == ndim:
        images = images[..., None]
    if images.ndim != ndim + 1 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images must be [h, w], [h, w, 1] or [h, w, 3], got shape {images.shape[ndim - 2 :]}"
        )
    if 0 in images.shape[ndim - 2 :]:
        raise ValueError(f"images must have pixels, got shape {images.shape[ndim - 2 :]}")
    return images


def _resize_and_crop(images: np.ndarray, p: Preprocessing) -> np.ndarray:
    """u8[n, h, w, c] → u8[n, size, size, c]."""
    height, width = images.shape[1:3]
    if p.resize == "exact":
        rows, columns = p.size, p.size
    else:
        short = max(p.size, math.floor(p.size / p.crop + 1e-6))
        rows, columns = short * height // min(height, width), short * width // min(height, width)
    top, left = (rows - p.size) // 2, (columns - p.size) // 2
    above, down = _weights(height, rows, top, p.size, p.filter)
    before, across = _weights(width, columns, left, p.size, p.filter)
    images = images[:, above : above + down.shape[1], before : before + across.shape[1]]
    if width != columns:
        images = _round(np.einsum("xw,nhwc->nhxc", across, images.astype(np.float32), optimize=True))
    if height != rows:
        images = _round(np.einsum("yh,nhxc->nyxc", down, images.astype(np.float32), optimize=True))
    return images


def _round(values: np.ndarray) -> np.ndarray:
    np.add(values, np.float32(0.5), out=values)
    np.clip(values, 0, 255, out=values)  # the filter overshoots at edges
    return values.astype(np.uint8)


@functools.lru_cache(maxsize=64)  # a photograph's matrix may take megabytes
def _weights(source: int, target: int, start: int, size: int, filter: str) -> tuple[int, np.ndarray]:
    """One pass of the resize as a matrix, only what the crop keeps and only over the pixels that it reads.

    Args:
        source, target: length before and after, pixels.
        start, size: which pixels of the result the crop keeps.

    Returns:
        The first source pixel read, and f32[size, pixels read]; rows sum to 1. Where source equals target,
        it is the identity over what is kept.
    """
    if source == target:
        return start, np.eye(size, dtype=np.float32)
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (np.arange(start, start + size) + 0.5)[:, None] * scale
    support = _SUPPORT[filter] * stretch
    first, last = (np.floor(centre + side + 0.5).astype(np.int64) for side in (-support, support))
    pixel = first + np.arange((last - first).max())  # Pillow's window
    inside = (pixel >= 0) & (pixel < np.minimum(last, source))
    weights = np.where(inside, _KERNEL[filter](np.abs((pixel + 0.5 - centre) / stretch)), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    low, high = max(first[0, 0], 0), min(last[-1, 0], source)
    matrix = np.zeros((size, high - low), np.float32)
    matrix[np.nonzero(inside)[0], pixel[inside] - low] = weights[inside]
    return int(low), matrix


def _bicubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_KERNEL = {"bilinear": lambda x: np.maximum(1 - x, 0.0), "bicubic": _bicubic}
