"""The cohort: loop == vmap at every chunk, ragged clients, no lost example, one compilation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deltamask_jax import devices
from deltamask_jax.federation import cohort
from deltamask_jax.federation.engine import Engine
from deltamask_jax.local_training import cross_entropy, mask_training, weight_training
from deltamask_jax.public_random import MASK, stream_key
from deltamask_jax.task import PROBE_PHASE
from tests.conftest import cohort_of


def plan(problem, clients, epochs=2, batch_size=8, number=1):
    asked = cohort_of(clients, number)
    return cohort.schedule(problem.parts, asked, epochs=epochs, batch_size=batch_size)


def test_schedule_shows_every_example_once_an_epoch(problem):
    clients = np.array([1, 3, 5])
    schedule = plan(problem, clients, epochs=2)
    assert schedule.batches.shape == (3, 2 * 3, 8)  # the largest client has 20 examples
    for row, client in enumerate(clients):
        part = problem.parts[client]
        steps = schedule.steps[row]
        assert steps == 2 * -(-len(part) // 8)
        used = schedule.batches[row, :steps].reshape(2, -1)
        for epoch in used:
            np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.sort(part))
        assert (schedule.batches[row, steps:] == -1).all()


def test_a_batch_is_no_larger_than_the_largest_client(problem):
    clients = np.arange(len(problem.parts))
    largest = max(map(len, problem.parts))
    vast, exact = plan(problem, clients, batch_size=5000), plan(problem, clients, batch_size=largest)
    assert vast.batches.shape == (len(clients), 2, largest)
    np.testing.assert_array_equal(vast.batches, exact.batches)
    np.testing.assert_array_equal(vast.steps, exact.steps)


def test_schedule_depends_on_seed_round_and_client_but_not_on_the_cohort(problem):
    alone, among = plan(problem, np.array([1])), plan(problem, np.array([0, 1, 4]))
    np.testing.assert_array_equal(alone.batches[0], among.batches[1])
    assert (plan(problem, np.array([1]), number=2).batches != alone.batches).any()


def poisson(problem, clients, number=1, microbatch=4):
    asked = cohort_of(clients, number)
    return cohort.poisson_schedule(problem.parts, asked, epochs=2, batch_size=8, microbatch=microbatch)


def test_poisson_batches_hold_each_example_at_its_rate_and_are_never_cut(problem, monkeypatch):
    clients, seen = np.array([1, 5]), []  # of 20 examples, at 0.4, and of 3, which are in every batch
    for number in range(60):
        plan = poisson(problem, clients, number)
        assert plan.batches.shape == (2, 5, 20) and plan.steps.tolist() == [5, 2]
        np.testing.assert_array_equal(np.sort(plan.batches[1, 0][:3]), np.sort(problem.parts[5]))
        seen += plan.batches[0].ravel().tolist()
    assert poisson(problem, clients, microbatch=19).batches.shape == (2, 5, 18)  # one part of one width
    counts = np.array([seen.count(example) for example in problem.parts[1]])
    assert counts.sum() == sum(example >= 0 for example in seen)
    np.testing.assert_allclose(counts / 300, 0.4, atol=5 * np.sqrt(0.24 / 300))
    monkeypatch.setattr(cohort.stats.binom, "isf", lambda *_: 1)  # a width that every batch exceeds
    np.testing.assert_array_equal(
        np.sort(poisson(problem, clients, 59).batches)[:, :, -8:], np.sort(plan.batches)[:, :, -8:]
    )


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
    schedule = cohort.schedule([np.arange(3)], cohort_of([0]), epochs=4, batch_size=8)
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
    schedule = cohort.schedule([np.arange(2), np.arange(0)], cohort_of([0, 1]), epochs=1, batch_size=2)
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


@pytest.mark.parametrize("draw", [cohort.schedule, partial(cohort.poisson_schedule, microbatch=4)])
def test_every_round_phase_and_seed_draws_batches_of_its_own(draw):
    asked = cohort_of([0]), cohort_of([0], 2), cohort_of([0], phase=PROBE_PHASE), cohort_of([0], seed=2**32)
    drawn = [draw([np.arange(20)], its, epochs=2, batch_size=8).batches for its in asked]
    assert len({batches.tobytes() for batches in drawn}) == len(asked)
