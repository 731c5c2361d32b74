"""SignSGD (Bernstein et al., arXiv 1802.04434) with error feedback (Karimireddy et al., arXiv 1901.09847).

Client k adds to its update, trained − received weights (the head's included), the residual e_k of its last
round, sends the signs of the sum and their scale (mean |·| of 4,096 neighbours), and keeps what this lost:
  p = (w_k − w) + e_k;   sent: scale · sign(p);   e_k ← p − scale · sign(p)
Signs alone are biased and may never converge; with the residual every part of an update arrives, late. The
residuals belong to the clients and are never sent; the simulation keeps them in the state, 4 bytes a trained
weight a client (30 clients of 35 M weights: 4.2 GB). The server takes FedAvg's weighted mean of the scaled
signs instead of 1802.04434's majority vote.

Local training, server step and downlink are those of `config.fedavg`.
"""

from deltamask_jax.codecs import signs
from deltamask_jax.methods.averaging import Wire
from deltamask_jax.methods.fedavg import fine_tuning
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def _encode(update, round_number, client):
    return signs.encode(update, round_number=round_number, client=client)


def _decode(payload, n, round_number, client):
    return signs.decode(payload, n, round_number=round_number, client=client)


SIGN_WIRE = Wire(_encode, _decode, error_feedback=True)


def signsgd(config, task: Task) -> Method:
    """FedAvg whose updates travel as scaled signs, with error feedback."""
    return fine_tuning("signsgd", config, task, SIGN_WIRE)
