"""The ledger: bits per parameter, files, pictures."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deltamask_jax import metrics
from deltamask_jax.reporting import pictures
from deltamask_jax.workdir import files


def test_bits_per_parameter_and_entropy():
    assert metrics.bits_per_parameter(398_000 * 30, 30, 35_389_440) == pytest.approx(0.08997, abs=1e-5)
    assert metrics.binary_entropy(0.5) == 1 and metrics.binary_entropy(0.0) == 0
    assert metrics.binary_entropy(0.01) == pytest.approx(0.0808, abs=1e-4)


def test_json_lines_and_files(tmp_path):
    files.append(tmp_path / "m.jsonl", {"round": 1})
    files.append(tmp_path / "m.jsonl", {"round": 2})
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]
    files.write_json(tmp_path / "s.json", {"a": 1})
    assert json.loads((tmp_path / "s.json").read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl", "s.json"]


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(NUMBERS, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8)


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


def test_curves_are_drawn(tmp_path):
    record = {"uplink_bytes": 1000, "downlink_bytes": 9000}
    records = [{**record, "round": r, "accuracy": a} for r, a in enumerate([0.5, None, 0.8])]
    pictures.draw_curves(tmp_path / "c.png", records, 0.6, "title")
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 10  # not blank


def test_fairness_of_known_accuracies():
    """Twelve clients: ten always right, one never, one half; and one that has no test example."""
    correct = np.ones(50, bool)
    correct[40:44], correct[44:46] = False, False
    shares = [*np.arange(40).reshape(10, 4), np.arange(40, 44), np.arange(44, 48), np.arange(0)]
    got = metrics.fairness(correct, shares)
    accuracies = np.array([1.0] * 10 + [0.0, 0.5])
    assert got["clients_tested"] == 12
    assert got["client_accuracy_mean"] == pytest.approx(accuracies.mean())
    assert got["client_accuracy_worst"] == pytest.approx(
        0.25
    )  # of two clients: a tenth of twelve, rounded up
    assert got["client_accuracy_variance"] == pytest.approx(accuracies.var())
    assert got["client_accuracy_jain"] == pytest.approx(10.5**2 / (12 * 10.25))
    nobody = metrics.fairness(np.zeros(4, bool), [np.arange(2), np.arange(2, 4)])
    assert (nobody["client_accuracy_jain"], nobody["client_accuracy_worst"]) == (1, 0)
