"""What every data source returns: labelled images or texts in two splits, and the one error they raise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOO_DEEP = "more than 8 bits a channel; convert it to 8 bits"


class DataError(ValueError):
    """A data set is unknown, missing or malformed; the message says what to do next."""


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images or texts.

    Attributes:
        images: u8[n, h, w] or u8[n, h, w, c]; or `LazyImages`, which decode when indexed by an
            integer array and give u8[k, h, w, c], or a list of u8[h, w, c] where sizes differ; or `Texts`.
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
        array = isinstance(self.images, np.ndarray)
        images = self.images[indices] if array else self.images.take(indices)
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


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, indexed by an integer array to a list of them."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: np.ndarray) -> list[str]:
        return [self.texts[i] for i in index]

    def take(self, indices: np.ndarray) -> "Texts":
        return Texts(tuple(self[indices]))


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
    """Images u8[h, w] or u8[h, w, c]: one array u8[n, ...] where all have one shape, a list otherwise."""
    images = list(images)
    return np.stack(images) if len({image.shape for image in images}) == 1 else images


def labelled(
    name: str, train: Split, test: Split, class_names: Sequence[str] | None = None, *, where: str
) -> Dataset:
    """A data set whose labels keep the one rule of every source.

    Every test class has training examples, and no split is empty. A source that names its classes may have
    none of some of them; one that does not numbers them without gaps.

    Args:
        name: of the data set.
        train, test: with labels as the source has them, integers of any type.
        class_names: of the classes 0 … C−1, where the source names them.
        where: the source, for messages.

    Raises:
        DataError: the labels break the rule, or the images have no pixels.
    """
    train_labels, test_labels, names = classes(train.labels, test.labels, class_names, where=where)
    splits = []
    for part, split, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if isinstance(split.images, np.ndarray) and 0 in split.images.shape:
            raise DataError(f"{where}: the {part} images have no pixels, shape {list(split.images.shape)}")
        splits.append(Split(split.images, labels, split.users))
    return Dataset(name, *splits, names)


def classes(
    train: Any, test: Any, class_names: Sequence[str] | None = None, *, where: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The labels of both splits as i32[n], i32[m], and the names of the classes; the rule of `labelled`.

    Costs one sort of the labels, whatever their values, so that it can be asked before images are read.

    Raises:
        DataError: the labels break the rule.
    """
    train = integers(train, f"{where}: the train labels")
    test = integers(test, f"{where}: the test labels")
    trained, tested = np.unique(train), np.unique(test)
    for part, seen in (("training", trained), ("test", tested)):
        if not len(seen):
            raise DataError(f"{where} has no {part} examples")
    numbered = f"{where}: labels must be 0 … "
    if class_names is None:
        if trained[0] != 0 or trained[-1] >= len(trained):
            raise DataError(
                f"{numbered}{len(trained) - 1} without gaps, got {_some(trained)}: drop the examples to "
                "ignore, and number the classes by `numpy.unique(labels, return_inverse=True)`"
            )
        class_names = [str(label) for label in range(len(trained))]
    elif trained[0] < 0 or trained[-1] >= len(class_names):
        raise DataError(f"{numbered}{len(class_names) - 1}, one per class name, got {_some(trained)}")
    if len(unknown := np.setdiff1d(tested, trained)):
        named = [class_names[label] if 0 <= label < len(class_names) else label for label in unknown[:6]]
        raise DataError(f"{where}: no training example has the test labels {_some(named, len(unknown))}")
    return train.astype(np.int32), test.astype(np.int32), tuple(class_names)


def has_no_labels(labels: Any) -> bool:
    """Whether a split is of a competition's kind: sources give the label −1 to all its examples."""
    return len(labels) > 0 and all(isinstance(label, int | np.integer) and label == -1 for label in labels)


def integers(values: Any, what: str) -> np.ndarray:
    """A vector of integers, as it came.

    Raises:
        DataError: it is something else.
    """
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{what} must be a vector of integers, got {values.dtype}{list(values.shape)}")
    if values.dtype == np.uint64:  # NumPy makes floats of this beside signed integers
        if values.max(initial=0) >= 1 << 63:
            raise DataError(f"{what} must be below 2**63, got {values.max()}")
        return values.astype(np.int64)
    return values


def _some(values: Sequence[Any] | np.ndarray, number: int | None = None) -> str:
    """The first few of `number` values, for a message."""
    number = len(values) if number is None else number
    shown = ", ".join(map(str, values[:6]))
    return shown if number <= 6 else f"{shown}, … ({number} in all)"


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
