"""The report's pictures: small vector figures, one statement each, that stay readable on a phone."""

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from deltamask_jax import metrics
from deltamask_jax.data import partition

RC: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
}
SIZE = (4.4, 2.9)  # inches: one column of a phone at about the text's size
_COLOURS = ("#1f77b4", "#d95f02", "#2a9d3c", "#c2185b", "#6a4fb0", "#8c564b", "#00838f", "#7f7f7f")
_LINES = (("-", "solid"), ("--", "dashed"), (":", "dotted"))  # matplotlib's and CSS's names

# Settings of what is learned, by which network and from whose examples: one linear probe.
_PROBLEM = ("data", "model.name", "model.checkpoint", "model.image_size", "model.max_length", "clients")
_PROBLEM += ("train_examples", "partition.name", "partition.alpha", "partition.classes_per_client")
_PROBLEM += ("test_examples", "validation_examples")
# How the probe is trained: from which head, on whose examples.
_PROBE = ("rounds", "linear_probe.learning_rate", "linear_probe.decay", "local_epochs", "batch_size")
_PROBE += ("head.init", "head.epochs", "head.learning_rate", "participation", "client_sampling")
_MARKERS = {"-": "o", "--": "s", ":": "^"}


@dataclasses.dataclass(frozen=True)
class Style:
    """How a group of runs is drawn; `border` is the CSS name of `line`."""

    colour: str
    line: str
    border: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """An SVG as a data URI, and what it shows."""

    uri: str
    caption: str


def style(number: int) -> Style:
    """Colour and dashes of the curve of that number, from 0; colours repeat with other dashes."""
    line, border = _LINES[number // len(_COLOURS) % len(_LINES)]
    return Style(_COLOURS[number % len(_COLOURS)], line, border)


def usual_probe(probes: Iterable[tuple[Mapping[str, Any], float | None]]) -> float | None:
    """Mean accuracy of the linear probes that were trained as most were; None where there is none.

    Args:
        probes: (config of the run beside it, accuracy); None for a run without one.
    """
    alike: dict[tuple[str, ...], list[float]] = {}
    for config, accuracy in probes:
        if accuracy is not None:
            alike.setdefault(tuple(str(config.get(name)) for name in _PROBE), []).append(accuracy)
    return float(np.mean(max(alike.values(), key=len))) if alike else None


def comparison(groups: list[Any]) -> list[Picture]:
    """All runs beside one another: accuracy against rounds and megabytes, bits, flips, seconds."""
    pictures = [_accuracy(groups, None, "round", "Accuracy against rounds")]
    for ways, what in (
        (("uplink", "downlink"), "up and down"),
        (("uplink",), "up"),
        (("downlink",), "down"),
    ):
        caption = f"Accuracy against megabytes sent {what}, all clients together"
        pictures.append(_accuracy(groups, ways, f"MB {what}", caption))
    pictures.append(_over_rounds(groups, "uplink_bpp", 1, "bits per masked weight", "Uplink, measured bytes"))
    if any(
        "flip_rate" in r and r["flip_rate"] is not None for g in groups for run in g.runs for r in run.records
    ):
        pictures.append(_over_rounds(groups, "flip_rate", 100, "% of weights", "Flips per client and round"))
    if len(groups) > 1:
        pictures.append(_rate(groups))
    pictures.append(_over_rounds(groups, "train_loss", 1, "loss", "Clients' mean training loss"))
    pictures.append(_seconds(groups))
    return pictures


def of_run(run: Any) -> list[Picture]:
    """One run from inside: θ, flips by layer, clients."""
    pictures = []
    if run.diagnostics:
        rounds = [line["round"] for line in run.diagnostics]
        layers = list(run.diagnostics[-1]["theta_histogram"])
        counts, flips = (
            _by_round(rounds, [[line[kind][name] for name in layers] for line in run.diagnostics])
            for kind in ("theta_histogram", "flip_rate_by_layer")
        )
        weights = counts[-1].sum(axis=1, keepdims=True)
        spans = (rounds[0] - 0.5, rounds[-1] + 0.5)
        pictures = [
            _heat_map(
                100 * counts.sum(axis=1).T / counts[0].sum(),
                (*spans, 0, 1), "round", "θ", "% of weights, log scale", "θ over rounds", log=True,
            ),
            _heat_map(
                100 * flips.T, (*spans, -0.5, len(layers) - 0.5), "round", None, "% of weights",
                "Flips per client, by layer", names=layers,
            ),
            _heat_map(
                100 * counts[-1] / weights, (0, 1, -0.5, len(layers) - 0.5), "θ", None,
                "% of the layer's weights, log scale", f"θ by layer after round {rounds[-1]}", log=True,
                names=layers,
            ),
        ]  # fmt: skip
    if run.split:
        pictures.append(_split(np.array(run.split), run.class_names))
    if len({asked for asked, _, _ in run.traffic.values()}) > 1:
        pictures.append(_traffic(run.traffic))
    if any("client_accuracy_mean" in r for r in run.records):
        pictures.append(_client_accuracy(run.records))
    return pictures


def _by_round(rounds: list[int], values: list[Any]) -> np.ndarray:
    """One row for every round from the first to the last, f64[rounds, ...]; NaN where nobody was merged."""
    known = np.array(values, float)
    every = np.full((rounds[-1] - rounds[0] + 1, *known.shape[1:]), np.nan)
    every[np.array(rounds) - rounds[0]] = known
    return every


def name_ends(figure: Figure, axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each curve's name beside its last point, moved up or down until no two overlap.

    Args:
        ends: (x, y, name, colour) of the last points, in data units. The axes' limits are final.
    """
    figure.draw_without_rendering()  # where the names lie is known once everything is laid out
    height = 12 * figure.dpi / 72
    taken: list[tuple[float, float, float]] = []  # left, right and middle of a name, in pixels
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        left, at = axes.transData.transform((x, y))
        right = left + 0.55 * height * len(name)
        steps = sorted(range(-2 * len(ends), 2 * len(ends) + 1), key=abs)
        beside = [other for begin, end, other in taken if left < end and right > begin]
        middle = next(
            m
            for m in (at + s * height / 2 for s in steps)
            if all(abs(m - other) >= height for other in beside)
        )
        taken.append((left, right, middle))
        shift = (middle - at) * 72 / figure.dpi
        axes.annotate(
            name, (x, y), xytext=(10, shift), textcoords="offset points", color=colour, va="center",
            fontsize="small", parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )  # fmt: skip


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")  # no pyplot: no global state, no display
    return figure, figure.subplots()


def _picture(figure: Figure, caption: str) -> Picture:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return Picture(
        "data:image/svg+xml;base64," + base64.b64encode(file.getvalue().encode()).decode(), caption
    )


def _accuracy(groups, ways: tuple[str, ...] | None, xlabel: str, caption: str) -> Picture:
    figure, axes = _axes()
    probes, problems = [], set()
    for members in groups:
        for run in members.runs:
            problems.add(tuple(str(run.config.get(name)) for name in _PROBLEM))
            sent = np.cumsum([sum(r[f"{way}_bytes"] for way in ways or ()) for r in run.records]) / 1e6
            evaluated = [i for i, r in enumerate(run.records) if r["accuracy"] is not None]
            x = [sent[i] if ways else run.records[i]["round"] for i in evaluated]
            y = [100 * run.records[i]["accuracy"] for i in evaluated]
            axes.plot(x, y, members.style.line, color=members.style.colour, marker=".", markersize=3)
            probes.append((run.config, (run.summary or {}).get("linear_probe_accuracy")))
    probe = usual_probe(probes)
    if probe is not None and len(problems) == 1:  # else it would be a mean over different ones
        axes.axhline(100 * probe, color="black", linewidth=0.8, linestyle=(0, (6, 4)))
        axes.annotate("linear probe", (0.01, 100 * probe), xycoords=("axes fraction", "data"), va="bottom")
    if ways:
        _log_scale(axes)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=xlabel, ylabel="accuracy, %")
    return _picture(figure, caption)


def _rate(groups) -> Picture:
    """A point per run: what it reached at which rate."""
    figure, axes = _axes()
    for members in groups:
        for run in (run for run in members.runs if len(run.records) > 1):
            accuracy = [r["accuracy"] for r in run.records if r["accuracy"] is not None]
            rate = metrics.mean(r["uplink_bpp"] for r in run.records[1:])
            if rate is None or not accuracy:  # every round was of nobody, or none was evaluated
                continue
            marker = _MARKERS[members.style.line]
            axes.plot(rate, 100 * accuracy[-1], marker, color=members.style.colour, markersize=6, alpha=0.8)
    _log_scale(axes)
    axes.set(xlabel="bits per masked weight, up", ylabel="final accuracy, %")
    return _picture(figure, "Final accuracy against bitrate, a point per run")


def _log_scale(axes) -> None:
    """A logarithmic x axis whose labels stay apart, over half a decade as over five; none without points."""
    if not np.isfinite(axes.dataLim.minposx):
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high < 100 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _over_rounds(groups, key: str, factor: float, ylabel: str, caption: str) -> Picture:
    figure, axes = _axes()
    values = []
    for members in groups:
        for run in members.runs:
            points = [(r["round"], factor * r[key]) for r in run.records[1:] if r.get(key) is not None]
            if points:
                values += [y for _, y in points]
                axes.plot(*zip(*points, strict=True), members.style.line, color=members.style.colour)
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="round", ylabel=ylabel)
    return _picture(figure, caption)


# Seconds that overlap with others of the round.
PARTLY_IN_OTHERS = ("compile_seconds", "codec_seconds", "codec_exposed_seconds")


def _seconds(groups) -> Picture:
    """Median seconds of each step, a bar per group; round 1 compiles and is left out where it can be."""
    rounds = [
        [r for run in g.runs for r in run.records[1:] if r["round"] > 1 or len(run.records) < 3]
        for g in groups
    ]
    names = dict.fromkeys(
        key
        for of_group in rounds
        for r in of_group
        for key in r
        if key.endswith("_seconds") and key not in PARTLY_IN_OTHERS
    )
    figure, axes = _axes()
    figure.set_figheight(max(SIZE[1], 1.3 + 0.22 * len(groups)))
    left = np.zeros(len(groups))
    for number, name in enumerate(names):
        width = [np.median([r.get(name) or 0 for r in of_group] or [0]) for of_group in rounds]
        label = name.removesuffix("_seconds").replace("_", " ")
        axes.barh(range(len(groups)), width, left=left, label=label, color=f"C{number}")
        left += width
    axes.set_yticks(range(len(groups)), [_shorten(g.label) for g in groups], parse_math=False)
    axes.set_ylim(max(len(groups), 4) - 0.5, -0.5)
    axes.set(xlabel="seconds")
    axes.grid(axis="y", visible=False)
    if names:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return _picture(figure, "Where a round's time goes (median)")


def _heat_map(values, extent, xlabel, ylabel, unit, caption, *, log=False, names=None) -> Picture:
    figure, axes = _axes()
    if names:
        figure.set_figheight(max(SIZE[1], 1.0 + 0.13 * len(names)))
    floor = values[values > 0].min(initial=100) if log else -np.inf
    image = axes.imshow(
        np.maximum(values, floor),
        aspect="auto", origin="lower", extent=extent, cmap="magma", interpolation="nearest",
        norm="log" if log else "linear",
    )  # fmt: skip
    if names:
        axes.set_yticks(range(len(names)), [_shorten(_short_path(name)) for name in names], fontsize=6.5)
    if xlabel == "round":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(image, ax=axes, label=unit)
    return _picture(figure, caption)


def _split(counts: np.ndarray, class_names: list[str]) -> Picture:
    figure, axes = _axes()
    partition.stack_bars(axes, counts, [f"C{k % 10}" for k in range(counts.shape[1])])
    axes.set_ylim(0, None)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="client", ylabel="training examples")
    axes.xaxis.get_major_locator().set_params(integer=True)
    few = ", ".join(class_names[:10]) + (" …" if len(class_names) > 10 else "")
    return _picture(figure, f"Who holds what: a colour per class, from below {few}")


def _traffic(traffic: dict[int, tuple[int, float, float]]) -> Picture:
    figure, axes = _axes()
    asked, down, up = zip(*traffic.values(), strict=True)
    axes.plot(asked, down, "o", label="down")
    axes.plot(asked, up, "^", label="up")
    axes.legend(frameon=False)
    axes.set(xlabel="rounds in which a client was asked", ylabel="MB to and from it", ylim=(0, None))
    return _picture(figure, "Bytes of each client, by how often it was asked")


def _client_accuracy(records: list[dict[str, Any]]) -> Picture:
    figure, axes = _axes()
    for key, line, label in (
        ("client_accuracy_mean", "-", "mean of the clients"),
        ("client_accuracy_worst", "--", "worst tenth"),
    ):
        points = [(r["round"], 100 * r[key]) for r in records if r.get(key) is not None]
        axes.plot(*zip(*points, strict=True), line, color=_COLOURS[0], label=label)
    axes.legend(frameon=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="round", ylabel="accuracy on own test share, %")
    return _picture(figure, "Per-client accuracy")


def _short_path(path: str) -> str:
    """'Transformer/encoderblock_3/MlpBlock_0/Dense_0/kernel' -> '3/Mlp/Dense_0'."""
    for old, new in (
        ("Transformer/encoderblock_", ""),
        ("MultiHeadDotProductAttention_0", "Att"),
        ("MlpBlock_0", "Mlp"),
    ):
        path = path.replace(old, new)
    return path.removesuffix("/kernel")


def _shorten(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most // 2 - 1] + "…" + text[-most // 2 :]
