"""IDX and npz files: what is read, and what is refused."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import data

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 1, 2, 3], np.uint8)


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


def test_of_a_zipped_file_no_more_is_unpacked_than_it_announces(tmp_path):
    _write_idx(tmp_path, zipped=True)
    content = gzip.compress(_idx(LABELS) + bytes(30_000_000))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(data.DataError, match=r"truncated or longer: \(7,\) announced, more there"):
        data.load(f"idx:{tmp_path}")
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(2**30, 28, 28), (2**32 - 1,) * 3], ids=str)
def test_an_idx_file_may_announce_what_no_memory_holds(tmp_path, shape, zipped):
    _write_idx(tmp_path, zipped)
    content = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape) + bytes(100)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(data.DataError, match="truncated or longer"):
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
        ({"y_train": LABELS.astype(int) - 1}, "labels must be 0 … 3 without gaps, got -1, 0, 1, 2"),
        ({"y_train": LABELS[:-1]}, "differ in length"),
        ({"users_train": np.arange(3)}, "differ in length"),
        ({"class_names": np.array(["a"])}, "labels must be 0 … 0"),
        ({"x_train": np.array([None] * 7, object)}, "x_train cannot be read: .*pickled"),
        ({"y_train": np.array([None] * 7, object)}, "y_train cannot be read: .*pickled"),
        ({"y_train": LABELS * 1j}, "train labels must be a vector of integers, got complex128"),
        ({"x_train": np.full((7, 5, 4), np.nan)}, "x_train must be uint8"),
        ({"x_train": IMAGES * (1 + 1j)}, "x_train must be uint8 .* got complex128"),
        ({"y_train": LABELS.astype(int) * 100}, "without gaps, got 0, 100, 200, 300"),
        ({"y_train": LABELS.astype(int) + 20_000_000}, "without gaps, got 20000000, "),
        ({"y_test": np.array([0, 1, 7])}, "no training example has the test labels 7"),
        ({"x_train": IMAGES[:, :0]}, r"train images have no pixels, shape \[7, 0, 4\]"),
        ({"x_test": IMAGES[:0], "y_test": LABELS[:0]}, "no test examples"),
        ({"users_train": np.full(7, -1)}, "users_train must be 0"),
        ({"users_train": np.full(7, 0.5)}, "users_train must be a vector of integers"),
        ({"class_names": np.ones(4)}, "class_names must be a vector of strings"),
        ({"class_names": np.array("abcd")}, "class_names must be a vector of strings"),
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


def test_an_npz_that_is_an_npy_is_called_so(tmp_path):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(data.DataError, match=r"single array \(npy\)"):
        data.load(f"npz:{tmp_path / 'one.npz'}")


def _flip_data_bit(archive: bytes, member: str) -> bytes:
    """The archive with one bit of a stored member's last byte turned."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        info = file.getinfo(member)
    start = info.header_offset
    name, extra = struct.unpack("<HH", archive[start + 26 : start + 30])
    end = start + 30 + name + extra + info.compress_size
    return archive[: end - 1] + bytes([archive[end - 1] ^ 1]) + archive[end:]


def _encrypted(archive: bytes) -> bytes:
    """The archive with every member marked as encrypted."""
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = archive.find(signature)
        while at >= 0:
            archive = archive[: at + flags] + bytes([archive[at + flags] | 1]) + archive[at + flags + 1 :]
            at = archive.find(signature, at + 4)
    return archive


def _with_member(archive: bytes, name: str, content: bytes) -> bytes:
    """The archive with one member's file replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: _flip_data_bit(whole, "y_train.npy"), "y_train cannot be read"),
        (lambda whole: _flip_data_bit(whole, "x_test.npy"), "x_test cannot be read"),
        (_encrypted, "y_train cannot be read: damaged, encrypted"),
        (lambda whole: _with_member(whole, "x_train.npy", b"text"), "x_train is no NumPy array"),
        (lambda whole: _with_member(whole, "x_train.npy", b""), "x_train"),
        (
            lambda whole: _with_member(whole, "y_train.npy", b"\x93NUMPY\1\0\4\0{1:}"),
            "y_train cannot be read",
        ),
    ],
    ids=["labels", "images", "encrypted", "text", "empty", "header"],
)
def test_npz_members_are_named(tmp_path, change, message):
    whole = io.BytesIO()
    np.savez(whole, **_arrays())
    (tmp_path / "bad.npz").write_bytes(change(whole.getvalue()))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(f"npz:{tmp_path / 'bad.npz'}")
    assert "bad.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_labels_are_refused_before_images_are_read(tmp_path):
    whole = io.BytesIO()
    np.savez(whole, **_arrays(y_train=LABELS.astype(int) * 100))
    (tmp_path / "bad.npz").write_bytes(_flip_data_bit(whole.getvalue(), "x_train.npy"))
    with pytest.raises(data.DataError, match="without gaps"):
        data.load(f"npz:{tmp_path / 'bad.npz'}")


def test_idx_labels_keep_the_rule(tmp_path):
    _write_idx(tmp_path, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(np.array([0, 1, 2, 3, 255], np.uint8)))
    with pytest.raises(data.DataError, match="without gaps, got 0, 1, 2, 3, 255"):
        data.load(f"idx:{tmp_path}")


def test_idx_images_without_pixels(tmp_path):
    _write_idx(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(IMAGES[:5, :, :0]))
    with pytest.raises(data.DataError, match="train images have no pixels"):
        data.load(f"idx:{tmp_path}")
