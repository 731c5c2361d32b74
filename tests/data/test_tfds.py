"""TensorFlow Datasets: a hand-made prepared data set is read; a missing one is refused at once."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltamask_jax import data
from deltamask_jax.data import features, tfds

SIZE = 6


def _prepare(
    root: Path,
    name: str,
    path: str,
    splits: dict[str, int],
    *,
    format="array_record",
    label=lambda features: features.ClassLabel(names=["ant", "bee", "cat"]),
    labels=lambda i: [i % 3],
    image=lambda features: features.Image(shape=(None, None, 1)),
):
    """Writes what `download_and_prepare` writes, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    array_record_module = pytest.importorskip("array_record.python.array_record_module")
    from tensorflow_datasets.proto import tf_example_pb2

    directory = root / path
    directory.mkdir(parents=True)
    described = {"image": image(tfds.features), "label": label(tfds.features)}
    tfds.features.FeaturesDict(described).save_config(directory)
    for split, n in splits.items():
        file = directory / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        for i in range(n):
            png = io.BytesIO()
            Image.fromarray(_image(i)).save(png, "png")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.extend(labels(i))
            writer.write(example.SerializeToString())
        writer.close()
    info = {
        "name": name,
        "version": directory.name,
        "fileFormat": format,
        "splits": [
            {
                "name": split,
                "shardLengths": [str(n)],
                "numBytes": "1000",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, n in splits.items()
        ],
    }
    if directory.parent.name != name:
        info["configName"] = directory.parent.name
    (directory / "dataset_info.json").write_text(json.dumps(info))


def _image(i: int) -> np.ndarray:
    """u8[6, 6] that knows its number and which way is up."""
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[0, 0], pixels[0, 1:] = i, 200  # a bright top row
    return pixels


def test_reads_a_prepared_data_set_without_tensorflow(tmp_path):
    tensorflow_before = "tensorflow" in sys.modules
    _prepare(tmp_path, "cifar10", "cifar10/3.0.2", {"train": 9, "test": 4})
    dataset = data.load("tfds:cifar10", cache_dir=tmp_path)
    assert dataset.name == "cifar10" and dataset.class_names == ("ant", "bee", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 2] * 3 and dataset.train.labels.dtype == np.int32
    assert (len(dataset.train.images), len(dataset.test.images)) == (9, 4)
    batch = dataset.train.images[np.array([7, 2])]
    assert batch.shape == (2, SIZE, SIZE, 1) and batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[..., 0], [_image(7), _image(2)])
    np.testing.assert_array_equal(dataset.test.images[3][..., 0], _image(3))
    assert ("tensorflow" in sys.modules) == tensorflow_before
    prints = [features.fingerprint(split.images) for split in (dataset.train, dataset.test)]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("splits", "train", "test"),
    [
        ({"train": 10, "test": 3, "extra": 5}, 10, 3),  # svhn_cropped
        ({"train": 10, "validation": 4}, 10, 4),  # food101
        ({"train": 10, "validation": 4, "test": 3}, 10, 3),  # patch_camelyon
        ({"train": 15}, 12, 3),  # eurosat, resisc45: a stratified fifth
    ],
)
def test_splits(tmp_path, splits, train, test):
    _prepare(tmp_path, "resisc45", "resisc45/3.0.0", splits)
    dataset = data.load("tfds:resisc45", cache_dir=tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (train, test)
    if len(splits) == 1:
        assert np.bincount(dataset.test.labels).tolist() == [1, 1, 1]
        numbers = [split.images[:][:, 0, 0, 0] for split in (dataset.train, dataset.test)]
        assert sorted(np.concatenate(numbers)) == list(range(15))


def test_a_split_without_labels_is_left_alone(tmp_path, monkeypatch, capsys):
    """As imagenet2012's test."""
    _prepare(tmp_path, "cifar10", "cifar10/3.0.2", {"train": 15, "validation": 4, "test": 3})
    of_split = tfds._split

    def blind(builder, split, upright):
        read = of_split(builder, split, upright)
        return dataclasses.replace(read, labels=0 * read.labels - 1) if split in hidden else read

    monkeypatch.setattr(tfds, "_split", blind)
    cases = (["test"], False, (15, 4)), (["test", "validation"], False, (12, 3))
    for hidden, whole, sizes in (*cases, (["test", "validation"], True, (15, 0))):  # noqa: B007, blind reads it
        loaded = data.load("tfds:cifar10", cache_dir=tmp_path, whole=whole)
        assert (len(loaded.train), len(loaded.test)) == sizes
    assert "the split test has no labels, and is left alone" in capsys.readouterr().out


def test_emnist_is_turned_upright_and_has_a_default_configuration(tmp_path):
    _prepare(tmp_path, "emnist", "emnist/byclass/3.1.0", {"train": 2, "test": 1})
    _prepare(tmp_path, "emnist", "emnist/letters/3.1.0", {"train": 3, "test": 1})
    dataset = data.load("tfds:emnist", cache_dir=tmp_path)
    assert len(dataset.train) == 2
    np.testing.assert_array_equal(dataset.train.images[1][..., 0], _image(1).T)
    assert len(data.load("tfds:emnist/letters", cache_dir=tmp_path).train) == 3


def test_the_newest_version_unless_one_is_named(tmp_path):
    for n, version in ((1, "2.0.0"), (2, "10.0.0"), (3, "9.1.0")):
        _prepare(tmp_path, "cifar10", f"cifar10/{version}", {"train": n, "test": 1})
    assert len(data.load("tfds:cifar10", cache_dir=tmp_path).train) == 2
    assert len(data.load("tfds:cifar10:9.1.0", cache_dir=tmp_path).train) == 3


def test_the_directory_comes_from_the_environment(tmp_path, monkeypatch):
    _prepare(tmp_path, "cifar10", "cifar10/3.0.2", {"train": 2, "test": 1})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(data.load("tfds:cifar10").train) == 2


def test_an_unprepared_data_set_is_refused_before_tfds_is_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # importing it would raise
    for spec, command in (
        ("cifar10", "t.builder('cifar10', "),
        ("emnist", "t.builder('emnist/byclass', "),
        ("emnist/letters", "t.builder('emnist/letters', "),
        ("cifar10:9.9.9", "t.builder('cifar10', "),
    ):
        with pytest.raises(data.DataError) as caught:
            data.load(f"tfds:{spec}", cache_dir=tmp_path)
        message = str(caught.value)
        assert f"tfds:{spec} is not prepared under {tmp_path}" in message
        assert command in message and f"data_dir='{tmp_path}'" in message
        assert "file_format='array_record').download_and_prepare()" in message
        assert message.count("\n") == 1
    with pytest.raises(data.DataError, match=r"did you mean tfds:cifar100\?"):
        data.load("tfds:cifar1000", cache_dir=tmp_path)


def test_an_interrupted_preparation_does_not_count(tmp_path):
    (tmp_path / "cifar10/3.0.2.incompleteABC").mkdir(parents=True)
    (tmp_path / "cifar10/3.0.2").mkdir()
    with pytest.raises(data.DataError, match="is not prepared"):
        data.load("tfds:cifar10", cache_dir=tmp_path)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    _prepare(tmp_path, "cifar10", "cifar10/3.0.2", {"train": 20, "test": 20})
    (file,) = tmp_path.glob("cifar10/3.0.2/*test*")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(data.DataError, match=r"3\.0\.2 is incomplete .*; copy it again"):
        data.load("tfds:cifar10", cache_dir=tmp_path)
    file.unlink()
    with pytest.raises(data.DataError, match="No such file"):
        data.load("tfds:cifar10", cache_dir=tmp_path)


def test_other_formats_are_refused(tmp_path):
    _prepare(tmp_path, "emnist", "emnist/byclass/3.1.0", {"train": 2}, format="tfrecord")
    with pytest.raises(data.DataError, match="as tfrecord; move it away") as caught:
        data.load("tfds:emnist", cache_dir=tmp_path)
    assert "t.builder('emnist/byclass'" in str(caught.value)


def test_the_extra_is_named_when_tfds_is_not_installed(tmp_path, monkeypatch):
    _prepare(tmp_path, "cifar10", "cifar10/3.0.2", {"train": 2, "test": 1})
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(data.DataError, match=r"pip install 'deltamask_jax\[tfds\]'"):
        data.load("tfds:cifar10", cache_dir=tmp_path)


def test_an_integer_that_is_no_class_label(tmp_path):
    _prepare(tmp_path, "mine", "mine/1.0.0", {"train": 9, "test": 4}, label=lambda f: f.Scalar(np.int64))
    dataset = data.load("tfds:mine", cache_dir=tmp_path)
    assert dataset.class_names == ("0", "1", "2") and dataset.train.labels.tolist() == [0, 1, 2] * 3
    _prepare(tmp_path, "counted", "counted/1.0.0", {"train": 9}, label=lambda f: f.ClassLabel(num_classes=5))
    assert data.load("tfds:counted", cache_dir=tmp_path).num_classes == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": lambda f: f.Sequence(f.ClassLabel(num_classes=3)), "labels": lambda i: [0, 1]},
            "has labels",
        ),
        ({"label": lambda f: f.Tensor(shape=(2,), dtype=np.int64), "labels": lambda i: [0, 1]}, "has labels"),
        ({"label": lambda f: f.Scalar(np.float32)}, "has labels .*: one integer per example is needed"),
        ({"label": lambda f: f.Text()}, "has labels .*: one integer per example is needed"),
        (
            {"image": lambda f: f.Image(shape=(None, None, 1), dtype=np.uint16)},
            "has images .*8 bits per channel",
        ),
        (
            {"label": lambda f: f.Scalar(np.int64), "labels": lambda i: [i * 10]},
            "without gaps, got 0, 10, 20",
        ),
        ({"labels": lambda i: [-1]}, "labels must be 0 … 2, one per class name, got -1"),
        ({"labels": lambda i: [1]}, "one class 'bee'"),
    ],
)
def test_features_and_labels_that_cannot_be_trained_on(tmp_path, changes, message):
    _prepare(tmp_path, "mine", "mine/1.0.0", {"train": 9, "test": 4}, **changes)
    with pytest.raises(data.DataError, match=message) as caught:
        data.load("tfds:mine", cache_dir=tmp_path)
    assert "tfds:mine" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_description_is_named(tmp_path, content):
    _prepare(tmp_path, "mine", "mine/1.0.0", {"train": 9})
    (tmp_path / "mine/1.0.0/dataset_info.json").write_text(content)
    with pytest.raises(data.DataError, match="dataset_info.json is damaged"):
        data.load("tfds:mine", cache_dir=tmp_path)
