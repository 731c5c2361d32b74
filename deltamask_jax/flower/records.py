"""Payloads in Flower's records, and what those weigh.

Down, payloads are an `ArrayRecord`: Flower stores an identical broadcast once and sends it in chunks. Up,
each travels in a `ConfigRecord`, which costs fewer bytes and one request. Nothing of them is unpickled, nor
read as an array by Flower: `Array.numpy()` is never called on what came over the wire.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

STYPE = "dmjx.v1"  # how the bytes of an Array are to be read: as one payload of docs/wire-format.md


def pack(payloads: Mapping[str, bytes]) -> ArrayRecord:
    """Payloads by name."""
    return ArrayRecord({name: Array("uint8", (len(x),), STYPE, x) for name, x in payloads.items()})


def unpack(record: RecordDict, name: str) -> dict[str, bytes]:
    """The payloads of one of a message's records, none where it has no such record.

    Raises:
        ValueError: there is something else than payloads in it.
    """
    arrays = record.array_records.get(name, {})
    other = next((array.stype for array in arrays.values() if array.stype != STYPE), None)
    if other is not None:
        raise ValueError(f"record {name!r} holds an array of type {other!r}, not {STYPE!r}")
    return {key: array.data for key, array in arrays.items()}


def keep(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays by name, as a client keeps them in its own context."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def kept(record: RecordDict, name: str) -> dict[str, np.ndarray]:
    """What `keep` left in a context, {} where it left nothing."""
    return {key: array.numpy() for key, array in record.array_records.get(name, {}).items()}


def weight(message: Any) -> int:
    """Bytes that a message takes on the way between SuperLink and SuperNode: those of the objects it is sent
    in, one HTTP body each, without HTTP's own headers."""
    children = message.children or {}
    return len(message.deflate()) + sum(map(weight, children.values()))
