"""Whose workdir it is: taking it for a run, refusing it, or moving aside what it holds."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from deltamask_jax import metrics

FREE = ("resume", "checkpoint.every", "checkpoint.keep", "max_repeats")  # settings a continuation may change
WAYS_OUT = "choose another --workdir, or --config.resume=fresh to move it aside"


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
        if config.resume == "fresh" and any(workdir.iterdir()):
            _move_aside(workdir)
            os.close(lock)
            workdir.mkdir()
            lock = _only_writer(workdir)
        try:
            _check_same_config(workdir, config)
            metrics.write_json(workdir / "config.json", config.to_dict())
        except BaseException:
            os.close(lock)
            raise
        return lock
    except OSError as error:
        raise OSError(
            f"cannot write to workdir {workdir}: {error.strerror or error}; choose another --workdir"
        ) from None


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file, none where there is none; a torn one at its end is left out."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


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
        earlier = _flat(json.loads(path.read_text()))
    except ValueError:
        raise ValueError(f"{path} is not JSON, so nothing in it can be continued: {WAYS_OUT}") from None
    now = _flat(json.loads(json.dumps(config.to_dict())))
    differing = [
        f"{name} is {earlier.get(name, 'absent')!r} there and {now.get(name, 'absent')!r} here"
        for name in sorted(earlier.keys() | now.keys())
        if name not in FREE and earlier.get(name, "absent") != now.get(name, "absent")
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{workdir} holds a run of another config ({'; '.join(differing[:3])}{more}): {WAYS_OUT}"
        )


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _move_aside(workdir: Path) -> None:
    aside = next(p for i in range(1, 10**6) if not (p := workdir.with_name(f"{workdir.name}.{i}")).exists())
    held = ", ".join(sorted(path.name for path in workdir.iterdir()))
    print(f"moving {workdir} aside to {aside}: it holds {held}")
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
