"""EDEN (Vargaftik et al., arXiv 2108.08842): a rotated vector, quantised to a few bits per value, unbiased.

After the rotation every value is nearly Gaussian, so the quantiser is the Lloyd–Max one of N(0, 1), the same
for every vector. With Q the centroids of R x and one scale S = ‖x‖² / ⟨Q, R x⟩ a block, S · Rᵀ Q estimates x
without bias, over rotations R. With one bit this is DRIVE (arXiv 2105.08339): Q is a multiple of the sign.

Bits per value need not be whole (docs/fidelity.md):
  below 1     only that fraction of the values is kept, each weighted by 1/fraction, and rotated with 1 bit
  between     after the rotation, that fraction of the values gets one bit more than the others
Which values is public randomness. Here it takes one value from each of equally long stretches instead of
tossing a coin for every value: as unbiased, and the number of bits is exact.

Body: a float32 scale per block (see rotation.py), then bit planes, the highest bit first, each padded to a
byte: those of the values with ⌊bits⌋ bits (1 below 1), then those of the values with one more. Flags:
bits · 4096.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs import envelope, rotation
from deltamask_jax.codecs.codec import (
    Codec,
    Context,
    PayloadError,
    check_finite,
    check_scales,
    check_values,
    unpack_bits,
)
from deltamask_jax.public_random import ROTATION, SAMPLE, Key, uniforms_at

_ID = envelope.CODEC_IDS["eden"]
_UNIT = 4096  # bits per value are a multiple of 1/4096
MOST_BITS = 8


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What both ends know of a payload before it travels.

    Attributes:
        flags: bits · 4096.
        kept: positions u32[m] of the values that are rotated and their weights f32[m], or None for all.
        n: number of values that are rotated.
        signs: key of the rotation.
        width: bits of most rotated values.
        finer: bool[padded n], which rotated values have one bit more.
    """

    flags: int
    kept: tuple[np.ndarray, np.ndarray] | None
    n: int
    signs: Key
    width: int
    finer: np.ndarray


def _plan(bits: float, context: Context) -> _Plan:
    n, flags = context.d, round(bits * _UNIT)
    signs, chosen = context.stream(ROTATION), context.stream(SAMPLE)
    kept = None
    if flags < _UNIT:
        kept = sample(n, max(1, round(n * flags / _UNIT)), chosen)
        n, flags_left = kept[0].size, 0
    else:
        flags_left = flags % _UNIT
    finer = np.zeros(rotation.padded(n), bool)
    finer[sample(finer.size, round(finer.size * flags_left / _UNIT), chosen)[0]] = True
    return _Plan(flags, kept, n, signs, max(1, flags // _UNIT), finer)


def sample(n: int, m: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """One position of each of m stretches of 0 … n−1, all of ⌊n/m⌋ or ⌈n/m⌉ positions, by the public hash.

    Returns:
        Positions, ascending, u32[m], and their weights, f32[m]: the inverse of the chance to be chosen.
    """
    j = np.arange(m, dtype=np.uint64)
    length, longer = divmod(n, max(m, 1))  # the first `longer` stretches have one position more
    start = j * np.uint64(length) + np.minimum(j, np.uint64(longer))
    length = np.uint64(length) + (j < longer)
    high, low = (uniforms_at(key, 2 * j + i).astype(np.uint64) for i in (0, 1))
    offset = (high << np.uint64(16) | low) * length >> np.uint64(32)
    return (start + offset).astype(np.uint32), length.astype(np.float32)


def eden(bits: float = 1.0) -> Codec:
    """Creates the codec of values f32[d], d ≥ 1: bits · d bits and a scale per block. Unbiased.

    The rotation is new for every round and client: only then do the errors of a cohort average out.

    Args:
        bits: per value, 1/4096 … 8, rounded to a multiple of 1/4096.

    Raises:
        ValueError: bits out of range.
    """
    if not 1 <= round(bits * _UNIT) <= MOST_BITS * _UNIT:
        raise ValueError(f"eden takes 1/{_UNIT} … {MOST_BITS} bits per value, got {bits}")
    name = f"eden-{bits:g}"
    return Codec(name, partial(_encode, bits), partial(_decode, bits), exact=False, kind="values")


def _encode(bits: float, vector: np.ndarray, context: Context) -> bytes:
    vector = check_values("eden", vector, context)
    if not vector.size:
        raise ValueError("eden takes at least one value")
    plan = _plan(bits, context)
    rotated = vector if plan.kept is None else vector[plan.kept[0]] * plan.kept[1]
    codes, scales = jax.device_get(_quantise(rotated, plan.signs, plan.finer, plan.width))
    body = [scales.astype("<f4").tobytes()]
    for width, chosen in ((plan.width, ~plan.finer), (plan.width + 1, plan.finer)):
        of_width = codes[chosen]
        body += [np.packbits(of_width >> bit & 1).tobytes() for bit in reversed(range(width))]
    return envelope.pack(_ID, plan.flags, context.d, context.d, context.round, context.client, b"".join(body))


def _decode(bits: float, payload: bytes, context: Context) -> np.ndarray:
    size = context.d
    parcel = envelope.unpack(payload, codec_id=_ID, d=size, round=context.round, client=context.client)
    plan = _plan(bits, context)
    if parcel.flags != plan.flags or parcel.n != size:
        raise PayloadError(f"eden payload has {parcel.flags / _UNIT} bits per value, expected {bits}")
    blocks = sum(count for count, _ in rotation.blocks(plan.n))
    classes = ((plan.width, ~plan.finer), (plan.width + 1, plan.finer))
    expected = 4 * blocks + sum(width * -(-int(chosen.sum()) // 8) for width, chosen in classes)
    if len(parcel.body) != expected:
        raise PayloadError(f"eden payload of {len(parcel.body)} bytes, {expected} hold {size} values")
    scales = np.frombuffer(parcel.body, "<f4", blocks).astype(np.float32)
    check_scales("eden", scales)
    codes, at = np.zeros(plan.finer.size, np.uint8), 4 * blocks
    for width, chosen in classes:
        of_width = np.zeros(int(chosen.sum()), np.uint8)
        for bit in reversed(range(width)):
            plane = np.frombuffer(parcel.body, np.uint8, -(-of_width.size // 8), at)
            of_width |= unpack_bits("eden", plane, of_width.size).view(np.uint8) << bit
            at += plane.size
        codes[chosen] = of_width
    values = np.asarray(_estimate(codes, scales, plan.n, plan.signs, plan.finer, plan.width))
    if plan.kept is not None:
        values, kept = np.zeros(size, np.float32), values
        values[plan.kept[0]] = kept
    return check_finite("eden", values)


@cache
def centroids(bits: int) -> np.ndarray:
    """Lloyd–Max quantiser of N(0, 1): every centroid is the mean of its cell; f32[2^bits], ascending."""
    from scipy.optimize import fsolve  # slow to import, and only EDEN needs it
    from scipy.special import ndtr, ndtri

    def density(x):
        return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)

    def misfit(c):  # of the positive half; cells end midway between centroids
        ends = np.concatenate([[0], (c[1:] + c[:-1]) / 2, [np.inf]])
        return (density(ends[:-1]) - density(ends[1:])) / (ndtr(ends[1:]) - ndtr(ends[:-1])) - c

    half = 1 << (bits - 1)
    # Start from the spacing that is best for many cells: the quantiles of N(0, 3).
    start = np.sqrt(3) * ndtri(0.5 + (np.arange(half) + 0.5) / (2 * half))
    positive = fsolve(misfit, start, xtol=1e-12)
    return np.concatenate([-positive[::-1], positive]).astype(np.float32)


@partial(jax.jit, static_argnums=3)
def _quantise(x: jax.Array, signs: Key, finer: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Codes u8[padded(n)] of the rotated values, and every block's scale, f32[blocks].

    Args:
        x: f32[n].
        signs: stream of the rotation's signs, two words u32[].
        finer: which rotated values get a bit more, bool[padded(n)].
        width: bits of the others.
    """
    codes, scales = [], []
    rotated = rotation.rotate(x, signs)
    for part, fine in zip(rotated, rotation.split(finer, x.size), strict=True):
        largest = jnp.max(jnp.abs(part), axis=1, keepdims=True)
        part = part / jnp.where(largest > 0, largest, 1)  # squares neither overflow nor vanish
        square = jnp.sum(part * part, axis=1, keepdims=True)
        normal = part * jnp.sqrt(part.shape[1] / jnp.where(square > 0, square, 1))
        coarse, code = (
            jnp.searchsorted((c[1:] + c[:-1]) / 2, normal).astype(jnp.uint8)
            for c in (centroids(width), centroids(width + 1))
        )
        code = jnp.where(fine, code, coarse)
        product = jnp.sum(_values(code, fine, width) * part, axis=1, keepdims=True)
        codes.append(code)
        scales.append((largest * square / jnp.where(square > 0, product, 1))[:, 0])
    return rotation.join(codes), jnp.concatenate(scales)


@partial(jax.jit, static_argnums=(2, 5))
def _estimate(codes: jax.Array, scales: jax.Array, n: int, signs: Key, finer: jax.Array, width: int):
    """S · Rᵀ Q, f32[n], from codes u8[padded(n)] and scales f32[blocks]; the rest as of `_quantise`."""
    values = rotation.split(_values(codes, finer, width), n)
    ends = np.cumsum([part.shape[0] for part in values])[:-1]
    scaled = [part * s[:, None] for part, s in zip(values, jnp.split(scales, ends), strict=True)]
    return rotation.unrotate(scaled, n, signs)


def _values(codes: jax.Array, finer: jax.Array, width: int) -> jax.Array:
    """Q: every code's centroid, f32 in the shape of the codes u8[...]."""
    coarse, fine = jnp.asarray(centroids(width)), jnp.asarray(centroids(width + 1))
    return jnp.where(finer, fine[codes], coarse[jnp.minimum(codes, coarse.size - 1)])
