"""The ledger of a run: bytes, accuracy and seconds, as files anyone can read and pictures of them."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def bits_per_parameter(num_bytes: int, clients: int, d: int) -> float:
    """Measured payload bits a client a masked weight: 8 · bytes / (clients · d)."""
    return 8 * num_bytes / (clients * d)


def binary_entropy(p: float) -> float:
    """H(p) in bits, the least an exact code of independent flips at rate p could average."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def fairness(correct: np.ndarray, shares: list[np.ndarray]) -> dict[str, float]:
    """How evenly accuracy is spread over clients, each on its own share of the test examples.

    Args:
        correct: bool[m], which test examples the network gets right.
        shares: each client's indices into them; clients without any are left out.

    Returns:
        `client_accuracy_mean`, `_worst` (mean of the worst tenth of clients, at least one), `_variance`,
        `_jain` (Jain's index (Σa)² / (k Σa²) of k clients: 1 where all are equal, 1/k where one has
        everything), and how many `clients_tested`.
    """
    accuracy = np.sort([correct[share].mean() for share in shares if len(share)])
    squares = float(np.sum(accuracy**2))
    return {
        "client_accuracy_mean": float(np.mean(accuracy)),
        "client_accuracy_worst": float(np.mean(accuracy[: -(-len(accuracy) // 10)])),
        "client_accuracy_variance": float(np.var(accuracy)),
        "client_accuracy_jain": float(np.sum(accuracy)) ** 2 / (len(accuracy) * squares) if squares else 1.0,
        "clients_tested": len(accuracy),
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, on the disk when this returns."""
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("w") as file:
        file.write(text)
        _sync(file)
    scratch.replace(path)


def finite(value: Any) -> Any:
    """A value as JSON can say it: None in the place of every NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None where there are none."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of a value: every number that is none becomes null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line, on the disk when this returns."""
    with path.open("a") as file:
        file.write(to_json(record) + "\n")
        _sync(file)


def rewrite(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines by these, whole or not at all."""
    write_text(path, "".join(to_json(record) + "\n" for record in records))


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def draw_curves(path: Path, records: list[dict[str, Any]], linear_probe: float, title: str) -> None:
    """Accuracy against rounds and against megabytes sent so far, as a PNG.

    Args:
        records: the lines of metrics.jsonl.
        linear_probe: accuracy drawn as the lower bracket.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    up = np.cumsum([r["uplink_bytes"] for r in records]) / 1e6
    down = np.cumsum([r["downlink_bytes"] for r in records]) / 1e6
    evaluated = [i for i, r in enumerate(records) if r["accuracy"] is not None]
    accuracy = [100 * records[i]["accuracy"] for i in evaluated]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot([records[i]["round"] for i in evaluated], accuracy, marker=".")
    left.set(xlabel="round", ylabel="test accuracy (%)")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.plot(up[evaluated], accuracy, marker=".", label="uplink")
    right.plot((up + down)[evaluated], accuracy, marker=".", label="uplink + downlink")
    right.set(xlabel="megabytes sent, all clients together", xscale="log")
    for axes in (left, right):
        axes.axhline(100 * linear_probe, color="gray", linestyle="--", label="linear probe")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns of text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
