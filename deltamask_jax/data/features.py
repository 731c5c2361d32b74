"""The frozen-prefix cache: what the untrained blocks make of every example, computed once.

Blocks before the first trained one never change (DeltaMask, arXiv 2311.17299, masks the last ones),
so without train-time augmentation their outputs serve every round, every run on the same weights.
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from deltamask_jax import devices, threads
from deltamask_jax.data.dataset import LazyImages, Texts
from deltamask_jax.data.preprocessing import Preprocessing
from deltamask_jax.data.tokenization import Tokenization

_DECODED = 16  # images per core that are held at their own size


@dataclasses.dataclass(frozen=True)
class TokensOnDemand:
    """The frozen prefix's outputs of a split, computed anew whenever some of them are asked for.

    Attributes:
        compute: rows i[k] -> tokens [k, ...].
        size: how many examples there are.
        on_devices: whether what is computed for a round goes to the devices whole, or a chunk's at a time.
    """

    compute: Callable[[np.ndarray], np.ndarray]
    size: int
    on_devices: bool = True

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.compute(np.arange(self.size)[rows])


def prefix_features(
    prefix_fn: Callable[[jax.Array], jax.Array],
    images: Any,
    preprocessing: Preprocessing | Tokenization,
    *,
    key: str = "",
    directory: Path | None = None,
    chunk: int = 64,
    place: Callable[[np.ndarray], jax.Array] = jnp.asarray,
    dtype: Any = "float32",
    progress: bool = True,
) -> np.ndarray:
    """Runs the frozen prefix over all images or texts, in chunks of one shape.

    Args:
        prefix_fn: prepared images or texts [chunk, ...] → [chunk, ...], jitted by the caller, whose call it
            is how long what is compiled lives.
        images: what `Split.images` holds.
        preprocessing: applied to each chunk.
        key: `fingerprint` of what the result depends on besides `preprocessing` and `dtype`: the
            model's configuration, its weights, the images. Only used with a directory.
        directory: where to keep the result for later runs; None keeps it in memory.
        chunk: images at a time; the last chunk is padded, so that there is one compilation.
        place: puts a chunk's pixels on the devices.
        dtype: of the result, 'float32' or 'bfloat16'; word numbers stay what they are.
        progress: show a progress bar.

    Returns:
        dtype[n, ...]: an array in memory or, with a directory, a read-only memory map.

    Raises:
        ValueError: a directory without a key, or chunk < 1.
        OSError: the result is larger than what memory, or the directory's disk, has left.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    example = jax.ShapeDtypeStruct((chunk, *preprocessing.shape), preprocessing.dtype)
    outputs = jax.eval_shape(prefix_fn, example)
    shape, dtype = (len(images), *outputs.shape[1:]), dtype_of(outputs, dtype)
    if directory is None:
        return _compute(prefix_fn, images, preprocessing, chunk, place, _in_memory(shape, dtype), progress)
    if not key:
        raise ValueError("a cache directory needs a key: fingerprint(model config, params, images)")
    name = fingerprint(key, preprocessing, str(dtype), len(images))
    path = Path(directory, f"prefix-{name}.npy")
    stored = _stored(path, shape, dtype)
    if stored is not None:
        return stored
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")

    _refuse_more_than(shutil.disk_usage(path.parent).free, f"the disk of {path.parent}", shape, dtype)
    try:
        empty = np.lib.format.open_memmap(partial, "w+", _on_disk(dtype), shape).view(dtype)
        features = _compute(prefix_fn, images, preprocessing, chunk, place, empty, progress)
        cast(np.memmap, features).flush()
        os.replace(partial, path)  # the name appears only once everything is in the file
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    stored = _stored(path, shape, dtype)
    if stored is None:
        raise OSError(f"{path} cannot be read back: is the cache's disk full or damaged?")
    return stored


def _in_memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    _refuse_more_than(devices.available_ram(), "memory", shape, dtype)
    return np.empty(shape, dtype)


def _refuse_more_than(free: int, where: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """An array that outgrows memory or disk while it is written ends in a signal, not in an error."""
    size = math.prod(shape) * dtype.itemsize
    if size > free:
        raise OSError(
            f"the frozen prefix's outputs take {size / 2**30:.1f} GiB, and {where} has {free / 2**30:.1f} "
            "GiB left: set config.prefix_cache to a folder with room, or let fewer clients train at once "
            "(config.participation) with 'off', which computes only theirs"
        )


def _compute(prefix_fn, images, preprocessing, chunk, place, features, progress) -> np.ndarray:
    """Fills `features` with those of all images."""
    n = len(images)
    waiting = None  # the chunk on the device, while the host prepares the next one
    with tqdm(
        total=n, desc="frozen prefix", unit=" examples", leave=False, disable=None if progress else True
    ) as bar:
        for start in [*range(0, n, chunk), None]:
            computed = None
            if start is not None:
                batch = _prepared(images, preprocessing, np.arange(start, min(start + chunk, n)))
                size = len(batch)
                if size < chunk:
                    batch = np.pad(batch, [(0, chunk - size)] + [(0, 0)] * (batch.ndim - 1))
                computed = start, size, prefix_fn(place(batch))
            if waiting is not None:
                first, size, outputs = waiting
                features[first : first + size] = np.asarray(outputs)[:size]
                bar.update(size)
            waiting = computed
    return features


def _prepared(images: Any, preprocessing: Preprocessing | Tokenization, rows: np.ndarray) -> np.ndarray:
    """Network input [k, ...] of the examples at `rows`; of images that are decoded for it, few are whole at
    once."""
    if not isinstance(images, LazyImages):
        return preprocessing.apply(images[rows])
    at_once = _DECODED * threads.count()
    parts = [rows[first : first + at_once] for first in range(0, len(rows), at_once)]
    return np.concatenate([preprocessing.apply(images[part]) for part in parts])


def dtype_of(outputs: Any, dtype: Any) -> Any:
    """What the prefix's outputs are kept as: `dtype`, or whole numbers as they are."""
    return jnp.dtype(dtype) if jnp.issubdtype(outputs.dtype, jnp.floating) else outputs.dtype


def _stored(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The cached features, or None where there are none or the file is damaged or of something else."""
    try:
        stored = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):  # absent, not an array, or shorter than its header says
        return None
    if stored.shape != shape or stored.dtype != _on_disk(dtype):
        return None
    return stored.view(dtype)


def _on_disk(dtype: np.dtype) -> np.dtype:
    """npy files know no bfloat16: its bits are stored as unsigned integers."""
    return np.dtype(f"u{dtype.itemsize}") if dtype == jnp.bfloat16 else dtype


def fingerprint(*parts: Any) -> str:
    """A 128-bit hash, as hexadecimal, of arrays, images, texts, configurations and trees of them.

    Args:
        parts: arrays (their type, shape and bytes), `LazyImages`, mappings, sequences, dataclasses,
            and plain values.

    Raises:
        TypeError: a part is none of these.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest, part: Any) -> None:
    """Hashes one part; lengths and types go in too, so that different parts never read the same."""
    if isinstance(part, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(part)
        digest.update(f"array {array.dtype} {np.shape(part)} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    elif isinstance(part, Texts):
        _feed(digest, ["texts", *part.texts])
    elif isinstance(part, LazyImages):
        _feed(digest, ["images", part.identity, part.positions])
    elif isinstance(part, Mapping):
        _feed(digest, ["mapping", *sorted(part.items(), key=lambda item: str(item[0]))])
    elif isinstance(part, list | tuple):
        digest.update(f"sequence {len(part)} ".encode())
        for item in part:
            _feed(digest, item)
    elif dataclasses.is_dataclass(part):
        _feed(digest, {f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    elif part is None or isinstance(part, str | bytes | bool | int | float):
        text = repr(part).encode()
        digest.update(f"{type(part).__name__} {len(text)} ".encode() + text)
    else:
        raise TypeError(f"no fingerprint of a {type(part).__name__}; give arrays and plain values")
