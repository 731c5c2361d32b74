"""From a config to a federated problem: data, split, frozen network, cached prefix."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deltamask_jax import data, devices, methods, models, pretrained
from deltamask_jax.data import features, partition
from deltamask_jax.evaluation import chunk_of, in_chunks
from deltamask_jax.federation import engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.heads import SOLVED, random_head
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.task import Problem, Task


def set_up(config, workdir: Path) -> Problem:
    """Everything the rounds need; the head is still random, or zero. The split is drawn in `workdir`."""
    model = models.build(config.model)  # what needs nothing is checked before anything is read
    run = engine.from_config(config)
    mesh = run.mesh
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
    say(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test examples of "
        f"{dataset.num_classes} classes, {config.clients} clients"
    )

    params = devices.spread(pretrained.load(config.model, model), mesh)
    directory = None if config.prefix_cache in ("memory", "off") else expanded(config.prefix_cache)
    if methods.trains_prefix(config):
        model = _without_prefix(_without_cut(config, model))
    on_devices = _fit_on_devices(config, model, params, len(dataset.train) + len(dataset.test))
    say(f"{model.name}: what the frozen network makes of every example")
    prefix = partial(jax.jit(lambda *inputs: model.prefix(*inputs).astype(config.model.dtype)), params)
    tokens_of = partial(_tokens, config, model, params, prefix, mesh, directory, on_devices)
    test = tokens_of(dataset.test)  # before the larger split: what there is no room for is refused early
    tokens = (tokens_of(dataset.train), test)
    suffix = partial(run.compiled(model.suffix), params)  # which evaluation runs as well
    outputs = tuple(in_chunks(suffix, array, mesh) for array in tokens)
    head = {
        "kernel": jnp.zeros((model.feature_dim, dataset.num_classes)),
        "bias": jnp.zeros(dataset.num_classes),
    }
    if config.head.init not in SOLVED:
        head = random_head(config.seed, model.feature_dim, dataset.num_classes)
    return Problem(
        config=config,
        task=Task(
            model=model,
            params=params,
            head=head,
            index=FlatIndex.create(params, model.masked),
        ),
        inputs={
            "tokens": tokens,
            "features": devices.everywhere(outputs, mesh),
        },
        labels=devices.everywhere((dataset.train.labels, dataset.test.labels), mesh),
        parts=parts,
        engine=run,
    )


def _without_cut(config, model: models.Model) -> models.Model:
    """The same network with all its blocks in the suffix; the masked weights, by which bpp counts, stay."""
    options = config.model.copy_and_resolve_references()
    options.trained_blocks, options.masked = model.architecture.depth, model.masked
    return models.build(options)


def _without_prefix(model: models.Model) -> models.Model:
    """The same network with its prefix in the suffix: nothing is cached but preprocessed images."""

    def whole(params, images):
        return model.suffix(params, model.prefix(params, images))

    return dataclasses.replace(model, prefix=lambda params, images: images, suffix=whole)


def _fit_on_devices(config, model: models.Model, params, examples: int) -> bool:
    """Whether the frozen prefix's outputs for so many examples can lie whole on every device."""
    image = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
    outputs = jax.eval_shape(model.prefix, params, image)
    size = examples * outputs.size * jnp.dtype(config.model.dtype).itemsize
    fit = devices.have_room_for(size, config.cohort.memory)
    if not fit:
        say(
            f"examples: {size / 2**20:,.0f} MiB stay on the host, more than a device may give them "
            "(config.cohort.memory changes it); each chunk of clients is sent its own"
        )
    return fit


def _tokens(
    config,
    model: models.Model,
    params,
    prefix: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    directory: Path | None,
    on_devices: bool,
    split: data.Split,
) -> jax.Array | np.ndarray | features.TokensOnDemand:
    """The frozen prefix's outputs for a split: on the devices, on the host, or not yet computed."""
    chunk = chunk_of(len(split)) * mesh.shape[devices.CLIENTS]  # also where only some of them are asked for

    def compute(part: data.Split, **options) -> np.ndarray:
        return features.prefix_features(
            prefix,
            part.images,
            model.preprocessing,
            chunk=chunk,
            place=partial(devices.divided, mesh=mesh),
            dtype=config.model.dtype,
            **options,
        )

    if config.prefix_cache == "off":
        on_demand = partial(compute, progress=False)
        return features.TokensOnDemand(lambda rows: on_demand(split.take(rows)), len(split), on_devices)
    images_alone = methods.trains_prefix(config)
    key = directory and features.fingerprint(
        model.architecture, model.trained_blocks, images_alone, params, split.images
    )
    tokens = compute(split, key=key or "", directory=directory)
    return devices.everywhere(tokens, mesh) if on_devices else tokens
