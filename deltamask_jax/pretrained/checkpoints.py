"""Finding and opening checkpoints: files, directories, the hub. `convert` checks what is inside."""

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from deltamask_jax.paths import expanded

TENSORS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        source: how errors call it.
        tensors: stored name ('/'-joined in trees) -> function that reads the tensor, any dtype.
        config: the config.json beside Hugging Face tensors, else {}.
        flax: written by vision_transformer, Scenic or other Flax code, not by us.
    """

    source: str
    tensors: dict[str, Callable[[], np.ndarray]]
    config: dict[str, Any]
    flax: bool = False


def read(checkpoint: str, revision: str = "") -> Checkpoint:
    """Opens a file, a directory or 'hf:org/name'.

    Understood: safetensors (one file, or a Hugging Face directory, sharded or not), npz, flax
    msgpack, and directories written by Orbax or flax.training.checkpoints.

    Raises:
        FileNotFoundError: nothing there, or the hub cannot be reached and the cache lacks it.
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
    if numbered := sorted(path.glob("checkpoint_*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0)):
        return read(str(numbered[-1]))
    if (path / "_METADATA").exists() or (path / "_CHECKPOINT_METADATA").exists():
        return _tree(path, _orbax(path))
    raise ValueError(f"{path} holds no {TENSORS}, Orbax or flax checkpoint; give the file itself")


def read_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Tensor name -> reader. Half-precision tensors (bfloat16 too) arrive as they are stored.

    Raises:
        ValueError: no safetensors file, or a damaged one.
    """
    try:
        file = safe_open(path, framework="flax")  # numpy alone does not know bfloat16
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from None
    return {key: lambda key=key: np.asarray(file.get_tensor(key)) for key in file.keys()}


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        config = path.parent / CONFIG
        beside = path.name == TENSORS and config.exists()
        return Checkpoint(str(path), read_safetensors(path), _json(config) if beside else {})
    if path.suffix == ".npz":
        try:
            arrays = np.load(path)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no readable npz file: {error}") from None
        return Checkpoint(
            str(path), {key: lambda key=key: arrays[key] for key in arrays.files}, {}, flax=True
        )
    if path.suffix in (".bin", ".pt", ".pth"):
        raise ValueError(f"{path} is a pickle, which can run code; convert it to safetensors first")
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except Exception:  # msgpack raises half a dozen unrelated types
        raise ValueError(f"{path} is no safetensors, npz or flax msgpack file") from None
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
    return Checkpoint(str(path), {key: lambda v=v: np.asarray(v) for key, v in flat.items()}, {}, flax=True)


def _orbax(path: Path) -> Any:
    import orbax.checkpoint as ocp  # slow to import, rarely needed

    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # whatever devices it was saved from
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
        args = jax.tree.map(lambda _: as_numpy, tree)
        return checkpointer.restore(path.absolute(), restore_args=args)


def _huggingface(directory: Path, source: str) -> Checkpoint:
    config = _json(directory / CONFIG) if (directory / CONFIG).exists() else {}
    files = [TENSORS]
    if (directory / INDEX).exists():
        files = sorted(set(_json(directory / INDEX)["weight_map"].values()))
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for file in files:
        tensors |= read_safetensors(directory / file)
    return Checkpoint(source, tensors, config)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _download(name: str, revision: str) -> Path:
    """The hub repository's directory in the local cache, filled if need be."""
    import huggingface_hub as hub  # slow to import, rarely needed
    from huggingface_hub import constants, errors, utils

    wanted = {
        "revision": revision or None,
        "allow_patterns": [TENSORS, "model-*.safetensors", INDEX, CONFIG],
    }
    try:
        cached = Path(hub.snapshot_download(name, local_files_only=True, **wanted))
        if (cached / TENSORS).exists() or (cached / INDEX).exists():
            return cached
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ValueError(f"checkpoint 'hf:{name}' is no hub id: {error}") from None
    at = f" --revision {revision}" if revision else ""
    command = f"hf download {name} {TENSORS} {CONFIG}{at}"
    try:  # the hub client alone would retry for 20 seconds
        utils.get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:
        raise FileNotFoundError(
            f"'hf:{name}' is not in the local cache and {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}); with a connection, run: {command}"
        ) from None
    try:
        directory = Path(hub.snapshot_download(name, **wanted))
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise FileNotFoundError(f"'hf:{name}' cannot be downloaded ({reason}); try: {command}") from None
    if not any((directory / file).exists() for file in (TENSORS, INDEX)):
        raise FileNotFoundError(f"'hf:{name}' has no {TENSORS}; choose a repository or revision that has")
    return directory
