"""EDEN (Vargaftik et al., ICML 2022, arXiv 2108.08842): FedAvg with rotated, quantised updates.

Each client rotates its update, trained − received weights (the head's included, as part of one vector), at
random, rounds what looks Gaussian then to the nearest of 2^bits Lloyd–Max centroids, and sends these
codes and one scale per 65,536 weights. The server's estimate is unbiased, so the errors of a cohort
average out. Any rate: 0.1 bits a weight, 1.5, 4. How, and the bytes: codecs/eden.py.

Local training, server step and downlink are those of `config.fedavg`.
"""

from deltamask_jax.codecs import eden as codec
from deltamask_jax.methods.averaging import Wire
from deltamask_jax.methods.fedavg import fine_tuning
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def eden(config, task: Task) -> Method:
    """FedAvg whose updates travel at `config.eden.bits` bits a weight."""
    return fine_tuning("eden", config, task, rotated_wire(config.eden.bits, config.seed))


def rotated_wire(bits: float, seed: int) -> Wire:
    """Updates through EDEN's codec."""

    def encode(update, round_number, client):
        return codec.encode(update, bits, seed, round_number=round_number, client=client)

    def decode(payload, n, round_number, client):
        return codec.decode(payload, n, bits, seed, round_number=round_number, client=client)

    return Wire(encode, decode)
