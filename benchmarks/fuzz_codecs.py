"""Mutation fuzzer of every payload that clients send: PayloadError or a valid update, whatever arrives.

    python benchmarks/fuzz_codecs.py                  # 2,000 payloads a codec, a minute
    python benchmarks/fuzz_codecs.py --payloads 100000 --json fuzz.json
    python benchmarks/fuzz_codecs.py --only eden --only random_coding
    python benchmarks/fuzz_codecs.py --d 70000 --only bfuse --only bloom   # the compiled decoders

Codecs of flips decode to positions, random coding to a mask, codecs of values to a finite vector. Each runs
in a process of its own, so that a crash is counted, not suffered. Half of the mutated payloads get a fresh
checksum and the expected d, round and client, as a forger would write them; the others keep the old
checksum, so decoding one of them at all is a silent wrong decode.
"""

import argparse
import json
import multiprocessing
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs
from deltamask_jax.codecs import dense, eden, qsgd, random_coding, rounded, signs
from deltamask_jax.public_random import CANDIDATES, stream_key

D = 300  # positions, or values, unless told otherwise
SEED, ROUND, CLIENT = 7, 3, 4
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
    {"name": "random_coding", "bits": 4},
    {"name": "random_coding", "bits": 13},
    {"name": "eden", "bits": 0.5},
    {"name": "eden", "bits": 1},
    {"name": "eden", "bits": 2.5},
    {"name": "qsgd", "levels": 16, "bucket": 128},
    {"name": "signs"},
    {"name": "rounded"},
    {"name": "dense", "dtype": "float32"},
    {"name": "dense", "dtype": "float16"},
    {"name": "dense", "dtype": "bfloat16"},
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


def flips(name: str, rng: np.random.Generator, **options) -> tuple[list[bytes], Callable, Callable]:
    """Eight payloads of a codec of flips, its decoder, and what a decoded update has to be."""
    theta, moved, uniforms = drift(rng)
    codec, context = codecs.get(name, **options), codecs.Context(D, theta, uniforms, ROUND, CLIENT)
    positions = np.flatnonzero((uniforms < theta) != (uniforms < moved)).astype(np.uint32)

    def valid(decoded) -> bool:
        inside = decoded.dtype == np.uint32 and (not len(decoded) or decoded[-1] < D)
        return inside and bool((decoded[1:] > decoded[:-1]).all())

    payloads = [codec.encode(positions[: len(positions) * k // 8], context) for k in range(1, 9)]
    return payloads, lambda data: codec.decode(data, context), valid


def masks(rng: np.random.Generator, bits: int) -> tuple[list[bytes], Callable, Callable]:
    """Payloads of minimal random coding, their decoder, and what a decoded mask has to be."""
    theta, moved, _ = drift(rng)
    key, context = stream_key(SEED, ROUND, CLIENT, CANDIDATES), codecs.Context(D, theta, None, ROUND, CLIENT)
    payloads = [
        random_coding.encode(
            (theta + (moved.astype(float) - theta) * k / 8).astype(np.uint16),
            key,
            context,
            bits=bits,
            block_kl=0.2,
            rng=rng,
        )
        for k in range(1, 9)
    ]
    return (
        payloads,
        lambda data: random_coding.decode(data, key, context, bits=bits),
        lambda decoded: decoded.dtype == bool and decoded.shape == (D,),
    )


def values(name: str, rng: np.random.Generator, **options) -> tuple[list[bytes], Callable, Callable]:
    """Payloads of a codec of values, their decoder, and what a decoded vector has to be."""
    module = {"eden": eden, "qsgd": qsgd, "signs": signs, "rounded": rounded, "dense": dense}[name]
    dtype = jnp.dtype(options.pop("dtype", "float32"))
    given = (*options.values(), SEED)
    noise = rng.integers(0, 1 << 16, D, dtype=np.uint16)
    before = {"eden": given, "qsgd": given, "rounded": (noise,)}.get(name, ())  # what encoders take as well
    agreed = {"eden": given, "qsgd": given[:-1], "dense": (dtype,)}.get(name, ())  # and decoders
    header = {"round_number": ROUND, "client": CLIENT}
    vectors = (rng.normal(size=(8, D)) * 10.0 ** np.arange(-4, 4)[:, None]).astype(dtype)
    return (
        [module.encode(vector, *before, **header) for vector in vectors],
        lambda data: module.decode(data, D, *agreed, **header),
        lambda decoded: decoded.dtype == dtype and decoded.shape == (D,) and bool(np.isfinite(decoded).all()),
    )


def drift(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta_g, theta_k and public uniforms, u16[D] each."""
    theta = rng.integers(0, 1 << 16, D, dtype=np.uint16)
    moved = np.clip(theta + rng.normal(0, 4000, D), 0, 65535).astype(np.uint16)
    return theta, moved, rng.integers(0, 1 << 16, D, dtype=np.uint16)


def fuzz(settings: dict, payloads: int, seed: int, d: int, results) -> None:
    """Tries one codec, in a process of its own; puts its figures on the queue."""
    global D
    D = d
    rng = np.random.default_rng(seed)
    if settings["name"] in codecs.REGISTRY:
        seeds, decode, valid = flips(rng=rng, **settings)
    elif settings["name"] == "random_coding":
        seeds, decode, valid = masks(rng, settings["bits"])
    else:
        seeds, decode, valid = values(rng=rng, **settings)
    outcomes, slowest, started = Counter(), 0.0, time.perf_counter()
    for number in range(payloads):
        original, other = seeds[number % 8], seeds[int(rng.integers(8))]
        data = mutate(original, other, rng)
        forged = number % 2 == 1
        if forged:
            data = forge(data, original, rng)
        begun = time.perf_counter()
        try:
            decoded = decode(data)
        except codecs.PayloadError:
            outcomes["PayloadError"] += 1
        except Exception as error:
            outcomes[type(error).__name__] += 1
        else:
            if data in seeds:
                outcomes["unchanged"] += 1
            elif not valid(decoded):
                outcomes["invalid update"] += 1
            else:
                outcomes["forged, valid update" if forged else "silent wrong decode"] += 1
        slowest = max(slowest, time.perf_counter() - begun)
    results.put(
        {
            "codec": label(settings),
            "payloads": payloads,
            "d": D,
            "outcomes": dict(outcomes),
            "slowest_ms": 1e3 * slowest,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "seconds": time.perf_counter() - started,
        }
    )


def label(settings: dict) -> str:
    name, *options = settings.items()
    return " ".join([name[1], *(f"{key}={value}" for key, value in options)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--payloads", type=int, default=2000, help="mutated payloads per codec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--d", type=int, default=D, help="positions, or values; above 65,536 filters are compiled"
    )
    names = sorted({settings["name"] for settings in SETTINGS})
    parser.add_argument("--only", action="append", choices=names, help="only this codec; may be repeated")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    start = multiprocessing.get_context("spawn")
    rows, failures = [], 0
    for settings in SETTINGS:
        if settings["name"] not in (options.only or names):
            continue
        results = start.SimpleQueue()
        process = start.Process(
            target=fuzz, args=(settings, options.payloads, options.seed, options.d, results)
        )
        process.start()
        process.join()
        if process.exitcode or results.empty():
            row = {"codec": label(settings), "payloads": options.payloads, "outcomes": {"crash": 1}}
        else:
            row = results.get()
        rows.append(row)
        harmless = {"PayloadError", "unchanged", "forged, valid update"}
        failures += sum(count for name, count in row["outcomes"].items() if name not in harmless)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(row["outcomes"].items()))
        print(f"{row['codec']:32} {row['payloads']} payloads: {counts}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{'FAILED' if failures else 'ok'}: {failures} crashes, other exceptions or wrong decodes")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
