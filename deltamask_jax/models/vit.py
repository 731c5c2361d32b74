"""One vision transformer for the ViT, CLIP and DINOv2 families.

arXiv 2010.11929, 2103.00020 and 2304.07193; a frozen `ViTConfig` selects the variant. Parameter
names are those of vision_transformer and Scenic (`embedding`, `cls`,
`Transformer/encoderblock_i/...`), so their checkpoints need no renaming. What those projects do not
have is named `registers`, `Transformer/pre_norm`, `encoderblock_i/LayerScale_{0,1}/scale` and
`projection/kernel`.

The network is cut in two: `prefix` is the embedding and the blocks that stay frozen, `suffix` the
last `trained_blocks` blocks, the final norm and the pooling. Only the suffix is differentiated,
once per client under `jax.vmap`.

Two additions run wherever the tree has their parameters, and are never there at first (see
`adapters.py`): `encoderblock_i/adapter/{down,up}` and `Transformer/prompts_i`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deltamask_jax.models.dense import dot_general
from deltamask_jax.models.scenic import ScenicViT


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and variant of a vision transformer.

    Attributes:
        family: 'vit', 'clip' or 'dinov2': the names `pretrained` reads and the preprocessing.
        width, depth, heads, mlp: token width, blocks, attention heads, hidden width of the MLP.
        patch, image_size: pixels.
        eps: of every LayerNorm.
        activation: 'gelu' (exact), 'gelu_tanh', 'quick_gelu', or 'swiglu' (gated: the MLP's first
            kernel is 2 * mlp wide).
        patch_bias: whether the patch embedding has a bias.
        pre_norm: LayerNorm on the embedded tokens (CLIP).
        layer_scale: learned per-channel scale on both residual branches (DINOv2).
        registers: number of register tokens between cls and the patches (arXiv 2309.16588).
        pooling: 'cls' token or 'mean' of the patch tokens.
        class_token: False for networks trained without one (Scenic's 'gap'); needs 'mean'.
        projection: width of CLIP's bias-free projection of the pooled feature; 0 for none.
        scenic: run Google Scenic's modules on the same parameters (plain ViT, float32 only).
    """

    family: str
    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    image_size: int = 224
    eps: float = 1e-6
    activation: str = "gelu"
    patch_bias: bool = True
    pre_norm: bool = False
    layer_scale: bool = False
    registers: int = 0
    pooling: str = "cls"
    class_token: bool = True
    projection: int = 0
    scenic: bool = False

    @property
    def feature_dim(self) -> int:
        return self.projection or self.width

    @property
    def block(self) -> type[nn.Module]:
        return EncoderBlock

    @property
    def final_norm(self) -> bool:
        return True

    @property
    def stride(self) -> int:
        """Pixels per token along one side; the image size must be a multiple of it."""
        return self.patch

    def module(self, trained_blocks: int, dtype: jnp.dtype) -> nn.Module | ScenicViT:
        if not self.scenic:
            return VisionTransformer(self, trained_blocks, dtype)
        if dtype != jnp.float32:
            raise ValueError("Scenic's ViT computes in float32; set model.dtype='float32'")
        return ScenicViT(self, trained_blocks)

    def trained_pattern(self, trained_blocks: int) -> str:
        """Regular expression for the paths of every parameter that only the suffix uses."""
        blocks = "|".join(str(i) for i in range(self.depth - trained_blocks, self.depth))
        return rf"(Transformer/encoderblock_({blocks})/|Transformer/encoder_norm/|projection/).*"

    def masked_pattern(self, trained_blocks: int) -> str:
        """Default masking rule: attention and MLP kernels of the last blocks (arXiv 2311.17299)."""
        blocks = "|".join(str(i) for i in range(self.depth - trained_blocks, self.depth))
        layers = "MultiHeadDotProductAttention_0|MlpBlock_0"
        return rf"Transformer/encoderblock_({blocks})/({layers})/\w+/kernel"


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU as torch writes it, f[...]; jax.nn.gelu's erfc makes a step on CPU 1.5 times longer."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class MlpBlock(nn.Module):
    """The MLP of a block, gated where the activation is 'swiglu': f[n,t,c] -> f[n,t,c]."""

    config: Any
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        gated = c.activation == "swiglu"
        width = 2 * c.mlp if gated else c.mlp
        hidden = nn.Dense(width, dtype=self.dtype, dot_general=dot_general, name="Dense_0")(x)
        if gated:
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = nn.silu(gate) * value
        else:
            hidden = ACTIVATIONS[c.activation](hidden)
        return nn.Dense(c.width, dtype=self.dtype, dot_general=dot_general, name="Dense_1")(hidden)


class Attention(nn.Module):
    """Multi-head attention; kernels [c,heads,c/heads], out [heads,c/heads,c] (arXiv 1706.03762)."""

    config: Any
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, queries: jax.Array, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Attention of queries f[n,q,c] over x f[n,t,c], f[n,q,c]; over all t, or where bool[n,1,1,t]."""
        width, heads = self.config.width, self.config.heads

        def project(name: str, inputs: jax.Array) -> jax.Array:
            outputs = (heads, width // heads)
            return nn.DenseGeneral(outputs, dtype=self.dtype, dot_general=dot_general, name=name)(inputs)

        query, key, value = project("query", queries), project("key", x), project("value", x)
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask)
        out = nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, dot_general=dot_general, name="out")
        return out(mixed)


class Adapter(nn.Module):
    """Bottleneck beside the identity (arXiv 1902.00751); its width is that of its kernel."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.get_variable("params", "down")["kernel"].shape[1]
        down = nn.Dense(hidden, dtype=self.dtype, name="down")(x)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="up")(gelu(down))


class LayerScale(nn.Module):
    """A learnt factor per channel (DINOv2): f[n,t,c] -> f[n,t,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)


class EncoderBlock(nn.Module):
    """A pre-norm block: attention, then MLP, each added to its input (arXiv 2010.11929)."""

    config: ViTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, kept: int | None = None) -> jax.Array:
        """f[n,t,c] -> f[n,kept,c]: outputs of the first `kept` tokens (None: all).

        Tokens look at those where mask bool[n,1,1,t]; None: at all.
        """
        c = self.config

        def scaled(branch: jax.Array, i: int) -> jax.Array:
            return LayerScale(name=f"LayerScale_{i}")(branch) if c.layer_scale else branch

        normed = nn.LayerNorm(c.eps, dtype=self.dtype, name="LayerNorm_0")(x)
        attention = Attention(c, self.dtype, name="MultiHeadDotProductAttention_0")
        x = x[:, :kept] + scaled(attention(normed[:, :kept], normed, mask), 0)
        normed = nn.LayerNorm(c.eps, dtype=self.dtype, name="LayerNorm_1")(x)
        branch = scaled(MlpBlock(c, self.dtype, name="MlpBlock_0")(normed), 1)
        if self.has_variable("params", "adapter"):
            branch = Adapter(self.dtype, name="adapter")(branch)
        return x + branch


class PositionEmbedding(nn.Module):
    """A learnt vector per token is added: f[n,t,c] -> f[n,t,c]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, *x.shape[1:])
        return x + self.param("pos_embedding", nn.initializers.normal(0.02), shape).astype(x.dtype)


class Encoder(nn.Module):
    """The blocks of a transformer, of images or text (bert.py), and what stands directly before and after."""

    config: Any
    dtype: jnp.dtype
    remat: bool

    def setup(self) -> None:
        self.posembed_input = PositionEmbedding()
        if self.config.pre_norm:
            self.pre_norm = nn.LayerNorm(self.config.eps, dtype=self.dtype)
        kind = self.config.block
        block = nn.remat(kind, static_argnums=(3,)) if self.remat else kind
        self.encoderblock = [block(self.config, self.dtype) for _ in range(self.config.depth)]
        if self.config.final_norm:
            self.encoder_norm = nn.LayerNorm(self.config.eps, dtype=self.dtype)

    def add_positions(self, x: jax.Array) -> jax.Array:
        return self.posembed_input(x)

    def normalise_input(self, x: jax.Array) -> jax.Array:
        return self.pre_norm(x) if self.config.pre_norm else x

    def run_blocks(self, x: jax.Array, first: int, last: int, mask: jax.Array | None = None) -> jax.Array:
        """Blocks first..last-1, and the final norm after the last one; tokens look where mask bool[n,t].

        The last block of a cls-pooled network computes the cls token alone: nothing else is used.
        Prompts join behind the tokens (to attention their place means nothing), take the place of
        earlier prompts, and leave after the last block.
        """
        depth, (n, tokens, _) = self.config.depth, x.shape
        for i in range(first, last):
            if self.has_variable("params", f"prompts_{i}"):
                prompts = self.get_variable("params", f"prompts_{i}").astype(x.dtype)
                prompts = jnp.broadcast_to(prompts, (n, *prompts.shape))
                x = jnp.concatenate([x[:, :tokens], prompts], axis=1)
            only_cls = i == depth - 1 and self.config.pooling == "cls"
            seen = mask
            if mask is not None:  # prompts are seen by all
                seen = jnp.pad(mask, ((0, 0), (0, x.shape[1] - tokens)), constant_values=True)[:, None, None]
            x = self.encoderblock[i](x, seen, 1 if only_cls else None)
        x = x[:, :tokens]
        return self.encoder_norm(x) if last == depth and self.config.final_norm else x


class VisionTransformer(nn.Module):
    """The network; `module.apply({'params': params}, x, method='prefix' | 'suffix')`."""

    config: ViTConfig
    trained_blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # in the backward pass, compute blocks again from their inputs

    def setup(self) -> None:
        self.Transformer = Encoder(self.config, self.dtype, self.remat)
        if self.config.projection:
            self.projection = nn.Dense(self.config.projection, use_bias=False, dtype=self.dtype)

    @nn.compact  # so that the suffix runs on a tree without the prefix's parameters
    def prefix(self, images: jax.Array) -> jax.Array:
        """images f32[n,s,s,3] -> tokens dtype[n,t,c] that enter the first trained block."""
        c, n, patch = self.config, images.shape[0], (self.config.patch, self.config.patch)
        embedding = nn.Conv(
            c.width,
            kernel_size=patch,
            strides=patch,
            padding="VALID",
            use_bias=c.patch_bias,
            dtype=self.dtype,
            name="embedding",
        )

        def token(name: str, count: int) -> jax.Array:
            value = self.param(name, nn.initializers.normal(0.02), (1, count, c.width))
            return jnp.broadcast_to(value.astype(self.dtype), (n, count, c.width))

        x = embedding(images).reshape(n, -1, c.width)
        if c.class_token:
            x = jnp.concatenate([token("cls", 1), x], axis=1)
        x = self.Transformer.add_positions(x)
        if c.registers:
            x = jnp.concatenate([x[:, :1], token("registers", c.registers), x[:, 1:]], axis=1)
        x = self.Transformer.normalise_input(x)
        return self.Transformer.run_blocks(x, 0, c.depth - self.trained_blocks)

    def suffix(self, tokens: jax.Array) -> jax.Array:
        """tokens [n,t,c] -> features f32[n,feature_dim]."""
        c, x = self.config, tokens.astype(self.dtype)
        x = self.Transformer.run_blocks(x, c.depth - self.trained_blocks, c.depth)
        x = x[:, 0] if c.pooling == "cls" else x[:, c.class_token + c.registers :].mean(axis=1)
        if c.projection:
            x = self.projection(x)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.suffix(self.prefix(images))
