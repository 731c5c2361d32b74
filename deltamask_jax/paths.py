"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike) -> Path:
    """A path with the home folder in the place of its `~`.

    Raises:
        ValueError: it begins with `~` and there is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # HOME is not set, and the system does not know the user
        raise ValueError(f"{path}: there is no home folder to put for ~; write the whole path") from None
