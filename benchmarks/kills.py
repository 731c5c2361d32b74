"""The kill test of benchmarks/faults.py: SIGKILL at random moments, the same command again, the same result.

The digits with a tiny network, few clients and few rounds runs in a process that is killed at a random
moment (uniform in time, or a random while after a line or an unfinished checkpoint appears on the disk). The
same command is given again until it finishes; then from an empty folder, until there were enough kills.
Every finished run must equal the uninterrupted one: metrics.jsonl and summary.json apart from fields of
seconds, and the learned arrays and the picture of the last payload, byte for byte.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from deltamask_jax.workdir import claim

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "train_examples": 200,
    "test_examples": 100,
    "rounds": 6,
    "clients": 6,
    "model.name": "tiny_vit",  # random weights: what is learned does not matter here, that it is equal does
    "model.checkpoint": "",
    "model.trained_blocks": 1,
    "faults.dropout": 0.2,
    "head.epochs": 2,
}
MOMENTS = ("time", "line", "checkpoint", "time")  # what decides when the process is killed
COMPILED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def kill_test(kills: int, seed: int, scratch: Path) -> dict:
    """Kill until there were that many kills; the log of it."""
    draw = random.Random(seed)
    launch(scratch / "whole", scratch).wait()  # compiles; its outcome is the one to equal
    started = time.time()
    launch(scratch / "again", scratch).wait()
    seconds = time.time() - started
    expected, log, finished = outcome(scratch / "whole"), [], []
    finished.append(outcome(scratch / "again") == expected)
    run = 0
    while sum(row["killed"] for row in log) < kills:
        folder = scratch / f"run{run}"
        before = _state_of(folder)
        moment = MOMENTS[len(log) % len(MOMENTS)]
        started = time.time()
        process = launch(folder, scratch)
        _wait_for(moment, folder, before, process, draw, seconds)
        process.kill()
        killed = process.wait() == -signal.SIGKILL
        row = {"run": run, "moment": moment, "killed": killed, "seconds": round(time.time() - started, 2)}
        row |= {"before": before, "after": _state_of(folder)}
        if not killed:  # it had finished
            row["equal"] = outcome(folder) == expected
            finished.append(row["equal"])
            run += 1
        log.append(row)
        print(json.dumps(row), flush=True)
    while not (scratch / f"run{run}" / "summary.json").exists():  # the last one goes on to its end
        launch(scratch / f"run{run}", scratch).wait()
    finished.append(outcome(scratch / f"run{run}") == expected)
    return {
        "kills": sum(row["killed"] for row in log),
        "resumes": sum(row["before"]["lines"] > 0 for row in log) + 1,
        "finished_runs": len(finished),
        "equal_to_uninterrupted": sum(finished),
        "seconds_of_an_uninterrupted_run": round(seconds, 1),
        "settings": SETTINGS,
        "log": log,
    }


def outcome(folder: Path) -> str:
    """A hash of what a run must leave, whatever happened to it."""
    digest = hashlib.sha256()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in [*records, json.loads((folder / "summary.json").read_text())]:
        digest.update(json.dumps({k: v for k, v in record.items() if not k.endswith("seconds")}).encode())
    for path in sorted(folder.glob("*.safetensors")) + [folder / "payload.png"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def launch(folder: Path, scratch: Path) -> subprocess.Popen:
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "deltamask_jax.main", "--config=configs/digits.py"]
    environment = os.environ | COMPILED | {"JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    with (scratch / "output.txt").open("a") as output:
        return subprocess.Popen(
            [*command, f"--workdir={folder}", *settings],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _state_of(folder: Path) -> dict:
    saved = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    half = [p.name for p in folder.glob("checkpoints/*") if not p.name.isdigit()]
    lines = len(claim.lines(folder / "metrics.jsonl"))
    return {"lines": lines, "checkpoint": max(saved, default=None), "unfinished_checkpoints": len(half)}


def _wait_for(moment, folder, before, process, draw, seconds) -> None:
    """Return at a random moment of the process's life."""
    if moment == "time":
        try:
            process.wait(draw.uniform(0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            pass
        return
    target = before["lines"] + draw.randint(1, 2)
    while process.poll() is None:
        time.sleep(0.002)
        now = _state_of(folder)
        if moment == "line" and now["lines"] >= target:
            time.sleep(draw.uniform(0, 0.05))
            return
        if moment == "checkpoint" and now["unfinished_checkpoints"] and now["lines"] >= target:
            time.sleep(draw.uniform(0, 0.02))
            return
