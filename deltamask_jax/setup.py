"""From a config to a federated problem: data, split, frozen network, cached prefix."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from deltamask_jax import data, devices, methods, models, pretrained, privacy
from deltamask_jax.data import features, partition
from deltamask_jax.evaluation import chunk_of, in_chunks
from deltamask_jax.federation import engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.heads import first_head
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.task import Problem, Task


def set_up(config, workdir: Path) -> Problem:
    """Everything the rounds need; the head is still random, or zero. The split is drawn in `workdir`."""
    return with_features(_problem(config, workdir, "everybody"))


def set_up_server(config, workdir: Path) -> Problem:
    """The same without examples to train on: what the server of a real federation holds."""
    return with_features(_problem(config, workdir, "server"))


def set_up_client(config, client: int, data_of_its_own: str = "", class_names: Sequence[str] = ()) -> Problem:
    """What one client of a real federation holds: its own examples, and of other clients how many they are.

    `inputs` has tokens alone; `with_features` adds features.

    Args:
        data_of_its_own: a name as of `config.data`, whose training examples are all this client's; '' = it
            has its share of `config.data`.
        class_names: of the server's classes, in order, by which those of its own data are numbered; () = they
            are numbered alike.

    Raises:
        ValueError: its own data has a class that the server's has not, or two of one name.
    """
    return _problem(config, None, client, data_of_its_own, class_names)


def with_features(problem: Problem) -> Problem:
    """The problem with the network's final features among its inputs, made of its tokens."""
    mesh = problem.engine.mesh
    suffix = problem.engine.compiled(problem.task.model.suffix)  # which evaluation runs as well
    suffix = partial(suffix, devices.spread(problem.task.params, mesh))
    sizes = sum(map(len, problem.parts)), len(problem.labels[1])
    outputs = tuple(
        in_chunks(suffix, tokens, mesh, chunk=chunk_of(size)) if len(tokens) else tokens
        for tokens, size in zip(problem.inputs["tokens"], sizes, strict=True)
    )
    inputs = problem.inputs | {"features": devices.everywhere(outputs, mesh)}
    return dataclasses.replace(problem, inputs=inputs)


def _problem(
    config,
    workdir: Path | None,
    whose: str | int,
    data_of_its_own: str = "",
    class_names: Sequence[str] = (),
) -> Problem:
    """The problem without features.

    Args:
        workdir: where the split is drawn; None: nowhere.
        whose: examples to hold: 'everybody' (all, and the test's), 'server' (the test's), or a client's id.
        data_of_its_own, class_names: as of `set_up_client`.
    """
    model = models.build(config.model)  # what needs nothing is checked before anything is read
    run = engine.from_config(config, partition.cohort_size(config.clients, config.participation))
    mesh = run.mesh
    dataset = data.load(
        data_of_its_own or config.data,
        cache_dir=config.data_dir or None,
        columns=config.columns,
        whole=bool(data_of_its_own),
    )
    model = _reading(config, model, dataset)
    if data_of_its_own:
        dataset = _numbered_as(class_names, dataset, data_of_its_own) if class_names else dataset
        parts = [np.arange(len(dataset.train) if k == whose else 0) for k in range(config.clients)]
    else:
        dataset = data.subset(
            dataset, config.train_examples, config.test_examples, config.seed, config.validation_examples
        )
        if warning := privacy.check_users(config, dataset.train.users):
            say(warning)
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
    if workdir is not None:
        partition.save(workdir, parts, dataset.train.labels, dataset.class_names)
    say(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test examples of "
        f"{dataset.num_classes} classes, {config.clients} clients"
    )
    if model.image_size and model.image_size == model.architecture.stride:
        say(
            f"{model.name} sees {model.image_size} pixels as one patch: raise config.model.image_size; "
            f"0 is its own, {model.architecture.image_size}"
        )
    train, test, labels = dataset.train, dataset.test, (dataset.train.labels, dataset.test.labels)
    held = [split.images for split in (train, test) if not isinstance(split.images, data.LazyImages)]
    examples = features.fingerprint(held) if held else ""
    chunks = chunk_of(len(train)), chunk_of(len(test))  # whoever holds a part computes it as who holds all
    if whose == "server":
        train = train.take(np.arange(0))
    elif isinstance(whose, int):
        train, test = train.take(parts[whose]), test.take(np.arange(0))
        parts[whose], labels = np.arange(len(train)), (train.labels, labels[1])

    params = devices.spread(pretrained.load(config.model, model), mesh)
    directory = None if config.prefix_cache in ("memory", "off") else expanded(config.prefix_cache)
    if methods.trains_prefix(config):
        model = _without_prefix(without_cut(config, model))
    on_devices = _fit_on_devices(config, model, params, len(train) + len(test))
    say(f"{model.name}: what the frozen network makes of every example")
    prefix = partial(jax.jit(partial(_kept, model, config.model.dtype)), params)
    tokens_of = partial(_tokens, config, model, params, prefix, mesh, directory, on_devices)
    tested = tokens_of(test, chunks[1])  # before the larger split: what there is no room for is refused early
    return Problem(
        config=config,
        task=Task(
            model=model,
            params=params,
            head=first_head(config, model.feature_dim, dataset.num_classes),
            index=FlatIndex.create(params, model.masked),
        ),
        inputs={"tokens": (tokens_of(train, chunks[0]), tested)},
        labels=devices.everywhere(labels, mesh),
        parts=parts,
        engine=run,
        examples=examples,
        class_names=dataset.class_names,
    )


def _numbered_as(class_names: Sequence[str], dataset: data.Dataset, where: str) -> data.Dataset:
    """A data set whose labels are numbers among other class names, by their own names.

    Raises:
        ValueError: one of its classes is not among them, or two have one name.
    """
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{where}: the server has two classes of one name, by which none can be told")
    number = {name: i for i, name in enumerate(class_names)}
    if unknown := [name for name in dataset.class_names if name not in number]:
        raise ValueError(
            f"{where}: the server knows no class {unknown[0]!r}, only {', '.join(class_names[:10])}"
            f"{', …' if len(class_names) > 10 else ''}"
        )
    numbers = np.array([number[name] for name in dataset.class_names], np.int32)
    train, test = (
        dataclasses.replace(split, labels=numbers[split.labels]) for split in (dataset.train, dataset.test)
    )
    return data.Dataset(dataset.name, train, test, tuple(class_names))


def _reading(config, model: models.Model, dataset: data.Dataset) -> models.Model:
    """The model with the tokenizer of its checkpoint, if it reads texts.

    Raises:
        ValueError: it cannot read this data, or the tokenizer is not its own.
    """
    texts, reads = isinstance(dataset.train.images, data.Texts), isinstance(model.architecture, BertConfig)
    if texts != reads:
        kinds = {True: "texts", False: "images"}
        raise ValueError(
            f"config.data={config.data!r} holds {kinds[texts]}, {model.name} reads {kinds[reads]}"
        )
    return pretrained.with_tokenizer(config.model, model) if reads else model


def _kept(model: models.Model, dtype: str, params, inputs: jax.Array) -> jax.Array:
    """The frozen prefix's outputs, as they are kept."""
    outputs = model.prefix(params, inputs)
    return outputs.astype(features.dtype_of(outputs, dtype))


def without_cut(config, model: models.Model) -> models.Model:
    """The same network with all its blocks in the suffix; the masked weights, by which bpp counts, stay."""
    options = config.model.copy_and_resolve_references()
    options.trained_blocks, options.masked = model.architecture.depth, model.masked
    return dataclasses.replace(models.build(options), preprocessing=model.preprocessing)


def _without_prefix(model: models.Model) -> models.Model:
    """The same network with its prefix in the suffix: nothing is cached but preprocessed images."""

    def whole(params, images):
        return model.suffix(params, model.prefix(params, images))

    return dataclasses.replace(model, prefix=lambda params, images: images, suffix=whole)


def _fit_on_devices(config, model: models.Model, params, examples: int) -> bool:
    """Whether the frozen prefix's outputs for so many examples can lie whole on every device."""
    example = jax.ShapeDtypeStruct((1, *model.preprocessing.shape), model.preprocessing.dtype)
    outputs = jax.eval_shape(model.prefix, params, example)
    size = examples * outputs.size * features.dtype_of(outputs, config.model.dtype).itemsize
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
    chunk: int,
) -> jax.Array | np.ndarray | features.TokensOnDemand:
    """The frozen prefix's outputs for a split: on the devices, on the host, or not yet computed.

    Args:
        chunk: images each device takes at once, also where only some of a split are asked for.
    """
    if not len(split):
        return np.zeros(0, np.float32)

    def compute(part: data.Split, **options) -> np.ndarray:
        return features.prefix_features(
            prefix,
            part.images,
            model.preprocessing,
            chunk=chunk * mesh.shape[devices.CLIENTS],
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
