"""Runs a list of experiments, several seeds each; what is done is skipped, so a stopped set continues.

Every script beside this one that says `runner.main(__doc__, runs)` takes the same options:

    python launch/table_iid.py --out=runs/iid --seeds=3      # one process, one run after the other
    python launch/table_iid.py --smoke                       # the same list in small: minutes on two cores
    python launch/table_iid.py --match='cifar10/(deltamask|eden)'   # only runs whose name matches
    python launch/table_iid.py --list                        # what would run, numbered
    python launch/table_iid.py --only=7                      # one of them, for job arrays (launch/README.md)

In --out are afterwards one folder NAME/seedS a run, `table.md`, `table.json` and `report.html`.
"""

import argparse
import dataclasses
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tuning import NEEDS, checked

from deltamask_jax import config_files, experiment
from deltamask_jax.federation.rounds import TooFewClients
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.reporting import report, table
from deltamask_jax.workdir import claim, files

# Errors that say by themselves what is wrong.
EXPLAINED = (ValueError, OSError, ArithmeticError, MemoryError, TooFewClients)

# The embedded network and the digits, made small enough that a run takes seconds once it is compiled.
SMOKE_CONFIG = "configs/digits.py"
SMOKE = {
    "rounds": 2,
    "clients": 4,
    "train_examples": 160,
    "test_examples": 100,
    "head.epochs": 3,
    "model.trained_blocks": 2,
}

# Every method of the comparison, in the tables' order.
METHODS = (
    "linear_probe",
    "fedcof",
    "fedavg",
    "deltamask",
    "fedpm",
    "fedmask",
    "deepreduce",
    "klms",
    "eden",
    "drive",
    "qsgd",
    "signsgd",
    "peft",
)
# DeltaMask whose votes wait until they amount to two (docs/concepts.md).
HELD: dict[str, Any] = {
    "method": "deltamask",
    "mask.uniforms": "per_client",
    "mask.aggregator": "control_variate",
    "mask.ranking": "thin",
    "mask.kappa": 0.5,
    "mask.kappa_final": 0.5,
    "downlink.hold": 2,
}
DATA_SETS = (
    "cifar10",
    "cifar100",
    "svhn_cropped",
    "emnist",
    "fashion_mnist",
    "eurosat",
    "food101",
    "cars196",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One experiment, to be run with several seeds.

    Attributes:
        name: its line in the table and its folder below --out.
        config: file, with options after a colon; replaced by SMOKE_CONFIG under --smoke.
        changes: dotted setting -> value, on top.
    """

    name: str
    config: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


def settings(run: Run, seed: int, smoke: bool) -> ConfigDict:
    """The config of a run, checked.

    Raises:
        ValueError: a setting or method does not exist; the run is named.
    """
    config = config_files.load(SMOKE_CONFIG if smoke else run.config)
    method = run.changes.get("method", config.method)
    changes = {
        **(SMOKE if smoke else {}),
        **NEEDS.get(method, {}),
        **run.changes,
        "seed": seed,
    }
    try:
        return checked(config, changes)
    except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from None


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


def is_done(workdir: Path, config: ConfigDict) -> bool:
    """Whether the workdir holds this very run, finished.

    Raises:
        ValueError: it holds another one, or a damaged one.
    """
    if claim.summary_of(workdir) is None:
        return False
    if changed := changed_in(workdir, config):
        raise ValueError(f"{workdir} holds a run with another {', '.join(changed)}; choose another --out")
    return True


def changed_in(workdir: Path, config: ConfigDict) -> list[str]:
    """Names of the settings that make the run in a workdir another one.

    Raises:
        ValueError: its config.json is damaged.
    """
    return list(claim.differing(settings_in(workdir), config))


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the list.

    Attributes:
        name: as it is called in messages.
        done: it was found finished and is not repeated.
    """

    name: str
    workdir: Path
    config: ConfigDict
    done: bool


def play(jobs: list[Job], after: Callable[[dict[str, str]], None] = lambda failed: None) -> dict[str, str]:
    """Run what is not done, one after the other; a run's failure does not cost the others.

    Args:
        after: called after every run, with what has failed so far.

    Returns:
        {name: message} of those that failed.
    """
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        say(f"=== {number} of {len(jobs)}: {job.name}{' is done already' * job.done}")
        if not job.done:
            started = time.time()
            try:
                experiment.run(job.config, job.workdir)
                say(f"=== {time.time() - started:.0f} s")
            except Exception as error:
                if not isinstance(error, EXPLAINED):
                    traceback.print_exc()
                failed[job.name] = str(error)
                say(f"failed: {error}")
            jax.clear_caches()  # compiled programs of one run are of no use to the next
        after(failed)
    return failed


def gather(out: Path, jobs: list[Job]) -> None:
    """Write table.md, table.json and report.html about the runs that have begun; what is damaged, or of
    another config, is named and left out."""
    shown, loaded = [], []
    for job in (job for job in jobs if (job.workdir / "metrics.jsonl").exists()):
        try:
            if changed := changed_in(job.workdir, job.config):
                raise ValueError(f"{job.workdir} holds a run with another {', '.join(changed)}")
            shown.append(job.workdir)
            loaded.append(table.load(job.workdir, str(job.workdir.relative_to(out))))
        except (ValueError, OSError) as error:
            say(f"left out: {error}")
    if not loaded:
        return
    rows = {members.label: table.summary_row(members) for members in table.group(loaded)}
    columns = table.columns(list(rows.values()))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {label} | " + " | ".join(row[column] for column in columns) + " |" for label, row in rows.items()
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    files.write_json(out / "table.json", rows)
    (out / "report.html").write_text(report.render(shown), encoding="utf-8")
    say(f"{out / 'table.md'}, {out / 'report.html'}: {len(loaded)} of {len(jobs)} runs")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def main(doc: str, runs: Callable[[bool], list[Run]], argv: list[str] | None = None) -> None:
    """The command line of a launch script.

    Args:
        doc: the script's docstring; its first line describes it.
        runs: smoke -> the list of experiments.
    """
    script = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument(
        "--out", type=expanded, help=f"default: runs/{script}, with --smoke runs/{script}-smoke"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 … n−1 of each run")
    parser.add_argument("--smoke", action="store_true", help="the embedded network on digits, in small")
    parser.add_argument(
        "--match", type=_pattern, default="", help="regular expression; only runs whose name it finds"
    )
    parser.add_argument("--list", action="store_true", help="print the runs, numbered, and stop")
    parser.add_argument("--only", type=int, help="run this number of the list and gather nothing")
    options = parser.parse_args(argv)
    out = options.out or Path("runs") / (script + "-smoke" * options.smoke)
    chosen = [run for run in runs(options.smoke) if re.search(options.match, run.name)]
    jobs = [(run, seed) for seed in range(options.seeds) for run in chosen]
    workdirs = [out / run.name / f"seed{seed}" for run, seed in jobs]
    if not chosen:
        parser.error(f"no run's name matches --match={options.match}; --list shows them")
    if not jobs:
        parser.error(f"--seeds={options.seeds}: must be at least 1")
    if options.only is not None and not 0 <= options.only < len(jobs):
        parser.error(f"--only={options.only}: the list has runs 0 … {len(jobs) - 1}")
    if options.list:
        print("\n".join(f"{i} {workdir}" for i, workdir in enumerate(workdirs)))
        return
    try:  # every setting of every run, and what the report needs, before the first of them starts
        report.template()
        configs = [settings(run, seed, options.smoke) for run, seed in jobs]
        listed = [
            Job(str(workdir), workdir, config, is_done(workdir, config))
            for workdir, config in zip(workdirs, configs, strict=True)
        ]
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if options.only is None:
        failed = play(listed)
        gather(out, listed)
    else:
        failed = play([listed[options.only]])
    if failed:
        sys.exit("error: failed\n  " + "\n  ".join(f"{name}: {why}" for name, why in failed.items()))
