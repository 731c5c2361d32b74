"""IDX and npz files: what is read, and what is refused."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import data

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 3], np.uint8)


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write_idx(directory: Path, zipped: bool) -> None:
    for part, n in (("train", 5), ("t10k", 7)):
        for name, array in (("images-idx3", IMAGES[:n]), ("labels-idx1", LABELS[:n])):
            path = directory / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(_idx(array)) if zipped else _idx(array))


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(tmp_path, zipped):
    _write_idx(tmp_path, zipped)
    dataset = data.load(f"idx:{tmp_path}")
    np.testing.assert_array_equal(dataset.train.images, IMAGES[:5])
    np.testing.assert_array_equal(dataset.test.images, IMAGES)
    np.testing.assert_array_equal(dataset.test.labels, LABELS)
    assert dataset.train.labels.dtype == np.int32
    assert dataset.class_names == ("0", "1", "2", "3")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is absent")
def test_fashion_mnist_as_debian_ships_it():
    dataset = data.load(f"idx:{FASHION_MNIST}")
    assert dataset.name == "fashion-mnist" and dataset.num_classes == 10
    assert dataset.train.images.shape == (60000, 28, 28)
    assert dataset.test.images.shape == (10000, 28, 28)
    assert (np.bincount(dataset.train.labels) == 6000).all()


def test_idx_names_the_package_when_missing(tmp_path):
    with pytest.raises(data.DataError, match="apt-get install dataset-fashion-mnist"):
        data.load(f"idx:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(_idx(IMAGES[:5]))[:-20], "fetch the file again"),
        (b"not gzip", "fetch the file again"),
        (gzip.compress(_idx(IMAGES[:5])[:-1]), "truncated"),
        (gzip.compress(_idx(IMAGES[:5]) + b"x"), "truncated"),
        (gzip.compress(_idx(LABELS)), "not an IDX file"),
        (gzip.compress(b"\0\0"), "not an IDX file"),
        (gzip.compress(_idx(IMAGES[:4])), "4 train images, 5 labels"),
    ],
    # Bytes would name the tests by the second (gzip stamps the time); pytest-xdist wants one list of names.
    ids=[
        "cut gzip",
        "no gzip",
        "cut data",
        "a byte too many",
        "labels for images",
        "two bytes",
        "an image short",
    ],
)
def test_idx_damage(tmp_path, content, message):
    _write_idx(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.load(f"idx:{tmp_path}")


def _arrays(**changes) -> dict[str, np.ndarray]:
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:3], "y_test": LABELS[:3]}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


def test_npz(tmp_path):
    colour = RNG.integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    users = np.array([5, 5, 6, 6, 7, 7, 7])
    names = np.array(["a", "b", "c", "d", "e"])
    arrays = _arrays(
        x_train=colour,
        y_train=LABELS[:, None].astype(np.int64),
        users_train=users,
        class_names=names,
    )
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = data.load(f"npz:{tmp_path / 'mine.npz'}")
    assert dataset.name == "mine" and dataset.class_names == tuple("abcde")
    np.testing.assert_array_equal(dataset.train.images, colour)
    np.testing.assert_array_equal(dataset.train.labels, LABELS)
    np.testing.assert_array_equal(dataset.train.users, users)
    assert dataset.test.users is None
    half = data.subset(dataset, train_examples=4)
    assert len(half.train.users) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": IMAGES / 255}, "x_train must be uint8"),
        ({"x_train": IMAGES.reshape(7, -1)}, "x_train must be uint8"),
        ({"x_train": np.zeros((7, 3, 32, 32), np.uint8)}, "1 or 3 channels last, got 32"),
        ({"y_train": LABELS.astype(float)}, "labels must be a vector of integers"),
        ({"y_train": np.eye(7, dtype=int)}, "labels must be a vector of integers"),
        ({"y_train": LABELS.astype(int) - 1}, "labels must be 0 … 2, got -1"),
        ({"y_train": LABELS[:-1]}, "differ in length"),
        ({"users_train": np.arange(3)}, "differ in length"),
        ({"class_names": np.array(["a"])}, "labels must be 0 … 0"),
        ({"x_train": np.array([None] * 7, object)}, "pickled"),
    ],
)
def test_npz_refusals(tmp_path, changes, message):
    np.savez(tmp_path / "bad.npz", **_arrays(**changes))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(f"npz:{tmp_path / 'bad.npz'}")
    assert str(caught.value).count("\n") == 0


def test_npz_missing_or_damaged(tmp_path):
    with pytest.raises(data.DataError, match="numpy.savez"):
        data.load(f"npz:{tmp_path / 'none.npz'}")
    np.savez(tmp_path / "whole.npz", **_arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "one.npy", IMAGES)
    one = (tmp_path / "one.npy").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text", one):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(data.DataError, match="damaged, no npz"):
            data.load(f"npz:{tmp_path / 'damaged.npz'}")
