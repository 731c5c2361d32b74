"""One round of the tiny problem, five clients, in a process of its own: for tests that need other devices.

python -m tests.play_round OUT.npz [COORDINATOR PROCESSES PROCESS] [name=value of a setting …]
"""

import ast
import dataclasses
import sys
from functools import partial
from unittest import mock

import numpy as np

from deltamask_jax.federation import hosts


def main(out: str, *arguments: str) -> None:
    places = [argument for argument in arguments if "=" not in argument]
    changes = dict(argument.split("=") for argument in arguments if "=" in argument)
    kind = changes.pop("tokens", "devices")  # where they are: devices, host, or computed on demand
    if places:
        hosts.start(places[0], int(places[1]), int(places[2]))

    import jax
    from jax.flatten_util import ravel_pytree

    from deltamask_jax import devices, evaluation, methods
    from deltamask_jax.data.features import TokensOnDemand, prefix_features
    from deltamask_jax.federation import engine
    from deltamask_jax.federation.rounds import play_round
    from tests.conftest import cohort_of, tiny_config, tiny_problem

    config = tiny_config(**{name: ast.literal_eval(value) for name, value in changes.items()})
    problem = dataclasses.replace(tiny_problem(), config=config, engine=engine.from_config(config))
    on_host, computed = np.asarray(problem.inputs["tokens"][0]), []

    def compute(rows):
        computed.extend(rows)
        return on_host[rows]

    if kind != "devices":
        train = TokensOnDemand(compute, len(on_host)) if kind == "demand" else on_host
        problem = dataclasses.replace(problem, inputs=problem.inputs | {"tokens": (train, on_host)})
    method = methods.build(config, problem.task)
    model, mesh = problem.task.model, problem.engine.mesh
    suffix = partial(jax.jit(model.suffix), devices.spread(problem.task.params, mesh))
    tokens = prefix_features(
        partial(jax.jit(model.prefix), problem.task.params),
        np.random.default_rng(0).integers(0, 256, (55, 6, 6), dtype=np.uint8),
        model.preprocessing,
        chunk=4 * mesh.shape[devices.CLIENTS],
        place=partial(devices.divided, mesh=mesh),
    )
    with (
        mock.patch.object(evaluation, "EVALUATION_CHUNK", 4),  # so that every device has examples
        mock.patch.object(evaluation, "in_chunks", wraps=evaluation.in_chunks) as in_chunks,
    ):
        correct = evaluation.correctness(problem, method)(method.init())
        evaluated = in_chunks.call_args.args[3]
        features = evaluation.in_chunks(suffix, problem.inputs["tokens"][1], mesh)
    state, result = play_round(problem, method, method.init(), cohort_of(np.arange(5)))
    np.savez(
        out,
        tokens=tokens,
        features=features,
        correct=correct,
        evaluated=evaluated.stop - evaluated.start,
        theta=state.theta if hasattr(state, "theta") else ravel_pytree(state.weights)[0],
        loss=result.train_loss,
        bytes=result.uplink_bytes,
        payload=np.frombuffer(result.payload, np.uint8),
        flip_rate=result.details.get("flip_rate", 0),
        devices=jax.local_device_count(),
        processes=hosts.count(),
        computed=computed,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
