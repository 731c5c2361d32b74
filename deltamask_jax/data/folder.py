"""A directory of images, one sub-directory a class, decoded when they are used."""

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from deltamask_jax.data import stratify
from deltamask_jax.data.dataset import DataError, Dataset, LazyImages, Split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
TEST_FRACTION = 0.2  # where the source has no test split of its own


def load_folder(directory: Path) -> Dataset:
    """Reads `DIR/train/CLASS/*` and `DIR/test/CLASS/*` (or `val`), or `DIR/CLASS/*`.

    Without a test directory, a fifth of every class becomes the test split, always the same one.
    Classes are numbered in alphabetical order.

    Raises:
        DataError: nothing is there, a class of the test split is unknown, or (on use) an image
            cannot be decoded.
    """
    if not directory.is_dir():
        raise DataError(f"no directory {directory}; expected one sub-directory of images a class")
    train_root = directory / "train" if (directory / "train").is_dir() else directory
    candidates = [directory / name for name in ("test", "val")] if train_root != directory else []
    test_root = next((path for path in candidates if path.is_dir()), None)
    class_names = tuple(sorted(_classes(train_root)))
    if not class_names:
        raise DataError(f"no sub-directory of {train_root} holds images ({' '.join(EXTENSIONS)})")
    train = _split(train_root, class_names)
    if test_root:
        if unknown := sorted(_classes(test_root) - set(class_names)):
            raise DataError(f"{test_root} holds classes {train_root} lacks: {', '.join(unknown)}")
        test = _split(test_root, class_names)
    else:
        kept, held_out = stratify.train_test(train.labels, TEST_FRACTION, seed=0)
        train, test = train.take(kept), train.take(held_out)
    return Dataset(directory.name, train, test, class_names)


def _classes(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir() and any(_images(path))}


def _images(directory: Path):
    """The directory entries that look like images, at any depth."""
    for folder, _, names in os.walk(directory):
        yield from (Path(folder, name) for name in names if name.lower().endswith(EXTENSIONS))


def _split(root: Path, class_names: tuple[str, ...]) -> Split:
    files = [sorted(_images(root / name)) for name in class_names]
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])
    paths = [path for of_class in files for path in of_class]
    identity = hashlib.sha256()
    for path in paths:
        state = path.stat()
        identity.update(f"{path.relative_to(root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    images = LazyImages(functools.partial(_read, paths), np.arange(len(paths)), identity.hexdigest())
    return Split(images, labels)


def _read(paths: list[Path], positions: list[int]) -> list[np.ndarray]:
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        return list(pool.map(lambda position: decode(paths[position]), positions))


def decode(path: Path) -> np.ndarray:
    """One image file as u8[h, w, 3], turned the way its camera held it.

    Raises:
        DataError: the file is no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            mode, upright = image.mode, ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise what their parsers happen to raise
        raise DataError(f"{path} cannot be decoded ({error}); replace or remove it") from None
    if mode[0] in "IF":
        raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
    return pixels
