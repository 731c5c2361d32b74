"""Parameter-efficient tuning, federated (FedPEFT: Sun et al., arXiv 2210.01708): only the tuned part travels.

`config.peft.kind` says what is tuned beside the head: nothing ('head'), every bias, a bottleneck adapter in
each block, prompts, low-rank updates of queries and values, or few numbers that stand for low-rank updates
(Fed-SB, Uni-LoRA: models/subspaces.py); docs/peft.md counts them. One round:
  1  the server broadcasts how far its tuned weights are from their initial values, which both ends know
  2  client k trains them from what arrived
  3  client k sends the change
  4  the server adds the mean change, weighted by example counts            aggregation.weighted_mean
Both ways as float32, float16 or 8 bits by stochastic rounding. The server keeps its weights in float32, and
rounding to 8 bits is unbiased, so its errors average out over clients and rounds instead of adding up.

    python launch/compare.py --config=configs/digits.py --out=runs/peft \
        --methods=peft:kind=lora:wire=8bit,peft:kind=fedsb:wire=8bit,peft:kind=unilora:wire=8bit
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from deltamask_jax import codecs
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.local_training import cosine, cross_entropy, weight_training
from deltamask_jax.methods.averaging import NOT_PRIVATE
from deltamask_jax.methods.method import Link, Method, contexts, server_context
from deltamask_jax.models import adapters, subspaces
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.models.subspaces import Subspace, whole
from deltamask_jax.models.vit import ViTConfig
from deltamask_jax.privacy import Mechanism
from deltamask_jax.public_random import EVERY_CLIENT, PARTS, stream_key
from deltamask_jax.task import Cohort, Task

LOW_RANK = ("lora", "fedsb", "unilora")  # merged into the parameters, so any ViT runs them


def tunes_prefix(options: Any) -> bool:
    """Whether training reaches before the cut of the frozen prefix, whose outputs then cannot be cached."""
    return options.kind != "head" and options.scope == "network"


def check_kind(kind: str, network: Any, name: str) -> None:
    """Refuse what a network of this architecture cannot have beside its head.

    Raises:
        ValueError: naming what it can have.
    """
    if kind in ("head", "bias") or isinstance(network, BertConfig):
        return
    if not isinstance(network, ViTConfig):
        raise ValueError(f"config.peft.kind={kind!r} is not for {name}: use 'head' or 'bias'")
    if network.scenic and kind not in LOW_RANK:
        raise ValueError(
            f"config.peft.kind={kind!r} is not for {name}: use 'head', 'bias' or one of {', '.join(LOW_RANK)}"
        )


def tuned_parts(options: Any, seed: int, task: Task) -> Subspace:
    """What is tuned beside the head, as both ends know it before the first round, and what is frozen with it.

    Raises:
        ValueError: a kind that this network cannot have, or a size.
    """
    model = task.model
    network, tuned = model.architecture, model.trained_blocks
    if tunes_prefix(options) and tuned != network.depth:
        raise ValueError("config.peft.scope='network' needs a model whose every block is in the suffix")
    key = stream_key(seed, 0, EVERY_CLIENT, PARTS)
    blocks = range(network.depth - tuned, network.depth)
    if options.kind == "head":
        return whole({})
    if options.kind == "bias":
        everything = options.scope == "network"
        return whole(adapters.biases(task.params, ".*" if everything else network.trained_pattern(tuned)))
    check_kind(options.kind, network, model.name)
    if options.kind == "adapter":
        return whole(adapters.bottlenecks(key, network.width, blocks, options.adapter_width))
    if options.kind == "prompt":
        deep = options.prompt_depth == "deep"
        inputs = network.width if isinstance(network, BertConfig) else 3 * network.patch**2
        return whole(adapters.prompts(key, network.width, inputs, blocks, options.prompts, deep))
    if options.kind == "fedsb":
        index = FlatIndex.create(task.params, network.masked_pattern(tuned))
        return subspaces.square(key, index, options.fedsb_rank)
    if options.kind == "unilora":
        return subspaces.shared(key, task.params, blocks, options.lora_rank, options.unilora_size)
    return whole(adapters.low_rank(key, task.params, blocks, options.lora_rank))


def peft(
    task: Task,
    options: Any,
    *,
    rounds: int,
    seed: int,
    trains_head: bool = True,
    privacy: Mechanism = NOT_PRIVATE,
) -> Method:
    """Parameter-efficient tuning.

    Args:
        options: `config.peft`.
        rounds: in all; the learning rate decays over them.
        seed: of the initial values, public.
        trains_head: False leaves the head as it is, and it does not travel.
        privacy: as of `averaging.averaging`.
    """
    parts = tuned_parts(options, seed, task)
    head = {"head": task.head}
    frozen = head | {"params": task.params, "beside": parts.frozen}
    start = jax.device_get({"parts": parts.trained} | (head if trains_head else {}))
    vector, unravel = ravel_pytree(start)
    n = vector.size
    codec = codecs.get("rounded") if options.wire == "8bit" else codecs.get("dense", dtype=options.wire)

    def pack(change, known: codecs.Context) -> bytes:
        return codec.encode(np.asarray(ravel_pytree(change)[0]), known)

    def unpack(payload: bytes, known: codecs.Context):
        return unravel(jnp.asarray(codec.decode(payload, known).astype(np.float32)))

    def grow(frozen, trained):
        return adapters.grow(frozen["params"], parts.expand(frozen["beside"], trained))

    def loss_of(frozen, weights, batch):
        features = batch["inputs"]
        if options.kind != "head":
            features = task.model.suffix(grow(frozen, weights["parts"]), features)
        head = (frozen | weights)["head"]
        return cross_entropy(features @ head["kernel"] + head["bias"], batch)

    plain = weight_training(loss_of, optax.scale_by_adam(), gradient=privacy.gradient)
    learning_rate = cosine(options.learning_rate, options.decay, rounds)

    def change(frozen, received, carry, private):
        return jax.tree.map(lambda trained, before: trained - before, carry[0], received["weights"])

    def snapshot(state, cohort: Cohort) -> bytes:
        return pack(jax.tree.map(np.subtract, state, start), server_context(cohort, n))

    def read_snapshot(payload: bytes, cohort: Cohort):
        return jax.tree.map(np.add, start, unpack(payload, server_context(cohort, n)))

    def encode(state, updates, cohort: Cohort) -> list[bytes]:
        return [pack(update, known) for update, known in zip(updates, contexts(cohort, n), strict=True)]

    def decode(state, payloads, cohort: Cohort, accepted: bool = False):
        return codecs.valid_and_rejected(
            [codecs.attempt(unpack, *pair) for pair in zip(payloads, contexts(cohort, n), strict=True)]
        )

    def merge(state, changes, cohort: Cohort):
        return jax.tree.map(np.add, state, privacy.mean(changes, cohort, start))

    return Method(
        name="peft",
        inputs="features" if options.kind == "head" else "tokens",
        frozen={} if options.kind == "head" else frozen,
        client=dataclasses.replace(plain, final=change),
        init=lambda: start,
        down=Link(snapshot, read_snapshot),
        start=lambda state, cohort: {"weights": state, "learning_rate": learning_rate(cohort.round - 1)},
        up=Link(encode, decode),
        merge=merge,
        network=lambda state: (grow(frozen, state["parts"]), (frozen | state)["head"]),
        exact=False,  # what travels down is the change, rounded
        report=lambda updates, changes: {"tuned_parameters": n},
        export=lambda state: {
            path.replace("parts/", ""): np.asarray(leaf)
            for path, leaf in traverse_util.flatten_dict(head | state, sep="/").items()
        },
    )
