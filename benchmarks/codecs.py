"""Size and speed of every codec: a table, a plot and JSON rows.

    python benchmarks/codecs.py --quick                       # under a minute
    python benchmarks/codecs.py --json codecs.json --plot docs/codecs.png
    python benchmarks/codecs.py --recorded theta.npz          # flips of a real run as well

Flips come from (a) a uniform draw, (b) logits that drift (Gaussian, Laplace, steps of one size, or a
Gaussian step of one weight in ten), scaled to flip a share p of the mask bits, and (c) theta_g and theta_k
of a real run, from benchmarks/record_theta.py. Bits are 8 * len(payload), envelope included. Times are
medians of a few repetitions in this process; compare them with the C library's loop measured beside them.
"""

import argparse
import ctypes
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from deltamask_jax import codecs, threads
from deltamask_jax.codecs import distance, filter_builder, fingerprints
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms

VIT_B = 35_389_440  # kernels of the last five blocks of a ViT-B
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1)
DRIFTS = ("gaussian", "laplace", "adam", "sparse")
FILTERS = (
    {"name": "bfuse"},
    {"name": "bfuse", "container": "zstd"},
    {"name": "bfuse", "container": "raw"},
    {"name": "bfuse", "arity": 4, "container": "zstd"},
    {"name": "bfuse", "bits": 16},
    {"name": "bfuse", "bits": 32},
    {"name": "bfuse", "window": True},
    {"name": "xor"},
    {"name": "xor", "bits": 16},
    {"name": "bloom"},
    {"name": "bloom", "policy": "P2"},
)
EXACT = ({"name": "rice"}, {"name": "side_info"}, {"name": "arithmetic"}, {"name": "bitmap"})
FEW = ({"name": "bfuse"}, {"name": "rice"}, {"name": "side_info"})
SHORT = ({"name": "bfuse"}, {"name": "bfuse", "container": "zstd"}, *EXACT[:2])

C_LOOP = """
#include <stdint.h>
void loop(const uint8_t *T, uint64_t seed, uint32_t length, uint32_t starts, uint32_t from, uint32_t to,
          uint8_t *hits) {
  for (uint32_t i = from; i < to; i++) {
    uint64_t h = i + seed;
    h ^= h >> 33; h *= 0xff51afd7ed558ccdULL; h ^= h >> 33; h *= 0xc4ceb9fe1a85ec53ULL; h ^= h >> 33;
    uint32_t h0 = (uint32_t)(((__uint128_t)h * starts) >> 64), h1 = h0 + length, h2 = h1 + length;
    h1 ^= (uint32_t)(h >> 18) & (length - 1);
    h2 ^= (uint32_t)h & (length - 1);
    hits[i] += (uint8_t)(h ^ (h >> 32) ^ T[h0] ^ T[h1] ^ T[h2]) == 0;
  }
}
"""


def entropy(p):
    """Binary entropy in bits."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


def flips_between(theta_g, theta_k, u):
    """Positions whose mask bit differs, u32[n]."""
    return np.flatnonzero((u < theta_g) != (u < theta_k)).astype(np.uint32)


def uniform_flips(d: int, p: float, seed: int):
    """(a): positions u32[n], and θ_g and a public stream that say nothing about them."""
    rng, stream = np.random.default_rng(seed), stream_key(seed, 1, 0, MASK)
    theta = rng.integers(0, 1 << 16, d, dtype=np.uint16)
    return np.flatnonzero(rng.random(d, np.float32) < p).astype(np.uint32), theta, stream


def drift_flips(d: int, p: float, drift: str, seed: int):
    """(b): flips after logits of a trained-looking mask moved; the step is scaled until p of them flip."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(d, np.float32)
    settled = rng.random(d, np.float32) < 0.7
    logits = np.where(settled, 3.5 + 0.5 * logits, 1.5 * logits).astype(np.float32)
    step = rng.standard_normal(d, np.float32)
    if drift == "laplace":
        step = np.sign(step) * -np.log1p(-rng.random(d, np.float32))
    elif drift == "adam":
        step = np.sign(step)
    elif drift == "sparse":
        step *= rng.random(d, np.float32) < 0.1
    stream = stream_key(seed, 1, 0, MASK)
    u = uniforms(stream, d)

    def theta16(x):
        return np.clip(np.rint(65536 / (1 + np.exp(-np.clip(x, -20, 20)))), 1, 65535).astype(np.uint16)

    theta, part, low, high = theta16(logits), slice(0, 1 << 20), 0.0, 64.0
    for _ in range(20):
        scale = (low + high) / 2
        moved = theta16(logits[part] + scale * step[part])
        share = len(flips_between(theta[part], moved, u[part])) / len(moved)
        low, high = (scale, high) if share < p else (low, scale)
    return flips_between(theta, theta16(logits + scale * step), u), theta, stream


def recorded_flips(file: Path):
    """(c): yields (positions, theta, public stream) of each client of a recorded round."""
    with np.load(file) as record:
        theta_g, seed, number = record["theta_g"], int(record["seed"]), int(record["round"])
        for client, theta_k in zip(record["clients"], record["theta_k"], strict=True):
            word = EVERY_CLIENT if record["shared"] else int(client)
            stream = stream_key(seed, number, word, MASK)
            yield flips_between(theta_g, theta_k, uniforms(stream, len(theta_g))), theta_g, stream


def conditional_entropy(positions, theta, u) -> float:
    """Bits per flip that remain once both ends know the distance of every position (fine buckets)."""
    bins, counts, flips = 1 << 12, 0, np.zeros(1 << 12, np.int64)
    for start in range(0, len(u), 1 << 22):
        part = slice(start, start + (1 << 22))
        apart = distance.between(u[part], theta[part]) >> 4
        counts = counts + np.bincount(np.minimum(apart, bins - 1), minlength=bins)
    apart = distance.between(u[positions], theta[positions]) >> 4
    flips += np.bincount(np.minimum(apart, bins - 1), minlength=bins)
    return float((counts * entropy(flips / np.maximum(counts, 1))).sum() / len(positions))


def timed(function, repeats: int):
    """The result and the median seconds after one warm-up call."""
    result, seconds = function(), []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return result, statistics.median(seconds)


def measure(source, positions, theta, stream, settings, repeats) -> list[dict]:
    """One row per codec for the same flips."""
    d, n = len(theta), len(positions)
    context = codecs.Context(d, theta, (stream,), round=1, client=1)
    shared = {
        "d": d,
        "density": n / d,
        "source": source,
        "flips": n,
        "entropy_bits_per_flip": float(entropy(n / d) * d / n),
        "conditional_entropy_bits_per_flip": conditional_entropy(positions, theta, context.uniforms()),
    }
    rows = []
    for options in settings:
        codec = codecs.get(**options)
        payload, encode_seconds = timed(lambda codec=codec: codec.encode(positions, context), repeats)
        decoded, decode_seconds = timed(
            lambda codec=codec, payload=payload: codec.decode(payload, context), repeats
        )
        found = np.isin(decoded, positions, assume_unique=True).sum()
        if found < n and options.get("policy", "P0") == "P0":
            raise AssertionError(f"{codec.name} lost {n - found} flips")
        rows.append(
            {
                "codec": codec.name,
                **shared,
                "bits_per_flip": 8 * len(payload) / n,
                "bpp": 8 * len(payload) / d,
                "false_flips": int(len(decoded) - found),
                "lost_flips": int(n - found),
                "encode_seconds": encode_seconds,
                "decode_seconds": decode_seconds,
            }
        )
        show(rows[-1])
    return rows


def show(row: dict) -> None:
    print(
        f"{row['source']:10} {row['d']:>10,} {row['density']:8.4%} {row['codec']:18}"
        f"{row['bits_per_flip']:8.3f}{row['entropy_bits_per_flip']:8.3f}"
        f"{row['conditional_entropy_bits_per_flip']:8.3f}{row['bpp']:9.5f}{row['false_flips']:>9,}"
        f"{row['encode_seconds']:8.3f}{row['decode_seconds']:8.3f}",
        flush=True,
    )


def c_library_loop(built: fingerprints.Filter, d: int) -> float | None:
    """Seconds for the C membership loop over d positions on all cores; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "loop.c"), Path(folder, "loop.so")
        source.write_text(C_LOOP)
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", library, source], check=True)
        loop = ctypes.CDLL(str(library)).loop
    hits, shape, workers = np.zeros(d, np.uint8), built.geometry, threads.count()
    bounds = np.linspace(0, d, workers + 1).astype(int)

    def part(k: int) -> None:
        loop(
            built.fingerprints.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(built.seed),
            ctypes.c_uint32(shape.segment_length),
            ctypes.c_uint32(shape.start_length),
            ctypes.c_uint32(bounds[k]),
            ctypes.c_uint32(bounds[k + 1]),
            hits.ctypes.data_as(ctypes.c_void_p),
        )

    with threads.pool(workers) as pool:
        return timed(lambda: list(pool.map(part, range(workers))), 3)[1]


def measure_cohort(clients: int, d: int, n: int, repeats: int) -> dict:
    """Encode and decode of a whole cohort, beside the C library's loop on the same threads."""
    rng = np.random.default_rng(0)
    positions = [np.sort(rng.choice(d, n, replace=False, shuffle=False)) for _ in range(clients)]
    positions = [p.astype(np.uint32) for p in positions]
    contexts = [codecs.Context(d, round=1, client=k) for k in range(clients)]
    codec = codecs.get("bfuse", capacity=n)
    payloads, encode_seconds = timed(lambda: codecs.encode_cohort(codec, positions, contexts), repeats)
    (counts, _), decode_seconds = timed(lambda: codecs.decode_counts(codec, payloads, contexts), repeats)
    built = filter_builder.build(positions[0], 8, fingerprints.fuse_geometry(n))
    c_seconds = c_library_loop(built, d)
    row = {
        "codec": f"cohort of {clients} x {codec.name}",
        "d": d,
        "flips": n,
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "c_loop_seconds": None if c_seconds is None else clients * c_seconds,
        "flips_decoded": int(counts.sum()),
    }
    beside = "" if c_seconds is None else f"; the C library's loop x {clients}: {clients * c_seconds:.3f} s"
    print(
        f"\ncohort of {clients} clients, {n:,} flips of {d:,} each: "
        f"encode {encode_seconds:.3f} s, decode to counts {decode_seconds:.3f} s{beside}"
    )
    return row


def plot(rows: list[dict], d: int, recorded: list[str], file: Path) -> None:
    """Bits per flip, bpp, false flips and times against density, at one d; `recorded` sources at any d."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = dict.fromkeys(row["codec"] for row in rows)
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    drifts = {"gaussian": "-", "laplace": "--", "adam": ":", "sparse": "-."}

    def line(axes, source, codec, value, **style):
        chosen = [row for row in rows if (row["source"], row["codec"], row["d"]) == (source, codec, d)]
        if chosen:
            densities, values = zip(*sorted((row["density"], value(row)) for row in chosen), strict=True)
            axes.plot(densities, values, marker=".", color=colours[codec], **style)

    figure, grid = plt.subplots(2, 3, figsize=(16.5, 8.5), layout="constrained")
    (bits, drift_bits, bpp), (false, encode, decode) = grid
    for codec in colours:
        line(bits, "uniform", codec, lambda row: row["bits_per_flip"], label=codec)
        line(bpp, "gaussian", codec, lambda row: row["bpp"])
        if "bfuse" in codec or "xor" in codec or "bloom" in codec:
            style = {"ls": "--", "label": "window, Gaussian drift"} if "window" in codec else {}
            source = "gaussian" if style else "uniform"
            line(false, source, codec, lambda row: max(row["false_flips"], 0.1) / row["flips"], **style)
        for source in ("uniform", "gaussian"):
            line(encode, source, codec, lambda row: row["encode_seconds"], ls=drifts.get(source, "--"))
            line(decode, source, codec, lambda row: row["decode_seconds"], ls=drifts.get(source, "--"))
    p = np.geomspace(min(DENSITIES), max(DENSITIES), 50)
    bits.plot(p, entropy(p) / p, "k:", label="H(p) / p")
    bpp.plot(p, entropy(p), "k:", label="H(p)")
    for source, style in drifts.items():
        line(drift_bits, source, "side_info", lambda row: row["bits_per_flip"], ls=style, label=source)
        points = {
            row["density"]: row["conditional_entropy_bits_per_flip"]
            for row in rows
            if row["source"] == source and row["d"] == d
        }
        drift_bits.plot(sorted(points), [points[x] for x in sorted(points)], "k", lw=0.7, ls=style)
    line(drift_bits, "gaussian", "bfuse8-png", lambda row: row["bits_per_flip"], label="bfuse8-png")
    for source, marker in zip(recorded, "xo+^sv", strict=False):
        for codec in ("side_info", "bfuse8-png"):
            clients = [row for row in rows if (row["source"], row["codec"]) == (source, codec)]
            points = [[row[key] for row in clients] for key in ("density", "bits_per_flip")]
            label = f"recorded: {source}" if codec == "side_info" else None
            drift_bits.plot(*points, marker, color=colours[codec], ls="", label=label)
    titles = {
        bits: "bits per flip, uniform flips",
        drift_bits: "bits per flip, side_info by drift, and recorded\n(black: entropy given the distance)",
        bpp: "bits per parameter, Gaussian drift",
        false: "false flips per true flip",
        encode: "encode, seconds (dashed: uniform flips)",
        decode: "decode, seconds (dashed: uniform flips)",
    }
    for axes, title in titles.items():
        axes.set(title=title, xscale="log", xlabel="share of mask bits that flip")
        axes.grid(alpha=0.3)
        if axes is not bits and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.legend(*bits.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    for axes in (bpp, false, encode, decode):
        axes.set_yscale("log")
    bits.set_ylim(0, 25)
    figure.suptitle(f"d = {d:,}")
    figure.savefig(file, dpi=110)
    print(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument(
        "--recorded", type=Path, action="append", default=[], help="theta of a real run (.npz)"
    )
    parser.add_argument("--d", type=int, action="append", help=f"positions; default {1 << 20} and {VIT_B}")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="write the plot here")
    options = parser.parse_args()

    head = ("source", "d", "flips", "codec", "bits", "H(p)/p", "given u", "bpp", "false", "enc s", "dec s")
    print("{:10} {:>10} {:>8} {:18}{:>8}{:>8}{:>8}{:>9}{:>9}{:>8}{:>8}".format(*head))
    rows, repeats, sizes = [], 1 if options.quick else 3, options.d or (1 << 20, VIT_B)
    for d in sizes:
        for p in (0.01,) if options.quick else DENSITIES:
            large = d >= VIT_B and options.quick
            if not large:
                rows += measure("uniform", *uniform_flips(d, p, 1), FILTERS + EXACT, repeats)
            for drift in DRIFTS[:1] if large else DRIFTS:
                settings = SHORT if large else FILTERS + EXACT if drift == "gaussian" else FEW
                rows += measure(drift, *drift_flips(d, p, drift, 2), settings, repeats)
    for file in options.recorded:
        clients = list(recorded_flips(file))
        for positions, theta, stream in clients[:1] if options.quick else clients[:3]:
            rows += measure(
                file.stem, positions, theta, stream, SHORT if options.quick else FILTERS + EXACT, repeats
            )
    cohort = measure_cohort(30, VIT_B, 354_000, repeats)
    if options.json:
        options.json.write_text(json.dumps([*rows, cohort], indent=1) + "\n")
    if options.plot:
        recorded = [file.stem for file in options.recorded]
        plot(rows, sizes[-1], recorded, options.plot)
        for d in sizes[:-1]:
            plot(rows, d, recorded, options.plot.with_stem(f"{options.plot.stem}_{d}"))


if __name__ == "__main__":
    main()
