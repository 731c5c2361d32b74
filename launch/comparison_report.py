"""The table and the picture of launch/compare.py, from what the runs wrote."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # no pyplot: no global state, no display
from ml_collections import ConfigDict

from deltamask_jax import config as config_lib
from deltamask_jax import metrics
from deltamask_jax.reporting import figures

MARKERS = "osD^v<>Pp*Xhd"
SHARES = (0.95, 0.99)  # of what full training gains over the linear probe


def summarise(runs: dict[tuple[str, int], Path], labels: dict[str, str]) -> dict[str, Any]:
    """One row per method, over its finished runs.

    What is asked of every method is the cost of 95 and 99 % of what full training (`fedavg`) gains over the
    linear probe; where `fedavg` is not compared or gains nothing, that of the probe's accuracy. The probe is
    the method `linear_probe`, or where it is not compared, that beside most runs (`figures.usual_probe`).

    Args:
        runs: (method, seed) -> workdir.
        labels: {method: what it is called}, in the order of the table.
    """
    found = {key: _read(workdir) for key, workdir in runs.items()}
    beside = [(_settings(runs[key]), summary["linear_probe_accuracy"]) for key, (summary, _) in found.items()]
    probe, full = _final(found, "linear_probe") or figures.usual_probe(beside), _final(found, "fedavg")
    targets = {"the probe": probe}
    if full is not None and full > probe:
        targets = {f"{share:.0%} of the gain": probe + share * (full - probe) for share in SHARES}
    rows = []
    for name, label in labels.items():
        mine = {seed: run for (method, seed), run in sorted(found.items()) if method == name}
        if mine:
            row = _row(list(mine.values()), targets)
            rows.append({"method": name, "label": label, "seeds": list(mine), **row})
    return {
        "targets": targets,
        "linear_probe_accuracy": probe,
        "full_training_accuracy": full,
        "masked_parameters": next(iter(found.values()))[0]["masked_parameters"],
        "rows": rows,
    }


def _final(found: dict, method: str) -> float | None:
    """Mean accuracy of a method's last rounds, with its best settings; None where it is not compared."""
    accuracy: dict[str, list[float]] = {}
    for (name, _), (summary, _) in found.items():
        if name.split(":")[0] == method:
            accuracy.setdefault(name, []).append(summary["final_accuracy"])
    return max((float(np.mean(its)) for its in accuracy.values()), default=None)


def _read(workdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        _row([(summary, records)], {})  # whether everything is there
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{workdir} holds a damaged file ({error}); move the folder away to repeat the run"
        ) from None
    return summary, records


def _settings(workdir: Path) -> dict[str, Any]:
    """A run's config, dotted name -> value."""
    return config_lib.flatten(ConfigDict(json.loads((workdir / "config.json").read_text())))


def _row(runs: list[tuple[dict, list[dict]]], targets: dict[str, float]) -> dict[str, Any]:
    summaries = [summary for summary, _ in runs]
    accuracy = [summary["final_accuracy"] for summary in summaries]
    spent = [_spent(records) for _, records in runs]
    timed = [records[2:] or records[1:] for _, records in runs]  # the first round compiles
    row = {
        "accuracy": float(np.mean(accuracy)),
        "accuracy_spread": float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else None,
        "accuracy_of_seeds": accuracy,
        "best_accuracy": float(np.mean([s["best_accuracy"] for s in summaries])),
        **{key: float(np.mean([s[key] for s in spent])) for key in spent[0]},
        "to": {label: _cost([records for _, records in runs], target) for label, target in targets.items()},
        **{key: metrics.mean(s[f"mean_{key}"] for s in summaries) for key in ("uplink_bpp", "downlink_bpp")},
        "seconds_per_round": metrics.mean(
            float(np.median([record["seconds"] for record in its])) if its else None for its in timed
        ),
        "curve": _curve([records for _, records in runs]),
    }
    if row["curve"] and any(len(records) != len(runs[0][1]) for _, records in runs):  # a budget ended some
        last = {name: row[name] for name in row["curve"][-1] if name in row}
        last |= {"round": max(rs[-1]["round"] for _, rs in runs), "low": min(accuracy), "high": max(accuracy)}
        row["curve"].append(last)
    if all("final_client_accuracy_worst" in s for s in summaries):
        row["worst_clients_accuracy"] = float(np.mean([s["final_client_accuracy_worst"] for s in summaries]))
    return row


def _spent(records: list[dict]) -> dict[str, float]:
    """Megabytes (10⁶ bytes) of all clients in these rounds, the head's too where it is among them."""
    up, down = (sum(r[f"{way}_bytes"] for r in records) / 1e6 for way in ("uplink", "downlink"))
    return {"total_megabytes": up + down, "uplink_megabytes": up, "downlink_megabytes": down}


def _cost(runs: list[list[dict]], target: float) -> dict[str, float]:
    """How many seeds met `target`; means over them of the rounds and megabytes until they first did."""
    costs = []
    for records in runs:
        for i, record in enumerate(records):
            if record["accuracy"] is not None and record["accuracy"] >= target - 1e-9:
                costs.append({"rounds": record["round"], **_spent(records[: i + 1])})
                break
    means = {key: float(np.mean([cost[key] for cost in costs])) for key in (costs or [{}])[0]}
    return {"seeds": len(costs), **means}


def _curve(runs: list[list[dict]]) -> list[dict[str, float]]:
    """Evaluated rounds that all seeds have: mean megabytes so far; mean, lowest and highest accuracy."""
    curve = []
    for at in zip(*runs, strict=False):
        accuracy = [record["accuracy"] for record in at]
        if None not in accuracy:
            number = at[0]["round"]
            spent = [_spent(records[: number + 1]) for records in runs]
            sent = {key: float(np.mean([s[key] for s in spent])) for key in spent[0]}
            mean = float(np.mean(accuracy))
            curve.append(
                {"round": number, **sent, "accuracy": mean, "low": min(accuracy), "high": max(accuracy)}
            )
    return curve


def markdown(comparison: dict[str, Any]) -> str:
    """The table, with what is needed to read it and to repeat it."""
    targets, rows = comparison["targets"], comparison["rows"]
    fair = any("worst_clients_accuracy" in row for row in rows)
    head = ["method", "MB up + down", *(f"MB to {label}" for label in targets), "accuracy", "best"]
    head += ["MB up", "MB down", "bpp up", "bpp down", "s/round"] + ["worst tenth of clients"] * fair
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        spread = "" if row["accuracy_spread"] is None else f" ± {100 * row['accuracy_spread']:.1f}"
        cells = [row["label"], _number(row["total_megabytes"])]
        for label in targets:
            met, seeds = row["to"][label]["seeds"], len(row["seeds"])
            partly = f" ({met} of {seeds} seeds)" if 0 < met < seeds else ""
            cells.append(_number(row["to"][label].get("total_megabytes")) + partly)
        cells += [f"{100 * row['accuracy']:.1f}{spread}", f"{100 * row['best_accuracy']:.1f}"]
        numbers = (
            "uplink_megabytes",
            "downlink_megabytes",
            "uplink_bpp",
            "downlink_bpp",
            "seconds_per_round",
        )
        cells += [_number(row[key]) for key in numbers]
        if fair:
            worst = row.get("worst_clients_accuracy")
            cells.append("" if worst is None else f"{100 * worst:.1f}")
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    meant = [f"- {row['label']}: `{row['method']}`\n" for row in rows if row["label"] != row["method"]]
    failures = "".join(f"- failed: {run}: {why}\n" for run, why in comparison["failures"].items())
    full = comparison["full_training_accuracy"]
    full = "not compared" if full is None else f"{full:.1%}"
    asked = ", ".join(f"{label}: {accuracy:.2%}" for label, accuracy in targets.items())
    return f"""# Methods on {comparison["data"]}, {comparison["model"]}

{table}

- accuracy in %, of the last round, {comparison["examples"]} examples: mean ± sample standard deviation over
  seeds; best: of any evaluated round
- MB: 10⁶ bytes of payloads, all clients together, the head's round included
- MB to: until an accuracy was first met in an evaluated round, mean over the seeds that met it; – where it
  never was. {asked}
- the gain is that of full training (`fedavg`), {full}, over the linear probe with as many rounds,
  {comparison["linear_probe_accuracy"]:.1%}
- bpp: payload bits per client and round, divided by the {comparison["masked_parameters"]:,} masked weights,
  whatever the method trains
- s/round: median of the rounds after the first, which compiles; evaluation included
- {comparison["hardware"]}; `{comparison["command"]}`
{"".join(meant)}{failures}"""


def _number(value: float | None) -> str:
    return "–" if value is None else metrics.three_digits(value)


def draw(path: Path, comparison: dict[str, Any]) -> None:
    """Accuracy against cumulative megabytes up and down on a log axis; all methods, as a PNG."""
    rows = comparison["rows"]
    with matplotlib.rc_context(figures.RC):
        figure = Figure(figsize=(9, max(5.2, 0.4 * len(rows))), layout="constrained")
        axes = figure.subplots()
        ends, starts = [], []
        for i, row in enumerate(rows):
            # A head that cost nothing leaves a point at zero bytes, which a log axis has not.
            points = [p for p in row["curve"] if p["total_megabytes"] > 0]
            x = [p["total_megabytes"] for p in points]
            low, mean, high = ([100 * p[key] for p in points] for key in ("low", "accuracy", "high"))
            style, marker = figures.style(i), MARKERS[i % len(MARKERS)]
            axes.plot(x, mean, style.line, color=style.colour, marker=marker, markersize=3.5)
            # The last point's seeds as a bar: bands of all rounds would hide one another.
            axes.vlines(x[-1:], low[-1:], high[-1:], color=style.colour, linewidth=3, alpha=0.35)
            if points:
                starts.append(mean[0])
                ends.append((x[-1], mean[-1], f"{row['label']}  {mean[-1]:.1f}", style.colour))
        for name, line in (("linear_probe", (0, (6, 4))), ("full_training", ":")):
            if (accuracy := comparison[f"{name}_accuracy"]) is not None:
                label = name.replace("_", " ") + ", last round"
                axes.axhline(100 * accuracy, color="gray", linewidth=1, linestyle=line, label=label)
        axes.set(xscale="log", ylabel=f"{comparison['examples']} accuracy, %")
        axes.set_xlabel("megabytes up and down, all clients together")
        axes.xaxis.set_major_formatter(lambda megabytes, _: f"{megabytes:g}")
        if ends:  # a curve that begins or falls far below the others would press them together
            edges = [float(np.median(starts)), *(accuracy for _, accuracy, *_ in ends)]
            lowest = min(edges) - 0.1 * (max(edges) - min(edges)) - 0.5
            bottom, top = axes.get_ylim()
            highest = 100 * max(point["high"] for row in rows for point in row["curve"])
            axes.set_ylim(max(bottom, lowest), min(top, highest + 0.05 * (highest - lowest)))
        axes.set_xlim(right=axes.get_xlim()[1] * 12)  # room for names beside the last points
        axes.legend(loc="lower right", frameon=False, fontsize="small")
        seeds = max(len(row["seeds"]) for row in rows)
        shown = "one seed" if seeds == 1 else f"mean of {seeds} seeds; bar: lowest to highest at the end"
        figure.suptitle(
            f"{comparison['model']} on {comparison['data']} ({shown})", fontsize="medium", parse_math=False
        )
        figures.name_ends(figure, axes, ends)
        figure.savefig(path, dpi=130)
