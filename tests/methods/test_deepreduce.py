"""DeepReduce: flips in a Bloom filter, and what its policies make of false positives."""

import numpy as np
import pytest

from deltamask_jax import methods
from tests.conftest import cohort_of, tiny_config


def test_policies_trade_false_flips_for_lost_ones(problem):
    d, cohort = problem.task.index.d, cohort_of(np.arange(6), 2)
    flips = np.stack([np.random.default_rng(client).random(d) < 0.01 for client in cohort.clients])
    packed = np.packbits(flips, axis=1)
    n, hit = flips.sum(), {}
    for policy in ("P0", "P1", "P2"):
        config = tiny_config(method="deepreduce", deepreduce__policy=policy, mask__uniforms="per_client")
        method = methods.build(config, problem.task)
        state = method.init()
        received = method.start(method.down.decode(method.down.encode(state, cohort), cohort), cohort)
        assert received["kappa"] == 1  # every flip travels
        payloads = method.up.encode(state, list(packed), cohort)
        votes, _ = method.up.decode(state, payloads, cohort)
        bits = 8 * sum(len(payload) - 36 for payload in payloads)
        assert bits == pytest.approx(n * 8 / np.log(2), rel=0.01)
        hit[policy] = votes.flips
        details = method.report(packed, votes)
        assert details["flip_rate"] == pytest.approx(n / flips.size)
    assert hit["P1"] == hit["P2"] == n
    assert hit["P0"] - n == pytest.approx(flips.size * 2**-8, rel=0.15)
