"""EDEN (Vargaftik et al., ICML 2022, arXiv 2108.08842): FedAvg with rotated, quantised updates.

Each client rotates its update, trained − received weights (the head's included, as part of one vector), at
random, rounds what looks Gaussian then to the nearest of 2^bits Lloyd–Max centroids, and sends these
codes and one scale per 65,536 weights. The server's estimate is unbiased, so the errors of a cohort
average out. Any rate: 0.1 bits per weight, 1.5, 4. How, and the bytes: codecs/eden.py.

Local training, server step and downlink are those of `config.fedavg`.
"""

from typing import Any

from deltamask_jax import codecs
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def eden(task: Task, options: Any, *, bits: float, **settings: Any) -> Method:
    """FedAvg whose updates travel at `bits` bits per weight; `options` is `config.fedavg`."""
    return fedavg(task, options, codec=codecs.get("eden", bits=bits), name="eden", **settings)
