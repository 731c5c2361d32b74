"""Text encoders of the BERT family: BERT, MiniLM, RoBERTa.

arXiv 1810.04805, 2002.10957, 1907.11692; a frozen `BertConfig` selects the variant. The blocks are those of
vit.py with the norms behind the residuals (post-LN). They are named alike, so that masks and every part of
adapters.py fit them too. Before them stand `word_embedding`, `position_embedding`, `type_embedding` and
`embedding_norm`.

At the cut a padded position is a row of zeros, which no LayerNorm makes of a word. So tokens carry their own
mask, and a cached prefix stays one array.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from deltamask_jax.models.vit import Adapter, Attention, Encoder, MlpBlock


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape and variant of a text encoder.

    Attributes:
        family: 'bert' or 'roberta': the names `pretrained` reads.
        width, depth, heads, mlp: token width, blocks, attention heads, hidden width of the MLP.
        vocabulary: words, of which number `pad` fills up short texts.
        positions: tokens of the longest text it can read.
        types: kinds of segments; every token here is of the first.
        eps: of every LayerNorm.
        activation: as of `ViTConfig`.
        pooling: 'cls' token or 'mean' of the tokens that are not padding.
    """

    family: str
    width: int
    depth: int
    heads: int
    mlp: int
    vocabulary: int = 30522
    positions: int = 512
    pad: int = 0
    types: int = 2
    eps: float = 1e-12
    activation: str = "gelu"
    pooling: str = "cls"

    pre_norm = final_norm = False

    @property
    def feature_dim(self) -> int:
        return self.width

    @property
    def block(self) -> type[nn.Module]:
        return PostNormBlock

    @property
    def first_position(self) -> int:
        """RoBERTa counts positions from behind the padding's own."""
        return self.pad + 1 if self.family == "roberta" else 0

    def module(self, trained_blocks: int, dtype: jnp.dtype) -> "TextTransformer":
        return TextTransformer(self, trained_blocks, dtype)

    def trained_pattern(self, trained_blocks: int) -> str:
        """Regular expression for the paths of every parameter that only the suffix uses."""
        return rf"Transformer/encoderblock_({self._last(trained_blocks)})/.*"

    def masked_pattern(self, trained_blocks: int) -> str:
        """Default masking rule: attention and MLP kernels of the last blocks (arXiv 2311.17299)."""
        layers = "MultiHeadDotProductAttention_0|MlpBlock_0"
        return rf"Transformer/encoderblock_({self._last(trained_blocks)})/({layers})/\w+/kernel"

    def _last(self, blocks: int) -> str:
        return "|".join(str(i) for i in range(self.depth - blocks, self.depth))


class PostNormBlock(nn.Module):
    """A block of BERT (arXiv 1810.04805): it normalises after each sum, not before each branch."""

    config: BertConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, kept: int | None = None) -> jax.Array:
        """f[n,t,c] -> f[n,kept,c], as vit.py's `EncoderBlock`."""
        c = self.config
        attention = Attention(c, self.dtype, name="MultiHeadDotProductAttention_0")
        x = x[:, :kept] + attention(x[:, :kept], x, mask)
        x = nn.LayerNorm(c.eps, dtype=self.dtype, name="LayerNorm_0")(x)
        branch = MlpBlock(c, self.dtype, name="MlpBlock_0")(x)
        if self.has_variable("params", "adapter"):
            branch = Adapter(self.dtype, name="adapter")(branch)
        return nn.LayerNorm(c.eps, dtype=self.dtype, name="LayerNorm_1")(x + branch)


class TextTransformer(nn.Module):
    """The network; `module.apply({'params': params}, x, method='prefix' | 'suffix')`."""

    config: BertConfig
    trained_blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # in the backward pass, compute blocks again from their inputs

    def setup(self) -> None:
        self.Transformer = Encoder(self.config, self.dtype, self.remat)

    @nn.compact  # so that the suffix runs on a tree without the prefix's parameters
    def prefix(self, words: jax.Array) -> jax.Array:
        """words i32[n,t] -> tokens dtype[n,t,c] that enter the first trained block; 0 where padded."""
        c, real = self.config, words != self.config.pad
        places = jnp.where(real, jnp.cumsum(real, axis=1) - 1, -1) + c.first_position

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, c.width, dtype=self.dtype, name=f"{name}_embedding")

        x = table("word", c.vocabulary)(words)
        x += table("position", c.positions + c.first_position)(jnp.maximum(places, 0))
        x += table("type", c.types)(jnp.zeros_like(words))
        x = nn.LayerNorm(c.eps, dtype=self.dtype, name="embedding_norm")(x)
        x = self.Transformer.run_blocks(x, 0, c.depth - self.trained_blocks, real)
        return jnp.where(real[..., None], x, 0)

    def suffix(self, tokens: jax.Array) -> jax.Array:
        """tokens [n,t,c] -> features f32[n,feature_dim]."""
        c, real = self.config, jnp.any(tokens != 0, axis=-1)
        x = self.Transformer.run_blocks(
            tokens.astype(self.dtype), c.depth - self.trained_blocks, c.depth, real
        )
        if c.pooling == "cls":
            return x[:, 0].astype(jnp.float32)
        x = jnp.where(real[..., None], x.astype(jnp.float32), 0)
        return x.sum(axis=1) / jnp.maximum(real.sum(axis=1, keepdims=True), 1)

    def __call__(self, words: jax.Array) -> jax.Array:
        return self.suffix(self.prefix(words))
