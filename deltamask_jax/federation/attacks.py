"""Simulated hostile clients: the same share of them in every round, each with the same kind of attack.

Malformed payloads, which any method must reject:
    corrupt   one bit flipped on the way         truncate     cut off at a random length
    replay    the round before's envelope        wrong_d      a network with one weight more, checksum right

Well-formed lies, for methods whose updates are packed flips (`robust.py` bounds them):
    all_flip  every position flipped             random_flip  each with probability `attack.flip_rate`
    collude   all of them the flips that hurt most, in numbers that the bounds let pass
    collude_near  the same, among positions where their own honest training flips
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import robust
from deltamask_jax.codecs import distance, envelope
from deltamask_jax.methods import Method
from deltamask_jax.public_random import EVERY_CLIENT, MASK, uniforms
from deltamask_jax.task import Cohort, Problem

MOST_EXAMPLES = 256  # that colluding clients look at
_HOSTILE, _NOISE = 0x686F7374, 0x6E6F6973
COLLUDE = ("collude", "collude_near")
LIES = ("all_flip", "random_flip", *COLLUDE)


def hostile_clients(config) -> np.ndarray:
    """Ids of the hostile clients, i64[round(share · clients)], sorted; none where the kind is 'none'."""
    if config.attack.kind == "none":
        return np.zeros(0, np.int64)
    count = round(config.attack.share * config.clients)
    rng = np.random.default_rng([config.seed, _HOSTILE])
    return np.sort(rng.choice(config.clients, count, replace=False))


def strike(
    problem: Problem,
    method: Method,
    state: Any,
    updates: Any,
    payloads: list[bytes],
    cohort: Cohort,
) -> tuple[Any, list[bytes]]:
    """Put what hostile clients send in the place of their honest payloads.

    Args:
        updates: the cohort's updates, NumPy arrays with leading axis k.
        payloads: what honest clients would send, k of them.

    Returns:
        Updates (those of lying clients replaced, so that the round describes what was sent) and payloads.
    """
    config, payloads = problem.config, list(payloads)
    kind = config.attack.kind
    rows = np.flatnonzero(np.isin(cohort.clients, hostile_clients(config)))
    if kind in LIES and len(rows):
        updates = np.array(updates)
    if kind in COLLUDE and len(rows):  # they know θ_g and u, and agree on what to send
        lies = most_damaging(problem, state.theta, updates[rows], cohort.of(rows))
        updates[rows] = lies
    for row in rows:
        liar = cohort.of([row])
        rng = np.random.default_rng([config.seed, _NOISE, cohort.round, int(liar.clients[0])])
        if kind in LIES:
            if kind not in COLLUDE:
                rate = 1.0 if kind == "all_flip" else config.attack.flip_rate
                updates[row] = np.packbits(rng.random(problem.task.index.d) < rate)
            (payloads[row],) = method.up.encode(state, [updates[row]], liar)
        elif kind == "replay":
            mine = jax.tree.map(lambda x, row=row: x[row], updates)
            (payloads[row],) = method.up.encode(
                state, [mine], dataclasses.replace(liar, round=cohort.round - 1)
            )
        else:
            payloads[row] = _damage(payloads[row], kind, rng)
    return updates, payloads


def most_damaging(problem: Problem, theta: np.ndarray, updates: np.ndarray, cohort: Cohort) -> np.ndarray:
    """What colluding clients send: all of them the flips that hurt most, packed, u8[k, ⌈d/8⌉].

    They pool their examples and rank positions by how much a flip raises the loss, to first order, in the
    network that the round's public mask makes. They flip `attack.flip_rate` of the weights, or as many as the
    cohort's bound lets pass if that is less. 'collude_near' keeps to positions whose uniform is as near to
    θ_g as those of their own honest flips, so that no bound on distances shows them.

    Args:
        theta: θ_g, u16[d].
        updates: the flips of their honest training, packed.
    """
    config, task = problem.config, problem.task
    index = task.index
    rows = np.sort(np.concatenate([problem.parts[client] for client in cohort.clients]))[:MOST_EXAMPLES]
    tokens, labels = (jnp.asarray(x[rows]) for x in (problem.inputs["tokens"][0], problem.labels[0]))
    honest = np.unpackbits(updates, axis=1, count=index.d).astype(bool)
    budget = int(config.attack.flip_rate * index.d)
    most = config.robust.max_flip_rate * index.d or robust.most_flips(honest.sum(1), index.d)
    budget = min(budget, int(0.95 * most), index.d - 1)
    lies, ranked = [], {}
    for k, client in enumerate(cohort.clients):
        word = EVERY_CLIENT if config.mask.uniforms == "shared" else int(client)
        u = uniforms(cohort.stream(MASK, word), index.d)
        if word not in ranked:
            damage_of = problem.engine.compiled(_damage_of, task.model.suffix, index)
            ranked[word] = np.asarray(damage_of(task.params, task.head, u < theta, tokens, labels))
        damage = ranked[word]
        allowed = damage > 0
        if config.attack.kind == "collude_near":
            apart = distance.between(u, theta)
            allowed &= apart <= np.quantile(apart[honest[k]], 0.9) if honest[k].any() else False
        flips = np.zeros(index.d, bool)
        flips[np.argpartition(-np.where(allowed, damage, -np.inf), budget)[:budget]] = True
        lies.append(np.packbits(flips & allowed))
    return np.stack(lies)


def _damage_of(suffix, index, params, head, mask, tokens, labels):
    """First-order change of the mean loss by flipping each mask bit, f32[d]. Jitted by the engine.

    Args:
        mask: bool[d].
        tokens: [n, ...], inputs of the suffix.
        labels: i32[n].
    """
    kernels = index.kernels(params)

    def loss_of(mask):
        masked = jax.tree.map(jnp.multiply, kernels, index.unravel(mask))
        logits = suffix(index.merge(params, masked), tokens) @ head["kernel"] + head["bias"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    mask = mask.astype(jnp.float32)
    return jax.grad(loss_of)(mask) * (1 - 2 * mask)


def _damage(payload: bytes, kind: str, rng: np.random.Generator) -> bytes:
    if kind == "truncate":
        return payload[: rng.integers(len(payload))]
    if kind == "wrong_d":
        honest = envelope.unpack(payload)
        header = (honest.codec_id, honest.flags, honest.d + 1, honest.n, honest.round, honest.client)
        return envelope.pack(*header, bytes(honest.body))
    damaged = bytearray(payload)
    damaged[rng.integers(len(payload))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)
