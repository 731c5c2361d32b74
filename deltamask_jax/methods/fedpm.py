"""FedPM (Isik, Pase, Gunduz, Weissman, Zorzi, ICLR 2023, arXiv 2209.15328): whole sampled masks travel.

One round:
  1  the server broadcasts θ_g
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  m_k ~ Bernoulli(θ_k), sampled with the client's own stream of uniforms
  4  all d bits of m_k, arithmetic-coded, go to the server             codecs.arithmetic
  5  Beta posterior over the m_k, reset every 1/ρ rounds              masking

`config.fedpm.coding`: 'marginal' codes every bit at the mask's one frequency of ones, as the paper's bitrate
H(p) supposes; 'given_theta' uses that both ends know θ_g and codes at a frequency for each range of it.
`config.fedpm.straight_through`: 'sigmoid' is the gradient that the paper derives, as we understand it;
'times_p' that of its public code, where it is multiplied by p = θ once more.
`config.mask.uniforms` does not apply: clients always sample with uniforms of their own.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs, masks
from deltamask_jax.methods import masking
from deltamask_jax.methods.method import Method
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import uniforms
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task


def fedpm(config, task: Task) -> Method:
    """FedPM with the settings of `config.fedpm` and `config.mask`."""
    options, index = config.fedpm, task.index
    given_theta = look_up("config.fedpm.coding", options.coding, {"marginal": False, "given_theta": True})
    gradients = {"sigmoid": masks.straight_through, "times_p": masks.straight_through_times_p}

    def final(theta_k, received, key):
        return jnp.packbits(masks.draw(theta_k, uniforms(key, index.d, jnp)))

    return whole_mask_method(
        "fedpm",
        config,
        task,
        codecs.get("arithmetic"),
        final=final,
        private=lambda round_number, clients: masking.mask_keys(config, round_number, clients),
        given_theta=given_theta,
        straight_through=look_up("config.fedpm.straight_through", options.straight_through, gradients),
    )


def whole_mask_method(
    name: str,
    config,
    task: Task,
    codec: codecs.Codec,
    *,
    final: Callable,
    private: Callable,
    given_theta: bool = False,
    **settings,
) -> Method:
    """A mask method whose clients send all d bits of their masks.

    Args:
        codec: an exact one; the positions it codes are the mask's ones.
        final: as in `masking.mask_method`; the update is the packed mask, u8[⌈d/8⌉].
        given_theta: whether the codec may look at θ_g.
        settings: further arguments of `masking.mask_method`.
    """
    index = task.index

    def contexts(state, round_number, clients):
        theta = state.theta if given_theta else None
        return [codecs.Context(index.d, theta, None, round_number, int(client)) for client in clients]

    def encode(state, updates, round_number, clients):
        ones = masking.set_positions(updates, index.d)
        return codecs.encode_cohort([codec] * len(clients), ones, contexts(state, round_number, clients))

    def decode(state, payloads, round_number, clients):
        counts, sizes = codecs.decode_counts(codec, payloads, contexts(state, round_number, clients))
        return counts, codecs.valid_and_rejected(sizes)[1]

    def tally(state, counts, round_number, clients):
        global_ones = None
        if config.mask.aggregator == "control_variate":
            keys = masking.mask_keys(config, round_number, clients)
            global_ones = masking.global_ones(jnp.asarray(state.theta), keys)
        return masking.Tally(jnp.asarray(counts, jnp.int32), global_ones, len(clients))

    def describe(packed, counts):
        """Share of ones in the masks that travelled, and H of that share."""
        ones = float(np.bitwise_count(packed).sum()) / (len(packed) * index.d)
        return {"mask_rate": ones, "mask_entropy_bpp": binary_entropy(ones)}

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
        **settings,
    )
