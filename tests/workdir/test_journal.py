"""Runs that end at any moment: what the same command makes of what they left."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deltamask_jax import experiment
from deltamask_jax.workdir import checkpoint, claim, files, journal
from tests.conftest import tiny_config

# The quickest run there is to compile; DeltaMask itself is killed below.
CONFIG = {
    "method": "linear_probe",
    "rounds": 4,
    "clients": 6,
    "head__init": "he",
    "faults__dropout": 0.3,
    "model__trained_blocks": 1,
}


class Crash(BaseException):
    """Nothing in the program catches it."""


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Later runs, and the processes that are killed, load what the first run compiled."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)


def outcome(folder: Path) -> tuple:
    """What a run must leave whatever happened to it: everything but times and checkpoints."""
    timeless = lambda record: {k: v for k, v in record.items() if not k.endswith("seconds")}  # noqa: E731
    lines = [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = timeless(json.loads((folder / "summary.json").read_text()))
    others = [
        p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".png") and p.stem != "curves"
    ]
    return json.dumps(lines), summary, [(p.name, p.read_bytes()) for p in others]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, compile_once):
    folder = tmp_path_factory.mktemp("whole")
    experiment.run(tiny_config(**CONFIG), folder)
    return outcome(folder)


def crash_at(monkeypatch, owner, name, call, *, before=True):
    """Let the `call`-th call of a function end in a crash, before or after its work."""
    function, calls = getattr(owner, name), [0]

    def crashing(*args, **kwargs):
        calls[0] += 1
        if before and calls[0] == call:
            raise Crash
        result = function(*args, **kwargs)
        if not before and calls[0] == call:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, crashing)


def test_crashes_anywhere_change_nothing(tmp_path, uninterrupted):
    points = [  # how often to write checkpoints may change from one process to the next
        (1, experiment, "play_until_enough", 2, True),  # in round 2
        (3, journal.Journal, "commit", 1, False),  # round 2 has its line and no checkpoint
        (1, files, "append", 1, False),  # after the line, before the checkpoint
        (3, experiment, "save_file", 1, True),  # all rounds played, summary.json missing
    ]
    for every, owner, name, call, before in points:
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, owner, name, call, before=before)
            with pytest.raises(Crash):
                experiment.run(tiny_config(**CONFIG, checkpoint__every=every), tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # neither the head's round nor the bracket is run again
        patch.setattr(experiment, "with_head", None)
        patch.setattr(experiment, "linear_probe_accuracy", None)
        experiment.run(tiny_config(**CONFIG), tmp_path)
    assert outcome(tmp_path) == uninterrupted
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 4]


KILLED = """
import os, signal, sys
point, folder = sys.argv[1:]
from deltamask_jax import codecs, experiment
from deltamask_jax.workdir import files
from tests.conftest import tiny_config
from tests.workdir.test_journal import DELTAMASK

here = 0
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def play(problem, method, state, number, memory):
    global here
    here = number
    return original_play(problem, method, state, number, memory)
original_play, experiment.play_until_enough = experiment.play_until_enough, play

def encode(*args):
    payloads = original_encode(*args)
    if here == 1:
        kill()
    return payloads
original_encode = codecs.encode_cohort

def append(path, record):
    if here == 1:
        with path.open("a") as file:
            file.write('{"round": 1, "accur')
        kill()
    original_append(path, record)
original_append = files.append

def renaming(event, args):  # orbax puts a checkpoint together, then renames it into place
    if event == "os.rename" and here == 1 and "checkpoints" in str(args[1]):
        kill()

if point == "codec":
    codecs.encode_cohort = encode
elif point == "metrics":
    files.append = append
elif point == "checkpoint":
    sys.addaudithook(renaming)
experiment.run(tiny_config(**DELTAMASK), folder)
"""
DELTAMASK = {
    "rounds": 2,
    "clients": 4,
    "head__init": "he",
    "mask__uniforms": "per_client",
    "model__trained_blocks": 1,
}


@pytest.mark.slow
def test_sigkill_in_codec_metrics_and_checkpoint(tmp_path, compile_once):
    experiment.run(tiny_config(**DELTAMASK), tmp_path / "whole")
    killed = tmp_path / "killed"
    environment = os.environ | compile_once | {"PYTHONPATH": os.pathsep.join(sys.path)}
    rounds = []
    for point in ("codec", "metrics", "checkpoint"):
        child = [sys.executable, "-c", KILLED, point, str(killed)]
        result = subprocess.run(child, env=environment, capture_output=True, text=True)
        assert result.returncode == -signal.SIGKILL, result.stderr
        rounds.append(len(claim.lines(killed / "metrics.jsonl")) - 1)
    assert rounds == [0, 0, 1]  # the last one died with its line written and its checkpoint not
    assert not (killed / "checkpoints" / "1").exists()
    experiment.run(tiny_config(**DELTAMASK), killed)
    assert outcome(killed) == outcome(tmp_path / "whole")


TERMINATED = """
import os, signal, sys, threading
from deltamask_jax import experiment
from tests.conftest import tiny_config
from tests.workdir.test_journal import CONFIG

def play(problem, method, state, number, memory):
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()  # for ever, like a round that takes longer than a cluster's patience
    return original_play(problem, method, state, number, memory)
original_play, experiment.play_until_enough = experiment.play_until_enough, play
experiment.run(tiny_config(**CONFIG, checkpoint__every=100), sys.argv[1])
"""


def test_sigterm_keeps_the_last_round_and_ends_with_status_143(tmp_path, uninterrupted, compile_once):
    environment = os.environ | compile_once | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = [sys.executable, "-c", TERMINATED, str(tmp_path)]
    result = subprocess.run(child, env=environment, capture_output=True, text=True)
    assert result.returncode == 143
    assert "SIGTERM: stopped after round 2; the same command continues" in result.stderr
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [0, 2]
    experiment.run(tiny_config(**CONFIG, checkpoint__every=100), tmp_path)
    assert outcome(tmp_path) == uninterrupted


@pytest.fixture(scope="module")
def half_done(tmp_path_factory, compile_once):
    """A run that crashed in round 3."""
    folder = tmp_path_factory.mktemp("half") / "run"
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, experiment, "play_until_enough", 3)
        with pytest.raises(Crash):
            experiment.run(tiny_config(**CONFIG), folder)
    return folder


@pytest.fixture
def left(half_done, tmp_path):
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", half_done, copy], check=True)
    return copy


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(left, uninterrupted, caplog):
    for path in (left / "checkpoints" / "2").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    experiment.run(tiny_config(**CONFIG), left)
    assert "checkpoint 2" in caplog.text and "is damaged" in caplog.text
    assert outcome(left) == uninterrupted


def known_by(ledger):
    """What a checkpoint says of the problem it is of."""
    return {name: ledger[name] for name in ("problem", "examples")}


def test_any_changed_bit_of_the_ledger_damages_a_checkpoint(left, monkeypatch):
    config = tiny_config(**CONFIG)
    file = left / "checkpoints" / "2" / "ledger" / "metadata"
    whole = file.read_bytes()
    ledger = json.loads(whole)
    monkeypatch.setattr(checkpoint, "identity", lambda problem: known_by(ledger))
    rng, rounds = np.random.default_rng(0), []
    while len(rounds) < 12:
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        try:
            if json.loads(changed) == ledger:  # says the same in other words
                continue
        except ValueError:
            continue  # orbax notices that itself
        file.write_bytes(changed)
        with journal.Journal(left, config) as kept:
            rounds.append(kept.load(None).round)
    assert rounds == [1] * 12


def test_a_checkpoint_of_the_format_before_continues(left, monkeypatch):
    file = left / "checkpoints" / "2" / "ledger" / "metadata"
    ledger = json.loads(file.read_text())
    monkeypatch.setattr(checkpoint, "identity", lambda problem: known_by(ledger))
    (left / ".deltamask_jax").unlink()  # nor had it a marker
    with journal.Journal(left, tiny_config(**CONFIG)) as kept:
        arrays = kept.load(None).state
    ledger |= {"format": 1, "checksum": checkpoint._checksum(arrays)}
    (left / ".deltamask_jax").unlink()
    file.write_text(json.dumps(ledger))
    with journal.Journal(left, tiny_config(**CONFIG)) as kept:
        assert kept.load(None).round == 2


FOLLOWED = {
    "rounds": 4,
    "clients": 6,
    "participation": 0.5,
    "min_clients": 2,
    "faults__dropout": 0.3,
    "head__init": "he",
    "mask__uniforms": "per_client",
    "mask__client_state": "kept",  # their Adam's moments, too
    "model__trained_blocks": 1,
}


def test_what_clients_hold_is_kept_and_a_checkpoint_that_does_not_know_it_sends_snapshots(tmp_path):
    """Half of the clients per round: what each is told depends on the rounds before."""
    whole, cut, older = (tmp_path / name for name in ("whole", "cut", "older"))
    experiment.run(tiny_config(**FOLLOWED), whole)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, experiment, "play_until_enough", 3)
        with pytest.raises(Crash):
            experiment.run(tiny_config(**FOLLOWED), cut)
    subprocess.run(["cp", "-r", cut, older], check=True)
    experiment.run(tiny_config(**FOLLOWED), cut)
    assert outcome(cut) == outcome(whole)
    records = claim.lines(whole / "metrics.jsonl")
    assert all(record["downlink_bytes"] for record in records[2:]) and any(r["news_bpp"] for r in records)

    file = older / "checkpoints" / "2" / "ledger" / "metadata"
    ledger = json.loads(file.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "identity", lambda problem: known_by(ledger))
        with journal.Journal(older, tiny_config(**FOLLOWED)) as kept:
            arrays = kept.load(None).state
    ledger = {name: value for name, value in ledger.items() if name not in ("checksum", "held", "news")}
    since = "total_bytes", "snapshots", "news_bpp", "news_seconds", "down_seconds", "merge_seconds"
    shorter = [{k: v for k, v in record.items() if k not in since} for record in ledger["records"]]
    ledger |= {"format": 2, "records": shorter}
    del ledger["examples"]
    file.write_text(json.dumps(ledger | {"checksum": checkpoint._checksum_of(ledger, arrays)}))
    settings = json.loads((older / "config.json").read_text())
    files.write_json(older / "config.json", {k: v for k, v in settings.items() if k != "downlink"})
    summary = experiment.run(tiny_config(**FOLLOWED), older)
    later = claim.lines(older / "metrics.jsonl")
    assert later[3]["snapshots"] == later[3]["clients"] and later[3]["downlink_bytes"] > 0
    assert summary["total_bytes"] == sum(r["uplink_bytes"] + r["downlink_bytes"] for r in later)
    for expected, found in zip(records, later, strict=True):
        for name in expected:
            if not name.endswith("seconds") and name not in (*since, "downlink_bytes", "downlink_bpp"):
                assert found[name] == expected[name], name


def test_what_cannot_be_continued_is_refused_and_fresh_moves_it_aside(left, capsys):
    def refused(message, **changes):
        before = {p: p.read_bytes() for p in left.rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match=message) as caught:
            experiment.run(tiny_config(**CONFIG | changes), left)
        assert "--config.resume=fresh" in str(caught.value) and "\n" not in str(caught.value)
        kept = {p: p.read_bytes() for p in before if p.suffix not in (".png",)}
        log = left / "log.txt"  # says what was tried, behind all that it said before
        kept[log] = kept[log][: len(before[log])]
        assert {p: before[p] for p in kept} == kept

    refused(r"another config \(rounds is 4 there and 5 here; seed is 0 there and 1 here\)", rounds=5, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "READABLE", (5,))
        refused("checkpoints of format 4, this program reads 5")
    for other in ("problem", "examples"):
        with pytest.MonkeyPatch.context() as patch:
            known = known_by(json.loads((left / "checkpoints/2/ledger/metadata").read_text()))
            patch.setattr(
                checkpoint, "identity", lambda problem, other=other, known=known: known | {other: "x"}
            )
            refused("other data or weights")
    config = (left / "config.json").read_text()
    (left / "config.json").write_text(config[:100])
    refused("config.json is not JSON")
    (left / "config.json").unlink()
    refused("without its config.json")
    (left / "config.json").write_text(config)
    subprocess.run(["rm", "-r", left / "checkpoints"], check=True)
    refused("has 2 rounds in metrics.jsonl and no checkpoint that can be read")

    lines = (left / "metrics.jsonl").read_text()
    with pytest.MonkeyPatch.context() as patch:  # 'fresh' says what it moves, and moves it whole
        crash_at(patch, experiment, "set_up", 1)
        with pytest.raises(Crash):
            experiment.run(tiny_config(**CONFIG, resume="fresh"), left)
    assert (left.with_name("run.1") / "metrics.jsonl").read_text() == lines
    assert not (left / "metrics.jsonl").exists()
    held = "it holds checkpoints, clients.jsonl, config.json, environment.json, log.txt, metrics.jsonl"
    assert f"moving {left} aside to {left}.1: {held}" in capsys.readouterr().out


def test_a_mistyped_first_command_leaves_nothing_in_the_way(tmp_path):
    for data in ("digit", "nothing:here"):
        with pytest.raises(ValueError, match="unknown data set"):
            experiment.run(tiny_config(data=data), tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\xff"])
def test_a_damaged_summary_is_named_with_the_way_out(tmp_path, content):
    config = tiny_config()
    journal.Journal(tmp_path, config).__exit__()
    (tmp_path / "summary.json").write_bytes(content)
    for _ in range(2):  # it does not hold the workdir's lock
        with pytest.raises(ValueError, match=f"^{tmp_path}/summary.json is damaged, .*: remove it") as caught:
            journal.Journal(tmp_path, config)
    assert "\n" not in str(caught.value)
    (tmp_path / "summary.json").unlink()
    journal.Journal(tmp_path, config).__exit__()


def test_two_processes_cannot_share_a_workdir(tmp_path):
    lock = claim.claim(tmp_path, tiny_config())
    with pytest.raises(OSError, match="another process is running in it"):
        experiment.run(tiny_config(), tmp_path)
    os.close(lock)


def run_after(left, spoil, message):
    """Spoil the workdir once round 3 is played; the error is one line, and what was written before stays."""
    played = experiment.play_until_enough

    def play(*args):
        result = played(*args)
        spoil()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "play_until_enough", play)
        with pytest.raises(OSError, match=message) as caught:
            experiment.run(tiny_config(**CONFIG), left)
    assert "\n" not in str(caught.value)


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(left, uninterrupted, caplog, capfd):
    lines = left / "metrics.jsonl"

    def fill():  # /dev/full: every write fails as on a full disk
        lines.unlink()
        lines.symlink_to("/dev/full")

    run_after(left, fill, "No space left on device; mend that, then the same command continues after round 2")
    lines.unlink()
    saved, limit = journal.Journal._save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(journal, progress):  # the line fitted, the checkpoint does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
        try:
            saved(journal, progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal.Journal, "_save", save)
        run_after(left, lambda: None, "checkpoint of round 3 in .*: File too large; .* after round 2")
    assert "Traceback" not in caplog.text + capfd.readouterr().err  # orbax logs one before it raises
    experiment.run(tiny_config(**CONFIG), left)
    assert outcome(left) == uninterrupted


def test_a_workdir_that_disappears_is_not_made_again(left):
    run_after(
        left, lambda: subprocess.run(["rm", "-r", left], check=True), "is gone; the same command starts over"
    )
    assert not left.exists()


@pytest.mark.parametrize("error", [MemoryError("numpy has none"), "xla"])
def test_out_of_memory_names_the_settings_to_lower(left, error):
    def play(*args):
        if error == "xla":
            jax.numpy.zeros(1 << 50, "uint8").block_until_ready()  # a pebibyte
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "play_until_enough", play)
        with pytest.raises(MemoryError, match="config.cohort.chunk=1, lower .*needs another --workdir"):
            experiment.run(tiny_config(**CONFIG), left)
    assert len(claim.lines(left / "metrics.jsonl")) == 3


def test_logits_that_are_not_finite_stop_the_run_naming_the_round(left):
    def correctness(*args):
        def correct(state):
            raise FloatingPointError("the network's logits are not finite")

        return correct

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "correctness", correctness)
        with pytest.raises(FloatingPointError, match="round 3: the network's logits"):
            experiment.run(tiny_config(**CONFIG), left)


def test_disk_errors_of_a_lines_file_keep_their_cause(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        files.append(path, {"round": 1})
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_is_named_in_the_words_of_the_system(tmp_path):
    error = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [tensorstore_spec='{…}']")
    with journal.Journal(tmp_path, tiny_config()) as kept:
        assert ": No space left on device; mend that" in kept._cannot("write the checkpoint", error)
