"""Training on letters learns, and the shipped weights fit the model."""

import dataclasses
import types
from pathlib import Path

import glyphs
import jax
import numpy as np
import optax
import pretrain_glyphs
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

import deltamask_jax
from deltamask_jax import models

ASSET = Path(deltamask_jax.__file__).parent / "assets" / "glyph_vit.safetensors"


@pytest.fixture(scope="module")
def asset():
    with safe_open(ASSET, "numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def test_training_lowers_the_loss():
    rng = np.random.default_rng(0)
    images = np.zeros((8, 48, 48), np.uint8)
    images[:4, 4:-4, 18:30] = 255  # upright
    images[4:, 18:30, 4:-4] = 255  # lying
    images[:, 20:28, 20:28] -= rng.integers(0, 60, (8, 8, 8), dtype=np.uint8)
    labels = np.repeat(np.arange(2, dtype=np.int32), 4)
    letters = glyphs.Glyphs(images, labels, ("I", "-"), ("none",))
    tiny = dataclasses.replace(models.PRESETS["tiny_vit"], depth=2)
    model, key = models.from_architecture(tiny, trained_blocks=2), jax.random.key(0)
    params, optimizer = pretrain_glyphs.init_params(model, 2, key), optax.adam(3e-3)
    step = pretrain_glyphs.make_step(model, letters, optimizer, batch=16)
    state, losses = optimizer.init(params), []
    for i in range(30):
        params, state, loss = step(params, state, jax.random.fold_in(key, i), thin=True)
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_shipped_weights_fit_the_model(asset):
    tensors, metadata = asset
    model = models.from_architecture(models.PRESETS["glyph_vit"])
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in shapes.items()}
    assert {v.dtype for v in tensors.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(v).all() for v in tensors.values())
    assert ASSET.stat().st_size <= 4 * 2**20
    assert float(metadata["validation_accuracy"]) > 20 / int(metadata["classes"])  # 20 x chance
    assert not any(c.isnumeric() for c in metadata["class_characters"])


def test_saved_weights_come_back(tmp_path):
    network = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    pretrain_glyphs.save(str(tmp_path / "w.safetensors"), network, {"steps": 3})
    np.testing.assert_array_equal(
        pretrain_glyphs.load(str(tmp_path / "w.safetensors"))["a"]["kernel"], network["a"]["kernel"]
    )


@pytest.mark.parametrize(
    "out, learning_rate, rest, message",
    [
        ("none/w.safetensors", 1e-3, [], "no file can be written there"),
        (".", 1e-3, [], "no file can be written there"),
        ("w.safetensors", float("nan"), [], "learning_rate=nan"),
        ("w.safetensors", 0.0, [], "learning_rate=0.0"),
        ("w.safetensors", 1e-3, ["steps=3"], "unexpected argument 'steps=3'"),
    ],
)
def test_mistakes_are_found_before_the_training(out, learning_rate, rest, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain_glyphs.check(tmp_path / out, learning_rate, rest)


@pytest.mark.parametrize("content", [None, b"", {"a": np.zeros(3, np.float32)}])
def test_weights_that_cannot_be_evaluated_are_told_in_one_line(content, tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    if isinstance(content, dict):
        save_file(content, file)
    elif content is not None:
        file.write_bytes(content)
    flags = types.SimpleNamespace(out=str(file), evaluate=True)
    monkeypatch.setattr(pretrain_glyphs, "FLAGS", flags)
    with pytest.raises(SystemExit, match="error: .*w.safetensors") as stopped:
        pretrain_glyphs.main(["pretrain_glyphs.py"])
    assert str(stopped.value).isprintable()
