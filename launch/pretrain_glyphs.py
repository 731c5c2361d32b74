"""Pretrain the embedded 'glyph_vit' to tell letters of many alphabets apart (see glyphs.py).

    python launch/pretrain_glyphs.py --steps=2000 --out=deltamask_jax/assets/glyph_vit.safetensors
    python launch/pretrain_glyphs.py --evaluate      # only linear probes on scikit-learn's digits

Hardware and results of the shipped weights: deltamask_jax/assets/README.md.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import glyphs
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_dict
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from deltamask_jax import data, models, pretrained
from deltamask_jax.data import preprocessing
from deltamask_jax.paths import expanded
from deltamask_jax.pretrained.tensors import read_safetensors, write_safetensors

HEADS = ("classifier", "decoder")  # dropped after the pretraining
REDRAWING = 10.0  # weight of the squared error of the redrawn glyph
THINNED = 0.9  # of the steps see half of the patches


def to_input(images: jax.Array, p: preprocessing.Preprocessing) -> jax.Array:
    """Gray images f32[n, s, s] in [0, 1] -> normalised network input f32[n, s, s, 3]."""
    return (images[..., None] - jnp.asarray(p.mean)) / jnp.asarray(p.std)


def predict(
    model: models.Model, params: dict, inputs: jax.Array, thin: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Inputs f32[n, s, s, 3] -> (class scores f32[n, classes], redrawn base glyph f32[n, 64]).

    With a key `thin`, from a random half of the patches of each image, which costs half
    (PatchDropout, arXiv 2208.07220).
    """
    tokens = model.prefix(params["network"], inputs)  # all blocks are in the suffix
    if thin is not None:
        n, patches = tokens.shape[0], tokens.shape[1] - 1
        kept = jax.random.uniform(thin, (n, patches)).argsort(-1)[:, : patches // 2] + 1
        kept = jnp.pad(kept, ((0, 0), (1, 0)))  # and the class token
        tokens = jnp.take_along_axis(tokens, kept[..., None], 1)
    features = model.suffix(params["network"], tokens)
    return tuple(features @ params[h]["kernel"] + params[h]["bias"] for h in HEADS)


def make_step(
    model: models.Model, letters: glyphs.Glyphs, optimizer: optax.GradientTransformation, batch: int
) -> Callable:
    """Jitted (params, state, key, thin) -> (params, state, loss): one step on `batch` fresh images,
    every class equally likely; `thin` (static) drops half of the patches."""
    images, count = jnp.asarray(letters.images), len(letters.classes)
    sizes = jnp.asarray(np.bincount(letters.labels, minlength=count))
    starts = jnp.cumsum(sizes) - sizes
    bank = glyphs.resampling_bank()

    def loss_of(params, inputs, labels, drawn, key, thin):
        scores, redrawn = predict(model, params, inputs, key if thin else None)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, count), 0.1)
        entropy = optax.softmax_cross_entropy(scores, targets).mean()
        # Redrawing the glyph at 8x8 as it was before the augmentation says from the first step
        # which letters are alike; from classes alone the loss stays near chance for long.
        return entropy + REDRAWING * ((redrawn - drawn) ** 2).mean(), entropy

    @functools.partial(jax.jit, static_argnames="thin", donate_argnums=(0, 1))
    def step(params, state, key, thin):
        class_key, glyph_key, augment_key, thin_key = jax.random.split(key, 4)
        labels = jax.random.randint(class_key, (batch,), 0, count)
        within = jax.random.uniform(glyph_key, (batch,)) * sizes[labels]
        chosen = images[starts[labels] + within.astype(jnp.int32)]
        inputs = to_input(glyphs.augment(chosen, augment_key, bank), model.preprocessing)
        drawn = chosen.reshape(batch, 8, glyphs.POOL // 8, 8, -1).mean((2, 4)).reshape(batch, 64)
        gradient, loss = jax.grad(loss_of, has_aux=True)(params, inputs, labels, drawn / 255, thin_key, thin)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def sine_positions(side: int, width: int) -> jax.Array:
    """Position embedding f32[1, 1 + side * side, width], sines and cosines of the row and of the
    column at width / 4 frequencies; zero for the class token. As large as an
    embedded patch, unlike the usual start at 0.02, from which the loss sticks at chance for long.
    """
    angle = jnp.arange(side)[:, None] * jnp.linspace(0, jnp.pi, width // 4 + 1)[1:]
    waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
    rows, columns = jnp.repeat(waves, side, 0), jnp.tile(waves, (side, 1))
    return jnp.pad(jnp.concatenate([rows, columns], -1), ((1, 0), (0, 0)))[None]


def init_params(model: models.Model, classes: int, key: jax.Array) -> dict:
    """{'network': ..., and for each head {'kernel': f32[features, k], 'bias': f32[k]}}."""
    network = model.init(key)
    side = model.image_size // model.architecture.patch
    positions = sine_positions(side, model.architecture.width)
    network["Transformer"]["posembed_input"]["pos_embedding"] = positions
    params = {"network": network}
    for i, (head, outputs) in enumerate(zip(HEADS, (classes, 64), strict=True)):
        kernel = jax.random.normal(jax.random.fold_in(key, i), (model.feature_dim, outputs))
        params[head] = {"kernel": 0.02 * kernel, "bias": jnp.zeros(outputs)}
    return params


def make_optimizer(steps: int, learning_rate: float) -> optax.GradientTransformation:
    """AdamW with gradient clipping, linear warm-up over 5 % of the steps, cosine decay to 0."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), max(2, steps))
    decayed = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05, mask=decayed))


def accuracy(model: models.Model, params: dict, letters: glyphs.Glyphs, seed: int = 1) -> float:
    """Accuracy on `letters`, each augmented once in the way of the training images."""

    @jax.jit
    def correct(images, labels, key):
        inputs = to_input(glyphs.augment(images, key, bank), model.preprocessing)
        return (predict(model, params, inputs)[0].argmax(-1) == labels).sum()

    bank, hits = glyphs.resampling_bank(), 0
    for i in range(0, len(letters.labels), 256):
        key = jax.random.fold_in(jax.random.key(seed), i)
        hits += int(correct(letters.images[i : i + 256], letters.labels[i : i + 256], key))
    return hits / len(letters.labels)


# The weight file, and what the weights are for.


def save(path: str, network: dict, metadata: dict[str, object]) -> None:
    """Writes float16 safetensors under '/'-joined parameter paths."""
    tensors = {k: np.asarray(v, np.float16) for k, v in flatten_dict(network, sep="/").items()}
    write_safetensors(Path(path), tensors, {key: str(value) for key, value in metadata.items()})


def load(path: str) -> dict:
    """Reads what `save` wrote, as float32."""
    tensors = {k: tensor().astype(np.float32) for k, tensor in read_safetensors(Path(path)).items()}
    return unflatten_dict(tensors, sep="/")


def probe_digits(features: Callable[[np.ndarray], np.ndarray]) -> dict[int, tuple[float, float]]:
    """Logistic regression on frozen features of scikit-learn's digits.

    Args:
        features: images u8[n, 8, 8] -> f32[n, width].

    Returns:
        For 50, 100, 200 and all 1,437 labels: mean and standard deviation of the accuracy on the
        360 test images over 5 stratified draws of the labelled images (one for all). The
        regularisation is chosen by cross-validation on the labelled images.
    """
    digits = data.load("digits")
    train, test = features(digits.train.images[:]), features(digits.test.images[:])
    train, test = (x / train.std(0).mean() for x in (train, test))
    labels, result = digits.train.labels, {}
    for count in (50, 100, 200, len(labels)):
        scores = []
        for seed in range(5 if count < len(labels) else 1):
            chosen = np.arange(len(labels))
            if count < len(labels):
                chosen, _ = train_test_split(chosen, train_size=count, stratify=labels, random_state=seed)
            probe = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [0.01, 0.1, 1]}, cv=4).fit(
                train[chosen], labels[chosen]
            )
            scores.append(probe.score(test, digits.test.labels))
        result[count] = float(np.mean(scores)), float(np.std(scores))
    return result


def report_probes(model: models.Model, network: dict) -> None:
    """Prints the digits probe of these weights beside random weights and raw pixels."""

    def features_of(params):
        @jax.jit
        def features(inputs):
            return model.suffix(params, model.prefix(params, inputs))

        return lambda images: np.asarray(features(preprocessing.apply(images, model.preprocessing)))

    rows = {
        "pretrained features": features_of(network),
        "random-weight features": features_of(model.init(jax.random.key(7))),
        "raw pixels": lambda images: images.reshape(len(images), -1).astype(np.float32),
    }
    for name, features in rows.items():
        with threadpool_limits(1):  # small problems, which threads only slow down
            scores = probe_digits(features)
        cells = (f"{n}: {100 * m:.1f} ± {100 * s:.1f} %" for n, (m, s) in scores.items())
        print(f"digits, {name:23s} labels -> accuracy  " + "  ".join(cells), flush=True)


FLAGS = flags.FLAGS


def check(out: Path, learning_rate: float, rest: list[str]) -> None:
    """Refuse a command line whose mistake would show only after the training.

    Raises:
        ValueError: with what is wrong.
    """
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}")
    if not 0 < learning_rate < 1:  # also refuses NaN
        raise ValueError(f"--learning_rate={learning_rate}: must be in 0 … 1")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={out}: no file can be written there")


def main(argv: list[str]) -> None:
    # All blocks are trained.
    model = models.from_architecture(models.PRESETS["glyph_vit"], name="glyph_vit", trained_blocks=8)
    try:
        out = expanded(FLAGS.out)
        if FLAGS.evaluate:
            stored = config_dict.create(checkpoint=str(out), revision="")
            report_probes(model, pretrained.load(stored, model))
            return
        check(out, FLAGS.learning_rate, argv[1:])
        train(model, out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def train(model: models.Model, out: Path) -> None:
    """Trains as the flags say, and writes the weights."""
    letters, held_out = glyphs.render()
    print(
        f"{len(letters.images)} glyphs, {len(letters.classes)} classes; "
        f"{len(held_out.images)} glyphs of {len(held_out.fonts)} held-out fonts",
        flush=True,
    )
    key = jax.random.key(FLAGS.seed)
    params = init_params(model, len(letters.classes), key)
    optimizer = make_optimizer(FLAGS.steps, FLAGS.learning_rate)
    step, state = make_step(model, letters, optimizer, FLAGS.batch), optimizer.init(params)
    started, losses = time.time(), []
    progress = tqdm(range(1, FLAGS.steps + 1), mininterval=5)
    for i in progress:
        thin = i <= THINNED * FLAGS.steps
        params, state, loss = step(params, state, jax.random.fold_in(key, i), thin)
        losses.append(loss)
        if i % 100 == 0:
            progress.set_postfix(loss=f"{np.mean(jax.device_get(losses)):.3f}")
            losses = []
        if i % 1000 == 0 or i == FLAGS.steps:
            score = accuracy(model, params, held_out)
            line = f"step {i}: {progress.postfix}, held-out fonts {100 * score:.1f} %"
            progress.write(line, sys.stdout)
    save(
        str(out),
        params["network"],
        {
            "model": model.name,
            "validation_accuracy": f"{score:.4f}",
            "validation_fonts": " ".join(held_out.fonts),
            "training_fonts": " ".join(letters.fonts),
            "classes": len(letters.classes),
            "class_characters": " ".join(letters.classes),
            "steps": FLAGS.steps,
            "batch": FLAGS.batch,
            "matplotlib": matplotlib.__version__,
            "command": "python " + " ".join(sys.argv),
        },
    )
    print(f"{(time.time() - started) / 60:.1f} minutes", flush=True)
    report_probes(model, load(str(out)))


if __name__ == "__main__":
    flags.DEFINE_string("out", "deltamask_jax/assets/glyph_vit.safetensors", "weight file")
    flags.DEFINE_integer("steps", 2000, "training steps", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "images per step", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1.5e-3, "peak learning rate")
    flags.DEFINE_integer("seed", 0, "seed of weights, glyph order and augmentation")
    flags.DEFINE_bool("evaluate", False, "do not train, only probe the weights in --out")
    app.run(main)
