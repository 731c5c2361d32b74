"""Federated averaging of trained weights (McMahan et al., arXiv 1602.05629): the upper bracket.

`fedavg` trains every masked kernel and the head in float32 and sends them whole: 32 bits a weight each way.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from deltamask_jax import aggregation
from deltamask_jax.codecs import dense
from deltamask_jax.local_training import Batch, cross_entropy, weight_training
from deltamask_jax.methods.method import Method, Task


def averaging(
    name: str,
    inputs: str,
    weights: Any,
    frozen: Any,
    loss_of: Callable[[Any, Any, Batch], jax.Array],
    optimizer: optax.GradientTransformation,
    eval_params: Callable[[Any], tuple[Any, dict[str, Any]]],
) -> Method:
    """A method whose clients train a pytree of float32 weights and whose server takes the weighted mean.

    Args:
        weights: the initial weights, which are also the server's state.
        loss_of: (frozen, weights, batch) -> mean loss.
    """
    vector, unravel = ravel_pytree(weights)
    start = jax.device_get(weights)

    def encode(tree, round_number, client):
        flat = np.asarray(ravel_pytree(tree)[0])
        return dense.encode(flat, round_number=round_number, client=client)

    def decode(payload, round_number, client):
        return unravel(
            dense.decode(payload, vector.size, np.float32, round_number=round_number, client=client)
        )

    return Method(
        name=name,
        inputs=inputs,
        frozen=frozen,
        training=weight_training(loss_of, optimizer),
        init=lambda: start,
        broadcast=lambda state, round_number: encode(state, round_number, dense.SERVER),
        receive=lambda payload, round_number: decode(payload, round_number, dense.SERVER),
        private=lambda round_number, clients: (),
        encode=lambda state, updates, round_number, clients: [
            encode(update, round_number, int(client)) for update, client in zip(updates, clients, strict=True)
        ],
        decode=lambda state, payloads, round_number, clients: [
            decode(payload, round_number, int(client))
            for payload, client in zip(payloads, clients, strict=True)
        ],
        aggregate=lambda state, trees, clients, examples, round_number: aggregation.weighted_mean(
            trees, examples
        ),
        eval_params=eval_params,
        describe=lambda updates, trees: {},
        export=lambda state: {
            path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(state, sep="/").items()
        },
    )


def fedavg(config, task: Task) -> Method:
    """Full training of the masked kernels and the head."""

    def forward(params, weights, tokens):
        merged = task.index.merge(params, weights["kernels"])
        features = task.model.suffix(merged, tokens)
        return features @ weights["head"]["kernel"] + weights["head"]["bias"]

    return averaging(
        "fedavg",
        "tokens",
        weights={"kernels": task.index.kernels(task.params), "head": task.head},
        frozen=task.params,
        loss_of=lambda params, weights, batch: cross_entropy(
            forward(params, weights, batch["inputs"]), batch
        ),
        optimizer=optax.adam(config.fedavg.learning_rate),
        eval_params=lambda state: (task.index.merge(task.params, state["kernels"]), state["head"]),
    )
