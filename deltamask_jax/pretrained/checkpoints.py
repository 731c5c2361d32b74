"""Finding and opening checkpoints: files, directories, the hub. `convert` checks what is inside."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from deltamask_jax.hub import unreachable
from deltamask_jax.paths import expanded
from deltamask_jax.pretrained.tensors import (
    Tensor,
    guess,
    one_line,
    printable,
    read_npz,
    read_safetensors,
    readable,
    unpickling,
)

TENSORS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER = "tokenizer.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAPS = {*range(0x81, 0x90), 0xDE, 0xDF}  # first byte of a msgpack dict that is not empty


_NUMBERED = re.compile(r"checkpoint_(\d+(?:\.\d+)?)")  # as flax.training.checkpoints calls its steps


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        source: how errors call it.
        tensors: stored name ('/'-joined in trees) -> tensor, not read yet.
        config: the config.json beside safetensors, else {}.
        shares_folder: the file has a name of its own, so that config.json may be about another one.
        flax: written by vision_transformer, Scenic or other Flax code, not by us.
    """

    source: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    shares_folder: bool = False
    flax: bool = False


def read(checkpoint: str, revision: str = "") -> Checkpoint:
    """Opens a file, a directory or 'hf:org/name'.

    Understood: safetensors (one file, or a Hugging Face directory, sharded or not), npz, flax
    msgpack, and directories written by Orbax or flax.training.checkpoints.

    Raises:
        FileNotFoundError: nothing there, shards are missing, or the hub cannot be reached and the cache
            lacks it.
        ValueError: unknown or damaged file.
    """
    if checkpoint.startswith("hf:"):
        return _huggingface(_download(checkpoint.removeprefix("hf:"), revision), checkpoint)
    path = expanded(checkpoint)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {checkpoint!r} does not exist; check model.checkpoint")
    if path.is_file():
        return _file(path)
    if (path / TENSORS).exists() or (path / INDEX).exists():
        return _huggingface(path, str(path))
    steps = {found[1]: file for file in path.iterdir() if (found := _NUMBERED.fullmatch(file.name))}
    if steps:
        return read(str(steps[max(steps, key=float)]))
    if (path / "_METADATA").exists() or (path / "_CHECKPOINT_METADATA").exists():
        return _tree(path, _orbax(path))
    raise ValueError(f"{path} holds no {TENSORS}, Orbax or flax checkpoint; {_instead(path)}")


def tokenizer(checkpoint: str, revision: str = "") -> str:
    """The tokenizer.json beside a checkpoint, as text.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    if checkpoint.startswith("hf:"):
        path = _download(checkpoint.removeprefix("hf:"), revision) / TOKENIZER
    else:
        path = expanded(checkpoint)
        path = (path if path.is_dir() else path.parent) / TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(
            f"texts need the tokenizer of their checkpoint, and {checkpoint!r} has no {TOKENIZER} beside it"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None


def _instead(directory: Path) -> str:
    """What to do with a folder that holds no checkpoint."""
    files = sorted(file.name for file in directory.iterdir() if file.is_file())
    if pickles := [name for name in files if name.endswith(_PICKLES)]:
        return f"of {printable(pickles[0])}, {unpickling(Path(pickles[0]))}"
    weights = [printable(name) for name in files if name.endswith((".safetensors", ".npz", ".msgpack"))]
    return f"give the file itself{': ' + ' or '.join(weights[:5]) if weights else ''}"


def _file(path: Path) -> Checkpoint:
    kind = path.suffix.lower()
    if kind == ".safetensors":
        return Checkpoint(str(path), read_safetensors(path), _config(path.parent), path.name != TENSORS)
    if kind == ".npz":
        return Checkpoint(str(path), read_npz(path), flax=True)
    if kind in _PICKLES:
        raise ValueError(f"{path}: {unpickling(path)}")
    with path.open("rb") as file:
        is_map = set(file.read(1)) & _MAPS
    if not is_map:
        what = guess(path)
        raise ValueError(f"{path} is no safetensors, npz or flax msgpack file{what and ': ' + what}")
    with readable(f"flax msgpack file {path}"):
        tree = serialization.msgpack_restore(path.read_bytes())
    return _tree(path, tree)


def _tree(path: Path, tree: Any) -> Checkpoint:
    """A nested dict, possibly a whole train state: only its parameters are kept."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no tree of parameters")
    flat = {"/".join(map(str, k)): v for k, v in traverse_util.flatten_dict(tree).items()}
    for root in (
        "optimizer/target/",
        "opt/target/",
        "model_params/",
        "params/params/",
        "params/",
        "target/",
    ):
        if any(key.startswith(root) for key in flat):
            flat = {k.removeprefix(root): v for k, v in flat.items() if k.startswith(root)}
            break
    return Checkpoint(str(path), {key: _leaf(path, key, v) for key, v in flat.items()}, flax=True)


def _leaf(path: Path, key: str, value: Any) -> Tensor:
    array = value if isinstance(value, np.ndarray | np.generic) else np.asarray(value, object)
    return Tensor(f"{path}: {printable(key)}", array.shape, array.dtype.name, lambda: np.asarray(array))


def _orbax(path: Path) -> Any:
    import orbax.checkpoint as ocp  # slow to import, rarely needed

    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # whatever devices it was saved from
    with readable(f"Orbax checkpoint {path}"), ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
        args = jax.tree.map(lambda _: as_numpy, tree)
        return checkpointer.restore(path.absolute(), restore_args=args)


def _huggingface(directory: Path, source: str) -> Checkpoint:
    if missing := _missing(directory):
        raise FileNotFoundError(
            f"{source} lacks {len(missing)} of its files ({missing[0]}); fetch the whole checkpoint"
        )
    tensors: dict[str, Tensor] = {}
    for file, names in _shards(directory).items():
        found = read_safetensors(directory / file)
        if lacking := [name for name in names if name not in found]:
            raise ValueError(f"{directory / file} lacks {printable(lacking[0])}, which {INDEX} says it holds")
        if twice := tensors.keys() & found.keys():
            raise ValueError(f"{directory / file} holds {printable(min(twice))}, as another shard does")
        tensors |= found
    return Checkpoint(source, tensors, _config(directory))


def _missing(directory: Path) -> list[str]:
    """Files that a Hugging Face checkpoint names and has not."""
    return [file for file in _shards(directory) if not (directory / file).exists()]


def _shards(directory: Path) -> dict[str, list[str]]:
    """File -> the names of its tensors, as far as an index says them."""
    index = directory / INDEX
    if not index.exists():
        return {TENSORS: []}
    where = _json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files; fetch it again")
    shards: dict[str, list[str]] = {}
    for name, file in where.items():
        shards.setdefault(file, []).append(name)
    for file in shards:
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(f"{index} names {printable(file)!r}, which is no safetensors file of its folder")
    return shards


def _config(directory: Path) -> dict[str, Any]:
    return _json(directory / CONFIG) if (directory / CONFIG).exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(error)}; repair it or move it away") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is a JSON {type(value).__name__}, not an object; repair it or move it away")
    return value


def _download(name: str, revision: str) -> Path:
    """The hub repository's directory in the local cache, filled if need be."""
    import huggingface_hub as hub  # slow to import, rarely needed
    from huggingface_hub import errors

    wanted: dict[str, Any] = {
        "revision": revision or None,
        "allow_patterns": [TENSORS, "model-*.safetensors", INDEX, CONFIG, TOKENIZER],
    }
    missing = [TENSORS]
    try:
        cached = Path(hub.snapshot_download(name, local_files_only=True, **wanted))
        missing = _missing(cached)
        if not missing:
            return cached
    except FileNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise ValueError(f"checkpoint 'hf:{name}' is no hub id: {one_line(error)}") from None
    at = f" --revision {revision}" if revision else ""
    command = f"hf download {name} {' '.join(missing)} {CONFIG}{at}"
    if why := unreachable():
        raise FileNotFoundError(
            f"'hf:{name}' is not whole in the local cache and {why}; with a connection, run: {command}"
        )
    try:
        directory = Path(hub.snapshot_download(name, **wanted))
    except Exception as error:  # of the hub's client, of what it connects with, of the disk
        reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[-1])
        raise FileNotFoundError(f"'hf:{name}' cannot be downloaded ({reason}); try: {command}") from None
    if missing := _missing(directory):
        raise FileNotFoundError(f"'hf:{name}' has no {missing[0]}; choose a repository or revision that has")
    return directory
