"""One federated round of any method: broadcast → local training → encode → bytes → decode → aggregate."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import cohort, uplink
from deltamask_jax.methods import Method, Task

EVALUATION_CHUNK = 256  # examples
HEAD_PHASE, MAIN_PHASE, PROBE_PHASE = range(3)  # each shuffles its examples with a stream of its own


@dataclasses.dataclass(frozen=True)
class Problem:
    """The federated task, the same for every method.

    Attributes:
        inputs: {'tokens' | 'features': (train, test)}, device arrays.
        labels: (train i32[n], test i32[m]).
        parts: each client's training indices.
    """

    config: Any
    task: Task
    inputs: dict[str, tuple[jax.Array, jax.Array]]
    labels: tuple[jax.Array, jax.Array]
    parts: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round cost and gave; `payload` is the last client's, for looking at.

    `codec_seconds` go to making and reading payloads, up and down; of these, `codec_exposed_seconds` passed
    while no client was training.
    """

    train_loss: float
    uplink_bytes: int
    downlink_bytes: int
    clients: int
    details: dict[str, float]
    payload: bytes
    codec_seconds: float = 0.0
    codec_exposed_seconds: float = 0.0


def play_round(
    problem: Problem,
    method: Method,
    state: Any,
    number: int,
    clients: np.ndarray,
    phase: int,
    epochs: int,
) -> tuple[Any, Round]:
    """One federated round; every byte that crosses the wire exists and is counted.

    Args:
        state: the method's server state.
        number: round number, from 1 (0 for the head's).
        clients: ids of the cohort, i[k].
        phase: one of the phases above.
        epochs: local epochs, E.

    Raises:
        FloatingPointError: a client's loss is not finite.
    """
    config = problem.config
    plan = cohort.schedule(
        problem.parts,
        clients,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        round_number=number,
        purpose=phase,
    )
    started = time.perf_counter()
    broadcast = method.broadcast(state, number)
    start = method.receive(broadcast, number)
    server_seconds = time.perf_counter() - started
    sent = uplink.train_and_send(
        config,
        method,
        state,
        start,
        {"inputs": problem.inputs[method.inputs][0], "labels": problem.labels[0]},
        plan,
        clients,
        number,
        jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), phase), number),
    )
    for client, loss in zip(clients, sent.losses, strict=True):
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"round {number}: the loss of client {client} is {loss}; lower the learning rate"
            )
    started = time.perf_counter()
    each = [jax.tree.map(lambda x, k=k: x[k], sent.updates) for k in range(len(clients))]
    state = method.remember(state, each, sent.payloads, number, clients)
    received = method.decode(state, sent.payloads, number, clients)
    server_seconds += time.perf_counter() - started
    examples = [len(problem.parts[client]) for client in clients]
    new_state = method.aggregate(state, received, clients, examples, number)
    return new_state, Round(
        train_loss=float(np.mean(sent.losses)),
        uplink_bytes=sum(len(payload) for payload in sent.payloads),
        downlink_bytes=len(broadcast) * len(clients),
        clients=len(clients),
        details=method.describe(sent.updates, received),
        payload=sent.payloads[-1],
        codec_seconds=sent.codec_seconds + server_seconds,
        codec_exposed_seconds=sent.exposed_seconds + server_seconds,
    )


def evaluator(problem: Problem, method: Method) -> Callable[[Any], float]:
    """Accuracy of a server state's network on the test split, as a function of the state."""
    correct_of = correctness(problem, method)
    return lambda state: float(np.mean(correct_of(state)))


def correctness(problem: Problem, method: Method) -> Callable[[Any], np.ndarray]:
    """Which test examples a server state's network gets right, bool[m], as a function of the state."""
    inputs, labels = problem.inputs[method.inputs][1], problem.labels[1]
    forward = problem.task.model.suffix if method.inputs == "tokens" else lambda params, x: x

    @jax.jit
    def predict(params, head, x):
        return jnp.argmax(forward(params, x) @ head["kernel"] + head["bias"], axis=-1)

    def correct(state) -> np.ndarray:
        params, head = method.eval_params(state)
        return np.asarray(in_chunks(partial(predict, params, head), inputs) == labels)

    return correct


def in_chunks(function, array: jax.Array) -> jax.Array:
    """`function` over the rows of `array`, a chunk at a time; the last is padded to a chunk."""
    n, chunk = len(array), min(EVALUATION_CHUNK, len(array))
    padded = jnp.concatenate([array, jnp.repeat(array[:1], -n % chunk, axis=0)])
    return jnp.concatenate([function(padded[i : i + chunk]) for i in range(0, len(padded), chunk)])[:n]
