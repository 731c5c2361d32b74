"""Runs local training for all clients of a round: one jitted program per chunk of clients.

A chunk is `vmap` on each device, sharded over the mesh axis `clients`; chunks follow one another, and the
host has each as soon as it is trained, while the devices are at the next. Clients differ in size. Batches
that a client does not have are skipped: a device stops at its largest client's last step, and inside a chunk
a finished client's state is held. Where the examples are on the devices, once, padding costs four bytes.
Those of a data set too large for that are on the host: a chunk's are read and sent while the chunk before it
trains, and each client of a chunk takes as much room as the largest of all.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deltamask_jax import devices
from deltamask_jax.federation.batches import Schedule
from deltamask_jax.federation.engine import Engine
from deltamask_jax.local_training import Batch, LocalTraining

Examples = dict[str, jax.Array | np.ndarray]  # inputs [n, ...], on the devices or the host; labels i32[n]


def train(engine: Engine, *arguments: Any) -> tuple[Any, np.ndarray]:
    """Train a cohort and wait for all of it; arguments as of `train_in_chunks`.

    Returns:
        The updates, a pytree of NumPy arrays with leading axis `clients`, and each client's mean loss over
        its steps, f32[clients] (0 for a client without examples).
    """
    _, updates, losses = zip(*jax.device_get(list(train_in_chunks(engine, *arguments))), strict=True)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *updates), np.concatenate(losses)


def train_in_chunks(
    engine: Engine,
    training: LocalTraining,
    frozen: Any,
    received: Any,
    examples: Examples,
    plan: Schedule,
    private: Any,
    keys: jax.Array,
) -> Iterator[tuple[np.ndarray, Any, jax.Array]]:
    """Train a cohort and give out each chunk of clients as soon as it is trained.

    Args:
        engine: what they train on, and how many at once.
        training: what one client does.
        frozen: pytree all clients share and no round changes.
        received: pytree all clients start the round from.
        examples: inputs [n, ...] and labels i32[n]; both on the devices, or both NumPy arrays.
        plan: each client's batches.
        private: pytree with leading axis `clients`, passed to `training.init` and `training.final`.
        keys: one key per client, already folded with round and client id.

    Yields:
        Rows of the cohort i[k], in order; their updates, a pytree of device arrays with leading axis k; and
        their mean losses f32[k]: 0 for a client without steps; NaN for one whose loss or training state was
        not finite, and its update is that of a client which did not train. All computed, not merely
        dispatched.

    Raises:
        MemoryError: one client alone does not fit into a device's memory.
    """
    if engine.backend == "loop":
        yield from _train_loop(engine, training, frozen, received, examples, plan, private, keys)
        return
    mesh = engine.mesh
    train_chunk = engine.compiled(_train_chunk, training, mesh)
    frozen, received = devices.spread(frozen, mesh), devices.spread(received, mesh)
    shared = devices.everywhere(examples, mesh) if _on_devices(examples) else {}
    clients, lanes = len(plan.steps), mesh.shape[devices.CLIENTS]

    def send(array, rows):
        return devices.divided(np.asarray(array[rows]), mesh)

    def shape_of(array, rows):
        sharding = NamedSharding(mesh, PartitionSpec(devices.CLIENTS))
        return jax.ShapeDtypeStruct((*rows.shape, *array.shape[1:]), array.dtype, sharding=sharding)

    def arguments(start: int, chunk: int, taken=send):
        """Arguments of `train_chunk` for the clients from `start` on; absent ones have no steps."""
        rows = np.arange(start, start + chunk * lanes)
        present = np.minimum(rows, clients - 1)
        steps = np.where(rows < clients, plan.steps[present], 0).astype(np.int32)
        mine = jax.tree.map(lambda x: x[present], (private, keys))
        batches, own = plan.batches[present], {}
        if not shared:
            batches, rows = _own_rows(batches, steps, plan.largest)
            own = {name: taken(array, rows) for name, array in examples.items()}
        divided = devices.divided((steps, batches, *mine), mesh)
        return frozen, received, shared, own, *divided

    def memory_of(chunk: int) -> int:
        inputs = arguments(0, chunk, taken=shape_of)
        used = train_chunk.lower(*inputs).compile().memory_analysis()
        if used is None:  # a back end that does not tell: too large a chunk is halved
            return 0
        own = sum(x.size * x.dtype.itemsize for x in inputs[3].values()) // lanes
        return used.temp_size_in_bytes + used.output_size_in_bytes + 2 * own  # the next chunk's too

    program = (training, plan.batches.shape[1:], bool(shared))
    chunk = engine.clients_at_once(program, clients, received, memory_of)
    start, ready = 0, None
    while start < clients:
        end = min(start + chunk * lanes, clients)
        try:
            trained = train_chunk(*(ready or arguments(start, chunk)))
            ready = None
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # no room for two chunks: read it later
                ready = arguments(end, chunk) if end < clients else None  # while the devices train
            jax.block_until_ready(trained)
        except jax.errors.JaxRuntimeError as error:
            chunk, ready = engine.halve(program, chunk, error), None
            continue
        yield np.arange(start, end), *jax.tree.map(itemgetter(slice(end - start)), trained)
        start = end


def _on_devices(examples: Examples) -> bool:
    return isinstance(examples["inputs"], jax.Array)


def _own_rows(batches: np.ndarray, steps: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """`batches` as indices into each client's own examples, and which those are, i[clients, largest]."""
    taken = np.arange(batches.shape[1]) < steps[:, None]
    taken = np.where(taken[:, :, None], batches, -1)
    rows = np.full((len(batches), largest), max(taken.max(), 0))  # padding: any that is read anyway
    own = np.full_like(taken, -1)
    for k, theirs in enumerate(taken):
        distinct = np.unique(theirs[theirs >= 0])
        rows[k, : len(distinct)] = distinct
        own[k] = np.where(theirs >= 0, np.searchsorted(distinct, theirs), -1)
    return own, rows


def _batch(examples: Examples, indices: jax.Array) -> Batch:
    """A batch from the indices i32[b] of its examples, −1 for padding."""
    at = jnp.maximum(indices, 0)
    return {
        "inputs": examples["inputs"][at],
        "labels": examples["labels"][at],
        "weights": (indices >= 0).astype(jnp.float32),
    }


def _client_step(
    training: LocalTraining, frozen, received, examples: Examples, batches, key, step, carry
) -> tuple[Any, jax.Array]:
    """One step of one client. Jitted by `_train_loop`.

    Args:
        batches: i32[steps, batch], indices into the examples.
        key: of the round and the client, key[].
        step: i32[], which of them.
        carry: (training state, sum of losses f32[]).

    Returns:
        The carry after the step.
    """
    state, total = carry
    batch = _batch(examples, batches[step])
    state, loss = training.step(frozen, received, state, batch, jax.random.fold_in(key, step))
    return state, total + loss


def _only_finite(start, state, total) -> tuple[Any, jax.Array]:
    """A client whose loss f32[] or training state is not finite ends where it started, its loss NaN."""
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


def _train_chunk(
    training: LocalTraining, mesh: Mesh, frozen, received, shared, own, steps, batches, private, keys
) -> tuple[Any, jax.Array]:
    """A chunk of clients on every device, k in all. Nothing crosses from client to client.

    The examples are either shared, or each client's own; the other is empty.

    Args:
        frozen, received: pytrees, the same for all.
        shared: {'inputs': [n, ...], 'labels': i32[n]}, or {}.
        own: {'inputs': [k, largest, ...], 'labels': i32[k, largest]}, or {}.
        steps: i32[k], how many each client has.
        batches: i32[k, most steps, batch], indices into the examples, −1 for padding.
        private: pytree with leading axis k.
        keys: key[k].

    Returns:
        Updates, a pytree with leading axis k, and mean losses f32[k].
    """

    def on_one_device(frozen, received, shared, own, steps, batches, private, keys):
        def advance(step, carries):
            def client(own, batches, steps, key, carry):
                new = _client_step(training, frozen, received, shared | own, batches, key, step, carry)
                return jax.tree.map(partial(jnp.where, step < steps), new, carry)

            return devices.keep_spread(over_clients(client)(own, batches, steps, keys, carries), mesh)

        def start(private, _):
            return training.init(frozen, received, private), jnp.float32(0)

        def end(private, state, total):  # made again, not kept through all steps
            return _only_finite(training.init(frozen, received, private), state, total)

        over_clients = jax.vmap if len(steps) > 1 else _alone
        carries = over_clients(start)(private, steps)
        states, totals = jax.lax.fori_loop(0, jnp.max(steps), advance, carries)
        states, totals = over_clients(end)(private, states, totals)
        final = over_clients(lambda state, private: training.final(frozen, received, state, private))
        return final(states, private), totals / jnp.maximum(steps, 1)

    whole, divided = PartitionSpec(), PartitionSpec(devices.CLIENTS)
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(whole, whole, whole, divided, divided, divided, divided, divided),
        out_specs=divided,
        axis_names={devices.CLIENTS},  # `weights` is left to the compiler
        check_vma=False,
    )(frozen, received, shared, own, steps, batches, private, keys)


def _train_loop(
    engine: Engine,
    training: LocalTraining,
    frozen,
    received,
    examples: Examples,
    plan: Schedule,
    private,
    keys: jax.Array,
) -> Iterator[tuple[np.ndarray, Any, jax.Array]]:
    """`train_in_chunks` with one client and one step after another."""
    client_step = engine.compiled(_client_step, training)
    for k, steps in enumerate(plan.steps):
        mine = jax.tree.map(lambda x, k=k: x[k], private)
        carry = (training.init(frozen, received, mine), jnp.float32(0))
        own, batches = _of_one(examples, plan, k)
        for step in range(int(steps)):
            carry = client_step(frozen, received, own, batches, keys[k], step, carry)
        state, total = _only_finite(training.init(frozen, received, mine), *carry)
        update = training.final(frozen, received, state, mine)
        one = jax.tree.map(lambda x: x[None], update)
        yield np.array([k]), one, total[None] / max(int(steps), 1)


def _of_one(examples: Examples, plan: Schedule, row: int) -> tuple[Examples, np.ndarray]:
    """The examples of one client, and its batches as indices into them."""
    if _on_devices(examples):
        return examples, plan.batches[row]
    (batches,), (rows,) = _own_rows(plan.batches[[row]], plan.steps[[row]], plan.largest)
    return {name: jnp.asarray(array[rows]) for name, array in examples.items()}, batches


def first_not_finite(
    engine: Engine,
    training: LocalTraining,
    frozen,
    received,
    examples: Examples,
    plan: Schedule,
    row: int,
    private: Any,
    key: jax.Array,
) -> tuple[int, str] | None:
    """Replay one client step by step: the first step, from 1, that leaves a value not finite.

    Args:
        row: of the plan.
        private: pytree of this client's own, without a client axis.
        key: this client's own, key[].

    Returns:
        (step, 'loss' or 'training state'), or None where every step is finite.
    """
    client_step = engine.compiled(_client_step, training)
    carry = (training.init(frozen, received, private), jnp.float32(0))
    own, batches = _of_one(examples, plan, row)
    for step in range(int(plan.steps[row])):
        carry = client_step(frozen, received, own, batches, key, step, carry)
        if not jnp.isfinite(carry[1]):
            return step + 1, "loss"
        if not jnp.isfinite(_only_finite(carry[0], *carry)[1]):
            return step + 1, "training state"
    return None
