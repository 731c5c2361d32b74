"""A directory of images, one sub-directory per class, decoded when they are used."""

import functools
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from deltamask_jax import threads
from deltamask_jax.data import stratify
from deltamask_jax.data.dataset import TOO_DEEP, DataError, Dataset, LazyImages, Split, labelled
from deltamask_jax.data.features import fingerprint
from deltamask_jax.data.preprocessing import is_line, rgb
from deltamask_jax.data.tree import Folder, Layout, find, shown, walk
from deltamask_jax.progress import say

_NAMED = 10  # how many bad files or classes a message names


def load_folder(directory: Path, whole: bool = False) -> Dataset:
    """Reads `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or `DIR/CLASS/*`; `tree.find` names the layouts.

    Without a test directory, a fifth of every class becomes the test split, always the same one.
    Classes are numbered in alphabetical order. Every file is checked before the first is used, and what was
    found is printed.

    Args:
        whole: as of `data.load`.

    Raises:
        DataError: nothing is there, the layout is not one of those, it has too few classes, a class of the
            test split is unknown, or images cannot be read.
    """
    if not directory.is_dir():
        raise DataError(f"no directory {shown(directory)}; expected one sub-directory of images per class")
    root = walk(directory)
    layout = find(root)
    if len(layout.classes) < 2 and not whole:  # said before any image is looked at
        raise DataError(
            f"{shown(layout.train.path)} holds one class only, {shown(layout.classes[0])}: expected one "
            "folder of images per class, and at least two"
        )
    names, where = tuple(map(shown, layout.classes)), f"folder:{shown(directory)}"
    train = _split(layout.train, layout.classes)
    test = _split(layout.test, layout.classes) if layout.test else None
    files = [path for split in (train, test) if split for path in split.images.read.args[0]]
    _refuse_bad_files(directory, files)
    if test:
        dataset = labelled(shown(directory.name), train, test, names, where=where)
    else:
        dataset = stratify.hold_out(shown(directory.name), train, names, where=where, whole=whole)
    say(_found(directory, root, layout, dataset))
    return dataset


def _split(root: Folder, classes: tuple[str, ...]) -> Split:
    """The images below a folder of classes; a class that is not there has none."""
    files = [sorted(root.folders[name].everything()) if name in root.folders else [] for name in classes]
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(paths) for paths in files])
    paths = [path for of_class in files for path in of_class]
    names = b"\0".join(os.fsencode(path.relative_to(root.path)) for path in paths)
    identity = fingerprint(names, np.array([_state(path) for path in paths], np.int64))
    return Split(LazyImages(functools.partial(_read, paths), np.arange(len(paths)), identity), labels)


def _state(path: Path) -> tuple[int, int]:
    """Size and time; a link to nowhere has none, and is named with the other bad files later."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _found(directory: Path, root: Folder, layout: Layout, dataset: Dataset) -> str:
    """One line: where the splits are, their classes and sizes, and what was left out."""

    def counted(folder: Folder, split: Split) -> str:
        counts = np.bincount(split.labels, minlength=dataset.num_classes)
        pairs = zip(dataset.class_names, counts, strict=True)
        named = [f"{name} {count}" for name, count in pairs][:_NAMED]
        more = ", …" if dataset.num_classes > _NAMED else ""
        place = folder.path.relative_to(directory)
        inside = "" if place == Path() else f" in {shown(place)}/"
        return f"{len(split):,}{inside} ({', '.join(named)}{more})"

    held_out = f"{len(dataset.test):,}, held out" if len(dataset.test) else "none"
    if layout.test:
        held_out = counted(layout.test, dataset.test)
    notes = [f"{shown(name)}/ left alone" for name in layout.left_alone]
    skipped = layout.skipped()
    if skipped:
        examples = ", ".join(shown(path.relative_to(directory)) for path in skipped[:3])
        notes.append(f"{len(skipped):,} other files skipped ({examples}{', …' if len(skipped) > 3 else ''})")
    if root.hidden:
        notes.append(f"{root.hidden:,} hidden files or folders skipped")
    return "; ".join(
        [
            f"folder {shown(directory)}: {dataset.num_classes} classes; training images "
            f"{counted(layout.train, dataset.train)}; test images {held_out}",
            *notes,
        ]
    )


def _refuse_bad_files(directory: Path, paths: list[Path]) -> None:
    """Checks all files on as many threads as there are cores, and names the bad ones together."""
    with threads.pool() as pool:
        checked = tqdm(
            pool.map(_fault, paths), desc="images", total=len(paths), unit=" files", leave=False, disable=None
        )
        bad = [(path, fault) for path, fault in zip(paths, checked, strict=True) if fault]
    if bad:
        named = ", ".join(
            f"{shown(path.relative_to(directory))} ({fault})" for path, fault in bad[:_NAMED]
        ) + (", …" if len(bad) > _NAMED else "")
        raise DataError(
            f"{len(bad):,} of {len(paths):,} images in {shown(directory)} cannot be decoded: {named}; "
            "replace or remove them"
        )


def _fault(path: Path) -> str:
    """What keeps an image from being decoded, '' for nothing.

    PNG has checksums, which Pillow verifies: what they cover is taken to be whole, and so is a JPEG that ends
    as it should. What has neither is decoded.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                return TOO_DEEP
            if is_line(*image.size):
                return f"{image.size[0]:,} × {image.size[1]:,} pixels are a line, no picture"
            image.verify()
            if image.format == "PNG" or (image.format in ("JPEG", "MPO") and _ends_as_jpeg(path)):
                return ""
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise what their parsers happen to raise
        return shown(str(error).partition(repr(str(path)))[0].strip() or type(error).__name__)
    return ""


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _read(paths: list[Path], positions: list[int]) -> list[np.ndarray]:
    with threads.pool() as pool:  # Pillow decodes outside the interpreter lock
        return list(pool.map(lambda position: decode(paths[position]), positions))


def decode(path: Path) -> np.ndarray:
    """One image file as u8[h, w, 3], turned the way its camera held it.

    Raises:
        DataError: the file is no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            mode, upright = image.mode, ImageOps.exif_transpose(image)
            pixels = rgb(upright)
    except Exception as error:  # Pillow's decoders raise what their parsers happen to raise
        raise DataError(f"{shown(path)} cannot be decoded ({shown(error)}); replace or remove it") from None
    if mode[0] in "IF":
        raise DataError(f"{shown(path)} has {TOO_DEEP}")
    return pixels
