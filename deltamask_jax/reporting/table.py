"""A table of runs, from what they left in their workdirs: one row per group, which differs only in seeds.

Unfinished runs are read as far as they are. Nothing is recomputed.
"""

import dataclasses
import itertools
import json
import os
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deltamask_jax import config as config_lib
from deltamask_jax import metrics
from deltamask_jax.paths import expanded
from deltamask_jax.reporting import figures
from deltamask_jax.workdir import claim

# Runs that differ only here form a group.
_NOT_OF_THE_METHOD = ("seed", "tensorboard", "wandb", "prefix_cache", "data_dir", *claim.FREE)
_MOST_GROUPS = 24  # in one picture: there are as many colours and dashes
_SENT = {f"{way}_{unit}" for way in ("uplink", "downlink") for unit in ("bytes", "bpp")}
_NEEDED = {"round", "accuracy", "train_loss", "seconds", *_SENT}  # of a line of metrics.jsonl
_SEED_SUFFIX = re.compile(r"(?:^|[-_./])(?:s|seed)[-_=]?(\d+)$")


@dataclasses.dataclass(frozen=True)
class Run:
    """What one workdir holds.

    Attributes:
        name: path below the folder all runs share.
        config: dotted name -> value.
        records: lines of metrics.jsonl, one per round, in order.
        summary: summary.json, or None while the run is unfinished.
        diagnostics: lines of diagnostics.jsonl, one per round.
        traffic: client -> in how many rounds it was asked, MB down and MB up.
        environment: environment.json.
        split: each client's label counts, or None.
        class_names: of the labels.
        left_out: what was damaged, in words.
    """

    name: str
    workdir: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    diagnostics: list[dict[str, Any]]
    traffic: dict[int, tuple[int, float, float]]
    environment: dict[str, Any]
    split: list[list[int]] | None
    class_names: list[str]
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    style: figures.Style
    runs: list[Run]
    part: str = ""  # which groups it shares pictures with


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Every workdir among and below the given folders, sorted.

    Raises:
        ValueError: a folder holds no run.
    """
    found: list[Path] = []
    for path in map(expanded, paths):
        runs = sorted(file.parent for file in path.rglob("metrics.jsonl"))
        if not runs:
            raise ValueError(f"no run in {path}: it holds no metrics.jsonl")
        found += [run for run in runs if run not in found]
    return found


def load_whole(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, and what is left out, in words.

    Raises:
        ValueError: no run can be read.
    """
    parent = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    runs, left_out = [], []
    for folder in folders:
        try:
            run = load(folder, str(folder.absolute().relative_to(parent)))
        except (ValueError, OSError) as error:
            left_out.append(str(error))
            continue
        runs.append(run)
        left_out += [f"{run.name}: {what}" for what in run.left_out]
    if not runs:
        raise ValueError("; ".join(left_out))
    return runs, left_out


def load(workdir: Path, name: str) -> Run:
    """Read a workdir. Of several lines about one round (a resumed run) the last counts, and none from a torn
    line on.

    Raises:
        ValueError: a file is damaged.
    """
    left_out: list[str] = []

    def read(file: str, default: Any) -> Any:
        path = workdir / file
        if not path.exists():
            return default
        try:
            value = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON ({error})") from None
        if not isinstance(value, dict):
            raise TypeError(f"{file} is no JSON object")
        return value

    def lines(file: str, needed: set[str]) -> list[dict[str, Any]]:
        path = workdir / file
        whole = list(itertools.takewhile(lambda line: needed <= line.keys(), claim.lines(path)))
        torn = (len(path.read_bytes().splitlines()) if path.exists() else 0) - len(whole)
        if torn:
            left_out.append(f"{torn} damaged line{'s' * (torn > 1)} at the end of {file}")
        return [line for _, line in sorted({line["round"]: line for line in whole}.items())]

    try:
        split = read("split.json", {})
        run = Run(
            name=name,
            workdir=workdir,
            config=config_lib.flatten(ConfigDict(read("config.json", {}))),
            records=lines("metrics.jsonl", _NEEDED),
            summary=claim.summary_of(workdir),
            diagnostics=lines("diagnostics.jsonl", {"round", "theta_histogram", "flip_rate_by_layer"}),
            traffic=_traffic(lines("clients.jsonl", {"round", "clients", "down", "up"})),
            environment=read("environment.json", {}),
            split=[client["labels"] for client in split["clients"]] if split else None,
            class_names=list(map(str, split.get("class_names", []))),
            left_out=left_out,
        )
        results = _results(run) if run.records else {}
        values = [*results.values(), *(value for record in run.records for value in record.values())]
        if any(isinstance(value, str | list) for value in values):
            raise TypeError("something else stands in the place of a number")
        return run
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{workdir} holds a damaged file: {error}") from None


def _traffic(lines: list[dict[str, Any]]) -> dict[int, tuple[int, float, float]]:
    """Of each client, in how many rounds it was asked (the head's aside), MB down and MB up."""
    found: dict[int, tuple[int, float, float]] = {}
    for line in lines:
        for client, down, up in zip(line["clients"], line["down"], line["up"], strict=True):
            asked, before, sent = found.get(client, (0, 0.0, 0.0))
            found[client] = asked + (line["round"] > 0), before + down / 1e6, sent + up / 1e6
    return found


def group(runs: list[Run]) -> list[Group]:
    """Runs by their settings apart from the seed, in order of appearance; named after their folders.

    Several of one seed count once: the first that finished, or where none did, the first.
    """
    together: dict[str, dict[Any, Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in _NOT_OF_THE_METHOD}
        seeds = together.setdefault(json.dumps(settings, sort_keys=True, default=str), {})
        same = seeds.setdefault(run.config.get("seed"), run)
        if same.summary is None and run.summary is not None:
            seeds[run.config.get("seed")] = run
    groups = [list(seeds.values()) for seeds in together.values()]
    labels = [_without_seed(members[0]) for members in groups]
    labels = [
        label if label and labels.count(label) == 1 else members[0].name
        for label, members in zip(labels, groups, strict=True)
    ]
    place = {label: (part, i) for part, its in _parts(labels).items() for i, label in enumerate(its)}
    return [
        Group(label, figures.style(place[label][1]), members, place[label][0])
        for label, members in zip(labels, groups, strict=True)
    ]


def _without_seed(run: Run) -> str:
    """A run's name without the number of its seed at the end: 'lr3/seed0' -> 'lr3', but 'vit_s14' stays."""
    seed = _SEED_SUFFIX.search(run.name)
    return run.name[: seed.start()] if seed and seed[1] == str(run.config.get("seed")) else run.name


def _parts(labels: list[str], part: str = "", depth: int = 0) -> dict[str, list[str]]:
    """Labels by the folders they begin with, or in their order, so that a picture can tell each part's apart.

    Args:
        part: that all of them are in.
        depth: folders in its name.
    """
    if len(labels) <= _MOST_GROUPS:
        return {part: labels}
    inside: dict[str, list[str]] = {}
    for label in labels:
        inside.setdefault("/".join(label.split("/")[: depth + 1]), []).append(label)
    if len(inside) == len(labels):
        starts = range(0, len(labels), _MOST_GROUPS)
        return {f"{part} {i}".strip(): labels[at : at + _MOST_GROUPS] for i, at in enumerate(starts, 1)}
    divided: dict[str, list[str]] = {}
    for name, its in inside.items():
        divided |= _parts(its, name, depth + 1)
    return divided


def summary_row(members: Group) -> dict[str, str]:
    """One line of the summary table: means over seeds, ± their sample standard deviation. Once a seed has
    finished, over those that have."""
    finished = [run for run in members.runs if run.summary is not None]
    per_run = [_results(run) for run in finished or members.runs if run.records]
    of = f" of {len(members.runs)}" if 0 < len(finished) < len(members.runs) else ""
    row = {"runs": f"{len(finished or members.runs)}{of}" + " unfinished" * (not finished)}
    for column, form in _COLUMNS.items():
        values = [value for result in per_run if (value := result.get(column)) is not None]
        if not values:
            row[column] = "–"
            continue
        spread = f" ± {form(statistics.stdev(values))}" if len(set(values)) > 1 else ""
        row[column] = form(statistics.fmean(values)) + spread
    return row


def columns(rows: list[dict[str, str]]) -> list[str]:
    """The columns of a table of such rows: those that only some runs have, where one of these has them."""
    return [name for name in rows[0] if name not in _OF_SOME or any(row[name] != "–" for row in rows)]


_OF_SOME = {
    "ε": "{:.3g}".format,
    "worst tenth of clients, %": "{:.2f}".format,
    "Jain's index": "{:.3f}".format,
    "clients of few examples, %": "{:.2f}".format,
    "minority classes, %": "{:.2f}".format,
}
_COLUMNS = {
    "final accuracy, %": "{:.2f}".format,
    "best, %": "{:.2f}".format,
    "linear probe, %": "{:.2f}".format,
    "up and down, MB": metrics.three_digits,
    "per client, MB": metrics.three_digits,
    "up, bpp": "{:.3g}".format,
    "H(flips), bpp": "{:.3g}".format,
    "down, bpp": "{:.3g}".format,
    "up, MB": metrics.three_digits,
    "down, MB": metrics.three_digits,
    "s per round": "{:.2f}".format,
    "rounds": "{:.0f}".format,
    **_OF_SOME,
}
_FAIRNESS = dict(zip(list(_OF_SOME)[1:], ("worst", "jain", "smallest", "minority"), strict=True))


def _results(run: Run) -> dict[str, float | None]:
    """The numbers of one run, from its records, so that unfinished runs have them as well."""
    accuracies = [100 * r["accuracy"] for r in run.records if r["accuracy"] is not None]
    after_head = run.records[1:] or run.records
    summary = run.summary or {}
    sent = sum(r["uplink_bytes"] + r["downlink_bytes"] for r in run.records)
    probe = summary.get("linear_probe_accuracy")
    return {
        "final accuracy, %": accuracies[-1] if accuracies else None,
        "best, %": max(accuracies, default=None),
        "linear probe, %": None if probe is None else 100 * probe,
        "up and down, MB": sent / 1e6,
        "per client, MB": sent / 1e6 / run.config["clients"] if run.config.get("clients") else None,
        "up, bpp": metrics.mean(r["uplink_bpp"] for r in after_head),
        "H(flips), bpp": summary.get("mean_flip_entropy_bpp"),
        "down, bpp": metrics.mean(r["downlink_bpp"] for r in after_head),
        "up, MB": sum(r["uplink_bytes"] for r in run.records) / 1e6,
        "down, MB": sum(r["downlink_bytes"] for r in run.records) / 1e6,
        "s per round": statistics.median(r["seconds"] for r in after_head),
        "rounds": run.records[-1]["round"],
        "ε": run.records[-1].get("epsilon"),
        **{column: _last(run.records, name) for column, name in _FAIRNESS.items()},
    }


def _last(records: list[dict[str, Any]], name: str) -> float | None:
    """A figure of fairness at the last evaluation, in percent but for Jain's index."""
    values = (record.get(f"client_accuracy_{name}") for record in reversed(records))
    value = next((value for value in values if value is not None), None)
    return value if value is None or name == "jain" else 100 * value
