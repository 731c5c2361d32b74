"""Minimal random coding of masks: what KLMS sends (Isik et al., AISTATS 2024, arXiv 2306.12625).

The sender wants the receiver to have a mask drawn from Bernoulli(θ_k); both know the prior θ_g. The positions
are cut into blocks. For each block both ends can generate the same 2^bits candidates, drawn from the prior by
the public hash; the sender picks candidate c with probability proportional to q(c)/p(c), the ratio of its
probabilities under θ_k and θ_g, and sends its number. What arrives follows θ_k up to a bias toward θ_g that
shrinks as 2^bits grows beyond exp(KL of the block) (Havasi et al., arXiv 1810.00440).

Blocks adapt to where the KL is. A segment is 256 · 2^g neighbouring positions and has as many blocks,
1 … 256, as it takes to have at most `block_kl` nats each on average. Position x of a segment is in its block
(x mod 256) mod blocks: spread over the segment, so that blocks come out alike.

Body: u8 g, u8 bits, u8[segments] blocks of each segment less one, deflated, then the candidates' numbers,
`bits` bits each, first bit highest, padded to a byte with zeros. The envelope's n is the number of blocks.
"""

import struct
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import masks
from deltamask_jax.codecs import containers, envelope
from deltamask_jax.codecs.codec import Codec, Context, PayloadError
from deltamask_jax.public_random import CANDIDATES, Key, candidate_words, uniforms_at

_ID = envelope.CODEC_IDS["random_coding"]
_HEAD = struct.Struct("<BB")
_COLUMNS = 256  # positions of a segment that may be in different blocks
_MOST_ROWS_LOG2 = 12
_BLOCKS = 32  # a segment on average; more are less equal, fewer cost more to describe
_CHUNK = 1 << 16  # positions scored in one call, or one segment's
_SCORES = 1 << 24  # columns times candidates in one call, or one segment's: 4 bytes each, a few times over


def random_coding(bits: int = 8, block_kl: float = 1.0) -> Codec:
    """Creates the codec: θ_k u16[d] going in, a mask bool[d] drawn from about θ_k coming out.

    The context must hold theta, the prior.

    Args:
        bits: log2 of the number of candidates.
        block_kl: nats of KL(θ_k ‖ θ_g) per block, on average over a segment at most.
    """
    name = f"random_coding-{bits}-{block_kl:g}"
    return Codec(name, partial(_encode, bits, block_kl), partial(_decode, bits), exact=False, kind="theta")


def _encode(bits: int, block_kl: float, theta_k: np.ndarray, context: Context) -> bytes:
    theta_g = context.check(streams=False)
    if theta_k.shape != (context.d,) or theta_k.dtype != np.uint16:
        raise ValueError(f"random_coding takes u16[{context.d}], got {theta_k.dtype}{list(theta_k.shape)}")
    key = context.stream(CANDIDATES)
    # The sender's own randomness, which picks among the candidates.
    rng = np.random.default_rng([context.seed, context.round, context.client, CANDIDATES])
    rows_log2, counts = _plan(np.asarray(_kl(theta_k, theta_g)), block_kl)
    chosen = _choose(theta_k, theta_g, key, rows_log2, counts, bits, rng)
    numbers = chosen[:, None] >> np.arange(bits)[::-1] & 1
    body = b"".join(
        (
            _HEAD.pack(rows_log2, bits),
            zlib.compress((counts - 1).astype(np.uint8).tobytes(), 9, -15),
            np.packbits(numbers.astype(np.uint8)).tobytes(),
        )
    )
    return envelope.pack(_ID, 0, context.d, len(chosen), context.round, context.client, body)


def _decode(bits: int, payload: bytes, context: Context) -> np.ndarray:
    theta_g = context.check(streams=False)
    key = context.stream(CANDIDATES)
    received = envelope.unpack(payload, codec_id=_ID, d=context.d, round=context.round, client=context.client)
    body = bytes(received.body)
    if received.flags or len(body) < _HEAD.size:
        raise PayloadError("random_coding payload has unknown flags or no header")
    rows_log2, announced = _HEAD.unpack_from(body)
    if rows_log2 > _MOST_ROWS_LOG2 or announced != bits:
        raise PayloadError(f"random_coding payload has {announced} bits per block, expected {bits}")
    segments = -(-context.d // (_COLUMNS << rows_log2))
    deflated = len(body) - _HEAD.size - -(-received.n * bits // 8)
    if deflated > containers.most_deflated(segments):
        raise PayloadError(f"random_coding payload has {deflated} deflated bytes for {segments} counts")
    counts, numbers = containers.inflate(body[_HEAD.size :], segments, -15)
    counts = np.frombuffer(counts, np.uint8).astype(np.int64) + 1
    numbers = np.frombuffer(numbers, np.uint8)
    if counts.sum() != received.n or len(numbers) != -(-received.n * bits // 8):
        raise PayloadError(f"random_coding payload has {len(numbers)} bytes for {received.n} blocks")
    numbers = np.unpackbits(numbers)
    if numbers[received.n * bits :].any():
        raise PayloadError("random_coding payload is not padded with zeros")
    numbers = np.pad(numbers[: received.n * bits].reshape(-1, bits), ((0, 0), (16 - bits, 0)))
    chosen = np.packbits(numbers, axis=1).view(">u2")[:, 0]
    words = candidate_words(key, 1 << bits)[chosen][_blocks(counts)]  # u32[segments, 256]
    rows = np.arange(-(-context.d // _COLUMNS)) >> rows_log2  # a segment may be longer than d
    words = words[rows].reshape(-1)[: context.d]
    return np.asarray(_draw(theta_g, key[0], words))


def _plan(kl: np.ndarray, block_kl: float) -> tuple[int, np.ndarray]:
    """log2 of a segment's rows of 256, and the blocks of every segment, i64[segments], from KL f32[d].

    A segment has no more blocks than positions. One that wants more than 256 asks for smaller segments, as
    long as the other segments, of at least a block each, do not make the payload a tenth larger by it; its
    blocks hold more KL otherwise.
    """
    least = max(float(kl.sum(dtype=np.float64)), block_kl) / block_kl  # blocks

    def wanted(rows_log2: int) -> np.ndarray:
        starts = np.arange(0, len(kl), _COLUMNS << rows_log2)
        segment_kl = np.add.reduceat(kl, starts, dtype=np.float64)
        return np.maximum(np.ceil(segment_kl / block_kl), 1).astype(np.int64)

    rows_log2 = int(np.clip(np.log2(len(kl) / least * _BLOCKS / _COLUMNS), 0, _MOST_ROWS_LOG2))
    counts = wanted(rows_log2)
    while rows_log2 and counts.max() > _COLUMNS:
        smaller = wanted(rows_log2 - 1)
        if smaller.sum() > 1.1 * least:
            break
        rows_log2, counts = rows_log2 - 1, smaller
    left = len(kl) - np.arange(len(counts)) * (_COLUMNS << rows_log2)  # positions from a segment's first on
    return rows_log2, np.minimum(counts, np.minimum(left, _COLUMNS))


def _blocks(counts: np.ndarray) -> np.ndarray:
    """Block of every column of every segment, i64[segments, 256]."""
    first = np.cumsum(counts) - counts
    return first[:, None] + np.arange(_COLUMNS) % counts[:, None]


def _choose(
    theta_k: np.ndarray,
    theta_g: np.ndarray,
    key: Key,
    rows_log2: int,
    counts: np.ndarray,
    bits: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Candidate of every block, i32[blocks], drawn with probability proportional to q(c)/p(c).

    Args:
        theta_k, theta_g: u16[d].
        key: of the candidates' streams.
        rows_log2, counts: as from `_plan`.
        bits: log2 of the number of candidates.
        rng: the sender's own.
    """
    size = _COLUMNS << rows_log2
    step = max(1, min(_CHUNK // size, _SCORES // _COLUMNS >> bits))  # segments in one call
    # Padding has equal probabilities, so that it scores 0; its blocks come last and are cut off.
    blocks, padded = counts.sum(), -(-len(counts) // step) * step
    theta_k, theta_g = (
        np.pad(theta, (0, padded * size - len(theta))).reshape(-1, step, size) for theta in (theta_k, theta_g)
    )
    counts = np.pad(counts, (0, padded - len(counts)), constant_values=1).reshape(-1, step)
    most = 1 << int(counts.sum(axis=1).max() - 1).bit_length()  # blocks in a call; little is compiled
    wanted = rng.random((len(counts), most), np.float32)
    words = jnp.asarray(candidate_words(key, 1 << bits))
    chosen = [
        _choose_chunk(
            theta_k[i],
            theta_g[i],
            np.uint32(i * step * size),
            _blocks(counts[i]).astype(np.int32),
            wanted[i],
            key[0],
            words,
        )
        for i in range(len(counts))
    ]
    return np.stack(jax.device_get(chosen))[np.arange(most) < counts.sum(axis=1, keepdims=True)][:blocks]


@jax.jit
def _choose_chunk(theta_k, theta_g, start, block, wanted, word, words) -> jax.Array:
    """Candidates of whole segments' blocks, i32[blocks].

    Args:
        theta_k, theta_g: u16[segments, positions].
        start: first position, u32[].
        block: of every column, counted from the first segment's first, i32[segments, 256].
        wanted: where in its cumulative distribution each block chooses, f32[blocks], 0 … 1.
        word, words: the candidates' streams, whose first word u32[] is the same; u32[candidates].
    """
    segments, size = theta_g.shape
    q, p = ((theta.astype(jnp.float32) + 0.5) / (masks.SCALE + 1) for theta in (theta_k, theta_g))
    # Computed once, not again for every candidate.
    one, zero = jax.lax.optimization_barrier((jnp.log(q / p), jnp.log1p(-q) - jnp.log1p(-p)))
    positions = start + jnp.arange(segments * size, dtype=jnp.uint32).reshape(segments, size)

    def score(candidate):  # of columns, f32[segments, 256]
        drawn = masks.draw(theta_g, uniforms_at((word, candidate), positions, jnp))
        return jnp.where(drawn, one, zero).reshape(segments, -1, _COLUMNS).sum(axis=1)

    columns = jax.lax.map(score, words, batch_size=16).reshape(len(words), -1).T
    scores = jax.ops.segment_sum(columns, block.ravel(), len(wanted))  # f32[blocks, candidates]
    cumulative = jnp.cumsum(jax.nn.softmax(scores), axis=1)
    return jnp.minimum(jnp.sum(cumulative <= wanted[:, None], axis=1), len(words) - 1)


@jax.jit
def _kl(theta_k, theta_g) -> jax.Array:
    """KL(θ_k ‖ θ_g) in nats, f32[d], from u16[d]."""
    return masks.bernoulli_kl(theta_k, theta_g)


@jax.jit
def _draw(theta, word, words):
    """A mask bool[d] from θ_g u16[d] and every position's stream: first word u32[], second u32[d]."""
    return masks.draw(theta, uniforms_at((word, words), jnp.arange(theta.size, dtype=jnp.uint32), jnp))
