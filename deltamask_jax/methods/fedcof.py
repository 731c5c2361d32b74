"""FedCOF (Goswami et al., NeurIPS 2025, arXiv 2412.14326): a head from class means alone, without training.

One round, in which nobody has to be told anything first:
  1  client k sends, for every class c, its count n_kc and its mean feature μ_kc
  2  the server has the class means μ_c = Σ_k n_kc μ_kc / N_c with N_c = Σ_k n_kc. The mean of n features
     scatters n times less than one of them, so the K_c clients that hold the class tell its covariance:
     Σ̂_c = 1/(K_c − 1) Σ_k n_kc (μ_kc − μ_c)(μ_kc − μ_c)ᵀ + γ I, unbiased but for γ where clients draw alike
  3  Ĝ = Σ_c (N_c − 1) Σ̂_c + N μ μᵀ, μ the mean of all N features: the second moment of ridge regression
     without the scatter between classes. W_c = Ĝ⁺ N_c μ_c, scaled to ‖W_c‖ = 1; no bias
γ is the published 1 or another number, or follows from the spread itself (`oas`): it has to be the larger the
fewer means there are, and in proportion to the features.
A class that one client holds shows no spread: it takes the covariance pooled over the others, and a warning
says so (the authors' code takes γ I). A class that nobody holds is put below all others by its bias.

    python launch/compare.py --config=configs/digits.py --methods=linear_probe,fedcof --out=runs/heads
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError
from deltamask_jax.local_training import LocalTraining, cross_entropy
from deltamask_jax.methods.method import Link, Method, contexts, server_context
from deltamask_jax.task import Cohort, Task

Head = dict[str, np.ndarray]  # kernel f32[features, classes], bias f32[classes]

FLATTEST = 1e-3  # least γ that `oas` gives, as a share of the class means' mean square
COUNT_UNIT = 16  # examples; counts travel in it, so that a float16 reaches a million and is exact to 2,048
WHOLE = codecs.get("dense")


def fedcof(task: Task, *, gamma: float, wire: str) -> Method:
    """The head of one round's class means.

    Args:
        gamma: γ, added to every class's variances; in units of a squared feature; 0: `oas` says it.
        wire: type that counts and means travel in, 'float32' or 'float16'.
    """
    start = jax.device_get({"kernel": task.head["kernel"], "bias": task.head["bias"]})
    width, classes = start["kernel"].shape
    n = classes * (1 + width)  # values, on both ways
    codec = codecs.get("dense", dtype=wire)

    def init(frozen, received, private):
        return {"counts": jnp.zeros(classes), "sums": jnp.zeros((classes, width))}

    def step(frozen, received, carry, batch, key):
        mine = jax.nn.one_hot(batch["labels"], classes) * batch["weights"][:, None]
        seen = {"counts": mine.sum(0), "sums": mine.T @ batch["inputs"]}
        logits = batch["inputs"] @ received["kernel"] + received["bias"]
        return jax.tree.map(jnp.add, carry, seen), cross_entropy(logits, batch)

    def final(frozen, received, carry, private):
        """Class counts f32[classes], as often as examples were seen; class means f32[classes, features]."""
        return {"counts": carry["counts"], "means": carry["sums"] / jnp.maximum(carry["counts"], 1)[:, None]}

    def encode(state: Head, updates, cohort: Cohort) -> list[bytes]:
        payloads = []
        for update, examples, known in zip(updates, cohort.weights(), contexts(cohort, n), strict=True):
            seen = update["counts"].sum()  # each example once per local epoch
            counts = np.rint(update["counts"] * (examples / max(seen, 1)))
            payloads.append(
                codec.encode(np.concatenate([counts / COUNT_UNIT, np.ravel(update["means"])]), known)
            )
        return payloads

    def read(payload: bytes, known: codecs.Context) -> tuple[np.ndarray, np.ndarray]:
        counts, means = np.split(codec.decode(payload, known).astype(np.float64), [classes])
        if (counts < 0).any():
            raise PayloadError("class counts are negative")
        return counts * COUNT_UNIT, means.reshape(classes, width)

    def decode(state: Head, payloads, cohort: Cohort, accepted: bool = False):
        valid, rejected = codecs.valid_and_rejected(
            [codecs.attempt(read, *pair) for pair in zip(payloads, contexts(cohort, n), strict=True)]
        )
        return (solve(*map(np.stack, zip(*valid, strict=True)), gamma) if valid else None), rejected

    def pack(head: Head, cohort: Cohort) -> bytes:
        vector = np.concatenate([head["bias"], np.ravel(head["kernel"])])
        return WHOLE.encode(vector, server_context(cohort, n))

    def unpack(payload: bytes, cohort: Cohort) -> Head:
        bias, kernel = np.split(WHOLE.decode(payload, server_context(cohort, n)), [classes])
        return {"kernel": kernel.reshape(width, classes), "bias": bias}

    return Method(
        name="fedcof",
        inputs="features",
        frozen=(),
        client=LocalTraining(init, step, final),
        init=lambda: start,
        down=Link(pack, unpack),
        start=lambda state, cohort: state,
        up=Link(encode, decode),
        merge=lambda state, head, cohort: head,
        network=lambda state: (task.params, state),
        # The news are the head itself, a client's worth of bytes: its followers need not solve for it.
        tally=Link(
            lambda state, head, cohort: pack(head, cohort), lambda state, news, cohort: unpack(news, cohort)
        ),
        export=dict,
    )


def solve(counts: np.ndarray, means: np.ndarray, gamma: float) -> Head:
    """The head, steps 2 and 3 above.

    Args:
        counts: n_kc, f64[clients, classes].
        means: μ_kc, f64[clients, classes, features]; whatever where n_kc = 0.
        gamma: γ; 0: `oas` says it.
    """
    features = means.shape[2]
    total = counts.sum(0)  # N_c
    sums = np.einsum("kc,kcf->cf", counts, means)
    centres = sums / np.maximum(total, 1)[:, None]
    holders = np.count_nonzero(counts, axis=0)  # K_c
    degrees = np.maximum(total - 1, 0)  # N_c − 1
    gram, pooled = np.zeros((2, features, features))
    for c in np.flatnonzero(holders > 1):
        spread = np.sqrt(counts[:, c, None]) * (means[:, c] - centres[c])
        scatter = spread.T @ spread
        gram += degrees[c] / (holders[c] - 1) * scatter
        pooled += scatter
    told = np.maximum(holders - 1, 0).sum()
    pooled /= max(told, 1)
    alone = np.flatnonzero((holders == 1) & (degrees > 0))
    if len(alone):
        gram += degrees[alone].sum() * pooled
        logging.warning(
            "FedCOF: only one client holds class %s: %s",
            ", ".join(map(str, alone)),
            "the covariance of the other classes takes the place of its own"
            if told
            else "no class has two, so γ I is all that is known of covariances",
        )
    gamma = gamma or max(oas(pooled, told), FLATTEST * np.mean(centres**2))
    gram += max(degrees.sum(), 1) * gamma * np.eye(features)
    if total.sum() > 0:
        gram += np.outer(sums.sum(0), sums.sum(0)) / total.sum()  # N μ μᵀ
    kernel = np.linalg.pinv(gram, hermitian=True) @ sums.T
    norms = np.linalg.norm(kernel, axis=0)
    longest = np.linalg.norm(centres, axis=1).max(initial=1.0)
    return {
        "kernel": np.asarray(kernel / np.where(norms > 0, norms, 1), np.float32),
        "bias": np.where(total > 0, 0, -2 * longest).astype(np.float32),
    }


def oas(covariance: np.ndarray, degrees: int) -> float:
    """γ of the oracle approximating shrinkage (Chen et al., arXiv 0907.4698), in units of a variance.

    The estimate (1 − ρ) S + ρ v I, v the mean variance, is here S + γ I, which differs by a factor.

    Args:
        covariance: S, f64[features, features].
        degrees: of freedom that S has, of which the shrinkage ρ falls as one over.
    """
    p, trace, squares = len(covariance), np.trace(covariance), np.sum(covariance**2)
    excess = (degrees + 1) * (squares - trace**2 / p)
    shrinkage = min((squares + trace**2) / excess, 0.99) if excess > 0 else 0.99
    return shrinkage / (1 - shrinkage) * trace / p
