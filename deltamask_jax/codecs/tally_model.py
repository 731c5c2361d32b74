"""Learned probabilities of `tally`: a vote sum as binary decisions, each coded at what was seen before.

Zero? Of which sign? More than 1? More than 2? … Both ends count the answers of what has been coded, so that
nothing is sent for the probabilities. A class with little experience leans on the coarser class around it.
"""

from collections.abc import Callable

import numpy as np

from deltamask_jax.codecs import rans
from deltamask_jax.codecs.tally_classes import Kind

LEVELS = 24  # magnitudes up to here have learned probabilities
_LEAN = 4  # observations that the coarser class's probability counts for


class Model:
    """Learned probabilities, and the binary decisions of a value; the same object writes and reads.

    Args:
        voters: no magnitude is larger.
        ask: (p u16[m], the decisions bool[m] or None) -> decisions bool[m]; writes or reads them.
    """

    def __init__(self, kind: Kind, voters: int, ask: Callable):
        self._kind, self._voters, self._ask = kind, voters, ask
        self._levels = min(LEVELS, voters - 1)
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
            if self._voters > LEVELS + 1:
                rest = self._escape(sizes[open_] - LEVELS if known else None, len(sizes[open_]))
                sizes[open_] = rest + LEVELS
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
