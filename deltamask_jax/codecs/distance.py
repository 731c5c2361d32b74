"""Distance of a position's uniform from its theta, in integers: where a mask bit can flip easily.

A mask bit u < theta flips where theta moves past u. Training moves logits by similar amounts everywhere,
so what counts is |logit u - logit theta|. Both ends know u and theta and must agree on the distance bit
for bit, so it comes from two tables made by exact integer arithmetic.
"""

import functools

import numpy as np

from deltamask_jax.codecs.codec import Context


def between(uniforms: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """|log2-odds of u - log2-odds of theta| in units of 2**-10: u16[n], u16[n] -> i32[n]."""
    uniform_odds, theta_odds = logit_tables()
    return np.abs(uniform_odds[uniforms].astype(np.int32) - theta_odds[theta])


def at(context: Context, positions: np.ndarray) -> np.ndarray:
    """The distance at positions u32[n] from the context's first stream, i32[n]."""
    return between(context.uniforms(positions), context.check()[positions])


@functools.cache
def logit_tables() -> tuple[np.ndarray, np.ndarray]:
    """log2-odds of every 16-bit uniform and of every 16-bit theta, in units of 2**-10: two
    i16[65536].

    Exact integer arithmetic, so that both ends agree on any machine.
    """
    x = np.arange(1 << 16, dtype=np.int64) * 4

    def log2_odds(numerator):
        return (_log2(numerator) - _log2((1 << 18) - numerator)).astype(np.int16)

    # A bit is u < theta: u stands for the middle of its step. theta = 0 stands for a quarter step.
    return log2_odds(x + 2), log2_odds(np.maximum(x, 1))


def _log2(x: np.ndarray) -> np.ndarray:
    """floor(1024 * log2 x) for integers below 2**31, digit by digit: i64."""
    whole = np.zeros_like(x)
    for shift in (16, 8, 4, 2, 1):
        whole += np.where(x >> (whole + shift) > 0, shift, 0)
    mantissa = (x << 31) >> whole  # in 2**31 .. 2**32 - 1
    result = whole
    for _ in range(10):
        square = mantissa.astype(np.uint64) ** 2 >> np.uint64(31)
        digit = (square >= 1 << 32).astype(np.int64)
        mantissa = square.astype(np.int64) >> digit
        result = result * 2 + digit
    return result
