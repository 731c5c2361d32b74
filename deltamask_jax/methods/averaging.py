"""Federated averaging of weights: clients send how far training moved them, the server follows the mean.

One round of FedAvg (McMahan et al., arXiv 1602.05629) in the form of FedOpt (Reddi et al., arXiv 2003.00295):
  1  every client learns the server's weights w
  2  client k trains from w to w_k                                local_training.weight_training
  3  the update w_k − w, one float32 vector, becomes bytes: whole, or compressed by a codec of values
  4  the server takes the mean of the decoded updates, weighted by example counts, and a step along it
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from deltamask_jax import codecs
from deltamask_jax.local_training import Batch, weight_training
from deltamask_jax.methods.method import Link, Method, contexts, server_context
from deltamask_jax.privacy import Mechanism
from deltamask_jax.task import Cohort

NOT_PRIVATE = Mechanism()
WHOLE = codecs.get("dense")  # float32, both ways


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Server state.

    Attributes:
        weights: pytree of f32 arrays.
        optimizer: state of the server's optimiser.
        residuals: with error feedback, what each client has not sent yet: {client id as text: f32[n]}. In a
            real federation this never leaves the client; here it is simulated beside the server, at 4·n bytes
            per client. Empty without.
    """

    weights: Any
    optimizer: Any
    residuals: dict[str, np.ndarray]


def averaging(
    name: str,
    inputs: str,
    weights: Any,
    frozen: Any,
    loss_of: Callable[[Any, Any, Batch], jax.Array],
    learning_rate: optax.Schedule,
    network: Callable[[Any], tuple[Any, dict[str, Any]]],
    *,
    codec: codecs.Codec = WHOLE,
    error_feedback: bool = False,
    downlink: Any = np.float32,
    server: optax.GradientTransformation | None = None,
    proximal: float = 0.0,
    clients: int = 0,
    unmoved: dict[str, Any] | None = None,
    privacy: Mechanism = NOT_PRIVATE,
) -> Method:
    """A method whose clients train a pytree of float32 weights and whose server follows the mean update.

    Args:
        weights: the initial weights.
        loss_of: (frozen, weights, batch) -> mean loss.
        learning_rate: of the clients' Adam, by round (from 0); its moments start anew every round.
        network: (weights) -> (params, head) of the network that is evaluated.
        codec: of the updates, f32[n].
        error_feedback: clients add to every update what the codec lost of the one before (arXiv 1901.09847).
        downlink: type that snapshots of the weights travel in: float32, float16 or bfloat16.
        server: takes −(mean update) for a gradient; None is a plain mean.
        proximal: μ of FedProx (arXiv 1812.06127).
        clients: N; only error feedback needs it.
        unmoved: what is exported beside the weights, as it was before training; None is nothing.
        privacy: noise in the clients' gradients or in the server's mean.
    """
    start, unmoved = jax.device_get(weights), unmoved or {}
    vector, unravel = ravel_pytree(weights)
    vector, n, whole = jax.device_get(vector), vector.size, codecs.get("dense", dtype=downlink)
    server = server or optax.sgd(1.0)
    plain = weight_training(loss_of, optax.scale_by_adam(), proximal, privacy.gradient)
    memoryless = not jax.tree.leaves(server.init(start))

    def final(frozen, received, carry, private):
        trained = plain.final(frozen, received, carry, private)
        return ravel_pytree(trained)[0] - ravel_pytree(received["weights"])[0]

    def init() -> State:
        owners = map(str, range(clients)) if error_feedback else ()
        return State(start, server.init(start), {client: np.zeros(n, np.float32) for client in owners})

    def snapshot(state: State, cohort: Cohort) -> bytes:
        return whole.encode(np.asarray(ravel_pytree(state.weights)[0]), server_context(cohort, n))

    def read_snapshot(payload: bytes, cohort: Cohort) -> State:
        flat = whole.decode(payload, server_context(cohort, n)).astype(np.float32)
        weights = jax.device_get(unravel(jnp.asarray(flat)))
        return State(weights, server.init(weights), {})

    def to_send(state: State, update, client):
        return update + state.residuals[str(client)] if error_feedback else update

    def encode(state: State, updates, cohort: Cohort) -> list[bytes]:
        mine = [to_send(state, x, k) for x, k in zip(updates, cohort.clients, strict=True)]
        return [codec.encode(x, known) for x, known in zip(mine, contexts(cohort, n), strict=True)]

    def decode(state: State, payloads, cohort: Cohort, accepted: bool = False):
        return codecs.valid_and_rejected(
            [codecs.attempt(codec.decode, *pair) for pair in zip(payloads, contexts(cohort, n), strict=True)]
        )

    def remember(state: State, updates, payloads, cohort: Cohort) -> State:
        """Every client keeps what its payload lost."""
        if not error_feedback:
            return state
        sent = zip(updates, payloads, cohort.clients, contexts(cohort, n), strict=True)
        kept = {
            str(client): to_send(state, update, client) - codec.decode(payload, known)
            for update, payload, client, known in sent
        }
        return dataclasses.replace(state, residuals=state.residuals | kept)

    def merge(state: State, received: list[np.ndarray], cohort: Cohort) -> State:
        mean = privacy.mean(received, cohort, vector)
        weights, memory = follow(state.weights, mean, state.optimizer)
        return dataclasses.replace(state, weights=jax.device_get(weights), optimizer=jax.device_get(memory))

    def begin(state: State, cohort: Cohort):
        return {
            "weights": jax.device_put(state.weights),
            "learning_rate": learning_rate(cohort.round - 1),
        }

    @jax.jit
    def follow(weights, mean, memory):
        """The server's step along the clients' mean change f32[n]: weights and optimiser state after it."""
        steps, memory = server.update(unravel(-mean), memory, weights)
        return optax.apply_updates(weights, steps), memory

    return Method(
        name=name,
        inputs=inputs,
        frozen=frozen,
        client=dataclasses.replace(plain, final=final),
        init=init,
        down=Link(snapshot, read_snapshot),
        start=begin,
        up=Link(encode, decode),
        merge=merge,
        network=lambda state: network(state.weights),
        # The server's optimiser is in no snapshot, its noise in no news.
        exact=memoryless and whole.name == WHOLE.name and privacy.mean is NOT_PRIVATE.mean,
        remember=remember,
        report=lambda updates, received: (  # what error feedback sends is not the update
            {} if codec is WHOLE or error_feedback else {"update_error": _error(updates, received)}
        ),
        export=lambda state: {
            path: np.asarray(leaf)
            for path, leaf in traverse_util.flatten_dict(unmoved | state.weights, sep="/").items()
        },
    )


def _error(updates, received) -> float:
    """‖decoded − update‖² / ‖update‖², mean over the clients that moved."""
    moved = [(x, y) for x, y in zip(updates, received, strict=True) if x.any()]
    return float(np.mean([np.sum((y - x) ** 2) / np.sum(x * x) for x, y in moved] or [0.0]))
