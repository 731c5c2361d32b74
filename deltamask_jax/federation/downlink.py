"""The way down: what a client must be told before it can train, and what that costs.

A state follows from the one before it, the cohort and its votes. So a client that keeps what it knew is sent
the news of the rounds it missed: the votes' tally or the cohort's own payloads, whichever is smaller. Where a
snapshot of the state is smaller still, or the client keeps nothing, it is sent that.

Before round 1 nobody has to be told anything: the state follows from the config, the checkpoint and the head,
whose way down is counted with round 0.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from deltamask_jax.codecs import PayloadError, bundle, envelope
from deltamask_jax.methods import Method
from deltamask_jax.methods.method import server_context
from deltamask_jax.task import Cohort

TINY = 0.01  # bits per parameter: news of the cohort's own payloads that are not worth a tally's work
HEAVY = 8  # bytes per parameter: the cohort's own payloads are no news then, a snapshot is smaller
NOTHING = -1


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the server knows of what clients hold.

    Attributes:
        held: i64[N], the round after which each client's state is, or `NOTHING`.
        news: bytes of each round's news, from round 1; `NOTHING` where only a snapshot tells it.
    """

    held: np.ndarray
    news: tuple[int, ...] = ()

    @classmethod
    def at_start(cls, clients: int) -> "Memory":
        """Everybody can make the state of round 0."""
        return cls(np.zeros(clients, np.int64))

    @classmethod
    def of(cls, clients: int, played: int, held: list[int], news: list[int]) -> "Memory":
        """What a checkpoint after so many rounds says; one of a version before says nothing."""
        if not held and played:
            return cls(np.full(clients, NOTHING), (NOTHING,) * played)
        return cls(np.array(held or [0] * clients, np.int64), tuple(news))

    def lacking(self, cohort: Cohort) -> np.ndarray:
        """Bytes of the news each client lacks, f64[k]; infinite where news do not help."""
        news = np.array([x if x >= 0 else np.inf for x in self.news[: cohort.round - 1]])
        each = [news[held:].sum() if held >= 0 else np.inf for held in self.held[cohort.clients]]
        return np.array(each, np.float64)

    def after(self, cohort: Cohort, forgetful: list[int], news: int | None) -> "Memory":
        """After a round, in which everybody was told the state before it.

        Args:
            forgetful: rows of the cohort that never answered: what they hold is unknown.
            news: bytes of the round's own news; None where nothing was merged.
        """
        held = self.held.copy()
        held[cohort.clients] = cohort.round - 1
        held[cohort.clients[forgetful]] = NOTHING
        return Memory(held, self.news if news is None else (*self.news, news))


@dataclasses.dataclass(frozen=True)
class Told:
    """What a cohort was told.

    Attributes:
        state: as the clients hold it then.
        bytes: to each client, i64[k].
        snapshots: how many clients were sent a snapshot.
    """

    state: Any
    bytes: np.ndarray
    snapshots: int


def tell(method: Method, state: Any, cohort: Cohort, memory: Memory | None) -> Told:
    """Bring a cohort to the server's state.

    Args:
        memory: None: clients keep nothing, and each is sent a snapshot.
    """
    news = memory.lacking(cohort) if memory else np.full(len(cohort), np.inf)
    # Where a snapshot rounds, clients that lack nothing hold the rounded state as well; but for the first,
    # which everybody makes, also who did not answer in an attempt before.
    if (not news.any() and method.exact) or (memory and not method.exact and cohort.round == 1):
        return Told(state, np.zeros(len(cohort), np.int64), 0)
    snapshot = method.down.encode(state, cohort)
    received = state if method.exact else method.down.decode(snapshot, cohort)
    each = np.minimum(news, len(snapshot)).astype(np.int64)
    return Told(received, each, int(np.sum(news > len(snapshot))))


def news_of(
    method: Method, state: Any, votes: Any, payloads: list[bytes], cohort: Cohort, kind: str
) -> bytes | None:
    """What tells a client that holds `state` how it went on; None where only a snapshot can.

    Args:
        state: before the round.
        votes: as they are merged.
        payloads: those that were accepted.
        cohort: who sent them, with example counts.
        kind: 'relay', 'tally', or 'smaller' of both.

    Raises:
        RuntimeError: a tally does not tell the votes: a fault of this program.
    """
    if not method.exact:
        return None
    d = envelope.unpack(payloads[0]).d
    context = server_context(cohort, d)
    sent = sum(map(len, payloads))
    can_tally = method.tally is not None and kind != "relay"
    can_relay = method.release is None and sent < HEAVY * d and (kind != "tally" or not method.tally)
    told = []
    if can_relay:
        told.append(bundle.pack(payloads, context, bundle.RELAY, cohort.clients, cohort.examples))
    if can_tally and not (can_relay and 8 * sent < TINY * d):
        tally = method.tally.encode(state, votes, cohort)
        again = method.tally.decode(state, tally, cohort)
        if not all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(votes))):
            raise RuntimeError(f"round {cohort.round}: the tally does not tell the votes; please report this")
        told.append(bundle.pack([tally], context, bundle.TALLY, cohort.clients))
    return min(told, key=len, default=None)


def follow(method: Method, state: Any, news: bytes, cohort: Cohort) -> Any:
    """What a client does with a round's news: the state after it.

    Args:
        state: before the round, as this client holds it.
        cohort: seed, round, and everybody who may have been asked; who it was stands in the news.

    Raises:
        PayloadError: these are not the news of that round.
    """
    received = bundle.unpack(news, server_context(cohort, envelope.unpack(news).d))
    voters = dataclasses.replace(cohort, clients=received.clients, examples=received.examples)
    if not len(voters) or not np.isin(voters.clients, cohort.clients).all():
        raise PayloadError("news of nobody, or of clients that do not exist")
    if received.kind == bundle.RELAY and len(received.parts) == len(voters):
        if not received.examples.all():
            raise PayloadError("news of a client that has seen no example")
        votes, rejected = method.up.decode(state, received.parts, voters, accepted=True)
        for error in rejected.values():
            raise error
    elif received.kind == bundle.TALLY and len(received.parts) == 1 and method.tally is not None:
        votes = method.tally.decode(state, received.parts[0], voters)
    else:
        raise PayloadError(f"bundle of kind {received.kind} is no news that this method understands")
    return method.merge(state, votes, voters)
