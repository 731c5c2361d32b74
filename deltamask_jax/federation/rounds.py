"""One federated round of any method: down → local training → up → votes → merge → news."""

import dataclasses
import time
from collections import Counter
from functools import partial
from typing import Any

import jax
import numpy as np

from deltamask_jax.data import partition
from deltamask_jax.federation import clients, downlink, faults
from deltamask_jax.methods import Method
from deltamask_jax.task import MAIN_PHASE, Cohort, Problem


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round cost and gave.

    Attributes:
        each: `clients`, whom it asked; `down` and `up`, the bytes to and from each: a line of clients.jsonl.
        details: numbers of the method's own for the round's line.
        payload: that of the last client that was merged, for looking at.
        seconds: what each step took, by name; `encode_seconds` are those that training did not hide.
        codec_seconds: spent making and reading payloads, up and down, hidden or not.
        diagnostics: the method's line of diagnostics.jsonl.
        lost: how many of them sent nothing, by reason.
        rejected: how many sent bytes that did not count, by reason.
        repeats: how often the round was played again; bytes and counts are sums over the attempts, seconds
            the last one's.
        snapshots: how many clients were sent a snapshot of the state.
        news_bytes: what tells this round to a client that knows the one before; None where only a snapshot
            can.
        memory: what clients hold after the round; None where they keep nothing.
    """

    train_loss: float
    each: dict[str, list[int]]
    details: dict[str, float]
    payload: bytes
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    codec_seconds: float = 0.0
    diagnostics: dict[str, Any] = dataclasses.field(default_factory=dict)
    lost: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)
    repeats: int = 0
    snapshots: int = 0
    news_bytes: int | None = None
    memory: downlink.Memory | None = None

    @property
    def clients(self) -> int:
        """How many were asked, once or again."""
        return len(self.each["clients"])

    @property
    def downlink_bytes(self) -> int:
        return sum(self.each["down"])

    @property
    def uplink_bytes(self) -> int:
        return sum(self.each["up"])

    @property
    def codec_exposed_seconds(self) -> float:
        """The part of `codec_seconds` that passed while no client trained."""
        return sum(self.seconds.get(f"{name}_seconds", 0.0) for name in ("down", "encode", "decode", "news"))

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


def play_until_enough(
    problem: Problem,
    method: Method,
    state: Any,
    number: int,
    memory: downlink.Memory | None = None,
) -> tuple[Any, Round]:
    """A round of the main phase, played again with a new cohort while fewer than `min_clients` are merged.

    Args:
        state: the method's server state.
        number: of the round, from 1.
        memory: what clients hold, see `downlink`; None: they keep nothing.

    Raises:
        TooFewClients: `max_repeats` repeats did not help.
    """
    config, spent = problem.config, []
    draw = partial(partition.cohort, sampling=config.client_sampling)
    for attempt in range(config.max_repeats + 1):
        chosen = draw(config.clients, config.participation, config.seed, number, attempt)
        try:
            asked = Cohort(config.seed, number, chosen, MAIN_PHASE, attempt)
            state, result = play_round(problem, method, state, asked, memory)
            return state, _with_failed_attempts(result, spent)
        except TooFewClients as error:
            spent.append(error.spent)
            reason, memory = error, error.spent.memory
    raise TooFewClients(
        f"{reason}, after {config.max_repeats} repeats: raise config.max_repeats and give the same command, "
        f"or lower config.min_clients in a new run",
        _with_failed_attempts(spent[-1], spent[:-1]),
    )


def play_round(
    problem: Problem, method: Method, state: Any, cohort: Cohort, memory: downlink.Memory | None = None
) -> tuple[Any, Round]:
    """One federated round; every byte that crosses the wire exists and is counted.

    Clients may fail and lie in the main phase only. Whatever is lost or rejected has no part in the merge.

    Args:
        state: the method's server state.
        memory: what clients hold, see `downlink`; None: they keep nothing.

    Raises:
        TooFewClients: fewer than `config.min_clients` (outside the main phase: 1) could be merged.
    """
    config, main = problem.config, cohort.phase == MAIN_PHASE
    marks = [time.perf_counter()]
    heard = (problem.ask or clients.ask)(problem, method, state, cohort, memory)
    marks.append(time.perf_counter())
    state, cohort, payloads, senders = heard.state, heard.cohort, heard.payloads, heard.senders
    votes, rejected = None, {}
    if len(senders):
        votes, rejected = method.up.decode(state, [payloads[row] for row in senders], cohort.of(senders))
    marks.append(time.perf_counter())
    merged = np.delete(senders, list(rejected))
    forgetful = [row for row, reason in heard.lost.items() if reason in faults.FORGETFUL]
    spent = Round(
        train_loss=float(np.mean(heard.losses[senders])) if len(senders) else float("nan"),
        each={
            "clients": cohort.clients.tolist(),
            "down": heard.told_bytes.tolist(),
            "up": [0 if row in heard.lost else len(sent) for row, sent in enumerate(payloads)],
        },
        details={},
        payload=b"",
        lost=dict(Counter(heard.lost.values())),
        rejected=dict(Counter(error.reason for error in rejected.values())),
        snapshots=heard.snapshots,
        memory=memory and memory.after(cohort, forgetful, None),
    )
    private = main and config.dp.level != "none"
    needed = config.min_clients if main else 1
    if private:  # it is played once, whoever answers: another cohort would spend more
        needed = 0
    if len(merged) < needed:
        why = ", ".join(f"{count} {reason}" for reason, count in (spent.lost | spent.rejected).items())
        raise TooFewClients(
            f"round {cohort.round}: {len(merged)} of {len(cohort)} clients could be merged, {needed} must be"
            + (f" ({why})" if why else ""),
            spent,
        )
    voters, accepted = cohort.of(merged), [payloads[row] for row in merged]
    if method.release and len(voters):
        state, votes = method.release(state, votes, voters)
    on_server = private and config.dp.level == "client"  # whose mean of nobody is noise
    new_state = method.merge(state, votes, voters) if len(voters) or on_server else state
    marks.append(time.perf_counter())
    told, news = None, None
    if memory is not None and main:  # what the head's round comes to travels as a head
        if accepted:
            told = downlink.news_of(method, state, votes, accepted, voters, config.downlink.news)
        unchanged = 0 if new_state is state and method.exact else downlink.NOTHING  # a snapshot rounds anew
        news = unchanged if told is None else len(told)
    heard.conclude(told)
    marks.append(time.perf_counter())
    details, diagnostics = heard.details, {}
    if heard.updates is not None and accepted:
        updates = heard.updates
        if len(merged) < len(cohort):
            updates = jax.tree.map(lambda x: x[merged], updates)
        details, diagnostics = details | method.report(updates, votes), method.diagnose(new_state, updates)
    _, decoding, merging, reporting = np.diff(marks).tolist()
    return new_state, dataclasses.replace(
        spent,
        payload=accepted[-1] if accepted else b"",
        seconds={
            **heard.seconds,
            "decode_seconds": decoding,
            "merge_seconds": merging,
            "news_seconds": reporting,
        },
        codec_seconds=heard.codec_seconds + decoding + reporting,
        details=details,
        diagnostics=diagnostics,
        news_bytes=None if news == downlink.NOTHING else news,
        memory=memory and memory.after(cohort, forgetful, news),
    )


def _with_failed_attempts(result: Round, failed: list[Round]) -> Round:
    """A round with the cost of the attempts before it; what those attempts could merge was thrown away."""
    for attempt in reversed(failed):
        thrown = {"round repeated": attempt.merged} if attempt.merged else {}
        result = dataclasses.replace(
            result,
            each={name: attempt.each[name] + numbers for name, numbers in result.each.items()},
            snapshots=result.snapshots + attempt.snapshots,
            lost=dict(Counter(result.lost) + Counter(attempt.lost)),
            rejected=dict(Counter(result.rejected) + Counter(attempt.rejected) + Counter(thrown)),
            repeats=result.repeats + 1,
        )
    return result
