"""Federated averaging of trained weights (McMahan et al., arXiv 1602.05629): the upper bracket.

Every trained weight and the head travel as float32, 32 bits each way. With a server optimiser this is FedOpt
(FedAdam, FedYogi: Reddi et al., arXiv 2003.00295), with a proximal term FedProx (Li et al., arXiv
1812.06127).

What is trained, beside the head (`config.fedavg.trained`):
  kernels   the weights that masks would cover: the same d, for comparison
  blocks    every parameter of the last `model.trained_blocks` blocks and of what follows them
  backbone  every parameter of the network. No prefix is frozen then and nothing can be cached: clients get
            images, and the whole network is the model's suffix
Bits per parameter always count d, the masked weights, so they exceed 32 for 'blocks' and 'backbone'.
"""

from typing import Any

import optax

from deltamask_jax import codecs
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.local_training import cosine, cross_entropy
from deltamask_jax.methods.averaging import WHOLE, averaging
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task

# Running statistics of frozen BatchNorm are parameters here, but none that a gradient may move.
_NO_STATISTICS = r"(?!(.*/)?(mean|var)$)"


def fedavg(
    task: Task,
    options: Any,
    *,
    rounds: int,
    codec: codecs.Codec = WHOLE,
    name: str = "fedavg",
    trains_head: bool = True,
    **settings: Any,
) -> Method:
    """Training of weights; updates travel whole, or through `codec`.

    The head's update and those of the kernels are one vector: the head first, then the kernels by path.

    Args:
        options: `config.fedavg`.
        rounds: in all; the learning rate decays over them.
        codec, settings: as of `averaging.averaging`.
        trains_head: False leaves the head as it is, and it does not travel.
    """
    index = trained_weights(options, task)
    kernels, head = {"kernels": index.kernels(task.params)}, {"head": task.head}
    frozen = head | {"params": task.params}

    def network(frozen, weights):
        return index.merge(frozen["params"], weights["kernels"]), (frozen | weights)["head"]

    def loss_of(frozen, weights, batch):
        params, head = network(frozen, weights)
        features = task.model.suffix(params, batch["inputs"])
        return cross_entropy(features @ head["kernel"] + head["bias"], batch)

    return averaging(
        name,
        "tokens",
        weights=head | kernels if trains_head else kernels,
        unmoved={} if trains_head else head,
        frozen=frozen,
        loss_of=loss_of,
        learning_rate=cosine(options.learning_rate, options.decay, rounds),
        network=lambda weights: network(frozen, weights),
        codec=codec,
        downlink=options.downlink,
        server=server_optimizer(options),
        proximal=options.proximal,
        **settings,
    )


def trained_weights(options: Any, task: Task) -> FlatIndex:
    """The parameters that `config.fedavg.trained` names."""
    if options.trained == "kernels":
        return task.index
    blocks = task.model.architecture.trained_pattern(task.model.trained_blocks)
    pattern = blocks if options.trained == "blocks" else ".*"
    return FlatIndex.create(task.params, f"{_NO_STATISTICS}(?:{pattern})")


def server_optimizer(options) -> optax.GradientTransformation:
    """FedOpt's server step (arXiv 2003.00295), with decay rates 0.9 and 0.99."""
    rate, epsilon = options.server_learning_rate, options.server_epsilon
    if options.server == "adam":
        return optax.adam(rate, b1=0.9, b2=0.99, eps=epsilon)
    if options.server == "yogi":
        return optax.yogi(rate, b1=0.9, b2=0.99, eps=epsilon)
    return optax.sgd(rate)
