"""For every method, the bytes and the new state of one made-up round are those on record.

Weights and updates are drawn from small fractions, not trained, so that no floating-point sum of a machine's
own enters. Record anew, after a
change that is meant to change bytes or states: `python -m tests.methods.test_golden_rounds`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import zstandard

from deltamask_jax import methods
from tests.conftest import cohort_of, tiny_config, tiny_problem

RECORD = Path(__file__).with_name("golden_rounds.json")
CLIENTS = np.array([0, 2, 5])
COHORT = cohort_of(CLIENTS, examples=np.array([20, 7, 3]))
ZSTD = b"\x28\xb5\x2f\xfd"
SETTINGS = {
    "deltamask": {"codec__container": "raw"},
    "deltamask, control variate": {
        "method": "deltamask",
        "codec__name": "side_info",
        "mask__uniforms": "per_client",
        "mask__aggregator": "control_variate",
    },
    "fedpm": {},
    "fedmask": {},
    "deepreduce": {},
    "fedavg": {},
    "qsgd": {},
    "signsgd": {},
    "linear_probe": {},
    "peft": {"peft__kind": "bias"},
    "feedsign": {"feedsign__directions": 10},
    "peft, 8bit": {"method": "peft", "peft__kind": "lora", "peft__wire": "8bit"},
}


def played(problem, name: str) -> dict[str, str]:
    """Digests of the broadcast, the payloads and the state after one round."""
    settings = {"method": name} | SETTINGS[name]
    rng = np.random.default_rng(7)
    params, head = (drawn(tree, rng) for tree in (problem.task.params, problem.task.head))
    task = dataclasses.replace(problem.task, params=params, head=head)
    method = methods.build(tiny_config(**settings), task)
    state = method.init()
    broadcast = method.down.encode(state, COHORT)
    received = method.start(method.down.decode(broadcast, COHORT), COHORT)
    one = jax.tree.map(lambda x: x[0], method.private(state, COHORT.of(slice(1))))
    carry = method.client.init(method.frozen, received, one)
    shapes = jax.eval_shape(method.client.final, method.frozen, received, carry, one)
    updates = [drawn(shapes, np.random.default_rng(int(client))) for client in CLIENTS]
    payloads = method.up.encode(state, updates, COHORT)
    state = method.remember(state, updates, payloads, COHORT)
    votes, rejected = method.up.decode(state, payloads, COHORT)
    assert not rejected
    state = method.merge(state, votes, COHORT)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    # A mean of fractions may still differ in its last bit.
    leaves = [np.round(x, 5) + 0.0 if x.dtype.kind == "f" else x for x in leaves]
    return {
        "broadcast": digest(content(broadcast)),
        "payloads": digest(*map(content, payloads)),
        "state": digest(*(x.tobytes() for x in leaves)),
    }


def drawn(shapes, rng: np.random.Generator):
    """An update of these shapes: masks with few flips, probabilities, small values."""

    def leaf(x):
        if x.dtype == np.uint8:
            return np.packbits(rng.random((*x.shape[:-1], 8 * x.shape[-1])) < 0.03, axis=-1)
        if x.dtype == np.uint16:
            return rng.integers(60_000, 65_000, x.shape).astype(np.uint16)
        return (rng.integers(-100, 101, x.shape) / 1024).astype(x.dtype)

    return jax.tree.map(leaf, shapes)


def content(payload: bytes) -> bytes:
    """A payload without what a release of zstd decides: its length, its checksum, how it compresses."""
    header, body = payload[:24], payload[32:]
    if ZSTD in body[:16]:
        at = body.index(ZSTD)
        body = body[:at] + zstandard.ZstdDecompressor().decompress(body[at:])
    return header + body


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_round_gives_the_bytes_and_the_state_on_record(problem, name):
    assert played(problem, name) == json.loads(RECORD.read_text())[name]


def test_every_method_is_on_record():
    """Those that add logarithms, rotate on the device or solve equations are not: machines differ."""
    recorded = {settings.get("method", name) for name, settings in SETTINGS.items()}
    assert recorded | {"eden", "drive", "klms", "fedcof"} == set(methods.METHODS)


if __name__ == "__main__":
    made_up = tiny_problem()
    RECORD.write_text(json.dumps({name: played(made_up, name) for name in SETTINGS}, indent=1) + "\n")
