"""Simulated hostile clients: the same share of them in every round, each with the same kind of attack.

Malformed payloads, which any method must reject:
    corrupt   one bit flipped on the way         truncate     cut off at a random length
    replay    the round before's envelope        wrong_d      a network with one weight more, checksum right

Well-formed lies, for methods whose updates are packed flips (`robust.py` bounds them):
    all_flip  every position flipped             random_flip  each with probability `attack.flip_rate`
"""

from typing import Any

import jax
import numpy as np

from deltamask_jax.codecs import envelope
from deltamask_jax.methods import Method

_HOSTILE, _NOISE = 0x686F7374, 0x6E6F6973
LIES = ("all_flip", "random_flip")


def hostile_clients(config) -> np.ndarray:
    """Ids of the hostile clients, i64[round(share · clients)], sorted; none where the kind is 'none'."""
    if config.attack.kind == "none":
        return np.zeros(0, np.int64)
    count = round(config.attack.share * config.clients)
    rng = np.random.default_rng([config.seed, _HOSTILE])
    return np.sort(rng.choice(config.clients, count, replace=False))


def strike(
    config,
    method: Method,
    state: Any,
    updates: Any,
    payloads: list[bytes],
    round_number: int,
    clients: np.ndarray,
) -> tuple[Any, list[bytes]]:
    """Put what hostile clients send in the place of their honest payloads.

    Args:
        updates: the cohort's updates, NumPy arrays with leading axis k.
        payloads: what honest clients would send, k of them.

    Returns:
        Updates (those of lying clients replaced, so that the round describes what was sent) and payloads.
    """
    kind, payloads = config.attack.kind, list(payloads)
    rows = np.flatnonzero(np.isin(clients, hostile_clients(config)))
    if kind in LIES and len(rows):
        updates = np.array(updates)
    for row in rows:
        client = clients[row : row + 1]
        rng = np.random.default_rng([config.seed, _NOISE, round_number, int(client[0])])
        if kind in LIES:
            rate = 1.0 if kind == "all_flip" else config.attack.flip_rate
            updates[row] = np.packbits(rng.random(8 * updates.shape[1]) < rate)
            (payloads[row],) = method.encode(state, [updates[row]], round_number, client)
        elif kind == "replay":
            mine = jax.tree.map(lambda x, row=row: x[row], updates)
            (payloads[row],) = method.encode(state, [mine], round_number - 1, client)
        else:
            payloads[row] = _damage(payloads[row], kind, rng)
    return updates, payloads


def _damage(payload: bytes, kind: str, rng: np.random.Generator) -> bytes:
    if kind == "truncate":
        return payload[: rng.integers(len(payload))]
    if kind == "wrong_d":
        honest = envelope.unpack(payload)
        header = (honest.codec_id, honest.flags, honest.d + 1, honest.n, honest.round, honest.client)
        return envelope.pack(*header, bytes(honest.body))
    damaged = bytearray(payload)
    damaged[rng.integers(len(payload))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)
