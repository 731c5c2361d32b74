"""SignSGD (Bernstein et al., arXiv 1802.04434) with error feedback (Karimireddy et al., arXiv 1901.09847).

Client k adds to its update, trained − received weights (the head's included), the residual e_k of its last
round, sends the signs of the sum and their scale (mean |·| of 4,096 neighbours), and keeps what this lost:
  p = (w_k − w) + e_k;   sent: scale · sign(p);   e_k ← p − scale · sign(p)
Signs alone are biased and may never converge; with the residual every part of an update arrives, late. The
residuals belong to the clients and are never sent; the simulation keeps them in the state, 4 bytes per
trained weight and client (30 clients of 35 M weights: 4.2 GB). The server takes FedAvg's weighted mean of the
scaled signs instead of 1802.04434's majority vote.

Local training, server step and downlink are those of `config.fedavg`.
"""

from typing import Any

from deltamask_jax import codecs
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def signsgd(task: Task, options: Any, **settings: Any) -> Method:
    """FedAvg whose updates travel as scaled signs, with error feedback; `options` is `config.fedavg`."""
    signs = codecs.get("signs")
    return fedavg(task, options, codec=signs, error_feedback=True, name="signsgd", **settings)
