"""Google's Scenic as the implementation behind 'scenic_vit'; an optional extra, from its git repository.

The tree of parameters is the one of `vit.py`, so checkpoints, masking rule and export are shared.
"""

import dataclasses
import importlib
import importlib.util
from types import ModuleType
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

INSTALL = "pip install git+https://github.com/google-research/scenic.git"


def scenic_vit() -> ModuleType:
    """Google's `scenic.projects.baselines.vit`.

    Raises:
        ImportError: not installed, or another project of that name is.
    """
    name = "scenic.projects.baselines.vit"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "scenic":  # Scenic is there, what it needs is not
            raise ImportError(f"Google's Scenic needs {error.name}; run: pip install {error.name}") from None
    if importlib.util.find_spec("scenic") is None:
        raise ImportError(f"model 'scenic_vit' needs Google's Scenic; run: {INSTALL}")
    raise ImportError(
        "the installed `scenic` is another project (PyPI's scenario language), not Google's Scenic; "
        f"run: pip uninstall scenic && {INSTALL}"
    )


@dataclasses.dataclass(frozen=True)
class ScenicViT:
    """Scenic's ViT behind the interface of `vit.VisionTransformer`.

    Attributes:
        config: a `ViTConfig`; `class_token` False stands for Scenic's classifier 'gap'.
        trained_blocks: blocks in the suffix.
    """

    config: Any
    trained_blocks: int

    def _network(self) -> nn.Module:
        c = self.config
        return scenic_vit().ViT(
            num_classes=0,
            mlp_dim=c.mlp,
            num_layers=c.depth,
            num_heads=c.heads,
            patches=_Patches((c.patch, c.patch)),
            hidden_size=c.width,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            classifier="token" if c.class_token else "gap",
        )

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        return dict(self._network().init(key, images, train=False))

    def apply(self, variables: dict[str, Any], x: jax.Array, method: str) -> jax.Array:
        return {"prefix": self._prefix, "suffix": self._suffix}[method](variables["params"], x)

    def _prefix(self, params: dict[str, Any], images: jax.Array) -> jax.Array:
        """The whole network runs, its value at the cut is taken; under jit the rest is dropped."""
        first = self.config.depth - self.trained_blocks
        last = f"encoderblock_{first - 1}" if first else "posembed_input"
        _, state = self._network().apply(
            {"params": params},
            images,
            train=False,
            capture_intermediates=lambda module, _: module.name == last,
        )
        return state["intermediates"]["Transformer"][last]["__call__"][0]

    def _suffix(self, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
        c, encoder = self.config, params["Transformer"]
        block = scenic_vit().Encoder1DBlock(
            mlp_dim=c.mlp, num_heads=c.heads, dropout_rate=0.0, attention_dropout_rate=0.0
        )
        x = tokens.astype(jnp.float32)
        for i in range(c.depth - self.trained_blocks, c.depth):
            x = block.apply({"params": encoder[f"encoderblock_{i}"]}, x, deterministic=True)
        normed = cast(jax.Array, nn.LayerNorm().apply({"params": encoder["encoder_norm"]}, x))
        return normed[:, 0] if c.class_token else normed.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class _Patches:
    """What Scenic reads of its patches configuration."""

    size: tuple[int, int]
