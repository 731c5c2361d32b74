"""DeltaMask (Tsouvalas, Asano, Saeed, arXiv 2311.17299), §3: what travels is which mask bits flipped.

One round, in the paper's order:
  1  from θ_g, which both ends know, and the public seed both draw m_g = [u < θ_g]
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  m_k = [u < θ_k] with the same u; Δ = positions where it differs from m_g
  4  Δ′ = the top κ of Δ by KL(θ_k ‖ θ_g)                             masks.client_flips
  5  Δ′ goes into a filter, the filter into an image, the image to the server     codecs
  6  the server queries every position and flips m_g at each hit: m̂_k
  7  Beta posterior over the m̂_k, reset every 1/ρ rounds             masking
"""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import codecs, masks, robust
from deltamask_jax.codecs import distance
from deltamask_jax.local_training import cosine
from deltamask_jax.methods import masking
from deltamask_jax.methods.diagnostics import mask_diagnostics
from deltamask_jax.methods.method import Link, Method, contexts
from deltamask_jax.methods.votes import Votes, mask_streams, set_positions, stacked
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import uniforms
from deltamask_jax.registry import look_up
from deltamask_jax.task import Cohort, Task


def deltamask(
    task: Task,
    options: Any,
    codec_of: list[codecs.Codec],
    bounds: Any,
    *,
    rounds: int,
    clients: int,
    participation: float = 1.0,
    hold: int = 1,
    kappa: optax.Schedule | None = None,
    name: str = "deltamask",
    **training: Any,
) -> Method:
    """A mask method that sends the flips against m_g.

    Args:
        options: `config.mask`.
        codec_of: each client's codec.
        bounds: `config.robust`.
        rounds, clients, participation, hold: as of `masking.mask_method`.
        kappa: fraction of the flips that travels, by round (from 0); by default that of `options`.
        training: as of `masking.mask_method`.
    """
    d = task.index.d
    kappa = kappa or cosine(options.kappa, options.kappa_final / options.kappa, rounds)
    shared = options.uniforms == "shared"

    def streams(cohort: Cohort):
        return mask_streams(cohort, shared)

    def private(cohort: Cohort):
        """Each client's stream of its mask, and another that is its own even where all share the mask's."""
        own = mask_streams(cohort)
        keys = streams(cohort) * len(cohort) if shared else own
        return stacked(keys), stacked([key[::-1] for key in own])

    def known(state, cohort: Cohort) -> list[codecs.Context]:
        """What both ends know of each client's payload: step 1 follows from it."""
        keys = streams(cohort) * (len(cohort) if shared else 1)
        return [
            dataclasses.replace(context, streams=(key,))
            for context, key in zip(contexts(cohort, d, theta=state.theta), keys, strict=True)
        ]

    def final(theta_k, received, keys):
        """Steps 3 and 4: Δ′ as packed bits, u8[⌈d/8⌉]."""
        u, score = uniforms(keys[0], d, jnp), None
        if options.ranking != "kl":
            score = uniforms(keys[1], d, jnp).astype(jnp.float32)
        return jnp.packbits(masks.client_flips(theta_k, received["theta"], u, received["kappa"], score))

    def encode(state, updates, cohort: Cohort) -> list[bytes]:
        """Step 5."""
        flips = set_positions(updates, d)
        return codecs.encode_cohort([codec_of[k] for k in cohort.clients], flips, known(state, cohort))

    def decode(state, payloads, cohort: Cohort, accepted: bool = False):
        """Step 6: the flips as one signed count per position, +1 for each 0 → 1, −1 for each 1 → 0."""
        mine, context_of = [codec_of[k] for k in cohort.clients], known(state, cohort)
        together = shared and bounds.aggregator != "clip"  # all flip from the same mask: counting is enough
        if together:
            counts, sizes = codecs.decode_counts(mine, payloads, context_of)
        else:
            decoded: list[Any] = list(codecs.decode_cohort(mine, payloads, context_of))
            sizes = [flips if isinstance(flips, codecs.PayloadError) else len(flips) for flips in decoded]
        if not accepted:
            sizes = robust.check_flips(sizes, d, bounds.max_flip_rate)
        valid, rejected = codecs.valid_and_rejected(sizes)
        if together:
            for place, error in rejected.items():
                if error.reason == robust.TOO_MANY:  # counted before anybody knew
                    counts[mine[place].decode(payloads[place], context_of[place])] -= 1
            flips = np.flatnonzero(counts).astype(np.uint32)
            received = [(flips, counts[flips].astype(np.int32), context_of[0])]
        else:
            rows = [k for k in range(len(payloads)) if k not in rejected]
            received = [(decoded[k], np.int32(1), context_of[k]) for k in rows]
        if bounds.aggregator == "clip" and received:
            weights = robust.clip_weights([distance.at(context, flips) for flips, _, context in received])
            received = [
                (flips, its, context) for (flips, _, context), its in zip(received, weights, strict=True)
            ]

        def signed(flips, votes, context):
            ones = masks.draw(state.theta[flips], context.uniforms(flips))
            return flips, np.where(ones, -votes, votes)

        changes = (signed(*its) for its in received)
        change = robust.total_change(bounds.aggregator, bounds.trim, changes, d, len(valid))
        return Votes(change=change, flips=sum(valid)), rejected

    def report(packed, votes: Votes) -> dict[str, float]:
        """Flips that travelled, per client and weight; H of that rate beside it; how many more arrived."""
        flips = float(np.bitwise_count(packed).sum()) / (len(packed) * d)
        return {
            "flip_rate": flips,
            "flip_entropy_bpp": binary_entropy(flips),
            "false_flip_rate": votes.flips / (len(packed) * d) - flips,
        }

    return masking.mask_method(
        name,
        task,
        options,
        rounds=rounds,
        participation=participation,
        clients=clients,
        final=final,
        private=private,
        streams=streams,
        up=Link(encode, decode),
        report=report,
        diagnose=lambda state, packed: mask_diagnostics(task.index, state.theta, packed),
        schedules={"kappa": kappa},
        told_by_tally=bounds.aggregator == "mean",
        hold=hold,
        kept=kappa if options.ranking == "thin" else optax.constant_schedule(1.0),
        **training,
    )


def flip_codecs(config) -> list[codecs.Codec]:
    """One codec per client, from `config.codec`; of its settings, those that the named codec has.

    Raises:
        ValueError: unknown codec, one of something else than flips, or a setting it refuses.
    """
    settings = config.codec.to_dict()
    has = inspect.signature(look_up("config.codec.name", settings["name"], codecs.REGISTRY)).parameters
    common = {key: settings[key] for key in settings if key in has or key in ("name", "clients")}
    chosen = codecs.for_clients(common, config.clients)
    other = next((codec for codec in chosen if codec.kind != "positions"), None)
    if other:
        raise ValueError(f"config.codec: {other.name} codes {other.kind}, not flips")
    return chosen
