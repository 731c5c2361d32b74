"""Sums of a cohort's votes, for the way down: exact, from what the receiver can compute itself.

A vote sum is Σ_k (m̂_k − m_g,k) of a position: how many voters flipped the bit there, up votes less down
votes. Where the masks were drawn from public streams, both ends know every voter's uniform, hence how easily
each could flip the bit (see `distance`) and in which direction. That gives each position a class:

    streams           class of a position                             what is coded
    one, shared       bucket of its distance, and its bit             how many flipped it
    one per voter     expected up votes, expected down votes          the signed sum
    none              bucket of θ's log-odds                          votes − round(voters · θ)

An expected number of votes is the sum, over the voters of that direction, of a weight for the group that the
voter's distance falls into. The encoder estimates four edges of groups and five weights and sends them; the
sums and the logarithmic buckets they fall into are integers.

Values are coded as binary decisions (zero? sign? more than 1? more than 2? …) by rANS, at probabilities that
both ends learn from what has been coded before: positions go in passes, every 4**t-th one first, then those
between. Nothing is sent for that. A class with little experience leans on the coarser class around it. Votes
in classes that hardly ever have any travel as Rice-coded gaps.
"""

import dataclasses
import struct
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import threads
from deltamask_jax.codecs import distance, envelope, rans, rice
from deltamask_jax.codecs.codec import Codec, Context, PayloadError
from deltamask_jax.public_random import uniforms_at

_ID = envelope.CODEC_IDS["tally"]
_HEAD = struct.Struct("<BBBxII")
_NONE, _SHARED, _EACH = range(3)  # the envelope's flags: streams
_CHUNK = 1 << 16  # positions a jitted call
_SMALL = 1 << 16  # up to so many positions NumPy is faster than compiling
_TOGETHER = 256  # voters whose weights, up to 255, add up in 16 bits
MOST_VOTERS = (1 << 16) - 1
_MOST_LANES_LOG2 = 13
_FIRST = 256  # positions of the first pass, at most
_PART = 1 << 22  # positions that answer together, at most: what is remembered of them is 64-bit integers
_LEVELS = 24  # magnitudes up to here have learned probabilities
_LEAN = 4  # observations that the coarser class's probability counts for
_SHIFTS = 12  # bucket widths 1 … 2**11 of a shared stream
_EDGES = 4
_GROUPS = struct.Struct(f"<{_EDGES}H{_EDGES + 1}B")
_FINE = np.rint(16 * 1.25 ** np.arange(31)).astype(np.int64)  # edges the encoder chooses from


def tally() -> Codec:
    """Creates the codec: encode(votes i[d], context) -> bytes, decode(payload, context) -> votes i32[d].

    The context must hold theta u16[d], voters ≥ 1, and streams: none, one, or one per voter. Without streams
    votes are 0 … voters, otherwise −voters … voters; with one, −1 and below only where its uniform is below
    theta, 1 and above only elsewhere. `encode` raises ValueError on anything else.
    """
    return Codec("tally", _encode, _decode, kind="votes")


def _encode(votes: np.ndarray, context: Context) -> bytes:
    mode = _check(context)
    votes = np.asarray(votes)
    if votes.shape != (context.d,) or not np.issubdtype(votes.dtype, np.integer):
        raise ValueError(
            f"votes: expected integers of shape [{context.d}], got {votes.dtype} {list(votes.shape)}"
        )
    least = 0 if mode == _NONE else -context.voters
    if votes.size and (votes.min() < least or votes.max() > context.voters):
        raise ValueError(f"votes must be in {least} … {context.voters}")
    n = int(np.count_nonzero(votes))
    body = b""
    if n:
        votes = votes.astype(np.int32, copy=False)
        known, kind = b"", _KINDS[mode]
        if mode == _NONE:
            shift, codes = 0, _theta_codes(context)
            votes = votes - _centre(context)
        elif mode == _SHARED:
            shift = _choose_shift(votes, context)
            codes = _shared_codes(context, shift)
            if ((votes < 0) & (codes & 1 == 0) | (votes > 0) & (codes & 1 == 1)).any():
                raise ValueError("votes: a sum has the sign that its shared stream rules out")
        else:
            shift, (edges, weights) = 0, _choose_groups(votes, context)
            known = _GROUPS.pack(*edges, *weights)
            codes = _voter_codes(context, edges, weights)
        cut = _choose_cut(votes, codes, kind)
        near = _near(codes, cut, kind)
        far = np.zeros(0, np.uint32)
        if near is not None:
            far = _far_votes(votes, codes, cut, kind)
        k = rice.remainder_bits(len(far), context.d)
        gaps = rice.pack_gaps(far, k)
        m = context.d if near is None else len(near)
        runs: list[tuple[np.ndarray, np.ndarray]] = []

        def write(p: np.ndarray, bits: np.ndarray) -> np.ndarray:
            runs.append((bits, p))
            return bits

        model = _Model(kind, context.voters, write)
        for passes, last in _passes(m):
            for part in passes:
                at = part if near is None else near[part]
                model.code(codes[at], votes[at], learn=not last)
            model.relearn()
        model.code(codes[far], votes[far], learn=False, nonzero=True)
        states, words = rans.encode_runs(runs, np.zeros(1 << _lanes_log2(m), np.uint16))
        body = b"".join(
            (
                _HEAD.pack(cut, shift, k, len(far), len(gaps)),
                known,
                gaps,
                states.astype("<u4").tobytes(),
                words.astype("<u2").tobytes(),
            )
        )
    return envelope.pack(_ID, mode, context.d, n, context.round, context.client, body)


def _decode(payload: bytes, context: Context) -> np.ndarray:
    mode = _check(context)
    d, kind = context.d, _KINDS[mode]
    received = envelope.unpack(payload, codec_id=_ID, d=d, round=context.round, client=context.client)
    body = received.body
    if received.flags != mode:
        raise PayloadError(f"tally payload has flags {received.flags:#x}, its streams need {mode}")
    if received.n == 0:
        if len(body):
            raise PayloadError("payload without votes must have no body")
        return np.zeros(d, np.int32)
    start = _HEAD.size + (_GROUPS.size if mode == _EACH else 0)
    if len(body) < start:
        raise PayloadError("tally payload is too short for its header")
    cut, shift, k, far_count, gap_bytes = _HEAD.unpack_from(body)
    if body[3] or cut > kind.ranks.max() or shift >= _SHIFTS or (mode != _SHARED and shift):
        raise PayloadError("tally payload has impossible header fields")
    if far_count > received.n or (far_count and not cut) or k != rice.remainder_bits(far_count, d):
        raise PayloadError("tally payload has far votes or remainder bits that no sender writes")
    if start + gap_bytes > len(body):
        raise PayloadError("tally payload is too short for what its header announces")
    far = rice.unpack_gaps(body[start : start + gap_bytes], far_count, k, d)

    if mode == _NONE:
        codes = _theta_codes(context)
    elif mode == _SHARED:
        codes = _shared_codes(context, shift)
    else:
        numbers = _GROUPS.unpack_from(body, _HEAD.size)
        edges, weights = numbers[:_EDGES], numbers[_EDGES:]
        if not all(before < after for before, after in zip((0, *edges), edges, strict=False)):
            raise PayloadError("tally payload has groups whose edges do not rise")
        codes = _voter_codes(context, edges, weights)
    near = _near(codes, cut, kind)
    m = d if near is None else len(near)
    if (kind.ranks[codes[far]] >= cut).any():
        raise PayloadError("tally payload codes a near position as a far one")
    words_at = start + gap_bytes + (4 << _lanes_log2(m))
    if words_at > len(body) or (len(body) - words_at) % 2:
        raise PayloadError("tally payload is too short for its lanes, or ends within a word")
    coded = rans.Decoder(
        np.frombuffer(body[start + gap_bytes : words_at], "<u4"), np.frombuffer(body[words_at:], "<u2")
    )
    model = _Model(kind, context.voters, lambda p, _: coded.read(p))
    votes = np.zeros(d, np.int32)
    for passes, last in _passes(m):
        for part in passes:
            at = part if near is None else near[part]
            nonzero, values = model.code(codes[at], None, learn=not last)
            if isinstance(at, slice):
                votes[at][nonzero] = values
            else:
                votes[at[nonzero]] = values
        model.relearn()
    _, votes[far] = model.code(codes[far], None, learn=False, nonzero=True)
    if coded.finish().any():
        raise PayloadError("tally payload carries what no sender writes")
    if mode == _NONE:
        votes += _centre(context)
    if np.count_nonzero(votes) != received.n:
        raise PayloadError("tally payload holds another number of votes than it says")
    if votes.max() > context.voters or votes.min() < (0 if mode == _NONE else -context.voters):
        raise PayloadError(f"tally payload holds a sum of more than {context.voters} votes")
    return votes


def _check(context: Context) -> int:
    """Which streams the context has: _NONE, _SHARED or _EACH.

    Raises:
        ValueError: it lacks theta u16[d] or voters, or has more streams than this codec adds up.
    """
    context.check(streams=False)
    if not 1 <= context.voters <= MOST_VOTERS or len(context.streams) > MOST_VOTERS:
        raise ValueError(
            f"this codec needs 1 … {MOST_VOTERS} context.voters and at most as many streams, "
            f"got {context.voters} and {len(context.streams)}"
        )
    return min(len(context.streams), 2)


# ---- order and probabilities of what is coded ----


def _lanes_log2(m: int) -> int:
    """log2 of the lanes for m positions coded one by one: a lane costs 4 bytes, a step of all lanes time."""
    digits = m.bit_length()
    return min(max(min(digits - 11, 5), digits - 13, 0), _MOST_LANES_LOG2)


def _passes(m: int) -> Iterator[tuple[list[slice], bool]]:
    """Slices that cover 0 … m−1: first at most _FIRST, then each time three times as many as before; each
    slice of at most _PART positions."""
    depth = 0
    while m >> 2 * depth > _FIRST:
        depth += 1
    yield [slice(0, m, 1 << 2 * depth)], depth == 0
    for t in range(depth - 1, -1, -1):
        step = 4 << 2 * t
        yield (
            [
                slice(start, min(start + _PART * step, m), step)
                for q in (1, 2, 3)
                for start in range(q * step // 4, m, _PART * step)
            ],
            t == 0,
        )


@dataclasses.dataclass(frozen=True)
class _Kind:
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
_KINDS = (
    _Kind(
        (1024, 1), np.zeros(1024, np.uint8), True, 1024, lambda code, low: code >> 1 | low.astype("u2") << 9
    ),
    _Kind((64, 2), (63 - (_CODES[:128] >> 1)).astype(np.uint8), False, 64, lambda code, _: code >> 1),
    _Kind(
        (128, 128),
        np.maximum(_CODES >> 7, _CODES & 127).astype(np.uint8),
        True,
        128,
        lambda code, low: np.where(low, code & 127, code >> 7),
    ),
)


class _Model:
    """Learned probabilities, and the binary decisions of a value; the same object writes and reads.

    Args:
        voters: no magnitude is larger.
        ask: (p u16[m], the decisions bool[m] or None) -> decisions bool[m]; writes or reads them.
    """

    def __init__(self, kind: _Kind, voters: int, ask: Callable):
        self._kind, self._voters, self._ask = kind, voters, ask
        self._levels = min(_LEVELS, voters - 1)
        # Each: how often asked, how often yes.
        self._nonzero = np.zeros((2, *kind.shape), np.int64)
        self._negative = np.zeros((2, *kind.shape), np.int64)
        self._more = np.zeros((2, max(self._levels, 1), 1, kind.sides), np.int64)
        self.relearn()

    def relearn(self) -> None:
        """Takes what was counted into the probabilities."""
        self._p_nonzero = _estimate(*self._nonzero, 1 << 13).ravel()
        self._p_negative = _estimate(*self._negative, 1 << 15).ravel()
        self._p_more = _estimate(*self._more, 1 << 14).reshape(-1, self._kind.sides)

    def code(
        self, codes: np.ndarray, values: np.ndarray | None, learn: bool, nonzero: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Writes values i32[m], or reads them where None.

        Args:
            codes: u16[m], the positions' classes.
            learn: whether to count the decisions.
            nonzero: whether all values are known not to be zero.

        Returns:
            bool[m], where they are not zero; and those, i32[any].
        """

        def ask(p, codes, truth, counts):
            decisions = self._ask(p[codes], truth)
            if learn:
                counts[0] += np.bincount(codes, minlength=counts[0].size).reshape(counts[0].shape)
                counts[1] += np.bincount(codes[decisions], minlength=counts[1].size).reshape(counts[1].shape)
            return decisions

        known = values is not None
        if nonzero:
            where = np.ones(len(codes), bool)
        else:
            where = ask(self._p_nonzero, codes, values != 0 if known else None, self._nonzero)
            codes = codes[where]
            values = values[where] if known else None
        if self._kind.signed:
            below = None if values is None else values < 0
            negative = ask(self._p_negative, codes, below, self._negative)
        else:
            negative = codes & 1 == 1
        sizes = np.ones(len(codes), np.int32) if values is None else np.abs(values)
        side, open_ = self._kind.side(codes, negative), slice(None)
        left = sizes
        for level in range(1, self._levels + 1):
            truth = left > level if known else None
            more = ask(self._p_more[level - 1], side, truth, self._more[:, level - 1])
            open_ = np.flatnonzero(more) if level == 1 else open_[more]  # ty: ignore[not-subscriptable]
            if not len(open_):
                break
            side, left = side[more], left[more]
            if not known:
                sizes[open_] += 1
        else:
            if self._voters > _LEVELS + 1:
                rest = self._escape(sizes[open_] - _LEVELS if known else None, len(sizes[open_]))
                sizes[open_] = rest + _LEVELS
        return where, np.where(negative, -sizes, sizes)

    def _escape(self, rest: np.ndarray | None, count: int) -> np.ndarray:
        """Elias-gamma code of numbers ≥ 1, each bit at even odds: i32[count]."""

        def ask(truth, size):
            return self._ask(np.full(size, rans.ONE // 2, np.uint16), truth)

        known = rest is not None
        length, open_ = np.zeros(count, np.int32), np.arange(count)
        for bit in range(1, self._voters.bit_length()):
            more = ask(rest[open_] >> bit > 0 if known else None, len(open_))
            open_ = open_[more]
            length[open_] += 1
        got = np.ones(count, np.int32)
        for bit in range(int(length.max(initial=0)) - 1, -1, -1):
            open_ = np.flatnonzero(length > bit)
            low = ask(rest[open_] >> bit & 1 == 1 if known else None, len(open_))
            got[open_] = got[open_] << 1 | low
        return got


def _estimate(asked: np.ndarray, yes: np.ndarray, prior: int) -> np.ndarray:
    """Chance of yes per class, u16[..., a, b] in units of 2**-14, from i64[..., a, b] counts; a and b are
    powers of two. Each class leans on the one of twice its width, the widest on `prior`, in units of
    2**-16."""
    levels = [(asked, yes)]
    while asked.shape[-1] > 1 or asked.shape[-2] > 1:
        *lead, a, b = asked.shape
        split = (*lead, max(a // 2, 1), min(a, 2), max(b // 2, 1), min(b, 2))
        asked, yes = (counts.reshape(split).sum((-3, -1)) for counts in (asked, yes))
        levels.append((asked, yes))
    p = np.full(asked.shape, prior, np.int64)
    for asked, yes in reversed(levels):
        for axis in (-1, -2):
            if p.shape[axis] < asked.shape[axis]:
                p = np.repeat(p, 2, axis)
        p = ((yes << 16) + _LEAN * p) // (asked + _LEAN)
    return np.clip(p >> 2, 1, rans.ONE - 1).astype(np.uint16)


# ---- classes ----


def _near(codes: np.ndarray, cut: int, kind: _Kind) -> np.ndarray | None:
    """Positions coded one by one, u32[m]; None for all."""
    if cut == 0:
        return None
    is_near, step = kind.ranks >= cut, 1 << 22  # positions at once: NumPy finds them as 64-bit integers
    starts = range(0, len(codes), step)
    found = [(np.flatnonzero(is_near[codes[at : at + step]]) + at).astype(np.uint32) for at in starts]
    return np.concatenate([np.zeros(0, np.uint32), *found])


def _far_votes(votes: np.ndarray, codes: np.ndarray, cut: int, kind: _Kind) -> np.ndarray:
    """Positions elsewhere that have votes, u32[n]."""
    at = np.flatnonzero(votes)
    return at[kind.ranks[codes[at]] < cut].astype(np.uint32)


def _centre(context: Context) -> np.ndarray:
    """round(voters · θ), halves up: i32[d]."""
    theta = context.check(streams=False)
    return ((theta.astype(np.uint32) * np.uint32(context.voters) + (1 << 15)) >> 16).astype(np.int32)


def _theta_codes(context: Context) -> np.ndarray:
    """Classes where there are no streams: sixteenths of an octave of θ's odds, u16[d] below 1024."""
    table = (distance.logit_tables()[1].astype(np.int32) + (18 << 10) >> 6).astype(np.uint16)
    return table[context.check(streams=False)]


def _shared_codes(context: Context, shift: int) -> np.ndarray:
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


def _voter_codes(context: Context, edges: tuple[int, ...], weights: tuple[int, ...]) -> np.ndarray:
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
    weight = xp.where(u >= lo[_EDGES - 1], steps[0, _EDGES - 1], steps[0, _EDGES])
    for group in range(_EDGES - 2, -1, -1):
        weight = xp.where(u >= lo[group], steps[0, group], weight)
    weight = xp.where(u >= theta, steps[1, 0], weight)
    for group in range(_EDGES):
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


# ---- the encoder's choices ----


def _choose_cut(votes: np.ndarray, codes: np.ndarray, kind: _Kind) -> int:
    """The rank from which on positions are near, with the least estimated size; 0 where all are."""
    if not kind.ranks.any():
        return 0
    step = max(1, len(codes) >> 20) | 1
    size = np.bincount(codes[::step], minlength=len(kind.ranks)) * step
    some = np.bincount(codes[::step][votes[::step] != 0], minlength=len(kind.ranks)) * step
    p = (some + 0.1) / (size + 0.2)
    # What one symbol fewer is worth, in bits: time matters.
    near_bits = -some * np.log2(p) - (size - some) * np.log2(1 - p) + 0.01 * size

    def by_rank(amounts):
        return np.bincount(kind.ranks, amounts, minlength=int(kind.ranks.max()) + 1)

    near_bits, far = (np.cumsum(by_rank(amounts)) for amounts in (near_bits, some))
    near_bits, far = near_bits[-1] - near_bits, np.maximum(far, 0)
    far_bits = far * (np.log2(len(codes) / np.maximum(far, 1)) + 1.5)
    bits = near_bits + far_bits  # of cut = 1, 2, …
    cut = int(np.argmin(bits[:-1])) + 1
    everything = near_bits[0] + by_rank(-some * np.log2(p) - (size - some) * np.log2(1 - p))[0]
    everything += by_rank(0.01 * size)[0]
    return cut if bits[cut - 1] < everything else 0


def _choose_shift(votes: np.ndarray, context: Context) -> int:
    """Bucket width of a shared stream, as a shift, with the least estimated size."""
    at = np.arange(0, context.d, max(1, context.d >> 17) | 1, dtype=np.uint32)
    some = np.flatnonzero(votes)
    some = some[:: max(1, len(some) >> 16) | 1].astype(np.uint32)
    everywhere, there = distance.at(context, at), distance.at(context, some)
    weight = np.count_nonzero(votes) / len(some)
    best = (np.inf, 0)
    for shift in range(_SHIFTS):
        size = np.bincount(np.minimum(everywhere >> shift, 63), minlength=64) * (context.d / len(at))
        flips = np.bincount(np.minimum(there >> shift, 63), minlength=64) * weight
        p = np.clip((flips + 0.4) / np.maximum(size + 0.8, flips + 0.8), 1e-6, 1 - 1e-6)
        bits = -flips * np.log2(p) - np.maximum(size - flips, 0) * np.log2(1 - p)
        # The last bucket and what is beyond may travel as gaps.
        bits[-1] = min(bits[-1], flips[-1] * (np.log2(context.d / max(flips[-1], 1)) + 1.5))
        best = min(best, (bits.sum() + 20 * np.count_nonzero(flips), shift))
    return best[1]


def _choose_groups(votes: np.ndarray, context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and weights of the groups of distances, from a sample of positions.

    Only sums of votes are known. Which voters gave them is estimated by expectation maximisation: given the
    chance p of a flip in each fine bucket of distances, up and down votes of a position are about Poisson,
    which gives their expected numbers given their difference, and each voter's share of them.
    """
    rows = min(max((1 << 20) // len(context.streams), 256), 1 << 15)
    at = np.arange(0, context.d, max(1, context.d // rows) | 1, dtype=np.uint32)
    theta, sums = context.check()[at], votes[at].astype(np.float64)
    bucket_of = np.searchsorted(_FINE, np.arange(1 << 16), "right")
    buckets = len(_FINE) + 1
    voters = np.zeros((2, len(at), buckets), np.float32)  # up, down: how many in each bucket
    row = np.arange(len(at))
    for key in context.streams:
        u = uniforms_at(key, at)
        voters[(u < theta).astype(int), row, bucket_of[distance.between(u, theta)]] += 1
    size = voters.sum((0, 1), np.float64)
    total, middle = max(np.abs(sums).sum(), 1), np.append(_FINE, 2 * _FINE[-1]) * 0.9
    scales = _FINE[:, None].astype(np.float64)
    guesses = 0.4 / (1 + (middle / scales) ** 2)
    p = guesses[np.argmin(np.abs(guesses @ size - total))]
    first = np.abs(sums)
    for _ in range(12):
        up, down = np.maximum(voters @ p.astype(np.float32), 1e-6).astype(np.float64)
        term, ratio = np.ones(len(at)), up * down
        cancelled, norm = np.zeros(len(at)), np.ones(len(at))
        for t in range(1, 6):
            term = term * ratio / (t * (first + t))
            cancelled, norm = cancelled + t * term, norm + term
        cancelled /= norm
        share = [
            (np.maximum(sign * sums, 0) + cancelled) / expected for sign, expected in ((1, up), (-1, down))
        ]
        flips = p * sum(share[way].astype(np.float32) @ voters[way] for way in range(2))
        p = np.clip((flips + 1e-3) / (size + 1e-2), 1e-9, 0.999)
    groups = _merge(size, np.minimum(p * size, size))
    edges = tuple(int(_FINE[end - 1]) for end in groups[1:-1])
    chances = [
        (p * size)[start:end].sum() / max(size[start:end].sum(), 1e-9)
        for start, end in zip(groups, groups[1:], strict=False)
    ]
    weights = np.rint(255 * np.array(chances) / max(chances)).astype(int)
    return edges, tuple(int(w) for w in weights)


def _merge(size: np.ndarray, flips: np.ndarray) -> list[int]:
    """Cuts buckets into _EDGES + 1 groups of neighbours that tell most about flips: [0, …, buckets]."""
    sizes, flipped = (np.concatenate([[0], np.cumsum(x)]) for x in (size, flips))
    buckets = len(size)

    def bits(start, end):
        n, f = sizes[end] - sizes[start], flipped[end] - flipped[start]
        p = min(max(f / max(n, 1e-9), 1e-12), 1 - 1e-12)
        return -f * np.log2(p) - max(n - f, 0) * np.log2(1 - p)

    cost = {(i, j): bits(i, j) for i in range(buckets) for j in range(i + 1, buckets + 1)}
    best = {end: (cost[0, end], [0, end]) for end in range(1, buckets + 1)}
    for _ in range(_EDGES):
        reached, best = best, {}
        for end in range(min(reached) + 1, buckets + 1):
            best[end] = min(
                (reached[cut][0] + cost[cut, end], [*reached[cut][1], end]) for cut in reached if cut < end
            )
    return best[buckets][1]
