"""Binary rANS in NumPy: many lanes in lock step (Duda, arXiv 1311.2540; interleaving: Giesen, arXiv
1402.3392).

Symbol number t * lanes + l belongs to lane l, so one vector operation advances all lanes by a
symbol. All lanes share one stream of 16-bit words. A lane's first state may carry 16 bits of other
data, which the decoder gets back; without such data the lanes cost 2 bytes each.

Decoding takes one step per symbol of a lane. How many lanes there are follows from what both ends know
(`lanes_log2`); a receiver refuses fewer. Few lanes are coded symbol by symbol in plain Python, to the same
words: a vector operation would cost more than all their arithmetic.
"""

import array
from collections.abc import Sequence

import numpy as np

from deltamask_jax.codecs.codec import PayloadError

PRECISION = 14  # probabilities are multiples of 2**-14
ONE = 1 << PRECISION
MOST_LANES_LOG2 = 12
_LOW = 1 << 16  # states stay in 2**16 .. 2**32 - 1
_FEW = 32  # lanes below which plain Python is faster


def lanes_log2(symbols: int) -> int:
    """log2 of the lanes that code so many symbols: 4096 to 8192 symbols per lane, more beyond 2**25."""
    return min(max((symbols >> 12).bit_length() - 1, 0), MOST_LANES_LOG2)


def encode(bits: np.ndarray, p: np.ndarray, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes bits of known probability.

    Args:
        bits: bool[m].
        p: u16[m], probability that the bit is set, in units of 2**-14, in 1 .. 2**14 - 1.
        carried: u16[lanes], data carried by the lanes' first states, lanes >= 1.

    Returns:
        states u32[lanes] and words u16[any], both needed to decode.
    """
    return encode_runs([(bits, p)], carried)


def encode_runs(
    runs: Sequence[tuple[np.ndarray, np.ndarray]], carried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes runs of bits and their probabilities one after the other; each run starts at lane 0.

    A `Decoder` reads them run by run, so that the probabilities of one may follow from the bits before it.

    Args:
        runs: (bits bool[n], probabilities u16[n] in units of 2⁻¹⁴, 1 … 2¹⁴−1), a pair per run.
        carried: data that the lanes carry, u16[lanes].

    Returns:
        Final states u32[lanes], and words u16[...].
    """
    lanes = len(carried)
    x = carried.astype(np.uint32) + np.uint32(_LOW)
    if lanes < _FEW:
        return _encode_few(runs, x.tolist())
    words = []
    for bits, p in reversed(runs):
        for start in range((len(bits) - 1) // lanes * lanes, -1, -lanes) if len(bits) else ():
            bit, probability = bits[start : start + lanes], p[start : start + lanes].astype(np.uint32)
            state = x[: len(bit)]  # a view: the last row may not fill all lanes
            frequency = np.where(bit, probability, ONE - probability)
            full = np.flatnonzero(state >= frequency << (32 - PRECISION))
            spilled = state[full]
            words.append(spilled.astype(np.uint16))
            state[full] = spilled >> 16
            state += state // frequency * (ONE - frequency)
            state += np.where(bit, np.uint32(0), probability)
    return x, np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)


def _encode_few(runs: Sequence[tuple[np.ndarray, np.ndarray]], x: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """`encode_runs` symbol by symbol, from the lanes' first states."""
    lanes, words = len(x), array.array("H")  # last word first
    for bits, p in reversed(runs):
        at = len(bits)
        for bit, probability in zip(bits[::-1].data, p[::-1].astype(np.uint16).data, strict=True):
            at -= 1
            state, frequency = x[at % lanes], probability if bit else ONE - probability
            if state >= frequency << (32 - PRECISION):
                words.append(state & 0xFFFF)
                state >>= 16
            state += state // frequency * (ONE - frequency)
            x[at % lanes] = state if bit else state + probability
    return np.array(x, np.uint32), np.array(words[::-1], np.uint16)


class Decoder:
    """Inverse of `encode_runs`, run by run.

    Args:
        states: u32[lanes]; words: u16[any].

    Raises:
        PayloadError: in all its methods: states and words are not what `encode_runs` makes.
    """

    def __init__(self, states: np.ndarray, words: np.ndarray):
        self._x = states.astype(np.uint32)
        self._words, self._read = words.astype(np.uint16), 0  # aligned
        if (self._x < _LOW).any():
            raise PayloadError("entropy-coded part starts from an impossible state")

    def read(self, p: np.ndarray) -> np.ndarray:
        """The next run of bits, bool[m], from their probabilities u16[m]."""
        lanes, words, read = len(self._x), self._words, self._read
        if lanes < _FEW:
            return self._read_few(p)
        bits = np.empty(len(p), bool)
        for start in range(0, len(p), lanes):
            probability = p[start : start + lanes].astype(np.uint32)
            state = self._x[: len(probability)]
            slot = state & np.uint32(ONE - 1)
            bit = np.less(slot, probability, out=bits[start : start + lanes])
            state >>= PRECISION
            state *= np.where(bit, probability, ONE - probability)
            state += slot
            state -= np.where(bit, np.uint32(0), probability)
            empty = np.flatnonzero(state < _LOW)
            if read + len(empty) > len(words):
                raise PayloadError("entropy-coded part ends too early")
            state[empty] = state[empty] << 16 | words[read : read + len(empty)]
            read += len(empty)
        self._read = read
        return bits

    def _read_few(self, p: np.ndarray) -> np.ndarray:
        """`read` symbol by symbol."""
        x, words, read = self._x.tolist(), self._words.data, self._read
        lanes, bits = len(x), np.empty(len(p), bool)
        answers = bits.data
        for at, probability in enumerate(p.astype(np.uint16).data):
            state = x[at % lanes]
            slot = state & ONE - 1
            if slot < probability:
                answers[at] = True
                state = (state >> PRECISION) * probability + slot
            else:
                answers[at] = False
                state = (state >> PRECISION) * (ONE - probability) + slot - probability
            if state < _LOW:
                if read == len(words):
                    raise PayloadError("entropy-coded part ends too early")
                state = state << 16 | words[read]
                read += 1
            x[at % lanes] = state
        self._x, self._read = np.array(x, np.uint32), read
        return bits

    def finish(self) -> np.ndarray:
        """What the lanes carried, u16[lanes], once all runs are read."""
        if self._read != len(self._words) or (self._x >> 16 != 1).any():
            raise PayloadError("entropy-coded part does not end where it should")
        return self._x.astype(np.uint16)


def decode(p: np.ndarray, states: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `encode`.

    Args:
        p: u16[m] as given to `encode`.
        states: u32[lanes]; words: u16[any].

    Returns:
        bits bool[m] and carried u16[lanes].

    Raises:
        PayloadError: states and words are not what `encode` makes.
    """
    decoder = Decoder(states, words)
    return decoder.read(p), decoder.finish()
