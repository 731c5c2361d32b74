"""Runs local training for all clients of a round: one jitted program, chunked `lax.map` over `vmap`.

Clients differ in size. Batches that a client does not have are skipped: chunks stop at their largest
client's last step, and inside a chunk a finished client's state is held. The examples stay on the device,
once; each client owns a list of indices into them, so nothing is truncated and padding costs four bytes.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.local_training import LocalTraining


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which examples each client of the cohort sees at each step.

    Attributes:
        batches: i32[clients, steps, batch] indices into the examples, −1 for padding.
        steps: i32[clients], how many steps each client has.
    """

    batches: np.ndarray
    steps: np.ndarray


def num_steps(examples: int, epochs: int, batch_size: int) -> int:
    """Steps of a client with that many examples; the last batch of an epoch may be partly padding."""
    return epochs * -(-examples // batch_size)


def schedule(
    parts: list[np.ndarray],
    clients: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    round_number: int,
    purpose: int,
) -> Schedule:
    """Each client's shuffled batches for one round.

    Args:
        parts: every client's example indices, not only the cohort's: the array is as long as the largest
            client needs, so that rounds with other cohorts do not compile again.
        clients: ids of the cohort, i[clients].
        purpose: keeps the shuffles of different phases of a run apart.
    """
    longest = max(num_steps(len(part), epochs, batch_size) for part in parts)
    batches = np.full((len(clients), longest * batch_size), -1, np.int32)
    steps = np.zeros(len(clients), np.int32)
    for row, client in enumerate(clients):
        part = parts[client]
        rng = np.random.default_rng([seed, purpose, round_number, int(client)])
        stride = num_steps(len(part), 1, batch_size) * batch_size  # epochs start on a new batch
        for epoch in range(epochs):
            batches[row, epoch * stride : epoch * stride + len(part)] = rng.permutation(part)
        steps[row] = num_steps(len(part), epochs, batch_size)
    return Schedule(batches.reshape(len(clients), longest, batch_size), steps)


def train(
    training: LocalTraining,
    frozen: Any,
    received: Any,
    examples: dict[str, jax.Array],
    plan: Schedule,
    private: Any,
    keys: jax.Array,
    *,
    backend: str = "vmap",
    chunk: int = 1,
) -> tuple[Any, np.ndarray]:
    """Train a cohort.

    Args:
        training: what one client does.
        frozen: pytree all clients share and no round changes.
        received: pytree all clients start the round from.
        examples: inputs [n, ...] and labels i32[n], on the device.
        plan: each client's batches.
        private: pytree with leading axis `clients`, passed to `training.final`.
        keys: one key a client, already folded with round and client id.
        backend: 'vmap', or 'loop': one client and one step after another in Python, for debugging.
        chunk: clients trained at once by vmap; chunks run one after another.

    Returns:
        The updates, a pytree of device arrays with leading axis `clients`, and each client's mean loss over
        its steps, f32[clients]: 0 for a client without steps; NaN for one whose loss or training state was
        not finite, and its update is that of a client which did not train.
    """
    if backend == "loop":
        return _train_loop(training, frozen, received, examples, plan, private, keys)
    clients = len(plan.steps)
    chunk = min(chunk, clients)
    padding = -clients % chunk  # absent clients with no steps fill the last chunk

    def pad(x):
        return jnp.concatenate([x, jnp.repeat(x[:1], padding, axis=0)]) if padding else jnp.asarray(x)

    steps = np.concatenate([plan.steps, np.zeros(padding, np.int32)])
    batches, private, keys = jax.tree.map(pad, (plan.batches, private, keys))
    updates, losses = _train_vmap(training, chunk, frozen, received, examples, batches, steps, private, keys)
    return jax.tree.map(lambda x: x[:clients], updates), np.asarray(losses)[:clients]


def _batch(examples, indices):
    at = jnp.maximum(indices, 0)
    return {
        "inputs": examples["inputs"][at],
        "labels": examples["labels"][at],
        "weights": (indices >= 0).astype(jnp.float32),
    }


def _client_step(training, frozen, received, examples, batches, key, step, carry):
    """One step of one client; `carry` is (training state, sum of losses)."""
    state, total = carry
    batch = _batch(examples, batches[step])
    state, loss = training.step(frozen, received, state, batch, jax.random.fold_in(key, step))
    return state, total + loss


def _only_finite(start, state, total):
    """A client whose loss or training state is not finite ends where it started, its loss NaN."""
    finite = jnp.isfinite(total)
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.all(jnp.isfinite(leaf))
    state = jax.tree.map(partial(jnp.where, finite), state, start)
    return state, jnp.where(finite, total, jnp.nan)


@partial(jax.jit, static_argnums=(0, 1))
def _train_vmap(training, chunk, frozen, received, examples, batches, steps, private, keys):
    def train_chunk(inputs):
        batches, steps, private, keys = inputs

        def advance(step, carries):
            def client(batches, steps, key, carry):
                new = _client_step(training, frozen, received, examples, batches, key, step, carry)
                return jax.tree.map(partial(jnp.where, step < steps), new, carry)

            return jax.vmap(client)(batches, steps, keys, carries)

        state = training.init(frozen, received)
        carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (chunk, *jnp.shape(x))), (state, 0.0))
        states, totals = jax.lax.fori_loop(0, jnp.max(steps), advance, carries)
        states, totals = jax.vmap(partial(_only_finite, state))(states, totals)
        final = jax.vmap(lambda state, private: training.final(frozen, received, state, private))
        return final(states, private), totals / jnp.maximum(steps, 1)

    chunked = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:]), (batches, steps, private, keys)
    )
    outputs = jax.lax.map(train_chunk, chunked)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)


_loop_step = jax.jit(_client_step, static_argnums=0)


def _train_loop(training, frozen, received, examples, plan, private, keys):
    updates, losses = [], []
    for k, steps in enumerate(plan.steps):
        carry = (training.init(frozen, received), jnp.float32(0))
        for step in range(int(steps)):
            carry = _loop_step(training, frozen, received, examples, plan.batches[k], keys[k], step, carry)
        mine = jax.tree.map(lambda x, k=k: x[k], private)
        state, total = _only_finite(training.init(frozen, received), *carry)
        updates.append(training.final(frozen, received, state, mine))
        losses.append(float(total) / max(int(steps), 1))
    return jax.tree.map(lambda *xs: jnp.stack(xs), *updates), np.asarray(losses, np.float32)


def first_not_finite(training, frozen, received, examples, plan, row, key) -> tuple[int, str] | None:
    """Replay one client step by step: the first step, from 1, that leaves a value not finite.

    Returns:
        (step, 'loss' or 'training state'), or None where every step is finite.
    """
    carry = (training.init(frozen, received), jnp.float32(0))
    for step in range(int(plan.steps[row])):
        carry = _loop_step(training, frozen, received, examples, plan.batches[row], key, step, carry)
        if not jnp.isfinite(carry[1]):
            return step + 1, "loss"
        if not jnp.isfinite(_only_finite(carry[0], *carry)[1]):
            return step + 1, "training state"
    return None
