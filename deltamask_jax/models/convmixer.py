"""ConvMixer (arXiv 2201.09792) with frozen BatchNorm, as timm publishes it.

Blocks are named `block_i/{depthwise,norm_0,pointwise,norm_1}`, the embedding `stem/{conv,norm}`. Each
convolution is followed by the activation, then BatchNorm. Tokens are the feature map's pixels in
row order, f[n,h*w,c].
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deltamask_jax.models.vit import gelu


@dataclasses.dataclass(frozen=True)
class ConvMixerConfig:
    """Shape and variant of a ConvMixer.

    Attributes:
        width, depth: channels, number of blocks.
        kernel, patch, image_size: pixels (kernel: pixels of the feature map).
        activation: 'relu' or 'gelu' (exact).
        family: checkpoint family, for `pretrained`.
    """

    width: int
    depth: int
    kernel: int
    patch: int
    activation: str
    image_size: int = 224
    family: str = "convmixer"

    @property
    def feature_dim(self) -> int:
        return self.width

    @property
    def stride(self) -> int:
        """Any image size is fine: pixels beyond the last whole patch are dropped, as timm does."""
        return 1

    def module(self, trained_blocks: int, dtype: jnp.dtype) -> nn.Module:
        return ConvMixer(self, trained_blocks, dtype)

    def trained_pattern(self, trained_blocks: int) -> str:
        """Regular expression for the paths of every parameter that only the suffix uses."""
        blocks = "|".join(str(i) for i in range(self.depth - trained_blocks, self.depth))
        return rf"block_({blocks})/.*"

    def masked_pattern(self, trained_blocks: int) -> str:
        """Default masking rule: all convolution kernels of the last blocks (arXiv 2311.17299)."""
        return self.trained_pattern(trained_blocks) + "/kernel"


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution of f[n,h,w,c] with an odd kernel f[k,k,1,c], same size, zero padded.

    A sum of shifted products: XLA's grouped convolution on CPU takes 14 times as long forward and 20
    times backward, and more under vmap.
    """
    (k, height, width), padded = _padded(x, kernel)
    total = jnp.zeros_like(x)
    for i in range(k):
        for j in range(k):
            total += padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
    return total


def _padded(x: jax.Array, kernel: jax.Array) -> tuple[tuple[int, int, int], jax.Array]:
    k, margin = kernel.shape[0], kernel.shape[0] // 2
    border = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return (k, x.shape[1], x.shape[2]), jnp.pad(x, border)


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (k, height, width), padded = _padded(x, kernel)

    def row(i: jax.Array) -> jax.Array:  # mapped, because k * k separate sums compile slowly
        rows = jax.lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        sums = [(rows[:, :, j : j + width] * slope).sum((0, 1, 2)) for j in range(k)]
        return jnp.stack(sums)

    return depthwise(slope, kernel[::-1, ::-1]), jax.lax.map(row, jnp.arange(k))[:, :, None]


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Convolution(nn.Module):
    """Depthwise for kernels [k,k,1,c], pointwise for [1,1,c,c]; both stay fast under vmap."""

    kernel_shape: tuple[int, int, int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.kernel_shape)
        bias = self.param("bias", nn.initializers.zeros, self.kernel_shape[-1:])
        kernel = kernel.astype(self.dtype)
        x = depthwise(x, kernel) if kernel.shape[2] == 1 else x @ kernel[0, 0]
        return x + bias.astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Inference BatchNorm; running statistics are parameters, so nothing ever updates them."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, value: float) -> jax.Array:
            return self.param(name, nn.initializers.constant(value), (x.shape[-1],))

        scale = vector("scale", 1.0) * jax.lax.rsqrt(vector("var", 1.0) + self.eps)
        shift = vector("bias", 0.0) - vector("mean", 0.0) * scale
        return x * scale.astype(x.dtype) + shift.astype(x.dtype)


class Stem(nn.Module):
    """The patch embedding: f[n,s,s,3] -> f[n,s/patch,s/patch,width]."""

    config: ConvMixerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (self.config.patch, self.config.patch)
        conv = nn.Conv(self.config.width, patch, patch, "VALID", dtype=self.dtype, name="conv")
        return FrozenBatchNorm(name="norm")(_ACTIVATIONS[self.config.activation](conv(images)))


class Block(nn.Module):
    """A depthwise convolution, added to its input, then a pointwise one: f[n,h,w,c] -> f[n,h,w,c]."""

    config: ConvMixerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        activation = _ACTIVATIONS[c.activation]
        spatial = Convolution((c.kernel, c.kernel, 1, c.width), self.dtype, name="depthwise")
        x = x + FrozenBatchNorm(name="norm_0")(activation(spatial(x)))
        pointwise = Convolution((1, 1, c.width, c.width), self.dtype, name="pointwise")
        return FrozenBatchNorm(name="norm_1")(activation(pointwise(x)))


_ACTIVATIONS = {"relu": nn.relu, "gelu": gelu}


class ConvMixer(nn.Module):
    """The network; `module.apply({'params': params}, x, method='prefix' | 'suffix')`."""

    config: ConvMixerConfig
    trained_blocks: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.stem = Stem(self.config, self.dtype)
        self.block = [Block(self.config, self.dtype) for _ in range(self.config.depth)]

    def prefix(self, images: jax.Array) -> jax.Array:
        """images f32[n,s,s,3] -> tokens dtype[n,h*w,c] that enter the first trained block."""
        x = self.stem(images)
        for block in self.block[: self.config.depth - self.trained_blocks]:
            x = block(x)
        return x.reshape(x.shape[0], -1, self.config.width)

    def suffix(self, tokens: jax.Array) -> jax.Array:
        """tokens [n,h*w,c] -> features f32[n,c], averaged over the feature map."""
        side = math.isqrt(tokens.shape[1])
        x = tokens.astype(self.dtype).reshape(tokens.shape[0], side, side, -1)
        for block in self.block[self.config.depth - self.trained_blocks :]:
            x = block(x)
        return x.mean(axis=(1, 2)).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.suffix(self.prefix(images))
