"""From Flower's run config to ours: both ends load the same file, from their own disks."""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import deltamask_jax
from deltamask_jax import config as config_lib
from deltamask_jax import config_files


def config_of(run_config: Mapping[str, Any]) -> Any:
    """The config that a run is of.

    Args:
        run_config: `config`, the name of a file in configs/ of the current folder or of the package, with its
            options after a colon; `changes`, 'setting=value,setting=value'.

    Raises:
        OSError: there is no such file.
        ValueError: a path instead of a name, so that nobody far away chooses which file is run here; or a
            mistake in the config or the changes.
    """
    name = str(run_config["config"])
    if not re.fullmatch(r"\w+(:.*)?", name):
        raise ValueError(
            f"config={name!r}: must name a file in configs/ without its folder, as in 'quickstart'"
        )
    file, colon, options = name.partition(":")
    known = config_lib.flatten(config_files.load(f"configs/{file}.py{colon}{options}"))
    changes = config_lib.parse_options(str(run_config["changes"]), known)
    return deltamask_jax.load_config(name, {k: v for k, v in changes.items() if v != known[k]})


def fingerprint(config) -> str:
    """What both ends must have alike, so far as the config says it: CRC32 of the settings and the version."""
    settings = json.dumps(config_lib.flatten(config) | config.codec.to_dict(), sort_keys=True, default=str)
    return f"{deltamask_jax.__version__} {zlib.crc32(settings.encode()):08x}"
