"""One federated run, from config to results.

set up the problem; then each round: play it, evaluate, write its line; then summary and pictures
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deltamask_jax import config as config_lib
from deltamask_jax import environment, methods, metrics, progress
from deltamask_jax.data import partition
from deltamask_jax.heads import linear_probe_accuracy, with_head
from deltamask_jax.problem import set_up
from deltamask_jax.rounds import MAIN_PHASE, Round, evaluator, play_round
from deltamask_jax.trackers import open_trackers


def run(config, workdir: str | Path) -> dict[str, Any]:
    """Run the experiment `config` describes and leave its results in `workdir`.

    Returns:
        The contents of summary.json.

    Raises:
        ValueError: a setting, the data or the checkpoint is wrong; the message says what to change.
        OSError: the workdir cannot be written.
    """
    started = time.time()
    config_lib.validate(config)
    methods.check(config)
    workdir = _new_workdir(Path(workdir))
    metrics.write_json(workdir / "config.json", config.to_dict())
    metrics.write_json(workdir / "environment.json", environment.describe())
    trackers = open_trackers(config, workdir)

    problem, head_round = with_head(set_up(config, workdir))
    probe_accuracy = linear_probe_accuracy(problem)
    method = methods.build(config, problem.task)
    d, rounds = problem.task.index.d, config.rounds
    print(
        f"{method.name} on {config.data}: {config.clients} clients, d = {d:,} masked weights, "
        f"linear probe {probe_accuracy:.1%}"
    )

    accuracy_of = evaluator(problem, method)
    state = method.init()
    records = []

    def record(number: int, result: Round, accuracy: float | None, seconds: float) -> None:
        records.append(
            {
                "round": number,
                "accuracy": accuracy,
                "train_loss": result.train_loss,
                "flip_rate": None,
                "clients": result.clients,
                "uplink_bytes": result.uplink_bytes,
                "uplink_bpp": metrics.bits_per_parameter(result.uplink_bytes, result.clients, d),
                "downlink_bytes": result.downlink_bytes,
                "downlink_bpp": metrics.bits_per_parameter(result.downlink_bytes, result.clients, d),
                "seconds": seconds,
                **result.seconds,
                **result.details,
            }
        )
        metrics.append(workdir / "metrics.jsonl", records[-1])
        if result.diagnostics:
            metrics.append(workdir / "diagnostics.jsonl", {"round": number, **result.diagnostics})
        for tracker in trackers:
            tracker.log(records[-1])

    # Round 0 is the head's: what it sent, and how good the network is before the first round.
    record(0, head_round, accuracy_of(state), time.time() - started)
    bar = progress.over(range(1, rounds + 1), method.name)
    for number in bar:
        round_started = time.time()
        clients = partition.cohort(config.clients, config.participation, config.seed, number)
        state, result = play_round(problem, method, state, number, clients, MAIN_PHASE, config.local_epochs)
        evaluate = number % config.eval_every == 0 or number == rounds
        accuracy = accuracy_of(state) if evaluate else None
        record(number, result, accuracy, time.time() - round_started)
        shown = next(r["accuracy"] for r in reversed(records) if r["accuracy"] is not None)
        bar.set_postfix_str(
            f"accuracy {shown:.1%}, loss {result.train_loss:.3f}, {records[-1]['uplink_bpp']:.4f} bpp up"
        )

    summary = _summarise(config, records, list(result.details), probe_accuracy, d, time.time() - started)
    metrics.write_json(workdir / "summary.json", summary)
    metrics.payload_image(result.payload).save(workdir / "payload.png")
    save_file(method.export(state), workdir / f"{method.name}.safetensors")
    metrics.draw_curves(
        workdir / "curves.png", records, probe_accuracy, f"{method.name}, {config.model.name}, {config.data}"
    )
    for tracker in trackers:
        tracker.close()
    print(_closing_table(summary, workdir))
    return summary


def _new_workdir(workdir: Path) -> Path:
    """An empty, writable folder; what an earlier run left there is moved aside, never overwritten."""
    if (workdir / "metrics.jsonl").exists():
        aside = next(
            p for i in range(1, 10**6) if not (p := workdir.with_name(f"{workdir.name}.{i}")).exists()
        )
        workdir.rename(aside)
        print(f"{workdir} held an earlier run: moved to {aside}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").touch()
    except OSError as error:
        raise OSError(
            f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir"
        ) from None
    return workdir


def _summarise(config, records, details, probe_accuracy, d, seconds) -> dict[str, Any]:
    """summary.json: totals over all rounds, means over those after the head's."""
    accuracies = [r["accuracy"] for r in records if r["accuracy"] is not None]
    return {
        "method": config.method,
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "linear_probe_accuracy": probe_accuracy,
        "initial_accuracy": accuracies[0],
        "uplink_bytes": sum(r["uplink_bytes"] for r in records),
        "downlink_bytes": sum(r["downlink_bytes"] for r in records),
        "mean_uplink_bpp": float(np.mean([r["uplink_bpp"] for r in records[1:]])),
        "mean_downlink_bpp": float(np.mean([r["downlink_bpp"] for r in records[1:]])),
        **{f"mean_{key}": float(np.mean([r[key] for r in records[1:]])) for key in details},
        "masked_parameters": d,
        "rounds": config.rounds,
        "seconds": seconds,
    }


def _closing_table(summary: dict[str, Any], workdir: Path) -> str:
    """What the run came to, for the screen."""
    megabytes = {way: summary[f"{way}_bytes"] / 1e6 for way in ("uplink", "downlink")}
    entropy = []
    if "mean_flip_entropy_bpp" in summary:
        rate, bpp = summary["mean_flip_rate"], summary["mean_flip_entropy_bpp"]
        entropy = [("flips", f"{rate:.2%} of the weights a client a round, H = {bpp:.4f} bpp")]
    return metrics.table(
        [
            ("final accuracy", f"{summary['final_accuracy']:.2%}"),
            ("best accuracy", f"{summary['best_accuracy']:.2%}"),
            ("before training", f"{summary['initial_accuracy']:.2%}"),
            ("linear probe", f"{summary['linear_probe_accuracy']:.2%}"),
            (
                "uplink",
                f"{megabytes['uplink']:.2f} MB, {summary['mean_uplink_bpp']:.4f} bpp a client a round",
            ),
            *entropy,
            ("downlink", f"{megabytes['downlink']:.2f} MB, {summary['mean_downlink_bpp']:.3f} bpp"),
            ("masked weights", f"{summary['masked_parameters']:,}"),
            ("seconds", f"{summary['seconds']:.0f}"),
            ("results in", str(workdir)),
        ]
    )
