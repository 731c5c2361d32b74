"""The chunk: chosen from memory and backend, halved when memory runs out, coded while the next trains."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import devices, methods
from deltamask_jax.federation import chunking, cohort, uplink
from tests.federation.test_cohort import plan, watched

MESH = devices.mesh(devices=jax.local_devices()[:1])
SMALL, LARGE = np.zeros(1000, np.uint16), np.zeros(chunking.CPU_BYTES // 4, np.uint16)


def choose(asked=0, clients=30, received=SMALL, per_client=1, memory=1000, program=None):
    return chunking.choose(
        program or object(), asked, clients, MESH, received, lambda chunk: chunk * per_client, memory
    )


def test_choice():
    assert choose() == 30  # small clients on CPU: all at once
    assert choose(received=LARGE) == 1  # a client's own products fill the cores
    assert choose(asked=7) == 7 and choose(asked=7, clients=3) == 3
    assert choose(per_client=100) == 10  # 1000 bytes for 100 a client
    assert choose(per_client=5000) == 1  # tried all the same: the analysis is no promise


def test_accelerators_leave_chunks_to_code_behind():
    assert chunking._wanted(30, LARGE, "gpu") == 8
    assert chunking._wanted(2, LARGE, "gpu") == 1


def test_out_of_memory_halves_for_good_and_ends_at_one_client():
    program, full = (
        object(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
    )
    assert choose(program=program, asked=8) == 8
    assert chunking.halve(program, 8, full) == 4
    assert choose(program=program, asked=8) == 4 and choose(program=program) == 4
    with pytest.raises(MemoryError, match="config.batch_size"):
        chunking.halve(program, 1, full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        chunking.halve(program, 8, jax.errors.JaxRuntimeError("INTERNAL: something else"))


@pytest.fixture
def method(problem):
    return methods.build(problem.config, problem.task)


def arguments(problem, method, clients):
    return (
        method.training,
        method.frozen,
        method.receive(method.broadcast(method.init(), 1), 1),
        {"inputs": problem.inputs["tokens"][0], "labels": problem.labels[0]},
        plan(problem, clients, epochs=1),
        method.private(1, clients),
        jax.vmap(lambda k: jax.random.fold_in(jax.random.key(0), k))(jnp.asarray(clients)),
    )


def test_clients_that_ran_out_of_memory_train_again_in_smaller_chunks(problem, method, monkeypatch):
    """A device with room for two clients, asked for four at once."""
    clients = np.arange(5)
    expected, losses = cohort.train(*arguments(problem, method, clients), chunk=2)
    train_chunk, tried = cohort._train_chunk, []

    def with_room_for_two(*inputs):
        tried.append(len(inputs[6]))
        if tried[-1] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return train_chunk(*inputs)

    monkeypatch.setattr(cohort, "_train_chunk", with_room_for_two)
    updates, again = cohort.train(*arguments(problem, method, clients), chunk=4)
    assert tried == [4, 2, 2, 2]
    np.testing.assert_array_equal(updates, expected)
    np.testing.assert_array_equal(again, losses)


def test_a_chunk_after_one_that_ran_out_of_memory_trains_on_its_own_examples(problem, method, monkeypatch):
    """The second chunk's arguments are there already, for four clients, when its memory runs out."""
    clients = np.array([0, 1, 2, 3, 4, 5])
    inputs = list(arguments(problem, method, clients))
    expected, losses = cohort.train(*inputs, chunk=2)
    inputs[3] = jax.tree.map(np.asarray, inputs[3])
    train_chunk, tried = cohort._train_chunk, []

    def full_the_second_time(*inputs):
        tried.append(len(inputs[6]))
        if len(tried) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return train_chunk(*inputs)

    monkeypatch.setattr(cohort, "_train_chunk", full_the_second_time)
    updates, again = cohort.train(*inputs, chunk=4)
    assert tried == [4, 4, 2]
    np.testing.assert_array_equal(updates[4:], expected[4:])
    np.testing.assert_array_equal(again[4:], losses[4:])


def test_examples_without_room_for_two_chunks_are_read_when_the_first_is_done(problem, method, monkeypatch):
    clients, divided, fails = np.arange(3), devices.divided, iter([False, True, False])
    inputs = list(arguments(problem, method, clients))
    expected, _ = cohort.train(*inputs, chunk=1)
    inputs[3] = jax.tree.map(np.asarray, inputs[3])

    def full_the_second_time(tree, mesh):
        if isinstance(tree, np.ndarray) and tree.ndim > 2 and next(fails, False):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return divided(tree, mesh)

    monkeypatch.setattr(devices, "divided", full_the_second_time)
    updates, _ = cohort.train(*inputs, chunk=1)
    np.testing.assert_array_equal(updates, expected)
    assert next(fails, "used up") == "used up"


def test_the_memory_of_a_chunk_counts_its_examples_on_the_host_and_reads_none(problem, method, monkeypatch):
    inputs, measured, read = list(arguments(problem, method, np.arange(4))), [], []

    def choose(program, asked, clients, mesh, received, memory_of, memory):
        measured.append(memory_of(2))
        assert not read
        return 2

    monkeypatch.setattr(chunking, "choose", choose)
    cohort.train(*inputs, chunk=0)
    tokens, labels = map(np.asarray, inputs[3].values())
    inputs[3] = {"inputs": watched(tokens, read), "labels": labels}
    cohort.train(*inputs, chunk=0)
    assert len(read) == 2
    a_client = 20 * (tokens[0].nbytes + 4)  # the largest has 20 examples and their labels
    on_devices, on_host = measured
    assert on_host - on_devices == pytest.approx(4 * a_client, rel=0.2)  # two chunks of two clients


def test_a_chunk_is_encoded_while_the_next_trains(problem, method, monkeypatch):
    """The second chunk does not finish before the first one's encoding has begun: or nothing overlaps."""
    clients, began = np.arange(4), threading.Event()

    def encode(*inputs):
        began.set()
        return method.encode(*inputs)

    def train_in_chunks(*inputs, **options):
        for rows in ([0, 1], [2, 3]):
            yield np.array(rows), np.zeros((2, -(-problem.task.index.d // 8)), np.uint8), np.ones(2)
            assert began.wait(timeout=60)

    monkeypatch.setattr(cohort, "train_in_chunks", train_in_chunks)
    watched, key = dataclasses.replace(method, encode=encode), jax.random.key(0)
    schedule = plan(problem, clients, epochs=1)
    sent = uplink.train_and_send(
        problem.config, watched, method.init(), None, None, schedule, clients, 1, key
    )
    assert len(sent.payloads) == len(sent.updates) == len(sent.losses) == 4
    assert 0 <= sent.exposed_seconds <= sent.codec_seconds
