"""Folders that are not a run's: what is in them stays as it is."""

import json
import os

import pytest

from deltamask_jax import experiment
from deltamask_jax.workdir import checkpoint, claim, files, journal
from tests.conftest import tiny_config


def fill(folder, *names):
    """Somebody's files, a folder where the name ends so."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"round": 7, "mine": true}\n')


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def released(folder, config):
    os.close(claim.claim(folder, config))


@pytest.mark.parametrize("resume", ["auto", "fresh"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "split.json",
        "metrics.jsonl",
        "checkpoints/1/w",
        "deltamask.safetensors",
        "config.json.tmp",
    ],
)
def test_a_file_that_no_run_wrote_is_refused_by_name(tmp_path, name, resume):
    fill(tmp_path, "train.jsonl", name)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds {name.split('/')[0]}, which no run .* another --workdir$"):
        released(tmp_path, tiny_config(resume=resume))
    assert contents(tmp_path) == before


def test_other_files_are_left_alone(tmp_path):
    fill(tmp_path, "train.jsonl", "notes/diary.txt", "linear_probe.safetensors")
    before = contents(tmp_path)
    config = tiny_config()
    with journal.Journal(tmp_path, config) as kept:
        fill(tmp_path, "diagnostics.jsonl")  # of a round that will be played again
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "identity", lambda problem: {})
            assert kept.load(None) is None
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert {str(path) for path in after.keys() - before.keys()} == {claim.MARKER, "config.json"}
    released(tmp_path, config)  # and it is the run's the next time


def test_a_run_of_a_version_before_the_marker_is_known_by_its_files(tmp_path):
    config = tiny_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "checkpoints").mkdir()
    released(tmp_path, config)
    for name, text in (("metrics.jsonl", '{"round": 0, "uplink_bytes": 9}\n'), ("summary.json", "{}")):
        (tmp_path / claim.MARKER).unlink()
        (tmp_path / name).write_text(text)
        released(tmp_path, config)
    with pytest.raises(ValueError, match="another config"):
        experiment.run(tiny_config(seed=1), tmp_path)


def test_a_run_of_a_version_with_fewer_settings_goes_on_where_they_are_as_by_default(tmp_path):
    settings = tiny_config().to_dict()
    del settings["downlink"], settings["mask"]["ranking"]
    files.write_json(tmp_path / "config.json", settings)
    files.append(tmp_path / "metrics.jsonl", {"round": 0, "uplink_bytes": 9})
    with pytest.raises(ValueError, match="another config .downlink.hold is 1 there and 2 here"):
        released(tmp_path, tiny_config(downlink__hold=2))
    released(tmp_path, tiny_config())
    settings["mask"]["gone"] = 3
    files.write_json(tmp_path / "config.json", settings)
    with pytest.raises(ValueError, match="mask.gone is 3 there and 'absent' here"):
        released(tmp_path, tiny_config())


def test_a_config_differs_from_an_earlier_one_where_it_makes_another_run():
    earlier = tiny_config(rounds=9, checkpoint__every=5, max_repeats=2, resume="fresh").to_dict()
    del earlier["downlink"]
    earlier["mask"]["gone"] = 3
    assert claim.differing(earlier, tiny_config(downlink__hold=2)) == {
        "downlink.hold": (1, 2),
        "mask.gone": (3, "absent"),
        "rounds": (9, 2),
    }


def test_fresh_moves_only_what_a_run_wrote_into(tmp_path, capsys):
    folder, config = tmp_path / "run", tiny_config(resume="fresh")
    fill(folder, "train.jsonl")
    released(folder, config)
    assert not folder.with_name("run.1").exists()
    released(folder, config)
    assert contents(folder.with_name("run.1")).keys() > contents(folder).keys()
    assert "it holds config.json, train.jsonl" in capsys.readouterr().out


def test_what_keeps_fresh_from_its_folder_is_said_and_no_lock_is_closed_twice(tmp_path, monkeypatch):
    folder, config, closed = tmp_path / "run", tiny_config(resume="fresh"), []
    released(folder, config)
    close, aside = os.close, claim._move_aside
    monkeypatch.setattr(claim.os, "close", lambda lock: (closed.append(lock), close(lock)))
    monkeypatch.setattr(claim, "_move_aside", lambda there: (aside(there), there.mkdir()))  # another's
    with pytest.raises(OSError, match="run: File exists; choose another"):
        claim.claim(folder, config)
    assert len(closed) == len(set(closed)) == 1


@pytest.mark.parametrize("played", [False, True])
@pytest.mark.parametrize("name", ["checkpoints/7/model.pt", "metrics.jsonl", "diagnostics.jsonl"])
def test_somebody_s_files_among_those_of_a_run_without_a_marker_are_refused(tmp_path, name, played):
    config = tiny_config()
    files.write_json(tmp_path / "config.json", config.to_dict())
    if played:
        files.append(tmp_path / "metrics.jsonl", {"round": 0, "uplink_bytes": 1})
        (tmp_path / "checkpoints" / "0" / "ledger").mkdir(parents=True)
        os.close(claim.claim(tmp_path, config))  # without somebody's file it is taken
        (tmp_path / claim.MARKER).unlink()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("step 1, loss 3\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{name.split('/')[0]}.*, which no run"):
        released(tmp_path, config)
    assert contents(tmp_path) == before


def test_lines_end_at_the_first_that_no_run_writes(tmp_path):
    file = tmp_path / "clients.jsonl"
    for damage in ("{}", "null", "[1]", '{"round": "0"}', '{"round'):
        file.write_text(f'{{"round": 0}}\n{damage}\n{{"round": 1}}\n')
        assert claim.lines(file) == [{"round": 0}]
