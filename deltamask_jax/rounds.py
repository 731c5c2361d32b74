"""One federated round of any method: broadcast → local training → encode → bytes → decode → aggregate."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import cohort
from deltamask_jax.methods import Method, Task

EVALUATION_CHUNK = 256  # examples
STEPS = ("train_seconds", "encode_seconds", "decode_seconds", "aggregate_seconds")  # of a round, timed
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
    """What one round cost and gave.

    Attributes:
        details: numbers of the method's own for the round's line.
        payload: the last client's, for looking at.
        seconds: of each step, by name.
        diagnostics: the method's line of diagnostics.jsonl.
    """

    train_loss: float
    uplink_bytes: int
    downlink_bytes: int
    clients: int
    details: dict[str, float]
    payload: bytes
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)


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
    marks = [time.perf_counter()]
    broadcast = method.broadcast(state, number)
    round_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), phase), number)
    updates, losses = cohort.train(
        method.training,
        method.frozen,
        method.receive(broadcast, number),
        {"inputs": problem.inputs[method.inputs][0], "labels": problem.labels[0]},
        plan,
        method.private(number, clients),
        jax.vmap(partial(jax.random.fold_in, round_key))(jnp.asarray(clients)),
        backend=config.cohort.backend,
        chunk=config.cohort.chunk,
    )
    for client, loss in zip(clients, losses, strict=True):
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"round {number}: the loss of client {client} is {loss}; lower the learning rate"
            )
    updates = jax.device_get(updates)
    marks.append(time.perf_counter())
    payloads = method.encode(
        state, [jax.tree.map(lambda x, k=k: x[k], updates) for k in range(len(clients))], number, clients
    )
    marks.append(time.perf_counter())
    received = method.decode(state, payloads, number, clients)
    marks.append(time.perf_counter())
    examples = [len(problem.parts[client]) for client in clients]
    new_state = method.aggregate(state, received, clients, examples, number)
    marks.append(time.perf_counter())
    return new_state, Round(
        train_loss=float(np.mean(losses)),
        uplink_bytes=sum(len(payload) for payload in payloads),
        downlink_bytes=len(broadcast) * len(clients),
        clients=len(clients),
        details=method.describe(updates, received),
        payload=payloads[-1],
        seconds=dict(zip(STEPS, np.diff(marks).tolist(), strict=True)),
        diagnostics=method.diagnose(new_state, updates),
    )


def evaluator(problem: Problem, method: Method) -> Callable[[Any], float]:
    """Accuracy of a server state's network on the test split, as a function of the state."""
    inputs, labels = problem.inputs[method.inputs][1], problem.labels[1]
    forward = problem.task.model.suffix if method.inputs == "tokens" else lambda params, x: x

    @jax.jit
    def predict(params, head, x):
        return jnp.argmax(forward(params, x) @ head["kernel"] + head["bias"], axis=-1)

    def accuracy(state) -> float:
        params, head = method.eval_params(state)
        return float(jnp.mean(in_chunks(partial(predict, params, head), inputs) == labels))

    return accuracy


def in_chunks(function, array: jax.Array) -> jax.Array:
    """`function` over the rows of `array`, a chunk at a time; the last is padded to a chunk."""
    n, chunk = len(array), min(EVALUATION_CHUNK, len(array))
    padded = jnp.concatenate([array, jnp.repeat(array[:1], -n % chunk, axis=0)])
    return jnp.concatenate([function(padded[i : i + chunk]) for i in range(0, len(padded), chunk)])[:n]
