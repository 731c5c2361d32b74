"""Directories of images: classes, splits, lazy decoding."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltamask_jax import data
from deltamask_jax.data import folder, preprocessing


def _write(directory: Path, name: str, count: int, size=(6, 5), value: int = 0) -> None:
    """PNG images whose red channel counts them and whose blue channel is `value`."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((*size, 3), (i, 0, value), np.uint8)
        Image.fromarray(pixels).save(directory / name / f"{i:02}.png")


def test_train_and_test_directories(tmp_path):
    _write(tmp_path / "train", "dog", 3, value=1)
    _write(tmp_path / "train", "cat", 2, value=2)
    _write(tmp_path / "val", "dog", 1, value=3)
    dataset = data.load(f"folder:{tmp_path}")
    assert dataset.class_names == ("cat", "dog") and dataset.name == tmp_path.name
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [1]
    images = dataset.train.images
    assert len(images) == 5 and images[3].shape == (6, 5, 3) and images[3].dtype == np.uint8
    got = images[np.array([4, 0])]
    assert got.shape == (2, 6, 5, 3) and got[:, 0, 0].tolist() == [[2, 0, 1], [0, 0, 2]]
    assert images[1:3][:, 0, 0, 2].tolist() == [2, 1]
    assert dataset.test.images[0][0, 0, 2] == 3
    _write(tmp_path / "test", "dog", 2)
    assert len(data.load(f"folder:{tmp_path}").test) == 2, "test goes before val"


def test_a_fifth_is_held_out_without_a_test_directory(tmp_path):
    _write(tmp_path, "a", 10, value=1)
    _write(tmp_path, "b", 5, value=2)
    first, second = (data.load(f"folder:{tmp_path}") for _ in range(2))
    assert np.bincount(first.train.labels).tolist() == [8, 4]
    assert np.bincount(first.test.labels).tolist() == [2, 1]
    pixels = np.concatenate([split.images[:][:, 0, 0] for split in (first.train, first.test)])
    assert len(np.unique(pixels, axis=0)) == 15, "no image in both"
    np.testing.assert_array_equal(first.test.images[:], second.test.images[:])


def test_sizes_modes_and_orientation(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (4, 3), 9).save(tmp_path / "a/0.png")
    Image.new("RGBA", (2, 2), (1, 2, 3, 0)).save(tmp_path / "a/1.png")
    Image.new("P", (5, 5)).save(tmp_path / "a/2.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (8, 2)).save(tmp_path / "a/3.JPG", exif=exif, format="jpeg")
    (tmp_path / "a/notes.txt").write_text("no image")
    _write(tmp_path, "b", 1, size=(7, 7))
    dataset = data.load(f"folder:{tmp_path}")
    images = [
        i for split in (dataset.train, dataset.test) for i in map(split.images.__getitem__, range(len(split)))
    ]
    assert sorted(i.shape for i in images) == [(2, 2, 3), (3, 4, 3), (5, 5, 3), (7, 7, 3), (8, 2, 3)]
    batch = dataset.train.images[np.arange(len(dataset.train))]
    assert isinstance(batch, list)
    assert preprocessing.apply(batch, preprocessing.GLYPH).shape == (len(batch), 32, 32, 3)


def test_subset_stays_lazy(tmp_path):
    _write(tmp_path / "train", "a", 4)
    _write(tmp_path / "train", "b", 1)
    _write(tmp_path / "test", "a", 4)
    dataset = data.subset(data.load(f"folder:{tmp_path}"), test_examples=2)
    (tmp_path / "train/a/00.png").write_bytes(b"damaged")  # since
    assert len(dataset.test.images) == len(dataset.test.labels) == 2
    assert dataset.train.images[np.array([3])].shape == (1, 6, 5, 3)
    with pytest.raises(data.DataError, match="00.png cannot be decoded"):
        dataset.train.images[0]


def test_the_identity_follows_the_files(tmp_path):
    _write(tmp_path, "a", 5)
    _write(tmp_path, "b", 5)

    def identity():
        return data.load(f"folder:{tmp_path}").train.images.identity

    before = identity()
    assert identity() == before
    for name in "ab":
        Image.new("RGB", (9, 9)).save(tmp_path / name / "00.png")
    assert identity() != before


def test_refusals(tmp_path):
    with pytest.raises(data.DataError, match="no directory"):
        data.load(f"folder:{tmp_path / 'none'}")
    (tmp_path / "empty/a").mkdir(parents=True)
    with pytest.raises(data.DataError, match="holds images"):
        data.load(f"folder:{tmp_path / 'empty'}")
    _write(tmp_path / "odd/train", "a", 1)
    _write(tmp_path / "odd/train", "c", 1)
    _write(tmp_path / "odd/test", "b", 1)
    with pytest.raises(data.DataError, match="lacks: b"):
        data.load(f"folder:{tmp_path / 'odd'}")
    (tmp_path / "deep/a").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(np.zeros((3, 3), np.uint16)).save(tmp_path / f"deep/a/{i}.png")
    _write(tmp_path / "deep", "b", 1)
    with pytest.raises(data.DataError, match=r"5 of 6 images .* a/0.png \(more than 8 bits"):
        data.load(f"folder:{tmp_path / 'deep'}")


@pytest.mark.parametrize("below", ["", "x"])
def test_one_class_is_refused_by_name_unless_it_is_a_client_s(tmp_path, below):
    _write(tmp_path / "one" / below, "a", 5)
    with pytest.raises(data.DataError, match=f"{below or 'one'} holds one class only, a"):
        data.load(f"folder:{tmp_path / 'one'}")
    own = data.load(f"folder:{tmp_path / 'one'}", whole=True)
    assert own.class_names == ("a",) and len(own.train) == 5 and not own.train.labels.any()


def test_of_a_client_s_own_images_none_is_held_out(tmp_path, capsys):
    _write(tmp_path, "a", 1)
    _write(tmp_path, "b", 9)
    own = data.load(f"folder:{tmp_path}", whole=True)
    assert (len(own.train), len(own.test)) == (10, 0) and "test images none" in capsys.readouterr().out
    assert len(own.train.images[np.arange(10)]) == 10
    assert len(data.load(f"folder:{tmp_path}").test) == 2


def test_too_few_images_for_a_test_are_refused_with_advice(tmp_path):
    _write(tmp_path, "a", 2)
    _write(tmp_path, "b", 1)
    with pytest.raises(data.DataError, match="too few examples to hold a fifth out as the test: add some"):
        data.load(f"folder:{tmp_path}")


def test_links_to_nowhere_are_named_with_the_other_bad_files(tmp_path):
    _write(tmp_path, "a", 3)
    _write(tmp_path, "b", 3)
    (tmp_path / "a/00.png").write_bytes(b"")
    for name in ("a/x.png", "b/y.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(data.DataError, match=r"3 of 8 images .*a/00.png.*a/x.png.*b/y.jpg"):
        data.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_white_shows_through_transparent_pictures(mode, tmp_path):
    drawing = np.zeros((20, 20, 2), np.uint8)
    drawing[5:15, 5:15, 1] = 255  # black on what is transparent, and black
    image = Image.fromarray(drawing, "LA")
    if mode == "P":
        image = Image.fromarray((drawing[..., 1] // 255).astype(np.uint8), "P")
        image.putpalette([0] * 6)
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    image.save(tmp_path / "drawing.png")
    expected = np.where(drawing[..., 1:] > 0, 0, 255).repeat(3, axis=2)
    np.testing.assert_array_equal(folder.decode(tmp_path / "drawing.png"), expected)
    opaque = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(folder.decode(tmp_path / "opaque.png"), opaque[..., :3])


def test_all_bad_files_are_named_before_any_is_used(tmp_path):
    _write(tmp_path, "a", 20, size=(40, 40))
    _write(tmp_path, "b", 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for name in ("whole.jpg", "cut.jpg", "whole.bmp", "cut.bmp"):
        noise.save(tmp_path / "b" / name)
    for name in ("a/00.png", "b/cut.jpg", "b/cut.bmp"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-30])
    checksum = tmp_path / "a/01.png"
    checksum.write_bytes(
        checksum.read_bytes().replace(b"IDAT", b"IDAT", 1)[:-14] + b"x" + checksum.read_bytes()[-13:]
    )
    (tmp_path / "a/02.png").write_bytes(b"")
    (tmp_path / "b/whole.jpg").write_bytes((tmp_path / "b/whole.jpg").read_bytes() + b"trailing")
    with pytest.raises(data.DataError, match="5 of 27 images") as caught:
        data.load(f"folder:{tmp_path}")
    message = str(caught.value)
    assert all(name in message for name in ("a/00.png", "a/01.png", "a/02.png", "b/cut.jpg", "b/cut.bmp"))
    assert "\n" not in message and "whole" not in message
    for i in range(3, 20):
        (tmp_path / f"a/{i:02}.png").write_bytes(b"damaged")
    with pytest.raises(
        data.DataError, match=r"22 of 27 .*a/09.png \([^)]*\), …; replace or remove them"
    ) as caught:
        data.load(f"folder:{tmp_path}")
    assert "a/10.png" not in str(caught.value)


def test_a_picture_that_is_a_line_is_named_before_any_is_used(tmp_path):
    _write(tmp_path, "a", 5)
    _write(tmp_path, "b", 5)
    Image.new("RGB", (1, 5000)).save(tmp_path / "b/line.png")
    with pytest.raises(data.DataError, match=r"1 of 11 .*b/line.png \(1 × 5,000 pixels are a line, no pict"):
        data.load(f"folder:{tmp_path}")


def test_a_jpeg_damaged_in_its_middle_is_named_when_it_is_used(tmp_path):
    """It ends as it should, so that only decoding finds out."""
    _write(tmp_path, "a", 5)
    _write(tmp_path, "b", 5)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for i in range(5):
        noise.save(tmp_path / f"b/{i:02}.jpg")
    dataset = data.load(f"folder:{tmp_path}")
    for i in range(5):
        file = tmp_path / f"b/{i:02}.jpg"
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + b"\xff\xd8" * 100 + whole[middle + 200 :])
    damaged = data.load(f"folder:{tmp_path}")
    for images in (dataset.train.images, damaged.train.images):
        with pytest.raises(
            data.DataError, match=r"b/0\d.jpg cannot be decoded \(broken .*\); replace or remove it$"
        ) as caught:
            images[:]
        assert "\n" not in str(caught.value)


def test_what_was_found_is_printed(tmp_path, capsys):
    _write(tmp_path / "train", "a", 3)
    _write(tmp_path / "train", "b", 2)
    _write(tmp_path / "Valid", "a", 1)
    _write(tmp_path / "Test", "b", 4)
    for name in ("train/a/notes.txt", "train/a/.hidden.png", "Test/._DS", "train/b/1.heic"):
        (tmp_path / name).touch()
    data.load(f"folder:{tmp_path}")
    assert capsys.readouterr().out == (
        f"folder {tmp_path}: 2 classes; training images 5 in train/ (a 3, b 2); test images 4 in Test/ "
        "(a 0, b 4); Valid/ left alone; 2 other files skipped (train/a/notes.txt, train/b/1.heic); "
        "2 hidden files or folders skipped\n"
    )


def test_every_extension_of_jpeg_is_read(tmp_path):
    _write(tmp_path, "b", 4, value=9)
    for extension in ("jfif", "jpe", "JPG", "jpeg"):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (5, 6)).save(tmp_path / f"a/0.{extension}", "JPEG")
    dataset = data.load(f"folder:{tmp_path}")
    blue = dataset.train.images[:][:, 0, 0, 2]
    assert dataset.class_names == ("a", "b")
    assert ((blue > 4) == dataset.train.labels).all() and len(blue) == 6


def test_names_that_are_not_utf8(tmp_path, capsys):
    _write(tmp_path, "a", 3)
    _write(tmp_path, "b", 3)
    latin1 = os.fsencode(tmp_path) + b"/b/gr\xfcn.png"
    try:
        shutil.copy(tmp_path / "b/00.png", latin1)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    os.rename(os.fsencode(tmp_path / "a"), os.fsencode(tmp_path) + b"/\xe4")
    dataset = data.load(f"folder:{tmp_path}")
    assert dataset.class_names == ("b", "\\xe4") and len(dataset.train) + len(dataset.test) == 7
    assert "\\xe4 " in capsys.readouterr().out
    Path(os.fsdecode(latin1)).write_bytes(b"damaged")
    with pytest.raises(data.DataError, match=r"b/gr\\xfcn.png") as caught:
        data.load(f"folder:{tmp_path}")
    str(caught.value).encode()


def test_the_only_image_of_a_class_trains(tmp_path):
    for name in "abcdefgh":
        _write(tmp_path, name, 1)
    _write(tmp_path, "i", 9)
    dataset = data.load(f"folder:{tmp_path}")
    assert set(dataset.train.labels) == set(range(9)) and set(dataset.test.labels) == {8}
