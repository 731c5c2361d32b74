"""What a run ran on: versions, commit, hardware."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import deltamask_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pyfusefilter")


def program() -> dict[str, str | None]:
    """Versions of all that computes; `commit` is None outside a clone."""
    return {
        "deltamask_jax": deltamask_jax.__version__,
        "commit": _commit(Path(__file__).parent),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def describe() -> dict[str, Any]:
    """The contents of environment.json: plain strings and numbers."""
    devices = jax.devices()
    return {
        **program(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "command": _command(sys.argv),
    }


def _command(argv: list[str]) -> str:
    program = Path(argv[0])
    if program == Path(__file__).with_name("main.py"):
        return shlex.join(["python", "-m", "deltamask_jax.main", *argv[1:]])
    return shlex.join([program.name, *argv[1:]])


def _commit(folder: Path) -> str | None:
    """The commit of the clone `folder` lies in, with '+' where tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # somebody else's repository around an installed package
            return None
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
