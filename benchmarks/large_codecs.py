"""Codecs of flips at d = 500 million: seconds, bytes, and the most memory of a process of their own.

    python -m benchmarks.large_codecs --json benchmarks/results/large-codecs-cpu2.json

Flips are a uniform draw, in which side information is worth nothing. The memory before counts Python, jax,
the flips, and θ where the codec wants it.
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

CODECS = ("bfuse", "rice", "side_info")
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
    theta = rng.integers(0, 1 << 16, d, np.uint16) if name == "side_info" else None
    context = codecs.Context(d, theta=theta, streams=(stream_key(seed, 1, 0, MASK),))
    codec, before = codecs.get(name), peak()
    started = time.perf_counter()
    payload = codec.encode(flips, context)
    encoded = time.perf_counter()
    found = codec.decode(payload, context)
    decoded = time.perf_counter()
    if codec.exact:
        np.testing.assert_array_equal(found, flips)
    return {
        "codec": codec.name,
        "flips": len(flips),
        "false flips": len(found) - len(flips),
        "bytes": len(payload),
        "bpp": 8 * len(payload) / d,
        "encode, s": encoded - started,
        "decode, s": decoded - encoded,
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
