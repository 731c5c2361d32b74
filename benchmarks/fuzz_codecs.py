"""Mutation fuzzer of every codec: hostile payloads must raise PayloadError or decode to a valid update.

    python benchmarks/fuzz_codecs.py                  # 2,000 payloads a codec, under a minute
    python benchmarks/fuzz_codecs.py --payloads 100000 --json fuzz.json

Each codec runs in a process of its own, so that a crash is counted, not suffered. Half of the mutated
payloads get a fresh checksum and the expected d, round and client, as a forger would write them; the
others keep the old checksum, so decoding one of them at all is a silent wrong decode.
"""

import argparse
import json
import multiprocessing
import resource
import struct
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from deltamask_jax import codecs

D = 300
SETTINGS = (
    {"name": "bfuse", "container": "png"},
    {"name": "bfuse", "container": "zstd"},
    {"name": "bfuse", "container": "raw"},
    {"name": "bfuse", "bits": 16},
    {"name": "bfuse", "bits": 32, "arity": 4},
    {"name": "bfuse", "window": True},
    {"name": "xor"},
    {"name": "bloom"},
    {"name": "bloom", "policy": "P2"},
    {"name": "rice"},
    {"name": "side_info"},
    {"name": "arithmetic"},
    {"name": "bitmap"},
)
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(payload: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four random edits: bits, bytes, fields, cuts, insertions, pieces of another payload."""
    data = bytearray(payload)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at, kind = int(rng.integers(len(data))), rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind == 2:
            size = int(rng.choice((1, 2, 4)))
            value = int(rng.choice(INTERESTING)) & (1 << 8 * size) - 1
            data[at : at + size] = value.to_bytes(size, "little")
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 16))]
        elif kind == 4:
            data[at:at] = rng.bytes(int(rng.integers(1, 16)))
        elif kind == 5:
            length = int(rng.integers(1, 40))
            data[at : at + length] = other[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def forge(data: bytes, original: bytes, rng: np.random.Generator) -> bytes:
    """A header that passes the envelope's checks around whatever the mutation left."""
    header = bytearray(original[:28])
    header[6:8] = data[6:8].ljust(2, b"\0") if rng.random() < 0.2 else header[6:8]
    header[12:16] = struct.pack("<I", rng.integers(D + 1)) if rng.random() < 0.3 else header[12:16]
    body = data[32:]
    header[24:28] = struct.pack("<I", len(body))
    checksum = zlib.crc32(body, zlib.crc32(bytes(header)))
    return bytes(header) + struct.pack("<I", checksum) + body


def fuzz(settings: dict, payloads: int, seed: int, results) -> None:
    """Tries one codec; puts its figures on the queue."""
    rng = np.random.default_rng(seed)
    codec = codecs.get(**settings)
    theta = rng.integers(0, 1 << 16, D, dtype=np.uint16)
    moved = np.clip(theta + rng.normal(0, 4000, D), 0, 65535).astype(np.uint16)
    uniforms = rng.integers(0, 1 << 16, D, dtype=np.uint16)
    context = codecs.Context(D, theta, uniforms, round=3, client=4)
    flips = np.flatnonzero((uniforms < theta) != (uniforms < moved)).astype(np.uint32)
    seeds = [codec.encode(flips[: len(flips) * k // 8], context) for k in range(1, 9)]
    outcomes, slowest, started = Counter(), 0.0, time.perf_counter()
    for number in range(payloads):
        original, other = seeds[number % 8], seeds[int(rng.integers(8))]
        data = mutate(original, other, rng)
        forged = number % 2 == 1
        if forged:
            data = forge(data, original, rng)
        begun = time.perf_counter()
        try:
            decoded = codec.decode(data, context)
        except codecs.PayloadError:
            outcomes["PayloadError"] += 1
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:
            valid = decoded.dtype == np.uint32 and (not len(decoded) or decoded[-1] < D)
            valid = valid and bool((decoded[1:] > decoded[:-1]).all())
            if data in seeds:
                outcomes["unchanged"] += 1
            elif not valid:
                outcomes["invalid update"] += 1
            else:
                outcomes["forged, valid update" if forged else "silent wrong decode"] += 1
        slowest = max(slowest, time.perf_counter() - begun)
    results.put(
        {
            "codec": codec.name,
            "payloads": payloads,
            "outcomes": dict(outcomes),
            "slowest_ms": 1e3 * slowest,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seconds": time.perf_counter() - started,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--payloads", type=int, default=2000, help="mutated payloads per codec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    start = multiprocessing.get_context("spawn")
    rows, failures = [], 0
    for settings in SETTINGS:
        results = start.SimpleQueue()
        process = start.Process(target=fuzz, args=(settings, options.payloads, options.seed, results))
        process.start()
        process.join()
        if process.exitcode or results.empty():
            row = {"codec": str(settings), "payloads": options.payloads, "outcomes": {"crash": 1}}
        else:
            row = results.get()
        rows.append(row)
        harmless = {"PayloadError", "unchanged", "forged, valid update"}
        failures += sum(count for name, count in row["outcomes"].items() if name not in harmless)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(row["outcomes"].items()))
        print(f"{row['codec']:22} {row['payloads']} payloads: {counts}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{'FAILED' if failures else 'ok'}: {failures} crashes, other exceptions or wrong decodes")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
