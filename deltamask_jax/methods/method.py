"""The seam every method fills: the functions it is made of, in the order of a round."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deltamask_jax.codecs import PayloadError
from deltamask_jax.codecs.codec import SERVER, Context
from deltamask_jax.local_training import LocalTraining
from deltamask_jax.task import Cohort

State = Any  # what the server keeps, a pytree of arrays
Received = Any  # what a client starts from, a pytree of arrays
Update = Any  # what training leaves of a client, a pytree of NumPy arrays
Votes = Any  # what the payloads of a cohort say, as `merge` takes it
Rejected = dict[int, PayloadError]  # by place in the cohort


@dataclasses.dataclass(frozen=True)
class Link:
    """One way of the wire: `encode` makes real bytes, `decode` reads nothing else. What they take and return
    stands in `Method`."""

    encode: Callable[..., Any]
    decode: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """One federated method. The server's state after a round follows from the state before it, the cohort and
    its votes alone: so votes are news enough for whoever holds the state before.

    Attributes:
        name: as in `config.method`.
        inputs: 'tokens' if local training starts at the frozen prefix's output, 'features' if it needs only
            the network's final features.
        frozen: pytree of device arrays that no round changes, handed to `client`.
        client: what one client does.
        init: () -> the state that every client can make of the config, the checkpoint and the head.
        down: a snapshot of the state. encode: (state, cohort) -> bytes; decode: (bytes, cohort) -> state, as
            far as clients may know it.
        start: (state, cohort) -> what local training starts from.
        private: (state, cohort) -> pytree with leading axis k, handed to `client.init` and `client.final`.
        up: what clients send. encode: (state, k updates, cohort) -> k payloads; decode: (state, k payloads,
            cohort, accepted=False) -> votes of the valid ones, and why others were rejected. Every payload
            is decoded once; with shared u, one of too many flips twice. `accepted`: these are a cohort's
            valid payloads, so that nothing is judged again.
        merge: (state, votes, cohort) -> state.
        network: (state) -> (params, head) of the network that is evaluated.
        exact: whether `down.decode` gives the state bit for bit, so that clients may follow by news.
        tally: the votes as news. encode: (state, votes, cohort) -> bytes; decode: (state, bytes, cohort) ->
            votes. None: only the payloads themselves tell them.
        release: (state, votes, cohort) -> state, votes that are to be merged; None: all of them are. What it
            keeps back is the server's alone.
        remember: (state, updates, payloads, cohort) -> state, with what clients keep for their next round
            (error feedback, their optimiser); by default nothing. It is simulated: none of it is ever sent.
        report: (updates with leading axis k, votes) -> numbers for the round's line in metrics.jsonl.
        export: (state) -> named arrays worth keeping, saved as safetensors.
        diagnose: (state after the round, updates with leading axis k) -> what goes to diagnostics.jsonl.
    """

    name: str
    inputs: str
    frozen: Any
    client: LocalTraining
    init: Callable[[], State]
    down: Link
    start: Callable[[State, Cohort], Received]
    up: Link
    merge: Callable[[State, Votes, Cohort], State]
    network: Callable[[State], tuple[Any, dict[str, Any]]]
    private: Callable[[State, Cohort], Any] = lambda state, cohort: ()
    exact: bool = True
    tally: Link | None = None
    release: Callable[[State, Votes, Cohort], tuple[State, Votes]] | None = None
    remember: Callable[[State, list[Update], list[bytes], Cohort], State] = (
        lambda state, updates, payloads, cohort: state
    )
    report: Callable[[Update, Votes], dict[str, float]] = lambda updates, votes: {}
    export: Callable[[State], dict[str, np.ndarray]] = lambda state: {}
    diagnose: Callable[[State, Update], dict[str, Any]] = lambda state, updates: {}


def contexts(cohort: Cohort, d: int, **known: Any) -> list[Context]:
    """What both ends know of each client's payload; `known` as of `codecs.Context`."""
    return [Context(d, round=cohort.round, client=int(k), seed=cohort.seed, **known) for k in cohort.clients]


def server_context(cohort: Cohort, d: int, **known: Any) -> Context:
    """What both ends know of a payload on the way down."""
    return Context(d, round=cohort.round, client=SERVER, seed=cohort.seed, **known)
