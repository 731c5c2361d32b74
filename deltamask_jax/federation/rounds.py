"""One federated round of any method: broadcast → local training → encode → bytes → decode → aggregate."""

import dataclasses
import logging
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.data import partition
from deltamask_jax.federation import attacks, cohort, faults, hosts, uplink
from deltamask_jax.methods import Method
from deltamask_jax.private_random import root_key
from deltamask_jax.task import Problem

HEAD_PHASE, MAIN_PHASE, PROBE_PHASE = range(3)  # each shuffles its examples with a stream of its own


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round cost and gave.

    Attributes:
        clients: how many were asked.
        details: numbers of the method's own for the round's line.
        payload: that of the last client that was merged, for looking at.
        seconds: what each step took, by name; `encode_seconds` are those that training did not hide.
        codec_seconds: spent making and reading payloads, up and down, hidden or not.
        diagnostics: the method's line of diagnostics.jsonl.
        lost: how many of them sent nothing, by reason.
        rejected: how many sent bytes that did not count, by reason.
        repeats: how often the round was played again; bytes and counts are sums over the attempts, seconds
            the last one's.
    """

    train_loss: float
    uplink_bytes: int
    downlink_bytes: int
    clients: int
    details: dict[str, float]
    payload: bytes
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    codec_seconds: float = 0.0
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)
    lost: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)
    repeats: int = 0

    @property
    def codec_exposed_seconds(self) -> float:
        """The part of `codec_seconds` that passed while no client trained."""
        return sum(self.seconds.get(f"{name}_seconds", 0.0) for name in ("broadcast", "encode", "decode"))

    @property
    def senders(self) -> int:
        """Clients whose bytes reached the server."""
        return self.clients - sum(self.lost.values())

    @property
    def merged(self) -> int:
        """Clients whose updates the new state holds."""
        return self.senders - sum(self.rejected.values())


class TooFewClients(RuntimeError):
    """A round merged fewer payloads than it must; `spent` is what it cost all the same."""

    def __init__(self, message: str, spent: Round):
        super().__init__(message)
        self.spent = spent


def play_until_enough(problem: Problem, method: Method, state: Any, number: int) -> tuple[Any, Round]:
    """A round of the main phase, played again with a new cohort while fewer than `min_clients` are merged.

    Raises:
        TooFewClients: `max_repeats` repeats did not help.
    """
    config, spent = problem.config, []
    for attempt in range(config.max_repeats + 1):
        clients = partition.cohort(config.clients, config.participation, config.seed, number, attempt)
        try:
            state, result = play_round(
                problem, method, state, number, clients, MAIN_PHASE, config.local_epochs, attempt
            )
            return state, _with_failed_attempts(result, spent)
        except TooFewClients as error:
            spent.append(error.spent)
            reason = error
    raise TooFewClients(
        f"{reason}, after {config.max_repeats} repeats: raise config.max_repeats and give the same command, "
        f"or lower config.min_clients in a new run",
        _with_failed_attempts(spent[-1], spent[:-1]),
    )


def play_round(
    problem: Problem,
    method: Method,
    state: Any,
    number: int,
    clients: np.ndarray,
    phase: int,
    epochs: int,
    attempt: int = 0,
) -> tuple[Any, Round]:
    """One federated round; every byte that crosses the wire exists and is counted.

    Clients may fail and lie in the main phase only. Whatever is lost or rejected has no part in the merge.

    Args:
        state: the method's server state.
        number: round number, from 1 (0 for the head's).
        clients: ids of the cohort, i[k].
        phase: one of the phases above.
        epochs: local epochs, E.
        attempt: how often this round was played before.

    Raises:
        TooFewClients: fewer than `config.min_clients` (outside the main phase: 1) could be merged.
    """
    config = problem.config
    plan = cohort.schedule(
        problem.parts,
        clients,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        round_number=number,
        purpose=phase,
    )
    lost = faults.without_examples(plan)
    if phase == MAIN_PHASE:
        plan, failing = faults.draw(config, plan, clients, number, attempt)
        lost = failing | lost
    marks = [time.perf_counter()]
    broadcast = method.broadcast(state, number)
    received = method.receive(broadcast, number)
    marks.append(time.perf_counter())
    round_key = jax.random.fold_in(jax.random.fold_in(root_key(config.seed), phase), number)
    examples, mine = _examples(problem, method.inputs, plan.of(hosts.share(len(clients))))
    sent = uplink.train_and_send(
        problem.engine, method, state, received, examples, mine, clients, number, round_key
    )
    for row in np.flatnonzero(~np.isfinite(sent.losses)):
        key = jax.random.fold_in(round_key, clients[row])
        theirs, its = _examples(problem, method.inputs, plan.of([row]))
        replayed = problem.engine, method.training, method.frozen
        at = cohort.first_not_finite(*replayed, received, theirs, its, 0, key)
        step, what = at or ("unknown", "loss")
        lost[int(row)] = faults.NOT_FINITE
        logging.warning(
            "round %d: client %d dropped, its %s is not finite at step %s", number, clients[row], what, step
        )
    updates, payloads = sent.updates, sent.payloads
    if phase == MAIN_PHASE:
        updates, payloads = attacks.strike(problem, method, state, updates, payloads, number, clients)

    marks.append(time.perf_counter())
    senders = np.setdiff1d(np.arange(len(clients)), list(lost)).astype(int)
    own = [jax.tree.map(lambda x, k=k: x[k], sent.updates) for k in senders]
    state = method.remember(state, own, [sent.payloads[k] for k in senders], number, clients[senders])
    decoded, rejected = None, {}
    if len(senders):
        arrived = [payloads[row] for row in senders]
        decoded, rejected = method.decode(state, arrived, number, clients[senders])
    marks.append(time.perf_counter())
    merged = np.delete(senders, list(rejected))
    spent = Round(
        train_loss=float(np.mean(sent.losses[senders])) if len(senders) else float("nan"),
        uplink_bytes=sum(len(payloads[row]) for row in senders),
        downlink_bytes=len(broadcast) * len(clients),
        clients=len(clients),
        details={},
        payload=b"",
        lost=dict(Counter(lost.values())),
        rejected=dict(Counter(error.reason for error in rejected.values())),
    )
    needed = config.min_clients if phase == MAIN_PHASE else 1
    if len(merged) < needed:
        why = ", ".join(f"{count} {reason}" for reason, count in (spent.lost | spent.rejected).items())
        raise TooFewClients(
            f"round {number}: {len(merged)} of {len(clients)} clients could be merged, {needed} must be"
            + (f" ({why})" if why else ""),
            spent,
        )
    seen = faults.examples_seen(plan)[merged].tolist()
    new_state = method.aggregate(state, decoded, clients[merged], seen, number)
    marks.append(time.perf_counter())
    if len(merged) < len(clients):
        updates = jax.tree.map(lambda x: x[merged], updates)
    broadcasting, training, decoding, aggregating = np.diff(marks).tolist()
    return new_state, dataclasses.replace(
        spent,
        payload=payloads[merged[-1]],
        seconds={
            "broadcast_seconds": broadcasting,
            "train_seconds": training - sent.exposed_seconds,
            "encode_seconds": sent.exposed_seconds,
            "decode_seconds": decoding,
            "aggregate_seconds": aggregating,
        },
        codec_seconds=broadcasting + sent.codec_seconds + decoding,
        details=method.describe(updates, decoded),
        diagnostics=method.diagnose(new_state, updates),
    )


def _examples(problem: Problem, kind: str, plan: cohort.Schedule) -> tuple[cohort.Examples, cohort.Schedule]:
    """Examples to train on, and the plan with indices into them: all that are cached, or the plan's anew."""
    inputs, labels = problem.inputs[kind][0], problem.labels[0]
    if isinstance(inputs, np.ndarray):
        return {"inputs": inputs, "labels": np.asarray(labels)}, plan
    if isinstance(inputs, jax.Array):
        return {"inputs": inputs, "labels": labels}, plan
    taken = np.arange(plan.batches.shape[1]) < plan.steps[:, None]  # not those of who fails on the way
    batches = np.where(taken[:, :, None], plan.batches, -1)
    rows = np.unique(batches[batches >= 0])
    batches = np.where(batches >= 0, np.searchsorted(rows, batches), -1).astype(np.int32)
    examples = {"inputs": inputs[rows], "labels": np.asarray(labels)[rows]}
    if inputs.on_devices:
        most = sum(sorted(map(len, problem.parts))[-len(plan.steps) :])  # one shape for every cohort
        examples = {
            name: jnp.asarray(np.pad(x, [(0, most - len(rows))] + [(0, 0)] * (x.ndim - 1)))
            for name, x in examples.items()
        }
    return examples, dataclasses.replace(plan, batches=batches)


def _with_failed_attempts(result: Round, failed: list[Round]) -> Round:
    """A round with the cost of the attempts before it; what those attempts could merge was thrown away."""
    for attempt in failed:
        thrown = {"round repeated": attempt.merged} if attempt.merged else {}
        result = dataclasses.replace(
            result,
            uplink_bytes=result.uplink_bytes + attempt.uplink_bytes,
            downlink_bytes=result.downlink_bytes + attempt.downlink_bytes,
            clients=result.clients + attempt.clients,
            lost=dict(Counter(result.lost) + Counter(attempt.lost)),
            rejected=dict(Counter(result.rejected) + Counter(attempt.rejected) + Counter(thrown)),
            repeats=result.repeats + 1,
        )
    return result
