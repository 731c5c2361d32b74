"""Federated averaging of weights: clients send how far training moved them, the server follows the mean.

One round of FedAvg (McMahan et al., arXiv 1602.05629) in the form of FedOpt (Reddi et al., arXiv 2003.00295):
  1  the server broadcasts its weights w
  2  client k trains from w to w_k                                local_training.weight_training
  3  the update w_k − w, one float32 vector, becomes bytes: whole, or compressed by a method's own `Wire`
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

from deltamask_jax import aggregation, codecs
from deltamask_jax.codecs import dense
from deltamask_jax.local_training import Batch, weight_training
from deltamask_jax.methods.method import Method


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Server state.

    Attributes:
        weights: pytree of f32 arrays.
        optimizer: state of the server's optimiser.
        residuals: with error feedback, what each client has not sent yet: {client id as text: f32[n]}. In a
            real federation this never leaves the client; here it is simulated beside the server, at 4·n bytes
            a client. Empty without.
    """

    weights: Any
    optimizer: Any
    residuals: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Wire:
    """How an update travels.

    Attributes:
        encode: (update f32[n], round, client) -> payload.
        decode: (payload, n, round, client) -> f32[n]. Raises `PayloadError`.
        error_feedback: clients add to every update what the codec lost of the one before (arXiv 1901.09847).
    """

    encode: Callable[[np.ndarray, int, int], bytes]
    decode: Callable[[bytes, int, int, int], np.ndarray]
    error_feedback: bool = False


WHOLE = Wire(
    lambda update, round_number, client: dense.encode(update, round_number=round_number, client=client),
    lambda payload, n, round_number, client: dense.decode(
        payload, n, np.float32, round_number=round_number, client=client
    ),
)


def averaging(
    name: str,
    inputs: str,
    weights: Any,
    frozen: Any,
    loss_of: Callable[[Any, Any, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    eval_params: Callable[[Any], tuple[Any, dict[str, Any]]],
    *,
    wire: Wire = WHOLE,
    downlink: Any = np.float32,
    server: optax.GradientTransformation | None = None,
    proximal: float = 0.0,
    clients: int = 0,
) -> Method:
    """A method whose clients train a pytree of float32 weights and whose server follows the mean update.

    Args:
        weights: the initial weights.
        loss_of: (frozen, weights, batch) -> mean loss.
        optimizer: the clients'; it starts anew every round.
        eval_params: (weights) -> (params, head) of the network that is evaluated.
        wire: of the uplink.
        downlink: type the weights are broadcast in: float32, float16 or bfloat16.
        server: takes −(mean update) for a gradient; None is a plain mean.
        proximal: μ of FedProx (arXiv 1812.06127).
        clients: N; only error feedback needs it.
    """
    start = jax.device_get(weights)
    vector, unravel = ravel_pytree(weights)
    n, downlink = vector.size, np.dtype(downlink)
    server = server or optax.sgd(1.0)
    plain = weight_training(loss_of, optimizer, proximal)

    def final(frozen, received, carry, private):
        trained = plain.final(frozen, received, carry, private)
        return ravel_pytree(trained)[0] - ravel_pytree(received)[0]

    def init():
        owners = map(str, range(clients)) if wire.error_feedback else ()
        return State(start, server.init(start), {client: np.zeros(n, np.float32) for client in owners})

    def broadcast(state, round_number):
        flat = np.asarray(ravel_pytree(state.weights)[0]).astype(downlink)
        return dense.encode(flat, round_number=round_number, client=dense.SERVER)

    def receive(payload, round_number):
        flat = dense.decode(payload, n, downlink, round_number=round_number, client=dense.SERVER)
        return unravel(jnp.asarray(flat, jnp.float32))

    def to_send(state, update, client):
        return update + state.residuals[str(client)] if wire.error_feedback else update

    def encode(state, updates, round_number, clients):
        return [
            wire.encode(to_send(state, update, client), round_number, int(client))
            for update, client in zip(updates, clients, strict=True)
        ]

    def remember(state, updates, payloads, round_number, clients):
        """Every client keeps what its payload lost."""
        if not wire.error_feedback:
            return state
        kept = {
            str(client): to_send(state, update, client) - wire.decode(payload, n, round_number, int(client))
            for update, payload, client in zip(updates, payloads, clients, strict=True)
        }
        return dataclasses.replace(state, residuals=state.residuals | kept)

    def decode(state, payloads, round_number, clients):
        return codecs.valid_and_rejected(
            [
                codecs.attempt(wire.decode, payload, n, round_number, int(client))
                for payload, client in zip(payloads, clients, strict=True)
            ]
        )

    def aggregate(state, received, clients, examples, round_number):
        mean = aggregation.weighted_mean(received, examples)
        weights, memory = follow(state.weights, mean, state.optimizer)
        return dataclasses.replace(state, weights=jax.device_get(weights), optimizer=jax.device_get(memory))

    @jax.jit
    def follow(weights, mean, memory):
        steps, memory = server.update(unravel(-mean), memory, weights)
        return optax.apply_updates(weights, steps), memory

    return Method(
        name=name,
        inputs=inputs,
        frozen=frozen,
        training=dataclasses.replace(plain, final=final),
        init=init,
        broadcast=broadcast,
        receive=receive,
        private=lambda round_number, clients: (),
        encode=encode,
        remember=remember,
        decode=decode,
        aggregate=aggregate,
        eval_params=lambda state: eval_params(state.weights),
        describe=lambda updates, received: (
            {} if wire is WHOLE else {"update_error": _error(updates, received)}
        ),
        export=lambda state: {
            path: np.asarray(leaf)
            for path, leaf in traverse_util.flatten_dict(state.weights, sep="/").items()
        },
    )


def _error(updates, received) -> float:
    """‖decoded − update‖² / ‖update‖², mean over the clients that moved."""
    moved = [(x, y) for x, y in zip(updates, received, strict=True) if x.any()]
    return float(np.mean([np.sum((y - x) ** 2) / np.sum(x * x) for x, y in moved] or [0.0]))
