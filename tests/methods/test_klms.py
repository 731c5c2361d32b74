"""KLMS: chosen candidates add up to votes, and the rate follows the clients' KL."""

import jax
import numpy as np
import pytest

from deltamask_jax import codecs, masks, methods
from tests.conftest import cohort_of, tiny_config


def test_votes_and_rate(problem):
    index, cohort = problem.task.index, cohort_of([0, 2, 5])
    method = methods.build(tiny_config(method="klms"), problem.task)
    state = method.init()
    received = method.start(state, cohort)
    start, _ = method.client.init(method.frozen, received, ())
    keys = iter(jax.random.split(jax.random.key(0), 100))
    drifted = [
        jax.tree.map(lambda s: s + jax.random.normal(next(keys), s.shape), start) for _ in cohort.clients
    ]
    updates = [jax.tree.map(np.asarray, method.client.final(None, received, (s, None), ())) for s in drifted]
    payloads = method.up.encode(state, updates, cohort)
    votes, rejected = method.up.decode(state, payloads, cohort)
    assert not rejected
    codec = codecs.get("random_coding", bits=8, block_kl=2.0)
    drawn = [
        codec.decode(payload, codecs.Context(index.d, state.theta, round=1, client=int(client)))
        for payload, client in zip(payloads, cohort.clients, strict=True)
    ]
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(votes.ones, np.sum(drawn, axis=0))
    new = method.merge(state, votes, cohort)
    expected = np.clip(np.rint(votes.ones / 3 * masks.SCALE), 655, 64881)
    np.testing.assert_allclose(new.theta, expected, atol=1)

    kl = np.mean([float(u["kl"]) for u in updates])
    details = method.report(jax.tree.map(lambda *x: np.stack(x), *updates), votes)
    assert details["kl_bpp"] == pytest.approx(kl / np.log(2) / index.d)
    target = 8 / 2.0 * kl / 8  # bytes
    assert target < np.mean([len(payload) for payload in payloads]) < 1.3 * target
    middle, rejected = method.up.decode(state, payloads[::-1], cohort)
    assert set(rejected) == {0, 2}
    np.testing.assert_array_equal(middle.ones, drawn[1])
