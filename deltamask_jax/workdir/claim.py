"""Whose workdir it is: taking it for a run, refusing it, or moving aside what it holds.

A run writes a marker first. Where it lies, the names of `written` are the run's; all other files of the
folder are somebody's, and no run touches them. A folder without the marker is taken if none of these names is
there, or if what is there was begun by a version before the marker.
"""

import fcntl
import itertools
import json
import os
from pathlib import Path
from typing import Any

import deltamask_jax
from deltamask_jax import config_files
from deltamask_jax.progress import say
from deltamask_jax.workdir import files

FREE = ("resume", "checkpoint.every", "checkpoint.keep", "max_repeats")  # settings a continuation may change
WAYS_OUT = "choose another --workdir, or --config.resume=fresh to move it aside"
MARKER = ".deltamask_jax"  # names the version that began the run
# A line per round: those of rounds played again are cut off.
LINES = ("metrics.jsonl", "clients.jsonl", "diagnostics.jsonl")


def written(config) -> list[str]:
    """Names of all files and folders that a run of this config may write, the marker aside."""
    return [
        "config.json",
        *LINES,
        "checkpoints",
        "split.json",
        "split.png",
        "environment.json",
        "privacy.json",
        "log.txt",
        "payload.png",
        "curves.png",
        f"{config.method}.safetensors",
        "tensorboard",
        "wandb",
        "summary.json",
    ]


def claim(workdir: Path, config) -> int:
    """Make the folder this run's: locked, with its config.json, and nothing of another run.

    Returns:
        A file descriptor that holds the lock until it is closed or the process ends.

    Raises:
        ValueError: it holds something this run cannot continue; the message says what and what to do.
        OSError: it cannot be written, or another process is writing to it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _only_writer(workdir)
        try:
            if not _holds_a_run(workdir):
                _refuse_names_of_others(workdir, config)
            elif config.resume == "fresh":
                _move_aside(workdir)
                workdir.mkdir()
                moved, lock = lock, _only_writer(workdir)
                os.close(moved)
            _check_same_config(workdir, config)
            files.write_json(workdir / MARKER, {"deltamask_jax": deltamask_jax.__version__})
            files.write_json(workdir / "config.json", config.to_dict())
        except BaseException:
            os.close(lock)
            raise
        return lock
    except OSError as error:
        raise OSError(
            f"cannot write to workdir {workdir}: {error.strerror or error}; choose another --workdir"
        ) from None


def differing(earlier: dict[str, Any], config) -> dict[str, tuple[Any, Any]]:
    """Settings that make a config another run's: name -> (there, here), 'absent' where there is none.

    Those a continuation may change do not, nor do those that the other's version did not have yet: they were
    as they are by default.

    Args:
        earlier: the config.json of the other run.
    """
    there = _flat(config_files.defaults().to_dict()) | _flat(earlier)
    here = _flat(json.loads(json.dumps(config.to_dict())))
    pairs = {
        name: (there.get(name, "absent"), here.get(name, "absent"))
        for name in sorted(there.keys() | here.keys())
        if name not in FREE
    }
    return {name: (was, now) for name, (was, now) in pairs.items() if was != now}


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that a run wrote, none where there is none: objects with a whole number as `round`,
    up to the first that is torn or damaged."""
    whole = itertools.takewhile(
        lambda record: isinstance(record, dict) and isinstance(record.get("round"), int), _json_lines(path)
    )
    return list(whole)


def _json_lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines, up to the first line that is none."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def summary_of(workdir: Path) -> dict[str, Any] | None:
    """summary.json, or None where the run is not finished.

    Raises:
        ValueError: the file is not one that a run wrote; the message says what to do.
    """
    path = workdir / "summary.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or "linear_probe_accuracy" not in found:
        raise ValueError(
            f"{path} is damaged, it is not what a run writes: remove it, and the run's own command makes it "
            "again from the last checkpoint"
        )
    return found


def _holds_a_run(workdir: Path) -> bool:
    """Whether a run has begun here: it left its marker, or what a version before the marker left."""
    if (workdir / MARKER).exists():
        return True
    try:
        settings = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return False
    if not (isinstance(settings, dict) and {"method", "rounds", "clients", "model"} <= settings.keys()):
        return False
    if not (
        _are_a_runs(workdir / "metrics.jsonl", "uplink_bytes") and _are_a_runs(workdir / "diagnostics.jsonl")
    ):
        return False
    steps = list((workdir / "checkpoints").glob("*"))
    if not lines(workdir / "metrics.jsonl"):  # nothing was played
        return not steps
    return all((step / "ledger").is_dir() or "orbax-checkpoint-tmp" in step.name for step in steps)


def _are_a_runs(path: Path, *also: str) -> bool:
    """Whether lines are such as a run writes, a torn first one included: objects with a round, and `also`."""
    records = _json_lines(path)
    if not records:
        return not path.exists() or b"\n" not in path.read_bytes()
    return all(isinstance(record, dict) and {"round", *also} <= record.keys() for record in records)


def _refuse_names_of_others(workdir: Path, config) -> None:
    """Refuse a folder in which a run would overwrite what none has written.

    Raises:
        ValueError: naming it.
    """
    names = [found for name in written(config) for found in (name, f"{name}.tmp")]
    held = [name for name in names if os.path.lexists(workdir / name)]
    if held:
        raise ValueError(
            f"{workdir} holds {', '.join(held)}, which no run of this program wrote: choose another --workdir"
        )


def _check_same_config(workdir: Path, config) -> None:
    """Refuse a workdir of another config.

    Raises:
        ValueError: naming the settings that differ.
    """
    path = workdir / "config.json"
    if not lines(workdir / "metrics.jsonl") and not (workdir / "summary.json").exists():
        return  # nothing was played yet, so nothing is lost: a mistyped first command, for example
    if not path.exists():
        raise ValueError(f"{workdir} holds metrics.jsonl without its config.json: {WAYS_OUT}")
    try:
        others = differing(json.loads(path.read_text()), config)
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is not JSON, so nothing in it can be continued: {WAYS_OUT}") from None
    if others:
        told = [f"{name} is {there!r} there and {here!r} here" for name, (there, here) in others.items()]
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise ValueError(f"{workdir} holds a run of another config ({'; '.join(told[:3])}{more}): {WAYS_OUT}")


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _move_aside(workdir: Path) -> None:
    aside = next(p for i in range(1, 10**6) if not (p := workdir.with_name(f"{workdir.name}.{i}")).exists())
    held = ", ".join(sorted(path.name for path in workdir.iterdir() if path.name != MARKER))
    say(f"moving {workdir} aside to {aside}: it holds {held}")
    workdir.rename(aside)


def _only_writer(workdir: Path) -> int:
    """Lock the folder; the kernel drops the lock with the process."""
    folder = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise OSError("another process is running in it") from None
    except OSError:  # a file system without locks
        pass
    return folder
