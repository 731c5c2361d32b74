"""Runs as they leave their workdirs, without running anything."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from deltamask_jax import config as config_lib
from deltamask_jax.reporting import table
from tests.conftest import tiny_config


def write_run(workdir, *, seed=0, rounds=3, finished=True, **changes):
    """A workdir as a run leaves it, without the run."""
    workdir.mkdir(parents=True)
    config = tiny_config(seed=seed, rounds=3, **changes)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    (workdir / "environment.json").write_text(json.dumps({"jax": "0.10", "commit": "f00", "command": "x"}))
    lines, diagnostics = [], []
    for r in range(rounds + 1):
        sent = {"uplink_bytes": 1000, "uplink_bpp": 0.5, "downlink_bytes": 9000, "downlink_bpp": 2.0}
        timing = {"seconds": 2.0, "train_seconds": 1.5, "encode_seconds": 0.2}
        accuracy = None if r == 1 else 0.5 + 0.1 * r + 0.01 * seed
        line = {"round": r, "accuracy": accuracy, "train_loss": 1.0, "flip_rate": 0.01 if r else None}
        lines.append(line | sent | timing)
        layers = {"theta_histogram": {"a/kernel": [r] * 16}, "flip_rate_by_layer": {"a/kernel": 0.01 * r}}
        diagnostics += [{"round": r, **layers}] if r else []
    lines = [lines[-1] | {"accuracy": 0.01}, *lines]  # a resumed run repeats rounds: the later line counts
    clients = [{"round": r, "clients": [0, r % 3], "down": [9, 9], "up": [1, 2]} for r in range(rounds + 1)]
    for name, rows in (("metrics", lines), ("diagnostics", diagnostics), ("clients", clients)):
        (workdir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = {"linear_probe_accuracy": 0.6, "mean_flip_entropy_bpp": 0.08}
        (workdir / "summary.json").write_text(json.dumps(summary))
        clients = [{"examples": 3, "labels": [1, 2], "indices": [0, 1, 2]}] * 4
        (workdir / "split.json").write_text(json.dumps({"class_names": ["<b>", "b"], "clients": clients}))
        Image.fromarray(np.arange(90_000, dtype=np.uint8).reshape(100, 900)).save(workdir / "payload.png")


def a_run(name, accuracy=0.5, *, finished=True, **changes):
    """What `load` gives, without a folder."""
    sent = {"uplink_bytes": 1000, "uplink_bpp": 0.5, "downlink_bytes": 9000, "downlink_bpp": 2.0}
    line = {"accuracy": accuracy, "train_loss": 1.0, "seconds": 2.0, **sent}
    return table.Run(
        name=name,
        workdir=Path(name),
        config=config_lib.flatten(tiny_config(**changes)),
        records=[{"round": r, **line} for r in (0, 1)],
        summary={"linear_probe_accuracy": 0.6} if finished else None,
        diagnostics=[],
        traffic={},
        environment={},
        split=None,
        class_names=[],
        left_out=[],
    )
