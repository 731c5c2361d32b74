"""Encoding and decoding a cohort's payloads together, and giving each client its own codec
settings."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deltamask_jax.codecs.codec import Codec, Context


def encode_cohort(
    codec: Codec | Sequence[Codec],
    positions: Sequence[np.ndarray],
    contexts: Sequence[Context],
    threads: int | None = None,
) -> list[bytes]:
    """Encodes every client's flips on a thread pool (the heavy parts release the GIL).

    Args:
        codec: one for all, or one per client (see `codecs.for_clients`).
        positions: u32[n_k], sorted, per client.
        contexts: one per client.
        threads: default the number of cores.

    Returns:
        Payloads in the clients' order.
    """
    per_client = [codec] * len(positions) if isinstance(codec, Codec) else codec
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        jobs = zip(per_client, positions, contexts, strict=True)
        return list(pool.map(lambda job: job[0].encode(job[1], job[2]), jobs))


def decode_cohort(
    codec: Codec | Sequence[Codec],
    payloads: Sequence[bytes],
    contexts: Sequence[Context],
    threads: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields every client's flips, u32[n_k], in the clients' order; decodes on a thread pool.

    Args:
        codec, threads: as in `encode_cohort`.
        payloads, contexts: one per client.

    Raises:
        PayloadError: a payload is invalid; raised when its turn comes.
    """
    per_client = [codec] * len(payloads) if isinstance(codec, Codec) else codec
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        jobs = zip(per_client, payloads, contexts, strict=True)
        yield from pool.map(lambda job: job[0].decode(job[1], job[2]), jobs)


def decode_counts(
    codec: Codec | Sequence[Codec], payloads: Sequence[bytes], contexts: Sequence[Context]
) -> np.ndarray:
    """How many clients flip each position: u16[d]. Never holds clients x d values.

    Args:
        codec: one for all, or one per client.
        payloads, contexts: one per client; all contexts have the same d.

    Raises:
        PayloadError: a payload is invalid.
    """
    per_client = [codec] * len(payloads) if isinstance(codec, Codec) else list(codec)
    counts = np.zeros(contexts[0].d, np.uint16)
    together: dict[Codec, list[int]] = {}
    for client, its_codec in enumerate(per_client):
        together.setdefault(its_codec, []).append(client)
    for its_codec, clients in together.items():
        theirs = ([payloads[k] for k in clients], [contexts[k] for k in clients])
        if its_codec.count is not None:
            its_codec.count(*theirs, counts)
        else:
            for positions in decode_cohort(its_codec, *theirs):
                counts[positions] += 1
    return counts
