"""The codec seam: what both ends know, what travels, and the one error a payload may cause. One seam serves
flips, values and votes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deltamask_jax.public_random import Key, stream_key, uniforms_at


class PayloadError(ValueError):
    """Received bytes are not a valid payload: the one exception that decoding any bytes raises.

    Attributes:
        reason: one of few short names, by which a server counts what it rejected.
    """

    def __init__(self, message: str, reason: str = "malformed body"):
        super().__init__(message)
        self.reason = reason


SERVER = 0xFFFFFFFF  # the client number on the way down


@dataclass(frozen=True)
class Context:
    """What server and client know before a payload travels. It holds no array that nobody asked for.

    Attributes:
        d: number of masked weights, whose positions are 0 … d−1; or of values.
        theta: u16[d], probability of the global mask in units of 1/65536, or None.
        streams: public streams that masks are drawn from: the client's own, or the one that all share; for
            the votes of a cohort that of each voter, or the shared one.
        round: round number, u32.
        client: client number, u32; `SERVER` on the way down.
        seed: the run's public seed.
        voters: the largest magnitude of a sum of votes.
    """

    d: int
    theta: np.ndarray | None = None
    streams: tuple[Key, ...] = ()
    round: int = 0
    client: int = 0
    seed: int = 0
    voters: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.d < 1 << 32:
            raise ValueError(f"d = {self.d:,}: positions have 32 bits, d is at most {(1 << 32) - 1:,}")

    def uniforms(self, positions: np.ndarray | None = None) -> np.ndarray:
        """The first stream's public uniforms at `positions` u32[n], by default at all d: u16[n]."""
        if positions is None:
            positions = np.arange(self.d, dtype=np.uint32)
        return uniforms_at(self.streams[0], positions)

    def stream(self, purpose: int) -> Key:
        """This client's public stream of this round for one purpose, see `public_random`."""
        return stream_key(self.seed, self.round, self.client, purpose)

    def check(self, streams: bool = True) -> np.ndarray:
        """Returns θ_g, u16[d], for the codecs that look at it and at public uniforms.

        Args:
            streams: whether masks are drawn from the context's streams.

        Raises:
            ValueError: theta is not u16[d], or there is no stream.
        """
        if self.theta is None or self.theta.shape != (self.d,) or self.theta.dtype != np.uint16:
            raise ValueError(f"this codec needs context.theta as u16[{self.d}]")
        if streams and not self.streams:
            raise ValueError("this codec needs context.streams, from which the masks are drawn")
        return self.theta


Bytes = bytes | memoryview  # received: all of a payload, or a part of it that is not copied
Encode = Callable[[np.ndarray, Context], bytes]
Decode = Callable[[bytes, Context], np.ndarray]
Sizes = list[int | PayloadError]  # of a cohort: how many flips each payload holds, or what is wrong with it
Count = Callable[[Sequence[bytes], Sequence[Context], np.ndarray], Sizes]


@dataclass(frozen=True)
class Codec:
    """An array <-> bytes.

    Attributes:
        name: name with its settings, for tables and logs, for example `bfuse8-png`.
        encode: (array, Context) -> payload bytes. Raises `ValueError` for an array that is not of its kind.
        decode: (payload bytes, Context) -> array. Exact codecs return what was encoded; filters return it
            plus false positives. Raises `PayloadError` on anything else than a valid payload.
        exact: whether decode(encode(x)) == x always.
        kind: what the array is.
            positions  u32[n] sorted and unique in 0 … d−1: flips
            values     f32[d], or another type of float
            theta      u16[d] going in: θ_k; a mask bool[d] coming out
            votes      i32[d]: what a cohort's masks add up to
        count: (payloads, contexts, counts u16[d]) -> sizes, adds a cohort's flips per position to counts;
            None where decoding one payload after the other is as good.
    """

    name: str
    encode: Encode
    decode: Decode
    exact: bool = True
    kind: str = "positions"
    count: Count | None = None


def check_values(codec: str, vector: np.ndarray, context: Context) -> np.ndarray:
    """Returns the values as f32[d].

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    vector = np.asarray(vector, np.float32)
    if vector.shape != (context.d,) or not np.isfinite(vector).all():
        raise ValueError(
            f"{codec} takes finite f32[{context.d}], got {list(vector.shape)} or values that are not finite"
        )
    return vector


def check_scales(codec: str, scales: np.ndarray) -> None:
    """Refuses received steps, norms or means f32[...] that no sender writes: negative (−0 too) or not finite.

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
        ValueError: not one-dimensional, not integers, not strictly increasing, or outside 0 … d−1.
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
