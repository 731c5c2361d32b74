"""The votes of a recorded round are what its clients' flips add up to."""

import numpy as np
import pytest

from benchmarks import downlink
from deltamask_jax import codecs
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms


@pytest.mark.parametrize("shared", [False, True])
def test_a_recorded_round(tmp_path, shared):
    d, seed, number, clients = 5000, 3, 6, [2, 7, 4]
    rng = np.random.default_rng(0)
    theta_g = rng.integers(1, 65536, d).astype(np.uint16)
    theta_k = np.clip(theta_g + rng.integers(-3000, 3000, (3, d)), 1, 65535).astype(np.uint16)
    file = tmp_path / "run.npz"
    np.savez(file, theta_g=theta_g, theta_k=theta_k, seed=seed, round=number, clients=clients, shared=shared)
    keys = [stream_key(seed, number, EVERY_CLIENT if shared else client, MASK) for client in clients]
    masks = [uniforms(key, d) < theta for key, theta in zip(keys, theta_k, strict=True)]
    before = [uniforms(key, d) < theta_g for key in keys]
    expected = np.sum(masks, 0, np.int32) - np.sum(before, 0, np.int32)
    cohort = downlink.recorded(file)
    assert np.array_equal(cohort.votes, expected) and np.any(expected)
    payload = codecs.get("tally").encode(cohort.votes, cohort.context)
    assert np.array_equal(codecs.get("tally").decode(payload, cohort.context), expected)
    rows = downlink.measure(downlink.recorded, file)
    assert [row["way"] for row in rows] == ["tally", "snapshot", "relay"]
    assert all(row["source"] == "run" and row["clients"] == 3 and row["bytes"] > 0 for row in rows)
