"""Where config files lie: in a clone's configs/, or inside the package where a wheel was installed."""

import importlib.util
import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from ml_collections import ConfigDict

_PACKAGE = Path(__file__).parent
# A wheel carries the clone's configs/ as deltamask_jax/configs (package-dir in pyproject.toml).
FOLDER = next(
    folder
    for folder in (_PACKAGE.parent / "configs", _PACKAGE / "configs")
    if (folder / "common.py").is_file() or folder.parent == _PACKAGE
)


def load(named: str) -> ConfigDict:
    """The config of a file, for example 'configs/vit_b16.py:smoke'.

    Raises:
        OSError: no such file.
        ValueError: an option after the colon is unknown.
    """
    path, _, options = locate(named).partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(options) if options else get_config()


def locate(named: str) -> str:
    """A config's name as given where that file exists, else the file of that name that came with the package.

    `from configs import common` works in the file afterwards, wherever the program was started.

    Args:
        named: for example 'configs/vit_b16.py:smoke'.
    """
    path, colon, options = named.partition(":")
    file = Path(path)
    if not file.exists() and file.parent == Path("configs") and (FOLDER / file.name).is_file():
        file = FOLDER / file.name
        path = str(file)
    if "configs" not in sys.modules:
        spec = ModuleSpec("configs", None, is_package=True)
        own = [file.parent.resolve()] if file.parent.name == "configs" else []
        spec.submodule_search_locations = [str(folder) for folder in (*own, FOLDER)]
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    return path + colon + options
