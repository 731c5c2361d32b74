"""FeedSign (Cai et al., arXiv 2501.17610): a sign up and a sign down per client and step, and no gradients.

One round, for each of the round's public directions z ∈ {−1, 1}^n:
  1  everybody draws z from the public hash and holds the same weights w
  2  client k votes whether its loss rises along z, L_k(w + μz) > L_k(w − μz): two forward passes over its
     examples, and one bit up
  3  the server takes the majority, one bit down; who is even votes for 'rises', which z's symmetry makes fair
  4  everybody moves w by η against z where the loss rises, along it where it falls
A round is one step, `directions = 1`, as in the paper. Several directions of one round are all tried at the
same w, so that no vote waits for another: as many steps at once, behind one envelope's 32 bytes.
The paper's z is normal. Signs are the same at both ends bit for bit, and so are the weights: η · Σ ±z is one
product of an integer, in NumPy, where no machine may fuse it with the sum that follows.

    python launch/compare.py --config=configs/digits.py --config.rounds=60 --out=runs/feedsign \
        --methods=linear_probe,feedsign:trained=peft:peft.kind=head:directions=64:learning_rate=1e-3
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.flatten_util import ravel_pytree

from deltamask_jax import codecs
from deltamask_jax.local_training import LocalTraining, cross_entropy
from deltamask_jax.methods.method import Link, Method, contexts, server_context
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.models import adapters
from deltamask_jax.models.subspaces import whole
from deltamask_jax.public_random import DIRECTIONS, EVERY_CLIENT, candidate_words, uniforms
from deltamask_jax.task import Cohort, Task

BITS, WHOLE = codecs.get("bitmap"), codecs.get("dense")


def feedsign(task: Task, options: Any, peft: Any, *, seed: int) -> Method:
    """Training by votes about public directions.

    Args:
        options: `config.feedsign`.
        peft: `config.peft`, which says what is trained if `options.trained` is 'peft'.
        seed: of initial values, public.
    """
    kernels, of_features = options.trained == "kernels", options.trained == "peft" and peft.kind == "head"
    parts = whole({**task.index.kernels(task.params)}) if kernels else tuned_parts(peft, seed, task)
    vector, unravel = ravel_pytree({"head": task.head, "parts": parts.trained})
    start, n, count = jax.device_get(vector), vector.size, options.directions
    step_size = np.float32(options.learning_rate)

    def network(frozen, weights):
        params, beside = frozen
        tree = unravel(weights)
        return adapters.grow(params, parts.expand(beside, tree["parts"])), tree["head"]

    def loss_of(frozen, weights, batch):
        if of_features:
            head, features = unravel(weights)["head"], batch["inputs"]
        else:
            params, head = network(frozen, weights)
            features = task.model.suffix(params, batch["inputs"])
        return cross_entropy(features @ head["kernel"] + head["bias"], batch)

    def streams(cohort: Cohort) -> np.ndarray:
        """The round's public streams, one per direction: u32[directions, 2]."""
        key = cohort.stream(DIRECTIONS, EVERY_CLIENT)
        return np.stack([np.full(count, key[0]), candidate_words(key, count)], axis=1)

    def rises_along(frozen, received, batch):
        """By how much the loss is larger ahead than behind, and the mean of both: f32[directions] each."""

        def along(stream):
            shift = options.perturbation * direction(stream, n, jnp)
            ahead = loss_of(frozen, received["weights"] + shift, batch)
            behind = loss_of(frozen, received["weights"] - shift, batch)
            return ahead - behind, (ahead + behind) / 2

        return jax.lax.map(along, received["streams"])

    def step(frozen, received, carry, batch, key):
        rises, losses = rises_along(frozen, received, batch)
        return carry + jnp.sum(batch["weights"]) * rises, jnp.mean(losses)

    def encode(state, updates, cohort: Cohort) -> list[bytes]:
        pairs = zip(updates, contexts(cohort, count), strict=True)
        return [BITS.encode(np.flatnonzero(update), known) for update, known in pairs]

    def read(payload: bytes, known: codecs.Context) -> np.ndarray:
        return np.isin(np.arange(count), BITS.decode(payload, known))

    def decode(state, payloads, cohort: Cohort, accepted: bool = False):
        """Which directions the majority says the loss rises along, bool[directions]."""
        valid, rejected = codecs.valid_and_rejected(
            [codecs.attempt(read, *pair) for pair in zip(payloads, contexts(cohort, count), strict=True)]
        )
        return (2 * np.sum(valid, axis=0) >= len(valid) if valid else None), rejected

    def merge(state: np.ndarray, rises: np.ndarray, cohort: Cohort) -> np.ndarray:
        total = np.zeros(n, np.int32)
        for stream, up in zip(streams(cohort), rises, strict=True):
            total += direction(stream, n) if up else -direction(stream, n)
        return state - step_size * total.astype(np.float32)

    return Method(
        name="feedsign",
        inputs="features" if of_features else "tokens",
        frozen=() if of_features else (task.params, parts.frozen),
        client=LocalTraining(
            lambda frozen, received, private: jnp.zeros(count),
            step,
            lambda frozen, received, carry, private: carry > 0,
        ),
        init=lambda: start,
        down=Link(
            lambda state, cohort: WHOLE.encode(state, server_context(cohort, n)),
            lambda payload, cohort: WHOLE.decode(payload, server_context(cohort, n)),
        ),
        start=lambda state, cohort: {"weights": state, "streams": streams(cohort)},
        up=Link(encode, decode),
        merge=merge,
        network=lambda state: network((task.params, parts.frozen), state),
        tally=Link(
            lambda state, rises, cohort: BITS.encode(np.flatnonzero(rises), server_context(cohort, count)),
            lambda state, news, cohort: read(news, server_context(cohort, count)),
        ),
        report=lambda updates, rises: {"agreement": float(np.mean(updates == rises)), "tuned_parameters": n},
        export=lambda state: {
            path.replace("parts/", ""): np.asarray(leaf)
            for path, leaf in traverse_util.flatten_dict(jax.device_get(unravel(state)), sep="/").items()
        },
    )


def direction(stream: Any, n: int, xp: Any = np) -> Any:
    """z of a public stream: 1 where its uniform's highest bit is clear, else −1; i32[n]."""
    return xp.where(uniforms((stream[0], stream[1]), n, xp) < 1 << 15, 1, -1).astype(xp.int32)
