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
In the paper blocks follow from KLs averaged over clients, as we understand it; here every client sends its
own layout. `config.mask.uniforms` does not apply, nor does the control variate: candidates are new draws.
"""

import jax.numpy as jnp
import numpy as np

from deltamask_jax import masks
from deltamask_jax.codecs import Context, PayloadError, random_coding
from deltamask_jax.methods import masking
from deltamask_jax.methods.method import Method
from deltamask_jax.public_random import CANDIDATES, stream_key
from deltamask_jax.task import Task


def klms(config, task: Task) -> Method:
    """KLMS with the settings of `config.klms` and `config.mask`."""
    options, index = config.klms, task.index

    def final(theta_k, received, private):
        kl = masks.bernoulli_kl(theta_k, received["theta"])
        return {"theta": theta_k, "kl": jnp.sum(kl)}

    def sides(state, round_number, client):
        """The public stream and what both ends know of a client's payload."""
        key = stream_key(config.seed, round_number, int(client), CANDIDATES)
        return key, Context(index.d, state.theta, None, round_number, int(client))

    def encode(state, updates, round_number, clients):
        payloads = []
        for update, client in zip(updates, clients, strict=True):
            key, context = sides(state, round_number, client)
            rng = np.random.default_rng([config.seed, round_number, int(client), CANDIDATES])
            payloads.append(
                random_coding.encode(
                    update["theta"], key, context, bits=options.bits, block_kl=options.block_kl, rng=rng
                )
            )
        return payloads

    def decode(state, payloads, round_number, clients):
        """Σ m̂_k, i32[d]."""
        ones, rejected = np.zeros(index.d, np.int32), {}
        for place, (payload, client) in enumerate(zip(payloads, clients, strict=True)):
            try:
                ones += random_coding.decode(payload, *sides(state, round_number, client), bits=options.bits)
            except PayloadError as error:
                rejected[place] = error
        return ones, rejected

    return masking.mask_method(
        "klms",
        config,
        task,
        final=final,
        private=lambda round_number, clients: (),
        encode=encode,
        decode=decode,
        tally=lambda state, ones, round_number, clients: masking.Tally(jnp.asarray(ones), None, len(clients)),
        # KL(θ_k ‖ θ_g) in bits per weight, beside the bits that were sent
        describe=lambda updates, ones: {"kl_bpp": float(np.mean(updates["kl"])) / np.log(2) / index.d},
    )
