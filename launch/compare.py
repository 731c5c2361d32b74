"""Compare methods on one config: all methods × seeds in one process, then one table and one picture.

    python launch/compare.py --config=configs/digits.py --seeds=3 --out=runs/comparison \
        --methods=linear_probe,fedavg,deltamask,peft,LoRA=peft:kind=lora:wire=8bit
    python launch/compare.py --config=configs/digits.py --methods=fedavg,peft --out=runs/try --smoke

A method is any name `config.method` takes, with settings of its own behind colons: any of configs/common.py,
those of a section named like the method also without its name. LABEL= before it is what table and picture
call it. Before these come what a method cannot do without (tuning.py), then the rates that launch/search.py
found on validation examples, with --settings=FOLDER/search.json. Whatever else the config says is the same
for all: rates, split, pretrained weights, head, rounds.

Runs lie in OUT/METHOD/seedN. One that is there, finished and of the same config, is not repeated, so the same
command goes on where an interrupted one stopped. OUT gets comparison.json (everything, with the curves),
comparison.md (the table) and comparison.png (accuracy against megabytes up and down), rewritten after every
run. With several long runs, --config.prefix_cache=FOLDER computes the frozen prefix once for all.
"""

import json
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from comparison_report import draw, markdown, summarise
from ml_collections import ConfigDict
from runner import Job, play, settings_in
from tuning import NEEDS, RATE, TRAINS_LIKE, checked, with_settings

from deltamask_jax import config as config_lib
from deltamask_jax import main, threads
from deltamask_jax.data import partition
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.workdir import files

# What --smoke leaves of a config; smaller values stay.
SMOKE = {"rounds": 2, "clients": 4, "local_epochs": 1, "head.epochs": 2, "batch_size": 8}
SMOKE_EXAMPLES = {"train_examples": 80, "test_examples": 40}

FLAGS = flags.FLAGS
if __name__ == "__main__":  # beside --config and its overrides, which deltamask_jax.main defines
    flags.DEFINE_list(
        "methods", None, "Methods to compare, each with LABEL=NAME:setting=value:… if need be.", required=True
    )
    flags.DEFINE_integer("seeds", 1, "Runs of each method: seeds 0 … n−1.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for the runs and the comparison.", required=True)
    flags.DEFINE_string("settings", None, "The search.json of launch/search.py, whose rates are taken.")
    flags.DEFINE_bool("smoke", False, "Few examples, two rounds: whether everything runs.")


def labels_of(methods: list[str]) -> dict[str, str]:
    """{method: what it is called}, each LABEL=METHOD or METHOD, which then is its own label.

    Raises:
        ValueError: two of the same label, or one without a method.
    """
    labels: dict[str, str] = {}
    for text in dict.fromkeys(methods):
        label, equals, rest = text.partition("=")
        is_labelled = equals and ":" not in label
        if is_labelled and not (label and rest):
            raise ValueError(f"--methods: {text!r} is not LABEL=METHOD")
        method = rest if is_labelled else text
        if method in labels:
            raise ValueError(
                f"--methods: {method} twice, as {labels[method]} and {label if is_labelled else text}"
            )
        labels[method] = label if is_labelled else text
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"--methods: two of the same label: {', '.join(labels.values())}")
    return labels


def config_of(
    config: ConfigDict, method: str, seed: int, searched: dict[str, dict[str, Any]] | None = None
) -> ConfigDict:
    """The config of one run.

    Args:
        method: NAME, or NAME:setting=value:setting=value.
        searched: method -> settings, what `read_searched` gives; None: none were.

    Raises:
        ValueError: an unknown method or setting, a value that makes no sense, or a method whose rate was not
            searched although others were.
    """
    name, *own = method.split(":")
    malformed = [item for item in own if "=" not in item]
    if malformed:
        raise ValueError(f"--methods: {malformed[0]!r} of {method!r} is not setting=value")
    settings = {"method": name, "seed": seed, **NEEDS.get(name, {})}
    section, mine = config_lib.flatten(config.get(name, ConfigDict())), {}
    for item in own:
        setting, value = item.split("=", 1)
        mine[f"{name}.{setting}" if setting in section else setting] = value
    if searched is not None:
        found = searched.get(method) or searched.get(TRAINS_LIKE.get(name, method))
        rate = RATE.get(TRAINS_LIKE.get(name, name))
        if not found and rate and rate not in mine:
            raise ValueError(
                f"--settings: no rate was searched for {method}; search it, or write :{rate}=RATE"
            )
        settings |= found or {}
    return checked(config, settings | mine)


def read_searched(file: Path) -> dict[str, dict[str, Any]]:
    """method -> settings, from launch/search.py's search.json.

    Raises:
        ValueError: it is something else.
    """
    try:
        rows = json.loads(file.read_text())["rows"]
        return {row["training"]: {row["setting"]: row["taken"]} for row in rows if row["taken"] is not None}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"--settings={file} is not launch/search.py's search.json ({error!r})") from None


def smoke_of(config: ConfigDict) -> ConfigDict:
    """The same config, small."""
    flat = config_lib.flatten(config)
    small = {name: min(flat[name], value) for name, value in SMOKE.items()}
    small |= {name: min(flat[name] or value, value) for name, value in SMOKE_EXAMPLES.items()}
    small["validation_examples"] = min(flat["validation_examples"], SMOKE_EXAMPLES["test_examples"])
    asked = partition.cohort_size(small["clients"], config.participation)
    small["min_clients"] = min(config.min_clients, asked)
    return with_settings(config, small)


def finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether the run of this very config has left its results there.

    Raises:
        ValueError: its config.json is damaged.
    """
    if not (workdir / "summary.json").exists():
        return False
    return settings_in(workdir) == json.loads(json.dumps(config.to_dict()))


def runs_of(
    config: ConfigDict,
    names: list[str],
    seeds: int,
    out: Path,
    searched: dict[str, dict[str, Any]] | None = None,
) -> dict[tuple[str, int], tuple[Path, ConfigDict]]:
    """(method, seed) -> workdir and config.

    Raises:
        ValueError: a method or setting is unknown or makes no sense.
    """
    return {
        (name, seed): (
            out / re.sub(r"[^\w.=-]+", "_", name) / f"seed{seed}",
            config_of(config, name, seed, searched),
        )
        for seed in range(seeds)
        for name in dict.fromkeys(names)
    }


def jobs_of(runs: dict[tuple[str, int], tuple[Path, ConfigDict]]) -> list[Job]:
    """The same for the runner."""
    return [Job(f"{name}, seed {seed}", *its, done=finished(*its)) for (name, seed), its in runs.items()]


def about(config: ConfigDict, command: str) -> dict[str, str]:
    """What a table says of how it was made."""
    devices = jax.devices()
    cores = threads.count()
    host = f"{cores} CPU core{'s' * (cores > 1)} ({platform.machine()})"
    hardware = host if devices[0].platform == "cpu" else f"{len(devices)} × {devices[0].device_kind}, {host}"
    examples = "validation" if config.validation_examples else "test"
    return {
        "command": command,
        "hardware": hardware,
        "model": config.model.name,
        "data": config.data,
        "examples": examples,
    }


def compare(
    config: ConfigDict,
    names: list[str],
    seeds: int,
    out: Path,
    command: str,
    searched: dict[str, dict[str, Any]] | None = None,
) -> int:
    """Run what is missing, and write the comparison after every run.

    Returns:
        How many runs failed; their messages stand in the comparison.

    Raises:
        ValueError: a method or setting is unknown or makes no sense; found before anything runs.
    """
    labels = labels_of(names)
    runs = runs_of(config, list(labels), seeds, out, searched)

    def write(failures: dict[str, str]) -> None:
        done = {key: workdir for key, (workdir, chosen) in runs.items() if finished(workdir, chosen)}
        if done:
            comparison = summarise(done, labels) | about(config, command) | {"failures": failures}
            files.write_json(out / "comparison.json", comparison)
            (out / "comparison.md").write_text(markdown(comparison))
            draw(out / "comparison.png", comparison)

    failures = play(jobs_of(runs), write)
    say(f"comparison in {out}")
    return len(failures)


def _main(argv: list[str]) -> None:
    command = f"python launch/compare.py {shlex.join(sys.argv[1:])}"
    try:
        config = smoke_of(FLAGS.config) if FLAGS.smoke else FLAGS.config
        searched = read_searched(expanded(FLAGS.settings)) if FLAGS.settings else None
        failed = compare(config, FLAGS.methods, FLAGS.seeds, expanded(FLAGS.out), command, searched)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed} runs failed; {FLAGS.out}/comparison.md says why")


if __name__ == "__main__":
    app.run(_main, flags_parser=main.parse_flags)
