"""Codecs: flips, values and votes <-> payload bytes, behind one seam.

>>> import numpy as np
>>> flips, known = np.array([3, 141, 592], np.uint32), Context(d=1000)
>>> codec = get("rice")
>>> payload = codec.encode(flips, known)
>>> len(payload)  # bytes, 32 of them envelope
37
>>> codec.decode(payload, known).tolist()
[3, 141, 592]
>>> codec.decode(payload[:-1], known)
Traceback (most recent call last):
deltamask_jax.codecs.codec.PayloadError: payload body has 4 bytes, header says 5 (truncated or padded)
"""

import inspect
from collections.abc import Mapping

from deltamask_jax.codecs import (
    arithmetic,
    bfuse,
    bitmap,
    bloom,
    dense,
    eden,
    qsgd,
    random_coding,
    rice,
    rounded,
    side_info,
    signs,
    tally,
    xor,
)
from deltamask_jax.codecs.codec import SERVER, Codec, Context, PayloadError
from deltamask_jax.codecs.cohort import (
    attempt,
    decode_cohort,
    decode_counts,
    encode_cohort,
    valid_and_rejected,
)
from deltamask_jax.codecs.filter_codec import picture
from deltamask_jax.registry import look_up

REGISTRY = {
    "bfuse": bfuse.bfuse,
    "xor": xor.xor,
    "bloom": bloom.bloom,
    "rice": rice.rice,
    "side_info": side_info.side_info,
    "arithmetic": arithmetic.arithmetic,
    "bitmap": bitmap.bitmap,
    "random_coding": random_coding.random_coding,
    "dense": dense.dense,
    "rounded": rounded.rounded,
    "qsgd": qsgd.qsgd,
    "eden": eden.eden,
    "signs": signs.signs,
    "tally": tally.tally,
}

__all__ = [
    "REGISTRY",
    "SERVER",
    "Codec",
    "Context",
    "PayloadError",
    "attempt",
    "decode_cohort",
    "decode_counts",
    "encode_cohort",
    "for_clients",
    "get",
    "picture",
    "valid_and_rejected",
]


def get(name: str, **options) -> Codec:
    """Returns the named codec with the given options; see the function of that name for them.

    Raises:
        ValueError: unknown name or option (the nearest valid one is named), or a refused value.
    """
    factory = look_up("codec", name, REGISTRY)
    for option in options:
        look_up(f"option of codec {name!r}", option, inspect.signature(factory).parameters)
    return factory(**options)


def for_clients(settings: Mapping, num_clients: int) -> list[Codec]:
    """One codec per client, so that clients of one round may differ (bits per entry, for example).

    Args:
        settings: `{"name": ..., option: value, ...}` for all clients, and optionally
            `"clients": {"0-9": {"bits": 16}, "12": {"name": "rice"}}` with what differs for a
            client or for a range of clients, both ends included. A client given a name starts
            without options.
        num_clients: clients are 0 … num_clients−1.

    Raises:
        ValueError: as in `get`, or a range is malformed or beyond the last client.
    """
    common = {key: value for key, value in settings.items() if key != "clients"}
    chosen = [common] * num_clients
    for clients, changes in dict(settings.get("clients") or {}).items():
        ends = str(clients).split("-")
        numbers = [int(end) for end in ends if end.isdecimal()]
        if len(numbers) < len(ends) or len(ends) > 2 or not numbers[0] <= numbers[-1] < num_clients:
            raise ValueError(
                f"codec clients {clients!r}: write a number or a range such as '0-9' "
                f"of clients 0 .. {num_clients - 1}"
            )
        for client in range(numbers[0], numbers[-1] + 1):
            changes = dict(changes)
            chosen[client] = changes if "name" in changes else {**chosen[client], **changes}
    made: dict[tuple, Codec] = {}
    for options in chosen:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = get(**options)
    return [made[tuple(sorted(options.items()))] for options in chosen]
