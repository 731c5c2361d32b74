"""What a run ran on: versions, commit, hardware."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import deltamask_jax
from deltamask_jax import threads

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pyfusefilter")
# What jax reads from the environment and a run cannot do without: types, and what is drawn from a key.
_REQUIRED = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
# What it reads too and may be otherwise, at the price of other rounding or an earlier end.
_USUAL = {
    "jax_default_matmul_precision": None,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
}


def check() -> None:
    """Refuse a jax without the CPU or the device it was told to use, or whose settings change types or
    randomness.

    Call it after `hosts.start`: it starts jax's devices.

    Raises:
        ValueError: which setting, and what to do.
    """
    for flag, wanted in _REQUIRED.items():
        value = getattr(jax.config, flag, wanted)
        if value != wanted:
            raise ValueError(
                f"{flag.upper()}={value} changes what a run computes or draws: unset it, or set {wanted}"
            )
    try:
        jax.devices()
    except Exception as error:  # RuntimeError or AssertionError, by platform and version
        why = (str(error).strip().splitlines() or ["no such device"])[0][:200]
        asked = jax.config.jax_platforms or "none"  # ty: ignore[missing-attribute]
        raise ValueError(
            f"jax cannot start (JAX_PLATFORMS: {asked}): {why}; unset JAX_PLATFORMS or set it to cpu"
        ) from error
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:
        asked = jax.config.jax_platforms  # ty: ignore[missing-attribute]
        raise ValueError(
            f"JAX_PLATFORMS={asked} hides the CPU that codecs need: use JAX_PLATFORMS={asked},cpu"
        ) from None


def unusual() -> dict[str, Any]:
    """jax's settings that may change rounding or end a run early, where they are not the usual ones."""
    found = {flag: getattr(jax.config, flag, usual) for flag, usual in _USUAL.items()}
    return {flag.upper(): value for flag, value in found.items() if value != _USUAL[flag]}


def program() -> dict[str, str | None]:
    """Versions of all that computes; `commit` is None outside a clone."""
    return {
        "deltamask_jax": deltamask_jax.__version__,
        "commit": _commit(Path(deltamask_jax.__file__).parent),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def describe() -> dict[str, Any]:
    """The contents of environment.json: plain strings and numbers."""
    devices = jax.devices()
    return {
        **program(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": threads.count(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
        "command": _command(sys.argv),
        **unusual(),
    }


def _command(argv: list[str]) -> str:
    program = Path(argv[0])
    if program == Path(deltamask_jax.__file__).with_name("main.py"):
        return shlex.join(["python", "-m", "deltamask_jax.main", *argv[1:]])
    return shlex.join([program.name, *argv[1:]])


def _commit(folder: Path) -> str | None:
    """The commit of the clone `folder` lies in, with '+' where tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        if not git("ls-files", "main.py"):  # somebody else's repository around an installed package
            return None
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
