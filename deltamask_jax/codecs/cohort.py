"""Encoding and decoding a cohort's payloads together. Each payload is decoded once: what is wrong with one
stands in its place and does not touch the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from deltamask_jax.codecs.codec import Codec, Context, PayloadError, Sizes
from deltamask_jax.threads import count
from deltamask_jax.threads import pool as thread_pool


def attempt(decode: Callable[..., Any], *arguments: Any) -> Any:
    """What `decode` returns, or the PayloadError it raises."""
    try:
        return decode(*arguments)
    except PayloadError as error:
        return error


def valid_and_rejected(decoded: Sequence[Any]) -> tuple[list[Any], dict[int, PayloadError]]:
    """Decoded payloads apart from errors, which keep their place in the cohort."""
    rejected = {k: item for k, item in enumerate(decoded) if isinstance(item, PayloadError)}
    return [item for item in decoded if not isinstance(item, PayloadError)], rejected


def encode_cohort(
    codec: Codec | Sequence[Codec],
    positions: Iterable[np.ndarray],
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
    per_client = [codec] * len(contexts) if isinstance(codec, Codec) else codec
    with thread_pool(threads) as pool:
        jobs = zip(per_client, positions, contexts, strict=True)
        return list(pool.map(lambda job: job[0].encode(job[1], job[2]), jobs))


def decode_cohort(
    codec: Codec | Sequence[Codec],
    payloads: Sequence[bytes],
    contexts: Sequence[Context],
    threads: int | None = None,
) -> Iterator[np.ndarray | PayloadError]:
    """Yields every client's flips u32[n_k], or what is wrong with its payload, in the clients' order; decodes
    on a thread pool, few clients ahead of whoever reads.

    Args:
        codec, threads: as in `encode_cohort`.
        payloads, contexts: one per client.
    """
    per_client = [codec] * len(payloads) if isinstance(codec, Codec) else codec
    with thread_pool(threads) as pool:
        jobs = list(zip(per_client, payloads, contexts, strict=True))
        ahead = 2 * (threads or count())
        for start in range(0, len(jobs), ahead):
            some = jobs[start : start + ahead]
            yield from pool.map(lambda job: attempt(job[0].decode, job[1], job[2]), some)


def decode_counts(
    codec: Codec | Sequence[Codec], payloads: Sequence[bytes], contexts: Sequence[Context]
) -> tuple[np.ndarray, Sizes]:
    """How many clients flip each position. Never holds clients x d values.

    Args:
        codec: one for all, or one per client.
        payloads, contexts: one per client, at least one; all contexts have the same d.

    Returns:
        Counts over the valid payloads, u16[d], of 65,536 payloads and more u32[d]; and of each payload how
        many positions it holds, or what is wrong with it.
    """
    per_client = [codec] * len(payloads) if isinstance(codec, Codec) else list(codec)
    counts = np.zeros(contexts[0].d, np.uint32 if len(payloads) >> 16 else np.uint16)
    sizes: Sizes = [0] * len(payloads)
    together: dict[Codec, list[int]] = {}
    for client, its_codec in enumerate(per_client):
        together.setdefault(its_codec, []).append(client)
    for its_codec, clients in together.items():
        theirs = ([payloads[k] for k in clients], [contexts[k] for k in clients])
        if its_codec.count is not None:
            results = its_codec.count(*theirs, counts)
        else:
            results = []
            for positions in decode_cohort(its_codec, *theirs):
                if isinstance(positions, PayloadError):
                    results.append(positions)
                else:
                    counts[positions] += 1
                    results.append(len(positions))
        for client, result in zip(clients, results, strict=True):
            sizes[client] = result
    return counts, sizes
