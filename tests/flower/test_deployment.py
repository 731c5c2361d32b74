"""Real processes on loopback: SuperLink, SuperNodes and `flwr run` give the simulation, bit for bit."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from deltamask_jax import experiment
from deltamask_jax.federation import faults

pytest.importorskip("flwr", reason="needs the flower extra")

from deltamask_jax.flower import run_config  # noqa: E402
from tests.flower.grid import RUN  # noqa: E402

pytestmark = pytest.mark.slow

APP = Path(__file__).parents[2] / "flower-app"
PATIENCE = 900  # seconds; every message starts a process that imports jax
TINY = (
    "clients=3,local_epochs=1,batch_size=8,train_examples=60,test_examples=40,model.trained_blocks=1,"
    "head.epochs=2,cohort.chunk=1,checkpoint.keep=9"
)


class Federation:
    """A SuperLink and SuperNodes, each in a process group of its own."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.nodes = folder, free_port(), {}
        (folder / "home").mkdir()
        connection = (
            f'[superlink]\ndefault = "t"\n[superlink.t]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        (folder / "home" / "config.toml").write_text(connection)
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        options = ["--insecure", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        self.superlink = self.start("superlink", "flower-superlink", *options)

        def healthy():
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200

        wait_until(healthy)

    def start(self, name: str, *command: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def node(self, client: int) -> None:
        options = ["--insecure", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        self.nodes[client] = self.start(
            f"node{client}", "flower-supernode", *options, "--node-config", f"partition-id={client}"
        )

    def run(self, workdir: Path, changes: str, deadline: float) -> subprocess.Popen:
        settings = f'changes="{changes}" workdir="{workdir}" deadline={deadline} patience={PATIENCE}.0'
        return self.start("run", "flwr", "run", str(APP), "t", "--stream", "--run-config", settings)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def free_port() -> int:
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return link.getsockname()[1]


def wait_until(happened) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.5)


def family(pid: int) -> list[int]:
    """A process and all that descend from it, as /proc says."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    its = Federation(tmp_path_factory.mktemp("federation"))
    try:
        for client in range(3):
            its.node(client)
        yield its
    finally:
        for process in (*its.nodes.values(), its.superlink):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def arrays_of(workdir: Path) -> list[dict[str, np.ndarray]]:
    """The checkpoint after each round: server state and head."""
    rounds = sorted(map(int, os.listdir(workdir / "checkpoints")))
    manager = ocp.CheckpointManager((workdir / "checkpoints").absolute())
    arguments = ocp.args.Composite(arrays=ocp.args.StandardRestore())
    return [dict(manager.restore(number, args=arguments).arrays) for number in rounds]


def lines_of(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_same(simulated: Path, real: Path, names: list[str]) -> None:
    for number, (ours, theirs) in enumerate(zip(arrays_of(simulated), arrays_of(real), strict=True)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(theirs[name], array, err_msg=f"round {number}: {name}")
    assert (simulated / "payload.png").read_bytes() == (real / "payload.png").read_bytes()
    for ours, theirs in zip(lines_of(simulated), lines_of(real), strict=True):
        assert [ours[name] for name in names] == [theirs[name] for name in names]


LEDGER = [
    "accuracy",
    "train_loss",
    "merged",
    "lost",
    "rejected",
    "uplink_bytes",
    "downlink_bytes",
    "snapshots",
]


@pytest.mark.parametrize(
    "changes", ["rounds=3", "rounds=1,method=fedavg", "rounds=1,method=peft,peft.scope=suffix"]
)
def test_the_deployment_is_the_simulation(federation, tmp_path, changes):
    changes = f"{TINY},{changes}"
    run = federation.run(tmp_path / "real", changes, PATIENCE)
    assert run.wait(3 * PATIENCE) == 0, federation.log("run")
    experiment.run(run_config.config_of(RUN | {"changes": changes}), tmp_path / "simulated")
    assert_same(tmp_path / "simulated", tmp_path / "real", LEDGER)
    lines = lines_of(tmp_path / "real")
    messages = 3 + 3 * len(
        lines
    )  # who each node is, and the rounds'; the head's bytes are counted before it travels
    for way, most in (("uplink", 450), ("downlink", 900)):
        beside = sum(line[f"transport_{way}_bytes"] - line[f"{way}_bytes"] for line in lines)
        assert 0 < beside < most * messages


def test_nodes_that_die_return_send_garbage_or_are_slow_cost_their_own_updates(
    federation, tmp_path, monkeypatch
):
    changes = f"{TINY},rounds=4,attack.kind=corrupt,attack.share=0.34"
    began = {name: len(federation.log(name)) for name in ("node0", "node2")}
    run = federation.run(tmp_path / "real", changes, deadline=180.0)

    def trains(name: str, number: int):
        return lambda: f"ROUND {number}]" in federation.log(name)[began[name] :] or run.poll() is not None

    wait_until(trains("node2", 2))
    os.killpg(federation.nodes[2].pid, signal.SIGKILL)  # in mid-round
    federation.nodes[2].wait()
    wait_until(lambda: len(lines_of(tmp_path / "real")) > 2 or run.poll() is not None)
    federation.node(2)
    wait_until(trains("node0", 4))
    _, *slow = family(federation.nodes[0].pid)  # all but the SuperNode, which says that it is there
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)  # too slow for the deadline
    code = run.wait(5 * PATIENCE)
    for pid in slow:
        os.kill(pid, signal.SIGCONT)
    assert code == 0 and slow, federation.log("run")
    lines = lines_of(tmp_path / "real")
    assert [line["lost"] for line in lines[1:]] in (
        [{}, {"no answer": 1}, {}, {"late": 1}],
        [{}, {"no answer": 1}, {"no answer": 1}, {"late": 1}],  # it returned after round 3 began
    )
    lost = {2: {2: "no answer"}, 4: {0: "late"}}
    if lines[3]["lost"]:
        lost[3] = {2: "no answer"}

    def draw(config, plan, cohort):
        gone = lost.get(cohort.round, {})
        steps = np.where(np.isin(cohort.clients, list(gone)), 0, plan.steps)
        return faults.dataclasses.replace(plan, steps=steps), dict(gone)

    monkeypatch.setattr(faults, "draw", draw)
    experiment.run(run_config.config_of(RUN | {"changes": changes}), tmp_path / "simulated")
    assert_same(tmp_path / "simulated", tmp_path / "real", LEDGER[:-2])
    assert any(line["rejected"] for line in lines[1:])  # garbage
