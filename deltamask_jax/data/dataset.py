"""What every data source returns: labelled images in two splits, and the one error they raise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class DataError(ValueError):
    """A data set is unknown, missing or malformed; the message says what to do next."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: u8[n, h, w] or u8[n, h, w, c], or `LazyImages`, which decode when indexed by an
            integer array and give u8[k, h, w, c], or a list of u8[h, w, c] where sizes differ.
        labels: i32[n], in 0 … classes−1.
        users: i32[n], who each example came from, where the source says; else None.
    """

    images: Any
    labels: np.ndarray
    users: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        """The examples at `indices: int[k]`, in that order; lazy images stay lazy."""
        lazy = not isinstance(self.images, np.ndarray)
        images = self.images.take(indices) if lazy else self.images[indices]
        users = None if self.users is None else self.users[indices]
        return Split(images, self.labels[indices], users)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class LazyImages:
    """Images behind a function `read(positions: list[int]) -> list of u8[h, w, c]`, decoded on use.

    Args:
        read: decodes the images at the given positions of the source.
        positions: int[n], which images of the source these are, in order.
        identity: a string that changes when the source's content does; cache keys are made from it.
    """

    def __init__(self, read, positions: np.ndarray, identity: str):
        self.read, self.positions, self.identity = read, np.asarray(positions, np.int64), identity

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index) -> Any:
        if np.ndim(self.positions[index]) == 0:
            return self.read([int(self.positions[index])])[0]
        return stack(self.read(self.positions[index].tolist()))

    def take(self, indices: np.ndarray) -> "LazyImages":
        return LazyImages(self.read, self.positions[indices], self.identity)


def stack(images: Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """One array where all images have one shape, a list otherwise."""
    images = list(images)
    return np.stack(images) if len({image.shape for image in images}) == 1 else images


def to_labels(labels: Any, num_classes: int, where: str) -> np.ndarray:
    """Checked labels as i32[n].

    Raises:
        DataError: they are not a vector of integers in 0 … num_classes−1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be a vector of integers, got {labels.dtype}{labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise DataError(f"{where}: labels must be 0 … {num_classes - 1}, got {labels.min()} … {labels.max()}")
    return labels.astype(np.int32)
