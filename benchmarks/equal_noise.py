"""Bits per unit of signal-to-noise: flips, thinned flips and minimal random coding as carriers of one step.

    python -m benchmarks.equal_noise --quick                   # d = 300,000
    python -m benchmarks.equal_noise --json equal_noise.json   # d = 1,000,000

What a client wants the server to know is its step Δ = θ_k − θ_g; what arrives is a random x̂ that agrees with
Δ in the mean: (m_k − m_g)/κ at the flips that travel, or m̂ − θ_g for random coding. Fewer bits with more
noise are no gain: the mean of n clients has 1/n of the noise. So every row has

    kept      slope of x̂ on Δ, weighted by 1/Var x̂ᵢ: 1 without bias
    snr       kept² Σ Δᵢ²/Varᵢ over the weighted mean square of x̂ᵢ − kept·Δᵢ: a sum over all positions
    bits/snr  8 · bytes of the payload, envelope included, per unit of that sum

with Varᵢ = |Δᵢ|/κ − Δᵢ² for flips and θ_k(1 − θ_k) for a mask from θ_k; positions that cannot flip are left
out. An unbiased channel needs at least 1/(2 ln 2) = 0.72 bits per unit where the SNR of a position is small.
"""

import numpy as np

from benchmarks import workload
from benchmarks.klms_bias import drifted
from deltamask_jax import codecs, masks
from deltamask_jax.public_random import MASK, SAMPLE, stream_key, uniforms

KAPPAS = (1.0, 0.5, 0.25)
RANDOM_CODING = ((8, 1.0), (8, 2.0), (10, 2.0), (12, 2.0), (12, 4.0), (14, 4.0))  # bits, nats per block
SPREADS = (0.1, 0.4)  # of the drift, in logits


def flips(theta_k: np.ndarray, theta_g: np.ndarray, kappa: float, draw: int) -> tuple[np.ndarray, bytes]:
    """x̂ f64[d] and the payload of `side_info`."""
    d, stream = len(theta_g), stream_key(0, 1, draw, MASK)
    u = uniforms(stream, d)
    sent = (u < theta_k) != (u < theta_g)
    sent &= uniforms(stream_key(0, 1, draw, SAMPLE), d) < kappa * masks.SCALE
    codec, context = codecs.get("side_info"), codecs.Context(d, theta_g, (stream,), round=1)
    payload = codec.encode(np.flatnonzero(sent).astype(np.uint32), context)
    estimate, received = np.zeros(d), codec.decode(payload, context)
    estimate[received] = np.where(u[received] < theta_g[received], -1, 1) / kappa
    return estimate, payload


def random_coding(
    theta_k: np.ndarray, theta_g: np.ndarray, bits: int, block_kl: float
) -> tuple[np.ndarray, bytes]:
    """x̂ f64[d] and the payload of minimal random coding."""
    codec, context = (
        codecs.get("random_coding", bits=bits, block_kl=block_kl),
        codecs.Context(len(theta_g), theta_g, round=1),
    )
    payload = codec.encode(theta_k, context)
    return codec.decode(payload, context) - theta_g / masks.SCALE, payload


def row(
    name: str, spread: float, step: np.ndarray, variance: np.ndarray, estimate: np.ndarray, payload: bytes
) -> dict:
    """One row, from Δ, Var x̂ and x̂, f64[d] each."""
    d, able = len(step), step != 0
    step, estimate, weights = step[able], estimate[able], 1 / variance[able]
    signal = weights @ step**2
    kept = float((weights * step) @ estimate / signal)
    noise = float(np.mean(weights * (estimate - kept * step) ** 2))
    snr = kept**2 * signal / noise
    return {
        "drift": spread,
        "carrier": name,
        "d": d,
        "bpp": 8 * len(payload) / d,
        "kept": kept,
        "snr": snr,
        "bits/snr": 8 * len(payload) / snr,
    }


def main() -> None:
    options = workload.options(__doc__)
    d, rows = 300_000 if options.quick else 1_000_000, []
    for spread in SPREADS:
        theta_k, theta_g = drifted(d, spread)
        p, step = theta_k / masks.SCALE, (theta_k.astype(float) - theta_g) / masks.SCALE
        for number, kappa in enumerate(KAPPAS):
            estimate, payload = flips(theta_k, theta_g, kappa, number)
            variance = np.abs(step) / kappa - step**2
            name = f"side_info, κ = {kappa:g}"
            rows.append(row(name, spread, step, variance, estimate, payload))
        for bits, block_kl in RANDOM_CODING[: 4 if options.quick else None]:
            estimate, payload = random_coding(theta_k, theta_g, bits, block_kl)
            name = f"random coding, {bits} bits per {block_kl:g} nats"
            rows.append(row(name, spread, step, p * (1 - p), estimate, payload))
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
