"""The same job here and in Flower's simulation engine with PyTorch clients: many small clients in a round.

    python -m benchmarks.vs_flower --quick
    python -m benchmarks.vs_flower --json vs_flower.json

Needs `pip install "flwr[simulation]>=1.12" torch`, best in an environment of its own: Flower pins packages
this project also uses. 100 clients of 16 examples train masks of the embedded ViT (d = 983,040) and of a
tiny one (d = 61,440); Flower's run one core each in Ray's worker processes, receive θ and return their masks;
FedAvg's mean is the Beta mean of one round. Seconds are those between two aggregations, so that starting Ray
does not count.
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

try:
    import torch
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation
except ImportError as error:
    sys.exit(f'skipped ({error}): pip install "flwr[simulation]>=1.12" torch')

from benchmarks import torch_deltamask, workload
from deltamask_jax import methods
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.task import Cohort

EXAMPLES, BATCH = 16, 8


class Client(NumPyClient):
    """Trains from θ and returns its mask as bytes, one per weight."""

    def __init__(self, shape: torch_deltamask.Shape):
        self.shape = shape

    def fit(self, parameters, config):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        network, theta = (
            torch_deltamask.Network(self.shape),
            torch.from_numpy(parameters[0].astype(np.float32)),
        )
        tokens = torch.randn(EXAMPLES, self.shape.tokens, self.shape.width)
        labels = torch.randint(self.shape.classes, (EXAMPLES,))
        torch_deltamask.start(network, theta)
        theta_k = torch_deltamask.train(network, tokens, labels, BATCH, prefix=False, bf16=False)
        return [(torch.rand_like(theta_k) < theta_k).numpy().astype(np.uint8)], EXAMPLES, {}


class Timed(FedAvg):
    """FedAvg that notes when each round's masks were merged."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.times = []

    def aggregate_fit(self, server_round, results, failures):
        merged = super().aggregate_fit(server_round, results, failures)
        self.times.append(time.perf_counter())
        return merged


def flower(model: str, clients: int, rounds: int) -> float:
    """Seconds of a round in Flower's simulation."""
    shape = torch_deltamask.SHAPES[model]
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    d = sum(p.numel() for p in torch_deltamask.Network(shape).logits())
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters([np.full(d, 0.97, np.float32)]),
    )
    server = ServerApp(
        server_fn=lambda context: ServerAppComponents(
            strategy=strategy, config=ServerConfig(num_rounds=rounds + 1)
        )
    )
    run_simulation(
        server_app=server,
        client_app=ClientApp(client_fn=lambda context: Client(shape).to_client()),
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return float(np.diff(strategy.times).min())


def ours(model: str, clients: int, rounds: int) -> float:
    problem = workload.problem(model, clients, EXAMPLES, BATCH, chunk=0)
    method = methods.build(problem.config, problem.task)
    state = method.init()

    def once():
        play_round(problem, method, state, Cohort(0, 1, np.arange(clients)))

    return workload.best_of(rounds, once)


def main() -> None:
    options = workload.options(__doc__)
    clients, rounds = (10, 1) if options.quick else (100, 2)
    rows = []
    for model in ("tiny",) if options.quick else ("tiny", "glyph"):
        seconds = {
            "flower + pytorch": flower(model, clients, rounds),
            "deltamask_jax": ours(model, clients, rounds),
        }
        for program, round_seconds in seconds.items():
            whose = resource.RUSAGE_SELF if program == "deltamask_jax" else resource.RUSAGE_CHILDREN
            rows.append(
                {
                    "model": model,
                    "program": program,
                    "clients": clients,
                    "cores": os.cpu_count(),
                    "round s": round_seconds,
                    "rounds a minute": 60 / round_seconds,
                    "largest process GiB": resource.getrusage(whose).ru_maxrss / 2**20,
                    "ours is faster by": round_seconds / seconds["deltamask_jax"],
                }
            )
    workload.report(rows, options.json and Path(options.json))


if __name__ == "__main__":
    # Ray's workers import the client by name, which they cannot from __main__.
    from benchmarks import vs_flower

    vs_flower.main()
