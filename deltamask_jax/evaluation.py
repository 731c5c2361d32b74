"""Accuracy of a server state's network on the test examples, and any function over examples in chunks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deltamask_jax import devices
from deltamask_jax.data.features import TokensOnDemand
from deltamask_jax.federation import hosts
from deltamask_jax.methods import Method
from deltamask_jax.task import Problem

EVALUATION_CHUNK = 256  # examples per device


def evaluator(problem: Problem, method: Method) -> Callable[[Any], float]:
    """Accuracy of a server state's network on the test split, as a function of the state.

    All processes must call it together, see `correctness`.
    """
    correct_of = correctness(problem, method)
    return lambda state: float(np.mean(correct_of(state)))


def correctness(problem: Problem, method: Method) -> Callable[[Any], np.ndarray]:
    """Which test examples a server state's network gets right, bool[m], as a function of the state.

    Each process computes its share of them and then waits for the others', so that all must call it together.

    Raises:
        FloatingPointError: raised by the function, where the network's logits are not finite: argmax would
            call them class 0.
    """
    inputs, labels = problem.inputs[method.inputs][1], np.asarray(problem.labels[1])
    mesh = problem.engine.mesh
    forward = problem.engine.compiled(problem.task.model.suffix)
    classify = problem.engine.compiled(_classes)

    def predict(params, head, x):
        return classify(forward(params, x) if method.inputs == "tokens" else x, head)

    def correct(state) -> np.ndarray:
        params, head = method.network(state)
        mine = in_chunks(partial(predict, params, head), inputs, mesh, hosts.block(len(labels)))
        predictions = hosts.exchange_rows(np.asarray(mine))
        if broken := int(np.sum(predictions < 0)):
            raise FloatingPointError(
                f"the network's logits are not finite for {broken} of {len(labels)} test examples: "
                f"lower the learning rate, or use config.model.dtype='float32'"
            )
        return predictions == labels

    return correct


def _classes(features: jax.Array, head: dict[str, jax.Array]) -> jax.Array:
    """The most likely class of each example, i32[m]; −1 where a logit is not finite.

    Args:
        features: f32[m, features].
        head: kernel f32[features, classes], bias f32[classes].
    """
    logits = features @ head["kernel"] + head["bias"]
    return jnp.where(jnp.all(jnp.isfinite(logits), axis=-1), jnp.argmax(logits, axis=-1), -1)


def in_chunks(
    function: Callable[[jax.Array], jax.Array],
    array: jax.Array | np.ndarray | TokensOnDemand,
    mesh: Mesh,
    rows: slice | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """`function` over the rows of `array`, a chunk on every device at a time; the last are padded.

    Args:
        function: [chunk, ...] -> [chunk, ...], jitted by the caller.
        array: [n, ...].
        mesh: the devices.
        rows: only these; None: all.
        chunk: rows that a device takes at once; None: `chunk_of` all that `array` has.

    Returns:
        [rows, ...] of what the function gives.
    """
    n, outputs = len(array), []
    first, end, _ = (rows or slice(None)).indices(n)
    chunk = (chunk or chunk_of(n)) * mesh.shape[devices.CLIENTS]
    last = max(end, first + 1)  # one chunk even of no rows: the outputs' shape and type are the function's
    for start in range(first, last, chunk):
        taken = array[start : min(start + chunk, last)]
        if len(taken) < chunk:
            library = jnp if isinstance(taken, jax.Array) else np
            taken = library.concatenate([taken, library.repeat(taken[:1], chunk - len(taken), axis=0)])
        outputs.append(function(devices.divided(taken, mesh)))
        jax.block_until_ready(outputs[-2:-1])  # no more than two chunks of a host's array on the devices
    return jnp.concatenate(outputs)[: end - first]


def chunk_of(examples: int) -> int:
    """Examples a device takes at once, whatever the number of devices: another size may round differently."""
    return min(EVALUATION_CHUNK, examples)
