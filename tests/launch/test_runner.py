"""Launch scripts: every run they list is valid, done ones are skipped, failures cost only themselves."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import runner

from deltamask_jax import methods
from tests.conftest import tiny_config
from tests.reporting.test_report import write_run

ROOT = Path(__file__).parents[2]

SCRIPTS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "runner.main(" in path.read_text())
SCRIPTS.remove("runner")  # its docstring says so
RUNS = [runner.Run("a", "configs/quickstart.py"), runner.Run("b", "configs/quickstart.py", {"rounds": 3})]


@pytest.mark.parametrize("smoke", [True, False], ids=["smoke", "full"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_listed_run_is_valid(script, smoke):
    runs = importlib.import_module(script).runs(smoke)
    assert len({run.name for run in runs}) == len(runs)
    checked = 0
    for run in runs[:: 7 if len(runs) > 200 else 1]:  # of hundreds some, in step with no axis
        method = "peft" if "fedpeft" in run.config else run.changes.get("method", "deltamask")
        if method in methods.METHODS:
            config = runner.settings(run, 1, smoke)
            assert config.seed == 1 and config.data == ("digits" if smoke else config.data)
            checked += 1
    assert checked or script == "table_fedpeft"


def test_fedpeft_crosses_its_axes_on_its_data_sets():
    runs = {run.name: run for run in importlib.import_module("table_fedpeft").runs(False)}
    kinds, data = {name.split("/")[-1] for name in runs}, {name.split("/")[0] for name in runs}
    assert data == {"cifar100", "resisc45", "patch_camelyon"} and {"full", "deltamask", "lora-8bit"} < kinds
    cells = {f"clients{m}/dirichlet{alpha}" for m in (8, 16, 32, 64) for alpha in (0.1, 1, 1000)}
    assert {f"{a}/{b}/{c}" for a in data for b in cells for c in kinds} < set(runs)
    config = runner.settings(runs["resisc45/clients32/dirichlet0.1/unilora-8bit"], 0, False)
    assert (config.data, config.partition.alpha, config.participation) == ("tfds:resisc45", 0.1, 0.5)
    assert (config.peft.kind, config.peft.wire) == ("unilora", "8bit")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "deltamsk"}, "x: unknown config.method 'deltamsk'"),
        ({"mask.kapa": 1}, "did you mean 'mask.kappa'"),
        ({"rounds": 0}, "x: config.rounds=0"),
    ],
)
def test_a_run_that_cannot_start_is_named_before_any_starts(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(runner.experiment, "run", lambda *_: pytest.fail("started"))
    runs = [*RUNS, runner.Run("x", "configs/quickstart.py", changes)]
    with pytest.raises(SystemExit, match=message):
        runner.main("doc", lambda smoke: runs, [f"--out={tmp_path}"])


def pretend(calls, fail=()):
    """In the place of experiment.run: leaves a workdir as a run does."""

    def run(config, workdir):
        calls.append(str(workdir.relative_to(workdir.parents[1])))
        if calls[-1] in fail:
            raise RuntimeError("out of memory")
        write_run(workdir)
        (workdir / "config.json").write_text(json.dumps(config.to_dict()))

    return run


def test_a_set_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
    calls = []
    launch = lambda *options: runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}", *options])  # noqa: E731
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="b/seed0: out of memory"):
        patched.setattr(runner.experiment, "run", pretend(calls, fail=["b/seed0"]))
        patched.setattr(runner.report, "render", lambda workdirs: "page")
        launch("--seeds=2")
    assert calls == ["a/seed0", "b/seed0", "a/seed1", "b/seed1"]  # the failure cost only itself
    calls.clear()
    monkeypatch.setattr(runner.experiment, "run", pretend(calls))
    launch("--seeds=2")
    assert calls == ["b/seed0"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 4 and table[2].startswith("| a | 2 | 80.00")
    assert "b" in json.loads((tmp_path / "table.json").read_text())
    assert "Settings that differ" in (tmp_path / "report.html").read_text()


def test_one_of_a_list_and_matching_ones(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(runner.experiment, "run", pretend(calls))
    monkeypatch.setattr(runner.report, "render", lambda workdirs: "page")
    launch = lambda *options: runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}", *options])  # noqa: E731
    launch("--list", "--seeds=2")
    assert capsys.readouterr().out.splitlines()[3] == f"3 {tmp_path}/b/seed1"
    launch("--only=3", "--seeds=2")
    launch("--match=^a$")
    assert calls == ["b/seed1", "a/seed0"]


def test_a_folder_with_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.experiment, "run", pretend([]))
    monkeypatch.setattr(runner.report, "render", lambda workdirs: "page")
    runner.main("doc", lambda smoke: RUNS[:1], [f"--out={tmp_path}"])
    other = [runner.Run("a", "configs/quickstart.py", {"rounds": 5})]
    with pytest.raises(SystemExit, match="another rounds; choose another --out"):
        runner.main("doc", lambda smoke: other, [f"--out={tmp_path}"])


def test_a_finished_run_that_the_package_would_continue_is_done(tmp_path):
    config = tiny_config(resume="fresh", max_repeats=7)
    workdir = tmp_path / "run"
    write_run(workdir)
    older = tiny_config().to_dict()  # of a version without the section, kept as often as another says
    del older["downlink"]
    older["checkpoint"]["every"] = 9
    (workdir / "config.json").write_text(json.dumps(older))
    assert runner.is_done(workdir, config)
    with pytest.raises(ValueError, match="another downlink.hold; choose another --out"):
        runner.is_done(workdir, tiny_config(downlink__hold=2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--match=("], "'(' is no regular expression"),
        (["--match=zzz"], "no run's name matches --match=zzz"),
        (["--seeds=0"], "--seeds=0: must be at least 1"),
        (["--only=2"], "the list has runs 0 … 1"),
        (["--only=-1"], "the list has runs 0 … 1"),
        (["--out={}/file/x"], "Not a directory"),
        (["--out={}/file"], "exists"),
    ],
)
def test_bad_arguments_are_told_before_anything_starts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(runner.experiment, "run", lambda *_: pytest.fail("started"))
    (tmp_path / "file").write_text("")
    arguments = [argument.format(tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}/new", *arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert message in (said[-1] if said else str(stopped.value))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_what_the_report_needs_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.experiment, "run", lambda *_: pytest.fail("started"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit, match=r"^error: the report needs: pip install .deltamask_jax\[report\]"):
        runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}/new"])
    assert not any(tmp_path.iterdir())


def test_damaged_runs_cost_only_themselves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner.experiment, "run", pretend([]))
    runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}"])
    (tmp_path / "a" / "seed0" / "split.json").write_text("[1]")
    runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}"])
    assert "a/seed0 holds a damaged file" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["b"]
    (tmp_path / "a" / "seed0" / "config.json").write_text("[1]")
    with pytest.raises(SystemExit, match="config.json is not a run's"):
        runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}"])
    (tmp_path / "a" / "seed0" / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="a/seed0/summary.json is damaged"):
        runner.main("doc", lambda smoke: RUNS, [f"--out={tmp_path}"])


def test_a_run_of_another_config_is_left_out_of_table_and_report(tmp_path, monkeypatch, capsys):
    rendered, jobs = [], []
    monkeypatch.setattr(runner.report, "render", lambda workdirs: str(rendered.extend(workdirs)))
    for name, rounds in (("a", 3), ("b", 9)):
        workdir = tmp_path / name / "seed0"
        write_run(workdir, finished=False)  # with 3 rounds
        jobs.append(runner.Job(str(workdir), workdir, tiny_config(rounds=rounds), done=False))
    runner.gather(tmp_path, jobs)
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["a"]
    assert rendered == [jobs[0].workdir]
    assert f"left out: {jobs[1].workdir} holds a run with another rounds" in capsys.readouterr().out
