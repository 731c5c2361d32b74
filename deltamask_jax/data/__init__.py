"""Data sets, preprocessing, partitioners and the frozen-prefix cache.

Example:
    dataset = data.load("digits")  # or any of `SOURCES`
    dataset = data.subset(dataset, train_examples=500)
    parts = partition.split("dirichlet", dataset.train.labels, 30, alpha=10.0, seed=0)
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltamask_jax.data.dataset import DataError, Dataset, LazyImages, Split, Texts
from deltamask_jax.data.stratify import subset
from deltamask_jax.paths import expanded

__all__ = ["DataError", "Dataset", "LazyImages", "Split", "Texts", "load", "subset"]

SOURCES = (
    "digits",
    "fashion",
    "csv:FILE",
    "folder:DIR",
    "hf:NAME",
    "idx:DIR",
    "jsonl:FILE",
    "npz:FILE",
    "tfds:NAME",
)


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called, as `config.columns` says; user '' where nobody is named."""

    text: str = "text"
    image: str = "image"
    label: str = "label"
    user: str = ""


def load(
    spec: str,
    *,
    cache_dir: str | Path | None = None,
    columns: Any = Columns(),
    whole: bool = False,
) -> Dataset:
    """Loads a data set by name.

    Args:
        spec: one of `SOURCES`; 'hf:NAME,CONFIG' where a data set of the hub has several.
        cache_dir: where prepared `tfds:` data sets lie; by default `$TFDS_DATA_DIR`, or
            ~/tensorflow_datasets.
        columns: of `csv:`, `jsonl:` and `hf:`, as `Columns`.
        whole: all of it trains, as of a client's own data: one class is enough, and where the source has no
            test split none is held out.

    Raises:
        DataError: the name is unknown, or the data is missing, malformed, or of too few classes; it says what
            to do.
    """
    dataset = _load(spec, cache_dir, columns, whole)
    seen = np.unique(dataset.train.labels)
    if len(seen) < 2 and not whole:
        raise DataError(
            f"{spec}: every training example is of the one class {dataset.class_names[seen[0]]!r}; "
            "at least two are needed"
        )
    return dataset


def _load(spec: str, cache_dir: str | Path | None, columns: Any, whole: bool) -> Dataset:
    source, _, where = spec.partition(":")
    if source == "digits" and not where:
        from deltamask_jax.data import digits

        return digits.load()
    if source == "fashion" and not where:
        from deltamask_jax.data import fashion

        return fashion.load()
    known: dict[str, str] = {name.partition(":")[0]: name for name in SOURCES}
    if ":" in known.get(source, ""):
        if not where:
            raise DataError(f"data set {spec!r} needs a place after the colon: {known[source]}")
        if source == "tfds":
            from deltamask_jax.data import tfds

            return tfds.load(where, cache_dir, whole)
        if source in ("csv", "jsonl", "hf"):
            from deltamask_jax.data import tables

            if source == "hf":
                return tables.load_hub(where, columns, whole)
            read = tables.load_csv if source == "csv" else tables.load_jsonl
            return read(expanded(where), columns, whole)
        path = expanded(where)
        if source == "folder":
            from deltamask_jax.data import folder

            return folder.load_folder(path, whole)
        from deltamask_jax.data import arrays

        return (arrays.load_idx if source == "idx" else arrays.load_npz)(path)
    near = difflib.get_close_matches(source, known, n=1, cutoff=0.5)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"choose from {', '.join(SOURCES)}"
    raise DataError(f"unknown data set {spec!r}: {hint}")
