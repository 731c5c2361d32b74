"""What the codec tests share: every codec in small, and plausible updates for it."""

import sys
import threading
import tracemalloc

import numpy as np

from deltamask_jax import codecs
from deltamask_jax.codecs import envelope

SETTINGS = (
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
)


def every_codec() -> list[codecs.Codec]:
    return [codecs.get(**settings) for settings in SETTINGS]


def drift(d: int, spread: float, seed: int, round: int = 0, client: int = 0):
    """Flips of a mask whose logits moved by `spread`: (positions u32[n], context)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d)
    theta, moved = (
        np.clip(np.rint(65536 / (1 + np.exp(-x))), 0, 65535).astype(np.uint16)
        for x in (logits, logits + spread * rng.normal(size=d))
    )
    uniforms = rng.integers(0, 1 << 16, d, dtype=np.uint16)
    positions = np.flatnonzero((uniforms < theta) != (uniforms < moved)).astype(np.uint32)
    return positions, codecs.Context(d, theta, uniforms, round, client)


def sealed(payload: bytes) -> bytes:
    """The payload with its length and CRC32 made right again, after tampering with the rest."""
    header = envelope._FIELDS.unpack_from(payload)
    return envelope.pack(*header[2:8], payload[envelope.SIZE :])


def cost(decode, *arguments) -> tuple[int, int]:
    """What a call that may raise PayloadError costs: lines of the package that run, peak bytes allocated."""
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
        codecs.attempt(decode, *arguments)
    finally:
        sys.settrace(before)
        threading.settrace(None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return steps, peak
