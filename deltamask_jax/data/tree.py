"""Where in a tree of folders the splits and classes of images are, or a refusal that names what is there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from deltamask_jax.data.dataset import DataError

# What people call a split's folder, in any case; of several held-out ones the first kind is the test split.
TRAINING = ("train", "training")
HELD_OUT = (("test", "testing"), ("eval", "evaluation"), ("val", "valid", "validation", "dev"))
SPLITS = (*TRAINING, *(name for names in HELD_OUT for name in names))
_ALSO_CLASSES = ("train", "valid")  # a vehicle; the opposite of invalid

# Of what Pillow opens, formats of pictures: not containers (HDF5, MPEG), programs (EPS) or cursors.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
EXTENSIONS = tuple(
    sorted(
        name
        for name, kind in Image.registered_extensions().items()
        if kind in _FORMATS and kind in Image.OPEN
    )
)
# What systems leave in folders, beside all names that start with a dot.
_SYSTEM = (
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "lost+found",
    "@eadir",
    "#recycle",
)
_SYSTEM += ("$recycle.bin", "system volume information")


_DEEPEST, _MOST_LINKS = 100, 4  # folders and links on the way to one: links beside links double with each


@dataclass(eq=False)
class Folder:
    """What a folder holds; hidden and system entries are only counted.

    Attributes:
        images, others: files directly in it, by extension.
        folders: by name.
        hidden: entries that do not count, here and below.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)
    hidden: int = 0

    def everything(self, kind: str = "images") -> Iterator[Path]:
        """Its `images` or `others`, at any depth."""
        yield from getattr(self, kind)
        for folder in self.folders.values():
            yield from folder.everything(kind)

    def with_images(self) -> dict[str, "Folder"]:
        """The folders in it that hold images at any depth."""
        return {name: folder for name, folder in self.folders.items() if any(folder.everything())}


@dataclass(frozen=True)
class Layout:
    """The folders of classes.

    Attributes:
        train: whose folders are the classes.
        test: the same for the test split, or None where it is to be held out.
        classes: names of the folders, sorted.
        left_alone: other splits, and folders beside the splits.
    """

    train: Folder
    test: Folder | None
    classes: tuple[str, ...]
    left_alone: tuple[str, ...] = ()

    def skipped(self) -> list[Path]:
        """Files that are no images, and images that lie beside the classes."""
        splits = [split for split in (self.train, self.test) if split]
        return sorted(path for split in splits for path in (*split.images, *split.everything("others")))


def shown(name: Any) -> str:
    """A file name as text that can be printed, whatever its bytes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(path: Path, above: tuple[Path, ...] = (), links: int = 0) -> Folder:
    """Reads a tree of folders; links are followed, but not in circles.

    Args:
        above: the real folders that lead here.
        links: how many links do.

    Raises:
        DataError: a folder cannot be read, or lies too deep or behind too many links.
    """
    here, above = Folder(path), (*above, path.resolve())
    if len(above) > _DEEPEST or links > _MOST_LINKS:
        raise DataError(
            f"{shown(above[-1])} is reached through {len(above) - 1} folders and {links} links, more than "
            f"{_DEEPEST - 1} or {_MOST_LINKS}: name a folder nearer to the classes"
        )
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                below = path / entry.name
                if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM:
                    here.hidden += 1
                elif not entry.is_dir():
                    kind = here.images if entry.name.lower().endswith(EXTENSIONS) else here.others
                    kind.append(below)
                elif not entry.is_symlink() or not _leads_up(below.resolve(), above):
                    here.folders[entry.name] = folder = walk(below, above, links + entry.is_symlink())
                    here.hidden += folder.hidden
    except OSError as error:
        raise DataError(f"{shown(error.filename or path)} cannot be read ({error.strerror})") from None
    return here


def _leads_up(real: Path, above: tuple[Path, ...]) -> bool:
    """Whether a folder holds one of those that lead to it."""
    return any(folder.is_relative_to(real) for folder in above)


def find(root: Folder) -> Layout:
    """Finds the classes and splits.

    A folder that holds nothing but one folder of folders stands for that one. Folders named as splits are
    splits if they hold folders of images. Of several held-out ones the test split comes first, then the
    evaluation, then the validation.

    Raises:
        DataError: two folders claim to be the same split, a split has no classes, splits and classes lie side
            by side, a class or the held-out folder would vanish because Pillow reads none of its files, or
            all classes hold the same folders, as splits of other names do.
    """
    inside = root.with_images()
    splits = {name: folder for name, folder in inside.items() if name.casefold() in SPLITS}
    if not any(folder.with_images() for folder in splits.values()) and len(inside) > max(len(splits), 1):
        alone = len(splits) == 1 and next(iter(splits)).casefold() in _ALSO_CLASSES
        splits = {} if alone else splits
    if not splits:
        if len(inside) == 1 and not root.images:
            (only,) = inside.values()
            if only.with_images():
                return find(only)
        return _checked(Layout(root, None, tuple(sorted(inside))))
    train = _one(root, splits, TRAINING)
    held_out = [_one(root, splits, names) for names in HELD_OUT]
    test = next(filter(None, held_out), None)
    beside = [name for name in inside if name not in splits]
    if train is None or (beside and test is None):
        names = ", ".join(map(shown, sorted(inside)))
        raise DataError(
            f"{shown(root.path)} holds {names}: expected train/ and test/ with a folder per class in each, "
            "or a folder per class and nothing else"
        )
    held_out = [name for names in HELD_OUT for name in names]
    if test is None and (empty := [name for name in root.folders if name.casefold() in held_out]):
        raise DataError(
            f"{shown(root.path / empty[0])} holds no image that is read here: fill it, or move it away and a "
            "fifth of the training images is held out"
        )
    for split in filter(None, (train, test)):
        if not split.with_images():
            raise DataError(
                f"{shown(split.path)} holds images but no classes: sort them into one folder per class, or "
                "move it away"
            )
    left_alone = sorted(name for name, folder in inside.items() if folder not in (train, test))
    train = _innermost(train, ())
    classes = tuple(sorted(train.with_images()))
    return _checked(Layout(train, test and _innermost(test, classes), classes, tuple(left_alone)))


def _one(root: Folder, splits: dict[str, Folder], names: tuple[str, ...]) -> Folder | None:
    """The folder of one split, or None."""
    found = [name for name in splits if name.casefold() in names]
    if len(found) > 1:
        both = " and ".join(map(shown, found))
        raise DataError(f"{shown(root.path)} holds {both}, which mean the same split: keep one")
    return splits[found[0]] if found else None


def _innermost(split: Folder, classes: tuple[str, ...]) -> Folder:
    """Descends while there is nothing but one folder of folders, which is none of the known classes."""
    inside = split.with_images()
    only = next(iter(inside.values()))
    if len(inside) > 1 or split.images or only.path.name in classes or not only.with_images():
        return split
    return _innermost(only, classes)


def _checked(layout: Layout) -> Layout:
    train = layout.train
    if not layout.classes:
        raise DataError(f"no sub-directory of {shown(train.path)} holds images ({' '.join(EXTENSIONS)})")
    for split in filter(None, (train, layout.test)):
        for folder in split.folders.values():
            others = list(folder.everything("others"))
            if others and not any(folder.everything()):
                kinds = sorted({path.suffix or path.name for path in others})[:5]
                raise DataError(
                    f"{shown(folder.path)} holds {len(others)} files and no image that is read here "
                    f"({shown(', '.join(kinds))}): convert them, or move the folder away"
                )
    if layout.test and (unknown := sorted(set(layout.test.with_images()) - set(layout.classes))):
        names = ", ".join(map(shown, unknown))
        raise DataError(f"{shown(layout.test.path)} holds classes {shown(train.path)} lacks: {names}")
    inside = train.with_images()
    below = [set(folder.with_images()) for folder in inside.values() if not folder.images]
    if len(below) == len(inside) > 1 and len(alike := sorted(set.intersection(*below))) > 1:
        raise DataError(
            f"{shown(train.path)} holds {', '.join(map(shown, layout.classes))}, and each of them holds "
            f"{', '.join(map(shown, alike))}: call them train and test if they are splits; if they are "
            "classes, put their images into one folder each"
        )
    return layout
