"""Files of JSON: whole, and read by every program whatever the numbers."""

import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax import metrics
from deltamask_jax.workdir import files


def test_json_lines_and_files(tmp_path):
    files.append(tmp_path / "m.jsonl", {"round": 1})
    files.append(tmp_path / "m.jsonl", {"round": 2})
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    files.write_json(tmp_path / "s.json", {"a": 1})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "s.json"]


@pytest.mark.skipif(os.name != "posix", reason="a folder cannot be synced")
def test_a_new_name_is_on_the_disk_as_well(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    folder = tmp_path.stat().st_ino
    files.append(tmp_path / "m.jsonl", {"round": 1})
    assert synced == [(tmp_path / "m.jsonl").stat().st_ino, folder]
    files.append(tmp_path / "m.jsonl", {"round": 2})
    assert len(synced) == 3 and synced[2] != folder  # its name is there already
    files.write_json(tmp_path / "s.json", {})
    assert synced[-1] == folder


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


VALUES = st.recursive(NUMBERS, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8)


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES))
def test_every_file_is_json_whatever_the_numbers(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("files")
    files.write_json(folder / "a", record)
    files.append(folder / "b", record)
    files.rewrite(folder / "c", [record])
    for path in folder.iterdir():
        assert json.loads(path.read_text(), parse_constant=pytest.fail) == files.finite(record)


def test_what_is_not_finite_is_null_and_does_not_count_in_a_mean():
    assert files.finite({"a": [1.5, float("nan")], "b": (float("-inf"), 2, None, True, "NaN")}) == {
        "a": [1.5, None],
        "b": [None, 2, None, True, "NaN"],
    }
    assert metrics.mean([1.0, None, 3.0]) == 2 and metrics.mean([]) is None


def test_what_is_written_is_on_the_disk_and_a_file_is_replaced_whole(tmp_path, monkeypatch):
    synced, path = [], tmp_path / "s.json"

    def fsync(number):
        state = os.fstat(number)
        if stat.S_ISREG(state.st_mode):
            synced.append(state.st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(path, {"a": 1})
    first = path.stat()
    files.write_json(path, {"a": 12})
    assert synced == [first.st_size, first.st_size + 1] and path.stat().st_ino != first.st_ino
    for length in (1, 2):
        files.append(tmp_path / "m.jsonl", {"r": 1})
        assert synced.pop() == length * len('{"r": 1}\n')
