"""Where config files lie: in a clone's configs/, or inside the package where a wheel was installed."""

import contextlib
import importlib.util
import inspect
import runpy
import sys
import traceback
from collections.abc import Generator
from importlib.machinery import ModuleSpec
from pathlib import Path

from ml_collections import ConfigDict

from deltamask_jax.paths import expanded

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
        OSError: the file cannot be read.
        ValueError: the file has a mistake, or no `get_config()` that returns a ConfigDict; or an option after
            the colon is unknown.
    """
    path, _, options = locate(named).partition(":")
    Path(path).open().close()  # an OSError here is the file's own, not its code's
    with _naming_the_line(path):
        get_config = runpy.run_path(path).get("get_config")
    if not callable(get_config):
        raise ValueError(f"{path} has no get_config(): a config file defines that function")
    if options and not inspect.signature(get_config).parameters:
        raise ValueError(f"{path} takes no options after the colon")
    with _naming_the_line(path):
        config = get_config(options) if options else get_config()
    if not isinstance(config, ConfigDict):
        returned = type(config).__name__
        raise ValueError(f"{path}: get_config() returned {returned}, no ConfigDict; does it end in a return?")
    return config


def defaults() -> ConfigDict:
    """configs/common.py's own settings: what every config is compared with."""
    return runpy.run_path(str(FOLDER / "common.py"))["get_config"]()


@contextlib.contextmanager
def _naming_the_line(path: str) -> Generator[None]:
    """Whatever a file's code raises becomes a ValueError that names its line."""
    try:
        yield
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        said = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        what = said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"
        raise ValueError(f"{path}{f', line {line}' if line else ''}: {what}") from error


def locate(named: str) -> str:
    """A config's name as given where that file exists, else the file of that name that came with the package.

    `from configs import common` works in the file afterwards, wherever the program was started.

    Args:
        named: for example 'configs/vit_b16.py:smoke'.
    """
    path, colon, options = named.partition(":")
    file = expanded(path)
    path = path if file == Path(path) else str(file)
    if not file.exists() and file.parent == Path("configs") and (FOLDER / file.name).is_file():
        file = FOLDER / file.name
        path = str(file)
    # A sys.path entry would be plainer, but offers a wheel's `data`, `config`, … as top-level names too, and
    # a package called configs elsewhere on the path, a user's own for example, would hide the shipped files.
    if "configs" not in sys.modules:
        spec = ModuleSpec("configs", None, is_package=True)
        own = [file.parent.resolve()] if file.parent.name == "configs" else []
        spec.submodule_search_locations = [str(folder) for folder in (*own, FOLDER)]
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    return path + colon + options
