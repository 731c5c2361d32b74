"""Codecs of flips and votes at d = 500 million: seconds, bytes, and the most memory of a process of its own.

    python -m benchmarks.large_codecs --json benchmarks/results/large-codecs-cpu2.json

Flips are a uniform draw, in which side information is worth nothing. The memory before counts Python, jax,
what is encoded, and θ where the codec wants it.
"""

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks import workload
from deltamask_jax import codecs
from deltamask_jax.public_random import MASK, stream_key

CODECS = ("bfuse", "rice", "side_info", "tally", "four bfuse")
_CHUNK = 1 << 24


def peak() -> float:
    """GiB that this process ever used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(name: str, d: int, rate: float, seed: int) -> dict:
    """A row of the table."""
    rng = np.random.default_rng(seed)
    drawn = [
        np.flatnonzero(rng.random(min(_CHUNK, d - start), np.float32) < rate) + start
        for start in range(0, d, _CHUNK)
    ]
    flips = np.concatenate(drawn).astype(np.uint32)
    theta = rng.integers(0, 1 << 16, d, np.uint16) if name in ("side_info", "tally") else None
    context = codecs.Context(d, theta=theta, streams=(stream_key(seed, 1, 0, MASK),), voters=20)
    if name == "four bfuse":
        return {"codec": "bfuse8-png, four together", **count_four(flips, d)}
    codec, sent = codecs.get(name), flips
    if name == "tally":  # a vote up where the mask's bit was 0, and down where it was 1
        sent = np.zeros(d, np.int32)
        sent[flips] = np.where(context.uniforms(flips) < context.check()[flips], -1, 1)
    before, started = peak(), time.perf_counter()
    payload = codec.encode(sent, context)
    encoded = time.perf_counter()
    found = codec.decode(payload, context)
    decoded, most = time.perf_counter(), peak()
    if codec.exact:
        np.testing.assert_array_equal(found, sent)
    return {
        "codec": codec.name,
        "flips": len(flips),
        "false flips": len(found) - len(sent),
        "bytes": len(payload),
        "bpp": 8 * len(payload) / d,
        "encode, s": encoded - started,
        "decode, s": decoded - encoded,
        "GiB before": before,
        "GiB at most": most,
    }


def count_four(flips: np.ndarray, d: int) -> dict:
    """Counts of four clients' filters of one shape, decoded together; each has half of the flips."""
    codec, contexts = (
        codecs.get("bfuse", capacity=len(flips)),
        [codecs.Context(d, client=k) for k in range(4)],
    )
    payloads = [codec.encode(flips[context.client % 2 :: 2], context) for context in contexts]
    before, started = peak(), time.perf_counter()
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    decoded = time.perf_counter()
    assert (counts[flips] >= 2).all()
    return {
        "flips": len(flips) * 2,
        "false flips": int(counts.sum(dtype=np.int64)) - len(flips) * 2,
        "bytes": sum(map(len, payloads)),
        "decode, s": decoded - started,
        "GiB before": before,
        "GiB at most": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--d", type=int, default=500_000_000, help="masked weights")
    parser.add_argument("--rate", type=float, default=0.005, help="fraction of them that flips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rows = []
    for name in CODECS:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            rows.append(alone.apply(measure, (name, options.d, options.rate, options.seed)))
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
