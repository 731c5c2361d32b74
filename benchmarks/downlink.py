"""What a round costs on the way down: a snapshot of θ, the cohort's payloads, or its votes' sum, held or not.

    python benchmarks/downlink.py --quick
    python benchmarks/downlink.py --json downlink.json
    python benchmarks/downlink.py --recorded theta.npz        # from benchmarks/record_theta.py

Votes are flips of K clients whose logits each take a Gaussian step of their own (as in benchmarks/codecs.py),
scaled to flip a share p of the mask bits. `snapshot` is θ as u16[d] (codecs/dense.py), `relay` all clients'
`side_info` payloads (a few are encoded, the rest counted as their mean; seconds likewise), `tally` the vote
sums. `held h` is the tally once the server holds votes back until they amount to h (`config.downlink.hold`):
the last of `HELD_ROUNDS` rounds of drift from one θ. Seconds are of one call after a warm-up, elapsed and of
all cores together (which others' work on the machine disturbs less); memory is the peak of the process.
"""

import argparse
import dataclasses
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.codecs import VIT_B, flips_between, recorded_flips
from deltamask_jax import codecs
from deltamask_jax.codecs.tally import tally
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms_at

SIZES = (1 << 20, 8_847_360, VIT_B)
PART = 1 << 20  # positions drawn at a time
RELAYED = 2  # payloads that are encoded
HOLDS, HELD_ROUNDS = (2, 3), 6


@dataclasses.dataclass
class Cohort:
    """A round's votes i32[d], what both ends know of them, and the flips of a few clients, u32[n_k]."""

    source: str
    density: float
    votes: np.ndarray
    context: codecs.Context
    flips: list[np.ndarray]


def theta16(logits):
    return np.clip(np.rint(65536 / (1 + np.exp(-np.clip(logits, -20, 20)))), 1, 65535).astype(np.uint16)


def drawn(d: int, clients: int, p: float, shared: bool, number: int = 1, seed: int = 2) -> Cohort:
    """Gaussian drift in round `number`, in parts, so that memory stays that of what is measured."""
    words = [EVERY_CLIENT] if shared else range(clients)
    keys = tuple(stream_key(seed, number, word, MASK) for word in words)
    theta, votes, flips = np.empty(d, np.uint16), np.zeros(d, np.int32), [[] for _ in range(RELAYED)]
    scale = None
    for start in range(0, d, PART):
        at = np.arange(start, min(start + PART, d), dtype=np.uint32)
        rng = np.random.default_rng([seed, start])
        logits = rng.standard_normal(len(at), np.float32)
        settled = rng.random(len(at), np.float32) < 0.7
        logits = np.where(settled, 3.5 + 0.5 * logits, 1.5 * logits).astype(np.float32)
        here = theta[start : start + PART] = theta16(logits)
        rng = rng if number == 1 else np.random.default_rng([seed, start, number])
        u = uniforms_at(keys[0], at)
        if scale is None:
            step, low, high = rng.standard_normal(len(at), np.float32), 0.0, 64.0
            for _ in range(20):
                scale = np.float32((low + high) / 2)
                share = len(flips_between(here, theta16(logits + scale * step), u)) / len(at)
                low, high = (scale, high) if share < p else (low, scale)
        for client in range(clients):
            u = u if shared else uniforms_at(keys[client], at)
            moved = theta16(logits + scale * rng.standard_normal(len(at), np.float32))
            flipped = flips_between(here, moved, u)
            votes[start + flipped] += np.where(u[flipped] < here[flipped], -1, 1)
            if client < RELAYED:
                flips[client].append(flipped + np.uint32(start))
    context = codecs.Context(d, theta, tuple(keys), number, codecs.SERVER, voters=clients)
    return Cohort("gaussian", p, votes, context, [np.concatenate(parts) for parts in flips])


def recorded(file: Path) -> Cohort:
    """A real round's votes."""
    with np.load(file) as record:
        number, shared, clients = int(record["round"]), bool(record["shared"]), len(record["clients"])
    votes, flips, keys, theta = 0, [], [], None
    for positions, theta, stream in recorded_flips(file):
        flips.append(positions)
        keys.append(stream)
        votes = votes + np.zeros(len(theta), np.int32)
        votes[positions] += np.where(uniforms_at(stream, positions) < theta[positions], -1, 1)
    streams = tuple(keys[:1] if shared else keys)
    context = codecs.Context(len(theta), theta, streams, number, codecs.SERVER, voters=clients)
    density = float(np.mean([len(positions) for positions in flips]) / len(theta))
    return Cohort(file.stem, density, votes, context, flips[:RELAYED])


def entropy_of(votes: np.ndarray) -> float:
    """Bits per position of the votes alone."""
    share = np.bincount(votes - votes.min()) / len(votes)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def timed(function):
    """The result, and seconds of a second call: elapsed, and spent by all threads."""
    function()
    begun, spent = time.perf_counter(), time.process_time()
    result = function()
    return result, np.array([time.perf_counter() - begun, time.process_time() - spent])


def measure(make, *arguments) -> list[dict]:
    """Rows of one cohort."""
    cohort = make(*arguments)
    context, votes, d = cohort.context, cohort.votes, cohort.context.d
    shared = len(context.streams) == 1
    row = {
        "source": cohort.source,
        "d": d,
        "clients": context.voters,
        "streams": "shared" if shared else "per client",
        "density": cohort.density,
        "entropy_bpp": entropy_of(votes),
    }
    rows = []

    def add(way, size, encode_seconds, decode_seconds):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(
            {
                "way": way,
                **row,
                "bytes": size,
                "bpp": 8 * size / d,
                "encode_seconds": float(encode_seconds[0]),
                "decode_seconds": float(decode_seconds[0]),
                "encode_core_seconds": float(encode_seconds[1]),
                "decode_core_seconds": float(decode_seconds[1]),
                "peak_mib": peak,
            }
        )

    codec = tally()
    payload, encode_seconds = timed(lambda: codec.encode(votes, context))
    decoded, decode_seconds = timed(lambda: codec.decode(payload, context))
    if not np.array_equal(decoded, votes):
        raise AssertionError("tally lost votes")
    add("tally", len(payload), encode_seconds, decode_seconds)
    for hold in HOLDS if make is drawn and not shared else ():
        waiting = np.zeros(d, np.int32)
        for number in range(1, HELD_ROUNDS + 1):
            later = drawn(*arguments, number)
            waiting += later.votes
            told = np.where(np.abs(waiting) >= hold, waiting, 0)
            waiting -= told
        known = dataclasses.replace(later.context, voters=context.voters + hold - 1)
        payload, encode_seconds = timed(lambda told=told, known=known: codec.encode(told, known))
        _, decode_seconds = timed(lambda payload=payload, known=known: codec.decode(payload, known))
        add(f"held {hold}", len(payload), encode_seconds, decode_seconds)
    whole = codecs.get("dense", dtype="uint16")
    payload, encode_seconds = timed(lambda: whole.encode(context.theta, context))
    _, decode_seconds = timed(lambda: whole.decode(payload, context))
    add("snapshot", len(payload), encode_seconds, decode_seconds)
    side_info, sizes, seconds = codecs.get("side_info"), [], []
    for client, flips in enumerate(cohort.flips):
        mine = context.streams[0 if shared else client]
        known = codecs.Context(d, context.theta, (mine,), context.round, client)
        payload, encode_seconds = timed(lambda flips=flips, known=known: side_info.encode(flips, known))
        _, decode_seconds = timed(lambda payload=payload, known=known: side_info.decode(payload, known))
        sizes.append(len(payload))
        seconds.append((encode_seconds, decode_seconds))
    each = context.voters / len(sizes)
    add("relay", round(sum(sizes) * each), *(sum(column) * each for column in zip(*seconds, strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the smallest size")
    parser.add_argument("--recorded", type=Path, action="append", default=[], help="a real round (.npz)")
    parser.add_argument("--d", type=int, action="append", help="positions; default: three sizes")
    parser.add_argument("--density", type=float, action="append", help="share of mask bits that flip; 0.01")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    cases = [(recorded, file) for file in options.recorded]
    for d in options.d or (SIZES[:1] if options.quick else SIZES):
        for clients in (10, 30):
            for p in options.density or (0.01,):
                cases += [(drawn, d, clients, p, shared) for shared in (False, True)]
    head = (
        "way",
        "source",
        "d",
        "clients",
        "streams",
        "flips",
        "H bpp",
        "bpp",
        "enc s",
        "dec s",
        "cores enc",
        "dec",
        "MiB",
    )
    print("{:9}{:12}{:>11}{:>8} {:11}{:>7}{:>8}{:>8}{:>8}{:>8}{:>10}{:>8}{:>7}".format(*head), flush=True)
    rows: list[dict] = []
    spawn = multiprocessing.get_context("spawn")
    for case in cases:
        with ProcessPoolExecutor(1, mp_context=spawn) as process:
            for row in process.submit(measure, *case).result():
                rows.append(row)
                print(
                    f"{row['way']:9}{row['source']:12}{row['d']:>11,}{row['clients']:>8} {row['streams']:11}"
                    f"{row['density']:7.2%}{row['entropy_bpp']:8.3f}{row['bpp']:8.4f}"
                    f"{row['encode_seconds']:8.2f}{row['decode_seconds']:8.2f}"
                    f"{row['encode_core_seconds']:10.2f}{row['decode_core_seconds']:8.2f}{row['peak_mib']:7.0f}",
                    flush=True,
                )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
