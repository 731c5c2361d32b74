"""Runs local training for all clients of a round: one jitted program a chunk of clients.

A chunk is `vmap` on each device, sharded over the mesh axis `clients`; chunks follow one another, and the
host has each as soon as it is trained, while the devices are at the next. Clients differ in size. Batches
that a client does not have are skipped: a device stops at its largest client's last step, and inside a chunk
a finished client's state is held. The examples stay on the device, once; each client owns a list of indices
into them, so nothing is truncated and padding costs four bytes.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from deltamask_jax import chunking, devices
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


def train(*arguments: Any, **options: Any) -> tuple[Any, np.ndarray]:
    """Train a cohort and wait for all of it; arguments as of `train_in_chunks`.

    Returns:
        The updates, a pytree of NumPy arrays with leading axis `clients`, and each client's mean loss over
        its steps, f32[clients] (0 for a client without examples).
    """
    _, updates, losses = zip(*jax.device_get(list(train_in_chunks(*arguments, **options))), strict=True)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *updates), np.concatenate(losses)


def train_in_chunks(
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
    memory: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[tuple[np.ndarray, Any, jax.Array]]:
    """Train a cohort and give out each chunk of clients as soon as it is trained.

    Args:
        training: what one client does.
        frozen: pytree all clients share and no round changes.
        received: pytree all clients start the round from.
        examples: inputs [n, ...] and labels i32[n], on the devices.
        plan: each client's batches.
        private: pytree with leading axis `clients`, passed to `training.final`.
        keys: one key a client, already folded with round and client id.
        backend: 'vmap', or 'loop': one client and one step after another in Python, for debugging.
        chunk: clients each device trains at once by vmap; 0 = see `chunking.choose`. It is halved, and the
            clients concerned start again, when a device runs out of memory.
        memory: bytes a device may use for chosen chunks; 0 = what is free.
        mesh: see `devices.mesh`; None = the first device alone.

    Yields:
        Rows of the cohort i[k], in order; their updates, a pytree of device arrays with leading axis k; and
        their mean losses f32[k]: 0 for a client without steps; NaN for one whose loss or training state was
        not finite, and its update is that of a client which did not train. All computed, not merely
        dispatched.

    Raises:
        MemoryError: one client alone does not fit into a device's memory.
    """
    if backend == "loop":
        yield from _train_loop(training, frozen, received, examples, plan, private, keys)
        return
    mesh = mesh or devices.mesh(devices=jax.local_devices()[:1])
    frozen, received = devices.spread(frozen, mesh), devices.spread(received, mesh)
    examples = devices.everywhere(examples, mesh)
    clients, lanes = len(plan.steps), mesh.shape[devices.CLIENTS]

    def arguments(start: int, chunk: int):
        """Arguments of `_train_chunk` for the clients from `start` on; absent ones have no steps."""
        rows = np.arange(start, start + chunk * lanes)
        present = np.minimum(rows, clients - 1)
        steps = np.where(rows < clients, plan.steps[present], 0).astype(np.int32)
        mine = jax.tree.map(lambda x: x[present], (plan.batches, private, keys))
        return (training, mesh, frozen, received, examples, *devices.divided((steps, *mine), mesh))

    def memory_of(chunk: int) -> int:
        used = _train_chunk.lower(*arguments(0, chunk)).compile().memory_analysis()
        return used.temp_size_in_bytes + used.output_size_in_bytes

    program = (training, mesh, plan.batches.shape[1:])
    chunk = chunking.choose(program, chunk, clients, mesh, received, memory_of, memory)
    start = 0
    while start < clients:
        try:
            trained = jax.block_until_ready(_train_chunk(*arguments(start, chunk)))
        except jax.errors.JaxRuntimeError as error:
            chunk = chunking.halve(program, chunk, error)
            continue
        present = min(chunk * lanes, clients - start)
        yield np.arange(start, start + present), *jax.tree.map(itemgetter(slice(present)), trained)
        start += present


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


def _alone(function):
    """`jax.vmap` over an axis of length 1: no batched products, which XLA's CPU back end copies for."""

    def mapped(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(itemgetter(0), arguments)))

    return mapped


@partial(jax.jit, static_argnums=(0, 1))
def _train_chunk(training, mesh, frozen, received, examples, steps, batches, private, keys):
    """A chunk of clients on every device. Nothing crosses from client to client."""

    def on_one_device(frozen, received, examples, steps, batches, private, keys):
        def advance(step, carries):
            def client(batches, steps, key, carry):
                new = _client_step(training, frozen, received, examples, batches, key, step, carry)
                return jax.tree.map(partial(jnp.where, step < steps), new, carry)

            return devices.keep_spread(over_clients(client)(batches, steps, keys, carries), mesh)

        over_clients = jax.vmap if len(steps) > 1 else _alone
        state = training.init(frozen, received)
        carries = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(steps), *jnp.shape(x))), (state, 0.0))
        states, totals = jax.lax.fori_loop(0, jnp.max(steps), advance, carries)
        states, totals = over_clients(partial(_only_finite, state))(states, totals)
        final = over_clients(lambda state, private: training.final(frozen, received, state, private))
        return final(states, private), totals / jnp.maximum(steps, 1)

    shared, own = PartitionSpec(), PartitionSpec(devices.CLIENTS)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(shared, shared, shared, own, own, own, own),
        out_specs=own,
        axis_names={devices.CLIENTS},  # `weights` is left to the compiler
        check_vma=False,
    )(frozen, received, examples, steps, batches, private, keys)


_loop_step = jax.jit(_client_step, static_argnums=0)


def _train_loop(training, frozen, received, examples, plan, private, keys):
    for k, steps in enumerate(plan.steps):
        carry = (training.init(frozen, received), jnp.float32(0))
        for step in range(int(steps)):
            carry = _loop_step(training, frozen, received, examples, plan.batches[k], keys[k], step, carry)
        mine = jax.tree.map(lambda x, k=k: x[k], private)
        state, total = _only_finite(training.init(frozen, received), *carry)
        update = training.final(frozen, received, state, mine)
        one = jax.tree.map(lambda x: x[None], update)
        yield np.array([k]), one, total[None] / max(int(steps), 1)


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
