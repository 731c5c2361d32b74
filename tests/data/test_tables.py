"""Tables of texts: what a row holds arrives, splits are what the source says, and bad rows are named."""

import json
import sys
import types

import huggingface_hub.utils
import numpy as np
import pytest
from PIL import Image

from deltamask_jax import data
from deltamask_jax.data import Columns, DataError, Texts, tables

ROWS = [
    {"text": 'He said "no", twice', "label": "bad", "who": "ann"},
    {"text": "so\ngood", "label": "good", "who": "bob"},
    {"text": "über", "label": "good", "who": "ann"},
    {"text": "meh", "label": "bad", "who": "eve"},
]


def quoted(value):
    return '"' + str(value).replace('"', '""') + '"'


def as_csv(rows):
    return "".join(",".join(map(quoted, row)) + "\n" for row in [list(rows[0]), *(r.values() for r in rows)])


def as_jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n\n"


WRITERS = {"csv": as_csv, "jsonl": as_jsonl}


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


def test_a_column_says_which_split_a_row_is_of(kind, tmp_path):
    rows = [row | {"split": part} for part in ("train", "validation") for row in ROWS]
    rows[-1]["text"] = "another"
    file = tmp_path / f"reviews.{kind}"
    file.write_text(WRITERS[kind](rows), encoding="utf-8")
    loaded = data.load(f"{kind}:{file}", columns=Columns(user="who"))
    assert (loaded.name, loaded.class_names) == ("reviews", ("bad", "good"))
    assert loaded.train.images.texts == tuple(row["text"] for row in ROWS)
    assert loaded.test.images.texts[-1] == "another"
    assert loaded.train.labels.tolist() == [0, 1, 1, 0] and loaded.train.users.tolist() == [0, 1, 0, 2]


def test_a_folder_holds_both_splits(kind, tmp_path):
    for part, rows in (("train", ROWS), ("test", ROWS[:2])):
        (tmp_path / f"{part}.{kind}").write_text(WRITERS[kind](rows), encoding="utf-8")
    loaded = data.load(f"{kind}:{tmp_path}")
    assert len(loaded.train) == 4 and loaded.test.images[np.array([1])] == ["so\ngood"]
    assert loaded.train.users is None


def test_without_a_split_a_fifth_of_every_class_is_the_test(kind, tmp_path, capsys):
    rows = [{"text": f"number {i}", "label": 10 if i % 3 else 9} for i in range(60)]
    file = tmp_path / f"numbers.{kind}"
    file.write_text(WRITERS[kind](rows))
    first, again = (data.load(f"{kind}:{file}") for _ in range(2))
    assert first.class_names == ("9", "10")  # by value, not by the alphabet
    assert np.bincount(first.test.labels).tolist() == [4, 8] and len(first.train) == 48
    assert first.test.images.texts == again.test.images.texts
    assert not set(first.train.images.texts) & set(first.test.images.texts)
    assert "a fifth of every class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "text,label\na,1\nb\n", "row 3: other than 2 fields"),
        ("csv", "text,label\na,1,2\n", "row 2: other than 2 fields"),
        ("csv", "words,label\na,1\nb,0\n", "row 1 has no 'text', only words, label; config.columns"),
        ("csv", "text,label,split\na,1,train\nb,0,held\n", "'split' must say train or test, got held, train"),
        ("csv", b"text,label\n\xff\xfe,1\n", "no CSV file in UTF-8"),
        ("jsonl", '{"text": "a", "label": 1}\n[1]\n', "line 2: no JSON object"),
        ("jsonl", '{"text": "a", "label": 1}\n{"text"\n', "no file of JSON lines"),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "row 2 has no 'label', only text"),
        ("jsonl", '{"text": "a", "label": [1]}\n', "must be names or whole numbers"),
        ("jsonl", 5 * '{"text": "a", "label": 1}\n', "of the one class '1'; at least two are needed"),
        ("jsonl", '{"text": null, "label": 1}\n', "row 1 has an empty 'text': fill it in"),
        ("jsonl", '{"text": ["a"], "label": 1}\n', "row 1: 'text' is no text of whole characters"),
        ("jsonl", '{"text": "\\ud83d", "label": 1}\n', "row 1: 'text' is no text of whole characters"),
        ("jsonl", '{"text": "a", "label": 0.5}\n', "must be names or whole numbers, got 0.5"),
        ("csv", "text,label\na,1\nb,\n", "row 2 has an empty 'label'"),
        (
            "jsonl",
            '{"text": "a", "label": 1, "split": "train"}\n{"text": "b", "label": 0}\n',
            "row 2 has an empty 'split'",
        ),
        (
            "jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": 0, "split": "train"}\n',
            "row 1 has an empty 'split'",
        ),
        (
            "csv",
            "text,label,split\na,1,train\nb,0,test\nc,0,tset\n",
            "'split' must say train or test, got test, train, tset",
        ),
        ("jsonl", '{"text": "a", "label": "b"}\n{"text": "c", "label": 1.5}\n', "whole numbers, got 1.5"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(kind, content, message, tmp_path):
    file = tmp_path / f"broken.{kind}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        data.load(f"{kind}:{file}")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_of_no_split_that_counts_is_announced(tmp_path, capsys):
    rows = [row | {"split": part} for part in ("train", "test", "validation") for row in ROWS]
    (tmp_path / "all.csv").write_text(as_csv(rows), encoding="utf-8")
    loaded = data.load(f"csv:{tmp_path}/all.csv")
    assert (len(loaded.train), len(loaded.test)) == (4, 4)
    said = "rows whose split is validation are left out: the test has those of test"
    assert said in capsys.readouterr().out


def test_names_that_are_the_same_number_are_numbered_alike_in_every_process():
    names = ["0" * i + "1" for i in reversed(range(9))]  # a set of them has another order in each
    for values in (names, names[::-1]):
        assert tables._numbered([*values, "2"], "labels")[0] == [*names, "2"]


def test_a_name_of_more_digits_than_python_reads_is_a_name(tmp_path):
    rows = [{"text": str(i), "label": "9" * 5000 if i % 2 else "1"} for i in range(20)]
    (tmp_path / "long.csv").write_text(as_csv(rows))
    assert data.load(f"csv:{tmp_path}/long.csv").class_names == ("1", "9" * 5000)


def test_a_value_that_is_refused_is_shown_in_short():
    with pytest.raises(DataError, match=r"got \[0, 1, 2, .*\.\.\.\]$") as error:
        tables._numbered(["a", list(range(9999))], "labels")
    assert len(str(error.value)) < 200


ODD = ["", " ", "😀👩‍👩‍👧 🇺🇳", "שלום עולם, مرحبا", "a\u202eb\u0000\ufeff", "x" * 200_000, "word " * 20_000]


def test_texts_arrive_as_they_are_however_odd(kind, tmp_path):
    rows = [{"text": text, "label": f"{i % 2}.0"} for i, text in enumerate(2 * ODD)]  # names, not numbers
    (tmp_path / f"odd.{kind}").write_text(WRITERS[kind](rows), encoding="utf-8")
    loaded = data.load(f"{kind}:{tmp_path}/odd.{kind}")
    assert loaded.class_names == ("0.0", "1.0")
    assert sorted({*loaded.train.images.texts, *loaded.test.images.texts}) == sorted(set(ODD))


def test_a_file_that_is_not_there(kind, tmp_path):
    with pytest.raises(DataError, match="no file"):
        data.load(f"{kind}:{tmp_path}/none.{kind}")


def test_texts_are_hashed_by_what_they_say():
    from deltamask_jax.data.features import fingerprint

    texts = Texts(("ab", "c"))
    assert fingerprint(texts) == fingerprint(Texts(("ab", "c"))) != fingerprint(Texts(("a", "bc")))
    assert texts.take(np.array([1])).texts == ("c",)


class Part(list):
    """A split as `datasets` gives it."""

    _fingerprint = "f"

    def __init__(self, rows, names):
        super().__init__(rows)
        self.features = dict.fromkeys(rows[0]) | {"label": types.SimpleNamespace(names=names)}

    def __getitem__(self, key):
        return [row[key] for row in list.__iter__(self)] if isinstance(key, str) else super().__getitem__(key)

    def select_columns(self, names):
        return [{name: row[name] for name in names} for row in self]


def hub(monkeypatch, load):
    """Stands in for `datasets`; `load` gets the name, and whether the cache alone may be looked at."""
    config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    fake = types.SimpleNamespace(config=config, load_dataset=lambda *name: load(name, config.HF_HUB_OFFLINE))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return config


def unreachable(*arguments, **options):
    raise ConnectionError


def test_a_data_set_of_the_hub_keeps_its_class_names(monkeypatch):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    found = {"train": Part(rows, ["no", "yes"]), "validation": Part(rows[:1], ["no", "yes"])}
    asked = []

    def load(name, offline):
        asked.append((name, offline))
        return found

    config = hub(monkeypatch, load)
    loaded = tables.load_hub("org/name,english", Columns())
    assert loaded.class_names == ("no", "yes") and loaded.train.labels.tolist() == [1, 0]
    assert loaded.test.images.texts == ("a",)
    assert asked == [(("org/name", "english"), True)] and not config.HF_HUB_OFFLINE  # from the cache


class Undecodable(Part):
    def __iter__(self):
        raise AssertionError("all rows are read, pictures and all")


def test_a_column_that_is_not_there_is_named_before_any_row_is_read(monkeypatch):
    part = Undecodable([{"img": None, "label": 0}], ["a", "b"])
    hub(monkeypatch, lambda name, offline: {"train": part})
    message = "has no column 'text', only img, label; config.columns .*config.columns.image that of images"
    with pytest.raises(DataError, match=message):
        tables.load_hub("org/name", Columns())


def test_of_texts_with_pictures_beside_them_the_pictures_are_not_read(monkeypatch):
    class Beside(Part):
        def select_columns(self, names):
            assert names == ["text", "label"]
            return [{name: row[name] for name in names} for row in list.__iter__(self)]

        def __iter__(self):
            raise AssertionError("all columns are read")

    part = Beside([{"text": "a", "label": 1, "jpg": b""}, {"text": "b", "label": 0, "jpg": b""}], ["a", "b"])
    hub(monkeypatch, lambda name, offline: {"train": part, "test": part})
    assert tables.load_hub("org/name", Columns()).test.images.texts == ("a", "b")


def test_a_split_without_labels_is_left_alone(monkeypatch, capsys):
    rows = [{"text": str(i), "label": i % 2} for i in range(20)]
    parts = {name: Part(rows[:n], ["a", "b"]) for name, n in (("train", 20), ("validation", 6))}
    found = parts | {"test": Part([row | {"label": -1} for row in rows], ["a", "b"])}
    hub(monkeypatch, lambda name, offline: found)
    assert len(tables.load_hub("org/name", Columns()).test) == 6
    assert "the split test has no labels, and is left alone" in capsys.readouterr().out
    del found["validation"]
    loaded = tables.load_hub("org/name", Columns())
    assert (len(loaded.train), len(loaded.test)) == (16, 4)
    assert len(tables.load_hub("org/name", Columns(), whole=True).train) == 20


def test_a_client_s_own_texts_all_train(tmp_path, capsys):
    (tmp_path / "own.csv").write_text(as_csv(ROWS), encoding="utf-8")
    loaded = data.load(f"csv:{tmp_path}/own.csv", whole=True)
    assert (len(loaded.train), len(loaded.test)) == (4, 0)
    assert "a fifth" not in capsys.readouterr().out


def test_images_of_the_hub_are_decoded_when_they_are_asked_for(monkeypatch):
    rows = [{"image": Image.fromarray(np.full((4, 4), i, np.uint8)), "label": i} for i in range(2)]
    found = {"train": Part(rows, ["a", "b"]), "test": Part(rows, ["a", "b"])}
    hub(monkeypatch, lambda name, offline: found)
    loaded = tables.load_hub("org/name", Columns())
    assert loaded.train.images[np.array([1])][0].tolist() == [[[1] * 3] * 4] * 4


def test_another_column_of_images_is_another_source(monkeypatch):
    image = Image.new("RGB", (4, 4))
    rows = [{"image": image, "mask": image, "label": i} for i in range(2)]
    found = {"train": Part(rows, ["a", "b"]), "test": Part(rows, ["a", "b"])}
    hub(monkeypatch, lambda name, offline: found)
    loaded = [tables.load_hub("org/name", Columns(image=column)) for column in ("image", "mask")]
    assert len({dataset.train.images.identity for dataset in loaded}) == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [(None, "row 2 has no image"), (Image.new("I;16", (4, 4)), "row 2 has more than 8 bits a channel")],
    ids=["none", "16 bits"],
)
def test_images_of_the_hub_that_are_none_are_named(monkeypatch, image, message):
    rows = [{"image": Image.new("RGB", (4, 4)), "label": 0}, {"image": image, "label": 1}]
    found = {"train": Part(rows, ["a", "b"]), "test": Part(rows, ["a", "b"])}
    hub(monkeypatch, lambda name, offline: found)
    images = tables.load_hub("org/name", Columns()).train.images
    assert images[0].shape == (4, 4, 3)
    with pytest.raises(DataError, match=f"hf:org/name: {message}"):
        images[1]


def test_what_is_not_cached_is_downloaded(monkeypatch):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]

    def load(name, offline):
        return unreachable() if offline else {"train": Part(rows * 5, ["no", "yes"])}

    hub(monkeypatch, load)
    session = types.SimpleNamespace(head=lambda *arguments, **options: None)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    loaded = tables.load_hub("org/name", Columns())
    assert len(loaded.train) == 8 and len(loaded.test) == 2


def test_what_is_neither_cached_nor_to_be_reached_says_how_to_fetch_it(monkeypatch):
    hub(monkeypatch, unreachable)
    session = types.SimpleNamespace(head=unreachable)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    command = r"""python -c "import datasets; datasets.load_dataset\('org/name', 'en'\)"$"""
    with pytest.raises(DataError, match=f"with a connection, run: {command}"):
        tables.load_hub("org/name,en", Columns())


def test_without_the_library_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'deltamask_jax\[hf\]'$"):
        data.load("hf:org/name")
