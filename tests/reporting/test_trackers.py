"""TensorBoard and Weights & Biases get the numbers of metrics.jsonl, and are off by default."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from deltamask_jax import experiment
from deltamask_jax.reporting.trackers import opened_trackers
from tests.conftest import tiny_config

RECORD = {"round": 3, "accuracy": 0.5, "flip_rate": None, "uplink_bytes": 10, "cohort": [1, 2]}


@pytest.fixture
def calls(monkeypatch):
    """What Weights & Biases is told: settings of runs, what they log, how they end."""
    told = []
    run = SimpleNamespace(
        log=lambda *a, **k: told.append((a, k)), finish=lambda exit_code=None: told.append(f"end {exit_code}")
    )
    fake = SimpleNamespace(init=lambda **options: told.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return told


def test_off_by_default(tmp_path):
    with opened_trackers(tiny_config(), tmp_path) as trackers:
        assert trackers == []


def test_tensorboard_file_holds_the_numbers_and_drops_what_is_played_again(tmp_path):
    with opened_trackers(tiny_config(tensorboard=True), tmp_path) as (log,):
        log(RECORD)
        log(RECORD | {"round": 4, "accuracy": 0.75})
    (file,) = (tmp_path / "tensorboard").iterdir()
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    data, found, starts = file.read_bytes(), {}, []
    while data:  # records of length u64, CRC u32, bytes, CRC u32
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        starts += [event.step] * (event.session_log.status == SessionLog.START)
        data = data[16 + size :]
    assert found == {
        ("accuracy", 3): 0.5,
        ("uplink_bytes", 3): 10.0,
        ("accuracy", 4): 0.75,
        ("uplink_bytes", 4): 10.0,
    }
    assert starts == [3]  # of files before this one TensorBoard shows no round from here on


def test_weights_and_biases_gets_them_too(tmp_path, calls):
    with opened_trackers(tiny_config(wandb="masks"), tmp_path) as (log,):
        log(RECORD)
    assert calls[0]["project"] == "masks" and calls[0]["config"]["clients"] == 6
    assert calls[1:] == [(({"accuracy": 0.5, "uplink_bytes": 10},), {"step": 3}), "end None"]


def test_a_run_that_goes_on_is_the_same_one_there_and_one_that_starts_over_is_another(tmp_path, calls):
    def opened(folder):
        folder.mkdir(exist_ok=True)
        with opened_trackers(tiny_config(wandb="masks"), folder):
            assert calls[-1]["resume"] == "allow" and calls[-1]["reinit"]
            return calls[-1]["id"]

    first = opened(tmp_path / "run")
    assert first and opened(tmp_path / "run") == first
    (tmp_path / "run").rename(tmp_path / "run.1")
    assert opened(tmp_path / "run") != first


def test_a_run_that_fails_ends_its_trackers_too(tmp_path, calls, monkeypatch):
    def set_up(*_):
        raise ValueError("no data")

    monkeypatch.setattr(experiment, "set_up", set_up)
    for _ in range(2):
        with pytest.raises(ValueError, match="no data"):
            experiment.run(tiny_config(wandb="masks"), tmp_path / "run")
    assert [call if isinstance(call, str) else "begin" for call in calls] == ["begin", "end 1"] * 2


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
    trackers = opened_trackers(tiny_config(wandb="x"), tmp_path)
    with pytest.raises(ValueError, match="config.wandb='x': api_key not configured; WANDB_MODE") as caught:
        trackers.__enter__()
    assert "\n" not in str(caught.value)
