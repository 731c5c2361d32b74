"""QSGD (Alistarh et al., NeurIPS 2017, arXiv 1610.02132): FedAvg with randomly rounded updates.

Each client cuts its update, trained − received weights (the head's included, as part of one vector), in
buckets, and sends every bucket's norm and every weight's level: |weight| in units of norm / s, rounded up or
down at random and entropy-coded. Unbiased. How, and the bytes: codecs/qsgd.py. The paper compresses gradients
of single steps; here, as in FedAvg, it is what a round of local training came to.

Local training, server step and downlink are those of `config.fedavg`.
"""

from deltamask_jax.codecs import qsgd as codec
from deltamask_jax.methods.averaging import Wire
from deltamask_jax.methods.fedavg import fine_tuning
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def qsgd(config, task: Task) -> Method:
    """FedAvg whose updates travel as levels, with the settings of `config.qsgd`."""
    return fine_tuning("qsgd", config, task, level_wire(config.qsgd.levels, config.qsgd.bucket, config.seed))


def level_wire(levels: int, bucket: int, seed: int) -> Wire:
    """Updates through QSGD's codec."""

    def encode(update, round_number, client):
        return codec.encode(update, levels, bucket, seed, round_number=round_number, client=client)

    def decode(payload, n, round_number, client):
        return codec.decode(payload, n, levels, bucket, round_number=round_number, client=client)

    return Wire(encode, decode)
