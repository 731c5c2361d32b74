"""The embedded images come from the source's own splits, validation images from nothing that is embedded."""

import sys
from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import data

sys.path.insert(0, str(Path(__file__).parents[2] / "launch"))

import embed_fashion  # noqa: E402


@pytest.fixture
def source(monkeypatch) -> data.Dataset:
    """200 training and 50 test images, each with its own pixels; small parts are taken of them."""
    for name, size in (("TRAIN", 60), ("TEST", 20), ("VALIDATION", 40)):
        monkeypatch.setattr(embed_fashion, name, size)
    numbers = np.arange(250, dtype=np.uint8)
    images, labels = np.tile(numbers[:, None, None], (1, 4, 4)), (numbers % 10).astype(np.int32)
    train, test = (data.Split(images[part], labels[part]) for part in (slice(200), slice(200, 250)))
    return data.Dataset("source", train, test, embed_fashion.CLASS_NAMES)


def test_the_parts_are_disjoint_and_of_their_own_split(source, tmp_path):
    parts = []
    for name in ("embedded", "validation"):
        embed_fashion.write(tmp_path / f"{name}.npz", getattr(embed_fashion, name)(source))
        part = data.load(f"npz:{tmp_path}/{name}.npz")
        assert part.class_names == embed_fashion.CLASS_NAMES
        assert {len(np.unique(np.bincount(split.labels))) for split in (part.train, part.test)} == {1}
        parts.append([set(split.images[:, 0, 0].tolist()) for split in (part.train, part.test)])
    (train, test), (again, held) = parts
    assert train == again and (len(train), len(test), len(held)) == (60, 20, 40)
    assert max(train | held) < 200 <= min(test) and not train & held
