"""The clients' half of a round: coding goes on behind the training."""

import dataclasses
import threading

import numpy as np

from deltamask_jax import methods
from deltamask_jax.federation import cohort, uplink
from deltamask_jax.methods.method import Link
from tests.conftest import cohort_of
from tests.federation.test_batches import plan


def test_a_chunk_is_encoded_while_the_next_trains(problem, monkeypatch):
    """The second chunk does not finish before the first one's encoding has begun: or nothing overlaps."""
    method = methods.build(problem.config, problem.task)
    clients, began = np.arange(4), threading.Event()

    def encode(*inputs):
        began.set()
        return method.up.encode(*inputs)

    def train_in_chunks(*inputs, **options):
        for rows in ([0, 1], [2, 3]):
            yield np.array(rows), np.zeros((2, -(-problem.task.index.d // 8)), np.uint8), np.ones(2)
            assert began.wait(timeout=60)

    monkeypatch.setattr(cohort, "train_in_chunks", train_in_chunks)
    watched = dataclasses.replace(method, up=Link(encode, method.up.decode))
    schedule = plan(problem, clients, epochs=1)
    sent = uplink.train_and_send(
        problem.engine, watched, method.init(), None, None, schedule, cohort_of(clients)
    )
    assert len(sent.payloads) == len(sent.updates) == len(sent.losses) == 4
    assert 0 <= sent.exposed_seconds <= sent.codec_seconds
