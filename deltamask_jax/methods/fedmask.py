"""FedMask (Li, Sun, Zeng, Zhang, Li, Chen, SenSys 2021): hard-thresholded masks at one bit per weight.

One round:
  1  the server broadcasts θ_g, the mean of the clients' masks
  2  client k trains logits; its network runs on [sigmoid(s) > ½] ⊙ w, with no sampling anywhere, and the
     gradient goes straight through the threshold
  3  m_k = [θ_k > ½] goes to the server as it is: d bits               codecs.bitmap
  4  θ_g ← the mean of the m_k

All clients share one mask, as a comparison needs; FedMask's own are personal and structured
(docs/fidelity.md). Clients start from θ_g held inside [start, 1 − start] (`config.fedmask.start`): under a
hard threshold a logit far from 0 would need more steps than a round has before anything happens.
"""

from typing import Any

import jax.numpy as jnp

from deltamask_jax import codecs, masks
from deltamask_jax.methods.fedpm import whole_mask_method
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def fedmask(task: Task, options: Any, *, start: float, **settings: Any) -> Method:
    """FedMask.

    Args:
        options, settings: as of `masking.mask_method`.
        start: clients start from θ_g inside [start, 1 − start].
    """
    return whole_mask_method(
        "fedmask",
        task,
        options,
        codecs.get("bitmap"),
        final=lambda theta_k, received, private: jnp.packbits(theta_k > masks.SCALE // 2),
        start_clip=start,
        draw=masks.above_half,
        least_kept=lambda theta: masks.SCALE // 2 + 1,  # that of the masks that clients trained with
        **settings,
    )
