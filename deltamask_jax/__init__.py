"""Federated fine-tuning of foundation models at hundredths of a bit per parameter.

    import deltamask_jax as dm

    config = dm.load_config("quickstart", {"codec.name": "side_info"}, rounds=2)
    summary = dm.run(config, "runs/two")
    codec = dm.codecs.get("side_info")

The rest by import: `deltamask_jax.methods`, `.models`, `.federation.rounds`, …
"""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

__all__ = ["load_config", "run"]

_MODULES = ("codecs", "data", "methods", "models", "pretrained")  # imported when they are asked for


def load_config(name: str, changes: dict[str, Any] | None = None, **more: Any) -> Any:
    """A config of `configs/`, or of a file, with some settings changed.

    Args:
        name: 'quickstart', 'vit_b16:smoke', … or the path of a config file.
        changes: dotted setting -> value, for example {"mask.kappa": 1.0}.
        more: the same for settings whose name has no dot.

    Raises:
        OSError: there is no such file.
        ValueError: it has a mistake, or a setting that does not exist; the nearest one is named.
    """
    from deltamask_jax import config as config_lib
    from deltamask_jax import config_files

    file, colon, options = name.partition(":")
    config = config_files.load(name if file.endswith(".py") else f"configs/{file}.py{colon}{options}")
    config_lib.change(config, (changes or {}) | more)
    config_lib.validate(config)
    return config


def run(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Run an experiment, or continue it; see `experiment.run`.

    Returns:
        The contents of summary.json.
    """
    from deltamask_jax import experiment

    return experiment.run(config, workdir)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"deltamask_jax.{name}")
    raise AttributeError(f"deltamask_jax has no {name!r}")
