"""Search each kind of training's learning rate on validation examples, which no test image is.

    python launch/search.py --config=configs/quickstart.py --config.validation_examples=500 \
        --out=runs/search --methods=linear_probe,fedavg,deltamask,peft,peft:kind=lora:wire=8bit
    python launch/compare.py --config=configs/quickstart.py --seeds=3 --out=runs/comparison \
        --settings=runs/search/search.json --methods=linear_probe,fedavg,eden,deltamask,deepreduce,peft

The validation examples are held out of the training examples (docs/data.md). Methods are written as for
compare.py. Each is run with the rates of tuning.py; while an end of the list does best, the next rate beyond
it is tried, at most `BEYOND` of them. Accuracy is that of the last round, mean over seeds; of equals the
smallest rate is taken. Methods without a rate, and those that train like another (tuning.TRAINS_LIKE) and
take its rate, are left out.

Runs lie in OUT/METHOD_setting=rate/seedN and are not repeated, so the same command goes on where an
interrupted one stopped. OUT gets search.json, which compare.py takes, and search.md, the table, rewritten
after every rate.
"""

import json
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from compare import about, config_of, finished, jobs_of, labels_of, runs_of, smoke_of
from ml_collections import ConfigDict
from runner import play
from tuning import RATE, rates_of

from deltamask_jax import main
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.workdir import files

BEYOND = 2  # rates that are tried beyond the ends of a list

FLAGS = flags.FLAGS
if __name__ == "__main__":  # beside --config and its overrides, which deltamask_jax.main defines
    flags.DEFINE_list("methods", None, "Methods, each with NAME:setting=value:… if need be.", required=True)
    flags.DEFINE_integer("seeds", 1, "Runs of each rate: seeds 0 … n−1.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for the runs and what was found.", required=True)
    flags.DEFINE_bool("smoke", False, "Few examples, two rounds: whether everything runs.")


def search(config: ConfigDict, names: list[str], seeds: int, out: Path, command: str) -> dict[str, Any]:
    """Run what is missing, and write what is known after every rate.

    Returns:
        What search.json holds: a row per method, and why runs failed. A rate of which a run failed, for
        example because it is too large, has no accuracy and is not taken.

    Raises:
        ValueError: no validation examples, or a method or setting that makes no sense; found before anything
            runs.
    """
    if not config.validation_examples:
        raise ValueError("rates are searched on validation examples: say --config.validation_examples=N")
    chosen = {name: config_of(config, name, 0) for name in labels_of(names)}
    firsts = {name: list(map(_short, rates_of(its))) for name, its in chosen.items() if its.method in RATE}
    out.mkdir(parents=True, exist_ok=True)  # the first runs may fail before they begin
    found: dict[str, Any] = about(config, command)
    found |= {"validation_examples": config.validation_examples, "seeds": seeds, "rows": [], "failures": {}}
    for name, first in firsts.items():
        setting, waiting, accuracy = RATE[chosen[name].method], list(first), {}
        row: dict[str, Any] = {
            "training": name,
            "setting": setting,
            "rates": [],
            "accuracy": [],
            "taken": None,
        }
        found["rows"].append(row)
        while waiting:
            rate = waiting.pop(0)
            runs = runs_of(config, [f"{name}:{setting}={rate:g}"], seeds, out)
            found["failures"] |= play(jobs_of(runs))
            accuracy[rate] = _accuracy(runs.values())
            row["rates"] = sorted(accuracy)
            row["accuracy"] = [accuracy[rate] for rate in row["rates"]]
            row["taken"] = best(accuracy)
            files.write_json(out / "search.json", found)
            (out / "search.md").write_text(markdown(found))
            if not waiting and len(accuracy) < len(first) + BEYOND:
                waiting = beyond(accuracy)
    return found


def best(accuracy: dict[float, float | None]) -> float | None:
    """The smallest of the rates that do best; None where no rate has an accuracy."""
    known = {rate: value for rate, value in accuracy.items() if value is not None}
    return min(known, key=lambda rate: (-known[rate], rate), default=None)


def beyond(accuracy: dict[float, float | None]) -> list[float]:
    """The next rate beyond the end that alone does best; none where the best lies inside, or is shared."""
    rates = sorted(accuracy)
    value = [-1.0 if its is None else its for _, its in sorted(accuracy.items())]
    if value[-1] > max(value[:-1]):
        return [_short(rates[-1] ** 2 / rates[-2])]
    if value[0] > max(value[1:]):
        return [_short(rates[0] ** 2 / rates[1])]
    return []


def _short(rate: float) -> float:
    """As it is written in a table and in a folder's name."""
    return float(f"{rate:.2g}")


def _accuracy(runs: Collection[tuple[Path, ConfigDict]]) -> float | None:
    """Of the last round, mean over seeds; None where one has not finished, or is of another config."""
    if not all(finished(workdir, config) for workdir, config in runs):
        return None
    summaries = [json.loads((workdir / "summary.json").read_text()) for workdir, _ in runs]
    return float(np.mean([summary["final_accuracy"] for summary in summaries]))


def markdown(found: dict[str, Any]) -> str:
    """The table of what was tried, and how."""
    lines = ["| training | setting | rates tried | accuracy, % | taken |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        rates = ", ".join(f"{rate:g}" for rate in row["rates"])
        accuracy = ", ".join("failed" if a is None else f"{100 * a:.1f}" for a in row["accuracy"])
        taken = "none" if row["taken"] is None else f"{row['taken']:g}"
        lines.append(f"| {row['training']} | `{row['setting']}` | {rates} | {accuracy} | {taken} |")
    table = "\n".join(lines)
    failures = "".join(f"- failed: {run}: {why}\n" for run, why in found["failures"].items())
    return f"""# Rates searched on {found["data"]}, {found["model"]}

{table}

- accuracy of the last round on {found["validation_examples"]} validation examples, held out of the training
  examples; mean over {found["seeds"]} seeds; of equals the smallest rate is taken
- {found["hardware"]}; `{found["command"]}`
{failures}"""


def _main(argv: list[str]) -> None:
    command = f"python launch/search.py {shlex.join(sys.argv[1:])}"
    try:
        config = smoke_of(FLAGS.config) if FLAGS.smoke else FLAGS.config
        found = search(config, FLAGS.methods, FLAGS.seeds, expanded(FLAGS.out), command)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    say(markdown(found))
    if found["failures"]:
        sys.exit(f"error: {len(found['failures'])} runs failed, see above")


if __name__ == "__main__":
    app.run(_main, flags_parser=main.parse_flags)
