"""FedPM (Isik, Pase, Gunduz, Weissman, Zorzi, ICLR 2023, arXiv 2209.15328): whole sampled masks travel.

One round:
  1  the server broadcasts θ_g
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  m_k ~ Bernoulli(θ_k), sampled with the client's own stream of uniforms
  4  all d bits of m_k, arithmetic-coded, go to the server             codecs.arithmetic
  5  Beta posterior over the m_k, reset every 1/ρ rounds              masking

`config.fedpm.coding`: 'marginal' codes every bit at the mask's one frequency of ones, as the paper's bitrate
H(p) supposes; 'given_theta' uses that both ends know θ_g and codes at a frequency for each range of it.
`config.fedpm.straight_through`: 'sigmoid' is the gradient of θ = sigmoid(s);
'times_p' is that of FedPM's public code, where it is multiplied by p = θ once more (docs/fidelity.md).
`config.mask.uniforms` does not apply: clients always sample with uniforms of their own.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs, masks
from deltamask_jax.methods import masking
from deltamask_jax.methods.method import Link, Method, contexts
from deltamask_jax.methods.votes import Votes, mask_streams, set_positions, stacked
from deltamask_jax.metrics import binary_entropy
from deltamask_jax.public_random import uniforms
from deltamask_jax.registry import look_up
from deltamask_jax.task import Cohort, Task


def fedpm(task: Task, options: Any, *, coding: str, straight_through: str, **settings: Any) -> Method:
    """FedPM.

    Args:
        options, settings: as of `masking.mask_method`.
        coding: 'marginal' or 'given_theta'.
        straight_through: 'sigmoid' or 'times_p'.
    """
    given_theta = look_up("config.fedpm.coding", coding, {"marginal": False, "given_theta": True})
    gradients = {"sigmoid": masks.straight_through, "times_p": masks.straight_through_times_p}

    def final(theta_k, received, key):
        return jnp.packbits(masks.draw(theta_k, uniforms(key, task.index.d, jnp)))

    return whole_mask_method(
        "fedpm",
        task,
        options,
        codecs.get("arithmetic"),
        given_theta=given_theta,
        final=final,
        private=lambda cohort: stacked(mask_streams(cohort)),
        streams=mask_streams,
        straight_through=look_up("config.fedpm.straight_through", straight_through, gradients),
        **settings,
    )


def whole_mask_method(
    name: str,
    task: Task,
    options: Any,
    codec: codecs.Codec,
    *,
    final: Callable[..., Any],
    given_theta: bool = False,
    **settings: Any,
) -> Method:
    """A mask method whose clients send all d bits of their masks.

    Args:
        codec: an exact one; the positions it codes are the mask's ones.
        final: as in `masking.mask_method`; the update is the packed mask, u8[⌈d/8⌉].
        given_theta: whether the codec may look at θ_g.
        settings: further arguments of `masking.mask_method`.
    """
    d = task.index.d

    def known(state, cohort: Cohort):
        return contexts(cohort, d, theta=state.theta if given_theta else None)

    def encode(state, updates, cohort: Cohort) -> list[bytes]:
        return codecs.encode_cohort(codec, set_positions(updates, d), known(state, cohort))

    def decode(state, payloads, cohort: Cohort, accepted: bool = False):
        counts, sizes = codecs.decode_counts(codec, payloads, known(state, cohort))
        return Votes(ones=counts.astype(np.int32)), codecs.valid_and_rejected(sizes)[1]

    def report(packed, votes: Votes) -> dict[str, float]:
        """Share of ones in the masks that travelled, and H of that share."""
        ones = float(np.bitwise_count(packed).sum()) / (len(packed) * d)
        return {"mask_rate": ones, "mask_entropy_bpp": binary_entropy(ones)}

    up = Link(encode, decode)
    return masking.mask_method(name, task, options, final=final, up=up, report=report, whole=True, **settings)
