"""Data sets, preprocessing, partitioners and the frozen-prefix cache.

Example:
    dataset = data.load("digits")  # or fashion, idx:DIR, folder:DIR, npz:FILE, tfds:NAME
    dataset = data.subset(dataset, train_examples=500)
    parts = partition.split("dirichlet", dataset.train.labels, 30, alpha=10.0, seed=0)
"""

import difflib
from pathlib import Path

from deltamask_jax.data.dataset import DataError, Dataset, LazyImages, Split
from deltamask_jax.data.stratify import subset
from deltamask_jax.paths import expanded

__all__ = ["DataError", "Dataset", "LazyImages", "Split", "load", "subset"]

SOURCES = ("digits", "fashion", "folder:DIR", "idx:DIR", "npz:FILE", "tfds:NAME")


def load(spec: str, *, cache_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        spec: 'digits', 'fashion', 'idx:DIR', 'folder:DIR', 'npz:FILE' or 'tfds:NAME'.
        cache_dir: where prepared `tfds:` data sets lie; by default `$TFDS_DATA_DIR`, or
            ~/tensorflow_datasets.

    Raises:
        DataError: the name is unknown or the data is missing or malformed; it says what to do.
    """
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

            return tfds.load(where, cache_dir)
        path = expanded(where)
        if source == "folder":
            from deltamask_jax.data import folder

            return folder.load_folder(path)
        from deltamask_jax.data import arrays

        return (arrays.load_idx if source == "idx" else arrays.load_npz)(path)
    near = difflib.get_close_matches(source, known, n=1, cutoff=0.5)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"choose from {', '.join(SOURCES)}"
    raise DataError(f"unknown data set {spec!r}: {hint}")
