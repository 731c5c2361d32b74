"""What the codec tests share: every codec in small, arrays of every kind, and what has to arrive."""

import functools
import sys
import threading
import tracemalloc
from dataclasses import dataclass
from unittest import mock

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deltamask_jax import codecs
from deltamask_jax.codecs import envelope, rans
from deltamask_jax.codecs.codec import SERVER
from deltamask_jax.public_random import EVERY_CLIENT, MASK, Key, stream_key, uniforms

# Of each of these `golden` keeps a payload.
KEPT = (
    {"name": "bfuse"},
    {"name": "bfuse", "container": "zstd"},
    {"name": "bfuse", "container": "raw"},
    {"name": "bfuse", "bits": 16},
    {"name": "bfuse", "bits": 32},
    {"name": "bfuse", "arity": 4},
    {"name": "bfuse", "bits": 32, "arity": 4, "container": "raw"},
    {"name": "bfuse", "window": True},
    {"name": "xor"},
    {"name": "xor", "bits": 16, "container": "zstd"},
    {"name": "bloom"},
    {"name": "bloom", "fpr": 0.01},
    {"name": "rice"},
    {"name": "side_info"},
    {"name": "arithmetic"},
    {"name": "bitmap"},
    {"name": "random_coding", "bits": 4, "block_kl": 2.0},
    {"name": "eden", "bits": 0.25},
    {"name": "eden", "bits": 1.5},
    {"name": "qsgd"},
    {"name": "signs"},
    {"name": "rounded"},
    {"name": "dense", "dtype": "float32"},
    {"name": "dense", "dtype": "float16"},
    {"name": "dense", "dtype": "bfloat16"},
    {"name": "dense", "dtype": "uint16"},
)
SETTINGS = (*KEPT, {"name": "random_coding"}, {"name": "eden"}, {"name": "eden", "bits": 2.5})


def every_codec(*kinds: str) -> list[codecs.Codec]:
    """Those of some kinds, by default of all."""
    made = [codecs.get(**settings) for settings in SETTINGS]
    return [codec for codec in made if not kinds or codec.kind in kinds]


@dataclass(frozen=True)
class Given(codecs.Context):
    """A context whose public randomness is given, not computed.

    Attributes:
        u: uniforms u16[d].
        key: of every stream.
    """

    u: np.ndarray | None = None
    key: Key | None = None

    def uniforms(self, positions=None):
        return self.u if positions is None else self.u[positions]

    def stream(self, purpose):
        return self.key


def drifted(d: int, spread: float, seed: int, round: int = 0, client: int = 0):
    """θ of a client whose logits moved by `spread`: (θ_k u16[d], context)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d)
    theta, moved = (
        np.clip(np.rint(65536 / (1 + np.exp(-x))), 0, 65535).astype(np.uint16)
        for x in (logits, logits + spread * rng.normal(size=d))
    )
    stream = stream_key(seed, round, client, MASK)
    return moved, codecs.Context(d, theta, (stream,), round, client, seed)


def drift(d: int, spread: float, seed: int, round: int = 0, client: int = 0):
    """Flips of its mask: (positions u32[n], context)."""
    moved, context = drifted(d, spread, seed, round, client)
    u = context.uniforms()
    return np.flatnonzero((u < context.theta) != (u < moved)).astype(np.uint32), context


def heavy_tailed(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.lognormal(size=n) * rng.normal(size=n)).astype(np.float32)


def context_of(n: int, client: int = 2) -> codecs.Context:
    return codecs.Context(n, round=1, client=client, seed=7)


def sent(codec: codecs.Codec, x: np.ndarray, client: int = 2) -> np.ndarray:
    """What arrives of values."""
    context = context_of(x.size, client)
    return codec.decode(codec.encode(x, context), context)


def type_of(codec: codecs.Codec) -> np.dtype:
    """Of what a codec of values takes and gives."""
    return jnp.dtype(codec.name.removeprefix("dense-") if codec.name.startswith("dense") else "float32")


def of_type(codec: codecs.Codec, x: np.ndarray) -> np.ndarray:
    """Values as a codec of values takes them; θ is not negative."""
    dtype = type_of(codec)
    return np.abs(x).astype(dtype) if dtype == np.uint16 else x.astype(dtype)


def sample(codec: codecs.Codec, d: int, spread: float = 0.2, seed: int = 0, round: int = 0, client: int = 0):
    """A plausible array for a codec of any kind, and its context."""
    if codec.kind == "positions":
        return drift(d, spread, seed, round, client)
    theta_k, context = drifted(d, spread, seed, round, client)
    return theta_k if codec.kind == "theta" else of_type(codec, heavy_tailed(d, seed)), context


@functools.cache
def payload_of(codec: codecs.Codec, d: int) -> bytes:
    array, context = sample(codec, d)
    return codec.encode(array, context)


def any_array(codec: codecs.Codec, d: int) -> st.SearchStrategy:
    """Any array of a codec's kind."""
    if codec.kind == "positions":
        chosen = st.sets(st.integers(0, d - 1))
        return chosen.map(lambda positions: np.array(sorted(positions), np.uint32))
    if codec.kind == "theta":
        return arrays.arrays(np.uint16, d)
    floats = arrays.arrays(np.float32, d, elements=st.floats(-65504, 65504, width=16))
    return floats.map(lambda x: of_type(codec, x))


def assert_valid(codec: codecs.Codec, decoded: np.ndarray, context: codecs.Context) -> None:
    """It is of the codec's kind, whoever sent it."""
    if codec.kind == "positions":
        assert decoded.dtype == np.uint32 and decoded.ndim == 1
        assert not decoded.size or decoded[-1] < context.d
        assert (decoded[1:] > decoded[:-1]).all()
        return
    assert decoded.shape == (context.d,)
    assert decoded.dtype == (np.bool_ if codec.kind == "theta" else type_of(codec))
    assert np.isfinite(decoded.astype(np.float64)).all()


def assert_arrived(codec: codecs.Codec, sent: np.ndarray, decoded: np.ndarray, context) -> None:
    """All that a codec promises of one payload: what it sends, more positions, or values not far away."""
    assert_valid(codec, decoded, context)
    if codec.exact:
        np.testing.assert_array_equal(decoded, sent)
    elif codec.kind == "positions":
        assert np.isin(sent, decoded).all()
        assert sent.size or not decoded.size
    elif codec.kind == "values":
        assert sent.any() or not decoded.any()
        error = np.abs(decoded.astype(np.float64) - sent)
        assert (error <= 1.0001 * _farthest(codec, np.abs(sent.astype(np.float64)))).all()


def _farthest(codec: codecs.Codec, size: np.ndarray) -> np.ndarray:
    """How far each value may arrive from where it was, from all magnitudes; EDEN promises none."""

    def of_each(group, reduce):
        starts = range(0, size.size, group)
        return np.repeat([reduce(size[start : start + group]) for start in starts], group)[: size.size]

    if codec.name.startswith("qsgd"):
        levels, bucket = map(int, codec.name.split("-")[1:])
        return of_each(bucket, np.linalg.norm) / levels
    if codec.name == "rounded":
        return of_each(512, np.max) / 127
    if codec.name == "signs":
        return np.maximum(size, of_each(4096, np.mean))
    return np.full(size.size, np.inf)


def sealed(payload: bytes) -> bytes:
    """The payload with its length and CRC32 made right again, after tampering with the rest."""
    header = envelope._FIELDS.unpack_from(payload)
    return envelope.pack(*header[2:8], payload[envelope.SIZE :])


def cost(decode, *arguments) -> tuple[int, int]:
    """What a call that may raise PayloadError costs: lines of the package that run, peak bytes allocated.

    Few rANS lanes are coded by vector operations too: each is a line as dear as any other.
    """
    steps = 0

    def each_line(frame, event, _):
        nonlocal steps
        steps += event == "line"
        return each_line

    def each_call(frame, event, _):
        return each_line if "deltamask_jax" in frame.f_code.co_filename else None

    before = sys.gettrace()
    tracemalloc.start()
    threading.settrace(each_call)
    sys.settrace(each_call)
    try:
        with mock.patch.object(rans, "_FEW", 0):
            codecs.attempt(decode, *arguments)
    finally:
        sys.settrace(before)
        threading.settrace(None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return steps, peak


def keys_of(mode: str, voters: int) -> tuple:
    words = {"none": [], "shared": [EVERY_CLIENT], "each": range(voters)}[mode]
    return tuple(stream_key(7, 3, word, MASK) for word in words)


def voted(mode: str, d: int, voters: int, spread: float, seed: int = 0) -> tuple[np.ndarray, codecs.Context]:
    """Votes of voters whose logits moved by `spread`, and what both ends know."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d)

    def theta16(x):
        return np.clip(np.rint(65536 / (1 + np.exp(-x))), 0, 65535).astype(np.uint16)

    theta, keys = theta16(logits), keys_of(mode, voters)
    context = codecs.Context(d, theta, tuple(keys), 3, SERVER, voters=voters)
    if mode == "none":
        return rng.binomial(voters, theta / 65536).astype(np.int32), context
    votes = np.zeros(d, np.int32)
    for voter in range(voters):
        u = uniforms(keys[voter % len(keys)], d)
        moved = theta16(logits + spread * rng.normal(size=d))
        votes += (u < moved).astype(np.int32) - (u < theta)
    return votes, context


def empty_blocks(number):
    """Four empty blocks of deflate with Huffman tables, `number` times: 45 bytes that hold nothing."""
    fields = [(0, 1), (2, 2), (0, 5), (0, 5), (14, 4)]  # not the last; dynamic; 257 + 1 codes, 18 lengths
    fields += [(int(symbol in (18, 1)), 3) for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3)]
    fields += [(int(symbol in (18, 1)), 3) for symbol in (13, 2, 14, 1)]
    fields += [(1, 1), (138 - 11, 7), (1, 1), (118 - 11, 7), (0, 1), (0, 1), (0, 1)]
    bits = [value >> at & 1 for value, width in fields for at in range(width)]
    return np.packbits(bits * 4, bitorder="little").tobytes() * number
