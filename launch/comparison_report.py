"""The table and the picture of launch/compare.py, from what the runs wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure  # no pyplot: no global state, no display

from deltamask_jax import metrics

MARKERS = "osD^v<>Pp*Xhd"


def summarise(runs: dict[tuple[str, int], Path], names: list[str], target: float) -> dict[str, Any]:
    """One row a method, over its finished runs.

    Args:
        runs: (method, seed) -> workdir.
        names: the methods in the order of the table.
        target: accuracy whose cost is asked, 0 … 1; 0 for the linear probe's: the mean of the method
            `linear_probe`, or where it is not compared, of the probes beside every run.
    """
    found = {key: _read(workdir) for key, workdir in runs.items()}
    probes = [
        summary["final_accuracy"] for (name, _), (summary, _) in found.items() if name == "linear_probe"
    ]
    probe = float(np.mean(probes or [summary["linear_probe_accuracy"] for summary, _ in found.values()]))
    target = target or probe
    rows = []
    for name in names:
        mine = {seed: run for (method, seed), run in sorted(found.items()) if method == name}
        if mine:
            rows.append({"method": name, "seeds": list(mine), **_row(list(mine.values()), target)})
    return {
        "target_accuracy": target,
        "linear_probe_accuracy": probe,
        "masked_parameters": next(iter(found.values()))[0]["masked_parameters"],
        "rows": rows,
    }


def _read(workdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        _row([(summary, records)], 1.0)  # whether everything is there
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{workdir} holds a damaged file ({error}); move the folder away to repeat the run"
        ) from None
    return summary, records


def _row(runs: list[tuple[dict, list[dict]]], target: float) -> dict[str, Any]:
    summaries = [summary for summary, _ in runs]
    accuracy = [summary["final_accuracy"] for summary in summaries]
    costs = [cost for _, records in runs if (cost := _cost(records, target)) is not None]
    row = {
        "accuracy": float(np.mean(accuracy)),
        "accuracy_spread": float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else None,
        "accuracy_of_seeds": accuracy,
        "best_accuracy": float(np.mean([s["best_accuracy"] for s in summaries])),
        "seeds_at_target": len(costs),
        **{key: float(np.mean([c[key] for c in costs])) if costs else None for key in _COST},
        **{key: metrics.mean(s[f"mean_{key}"] for s in summaries) for key in ("uplink_bpp", "downlink_bpp")},
        # The first round compiles.
        "seconds_per_round": float(
            np.mean([np.median([r["seconds"] for r in rs[2:] or rs[1:]]) for _, rs in runs])
        ),
        "curve": _curve([records for _, records in runs]),
    }
    if all("final_client_accuracy_worst" in s for s in summaries):
        row["worst_clients_accuracy"] = float(np.mean([s["final_client_accuracy_worst"] for s in summaries]))
    return row


_WAYS = ("total", "uplink", "downlink")
_COST = ("rounds_to_target", *(f"{way}_megabytes_to_target" for way in _WAYS))


def _cost(records: list[dict], target: float) -> dict[str, float] | None:
    """What had been played and sent, by all clients and the head's round too, when `target` was first met."""
    for i, record in enumerate(records):
        if record["accuracy"] is not None and record["accuracy"] >= target - 1e-9:
            up, down = (sum(r[f"{way}_bytes"] for r in records[: i + 1]) / 1e6 for way in _WAYS[1:])
            return dict(zip(_COST, (record["round"], up + down, up, down), strict=True))
    return None


def _curve(runs: list[list[dict]]) -> list[dict[str, float]]:
    """Evaluated rounds that all seeds have: mean megabytes so far; mean, lowest and highest accuracy."""
    curve = []
    for at in zip(*runs, strict=False):
        accuracy = [record["accuracy"] for record in at]
        if None not in accuracy:
            number = at[0]["round"]
            sent = {
                f"{way}_megabytes": float(
                    np.mean([sum(r[f"{way}_bytes"] for r in rs[: number + 1]) for rs in runs])
                )
                / 1e6
                for way in ("uplink", "downlink")
            }
            mean = float(np.mean(accuracy))
            curve.append(
                {"round": number, **sent, "accuracy": mean, "low": min(accuracy), "high": max(accuracy)}
            )
    return curve


def markdown(comparison: dict[str, Any]) -> str:
    """The table, with what is needed to read it and to repeat it."""
    target = f"{comparison['target_accuracy']:.1%}"
    fair = any("worst_clients_accuracy" in row for row in comparison["rows"])
    head = [
        "method",
        "accuracy",
        "best",
        f"rounds to {target}",
        "MB up and down",
        "up",
        "down",
        "bpp up",
        "bpp down",
        "s/round",
    ]
    head += ["worst tenth of clients"] if fair else []
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in comparison["rows"]:
        spread = "" if row["accuracy_spread"] is None else f" ± {100 * row['accuracy_spread']:.1f}"
        seeds, met = len(row["seeds"]), row["seeds_at_target"]
        partly = f" ({met} of {seeds} seeds)" if 0 < met < seeds else ""
        cells = [row["method"], f"{100 * row['accuracy']:.1f}{spread}", f"{100 * row['best_accuracy']:.1f}"]
        cells += [_number(row["rounds_to_target"]) + partly, *(_number(row[key]) for key in _COST[1:])]
        cells += [_number(row[key]) for key in ("uplink_bpp", "downlink_bpp", "seconds_per_round")]
        if fair:
            worst = row.get("worst_clients_accuracy")
            cells.append("" if worst is None else f"{100 * worst:.1f}")
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    failures = "".join(f"- failed: {run}: {why}\n" for run, why in comparison["failures"].items())
    return f"""# Methods on {comparison["data"]}, {comparison["model"]}

{table}

- accuracy in %, of the last round: mean ± sample standard deviation over seeds; best: of any evaluated round
- rounds and MB (10⁶ bytes of payloads, all clients together, the head's round included) until {target} was
  first met in an evaluated round; – where it never was
- linear probe with as many rounds: {comparison["linear_probe_accuracy"]:.1%}
- bpp: payload bits a client a round, divided by the {comparison["masked_parameters"]:,} masked weights,
  whatever the method trains
- s/round: median of the rounds after the first, which compiles; evaluation included
- {comparison["hardware"]}; `{comparison["command"]}`
{failures}"""


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def draw(path: Path, comparison: dict[str, Any]) -> None:
    """Accuracy against cumulative megabytes on a log axis, both ways and up alone; all methods, as a PNG."""
    rows = comparison["rows"]
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = colormaps["tab10"]
    for axes, ways in ((left, ("uplink", "downlink")), (right, ("uplink",))):
        for i, row in enumerate(rows):
            # A head that cost nothing leaves a point at zero bytes, which a log axis has not.
            points = [(sum(p[f"{way}_megabytes"] for way in ways), p) for p in row["curve"]]
            points = [(x, p) for x, p in points if x > 0]
            x = [x for x, _ in points]
            low, mean, high = ([100 * p[key] for _, p in points] for key in ("low", "accuracy", "high"))
            style = {"color": colours(i % 10), "marker": MARKERS[i % len(MARKERS)]}
            label = row["method"].replace(":", ":\n  ")
            dashes = "solid" if i < 10 else (0, (2, 1))  # where colours come again
            axes.plot(x, mean, **style, linestyle=dashes, markersize=4, linewidth=1.3, label=label)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.axhline(
            100 * comparison["linear_probe_accuracy"], color="gray", linestyle="--", label="linear probe"
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda megabytes, _: f"{megabytes:g}")
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(xlabel="megabytes up and down, all clients together", ylabel="test accuracy (%)")
    right.set(xlabel="megabytes up, all clients together")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small"
    )
    seeds = max(len(row["seeds"]) for row in rows)
    shown = "one seed" if seeds == 1 else f"mean of {seeds} seeds, band: lowest to highest"
    figure.suptitle(f"{comparison['model']} on {comparison['data']} ({shown})", fontsize="medium")
    figure.savefig(path, dpi=130)
