"""QSGD (Alistarh et al., NeurIPS 2017, arXiv 1610.02132): FedAvg with randomly rounded updates.

Each client cuts its update, trained − received weights (the head's included, as part of one vector), in
buckets, and sends every bucket's norm and every weight's level: |weight| in units of norm / s, rounded up or
down at random and entropy-coded. Unbiased. How, and the bytes: codecs/qsgd.py. The paper compresses gradients
of single steps; here, as in FedAvg, it is what a round of local training came to.

Local training, server step and downlink are those of `config.fedavg`.
"""

from typing import Any

from deltamask_jax import codecs
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def qsgd(task: Task, options: Any, *, levels: int, bucket: int, **settings: Any) -> Method:
    """FedAvg whose updates travel at few levels; `options` is `config.fedavg`."""
    codec = codecs.get("qsgd", levels=levels, bucket=bucket)
    return fedavg(task, options, codec=codec, name="qsgd", **settings)
