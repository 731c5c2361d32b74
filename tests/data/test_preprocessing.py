"""Preprocessing against Pillow, the resize the published weights were evaluated with."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deltamask_jax.data import preprocessing
from deltamask_jax.data.preprocessing import CLIP, CONVMIXER, GLYPH, IMAGENET, INCEPTION

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def _with_pillow(image: np.ndarray, p: preprocessing.Preprocessing) -> np.ndarray:
    """The published recipe, one image at a time, width before height."""
    picture = Image.fromarray(image).convert("RGB")
    width, height = picture.size
    if p.resize == "exact":
        new = p.size, p.size
    elif width <= height:
        new = int(p.size / p.crop), int(int(p.size / p.crop) * height / width)
    else:
        new = int(int(p.size / p.crop) * width / height), int(p.size / p.crop)
    picture = picture.resize((new[0], height), FILTERS[p.filter]).resize(new, FILTERS[p.filter])
    if p.resize == "shorter":
        left, top = (picture.width - p.size) // 2, (picture.height - p.size) // 2
        picture = picture.crop((left, top, left + p.size, top + p.size))
    return (np.asarray(picture, np.float32) / 255 - np.float32(p.mean)) / np.float32(p.std)


@pytest.mark.parametrize(
    "p", [CLIP, IMAGENET, CONVMIXER, INCEPTION, GLYPH], ids=lambda p: f"{p.resize}-{p.crop}"
)
@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (300, 224, 3), (260, 391), (400, 300)], ids=str)
def test_equals_pillow(p, shape):
    images = _images(2, *shape)
    got = preprocessing.apply(images, p)
    want = np.stack([_with_pillow(image, p) for image in images])
    assert got.shape == (2, p.size, p.size, 3) and got.dtype == np.float32
    step = 1 / 255 / min(p.std)  # one grey level: Pillow rounds a few ties the other way
    assert np.abs(got - want).max() <= 1.01 * step
    assert (np.abs(got - want) > 1e-5).mean() < 1e-2


def test_a_list_of_sizes_equals_one_at_a_time():
    images = [_images(1, 20, 30, 3)[0], _images(1, 28, 28)[0], _images(1, 40, 33, 1)[0]]
    together = preprocessing.apply(images, CLIP.at(16))
    for image, got in zip(images, together, strict=True):
        np.testing.assert_array_equal(got, preprocessing.apply(image[None], CLIP.at(16))[0])


def test_grayscale_becomes_three_equal_channels_before_normalising():
    got = preprocessing.apply(_images(3, 8, 8), GLYPH)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])
    assert -1 <= got.min() < -0.5 and 0.5 < got.max() <= 1


def test_no_resize_is_exact():
    images = _images(2, 32, 32, 3)
    np.testing.assert_allclose(preprocessing.apply(images, GLYPH), images / 127.5 - 1, atol=1e-6)


def test_nothing_in_nothing_out():
    assert preprocessing.apply([], GLYPH).shape == (0, 32, 32, 3)
    assert preprocessing.apply(np.zeros((0, 8, 8), np.uint8), GLYPH).shape == (0, 32, 32, 3)


def test_refuses_floats_and_odd_channels():
    with pytest.raises(ValueError, match="uint8"):
        preprocessing.apply(np.zeros((1, 8, 8), np.float32), GLYPH)
    with pytest.raises(ValueError, match="h, w, 3"):
        preprocessing.apply(np.zeros((1, 8, 8, 4), np.uint8), GLYPH)
    with pytest.raises(ValueError, match="filter"):
        dataclasses.replace(GLYPH, filter="nearest")


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1, 3), (2, 2001)], ids=str)
def test_refuses_lines(shape):
    for images in (np.zeros((1, *shape), np.uint8), [np.zeros((8, 8), np.uint8), np.zeros(shape, np.uint8)]):
        with pytest.raises(ValueError, match="must not be lines"):
            preprocessing.apply(images, GLYPH)


def _computed_whole(image: np.ndarray, p: preprocessing.Preprocessing) -> np.ndarray:
    """The same resize with every pixel computed, and the crop cut afterwards: u8[h, w, 3]."""
    height, width = image.shape[:2]
    short = int(p.size / p.crop + 1e-6)
    rows, columns = (
        p.size if p.resize == "exact" else short * side // min(height, width) for side in (height, width)
    )
    picture = Image.fromarray(image).resize((columns, height), FILTERS[p.filter])
    pixels = np.asarray(picture.resize((columns, rows), FILTERS[p.filter]))
    top, left = (rows - p.size) // 2, (columns - p.size) // 2
    return pixels[top : top + p.size, left : left + p.size]


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([CLIP.at(20), IMAGENET.at(21), CONVMIXER.at(24), INCEPTION.at(20), GLYPH]),
)
def test_a_window_equals_the_whole_with_its_border_cut_off(height, width, p):
    image = _images(1, height, width, 3)[0]
    got = preprocessing._resize_and_crop(image, p).astype(int)
    want = _computed_whole(image, p)
    assert got.shape == want.shape and np.abs(got - want).max() <= 1  # ties may round either way


@pytest.mark.parametrize("shape", [(4, 2000, 3), (2000, 4, 3), (1, 1000, 3), (64, 2000, 3)], ids=str)
@pytest.mark.parametrize("p", [IMAGENET.at(84), CLIP, INCEPTION], ids=lambda p: f"{p.resize}-{p.size}")
def test_memory_follows_what_is_kept(shape, p):
    image = _images(1, *shape)
    tracemalloc.start()
    preprocessing.apply(image, p)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26  # a whole resize of 4 × 2,000 at 84 pixels took gigabytes
