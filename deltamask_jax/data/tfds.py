"""TensorFlow Datasets, read from prepared array_record files: no TensorFlow, no network.

Only preparing a data set needs those, once (`PREPARE`). The prepared directory is looked for
here and opened by its path, because asking TFDS by name for a data set it does not have makes it
wait minutes for the network and then fail misleadingly.
"""

import difflib
import functools
import json
import os
import re
from pathlib import Path

import numpy as np

from deltamask_jax.data import stratify
from deltamask_jax.data.dataset import DataError, Dataset, LazyImages, Split, has_no_labels, labelled
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say

# The data sets of DeltaMask (arXiv 2311.17299) and FedPEFT (arXiv 2210.01708), with TFDS's default
# configuration where there are several. Any other TFDS data set of images and labels works as well.
KNOWN = {
    "cars196": "",
    "cifar10": "",
    "cifar100": "",  # `label` is the fine one, 100 classes
    "emnist": "byclass",
    "eurosat": "rgb",
    "fashion_mnist": "",
    "food101": "",
    "patch_camelyon": "",
    "resisc45": "",
    "svhn_cropped": "",
}
# Not `tfds build`: that command does not start without apache_beam and mlcroissant.
PREPARE = (
    "pip install 'deltamask_jax[tfds]' tensorflow-cpu && "
    "python -c \"import tensorflow_datasets as t; t.builder('{name}', data_dir='{root}', "
    "file_format='array_record').download_and_prepare()\""
)
_CHUNK = 1024  # records read at a time for their labels
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def load(spec: str, data_dir: str | Path | None = None, whole: bool = False) -> Dataset:
    """Opens a prepared data set; images stay on disk and are decoded on use.

    The training split is 'train'; the test split is 'test', else 'validation', else (eurosat,
    resisc45) a stratified fifth of 'train', always the same one. One without labels (imagenet2012's
    'test') is left alone. EMNIST is stored transposed, and is turned upright here.

    Args:
        spec: 'name', 'name/config', or either with ':version'; by default the newest prepared.
        data_dir: where they are prepared; by default `$TFDS_DATA_DIR` or ~/tensorflow_datasets.
        whole: as of `data.load`.

    Raises:
        DataError: it is not prepared there, not as array_record, not whole, holds no 8-bit images with one
            integer label each, or the labels break the rule of `labelled`.
    """
    root = expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    directory = _prepared(spec, root)
    builder = _open(directory, root)
    names = _class_names(builder.info, spec)
    upright = builder.info.name == "emnist"
    train = _split(builder, "train", upright)
    for held_out in (name for name in ("test", "validation") if name in builder.info.splits):
        test = _split(builder, held_out, upright)
        if not has_no_labels(test.labels):
            return labelled(builder.info.name, train, test, names, where=f"tfds:{spec}")
        say(f"tfds:{spec}: the split {held_out} has no labels, and is left alone")
    return stratify.hold_out(builder.info.name, train, names, where=f"tfds:{spec}", whole=whole)


def _class_names(info, spec: str) -> tuple[str, ...] | None:
    """The names of the classes, numbers where only their count is known, None where not even that."""
    features = info.features if hasattr(info.features, "keys") else {}
    if not {"image", "label"} <= set(features.keys()) or "train" not in info.splits:
        raise DataError(f"tfds:{spec} has no 'train' split of 'image' and 'label'")
    image, label = features["image"], features["label"]
    if label.shape != () or np.dtype(label.np_dtype).kind not in "iu":
        raise DataError(f"tfds:{spec} has labels {label}: one integer per example is needed")
    if len(image.shape or ()) != 3 or image.np_dtype != np.uint8:
        raise DataError(f"tfds:{spec} has images {image}: 8 bits per channel are needed")
    names, count = getattr(label, "names", None), getattr(label, "num_classes", None)
    if not names and count:
        names = map(str, range(count))
    return tuple(names) if names else None


def _prepared(spec: str, root: Path) -> Path:
    """The directory of the prepared data set, e.g. ~/tensorflow_datasets/emnist/byclass/3.1.0."""
    path, _, version = spec.partition(":")
    name, _, config = path.partition("/")
    base = root / name / (config or KNOWN.get(name, ""))
    versions = [entry for entry in base.glob("*") if _VERSION.fullmatch(entry.name)]
    if version:
        versions = [entry for entry in versions if entry.name == version]
    versions = [entry for entry in versions if (entry / "dataset_info.json").is_file()]
    if versions:
        return max(versions, key=lambda entry: [int(part) for part in entry.name.split(".")])
    near = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f" (did you mean tfds:{near[0]}?)" if near and name not in KNOWN else ""
    command = PREPARE.format(name=base.relative_to(root), root=root)
    raise DataError(f"tfds:{spec} is not prepared under {root}{hint}; with network, run\n{command}")


def _open(directory: Path, root: Path):
    """A TFDS builder over the directory, checked to be in a format that is read at random."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text())
        info.get("fileFormat")
    except (OSError, ValueError, AttributeError):
        raise DataError(f"{directory / 'dataset_info.json'} is damaged; copy or prepare it again") from None
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        name = directory.parent.relative_to(root)
        raise DataError(
            f"{directory} is prepared as {formats[0]}; move it away and prepare it again by\n"
            + PREPARE.format(name=name, root=root)
        )
    try:
        import array_record  # noqa: F401  TFDS would only miss it at the first image
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{error}; run `pip install 'deltamask_jax[tfds]'` to read TensorFlow Datasets"
        ) from None
    return tfds.builder_from_directory(directory)


def _split(builder, split: str, upright: bool) -> Split:
    from tensorflow_datasets import decode

    source = builder.as_data_source(split=split)
    undecoded = builder.as_data_source(split=split, decoders={"image": decode.SkipDecoding()})
    starts = range(0, len(undecoded), _CHUNK)
    chunks = (range(start, min(start + _CHUNK, len(undecoded))) for start in starts)
    try:
        labels = [int(e["label"]) for chunk in chunks for e in undecoded.__getitems__(chunk)]
    except RuntimeError as error:  # what array_record raises for a missing or damaged file
        reason = str(error).partition(";")[0]
        raise DataError(f"{builder.data_path} is incomplete ({reason}); copy it again") from None
    identity = f"{builder.info.full_name} {split} {builder.info.splits[split].num_bytes}"
    images = LazyImages(functools.partial(_read, source, upright), np.arange(len(labels)), identity)
    return Split(images, np.array(labels, np.int64))


def _read(source, upright: bool, positions: list[int]) -> list[np.ndarray]:
    images = [example["image"] for example in source.__getitems__(positions)]
    return [image.swapaxes(0, 1) for image in images] if upright else images
