"""A search of rates: on validation examples, resumable, and taken by what compares."""

from types import SimpleNamespace

import compare
import pytest
import search
import tuning

from deltamask_jax import experiment
from deltamask_jax.workdir import files
from tests.conftest import tiny_config


def searchable(monkeypatch, results):
    """Stands in for `experiment.run`: the accuracy of each rate of FedAvg; None fails. Lists what was run."""
    ran = []

    def run(config, workdir):
        rate = config.fedavg.learning_rate
        ran.append(rate)
        if results[rate] is None:
            raise FloatingPointError("the loss is nan")
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / "config.json", config.to_dict())
        files.write_json(workdir / "summary.json", {"final_accuracy": results[rate]})

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setitem(tuning.RATES, "tiny_vit", {"fedavg": (0.001, 0.002, 0.004)})
    return ran


@pytest.mark.parametrize(
    "results, tried, taken",
    [
        ({0.001: 0.5, 0.002: 0.7, 0.004: 0.6}, 3, 0.002),
        ({0.001: 0.5, 0.002: 0.7, 0.004: 0.7}, 3, 0.002),  # a shared best is no end
        ({0.001: 0.5, 0.002: 0.6, 0.004: 0.7, 0.008: 0.8, 0.016: 0.9}, 5, 0.016),  # and no further
        ({0.001: 0.5, 0.002: 0.4, 0.004: None, 0.0005: 0.5}, 4, 0.0005),
        ({0.001: None, 0.002: None, 0.004: None}, 3, None),
    ],
)
def test_a_search_takes_the_best_rate_on_validation_examples(monkeypatch, tmp_path, results, tried, taken):
    ran, out = searchable(monkeypatch, results), tmp_path / "runs" / "search"
    config = tiny_config(validation_examples=50)
    for _ in range(2):  # what finished is not repeated
        (row,) = search.search(config, ["full training=fedavg", "eden"], 1, out, "the command")["rows"]
    failed = sum(value is None for value in results.values())
    assert (len(ran), len(row["rates"]), row["taken"]) == (tried + failed, tried, taken)
    assert row["rates"] == sorted(results)
    table = (out / "search.md").read_text()
    assert "| fedavg | `fedavg.learning_rate` | " in table and ("failed" in table) == (failed > 0)
    if taken:  # compare.py takes it, for what trains alike too
        searched = compare.read_searched(out / "search.json")
        for method in ("fedavg", "eden", "eden:bits=2"):
            assert compare.config_of(tiny_config(), method, 0, searched).fedavg.learning_rate == taken
        own = compare.config_of(tiny_config(), "fedavg:learning_rate=7", 0, searched)
        assert own.fedavg.learning_rate == 7


def test_a_run_of_another_config_in_the_workdir_gives_no_accuracy(monkeypatch, tmp_path):
    results = {0.001: 0.5, 0.002: 0.7, 0.004: 0.6}
    searchable(monkeypatch, results)
    search.search(tiny_config(validation_examples=50), ["fedavg"], 1, tmp_path, "")

    def refuse(config, workdir):
        raise ValueError("holds a run of another config")

    monkeypatch.setattr(experiment, "run", refuse)
    found = search.search(tiny_config(validation_examples=50, rounds=9), ["fedavg"], 1, tmp_path, "")
    (row,) = found["rows"]
    assert (row["accuracy"], row["taken"], len(found["failures"])) == ([None] * 3, None, 3)
    assert compare.read_searched(tmp_path / "search.json") == {}


@pytest.mark.parametrize("failing", [0.7, None])
def test_a_search_whose_runs_failed_exits_with_an_error(monkeypatch, tmp_path, failing):
    searchable(monkeypatch, {0.001: 0.5, 0.002: failing, 0.004: 0.6, 0.008: 0.5})
    config = tiny_config(validation_examples=50)
    options = {"config": config, "methods": ["fedavg"], "seeds": 1, "out": str(tmp_path), "smoke": False}
    monkeypatch.setattr(search, "FLAGS", SimpleNamespace(**options))
    if failing:
        search._main([])
    else:
        with pytest.raises(SystemExit, match="error: 1 runs failed"):
            search._main([])


def test_mistakes_of_a_search_and_of_its_use(tmp_path):
    with pytest.raises(ValueError, match="--config.validation_examples=N"):
        search.search(tiny_config(), ["fedavg"], 1, tmp_path, "")
    with pytest.raises(ValueError, match="did you mean 'fedavg'"):
        search.search(tiny_config(validation_examples=9), ["fedagv"], 1, tmp_path, "")
    with pytest.raises(ValueError, match="no rate was searched for peft:kind=lora; search it"):
        compare.config_of(tiny_config(), "peft:kind=lora", 0, {"peft": {"peft.learning_rate": 1.0}})
    fedcof = compare.config_of(tiny_config(), "fedcof", 0, {})
    assert fedcof.method == "fedcof"  # has no rate
    (tmp_path / "search.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is not launch/search.py's search.json"):
        compare.read_searched(tmp_path / "search.json")
