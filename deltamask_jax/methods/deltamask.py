"""DeltaMask (Tsouvalas, Asano, Saeed, arXiv 2311.17299), §3: what travels is which mask bits flipped.

One round, in the paper's order:
  1  the server broadcasts θ_g; from the public seed both ends draw m_g = [u < θ_g]
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  m_k = [u < θ_k] with the same u; Δ = positions where it differs from m_g
  4  Δ′ = the top κ of Δ by KL(θ_k ‖ θ_g)                             masks.client_flips
  5  Δ′ goes into a filter, the filter into an image, the image to the server     codecs
  6  the server queries every position and flips m_g at each hit: m̂_k
  7  Beta posterior over the m̂_k, reset every 1/ρ rounds             masking
"""

import dataclasses
import inspect
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import codecs, masks, robust
from deltamask_jax.codecs import distance
from deltamask_jax.methods import masking
from deltamask_jax.methods.diagnostics import mask_diagnostics
from deltamask_jax.methods.method import Method
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import EVERY_CLIENT, uniforms
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task


@dataclasses.dataclass(frozen=True)
class Votes:
    """A cohort's flips: `change` [d], how far Σ m̂_k is from Σ m_g,k (or a robust estimate of that, see
    `robust`); `flips`, how many there were."""

    change: np.ndarray
    flips: int


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
    kappa = masking.cosine(config.mask.kappa, config.mask.kappa_final, config.rounds)
    return flip_method("deltamask", config, task, flip_codecs(config), kappa)


def flip_method(name: str, config, task: Task, codec_of: list[codecs.Codec], kappa: optax.Schedule) -> Method:
    """A mask method that sends the flips against m_g.

    Args:
        codec_of: each client's codec.
        kappa: fraction of the flips that travels, by round (from 0).
    """
    index = task.index
    shared = look_up("config.mask.uniforms", config.mask.uniforms, {"shared": True, "per_client": False})

    def private(round_number, clients):
        return masking.mask_keys(config, round_number, [EVERY_CLIENT] * len(clients) if shared else clients)

    def contexts(state, round_number, clients) -> Iterator[codecs.Context]:
        """What both ends know of each client's payload."""
        u = None
        for client, key in zip(clients, zip(*private(round_number, clients), strict=True), strict=True):
            if u is None or not shared:
                u = np.asarray(_uniforms(key, index.d))
            yield codecs.Context(index.d, state.theta, u, round_number, int(client))

    def final(theta_k, received, key):
        u, score = uniforms(key, index.d, jnp), None
        if config.mask.ranking == "random":  # another stream: the key's words the other way round
            score = uniforms(key[::-1], index.d, jnp).astype(jnp.float32)
        return jnp.packbits(masks.client_flips(theta_k, received["theta"], u, received["kappa"], score))

    def encode(state, updates, round_number, clients):
        flips = masking.set_positions(updates, index.d)
        mine = [codec_of[client] for client in clients]
        return codecs.encode_cohort(mine, flips, contexts(state, round_number, clients))

    def decode(state, payloads, round_number, clients):
        """The received flips as one signed count a position: +1 for each 0 → 1, −1 for each 1 → 0."""
        mine = [codec_of[client] for client in clients]
        known = list(contexts(state, round_number, clients))
        kind, trim, limit = (config.robust[key] for key in ("aggregator", "trim", "max_flip_rate"))
        together = shared and kind != "clip"  # all flip from the same mask: counting them is enough
        if together:
            counts, sizes = codecs.decode_counts(mine, payloads, known)
        else:
            decoded = list(codecs.decode_cohort(mine, payloads, known))
            sizes = [flips if isinstance(flips, codecs.PayloadError) else len(flips) for flips in decoded]
        sizes = robust.check_flips(sizes, index.d, limit)
        valid, rejected = codecs.valid_and_rejected(sizes)
        ups, downs = np.zeros((2, index.d), np.float32 if kind == "clip" else np.int32)
        if together:
            for place, error in rejected.items():
                if error.reason == robust.TOO_MANY:  # counted before anybody knew
                    counts[mine[place].decode(payloads[place], known[place])] -= 1
            flips = np.flatnonzero(counts)
            received = [(flips, counts[flips].astype(np.int32), known[0])]
        else:
            rows = [k for k in range(len(payloads)) if k not in rejected]
            received = [(decoded[k], np.ones(len(decoded[k]), ups.dtype), known[k]) for k in rows]
        if kind == "clip" and received:
            apart = [distance.between(context.uniforms[at], state.theta[at]) for at, _, context in received]
            weights = robust.clip_weights(apart)
            received = [(at, its, context) for (at, _, context), its in zip(received, weights, strict=True)]
        for at, votes, context in received:
            ones = masks.draw(state.theta[at], context.uniforms[at])
            ups[at[~ones]] += votes[~ones]
            downs[at[ones]] += votes[ones]
        return Votes(robust.total_change(kind, trim, ups, downs, len(valid)), sum(valid)), rejected

    def tally(state, votes, round_number, clients):
        """Σ m̂_k = Σ m_g,k + the signed flips."""
        keys = private(round_number, clients[:1] if shared else clients)
        ones = masking.global_ones(jnp.asarray(state.theta), keys) * (len(clients) if shared else 1)
        return masking.Tally(ones + jnp.asarray(votes.change), ones, len(clients))

    def describe(packed, votes):
        """Flips that travelled, per client and weight; H of that rate beside it; how many more arrived."""
        flips = float(np.bitwise_count(packed).sum()) / (len(packed) * index.d)
        return {
            "flip_rate": flips,
            "flip_entropy_bpp": binary_entropy(flips),
            "false_flip_rate": votes.flips / (len(packed) * index.d) - flips,
        }

    return masking.mask_method(
        name,
        config,
        task,
        final=final,
        private=private,
        encode=encode,
        decode=decode,
        tally=tally,
        describe=describe,
        diagnose=lambda state, packed: mask_diagnostics(index, state.theta, packed),
        schedules={"kappa": kappa},
    )


@partial(jax.jit, static_argnums=1)
def _uniforms(key, d: int):
    return uniforms(key, d, jnp)
