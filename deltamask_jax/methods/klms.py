"""KLMS (Isik et al., AISTATS 2024, arXiv 2306.12625): masks at about their KL from the global one.

One round, in the paper's form for FedPM:
  1  the server broadcasts θ_g, which is also the prior of step 3
  2  client k trains logits from θ_g to θ_k                         local_training.mask_training
  3  instead of a mask drawn from θ_k, the client sends which of 2^bits candidates drawn from θ_g by the
     public hash stands for it, block by block                      codecs.random_coding
  4  the server regenerates the chosen candidates: m̂_k
  5  Beta posterior over the m̂_k, reset every 1/ρ rounds             masking

A block of D nats costs `bits` whatever D is: 2^bits must exceed exp(D) with room to spare, or m̂_k is drawn
toward θ_g (benchmarks/klms_bias.py). The rate aimed at is bits/block_kl bits for every nat of KL(θ_k ‖ θ_g).
Every client sends its own layout of blocks (docs/fidelity.md). `config.mask.uniforms` does not apply, nor
does the control variate: candidates are new draws.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs, masks
from deltamask_jax.methods import masking
from deltamask_jax.methods.method import Link, Method, contexts
from deltamask_jax.methods.votes import Votes
from deltamask_jax.task import Cohort, Task


def klms(task: Task, options: Any, *, bits: int, block_kl: float, **settings: Any) -> Method:
    """KLMS.

    Args:
        options, settings: as of `masking.mask_method`.
        bits: per block; 2^bits candidates.
        block_kl: nats of KL(θ_k ‖ θ_g) per block.
    """
    d, codec = task.index.d, codecs.get("random_coding", bits=bits, block_kl=block_kl)

    def final(theta_k, received, private):
        kl = masks.bernoulli_kl(theta_k, received["theta"])
        return {"theta": theta_k, "kl": jnp.sum(kl)}

    def encode(state, updates, cohort: Cohort) -> list[bytes]:
        known = contexts(cohort, d, theta=state.theta)
        return [
            codec.encode(update["theta"], context) for update, context in zip(updates, known, strict=True)
        ]

    def decode(state, payloads, cohort: Cohort, accepted: bool = False):
        ones, rejected = np.zeros(d, np.int32), {}
        for place, context in enumerate(contexts(cohort, d, theta=state.theta)):
            try:
                ones += codec.decode(payloads[place], context)
            except codecs.PayloadError as error:
                rejected[place] = error
        return Votes(ones=ones), rejected

    return masking.mask_method(
        "klms",
        task,
        options,
        final=final,
        up=Link(encode, decode),
        # KL(θ_k ‖ θ_g) in bits per weight, beside the bits that were sent
        report=lambda updates, votes: {"kl_bpp": float(np.mean(updates["kl"])) / np.log(2) / d},
        whole=True,
        **settings,
    )
