"""Compare methods on one config: all methods × seeds in one process, then one table and one picture.

    python launch/compare.py --config=configs/quickstart.py --seeds=3 --out=runs/comparison \
        --methods=linear_probe,fedavg,deltamask,peft,peft:kind=lora:wire=8bit
    python launch/compare.py --config=configs/quickstart.py --methods=fedavg,peft --out=runs/try --smoke

A method is any name `config.method` takes, with settings of its own behind colons: any of configs/common.py,
those of a section named like the method also without its name. Before these come NEEDS and SETTINGS below.
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
from typing import Any

import jax
from absl import app, flags
from comparison_report import draw, markdown, summarise
from ml_collections import ConfigDict

from deltamask_jax import config as config_lib
from deltamask_jax import experiment, main, methods
from deltamask_jax.paths import expanded
from deltamask_jax.workdir import files

# What a method needs on every network. FedPM's aggregator is the Beta posterior; FedMask and KLMS have no
# masks drawn from public uniforms, and so no control variate. FedCOF is one round and starts from no head.
NEEDS: dict[str, dict[str, Any]] = {
    name: {"mask.aggregator": "beta"} for name in ("fedpm", "fedmask", "klms")
} | {"fedcof": {"rounds": 1, "head.init": "he"}}

# What is best on a network (`config.model.name`): {network: {method: {setting: value}}}. Those of glyph_vit
# are from a search over five rounds of the quick start (docs/results.md); what is not here is as the config
# says.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "glyph_vit": {
        "linear_probe": {"linear_probe.learning_rate": 0.3},
        "fedavg": {"fedavg.learning_rate": 1e-3},
        # Those that compress FedAvg's updates train like it.
        "eden": {"fedavg.learning_rate": 1e-3},
        "drive": {"fedavg.learning_rate": 1e-3},
        "qsgd": {"fedavg.learning_rate": 1e-3},
        "signsgd": {"fedavg.learning_rate": 1e-3},  # searched by itself: it trains with error feedback
        "peft": {"peft.learning_rate": 1e-2},
        "deltamask": {"mask.learning_rate": 1.2},
        "deepreduce": {"mask.learning_rate": 1.2},  # trains like DeltaMask
        "fedpm": {"mask.learning_rate": 1.2},
        "fedmask": {"mask.learning_rate": 0.6},
        "klms": {"mask.learning_rate": 1.2},
    },
}

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


def settings_of(network: str, method: str) -> dict[str, Any]:
    """What a method gets on a network unless told otherwise."""
    return NEEDS.get(method, {}) | SETTINGS.get(network, {}).get(method, {})


def with_settings(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """A copy of the config with some settings changed; text takes the type of the setting.

    Raises:
        ValueError: a setting that does not exist, or a value of the wrong type.
    """
    config, flat = config.copy_and_resolve_references(), config_lib.flatten(config)
    for name, value in settings.items():
        if name not in flat:
            raise ValueError(f"unknown setting config.{name}: {config_lib.nearest(name, flat)}")
        kind = type(flat[name])
        try:
            typed = json.loads(value) if isinstance(value, str) and kind is bool else kind(value)
            config.update_from_flattened_dict({name: typed})
        except (ValueError, TypeError):
            raise ValueError(f"config.{name}={value!r}: takes a {kind.__name__}") from None
    return config


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
    chosen = with_settings(config, settings)
    config_lib.validate(chosen)
    methods.check(chosen)
    return chosen


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


def settings_in(workdir: Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        ValueError: it is damaged.
    """
    try:
        settings = json.loads((workdir / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{workdir}/config.json is damaged ({error}); move the folder away") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{workdir}/config.json is not a run's; choose another --out")
    return settings


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
    failures: dict[str, str] = {}
    for number, ((name, seed), (workdir, chosen)) in enumerate(runs.items(), 1):
        if finished(workdir, chosen):
            print(f"[{number}/{len(runs)}] {name}, seed {seed}: is there")
        else:
            print(f"[{number}/{len(runs)}] {name}, seed {seed}")
            try:
                experiment.run(chosen, workdir)
            except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:  # a failure is a result
                failures[f"{name}, seed {seed}"] = str(error)
                print(f"failed: {error}")
            jax.clear_caches()  # the next run compiles its own
        done = {key: workdir for key, (workdir, chosen) in runs.items() if finished(workdir, chosen)}
        if done:
            comparison = summarise(done, names, target) | about | {"failures": failures}
            files.write_json(out / "comparison.json", comparison)
            (out / "comparison.md").write_text(markdown(comparison))
            draw(out / "comparison.png", comparison)
    print(f"comparison in {out}")
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
