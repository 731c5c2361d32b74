"""DRIVE (Vargaftik et al., NeurIPS 2021, arXiv 2105.08339): FedAvg with one bit per weight.

Each client sends the signs of its randomly rotated update and the scale S = ‖x‖² / ‖R x‖₁, with which
S · Rᵀ sign(R x) is unbiased (the paper's other scale, ‖R x‖₁ / n, has a smaller error for a single client but
shrinks the mean of many by 2/π). The head's update is part of the vector.

That is EDEN at one bit: its two centroids ±√(2/π) go into the scale. So the payload is EDEN's.
Local training, server step and downlink are those of `config.fedavg`.
"""

from typing import Any

from deltamask_jax import codecs
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def drive(task: Task, options: Any, **settings: Any) -> Method:
    """FedAvg whose updates travel as rotated signs; `options` is `config.fedavg`."""
    return fedavg(task, options, codec=codecs.get("eden", bits=1.0), name="drive", **settings)
