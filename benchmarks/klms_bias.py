"""How far minimal random coding draws masks toward the prior, against candidates and KL a block.

    python benchmarks/klms_bias.py --quick                 # some of it, d = 300,000
    python benchmarks/klms_bias.py --json klms_bias.json   # d = 1,000,000
    python benchmarks/klms_bias.py --recorded theta.npz    # θ of a real run, from benchmarks/record_theta.py

θ_g and θ_k come from logits with a Gaussian drift, or are recorded. Every row is one payload, encoded and
decoded again:

    kept       slope of m̂ − θ_g on θ_k − θ_g, least squares: 1 without bias, 0 for a draw from the prior;
               ± its standard error if the bits of the mask were independent
    bits/KL    8 · bytes of the payload, envelope included, for each bit of KL(θ_k ‖ θ_g)
    target     klms.bits bits for every klms.block_kl nats, in the same unit
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from deltamask_jax import codecs, masks

BITS = (2, 4, 6, 8, 10)
BLOCK_KL = (0.5, 1.0, 2.0, 4.0)  # nats
QUICK_BITS, QUICK_BLOCK_KL = (4, 6, 8), (1.0, 2.0)
SPREADS = (0.1, 0.4)  # of the drift, in logits


def drifted(d: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """θ_k and θ_g, u16[d]."""
    rng = np.random.default_rng(0)
    logits = rng.normal(2, 2, d)
    theta_g, theta_k = (
        np.clip(np.rint(65536 / (1 + np.exp(-s))), 655, 64880).astype(np.uint16)
        for s in (logits, logits + spread * rng.normal(size=d))
    )
    return theta_k, theta_g


def measure(source: str, theta_k: np.ndarray, theta_g: np.ndarray, bits: int, block_kl: float) -> dict:
    """One row."""
    d = len(theta_g)
    codec = codecs.get("random_coding", bits=bits, block_kl=block_kl)
    context = codecs.Context(d, theta_g, round=1)
    codec.decode(codec.encode(theta_k, context), context)  # compiles
    started = time.perf_counter()
    payload = codec.encode(theta_k, context)
    encoded = time.perf_counter()
    mask = codec.decode(payload, context)
    p, q = theta_k / masks.SCALE, theta_g / masks.SCALE
    step = p - q
    kl = float(np.asarray(masks.bernoulli_kl(theta_k, theta_g)).sum(dtype=np.float64)) / np.log(2)
    row = {
        "source": source,
        "d": d,
        "kl_bpp": kl / d,
        "bits": bits,
        "block_kl": block_kl,
        "kept": float(step @ (mask - q) / (step @ step)),
        "standard_error": float(np.sqrt(step**2 @ (p * (1 - p))) / (step @ step)),
        "bpp": 8 * len(payload) / d,
        "bits_per_kl": 8 * len(payload) / kl,
        "target": bits * np.log(2) / block_kl,
        "encode_seconds": encoded - started,
        "decode_seconds": time.perf_counter() - encoded,
    }
    print(
        f"{source:12} {row['kl_bpp']:9.5f} {bits:5} {block_kl:9} {row['kept']:7.3f} ± "
        f"{row['standard_error']:.3f} {row['bpp']:9.5f} {row['bits_per_kl']:8.2f} {row['target']:7.2f} "
        f"{row['encode_seconds']:7.2f} {row['decode_seconds']:6.2f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("--recorded", type=Path, help="theta of a real run (.npz) instead of drawn ones")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()

    if options.recorded:
        with np.load(options.recorded) as file:
            sources = {f"{options.recorded.stem}": (file["theta_k"][0], file["theta_g"])}
    else:
        d, spreads = (300_000, SPREADS[1:]) if options.quick else (1_000_000, SPREADS)
        sources = {f"drift {spread}": drifted(d, spread) for spread in spreads}
    print("source          KL bpp  bits  block_kl            kept       bpp  bits/KL  target   enc s  dec s")
    rows = [
        measure(source, theta_k, theta_g, bits, block_kl)
        for source, (theta_k, theta_g) in sources.items()
        for block_kl in (QUICK_BLOCK_KL if options.quick else BLOCK_KL)
        for bits in (QUICK_BITS if options.quick else BITS)
    ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
