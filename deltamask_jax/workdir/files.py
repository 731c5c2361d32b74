"""Files that are whole or absent, and JSON that every program reads."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, on the disk when this returns."""
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("w") as file:
        file.write(text)
        _sync(file)
    scratch.replace(path)
    _sync_names(path.parent)


def finite(value: Any) -> Any:
    """A value as JSON can say it: None in the place of every NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of a value: every number that is none becomes null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line, on the disk when this returns."""
    is_new = not path.exists()
    with path.open("a") as file:
        file.write(to_json(record) + "\n")
        _sync(file)
    if is_new:
        _sync_names(path.parent)


def rewrite(path: Path, records: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines by these, whole or not at all."""
    write_text(path, "".join(to_json(record) + "\n" for record in records))


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """A new name is on the disk once its folder is. Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
