"""What a checkpoint holds comes back bit for bit, and what is not it is told apart."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deltamask_jax.aggregation import BetaPosterior
from deltamask_jax.workdir import checkpoint
from deltamask_jax.workdir.checkpoint import Progress, check_whole, pack, unpack

ITS = {"problem": "1f", "examples": "ab", "root_key": [1, 2]}


def packed():
    """A checkpoint's ledger, as it comes back from a file, and its arrays."""
    state = {"theta": np.arange(5, dtype=np.uint16), "held": np.zeros((0,), np.int32)}
    head = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    records = [{"round": 0, "accuracy": 0.1}, {"round": 1, "accuracy": None, "train_loss": 1 / 3}]
    ledger, arrays = pack(Progress(state, head, 0.5, records, 2.5, [1, 0], [7]), ITS)
    return json.loads(json.dumps(ledger)), arrays


def test_progress_comes_back(tmp_path):
    ledger, arrays = packed()
    check_whole(ledger, arrays)
    back = unpack(ledger, arrays, ITS, tmp_path)
    assert (back.round, back.probe_accuracy, back.seconds, back.held, back.news) == (1, 0.5, 2.5, [1, 0], [7])
    assert back.records[1]["train_loss"] == 1 / 3
    np.testing.assert_array_equal(back.state["state/theta"], np.arange(5))
    assert sorted(back.head) == ["bias", "kernel"] and back.head["kernel"].shape == (2, 3)


@pytest.mark.parametrize("name", ["format", *ITS, *checkpoint.LEDGER])
def test_any_change_of_the_ledger_is_damage(name):
    ledger, arrays = packed()
    changed = {"format": 3, "records": ledger["records"][:1]}.get(name, "9")
    with pytest.raises(ValueError, match="checksum"):
        check_whole(ledger | {name: changed}, arrays)


def test_any_change_of_the_arrays_is_damage():
    ledger, arrays = packed()
    theta = arrays["state/theta"]
    for changed in (theta[::-1], theta.astype(np.int16), theta.reshape(5, 1)):
        with pytest.raises(ValueError, match="checksum"):
            check_whole(ledger, arrays | {"state/theta": changed})
    with pytest.raises(ValueError, match="checksum"):
        check_whole(ledger, {name: array for name, array in arrays.items() if name != "state/held"})
    with pytest.raises(KeyError):
        check_whole({name: value for name, value in ledger.items() if name != "checksum"}, arrays)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": 99}, "holds checkpoints of format 99, this program reads 1 and 2"),
        ({"problem": "2f"}, "begun with other data or weights of the same name"),
        ({"examples": "cd"}, "begun with other data or weights of the same name"),
        ({"root_key": [2, 1]}, "begun with another random generator"),
    ],
)
def test_a_whole_checkpoint_of_something_else_is_refused(tmp_path, change, said):
    ledger, arrays = packed()
    with pytest.raises(ValueError, match=f"{said}.*--workdir"):
        unpack(ledger | change, arrays, ITS, tmp_path)


def test_one_from_before_images_were_known_is_read(tmp_path):
    ledger, arrays = packed()
    del ledger["examples"]
    assert unpack(ledger | {"format": 3}, arrays, ITS, tmp_path).round == 1


def test_state_comes_back_with_its_structure_and_kinds_of_arrays():
    state = {
        "theta": np.arange(5, dtype=np.uint16),
        "posterior": BetaPosterior(jax.numpy.ones(3), jax.numpy.zeros(3)),
    }
    arrays = checkpoint.named_arrays({"state": state, "head": {"bias": np.zeros(2)}})
    assert sorted(arrays) == ["head/bias", "state/posterior/alpha", "state/posterior/beta", "state/theta"]
    back = checkpoint.restore_state(state, arrays)
    assert isinstance(back["posterior"].alpha, jax.Array) and isinstance(back["theta"], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    with pytest.raises(ValueError, match=r"no state/theta of uint16\[6\]"):
        checkpoint.restore_state(state | {"theta": np.zeros(6, np.uint16)}, arrays)


def test_a_problem_is_known_by_labels_split_and_weights():
    def problem(labels=(0, 1), parts=((0,), (1,)), weight=1.0):
        its = {"labels": [np.array(labels)], "parts": [np.array(part) for part in parts], "examples": "e"}
        return SimpleNamespace(**its, task=SimpleNamespace(params={"w": np.float32(weight)}))

    found = {
        checkpoint.identity(its)["problem"]
        for its in (problem(), problem(labels=(1, 1)), problem(parts=((1,), (0,))), problem(weight=2.0))
    }
    assert len(found) == 4 and checkpoint.identity(problem()) == checkpoint.identity(problem())


def test_an_array_that_a_checkpoint_lacks_is_named():
    with pytest.raises(ValueError, match=r"the checkpoint has no state/theta of uint16\[3\], .*--workdir"):
        checkpoint.restore_state({"theta": np.zeros(3, np.uint16)}, {})
