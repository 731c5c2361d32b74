"""End to end on a tiny random network and real digits: what a run leaves behind."""

import gc
import json
import weakref

import jax
import numpy as np
import pytest
from jax._src.monitoring import get_event_duration_listeners
from PIL import Image
from safetensors.numpy import load_file

from deltamask_jax import experiment, masks, methods
from deltamask_jax.reporting import report
from deltamask_jax.workdir import claim
from deltamask_jax.workdir.claim import MARKER, written
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "work"
    config = tiny_config(rounds=3, eval_every=2)
    return workdir, config, experiment.run(config, workdir)


def test_files_left(finished):
    workdir, config, summary = finished
    assert {p.name for p in workdir.iterdir()} == {
        ".deltamask_jax",
        "checkpoints",
        "clients.jsonl",
        "config.json",
        "curves.png",
        "deltamask.safetensors",
        "diagnostics.jsonl",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "payload.png",
        "split.json",
        "split.png",
        "summary.json",
    }
    assert {p.name for p in workdir.iterdir()} <= {MARKER, *written(config)}
    assert json.loads((workdir / "config.json").read_text()) == config.to_dict()
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert Image.open(workdir / "payload.png").mode == "L"


def test_metrics_lines(finished):
    workdir, config, summary = finished
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert [r["accuracy"] is not None for r in records] == [
        True,
        False,
        True,
        True,
    ]  # every 2nd, and the last
    d = summary["masked_parameters"]
    for r, each in zip(records, claim.lines(workdir / "clients.jsonl"), strict=True):
        assert each["round"] == r["round"] and len(each["clients"]) == r["clients"]
        assert (sum(each["up"]), sum(each["down"])) == (r["uplink_bytes"], r["downlink_bytes"])
        for way in ("uplink", "downlink"):
            assert r[f"{way}_bpp"] == pytest.approx(8 * r[f"{way}_bytes"] / (r["clients"] * d))
    for r in records[1:]:
        assert 0 < r["flip_rate"] < 0.2 and r["train_loss"] > 0 and r["seconds"] > 0
        # A filter of 8 bits per entry spends 8 to 13 bits per flip, beside its header.
        payload_bits = 8 * (r["uplink_bytes"] / r["clients"] - 150)
        assert 6 < payload_bits / (r["flip_rate"] * d) < 15
        assert r["false_flip_rate"] == pytest.approx(1 / 256, rel=0.3)
        assert 0 <= r["codec_exposed_seconds"] <= r["codec_seconds"] <= r["seconds"]
    assert [r["compile_seconds"] for r in records[2:]] == [0, 0]  # everything is compiled in the first round
    assert summary["uplink_bytes"] == sum(r["uplink_bytes"] for r in records)
    assert summary["final_accuracy"] == records[-1]["accuracy"]
    assert summary["mean_flip_rate"] == pytest.approx(np.mean([r["flip_rate"] for r in records[1:]]))


def test_learned_arrays(finished):
    workdir, _, summary = finished
    arrays = load_file(workdir / "deltamask.safetensors")
    assert arrays["theta"].dtype == np.uint16 and arrays["theta"].size == summary["masked_parameters"]
    mask = np.unpackbits(arrays["mask"], count=arrays["theta"].size).astype(bool)
    np.testing.assert_array_equal(mask, arrays["theta"] >= masks.least_kept(arrays["theta"]))
    assert arrays["head/kernel"].shape == (32, 10)


def test_a_finished_run_is_not_repeated_unless_fresh_and_the_same_seed_gives_the_same(finished, capsys):
    workdir, config, summary = finished
    assert experiment.run(config, workdir) == summary
    assert "finished already" in capsys.readouterr().out
    again = experiment.run(tiny_config(rounds=3, eval_every=2, resume="fresh"), workdir)
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in summary.items() if "seconds" not in k
    }
    assert json.loads((workdir.with_name("work.1") / "summary.json").read_text()) == summary
    assert "it holds checkpoints, clients.jsonl, config.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "deltamsk"}, "did you mean 'deltamask'"),
        ({"codec__name": "bfus"}, "did you mean 'bfuse'"),
        ({"codec__bits": 9}, "bits"),
        ({"model__name": "glyphvit"}, "did you mean 'glyph_vit'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"clients": 90}, "lower num_clients"),
        ({"mask__theta_init": 2.0}, "config.mask.theta_init=2.0"),
    ],
)
def test_bad_settings_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(tiny_config(**changes), tmp_path / "run")


def test_a_method_that_is_not_for_the_model_says_so_before_the_head_is_trained(tmp_path, monkeypatch):
    def build(*_):
        raise ValueError("not for this model")

    monkeypatch.setattr(experiment, "with_head", lambda _: pytest.fail("the head was trained"))
    monkeypatch.setattr(experiment.methods, "build", build)
    with pytest.raises(ValueError, match="not for this model"):
        experiment.run(tiny_config(), tmp_path / "run")


@pytest.mark.parametrize(
    "changes", [{"head__init": "fit", "byte_budget": 1}, {"head__init": "he", "rounds": 1}]
)
def test_every_file_is_json_without_rounds_and_without_a_trained_head(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(prefix_cache="~/cache", tensorboard=True, **changes)
    summary = experiment.run(config, "~/run")
    files = [*(tmp_path / "run").glob("*.json"), *(tmp_path / "run").glob("*.jsonl")]
    assert {"summary.json", "metrics.jsonl", "split.json"} <= {path.name for path in files}
    for path in files:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=pytest.fail)
    played = "byte_budget" not in changes
    assert (summary["mean_uplink_bpp"] is None, summary["rounds"]) == (not played, int(played))
    assert "mean_train_loss" not in summary
    assert list((tmp_path / "cache").glob("prefix-*.npy"))
    assert experiment.run(config, "~/run") == summary  # what a later command reads
    report.main([str(tmp_path / "run"), "--out=~/page.html"])
    assert "run" in (tmp_path / "page.html").read_text()


def held() -> dict[str, int]:
    """What this process holds on to."""
    gc.collect()
    return {
        "bytes of arrays": sum(array.nbytes for array in jax.live_arrays()),
        "compiled programs": len(jax.local_devices()[0].client.live_executables()),
        "listeners": len(get_event_duration_listeners()),
    }


def test_a_run_leaves_nothing_of_itself_in_the_process(tmp_path, monkeypatch):
    """Of three runs, what the first and the second leave are caches of the functions that all runs share."""
    set_up, build, made, after = experiment.set_up, methods.build, {}, []

    def watched_problem(config, workdir):
        problem = set_up(config, workdir)
        model, params = problem.task.model, jax.tree.leaves(problem.task.params)
        for name, what in {"prefix": model.prefix, "suffix": model.suffix, "weights": params[0]}.items():
            made[workdir.name, name] = weakref.ref(what)
        return problem

    def watched_method(config, task):
        method = build(config, task)
        made[config.method, len(made)] = weakref.ref(method.client.step)
        return method

    monkeypatch.setattr(experiment, "set_up", watched_problem)
    monkeypatch.setattr(methods, "build", watched_method)
    for seed, method in enumerate(("deltamask", "fedavg", "deltamask")):
        config = tiny_config(method=method, seed=seed, clients=2, rounds=1, model__trained_blocks=1)
        experiment.run(config, tmp_path / f"run{seed}")
        after.append(held())
    assert len(made) > 9 and [name for name, what in made.items() if what() is not None] == []
    assert after[2] == after[1]


def test_a_cohort_that_is_lost_whole_is_repeated_where_examples_stay_on_the_host(tmp_path):
    changes = {"participation": 0.2, "prefix_cache": "off", "cohort__memory": 1e-6, "max_repeats": 30}
    summary = experiment.run(tiny_config(**changes, faults__dropout=0.5, rounds=2), tmp_path)
    records = claim.lines(tmp_path / "metrics.jsonl")
    assert summary["rounds"] == 2 and sum(record["repeats"] for record in records) > 0
