"""Comparisons: what is run and what is not run again, the numbers of the table, one real run of it all."""

import json

import compare
import comparison_report
import numpy as np
import pytest
import tuning
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from deltamask_jax import experiment
from deltamask_jax.reporting import figures
from deltamask_jax.workdir import files
from tests.conftest import tiny_config

UP = {"linear_probe": 1_000_000, "fedavg": 3_000_000, "eden": 500_000}  # bytes per round


@pytest.fixture
def played(monkeypatch):
    """Stands in for `experiment.run`: leaves files of known numbers, and lists what was run."""
    names = []

    def run(config, workdir):
        if config.fedavg.learning_rate == 7:
            raise FloatingPointError("round 1: the loss of client 0 is nan")
        names.append((config.method, config.seed, config.rounds))
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", config.to_dict())
        last = 0.2 if config.method == "linear_probe" else 0.8 + config.seed / 10
        accuracies = [0.1, 0.6 * last, None, last]
        for number, accuracy in enumerate(accuracies):
            up = UP[config.method] if number else 100_000
            record = {"round": number, "accuracy": accuracy, "uplink_bytes": up, "downlink_bytes": 2 * up}
            files.append(workdir / "metrics.jsonl", record | {"seconds": 9.0 if number == 1 else 2.0})
        summary = {
            "final_accuracy": accuracies[-1],
            "best_accuracy": accuracies[-1],
            "masked_parameters": 1000,
        }
        summary |= {"mean_uplink_bpp": 0.1, "mean_downlink_bpp": 16.0, "linear_probe_accuracy": 0.55}
        files.write_json(workdir / "summary.json", summary)

    monkeypatch.setattr(experiment, "run", run)
    return names


def compared(out, config=None, names=("linear_probe", "fedavg"), seeds=2):
    failed = compare.compare(config or tiny_config(), list(names), seeds, out, "the command")
    return failed, json.loads((out / "comparison.json").read_text())


def test_numbers_of_the_table(played, tmp_path):
    failed, comparison = compared(tmp_path)
    assert not failed
    assert comparison["linear_probe_accuracy"] == pytest.approx(0.2)
    assert comparison["full_training_accuracy"] == pytest.approx(0.85)
    gain = comparison["targets"]
    assert gain == {"95% of the gain": pytest.approx(0.8175), "99% of the gain": pytest.approx(0.8435)}
    probe, fedavg = comparison["rows"]
    assert (probe["method"], fedavg["method"], fedavg["seeds"]) == ("linear_probe", "fedavg", [0, 1])
    assert fedavg["accuracy"] == pytest.approx(0.85)
    assert fedavg["accuracy_spread"] == pytest.approx(0.1 / 2**0.5)
    cost = fedavg["to"]["95% of the gain"]
    assert (cost["seeds"], cost["rounds"]) == (1, 3)  # only seed 1 gets there
    assert cost["total_megabytes"] == pytest.approx(27.3)
    assert (fedavg["uplink_megabytes"], fedavg["downlink_megabytes"]) == pytest.approx((9.1, 18.2))
    assert probe["to"]["95% of the gain"] == {"seeds": 0} and probe["total_megabytes"] == pytest.approx(9.3)
    assert fedavg["seconds_per_round"] == 2
    assert [p["round"] for p in fedavg["curve"]] == [0, 1, 3]  # round 2 was not evaluated
    assert fedavg["curve"][2]["total_megabytes"] == pytest.approx(27.3)
    assert (fedavg["curve"][2]["low"], fedavg["curve"][2]["high"]) == (0.8, 0.9)
    table = (tmp_path / "comparison.md").read_text()
    assert (
        "| method | MB up + down | MB to 95% of the gain | MB to 99% of the gain | accuracy | best" in table
    )
    reached = "27.3 (1 of 2 seeds)"
    assert (
        f"| fedavg | 27.3 | {reached} | {reached} | 85.0 ± 7.1 | 85.0 | 9.1 | 18.2 | 0.1 | 16 | 2 |" in table
    )
    assert "`the command`" in table and "test examples" in table
    picture = np.asarray(Image.open(tmp_path / "comparison.png").convert("RGB"), int)
    assert (np.ptp(picture, axis=-1) > 60).any(axis=0).sum() > 200  # lines in colour across the panel


def test_where_full_training_gains_nothing_the_probe_is_the_target(played, tmp_path):
    _, comparison = compared(tmp_path, names=["linear_probe"])
    assert comparison["targets"] == {"the probe": pytest.approx(0.2)}
    assert comparison["rows"][0]["to"]["the probe"]["rounds"] == 3
    compared(tmp_path, names=["eden"])  # nothing of it: the probes beside the runs
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["targets"] == {"the probe": pytest.approx(0.55)}


def test_only_what_is_missing_or_was_configured_otherwise_runs(played, tmp_path):
    compared(tmp_path, names=["linear_probe"], seeds=1)
    compared(tmp_path)
    assert played == [("linear_probe", 0, 2), ("fedavg", 0, 2), ("linear_probe", 1, 2), ("fedavg", 1, 2)]
    (tmp_path / "fedavg" / "seed1" / "summary.json").unlink()  # interrupted
    compared(tmp_path)
    assert played[4:] == [("fedavg", 1, 2)]
    compared(tmp_path, config=tiny_config(rounds=9), seeds=1)
    assert played[5:] == [("linear_probe", 0, 9), ("fedavg", 0, 9)]


def test_a_run_that_fails_is_told_and_the_others_go_on(played, tmp_path):
    names = ["fedavg:learning_rate=7", "linear_probe"]
    failed, comparison = compared(tmp_path, names=names, seeds=1)
    assert failed == 1 and [row["method"] for row in comparison["rows"]] == ["linear_probe"]
    assert (
        "failed: fedavg:learning_rate=7, seed 0: round 1: the loss"
        in (tmp_path / "comparison.md").read_text()
    )


def test_a_label_names_a_method_in_the_table_and_not_its_runs(played, tmp_path):
    _, comparison = compared(tmp_path, names=["linear_probe", "all weights=fedavg:fedavg.learning_rate=2e-4"])
    row = comparison["rows"][1]
    assert (row["label"], row["method"]) == ("all weights", "fedavg:fedavg.learning_rate=2e-4")
    assert (tmp_path / "fedavg_fedavg.learning_rate=2e-4" / "seed0").is_dir()
    table = (tmp_path / "comparison.md").read_text()
    assert "| all weights |" in table and "- all weights: `fedavg:fedavg.learning_rate=2e-4`" in table


@pytest.mark.parametrize(
    "methods", [["A=peft", "B=peft"], ["peft", "B=peft"], ["A=peft:wire=8bit", "peft:wire=8bit"]]
)
def test_a_method_with_two_labels_is_refused(methods):
    with pytest.raises(ValueError, match="--methods: peft.* twice, as "):
        compare.labels_of(methods)


def test_a_curve_ends_where_the_table_does_once_seeds_end_at_different_rounds(played, tmp_path):
    runs = {("fedavg", seed): tmp_path / f"seed{seed}" for seed in (0, 1)}
    for (method, seed), workdir in runs.items():
        experiment.run(tiny_config(method=method, seed=seed), workdir)
    (alike,) = comparison_report.summarise(runs, {"fedavg": "fedavg"})["rows"]
    assert [point["round"] for point in alike["curve"]] == [0, 1, 3]
    file = tmp_path / "seed1" / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))  # its bytes were spent
    (row,) = comparison_report.summarise(runs, {"fedavg": "fedavg"})["rows"]
    last = row["curve"][-1]
    assert [point["round"] for point in row["curve"]] == [0, 1, 3]
    assert (last["accuracy"], last["low"], last["high"]) == (pytest.approx(0.85), 0.8, 0.9)
    for way in ("total", "uplink", "downlink"):
        assert last[f"{way}_megabytes"] == row[f"{way}_megabytes"] < alike[f"{way}_megabytes"]


def test_a_picture_takes_dollars_in_a_path_for_dollars(tmp_path):
    point = {"total_megabytes": 1.0, "low": 0.1, "accuracy": 0.2, "high": 0.3}
    comparison = {"linear_probe_accuracy": 0.1, "full_training_accuracy": None, "examples": "test"}
    comparison |= {"model": "tiny_vit", "data": "csv:/d/cost$_and_$.csv"}
    rows = [{"label": "a", "curve": [point], "seeds": [0]}]
    comparison_report.draw(tmp_path / "c.png", comparison | {"rows": rows})
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize("odd", [(0.3, 0.75), (0.7, 0.2, 0.75)], ids=["begins", "falls"])
def test_one_curve_far_below_does_not_press_the_others_flat(odd, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_report.figures, "name_ends", lambda figure, axes, ends: drawn.append(axes))

    def row(label, accuracies):
        curve = [
            {"total_megabytes": 1.0 + k, "low": a, "accuracy": a, "high": a} for k, a in enumerate(accuracies)
        ]
        return {"label": label, "curve": curve, "seeds": [0]}

    rows = [row("a", (0.7, 0.8)), row("b", (0.71, 0.81)), row("odd", odd)]
    comparison = {"linear_probe_accuracy": 0.74, "full_training_accuracy": None, "examples": "test"}
    comparison |= {"model": "tiny_vit", "data": "digits", "rows": rows}
    comparison_report.draw(tmp_path / "c.png", comparison)
    bottom, top = drawn[0].get_ylim()
    assert 65 < bottom < 70 and 81 < top < 83


def test_names_of_curves_do_not_overlap():
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 100))
    ends = [(5, 50, f"method {k}", "black") for k in range(5)] + [(9, 50, "far away", "black")]
    figures.name_ends(figure, axes, ends)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to the point
    assert len(boxes) == 6 and boxes[-1].x0 > boxes[0].x1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_settings_of_one_method(monkeypatch):
    monkeypatch.setitem(tuning.NEEDS, "peft", {"peft.wire": "8bit", "eval_every": 3})
    made = compare.config_of(tiny_config(), "peft:kind=lora:lora_rank=2:rounds=7:eval_every=2", 4)
    assert (made.method, made.seed, made.rounds, made.eval_every) == ("peft", 4, 7, 2)
    assert (made.peft.kind, made.peft.lora_rank, made.peft.wire) == ("lora", 2, "8bit")
    other = compare.config_of(tiny_config(), "fedavg:per_client_evaluation=true", 0)
    assert other.peft == tiny_config().peft and other.per_client_evaluation is True


@pytest.mark.parametrize(
    "method, message",
    [
        ("fedagv", "did you mean 'fedavg'"),
        ("peft:kind=lroa", "did you mean 'lora'"),
        ("peft:knid=lora", "did you mean"),
        ("fedavg:learning_rate=fast", "takes a float"),
        ("fedavg:per_client_evaluation=3", "takes True or False"),
        ("peft:lora", "is not setting=value"),
        ("=fedavg", "is not LABEL=METHOD"),
        ("masks=", "is not LABEL=METHOD"),
        ("linear_probe=fedavg", "two of the same label"),
    ],
)
def test_mistakes_are_found_before_anything_runs(played, tmp_path, method, message):
    with pytest.raises(ValueError, match=message):
        compared(tmp_path, names=["linear_probe", method])
    assert not played


def test_smoke_makes_a_config_small_and_leaves_small_ones():
    small = compare.smoke_of(tiny_config(rounds=100, train_examples=0, test_examples=10))
    assert (small.rounds, small.clients, small.train_examples, small.test_examples) == (2, 4, 80, 10)


@pytest.mark.parametrize("participation, asked, left", [(1.0, 6, 4), (0.6, 6, 2), (1.0, 3, 3)])
def test_smoke_waits_for_no_more_clients_than_it_asks(participation, asked, left):
    config = tiny_config(clients=10, participation=participation, min_clients=asked)
    small = compare.config_of(compare.smoke_of(config), "fedavg:head.trained=False", 0)
    assert (small.min_clients, small.head.trained) == (left, False)


def test_a_real_run(tmp_path):
    """Of a method that trains on cached features alone, so that it takes seconds."""
    config = tiny_config(rounds=2, train_examples=60, validation_examples=30, per_client_evaluation=True)
    failed, comparison = compared(tmp_path, config, ["peft:kind=head:wire=8bit"], 1)
    assert not failed
    (row,) = comparison["rows"]
    summary = json.loads((tmp_path / "peft_kind=head_wire=8bit" / "seed0" / "summary.json").read_text())
    assert row["accuracy"] == summary["final_accuracy"]
    assert row["uplink_bpp"] == summary["mean_uplink_bpp"]
    assert row["curve"][-1]["uplink_megabytes"] == pytest.approx(summary["uplink_bytes"] / 1e6)
    assert row["worst_clients_accuracy"] == summary["final_client_accuracy_worst"]
    table = (tmp_path / "comparison.md").read_text()
    assert "worst tenth of clients" in table and "validation examples" in table


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[1]", "config.json is not a run's"),
        ("summary.json", "{", "seed0 holds a damaged file"),
        ("summary.json", "{}", "seed0 holds a damaged file"),
        ("metrics.jsonl", '{"round"', "seed0 holds a damaged file"),
        ("metrics.jsonl", '{"round": 0}', "seed0 holds a damaged file"),
    ],
)
def test_a_damaged_run_is_named(played, tmp_path, file, content, message):
    compared(tmp_path, names=["fedavg"], seeds=1)
    (tmp_path / "fedavg" / "seed0" / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        compared(tmp_path, names=["fedavg"], seeds=1)
    assert str(error.value).isprintable()


def test_the_probe_is_that_beside_most_runs_not_that_of_a_method_of_one_round(played, tmp_path, monkeypatch):
    run = experiment.run

    def other_probe(config, workdir):
        run(config, workdir)
        if config.method == "fedcof":
            summary = json.loads((workdir / "summary.json").read_text())
            files.write_json(workdir / "summary.json", summary | {"linear_probe_accuracy": 0.05})

    monkeypatch.setattr(experiment, "run", other_probe)
    monkeypatch.setitem(UP, "fedcof", 1)
    _, comparison = compared(tmp_path, names=["fedavg", "fedcof"])
    assert comparison["linear_probe_accuracy"] == pytest.approx(0.55)


def test_a_run_that_a_budget_left_without_rounds_has_no_seconds(played, tmp_path):
    compared(tmp_path, names=["fedavg"])
    workdirs = {("fedavg", seed): tmp_path / "fedavg" / f"seed{seed}" for seed in (0, 1)}
    for workdir in workdirs.values():
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        (workdir / "metrics.jsonl").write_text(lines[0] + "\n")
        rest = {"mean_uplink_bpp": None, "mean_downlink_bpp": None}
        summary = json.loads((workdir / "summary.json").read_text()) | rest
        files.write_json(workdir / "summary.json", summary)
    found = comparison_report.summarise(workdirs, {"fedavg": "fedavg"})
    assert found["rows"][0]["seconds_per_round"] is None


@pytest.mark.parametrize(
    "value, text",
    [(3.3e-05, "0.000033"), (0.00231, "0.00231"), (1.2345, "1.23"), (16.0, "16"), (725.4, "725")],
)
def test_numbers_have_no_exponent(value, text):
    assert comparison_report._number(value) == text
