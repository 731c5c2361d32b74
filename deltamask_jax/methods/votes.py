"""Votes: what a cohort's masks add up to, in two forms, and how the server tells them.

    change    Σ m̂_k − Σ m_g,k    where flips travel
    ones      Σ m̂_k              where masks travel

Where masks are drawn from public streams both ends know Σ m_g,k, so that one form gives the other. Below are
those streams, and a mask's packed bits as positions.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs, masks
from deltamask_jax.methods.method import Link, server_context
from deltamask_jax.public_random import EVERY_CLIENT, MASK, Key, uniforms
from deltamask_jax.task import Cohort

_TALLY = codecs.get("tally")


@partial(jax.tree_util.register_dataclass, data_fields=["change", "ones"], meta_fields=["flips"])
@dataclasses.dataclass(frozen=True)
class Votes:
    """What a cohort's masks add up to; one of the two is given.

    Attributes:
        change: Σ m̂_k − Σ m_g,k, i32[d]; f32[d] from aggregators that weigh clients.
        ones: Σ m̂_k, i32[d].
        flips: how many flips arrived.
    """

    change: np.ndarray | None = None
    ones: np.ndarray | None = None
    flips: int = 0


class Sums(NamedTuple):
    """The two forms of votes, and their way down.

    Attributes:
        change: (state, votes, cohort) -> Σ m̂_k − Σ m_g,k, [d].
        ones: (state, votes, cohort) -> Σ m̂_k, [d]. Both raise ValueError where votes hold neither.
        tally: the votes as news, where they are whole numbers.
    """

    change: Callable[[Any, Votes, Cohort], jax.Array | np.ndarray]
    ones: Callable[[Any, Votes, Cohort], jax.Array | np.ndarray]
    tally: Link


def sums_of(d: int, streams: Callable[[Cohort], list[Key]], whole: bool, hold: int) -> Sums:
    """The sums of a method, whose states hold `theta`, θ_g u16[d].

    Args:
        d: masked weights.
        streams: (cohort) -> public streams of the masks: one that all share, one per client, or none.
        whole: whether `ones` travel up, not `change`.
        hold: votes that the server holds back until they amount to this; 1 = none.
    """

    def expected_ones(state, cohort: Cohort, change: np.ndarray | int = 0) -> jax.Array:
        """Σ m_g,k, i32[d], and a change to it."""
        keys = streams(cohort)
        return global_ones(jnp.asarray(state.theta), stacked(keys), len(cohort) // len(keys), change)

    def change_of(state, votes: Votes, cohort: Cohort) -> jax.Array | np.ndarray:
        if votes.change is not None:
            return votes.change
        return ones_of(state, votes, cohort) - expected_ones(state, cohort)

    def ones_of(state, votes: Votes, cohort: Cohort) -> jax.Array | np.ndarray:
        if votes.ones is not None:
            return votes.ones
        if votes.change is None:
            raise ValueError("votes without a sum of masks or of flips")
        return expected_ones(state, cohort, votes.change)

    def known(state, cohort: Cohort) -> codecs.Context:
        """Of a tally. Fewer than `hold` votes of earlier rounds add to this one's: they turn no sum."""
        keys = tuple(streams(cohort))
        return server_context(cohort, d, theta=state.theta, streams=keys, voters=len(cohort) + hold - 1)

    def encode(state, votes: Votes, cohort: Cohort) -> bytes:
        sum_of = ones_of if whole and not streams(cohort) else change_of
        return _TALLY.encode(np.asarray(sum_of(state, votes, cohort)), known(state, cohort))

    def decode(state, payload: bytes, cohort: Cohort) -> Votes:
        total = _TALLY.decode(payload, known(state, cohort))
        if not whole:
            return Votes(change=total)
        return Votes(ones=np.asarray(expected_ones(state, cohort, total)) if streams(cohort) else total)

    return Sums(change_of, ones_of, Link(encode, decode))


def hold_back(
    change: jax.Array | np.ndarray,
    held: np.ndarray | None,
    room: tuple[np.ndarray, np.ndarray],
    hold: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Votes travel once they amount to `hold`; until then the server keeps them.

    Args:
        change: this round's votes, i[d].
        held: those that it kept, i32[d]; None for none.
        room: how many votes θ may still go up and down, i32[d] each; beyond that they are dropped.

    Returns:
        What travels and what is kept, i32[d] each.
    """
    up, down = room
    total = np.clip((0 if held is None else held) + change, -down, up).astype(np.int32)
    told = np.where(np.abs(total) >= hold, total, 0)
    return told, total - told


def set_positions(updates: list[np.ndarray], d: int) -> Iterator[np.ndarray]:
    """Positions of the set bits of each client's packed update u8[⌈d/8⌉], u32[n], as codecs take them."""
    return (np.flatnonzero(np.unpackbits(packed, count=d)).astype(np.uint32) for packed in updates)


def mask_streams(cohort: Cohort, shared: bool = False) -> list[Key]:
    """The public streams that masks are drawn from: one that all share, or one per client."""
    return [cohort.stream(MASK, client) for client in ([EVERY_CLIENT] if shared else cohort.clients)]


def stacked(keys: list[Key]) -> tuple[jax.Array, jax.Array]:
    """The two words of each of k streams, u32[k] each, as devices take them."""
    first, second = zip(*keys, strict=True)
    return jnp.asarray(first), jnp.asarray(second)


@jax.jit
def global_ones(
    theta: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    each: jax.Array | int = 1,
    change: jax.Array | np.ndarray | int = 0,
) -> jax.Array:
    """Σ m_g over the given streams, `each` times, and a change to it: i32[d], from θ_g u16[d] and words
    u32[k]."""

    def add(total, key):
        return total + masks.draw(theta, uniforms(key, theta.size, jnp)), None

    return jax.lax.scan(add, jnp.zeros(theta.size, jnp.int32), keys)[0] * each + change
