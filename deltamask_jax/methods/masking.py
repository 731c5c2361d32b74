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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import aggregation, codecs, masks
from deltamask_jax.codecs import bundle
from deltamask_jax.data import partition
from deltamask_jax.local_training import cosine, mask_training
from deltamask_jax.methods.method import Link, Method, server_context
from deltamask_jax.methods.votes import Votes, hold_back, sums_of
from deltamask_jax.public_random import Key
from deltamask_jax.task import Cohort, Task
from deltamask_jax.threads import elementwise

_U16, _F32 = codecs.get("dense", dtype="uint16"), codecs.get("dense")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Server state.

    Attributes:
        theta: θ_g as both ends know it, u16[d].
        posterior: that it came from.
        held: votes that the server holds back until they amount to `downlink.hold`, i32[d]; None where it
            holds none.
        moments: with `client_state='kept'`, where each client's Adam stands: {client id as text: its state}.
            In a real federation this never leaves the client; here it is simulated beside the server, at
            8·d bytes per client. None without.
    """

    theta: np.ndarray
    posterior: aggregation.BetaPosterior
    held: np.ndarray | None = None
    moments: dict[str, Any] | None = None


def mask_method(
    name: str,
    task: Task,
    options: Any,
    *,
    rounds: int,
    participation: float,
    clients: int,
    final: Callable[[jax.Array, Any, Any], Any],
    up: Link,
    report: Callable[[Any, Votes], dict[str, float]],
    private: Callable[[Cohort], Any] = lambda cohort: (),
    streams: Callable[[Cohort], list[Key]] = lambda cohort: [],
    whole: bool = False,
    told_by_tally: bool = True,
    hold: int = 1,
    kept: optax.Schedule = lambda count: 1.0,
    diagnose: Callable[[State, Any], dict[str, Any]] = lambda state, updates: {},
    schedules: dict[str, optax.Schedule] | None = None,
    start_clip: float | None = None,
    least_kept: Callable[[np.ndarray], int] = masks.least_kept,
    **training: Any,
) -> Method:
    """A method whose clients train mask logits and whose server holds θ_g.

    Args:
        options: `config.mask`.
        rounds: of the run, over which schedules reach.
        participation: ρ; the Beta posterior is reset every 1/ρ rounds.
        clients: N; only clients that keep their optimiser's state need it.
        final: (θ_k u16[d], received, private) -> update, on the client's device.
        up: as of `Method`; its votes are `Votes`.
        streams: (cohort) -> public streams the masks m_k are drawn from: one that all share, or one per
            client; none where masks are not drawn from public uniforms.
        whole: whether votes are `Votes.ones` (masks travel), not `Votes.change` (flips travel).
        told_by_tally: whether votes are whole numbers, which a tally can send down.
        hold: votes that the server holds back until they amount to this; 1 = none.
        kept: share of the flips that travel, chosen at random, by round (from 0): a vote counts 1 / kept.
        schedules: further numbers that a client starts from, by round (from 0).
        start_clip: clients start from θ_g inside [start_clip, 1 − start_clip]; None: mask.theta_clip.
        least_kept: θ u16[d] -> the least θ16 of a weight that the thresholded mask keeps.
        training: further settings of `local_training.mask_training`.
    """
    index, d = task.index, task.index.d
    sums = sums_of(d, streams, whole, hold)
    same_total = told_by_tally and float(options.lambda0).is_integer()  # α + β is, at every position
    keeps, optimizer = options.client_state == "kept", optax.scale_by_adam()
    low, high = (round(p * masks.SCALE) for p in (options.theta_clip, 1 - options.theta_clip))
    top = min(high, masks.SCALE - 1)
    schedules = {
        "learning_rate": cosine(
            options.learning_rate, options.learning_rate_final / options.learning_rate, rounds
        ),
        **(schedules or {}),
    }

    def clamp(theta) -> np.ndarray:
        return np.clip(masks.theta16(theta), low, top)

    def forward(params, head, tokens):
        return task.model.suffix(params, tokens) @ head["kernel"] + head["bias"]

    def init() -> State:
        theta = clamp(np.full(d, options.theta_init, np.float32))
        held, moments = np.zeros(d, np.int32) if hold > 1 else None, None
        if keeps:
            fresh = jax.device_get(optimizer.init(jax.tree.map(jnp.zeros_like, index.kernels(task.params))))
            moments = {str(client): fresh for client in range(clients)}
        return State(theta, aggregation.prior(d, options.lambda0), held, moments)

    def keeps_posterior(cohort: Cohort) -> bool:
        """Whether this round's votes will add to the posterior of rounds before."""
        if options.aggregator == "control_variate" or cohort.round <= 1:
            return False
        return options.aggregator == "running" or not aggregation.resets_at(cohort.round - 1, participation)

    def snapshot(state: State, cohort: Cohort) -> bytes:
        """θ_g; and the posterior where it goes on: α, and β or, where it is the same everywhere, α + β."""
        theta = _U16.encode(state.theta, server_context(cohort, d))
        if not keeps_posterior(cohort):
            return theta
        alpha, beta = np.asarray(state.posterior.alpha), np.asarray(state.posterior.beta)
        rest = alpha[:1] + beta[:1] if same_total else beta
        counts = _F32.encode(np.append(alpha, rest), server_context(cohort, d + rest.size))
        return bundle.pack([theta, counts], server_context(cohort, d))

    def read_snapshot(payload: bytes, cohort: Cohort) -> State:
        posterior = aggregation.prior(d, options.lambda0)
        if keeps_posterior(cohort):
            payload, counts = bundle.unpack(payload, server_context(cohort, d), parts=2).parts
            counts = _F32.decode(counts, server_context(cohort, d + (1 if same_total else d)))
            alpha, rest = counts[:d], counts[d:]
            beta = rest - alpha if same_total else rest
            if min(alpha.min(), beta.min()) < 0:
                raise codecs.PayloadError("a snapshot holds a posterior with negative counts")
            posterior = aggregation.BetaPosterior(alpha, beta)
        return State(_U16.decode(payload, server_context(cohort, d)), posterior)

    def start(state: State, cohort: Cohort) -> dict[str, Any]:
        return {
            "theta": jnp.asarray(state.theta),
            "head": task.head,
            **{key: schedule(cohort.round - 1) for key, schedule in schedules.items()},
        }

    def with_moments(state: State, cohort: Cohort) -> Any:
        own = private(cohort)
        if state.moments is None:
            return own
        each = [state.moments[str(client)] for client in cohort.clients]
        return {"moments": jax.tree.map(lambda *xs: np.stack(xs), *each), "own": own}

    def remember(state: State, updates, payloads, cohort: Cohort) -> State:
        """Every client keeps where its optimiser stands."""
        if state.moments is None:
            return state
        now = {  # copies: a view would keep the whole cohort's alive
            str(client): jax.tree.map(np.copy, update["moments"])
            for client, update in zip(cohort.clients, updates, strict=True)
        }
        return dataclasses.replace(state, moments=state.moments | now)

    def sent(update):
        """What leaves the device, of one client or of many."""
        return update["sent"] if keeps else update

    def encode(state: State, updates, cohort: Cohort) -> list[bytes]:
        return up.encode(state, list(map(sent, updates)), cohort)

    def voters_of(cohort: Cohort) -> float:
        """How many voters one vote is one of, when all flips had travelled."""
        return share_kept(cohort) * len(cohort)

    def share_kept(cohort: Cohort) -> float:
        return float(np.asarray(kept(cohort.round - 1)))

    def release(state: State, votes: Votes, cohort: Cohort) -> tuple[State, Votes]:
        """Small votes wait. Those that would move θ beyond its clip are dropped, as `merge` drops them; a
        round of few voters drops no more than one of the usual size."""
        usual = partition.cohort_size(clients, participation)
        votes_of_all = max(len(cohort), usual) * share_kept(cohort)  # they move θ from 0 to 1

        def wait(theta, change, held):
            up, down = (
                np.ceil(way * (votes_of_all / masks.SCALE)).astype(np.int32)
                for way in (high - theta.astype(np.int32), theta.astype(np.int32) - low)
            )
            return hold_back(change, held, (up, down), hold)

        told, held = elementwise(wait, state.theta, sums.change(state, votes, cohort), state.held)
        return dataclasses.replace(state, held=held), dataclasses.replace(votes, change=told)

    def merge(state: State, votes: Votes, cohort: Cohort) -> State:
        if options.aggregator == "control_variate":
            change, voters = sums.change(state, votes, cohort), voters_of(cohort)

            def move(theta, change):
                return np.clip(_moved(theta, change, voters), low, top)

            theta = elementwise(move, state.theta, change)
            if 0 < options.hard_rounds == rounds - cohort.round:
                theta = np.where(theta >= least_kept(theta), top, low).astype(np.uint16)
            return dataclasses.replace(state, theta=theta)
        reset = options.aggregator == "beta" and aggregation.resets_at(cohort.round - 1, participation)

        def vote(theta, alpha, beta, ones):
            before = aggregation.prior(len(ones), options.lambda0)
            before = before if reset else aggregation.BetaPosterior(alpha, beta)
            posterior = aggregation.vote(before, ones, len(cohort))
            return clamp(aggregation.mode(posterior, _share(theta))), posterior

        ones, posterior = sums.ones(state, votes, cohort), state.posterior
        theta, posterior = elementwise(vote, state.theta, posterior.alpha, posterior.beta, ones)
        return dataclasses.replace(state, theta=theta, posterior=posterior)

    @jax.jit
    def evaluated(kernels, theta, least):
        """Kernels of the network that is evaluated, from those of the pretrained one and θ_g u16[d]."""
        return jax.tree.map(jnp.multiply, kernels, index.unravel(evaluated_mask(theta, least)))

    def network(state: State) -> tuple[Any, dict[str, Any]]:
        least = least_kept(np.asarray(state.theta)) if options.evaluate == "threshold" else None
        kernels = evaluated(index.kernels(task.params), jnp.asarray(state.theta), least)
        return index.merge(task.params, kernels), task.head

    def export(state: State) -> dict[str, Any]:
        theta = np.asarray(state.theta)
        return {
            "mask": np.packbits(theta >= least_kept(theta)),
            "theta": theta,
            "head/kernel": np.asarray(task.head["kernel"]),
            "head/bias": np.asarray(task.head["bias"]),
        }

    return Method(
        name=name,
        inputs="tokens",
        frozen={"params": task.params},
        client=mask_training(
            forward,
            index,
            optimizer,
            options.theta_clip if start_clip is None else start_clip,
            final,
            keeps=keeps,
            **training,
        ),
        init=init,
        down=Link(snapshot, read_snapshot),
        start=start,
        private=with_moments,
        up=Link(encode, up.decode),
        merge=merge,
        network=network,
        tally=sums.tally if told_by_tally else None,
        release=release if hold > 1 else None,
        remember=remember,
        report=lambda updates, votes: report(sent(updates), votes),
        export=export,
        diagnose=lambda state, updates: diagnose(state, sent(updates)),
    )


def evaluated_mask(theta: jax.Array, least: jax.Array | int | None) -> jax.Array:
    """What multiplies the weights when the global model is evaluated, f32[d], from θ u16[d].

    Args:
        least: `masks.least_kept` of θ, for the thresholded mask, which is what a device would store; None for
            E[m] = θ, the mean network.
    """
    if least is None:
        return theta.astype(jnp.float32) / masks.SCALE
    return (theta >= least).astype(jnp.float32)


def _moved(theta: np.ndarray, change: np.ndarray | jax.Array, voters: float) -> np.ndarray:
    """θ_g + Σ votes / voters, u16[d], from θ_g u16[d] and the votes [d].

    In NumPy, like the posterior: a server and its clients compute it on machines of their own, and not every
    accelerator divides as IEEE says.
    """
    moved = _share(theta) + np.asarray(change, np.float32) / np.float32(voters)
    return np.asarray(masks.theta16(moved))


def _share(theta: np.ndarray) -> np.ndarray:
    """θ f32[d], of θ16 u16[d]."""
    return np.asarray(theta, np.float32) / np.float32(masks.SCALE)
