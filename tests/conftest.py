"""Fixtures shared by the whole suite: one tiny federated problem, built once."""

import dataclasses
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes longer than what is compiled
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test compiled serves the others, and their runs
    compiled = tempfile.TemporaryDirectory(prefix="deltamask-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import numpy as np
import pytest

from configs import common
from deltamask_jax import methods, models
from deltamask_jax.federation import engine
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.task import Cohort, Problem, Task


def tiny_config(**changes):
    """A config small enough for tests: random weights, six clients, two blocks trained."""
    config = common.get_config()
    config.clients, config.rounds, config.batch_size = 6, 2, 8
    config.model.name, config.model.checkpoint, config.model.trained_blocks = "tiny_vit", "", 2
    config.train_examples, config.test_examples = 100, 60
    config.head.epochs = 2
    config.peft.scope = "suffix"  # the inputs below are tokens at the cut
    for name, value in changes.items():
        *path, last = name.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


@pytest.fixture(scope="session")
def problem() -> Problem:
    return tiny_problem()


def tiny_problem() -> Problem:
    """Random features of ragged clients (sizes 1 … 20) for a tiny random ViT; no data set, no files."""
    config = tiny_config()
    model = models.build(config.model)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    sizes = np.array([1, 20, 7, 8, 16, 3])
    parts = np.split(rng.permutation(sizes.sum()), np.cumsum(sizes)[:-1])
    labels = rng.integers(0, 3, sizes.sum()).astype(np.int32)
    tokens = rng.normal(size=(sizes.sum(), 17, 32)).astype(np.float32) + labels[:, None, None]
    head = {"kernel": jax.random.normal(jax.random.key(1), (32, 3)) * 0.3, "bias": jax.numpy.zeros(3)}
    index = FlatIndex.create(params, model.masked)
    task = Task(model, params, head, index)
    tokens = jax.numpy.asarray(tokens)
    features = jax.jit(model.suffix)(params, tokens)
    return Problem(
        config=config,
        task=task,
        inputs={"tokens": (tokens, tokens), "features": (features, features)},
        labels=(jax.numpy.asarray(labels), jax.numpy.asarray(labels)),
        parts=parts,
        engine=engine.from_config(config),
    )


def cohort_of(clients, number=1, **fields) -> Cohort:
    """Clients of a round of the main phase of a run with seed 0."""
    return Cohort(fields.pop("seed", 0), number, np.asarray(clients), **fields)


def play(problem, rounds=2, memory=None, **changes):
    """(problem with a changed config, its method, state after some rounds of everyone, the rounds)."""
    config = tiny_config(**changes)
    problem = dataclasses.replace(problem, config=config, engine=engine.from_config(config))
    method = methods.build(config, problem.task)
    state, results, everyone = method.init(), [], np.arange(config.clients)
    for number in range(1, rounds + 1):
        state, result = play_round(
            problem, method, state, cohort_of(everyone, number, seed=config.seed), memory
        )
        memory = result.memory
        results.append(result)
    return problem, method, state, results
