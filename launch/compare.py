"""Compare methods on one config: all methods × seeds in one process, then one table and one picture.

    python launch/compare.py --config=configs/digits.py --seeds=3 --out=runs/comparison \
        --methods=linear_probe,fedavg,deltamask,peft,peft:kind=lora:wire=8bit
    python launch/compare.py --config=configs/digits.py --methods=fedavg,peft --out=runs/try --smoke

A method is any name `config.method` takes, with settings of its own behind colons: any of configs/common.py,
those of a section named like the method also without its name. Before these come those of tuning.py.
Whatever else the config says is the same for all: split, pretrained weights, head, rounds. To search a
learning rate, list a method with several: --methods=fedavg:learning_rate=1e-4,fedavg:learning_rate=3e-4.

Runs lie in OUT/METHOD/seedN. One that is there, finished and of the same config, is not repeated, so the same
command goes on where an interrupted one stopped. OUT gets comparison.json (everything, with the curves),
comparison.md (the table) and comparison.png (accuracy against cumulative megabytes), rewritten after every
run. With several long runs, --config.prefix_cache=FOLDER computes the frozen prefix once for all.
"""

import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import jax
from absl import app, flags
from comparison_report import draw, markdown, summarise
from ml_collections import ConfigDict
from runner import Job, play, settings_in
from tuning import checked, settings_of, with_settings

from deltamask_jax import config as config_lib
from deltamask_jax import main
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.workdir import files

# What --smoke leaves of a config; smaller values stay.
SMOKE = {"rounds": 2, "clients": 4, "local_epochs": 1, "head.epochs": 2, "batch_size": 8}
SMOKE_EXAMPLES = {"train_examples": 80, "test_examples": 40}

FLAGS = flags.FLAGS
if __name__ == "__main__":  # beside --config and its overrides, which deltamask_jax.main defines
    flags.DEFINE_list(
        "methods", None, "Methods to compare, each with NAME:setting=value:… if need be.", required=True
    )
    flags.DEFINE_integer("seeds", 1, "Runs of each method: seeds 0 … n−1.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for the runs and the comparison.", required=True)
    flags.DEFINE_float(
        "target", 0.0, "Accuracy whose cost is asked, 0 … 1; 0 = the linear probe's.", 0.0, 1.0
    )
    flags.DEFINE_bool("smoke", False, "One seed, few examples, two rounds: whether everything runs.")


def config_of(config: ConfigDict, method: str, seed: int) -> ConfigDict:
    """The config of one run.

    Args:
        method: NAME, or NAME:setting=value:setting=value.

    Raises:
        ValueError: an unknown method or setting, or a value that makes no sense.
    """
    name, *own = method.split(":")
    malformed = [item for item in own if "=" not in item]
    if malformed:
        raise ValueError(f"--methods: {malformed[0]!r} of {method!r} is not setting=value")
    settings = {"method": name, "seed": seed, **settings_of(config.model.name, name)}
    section = config_lib.flatten(config.get(name, ConfigDict()))
    for item in own:
        setting, value = item.split("=", 1)
        settings[f"{name}.{setting}" if setting in section else setting] = value
    return checked(config, settings)


def smoke_of(config: ConfigDict) -> ConfigDict:
    """The same config, small."""
    flat = config_lib.flatten(config)
    small = {name: min(flat[name], value) for name, value in SMOKE.items()}
    return with_settings(config, small | {k: min(flat[k] or v, v) for k, v in SMOKE_EXAMPLES.items()})


def finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether the run of this very config has left its results there.

    Raises:
        ValueError: its config.json is damaged.
    """
    if not (workdir / "summary.json").exists():
        return False
    return settings_in(workdir) == json.loads(json.dumps(config.to_dict()))


def compare(config: ConfigDict, names: list[str], seeds: int, out: Path, target: float, command: str) -> int:
    """Run what is missing, and write the comparison after every run.

    Returns:
        How many runs failed; their messages stand in the comparison.

    Raises:
        ValueError: a method or setting is unknown or makes no sense; found before anything runs.
    """
    names = list(dict.fromkeys(names))
    runs = {
        (name, seed): (out / re.sub(r"[^\w.=-]+", "_", name) / f"seed{seed}", config_of(config, name, seed))
        for seed in range(seeds)
        for name in names
    }
    about = {"command": command, "hardware": _hardware(), "model": config.model.name, "data": config.data}

    def write(failures: dict[str, str]) -> None:
        done = {key: workdir for key, (workdir, chosen) in runs.items() if finished(workdir, chosen)}
        if done:
            comparison = summarise(done, names, target) | about | {"failures": failures}
            files.write_json(out / "comparison.json", comparison)
            (out / "comparison.md").write_text(markdown(comparison))
            draw(out / "comparison.png", comparison)

    jobs = [Job(f"{name}, seed {seed}", *its, done=finished(*its)) for (name, seed), its in runs.items()]
    failures = play(jobs, write)
    say(f"comparison in {out}")
    return len(failures)


def _hardware() -> str:
    devices = jax.devices()
    host = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return host if devices[0].platform == "cpu" else f"{len(devices)} × {devices[0].device_kind}, {host}"


def _main(argv: list[str]) -> None:
    command = f"python launch/compare.py {shlex.join(sys.argv[1:])}"
    config, seeds = FLAGS.config, FLAGS.seeds
    try:
        if FLAGS.smoke:
            config, seeds = smoke_of(config), 1
        failed = compare(config, FLAGS.methods, seeds, expanded(FLAGS.out), FLAGS.target, command)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed} runs failed; {FLAGS.out}/comparison.md says why")


if __name__ == "__main__":
    app.run(_main, flags_parser=main.parse_flags)
