"""What a checkpoint holds: all that a continued run must know, as arrays and a ledger with a checksum."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deltamask_jax.workdir import files
from deltamask_jax.workdir.claim import WAYS_OUT

FORMAT = 4  # of a checkpoint; raised when an older program could not read a newer one, or the reverse
# The checksum of format 1 covers the arrays alone; 1 and 2 know no client's memory, 3 no images or texts.
READABLE = (1, 2, 3, 4)
LEDGER = ("probe_accuracy", "records", "seconds", "held", "news")  # fields of `Progress`; with FORMAT


@dataclasses.dataclass(frozen=True)
class Progress:
    """Everything a continued run must know.

    Attributes:
        state: the method's server state, a pytree of arrays; where it was just loaded, its arrays by name.
        head: {'kernel': f32[features, classes], 'bias': f32[classes]}.
        probe_accuracy: the linear probe's; None where clients are elsewhere, who do not train one.
        records: the lines of metrics.jsonl, the ledger of bytes and accuracies; the last is of the round that
            this progress is.
        seconds: spent so far, by all processes that worked on the run.
        held, news: the fields of `downlink.Memory`; empty where clients keep nothing.
    """

    state: Any
    head: dict[str, Any]
    probe_accuracy: float | None
    records: list[dict[str, Any]]
    seconds: float
    held: list[int] = dataclasses.field(default_factory=list)
    news: list[int] = dataclasses.field(default_factory=list)

    @property
    def round(self) -> int:
        return self.records[-1]["round"]


def pack(progress: Progress, its: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The ledger, JSON values, and the arrays by name.

    Args:
        its: whose progress it is: `identity`, and `root_key`.
    """
    arrays = named_arrays({"state": progress.state, "head": progress.head})
    rest = {name: getattr(progress, name) for name in LEDGER}
    ledger = files.finite({"format": FORMAT, **its, **rest})
    return ledger | {"checksum": _checksum_of(ledger, arrays)}, arrays


def check_whole(ledger: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        ValueError: the checksum does not match.
        KeyError: there is none.
    """
    rest = {name: value for name, value in ledger.items() if name != "checksum"}
    if ledger["checksum"] != _checksum_of(rest, arrays):
        raise ValueError("its checksum does not match")


def unpack(
    ledger: dict[str, Any], arrays: dict[str, np.ndarray], its: dict[str, Any], workdir: Path
) -> Progress:
    """The inverse of `pack`, of a whole checkpoint.

    Args:
        ledger, arrays: as `pack` gave them.
        its: whose progress it should be, as of `pack`.
        workdir: for messages.

    Raises:
        ValueError: another format, or of a run with other data, weights or random generator.
    """
    ledger = {name: value for name, value in ledger.items() if name != "checksum"}
    if (format_ := ledger.pop("format")) not in READABLE:
        raise ValueError(
            f"{workdir} holds checkpoints of format {format_}, this program reads "
            f"{' and '.join(map(str, READABLE))}: {WAYS_OUT}"
        )
    examples = ledger.pop("examples", "") or its["examples"]
    if (ledger.pop("problem"), examples) != (its["problem"], its["examples"]):
        raise ValueError(f"{workdir} was begun with other data or weights of the same name: {WAYS_OUT}")
    if ledger.pop("root_key") != its["root_key"]:
        raise ValueError(f"{workdir} was begun with another random generator than this jax has: {WAYS_OUT}")
    return Progress(arrays, head_of(arrays), **ledger)


def head_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The head among arrays by name."""
    return {name[5:]: array for name, array in arrays.items() if name.startswith("head/")}


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as NumPy arrays by their path, for example 'state/posterior/alpha'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def restore_state(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A server state from `Progress.state` as it was loaded.

    Args:
        like: a state of the same method and problem, whose structure and kinds of arrays it takes.
        arrays: by name, [...] each, as `named_arrays` names them.

    Raises:
        ValueError: names, shapes or types differ: the method's state has changed since.
    """
    expected = named_arrays({"state": like})
    for name, array in expected.items():
        if name not in arrays or (arrays[name].dtype, arrays[name].shape) != (array.dtype, array.shape):
            raise ValueError(
                f"the checkpoint has no {name} of {array.dtype}{list(array.shape)}, which this program's "
                f"server state needs: {WAYS_OUT}"
            )
    leaves, structure = jax.tree.flatten(like)
    restored = [
        jax.device_put(arrays[name], leaf.sharding) if isinstance(leaf, jax.Array) else arrays[name]
        for name, leaf in zip(expected, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, restored)


def identity(problem) -> dict[str, str]:
    """What a config names but does not contain: `problem`, the CRC32 of labels, split and pretrained weights,
    and `examples`, a hash of images or texts."""
    leaves = [*problem.labels, *problem.parts, *jax.tree.leaves(problem.task.params)]
    crc = _checksum({str(k): np.asarray(leaf) for k, leaf in enumerate(leaves)})
    return {"problem": crc, "examples": problem.examples}


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    crc = 0
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"


def _checksum_of(ledger: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """CRC32 of a checkpoint: its arrays and all else in its ledger."""
    if ledger["format"] == 1:
        return _checksum(arrays)
    text = json.dumps(json.loads(json.dumps(ledger)), sort_keys=True)  # as it comes back from a file
    return f"{zlib.crc32(text.encode(), int(_checksum(arrays), 16)):08x}"
