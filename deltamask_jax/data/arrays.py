"""Data sets that are a few array files: IDX, as MNIST and Fashion-MNIST come, and NumPy's npz."""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from deltamask_jax.data.dataset import DataError, Dataset, Split, classes, first_line, integers, labelled

_IDX_PARTS = ("train", "t10k")  # what MNIST and its descendants call the training and the test split


def load_idx(directory: Path) -> Dataset:
    """Reads `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or `.gz`.

    Raises:
        DataError: a file is missing, truncated or not IDX, or the labels break the rule of `labelled`.
    """
    labels = [_read_idx(directory / f"{part}-labels-idx1-ubyte", 1) for part in _IDX_PARTS]
    classes(labels[0], labels[1], where=str(directory))  # before the images are read
    splits = []
    for part, of_part in zip(_IDX_PARTS, labels, strict=True):
        images = _read_idx(directory / f"{part}-images-idx3-ubyte", 3)
        if len(images) != len(of_part):
            raise DataError(f"{directory}: {len(images)} {part} images, {len(of_part)} labels")
        splits.append(Split(images, of_part))
    return labelled(directory.name, splits[0], splits[1], where=str(directory))


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """One IDX file of bytes: 0, 0, 8, number of axes, each axis as a big-endian u32, data."""
    zipped = path.with_name(path.name + ".gz")
    read, header = (path if path.exists() else zipped), 4 + 4 * ndim
    try:
        with path.open("rb") if read == path else gzip.open(zipped) as file:
            head = file.read(header)
            if len(head) < header or head[:4] != bytes([0, 0, 8, ndim]):
                raise DataError(f"{read} is not an IDX file of {ndim}-dimensional unsigned bytes")
            shape = tuple(np.frombuffer(head, ">u4", ndim, 4).tolist())
            data = _at_most(file, math.prod(shape) + 1)  # a zipped file may unpack to anything
    except FileNotFoundError:
        raise DataError(
            f"no {zipped.name} in {path.parent}. For Fashion-MNIST run "
            "`apt-get install dataset-fashion-mnist` and use idx:/usr/share/datasets/fashion-mnist"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{read}: {error}; fetch the file again") from None
    if len(data) != math.prod(shape):
        there = f"{len(data):,} bytes" if len(data) < math.prod(shape) else "more"
        raise DataError(f"{read} is truncated or longer: {shape} announced, {there} there")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _at_most(file: IO[bytes] | gzip.GzipFile, size: int) -> bytes:
    """The next bytes of a file, so many or what there is; memory is taken as they come."""
    pieces = []
    while size and (piece := file.read(min(size, 1 << 24))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def load_npz(path: Path) -> Dataset:
    """Reads `x_train, y_train, x_test, y_test` and, where present, `class_names`, `users_*`.

    Images are u8[n, h, w] or u8[n, h, w, c] with c = 1 or 3; labels integers [n] or [n, 1];
    `users_train` and `users_test` integers [n]. Nothing is unpickled.

    Raises:
        DataError: the file is missing or not an npz, an array is missing, cannot be read or is of the wrong
            kind, or the labels break the rule of `labelled`.
    """
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"no file {path}; write one with "
            "`numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)`"
        ) from None
    except Exception as error:  # NumPy's and zipfile's parsers raise what they happen to
        raise DataError(f"{path} is damaged, no npz, or cannot be read ({first_line(error)})") from None
    if isinstance(file, np.ndarray):
        raise DataError(f"{path} is damaged, no npz: a single array (npy); write it with `numpy.savez`")
    with file:
        missing = [n for n in ("x_train", "y_train", "x_test", "y_test") if n not in file.files]
        if missing:
            found = ", ".join(file.files) or "nothing"
            raise DataError(f"{path} lacks {', '.join(missing)}; it holds {found}")
        labels = [_vector(_member(path, file, f"y_{part}")) for part in ("train", "test")]
        names = _npz_class_names(path, file)
        classes(*labels, names, where=str(path))  # before the images are read
        train, test = (
            _npz_split(path, file, part, y) for part, y in zip(("train", "test"), labels, strict=True)
        )
    return labelled(path.stem, train, test, names, where=str(path))


def _member(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """One array of an npz file."""
    try:
        array = file[name]
    except Exception as error:  # damaged, encrypted, pickled, larger than memory, an unknown compression
        raise DataError(
            f"{path}: {name} cannot be read: damaged, encrypted or pickled objects ({first_line(error)})"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is no NumPy array; write the file with `numpy.savez`")
    return array


def _vector(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # as Keras stores CIFAR


def _npz_class_names(path: Path, file: np.lib.npyio.NpzFile) -> tuple[str, ...] | None:
    if "class_names" not in file.files:
        return None
    names = _member(path, file, "class_names")
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(
            f"{path}: class_names must be a vector of strings, got {names.dtype}{list(names.shape)}"
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "backslashreplace")
    return tuple(str(name) for name in names)


def _npz_split(path: Path, file: np.lib.npyio.NpzFile, part: str, labels: np.ndarray) -> Split:
    images = _member(path, file, f"x_{part}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: x_{part} must be uint8 [n, h, w] or [n, h, w, c], "
            f"got {images.dtype}{list(images.shape)}"
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise DataError(f"{path}: x_{part} must have 1 or 3 channels last, got {images.shape[-1]}")
    users = None
    if f"users_{part}" in file.files:
        users = integers(_member(path, file, f"users_{part}"), f"{path}: users_{part}")
        if users.min(initial=0) < 0 or users.max(initial=0) >= 1 << 31:
            raise DataError(f"{path}: users_{part} must be 0 … 2**31 − 1, got {users.min()} … {users.max()}")
        users = users.astype(np.int32)
    if any(len(other) != len(images) for other in (labels, users) if other is not None):
        raise DataError(f"{path}: x_{part}, y_{part} and users_{part} differ in length")
    return Split(images, labels, users)
