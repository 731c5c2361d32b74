"""From a config to a federated problem: data, split, frozen network, cached prefix, and the common head."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from deltamask_jax import data, methods, models, pretrained
from deltamask_jax.data import features, partition
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods import Method, Task
from deltamask_jax.rounds import (
    EVALUATION_CHUNK,
    HEAD_PHASE,
    PROBE_PHASE,
    Problem,
    Round,
    evaluator,
    in_chunks,
    play_round,
)


def set_up(config, workdir: Path) -> tuple[Problem, Round]:
    """Everything the rounds need, and what the head's own round cost."""
    dataset = data.load(config.data, cache_dir=config.data_dir or None)
    dataset = data.subset(dataset, config.train_examples, config.test_examples, config.seed)
    parts = partition.split(
        config.partition.name,
        dataset.train.labels,
        config.clients,
        alpha=config.partition.alpha,
        classes_per_client=config.partition.classes_per_client,
        users=dataset.train.users,
        min_examples=config.partition.min_examples,
        seed=config.seed,
    )
    partition.save(workdir, parts, dataset.train.labels, dataset.class_names)

    model = models.build(config.model)
    params = jax.device_put(pretrained.load(config.model, model))
    if config.prefix_cache == "off":
        model = _without_prefix(model)
    tokens = tuple(_tokens(config, model, params, split) for split in (dataset.train, dataset.test))
    suffix = partial(jax.jit(model.suffix), params)
    outputs = tuple(in_chunks(suffix, array) for array in tokens)
    problem = Problem(
        config=config,
        task=Task(
            model=model,
            params=params,
            head=_random_head(config.seed, model.feature_dim, dataset.num_classes),
            index=FlatIndex.create(params, model.masked),
        ),
        inputs={"tokens": tokens, "features": outputs},
        labels=(jnp.asarray(dataset.train.labels), jnp.asarray(dataset.test.labels)),
        parts=parts,
    )
    return fit_head(problem)


def fit_head(problem: Problem) -> tuple[Problem, Round]:
    """The head all methods start from: one linear-probing round over all clients, real bytes both ways."""
    config = problem.config
    if config.head.init == "he":
        return problem, Round(float("nan"), 0, 0, config.clients, {}, b"")
    method, everyone = _linear_probe(problem), np.arange(config.clients)
    head, result = play_round(problem, method, method.init(), 0, everyone, HEAD_PHASE, config.head.epochs)
    # The fitted head goes back to every client once.
    result = dataclasses.replace(
        result, downlink_bytes=result.downlink_bytes + config.clients * len(method.broadcast(head, 0))
    )
    task = dataclasses.replace(problem.task, head=jax.device_put(head))
    return dataclasses.replace(problem, task=task), result


def linear_probe_accuracy(problem: Problem) -> float:
    """The lower bracket: keep training the head, on the frozen network, for as many rounds as the run has."""
    method = _linear_probe(problem)
    accuracy_of, head = evaluator(problem, method), method.init()
    config = problem.config
    for number in range(1, config.rounds + 1):
        clients = partition.cohort(config.clients, config.participation, config.seed, number)
        head, _ = play_round(problem, method, head, number, clients, PROBE_PHASE, config.local_epochs)
    return accuracy_of(head)


def _without_prefix(model: models.Model) -> models.Model:
    """The same network with every block in the suffix: nothing is cached but preprocessed images."""

    def whole(params, images):
        return model.suffix(params, model.prefix(params, images))

    return dataclasses.replace(model, prefix=lambda params, images: images, suffix=whole)


def _tokens(config, model: models.Model, params, split: data.Split) -> jax.Array:
    """The frozen prefix's output for every example, on the device."""
    directory = None if config.prefix_cache in ("memory", "off") else Path(config.prefix_cache)
    key = directory and features.fingerprint(model.architecture, model.trained_blocks, params, split.images)
    return jnp.asarray(
        features.prefix_features(
            Partial(model.prefix, params),
            split.images,
            model.preprocessing,
            key=key or "",
            directory=directory,
            chunk=EVALUATION_CHUNK,
            dtype=config.model.dtype,
        )
    )


def _linear_probe(problem: Problem) -> Method:
    config = problem.config.copy_and_resolve_references()
    config.method = "linear_probe"
    return methods.build(config, problem.task)


def _random_head(seed: int, width: int, classes: int) -> dict[str, jax.Array]:
    kernel = jax.nn.initializers.he_normal()(jax.random.key(seed), (width, classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(classes)}
