"""KLMS: chosen candidates add up to votes, and the rate follows the clients' KL."""

import jax
import numpy as np
import pytest

from deltamask_jax import masks, methods
from deltamask_jax.codecs import random_coding
from deltamask_jax.codecs.codec import Context
from deltamask_jax.public_random import CANDIDATES, stream_key
from tests.conftest import tiny_config


def test_votes_and_rate(problem):
    index, clients = problem.task.index, np.array([0, 2, 5])
    method = methods.build(tiny_config(method="klms"), problem.task)
    state = method.init()
    received = method.receive(method.broadcast(state, 1), 1)
    start, _ = method.training.init(method.frozen, received)
    keys = iter(jax.random.split(jax.random.key(0), 100))
    drifted = [jax.tree.map(lambda s: s + jax.random.normal(next(keys), s.shape), start) for _ in clients]
    updates = [
        jax.tree.map(np.asarray, method.training.final(None, received, (s, None), ())) for s in drifted
    ]
    payloads = method.encode(state, updates, 1, clients)
    ones, rejected = method.decode(state, payloads, 1, clients)
    assert not rejected
    drawn = [
        random_coding.decode(
            payload,
            stream_key(0, 1, int(client), CANDIDATES),
            Context(index.d, state.theta, None, 1, int(client)),
            bits=8,
        )
        for payload, client in zip(payloads, clients, strict=True)
    ]
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(ones, np.sum(drawn, axis=0))
    new = method.aggregate(state, ones, clients, [1, 1, 1], 1)
    expected = np.clip(np.rint(ones / 3 * masks.SCALE), 655, 64881)
    np.testing.assert_allclose(new.theta, expected, atol=1)

    kl = np.mean([float(u["kl"]) for u in updates])
    details = method.describe(jax.tree.map(lambda *x: np.stack(x), *updates), ones)
    assert details["kl_bpp"] == pytest.approx(kl / np.log(2) / index.d)
    target = 8 / 2.0 * kl / 8  # bytes
    assert target < np.mean([len(payload) for payload in payloads]) < 1.3 * target
    middle, rejected = method.decode(state, payloads[::-1], 1, clients)
    assert set(rejected) == {0, 2}
    np.testing.assert_array_equal(middle, drawn[1])
