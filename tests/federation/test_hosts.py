"""Several processes on one run: what must be the same, and how the same commands continue it."""

import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from deltamask_jax.federation import hosts
from deltamask_jax.workdir import checkpoint, journal
from tests.federation.test_peers import free_port, together
from tests.workdir.test_journal import outcome


@pytest.fixture
def as_two(monkeypatch):
    """Calls a function in two processes, which are threads here; returns what each returned or raised."""
    pair, here = together(2, free_port()), threading.local()

    def both(function):
        results = [None, None]

        def call(index):
            here.peers = pair[index]
            try:
                results[index] = function(index)
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=call, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    class Here:
        def __getattr__(self, name):
            return getattr(here.peers, name)

    monkeypatch.setattr(hosts, "_others", Here())
    yield both
    both(lambda index: hosts.leave())


def test_what_differs_is_named_in_every_process(as_two):
    assert as_two(lambda index: hosts.agree({"a": 1, "b": float("nan")})) == [None, None]
    facts = [{"config.seed": 0, "jax": "1", "a": None}, {"config.seed": 3, "jax": "1"}]
    for error in as_two(lambda index: hosts.agree(facts[index])):
        assert isinstance(error, ValueError)
        assert str(error).startswith(
            "process 1 differs (config.seed is 3 there and 0 in process 0; a is 'absent' there and None in "
        )


def test_every_process_gets_the_progress_that_process_0_loaded(as_two):
    state = {
        "state/theta": np.arange(5, dtype=np.uint16),
        "state/step": np.array(7),
        "head/bias": np.asarray(np.arange(3), "bfloat16"),
    }
    saved = checkpoint.Progress(state, {}, 0.5, [{"round": 3, "loss": 0.1 + 0.2}], 1 / 3)
    for got in as_two(lambda index: journal._sent_by_first(None if index else saved)):
        assert (got.round, got.records, got.seconds) == (3, saved.records, saved.seconds)
        assert got.state.keys() == state.keys() and list(got.head) == ["bias"]
        for name, array in got.state.items():
            assert array.dtype == state[name].dtype and array.shape == state[name].shape
            np.testing.assert_array_equal(array, state[name])
    assert as_two(lambda index: journal._sent_by_first(None)) == [None, None]


def test_incomplete_addresses_are_refused():
    for coordinator in ("localhost", ":1", "localhost:x"):
        with pytest.raises(ValueError, match="must be HOST:PORT"):
            hosts.start(coordinator, 2, 0)


@pytest.mark.parametrize("numbers", [(2, None), (None, 0), (None, 3), (2, 0), (1, 3), (1, -1), (0, None)])
def test_numbers_of_processes_without_a_coordinator_are_refused(numbers):
    with pytest.raises(ValueError, match="need --coordinator=HOST:PORT"):
        hosts.start("", *numbers)


@pytest.mark.parametrize("numbers", [(None, None), (1, None), (1, 0)])
def test_one_process_needs_no_coordinator(numbers):
    hosts.start("", *numbers)
    assert hosts.count() == 1


OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.fixture
def no_cluster(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("OMPI_", "SLURM_", "JAX_COORD", "KUBERN"))]:
        monkeypatch.delenv(name)


def test_auto_reads_what_open_mpi_sets(monkeypatch, no_cluster):
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    port = 1531576320 // 2**12 % 2**12 + 65535 - 2**12 + 1  # jax makes it from the number of the job
    assert hosts._cluster(5) == (f"10.96.0.1:{port}", 4, 3)
    assert told == {"jax_cuda_visible_devices": "1", "jax_rocm_visible_devices": "1"}  # a GPU each
    joined = []
    monkeypatch.setattr(hosts.peers, "join", lambda *arguments: joined.append(arguments))
    hosts.start("auto", None, None, 5)
    assert joined == [("10.96.0.1", port, 3, 4, 5)]


def test_auto_without_a_cluster_says_so(no_cluster):
    with pytest.raises(ValueError, match="^--coordinator=auto: jax finds no cluster here; give HOST:PORT"):
        hosts.start("auto", None, None, 5)


@pytest.mark.parametrize(
    "name, value",
    [("OMPI_MCA_orte_hnp_uri", "7.0;x"), ("OMPI_COMM_WORLD_SIZE", "x"), ("OMPI_COMM_WORLD_RANK", None)],
)
def test_auto_in_half_a_cluster_is_told_in_one_line(monkeypatch, no_cluster, name, value):
    for variable, usual in OPEN_MPI.items():
        monkeypatch.setenv(variable, usual)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="^--coordinator=auto: jax cannot read this cluster .*; give HOST:PORT"
    ):
        hosts.start("auto", None, None, 5)


RUN = """
import os, signal, sys
import jax
from deltamask_jax.workdir import journal
from deltamask_jax import experiment
from deltamask_jax.federation import hosts
from tests.conftest import tiny_config

port, index, folder, seed, victim, which = sys.argv[1:]
settings = dict(rounds=3, clients=4, head__init="he", model__trained_blocks=1, checkpoint__every=2)
original = experiment.play_until_enough

def play(problem, method, state, number, memory):
    if number == 3 and index == victim:  # round 2 is in a checkpoint
        os.kill(os.getpid(), getattr(signal, which))
        signal.pause()
    return original(problem, method, state, number, memory)

experiment.play_until_enough = play
hosts.start(f"localhost:{port}", 2, int(index))
try:
    with hosts.ending_together():
        experiment.run(tiny_config(**settings, seed=int(seed)), hosts.workdir(folder))
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
"""


def run_both(folder, victim="", which="", seeds=(0, 0)):
    """(status, stderr) of each."""
    port = free_port()
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "xla")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, (port, index, folder, seeds[index], victim, which))],
            env=os.environ | cache | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_the_same_commands_continue_bit_for_bit_whichever_process_ended(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "run"
    assert [status for status, _ in run_both(whole)] == [0, 0]
    for victim, which, status, line in [
        (1, "SIGKILL", -signal.SIGKILL, "error: process 1 died; stopped after round 2; the same command"),
        (0, "SIGKILL", -signal.SIGKILL, "error: process 0 died; the same commands continue"),
        (1, "SIGTERM", 143, "error: process 1 stopped: SIGTERM; stopped after round 2; the same command"),
    ]:
        results = run_both(cut, victim, which)
        assert results[victim][0] == status and results[1 - victim][0] == 1, results
        assert line in results[1 - victim][1] and "Traceback" not in results[1 - victim][1]
    subprocess.run(["rm", "-r", f"{cut}.process1"], check=True)  # nobody needs it to continue
    assert [status for status, _ in run_both(cut)] == [0, 0]
    first, second = outcome(whole), outcome(cut)
    assert first == second == outcome(cut.with_name("run.process1"))
    assert not (tmp_path / "run.process1" / "checkpoints").exists()
    assert [status for status, _ in run_both(cut)] == [0, 0]  # finished: both say so and leave

    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    for status, text in run_both(cut, seeds=(0, 1)):
        assert status == 1 and "config.seed is 1 there and 0 in process 0" in text, text
        assert "Traceback" not in text and len([x for x in text.splitlines() if "error" in x]) == 1
    assert before == {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}


def test_alone_nothing_is_exchanged():
    assert (hosts.count(), hosts.index()) == (1, 0)
    assert hosts.exchange([b"x"]) == [b"x"]
    with hosts.ending_together(), hosts.before_exit(lambda: ""):
        hosts.agree({"a": object()})
    assert str(hosts.workdir("runs/a")) == "runs/a"


def test_incomplete_flags_and_small_cohorts_are_refused(monkeypatch):
    for processes, process in ((None, None), (2, None), (2, 2)):
        with pytest.raises(ValueError, match="--processes=N"):
            hosts.start("localhost:1", processes, process)
    for processes, process in ((2, 1), (2, None), (None, 1)):
        with pytest.raises(ValueError, match="need --coordinator"):
            hosts.start("", processes, process)
    hosts.start("", 1, 0)
    monkeypatch.setattr(hosts, "count", lambda: 3)
    with pytest.raises(ValueError, match="a cohort of 2"):
        hosts.share(2)


def test_shares_are_blocks_that_cover_the_cohort(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 3)
    rows = []
    for process in range(3):
        monkeypatch.setattr(hosts, "index", lambda process=process: process)
        rows.append(np.arange(10)[hosts.share(10)])
    assert [len(block) for block in rows] == [3, 3, 4]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(10))
