"""The clients' half of a round: what each is told, what it does, what may keep it from that, what it answers.

Simulated clients are asked all at once (`ask`). In a real federation each calls `work` for a cohort of itself
alone, and `Problem.ask` is what asks them over a wire (flower/).
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.federation import attacks, batches, downlink, faults, hosts, uplink
from deltamask_jax.federation import cohort as training
from deltamask_jax.methods import Method
from deltamask_jax.task import HEAD_PHASE, MAIN_PHASE, PROBE_PHASE, Cohort, Problem


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a cohort answered.

    Attributes:
        state: the server's before the round, with what simulated clients keep beside it.
        cohort: who was asked, with how many examples each trained on.
        payloads: one per client; whatever of a lost one.
        losses: f32[k], mean over each client's steps.
        lost: why rows of the cohort sent nothing.
        updates: what the payloads say, a NumPy pytree with leading axis k, to compare with; None where
            updates never leave the clients.
        told_bytes: what each was told, i64[k]; empty where nobody was told anything.
        snapshots: how many of them were sent a snapshot.
        seconds: what telling, training and encoding took, by name.
        codec_seconds: spent making and reading payloads, behind training or not.
        details: further numbers for the round's line.
        conclude: called once the round is merged, with its news; None where only a snapshot tells it.
    """

    state: Any
    cohort: Cohort
    payloads: list[bytes]
    losses: np.ndarray
    lost: dict[int, str]
    updates: Any = None
    told_bytes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    snapshots: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    codec_seconds: float = 0.0
    details: dict[str, float] = dataclasses.field(default_factory=dict)
    conclude: Callable[[bytes | None], None] = lambda news: None

    @property
    def senders(self) -> np.ndarray:
        """Rows of the cohort whose bytes came."""
        return np.setdiff1d(np.arange(len(self.cohort)), list(self.lost)).astype(int)


def ask(
    problem: Problem, method: Method, state: Any, cohort: Cohort, memory: downlink.Memory | None = None
) -> Answers:
    """Tell simulated clients what they lack, and let them work.

    Args:
        state: the server's.
        memory: what clients hold, see `downlink`; None: they keep nothing.
    """
    if not len(cohort):  # a Poisson cohort may be nobody
        nobody = dataclasses.replace(cohort, examples=np.zeros(0, np.int64))
        return Answers(state, nobody, [], np.zeros(0, np.float32), {})
    began = time.perf_counter()
    told = downlink.tell(method, state, cohort, memory)
    telling = time.perf_counter() - began
    answers = work(problem, method, state, told.state, cohort)
    return dataclasses.replace(
        answers,
        told_bytes=told.bytes,
        snapshots=told.snapshots,
        seconds={"down_seconds": telling, **answers.seconds},
        codec_seconds=telling + answers.codec_seconds,
    )


def work(problem: Problem, method: Method, state: Any, told: Any, cohort: Cohort) -> Answers:
    """What clients make of what they were told. They may fail and lie in the main phase only.

    Args:
        state: with what clients keep between rounds; the server's, where they are simulated beside it.
        told: the state as they were told it.
        cohort: all who were asked, or a client alone.
    """
    began = time.perf_counter()
    config, main = problem.config, cohort.phase == MAIN_PHASE
    epochs = config.head.epochs if cohort.phase == HEAD_PHASE else config.local_epochs
    poisson = config.dp.level == "example" and cohort.phase != PROBE_PHASE
    if poisson:
        draw = partial(batches.poisson_schedule, microbatch=config.dp.microbatch)
    else:
        draw = batches.schedule
    plan = draw(problem.parts, cohort, epochs=epochs, batch_size=config.batch_size)
    lost = faults.without_examples(plan)
    if main:
        plan, failing = faults.draw(config, plan, cohort)
        lost = failing | lost
    examples = faults.examples_seen(plan)
    if poisson:  # how many were drawn is a secret, how many there are is not
        examples = np.array([len(problem.parts[k]) for k in cohort.clients])
    cohort = dataclasses.replace(cohort, examples=examples)
    received = method.start(told, cohort)
    inputs, its = _examples(problem, method.inputs, plan.of(hosts.share(len(cohort))))
    sent = uplink.train_and_send(problem.engine, method, state, received, inputs, its, cohort)
    for row in np.flatnonzero(~np.isfinite(sent.losses)):
        client = cohort.clients[row]
        theirs, its = _examples(problem, method.inputs, plan.of([row]))
        replayed = problem.engine, method.client, method.frozen
        private = jax.tree.map(lambda x: x[0], method.private(state, cohort.of([row])))
        at = training.first_not_finite(*replayed, received, theirs, its, 0, private, cohort.key(client))
        step, what = at or ("unknown", "loss")
        lost[int(row)] = faults.NOT_FINITE
        logging.warning(
            "round %d: client %d dropped, its %s is not finite at step %s", cohort.round, client, what, step
        )
    updates, payloads = sent.updates, sent.payloads
    if main:
        updates, payloads = attacks.strike(problem, method, state, updates, payloads, cohort)
    answers = Answers(state, cohort, payloads, sent.losses, lost, updates)
    rows = answers.senders
    own = [jax.tree.map(lambda x, k=k: x[k], sent.updates) for k in rows]
    return dataclasses.replace(
        answers,
        state=method.remember(state, own, [sent.payloads[k] for k in rows], cohort.of(rows)),
        seconds={
            "train_seconds": time.perf_counter() - began - sent.exposed_seconds,
            "encode_seconds": sent.exposed_seconds,
        },
        codec_seconds=sent.codec_seconds,
    )


def _examples(
    problem: Problem, kind: str, plan: batches.Schedule
) -> tuple[training.Examples, batches.Schedule]:
    """Examples to train on, and the plan with indices into them: all that are cached, or the plan's anew."""
    inputs, labels = problem.inputs[kind][0], problem.labels[0]
    if isinstance(inputs, np.ndarray):
        return {"inputs": inputs, "labels": np.asarray(labels)}, plan
    if isinstance(inputs, jax.Array):
        return {"inputs": inputs, "labels": labels}, plan
    taken = np.arange(plan.batches.shape[1]) < plan.steps[:, None]  # not those of who fails on the way
    used = np.where(taken[:, :, None], plan.batches, -1)
    rows = np.unique(used[used >= 0]) if (used >= 0).any() else np.zeros(1, int)  # nobody trains
    used = np.where(used >= 0, np.searchsorted(rows, used), -1).astype(np.int32)
    examples: training.Examples = {"inputs": inputs[rows], "labels": np.asarray(labels)[rows]}
    if inputs.on_devices:
        most = sum(sorted(map(len, problem.parts))[-len(plan.steps) :])  # one shape for every cohort
        examples = {
            name: jnp.asarray(np.pad(x, [(0, most - len(rows))] + [(0, 0)] * (x.ndim - 1)))
            for name, x in examples.items()
        }
    return examples, dataclasses.replace(plan, batches=used)
