"""The codec seam: what both ends know, what travels, and the one error a payload may cause."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deltamask_jax.public_random import Key


class PayloadError(ValueError):
    """Received bytes are not a valid payload: the one exception that decoding any bytes raises.

    Attributes:
        reason: one of few short names, by which a server counts what it rejected.
    """

    def __init__(self, message: str, reason: str = "malformed body"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Context:
    """What server and client know before a payload travels.

    Attributes:
        d: number of masked weights; positions are 0 .. d-1.
        theta: u16[d], probability of the global mask in units of 1/65536, or None.
        uniforms: u16[d], this client's public uniforms of this round, or None.
        round: round number, u32.
        client: client number, u32.
        streams: public streams the voters' masks were drawn from: one that all share, or one per voter.
        voters: largest magnitude of a sum of votes.
    """

    d: int
    theta: np.ndarray | None = None
    uniforms: np.ndarray | None = None
    round: int = 0
    client: int = 0
    streams: tuple[Key, ...] = ()
    voters: int = 0


@dataclass(frozen=True)
class Codec:
    """Flipped positions <-> bytes.

    Attributes:
        name: name with its settings, for tables and logs, for example `bfuse8-png`.
        encode: (positions u32[n] sorted and unique in 0 .. d-1, Context) -> payload bytes.
        decode: (payload bytes, Context) -> positions u32[n'] sorted and unique. Exact codecs return
            what was encoded; filters return it plus false positives. Raises `PayloadError` on
            anything else than a valid payload.
        exact: whether decode(encode(x)) == x always.
        count: (payloads, contexts, counts u16[d]) -> list, adds a cohort's flips per position to
            counts, and returns how many each payload holds, or its PayloadError; None where decoding one
            payload after the other is as good.
    """

    name: str
    encode: Callable[[np.ndarray, Context], bytes]
    decode: Callable[[bytes, Context], np.ndarray]
    exact: bool = True
    count: Callable[[Sequence[bytes], Sequence[Context], np.ndarray], list[int | PayloadError]] | None = None


def check_values(codec: str, vector: np.ndarray) -> np.ndarray:
    """Returns the values as f32[n].

    Raises:
        ValueError: not one-dimensional, or a value that is not finite.
    """
    vector = np.asarray(vector, np.float32)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ValueError(
            f"{codec} takes finite f32[n], got {list(vector.shape)} or values that are not finite"
        )
    return vector


def check_scales(codec: str, scales: np.ndarray) -> None:
    """Refuses received steps, norms or means that no sender writes: negative (−0 too) or not finite.

    Raises:
        PayloadError: naming the codec.
    """
    if np.signbit(scales).any() or not np.isfinite(scales).all():
        raise PayloadError(f"{codec} payload holds a scale that no sender writes")


def check_finite(codec: str, values: np.ndarray) -> np.ndarray:
    """Returns received values f32[n].

    Raises:
        PayloadError: one of them is not finite.
    """
    if not np.isfinite(values).all():
        raise PayloadError(f"{codec} payload holds values that are not finite")
    return values


def unpack_bits(codec: str, packed: np.ndarray, count: int) -> np.ndarray:
    """The first `count` bits of u8[⌈count / 8⌉], highest bit first: bool[count].

    Raises:
        PayloadError: the bits after them, which pad the last byte, are not zero.
    """
    bits = np.unpackbits(packed).view(bool)
    if bits[count:].any():
        raise PayloadError(f"{codec} payload is not padded with zeros")
    return bits[:count]


def check_positions(positions: np.ndarray, d: int) -> np.ndarray:
    """Returns the positions as u32[n].

    Raises:
        ValueError: not one-dimensional, not integers, not strictly increasing, or outside 0 .. d-1.
    """
    positions = np.asarray(positions)
    if positions.ndim != 1 or (positions.size and not np.issubdtype(positions.dtype, np.integer)):
        raise ValueError(
            f"positions: expected integers of shape [n], got {positions.dtype} {positions.shape}"
        )
    if positions.size == 0:
        return np.zeros(0, np.uint32)
    if positions[0] < 0 or positions[-1] >= d or not (positions[1:] > positions[:-1]).all():
        raise ValueError(f"positions must be strictly increasing within 0 .. {d - 1}")
    return positions.astype(np.uint32, copy=False)
