"""Against stand-ins: Scenic itself pulls TensorFlow."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import models
from deltamask_jax.models.vit import ViTConfig

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "patch": 4, "image_size": 8}


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(self.mlp_dim)(x))
        return nn.Dense(x.shape[-1])(hidden)


class Encoder1DBlock(nn.Module):
    """Scenic's block: its names, order, activation and arguments."""

    mlp_dim: int
    num_heads: int
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, inputs, deterministic):
        assert deterministic and self.dropout_rate == self.attention_dropout_rate == 0
        x = nn.LayerNorm()(inputs)
        x = nn.MultiHeadDotProductAttention(num_heads=self.num_heads)(x, x) + inputs
        return x + MlpBlock(self.mlp_dim)(nn.LayerNorm()(x))


class AddPositionEmbs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))


class Encoder(nn.Module):
    num_layers: int
    block: dict

    @nn.compact
    def __call__(self, x):
        x = AddPositionEmbs(name="posembed_input")(x)
        for i in range(self.num_layers):
            x = Encoder1DBlock(**self.block, name=f"encoderblock_{i}")(x, deterministic=True)
        return nn.LayerNorm(name="encoder_norm")(x)


class ViT(nn.Module):
    num_classes: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    patches: object
    hidden_size: int
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    classifier: str = "gap"

    @nn.compact
    def __call__(self, x, *, train):
        assert not train and self.num_classes == 0
        size = self.patches.size
        x = nn.Conv(self.hidden_size, size, strides=size, padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, self.hidden_size)
        if self.classifier == "token":
            cls = self.param("cls", nn.initializers.normal(1.0), (1, 1, self.hidden_size))
            x = jnp.concatenate([jnp.tile(cls, [x.shape[0], 1, 1]), x], axis=1)
        block = {"mlp_dim": self.mlp_dim, "num_heads": self.num_heads}
        block |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
        x = Encoder(self.num_layers, block, name="Transformer")(x)
        return x[:, 0] if self.classifier == "token" else x.mean(axis=1)


def install(monkeypatch, *names, **contents):
    """Puts packages of these names into sys.modules; the last one gets the contents."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules[names[-1]]).update(contents)


@pytest.fixture
def google_scenic(monkeypatch):
    names = (
        "scenic",
        "scenic.projects",
        "scenic.projects.baselines",
        "scenic.projects.baselines.vit",
    )
    install(monkeypatch, *names, ViT=ViT, Encoder1DBlock=Encoder1DBlock)


@pytest.mark.parametrize(("classifier", "trained_blocks"), [("token", 1), ("gap", 2)])
def test_scenic_runs_on_our_tree_and_equals_our_network(classifier, trained_blocks, google_scenic):
    variant = {"activation": "gelu_tanh"}
    if classifier == "gap":
        variant |= {"class_token": False, "pooling": "mean"}
    features = []
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    for scenic in (False, True):
        architecture = ViTConfig("vit", **TINY, **variant, scenic=scenic)
        model = models.from_architecture(architecture, trained_blocks=trained_blocks)
        params = model.init(jax.random.key(0))
        network = jax.jit(lambda p, model=model: model.suffix(p, model.prefix(p, images)))
        features.append(network(params))
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)


def test_without_scenic_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenic", None)
    with pytest.raises(ImportError, match="needs Google's Scenic; run: pip install git"):
        models.from_architecture(models.PRESETS["scenic_vit"])


def test_the_scenario_language_is_told_apart(monkeypatch):
    install(monkeypatch, "scenic")
    with pytest.raises(ImportError, match="another project .* run: pip uninstall scenic && pip install git"):
        models.from_architecture(models.PRESETS["scenic_vit"])


def test_scenic_has_no_half_precision(google_scenic):
    with pytest.raises(ValueError, match="float32"):
        models.from_architecture(models.PRESETS["scenic_vit"], dtype="bfloat16")
