"""The picture a run leaves: its curves as a PNG."""

from pathlib import Path
from typing import Any

import numpy as np


def draw_curves(path: Path, records: list[dict[str, Any]], linear_probe: float | None, title: str) -> None:
    """Accuracy against rounds and against megabytes sent so far, as a PNG.

    Args:
        records: the lines of metrics.jsonl.
        linear_probe: accuracy drawn as the lower bracket; None: there is none.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    up = np.cumsum([r["uplink_bytes"] for r in records]) / 1e6
    down = np.cumsum([r["downlink_bytes"] for r in records]) / 1e6
    evaluated = [i for i, r in enumerate(records) if r["accuracy"] is not None]
    accuracy = [100 * records[i]["accuracy"] for i in evaluated]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([records[i]["round"] for i in evaluated], accuracy, marker=".")
    left.set(xlabel="round", ylabel="accuracy (%)")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.plot((up + down)[evaluated], accuracy, marker=".", label="up and down")
    right.plot(up[evaluated], accuracy, marker=".", label="up alone", alpha=0.5)
    right.set(xlabel="megabytes sent, all clients together", xscale="log")
    for axes in (left, right):
        if linear_probe is not None:
            axes.axhline(100 * linear_probe, color="gray", linestyle="--", label="linear probe")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)
