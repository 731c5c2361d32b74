"""Mutation fuzzer of every payload on the wire: PayloadError or a valid update, whatever arrives.

    python benchmarks/fuzz_codecs.py                  # 2,000 payloads a codec, a minute
    python benchmarks/fuzz_codecs.py --payloads 100000 --json fuzz.json
    python benchmarks/fuzz_codecs.py --only eden --only random_coding
    python benchmarks/fuzz_codecs.py --d 70000 --only bfuse --only bloom   # the compiled decoders
    python benchmarks/fuzz_codecs.py --structure --payloads 41700 --json structure.json

Codecs of flips decode to positions, random coding to a mask, codecs of values to a finite vector, tallies to
counts (of three voters: one stream that they share, or one each), bundles to payloads. Each runs
in a process of its own, so that a crash is counted, not suffered. Half of the mutated payloads get a fresh
checksum and the expected d, round and client, as a forger would write them; the others keep the old
checksum, so decoding one of them at all is a silent wrong decode.

`--structure` edits what a payload means: its fields, and what lies inside its PNG, zstd or deflate streams,
which are closed again; every checksum is right. Beside the outcomes it records the worst cost of a payload
over the median of honest ones at the same d: CPU seconds (the least of three), calls into NumPy and other C
code (a count), and the peak of memory traced.
"""

import argparse
import json
import multiprocessing
import resource
import struct
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import zstandard

from deltamask_jax import codecs, public_random
from deltamask_jax.codecs import bundle

D = 300  # positions, or values, unless told otherwise
SEED, ROUND, CLIENT = 7, 3, 4
VOTERS = 3
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
    {"name": "random_coding", "bits": 4, "block_kl": 0.2},
    {"name": "random_coding", "bits": 13, "block_kl": 0.2},
    {"name": "eden", "bits": 0.5},
    {"name": "eden", "bits": 1},
    {"name": "eden", "bits": 2.5},
    {"name": "qsgd", "levels": 16, "bucket": 128},
    {"name": "signs"},
    {"name": "rounded"},
    {"name": "dense", "dtype": "float32"},
    {"name": "dense", "dtype": "float16"},
    {"name": "dense", "dtype": "bfloat16"},
    {"name": "tally", "streams": 1},
    {"name": "tally", "streams": VOTERS},
    {"name": "bundle"},
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


def restructure(payload: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One or two edits of what a payload means; its checksums are right."""
    header, body = bytearray(payload[:28]), payload[32:]
    for _ in range(rng.integers(1, 3)):
        kind = rng.integers(4)
        if kind == 0:  # a field, of the header or among the first bytes of the body
            size, value = int(rng.choice((1, 2, 4, 8))), int(rng.choice((*INTERESTING, D, D - 1, D + 1)))
            value = (value if rng.random() < 0.5 else int(rng.integers(D + 2))) & (1 << 8 * size) - 1
            if rng.random() < 0.3:
                at, width = ((6, 2), (12, 4))[int(rng.integers(2))]  # flags, n
                header[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            elif body:
                at = int(rng.integers(min(len(body), 48)))
                body = body[:at] + value.to_bytes(size, "little") + body[at + size :]
        elif kind == 1:
            try:
                body = nested(body, other[32:], rng)
            except (zlib.error, zstandard.ZstdError, struct.error, MemoryError):  # an edit before spoiled it
                body = edited(body, rng)
        elif kind == 2 and body:  # a region all alike: empty tables, impossible states, endless unary codes
            at, length = int(rng.integers(len(body))), int(rng.integers(1, len(body) + 1))
            filler = bytes([int(rng.choice((0, 255, 1, 128)))]) * len(body[at : at + length])
            body = body[:at] + filler + body[at + length :]
        elif len(body) > 1:  # cut, or grown far beyond what is honest
            at = int(rng.integers(1, len(body)))
            body = body[:at] if rng.random() < 0.5 else body + body[:at] * int(rng.integers(1, 9))
    header[24:28] = struct.pack("<I", len(body))
    checksum = zlib.crc32(body, zlib.crc32(bytes(header)))
    return bytes(header) + struct.pack("<I", checksum) + body


def nested(body: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A body whose PNG, zstd or deflate stream is opened, edited and closed again, perhaps in another way."""
    png, zstd = body.find(b"\x89PNG"), body.find(b"\x28\xb5\x2f\xfd")
    if png >= 0:
        (length,) = struct.unpack_from(">I", body, png + 33)
        rows = edited(zlib.decompress(body[png + 41 : png + 41 + length]), rng)
        stream = zlib.compress(rows, int(rng.integers(10))) + rng.bytes(int(rng.choice((0, 0, 3))))
        parts = [b"IDAT" + stream] if rng.random() < 0.8 else [b"IDAT" + stream[:9], b"IDAT" + stream[9:]]
        parts += [b"tEXtnote\0x"] * int(rng.random() < 0.1) + [b"IEND"]
        chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
        return body[: png + 33] + b"".join(chunks)
    if zstd >= 0:
        inside = zstandard.ZstdDecompressor().decompress(body[zstd:], max_output_size=64 * D + 65536)
        writer = zstandard.ZstdCompressor(
            level=int(rng.integers(1, 8)), write_content_size=bool(rng.random() < 0.9), write_checksum=True
        )
        bomb = bytes(int(rng.choice((0, 0, 0, 1 << 20))))
        tail = writer.compress(b"more") if rng.random() < 0.1 else b""
        return body[:zstd] + writer.compress(edited(inside, rng) + bomb) + tail
    for at in range(min(len(body), 8)):  # deflate of random coding
        inflate = zlib.decompressobj(-15)
        try:
            inside = inflate.decompress(body[at:], 1 << 20)
        except zlib.error:
            continue
        if inside and inflate.eof:
            deflate = zlib.compressobj(int(rng.integers(10)), zlib.DEFLATED, -15)
            return body[:at] + deflate.compress(edited(inside, rng)) + deflate.flush() + inflate.unused_data
    return edited(body, rng) if body else other


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """One edit of plain bytes: some values, an impossible float, a length."""
    data, at = bytearray(data), int(rng.integers(len(data) + 1))
    kind = rng.integers(4)
    if kind == 0:
        data[at : at + 4] = rng.choice(np.array([np.nan, np.inf, -0.0, 3.4e38, -1], "<f4")).tobytes()
    elif kind == 1:
        data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
    elif kind == 2:
        data[at:at] = bytes(int(rng.choice((1, 4, 4096))))
    else:
        data[:] = bytes([int(rng.choice((0, 255)))]) * len(data)
    return bytes(data)


def cost(decode: Callable, data: bytes) -> dict[str, float]:
    """CPU seconds (the least of three), calls into C code, and bytes at the peak that a decoder takes."""

    def run():
        try:
            decode(data)
        except codecs.PayloadError:
            pass

    seconds, calls = [], 0
    for _ in range(3):
        begun = time.process_time()
        run()
        seconds.append(time.process_time() - begun)

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "c_call"

    sys.setprofile(count)
    run()
    sys.setprofile(None)
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": min(seconds), "calls": calls, "bytes": peak}


def seeds_of(codec: codecs.Codec, context: codecs.Context, rng: np.random.Generator) -> list[bytes]:
    """Eight payloads of a codec of any kind."""
    theta, moved = context.theta, np.clip(context.theta + rng.normal(0, 4000, D), 0, 65535)
    if codec.kind == "positions":
        u = context.uniforms()
        positions = np.flatnonzero((u < theta) != (u < moved.astype(np.uint16))).astype(np.uint32)
        updates = [positions[: len(positions) * k // 8] for k in range(1, 9)]
    elif codec.kind == "theta":
        updates = [(theta + (moved - theta) * k / 8).astype(np.uint16) for k in range(1, 9)]
    elif codec.kind == "votes":
        u = np.stack([public_random.uniforms(key, D) for key in context.streams])
        change = VOTERS // len(u) * ((u < moved.astype(np.uint16)).astype(np.int32) - (u < theta)).sum(0)
        updates = [np.where(np.arange(D) < D * k // 8, change, 0).astype(np.int32) for k in range(1, 9)]
    elif codec.kind == "parts":
        updates = [[rng.bytes(int(size)) for size in rng.integers(0, 60, k)] for k in range(1, 9)]
    else:
        updates = (rng.normal(size=(8, D)) * 10.0 ** np.arange(-4, 4)[:, None]).astype(type_of(codec))
    return [codec.encode(update, context) for update in updates]


def type_of(codec: codecs.Codec) -> np.dtype:
    """Of what a codec of values decodes to."""
    return jnp.dtype(codec.name.removeprefix("dense-") if codec.name.startswith("dense") else "float32")


def codec_of(settings: dict) -> codecs.Codec:
    """One of the registry, or a bundle of parts as one."""
    if settings["name"] != "bundle":
        return codecs.get(**{key: value for key, value in settings.items() if key != "streams"})

    def encode(parts, context):
        return bundle.pack(parts, context, bundle.RELAY, np.arange(len(parts)), np.ones(len(parts)))

    return codecs.Codec("bundle", encode, bundle.unpack, True, "parts")


def valid(codec: codecs.Codec, decoded: Any) -> bool:
    """What a decoded update has to be."""
    if codec.kind == "parts":
        return decoded.kind <= bundle.TALLY and bool((np.diff(decoded.clients) > 0).all())
    if codec.kind == "votes":
        inside = decoded.dtype == np.int32 and decoded.shape == (D,)
        return inside and bool((np.abs(decoded) <= VOTERS).all())
    if codec.kind == "positions":
        inside = decoded.dtype == np.uint32 and (not len(decoded) or decoded[-1] < D)
        return inside and bool((decoded[1:] > decoded[:-1]).all())
    dtype = np.dtype(bool) if codec.kind == "theta" else type_of(codec)
    return decoded.dtype == dtype and decoded.shape == (D,) and bool(np.isfinite(decoded).all())


def fuzz(settings: dict, payloads: int, seed: int, d: int, structure: bool, results) -> None:
    """Tries one codec, in a process of its own; puts its figures on the queue."""
    global D
    D = d
    rng = np.random.default_rng(seed)
    codec, clients = codec_of(settings), range(CLIENT, CLIENT + settings.get("streams", 1))
    theta = rng.integers(0, 1 << 16, D, dtype=np.uint16)
    streams = tuple(public_random.stream_key(SEED, ROUND, k, public_random.MASK) for k in clients)
    context = codecs.Context(D, theta, streams, ROUND, CLIENT, SEED, VOTERS)
    seeds = seeds_of(codec, context, rng)

    def decode(data: bytes) -> np.ndarray:
        return codec.decode(data, context)

    outcomes, slowest, started = Counter(), 0.0, time.perf_counter()
    honest, worst = {}, {}
    if structure:
        decode(seeds[-1])  # what is compiled once is no payload's cost
        costs = [cost(decode, data) for data in seeds[3:]]
        honest = {name: float(np.median([c[name] for c in costs])) for name in costs[0]}
        worst = dict.fromkeys(honest, 0.0)
    for number in range(payloads):
        original, other = seeds[number % 8], seeds[int(rng.integers(8))]
        forged = structure or number % 2 == 1
        data = restructure(original, other, rng) if structure else mutate(original, other, rng)
        if forged and not structure:
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
            elif not valid(codec, decoded):
                outcomes["invalid update"] += 1
            else:
                outcomes["forged, valid update" if forged else "silent wrong decode"] += 1
        spent = time.perf_counter() - begun
        slowest = max(slowest, spent)
        if structure and (number % 50 == 0 or spent > 2 * worst["seconds"] * honest["seconds"]):
            taken = cost(decode, data)
            worst = {name: max(worst[name], taken[name] / honest[name]) for name in worst}
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
        | ({"honest": honest, "worst_ratio": worst} if structure else {})
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
    parser.add_argument("--structure", action="store_true", help="edit fields and nested streams")
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
            target=fuzz,
            args=(settings, options.payloads, options.seed, options.d, options.structure, results),
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
        ratios = ", ".join(f"{name} × {value:.1f}" for name, value in row.get("worst_ratio", {}).items())
        print(f"{row['codec']:32} {row['payloads']} payloads: {counts}  {ratios}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{'FAILED' if failures else 'ok'}: {failures} crashes, other exceptions or wrong decodes")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
