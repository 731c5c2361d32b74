"""The cohort: loop == vmap at every chunk, ragged clients, one compilation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltamask_jax import devices
from deltamask_jax.federation import batches, cohort
from deltamask_jax.federation.engine import Engine
from deltamask_jax.local_training import LocalTraining, cross_entropy, mask_training, weight_training
from deltamask_jax.public_random import MASK, stream_key
from tests.conftest import cohort_of
from tests.federation.test_batches import plan


@pytest.fixture(scope="module")
def training(problem):
    """Mask training that hands out θ_k itself, so that backends can be compared closely."""
    task = problem.task

    def forward(params, head, tokens):
        return task.model.suffix(params, tokens) @ head["kernel"] + head["bias"]

    return mask_training(
        forward, task.index, optax.scale_by_adam(), 0.01, lambda theta, received, private: (theta, private)
    )


ONE_DEVICE = devices.mesh(devices=jax.local_devices()[:1])


def run(problem, training, clients, backend, chunk=1, place=lambda inputs: inputs, engine=None):
    received = {
        "theta": jnp.full(problem.task.index.d, 60000, jnp.uint16),
        "head": problem.task.head,
        "learning_rate": 0.1,
    }
    keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(3), c))(jnp.asarray(clients))
    words = jnp.asarray([stream_key(0, 1, int(c), MASK)[0] for c in clients])
    (theta, private), losses = cohort.train(
        engine or Engine(ONE_DEVICE, backend, chunk),
        training,
        {"params": problem.task.params},
        received,
        {"inputs": place(problem.inputs["tokens"][0]), "labels": problem.labels[0]},
        plan(problem, clients),
        words,
        keys,
    )
    np.testing.assert_array_equal(private, words)  # each client got its own
    return np.asarray(theta).astype(np.int64), losses


def test_loop_equals_vmap_at_every_chunk(problem, training):
    clients = np.array([0, 1, 2, 3, 4])
    theta, losses = run(problem, training, clients, "loop")
    assert (theta != 60000).mean() > 0.9 and len(set(losses)) == 5
    for chunk in (1, 2, 5):  # 2 leaves a chunk that is half empty
        other, other_losses = run(problem, training, clients, "vmap", chunk)
        # Batched and single matrix products round differently; Adam divides that by √v.
        assert np.mean(np.abs(theta - other) > 30) < 1e-3, chunk
        np.testing.assert_allclose(losses, other_losses, rtol=1e-4)


def watched(inputs, read: list):
    """The same on the host, which appends to `read` whatever rows are taken from it."""

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            read.append(rows)
            return np.asarray(self)[rows]

    return np.asarray(inputs).view(Watched)


@pytest.mark.parametrize("backend, chunk", [("loop", 1), ("vmap", 1), ("vmap", 2)])
def test_examples_on_the_host_give_what_those_on_the_device_give(problem, training, backend, chunk):
    clients, largest, read = np.array([4, 0, 2]), 20, []
    expected, losses = run(problem, training, clients, backend, chunk)
    theta, again = run(problem, training, clients, backend, chunk, partial(watched, read=read))
    np.testing.assert_array_equal(theta, expected)
    np.testing.assert_array_equal(again, losses)
    assert [rows.size for rows in read] == [chunk * largest] * -(-len(clients) // chunk)
    for start, rows in zip(range(0, len(clients), chunk), read, strict=True):  # its own and no others
        theirs = np.concatenate([problem.parts[k] for k in clients[start : start + chunk]])
        np.testing.assert_array_equal(np.unique(rows), np.sort(theirs))


def test_the_next_chunk_s_examples_are_read_while_the_first_trains(problem, training, monkeypatch):
    """Nothing waits for a chunk before the next one's examples are on their way."""
    order = []
    monkeypatch.setattr(cohort.jax, "block_until_ready", lambda trained: order.append("wait"))
    run(problem, training, np.arange(3), "vmap", 1, partial(watched, read=order))
    waits = [isinstance(event, str) for event in order]
    assert waits == [False, False, True, False, True, True]  # read, read, wait, read, wait, wait


def test_a_client_trains_alike_alone_and_in_company(problem, training):
    together, _ = run(problem, training, np.array([1, 5]), "vmap")
    alone, _ = run(problem, training, np.array([5]), "vmap")
    np.testing.assert_array_equal(together[1], alone[0])


def test_padding_examples_do_not_move_the_weights():
    """One client of 3 examples, batch 8: equal to plain gradient descent on those 3."""
    inputs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    labels = np.array([0, 1, 1], np.int32)

    def loss_of(frozen, w, batch):
        return cross_entropy(batch["inputs"] @ w, batch)

    training = weight_training(loss_of, optax.identity())
    schedule = batches.schedule([np.arange(3)], cohort_of([0]), epochs=4, batch_size=8)
    w = jnp.zeros((4, 2))
    received = {"weights": w, "learning_rate": 0.5}
    examples = {"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels)}
    keys = jax.random.split(jax.random.key(0), 1)
    updates, _ = cohort.train(Engine(ONE_DEVICE), training, (), received, examples, schedule, (), keys)
    for _ in range(4):
        p = jax.nn.softmax(inputs @ w)
        w = w - 0.5 * inputs.T @ (p - jax.nn.one_hot(labels, 2)) / 3
    np.testing.assert_allclose(updates[0], w, rtol=1e-5, atol=1e-6)


def test_a_client_without_examples_returns_what_it_received():
    training = weight_training(
        lambda frozen, w, batch: cross_entropy(batch["inputs"] @ w, batch), optax.scale_by_adam()
    )
    schedule = batches.schedule([np.arange(2), np.arange(0)], cohort_of([0, 1]), epochs=1, batch_size=2)
    examples = {"inputs": jnp.ones((2, 3)), "labels": jnp.zeros(2, jnp.int32)}
    start = jnp.ones((3, 2))
    received = {"weights": start, "learning_rate": 1.0}
    keys = jax.random.split(jax.random.key(0), 2)
    updates, losses = cohort.train(
        Engine(ONE_DEVICE, chunk=2), training, (), received, examples, schedule, (), keys
    )
    np.testing.assert_array_equal(updates[1], start)
    assert losses[1] == 0 and (updates[0] != start).any()


@pytest.mark.parametrize("place", [lambda inputs: inputs, np.asarray], ids=["on devices", "on the host"])
def test_rounds_do_not_compile_again(problem, training, place):
    engine = Engine(ONE_DEVICE)
    for clients in ([0, 1], [4, 2]):  # other sizes, same program
        run(problem, training, np.array(clients), "vmap", place=place, engine=engine)
    assert engine.compiled(cohort._train_chunk, training, ONE_DEVICE)._cache_size() == 1


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_every_step_of_every_client_has_a_key_of_its_own(backend):
    training = LocalTraining(
        lambda frozen, received, private: jnp.zeros(3, jnp.uint32),
        lambda frozen, received, seen, batch, key: (
            jnp.append(seen[1:], jax.random.bits(key, (), jnp.uint32)),
            jnp.float32(0),
        ),
        lambda frozen, received, seen, private: seen,
    )
    asked = cohort_of([0, 1])
    schedule = batches.schedule([np.arange(6)] * 2, asked, epochs=1, batch_size=2)
    examples = {"inputs": jnp.zeros((6, 1)), "labels": jnp.zeros(6, jnp.int32)}
    engine = Engine(ONE_DEVICE, backend, chunk=2)
    drawn, _ = cohort.train(engine, training, (), (), examples, schedule, (), asked.keys())
    assert drawn.shape == (2, 3) and len(np.unique(drawn)) == 6
