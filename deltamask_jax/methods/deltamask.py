"""DeltaMask (Tsouvalas, Asano, Saeed, arXiv 2311.17299), §3: what travels is which mask bits flipped.

One round, in the paper's order:
  1  the server broadcasts θ_g; from the public seed both ends draw m_g = [u < θ_g]
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  m_k = [u < θ_k] with the same u; Δ = positions where it differs from m_g
  4  Δ′ = the top κ of Δ by KL(θ_k ‖ θ_g)                             masks.client_flips
  5  Δ′ goes into a filter, the filter into an image, the image to the server     codecs
  6  the server queries every position and flips m_g at each hit: m̂_k
  7  Beta posterior over the m̂_k, reset every 1/ρ rounds             aggregation
"""

import dataclasses
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import aggregation, codecs, masks
from deltamask_jax.codecs import dense
from deltamask_jax.diagnostics import mask_diagnostics
from deltamask_jax.local_training import mask_training
from deltamask_jax.methods.method import Method, Task
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import EVERY_CLIENT, MASK, stream_key, uniforms
from deltamask_jax.registry import look_up


@dataclasses.dataclass(frozen=True)
class State:
    """Server state: θ_g as both ends know it, u16[d], and the posterior it came from."""

    theta: np.ndarray
    posterior: aggregation.BetaPosterior


@dataclasses.dataclass(frozen=True)
class Votes:
    """A cohort's flips: `change` i32[d], how far Σ m̂_k is from Σ m_g,k; `flips`, how many there were."""

    change: np.ndarray
    flips: int


def evaluated_mask(theta: jax.Array, kind: str) -> jax.Array:
    """What multiplies the weights when the global model is evaluated, f32[d], from θ u16[d].

    'mean' is E[m] = θ, 'threshold' the most probable mask [θ > ½], which is what a device would store.
    """
    means = {
        "mean": lambda: theta.astype(jnp.float32) / masks.SCALE,
        "threshold": lambda: (theta > masks.SCALE // 2).astype(jnp.float32),
    }
    return look_up("config.mask.evaluate", kind, means)()


def flip_codecs(config) -> list[codecs.Codec]:
    """One codec a client, from `config.codec`; of its settings, those that the named codec has.

    Raises:
        ValueError: unknown codec or a setting it refuses.
    """
    settings = config.codec.to_dict()
    has = inspect.signature(look_up("config.codec.name", settings["name"], codecs.REGISTRY)).parameters
    common = {key: settings[key] for key in settings if key in has or key in ("name", "clients")}
    return codecs.for_clients(common, config.clients)


def deltamask(config, task: Task) -> Method:
    """DeltaMask with the settings of `config.mask` and `config.codec`."""
    options, index = config.mask, task.index
    codec_of = flip_codecs(config)
    shared = look_up("config.mask.uniforms", options.uniforms, {"shared": True, "per_client": False})
    merge_votes = look_up(
        "mask.aggregator",
        options.aggregator,
        {"beta": partial(_beta, config), "control_variate": partial(_control_variate, config)},
    )
    low, high = (round(p * masks.SCALE) for p in (options.theta_clip, 1 - options.theta_clip))
    kappa = _cosine(options.kappa, options.kappa_final, config.rounds)
    learning_rate = _cosine(options.learning_rate, options.learning_rate_final, config.rounds)

    def clamp(theta) -> np.ndarray:
        return np.clip(np.asarray(masks.theta16(theta)), low, min(high, masks.SCALE - 1))

    def stream(round_number, client):
        word = EVERY_CLIENT if shared else int(client)
        return stream_key(config.seed, round_number, word, MASK)

    def contexts(state, round_number, clients) -> Iterator[codecs.Context]:
        """What both ends know of each client's payload."""
        u = None
        for client in clients:
            if u is None or not shared:
                u = np.asarray(_uniforms(stream(round_number, client), index.d))
            yield codecs.Context(index.d, state.theta, u, round_number, int(client))

    def forward(params, head, tokens):
        return task.model.suffix(params, tokens) @ head["kernel"] + head["bias"]

    def final(theta_k, received, key):
        u, score = uniforms(key, index.d, jnp), None
        if options.ranking == "random":  # another stream: the key's words the other way round
            score = uniforms(key[::-1], index.d, jnp).astype(jnp.float32)
        return jnp.packbits(masks.client_flips(theta_k, received["theta"], u, received["kappa"], score))

    def init():
        theta = clamp(jnp.full(index.d, options.theta_init, jnp.float32))
        return State(theta, aggregation.prior(index.d, options.lambda0))

    def broadcast(state, round_number):
        return dense.encode(state.theta, round_number=round_number, client=dense.SERVER)

    def receive(payload, round_number):
        theta = dense.decode(payload, index.d, np.uint16, round_number=round_number, client=dense.SERVER)
        return {
            "theta": jnp.asarray(theta),
            "head": task.head,
            "kappa": kappa(round_number - 1),
            "learning_rate": learning_rate(round_number - 1),
        }

    def private(round_number, clients):
        keys = [stream(round_number, client) for client in clients]
        return tuple(jnp.asarray(words) for words in zip(*keys, strict=True))

    def encode(state, updates, round_number, clients):
        flips = (np.flatnonzero(np.unpackbits(packed, count=index.d)).astype(np.uint32) for packed in updates)
        mine = [codec_of[client] for client in clients]
        return codecs.encode_cohort(mine, flips, contexts(state, round_number, clients))

    def decode(state, payloads, round_number, clients):
        """The received flips as one signed count a position: +1 for each 0 → 1, −1 for each 1 → 0."""
        mine = [codec_of[client] for client in clients]
        if shared:  # every client flips from the same mask
            known = list(contexts(state, round_number, clients))
            flips = codecs.decode_counts(mine, payloads, known).astype(np.int32)
            direction = np.where(masks.draw(state.theta, known[0].uniforms), -1, 1)
            return Votes(flips * direction, int(flips.sum()))
        change, total = np.zeros(index.d, np.int32), 0
        known = list(contexts(state, round_number, clients))
        for flips, context in zip(codecs.decode_cohort(mine, payloads, known), known, strict=True):
            change[flips] += np.where(masks.draw(state.theta[flips], context.uniforms[flips]), -1, 1)
            total += len(flips)
        return Votes(change, total)

    def aggregate(state, votes, clients, examples, round_number):
        """Σ m̂_k = Σ m_g,k + the signed flips."""
        words = private(round_number, clients[:1] if shared else clients)
        global_ones = _ones(jnp.asarray(state.theta), words) * (len(clients) if shared else 1)
        change = jnp.asarray(votes.change)
        theta, posterior = merge_votes(state, change, global_ones, len(clients), round_number)
        return State(clamp(theta), posterior)

    def eval_params(state):
        multiplier = index.unravel(evaluated_mask(jnp.asarray(state.theta), options.evaluate))
        kernels = jax.tree.map(jnp.multiply, index.kernels(task.params), multiplier)
        return index.merge(task.params, kernels), task.head

    def describe(packed, votes):
        """Flips that travelled, per client and weight; H of that rate beside it; the filter's false flips."""
        flips = float(np.bitwise_count(packed).sum()) / (len(packed) * index.d)
        return {
            "flip_rate": flips,
            "flip_entropy_bpp": binary_entropy(flips),
            "false_flip_rate": votes.flips / (len(packed) * index.d) - flips,
        }

    def export(state) -> dict[str, Any]:
        mask = state.theta > masks.SCALE // 2
        return {
            "mask": np.packbits(mask),
            "theta": state.theta,
            "head/kernel": np.asarray(task.head["kernel"]),
            "head/bias": np.asarray(task.head["bias"]),
        }

    return Method(
        name="deltamask",
        inputs="tokens",
        frozen={"params": task.params},
        training=mask_training(forward, index, optax.scale_by_adam(), options.theta_clip, final),
        init=init,
        broadcast=broadcast,
        receive=receive,
        private=private,
        encode=encode,
        decode=decode,
        aggregate=aggregate,
        eval_params=eval_params,
        describe=describe,
        export=export,
        diagnose=lambda state, packed: mask_diagnostics(index, state.theta, packed),
    )


def _cosine(first: float, last: float, rounds: int) -> optax.Schedule:
    """From `first` in round 0 to `last` in round `rounds` − 1, on half a cosine."""
    return optax.cosine_decay_schedule(first, max(rounds - 1, 1), alpha=last / first)


def _beta(config, state, change, global_ones, voters, round_number):
    """The paper's aggregation. Rounds count from 1; the first starts from the prior, like every reset."""
    posterior = state.posterior
    if aggregation.resets_at(round_number - 1, config.participation):
        posterior = aggregation.prior(len(state.theta), config.mask.lambda0)
    posterior = aggregation.vote(posterior, global_ones + change, voters)
    return aggregation.mode(posterior, jnp.asarray(state.theta) / masks.SCALE), posterior


def _control_variate(config, state, change, global_ones, voters, round_number):
    """θ_g + mean(m̂_k − m_g,k): with one u per client unbiased for mean θ_k, without the noise of m_g."""
    return jnp.asarray(state.theta) / masks.SCALE + change / voters, state.posterior


@partial(jax.jit, static_argnums=1)
def _uniforms(key, d: int):
    return uniforms(key, d, jnp)


@jax.jit
def _ones(theta, keys):
    """Σ m_g over the given streams, i32[d]."""

    def add(total, key):
        return total + masks.draw(theta, uniforms(key, theta.size, jnp)), None

    return jax.lax.scan(add, jnp.zeros(theta.size, jnp.int32), keys)[0]
