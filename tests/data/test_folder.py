"""Directories of images: classes, splits, lazy decoding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltamask_jax import data
from deltamask_jax.data import preprocessing


def _write(directory: Path, name: str, count: int, size=(6, 5), value: int = 0) -> None:
    """PNG images whose red channel counts them and whose blue channel is `value`."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((*size, 3), (i, 0, value), np.uint8)
        Image.fromarray(pixels).save(directory / name / f"{i:02}.png")


def test_train_and_test_directories(tmp_path):
    _write(tmp_path / "train", "dog", 3, value=1)
    _write(tmp_path / "train", "cat", 2, value=2)
    _write(tmp_path / "val", "dog", 1, value=3)
    dataset = data.load(f"folder:{tmp_path}")
    assert dataset.class_names == ("cat", "dog") and dataset.name == tmp_path.name
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [1]
    images = dataset.train.images
    assert len(images) == 5 and images[3].shape == (6, 5, 3) and images[3].dtype == np.uint8
    got = images[np.array([4, 0])]
    assert got.shape == (2, 6, 5, 3) and got[:, 0, 0].tolist() == [[2, 0, 1], [0, 0, 2]]
    assert images[1:3][:, 0, 0, 2].tolist() == [2, 1]
    assert dataset.test.images[0][0, 0, 2] == 3
    _write(tmp_path / "test", "dog", 2)
    assert len(data.load(f"folder:{tmp_path}").test) == 2, "test goes before val"


def test_a_fifth_is_held_out_without_a_test_directory(tmp_path):
    _write(tmp_path, "a", 10, value=1)
    _write(tmp_path, "b", 5, value=2)
    first, second = (data.load(f"folder:{tmp_path}") for _ in range(2))
    assert np.bincount(first.train.labels).tolist() == [8, 4]
    assert np.bincount(first.test.labels).tolist() == [2, 1]
    pixels = np.concatenate([split.images[:][:, 0, 0] for split in (first.train, first.test)])
    assert len(np.unique(pixels, axis=0)) == 15, "no image in both"
    np.testing.assert_array_equal(first.test.images[:], second.test.images[:])


def test_sizes_modes_and_orientation(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (4, 3), 9).save(tmp_path / "a/0.png")
    Image.new("RGBA", (2, 2), (1, 2, 3, 0)).save(tmp_path / "a/1.png")
    Image.new("P", (5, 5)).save(tmp_path / "a/2.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (8, 2)).save(tmp_path / "a/3.JPG", exif=exif, format="jpeg")
    (tmp_path / "a/notes.txt").write_text("no image")
    dataset = data.load(f"folder:{tmp_path}")
    images = [
        i for split in (dataset.train, dataset.test) for i in map(split.images.__getitem__, range(len(split)))
    ]
    assert sorted(i.shape for i in images) == [(2, 2, 3), (3, 4, 3), (5, 5, 3), (8, 2, 3)]
    batch = dataset.train.images[np.arange(len(dataset.train))]
    assert isinstance(batch, list)
    assert preprocessing.apply(batch, preprocessing.GLYPH).shape == (len(batch), 32, 32, 3)


def test_subset_stays_lazy(tmp_path):
    _write(tmp_path / "train", "a", 4)
    _write(tmp_path / "test", "a", 4)
    (tmp_path / "train/a/00.png").write_bytes(b"damaged")
    dataset = data.subset(data.load(f"folder:{tmp_path}"), test_examples=2)
    assert len(dataset.test.images) == len(dataset.test.labels) == 2
    assert dataset.train.images[np.array([3])].shape == (1, 6, 5, 3)
    with pytest.raises(data.DataError, match="00.png cannot be decoded"):
        dataset.train.images[0]


def test_the_identity_follows_the_files(tmp_path):
    _write(tmp_path, "a", 5)

    def identity():
        return data.load(f"folder:{tmp_path}").train.images.identity

    before = identity()
    assert identity() == before
    Image.new("RGB", (9, 9)).save(tmp_path / "a/00.png")
    assert identity() != before


def test_refusals(tmp_path):
    with pytest.raises(data.DataError, match="no directory"):
        data.load(f"folder:{tmp_path / 'none'}")
    (tmp_path / "empty/a").mkdir(parents=True)
    with pytest.raises(data.DataError, match="holds images"):
        data.load(f"folder:{tmp_path / 'empty'}")
    _write(tmp_path / "odd/train", "a", 1)
    _write(tmp_path / "odd/test", "b", 1)
    with pytest.raises(data.DataError, match="lacks: b"):
        data.load(f"folder:{tmp_path / 'odd'}")
    (tmp_path / "deep/a").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / f"deep/a/{i}.png")
    with pytest.raises(data.DataError, match="more than 8 bits"):
        data.load(f"folder:{tmp_path / 'deep'}").train.images[0]
