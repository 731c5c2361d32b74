"""TensorBoard and Weights & Biases get the numbers of metrics.jsonl, and are off by default."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from deltamask_jax import experiment
from deltamask_jax.reporting.trackers import open_trackers
from tests.conftest import tiny_config

RECORD = {"round": 3, "accuracy": 0.5, "flip_rate": None, "uplink_bytes": 10, "cohort": [1, 2]}


def test_off_by_default(tmp_path):
    assert open_trackers(tiny_config(), tmp_path) == []


def test_tensorboard_file_holds_the_numbers(tmp_path):
    (tracker,) = open_trackers(tiny_config(tensorboard=True), tmp_path)
    tracker.log(RECORD)
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), {}
    while data:  # records of length u64, CRC u32, bytes, CRC u32
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + size :]
    assert found == {"accuracy": (3, 0.5), "uplink_bytes": (3, 10.0)}


def test_weights_and_biases_gets_them_too(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda *a, **k: calls.append((a, k)), finish=lambda: calls.append("finish"))
    fake = SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tracker,) = open_trackers(tiny_config(wandb="masks"), tmp_path)
    tracker.log(RECORD)
    tracker.close()
    assert calls[0]["project"] == "masks" and calls[0]["config"]["clients"] == 6
    assert calls[1:] == [(({"accuracy": 0.5, "uplink_bytes": 10},), {"step": 3}), "finish"]


@pytest.mark.parametrize("found", [None, ModuleType("wandb")], ids=["nothing", "a folder of that name"])
def test_a_missing_package_is_named_before_any_work(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setattr(experiment, "set_up", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=r"deltamask_jax\[wandb\]"):
        experiment.run(tiny_config(wandb="x"), tmp_path / "run")


def test_a_tracker_that_does_not_start_says_why_in_one_line(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("api_key not configured\nlong story")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(ValueError, match="config.wandb='x': api_key not configured; WANDB_MODE") as caught:
        open_trackers(tiny_config(wandb="x"), tmp_path)
    assert "\n" not in str(caught.value)
