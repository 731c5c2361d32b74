"""From stored images to network input, as each family of models was trained.

The resize is Pillow's, which the published CLIP, DINOv2, ViT and ConvMixer weights were evaluated
with: a separable filter widened when shrinking (antialiased), rounded to 8 bits after each pass,
width before height (Pillow 13 by itself turns the order for some tall images, which moves a fifth of
their pixels by one grey level).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deltamask_jax import threads

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_AT_ONCE = 16  # images per thread
_LONGEST = 1000  # times the shorter side; a picture of two passes is as high as the source between them


def rgb(image: Image.Image) -> np.ndarray:
    """A picture as u8[h, w, 3]; where it is transparent, white shows through.

    What lies below transparent pixels is no part of the picture. In icons and drawings it is often black, as
    they are.
    """
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return np.asarray(image.convert("RGB"))


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
        if self.filter not in _FILTERS:
            raise ValueError(f"filter must be 'bilinear' or 'bicubic', got {self.filter!r}")
        if self.size < 1 or not 0 < self.crop <= 1:
            raise ValueError(f"size must be ≥ 1 and crop in (0, 1], got {self.size} and {self.crop}")
        if self.resize == "exact" and self.crop != 1:
            raise ValueError("resize='exact' keeps the whole image: crop must be 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one prepared image."""
        return (self.size, self.size, 3)

    @property
    def dtype(self) -> Any:
        return np.float32

    def at(self, size: int) -> "Preprocessing":
        """The same at another input size."""
        return dataclasses.replace(self, size=size)

    def apply(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """See `apply`."""
        return apply(images, self)


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


def is_line(height: int, width: int) -> bool:
    """Whether one side is so much longer than the other that to resize it takes a multiple of its memory."""
    return max(height, width) > _LONGEST * min(height, width)


def apply(images: np.ndarray | Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Resizes, crops, repeats grayscale as RGB and normalises.

    Args:
        images: u8[n, h, w] or u8[n, h, w, c] with c = 1 or 3, or a list of u8[h, w] or u8[h, w, c]
            of any sizes.
        preprocessing: what to do.

    Returns:
        f32[n, size, size, 3].

    Raises:
        ValueError: the images are not uint8, have no pixels or are lines, or have neither one nor three
            channels.
    """
    p = preprocessing
    if isinstance(images, np.ndarray):
        images = _with_channels(images, 3)
    else:
        images = [_with_channels(image, 2) for image in images]
    pixels = np.empty((len(images), p.size, p.size, 3), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _AT_ONCE, len(images))):
            pixels[i] = _resize_and_crop(images[i], p)

    # Pillow resizes outside the interpreter lock.
    with threads.pool() as pool:
        list(pool.map(fill, range(0, len(images), _AT_ONCE)))
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
    if is_line(*images.shape[ndim - 2 : ndim]):
        raise ValueError(f"images must not be lines, got shape {images.shape[ndim - 2 :]}")
    return images


def _resize_and_crop(image: np.ndarray, p: Preprocessing) -> np.ndarray:
    """u8[h, w, c] → u8[size, size, c]; only what the crop keeps is computed."""
    height, width, channels = image.shape
    if p.resize == "exact":
        rows, columns = p.size, p.size
    else:
        short = max(p.size, math.floor(p.size / p.crop + 1e-6))
        rows, columns = short * height // min(height, width), short * width // min(height, width)
    above, below = _kept(height, rows, p.size)
    left, right = _kept(width, columns, p.size)
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    picture = picture.resize((p.size, height), _FILTERS[p.filter], (left, 0, right, height))
    picture = picture.resize((p.size, p.size), _FILTERS[p.filter], (0, above, p.size, below))
    return np.asarray(picture).reshape(p.size, p.size, channels)


def _kept(source: int, target: int, size: int) -> tuple[float, float]:
    """What part of a side of so many pixels the central `size` of `target` pixels come from."""
    start = (target - size) // 2
    return start * source / target, min((start + size) * source / target, source)
