"""The ledger: a round's line, what a run came to, and the table that says so on the screen.

All bytes are those of real payloads, up and down. Bits per parameter (bpp) are per client: 8 · bytes over
clients times d.
"""

from pathlib import Path
from typing import Any

from deltamask_jax import metrics
from deltamask_jax.federation.rounds import Round
from deltamask_jax.workdir import files

_SECONDS = ("compile_seconds", "codec_seconds", "codec_exposed_seconds")


def line_of(
    number: int,
    result: Round,
    evaluation: dict[str, float],
    d: int,
    *,
    seconds: float,
    compile_seconds: float,
    epsilon: float | None = None,
) -> dict[str, Any]:
    """A round's line of metrics.jsonl.

    Args:
        number: the round's; 0 is the head's.
        result: what it cost and gave.
        evaluation: `accuracy`, and what is known per client; {} where the round was not evaluated.
        d: masked weights.
        seconds, compile_seconds: that the round took, and of these its compilations; round 0's are since the
            run began.
        epsilon: spent so far; None without differential privacy.
    """
    return files.finite(
        {
            "round": number,
            "accuracy": None,
            **evaluation,
            "train_loss": result.train_loss,
            **({} if epsilon is None else {"epsilon": epsilon}),
            "flip_rate": None,
            "clients": result.clients,
            "merged": result.merged,
            "lost": result.lost,
            "rejected": result.rejected,
            "repeats": result.repeats,
            "total_bytes": result.uplink_bytes + result.downlink_bytes,
            "uplink_bytes": result.uplink_bytes,
            "uplink_bpp": metrics.bits_per_parameter(result.uplink_bytes, result.senders, d),
            "downlink_bytes": result.downlink_bytes,
            "downlink_bpp": metrics.bits_per_parameter(result.downlink_bytes, result.clients, d),
            "snapshots": result.snapshots,
            "news_bpp": result.news_bytes and metrics.bits_per_parameter(result.news_bytes, 1, d),
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "codec_seconds": result.codec_seconds,
            "codec_exposed_seconds": result.codec_exposed_seconds,
            **result.seconds,
            **result.details,
        }
    )


def summarise(
    config, records: list[dict[str, Any]], probe_accuracy: float | None, d: int, seconds: float
) -> dict[str, Any]:
    """summary.json: totals over all rounds, means over those after the head's.

    Args:
        records: the lines of all rounds, from round 0, the head's.
        d: masked weights.
        seconds: that the run took.
    """
    # What the method itself measured: round 0 is not its own; a random head has no loss.
    details = dict.fromkeys(
        key
        for line in records[1:]
        for key, value in line.items()
        if key != "train_loss"
        and value is not None
        and records[0].get(key) is None
        and not key.endswith("seconds")
    )
    accuracies = [r["accuracy"] for r in records if r["accuracy"] is not None]
    sent = {f"{way}_bytes": sum(r[f"{way}_bytes"] for r in records) for way in ("uplink", "downlink")}
    return {
        "method": config.method,
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "linear_probe_accuracy": probe_accuracy,
        "initial_accuracy": accuracies[0],
        "total_bytes": sum(sent.values()),
        **sent,
        "total_bytes_per_client": sum(sent.values()) / config.clients,
        **{
            f"mean_{key}": metrics.mean(r.get(key) for r in records[1:])
            for key in ("uplink_bpp", "downlink_bpp", *details)
        },
        **{f"final_{key}": value for key, value in records[-1].items() if key.startswith("client_accuracy")},
        "masked_parameters": d,
        "rounds": records[-1]["round"],
        **({"epsilon": records[-1]["epsilon"]} if "epsilon" in records[-1] else {}),
        "seconds": seconds,
        **{key: sum(r[key] for r in records) for key in _SECONDS},
    }


def _if_known(name: str, accuracy: float | None) -> list[tuple[str, str]]:
    return [] if accuracy is None else [(name, f"{accuracy:.2%}")]


def closing_table(summary: dict[str, Any], workdir: Path) -> str:
    """What the run came to, for the screen."""
    ways = {"each": "total_bytes_per_client", **{w: f"{w}_bytes" for w in ("total", "uplink", "downlink")}}
    megabytes = {way: metrics.three_digits(summary[name] / 1e6) for way, name in ways.items()}
    bpp = {way: summary[f"mean_{way}_bpp"] for way in ("uplink", "downlink")}  # None: no round was played
    bpp = {way: "–" if value is None else f"{value:.4f}" for way, value in bpp.items()}
    entropy = []
    if "mean_flip_entropy_bpp" in summary:
        rate, least = summary["mean_flip_rate"], summary["mean_flip_entropy_bpp"]
        entropy = [("flips", f"{rate:.2%} of the weights per client per round, H = {least:.4f} bpp")]
    return _table(
        [
            ("final accuracy", f"{summary['final_accuracy']:.2%}"),
            ("best accuracy", f"{summary['best_accuracy']:.2%}"),
            *_if_known("thresholded mask", summary.get("thresholded_accuracy")),
            ("before training", f"{summary['initial_accuracy']:.2%}"),
            *_if_known("linear probe", summary["linear_probe_accuracy"]),
            ("up and down", f"{megabytes['total']} MB, {megabytes['each']} MB per client"),
            ("  uplink", f"{megabytes['uplink']} MB, {bpp['uplink']} bpp per client per round"),
            ("  downlink", f"{megabytes['downlink']} MB, {bpp['downlink']} bpp"),
            *entropy,
            ("masked weights", f"{summary['masked_parameters']:,}"),
            (
                "seconds",
                "{seconds:.0f}: {compile_seconds:.0f} compiling, {codec_seconds:.0f} coding, of which "
                "{codec_exposed_seconds:.0f} not behind training".format(**summary),
            ),
            ("results in", str(workdir)),
        ]
    )


def _table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns of text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
