"""Classes of positions for `tally`: how likely which vote is there, from what both ends know.

    streams           class of a position
    one, shared       bucket of its distance, and its bit
    one per voter     expected up votes, expected down votes
    none              bucket of θ's log-odds

An expected number of votes is the sum, over the voters of that direction, of a weight for the group that the
voter's distance falls into. Sums and the logarithmic buckets they fall into are integers: both ends compute
the same classes on any machine.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs import distance
from deltamask_jax.codecs.codec import Context
from deltamask_jax.public_random import uniforms_at

NONE, SHARED, EACH = range(3)  # streams; the envelope's flags
EDGES = 4
_CHUNK = 1 << 16  # positions per jitted call
_SMALL = 1 << 16  # up to so many positions NumPy is faster than compiling
_TOGETHER = 256  # voters whose weights, up to 255, add up in 16 bits


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the three modes differ in.

    Attributes:
        shape: of the classes, powers of two; a class's code is its index in this shape.
        ranks: u8[codes], a position is near where its class's rank is at least the payload's cut.
        signed: whether a value's sign is coded.
        sides: classes of magnitudes, a power of two.
        side: (codes, negative bool) -> class of the magnitude of a value that is not zero.
    """

    shape: tuple[int, int]
    ranks: np.ndarray
    signed: bool
    sides: int
    side: Callable[[np.ndarray, np.ndarray], np.ndarray]


_CODES = np.arange(1 << 14)
KINDS = (
    Kind(
        (1024, 1), np.zeros(1024, np.uint8), True, 1024, lambda code, low: code >> 1 | low.astype("u2") << 9
    ),
    Kind((64, 2), (63 - (_CODES[:128] >> 1)).astype(np.uint8), False, 64, lambda code, _: code >> 1),
    Kind(
        (128, 128),
        np.maximum(_CODES >> 7, _CODES & 127).astype(np.uint8),
        True,
        128,
        lambda code, low: np.where(low, code & 127, code >> 7),
    ),
)


def near_positions(codes: np.ndarray, cut: int, kind: Kind) -> np.ndarray | None:
    """Positions coded one by one, u32[m], of classes u16[d]; None for all."""
    if cut == 0:
        return None
    is_near, step = kind.ranks >= cut, 1 << 22  # positions at once: NumPy finds them as 64-bit integers
    starts = range(0, len(codes), step)
    found = [(np.flatnonzero(is_near[codes[at : at + step]]) + at).astype(np.uint32) for at in starts]
    return np.concatenate([np.zeros(0, np.uint32), *found])


def far_positions(votes: np.ndarray, codes: np.ndarray, cut: int, kind: Kind) -> np.ndarray:
    """Positions elsewhere that have votes, u32[n], of votes i32[d] and classes u16[d]."""
    at = np.flatnonzero(votes)
    return at[kind.ranks[codes[at]] < cut].astype(np.uint32)


def centre(context: Context) -> np.ndarray:
    """round(voters · θ), halves up: i32[d]."""
    theta = context.check(streams=False)
    return ((theta.astype(np.uint32) * np.uint32(context.voters) + (1 << 15)) >> 16).astype(np.int32)


def theta_codes(context: Context) -> np.ndarray:
    """Classes where there are no streams: sixteenths of an octave of θ's odds, u16[d] below 1024."""
    table = (distance.logit_tables()[1].astype(np.int32) + (18 << 10) >> 6).astype(np.uint16)
    return table[context.check(streams=False)]


def shared_codes(context: Context, shift: int) -> np.ndarray:
    """Classes of a shared stream: 2 · min(distance >> shift, 63) + bit, u16[d]."""
    if context.d <= _SMALL:
        u, theta = context.uniforms(), context.check()
        bucket = np.minimum(distance.between(u, theta) >> shift, 63)
        return (bucket << 1 | (u < theta)).astype(np.uint16)
    words = np.array(context.streams[0], np.uint32)
    tables = [jnp.asarray(table) for table in distance.logit_tables()]
    return _in_chunks(
        context, lambda start, theta: _shared_chunk(start, theta, words, *tables, np.int32(shift))
    )


def voter_codes(context: Context, edges: tuple[int, ...], weights: tuple[int, ...]) -> np.ndarray:
    """Classes of one stream per voter: 128 · bucket of the expected up votes + that of down votes: u16[d].

    A voter whose distance is in edges[g−1] … edges[g] − 1 counts for weights[g]; the buckets are quarters of
    an octave of these sums, 0 for a sum of 0.
    """
    words = np.array(context.streams, np.uint32)
    bounds = _bounds(edges)
    steps = np.array([weights, [w << 16 for w in weights]], np.int32)
    if context.d <= _SMALL:
        at, theta = np.arange(context.d, dtype=np.uint32), context.check()
        lo, hi = _unpack_bounds(bounds[:, theta])
        up, down = np.zeros((2, context.d), np.int32)
        for key in words:
            packed = _weight(uniforms_at(key, at).astype(np.int32), theta, lo, hi, steps, np)
            up, down = up + (packed >> 16), down + (packed & 0xFFFF)
        bits = (np.stack((up, down)).astype(np.float32)).view(np.int32)
        return _voter_code(up, down, *bits, np)
    groups = -(-len(words) // _TOGETHER)
    width = min(1 << (len(words) - 1).bit_length(), _TOGETHER)
    keys = np.zeros(((1 << (groups - 1).bit_length()), width, 2), np.uint32)
    keys.reshape(-1, 2)[: len(words)] = words
    arguments = [jnp.asarray(x) for x in (keys, np.int32(len(words)), bounds, steps)]
    return _in_chunks(context, lambda start, theta: _voter_chunk(start, theta, *arguments))


def _bounds(edges: tuple[int, ...]) -> np.ndarray:
    """Of every θ and edge, the uniforms from which on (low half) and up to which (high half) the distance is
    below the edge: u32[edges, 65536]."""
    uniform_odds, theta_odds = (table.astype(np.int32) for table in distance.logit_tables())
    reach = np.array(edges, np.int32)[:, None]
    lo = np.searchsorted(uniform_odds, theta_odds - reach, "right")
    hi = np.maximum(np.searchsorted(uniform_odds, theta_odds + reach, "left"), 1) - 1
    return (lo | hi << 16).astype(np.uint32)


def _unpack_bounds(bounds):
    return (bounds & 0xFFFF).astype("int32"), (bounds >> 16).astype("int32")


def _weight(u, theta, lo, hi, steps, xp):
    """A voter's weight, i32[n]: in the high half where u ≥ θ, in the low half elsewhere."""
    weight = xp.where(u >= lo[EDGES - 1], steps[0, EDGES - 1], steps[0, EDGES])
    for group in range(EDGES - 2, -1, -1):
        weight = xp.where(u >= lo[group], steps[0, group], weight)
    weight = xp.where(u >= theta, steps[1, 0], weight)
    for group in range(EDGES):
        weight = xp.where(u > hi[group], steps[1, group + 1], weight)
    return weight


def _voter_code(up, down, up_bits, down_bits, xp):
    """From sums below 2**24 and the bit patterns of the same as float32, which are exact: u16[n]."""
    up, down = (
        xp.where(total > 0, (bits >> 21) - (127 * 4 - 1), 0)
        for total, bits in ((up, up_bits), (down, down_bits))
    )
    return (up << 7 | down).astype(xp.uint16)


@jax.jit
def _voter_chunk(start, theta, keys, voters, bounds, steps):
    """Classes of positions start + 0 … chunk−1 where each voter has a stream of its own, u16[chunk].

    Args:
        start: first position, u32[].
        theta: θ_g u16[chunk].
        keys: words of the voters' streams, padded to whole groups, u32[groups, width, 2].
        voters: how many of them are voters, i32[].
        bounds: u32[edges, 65536] of `_bounds`.
        steps: weights below θ and, in the high half, above it, i32[2, edges + 1].
    """
    at = start + jnp.arange(_CHUNK, dtype=jnp.uint32)
    theta = theta.astype(jnp.int32)
    lo, hi = _unpack_bounds(bounds.at[:, theta].get(mode="promise_in_bounds"))
    width = keys.shape[1]

    def add_pair(words, first):
        def add(pair, packed):
            for voter in (2 * pair, 2 * pair + 1):
                u = uniforms_at(words[jnp.minimum(voter, width - 1)], at, jnp).astype(jnp.int32)
                packed += jnp.where(first + voter < voters, _weight(u, theta, lo, hi, steps, jnp), 0)
            return packed

        return add

    def add_group(group, sums):
        pairs = (jnp.minimum(voters - group * width, width) + 1) // 2
        packed = jax.lax.fori_loop(0, pairs, add_pair(keys[group], group * width), jnp.zeros_like(theta))
        high = (packed.astype(jnp.uint32) >> 16).astype(jnp.int32)
        return sums[0] + high, sums[1] + (packed & 0xFFFF)

    sums = (jnp.zeros_like(theta), jnp.zeros_like(theta))
    sums = jax.lax.fori_loop(0, (voters + width - 1) // width, add_group, sums)
    bits = [jax.lax.bitcast_convert_type(total.astype(jnp.float32), jnp.int32) for total in sums]
    return _voter_code(*sums, *bits, jnp)


@jax.jit
def _shared_chunk(start, theta, words, uniform_odds, theta_odds, shift):
    """Classes of positions start + 0 … chunk−1 where all voters share a stream, u16[chunk].

    Args:
        start: first position, u32[].
        theta: θ_g u16[chunk].
        words: of the stream, u32[2].
        uniform_odds, theta_odds: the tables U and T of `distance.logit_tables`, i16[65536].
        shift: i32[].
    """
    u = uniforms_at(words, start + jnp.arange(_CHUNK, dtype=jnp.uint32), jnp)

    def look_up(table, index):
        return table.at[index.astype(jnp.int32)].get(mode="promise_in_bounds").astype(jnp.int32)

    bucket = jnp.minimum(jnp.abs(look_up(uniform_odds, u) - look_up(theta_odds, theta)) >> shift, 63)
    return (bucket << 1 | (u < theta)).astype(jnp.uint16)


def _in_chunks(context: Context, codes_of: Callable) -> np.ndarray:
    """u16[d] from (first position, θ u16[_CHUNK]) -> u16[_CHUNK]; d > _CHUNK. Chunks run on a thread pool."""
    codes, theta = np.empty(context.d, np.uint16), context.check()

    def fill(start: int) -> None:
        start = min(start, context.d - _CHUNK)  # the last chunk is moved back: every call has the same shape
        codes[start : start + _CHUNK] = codes_of(np.uint32(start), theta[start : start + _CHUNK])

    with threads.pool() as pool:
        list(pool.map(fill, range(0, context.d, _CHUNK)))
    return codes
