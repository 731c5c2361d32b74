"""The engine: programs compiled once; the chunk chosen from memory and backend, halved when memory runs
out."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import devices, methods
from deltamask_jax.federation import cohort, engine
from deltamask_jax.federation.engine import Engine
from tests.conftest import cohort_of
from tests.federation.test_batches import plan
from tests.federation.test_cohort import watched

MESH = devices.mesh(devices=jax.local_devices()[:1])
SMALL, LARGE = np.zeros(1000, np.uint16), np.zeros(engine.CPU_BYTES // 4, np.uint16)


def choose(asked=0, clients=30, received=SMALL, per_client=1, memory=1000):
    its = Engine(MESH, chunk=asked, memory=memory)
    return its.clients_at_once("program", clients, received, lambda chunk: chunk * per_client)


def test_choice():
    assert choose() == 30  # small clients on CPU: all at once
    assert choose(received=LARGE) == 1  # a client's own products fill the cores
    assert choose(asked=7) == 7 and choose(asked=7, clients=3) == 3
    assert choose(per_client=100) == 10  # 1000 bytes for 100 a client
    assert choose(per_client=5000) == 1  # tried all the same: the analysis is no promise


def test_accelerators_leave_chunks_to_code_behind():
    assert engine._wanted(30, LARGE, "gpu") == 8
    assert engine._wanted(2, LARGE, "gpu") == 1


def test_out_of_memory_halves_for_good_and_ends_at_one_client():
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    for asked in (8, 0):
        its = Engine(MESH, chunk=asked, memory=8)
        assert its.clients_at_once("program", 30, SMALL, lambda chunk: chunk) == 8
        assert its.halve("program", 8, full) == 4
        assert its.clients_at_once("program", 30, SMALL, lambda chunk: chunk) == 4
        assert its.clients_at_once("another", 30, SMALL, lambda chunk: chunk) == 8
        with pytest.raises(engine.TooLittleMemory, match="config.batch_size"):
            its.halve("program", 1, full)
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            its.halve("program", 8, jax.errors.JaxRuntimeError("INTERNAL: something else"))


def test_chunks_are_those_of_a_usual_cohort_whichever_comes_first():
    """So that a run that is continued adds up in the order of one that was not."""
    for first in (1, 3, 30, 50):
        its = Engine(MESH, chunk=0, memory=8, usual=30)
        its.clients_at_once("p", first, SMALL, lambda chunk: chunk)
        sizes = [its.clients_at_once("p", n, SMALL, lambda chunk: chunk) for n in (1, 5, 30, 50)]
        assert sizes == [1, 5, 8, 8]


def test_a_program_is_compiled_once_and_goes_with_the_engine():
    def scaled(factor, x):
        return x * factor(x)

    def factor(x):
        return 3.0

    its, gone = Engine(MESH), weakref.ref(factor)
    assert its.compiled(scaled, factor)(2.0) == 6 == its.compiled(scaled, factor)(jnp.float32(2))
    assert its.compiled(scaled, factor) is its.compiled(scaled, factor)
    assert its.compiled(scaled, factor) is not Engine(MESH).compiled(scaled, factor)
    del its, factor
    gc.collect()
    assert gone() is None


@pytest.fixture
def method(problem):
    return methods.build(problem.config, problem.task)


def arguments(problem, method, clients):
    asked = cohort_of(clients)
    return (
        method.client,
        method.frozen,
        method.start(method.init(), asked),
        {"inputs": problem.inputs["tokens"][0], "labels": problem.labels[0]},
        plan(problem, clients, epochs=1),
        method.private(method.init(), asked),
        asked.keys(),
    )


class Watched(Engine):
    """An engine of four clients a chunk that notes how many it is given, and is out of memory when told."""

    def __init__(self, mesh, tried, full):
        super().__init__(mesh, chunk=4)
        self.__dict__.update(tried=tried, full=full)

    def compiled(self, *function):
        program = super().compiled(*function)

        def watched(*inputs):
            self.tried.append(len(inputs[4]))
            if self.full():
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return program(*inputs)

        return watched


def test_clients_that_ran_out_of_memory_train_again_in_smaller_chunks(problem, method):
    """A device with room for two clients, asked for four at once."""
    clients = np.arange(5)
    expected, losses = cohort.train(Engine(MESH, chunk=2), *arguments(problem, method, clients))
    tried = []
    full = Watched(MESH, tried, lambda: tried[-1] > 2)
    updates, again = cohort.train(full, *arguments(problem, method, clients))
    assert tried == [4, 2, 2, 2]
    np.testing.assert_array_equal(updates, expected)
    np.testing.assert_array_equal(again, losses)


def test_a_chunk_after_one_that_ran_out_of_memory_trains_on_its_own_examples(problem, method):
    """The second chunk's arguments are there already, for four clients, when its memory runs out."""
    clients = np.array([0, 1, 2, 3, 4, 5])
    inputs = list(arguments(problem, method, clients))
    expected, losses = cohort.train(Engine(MESH, chunk=2), *inputs)
    inputs[3] = jax.tree.map(np.asarray, inputs[3])
    tried = []
    full_the_second_time = Watched(MESH, tried, lambda: len(tried) == 2)
    updates, again = cohort.train(full_the_second_time, *inputs)
    assert tried == [4, 4, 2]
    np.testing.assert_array_equal(updates[4:], expected[4:])
    np.testing.assert_array_equal(again[4:], losses[4:])


def test_examples_without_room_for_two_chunks_are_read_when_the_first_is_done(problem, method, monkeypatch):
    clients, divided, fails = np.arange(3), devices.divided, iter([False, True, False])
    inputs = list(arguments(problem, method, clients))
    expected, _ = cohort.train(Engine(MESH), *inputs)
    inputs[3] = jax.tree.map(np.asarray, inputs[3])

    def full_the_second_time(tree, mesh):
        if isinstance(tree, np.ndarray) and tree.ndim > 2 and next(fails, False):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return divided(tree, mesh)

    monkeypatch.setattr(devices, "divided", full_the_second_time)
    updates, _ = cohort.train(Engine(MESH), *inputs)
    np.testing.assert_array_equal(updates, expected)
    assert next(fails, "used up") == "used up"


def test_the_memory_of_a_chunk_counts_its_examples_on_the_host_and_reads_none(problem, method, monkeypatch):
    inputs, measured, read = list(arguments(problem, method, np.arange(4))), [], []

    def choose(self, program, clients, received, memory_of):
        measured.append(memory_of(2))
        assert not read
        return 2

    monkeypatch.setattr(Engine, "clients_at_once", choose)
    cohort.train(Engine(MESH), *inputs)
    tokens, labels = map(np.asarray, inputs[3].values())
    inputs[3] = {"inputs": watched(tokens, read), "labels": labels}
    cohort.train(Engine(MESH), *inputs)
    assert len(read) == 2
    a_client = 20 * (tokens[0].nbytes + 4)  # the largest has 20 examples and their labels
    on_devices, on_host = measured
    assert on_host - on_devices == pytest.approx(4 * a_client, rel=0.2)  # two chunks of two clients
