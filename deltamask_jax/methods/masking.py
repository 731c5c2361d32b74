"""What all mask methods share: θ_g on the server, its way down, the merge of masks, the evaluated network.

Such a method (`deltamask`, `fedpm`, `fedmask`, `deepreduce`, `klms`) adds what a client makes of its trained
θ_k and how that travels; `mask_method` puts the parts together. Three aggregators, `config.mask.aggregator`:

    beta             Beta posterior of the masks, back to its prior every 1/ρ rounds (DeltaMask §3, FedPM):
                     with all clients in every round θ_g is the plain mean of their masks
    running          the same posterior, never reset: the mean of all masks so far, whose steps shrink like
                     1/round
    control_variate  θ_g + mean(m_k − m_g,k), where m_g,k is drawn from θ_g with the uniforms of m_k: as
                     unbiased for the mean θ_k as the mean of the m_k, and where θ_k is near θ_g almost all
                     of their noise cancels
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import aggregation, masks
from deltamask_jax.codecs import dense
from deltamask_jax.local_training import mask_training
from deltamask_jax.methods.method import Method
from deltamask_jax.public_random import MASK, stream_key, uniforms
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Server state: θ_g as both ends know it, u16[d], and the posterior it came from."""

    theta: np.ndarray
    posterior: aggregation.BetaPosterior


@dataclasses.dataclass(frozen=True)
class Tally:
    """What a cohort's masks add up to.

    Attributes:
        ones: Σ m_k, i32[d].
        global_ones: Σ m_g,k, i32[d]; None where no aggregator of the method asks for it.
        voters: number of masks.
    """

    ones: jax.Array
    global_ones: jax.Array | None
    voters: int


def mask_method(
    name: str,
    config,
    task: Task,
    *,
    final: Callable[[jax.Array, Any, Any], Any],
    private: Callable[[int, np.ndarray], Any],
    encode: Callable[[State, list, int, np.ndarray], list[bytes]],
    decode: Callable[[State, list[bytes], int, np.ndarray], Any],
    tally: Callable[[State, Any, int, np.ndarray], Tally],
    describe: Callable[[Any, Any], dict[str, float]],
    diagnose: Callable[[State, Any], dict[str, Any]] = lambda state, updates: {},
    schedules: dict[str, optax.Schedule] | None = None,
    start_clip: float | None = None,
    **training,
) -> Method:
    """A method whose clients train mask logits and whose server holds θ_g.

    Args:
        final: (θ_k u16[d], received, private) -> update, on the client's device.
        tally: (state, decoded, round, clients) -> sums of masks for the aggregator.
        schedules: further numbers that `received` holds, by round (from 0).
        start_clip: clients start from θ_g inside [start_clip, 1 − start_clip]; None: mask.theta_clip.
        training: further settings of `local_training.mask_training`.

    Raises:
        ValueError: the method has no such aggregator.
    """
    options, index = config.mask, task.index
    merge = aggregator(config)
    low, high = (round(p * masks.SCALE) for p in (options.theta_clip, 1 - options.theta_clip))
    schedules = {
        "learning_rate": cosine(options.learning_rate, options.learning_rate_final, config.rounds),
        **(schedules or {}),
    }

    def clamp(theta) -> np.ndarray:
        return np.clip(np.asarray(masks.theta16(theta)), low, min(high, masks.SCALE - 1))

    def forward(params, head, tokens):
        return task.model.suffix(params, tokens) @ head["kernel"] + head["bias"]

    def init():
        theta = clamp(jnp.full(index.d, options.theta_init, jnp.float32))
        return State(theta, aggregation.prior(index.d, options.lambda0))

    def broadcast(state, round_number):
        return dense.encode(state.theta, round_number=round_number, client=dense.SERVER)

    def receive(payload, round_number):
        theta = dense.decode(payload, index.d, np.uint16, round_number=round_number, client=dense.SERVER)
        return {
            "theta": jnp.asarray(theta),
            "head": task.head,
            **{key: schedule(round_number - 1) for key, schedule in schedules.items()},
        }

    def aggregate(state, decoded, clients, examples, round_number):
        theta, posterior = merge(state, tally(state, decoded, round_number, clients), round_number)
        return State(clamp(theta), posterior)

    def eval_params(state):
        multiplier = index.unravel(evaluated_mask(jnp.asarray(state.theta), options.evaluate))
        kernels = jax.tree.map(jnp.multiply, index.kernels(task.params), multiplier)
        return index.merge(task.params, kernels), task.head

    def export(state) -> dict[str, Any]:
        return {
            "mask": np.packbits(np.asarray(state.theta) > masks.SCALE // 2),
            "theta": np.asarray(state.theta),
            "head/kernel": np.asarray(task.head["kernel"]),
            "head/bias": np.asarray(task.head["bias"]),
        }

    return Method(
        name=name,
        inputs="tokens",
        frozen={"params": task.params},
        training=mask_training(
            forward,
            index,
            optax.scale_by_adam(),
            options.theta_clip if start_clip is None else start_clip,
            final,
            **training,
        ),
        init=init,
        broadcast=broadcast,
        receive=receive,
        private=private,
        encode=encode,
        decode=decode,
        aggregate=aggregate,
        eval_params=eval_params,
        describe=describe,
        export=export,
        diagnose=diagnose,
    )


def aggregator(config) -> Callable[[State, Tally, int], tuple[jax.Array, aggregation.BetaPosterior]]:
    """(state, tally, round) -> (θ f32[d], posterior), as `config.mask.aggregator` says for `config.method`.

    Raises:
        ValueError: unknown name, or a control variate for a method whose masks are not drawn from uniforms
            that the server knows.
    """
    table = {"beta": _beta, "running": _running, "control_variate": _control_variate}
    chosen = look_up("config.mask.aggregator", config.mask.aggregator, table)
    if chosen is _control_variate and config.method in ("fedmask", "klms"):
        raise ValueError(
            f"config.mask.aggregator='control_variate' needs masks drawn from public uniforms, which "
            f"{config.method} does not have: use 'beta' or 'running'"
        )
    return partial(chosen, config)


def set_positions(updates: list[np.ndarray], d: int) -> Iterator[np.ndarray]:
    """Positions of the set bits of each client's packed update u8[⌈d/8⌉], u32[n], as codecs take them."""
    return (np.flatnonzero(np.unpackbits(packed, count=d)).astype(np.uint32) for packed in updates)


def evaluated_mask(theta: jax.Array, kind: str) -> jax.Array:
    """What multiplies the weights when the global model is evaluated, f32[d], from θ u16[d].

    'mean' is E[m] = θ, 'threshold' the most probable mask [θ > ½], which is what a device would store.
    """
    means = {
        "mean": lambda: theta.astype(jnp.float32) / masks.SCALE,
        "threshold": lambda: (theta > masks.SCALE // 2).astype(jnp.float32),
    }
    return look_up("config.mask.evaluate", kind, means)()


def cosine(first: float, last: float, rounds: int) -> optax.Schedule:
    """From `first` in round 0 to `last` in round `rounds` − 1, on half a cosine."""
    return optax.cosine_decay_schedule(first, max(rounds - 1, 1), alpha=last / first)


def mask_keys(config, round_number: int, clients: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The public streams that clients' masks are drawn from: two words u32[k]."""
    keys = [stream_key(config.seed, round_number, int(client), MASK) for client in clients]
    return tuple(jnp.asarray(words) for words in zip(*keys, strict=True))


@jax.jit
def global_ones(theta: jax.Array, keys: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Σ m_g over the given streams, i32[d], from θ_g u16[d] and words u32[k]."""

    def add(total, key):
        return total + masks.draw(theta, uniforms(key, theta.size, jnp)), None

    return jax.lax.scan(add, jnp.zeros(theta.size, jnp.int32), keys)[0]


def _beta(config, state, tally, round_number):
    """Rounds count from 1; the first starts from the prior, like every reset."""
    if aggregation.resets_at(round_number - 1, config.participation):
        state = State(state.theta, aggregation.prior(len(state.theta), config.mask.lambda0))
    return _running(config, state, tally, round_number)


def _running(config, state, tally, round_number):
    posterior = aggregation.vote(state.posterior, tally.ones, tally.voters)
    return aggregation.mode(posterior, jnp.asarray(state.theta) / masks.SCALE), posterior


def _control_variate(config, state, tally, round_number):
    change = (tally.ones - tally.global_ones) / tally.voters
    return jnp.asarray(state.theta) / masks.SCALE + change, state.posterior
