"""Layouts of folders: which are splits, which are classes, what never counts, and what is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamask_jax.data import tree
from deltamask_jax.data.dataset import DataError


def _find(root: Path, *files: str) -> tree.Layout:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return tree.find(tree.walk(root))


TRAINED = ("train/a/0.png", "train/b/0.png")


@pytest.mark.parametrize(
    "name", ["test", "Testing", "EVAL", "evaluation", "val", "valid", "Validation", "dev"]
)
@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
def test_split_folders_under_the_names_people_use(tmp_path, name, train):
    layout = _find(tmp_path, f"{train}/a/0.png", f"{train}/b/0.png", f"{name}/a/0.png")
    assert layout.train.path.name == train and layout.test.path.name == name
    assert layout.classes == ("a", "b") and layout.left_alone == ()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(("val", "test"), "test"), (("dev", "eval"), "eval"), (("val", "eval", "TEST"), "TEST")],
)
def test_the_test_folder_goes_first_and_the_others_are_named(tmp_path, names, chosen):
    layout = _find(tmp_path, *TRAINED, *(f"{name}/a/0.png" for name in names), "unlabelled/0.png")
    assert layout.test.path.name == chosen
    assert layout.left_alone == tuple(sorted({*names, "unlabelled"} - {chosen}))


@pytest.mark.parametrize(
    ("files", "where", "classes"),
    [
        (("flowers/a/0.png", "flowers/b/0.png"), "flowers", ("a", "b")),
        (("x/y/a/0.png", "x/y/b/0.png", "x/readme.txt", "docs/paper.pdf"), "x/y", ("a", "b")),
        (("x/train/a/0.png", "x/train/b/0.png", "x/test/a/0.png"), "x/train", ("a", "b")),
        (("train/images/a/0.png", "train/images/b/0.png", "test/images/b/0.png"), "train/images", ("a", "b")),
        (("train/a/0.png", "train/b/0.png", "test/a/deep/0.png"), "train", ("a", "b")),
        (("train/a/0.png", "train/b/0.png"), "train", ("a", "b")),
        (("valid/0.png", "invalid/0.png"), "", ("invalid", "valid")),
        (("bus/0.png", "train/0.png"), "", ("bus", "train")),
        (("plants/a/0.png", "animals/b/0.png"), "", ("animals", "plants")),
        (("$5_$10/0.png", "a/0.jfif", "b/0.JPG"), "", ("$5_$10", "a", "b")),
    ],
)
def test_layouts(tmp_path, files, where, classes):
    layout = _find(tmp_path, *files)
    assert layout.train.path == tmp_path / where and layout.classes == classes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "no sub-directory of .* holds images"),
        (("a/0.png", "b/notes.xyz", "b/more.heic"), r"b holds 2 files and no image .* \(.heic, .xyz\)"),
        ((*TRAINED, "test/a/0.png", "test/c/0.png"), "test holds classes .*train lacks: c"),
        ((*TRAINED, "test/0.png"), "test holds images but no classes"),
        (("train/0.png", "test/0.png"), "holds images but no classes"),
        (("train/0.png", "test/a/0.png"), "train holds images but no classes"),
        ((*TRAINED, "Train/a/0.png", "test/a/0.png"), "holds Train and train, which mean the same split"),
        ((*TRAINED, "val/a/0.png", "valid/a/0.png"), "holds val and valid, which mean the same split"),
        ((*TRAINED, "c/0.png"), "holds c, train: expected train/ and test/"),
        (("a/0.png", "b/0.png", "test/a/0.png"), "holds a, b, test: expected train/ and test/"),
        (("a/0.png", "b/0.png", "test/0.png"), "holds a, b, test: expected train/ and test/"),
        (("test/a/0.png", "val/a/0.png"), "holds test, val: expected train/ and test/"),
        ((*TRAINED, "Test/a/0.heic"), "Test holds no image that is read here"),
        (tuple(f"{s}/{c}/0.png" for s in ("seg_train", "seg_test") for c in "ab"), "each of them holds a, b"),
        (tuple(f"{s}2017/{c}/0.png" for s in ("train", "val") for c in "abc"), "call them train and test"),
        (tuple(f"train/{s}/{c}/0.png" for s in "xy" for c in "ab") + ("test/x/0.png",), "each of them holds"),
    ],
)
def test_refusals(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as caught:
        _find(tmp_path, *files)
    assert "\n" not in str(caught.value)


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0.png").touch()
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path)
    layout = _find(tmp_path / "root", "a/0.png")
    assert layout.classes == ("a", "b") and len(list(layout.train.everything())) == 2


def test_links_to_each_other_end(tmp_path):
    for name, other in ("ab", "ba"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
        (tmp_path / name / "y").symlink_to(f"../{other}")
    assert len(list(tree.walk(tmp_path).everything())) == 4  # each by its own name and by the other's


def test_links_beside_links_are_followed_four_deep_and_refused_beyond(tmp_path):
    for i in range(6):
        (tmp_path / f"d{i}").mkdir()
    (tmp_path / "d5/0.png").touch()
    for i in range(1, 5):
        (tmp_path / f"d{i}/on").symlink_to(f"../d{i + 1}")
    assert len(list(tree.walk(tmp_path).everything())) == 5
    (tmp_path / "d0/on").symlink_to("../d1")
    with pytest.raises(DataError, match="and 5 links, more than 99 or 4: name a folder nearer") as caught:
        tree.walk(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_that_lie_too_deep_are_refused(tmp_path):
    tmp_path.joinpath(*["a"] * 150).mkdir(parents=True)
    with pytest.raises(DataError, match="is reached through 100 folders and 0 links") as caught:
        tree.walk(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read .Permission denied."):
        tree.walk(tmp_path)


CLASSES = st.sets(
    st.sampled_from(["ant", "bee", "Cat", "$5_$10", "日本", "test tube", "training-set"]), min_size=2
)
HIDDEN = st.sampled_from(
    [
        "._0.png",
        ".cache/0.png",
        "__MACOSX/0.png",
        "Thumbs.db",
        "desktop.ini",
        "@eaDir/0.png",
        "$RECYCLE.BIN/0.png",
    ]
)


def test_an_empty_held_out_folder_is_not_ignored(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="test holds no image that is read here"):
        _find(tmp_path, *TRAINED)
    assert _find(tmp_path, "val/a/0.png").test.path.name == "val", "another one serves"


@given(
    classes=CLASSES,
    splits=st.lists(st.sampled_from([None, "test", "EVAL", "Valid"]), unique=True, min_size=1).map(set),
    hidden=st.lists(st.tuples(st.sampled_from(["", "class", "split", "below"]), HIDDEN), max_size=4),
    nested=st.integers(0, 2),
    deep=st.booleans(),
)
def test_a_random_tree_is_found_whatever_lies_around(tmp_path_factory, classes, splits, hidden, nested, deep):
    root = tmp_path_factory.mktemp("tree")
    inner = root.joinpath(*["one"] * nested)
    held_out = [name for name in splits if name]
    train = inner / "train" if held_out else inner
    files = [f"{train}/{name}/{'x/' * deep}{i}.png" for name in classes for i in range(2)]
    files += [f"{inner}/{split}/{name}/0.png" for split in held_out for name in classes]
    first = min(classes)
    places = {"": root, "class": train, "split": inner, "below": train / first}
    files += [f"{places[place]}/{name}" for place, name in hidden]
    layout = _find(root, *files)
    assert layout.classes == tuple(sorted(classes)) and layout.train.path == train
    assert len(list(layout.train.everything())) == 2 * len(classes)
    order = [name for name in ("test", "EVAL", "Valid") if name in held_out]
    assert (layout.test and layout.test.path.name) == (order[0] if order else None)
    assert layout.left_alone == tuple(sorted(order[1:]))
    assert layout.skipped() == [] and (tree.walk(root).hidden > 0) == bool(hidden)
