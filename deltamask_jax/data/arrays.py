"""Data sets that are a few array files: IDX, as MNIST and Fashion-MNIST come, and NumPy's npz."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from deltamask_jax.data.dataset import DataError, Dataset, Split, to_labels

_IDX_TEST = "t10k"  # what MNIST and its descendants call the test split


def load_idx(directory: Path) -> Dataset:
    """Reads `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or `.gz`.

    Raises:
        DataError: a file is missing, truncated or not IDX.
    """
    parts = []
    for part in ("train", _IDX_TEST):
        images = _read_idx(directory / f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(directory / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(f"{directory}: {len(images)} {part} images, {len(labels)} labels")
        parts.append((images, labels))
    num_classes = 1 + max(int(labels.max(initial=0)) for _, labels in parts)
    train, test = (Split(images, labels.astype(np.int32)) for images, labels in parts)
    return Dataset(directory.name, train, test, tuple(str(i) for i in range(num_classes)))


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """One IDX file of bytes: 0, 0, 8, number of axes, each axis as a big-endian u32, data."""
    zipped = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"no {zipped.name} in {path.parent}. For Fashion-MNIST run "
            "`apt-get install dataset-fashion-mnist` and use idx:/usr/share/datasets/fashion-mnist"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{zipped}: {error}; fetch the file again") from None
    header = 4 + 4 * ndim
    if len(data) < header or data[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(f"{path} is not an IDX file of {ndim}-dimensional unsigned bytes")
    shape = tuple(np.frombuffer(data, ">u4", ndim, 4).tolist())
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path} is truncated: {shape} announced, {len(data) - header} bytes there")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def load_npz(path: Path) -> Dataset:
    """Reads `x_train, y_train, x_test, y_test` and, where present, `class_names`, `users_*`.

    Images are u8[n, h, w] or u8[n, h, w, c] with c = 1 or 3; labels integers [n] or [n, 1];
    `users_train` and `users_test` integers [n]. Nothing is unpickled.

    Raises:
        DataError: the file is missing or not an npz, or an array is missing or of the wrong kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(
            f"no file {path}; write one with "
            "`numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)`"
        ) from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        raise DataError(f"{path} is damaged, no npz, or holds pickled objects") from None
    missing = [n for n in ("x_train", "y_train", "x_test", "y_test") if n not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {found}")
    labels = {}
    for part in ("train", "test"):
        y = labels[part] = arrays[f"y_{part}"]
        if y.ndim == 2 and y.shape[1] == 1:  # as Keras stores CIFAR
            labels[part] = y[:, 0]
    highest = max(int(y.max(initial=0)) if y.dtype.kind in "iu" else 0 for y in labels.values())
    names = arrays.get("class_names", range(highest + 1))
    names = tuple(str(name) for name in names)
    train, test = (_npz_split(path, arrays, part, labels[part], len(names)) for part in labels)
    return Dataset(path.stem, train, test, names)


def _npz_split(
    path: Path, arrays: dict[str, np.ndarray], part: str, labels: np.ndarray, num_classes: int
) -> Split:
    images, users = arrays[f"x_{part}"], arrays.get(f"users_{part}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: x_{part} must be uint8 [n, h, w] or [n, h, w, c], "
            f"got {images.dtype}{list(images.shape)}"
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise DataError(f"{path}: x_{part} must have 1 or 3 channels last, got {images.shape[-1]}")
    labels = to_labels(labels, num_classes, f"{path}, y_{part}")
    if users is not None:
        users = to_labels(users, 1 << 31, f"{path}, users_{part}")
    if any(len(other) != len(images) for other in (labels, users) if other is not None):
        raise DataError(f"{path}: x_{part}, y_{part} and users_{part} differ in length")
    return Split(images, labels, users)
