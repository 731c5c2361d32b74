"""Make the embedded part of Fashion-MNIST, and the validation images that settings are chosen on.

    python launch/embed_fashion.py --source=/usr/share/datasets/fashion-mnist        # writes the asset
    python launch/embed_fashion.py --source=… --validation=validation.npz            # writes that instead
    python -m deltamask_jax.main --config=configs/quickstart.py --config.data=npz:validation.npz

Test images are the source's own. Validation images come from its training images, and are not among the
embedded ones; they take the place of the test images in a file of the same form. The source: docs/data.md.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from deltamask_jax import data
from deltamask_jax.data import arrays, fashion, stratify
from deltamask_jax.paths import expanded

TRAIN, TEST, VALIDATION = 2000, 1000, 2000  # examples, of ten classes equally many
CLASS_NAMES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

FLAGS = flags.FLAGS


def embedded(source: data.Dataset) -> data.Dataset:
    """The part of the source that the package carries."""
    return data.subset(source, TRAIN, TEST, seed=0)


def validation(source: data.Dataset) -> data.Dataset:
    """The same training images; as test images, others of the source's training images."""
    rest = np.setdiff1d(np.arange(len(source.train)), stratify.stratified(source.train.labels, TRAIN, seed=0))
    held = rest[stratify.stratified(source.train.labels[rest], VALIDATION, seed=1)]
    return dataclasses.replace(embedded(source), test=source.train.take(held))


def write(path: Path, dataset: data.Dataset) -> None:
    """An npz that `config.data='npz:FILE'` reads."""
    np.savez_compressed(
        path,
        x_train=dataset.train.images,
        y_train=dataset.train.labels.astype(np.uint8),
        x_test=dataset.test.images,
        y_test=dataset.test.labels.astype(np.uint8),
        class_names=np.array(CLASS_NAMES),
    )


def main(argv: list[str]) -> None:
    try:
        source = arrays.load_idx(expanded(FLAGS.source))
        if FLAGS.validation:
            write(expanded(FLAGS.validation), validation(source))
        else:
            write(fashion.FILE, embedded(source))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "Folder of Fashion-MNIST's four IDX files.", required=True)
    flags.DEFINE_string("validation", "", "File for the validation images; without it the asset is written.")
    app.run(main)
