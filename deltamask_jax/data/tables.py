"""Examples that are rows of a table: CSV files, JSON lines, and data sets of the Hugging Face hub.

Which column holds what is `config.columns`. A file has both splits, told apart by a column named `split`,
or a fifth of every class is the test; a folder has `train` and `test` files. Labels are names or numbers.
"""

import csv
import json
import reprlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deltamask_jax.data import stratify
from deltamask_jax.data.dataset import (
    TOO_DEEP,
    DataError,
    Dataset,
    LazyImages,
    Split,
    Texts,
    first_line,
    has_no_labels,
    labelled,
)
from deltamask_jax.data.preprocessing import rgb
from deltamask_jax.hub import unreachable
from deltamask_jax.progress import say

_MOST_DIGITS = 100  # of a name that counts as a number; Python reads 4,300
_TEST = ("test", "validation", "val", "dev")  # what sources call it, in this order


def load_csv(path: Path, columns: Any, whole: bool = False) -> Dataset:
    """Reads comma-separated rows under a line of column names: a file, or a folder of train.csv and test.csv.

    Args:
        columns, whole: as of `data.load`.

    Raises:
        DataError: no such file or column, a damaged row, or labels that break the rule of `dataset.labelled`.
    """
    return _load(path, ".csv", _csv_rows, columns, whole)


def load_jsonl(path: Path, columns: Any, whole: bool = False) -> Dataset:
    """Reads an object per line: a file, or a folder of train.jsonl and test.jsonl. All else as `load_csv`."""
    return _load(path, ".jsonl", _json_rows, columns, whole)


def load_hub(name: str, columns: Any, whole: bool = False) -> Dataset:
    """Reads `name` or `name,config` of the Hugging Face hub through `datasets`; from its cache if it can.

    Args:
        columns, whole: as of `data.load`.

    Raises:
        DataError: the extra is not installed, or the data is not cached and there is no connection (with the
            command that fetches it); else as `load_csv`.
    """
    try:
        import datasets  # an extra, slow to import
    except ModuleNotFoundError:
        raise DataError("hf: data needs datasets: pip install 'deltamask_jax[hf]'") from None
    found = _from_hub(datasets, name)
    train, where = found.get("train"), f"hf:{name}"
    if train is None:
        raise DataError(f"{where} has no split named train, only {', '.join(found)}")
    parts = [train]
    for split in (part for part in _TEST if part in found):
        if columns.label in found[split].features and has_no_labels(found[split][columns.label]):
            say(f"{where}: the split {split} has no labels, and is left alone")
            continue
        parts.append(found[split])
        break
    read = _image_rows if columns.image in train.features else _text_rows
    class_names = getattr(train.features.get(columns.label), "names", None)
    return _dataset(name, where, [read(part, columns, where) for part in parts], class_names, whole)


def _from_hub(datasets: Any, name: str) -> Any:
    from huggingface_hub import constants

    repository, _, config = name.partition(",")
    arguments = (repository, config) if config else (repository,)
    with _offline(constants, datasets.config):
        try:
            return datasets.load_dataset(*arguments)
        except Exception:  # not in the cache
            pass
    quoted = ", ".join(f"'{argument}'" for argument in arguments)
    command = f'python -c "import datasets; datasets.load_dataset({quoted})"'
    if why := unreachable():
        raise DataError(f"'hf:{name}' is not in the local cache and {why}; with a connection, run: {command}")
    try:
        return datasets.load_dataset(*arguments)
    except Exception as error:  # of the hub's client, of what it connects with, of the disk
        raise DataError(f"'hf:{name}' cannot be loaded ({first_line(error)}); try: {command}") from None


@contextmanager
def _offline(*libraries: Any) -> Generator[None]:
    """Only the cache is looked at: without a network the hub's client would retry for half a minute."""
    before = [library.HF_HUB_OFFLINE for library in libraries]
    for library in libraries:
        library.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for library, was in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = was


def _load(path: Path, suffix: str, read: Any, columns: Any, whole: bool) -> Dataset:
    if path.is_dir():
        parts = [_columns(read(path / f"{part}{suffix}"), columns, str(path)) for part in ("train", "test")]
        return _dataset(path.name, str(path), parts)
    rows = read(path)
    if any("split" in row for row in rows):
        _refuse_nothing([row.get("split") for row in rows], "split", str(path))
        names = {str(row["split"]) for row in rows}
        test = next((part for part in _TEST if part in names), None)
        if test is None or "train" not in names or names - {"train", *_TEST}:
            raise DataError(
                f"{path}: the column 'split' must say train or test, got {', '.join(sorted(names)[:8])}"
            )
        for name in sorted(names - {"train", test}):
            say(f"{path}: rows whose split is {name} are left out: the test has those of {test}")
        of_part = [[row for row in rows if row["split"] == part] for part in ("train", test)]
        return _dataset(path.stem, str(path), [_columns(part, columns, str(path)) for part in of_part])
    return _dataset(path.stem, str(path), [_columns(rows, columns, str(path))], whole=whole)


def _csv_rows(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # Python's own, 131,072 characters, is shorter than some texts
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {first_line(error)}") from None
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: other than {len(reader.fieldnames or ())} fields")
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}, line {number}: no JSON object")
                    rows.append(row)
    except FileNotFoundError:
        raise DataError(f"no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no file of JSON lines in UTF-8: {first_line(error)}") from None
    return rows


def _columns(rows: list[dict[str, Any]], columns: Any, where: str) -> tuple[Any, list[Any], list[Any] | None]:
    """Texts, labels, and who wrote them."""
    wanted = [columns.text, columns.label, *([columns.user] if columns.user else [])]
    for name in wanted:
        lacking = next((i for i, row in enumerate(rows, 1) if name not in row), None)
        if lacking is not None:
            has = ", ".join(map(str, list(rows[lacking - 1])[:8]))
            raise DataError(
                f"{where}: row {lacking} has no {name!r}, only {has}; config.columns names the columns"
            )
        # A text may be empty; a label or a user that is would be one more of them.
        nothing = (None,) if name == columns.text else (None, "")
        _refuse_nothing([row[name] for row in rows], name, where, nothing)
    for number, row in enumerate(rows, 1):
        if not _is_text(row[columns.text]):
            raise DataError(f"{where}: row {number}: {columns.text!r} is no text of whole characters")
    texts = Texts(tuple(str(row[columns.text]) for row in rows))
    users = [row[columns.user] for row in rows] if columns.user else None
    return texts, [row[columns.label] for row in rows], users


def _refuse_nothing(values: list[Any], name: str, where: str, nothing: tuple[Any, ...] = (None, "")) -> None:
    """Refuse a column with a value that says nothing.

    Raises:
        DataError: naming the row.
    """
    empty = next((i for i, value in enumerate(values, 1) if value in nothing), None)
    if empty is not None:
        raise DataError(f"{where}: row {empty} has an empty {name!r}: fill it in, or leave the row out")


def _is_text(value: Any) -> bool:
    """Whether UTF-8 can say it: lists, objects and halves of characters are no text."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return not isinstance(value, list | dict)


def _text_rows(part: Any, columns: Any, where: str) -> tuple[Any, list[Any], list[Any] | None]:
    """Of the hub's columns only what is asked for: others may hold pictures, which would all be decoded."""
    wanted = [columns.text, columns.label, *([columns.user] if columns.user else [])]
    _refuse_lacking(part, wanted, where)
    return _columns(list(part.select_columns(wanted)), columns, where)


def _refuse_lacking(part: Any, wanted: list[str], where: str) -> None:
    """Refuse a data set of the hub without a column.

    Raises:
        DataError: naming the column, and those that are there.
    """
    if lacking := [name for name in wanted if name not in part.features]:
        raise DataError(
            f"{where} has no column {lacking[0]!r}, only {', '.join(part.features)}; "
            "config.columns names the columns, config.columns.image that of images"
        )


def _image_rows(part: Any, columns: Any, where: str) -> tuple[Any, list[Any], list[Any] | None]:
    def read(positions: list[int]) -> list[np.ndarray]:
        return [
            _pixels(part[position][columns.image], f"{where}: row {position + 1}") for position in positions
        ]

    wanted = [columns.label, *([columns.user] if columns.user else [])]
    _refuse_lacking(part, [columns.image, *wanted], where)
    for name in wanted:
        _refuse_nothing(list(part[name]), name, where)
    images = LazyImages(read, np.arange(len(part)), f"{where} {part._fingerprint} {columns.image}")
    return images, part[columns.label], part[columns.user] if columns.user else None


def _pixels(image: Any, where: str) -> np.ndarray:
    """A picture of the hub as u8[h, w, 3].

    Raises:
        DataError: there is none, or it has more than 8 bits per channel.
    """
    if image is None:
        raise DataError(f"{where} has no image: leave the row out")
    if image.mode[0] in "IF":
        raise DataError(f"{where} has {TOO_DEEP}")
    return rgb(image)


def _dataset(
    name: str,
    where: str,
    parts: Sequence[tuple[Any, list[Any], list[Any] | None]],
    class_names: Sequence[str] | None = None,
    whole: bool = False,
) -> Dataset:
    """A data set of a training and a test part, or of one part, which is divided unless it stays whole."""
    labels = [label for part in parts for label in part[1]]
    users = [user for part in parts for user in part[2] or ()]
    if class_names is None:
        class_names, numbers = _numbered(labels, f"{where}: the labels")
    else:
        numbers = np.asarray(labels, np.int64)
    owners = _numbered(users, f"{where}: the users")[1].astype(np.int32) if users else None
    splits, first = [], 0
    for inputs, theirs, _ in parts:
        rows = slice(first, first + len(theirs))
        splits.append(Split(inputs, numbers[rows], None if owners is None else owners[rows]))
        first += len(theirs)
    if len(splits) == 1:
        if not whole:
            say(f"{where} has no test split: a fifth of every class is the test")
        return stratify.hold_out(name, splits[0], class_names, where=where, whole=whole)
    return labelled(name, splits[0], splits[1], class_names, where=where)


def _numbered(values: list[Any], what: str) -> tuple[list[str], np.ndarray]:
    """Distinct values as names, and each value's number among them; numbers in the order of numbers."""
    for value in values:
        if isinstance(value, list | dict | float):
            raise DataError(f"{what} must be names or whole numbers, got {reprlib.repr(value)}")
    names = [str(value) for value in values]
    distinct = sorted(set(names), key=lambda name: (0, int(name), name) if _whole(name) else (1, 0, name))
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([number[name] for name in names], np.int64)


def _whole(name: str) -> bool:
    return len(name) <= _MOST_DIGITS and name.removeprefix("-").isdecimal()
