"""The clients' half of a round: train on the devices, code on the host behind them, send.

While the devices train one chunk of the cohort, a thread encodes the chunk before. Updates leave the devices
as small as the method makes them (mask flips as packed bits, d/8 bytes per client).
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from deltamask_jax import devices
from deltamask_jax.federation import cohort as training
from deltamask_jax.federation import hosts
from deltamask_jax.federation.batches import Schedule
from deltamask_jax.federation.engine import Engine
from deltamask_jax.methods import Method
from deltamask_jax.task import Cohort


@dataclasses.dataclass(frozen=True)
class Sent:
    """What a cohort sent; every process holds all of it.

    Attributes:
        payloads: one per client.
        updates: what the payloads were encoded from, a NumPy pytree with leading axis `clients`: to compare.
        losses: f32[clients].
        codec_seconds: spent encoding, on this process.
        exposed_seconds: of these, after the devices had trained the last chunk.
    """

    payloads: list[bytes]
    updates: Any
    losses: np.ndarray
    codec_seconds: float
    exposed_seconds: float


def train_and_send(
    engine: Engine,
    method: Method,
    state: Any,
    received: Any,
    examples: training.Examples,
    plan: Schedule,
    cohort: Cohort,
) -> Sent:
    """Train and encode this process's share of the cohort, and exchange payloads with the others.

    Args:
        received: what every client starts from, `method.start`'s.
        examples, plan: of this process's share, see `cohort.train_in_chunks`.
        cohort: the whole one.
    """
    mine = cohort.of(hosts.share(len(cohort)))
    chunks = training.train_in_chunks(
        engine,
        method.client,
        method.frozen,
        received,
        examples,
        plan,
        method.private(state, mine),
        mine.keys(),
    )

    def encode(rows, updates):
        began = time.perf_counter()
        updates = jax.device_get(updates)
        each = [jax.tree.map(lambda x, k=k: x[k], updates) for k in range(len(rows))]
        with devices.host():
            payloads = method.up.encode(state, each, mine.of(rows))
        return payloads, updates, began, time.perf_counter()

    with ThreadPoolExecutor(1) as coder:
        jobs, losses = [], []
        for rows, updates, chunk_losses in chunks:
            jobs.append(coder.submit(encode, rows, updates))
            losses.append(chunk_losses)
        trained = time.perf_counter()
        payloads, updates, began, ended = zip(*(job.result() for job in jobs), strict=True)
    return Sent(
        hosts.exchange([payload for some in payloads for payload in some]),
        jax.tree.map(lambda *xs: hosts.exchange_rows(np.concatenate(xs)), *updates),
        hosts.exchange_rows(np.concatenate(jax.device_get(losses))),
        codec_seconds=float(np.sum(ended) - np.sum(began)),
        exposed_seconds=float(np.sum(np.maximum(0, np.array(ended) - np.maximum(began, trained)))),
    )
